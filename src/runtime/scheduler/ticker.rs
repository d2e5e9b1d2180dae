//! The thread that moves the engines' epochs while guests run.
//!
//! In: guests entering and leaving. Out: epochs: every 10 ms when guests have the cores for themselves, every 2 ms
//! when some wait. Parks after 100 ms in which nobody ran, so that an idle node sleeps.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::Thread;
use std::time::Duration;

use crate::runtime::engine::Engines;

const CALM: Duration = Duration::from_millis(10);
/// A round over 1,000 spinning guests on two cores is then a second.
const CONTENDED: Duration = Duration::from_millis(2);
const IDLE_TICKS_BEFORE_PARKING: u32 = 10;

#[derive(Default)]
struct Shared {
    ticks: AtomicU64,
    running: AtomicUsize,
    entered: AtomicBool,
    contended: AtomicBool,
    parked: AtomicBool,
    stopped: AtomicBool,
}

/// Handle to the thread; it ends with the handle.
pub(super) struct Ticker {
    shared: Arc<Shared>,
    thread: Thread,
}

impl Ticker {
    /// Starts the thread, parked.
    pub(super) fn start(engines: Engines) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let for_thread = shared.clone();
        let handle = std::thread::Builder::new().name("epoch".to_owned()).spawn(move || tick(&engines, &for_thread))?;
        Ok(Self { shared, thread: handle.thread().clone() })
    }

    /// Epochs so far.
    pub(super) fn ticks(&self) -> u64 {
        self.shared.ticks.load(Ordering::Relaxed)
    }

    /// A guest is about to be polled.
    pub(super) fn guest_entered(&self) {
        self.shared.running.fetch_add(1, Ordering::SeqCst);
        if !self.shared.entered.load(Ordering::Relaxed) {
            self.shared.entered.store(true, Ordering::Relaxed);
        }
        // SeqCst on both sides: either we see it parked, or it sees us running.
        if self.shared.parked.load(Ordering::SeqCst) && self.shared.parked.swap(false, Ordering::SeqCst) {
            self.thread.unpark();
        }
    }

    /// A guest's poll is over.
    pub(super) fn guest_left(&self) {
        self.shared.running.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether guests wait for their turn.
    pub(super) fn set_contended(&self, contended: bool) {
        if self.shared.contended.load(Ordering::Relaxed) != contended {
            self.shared.contended.store(contended, Ordering::Relaxed);
        }
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        self.thread.unpark();
    }
}

fn tick(engines: &Engines, shared: &Shared) {
    let mut idle = 0;
    while !shared.stopped.load(Ordering::SeqCst) {
        if idle >= IDLE_TICKS_BEFORE_PARKING {
            shared.parked.store(true, Ordering::SeqCst);
            if shared.running.load(Ordering::SeqCst) == 0 && !shared.stopped.load(Ordering::SeqCst) {
                std::thread::park();
            }
            shared.parked.store(false, Ordering::SeqCst);
            idle = 0;
        }
        let contended = shared.contended.load(Ordering::Relaxed);
        std::thread::sleep(if contended { CONTENDED } else { CALM });
        if shared.running.load(Ordering::Relaxed) > 0 {
            shared.ticks.fetch_add(1, Ordering::Relaxed);
            engines.increment_epoch();
        }
        let active = shared.entered.swap(false, Ordering::Relaxed) || shared.running.load(Ordering::Relaxed) > 0;
        idle = if active { 0 } else { idle + 1 };
    }
}
