//! The cache and its subscribers.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use parking_lot::RwLock;
use tokio::sync::broadcast;

use super::backlog::Backlog;
use super::transition::{IllegalTransition, check};
use crate::ids::{PodRef, PodUid};
use crate::pod::status::PodPhase;

/// Changes a subscriber may fall behind before it has to look at everything again: a status is small and a
/// thousand pods starting make a few thousand of them.
const BACKLOG: usize = 4096;

/// How much of a pod there still is on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Its containers may run: whatever its status says, the API server hears of no final phase.
    Alive,
    /// None runs and none will.
    Stopped,
    /// Its volumes and files are gone as well: a deletion may be completed.
    Finished,
}

/// A pod with its newest status.
#[derive(Debug, Clone)]
pub struct PodSnapshot {
    /// The pod; its own `status` field is not kept up to date.
    pub pod: Arc<Pod>,
    /// Its status.
    pub status: Arc<PodStatus>,
    /// How much of it there still is.
    pub stage: Stage,
    /// Grows by one with each change of this pod.
    pub version: u64,
}

impl PodSnapshot {
    /// The pod as the API would show it.
    #[must_use]
    pub fn to_pod(&self) -> Pod {
        Pod { status: Some((*self.status).clone()), ..(*self.pod).clone() }
    }
}

/// Word of a change.
#[derive(Debug, Clone)]
pub enum StatusChange {
    /// A pod is new or its status changed.
    Changed(PodUid, PodSnapshot),
    /// A pod is gone; this was its newest object.
    Removed(PodUid, Arc<Pod>),
}

/// The statuses of all pods. Cheap to clone.
#[derive(Debug, Clone)]
pub struct StatusCache {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    pods: RwLock<Pods>,
    changes: broadcast::Sender<StatusChange>,
    backlog: Backlog,
}

/// The pods, found by what they are asked for: with ten thousand of them nothing may look at each.
#[derive(Debug, Default)]
struct Pods {
    by_uid: HashMap<PodUid, PodSnapshot>,
    /// One may be ending while its successor waits.
    by_name: HashMap<PodRef, Vec<PodUid>>,
    /// Those that are not [`Stage::Alive`].
    over: HashSet<PodUid>,
}

impl Pods {
    fn insert(&mut self, uid: &PodUid, snapshot: PodSnapshot) {
        if snapshot.stage == Stage::Alive {
            self.over.remove(uid);
        } else if !self.over.contains(uid) {
            self.over.insert(uid.clone());
        }
        let name = PodRef::of(&snapshot.pod);
        if self.by_uid.insert(uid.clone(), snapshot).is_none() {
            self.by_name.entry(name).or_default().push(uid.clone());
        }
    }

    fn remove(&mut self, uid: &PodUid) -> Option<PodSnapshot> {
        let last = self.by_uid.remove(uid)?;
        self.over.remove(uid);
        if let Entry::Occupied(mut named) = self.by_name.entry(PodRef::of(&last.pod)) {
            named.get_mut().retain(|other| other != uid);
            if named.get().is_empty() {
                named.remove();
            }
        }
        Some(last)
    }

    fn named(&self, name: &PodRef) -> &[PodUid] {
        self.by_name.get(name).map_or(&[], Vec::as_slice)
    }
}

impl Default for StatusCache {
    fn default() -> Self {
        let (changes, _) = broadcast::channel(BACKLOG);
        Self { inner: Arc::new(Inner { pods: RwLock::default(), changes, backlog: Backlog::default() }) }
    }
}

impl StatusCache {
    /// Takes over the status of a pod that is alive.
    ///
    /// # Errors
    /// As [`Self::report`].
    pub fn set(&self, uid: &PodUid, pod: &Arc<Pod>, status: PodStatus) -> Result<(), IllegalTransition> {
        self.report(uid, pod, status, Stage::Alive)
    }

    /// Takes a status over. An equal one changes nothing.
    ///
    /// # Errors
    /// [`IllegalTransition`] when a container that may not restart left its end again; nothing is changed then.
    pub fn report(
        &self,
        uid: &PodUid,
        pod: &Arc<Pod>,
        status: PodStatus,
        stage: Stage,
    ) -> Result<(), IllegalTransition> {
        let mut pods = self.inner.pods.write();
        let old = pods.by_uid.get(uid);
        if let Some(old) = old {
            if *old.status == status && Arc::ptr_eq(&old.pod, pod) && old.stage == stage {
                return Ok(());
            }
            check(pod.spec.as_ref(), &old.status, &status)?;
        }
        let version = old.map_or(1, |old| old.version + 1);
        let snapshot = PodSnapshot { pod: pod.clone(), status: Arc::new(status), stage, version };
        pods.insert(uid, snapshot.clone());
        // Sent under the lock, so that subscribers see changes in the order of their versions.
        let _ = self.inner.changes.send(StatusChange::Changed(uid.clone(), snapshot));
        Ok(())
    }

    /// What of it is still to be written to the API server, from now on.
    #[must_use]
    pub fn backlog(&self) -> Backlog {
        self.inner.backlog.clone()
    }

    /// Forgets a pod.
    pub fn remove(&self, uid: &PodUid) {
        let mut pods = self.inner.pods.write();
        if let Some(last) = pods.remove(uid) {
            let _ = self.inner.changes.send(StatusChange::Removed(uid.clone(), last.pod));
        }
    }

    /// One pod.
    #[must_use]
    pub fn get(&self, uid: &PodUid) -> Option<PodSnapshot> {
        self.inner.pods.read().by_uid.get(uid).cloned()
    }

    /// How much there still is of one pod.
    #[must_use]
    pub fn stage(&self, uid: &PodUid) -> Option<Stage> {
        self.inner.pods.read().by_uid.get(uid).map(|snapshot| snapshot.stage)
    }

    /// Those of `pods` that are alive or not known.
    pub fn not_over<'a, T>(&self, pods: impl Iterator<Item = (&'a PodUid, T)>) -> Vec<T> {
        let over = &self.inner.pods.read().over;
        pods.filter(|(uid, _)| !over.contains(*uid)).map(|(_, pod)| pod).collect()
    }

    /// All UIDs.
    #[must_use]
    pub fn uids(&self) -> Vec<PodUid> {
        self.inner.pods.read().by_uid.keys().cloned().collect()
    }

    /// UIDs of the pods of one name: one may be ending while its successor waits.
    #[must_use]
    pub fn named(&self, name: &PodRef) -> Vec<PodUid> {
        self.inner.pods.read().named(name).to_vec()
    }

    /// All pods, by namespace and name.
    #[must_use]
    pub fn list(&self) -> Vec<PodSnapshot> {
        let mut all: Vec<_> = self.inner.pods.read().by_uid.values().cloned().collect();
        let key = |snapshot: &PodSnapshot| {
            let meta = &snapshot.pod.metadata;
            (meta.namespace.clone(), meta.name.clone(), meta.uid.clone())
        };
        all.sort_by_cached_key(key);
        all
    }

    /// Those that `wanted` holds for, in no order.
    #[must_use]
    pub fn matching(&self, wanted: impl Fn(&PodSnapshot) -> bool) -> Vec<PodSnapshot> {
        self.inner.pods.read().by_uid.values().filter(|snapshot| wanted(snapshot)).cloned().collect()
    }

    /// The pod of this name. Of two (one ending, one waiting to replace it) the one that is not over.
    #[must_use]
    pub fn find(&self, namespace: &str, name: &str) -> Option<PodSnapshot> {
        let name = PodRef { namespace: namespace.to_owned(), name: name.to_owned() };
        let pods = self.inner.pods.read();
        let named = pods.named(&name).iter().filter_map(|uid| pods.by_uid.get(uid));
        named.min_by_key(|snapshot| PodPhase::is_over(&snapshot.status)).cloned()
    }

    /// Word of each change from now on. After `Lagged`, use [`Self::list`].
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<StatusChange> {
        self.inner.changes.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str) -> Arc<Pod> {
        let json = serde_json::json!({"metadata": {"name": name, "namespace": "ns"},
            "spec": {"restartPolicy": "Never", "containers": [{"name": "a"}]}});
        Arc::new(serde_json::from_value(json).unwrap())
    }

    fn phase(phase: &str) -> PodStatus {
        PodStatus { phase: Some(phase.to_owned()), ..PodStatus::default() }
    }

    #[test]
    fn changes_are_kept_counted_and_told_once() {
        let cache = StatusCache::default();
        let mut changes = cache.subscribe();
        let (uid, web) = (PodUid::new("u1").unwrap(), pod("web"));
        cache.set(&uid, &web, phase("Pending")).unwrap();
        cache.set(&uid, &web, phase("Pending")).unwrap();
        cache.set(&uid, &web, phase("Running")).unwrap();
        let snapshot = cache.find("ns", "web").unwrap();
        assert_eq!((snapshot.version, snapshot.status.phase.as_deref()), (2, Some("Running")));
        assert_eq!(snapshot.to_pod().status.unwrap().phase.as_deref(), Some("Running"));
        cache.remove(&uid);
        cache.remove(&uid);
        let mut told = Vec::new();
        while let Ok(change) = changes.try_recv() {
            told.push(match change {
                StatusChange::Changed(_, snapshot) => snapshot.version,
                StatusChange::Removed(..) => 0,
            });
        }
        assert_eq!(told, [1, 2, 0]);
        assert!(cache.get(&uid).is_none() && cache.list().is_empty());
    }

    #[test]
    fn of_two_pods_of_one_name_the_living_one_is_found() {
        let cache = StatusCache::default();
        cache.set(&PodUid::new("old").unwrap(), &pod("web"), phase("Failed")).unwrap();
        cache.set(&PodUid::new("new").unwrap(), &pod("web"), phase("Pending")).unwrap();
        assert_eq!(cache.find("ns", "web").unwrap().status.phase.as_deref(), Some("Pending"));
        assert_eq!(cache.list().len(), 2);
        let name = PodRef::of(&pod("web"));
        assert_eq!(cache.named(&name).len(), 2);
        cache.remove(&PodUid::new("new").unwrap());
        assert_eq!(cache.find("ns", "web").unwrap().status.phase.as_deref(), Some("Failed"));
        cache.remove(&PodUid::new("old").unwrap());
        assert!(cache.find("ns", "web").is_none() && cache.named(&name).is_empty());
    }

    #[test]
    fn a_pod_is_over_from_the_stage_that_says_so() {
        let cache = StatusCache::default();
        let (uid, web, unknown) = (PodUid::new("u1").unwrap(), pod("web"), PodUid::new("u2").unwrap());
        let living = |cache: &StatusCache| cache.not_over([(&uid, 1), (&unknown, 2)].into_iter());
        cache.set(&uid, &web, phase("Running")).unwrap();
        assert_eq!(living(&cache), [1, 2]);
        cache.report(&uid, &web, phase("Succeeded"), Stage::Stopped).unwrap();
        assert_eq!(living(&cache), [2]);
        cache.remove(&uid);
        assert_eq!(living(&cache), [1, 2]);
    }
}
