//! What the worker asks of the runtime, and what the runtime reports back: plain data only.
//!
//! Everything here is serde and owns its bytes, so that a process boundary can be put between the
//! two sides later. No `Arc`, no handle, no stream is part of these types.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::toolbox::ToolboxUse;
use crate::ids::{ContainerId, Digest, PodRef, PodUid};

/// What the containers of one pod share: identity, network and volumes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// The pod.
    pub pod: PodRef,
    /// Its UID, the sandbox's key.
    pub uid: PodUid,
    /// What `hostname` shows in the containers.
    pub hostname: String,
    /// The pod's network.
    pub network: SandboxNetwork,
    /// Every volume of the pod, by the name that [`MountSpec::volume`] uses.
    pub volumes: Vec<VolumeSpec>,
    /// What its containers may use together.
    #[serde(default)]
    pub limits: PodLimits,
}

/// What the containers of a pod may use together: what a kubelet writes into the pod's cgroup. `None` is "no limit".
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodLimits {
    /// Bytes over all its containers.
    pub memory_bytes: Option<u64>,
    /// CPU quota in thousandths of a core, over all its containers.
    pub cpu_milli: Option<u64>,
    /// Share of the pod under contention with others, as `cpu.shares`; its containers divide it by their own.
    pub cpu_shares: u64,
}

/// Which network a pod is in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxNetwork {
    /// The pod's own addresses or the node's.
    pub mode: NetworkMode,
    /// Resolver settings, shown as `/etc/resolv.conf` and used by name lookup.
    pub dns: DnsConfig,
    /// What `/etc/hosts` calls the pod's addresses.
    #[serde(default)]
    pub names: Vec<String>,
    /// `hostAliases`, in the order written.
    pub host_aliases: Vec<HostAlias>,
    /// Ports of the node that lead to the pod.
    #[serde(default)]
    pub host_ports: Vec<HostPort>,
}

/// A `hostPort` of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostPort {
    /// Transport.
    pub protocol: PortProtocol,
    /// `hostIP`: one address of the node instead of all.
    pub host_ip: Option<IpAddr>,
    /// `hostPort`.
    pub host_port: u16,
    /// `containerPort`.
    pub container_port: u16,
}

/// `ports[].protocol` as far as WASI has it: SCTP is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PortProtocol {
    /// `TCP`.
    Tcp,
    /// `UDP`.
    Udp,
}

impl PortProtocol {
    /// Kubernetes' name of it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }
}

/// Whether a pod has addresses of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetworkMode {
    /// An address of the pod's own, given by `network`.
    Pod,
    /// `hostNetwork: true`: the node's own sockets.
    Host,
}

/// `/etc/resolv.conf` as data.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsConfig {
    /// Servers, at most three as resolv.conf(5) reads.
    pub nameservers: Vec<IpAddr>,
    /// Search domains in order.
    pub searches: Vec<String>,
    /// Options such as `ndots:5`.
    pub options: Vec<String>,
}

/// One entry of `hostAliases`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostAlias {
    /// The address.
    pub ip: IpAddr,
    /// The names it answers to.
    pub hostnames: Vec<String>,
}

/// One volume of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSpec {
    /// `volumes[].name`.
    pub name: String,
    /// What is in it.
    pub source: VolumeSource,
    /// What the volume itself allows, whatever its mounts say: a claim used `readOnly`, a read-only CSI volume.
    #[serde(default)]
    pub access: Access,
    /// A group that every container gets for it (`pv.kubernetes.io/gid`).
    #[serde(default)]
    pub group: Option<u32>,
}

/// Where a volume's files are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum VolumeSource {
    /// A directory of the node that the node itself made and owns: emptyDir on its disk or tmpfs.
    NodeDirectory {
        /// Absolute path on the node.
        path: PathBuf,
        /// Bytes after which the pod is evicted (disk) or gets ENOSPC (memory).
        size_limit: Option<u64>,
        /// Whether the bytes count as the container's memory.
        medium: Medium,
    },
    /// A path that belongs to the host's owner: `hostPath`. May hang, may change under us.
    HostPath {
        /// Absolute path on the node, already checked against the allow-list.
        path: PathBuf,
        /// What is below it and no guest sees: places of the node's own, and the kernel's.
        hidden: Vec<PathBuf>,
    },
    /// Files whose bytes the agent holds: configMap, secret, projected, downwardAPI.
    Projection(Projection),
    /// A projection whose content comes when a guest first looks at it, which waits for it.
    Deferred,
}

/// Where an emptyDir's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Medium {
    /// The node's disk.
    Disk,
    /// A tmpfs that the node owns; charged to the container that writes.
    Memory,
}

/// The whole content of a projected volume, replaced as one.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Projection {
    /// By relative path with `/` (no `..`), as the kubelet's AtomicWriter takes.
    pub files: BTreeMap<String, ProjectedFile>,
    /// `fsGroup`: the group of everything in it, which may read it.
    #[serde(default)]
    pub fs_group: Option<u32>,
}

/// One file of a [`Projection`].
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProjectedFile {
    /// Content; may be a secret, so it has no `Debug`.
    pub data: Vec<u8>,
    /// Permission bits, such as 0o644.
    pub mode: u32,
    /// Its owner; 0 unless it is a token of a pod that runs as one user.
    #[serde(default)]
    pub uid: u32,
}

impl std::fmt::Debug for Projection {
    /// Names and sizes only: the bytes may be a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.files.iter().map(|(path, file)| (path, file.data.len()))).finish()
    }
}

/// One attempt of one container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// New for every attempt.
    pub id: ContainerId,
    /// `containers[].name`.
    pub name: String,
    /// 0 for the first attempt; the `N` of `N.log`.
    pub attempt: u32,
    /// The image, pulled and unpacked.
    pub image: ImageSpec,
    /// The program and its arguments, `argv[0]` first; never empty.
    pub argv: Vec<String>,
    /// The final environment, in order, without duplicates.
    pub env: Vec<(String, String)>,
    /// Absolute path in the container.
    pub working_dir: String,
    /// Volumes of the sandbox at their places, in the order of the spec.
    pub mounts: Vec<MountSpec>,
    /// Who the processes are.
    pub user: User,
    /// Whether the container may write its own root.
    pub root: Access,
    /// A directory of the node for the container's own writes; made by the runtime, removed by the worker.
    pub writable_dir: PathBuf,
    /// What it may use.
    pub limits: Limits,
    /// What `/proc/sys` shows, by dotted name.
    #[serde(default)]
    pub sysctls: BTreeMap<String, String>,
    /// What `/proc/self/oom_score_adj` shows: how soon a kernel would end it when the machine is out of memory.
    #[serde(default)]
    pub oom_score_adj: i32,
    /// Standard streams.
    pub stdio: StdioSpec,
    /// The CRI log file to append to.
    pub log_path: PathBuf,
    /// Rotation of that file.
    pub log_rotation: LogRotation,
    /// `terminationMessagePath`: where in the container the message file is.
    pub termination_message_path: String,
    /// The node's file behind it (at most 4096 bytes are read).
    pub termination_message_file: PathBuf,
    /// What SIGTERM means to it.
    pub termination: TerminationStyle,
    /// `ports[]` with protocol TCP: where an HTTP component listens (the first one, else 80).
    pub container_ports: Vec<u16>,
    /// Whether the node's toolbox stands in for programs the image lacks.
    pub toolbox: ToolboxUse,
    /// Those of them that listeners are open for when the program starts, as descriptors 4, 5... (annotation
    /// `wasilet.dev/preopen-ports`).
    #[serde(default)]
    pub preopened_ports: Vec<u16>,
    /// Whose processes it sees.
    #[serde(default)]
    pub processes: ProcessNamespace,
}

/// Whose processes the processes of a container see, signal, and number themselves among.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProcessNamespace {
    /// Its own.
    #[default]
    Container,
    /// All containers' of the pod: `shareProcessNamespace`.
    Pod,
    /// Those of the container of this name and its own: `targetContainerName`.
    Target(String),
}

/// A pulled image as the runtime needs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSpec {
    /// As the pod wrote it, for messages.
    pub reference: String,
    /// Digest of the image's manifest.
    pub manifest_digest: Digest,
    /// Root file system layers, lowest first; empty for a bare wasm artifact.
    pub layers: Vec<LayerSpec>,
    /// The bare wasm artifact, which appears in the container as [`Self::ARTIFACT_PATH`].
    pub artifact: Option<ArtifactSpec>,
}

impl ImageSpec {
    /// Where the one layer of a wasm artifact is in its container.
    pub const ARTIFACT_PATH: &'static str = "/app.wasm";
}

/// One unpacked layer: an uncompressed tar and its index (see `vfs::layer`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerSpec {
    /// The layer's diff id: digest of the uncompressed tar.
    pub diff_id: Digest,
    /// The tar on the node.
    pub tar: PathBuf,
    /// Its index on the node.
    pub index: PathBuf,
}

/// A wasm file of the image store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactSpec {
    /// Digest of the wasm bytes.
    pub digest: Digest,
    /// The file on the node.
    pub path: PathBuf,
}

/// A volume at a place in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountSpec {
    /// `volumeMounts[].name`.
    pub volume: String,
    /// Absolute path in the container.
    pub mount_path: String,
    /// `subPath`, relative, without `..`; empty for the whole volume.
    pub sub_path: String,
    /// `readOnly`.
    pub access: Access,
    /// The pulled image, where the volume is one (`volumes[].image`): it belongs to the container, not to the sandbox.
    #[serde(default)]
    pub image: Option<ImageSpec>,
}

/// Whether writes are allowed; denied ones get EROFS.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Access {
    /// Reads and writes.
    #[default]
    ReadWrite,
    /// Reads only.
    ReadOnly,
}

/// Numeric identity of a container's processes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// `runAsUser`, else the image's, else 0.
    pub uid: u32,
    /// `runAsGroup`, else the image's, else 0.
    pub gid: u32,
    /// `supplementalGroups` and `fsGroup`.
    pub groups: Vec<u32>,
}

/// What a container may use. `None` is "no limit of its own".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes over all its stores, tables, pipes, socket buffers and memory volumes.
    pub memory_bytes: Option<u64>,
    /// CPU quota in thousandths of a core.
    pub cpu_milli: Option<u64>,
    /// Share under contention, as `cpu.shares` (1024 a core requested; 2 when nothing was).
    pub cpu_shares: u64,
    /// Bytes of its own writes plus logs; above it the pod is evicted.
    pub ephemeral_storage_bytes: Option<u64>,
    /// Processes at once.
    pub processes: u32,
    /// Open files at once, per process.
    pub open_files: u32,
}

/// Standard streams of a container or an exec.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StdioSpec {
    /// `stdin`, `stdinOnce`.
    pub stdin: Stdin,
    /// `tty`.
    pub tty: Tty,
}

/// What standard input is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stdin {
    /// Reads end of file at once.
    Closed,
    /// Open; each attach may write, it never ends.
    Open,
    /// Open until the first attached client leaves (`stdinOnce`).
    Once,
}

/// Whether a terminal stands between the program and the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Tty {
    /// Separate stdout and stderr.
    None,
    /// One terminal with echo and line editing.
    Terminal,
}

/// Size-based log rotation (`containerLogMaxSize`, `containerLogMaxFiles`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRotation {
    /// Bytes after which the file is rotated.
    pub max_size_bytes: u64,
    /// Files kept, the current one included; at least 2.
    pub max_files: u32,
}

/// What a guest gets on SIGTERM (annotation `wasilet.dev/termination`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TerminationStyle {
    /// Told if it listens to signals; drained if it has sockets; ended otherwise.
    Auto,
    /// The whole grace period whatever it does.
    Wait,
}

/// Another program in a running container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecSpec {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Standard streams.
    pub stdio: StdioSpec,
}

/// What the runtime tells the worker about a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerExit {
    /// The pod.
    pub uid: PodUid,
    /// Which attempt.
    pub id: ContainerId,
    /// 0-255; 128+signal when ended by one.
    pub exit_code: u8,
    /// Why.
    pub cause: ExitCause,
    /// The guest's first instruction.
    pub started_at: SystemTime,
    /// Its end.
    pub finished_at: SystemTime,
}

/// Why a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitCause {
    /// It returned or called exit.
    Exited,
    /// It trapped (134); the message holds the wasm backtrace.
    Trapped {
        /// Trap and backtrace, already bounded to 4096 bytes.
        message: String,
    },
    /// It went over its memory limit (137, `OOMKilled`).
    OutOfMemory,
    /// It was asked to stop and did (143 unless it chose a code).
    Stopped,
    /// Its grace was over, or it was killed for another reason (137).
    Killed,
    /// Host code failed on its behalf (128).
    HostFault {
        /// What failed.
        message: String,
    },
}

/// How to end a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopRequest {
    /// Signal to deliver first; 15 unless the image or pod says otherwise.
    pub signal: u8,
    /// Time until the kill.
    pub grace: Duration,
}

/// One reading of a container's use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerUsage {
    /// Time spent running guest code, all its processes.
    pub cpu: Duration,
    /// Bytes charged now.
    pub memory_bytes: u64,
    /// Highest charge so far.
    pub memory_peak_bytes: u64,
    /// Processes now.
    pub processes: u32,
    /// Bytes in its writable layer.
    pub writable_bytes: u64,
}
