//! The channels of Kubernetes over WebSocket: which stream a message belongs to, and how a remote command ended.
//!
//! In: messages. Out: typed frames and back. The first byte names the channel (`k8s.io/streaming`,
//! `pkg/httpstream/wsstream`; `client-go`, `tools/remotecommand/websocket.go`). Pure: opens no socket.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

/// Adds the close message to v4, so that a client can end stdin alone.
pub const V5: &str = "v5.channel.k8s.io";
/// Reports the exit code as a `Status` on the error channel.
pub const V4: &str = "v4.channel.k8s.io";
/// Reports errors as text.
pub const V3: &str = "v3.channel.k8s.io";
/// As v3, without resizing (SPDY only).
pub const V2: &str = "v2.channel.k8s.io";
/// The first one.
pub const V1: &str = "channel.k8s.io";
/// As v4, its messages text.
pub const V4_BASE64: &str = "v4.base64.channel.k8s.io";
/// As v1, its messages text.
pub const V1_BASE64: &str = "base64.channel.k8s.io";

/// The largest message taken from a client: what a kubelet takes (`DefaultMaxPayloadBytes` of `x/net/websocket`).
/// kubectl sends pieces of 32 KiB; other clients send a whole file at once.
pub const MAX_MESSAGE_BYTES: usize = 32 << 20;

/// A stream multiplexed over the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// Client to program.
    Stdin,
    /// Program to client.
    Stdout,
    /// Program to client; unused with a terminal.
    Stderr,
    /// One `Status` at the end.
    Error,
    /// Client's terminal sizes.
    Resize,
}

impl Channel {
    /// Its number.
    #[must_use]
    pub const fn id(self) -> u8 {
        match self {
            Self::Stdin => 0,
            Self::Stdout => 1,
            Self::Stderr => 2,
            Self::Error => 3,
            Self::Resize => 4,
        }
    }

    const fn from_id(id: u8) -> Option<Self> {
        Some(match id {
            0 => Self::Stdin,
            1 => Self::Stdout,
            2 => Self::Stderr,
            3 => Self::Error,
            4 => Self::Resize,
            _ => return None,
        })
    }
}

/// How messages carry bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// Binary messages: a byte of the channel, then the bytes.
    Binary,
    /// Text messages: a digit of the channel, then base64.
    Base64,
}

/// What the messages of a connection mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wire {
    /// How they carry bytes.
    pub encoding: Encoding,
    /// Whether there is a close message (v5).
    pub closes: bool,
}

/// A message whose channel is a number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Bytes of a channel.
    Data(u8, Bytes),
    /// End of a channel.
    Close(u8),
    /// Nothing at all, which means nothing.
    Empty,
}

/// A message that is not of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not even a channel byte.
    #[error("an empty message has no channel")]
    Empty,
    /// A channel that the protocol does not define.
    #[error("channel {0} is not one of 0 to 4, or 255")]
    UnknownChannel(u8),
    /// A close message without its channel.
    #[error("a close message names exactly one channel")]
    BadClose,
    /// A text message that is no base64.
    #[error("a message is not base64")]
    BadBase64,
}

const CLOSE: u8 = 255;

impl Wire {
    /// Binary messages without a close.
    pub const BINARY: Self = Self { encoding: Encoding::Binary, closes: false };
    /// Text messages without a close.
    pub const TEXT: Self = Self { encoding: Encoding::Base64, closes: false };
    /// Binary messages with a close.
    pub const CLOSING: Self = Self { encoding: Encoding::Binary, closes: true };

    /// Reads one message, be it text or binary.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn decode(self, message: &Bytes) -> Result<Message, FrameError> {
        let Some((&id, rest)) = message.split_first() else { return Ok(Message::Empty) };
        if self.closes && id == CLOSE {
            let [closed] = rest else { return Err(FrameError::BadClose) };
            return Ok(Message::Close(*closed));
        }
        match self.encoding {
            Encoding::Binary => Ok(Message::Data(id, message.slice(1..))),
            Encoding::Base64 => {
                let data = BASE64.decode(rest).map_err(|_| FrameError::BadBase64)?;
                Ok(Message::Data(id.wrapping_sub(b'0'), data.into()))
            }
        }
    }

    /// Writes bytes of a channel as one message.
    #[must_use]
    pub fn encode(self, channel: u8, data: &[u8]) -> Bytes {
        match self.encoding {
            Encoding::Binary => {
                let mut message = BytesMut::with_capacity(data.len() + 1);
                message.put_u8(channel);
                message.extend_from_slice(data);
                message.freeze()
            }
            Encoding::Base64 => {
                // A character and not a byte, as the kubelet has it: the tenth channel is `:`.
                let mut text = String::from(char::from(b'0'.wrapping_add(channel)));
                BASE64.encode_string(data, &mut text);
                text.into()
            }
        }
    }
}

/// One message of a remote command over v5.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Bytes of a channel.
    Data(Channel, Bytes),
    /// End of a channel.
    Close(Channel),
}

impl Frame {
    /// Reads one binary message.
    ///
    /// # Errors
    /// [`FrameError`] when the message is empty or names no known channel.
    pub fn decode(message: &Bytes) -> Result<Self, FrameError> {
        let known = |id| Channel::from_id(id).ok_or(FrameError::UnknownChannel(id));
        match Wire::CLOSING.decode(message)? {
            Message::Data(id, data) => Ok(Self::Data(known(id)?, data)),
            Message::Close(id) => Ok(Self::Close(known(id)?)),
            Message::Empty => Err(FrameError::Empty),
        }
    }

    /// Writes it as one binary message.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        match self {
            Self::Close(channel) => Bytes::copy_from_slice(&[CLOSE, channel.id()]),
            Self::Data(channel, data) => Wire::CLOSING.encode(channel.id(), data),
        }
    }
}

/// A terminal's size as clients send it on the resize channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// How a remote command ended, as the `Status` of the error channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It ran and exited with this code.
    Exited(u8),
    /// It could not run.
    Failed(String),
}

#[derive(Serialize, Deserialize)]
struct Status {
    metadata: serde_json::Map<String, serde_json::Value>,
    status: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    message: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    reason: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    details: Option<Details>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    code: Option<u16>,
}

#[derive(Serialize, Deserialize)]
struct Details {
    #[serde(default)]
    causes: Vec<Cause>,
}

#[derive(Serialize, Deserialize)]
struct Cause {
    #[serde(default)]
    reason: String,
    #[serde(default)]
    message: String,
}

/// `NonZeroExitCodeReason` of `k8s.io/apimachinery`.
const NON_ZERO: &str = "NonZeroExitCode";
const EXIT_CODE: &str = "ExitCode";

impl Outcome {
    /// The `Status` document of v4 and later.
    #[must_use]
    pub fn to_status(&self) -> String {
        let mut status = Status {
            metadata: serde_json::Map::new(),
            status: "Failure".to_owned(),
            message: self.to_text().unwrap_or_default(),
            reason: String::new(),
            details: None,
            code: None,
        };
        match self {
            Self::Exited(0) => "Success".clone_into(&mut status.status),
            Self::Exited(code) => {
                NON_ZERO.clone_into(&mut status.reason);
                let cause = Cause { reason: EXIT_CODE.to_owned(), message: code.to_string() };
                status.details = Some(Details { causes: vec![cause] });
            }
            Self::Failed(_) => {
                "InternalError".clone_into(&mut status.reason);
                status.code = Some(500);
            }
        }
        serde_json::to_string(&status).expect("a Status of strings serializes")
    }

    /// What versions before v4 send; a success sends nothing.
    #[must_use]
    pub fn to_text(&self) -> Option<String> {
        match self {
            Self::Exited(0) => None,
            Self::Exited(code) => Some(format!("command terminated with non-zero exit code: exit status {code}")),
            Self::Failed(message) => Some(message.clone()),
        }
    }

    /// Reads a `Status` document back.
    ///
    /// # Errors
    /// When it is not JSON, or not of this shape.
    pub fn from_status(document: &[u8]) -> Result<Self, serde_json::Error> {
        let status: Status = serde_json::from_slice(document)?;
        if status.status == "Success" {
            return Ok(Self::Exited(0));
        }
        let code = status
            .details
            .iter()
            .flat_map(|details| &details.causes)
            .find(|cause| status.reason == NON_ZERO && cause.reason == EXIT_CODE)
            .and_then(|cause| cause.message.parse().ok());
        Ok(code.map_or(Self::Failed(status.message), Self::Exited))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_survives_the_wire() {
        for frame in [
            Frame::Data(Channel::Stdin, Bytes::from_static(b"ls\n")),
            Frame::Data(Channel::Error, Bytes::new()),
            Frame::Close(Channel::Stdin),
        ] {
            assert_eq!(Frame::decode(&frame.encode()), Ok(frame));
        }
    }

    #[test]
    fn a_message_outside_the_protocol_is_named() {
        for (case, message, expected) in [
            ("nothing", &b""[..], FrameError::Empty),
            ("a channel too high", b"\x05x", FrameError::UnknownChannel(5)),
            ("a close of nothing", b"\xff", FrameError::BadClose),
            ("a close of an unknown channel", b"\xff\x09", FrameError::UnknownChannel(9)),
        ] {
            assert_eq!(Frame::decode(&Bytes::copy_from_slice(message)), Err(expected), "{case}");
        }
    }

    #[test]
    fn messages_carry_bytes_as_their_protocol_says() {
        for (case, wire, message, expected) in [
            ("binary", Wire::BINARY, &b"\x00foo\n"[..], Ok(Message::Data(0, Bytes::from_static(b"foo\n")))),
            ("binary has no close", Wire::BINARY, b"\xff\x00", Ok(Message::Data(255, Bytes::from_static(b"\x00")))),
            ("base64", Wire::TEXT, b"0Zm9vCg==", Ok(Message::Data(0, Bytes::from_static(b"foo\n")))),
            ("base64 of nothing", Wire::TEXT, b"4", Ok(Message::Data(4, Bytes::new()))),
            ("not base64", Wire::TEXT, b"0!", Err(FrameError::BadBase64)),
            ("nothing", Wire::TEXT, b"", Ok(Message::Empty)),
            ("a close", Wire::CLOSING, b"\xff\x00", Ok(Message::Close(0))),
        ] {
            assert_eq!(wire.decode(&Bytes::copy_from_slice(message)), expected, "{case}");
        }
        assert_eq!(Wire::TEXT.encode(1, b"\n"), "1Cg==");
        assert_eq!(Wire::BINARY.encode(3, b""), b"\x03"[..]);
    }

    #[test]
    fn an_outcome_is_the_status_that_kubectl_reads() {
        let status = Outcome::Exited(3).to_status();
        assert!(status.contains(r#""reason":"NonZeroExitCode""#), "{status}");
        assert!(status.contains(r#"{"reason":"ExitCode","message":"3"}"#), "{status}");
        for outcome in [Outcome::Exited(0), Outcome::Exited(137), Outcome::Failed("no such program".to_owned())] {
            assert_eq!(Outcome::from_status(outcome.to_status().as_bytes()).ok(), Some(outcome));
        }
    }
}
