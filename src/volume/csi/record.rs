//! What is written beside a mount, so that it can be undone by an agent that does not remember it: the kubelet's
//! `vol_data.json`, in the kubelet's places.
//!
//! In: volumes. Out: files and paths below the node's root directory. Mounts nothing.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::ids::PodUid;

const FILE: &str = "vol_data.json";
const POD_VOLUMES: &str = "volumes/kubernetes.io~csi";

/// How long a volume lives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Lifecycle {
    /// Longer than the pod.
    #[default]
    Persistent,
    /// As long as the pod: written into it.
    Ephemeral,
}

impl Lifecycle {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Persistent => "Persistent",
            Self::Ephemeral => "Ephemeral",
        }
    }
}

/// The kubelet's keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record {
    pub(super) driver_name: String,
    pub(super) volume_handle: String,
    #[serde(default, rename = "specVolID")]
    pub(super) spec_name: String,
    #[serde(default)]
    pub(super) node_name: String,
    #[serde(default, rename = "attachmentID")]
    pub(super) attachment: String,
    #[serde(default)]
    pub(super) volume_lifecycle_mode: Lifecycle,
}

impl Record {
    /// `kubernetes.io/csi/DRIVER^HANDLE`: the volume's name in the Node's status.
    pub(super) fn unique_name(&self) -> String {
        unique_name(&self.driver_name, &self.volume_handle)
    }

    pub(super) fn write(&self, dir: &Path) -> io::Result<()> {
        let (target, temporary) = (dir.join(FILE), dir.join(".vol_data.json.tmp"));
        std::fs::write(&temporary, serde_json::to_vec(self)?)?;
        std::fs::File::open(&temporary)?.sync_all()?;
        std::fs::rename(temporary, target)
    }

    pub(super) fn read(dir: &Path) -> io::Result<Self> {
        Ok(serde_json::from_slice(&std::fs::read(dir.join(FILE))?)?)
    }
}

/// Removes what [`Record::write`] wrote, and the directory when nothing else is in it.
pub(super) fn remove(dir: &Path) -> io::Result<()> {
    for gone in [std::fs::remove_file(dir.join(FILE)), std::fs::remove_dir(dir)] {
        match gone {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Removes an empty directory that the driver should have removed; never what is in one, and never a mount.
pub(super) fn remove_target(path: &Path) -> io::Result<()> {
    let gone = match std::fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => std::fs::remove_dir(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match gone {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

pub(super) fn unique_name(driver: &str, handle: &str) -> String {
    format!("kubernetes.io/csi/{driver}^{handle}")
}

/// The name of a volume's VolumeAttachment to this node.
pub(super) fn attachment_name(handle: &str, driver: &str, node: &str) -> String {
    format!("csi-{}", sha256(&[handle, driver, node]))
}

/// The handle of a volume that is written into a pod.
pub(super) fn inline_handle(uid: &PodUid, volume: &str) -> String {
    format!("csi-{}", sha256(&[uid.as_str(), volume]))
}

fn sha256(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.as_bytes());
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `plugins/kubernetes.io/csi/DRIVER/SHA(HANDLE)`; the volume is staged at `globalmount` in it.
pub(super) fn global_dir(root: &Path, driver: &str, handle: &str) -> PathBuf {
    root.join("plugins/kubernetes.io/csi").join(one_component(driver)).join(sha256(&[handle]))
}

/// `volumes/kubernetes.io~csi/NAME` of the pod; the volume is at `mount` in it.
pub(super) fn pod_dir(pod_root: &Path, spec_name: &str) -> PathBuf {
    pod_root.join(POD_VOLUMES).join(one_component(spec_name))
}

fn one_component(name: &str) -> String {
    let safe: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || "-._".contains(c) { c } else { '~' }).collect();
    if safe.trim_matches('.').is_empty() { "_".to_owned() } else { safe }
}

/// The directories of a pod's volumes that have a record.
pub(super) fn of_pod(pod_root: &Path) -> Vec<(PathBuf, Record)> {
    below(&pod_root.join(POD_VOLUMES))
}

/// The staged volumes of the node.
pub(super) fn staged(root: &Path) -> Vec<(PathBuf, Record)> {
    let drivers = std::fs::read_dir(root.join("plugins/kubernetes.io/csi")).into_iter().flatten().flatten();
    drivers.flat_map(|driver| below(&driver.path())).collect()
}

fn below(dir: &Path) -> Vec<(PathBuf, Record)> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut found: Vec<_> =
        entries.filter_map(|entry| Some((entry.path(), Record::read(&entry.path()).ok()?))).collect();
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    found
}

/// Everything of all pods, whoever they are.
pub(super) fn of_all_pods(root: &Path) -> Vec<(PathBuf, Record)> {
    let pods = std::fs::read_dir(root.join("pods")).into_iter().flatten().flatten();
    pods.flat_map(|pod| of_pod(&pod.path())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_the_kubelets_and_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let record = Record {
            driver_name: "d.example".into(),
            volume_handle: "h/1".into(),
            spec_name: "pv".into(),
            node_name: "n".into(),
            attachment: attachment_name("h/1", "d.example", "n"),
            volume_lifecycle_mode: Lifecycle::Persistent,
        };
        let volume = pod_dir(dir.path(), "pv");
        std::fs::create_dir_all(&volume).unwrap();
        record.write(&volume).unwrap();
        let text = std::fs::read_to_string(volume.join("vol_data.json")).unwrap();
        for key in ["driverName", "volumeHandle", "specVolID", "nodeName", "attachmentID", "volumeLifecycleMode"] {
            assert!(text.contains(key), "{key} in {text}");
        }
        assert_eq!(of_pod(dir.path()), [(volume.clone(), record)]);
        std::fs::create_dir(volume.join("mount")).unwrap();
        std::fs::write(volume.join("mount/data"), "kept").unwrap();
        assert!(remove_target(&volume.join("mount")).is_err() && volume.join("mount/data").exists(), "nothing is lost");
        std::fs::remove_file(volume.join("mount/data")).unwrap();
        remove_target(&volume.join("mount")).unwrap();
        remove(&volume).unwrap();
        assert!(!volume.exists() && of_pod(dir.path()).is_empty());
    }

    #[test]
    fn names_are_those_other_components_compute() {
        assert_eq!(unique_name("d", "h"), "kubernetes.io/csi/d^h");
        // printf hdn | sha256sum
        assert!(attachment_name("h", "d", "n").starts_with("csi-") && attachment_name("h", "d", "n").len() == 68);
        assert_eq!(
            global_dir(Path::new("/r"), "d", ""),
            Path::new(
                "/r/plugins/kubernetes.io/csi/d/e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
            )
        );
        for name in ["..", ".", "", "a/b"] {
            assert_eq!(pod_dir(Path::new("/p"), name).components().count(), 5, "{name:?}");
        }
    }
}
