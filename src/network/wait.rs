//! Wakers of tasks that wait for one condition.
//!
//! In: a waker registered before its condition is checked, and a wake after each change of the condition.
//! Out: no lost wake-ups and nothing left behind by a cancelled wait. Does not know the condition.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

/// Names registrations; never reused, so a stale key can never remove another task's waker.
static NEXT_KEY: AtomicU64 = AtomicU64::new(1);

/// One task's registration with one [`Waiters`].
#[derive(Debug, Default)]
pub(super) struct WaitKey(Option<u64>);

/// The tasks waiting for one condition.
///
/// The condition lives elsewhere, under a lock that both sides take: a waiter registers, then checks under
/// that lock; a changer changes under that lock, then wakes. Whichever takes the lock last sees the other.
#[derive(Default)]
pub(super) struct Waiters {
    waiting: AtomicUsize,
    list: Mutex<List>,
}

/// Almost always one task waits, so the first waker needs no allocation.
#[derive(Default)]
struct List {
    first: Option<(u64, Waker)>,
    more: Vec<(u64, Waker)>,
}

impl List {
    fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.more.len()
    }
}

impl Waiters {
    /// Registers or refreshes a task. Check the condition after it, not before.
    pub(super) fn register(&self, key: &mut WaitKey, waker: &Waker) {
        let mut list = self.list.lock();
        if let Some(id) = key.0 {
            let List { first, more } = &mut *list;
            if let Some((_, old)) = first.iter_mut().chain(more.iter_mut()).find(|(other, _)| *other == id) {
                old.clone_from(waker);
                return;
            }
        }
        let id = NEXT_KEY.fetch_add(1, Ordering::Relaxed);
        let entry = (id, waker.clone());
        if list.first.is_none() {
            list.first = Some(entry);
        } else {
            list.more.push(entry);
        }
        key.0 = Some(id);
        self.waiting.store(list.len(), Ordering::SeqCst);
    }

    /// Takes a registration back.
    pub(super) fn forget(&self, key: &mut WaitKey) {
        let Some(id) = key.0.take() else { return };
        let mut list = self.list.lock();
        if list.first.as_ref().is_some_and(|(other, _)| *other == id) {
            list.first = None;
        } else {
            list.more.retain(|(other, _)| *other != id);
        }
        self.waiting.store(list.len(), Ordering::SeqCst);
    }

    /// Wakes every waiting task.
    pub(super) fn wake(&self) {
        if self.waiting.load(Ordering::SeqCst) == 0 {
            return;
        }
        let List { first, more } = {
            let mut list = self.list.lock();
            self.waiting.store(0, Ordering::SeqCst);
            std::mem::take(&mut *list)
        };
        for (_, waker) in first.into_iter().chain(more) {
            waker.wake();
        }
    }

    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }
}

/// Waits until `ready` holds, looking again after each wake of any of `sources`. Cancel-safe.
pub(super) fn until<const N: usize, F: FnMut() -> bool>(sources: [&Waiters; N], ready: F) -> Until<'_, N, F> {
    Until { sources, keys: std::array::from_fn(|_| WaitKey::default()), ready }
}

/// The future of [`until`].
pub(super) struct Until<'a, const N: usize, F> {
    sources: [&'a Waiters; N],
    keys: [WaitKey; N],
    ready: F,
}

impl<const N: usize, F: FnMut() -> bool + Unpin> Future for Until<'_, N, F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        if (this.ready)() {
            return Poll::Ready(());
        }
        for (source, key) in this.sources.iter().zip(&mut this.keys) {
            source.register(key, cx.waker());
        }
        if (this.ready)() { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl<const N: usize, F> Drop for Until<'_, N, F> {
    fn drop(&mut self) {
        for (source, key) in self.sources.iter().zip(&mut self.keys) {
            source.forget(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    #[tokio::test]
    async fn a_cancelled_wait_leaves_nothing_behind() {
        let waiters = Waiters::default();
        for _ in 0..3 {
            let mut one = Box::pin(until([&waiters], || false));
            let mut two = Box::pin(until([&waiters], || false));
            assert!(futures::poll!(&mut one).is_pending());
            assert!(futures::poll!(&mut two).is_pending());
            assert_eq!(waiters.waiting(), 2);
        }
        assert_eq!(waiters.waiting(), 0);
    }

    #[tokio::test]
    async fn every_waiting_task_is_woken() {
        let waiters = Waiters::default();
        let flag = AtomicBool::new(false);
        let ready = || flag.load(Ordering::SeqCst);
        let mut first = Box::pin(until([&waiters], ready));
        let mut second = Box::pin(until([&waiters], ready));
        assert!(futures::poll!(&mut first).is_pending());
        assert!(futures::poll!(&mut second).is_pending());
        flag.store(true, Ordering::SeqCst);
        waiters.wake();
        tokio::join!(first, second);
    }
}
