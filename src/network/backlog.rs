//! The queue of a listener: connections made but not yet accepted.
//!
//! In: in-process connects, and what is left in a kernel listener that closes. Out: connections in order of
//! arrival. Full means wait for the connecting side, as a SYN that is dropped and sent again. Knows no ports.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use super::account::Account;
use super::connection::{Close, EndSpec, Endpoint};
use super::kernel::KernelSocket;
use super::options::TcpOptions;
use super::wait::Waiters;

/// A connection's way to its peer.
pub(super) enum Wire {
    /// In process.
    Local(Endpoint),
    /// Through the kernel.
    Kernel(Arc<KernelSocket>),
}

/// A connection that waits to be accepted.
pub(super) struct Arrival {
    pub(super) wire: Wire,
    /// The listener's side.
    pub(super) local: SocketAddr,
    pub(super) peer: SocketAddr,
}

impl Arrival {
    /// Ends it before anybody accepted it.
    pub(super) fn reset(self) {
        match &self.wire {
            Wire::Local(endpoint) => endpoint.close(Close::Reset),
            Wire::Kernel(socket) => socket.reset(),
        }
    }
}

/// What a connect met.
pub(super) enum Offer {
    /// The connecting side's end.
    Connected(Endpoint),
    /// Try again when `room` was woken.
    Full,
    /// Nobody listens any more.
    Refused,
}

/// The connecting side.
pub(super) struct Caller<'a> {
    pub(super) account: Option<Arc<Account>>,
    pub(super) options: &'a TcpOptions,
    pub(super) addr: SocketAddr,
    /// What it connects to.
    pub(super) to: SocketAddr,
}

/// The queue of one listener.
pub(super) struct Backlog {
    state: Mutex<State>,
    account: Option<Arc<Account>>,
    options: TcpOptions,
    /// Woken when a connection arrives.
    pub(super) arrivals: Waiters,
    /// Woken when one was accepted, or none will be.
    pub(super) room: Waiters,
}

struct State {
    queue: VecDeque<Arrival>,
    limit: usize,
    open: bool,
}

impl Backlog {
    pub(super) fn new(limit: u32, account: Option<Arc<Account>>, options: TcpOptions) -> Self {
        Self {
            state: Mutex::new(State { queue: VecDeque::new(), limit: queue_limit(limit), open: true }),
            account,
            options,
            arrivals: Waiters::default(),
            room: Waiters::default(),
        }
    }

    pub(super) fn set_limit(&self, limit: u32) {
        self.state.lock().limit = queue_limit(limit);
        self.room.wake();
    }

    /// Connects `caller` if there is room.
    pub(super) fn offer(&self, caller: &Caller<'_>) -> Offer {
        let mut state = self.state.lock();
        if !state.open {
            return Offer::Refused;
        }
        if state.queue.len() >= state.limit {
            self.full(state, caller.to);
            return Offer::Full;
        }
        let window = |send: u64, receive: u64| u64::midpoint(send, receive) as usize;
        let client = EndSpec {
            account: caller.account.clone(),
            window: window(caller.options.send_buffer, self.options.receive_buffer),
        };
        let server = EndSpec {
            account: self.account.clone(),
            window: window(self.options.send_buffer, caller.options.receive_buffer),
        };
        let (client, server) = Endpoint::pair(client, server);
        state.queue.push_back(Arrival { wire: Wire::Local(server), local: caller.to, peer: caller.addr });
        drop(state);
        self.arrivals.wake();
        Offer::Connected(client)
    }

    /// Whether an offer would not say full.
    pub(super) fn would_answer(&self) -> bool {
        let state = self.state.lock();
        !state.open || state.queue.len() < state.limit
    }

    pub(super) fn pop(&self) -> Option<Arrival> {
        let arrival = self.state.lock().queue.pop_front()?;
        self.room.wake();
        Some(arrival)
    }

    /// Queues a connection of the kernel if there is room, else gives it back. A listener that takes no more resets it.
    pub(super) fn try_push(&self, arrival: Arrival) -> Result<(), Arrival> {
        let mut state = self.state.lock();
        if !state.open {
            drop(state);
            arrival.reset();
            return Ok(());
        }
        if state.queue.len() >= state.limit {
            self.full(state, arrival.local);
            return Err(arrival);
        }
        state.queue.push_back(arrival);
        drop(state);
        self.arrivals.wake();
        Ok(())
    }

    /// The listener's pod is told that its queue is full.
    fn full(&self, state: MutexGuard<'_, State>, listener: SocketAddr) {
        let waiting = state.queue.len();
        drop(state);
        if let Some(account) = &self.account {
            account.note_full(listener, waiting);
        }
    }

    /// Queues a connection that the kernel had accepted already.
    pub(super) fn push(&self, arrival: Arrival) {
        self.state.lock().queue.push_back(arrival);
        self.arrivals.wake();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.state.lock().queue.is_empty()
    }

    /// Takes no more; what is queued can be accepted.
    pub(super) fn stop(&self) {
        self.state.lock().open = false;
        self.room.wake();
    }

    /// Takes no more and resets what is queued, as a closed listener does.
    pub(super) fn close(&self) {
        let queue = {
            let mut state = self.state.lock();
            state.open = false;
            std::mem::take(&mut state.queue)
        };
        queue.into_iter().for_each(Arrival::reset);
        self.room.wake();
        self.arrivals.wake();
    }
}

/// Linux queues one more than asked (`sk_acceptq_is_full` compares with `>`).
fn queue_limit(backlog: u32) -> usize {
    backlog as usize + 1
}
