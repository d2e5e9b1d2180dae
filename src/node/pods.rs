//! What the node part asks of pods: which run, what they use, and to end one.
//!
//! In: the workers, their statuses, the runtime, the disk. Out: [`NodePods`], with one implementation for the node and one
//! for tests. Decides nothing.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use super::facts::disk::inodes_of;
use crate::ids::{ContainerId, PodRef, PodUid};
use crate::logs::LogStore;
use crate::pod::run::ContainerUsage;
use crate::pod::status::container_statuses;
use crate::status::{PodSnapshot, Stage, StatusCache};
use crate::worker::{ContainerRuntime, Eviction, WorkerPool};

/// A container that runs, and what it uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerUse {
    /// Its name.
    pub name: String,
    /// Bytes of memory charged to it.
    pub memory_bytes: u64,
    /// Bytes of its writable layer, and of its logs once they are measured.
    pub disk_bytes: u64,
    /// Its processes.
    pub processes: u64,
}

/// A pod that has not ended.
#[derive(Debug, Clone)]
pub struct ActivePod {
    /// Its UID.
    pub uid: PodUid,
    /// The pod.
    pub pod: Arc<Pod>,
    /// What its containers use; empty while none runs.
    pub containers: Vec<ContainerUse>,
    /// Bytes of its volumes on the node's disk, once they are measured.
    pub volume_bytes: u64,
    /// Inodes of its directory on that disk, its volumes and what its containers wrote, once they are measured.
    pub inodes: u64,
}

/// What a pod has on the node's disk beside what its containers wrote into their own files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiskUse {
    /// Bytes of its emptyDirs.
    pub volumes: u64,
    /// Bytes of logs, by container.
    pub logs: HashMap<String, u64>,
}

/// How a pod is ended by its node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodEnd {
    /// `status.reason`.
    pub reason: &'static str,
    /// `status.message`.
    pub message: String,
    /// What guests get at most.
    pub grace: Duration,
}

/// The pods of the node, as eviction and shutdown need them.
#[async_trait]
pub trait NodePods: Send + Sync + 'static {
    /// Pods that were admitted and whose containers may run, those that are ending too.
    fn active(&self) -> Vec<ActivePod>;
    /// Adds what lies on the disk to pods of [`Self::active`]: slow, so that only who ranks by it asks.
    async fn measure_disks(&self, pods: &mut [ActivePod]);
    /// Ends a pod as failed and keeps it. Returns when it was told.
    async fn end(&self, uid: &PodUid, end: PodEnd);
    /// Whether nothing of a pod runs any more, or it is not known.
    fn has_ended(&self, uid: &PodUid) -> bool;
    /// Removes what containers that ended have left on the disk, their logs: the disk is nearly full.
    async fn remove_dead(&self);
    /// Names and digests of images that pods of the node refer to, ended ones included: their statuses show them.
    fn images(&self) -> HashSet<String>;
}

/// The real one.
pub struct WorkerPods<R> {
    workers: WorkerPool<R>,
    status: StatusCache,
    readers: Readers,
}

/// Where the figures come from.
pub struct Readers {
    /// Reads what a container uses.
    pub usage: UsageReader,
    /// Measures what a pod has on the disk.
    pub disk: DiskReader,
    /// What containers said.
    pub logs: LogStore,
}

/// Reads what a container uses; `None` when it does not run.
pub type UsageReader = Box<dyn Fn(&ContainerId) -> Option<ContainerUsage> + Send + Sync>;
/// Measures what a pod has on the disk.
pub type DiskReader = Box<dyn Fn(&PodUid, &Arc<Pod>) -> BoxFuture<'static, DiskUse> + Send + Sync>;

impl<R> std::fmt::Debug for WorkerPods<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkerPods").field("workers", &self.workers).finish_non_exhaustive()
    }
}

impl<R: ContainerRuntime> WorkerPods<R> {
    /// Over the workers and their statuses.
    #[must_use]
    pub fn new(workers: WorkerPool<R>, status: StatusCache, readers: Readers) -> Self {
        Self { workers, status, readers }
    }

    fn usage_of(&self, status: &ContainerStatus) -> Option<ContainerUse> {
        status.state.as_ref()?.running.as_ref()?;
        let id: ContainerId = status.container_id.as_deref()?.parse().ok()?;
        let usage = (self.readers.usage)(&id)?;
        Some(ContainerUse {
            name: status.name.clone(),
            memory_bytes: usage.memory_bytes,
            disk_bytes: usage.writable_bytes,
            processes: u64::from(usage.processes),
        })
    }
}

#[async_trait]
impl<R: ContainerRuntime> NodePods for WorkerPods<R> {
    fn active(&self) -> Vec<ActivePod> {
        let living: HashSet<PodUid> = self.workers.pods().into_iter().collect();
        let active = |snapshot: &PodSnapshot| {
            let uid = uid_of(snapshot).filter(|uid| living.contains(uid) && snapshot.stage == Stage::Alive)?;
            let statuses = &snapshot.status;
            let init = statuses.init_container_statuses.iter().flatten();
            let containers = init.chain(statuses.container_statuses.iter().flatten());
            let containers = containers.filter_map(|status| self.usage_of(status)).collect();
            Some(ActivePod { uid, pod: Arc::new(snapshot.to_pod()), containers, volume_bytes: 0, inodes: 0 })
        };
        self.status.list().iter().filter_map(active).collect()
    }

    async fn measure_disks(&self, pods: &mut [ActivePod]) {
        for pod in pods {
            let DiskUse { volumes, logs } = (self.readers.disk)(&pod.uid, &pod.pod).await;
            pod.volume_bytes = volumes;
            let directory = self.workers.paths(&pod.uid).root().to_owned();
            // A panic in it would be a bug of ours.
            pod.inodes = tokio::task::spawn_blocking(move || inodes_of(&directory)).await.unwrap_or_default();
            for container in &mut pod.containers {
                let of_logs = logs.get(&container.name).copied().unwrap_or(0);
                container.disk_bytes = container.disk_bytes.saturating_add(of_logs);
            }
        }
    }

    async fn end(&self, uid: &PodUid, end: PodEnd) {
        let PodEnd { reason, message, grace } = end;
        // Whatever the node does for its own sake is a disruption, which Jobs' failure policies may leave out.
        let disruption = Some(message.clone());
        self.workers.evict(uid, Eviction { reason: reason.to_owned(), message, disruption, grace }).await;
    }

    fn has_ended(&self, uid: &PodUid) -> bool {
        // Not by its phase, which is a final one from the moment that a pod is failed.
        self.status.stage(uid).is_none_or(|stage| stage != Stage::Alive) || !self.workers.pods().contains(uid)
    }

    async fn remove_dead(&self) {
        let mut dead = Vec::new();
        for snapshot in self.status.list() {
            let Some(uid) = uid_of(&snapshot) else { continue };
            let name = PodRef::of(&snapshot.pod);
            for container in container_statuses(&snapshot.status) {
                dead.extend(
                    oldest_of_use(container).map(|oldest| (name.clone(), uid.clone(), container.name.clone(), oldest)),
                );
            }
        }
        let logs = self.readers.logs.clone();
        let removed = tokio::task::spawn_blocking(move || {
            for (name, uid, container, oldest) in dead {
                if let Err(error) = logs.remove_attempts_before(&name, &uid, &container, oldest) {
                    tracing::warn!(podUID = %uid, containerName = container, err = %error, "Failed to remove old logs");
                }
            }
        });
        if let Err(error) = removed.await {
            tracing::error!(err = %error, "Removing logs of dead containers panicked");
        }
    }

    fn images(&self) -> HashSet<String> {
        let mut names = HashSet::new();
        for snapshot in self.status.list() {
            let Some(spec) = &snapshot.pod.spec else { continue };
            let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
            names.extend(containers.filter_map(|container| container.image.clone()));
            let ephemeral = spec.ephemeral_containers.iter().flatten();
            names.extend(ephemeral.filter_map(|container| container.image.clone()));
            let volumes = spec.volumes.iter().flatten();
            names.extend(volumes.filter_map(|volume| volume.image.as_ref()?.reference.clone()));
            names.extend(container_statuses(&snapshot.status).map(|status| status.image_id.clone()));
        }
        names.remove("");
        names
    }
}

/// The first attempt of a container whose log is not that of a dead one. Of one that waits for its next attempt the last
/// log stays: the next may be starting under that number.
fn oldest_of_use(status: &ContainerStatus) -> Option<u32> {
    let last = u32::try_from(status.restart_count).ok()?;
    let has_ended = status.state.as_ref().is_some_and(|state| state.terminated.is_some());
    Some(if has_ended { last.saturating_add(1) } else { last }).filter(|oldest| *oldest > 0)
}

fn uid_of(snapshot: &PodSnapshot) -> Option<PodUid> {
    PodUid::new(snapshot.pod.metadata.uid.clone()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_logs_of_containers_that_ended_are_dead() {
        let ended = json!({"terminated": {"exitCode": 0}});
        for (case, restarts, state, expected) in [
            ("runs for the first time", 0, json!({"running": {}}), None),
            ("runs again: the earlier ones", 3, json!({"running": {}}), Some(3)),
            ("has ended", 0, ended.clone(), Some(1)),
            ("has ended after restarts", 2, ended, Some(3)),
            ("waits for its next attempt", 2, json!({"waiting": {"reason": "CrashLoopBackOff"}}), Some(2)),
            ("waits for its first", 0, json!({"waiting": {"reason": "ContainerCreating"}}), None),
        ] {
            let status = json!({"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": restarts, "state": state});
            let status: ContainerStatus = serde_json::from_value(status).unwrap();
            assert_eq!(oldest_of_use(&status), expected, "{case}");
        }
    }
}
