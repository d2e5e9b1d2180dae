//! The token of a request: its `Authorization` header, or a WebSocket subprotocol where a browser cannot set headers.
//!
//! In: headers. Out: the token, taken out of the headers so that nothing behind sees it. Pure.

use axum::http::HeaderMap;
use axum::http::header::{AUTHORIZATION, CONNECTION, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use base64::Engine as _;

/// `base64url.bearer.authorization.k8s.io.TOKEN`, the API server's convention.
const PROTOCOL_PREFIX: &str = "base64url.bearer.authorization.k8s.io.";

/// Why a WebSocket's token cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ProtocolTokenError {
    #[error("multiple base64.bearer.authorization tokens specified")]
    Several,
    #[error("invalid base64.bearer.authorization token encoding")]
    Encoding,
    #[error("missing additional subprotocol")]
    NoOther,
}

/// The bearer token of the `Authorization` header, if it has one.
pub(super) fn bearer_token(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?.trim();
    let mut parts = value.splitn(3, ' ');
    let is_bearer = parts.next().is_some_and(|scheme| scheme.eq_ignore_ascii_case("bearer"));
    parts.next().filter(|token| is_bearer && !token.is_empty()).map(str::to_owned)
}

/// Takes the bearer token out of the headers.
pub(super) fn forget_bearer_token(headers: &mut HeaderMap) {
    headers.remove(AUTHORIZATION);
}

/// The token among a WebSocket's subprotocols, with the subprotocols that are left.
///
/// # Errors
/// [`ProtocolTokenError`] for one that is there and makes no sense.
pub(super) fn protocol_token(headers: &HeaderMap) -> Result<Option<(String, String)>, ProtocolTokenError> {
    if !is_websocket(headers) {
        return Ok(None);
    }
    let offered = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    let mut encoded = None;
    let mut others = Vec::new();
    for protocol in offered.flat_map(|value| value.split(',')).map(str::trim) {
        match protocol.strip_prefix(PROTOCOL_PREFIX) {
            None => others.push(protocol),
            Some(_) if encoded.is_some() => return Err(ProtocolTokenError::Several),
            Some(token) => encoded = Some(token),
        }
    }
    let Some(encoded) = encoded else { return Ok(None) };
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(encoded);
    let token = bytes.ok().and_then(|bytes| String::from_utf8(bytes).ok()).ok_or(ProtocolTokenError::Encoding)?;
    if token.is_empty() {
        return Ok(None);
    }
    // One must be left to answer with.
    if others.is_empty() { Err(ProtocolTokenError::NoOther) } else { Ok(Some((token, others.join(",")))) }
}

/// Replaces the subprotocols by those without the token.
pub(super) fn forget_protocol_token(headers: &mut HeaderMap, others: &str) {
    if let Ok(others) = others.parse() {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, others);
    }
}

fn is_websocket(headers: &HeaderMap) -> bool {
    let says = |name, word: &str| {
        let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|value| value.trim().eq_ignore_ascii_case(word))
    };
    says(CONNECTION, "upgrade") && says(UPGRADE, "websocket")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bearer_token_is_read_as_the_api_server_reads_it() {
        for (header, token) in [
            ("Bearer abc", Some("abc")),
            ("bearer abc", Some("abc")),
            ("  BEARER abc  ", Some("abc")),
            ("Bearer abc def", Some("abc")),
            ("Bearer", None),
            ("Bearer  abc", None),
            ("Basic abc", None),
            ("", None),
        ] {
            let headers = HeaderMap::from_iter([(AUTHORIZATION, header.parse().unwrap())]);
            assert_eq!(bearer_token(&headers).as_deref(), token, "{header:?}");
        }
        assert_eq!(bearer_token(&HeaderMap::new()), None);
    }

    #[test]
    fn a_websocket_may_carry_its_token_as_a_subprotocol() {
        let token = "base64url.bearer.authorization.k8s.io.YWJj";
        let websocket = |protocols: &str| {
            HeaderMap::from_iter([
                (CONNECTION, "keep-alive, Upgrade".parse().unwrap()),
                (UPGRADE, "websocket".parse().unwrap()),
                (SEC_WEBSOCKET_PROTOCOL, protocols.parse().unwrap()),
            ])
        };
        let found = protocol_token(&websocket(&format!("v5.channel.k8s.io, {token}"))).unwrap();
        assert_eq!(found, Some(("abc".into(), "v5.channel.k8s.io".into())));
        assert_eq!(protocol_token(&websocket("v5.channel.k8s.io")), Ok(None));
        assert_eq!(protocol_token(&websocket(token)), Err(ProtocolTokenError::NoOther));
        assert_eq!(protocol_token(&websocket(&format!("a,{token},{token}"))), Err(ProtocolTokenError::Several));
        assert_eq!(protocol_token(&websocket(&format!("a,{token}!"))), Err(ProtocolTokenError::Encoding));
        let plain = HeaderMap::from_iter([(SEC_WEBSOCKET_PROTOCOL, token.parse().unwrap())]);
        assert_eq!(protocol_token(&plain), Ok(None));
    }
}
