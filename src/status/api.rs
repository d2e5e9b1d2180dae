//! What the API server says of this node's pods, mirrors of static pods among them.
//!
//! In: objects of the watch, and answers to our own writes. Out: the newest of each, and word of changes. An older object
//! never replaces a newer one, so that the watch, which comes after the answer, takes nothing back.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use parking_lot::RwLock;
use tokio::sync::broadcast;

use crate::ids::{PodRef, PodUid};
use crate::pod::static_pod;

/// Annotation of a mirror pod: the `config.hash` of what it mirrors.
pub const HASH_OF_MIRROR: &str = "kubernetes.io/config.mirror";

/// Changes a subscriber may fall behind; then it looks at everything again.
const BACKLOG: usize = 4096;

/// Whether a pod of the API server stands for a static pod: it is shown and never run.
#[must_use]
pub fn is_mirror(pod: &Pod) -> bool {
    annotation(pod, HASH_OF_MIRROR).is_some()
}

/// The pods of the API server that are bound to this node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ApiPods {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    pods: RwLock<HashMap<PodUid, Arc<Pod>>>,
    changes: broadcast::Sender<ApiChange>,
}

/// Word of a change of an object, or of its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiChange {
    /// Its UID: that of the pod on this node, too, unless it is a mirror.
    pub uid: PodUid,
    /// Its name.
    pub name: PodRef,
    /// Whether it stands for a static pod.
    pub is_mirror: bool,
}

impl ApiChange {
    fn of(uid: PodUid, pod: &Pod) -> Self {
        Self { uid, name: PodRef::of(pod), is_mirror: is_mirror(pod) }
    }
}

impl Default for ApiPods {
    fn default() -> Self {
        let (changes, _) = broadcast::channel(BACKLOG);
        Self { inner: Arc::new(Inner { pods: RwLock::default(), changes }) }
    }
}

impl ApiPods {
    /// Takes an object over, unless a newer one is known already.
    pub fn put(&self, pod: Pod) {
        self.insert(pod, |known, pod| known.is_none_or(|known| !is_newer(known, pod) && !is_same(known, pod)));
    }

    /// Whether this very object is known: the answer to one of our writes was here before the watch.
    #[must_use]
    pub fn knows(&self, uid: &PodUid, pod: &Pod) -> bool {
        self.inner.pods.read().get(uid).is_some_and(|known| is_same(known, pod))
    }

    /// Takes an object over, be it older: a whole list is the truth, also after the API server's data was restored from
    /// a backup.
    pub fn replace(&self, pod: Pod) {
        self.insert(pod, |_, _| true);
    }

    /// An answer to one of our writes: taken over only while the pod is known, since word of its end may have come first.
    pub fn answered(&self, pod: Pod) {
        self.insert(pod, |known, pod| known.is_some_and(|known| !is_newer(known, pod)));
    }

    fn insert(&self, mut pod: Pod, wanted: impl FnOnce(Option<&Pod>, &Pod) -> bool) {
        // Nobody here reads them, and they are as big as the rest.
        pod.metadata.managed_fields = None;
        let Some(uid) = uid_of(&pod) else { return };
        let change = ApiChange::of(uid.clone(), &pod);
        {
            let mut pods = self.inner.pods.write();
            if !wanted(pods.get(&uid).map(|known| &**known), &pod) {
                return;
            }
            pods.insert(uid, Arc::new(pod));
        }
        // No subscriber is no error.
        let _ = self.inner.changes.send(change);
    }

    /// Forgets a pod that is gone.
    pub fn remove(&self, uid: &PodUid) {
        let removed = self.inner.pods.write().remove(uid);
        if let Some(pod) = removed {
            let _ = self.inner.changes.send(ApiChange::of(uid.clone(), &pod));
        }
    }

    /// One pod.
    #[must_use]
    pub fn get(&self, uid: &PodUid) -> Option<Arc<Pod>> {
        self.inner.pods.read().get(uid).cloned()
    }

    /// All UIDs.
    #[must_use]
    pub fn uids(&self) -> Vec<PodUid> {
        self.inner.pods.read().keys().cloned().collect()
    }

    /// The pod of this name, the newer of two.
    #[must_use]
    pub fn named(&self, name: &PodRef) -> Option<Arc<Pod>> {
        let pods = self.inner.pods.read();
        let named = pods.values().filter(|pod| name.is_of(pod));
        named.max_by_key(|pod| version_of(pod)).cloned()
    }

    /// All mirror pods.
    #[must_use]
    pub fn mirrors(&self) -> Vec<Arc<Pod>> {
        self.inner.pods.read().values().filter(|pod| is_mirror(pod)).cloned().collect()
    }

    /// The object whose status shows a pod of this node: itself, or for a static pod its mirror, if that is one of this
    /// very manifest.
    #[must_use]
    pub fn shown(&self, uid: &PodUid, pod: &Pod) -> Option<Arc<Pod>> {
        if !static_pod::is_static(pod) {
            return self.get(uid);
        }
        let mirror = self.named(&PodRef::of(pod))?;
        let hash = annotation(pod, static_pod::HASH_ANNOTATION)?;
        (annotation(&mirror, HASH_OF_MIRROR) == Some(hash)).then_some(mirror)
    }

    /// Word of each change. On `Lagged`, look at everything again.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<ApiChange> {
        self.inner.changes.subscribe()
    }
}

/// A pod's annotation.
pub(super) fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a String> {
    pod.metadata.annotations.as_ref()?.get(key)
}

fn uid_of(pod: &Pod) -> Option<PodUid> {
    PodUid::new(pod.metadata.uid.clone()?).ok()
}

/// Resource versions are numbers that grow, by the API's own promise since 1.35; one that is none counts as oldest.
fn version_of(pod: &Pod) -> u128 {
    pod.metadata.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or(0)
}

fn is_newer(known: &Pod, other: &Pod) -> bool {
    version_of(known) > version_of(other)
}

fn is_same(known: &Pod, other: &Pod) -> bool {
    version_of(known) == version_of(other) && version_of(known) > 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(uid: &str, version: &str, annotations: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "ns", "uid": uid,
            "resourceVersion": version, "annotations": annotations}}))
        .unwrap()
    }

    #[test]
    fn a_late_watch_takes_nothing_back_and_a_late_answer_revives_nothing() {
        let pods = ApiPods::default();
        let mut changes = pods.subscribe();
        pods.put(pod("u", "9", json!({})));
        pods.answered(pod("u", "10", json!({})));
        pods.put(pod("u", "9", json!({})));
        let mut managed = pod("u", "10", json!({}));
        managed.metadata.managed_fields = Some(vec![]);
        pods.put(managed.clone());
        pods.answered(managed);
        let uid = PodUid::new("u").unwrap();
        assert_eq!(pods.get(&uid).unwrap().metadata.managed_fields, None);
        assert_eq!(pods.get(&uid).unwrap().metadata.resource_version.as_deref(), Some("10"));
        pods.remove(&uid);
        pods.answered(pod("u", "11", json!({})));
        assert!(pods.get(&uid).is_none());
        assert_eq!(std::iter::from_fn(|| changes.try_recv().ok()).count(), 4);
    }

    #[test]
    fn a_static_pod_is_shown_by_the_mirror_of_its_own_manifest() {
        let source = "kubernetes.io/config.source";
        let running = pod("hash-2", "", json!({source: "file", "kubernetes.io/config.hash": "hash-2"}));
        let uid = PodUid::new("hash-2").unwrap();
        let pods = ApiPods::default();
        assert!(pods.shown(&uid, &running).is_none());
        pods.put(pod("m1", "1", json!({HASH_OF_MIRROR: "hash-1"})));
        assert!(pods.shown(&uid, &running).is_none(), "of an earlier manifest");
        pods.put(pod("m2", "2", json!({HASH_OF_MIRROR: "hash-2"})));
        assert_eq!(pods.shown(&uid, &running).unwrap().metadata.uid.as_deref(), Some("m2"));
        assert_eq!(pods.mirrors().len(), 2);
    }
}
