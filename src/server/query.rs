//! Query strings of the kubelet's API.
//!
//! In: a raw query. Out: typed options. kubelet takes `1`, `true` and `t` for true; repeated `command` keeps its order.

use url::form_urlencoded;

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
    /// `tailLines`.
    pub tail_lines: Option<u64>,
    /// `sinceSeconds`.
    pub since_seconds: Option<u64>,
    /// `sinceTime`.
    pub since_time: Option<jiff::Timestamp>,
    /// `limitBytes`.
    pub limit_bytes: Option<u64>,
}

impl LogQuery {
    /// Reads the query of a log request.
    ///
    /// # Errors
    /// [`QueryError::Invalid`] naming the parameter.
    pub fn parse(query: Option<&str>) -> Result<Self, QueryError> {
        let mut options = Self::default();
        for (name, value) in pairs(query) {
            match name.as_str() {
                "follow" => options.follow = flag(&name, &value)?,
                "previous" => options.previous = flag(&name, &value)?,
                "timestamps" => options.timestamps = flag(&name, &value)?,
                "tailLines" => options.tail_lines = Some(number(&name, &value)?),
                "sinceSeconds" => options.since_seconds = Some(number(&name, &value)?),
                "limitBytes" => options.limit_bytes = Some(number(&name, &value)?),
                "sinceTime" => {
                    let invalid = |_| QueryError::Invalid { name, value: value.clone(), expected: "an RFC 3339 time" };
                    options.since_time = Some(value.parse().map_err(invalid)?);
                }
                _ => {}
            }
        }
        Ok(options)
    }
}

fn number(name: &str, value: &str) -> Result<u64, QueryError> {
    let invalid = |_| QueryError::Invalid {
        name: name.to_owned(),
        value: value.to_owned(),
        expected: "a number that is not negative",
    };
    value.parse().map_err(invalid)
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
        for query in ["tailLines=-1", "sinceTime=yesterday", "follow=maybe"] {
            let error = LogQuery::parse(Some(query)).unwrap_err().to_string();
            assert!(error.contains(query.split('=').next().unwrap()), "{error}");
        }
    }
}
