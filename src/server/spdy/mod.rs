//! SPDY/3.1, the server's side, as Kubernetes' clients speak it (`kubectl` up to 1.30 and every API server for exec,
//! attach and port-forward). No crate serves it.
//!
//! ```text
//!  frame (pure) <- headers (zlib with a preset dictionary)
//!    ^
//!  connection: one driver a connection, any number of streams
//! ```
//!
//! In: a connection that was upgraded. Out: streams with headers, each an `AsyncRead` and an `AsyncWrite`.
//! Does not know what streams are for (`streaming`), pushes nothing, prioritises nothing.
//!
//! Flow control: the peer that matters, `moby/spdystream`, never sends WINDOW_UPDATE and drops those it gets, so a
//! sender that honoured the protocol's 64 KiB window would hang after 64 KiB. Windows are therefore read and not
//! enforced; what holds back a fast sender is the connection itself, as between any two kubelets and clients.

mod connection;
mod dictionary;
pub mod frame;
pub mod headers;

pub(super) use connection::{Acceptor, ConnectionSettings, Stalled, Stream, connection};

/// Why what a peer sent is not SPDY/3.1, or more than is taken. Each ends the connection: the header compression of
/// the two ends is out of step after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SpdyError {
    /// Another protocol, or another version of this one.
    #[error("control frame of SPDY version {0}, not 3")]
    Version(u16),
    /// A frame whose length does not fit its type.
    #[error("control frame of type {kind} has {length} bytes")]
    Length {
        /// Its type.
        kind: u16,
        /// Its length.
        length: usize,
    },
    /// A frame of stream 0, or a ping 0.
    #[error("frame of type {0} names stream 0")]
    ZeroStream(u16),
    /// A header block that zlib cannot read.
    #[error("header block is not compressed as SPDY/3 has it")]
    Compression,
    /// A header block that is too big, or has too many headers.
    #[error("header block is larger than this server takes")]
    HeadersTooLarge,
    /// A header block whose content makes no sense.
    #[error("header block is malformed: {0}")]
    BadHeaders(&'static str),
}
