//! What a registry's answer means: bounded bodies, errors in its own words, URLs fit to be shown.
//!
//! In: answers and URLs. Out: bytes or [`RegistryError`]s. Everything shown is cut short and free of control
//! characters and signatures.

use std::time::Duration;

use http::StatusCode;
use http::header::RETRY_AFTER;
use url::Url;

use super::RegistryError;

/// Of an error's body; it is shown to people.
const MAX_ERROR_BYTES: u64 = 8 << 10;

/// A URL for messages: a signed one keeps its signature to itself.
pub(super) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.to_string()
}

pub(super) fn transport(url: &Url, source: reqwest::Error) -> RegistryError {
    RegistryError::Transport { url: shown(url), source: source.without_url() }
}

/// Reads a body of at most `limit` bytes.
pub(super) async fn read_bounded(mut response: reqwest::Response, limit: u64) -> Result<Vec<u8>, RegistryError> {
    let url = response.url().clone();
    let too_large = || RegistryError::Protocol { url: shown(&url), problem: format!("more than {limit} bytes") };
    if response.content_length().is_some_and(|length| length > limit) {
        return Err(too_large());
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|source| transport(&url, source))? {
        if (body.len() + chunk.len()) as u64 > limit {
            return Err(too_large());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The error an answer with an unexpected status is.
pub(super) async fn error_of(response: reqwest::Response) -> RegistryError {
    let url = shown(response.url());
    let status = response.status();
    let retry_after = response
        .headers()
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .map(Duration::from_secs);
    let detail = detail_of(response).await;
    match status {
        StatusCode::NOT_FOUND => RegistryError::NotFound { url, detail },
        StatusCode::TOO_MANY_REQUESTS => RegistryError::RateLimited { url, detail, retry_after },
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            RegistryError::Unauthorized { url, detail, advice: "check the credentials" }
        }
        _ => RegistryError::Status { url, status: status.as_u16(), detail },
    }
}

/// What a registry says in its error format, as `: message (code)`; empty for anything else, such as HTML.
pub(super) async fn detail_of(response: reqwest::Response) -> String {
    #[derive(serde::Deserialize)]
    struct Envelope {
        #[serde(default)]
        errors: Vec<Entry>,
        #[serde(default)]
        details: Option<String>,
    }
    #[derive(serde::Deserialize)]
    struct Entry {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(body) = read_bounded(response, MAX_ERROR_BYTES).await else { return String::new() };
    let Ok(envelope) = serde_json::from_slice::<Envelope>(&body) else { return String::new() };
    let text = match (envelope.errors.first(), envelope.details) {
        (Some(Entry { code, message }), _) if message.is_empty() => code.clone(),
        (Some(Entry { message, .. }), _) => message.clone(),
        (None, Some(details)) => details,
        (None, None) => return String::new(),
    };
    // It goes to terminals and Events.
    let text: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
    if text.is_empty() { text } else { format!(": {text}") }
}
