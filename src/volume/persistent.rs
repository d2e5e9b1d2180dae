//! Persistent volumes: what of them this node can mount.
//!
//! In: the PersistentVolume a claim is bound to. Out: a directory of this node (`hostPath`, `local`), behind the same
//! allow-list as a pod's own hostPath, or why not. Neither attaches nor formats anything.

use std::path::PathBuf;

use k8s_openapi::api::core::v1::{HostPathVolumeSource, PersistentVolume};

use super::host_path;

/// Fields of a PersistentVolume's spec that are not its source.
const COMMON: [&str; 9] = [
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
];

pub(super) fn setup(
    volume: &str,
    persistent: &PersistentVolume,
    policy: &host_path::Policy<'_>,
) -> Result<PathBuf, String> {
    let name = persistent.metadata.name.as_deref().unwrap_or_default();
    let Some(spec) = &persistent.spec else { return Err(format!("persistent volume {name} has no spec")) };
    let mode = spec.volume_mode.as_deref().unwrap_or("Filesystem");
    if mode != "Filesystem" {
        return Err(format!("volume {volume} has volumeMode {mode}, but is specified in volumeMounts"));
    }
    if let Some(source) = &spec.host_path {
        return host_path::setup(source, policy);
    }
    if let Some(source) = &spec.local {
        let type_ = Some("Directory".to_owned());
        return host_path::setup(&HostPathVolumeSource { path: source.path.clone(), type_ }, policy);
    }
    let given = serde_json::to_value(spec).unwrap_or_default();
    let kinds = given.as_object().into_iter().flat_map(|fields| fields.keys());
    let kind = kinds.map(String::as_str).find(|kind| !COMMON.contains(kind)).unwrap_or("unknown");
    Err(format!("persistent volume {name}: volumes of type {kind} are not supported by this node"))
}
