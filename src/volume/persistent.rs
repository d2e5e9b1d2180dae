//! Persistent volumes: what of them this node can mount.
//!
//! In: the PersistentVolume a claim is bound to. Out: a directory of this node (`hostPath`, `local`), behind the same
//! allow-list as a pod's own hostPath, or why not. Neither attaches nor formats anything; CSI volumes are `csi`'s.

use std::fs;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{HostPathVolumeSource, PersistentVolume, PersistentVolumeSpec};

use super::error::VolumeError;
use super::host_path::{self, Shown};

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

/// The group that every user of the volume gets.
const GID_ANNOTATION: &str = "pv.beta.kubernetes.io/gid";

/// Its name, which events call the volume by.
pub(super) fn name(volume: &PersistentVolume) -> &str {
    volume.metadata.name.as_deref().unwrap_or_default()
}

/// The group of the annotation; one that is no number is ignored, as by the kubelet.
pub(super) fn group(volume: &PersistentVolume) -> Option<u32> {
    volume.metadata.annotations.as_ref()?.get(GID_ANNOTATION)?.parse().ok()
}

/// Whether one pod alone may use it: `ReadWriteOncePod` is its only access mode.
pub(super) fn is_for_one_pod(volume: &PersistentVolume) -> bool {
    let modes = volume.spec.as_ref().and_then(|spec| spec.access_modes.as_deref());
    modes.is_some_and(|modes| matches!(modes, [only] if only == "ReadWriteOncePod"))
}

/// The spec of a volume that holds files.
pub(super) fn filesystem<'a>(
    volume: &str,
    persistent: &'a PersistentVolume,
) -> Result<&'a PersistentVolumeSpec, VolumeError> {
    let unknown = |reason| VolumeError::Unknown { name: volume.to_owned(), reason };
    let Some(spec) = &persistent.spec else {
        return Err(unknown(format!("persistent volume {} has no spec", name(persistent))));
    };
    let mode = spec.volume_mode.as_deref().unwrap_or("Filesystem");
    if mode != "Filesystem" {
        let claim = spec.claim_ref.as_ref();
        let text = |part: Option<&String>| part.map(String::as_str).unwrap_or_default().to_owned();
        let claim = claim.map(|claim| (text(claim.namespace.as_ref()), text(claim.name.as_ref()))).unwrap_or_default();
        return Err(unknown(format!(
            "volume {volume} has volumeMode {mode}, but is specified in volumeMounts: PVC {}/{} is a block device, which a \
             WebAssembly guest cannot have",
            claim.0, claim.1
        )));
    }
    Ok(spec)
}

/// A directory that the volume is, and whether it is the volume's alone, so that `fsGroup` may change it.
pub(super) struct Directory {
    pub(super) path: PathBuf,
    pub(super) hidden: Vec<PathBuf>,
    pub(super) takes_group: bool,
}

pub(super) fn setup(
    persistent: &PersistentVolume,
    spec: &PersistentVolumeSpec,
    policy: &host_path::Policy<'_>,
) -> Result<Directory, VolumeError> {
    let name = name(persistent);
    if let Some(source) = &spec.host_path {
        let Shown { path, hidden } =
            host_path::setup(source, policy).map_err(|reason| VolumeError::set_up(name, reason))?;
        return Ok(Directory { path, hidden, takes_group: false });
    }
    if let Some(source) = &spec.local {
        check_local(&source.path)
            .map_err(|reason| VolumeError::mount("MountVolume.NewMounter initialization failed", name, reason))?;
        let type_ = Some("Directory".to_owned());
        let source = HostPathVolumeSource { path: source.path.clone(), type_ };
        let Shown { path, hidden } =
            host_path::setup(&source, policy).map_err(|reason| VolumeError::set_up(name, reason))?;
        // Its files are given to groups, which is nothing for the node's own.
        if let Some(denied) = hidden.first() {
            let reason = format!("local volume {} is not allowed: it contains {}", path.display(), denied.display());
            return Err(VolumeError::set_up(name, reason));
        }
        return Ok(Directory { path, hidden, takes_group: true });
    }
    let given = serde_json::to_value(spec).unwrap_or_default();
    let kinds = given.as_object().into_iter().flat_map(|fields| fields.keys());
    let kind = kinds.map(String::as_str).find(|kind| !COMMON.contains(kind)).unwrap_or("unknown");
    let reason = format!(
        "volumes of type {kind} are not supported by this node: use a CSI driver, or a hostPath or local volume"
    );
    Err(VolumeError::mount("MountVolume.FindPluginBySpec failed", name, reason))
}

/// The kubelet's `getGlobalLocalPath`.
fn check_local(path: &str) -> Result<(), String> {
    match fs::metadata(Path::new(path)) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err("only directory and block device are supported".to_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(format!("path {path:?} does not exist")),
        Err(error) => Err(format!("{path}: {error}")),
    }
}
