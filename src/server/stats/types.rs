//! The Summary API: `k8s.io/kubelet/pkg/apis/stats/v1alpha1`, the fields that this node fills.

use jiff::Timestamp;
use serde::{Serialize, Serializer};

/// A time, written to the second as `metav1.Time`; expositions take its milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatsTime(pub Timestamp);

impl Serialize for StatsTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0.strftime("%Y-%m-%dT%H:%M:%SZ"))
    }
}

/// Everything.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// The node.
    pub node: NodeStats,
    /// Its pods that have running containers.
    pub pods: Vec<PodStats>,
}

/// The node.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStats {
    /// Its name.
    pub node_name: String,
    /// The agent, and all pods together.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub system_containers: Vec<ContainerStats>,
    /// When the machine started.
    pub start_time: StatsTime,
    /// CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<CpuStats>,
    /// Memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryStats>,
    /// Its interfaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkStats>,
    /// The file system of the root directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fs: Option<FsStats>,
    /// Images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<RuntimeStats>,
    /// Processes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rlimit: Option<RlimitStats>,
}

/// File systems of images and containers.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuntimeStats {
    /// Where images are.
    pub image_fs: FsStats,
    /// Where writable layers are: the same file system here.
    pub container_fs: FsStats,
}

/// Processes of the machine.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RlimitStats {
    /// When.
    pub time: StatsTime,
    /// The highest process id.
    pub maxpid: i64,
    /// Processes now.
    pub curproc: i64,
}

/// One pod.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodStats {
    /// Which.
    pub pod_ref: PodReference,
    /// When the node took it.
    pub start_time: StatsTime,
    /// Those that run.
    pub containers: Vec<ContainerStats>,
    /// Sum of them.
    pub cpu: CpuStats,
    /// Sum of them.
    pub memory: MemoryStats,
    /// Its own interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkStats>,
    /// Volumes that have a size.
    #[serde(rename = "volume", skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeStats>,
    /// Disk emptyDirs, logs and writable layers.
    #[serde(rename = "ephemeral-storage", skip_serializing_if = "Option::is_none")]
    pub ephemeral_storage: Option<FsStats>,
    /// Processes.
    #[serde(rename = "process_stats")]
    pub process_stats: ProcessStats,
}

/// A pod's names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PodReference {
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// UID.
    pub uid: String,
}

/// Processes of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProcessStats {
    /// How many.
    pub process_count: u64,
}

/// One container.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerStats {
    /// Its name.
    pub name: String,
    /// When it started.
    pub start_time: StatsTime,
    /// CPU.
    pub cpu: CpuStats,
    /// Memory.
    pub memory: MemoryStats,
    /// Its writable layer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rootfs: Option<FsStats>,
    /// Its logs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logs: Option<FsStats>,
    /// Not of the API: what expositions show besides.
    #[serde(skip)]
    pub detail: Option<ContainerDetail>,
}

/// What cAdvisor's series have and the summary has not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerDetail {
    /// Its id.
    pub id: String,
    /// Its image, as in its status.
    pub image: String,
    /// Highest memory so far.
    pub memory_peak_bytes: u64,
    /// Its memory limit.
    pub memory_limit_bytes: Option<u64>,
    /// Its CPU limit.
    pub cpu_limit_milli: Option<u64>,
    /// Processes now.
    pub processes: u64,
}

/// CPU time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CpuStats {
    /// When it was read.
    pub time: StatsTime,
    /// Over the last window; none before there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage_nano_cores: Option<u64>,
    /// Since the start.
    pub usage_core_nano_seconds: u64,
}

/// Memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MemoryStats {
    /// When it was read.
    pub time: StatsTime,
    /// What is left of the limit; none without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub available_bytes: Option<u64>,
    /// All that is charged.
    pub usage_bytes: u64,
    /// What cannot be taken away.
    pub working_set_bytes: u64,
    /// What is not of files.
    pub rss_bytes: u64,
}

/// A file system, and how much of it somebody uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FsStats {
    /// When it was read.
    pub time: StatsTime,
    /// Free for us.
    pub available_bytes: u64,
    /// All of it.
    pub capacity_bytes: u64,
    /// Used by whom these figures are of.
    pub used_bytes: u64,
    /// Free inodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inodes_free: Option<u64>,
    /// All inodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inodes: Option<u64>,
    /// Used inodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inodes_used: Option<u64>,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VolumeStats {
    /// Its use.
    #[serde(flatten)]
    pub fs: FsStats,
    /// Its name.
    pub name: String,
    /// The claim it is of.
    #[serde(rename = "pvcRef", skip_serializing_if = "Option::is_none")]
    pub claim: Option<ClaimReference>,
}

/// A claim's names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClaimReference {
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
}

/// Interfaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NetworkStats {
    /// When it was read.
    pub time: StatsTime,
    /// The one with the default route.
    #[serde(flatten)]
    pub default: InterfaceStats,
    /// All.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<InterfaceStats>,
}

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InterfaceStats {
    /// Its name.
    pub name: String,
    /// Received.
    pub rx_bytes: u64,
    /// Errors while receiving.
    pub rx_errors: u64,
    /// Sent.
    pub tx_bytes: u64,
    /// Errors while sending.
    pub tx_errors: u64,
}
