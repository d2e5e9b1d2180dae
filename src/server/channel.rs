//! The remote-command protocol of Kubernetes over WebSocket: which channel a message belongs to.
//!
//! In: binary messages. Out: typed frames and back. The first byte names the channel (`k8s.io/apimachinery`,
//! `pkg/util/remotecommand` and `client-go`, `tools/remotecommand/websocket.go`). Pure: opens no socket.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

/// Subprotocols served, the preferred one first.
pub const PROTOCOLS: [&str; 2] = [V5, V4];
/// Adds the close message to v4, so that a client can end stdin alone.
pub const V5: &str = "v5.channel.k8s.io";
/// Reports the exit code as a `Status` on the error channel.
pub const V4: &str = "v4.channel.k8s.io";

/// The largest message taken from a client: kubectl sends stdin in 32 KiB pieces.
pub const MAX_MESSAGE_BYTES: usize = 1 << 20;

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
    const fn id(self) -> u8 {
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

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Bytes of a channel.
    Data(Channel, Bytes),
    /// End of a channel (v5 only).
    Close(Channel),
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
}

const CLOSE: u8 = 255;

impl Frame {
    /// Reads one binary message.
    ///
    /// # Errors
    /// [`FrameError`] when the message is empty or names no known channel.
    pub fn decode(message: &Bytes) -> Result<Self, FrameError> {
        let (&id, rest) = message.split_first().ok_or(FrameError::Empty)?;
        if id == CLOSE {
            let [closed] = rest else { return Err(FrameError::BadClose) };
            return Channel::from_id(*closed).map(Self::Close).ok_or(FrameError::UnknownChannel(*closed));
        }
        let channel = Channel::from_id(id).ok_or(FrameError::UnknownChannel(id))?;
        Ok(Self::Data(channel, message.slice(1..)))
    }

    /// Writes it as one binary message.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        match self {
            Self::Close(channel) => Bytes::copy_from_slice(&[CLOSE, channel.id()]),
            Self::Data(channel, data) => {
                let mut message = BytesMut::with_capacity(data.len() + 1);
                message.put_u8(channel.id());
                message.extend_from_slice(data);
                message.freeze()
            }
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
    /// The `Status` document.
    #[must_use]
    pub fn to_status(&self) -> String {
        let mut status = Status {
            metadata: serde_json::Map::new(),
            status: "Failure".to_owned(),
            message: String::new(),
            reason: String::new(),
            details: None,
            code: None,
        };
        match self {
            Self::Exited(0) => "Success".clone_into(&mut status.status),
            Self::Exited(code) => {
                status.message = format!("command terminated with non-zero exit code: exit status {code}");
                NON_ZERO.clone_into(&mut status.reason);
                let cause = Cause { reason: EXIT_CODE.to_owned(), message: code.to_string() };
                status.details = Some(Details { causes: vec![cause] });
            }
            Self::Failed(message) => {
                status.message.clone_from(message);
                "InternalError".clone_into(&mut status.reason);
                status.code = Some(500);
            }
        }
        serde_json::to_string(&status).expect("a Status of strings serializes")
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
    fn an_outcome_is_the_status_that_kubectl_reads() {
        let status = Outcome::Exited(3).to_status();
        assert!(status.contains(r#""reason":"NonZeroExitCode""#), "{status}");
        assert!(status.contains(r#"{"reason":"ExitCode","message":"3"}"#), "{status}");
        for outcome in [Outcome::Exited(0), Outcome::Exited(137), Outcome::Failed("no such program".to_owned())] {
            assert_eq!(Outcome::from_status(outcome.to_status().as_bytes()).ok(), Some(outcome));
        }
    }
}
