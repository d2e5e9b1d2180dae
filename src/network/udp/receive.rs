//! Receiving datagrams, and readiness.
//!
//! In: the inbox, and the kernel sockets behind it. Out: one datagram a call, cut to the guest's buffer.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::future::select_all;
use tokio::io::Interest;

use super::super::kernel::KernelSocket;
use super::super::policy::Standing;
use super::super::route::present;
use super::super::tcp::Readiness;
use super::super::traffic::Span;
use super::super::wait::until;
use super::UdpSocket;
use super::kernel_side::Door;
use crate::errno::Errno;
use crate::pod::run::PortProtocol;

/// Datagrams fetched from one kernel socket at a time, so that a flood on one does not starve the others.
const FETCH: usize = 16;

thread_local! {
    /// Where the kernel puts a datagram of unknown size.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A received datagram's length and sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Bytes copied.
    pub len: usize,
    /// Bytes the datagram had; more than `len` when it was cut.
    pub datagram_len: usize,
    /// Its sender.
    pub from: SocketAddr,
}

impl UdpSocket {
    /// recvfrom(2): one datagram, cut to `into`.
    ///
    /// # Errors
    /// EAGAIN when none is there, ECONNREFUSED of an earlier send of a connected socket, EBADF, ECONNABORTED.
    pub fn try_recv_from(&self, into: &mut [u8]) -> Result<Received, Errno> {
        let (data, from) = self.try_recv()?;
        let len = data.len().min(into.len());
        into[..len].copy_from_slice(&data[..len]);
        Ok(Received { len, datagram_len: data.len(), from })
    }

    /// One whole datagram without a copy in process.
    ///
    /// # Errors
    /// As [`Self::try_recv_from`].
    pub fn try_recv(&self) -> Result<(Bytes, SocketAddr), Errno> {
        self.check_receive()?;
        let datagram = self.inbox.pop().ok_or(Errno::Again)?;
        self.moved.fetch_add(datagram.data.len() as u64 + 1, Ordering::Relaxed);
        self.heard(datagram.from);
        if self.pod.span(datagram.from.ip()) == Span::Leaves {
            self.pod.counters().received(datagram.data.len());
        }
        Ok((datagram.data.clone(), self.shown(datagram.from)))
    }

    /// recvfrom(2) with `MSG_PEEK`.
    ///
    /// # Errors
    /// As [`Self::try_recv_from`].
    pub fn try_peek_from(&self, into: &mut [u8]) -> Result<Received, Errno> {
        self.check_receive()?;
        let seen = self.inbox.peek(|datagram| {
            let len = datagram.data.len().min(into.len());
            into[..len].copy_from_slice(&datagram.data[..len]);
            Received { len, datagram_len: datagram.data.len(), from: datagram.from }
        });
        // Apart: the inbox is not to be held while the socket's state is asked for.
        let seen = seen.ok_or(Errno::Again)?;
        Ok(Received { from: self.shown(seen.from), ..seen })
    }

    /// A sender as the guest knows it: an endpoint of a Service by the Service's address.
    fn shown(&self, from: SocketAddr) -> SocketAddr {
        present(self.state.lock().flows.shown(from), self.family)
    }

    fn check_receive(&self) -> Result<(), Errno> {
        self.check_open()?;
        if let Some(errno) = self.take_error() {
            return Err(errno);
        }
        if self.inbox.is_empty() {
            self.fetch();
            self.take_error().map_or(Ok(()), Err)?;
        }
        Ok(())
    }

    /// Moves what the kernel has into the inbox. Returns the kernel sockets to wait for.
    fn fetch(&self) -> Vec<Arc<KernelSocket>> {
        let doors = {
            let state = self.state.lock();
            if state.kernel.is_empty() {
                return Vec::new();
            }
            state.kernel.doors(if self.pod.uses_node_sockets() { Door::Node } else { Door::Pod })
        };
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.resize(65_536, 0);
            for (door, socket) in &doors {
                self.fetch_from(*door, socket, scratch);
            }
        });
        doors.into_iter().map(|(_, socket)| socket).collect()
    }

    fn fetch_from(&self, door: Door, socket: &KernelSocket, scratch: &mut [u8]) {
        for _ in 0..FETCH {
            if !self.inbox.has_room() {
                return;
            }
            let (n, from) = match socket.receive_from(scratch) {
                Ok(received) => received,
                Err(Errno::Again) => return,
                Err(errno) => return self.set_error(errno),
            };
            let shown = {
                let node_address = self.pod.node_address(from.ip());
                self.state.lock().kernel.show(door, from, node_address)
            };
            let judged = shown.filter(|from| self.is_let_in(door, super::super::route::canonical(*from)));
            if let Some(from) = judged {
                self.inbox.deliver(super::super::route::canonical(from), &scratch[..n], Some(&self.account));
            }
        }
    }

    /// Asks policies once for each peer; what it asked for may come.
    fn is_let_in(&self, door: Door, from: SocketAddr) -> bool {
        if door == Door::Node || self.pod.policies().standing() == Standing::Off {
            return true;
        }
        let (known, port) = {
            let state = self.state.lock();
            (state.spoken.find(from).is_some(), state.local.map_or(0, |local| local.port()))
        };
        known || self.pod.lets_in(from.ip(), PortProtocol::Udp, port)
    }

    /// Remembers who was heard: it may be answered.
    fn heard(&self, from: SocketAddr) {
        if self.pod.policies().standing() != Standing::Off {
            self.state.lock().spoken.note(from, from);
        }
    }

    fn can_receive(&self) -> bool {
        self.has_ended() || self.error.load(Ordering::SeqCst) != 0 || !self.inbox.is_empty()
    }

    /// Waits until a receive would not return EAGAIN. Cancel-safe, not spurious.
    pub async fn readable(&self) {
        loop {
            let generation = self.generation.load(Ordering::SeqCst);
            if self.can_receive() {
                return;
            }
            let sockets = self.fetch();
            if self.can_receive() {
                return;
            }
            let changed = || self.can_receive() || self.generation.load(Ordering::SeqCst) != generation;
            let in_process = until([&self.inbox.arrived, &self.changed], changed);
            if sockets.is_empty() {
                in_process.await;
                continue;
            }
            // Both arms only look; what arrives stays in the inbox or in the kernel.
            tokio::select! {
                () = in_process => {}
                _ = select_all(sockets.iter().map(|socket| Box::pin(socket.ready(Interest::READABLE)))) => {}
            }
        }
    }

    /// Waits until a send would not return EAGAIN, which in process it never does. Cancel-safe.
    pub async fn writable(&self) {
        let sockets: Vec<_> = {
            let state = self.state.lock();
            state.kernel.doors(Door::Pod).into_iter().map(|(_, socket)| socket).collect()
        };
        for socket in sockets {
            // Both arms only look; nothing is lost when the other wins.
            tokio::select! {
                () = until([&self.changed], || self.has_ended()) => return,
                () = socket.ready(Interest::WRITABLE) => {}
            }
        }
    }

    /// What it is ready for, now.
    pub fn readiness(&self) -> Readiness {
        if !self.can_receive() {
            self.fetch();
        }
        Readiness {
            readable: self.can_receive(),
            writable: true,
            hangup: self.has_ended(),
            read_bytes: self.inbox.peek(|datagram| datagram.data.len() as u64).unwrap_or(0),
        }
    }
}
