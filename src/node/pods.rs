//! What the node part asks of pods: which run, what they use, and to end one.
//!
//! In: the workers, their statuses, the runtime. Out: [`NodePods`], with one implementation for the node and one for tests.
//! Decides nothing.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use crate::ids::{ContainerId, PodUid};
use crate::pod::run::ContainerUsage;
use crate::status::{PodSnapshot, StatusCache};
use crate::worker::{ContainerRuntime, Eviction, WorkerPool};

/// A container that runs, and what it uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerUse {
    /// Its name.
    pub name: String,
    /// Bytes of memory charged to it.
    pub memory_bytes: u64,
    /// Bytes of its writable layer.
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
    /// Pods that were admitted and have not ended.
    fn active(&self) -> Vec<ActivePod>;
    /// Ends a pod as failed and keeps it. Returns when it was told.
    async fn end(&self, uid: &PodUid, end: PodEnd);
    /// Whether a pod has ended, or is not known.
    fn has_ended(&self, uid: &PodUid) -> bool;
    /// Names and digests of images that pods of the node refer to, ended ones included: their statuses show them.
    fn images(&self) -> HashSet<String>;
}

/// The real one.
pub struct WorkerPods<R> {
    workers: WorkerPool<R>,
    status: StatusCache,
    usage: UsageReader,
}

/// Reads what a container uses; `None` when it does not run.
pub type UsageReader = Box<dyn Fn(&ContainerId) -> Option<ContainerUsage> + Send + Sync>;

impl<R> std::fmt::Debug for WorkerPods<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkerPods").field("workers", &self.workers).finish_non_exhaustive()
    }
}

impl<R: ContainerRuntime> WorkerPods<R> {
    /// Over the workers and their statuses; `usage` is the runtime's.
    #[must_use]
    pub fn new(workers: WorkerPool<R>, status: StatusCache, usage: UsageReader) -> Self {
        Self { workers, status, usage }
    }

    fn usage_of(&self, status: &ContainerStatus) -> Option<ContainerUse> {
        status.state.as_ref()?.running.as_ref()?;
        let id: ContainerId = status.container_id.as_deref()?.parse().ok()?;
        let usage = (self.usage)(&id)?;
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
            let uid = uid_of(snapshot).filter(|uid| living.contains(uid) && !is_over(snapshot))?;
            let statuses = &snapshot.status;
            let init = statuses.init_container_statuses.iter().flatten();
            let containers = init.chain(statuses.container_statuses.iter().flatten());
            let containers = containers.filter_map(|status| self.usage_of(status)).collect();
            Some(ActivePod { uid, pod: Arc::new(snapshot.to_pod()), containers })
        };
        self.status.list().iter().filter_map(active).collect()
    }

    async fn end(&self, uid: &PodUid, end: PodEnd) {
        let PodEnd { reason, message, grace } = end;
        // Whatever the node does for its own sake is a disruption, which Jobs' failure policies may leave out.
        let disruption = Some(message.clone());
        self.workers.evict(uid, Eviction { reason: reason.to_owned(), message, disruption, grace }).await;
    }

    fn has_ended(&self, uid: &PodUid) -> bool {
        let over = self.status.get(uid).is_none_or(|snapshot| is_over(&snapshot));
        over || !self.workers.pods().contains(uid)
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
            let status = &snapshot.status;
            for statuses in
                [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses]
            {
                names.extend(statuses.iter().flatten().map(|status| status.image_id.clone()));
            }
        }
        names.remove("");
        names
    }
}

fn uid_of(snapshot: &PodSnapshot) -> Option<PodUid> {
    PodUid::new(snapshot.pod.metadata.uid.clone()?).ok()
}

fn is_over(snapshot: &PodSnapshot) -> bool {
    matches!(snapshot.status.phase.as_deref(), Some("Succeeded" | "Failed"))
}
