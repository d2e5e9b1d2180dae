//! Query strings of the kubelet's API.
//!
//! In: a raw query. Out: typed options. Streams take `1` and `true` for true; log options are read as the API
//! machinery reads them: of a repeated one the first counts, and every flag but `0` and `false` is true. Pure.

use url::form_urlencoded;

use crate::logs::StreamSelection;

/// What `/exec` and `/attach` are asked for (`k8s.io/kubelet/pkg/cri/streaming/remotecommand`, `NewOptions`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RemoteOptions {
    /// Program and arguments; empty for attach.
    pub command: Vec<String>,
    /// The client will send stdin.
    pub stdin: bool,
    /// The client wants stdout.
    pub stdout: bool,
    /// The client wants stderr.
    pub stderr: bool,
    /// A terminal is wanted.
    pub tty: bool,
}

/// Why a query cannot be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// Nothing to do.
    #[error("you must specify at least 1 of stdin, stdout, stderr")]
    NoStreams,
    /// A value that is not of its type.
    #[error("query parameter {name}={value:?} is not {expected}")]
    Invalid {
        /// The parameter.
        name: String,
        /// What was sent.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
    /// A value of its type that may not be: the kubelet validates what it could decode.
    #[error("query parameter {name}: {problem}")]
    Forbidden {
        /// The parameter.
        name: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// All pairs, decoded, in order.
pub fn pairs(query: Option<&str>) -> Vec<(String, String)> {
    form_urlencoded::parse(query.unwrap_or_default().as_bytes()).into_owned().collect()
}

fn flag(name: &str, value: &str) -> Result<bool, QueryError> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "" | "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(QueryError::Invalid { name: name.to_owned(), value: value.to_owned(), expected: "a boolean" }),
    }
}

impl RemoteOptions {
    /// Reads the query of an exec or attach.
    ///
    /// # Errors
    /// [`QueryError`] when no stream is asked for, or a flag is not one.
    pub fn parse(query: Option<&str>) -> Result<Self, QueryError> {
        let mut options = Self::default();
        for (name, value) in pairs(query) {
            match name.as_str() {
                "command" => options.command.push(value),
                "input" | "stdin" => options.stdin = flag(&name, &value)?,
                "output" | "stdout" => options.stdout = flag(&name, &value)?,
                "error" | "stderr" => options.stderr = flag(&name, &value)?,
                "tty" => options.tty = flag(&name, &value)?,
                _ => {}
            }
        }
        // With a terminal there is one output stream.
        options.stderr &= !options.tty;
        if options.stdin || options.stdout || options.stderr { Ok(options) } else { Err(QueryError::NoStreams) }
    }
}

/// What `/containerLogs` is asked for, in the words of `v1.PodLogOptions`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogQuery {
    /// `follow`.
    pub follow: bool,
    /// `previous`.
    pub previous: bool,
    /// `timestamps`.
    pub timestamps: bool,
    /// `tailLines`, or the old `tail`, which may say `all`.
    pub tail_lines: Option<u64>,
    /// `sinceSeconds`.
    pub since_seconds: Option<u64>,
    /// `sinceTime`.
    pub since_time: Option<jiff::Timestamp>,
    /// `limitBytes`.
    pub limit_bytes: Option<u64>,
    /// `stream`: `All`, `Stdout` or `Stderr`.
    pub stream: StreamSelection,
}

impl LogQuery {
    /// Reads the query of a log request.
    ///
    /// # Errors
    /// [`QueryError::Invalid`] naming a parameter that cannot be decoded, [`QueryError::Forbidden`] one that fails
    /// `ValidatePodLogOptions`.
    pub fn parse(query: Option<&str>) -> Result<Self, QueryError> {
        let pairs = pairs(query);
        let first = |wanted: &str| pairs.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str());
        let is_set = |name| first(name).is_some_and(|value| value != "0" && !value.eq_ignore_ascii_case("false"));
        let number = |name| first(name).filter(|value| !value.is_empty()).map(|value| integer(name, value)).transpose();
        let tail_lines = match first("tail").filter(|tail| !tail.is_empty()) {
            Some("all") => None,
            Some(tail) => Some(integer("tail", tail)?),
            None => number("tailLines")?,
        };
        let (since_seconds, limit_bytes) = (number("sinceSeconds")?, number("limitBytes")?);
        let since_time = match first("sinceTime").filter(|time| !time.is_empty()) {
            Some(time) => Some(time.parse().map_err(|_| invalid("sinceTime", time, "an RFC 3339 time"))?),
            None => None,
        };
        let stream = first("stream").filter(|stream| !stream.is_empty());
        let forbidden = |name, problem| Err(QueryError::Forbidden { name, problem });
        if since_seconds.is_some() && since_time.is_some() {
            return forbidden("sinceTime", "at most one of `sinceTime` or `sinceSeconds` may be specified");
        }
        if tail_lines.is_some() && stream.is_some_and(|stream| stream != "All") {
            return forbidden("tailLines", "`tailLines` and specific `stream` are mutually exclusive for now");
        }
        Ok(Self {
            follow: is_set("follow"),
            previous: is_set("previous"),
            timestamps: is_set("timestamps"),
            tail_lines: at_least("tailLines", tail_lines, 0, "must be greater than or equal to 0")?,
            since_seconds: at_least("sinceSeconds", since_seconds, 1, "must be greater than 0")?,
            since_time,
            limit_bytes: at_least("limitBytes", limit_bytes, 1, "must be greater than 0")?,
            stream: match stream {
                None | Some("All") => StreamSelection::All,
                Some("Stdout") => StreamSelection::Stdout,
                Some("Stderr") => StreamSelection::Stderr,
                Some(_) => return forbidden("stream", "supported values: All, Stdout, Stderr"),
            },
        })
    }
}

fn invalid(name: &str, value: &str, expected: &'static str) -> QueryError {
    QueryError::Invalid { name: name.to_owned(), value: value.to_owned(), expected }
}

fn integer(name: &str, value: &str) -> Result<i64, QueryError> {
    value.parse().map_err(|_| invalid(name, value, "a whole number"))
}

fn at_least(
    name: &'static str,
    value: Option<i64>,
    least: i64,
    problem: &'static str,
) -> Result<Option<u64>, QueryError> {
    let Some(value) = value else { return Ok(None) };
    let value = u64::try_from(value).ok().filter(|_| value >= least);
    value.map(Some).ok_or(QueryError::Forbidden { name, problem })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_keeps_its_words_in_order() {
        let options = RemoteOptions::parse(Some("command=sh&command=-c&command=a%20b&output=1&error=true")).unwrap();
        assert_eq!(options.command, ["sh", "-c", "a b"]);
        assert!(options.stdout && options.stderr && !options.stdin);
    }

    #[test]
    fn a_terminal_has_one_output() {
        let options = RemoteOptions::parse(Some("output=1&error=1&tty=1")).unwrap();
        assert!(options.stdout && !options.stderr);
    }

    #[test]
    fn a_query_that_makes_no_sense_is_named() {
        assert_eq!(RemoteOptions::parse(Some("command=ls")), Err(QueryError::NoStreams));
        assert!(RemoteOptions::parse(Some("tty=maybe")).is_err());
    }

    #[test]
    fn log_options_are_read_as_the_kubelet_reads_them() {
        let none = LogQuery::default();
        for (query, expected) in [
            ("", none.clone()),
            (
                "follow=true&previous=1&timestamps=",
                LogQuery { follow: true, previous: true, timestamps: true, ..none.clone() },
            ),
            ("follow=False&previous=0", none.clone()),
            ("follow=anything", LogQuery { follow: true, ..none.clone() }),
            ("tailLines=5&tailLines=6", LogQuery { tail_lines: Some(5), ..none.clone() }),
            ("tailLines=0", LogQuery { tail_lines: Some(0), ..none.clone() }),
            ("tailLines=", none.clone()),
            ("tail=7&tailLines=5", LogQuery { tail_lines: Some(7), ..none.clone() }),
            ("tail=all&tailLines=5", none.clone()),
            ("limitBytes=1&sinceSeconds=2", LogQuery { limit_bytes: Some(1), since_seconds: Some(2), ..none.clone() }),
            ("stream=Stderr", LogQuery { stream: StreamSelection::Stderr, ..none.clone() }),
            ("stream=All&tailLines=1", LogQuery { tail_lines: Some(1), ..none.clone() }),
            ("unknown=1", none.clone()),
        ] {
            assert_eq!(LogQuery::parse(Some(query)), Ok(expected), "{query}");
        }
        for (query, undecodable) in [
            ("tailLines=many", true),
            ("tail=some", true),
            ("limitBytes=1.5", true),
            ("sinceTime=yesterday", true),
            ("tailLines=-1", false),
            ("limitBytes=0", false),
            ("sinceSeconds=0", false),
            ("sinceSeconds=1&sinceTime=2026-01-01T00:00:00Z", false),
            ("stream=Stdout&tailLines=1", false),
            ("stream=stdout", false),
        ] {
            let error = LogQuery::parse(Some(query)).unwrap_err();
            assert_eq!(matches!(error, QueryError::Invalid { .. }), undecodable, "{query}: {error}");
            let names: Vec<_> = query.split('&').filter_map(|pair| pair.split('=').next()).collect();
            assert!(names.iter().any(|name| error.to_string().contains(name)), "{query}: {error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_query_is_too_odd(query in "[a-zA-Z0-9=&%+.,:;-]{0,200}", name in "(follow|tail|tailLines|sinceTime|stream|command|tty)") {
            for query in [query.clone(), format!("{name}={query}")] {
                let first = LogQuery::parse(Some(&query));
                proptest::prop_assert_eq!(LogQuery::parse(Some(&query)), first);
                let _ = RemoteOptions::parse(Some(&query));
            }
        }

        #[test]
        fn what_was_asked_for_is_what_is_read(
            follow: bool, previous: bool, tail in proptest::option::of(0u32..), limit in proptest::option::of(1u32..),
            odd in ".*",
        ) {
            let mut query = form_urlencoded::Serializer::new(String::new());
            query.append_pair("odd", &odd).append_pair("follow", &follow.to_string());
            query.append_pair("previous", &previous.to_string());
            for (name, value) in [("tailLines", tail), ("limitBytes", limit)] {
                if let Some(value) = value {
                    query.append_pair(name, &value.to_string());
                }
            }
            let options = LogQuery::parse(Some(&query.finish())).unwrap();
            proptest::prop_assert_eq!(options, LogQuery {
                follow, previous, tail_lines: tail.map(u64::from), limit_bytes: limit.map(u64::from), ..LogQuery::default()
            });
        }
    }
}
