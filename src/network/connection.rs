//! An in-process TCP connection: two pipes and what each end learned about the other.
//!
//! In: reads, writes, shutdowns and closes of two ends. Out: what Linux would say on its loopback: a close with
//! unread bytes resets the peer, a write to a closed peer vanishes once and then fails, a reset is told once.
//! Knows no ports and no addresses.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use bytes::Bytes;

use super::account::Account;
use super::pipe::{Pipe, Stop, Written};
use super::wait::Waiters;
use crate::errno::Errno;

/// Which end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Client = 0,
    Server = 1,
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

struct Connection {
    /// By the side that writes.
    pipes: [Pipe; 2],
    /// Pending `SO_ERROR` of each side as a raw number; 0 is none.
    errors: [AtomicI32; 2],
    closed: [AtomicBool; 2],
}

/// One end of a connection; dropping it closes it.
pub(super) struct Endpoint {
    connection: Arc<Connection>,
    side: Side,
}

/// How an end leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Close {
    /// With a FIN, unless bytes are unread.
    Orderly,
    /// With a RST.
    Reset,
}

/// What a new connection needs to know of one end.
pub(super) struct EndSpec {
    /// Who pays for what this end writes.
    pub(super) account: Option<Arc<Account>>,
    /// Bytes that may be on the way from this end.
    pub(super) window: usize,
}

impl Endpoint {
    /// Makes both ends: client, server.
    pub(super) fn pair(client: EndSpec, server: EndSpec) -> (Self, Self) {
        let connection = Arc::new(Connection {
            pipes: [Pipe::new(client.window, client.account), Pipe::new(server.window, server.account)],
            errors: Default::default(),
            closed: Default::default(),
        });
        (Self { connection: connection.clone(), side: Side::Client }, Self { connection, side: Side::Server })
    }

    fn outgoing(&self) -> &Pipe {
        &self.connection.pipes[self.side as usize]
    }

    fn incoming(&self) -> &Pipe {
        &self.connection.pipes[self.side.other() as usize]
    }

    fn error(&self, side: Side) -> &AtomicI32 {
        &self.connection.errors[side as usize]
    }

    /// Reads and clears the pending error.
    pub(super) fn take_error(&self) -> Option<Errno> {
        let raw = self.error(self.side).swap(0, Ordering::SeqCst);
        (raw != 0).then(|| Errno::from_raw(raw))
    }

    fn has_error(&self) -> bool {
        self.error(self.side).load(Ordering::SeqCst) != 0
    }

    pub(super) fn read(&self, into: &mut [u8]) -> Result<usize, Errno> {
        if into.is_empty() {
            return Ok(0);
        }
        self.incoming().read(into).or_else(|stop| self.read_stop(&stop).map(|()| 0))
    }

    pub(super) fn read_bytes(&self, max: usize) -> Result<Bytes, Errno> {
        if max == 0 {
            return Ok(Bytes::new());
        }
        self.incoming().read_bytes(max).or_else(|stop| self.read_stop(&stop).map(|()| Bytes::new()))
    }

    pub(super) fn peek(&self, into: &mut [u8]) -> Result<usize, Errno> {
        self.incoming().peek(into).or_else(|stop| self.read_stop(&stop).map(|()| 0))
    }

    /// End of file is `Ok`. A reset is told once; after it, end of file, as `tcp_recvmsg` does.
    fn read_stop(&self, stop: &Stop) -> Result<(), Errno> {
        match stop {
            Stop::Wait => Err(Errno::Again),
            Stop::End => Ok(()),
            Stop::Dead => self.take_error().map_or(Ok(()), Err),
            Stop::Refused(errno) => Err(*errno),
        }
    }

    pub(super) fn write(&self, from: &[u8]) -> Result<usize, Errno> {
        let written = self.outgoing().write(from);
        self.written(written)
    }

    pub(super) fn write_bytes(&self, from: &mut Bytes) -> Result<usize, Errno> {
        let written = self.outgoing().write_bytes(from);
        self.written(written)
    }

    fn written(&self, written: Result<Written, Stop>) -> Result<usize, Errno> {
        match written {
            Ok(Written::Queued(n)) => Ok(n),
            Ok(Written::Vanished(n)) => {
                // The peer is gone and answers these bytes with a RST: this write succeeded, the next will not.
                self.reset(self.side, self.incoming().is_finished());
                Ok(n)
            }
            Err(stop) => Err(self.write_stop(&stop)),
        }
    }

    fn write_stop(&self, stop: &Stop) -> Errno {
        match stop {
            Stop::Wait => Errno::Again,
            Stop::End | Stop::Dead => self.take_error().unwrap_or(Errno::Pipe),
            Stop::Refused(errno) => *errno,
        }
    }

    pub(super) fn write_room(&self) -> Result<usize, Errno> {
        self.outgoing().write_room().map_err(|stop| self.write_stop(&stop))
    }

    pub(super) fn shutdown_write(&self) {
        self.outgoing().finish();
    }

    pub(super) fn shutdown_read(&self) {
        self.incoming().shut_read();
    }

    /// Whether the connection is over, so that Linux's `shutdown` would say ENOTCONN.
    pub(super) fn is_dead(&self) -> bool {
        self.outgoing().is_dead()
    }

    /// Leaves. Later calls change nothing.
    pub(super) fn close(&self, how: Close) {
        if self.connection.closed[self.side as usize].swap(true, Ordering::SeqCst) {
            return;
        }
        let unread = self.incoming().abandon();
        if unread > 0 || how == Close::Reset {
            self.reset(self.side.other(), self.outgoing().is_finished());
        } else {
            self.outgoing().finish();
        }
    }

    /// `side` gets a RST. One that has had the peer's FIN learns EPIPE, as `tcp_reset` in CLOSE_WAIT.
    fn reset(&self, side: Side, had_fin: bool) {
        let errno = if had_fin { Errno::Pipe } else { Errno::ConnReset };
        self.error(side).store(errno.raw(), Ordering::SeqCst);
        for pipe in &self.connection.pipes {
            pipe.kill();
        }
    }

    pub(super) fn set_window_out(&self, window: usize) {
        self.outgoing().set_window(window);
    }

    pub(super) fn set_window_in(&self, window: usize) {
        self.incoming().set_window(window);
    }

    pub(super) fn unread(&self) -> usize {
        self.incoming().len()
    }

    pub(super) fn readable(&self) -> bool {
        self.incoming().readable() || self.has_error()
    }

    pub(super) fn writable(&self) -> bool {
        self.outgoing().writable() || self.has_error()
    }

    /// Both directions ended, or the connection was reset.
    pub(super) fn hung_up(&self) -> bool {
        self.is_dead() || (self.incoming().is_finished() && self.outgoing().is_finished())
    }

    pub(super) fn read_waiters(&self) -> &Waiters {
        &self.incoming().reader
    }

    pub(super) fn write_waiters(&self) -> &Waiters {
        &self.outgoing().writer
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.close(Close::Orderly);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Endpoint, Endpoint) {
        let spec = || EndSpec { account: None, window: 65536 };
        Endpoint::pair(spec(), spec())
    }

    #[test]
    fn a_close_with_unread_bytes_resets_the_peer_once() {
        let (client, server) = pair();
        assert_eq!(client.write(b"hello"), Ok(5));
        assert_eq!(server.write(b"bye"), Ok(3));
        drop(server);
        let mut buffer = [0; 8];
        assert_eq!(client.read(&mut buffer), Ok(3), "what had arrived is still there");
        assert_eq!(client.read(&mut buffer), Err(Errno::ConnReset));
        assert_eq!(client.read(&mut buffer), Ok(0));
        assert_eq!(client.write(b"x"), Err(Errno::Pipe));
    }

    #[test]
    fn a_write_to_a_closed_peer_vanishes_once_and_then_fails() {
        let (client, server) = pair();
        drop(server);
        assert_eq!(client.read(&mut [0; 8]), Ok(0));
        assert_eq!(client.write(b"x"), Ok(1));
        assert_eq!(client.write(b"x"), Err(Errno::Pipe));
    }

    #[test]
    fn a_half_closed_connection_still_carries_the_other_direction() {
        let (client, server) = pair();
        client.write(b"question").expect("written");
        client.shutdown_write();
        assert_eq!(client.write(b"x"), Err(Errno::Pipe));
        let mut buffer = [0; 16];
        assert_eq!(server.read(&mut buffer), Ok(8));
        assert_eq!(server.read(&mut buffer), Ok(0));
        assert_eq!(server.write(b"answer"), Ok(6));
        assert_eq!(client.read(&mut buffer), Ok(6));
        assert_eq!(client.read(&mut buffer), Err(Errno::Again));
    }
}
