//! One pull per image and set of credentials, however many pods ask for it.
//!
//! In: a key and a way to start. Out: the same result for everybody. The pull lives in its callers: it goes
//! on while one of them waits, and is dropped with the last. Another set of credentials is another flight,
//! so that nobody gets an image by somebody else's secret.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared, WeakShared};
use parking_lot::Mutex;

use super::credential::Credential;
use super::error::PullError;
use super::reference::ImageRef;
use super::types::{Image, Progress, PullProgress};

type Outcome = Result<Image, Arc<PullError>>;
type Listeners = Arc<Mutex<Vec<Progress>>>;

/// What makes two pulls the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FlightKey {
    /// The name.
    pub image: ImageRef,
    /// The caller's credentials, in order.
    pub credentials: Vec<Credential>,
}

/// The pulls under way.
#[derive(Default)]
pub struct Flights {
    under_way: Mutex<HashMap<FlightKey, Flight>>,
}

struct Flight {
    future: WeakShared<BoxFuture<'static, Outcome>>,
    listeners: Listeners,
}

impl std::fmt::Debug for Flights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Flights").field("under_way", &self.under_way.lock().len()).finish()
    }
}

impl Flights {
    /// Waits for the pull of `key`, which is started with `start` if nobody has.
    ///
    /// # Errors
    /// What the pull fails with, shared.
    pub async fn join<F>(&self, key: FlightKey, progress: Progress, start: impl FnOnce(Progress) -> F) -> Outcome
    where
        F: Future<Output = Result<Image, PullError>> + Send + 'static,
    {
        let future = self.board(key, progress, start);
        // Cancel-safe: the flight is in the map only weakly, other callers keep it alive or nobody does.
        future.await
    }

    fn board<F>(
        &self,
        key: FlightKey,
        progress: Progress,
        start: impl FnOnce(Progress) -> F,
    ) -> Shared<BoxFuture<'static, Outcome>>
    where
        F: Future<Output = Result<Image, PullError>> + Send + 'static,
    {
        let mut under_way = self.under_way.lock();
        // A finished or abandoned flight is nobody's: this bounds the map by the callers there are.
        under_way.retain(|_, flight| flight.future.upgrade().is_some_and(|future| future.peek().is_none()));
        if let Some(flight) = under_way.get(&key)
            && let Some(future) = flight.future.upgrade()
        {
            flight.listeners.lock().push(progress);
            return future;
        }
        let listeners: Listeners = Arc::new(Mutex::new(vec![progress]));
        let telling = Arc::clone(&listeners);
        let tell: Progress = Arc::new(move |step: PullProgress| {
            // Copied out: a listener may take its time, and a new one must not wait for it.
            let listeners: Vec<Progress> = telling.lock().clone();
            for listener in listeners {
                listener(step.clone());
            }
        });
        let future = start(tell).map(|result| result.map_err(Arc::new)).boxed().shared();
        if let Some(weak) = future.downgrade() {
            under_way.insert(key, Flight { future: weak, listeners });
        }
        future
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::image::types::no_progress;

    fn key(name: &str, user: &str) -> FlightKey {
        FlightKey { image: name.parse().unwrap(), credentials: vec![Credential::basic("a.io", user, "p")] }
    }

    async fn failing(started: Arc<AtomicUsize>) -> Result<Image, PullError> {
        started.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_secs(1)).await;
        Err(PullError::NeverPull { image: "a".to_owned() })
    }

    #[tokio::test(start_paused = true)]
    async fn many_callers_share_one_pull_and_its_result() {
        let flights = Flights::default();
        let started = Arc::new(AtomicUsize::new(0));
        let calls = (0..50).map(|_| flights.join(key("a", "me"), no_progress(), |_| failing(Arc::clone(&started))));
        let results = futures::future::join_all(calls).await;
        assert!(results.iter().all(Result::is_err));
        assert_eq!(started.load(Ordering::SeqCst), 1);
        let _ = flights.join(key("a", "me"), no_progress(), |_| failing(Arc::clone(&started))).await;
        assert_eq!(started.load(Ordering::SeqCst), 2, "a finished flight is not boarded");
    }

    #[tokio::test(start_paused = true)]
    async fn other_credentials_are_another_pull() {
        let flights = Flights::default();
        let started = Arc::new(AtomicUsize::new(0));
        let mine = flights.join(key("a", "me"), no_progress(), |_| failing(Arc::clone(&started)));
        let yours = flights.join(key("a", "you"), no_progress(), |_| failing(Arc::clone(&started)));
        let _ = futures::future::join(mine, yours).await;
        assert_eq!(started.load(Ordering::SeqCst), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pull_ends_with_its_last_caller_and_not_before() {
        let flights = Flights::default();
        let started = Arc::new(AtomicUsize::new(0));
        let first = flights.join(key("a", "me"), no_progress(), |_| failing(Arc::clone(&started)));
        let second = flights.join(key("a", "me"), no_progress(), |_| failing(Arc::clone(&started)));
        let first = tokio::time::timeout(Duration::from_millis(100), first);
        let (first, second) = futures::future::join(first, second).await;
        assert!(first.is_err(), "the first gave up");
        assert!(second.is_err());
        assert_eq!(started.load(Ordering::SeqCst), 1, "the second kept the same pull going");
    }
}
