//! Who runs next: the one gate in front of every poll of guest code, with quotas and CPU accounts behind it.
//!
//! ```text
//!  guest future --poll--> [quota: period spent?] --> [gate: someone more deserving?] --> polled, metered
//!        ^                     | sleeps until                | waits for its turn            |
//!        '---------------------'   the next period           '------- woken by leave() <-----'
//! ```
//!
//! In: futures of guests, with the account of their container. Out: the same futures, polled in the order of
//! weighted virtual time, so that a thousand spinning guests starve nobody. Wasm gives the thread back at every
//! epoch; the ticker that moves the epoch parks when nothing runs.

mod account;
mod gate;
mod metered;
mod quota;
mod ticker;

#[cfg(test)]
mod tests;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;
use std::time::Duration;

use parking_lot::Mutex;
use wasmtime::UpdateDeadline;

use super::engine::Engines;

pub use account::{CpuAccount, CpuLimits, PodCpu};
use gate::Gate;
pub use metered::{Entity, Metered};
use ticker::Ticker;

/// How far ahead of the others a newcomer starts, in CPU time of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Credit {
    /// A container's first program: enough to start most programs among spinning neighbours.
    Start,
    /// An exec: somebody waits for its answer.
    Exec,
    /// A child of a process goes on from its parent: spawning buys no time.
    Inherit,
}

impl Credit {
    const fn time(self) -> Duration {
        match self {
            Self::Start => Duration::from_millis(100),
            Self::Exec => Duration::from_millis(250),
            Self::Inherit => Duration::ZERO,
        }
    }
}

/// How much CPU time an entity that slept may have saved up.
pub(super) const SLEEPER_CREDIT: Duration = Duration::from_millis(20);

/// The scheduler of the node's guests.
pub struct Scheduler {
    gate: Mutex<Gate>,
    ticker: Ticker,
    next_id: AtomicU64,
}

impl Scheduler {
    /// A scheduler for `threads` worker threads; starts the thread that moves the epochs of `engines`.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn new(engines: Engines, threads: NonZeroUsize) -> std::io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            gate: Mutex::new(Gate::new(threads.get())),
            ticker: Ticker::start(engines)?,
            next_id: AtomicU64::new(1),
        }))
    }

    /// What a guest does at an epoch: gives its thread back if an epoch has passed since it got it. The deadline of a
    /// guest that slept is long over when it wakes, and that is no reason to yield at its first instruction.
    pub fn at_epoch(&self) -> UpdateDeadline {
        if metered::polled_since() == self.ticker.ticks() {
            return UpdateDeadline::Continue(1);
        }
        metered::note_epoch();
        UpdateDeadline::Yield(1)
    }

    fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// The virtual time that newcomers are placed by.
    fn now(&self) -> u64 {
        self.gate.lock().now()
    }

    /// Whether `id` may run now; if not, `waker` is woken when it may.
    fn enter(&self, id: u64, virtual_time: &mut u64, sleeper_credit: u64, waker: &Waker) -> bool {
        let mut gate = self.gate.lock();
        let entered = gate.enter(id, virtual_time, sleeper_credit, waker);
        let wake = gate.take_granted_wakers();
        let contended = gate.is_contended();
        drop(gate);
        wake.into_iter().for_each(Waker::wake);
        self.ticker.set_contended(contended);
        if entered {
            self.ticker.guest_entered();
        }
        entered
    }

    /// A guest has run, and waits for something.
    fn leave(&self) {
        let mut gate = self.gate.lock();
        gate.leave();
        let wake = gate.take_granted_wakers();
        drop(gate);
        self.ticker.guest_left();
        wake.into_iter().for_each(Waker::wake);
    }

    /// `id` has run and wants to go on.
    fn yielded(&self, id: u64, virtual_time: u64, waker: &Waker) {
        let mut gate = self.gate.lock();
        gate.yielded(id, virtual_time, waker);
        let wake = gate.take_granted_wakers();
        let contended = gate.is_contended();
        drop(gate);
        self.ticker.set_contended(contended);
        self.ticker.guest_left();
        wake.into_iter().for_each(Waker::wake);
    }

    /// `id` is gone while it may have been waiting.
    fn forget(&self, id: u64) {
        let mut gate = self.gate.lock();
        gate.forget(id);
        let wake = gate.take_granted_wakers();
        drop(gate);
        wake.into_iter().for_each(Waker::wake);
    }
}
