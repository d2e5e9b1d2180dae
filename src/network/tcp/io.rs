//! Reading, writing, readiness and shutdown of a TCP socket.
//!
//! In: a front-end's buffers. Out: bytes at once or EAGAIN, and futures that end when a call would not say
//! EAGAIN. The hot path takes no lock of the socket.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use rustix::event::PollFlags;
use tokio::io::Interest;

use super::super::backlog::Wire;
use super::super::options::Shutdown;
use super::super::traffic::Span;
use super::super::wait::until;
use super::stream::TcpStream;
use super::{Link, Phase, Readiness, TcpSocket};
use crate::errno::Errno;

/// The most one `read_bytes` takes from a kernel socket.
const KERNEL_READ: usize = 64 * 1024;

impl TcpSocket {
    pub(super) fn linked(&self) -> Option<&Link> {
        self.link.get()
    }

    fn link_to_read(&self) -> Result<&Link, Errno> {
        self.check_open()?;
        self.linked().ok_or_else(|| self.without_link(Errno::NotConn))
    }

    fn link_to_write(&self) -> Result<&Link, Errno> {
        self.check_open()?;
        self.linked().ok_or_else(|| self.without_link(Errno::Pipe))
    }

    /// What a socket without a peer says: Linux waits for one that connects, else has its word per direction.
    fn without_link(&self, otherwise: Errno) -> Errno {
        if matches!(*self.phase.lock(), Phase::Connecting(_)) { Errno::Again } else { otherwise }
    }

    fn count(&self, n: usize) {
        self.moved.fetch_add(n as u64, Ordering::Relaxed);
    }

    fn received(&self, link: &Link, n: usize) {
        self.count(n);
        if let (Span::Leaves, Some(pod)) = (link.span, &self.pod) {
            pod.counters().received(n);
        }
    }

    fn sent(&self, link: &Link, n: usize) {
        self.count(n);
        if let (Span::Leaves, Some(pod)) = (link.span, &self.pod) {
            pod.counters().sent(n);
        }
    }

    /// read(2): 0 is end of file, EAGAIN when nothing is there.
    ///
    /// # Errors
    /// EAGAIN, ENOTCONN, ECONNRESET, EBADF when closed, ECONNABORTED when the pod is gone.
    pub fn try_read(&self, into: &mut [u8]) -> Result<usize, Errno> {
        let link = self.link_to_read()?;
        let n = match &link.wire {
            Wire::Local(endpoint) => endpoint.read(into)?,
            Wire::Kernel(socket) => socket.read(into)?,
        };
        self.received(link, n);
        Ok(n)
    }

    /// As [`Self::try_read`] without a copy in process; an empty `Bytes` is end of file.
    ///
    /// # Errors
    /// As [`Self::try_read`].
    pub fn try_read_bytes(&self, max: usize) -> Result<Bytes, Errno> {
        let link = self.link_to_read()?;
        let bytes = match &link.wire {
            Wire::Local(endpoint) => endpoint.read_bytes(max)?,
            Wire::Kernel(socket) => {
                let mut buffer = vec![0; max.min(KERNEL_READ)];
                let n = socket.read(&mut buffer)?;
                buffer.truncate(n);
                // A small read must not pin a large buffer.
                if n < KERNEL_READ / 2 {
                    buffer.shrink_to_fit();
                }
                buffer.into()
            }
        };
        self.received(link, bytes.len());
        Ok(bytes)
    }

    /// recv(2) with `MSG_PEEK`.
    ///
    /// # Errors
    /// As [`Self::try_read`].
    pub fn try_peek(&self, into: &mut [u8]) -> Result<usize, Errno> {
        match &self.link_to_read()?.wire {
            Wire::Local(endpoint) => endpoint.peek(into),
            Wire::Kernel(socket) => socket.peek(into),
        }
    }

    /// write(2): how much was taken; EAGAIN when the window is full.
    ///
    /// # Errors
    /// EAGAIN, EPIPE, ECONNRESET, what the container's charge says, EBADF, ECONNABORTED.
    pub fn try_write(&self, from: &[u8]) -> Result<usize, Errno> {
        let link = self.link_to_write()?;
        let n = match &link.wire {
            Wire::Local(endpoint) => endpoint.write(from)?,
            Wire::Kernel(socket) => socket.write(from)?,
        };
        self.sent(link, n);
        Ok(n)
    }

    /// As [`Self::try_write`] without a copy in process; what was taken is split off `from`.
    ///
    /// # Errors
    /// As [`Self::try_write`].
    pub fn try_write_bytes(&self, from: &mut Bytes) -> Result<usize, Errno> {
        let link = self.link_to_write()?;
        let n = match &link.wire {
            Wire::Local(endpoint) => endpoint.write_bytes(from)?,
            Wire::Kernel(socket) => {
                let n = socket.write(from)?;
                drop(from.split_to(n));
                n
            }
        };
        self.sent(link, n);
        Ok(n)
    }

    /// Bytes a write would take now: WASI 0.2's `check-write`. 0 means wait for [`Self::writable`].
    ///
    /// # Errors
    /// What the write would return, without EAGAIN.
    pub fn write_room(&self) -> Result<usize, Errno> {
        match &self.link_to_write()?.wire {
            Wire::Local(endpoint) => endpoint.write_room(),
            Wire::Kernel(socket) if socket.poll_now().intersects(PollFlags::OUT | PollFlags::ERR) => Ok(KERNEL_READ),
            Wire::Kernel(_) => Ok(0),
        }
    }

    /// Waits until a read (or accept) would not return EAGAIN. Cancel-safe, not spurious.
    pub async fn readable(&self) {
        loop {
            if let Some(link) = self.linked() {
                return self.link_ready(link, Interest::READABLE).await;
            }
            let generation = self.generation.load(Ordering::SeqCst);
            if self.has_ended() {
                return;
            }
            if let Some(from) = self.accept_from() {
                if from.is_ready() {
                    return;
                }
                self.wait_for_arrival(&from, generation).await;
            } else if matches!(*self.phase.lock(), Phase::Connecting(_)) {
                self.settled().await;
            } else {
                // As poll(2) on a socket without a peer: POLLHUP, at once.
                return;
            }
        }
    }

    /// Waits until a write would not return EAGAIN, or a connect has its outcome. Cancel-safe.
    pub async fn writable(&self) {
        if self.linked().is_none() {
            self.settled().await;
            return;
        }
        if let Some(link) = self.linked() {
            self.link_ready(link, Interest::WRITABLE).await;
        }
    }

    async fn link_ready(&self, link: &Link, interest: Interest) {
        match &link.wire {
            Wire::Local(endpoint) if interest.is_readable() => {
                until([endpoint.read_waiters(), &self.changed], || endpoint.readable() || self.has_ended()).await;
            }
            Wire::Local(endpoint) => {
                until([endpoint.write_waiters(), &self.changed], || endpoint.writable() || self.has_ended()).await;
            }
            // Both arms only look; nothing is lost when the other wins.
            Wire::Kernel(socket) => tokio::select! {
                () = until([&self.changed], || self.has_ended()) => {}
                () = socket.ready(interest) => {}
            },
        }
    }

    /// What it is ready for, now.
    pub fn readiness(&self) -> Readiness {
        if self.has_ended() {
            return Readiness { readable: true, writable: true, hangup: true, read_bytes: 0 };
        }
        if let Some(link) = self.linked() {
            return link.readiness();
        }
        if let Some(from) = self.accept_from() {
            return Readiness { readable: from.is_ready(), ..Readiness::default() };
        }
        let mut phase = self.phase.lock();
        self.advance(&mut phase);
        match &*phase {
            Phase::Connecting(_) => Readiness::default(),
            Phase::Connected => Readiness { writable: true, ..Readiness::default() },
            _ => Readiness { readable: true, writable: true, hangup: true, read_bytes: 0 },
        }
    }

    /// shutdown(2).
    ///
    /// # Errors
    /// ENOTCONN without a peer or after a reset.
    pub fn shutdown(&self, how: Shutdown) -> Result<(), Errno> {
        self.check_open()?;
        match &self.linked().ok_or(Errno::NotConn)?.wire {
            Wire::Kernel(socket) => socket.shutdown(how),
            Wire::Local(endpoint) if endpoint.is_dead() => Err(Errno::NotConn),
            Wire::Local(endpoint) => {
                if how != Shutdown::Write {
                    endpoint.shutdown_read();
                }
                if how != Shutdown::Read {
                    endpoint.shutdown_write();
                }
                Ok(())
            }
        }
    }

    /// `SO_ERROR`: reads and clears the pending error.
    pub fn take_error(&self) -> Option<Errno> {
        match self.linked().map(|link| &link.wire) {
            Some(Wire::Local(endpoint)) => endpoint.take_error(),
            Some(Wire::Kernel(socket)) => socket.take_error(),
            None => self.take_connect_error(),
        }
    }

    /// Wraps a connected socket for tokio's and hyper's IO traits.
    pub fn into_stream(self: Arc<Self>) -> TcpStream {
        TcpStream::new(self)
    }

    /// What tells an idle connection: bytes moved so far, and whether some wait to be read. `None` without a peer.
    pub(in crate::network) fn activity(&self) -> Option<(u64, bool)> {
        let unread = match &self.linked()?.wire {
            Wire::Local(endpoint) => endpoint.unread() > 0,
            Wire::Kernel(socket) => socket.unread() > 0,
        };
        Some((self.moved.load(Ordering::Relaxed), unread))
    }
}

impl Link {
    fn readiness(&self) -> Readiness {
        match &self.wire {
            Wire::Local(endpoint) => Readiness {
                readable: endpoint.readable(),
                writable: endpoint.writable(),
                hangup: endpoint.hung_up(),
                read_bytes: endpoint.unread() as u64,
            },
            Wire::Kernel(socket) => {
                let now = socket.poll_now();
                let over = now.intersects(PollFlags::HUP | PollFlags::ERR);
                Readiness {
                    readable: over || now.intersects(PollFlags::IN),
                    writable: over || now.intersects(PollFlags::OUT),
                    hangup: over,
                    read_bytes: socket.unread(),
                }
            }
        }
    }
}
