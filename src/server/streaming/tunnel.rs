//! A WebSocket whose binary messages are the bytes of another connection: SPDY in a tunnel, `SPDY/3.1+portforward.k8s.io`
//! (`client-go`, `tools/portforward/tunneling_connection.go`).
//!
//! In: an upgraded WebSocket. Out: tokio's IO traits. Where messages begin and end means nothing.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, close_code};
use bytes::{Buf, Bytes};
use futures::{Sink, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes of a message sent.
const MESSAGE_BYTES: usize = 64 * 1024;

/// The connection inside.
#[derive(Debug)]
pub(super) struct Tunnel {
    socket: WebSocket,
    /// The rest of the message being read.
    unread: Bytes,
    closing: bool,
}

impl Tunnel {
    pub(super) fn new(socket: WebSocket) -> Self {
        Self { socket, unread: Bytes::new(), closing: false }
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            match ready!(Pin::new(&mut self.socket).poll_next(cx)) {
                Some(Ok(Message::Binary(message))) => self.unread = message,
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(_))) | None => return Poll::Ready(Ok(())),
                Some(Ok(Message::Text(_))) => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "text in a tunnel of bytes")));
                }
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
            }
        }
        let count = into.remaining().min(self.unread.len());
        into.put_slice(&self.unread[..count]);
        self.unread.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl Tunnel {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_ready(cx).map_err(io::Error::other)
    }

    fn send(&mut self, message: Message) -> io::Result<()> {
        Pin::new(&mut self.socket).start_send(message).map_err(io::Error::other)
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_ready(cx))?;
        let count = bytes.len().min(MESSAGE_BYTES);
        self.send(Message::Binary(Bytes::copy_from_slice(&bytes[..count])))?;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx).map_err(io::Error::other)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.closing {
            ready!(self.poll_ready(cx))?;
            let close = CloseFrame { code: close_code::NORMAL, reason: Utf8Bytes::default() };
            self.send(Message::Close(Some(close)))?;
            self.closing = true;
        }
        self.poll_flush(cx)
    }
}
