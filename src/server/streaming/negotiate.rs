//! Which protocol a streaming request speaks.
//!
//! In: headers of a request. Out: a protocol, or why there is none. Pure. The client's order decides, as with a kubelet
//! (`httpstream.Handshake`, `wsstream.handshake`).

use axum::http::header::{CONNECTION, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use axum::http::{HeaderMap, HeaderName};

use super::super::channel::{V1, V1_BASE64, V2, V3, V4, V4_BASE64, V5, Wire};
use super::super::remote::Report;
use super::error::StreamingError;

/// The header in which SPDY clients offer versions, and are answered.
pub(super) const STREAM_VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// What connections are upgraded to.
pub(super) const SPDY: &str = "SPDY/3.1";
/// The one version of port-forward.
pub(super) const PORT_FORWARD: &str = "portforward.k8s.io";
/// It, in a WebSocket.
pub(super) const PORT_FORWARD_TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// Versions of exec and attach over SPDY.
const SPDY_REMOTE: [&str; 4] = [V4, V3, V2, V1];

/// Whether the request is for another protocol on its connection.
pub(super) fn is_upgrade(headers: &HeaderMap) -> bool {
    headers.get_all(CONNECTION).iter().any(|value| contains(value.as_bytes(), "upgrade"))
}

/// Whether that is WebSocket.
pub(super) fn is_websocket(headers: &HeaderMap) -> bool {
    let upgrade = headers.get(UPGRADE).map_or(&b""[..], |value| value.as_bytes());
    upgrade.eq_ignore_ascii_case(b"websocket") && is_upgrade(headers)
}

fn contains(value: &[u8], word: &str) -> bool {
    value.to_ascii_lowercase().windows(word.len()).any(|window| window == word.as_bytes())
}

/// The values of a header that is a list.
fn offered(headers: &HeaderMap, name: &HeaderName) -> Vec<String> {
    let lists = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    let words = lists.flat_map(|list| list.split(',')).map(str::trim).filter(|word| !word.is_empty());
    words.map(str::to_owned).collect()
}

fn first_common<'a>(offered: &[String], accepted: &[&'a str]) -> Option<&'a str> {
    offered.iter().find_map(|name| accepted.iter().find(|known| *known == name).copied())
}

/// The version of a SPDY request.
fn spdy_version(headers: &HeaderMap, accepted: &[&'static str]) -> Result<&'static str, StreamingError> {
    if !is_upgrade(headers) {
        return Err(StreamingError::NotUpgrade);
    }
    let offered = offered(headers, &STREAM_VERSION);
    if offered.is_empty() {
        return Err(StreamingError::NoVersion);
    }
    let version = first_common(&offered, accepted);
    let version = version.ok_or(StreamingError::NoCommonVersion { offered, accepted: accepted.to_vec() })?;
    let to_spdy = headers.get(UPGRADE).is_some_and(|value| contains(value.as_bytes(), "spdy/3.1"));
    if to_spdy { Ok(version) } else { Err(StreamingError::NotSpdy) }
}

/// What an exec or attach over SPDY speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SpdyRemote {
    /// Its name.
    pub(super) version: &'static str,
    /// How it reports the end.
    pub(super) report: Report,
    /// Whether a terminal has a resize stream.
    pub(super) resizes: bool,
}

/// Chooses the version of an exec or attach over SPDY.
pub(super) fn spdy_remote(headers: &HeaderMap) -> Result<SpdyRemote, StreamingError> {
    let version = spdy_version(headers, &SPDY_REMOTE)?;
    let report = if version == V4 { Report::Status } else { Report::Text };
    Ok(SpdyRemote { version, report, resizes: matches!(version, V3 | V4) })
}

/// Checks that a request is a port-forward over SPDY.
pub(super) fn spdy_port_forward(headers: &HeaderMap) -> Result<&'static str, StreamingError> {
    spdy_version(headers, &[PORT_FORWARD])
}

/// What messages of a WebSocket mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Channels {
    /// The subprotocol; empty when the client named none.
    pub(super) protocol: &'static str,
    /// How messages carry bytes.
    pub(super) wire: Wire,
    /// How a remote command reports its end.
    pub(super) report: Report,
}

fn websocket(headers: &HeaderMap, accepted: &[&'static str]) -> Result<Channels, StreamingError> {
    let offered = offered(headers, &SEC_WEBSOCKET_PROTOCOL);
    let protocol = if offered.is_empty() { Some("") } else { first_common(&offered, accepted) };
    let refused = || StreamingError::NoCommonProtocol { offered, accepted: accepted.to_vec() };
    let protocol = protocol.ok_or_else(refused)?;
    let (wire, report) = match protocol {
        V5 => (Wire::CLOSING, Report::Status),
        V4 => (Wire::BINARY, Report::Status),
        V4_BASE64 => (Wire::TEXT, Report::Status),
        V1_BASE64 => (Wire::TEXT, Report::Text),
        _ => (Wire::BINARY, Report::Text),
    };
    Ok(Channels { protocol, wire, report })
}

/// Chooses the subprotocol of an exec or attach over WebSocket. v5 is a feature of the kubelet's own
/// (`ExtendWebSocketsToKubelet`), which has no eyes for the others then; without it v5 is unknown.
pub(super) fn websocket_remote(headers: &HeaderMap, extended: bool) -> Result<Channels, StreamingError> {
    let wants_v5 = offered(headers, &SEC_WEBSOCKET_PROTOCOL).iter().any(|name| name == V5);
    if extended && wants_v5 {
        return websocket(headers, &[V5]);
    }
    websocket(headers, &[V4, V4_BASE64, V1, V1_BASE64])
}

/// Chooses the subprotocol of a port-forward over WebSocket channels.
pub(super) fn websocket_port_forward(headers: &HeaderMap) -> Result<Channels, StreamingError> {
    websocket(headers, &[V4, V4_BASE64])
}

/// Whether a WebSocket asks for a tunnel (`wsstream.IsWebSocketRequestWithTunnelingProtocol`).
pub(super) fn wants_tunnel(headers: &HeaderMap) -> bool {
    let mut offered = offered(headers, &SEC_WEBSOCKET_PROTOCOL).into_iter();
    is_websocket(headers) && offered.any(|name| name.starts_with("SPDY/3.1+") && name.ends_with(".k8s.io"))
}

/// Checks that the tunnel asked for is one of port-forward.
pub(super) fn tunnel(headers: &HeaderMap) -> Result<&'static str, StreamingError> {
    let offered = offered(headers, &SEC_WEBSOCKET_PROTOCOL);
    let accepted = [PORT_FORWARD_TUNNEL];
    let chosen = first_common(&offered, &accepted);
    chosen.ok_or(StreamingError::NoCommonVersion { offered, accepted: accepted.to_vec() })
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        let mut headers = HeaderMap::new();
        pairs.for_each(|(name, value)| {
            headers.append(name, value);
        });
        headers
    }

    #[test]
    fn a_spdy_request_gets_the_first_version_both_know() {
        let upgrade = [("connection", "Upgrade"), ("upgrade", "SPDY/3.1")];
        let offers = |value| [&upgrade[..], &[("x-stream-protocol-version", value)]].concat();
        for (case, pairs, expected) in [
            ("kubectl", offers("v5.channel.k8s.io, v4.channel.k8s.io,channel.k8s.io"), Ok((V4, true))),
            ("an old one", offers("channel.k8s.io"), Ok((V1, false))),
            ("the client's order", offers("v2.channel.k8s.io,v4.channel.k8s.io"), Ok((V2, false))),
            ("nothing known", offers("v9.channel.k8s.io"), Err(403)),
            ("nothing offered", offers(" , "), Err(400)),
            ("no header", upgrade.to_vec(), Err(400)),
            ("no upgrade", vec![("x-stream-protocol-version", V4)], Err(500)),
            (
                "another upgrade",
                { vec![("connection", "upgrade"), ("upgrade", "h2c"), ("x-stream-protocol-version", V4)] },
                Err(400),
            ),
        ] {
            let result = spdy_remote(&headers(&pairs)).map(|chosen| (chosen.version, chosen.resizes));
            let result = result.map_err(|error| axum::response::IntoResponse::into_response(error).status().as_u16());
            assert_eq!(result, expected, "{case}");
        }
    }

    #[test]
    fn a_websocket_gets_a_subprotocol_that_the_feature_allows() {
        for (case, offer, extended, expected) in [
            ("none is the first one, binary", None, true, Some(("", Wire::BINARY, Report::Text))),
            ("v5", Some("v5.channel.k8s.io"), true, Some((V5, Wire::CLOSING, Report::Status))),
            ("v5 without the feature", Some("v5.channel.k8s.io"), false, None),
            ("v5 is taken wherever it stands", Some("v4.channel.k8s.io, v5.channel.k8s.io"), true, {
                Some((V5, Wire::CLOSING, Report::Status))
            }),
            ("v4 after an unknown v5", Some("v5.channel.k8s.io, v4.channel.k8s.io"), false, {
                Some((V4, Wire::BINARY, Report::Status))
            }),
            ("v4 as text", Some("v4.base64.channel.k8s.io"), true, Some((V4_BASE64, Wire::TEXT, Report::Status))),
            ("v1 as text", Some("base64.channel.k8s.io"), true, Some((V1_BASE64, Wire::TEXT, Report::Text))),
            ("v1", Some("channel.k8s.io"), true, Some((V1, Wire::BINARY, Report::Text))),
            ("v3 was never a WebSocket's", Some("v3.channel.k8s.io"), true, None),
        ] {
            let pairs: Vec<_> = offer.map(|offer| ("sec-websocket-protocol", offer)).into_iter().collect();
            let chosen = websocket_remote(&headers(&pairs), extended).ok();
            assert_eq!(chosen.map(|chosen| (chosen.protocol, chosen.wire, chosen.report)), expected, "{case}");
        }
    }

    #[test]
    fn a_tunnel_is_a_websocket_that_offers_one() {
        let socket = [("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket")];
        let offers = |value| headers(&[&socket[..], &[("sec-websocket-protocol", value)]].concat());
        assert!(wants_tunnel(&offers("v4.channel.k8s.io, SPDY/3.1+portforward.k8s.io")));
        assert!(!wants_tunnel(&offers("v4.channel.k8s.io")));
        assert!(!wants_tunnel(&headers(&[("sec-websocket-protocol", PORT_FORWARD_TUNNEL)])), "no WebSocket");
        assert_eq!(tunnel(&offers("SPDY/3.1+portforward.k8s.io")).ok(), Some(PORT_FORWARD_TUNNEL));
        assert!(tunnel(&offers("SPDY/3.1+other.k8s.io")).is_err());
    }
}
