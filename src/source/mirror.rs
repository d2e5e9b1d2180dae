//! Mirror pods: static pods as `kubectl get pods` shows them.
//!
//! In: the pods that run here and their mirrors in the API server. Out: mirrors made, and removed when their static pod is
//! gone or another one. Their statuses are the status writer's. The rules are those of the kubelet's
//! `pod/mirror_client.go`: a mirror belongs to the Node object, carries the hash of the manifest, and is made anew when
//! somebody deletes it.
//!
//! A node may not make a mirror that refers to API objects (NodeRestriction). Such a pod runs without one, which an Event
//! says once.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod, PodSpec, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Api;
use kube::api::{DeleteParams, PostParams, Preconditions};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::events::{EventType, Recorder, pod_reference};
use crate::ids::{PodRef, PodUid};
use crate::pod::ephemeral;
use crate::pod::static_pod::{HASH_ANNOTATION, is_static};
use crate::pod::volumes::References;
use crate::status::{ApiPods, HASH_OF_MIRROR, PodSnapshot, StatusCache, StatusChange, is_mirror};

/// How often everything is compared when nobody speaks.
const RESYNC: Duration = Duration::from_secs(10);
/// Waits after a failure: doubled from the first to the last.
const FIRST_RETRY: Duration = Duration::from_secs(2);
const LAST_RETRY: Duration = Duration::from_secs(300);
/// After a request that was taken, word of it comes by the watch; when it does not, it is made again.
const PATIENCE: Duration = Duration::from_secs(10);

/// Keeps mirrors as they should be.
pub struct Mirrors {
    client: kube::Client,
    cache: StatusCache,
    api: ApiPods,
    events: Recorder,
    node: watch::Receiver<Option<Arc<Node>>>,
    manifests_read: CancellationToken,
    /// Names that were tried: when again, and how often it failed.
    tried: HashMap<PodRef, Tried>,
    /// Pods that cannot have one, already said.
    told: HashMap<PodUid, &'static str>,
}

#[derive(Debug, Clone)]
struct Tried {
    need: Need,
    again: Instant,
    failures: u32,
}

impl std::fmt::Debug for Mirrors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mirrors").finish_non_exhaustive()
    }
}

/// What a name needs.
#[derive(Debug, Clone, PartialEq)]
enum Need {
    Nothing,
    Create,
    /// The mirror with this UID has to go first.
    Delete {
        uid: Option<String>,
    },
}

impl Mirrors {
    /// Of the static pods in `cache`. `node` is the newest Node object, whose UID owns them; `manifests_read` is cancelled
    /// when all manifests were read once: before, no mirror is removed for want of a pod.
    #[must_use]
    pub fn new(
        client: kube::Client,
        (cache, api): (StatusCache, ApiPods),
        events: Recorder,
        node: watch::Receiver<Option<Arc<Node>>>,
        manifests_read: CancellationToken,
    ) -> Self {
        Self { client, cache, api, events, node, manifests_read, tried: HashMap::new(), told: HashMap::new() }
    }

    /// Works until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut statuses = self.cache.subscribe();
        let mut objects = self.api.subscribe();
        let mut resync = tokio::time::interval(RESYNC);
        resync.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let manifests_read = self.manifests_read.clone();
        let mut read = manifests_read.is_cancelled();
        loop {
            // All arms only wait: dropping them loses nothing but a word that something changed, and a look at everything
            // follows whichever it was that may concern a mirror.
            let closed = tokio::select! {
                () = stop.cancelled() => return,
                change = statuses.recv() => match change {
                    Ok(change) if !concerns_static(&change) => continue,
                    change => matches!(change, Err(RecvError::Closed)),
                },
                change = objects.recv() => match change {
                    // Another pod of the name is in the way of a mirror, or was.
                    Ok(change) if !change.is_mirror && !self.tried.contains_key(&change.name) => continue,
                    change => matches!(change, Err(RecvError::Closed)),
                },
                changed = self.node.changed() => changed.is_err(),
                () = manifests_read.cancelled(), if !read => {
                    read = true;
                    false
                }
                _ = resync.tick() => false,
            };
            if closed {
                return;
            }
            // What else is waiting is seen by the same look.
            while statuses.try_recv().is_ok() || objects.try_recv().is_ok() {}
            if stop.run_until_cancelled(self.compare()).await.is_none() {
                return;
            }
        }
    }

    async fn compare(&mut self) {
        let node = self.node.borrow().clone();
        let Some(node) = node.filter(|node| node.metadata.uid.is_some()) else { return };
        let statics: HashMap<PodRef, PodSnapshot> = self
            .cache
            .matching(|snapshot| is_static(&snapshot.pod))
            .into_iter()
            .map(|snapshot| (PodRef::of(&snapshot.pod), snapshot))
            .collect();
        let mut names: Vec<PodRef> = statics.keys().cloned().collect();
        if self.manifests_read.is_cancelled() {
            let mirrors = self.api.mirrors();
            names.extend(mirrors.iter().map(|pod| PodRef::of(pod)).filter(|name| !statics.contains_key(name)));
        }
        self.tried.retain(|name, _| names.contains(name));
        let known: Vec<&str> = statics.values().filter_map(|s| s.pod.metadata.uid.as_deref()).collect();
        self.told.retain(|uid, _| known.contains(&uid.as_str()));
        for name in names {
            let pod = statics.get(&name).map(|snapshot| &*snapshot.pod);
            let need = needed(pod, self.api.named(&name).as_deref());
            if need == Need::Nothing {
                self.tried.remove(&name);
                continue;
            }
            // Another need is news: a mirror that is gone at last is made at once.
            if self.tried.get(&name).is_some_and(|tried| tried.need == need && Instant::now() < tried.again) {
                continue;
            }
            self.act(&name, need, pod, &node).await;
        }
    }

    async fn act(&mut self, name: &PodRef, need: Need, pod: Option<&Pod>, node: &Node) {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &name.namespace);
        let result = match (need.clone(), pod) {
            (Need::Delete { uid }, _) => {
                let only = Preconditions { uid, resource_version: None };
                let how = DeleteParams::default().grace_period(0).preconditions(only);
                pods.delete(&name.name, &how).await.map(|_| ())
            }
            (Need::Create, Some(pod)) => {
                if let Some(what) = pod.spec.as_ref().and_then(api_reference) {
                    self.tell_refused(pod, what);
                    return;
                }
                // Known when the watch says so: an answer may come after word of its end.
                pods.create(&PostParams::default(), &mirror_of(pod, node)).await.map(|_| ())
            }
            (Need::Create | Need::Nothing, _) => return,
        };
        let failures = self.tried.get(name).filter(|tried| tried.need == need).map_or(0, |tried| tried.failures);
        let tried = match result {
            Ok(()) => Tried { need, again: Instant::now() + PATIENCE, failures: 0 },
            // Gone already, or another pod by now: the watch says which.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                Tried { need, again: Instant::now() + PATIENCE, failures: 0 }
            }
            Err(error) => {
                if failures == 0 {
                    tracing::warn!(pod = %name, err = %error, "Failed to bring a mirror pod up to date");
                }
                let delay = FIRST_RETRY.saturating_mul(2u32.saturating_pow(failures)).min(LAST_RETRY);
                Tried { need, again: Instant::now() + delay, failures: failures.saturating_add(1) }
            }
        };
        self.tried.insert(name.clone(), tried);
    }

    fn tell_refused(&mut self, pod: &Pod, what: &'static str) {
        let Some(uid) = pod.metadata.uid.clone().and_then(|uid| PodUid::new(uid).ok()) else { return };
        if self.told.insert(uid, what).is_none() {
            let message = format!(
                "Static pod refers to {what}, which the API server lets no mirror pod do: it runs without being shown there"
            );
            self.events.event(&pod_reference(pod), EventType::Warning, "FailedMirrorPod", message);
        }
    }
}

/// Whether a change is one of a static pod. Of thousands of pods few are, and a look at all costs as much as there are.
fn concerns_static(change: &StatusChange) -> bool {
    match change {
        StatusChange::Changed(_, snapshot) => is_static(&snapshot.pod),
        StatusChange::Removed(_, pod) => is_static(pod),
    }
}

/// Compares a static pod with what the API server has under its name.
fn needed(pod: Option<&Pod>, object: Option<&Pod>) -> Need {
    let hash = |pod: &Pod, key: &str| pod.metadata.annotations.as_ref().and_then(|a| a.get(key)).cloned();
    match (pod, object) {
        (None, None) => Need::Nothing,
        (Some(_), None) => Need::Create,
        // A pod of somebody else's.
        (_, Some(object)) if !is_mirror(object) => Need::Nothing,
        (Some(pod), Some(object))
            if object.metadata.deletion_timestamp.is_none()
                && hash(object, HASH_OF_MIRROR) == hash(pod, HASH_ANNOTATION) =>
        {
            Need::Nothing
        }
        (_, Some(object)) => Need::Delete { uid: object.metadata.uid.clone() },
    }
}

/// The object to make.
fn mirror_of(pod: &Pod, node: &Node) -> Pod {
    let ObjectMeta { name, namespace, labels, annotations, .. } = pod.metadata.clone();
    let mut annotations = annotations.unwrap_or_default();
    let hash = annotations.get(HASH_ANNOTATION).cloned().unwrap_or_default();
    annotations.insert(HASH_OF_MIRROR.to_owned(), hash);
    let owner = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: node.metadata.name.clone().unwrap_or_default(),
        uid: node.metadata.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: None,
    };
    let metadata = ObjectMeta {
        name,
        namespace,
        labels,
        annotations: Some(annotations),
        owner_references: Some(vec![owner]),
        ..ObjectMeta::default()
    };
    Pod { metadata, spec: pod.spec.clone(), status: None }
}

/// What of the API a pod refers to, by the words of the API server's `HasAPIObjectReference`.
fn api_reference(spec: &PodSpec) -> Option<&'static str> {
    let named = |name: &Option<String>| name.as_ref().is_some_and(|name| !name.is_empty());
    if named(&spec.service_account_name) {
        return Some("serviceaccounts");
    }
    let mut references = References::of_pod(spec);
    for container in ephemeral::containers(spec) {
        let of_env = References::of_env(&container);
        references.config_maps.extend(of_env.config_maps);
        references.secrets.extend(of_env.secrets);
    }
    if !references.secrets.is_empty() {
        return Some("secrets");
    }
    if !references.config_maps.is_empty() {
        return Some("configmaps");
    }
    if spec.resource_claims.as_ref().is_some_and(|claims| !claims.is_empty()) {
        return Some("resourceclaims");
    }
    spec.volumes.iter().flatten().find_map(api_reference_of_volume)
}

fn api_reference_of_volume(volume: &Volume) -> Option<&'static str> {
    let of_projected = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
    let projected = of_projected.into_iter().find_map(|source| {
        let given = [
            ("serviceaccounts (via projected volumes)", source.service_account_token.is_some()),
            ("clustertrustbundles", source.cluster_trust_bundle.is_some()),
            ("podcertificates", source.pod_certificate.is_some()),
        ];
        given.into_iter().find_map(|(what, given)| given.then_some(what))
    });
    let given = [
        ("csidrivers (via CSI volumes)", volume.csi.is_some()),
        ("endpoints (via glusterFS volumes)", volume.glusterfs.is_some()),
        ("persistentvolumeclaims", volume.persistent_volume_claim.is_some()),
        ("persistentvolumeclaims (via ephemeral volumes)", volume.ephemeral.is_some()),
        ("secrets (via azureFile volumes)", volume.azure_file.is_some()),
    ];
    projected.or_else(|| given.into_iter().find_map(|(what, given)| given.then_some(what)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(annotations: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "web-n", "namespace": "ns", "uid": "u",
            "resourceVersion": "7", "labels": {"app": "web"}, "annotations": annotations},
            "spec": {"nodeName": "n", "containers": [{"name": "a"}]}, "status": {"phase": "Running"}}))
        .unwrap()
    }

    #[test]
    fn a_mirror_is_there_as_long_as_its_pod_and_of_the_same_manifest() {
        let running = pod(json!({HASH_ANNOTATION: "h2"}));
        let mut ending = pod(json!({HASH_OF_MIRROR: "h2"}));
        ending.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH));
        let delete = || Need::Delete { uid: Some("u".to_owned()) };
        for (case, pod, object, expected) in [
            ("none yet", Some(&running), None, Need::Create),
            ("up to date", Some(&running), Some(pod(json!({HASH_OF_MIRROR: "h2"}))), Need::Nothing),
            ("of an older manifest", Some(&running), Some(pod(json!({HASH_OF_MIRROR: "h1"}))), delete()),
            ("somebody deletes it", Some(&running), Some(ending), delete()),
            ("a pod of that name that is no mirror", Some(&running), Some(pod(json!({}))), Need::Nothing),
            ("its pod is gone", None, Some(pod(json!({HASH_OF_MIRROR: "h1"}))), delete()),
            ("nothing at all", None, None, Need::Nothing),
        ] {
            assert_eq!(needed(pod, object.as_ref()), expected, "{case}");
        }
    }

    #[test]
    fn a_mirror_is_what_the_api_server_takes_from_a_node() {
        let node = serde_json::from_value(json!({"metadata": {"name": "n", "uid": "node-uid"}})).unwrap();
        let mirror = mirror_of(&pod(json!({HASH_ANNOTATION: "h", "kubernetes.io/config.source": "file"})), &node);
        let metadata = mirror.metadata;
        assert_eq!((metadata.uid, metadata.resource_version, mirror.status), (None, None, None));
        assert_eq!(metadata.annotations.unwrap()[HASH_OF_MIRROR], "h");
        assert_eq!(metadata.labels.unwrap()["app"], "web");
        let owner = &metadata.owner_references.unwrap()[0];
        assert_eq!((owner.kind.as_str(), owner.uid.as_str(), owner.controller), ("Node", "node-uid", Some(true)));
        assert_eq!(owner.block_owner_deletion, None);
    }

    #[test]
    fn pods_that_refer_to_the_api_have_no_mirror() {
        for (spec, expected) in [
            (json!({}), None),
            (json!({"serviceAccountName": "sa"}), Some("serviceaccounts")),
            (json!({"imagePullSecrets": [{"name": "s"}]}), Some("secrets")),
            (json!({"volumes": [{"name": "v", "configMap": {"name": "c"}}]}), Some("configmaps")),
            (json!({"volumes": [{"name": "v", "emptyDir": {}}, {"name": "h", "hostPath": {"path": "/"}}]}), None),
            (
                json!({"volumes": [{"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]}),
                Some("serviceaccounts (via projected volumes)"),
            ),
            (
                json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}),
                Some("persistentvolumeclaims"),
            ),
        ] {
            let mut spec = spec;
            spec["containers"] = json!([{"name": "a"}]);
            assert_eq!(api_reference(&serde_json::from_value(spec.clone()).unwrap()), expected, "{spec}");
        }
    }
}
