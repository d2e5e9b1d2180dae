//! Signals of a process, and the readers of `/dev/signal` that want to see them.
//!
//! In: signals from `stop`, from the terminal and from `kill`. Out: pending numbers to readers. WASI has no
//! handlers: what a signal does to a process without readers is decided by the container (see
//! `container::stop`), not here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use tokio::sync::Notify;

use crate::errno::Errno;

/// A signal number, 1 to 63.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Signal(u8);

impl Signal {
    /// Hang-up.
    pub const HUP: Self = Self(1);
    /// The terminal's ^C.
    pub const INT: Self = Self(2);
    /// The terminal's ^\.
    pub const QUIT: Self = Self(3);
    /// What a trap counts as.
    pub const ABRT: Self = Self(6);
    /// Ends at once.
    pub const KILL: Self = Self(9);
    /// A write to a pipe nobody reads.
    pub const PIPE: Self = Self(13);
    /// Asks to end.
    pub const TERM: Self = Self(15);
    /// A child ended.
    pub const CHLD: Self = Self(17);
    /// The terminal changed its size.
    pub const WINCH: Self = Self(28);

    /// Checks the range.
    ///
    /// # Errors
    /// `EINVAL` outside 1 to 63.
    pub fn new(number: u32) -> Result<Self, Errno> {
        match u8::try_from(number) {
            Ok(number @ 1..=63) => Ok(Self(number)),
            _ => Err(Errno::Inval),
        }
    }

    /// The number.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0
    }

    /// Whether Linux ignores it in a process that did not ask for it.
    #[must_use]
    pub fn is_ignored_by_default(self) -> bool {
        // SIGCHLD, SIGCONT, SIGURG, SIGWINCH; the stop signals have no meaning here either.
        matches!(self.0, 17 | 18 | 23 | 28 | 19..=22)
    }
}

/// Pending signals of one process: a set, as POSIX keeps standard signals.
#[derive(Debug, Default)]
pub struct SignalQueue {
    pending: AtomicU64,
    listeners: AtomicU32,
    arrived: Notify,
}

impl SignalQueue {
    /// Marks `signal` pending and wakes the readers.
    pub fn raise(&self, signal: Signal) {
        self.pending.fetch_or(1 << signal.number(), Ordering::AcqRel);
        self.arrived.notify_waiters();
    }

    /// Whether the process has `/dev/signal` open.
    pub fn has_listeners(&self) -> bool {
        self.listeners.load(Ordering::Acquire) > 0
    }
}

/// An open `/dev/signal`.
#[derive(Debug)]
pub struct SignalListener {
    queue: Arc<SignalQueue>,
}

impl SignalListener {
    /// Starts to listen to the process that owns `queue`.
    pub fn new(queue: Arc<SignalQueue>) -> Self {
        queue.listeners.fetch_add(1, Ordering::AcqRel);
        Self { queue }
    }

    /// Takes pending signals, lowest first, one byte each.
    ///
    /// # Errors
    /// `EAGAIN` when none is pending.
    pub fn try_read(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        let mut filled = 0;
        while filled < buffer.len() {
            let pending = self.queue.pending.load(Ordering::Acquire);
            if pending == 0 {
                break;
            }
            let number = pending.trailing_zeros();
            let before = self.queue.pending.fetch_and(!(1 << number), Ordering::AcqRel);
            if before & (1 << number) != 0 {
                buffer[filled] = number as u8;
                filled += 1;
            }
        }
        if filled == 0 && !buffer.is_empty() { Err(Errno::Again) } else { Ok(filled) }
    }

    /// How many signals are pending.
    pub fn pending(&self) -> u32 {
        self.queue.pending.load(Ordering::Acquire).count_ones()
    }

    /// Resolves when a signal is pending. Cancel-safe.
    pub async fn readable(&self) {
        loop {
            let arrived = self.queue.arrived.notified();
            if self.pending() > 0 {
                return;
            }
            arrived.await;
        }
    }
}

impl Drop for SignalListener {
    fn drop(&mut self) {
        self.queue.listeners.fetch_sub(1, Ordering::AcqRel);
    }
}
