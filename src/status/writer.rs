//! Makes the API server say what the status cache says.
//!
//! In: changes of the cache and of what the API server has. Out: patches of `pods/status`, and the deletion of pods that
//! are over. One request a pod at a time, made of the newest status there is then: nothing older ever follows something
//! newer. What fails is tried again with back-off, for as long as it takes; what nobody spoke of is compared every ten
//! seconds, as the kubelet does. Decides nothing (`patch`).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::{Map, Value};
use tokio::sync::broadcast::error::RecvError;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::api::{ApiChange, ApiPods};
use super::cache::{PodSnapshot, StatusCache, StatusChange};
use super::metrics::StatusMetrics;
use super::patch::{Unkept, Urgency, Write, decide, told};
use crate::ids::{PodRef, PodUid};

/// How often everything is compared; the kubelet's `syncPeriod`.
const RESYNC: Duration = Duration::from_secs(10);
/// How long a change that says little waits for the next.
const COALESCE: Duration = Duration::from_millis(500);
/// Requests at once: enough to start a thousand pods, few enough for the limits of the client (`kubeAPIBurst`).
const CONCURRENT: usize = 16;
/// A request that takes longer is given up and made again.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Waits after a failure: doubled from the first to the last.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(10);
/// What is still to be said when the agent stops gets this long.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// The writer.
pub struct StatusWriter {
    client: kube::Client,
    cache: StatusCache,
    api: ApiPods,
    metrics: StatusMetrics,
    slots: HashMap<PodUid, Slot>,
    requests: JoinSet<(PodUid, Outcome)>,
}

impl std::fmt::Debug for StatusWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StatusWriter").finish_non_exhaustive()
    }
}

/// One pod's writes.
#[derive(Debug, Default)]
struct Slot {
    /// When something is to be written.
    due: Option<Instant>,
    /// Since when the API server does not say what is to be said.
    behind_since: Option<Instant>,
    /// Not before this, after a failure.
    not_before: Option<Instant>,
    failures: u32,
    progress: Progress,
    /// What the newest request tells, while it is under way.
    told: Option<Map<String, Value>>,
    /// What of that the API server did not take over.
    unkept: Option<Unkept>,
    /// Between which two there was nothing to say: the version of the snapshot, the object. Comparing them again, as is
    /// done every few seconds, could only find the same.
    agreed: Option<(u64, Arc<Pod>)>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Progress {
    #[default]
    Idle,
    /// A request is under way.
    Busy,
    /// Its deletion was taken; word of its end follows, later if it has finalizers.
    Deleted,
}

#[derive(Debug)]
enum Outcome {
    Patched(Box<Pod>),
    Deleted,
    /// It is gone, or another pod has its name: the watch will say so.
    Gone,
    Failed(kube::Error),
    TimedOut,
}

impl StatusWriter {
    /// A writer of what `cache` says; `api` is fed by the watch of the same pods.
    #[must_use]
    pub fn new(client: kube::Client, cache: StatusCache, api: ApiPods, metrics: StatusMetrics) -> Self {
        Self { client, cache, api, metrics, slots: HashMap::new(), requests: JoinSet::new() }
    }

    /// Writes until `stop`, and then for a few seconds what is left to say.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut statuses = self.cache.subscribe();
        let mut objects = self.api.subscribe();
        let mut resync = tokio::time::interval(RESYNC);
        resync.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut stopped_at = None;
        loop {
            self.send_due();
            if let Some(stopped_at) = stopped_at {
                let unsaid = !self.requests.is_empty() || self.slots.values().any(|slot| slot.due.is_some());
                if !unsaid || Instant::now() >= stopped_at + LAST_WORDS {
                    return;
                }
            }
            let mut wake = self.next_due();
            if let Some(stopped_at) = stopped_at {
                wake = wake.min(stopped_at + LAST_WORDS);
            }
            tokio::select! {
                () = stop.cancelled(), if stopped_at.is_none() => {
                    stopped_at = Some(Instant::now());
                    self.look_at_all();
                }
                // Cancel safe: a change is received or stays in the queue.
                change = statuses.recv() => match change {
                    Ok(StatusChange::Changed(uid, _)) => self.look(&uid),
                    Ok(StatusChange::Removed(uid, _)) => self.forget(&uid),
                    Err(RecvError::Lagged(_)) => self.look_at_all(),
                    Err(RecvError::Closed) => return,
                },
                // Cancel safe: a change is received or stays in the queue.
                change = objects.recv() => match change {
                    Ok(ApiChange { name, is_mirror: true, .. }) => self.look_at_name(&name),
                    Ok(ApiChange { uid, .. }) => self.look_if_known(&uid),
                    Err(RecvError::Lagged(_)) => self.look_at_all(),
                    Err(RecvError::Closed) => return,
                },
                // Cancel safe: a result is taken or stays in the set.
                Some(done) = self.requests.join_next() => self.answered(done),
                _ = resync.tick() => self.look_at_all(),
                // Cancel safe: a timer.
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    fn look_at_all(&mut self) {
        for uid in self.cache.uids() {
            self.look(&uid);
        }
        self.slots.retain(|uid, slot| slot.progress == Progress::Busy || self.cache.get(uid).is_some());
        self.metrics.retain(|uid| self.cache.get(uid).is_some());
    }

    /// Of a pod that this node does not know there is nothing to say.
    fn look_if_known(&mut self, uid: &PodUid) {
        if self.cache.stage(uid).is_some() {
            self.look(uid);
        }
    }

    fn look_at_name(&mut self, name: &PodRef) {
        for uid in self.cache.named(name) {
            self.look(&uid);
        }
    }

    fn forget(&mut self, uid: &PodUid) {
        self.metrics.forget(uid);
        // A request under way keeps its slot until it is answered.
        if self.slots.get(uid).is_some_and(|slot| slot.progress != Progress::Busy) {
            self.slots.remove(uid);
        }
    }

    /// Decides whether and when a pod is written.
    fn look(&mut self, uid: &PodUid) {
        let sides = self.sides(uid);
        let agreed = |slot: &Slot| match (&slot.agreed, &sides) {
            (Some((version, agreed)), Some((snapshot, object))) => {
                *version == snapshot.version && Arc::ptr_eq(agreed, object)
            }
            _ => false,
        };
        if self.slots.get(uid).is_some_and(agreed) {
            return;
        }
        if let Some((_, object)) = &sides {
            self.metrics.seen(uid, object);
        }
        let decided = sides.as_ref().and_then(|(snapshot, object)| self.decide(uid, snapshot, object));
        let slot = self.slots.entry(uid.clone()).or_default();
        match &decided {
            Some(_) => drop(slot.behind_since.get_or_insert_with(Instant::now)),
            // The watch may tell of a write before its own answer does, which is what counts it.
            None if slot.progress == Progress::Busy => {}
            None => slot.behind_since = None,
        }
        if slot.progress != Progress::Idle {
            return;
        }
        slot.agreed = if decided.is_none() { sides.map(|(snapshot, object)| (snapshot.version, object)) } else { None };
        let urgency = decided.map(|(_, urgency)| urgency);
        let now = Instant::now();
        slot.due = urgency.map(|urgency| match urgency {
            Urgency::Now => now,
            Urgency::Soon => slot.due.unwrap_or(now + COALESCE),
        });
        slot.due = slot.due.map(|due| slot.not_before.map_or(due, |earliest| due.max(earliest)));
    }

    /// What this node says of a pod, and what the API server does.
    fn sides(&self, uid: &PodUid) -> Option<(PodSnapshot, Arc<Pod>)> {
        let snapshot = self.cache.get(uid)?;
        let object = self.api.shown(uid, &snapshot.pod)?;
        Some((snapshot, object))
    }

    fn decide(&self, uid: &PodUid, snapshot: &PodSnapshot, object: &Pod) -> Option<(Write, Urgency)> {
        decide(object, snapshot, self.slots.get(uid).and_then(|slot| slot.unkept.as_ref()))
    }

    fn next_due(&self) -> Instant {
        let never = Instant::now() + RESYNC;
        if self.requests.len() >= CONCURRENT {
            return never;
        }
        self.slots.values().filter_map(|slot| slot.due).fold(never, Instant::min)
    }

    fn send_due(&mut self) {
        let now = Instant::now();
        let due = |slot: &Slot| slot.progress == Progress::Idle && slot.due.is_some_and(|due| due <= now);
        let free = CONCURRENT.saturating_sub(self.requests.len());
        let ready: Vec<PodUid> =
            self.slots.iter().filter(|(_, slot)| due(slot)).take(free).map(|(uid, _)| uid.clone()).collect();
        for uid in ready {
            let sides = self.sides(&uid);
            let decided = sides.as_ref().and_then(|(snapshot, object)| self.decide(&uid, snapshot, object));
            let Some(slot) = self.slots.get_mut(&uid) else { continue };
            slot.due = None;
            let (Some((snapshot, object)), Some((write, _))) = (sides, decided) else { continue };
            slot.progress = Progress::Busy;
            slot.told = Some(told(&object, &snapshot));
            let (name, object_uid) = (PodRef::of(&object), object.metadata.uid.clone());
            let pods: Api<Pod> = Api::namespaced(self.client.clone(), &name.namespace);
            self.requests.spawn(async move {
                let request = send(&pods, &name.name, write, object_uid);
                let outcome = tokio::time::timeout(REQUEST_TIMEOUT, request).await.unwrap_or(Outcome::TimedOut);
                (uid, outcome)
            });
        }
    }

    fn answered(&mut self, done: Result<(PodUid, Outcome), JoinError>) {
        let (uid, outcome) = match done {
            Ok(answer) => answer,
            Err(error) => {
                // Nothing says whose it was: all may go on, the next comparison finds what is missing.
                tracing::error!(err = %error, "A status request panicked");
                self.slots.values_mut().for_each(|slot| slot.progress = Progress::Idle);
                return;
            }
        };
        let slot = self.slots.entry(uid.clone()).or_default();
        slot.progress = Progress::Idle;
        match outcome {
            Outcome::Patched(pod) => {
                (slot.failures, slot.not_before) = (0, None);
                slot.unkept = slot.told.take().and_then(|told| Unkept::of(told, &pod));
                if let Some(since) = slot.behind_since.take() {
                    self.metrics.written(since.elapsed());
                }
                if let Some(snapshot) = self.cache.get(&uid) {
                    self.metrics.answered(&uid, &pod, &snapshot.status, Timestamp::now());
                }
                self.api.answered(*pod);
            }
            Outcome::Deleted => {
                tracing::debug!(podUID = %uid, "Pod fully terminated and removed from the API server");
                slot.progress = Progress::Deleted;
            }
            Outcome::Gone => slot.not_before = Some(Instant::now() + RESYNC),
            Outcome::Failed(error) => {
                slot.retry_later();
                // Once at this level; an API server that is away is said by others.
                if slot.failures == 1 {
                    tracing::warn!(podUID = %uid, err = %error, "Failed to update status for pod");
                } else {
                    tracing::debug!(podUID = %uid, err = %error, "Failed to update status for pod");
                }
            }
            Outcome::TimedOut => slot.retry_later(),
        }
        if self.cache.get(&uid).is_none() {
            self.slots.remove(&uid);
            return;
        }
        self.look(&uid);
    }
}

impl Slot {
    fn retry_later(&mut self) {
        let delay = FIRST_RETRY.saturating_mul(2u32.saturating_pow(self.failures)).min(LAST_RETRY);
        self.failures = self.failures.saturating_add(1);
        self.not_before = Some(Instant::now() + delay);
    }
}

async fn send(pods: &Api<Pod>, name: &str, write: Write, uid: Option<String>) -> Outcome {
    let result = match write {
        Write::Patch(patch) => {
            let patched = pods.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await;
            patched.map(|pod| Outcome::Patched(Box::new(pod)))
        }
        Write::Delete => {
            let only = Preconditions { uid, resource_version: None };
            let deleted = pods.delete(name, &DeleteParams::default().grace_period(0).preconditions(only)).await;
            deleted.map(|_| Outcome::Deleted)
        }
    };
    match result {
        Ok(outcome) => outcome,
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Outcome::Gone,
        Err(error) => Outcome::Failed(error),
    }
}

#[cfg(test)]
mod tests;
