//! The order of guests, as a plain data structure: no clock, no thread, no engine.
//!
//! In: entities that want to run, with their virtual time (CPU time over weight). Out: who may. An entity may run
//! when no waiting one has less virtual time. Invariant: while somebody waits, as many turns are running or granted
//! as there are worker threads.

use std::collections::{BTreeSet, HashMap};
use std::task::Waker;

enum Waiter {
    /// In the queue at this virtual time.
    Queued { virtual_time: u64, waker: Waker },
    /// Woken, on its way to [`Gate::enter`].
    Granted,
}

/// The run gate.
pub(super) struct Gate {
    slots: usize,
    running: usize,
    granted: usize,
    queue: BTreeSet<(u64, u64)>,
    waiters: HashMap<u64, Waiter>,
    now: u64,
    to_wake: Vec<Waker>,
}

impl Gate {
    /// A gate before `slots` worker threads.
    pub(super) fn new(slots: usize) -> Self {
        Self {
            slots,
            running: 0,
            granted: 0,
            queue: BTreeSet::new(),
            waiters: HashMap::new(),
            now: 0,
            to_wake: Vec::new(),
        }
    }

    /// Virtual time of the entity dispatched last in order; it never goes back.
    pub(super) fn now(&self) -> u64 {
        self.now
    }

    /// Whether anybody waits.
    pub(super) fn is_contended(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Asks to run. `virtual_time` is first brought forward to `sleeper_credit` behind the present: who slept does
    /// not save up more. Returns whether the entity runs now; if so [`Self::leave`] must follow.
    pub(super) fn enter(&mut self, id: u64, virtual_time: &mut u64, sleeper_credit: u64, waker: &Waker) -> bool {
        match self.waiters.get_mut(&id) {
            Some(Waiter::Granted) => {
                self.waiters.remove(&id);
                self.granted -= 1;
                self.running += 1;
                return true;
            }
            Some(Waiter::Queued { virtual_time, waker: old }) => {
                // Woken by something else (its own IO) while it waits. It may be its turn by now.
                let key = (*virtual_time, id);
                if self.queue.first() != Some(&key) {
                    old.clone_from(waker);
                    return false;
                }
                self.queue.remove(&key);
                self.waiters.remove(&id);
            }
            None => *virtual_time = (*virtual_time).max(self.now.saturating_sub(sleeper_credit)),
        }
        // This thread is free, or it would not ask: who has less virtual time than everybody in the queue runs at
        // once, even when all turns were granted to others that are still on their way. (Guests that want to go on
        // after their slice are in the queue, not on their way here: see `yielded`.)
        if self.queue.first().is_none_or(|&(first, _)| *virtual_time <= first) {
            self.now = self.now.max(*virtual_time);
            self.running += 1;
            return true;
        }
        self.queue.insert((*virtual_time, id));
        self.waiters.insert(id, Waiter::Queued { virtual_time: *virtual_time, waker: waker.clone() });
        self.grant();
        false
    }

    /// An entity that entered has been polled, and waits for something else.
    pub(super) fn leave(&mut self) {
        self.running -= 1;
        self.grant();
    }

    /// An entity that entered has been polled, and wants to go on: it queues at its new virtual time.
    pub(super) fn yielded(&mut self, id: u64, virtual_time: u64, waker: &Waker) {
        self.running -= 1;
        self.queue.insert((virtual_time, id));
        self.waiters.insert(id, Waiter::Queued { virtual_time, waker: waker.clone() });
        self.grant();
    }

    /// An entity is gone; it does not run now.
    pub(super) fn forget(&mut self, id: u64) {
        match self.waiters.remove(&id) {
            Some(Waiter::Granted) => {
                self.granted -= 1;
                self.grant();
            }
            Some(Waiter::Queued { virtual_time, .. }) => {
                self.queue.remove(&(virtual_time, id));
            }
            None => {}
        }
    }

    /// Wakers to call once the lock is released.
    pub(super) fn take_granted_wakers(&mut self) -> Vec<Waker> {
        std::mem::take(&mut self.to_wake)
    }

    fn grant(&mut self) {
        while self.running + self.granted < self.slots {
            let Some((virtual_time, id)) = self.queue.pop_first() else { return };
            self.now = self.now.max(virtual_time);
            self.granted += 1;
            if let Some(Waiter::Queued { waker, .. }) = self.waiters.insert(id, Waiter::Granted) {
                self.to_wake.push(waker);
            }
        }
    }
}
