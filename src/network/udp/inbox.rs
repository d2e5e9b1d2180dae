//! What a UDP socket has received: a bounded queue that drops when full.
//!
//! In: datagrams of in-process senders and of the kernel. Out: the same whole, in order. The sender's account
//! pays until the datagram is read. Knows no ports; filters by peer when the socket is connected.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::super::account::Account;
use super::super::wait::Waiters;

/// What a datagram counts beside its bytes, so that empty ones fill the queue too (the kernel's `truesize`).
const OVERHEAD: u64 = 256;

/// One received datagram.
pub(super) struct Datagram {
    pub(super) from: SocketAddr,
    pub(super) data: Bytes,
    payer: Option<Arc<Account>>,
}

impl Drop for Datagram {
    fn drop(&mut self) {
        if let Some(payer) = &self.payer {
            payer.release(self.data.len() as u64 + OVERHEAD);
        }
    }
}

/// What became of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::network) enum Delivery {
    Queued,
    /// Lost, as UDP may: the queue or an account was full.
    Dropped,
    /// Nobody there for this sender.
    Refused,
}

/// The received datagrams of one socket.
pub(in crate::network) struct Inbox {
    state: Mutex<State>,
    /// Woken when a datagram arrives.
    pub(super) arrived: Waiters,
}

struct State {
    queue: VecDeque<Datagram>,
    held: u64,
    limit: u64,
    peer: Option<SocketAddr>,
    open: bool,
}

impl Inbox {
    pub(super) fn new(limit: u64) -> Self {
        let state = State { queue: VecDeque::new(), held: 0, limit, peer: None, open: true };
        Self { state: Mutex::new(state), arrived: Waiters::default() }
    }

    /// Queues a copy of `data`, or drops it.
    pub(in crate::network) fn deliver(&self, from: SocketAddr, data: &[u8], payer: Option<&Arc<Account>>) -> Delivery {
        let mut state = self.state.lock();
        if !state.open || state.peer.is_some_and(|peer| peer != from) {
            return Delivery::Refused;
        }
        let size = data.len() as u64 + OVERHEAD;
        // An empty queue takes any datagram, however small the guest made its buffer.
        if state.held > 0 && state.held + size > state.limit {
            return Delivery::Dropped;
        }
        if let Some(payer) = payer {
            if payer.under_pressure() {
                payer.note_pressure();
                return Delivery::Dropped;
            }
            if payer.charge(size).is_err() {
                return Delivery::Dropped;
            }
        }
        state.held += size;
        state.queue.push_back(Datagram { from, data: Bytes::copy_from_slice(data), payer: payer.cloned() });
        drop(state);
        self.arrived.wake();
        Delivery::Queued
    }

    pub(super) fn pop(&self) -> Option<Datagram> {
        let mut state = self.state.lock();
        let datagram = state.queue.pop_front()?;
        state.held -= datagram.data.len() as u64 + OVERHEAD;
        if state.queue.is_empty() && state.queue.capacity() > 16 {
            // An idle socket keeps no memory worth counting.
            state.queue = VecDeque::new();
        }
        Some(datagram)
    }

    /// Looks at the first datagram.
    pub(super) fn peek<R>(&self, look: impl FnOnce(&Datagram) -> R) -> Option<R> {
        self.state.lock().queue.front().map(look)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.state.lock().queue.is_empty()
    }

    /// Whether a largest datagram from the kernel would be kept: else it waits in the kernel.
    pub(super) fn has_room(&self) -> bool {
        let state = self.state.lock();
        state.held == 0 || state.held + OVERHEAD + super::MAX_DATAGRAM as u64 <= state.limit
    }

    pub(super) fn set_limit(&self, limit: u64) {
        self.state.lock().limit = limit;
    }

    /// From now on only this sender. What is queued from others stays, as on Linux.
    pub(super) fn set_peer(&self, peer: Option<SocketAddr>) {
        self.state.lock().peer = peer;
    }

    pub(super) fn close(&self) {
        let queue = {
            let mut state = self.state.lock();
            state.open = false;
            state.held = 0;
            std::mem::take(&mut state.queue)
        };
        drop(queue);
        self.arrived.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_inbox_drops_and_an_empty_one_takes_any_datagram() {
        let from = "127.0.0.1:1".parse().expect("address");
        let inbox = Inbox::new(4096);
        assert_eq!(inbox.deliver(from, &[0; 60_000], None), Delivery::Queued);
        assert_eq!(inbox.deliver(from, b"", None), Delivery::Dropped);
        assert_eq!(inbox.pop().map(|datagram| datagram.data.len()), Some(60_000));
        for _ in 0..16 {
            assert_eq!(inbox.deliver(from, b"", None), Delivery::Queued);
        }
        assert_eq!(inbox.deliver(from, b"", None), Delivery::Dropped);
        inbox.close();
        assert_eq!(inbox.deliver(from, b"", None), Delivery::Refused);
    }
}
