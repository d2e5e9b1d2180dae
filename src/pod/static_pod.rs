//! Naming of pods that come from manifest files, as the kubelet's `config/common.go` does it.
//!
//! In: a pod as written, where it was found and when. Out: the pod as it is run: `NAME-NODE`, a UID that is a
//! hash of what was written, annotations, the node's toleration. Does not validate (`admission`).

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus, Toleration};
use sha2::{Digest, Sha256};

use crate::ids::{InvalidId, PodUid};

/// Where a pod came from: `file` for a manifest.
pub const SOURCE_ANNOTATION: &str = "kubernetes.io/config.source";
/// The hash of the manifest, which is also the UID when the manifest gives none.
pub const HASH_ANNOTATION: &str = "kubernetes.io/config.hash";
/// When the node first saw it.
pub const SEEN_ANNOTATION: &str = "kubernetes.io/config.seen";

/// Where and when a static pod was found.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    /// The node's name; lower-cased in the pod's name.
    pub node: &'a str,
    /// The manifest's path, part of the hash: the same manifest in two files is two pods.
    pub path: &'a str,
    /// When it was first seen.
    pub seen: Timestamp,
}

/// Whether a pod is one (and not a mirror of one).
#[must_use]
pub fn is_static(pod: &Pod) -> bool {
    let source = pod.metadata.annotations.as_ref().and_then(|annotations| annotations.get(SOURCE_ANNOTATION));
    source.is_some_and(|source| source != "api")
}

/// Who wants a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PodSource {
    /// A manifest.
    Manifest,
    /// The API server.
    ApiServer,
}

impl PodSource {
    /// Of a pod as it is run: the source's annotation says so.
    #[must_use]
    pub fn of(pod: &Pod) -> Self {
        if is_static(pod) { Self::Manifest } else { Self::ApiServer }
    }
}

/// Gives a pod of a manifest the identity it is run under. The pod has a name.
///
/// The same manifest in the same file on the same node gets the same UID, whenever it is read; any change of
/// it gets another, so that a changed manifest replaces its pod.
///
/// # Errors
/// [`InvalidId`] when the manifest gives a UID that cannot be one.
pub fn identify(pod: &mut Pod, origin: Origin<'_>) -> Result<PodUid, InvalidId> {
    let uid = match pod.metadata.uid.take().filter(|uid| !uid.is_empty()) {
        Some(uid) => PodUid::new(uid)?,
        None => hash(pod, origin),
    };
    let meta = &mut pod.metadata;
    let name = meta.name.take().unwrap_or_default();
    meta.name = Some(format!("{name}-{}", origin.node.to_lowercase()));
    if meta.namespace.as_deref().unwrap_or("").is_empty() {
        meta.namespace = Some("default".to_owned());
    }
    meta.uid = Some(uid.as_str().to_owned());
    let annotations = meta.annotations.get_or_insert_default();
    annotations.insert(HASH_ANNOTATION.to_owned(), uid.as_str().to_owned());
    annotations.insert(SOURCE_ANNOTATION.to_owned(), "file".to_owned());
    annotations.insert(SEEN_ANNOTATION.to_owned(), origin.seen.to_string());
    if let Some(spec) = pod.spec.as_mut() {
        spec.node_name = Some(origin.node.to_owned());
        // A static pod is not evicted when its node has problems.
        let toleration = Toleration {
            effect: Some("NoExecute".to_owned()),
            operator: Some("Exists".to_owned()),
            ..Toleration::default()
        };
        let tolerations = spec.tolerations.get_or_insert_default();
        if !tolerations.contains(&toleration) {
            tolerations.push(toleration);
        }
    }
    pod.status = Some(PodStatus { phase: Some("Pending".to_owned()), ..PodStatus::default() });
    Ok(uid)
}

/// 32 hex digits, like the kubelet's, of everything that was written.
fn hash(pod: &Pod, origin: Origin<'_>) -> PodUid {
    let mut hasher = Sha256::new();
    let written = serde_json::to_vec(pod).expect("a pod has only string keys");
    hasher.update((written.len() as u64).to_le_bytes());
    hasher.update(&written);
    hasher.update(format!("host:{}\0file:{}", origin.node, origin.path));
    let digest = hex::encode(&hasher.finalize()[..16]);
    PodUid::new(digest).expect("hex digits are legal in a UID")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn origin(path: &str) -> Origin<'_> {
        Origin { node: "Node-1", path, seen: Timestamp::UNIX_EPOCH }
    }

    fn identified(json: serde_json::Value, path: &str) -> Pod {
        let mut pod: Pod = serde_json::from_value(json).unwrap();
        identify(&mut pod, origin(path)).unwrap();
        pod
    }

    #[test]
    fn a_static_pod_gets_the_kubelets_names() {
        let pod = identified(json!({"metadata": {"name": "web"}, "spec": {"containers": []}}), "/m/web.yaml");
        assert_eq!(pod.metadata.name.as_deref(), Some("web-node-1"));
        assert_eq!(pod.metadata.namespace.as_deref(), Some("default"));
        let uid = pod.metadata.uid.clone().unwrap();
        assert!(uid.len() == 32 && uid.bytes().all(|b| b.is_ascii_hexdigit()), "{uid}");
        let annotations = pod.metadata.annotations.as_ref().unwrap();
        assert_eq!(annotations[HASH_ANNOTATION], uid);
        assert_eq!(annotations[SOURCE_ANNOTATION], "file");
        assert_eq!(annotations[SEEN_ANNOTATION], "1970-01-01T00:00:00Z");
        assert!(is_static(&pod));
        let spec = pod.spec.unwrap();
        assert_eq!(spec.node_name.as_deref(), Some("Node-1"));
        assert_eq!(spec.tolerations.unwrap()[0].effect.as_deref(), Some("NoExecute"));
    }

    #[test]
    fn the_uid_follows_what_was_written_and_where() {
        let manifest =
            |image: &str| json!({"metadata": {"name": "web"}, "spec": {"containers": [{"name": "a", "image": image}]}});
        let uid = |image: &str, path: &str| identified(manifest(image), path).metadata.uid;
        assert_eq!(uid("a", "/m/1"), uid("a", "/m/1"), "reading it again is the same pod");
        assert_ne!(uid("a", "/m/1"), uid("b", "/m/1"), "a change is another pod");
        assert_ne!(uid("a", "/m/1"), uid("a", "/m/2"), "another file is another pod");
        let given = identified(json!({"metadata": {"name": "web", "uid": "my-uid"}}), "/m/1");
        assert_eq!(given.metadata.uid.as_deref(), Some("my-uid"), "a UID that was written is kept");
        let mut bad: Pod = serde_json::from_value(json!({"metadata": {"name": "web", "uid": "../x"}})).unwrap();
        assert!(identify(&mut bad, origin("/m/1")).is_err());
    }
}
