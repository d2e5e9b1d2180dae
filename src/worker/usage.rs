//! Storage limits: emptyDir `sizeLimit` and `ephemeral-storage`, which evict a pod that is over them.
//!
//! In: the pod's limits, what its directories, logs and writable layers hold. Out: the first limit that is
//! exceeded, in the kubelet's order and words (`eviction/eviction_manager.go`, `localStorageEviction`).

use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod, Volume};
use tokio::time::Instant;

use super::actor::{Done, PodWorker, Subject};
use super::runtime::ContainerRuntime;
use crate::events::EventType;
use crate::ids::{PodRef, PodUid};
use crate::logs::LogStore;
use crate::pod::plan::{Phase, Sandbox};
use crate::pod::quantity::Quantity;
use crate::pod::resources::pod_ephemeral_storage_limit;
use crate::pod::run::{Medium, VolumeSource};

/// The kubelet's `immediateEvictionGracePeriodSeconds`.
const EVICTION_GRACE: Duration = Duration::from_secs(1);

/// A limit that is exceeded: the kubelet's word for it, and the message of the eviction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Excess {
    pub signal: &'static str,
    pub message: String,
}

/// Whether a pod has limits of storage, and so has to be measured.
pub(super) fn is_limited(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let disk_limit = |volume: &Volume| {
        let source = volume.empty_dir.as_ref();
        source.is_some_and(|source| source.size_limit.is_some() && source.medium.as_deref().unwrap_or("") != "Memory")
    };
    spec.volumes.iter().flatten().any(disk_limit) || spec.containers.iter().any(|c| storage_limit(c).is_some())
}

fn storage_limit(container: &Container) -> Option<Quantity> {
    let limit = container.resources.as_ref()?.limits.as_ref()?.get("ephemeral-storage")?;
    Quantity::from_api(limit).ok().filter(|limit| !limit.is_zero())
}

/// What is to be measured; owned, since the walk is on another thread.
struct Measure {
    pod: std::sync::Arc<Pod>,
    /// Disk emptyDirs: name, directory, limit.
    volumes: Vec<(String, PathBuf, Option<Quantity>)>,
    /// Containers that run: name, bytes of their writable layer.
    containers: Vec<(String, u64)>,
    logs: LogStore,
    name: PodRef,
    uid: PodUid,
}

impl<R: ContainerRuntime> PodWorker<R> {
    pub(super) fn measure_if_due(&mut self) {
        let Some(due) = self.next_usage else { return };
        if Instant::now() < due || self.phase != Phase::Syncing || self.sandbox != Sandbox::Ready {
            if Instant::now() >= due {
                self.next_usage = Some(Instant::now() + self.config.usage_period);
            }
            return;
        }
        // Set again when the result is there, so that a slow disk is not measured twice at once.
        self.next_usage = None;
        let measure = self.measure();
        self.spawn_blocking(Subject::Usage, move || Done::Measured(measure.run()));
    }

    fn measure(&self) -> Measure {
        let limit = |name: &str| {
            let volumes = self.pod.spec.as_ref().and_then(|spec| spec.volumes.as_ref());
            let volume = volumes.into_iter().flatten().find(|volume| volume.name == name)?;
            volume.empty_dir.as_ref()?.size_limit.as_ref().and_then(|limit| Quantity::from_api(limit).ok())
        };
        let volumes = self.volumes.iter().filter_map(|volume| match &volume.source {
            VolumeSource::NodeDirectory { path, medium: Medium::Disk, .. } => {
                Some((volume.name.clone(), path.clone(), limit(&volume.name)))
            }
            _ => None,
        });
        let containers = self.containers.iter().map(|(name, live)| {
            let usage = live.id().and_then(|id| self.services.runtime.usage(id));
            (name.clone(), usage.map_or(0, |usage| usage.writable_bytes))
        });
        Measure {
            pod: self.pod.clone(),
            volumes: volumes.collect(),
            containers: containers.collect(),
            logs: self.services.logs.clone(),
            name: self.name.clone(),
            uid: self.uid.clone(),
        }
    }

    pub(super) fn measured(&mut self, excess: Option<Excess>) {
        self.next_usage = Some(Instant::now() + self.config.usage_period);
        let Some(Excess { signal, message }) = excess else { return };
        if self.phase == Phase::Syncing {
            self.services.metrics.evicted(signal);
            self.event(EventType::Warning, "Evicted", message.as_str());
            self.fail(Some("Evicted".to_owned()), Some(message), EVICTION_GRACE);
        }
    }
}

impl Measure {
    fn run(self) -> Option<Excess> {
        let mut total = 0u64;
        for (name, path, limit) in &self.volumes {
            let used = directory_bytes(path);
            total = total.saturating_add(used);
            if let Some(limit) = limit.filter(|limit| !limit.is_zero())
                && is_over(used, limit)
            {
                let message = format!("Usage of EmptyDir volume {name:?} exceeds the limit \"{limit}\". ");
                return Some(Excess { signal: "emptydirfs.limit", message });
            }
        }
        let mut containers = Vec::new();
        for (name, writable) in &self.containers {
            let logs = self.logs.usage(&self.name, &self.uid, name).unwrap_or(0);
            let used = writable.saturating_add(logs);
            total = total.saturating_add(used);
            containers.push((name, used));
        }
        let spec = self.pod.spec.as_ref()?;
        if let Some(limit) = pod_ephemeral_storage_limit(spec).filter(|limit| !limit.is_zero())
            && is_over(total, limit)
        {
            let message = format!("Pod ephemeral local storage usage exceeds the total limit of containers {limit}. ");
            return Some(Excess { signal: "ephemeralpodfs.limit", message });
        }
        containers.into_iter().find_map(|(name, used)| {
            let container = spec.init_containers.iter().flatten().chain(&spec.containers).find(|c| c.name == *name)?;
            let limit = storage_limit(container)?;
            let message = format!("Container {name} exceeded its local ephemeral storage limit \"{limit}\". ");
            is_over(used, limit).then_some(Excess { signal: "ephemeralcontainerfs.limit", message })
        })
    }
}

fn is_over(used: u64, limit: Quantity) -> bool {
    i64::try_from(used).unwrap_or(i64::MAX) > limit.value()
}

/// Bytes a directory takes on the disk, as du(1) counts; symlinks are not followed, what cannot be read is
/// nothing. Walks without recursion: a guest chooses how deep its tree is.
fn directory_bytes(root: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let mut seen_links = std::collections::HashSet::new();
    let mut total = 0u64;
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        let Ok(entries) = std::fs::read_dir(&directory) else { continue };
        for entry in entries.flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.nlink() > 1 && !metadata.is_dir() && !seen_links.insert((metadata.dev(), metadata.ino())) {
                continue;
            }
            total = total.saturating_add(metadata.blocks().saturating_mul(512));
            if metadata.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use serde_json::json;

    #[test]
    fn the_first_limit_that_is_exceeded_is_named_as_the_kubelet_names_it() {
        let directory = tempfile::tempdir().unwrap();
        let volume = directory.path().join("volume");
        std::fs::create_dir_all(volume.join("deep/er")).unwrap();
        std::fs::write(volume.join("deep/er/file"), vec![1; 64 << 10]).unwrap();
        let logs = LogStore::open(directory.path().join("logs"), Clock::System).unwrap();
        for (case, limits, size_limit, writable, expected) in [
            ("nothing is over", json!({"ephemeral-storage": "1Gi"}), Some("1Mi"), 0, None),
            (
                "the volume",
                json!({}),
                Some("32Ki"),
                0,
                Some("Usage of EmptyDir volume \"v\" exceeds the limit \"32Ki\". "),
            ),
            (
                "the pod, of which this container is all",
                json!({"ephemeral-storage": "80Ki"}),
                None,
                40 << 10,
                Some("Pod ephemeral local storage usage exceeds the total limit of containers 80Ki. "),
            ),
            ("no limit", json!({}), None, 1 << 40, None),
        ] {
            let pod: Pod = serde_json::from_value(
                json!({"spec": {"containers": [{"name": "c", "resources": {"limits": limits}}]}}),
            )
            .unwrap();
            let measure = Measure {
                pod: std::sync::Arc::new(pod),
                volumes: vec![("v".into(), volume.clone(), size_limit.map(|limit| limit.parse().unwrap()))],
                containers: vec![("c".into(), writable)],
                logs: logs.clone(),
                name: PodRef { namespace: "ns".into(), name: "web".into() },
                uid: PodUid::new("u").unwrap(),
            };
            assert_eq!(measure.run().map(|excess| excess.message).as_deref(), expected, "{case}");
        }
    }

    #[test]
    fn one_container_of_several_can_be_over_its_own_limit() {
        let directory = tempfile::tempdir().unwrap();
        let logs = LogStore::open(directory.path().join("logs"), Clock::System).unwrap();
        let pod = json!({"spec": {"containers": [
            {"name": "a", "resources": {"limits": {"ephemeral-storage": "2Gi"}}}, {"name": "c", "resources": {"limits": {"ephemeral-storage": "1Ki"}}}]}});
        let measure = Measure {
            pod: std::sync::Arc::new(serde_json::from_value(pod).unwrap()),
            volumes: vec![],
            containers: vec![("a".into(), 1 << 30), ("c".into(), 2000)],
            logs,
            name: PodRef { namespace: "ns".into(), name: "web".into() },
            uid: PodUid::new("u").unwrap(),
        };
        let message = measure.run().unwrap().message;
        assert_eq!(message, "Container c exceeded its local ephemeral storage limit \"1Ki\". ");
    }
}
