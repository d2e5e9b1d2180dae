//! One object of the API server: a list, then a watch, and again when that breaks.
//!
//! In: a name. Out: a [`Cell`] with the last answer. An error changes nothing once there was an answer: what pods have
//! stays usable for as long as the API server is away. Ends by itself when the object is immutable.

use std::fmt::Debug;
use std::time::Duration;

use futures::StreamExt;
use kube::Api;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event, watcher};
use kube::runtime::{WatchStreamExt, watcher::Config};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Known;
use super::errors::watch_words;
use crate::objects::store::Object;

/// The first retry is soon: right after a pod came, the server's authorizer may not know of it yet.
const FIRST_RETRY: Duration = Duration::from_millis(5);
/// client-go's reflector waits at most this long, too.
const LAST_RETRY: Duration = Duration::from_secs(30);
/// A read that takes longer tells nothing.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(5);
/// A watch that was quiet for this long begins with the first retry again.
const QUIET: Duration = Duration::from_secs(120);

/// The last answer, and who waits for the first.
#[derive(Debug)]
pub(super) struct Cell {
    known: watch::Sender<Known>,
}

impl Default for Cell {
    fn default() -> Self {
        Self { known: watch::Sender::new(Known::NotYet { reason: None }) }
    }
}

impl Cell {
    pub(super) fn known(&self) -> Known {
        self.known.borrow().clone()
    }

    /// Waits for an answer.
    pub(super) async fn answered(&self) {
        // The sender is in `self`: it cannot be closed.
        let _ = self.known.subscribe().wait_for(Known::is_answer).await;
    }

    /// Takes an answer; returns whether it is news.
    fn answer(&self, known: Known) -> bool {
        self.known.send_if_modified(|now| {
            let news = *now != known;
            *now = known;
            news
        })
    }

    /// Takes the reason why there is none; an answer stays.
    fn refused(&self, why: String) {
        self.known.send_if_modified(|now| {
            if let Known::NotYet { reason } = now {
                *reason = Some(why);
            }
            false
        });
    }
}

/// Keeps `cell` fresh and calls `tell` after each change. Endless, unless the object is immutable.
pub(super) async fn watch_one<K>(
    api: Api<K>,
    name: String,
    cell: std::sync::Arc<Cell>,
    wrap: impl Fn(K) -> Object,
    tell: impl Fn(),
) where
    K: kube::Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    // From the server's cache, as the kubelet's reflectors: a list of the newest waits until that cache is known to be new,
    // which the server asks etcd for every 100 ms, and each pod with an object of its own would wait for it.
    let config = Config::default().fields(&format!("metadata.name={name}")).any_semantic();
    // A page of that cache there is not: asked for one, the client asks for the newest.
    let config = Config { page_size: None, ..config };
    let mut events = std::pin::pin!(watcher(api.clone(), config).backoff(Retry::default()));
    let mut listed = Known::Absent;
    // The stream never ends.
    while let Some(event) = events.next().await {
        let answer = match event {
            Ok(Event::Init) => {
                listed = Known::Absent;
                continue;
            }
            Ok(Event::InitApply(object)) => {
                listed = Known::Present(wrap(object));
                continue;
            }
            Ok(Event::InitDone) => match std::mem::replace(&mut listed, Known::Absent) {
                Known::Present(object) => Known::Present(object),
                // Made a moment ago, with the pod that wants it, it may be in no cache yet: nobody is told that there is
                // none before etcd says so.
                _ => confirm_absence(&api, &name).await.map_or(Known::Absent, |object| Known::Present(wrap(object))),
            },
            Ok(Event::Apply(object)) => Known::Present(wrap(object)),
            Ok(Event::Delete(_)) => Known::Absent,
            Err(error) => {
                note_failure(&name, &error);
                cell.refused(watch_words(&error));
                continue;
            }
        };
        let done = matches!(&answer, Known::Present(object) if object.is_immutable());
        if cell.answer(answer) {
            tell();
        }
        if done {
            tracing::debug!(name, "Stopped watching an object: it is immutable");
            return;
        }
    }
}

/// Reads an object that a cache does not have. When that fails, the cache's word stands until the watch says more.
async fn confirm_absence<K>(api: &Api<K>, name: &str) -> Option<K>
where
    K: Clone + DeserializeOwned + Debug,
{
    tokio::time::timeout(CONFIRM_TIMEOUT, api.get_opt(name)).await.ok()?.ok()?
}

/// A watch that ends after its time is nothing; what the server refuses is said once an attempt.
fn note_failure(name: &str, error: &watcher::Error) {
    tracing::debug!(name, err = watch_words(error), "Could not watch an object");
}

/// 5 ms, doubled up to 30 s, each with up to half as much again, so that many watches do not return as one.
#[derive(Debug)]
pub(super) struct Retry {
    next: Duration,
    longest: Duration,
    last: Option<Instant>,
}

impl Default for Retry {
    fn default() -> Self {
        Self::up_to(LAST_RETRY)
    }
}

impl Retry {
    /// With another longest time.
    pub(super) fn up_to(longest: Duration) -> Self {
        Self { next: FIRST_RETRY, longest, last: None }
    }
}

impl Iterator for Retry {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        if self.last.is_some_and(|last| last.elapsed() > QUIET) {
            self.next = FIRST_RETRY;
        }
        self.last = Some(Instant::now());
        let delay = self.next;
        self.next = self.next.saturating_mul(2).min(self.longest);
        Some(delay.mul_f64(1.0 + rand::random::<f64>() / 2.0))
    }
}

impl Backoff for Retry {
    /// Nothing: the stream says "began again" before every try, which is no success yet.
    fn reset(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::Arc;

    fn config_map(value: &str) -> Known {
        let object = json!({"metadata": {"name": "c"}, "data": {"k": value}});
        Known::Present(Object::ConfigMap(Arc::new(serde_json::from_value(object).unwrap())))
    }

    #[test]
    fn an_answer_stays_when_the_server_refuses_later() {
        let cell = Cell::default();
        cell.refused("forbidden".to_owned());
        assert_eq!(cell.known(), Known::NotYet { reason: Some("forbidden".to_owned()) });
        assert!(cell.answer(config_map("1")));
        cell.refused("away".to_owned());
        assert_eq!(cell.known(), config_map("1"));
        assert!(!cell.answer(config_map("1")), "the same again is no news");
        assert!(cell.answer(Known::Absent));
    }

    #[tokio::test(start_paused = true)]
    async fn retries_slow_down_and_are_quick_again_after_a_quiet_time() {
        let mut retry = Retry::default();
        let within = |delay: Option<Duration>, millis: u64| {
            let delay = delay.unwrap();
            let base = Duration::from_millis(millis);
            assert!(delay >= base && delay <= base.mul_f64(1.5), "{delay:?} of {base:?}");
        };
        for millis in [5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10_240, 20_480, 30_000, 30_000] {
            within(retry.next(), millis);
            retry.reset();
        }
        tokio::time::advance(QUIET + Duration::from_secs(1)).await;
        within(retry.next(), 5);
    }
}
