//! A connected socket as tokio's `AsyncRead` and `AsyncWrite`, for hyper and for the node's own dials.
//!
//! In: a connected [`TcpSocket`]. Out: the traits, with the same cancellation and end rules. One reading and one
//! writing task at a time, as the traits have it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::task::coop;

use super::super::backlog::Wire;
use super::super::options::Shutdown;
use super::super::wait::WaitKey;
use super::TcpSocket;
use crate::errno::Errno;

/// A connected socket as tokio's `AsyncRead` and `AsyncWrite`.
pub struct TcpStream {
    socket: Arc<TcpSocket>,
    reading: Keys,
    writing: Keys,
}

/// One direction's registrations.
#[derive(Default)]
struct Keys {
    wire: WaitKey,
    socket: WaitKey,
}

impl TcpStream {
    pub(super) fn new(socket: Arc<TcpSocket>) -> Self {
        Self { socket, reading: Keys::default(), writing: Keys::default() }
    }

    /// The socket itself.
    pub fn socket(&self) -> &Arc<TcpSocket> {
        &self.socket
    }
}

/// Registers for one direction. Ready when the caller shall try again at once.
fn poll_ready(socket: &TcpSocket, keys: &mut Keys, interest: Interest, cx: &mut Context<'_>) -> Poll<()> {
    let Some(link) = socket.linked() else { return Poll::Ready(()) };
    socket.changed.register(&mut keys.socket, cx.waker());
    if socket.has_ended() {
        return Poll::Ready(());
    }
    let ready = match &link.wire {
        Wire::Kernel(kernel) => return kernel.poll_ready(interest, cx),
        Wire::Local(endpoint) if interest.is_readable() => {
            endpoint.read_waiters().register(&mut keys.wire, cx.waker());
            endpoint.readable()
        }
        Wire::Local(endpoint) => {
            endpoint.write_waiters().register(&mut keys.wire, cx.waker());
            endpoint.writable()
        }
    };
    if ready { Poll::Ready(()) } else { Poll::Pending }
}

fn to_io(errno: Errno) -> io::Error {
    io::Error::from_raw_os_error(errno.raw())
}

impl AsyncRead for TcpStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // A peer that always has bytes must not keep this task from yielding.
        let turn = ready!(coop::poll_proceed(cx));
        loop {
            match this.socket.try_read(buf.initialize_unfilled()) {
                Ok(n) => {
                    turn.made_progress();
                    buf.advance(n);
                    return Poll::Ready(Ok(()));
                }
                Err(Errno::Again) => ready!(poll_ready(&this.socket, &mut this.reading, Interest::READABLE, cx)),
                Err(errno) => return Poll::Ready(Err(to_io(errno))),
            }
        }
    }
}

impl AsyncWrite for TcpStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let turn = ready!(coop::poll_proceed(cx));
        loop {
            match this.socket.try_write(buf) {
                Ok(n) => {
                    turn.made_progress();
                    return Poll::Ready(Ok(n));
                }
                Err(Errno::Again) => ready!(poll_ready(&this.socket, &mut this.writing, Interest::WRITABLE, cx)),
                Err(errno) => return Poll::Ready(Err(to_io(errno))),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(match self.socket.shutdown(Shutdown::Write) {
            // A peer that left first is no failure of ending.
            Ok(()) | Err(Errno::NotConn) => Ok(()),
            Err(errno) => Err(to_io(errno)),
        })
    }
}

impl Drop for TcpStream {
    fn drop(&mut self) {
        for keys in [&mut self.reading, &mut self.writing] {
            self.socket.changed.forget(&mut keys.socket);
        }
        if let Some(Wire::Local(endpoint)) = self.socket.linked().map(|link| &link.wire) {
            endpoint.read_waiters().forget(&mut self.reading.wire);
            endpoint.write_waiters().forget(&mut self.writing.wire);
        }
    }
}
