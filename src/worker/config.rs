//! What every worker is given: settings of the node and handles to the rooms below.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::metrics::WorkerMetrics;
use crate::clock::Clock;
use crate::events::Recorder;
use crate::logs::LogStore;
use crate::objects::ObjectStore;
use crate::pod::dns::NodeDns;
use crate::pod::downward::NodeFacts;
use crate::pod::resources::NodeLimits;
use crate::pod::run::LogRotation;
use crate::probe::ProbeMetrics;
use crate::state::StateStore;
use crate::status::{StatusCache, StatusMetrics};
use crate::volume::VolumeManager;

/// Settings that are the same for all pods of the node.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// What the downward API tells.
    pub node: NodeFacts,
    /// DNS settings; those of the node itself are in `resolv_conf`.
    pub dns: NodeDns,
    /// The file with the node's own resolver settings, read when a sandbox is made. `None` keeps those of `dns`.
    pub resolv_conf: Option<PathBuf>,
    /// Rotation of container logs.
    pub log_rotation: LogRotation,
    /// Limits a pod cannot set.
    pub node_limits: NodeLimits,
    /// Bytes of memory the machine has.
    pub memory_capacity: i64,
    /// How often a pod with storage limits is measured; the kubelet measures every 10 s.
    pub usage_period: Duration,
    /// `syncFrequency`: how often what may change unseen is looked at, the volumes of drivers that want to publish again.
    pub sync_period: Duration,
}

impl WorkerConfig {
    /// The kubelet's defaults for a node.
    #[must_use]
    pub fn new(node: NodeFacts, dns: NodeDns) -> Self {
        Self {
            memory_capacity: node.allocatable_memory_bytes,
            node,
            dns,
            resolv_conf: None,
            log_rotation: LogRotation { max_size_bytes: 10 << 20, max_files: 5 },
            node_limits: NodeLimits::default(),
            usage_period: Duration::from_secs(10),
            sync_period: Duration::from_secs(60),
        }
    }
}

/// Handles to the rooms below.
#[derive(Debug)]
pub struct Services<R> {
    /// Images, sandboxes, containers.
    pub runtime: Arc<R>,
    /// Volumes.
    pub volumes: VolumeManager,
    /// ConfigMaps, Secrets and what else of a cluster pods are made of.
    pub objects: ObjectStore,
    /// Records on disk.
    pub state: StateStore,
    /// Container logs.
    pub logs: LogStore,
    /// Events.
    pub events: Recorder,
    /// Statuses.
    pub status: StatusCache,
    /// Figures of probes.
    pub probes: ProbeMetrics,
    /// Figures of the workers.
    pub metrics: WorkerMetrics,
    /// Figures of statuses; pulls are told to them.
    pub starts: StatusMetrics,
    /// The time that is written down.
    pub clock: Clock,
}
