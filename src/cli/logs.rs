//! `wasilet logs`: what a container wrote, with the options of `kubectl logs`.
//!
//! In: the node's stream. Out: the same bytes on stdout.

use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::Context;
use http_body_util::BodyExt;
use tokio::io::AsyncWriteExt;
use url::form_urlencoded::byte_serialize;

use super::client::Client;

/// Arguments of `wasilet logs`.
#[derive(Debug, clap::Args)]
pub struct LogsArguments {
    /// The pod, as `NAME` or `NAMESPACE/NAME`
    pod: String,
    /// The container; the first one of the pod if left out
    #[arg(long, short)]
    container: Option<String>,
    /// Namespace of the pod
    #[arg(long, short, default_value = "default")]
    namespace: String,
    /// Go on as the container writes
    #[arg(long, short)]
    follow: bool,
    /// The instance before the current one
    #[arg(long, short)]
    previous: bool,
    /// Only the last N lines
    #[arg(long, value_name = "N")]
    tail: Option<u64>,
    /// Only lines newer than this, such as `10s` or `5m`
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    since: Option<u64>,
    /// Put the time before each line
    #[arg(long)]
    timestamps: bool,
}

/// `NAME` in `namespace`, or `NAMESPACE/NAME`.
pub(super) fn split_pod<'a>(pod: &'a str, namespace: &'a str) -> (&'a str, &'a str) {
    pod.split_once('/').unwrap_or((namespace, pod))
}

/// One path segment or query value, percent-encoded.
pub(super) fn encode(value: &str) -> String {
    byte_serialize(value.as_bytes()).collect::<String>().replace('+', "%20")
}

fn parse_duration(text: &str) -> Result<u64, String> {
    let span: jiff::SignedDuration = text.parse().map_err(|error| format!("{error}; write it as 10s, 5m or 1h"))?;
    u64::try_from(span.as_secs()).map_err(|_| "a duration is not negative".to_owned())
}

/// Prints the log.
///
/// # Errors
/// When no node answers, or it knows no such container.
pub async fn logs(client: &Client, args: &LogsArguments) -> anyhow::Result<ExitCode> {
    let (namespace, pod) = split_pod(&args.pod, &args.namespace);
    let container = args.container.as_deref().map_or_else(|| "-".to_owned(), encode);
    let mut path = format!("/containerLogs/{}/{}/{container}?follow={}", encode(namespace), encode(pod), args.follow);
    let _ = write!(path, "&previous={}&timestamps={}", args.previous, args.timestamps);
    if let Some(lines) = args.tail {
        let _ = write!(path, "&tailLines={lines}");
    }
    if let Some(seconds) = args.since {
        let _ = write!(path, "&sinceSeconds={seconds}");
    }
    let mut body = client.get(&path).await?.into_body();
    let mut stdout = tokio::io::stdout();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.context("the node ended the log stream early")?.into_data() {
            stdout.write_all(&data).await?;
            stdout.flush().await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_named_with_or_without_its_namespace() {
        assert_eq!(split_pod("web", "default"), ("default", "web"));
        assert_eq!(split_pod("prod/web", "default"), ("prod", "web"));
    }

    #[test]
    fn a_path_segment_cannot_break_out_of_its_place() {
        assert_eq!(encode("a b/c?d"), "a%20b%2Fc%3Fd");
    }

    #[test]
    fn since_takes_kubectls_durations() {
        assert_eq!(parse_duration("5m"), Ok(300));
        assert!(parse_duration("soon").is_err());
    }
}
