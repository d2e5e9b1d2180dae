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
use super::backlog::Backlog;
use super::cache::{PodSnapshot, StatusCache, StatusChange};
use super::due::Due;
use super::metrics::StatusMetrics;
use super::patch::{Unkept, Urgency, Write, decide, told};
use crate::ids::{PodRef, PodUid};

/// How often everything is compared; the kubelet's `syncPeriod`.
const RESYNC: Duration = Duration::from_secs(10);
/// How long a change that says little waits for the next.
const COALESCE: Duration = Duration::from_millis(500);
/// How long a pod that is being made waits at most to say so while there are many others.
const SOON_AT_LATEST: Duration = Duration::from_secs(5);
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
    /// When something is to be written of whom; of nobody whose request is under way.
    due: Due,
    requests: JoinSet<(PodUid, Outcome)>,
    backlog: Backlog,
    stopped_at: Option<Instant>,
}

impl std::fmt::Debug for StatusWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StatusWriter").finish_non_exhaustive()
    }
}

/// One pod's writes.
#[derive(Debug, Default)]
struct Slot {
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
    /// What comparing the two sides came to; if they differ, the pod is due. Comparing the same ones again, as is done every
    /// few seconds, could only come to the same.
    compared: Option<Compared>,
}

/// What two sides differ in.
#[derive(Debug)]
struct Compared {
    /// The version of the snapshot.
    version: u64,
    object: Arc<Pod>,
    /// None: they agree.
    write: Option<(Write, Urgency)>,
}

impl Compared {
    fn is_of(&self, snapshot: &PodSnapshot, object: &Arc<Pod>) -> bool {
        self.version == snapshot.version && Arc::ptr_eq(&self.object, object)
    }
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
        let (slots, due, requests) = (HashMap::new(), Due::default(), JoinSet::new());
        let backlog = cache.backlog();
        Self { client, cache, api, metrics, slots, due, requests, backlog, stopped_at: None }
    }

    /// Writes until `stop`, and then for a few seconds what is left to say.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut statuses = self.cache.subscribe();
        let mut objects = self.api.subscribe();
        let mut resync = tokio::time::interval(RESYNC);
        resync.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.count_backlog();
            self.send_due();
            self.count_backlog();
            if let Some(stopped_at) = self.stopped_at {
                let all_said = self.requests.is_empty() && self.due.len() == 0;
                if all_said || Instant::now() >= stopped_at + LAST_WORDS {
                    return;
                }
            }
            let mut wake = self.next_due();
            if let Some(stopped_at) = self.stopped_at {
                wake = wake.min(stopped_at + LAST_WORDS);
            }
            tokio::select! {
                () = stop.cancelled(), if self.stopped_at.is_none() => {
                    self.stopped_at = Some(Instant::now());
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

    fn count_backlog(&self) {
        self.backlog.set(self.due.len() + self.requests.len());
    }

    fn look_at_all(&mut self) {
        for uid in self.cache.uids() {
            self.look(&uid);
        }
        let Self { slots, due, cache, .. } = self;
        slots.retain(|uid, slot| {
            let kept = slot.progress == Progress::Busy || cache.stage(uid).is_some();
            if !kept {
                due.set(uid, None);
            }
            kept
        });
        self.metrics.retain(|uid| self.cache.stage(uid).is_some());
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
            self.due.set(uid, None);
        }
    }

    /// Decides whether and when a pod is written.
    fn look(&mut self, uid: &PodUid) {
        let sides = self.sides(uid);
        if let (Some(slot), Some((snapshot, object))) = (self.slots.get(uid), &sides)
            && slot.compared.as_ref().is_some_and(|compared| compared.is_of(snapshot, object))
        {
            return;
        }
        if let Some((_, object)) = &sides {
            self.metrics.seen(uid, object);
        }
        // Its answer is followed by the next look.
        if self.slots.get(uid).is_some_and(|slot| slot.progress == Progress::Busy) {
            return;
        }
        let compared = sides.map(|(snapshot, object)| self.compare(uid, &snapshot, &object));
        let urgency = compared.as_ref().and_then(|compared| compared.write.as_ref()).map(|(_, urgency)| *urgency);
        let slot = self.slots.entry(uid.clone()).or_default();
        match urgency {
            Some(_) => drop(slot.behind_since.get_or_insert_with(Instant::now)),
            None => slot.behind_since = None,
        }
        if slot.progress != Progress::Idle {
            return;
        }
        slot.compared = compared;
        let now = Instant::now();
        let due = urgency.map(|urgency| match urgency {
            Urgency::Now => now,
            Urgency::Soon => self.due.get(uid).unwrap_or(now + COALESCE),
        });
        self.due.set(uid, due.map(|due| slot.not_before.map_or(due, |earliest| due.max(earliest))));
    }

    /// What this node says of a pod, and what the API server does.
    fn sides(&self, uid: &PodUid) -> Option<(PodSnapshot, Arc<Pod>)> {
        let snapshot = self.cache.get(uid)?;
        let object = self.api.shown(uid, &snapshot.pod)?;
        Some((snapshot, object))
    }

    fn compare(&self, uid: &PodUid, snapshot: &PodSnapshot, object: &Arc<Pod>) -> Compared {
        let write = decide(object, snapshot, self.slots.get(uid).and_then(|slot| slot.unkept.as_ref()));
        Compared { version: snapshot.version, object: object.clone(), write }
    }

    fn next_due(&self) -> Instant {
        let never = Instant::now() + RESYNC;
        if self.requests.len() >= CONCURRENT {
            return never;
        }
        self.due.first().map_or(never, |first| first.min(never))
    }

    fn send_due(&mut self) {
        let now = Instant::now();
        let free = CONCURRENT.saturating_sub(self.requests.len());
        let is_crowd = self.stopped_at.is_none() && self.backlog.is_long();
        for uid in self.due.take(now, free) {
            let compared = self.slots.get_mut(&uid).and_then(|slot| slot.compared.take());
            let Some((snapshot, object)) = self.sides(&uid) else { continue };
            let compared = compared
                .filter(|compared| compared.is_of(&snapshot, &object))
                .unwrap_or_else(|| self.compare(&uid, &snapshot, &object));
            let (Some((_, urgency)), Some(slot)) = (&compared.write, self.slots.get_mut(&uid)) else { continue };
            // In a crowd that starts, most run before it is their turn to say that they are being made.
            let is_being_made = snapshot.status.phase.as_deref() == Some("Pending")
                && slot.behind_since.is_some_and(|since| since.elapsed() < SOON_AT_LATEST);
            if *urgency == Urgency::Soon && is_being_made && is_crowd {
                slot.compared = Some(compared);
                self.due.set(&uid, Some(now + COALESCE));
                continue;
            }
            let Some((write, _)) = compared.write else { continue };
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
        if self.cache.stage(&uid).is_none() {
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
