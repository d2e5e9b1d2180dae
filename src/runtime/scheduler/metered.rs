//! The future around every guest: asks quota and gate before each poll, and books the time of it.
//!
//! In: a guest's future. Out: the same output. Time is the CPU time of the thread, not the wall's: a machine that
//! is busy elsewhere costs the guest nothing.

use std::cell::Cell;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pin_project_lite::pin_project;
use rustix::time::{ClockId, clock_gettime};
use tokio::time::Sleep;

use super::{CpuAccount, Credit, SLEEPER_CREDIT, Scheduler};

/// One runnable thing in the gate: a task of one process.
pub struct Entity {
    id: u64,
    scheduler: Arc<Scheduler>,
    account: Arc<CpuAccount>,
    state: Mutex<State>,
}

struct State {
    virtual_time: u64,
    /// CPU time that may still be used ahead of the others, from [`Credit`].
    credit: Duration,
}

thread_local! {
    /// Whether the guest polled on this thread gave it back at an epoch, and so wants to go on.
    static AT_EPOCH: Cell<bool> = const { Cell::new(false) };
    /// The epoch in which the guest polled on this thread got it.
    static POLLED_SINCE: Cell<u64> = const { Cell::new(0) };
}

/// The epoch in which the guest on this thread was polled.
pub(super) fn polled_since() -> u64 {
    POLLED_SINCE.get()
}

/// Says that the guest running on this thread yields because its slice is over.
pub(super) fn note_epoch() {
    AT_EPOCH.set(true);
}

impl Entity {
    /// A newcomer, placed `credit` before the present.
    pub fn new(scheduler: &Arc<Scheduler>, account: &Arc<CpuAccount>, credit: Credit) -> Arc<Self> {
        let credit = credit.time();
        let virtual_time = scheduler.now().saturating_sub(account.scaled(credit));
        Self::at(scheduler, account, State { virtual_time, credit })
    }

    /// Another entity of the same account, which starts where this one is.
    #[must_use]
    pub fn sibling(&self) -> Arc<Self> {
        let state = self.state.lock();
        let state = State { virtual_time: state.virtual_time, credit: state.credit };
        Self::at(&self.scheduler, &self.account, state)
    }

    fn at(scheduler: &Arc<Scheduler>, account: &Arc<CpuAccount>, state: State) -> Arc<Self> {
        let (scheduler, account) = (scheduler.clone(), account.clone());
        Arc::new(Self { id: scheduler.next_id(), scheduler, account, state: Mutex::new(state) })
    }

    fn enter(&self, waker: &Waker) -> bool {
        let mut state = self.state.lock();
        let credit = self.account.scaled(state.credit.max(SLEEPER_CREDIT));
        self.scheduler.enter(self.id, &mut state.virtual_time, credit, waker)
    }

    fn leave(&self, started: Duration, goes_on: Option<&Waker>) {
        let time = thread_time().saturating_sub(started);
        self.account.consume(time);
        let virtual_time = {
            let mut state = self.state.lock();
            state.virtual_time += self.account.virtual_time(time);
            state.credit = state.credit.saturating_sub(time);
            state.virtual_time
        };
        match goes_on {
            Some(waker) => self.scheduler.yielded(self.id, virtual_time, waker),
            None => self.scheduler.leave(),
        }
    }
}

impl Drop for Entity {
    fn drop(&mut self) {
        self.scheduler.forget(self.id);
    }
}

fn thread_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// Whether the future wants to run, for the account's count of runnable entities.
struct Runnable {
    entity: Arc<Entity>,
    counted: bool,
}

impl Runnable {
    fn set(&mut self, counted: bool) {
        if counted != self.counted {
            self.counted = counted;
            if counted {
                self.entity.account.became_runnable();
            } else {
                self.entity.account.no_longer_runnable();
            }
        }
    }
}

impl Drop for Runnable {
    fn drop(&mut self) {
        self.set(false);
        // The entity may outlive this future in its process; its place in the queue must not.
        self.entity.scheduler.forget(self.entity.id);
    }
}

/// Leaves the gate also when the guest's poll panics.
struct Turn<'a> {
    entity: &'a Entity,
    started: Duration,
    goes_on: Option<&'a Waker>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.entity.leave(self.started, self.goes_on);
    }
}

pin_project! {
    /// A guest's future behind the gate.
    pub struct Metered<F> {
        #[pin]
        future: F,
        runnable: Runnable,
        // Only containers with a quota that was spent ever have one.
        throttle: Option<Pin<Box<Sleep>>>,
    }
}

impl<F: Future> Metered<F> {
    /// Puts `future` behind the gate as `entity`, which no other future may use at the same time.
    pub fn new(entity: Arc<Entity>, future: F) -> Self {
        Self { future, runnable: Runnable { entity, counted: false }, throttle: None }
    }
}

impl<F: Future> Future for Metered<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        if this.runnable.entity.account.has_quota() && wait_for_quota(&this.runnable.entity, this.throttle, cx) {
            this.runnable.set(false);
            // A turn it was granted goes to somebody else meanwhile.
            this.runnable.entity.scheduler.forget(this.runnable.entity.id);
            return Poll::Pending;
        }
        this.runnable.set(true);
        let entity = this.runnable.entity.clone();
        if !entity.enter(cx.waker()) {
            return Poll::Pending;
        }
        AT_EPOCH.set(false);
        POLLED_SINCE.set(entity.scheduler.ticker.ticks());
        let mut turn = Turn { entity: &entity, started: thread_time(), goes_on: None };
        let result = this.future.poll(cx);
        let goes_on = result.is_pending() && AT_EPOCH.replace(false);
        turn.goes_on = goes_on.then(|| cx.waker());
        drop(turn);
        this.runnable.set(goes_on);
        result
    }
}

/// Whether the quota holds the guest back; if so, the timer wakes it.
fn wait_for_quota(entity: &Entity, throttle: &mut Option<Pin<Box<Sleep>>>, cx: &mut Context<'_>) -> bool {
    loop {
        if let Some(sleep) = throttle {
            if sleep.as_mut().poll(cx).is_pending() {
                return true;
            }
            *throttle = None;
        }
        let Some(until) = entity.account.throttled_until() else { return false };
        // Checked again after the sleep: another process of the container may have spent the new period.
        *throttle = Some(Box::pin(tokio::time::sleep_until(Instant::max(until, Instant::now()).into())));
    }
}
