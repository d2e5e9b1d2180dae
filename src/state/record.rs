//! The record of one pod: what the agent has to know of it after a restart.
//!
//! In and out: plain data. Holds what the manifest says, never the bytes of Secrets it refers to.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use serde::{Deserialize, Serialize};

use crate::ids::{ContainerId, PodUid};
use crate::pod::run::User;

/// One pod. Written whole at each change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PodRecord {
    /// Its UID, also the name of its directory.
    pub uid: PodUid,
    /// The pod as it is run: static-pod naming and defaults applied, without `status`.
    #[serde(with = "shared")]
    pub pod: Arc<Pod>,
    /// The manifest file it came from; `None` for a pod of the API server.
    pub manifest: Option<PathBuf>,
    /// When the node accepted it.
    pub accepted_at: Timestamp,
    /// Its addresses, to be given back to it.
    pub ips: Vec<IpAddr>,
    /// By container name: init, sidecar, regular and ephemeral alike.
    pub containers: BTreeMap<String, Box<ContainerRecord>>,
    /// A container's rule has asked for all of them to run again, and not all have ended yet.
    #[serde(default)]
    pub restarting_all: bool,
    /// Its end, once asked for.
    pub termination: Option<TerminationRecord>,
    /// The status last reported.
    pub status: PodStatus,
}

impl PodRecord {
    /// The record of a pod that was just accepted.
    #[must_use]
    pub fn new(uid: PodUid, pod: impl Into<Arc<Pod>>, accepted_at: Timestamp) -> Self {
        Self {
            uid,
            pod: pod.into(),
            manifest: None,
            accepted_at,
            ips: Vec::new(),
            containers: BTreeMap::new(),
            restarting_all: false,
            termination: None,
            status: PodStatus::default(),
        }
    }
}

/// What is shared in memory is written out.
mod shared {
    use std::sync::Arc;

    use k8s_openapi::api::core::v1::Pod;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(pod: &Arc<Pod>, serializer: S) -> Result<S::Ok, S::Error> {
        pod.as_ref().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<Pod>, D::Error> {
        Pod::deserialize(deserializer).map(Arc::new)
    }
}

/// One container over all its attempts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// Attempts begun so far: the number of the next one.
    pub attempts: u32,
    /// As shown in `containerStatuses[].restartCount`.
    pub restart_count: u32,
    /// The attempt that was running when the record was written.
    pub running: Option<RunRecord>,
    /// The last two ends, newest first: `state.terminated` and `lastState.terminated`.
    pub ends: Vec<ExitRecord>,
    /// The crash-loop back-off.
    pub back_off: Option<BackOffRecord>,
    /// It is to run as if it never had, with the pod's other containers (`RestartAllContainers`).
    #[serde(default)]
    pub reset: bool,
    /// `started` was seen true (startup probe, sidecars): init order does not go back on it.
    pub started: bool,
}

/// An attempt that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRecord {
    /// Its id.
    pub id: ContainerId,
    /// Its number.
    pub attempt: u32,
    /// Image id shown in the status.
    pub image_id: String,
    /// Who its processes are.
    #[serde(default)]
    pub user: Option<User>,
    /// Its first instruction.
    pub started_at: Timestamp,
}

/// An attempt that ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Its id.
    pub id: ContainerId,
    /// Its number.
    pub attempt: u32,
    /// Image id shown in the status.
    pub image_id: String,
    /// Who its processes were.
    #[serde(default)]
    pub user: Option<User>,
    /// 0-255.
    pub exit_code: i32,
    /// The kubelet's word: `Completed`, `Error`, `OOMKilled`...
    pub reason: String,
    /// Termination message.
    pub message: Option<String>,
    /// Its first instruction.
    pub started_at: Timestamp,
    /// Its end.
    pub finished_at: Timestamp,
}

/// Where a container is in its crash-loop back-off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackOffRecord {
    /// The delay in force.
    pub delay: Duration,
    /// When it may start again.
    pub until: Timestamp,
}

/// A pod's end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminationRecord {
    /// When it was asked for.
    pub requested_at: Timestamp,
    /// Its grace.
    pub grace: Duration,
    /// `status.reason` it ends with (`Evicted`, `Terminated`), if any.
    pub reason: Option<String>,
    /// `status.message`.
    pub message: Option<String>,
}
