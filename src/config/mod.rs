//! Node settings: one file an admin of kubelets can read, and the defaults behind it.
//!
//! In: `--config FILE` with a `kubelet.config.k8s.io/v1beta1` `KubeletConfiguration` and/or a `wasilet.dev/v1alpha1`
//! `NodeConfiguration` document. Out: one [`NodeConfig`] with warnings. A kubelet's field that this node does not
//! honour is a warning that names it, an unknown one an error. Opens no other file and reads no flags (`cli`).

mod cluster;
mod kubelet;
mod node;
#[cfg(test)]
mod tests;
mod toolbox;
mod units;

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::yaml::{self, Node, Place, UnknownField, YamlError};

pub use cluster::{
    Authentication, Authorization, AuthorizationMode, ClientConfig, ImageGcConfig, PodNetworkMode, RegistrationConfig,
    ServerConfig, ServiceProxyMode, TlsVersion,
};
pub use kubelet::NOT_HONOURED;
pub use node::{BaselineCompiler, node_ips};
pub use toolbox::{ToolboxConfig, ToolboxFile};
pub use units::{parse_duration, parse_size};

/// Bytes of a config file; more is a mistake.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Every setting of the node, defaults filled in. `None` is "decided from the machine where it's used".
#[derive(Debug, Clone, PartialEq)]
pub struct NodeConfig {
    /// `rootDir`: everything the node keeps.
    pub root_dir: Option<PathBuf>,
    /// `podLogsDir`: CRI log files.
    pub pod_logs_dir: Option<PathBuf>,
    /// `staticPodPath`: a directory of manifests, or one file.
    pub static_pod_path: Option<PathBuf>,
    /// `fileCheckFrequency`: how often that is read again without word of a change.
    pub file_check_frequency: Duration,
    /// `syncFrequency`: how often what may change unseen is looked at.
    pub sync_frequency: Duration,
    /// `nodeName`: lower case; the machine's host name when not set.
    pub node_name: Option<String>,
    /// `containerLogMaxSize`, bytes.
    pub container_log_max_size: u64,
    /// `containerLogMaxFiles`, at least 2.
    pub container_log_max_files: u32,
    /// `maxPods`.
    pub max_pods: Option<u32>,
    /// `podPidsLimit`: processes per pod.
    pub pod_pids_limit: Option<u32>,
    /// `podCIDR`: where a standalone node takes pod addresses from.
    pub pod_cidr: Option<Cidr>,
    /// `clusterDNS`.
    pub cluster_dns: Vec<IpAddr>,
    /// `clusterDomain`.
    pub cluster_domain: Option<String>,
    /// `resolvConf`: the node's own resolver settings; empty is none, `None` the machine's.
    pub resolv_conf: Option<PathBuf>,
    /// `hostPathAllowedPrefixes`, besides a standalone pod's manifest folder.
    pub host_path_allowed_prefixes: Vec<PathBuf>,
    /// `memoryVolumeDir`: parent of memory emptyDirs, on a tmpfs.
    pub memory_volume_dir: Option<PathBuf>,
    /// `guestThreads`: threads that run guests.
    pub guest_threads: Option<u32>,
    /// `compileJobs`: modules compiled at once.
    pub compile_jobs: Option<u32>,
    /// `baselineCompiler`: whether first starts wait for optimised code.
    pub baseline_compiler: BaselineCompiler,
    /// `artifactDir`: compiled programs; below the root directory when not set. Nodes of one user may share it.
    pub artifact_dir: Option<PathBuf>,
    /// `toolbox`: the shell and the utilities the node offers every container.
    pub toolbox: ToolboxConfig,
    /// `registryHostsDir`: registries in containerd's `certs.d` layout.
    pub registry_hosts_dir: PathBuf,
    /// `podNetwork`: how pods get their addresses.
    pub pod_network: PodNetworkMode,
    /// `serviceProxy`: whether ports of Services are served on the node.
    pub service_proxy: ServiceProxyMode,
    /// The kubelet API.
    pub server: ServerConfig,
    /// The Node object.
    pub registration: RegistrationConfig,
    /// The way to the API server.
    pub client: ClientConfig,
    /// `imageGC*`.
    pub image_gc: ImageGcConfig,
    /// `featureGates`: what is not named here has its default.
    pub feature_gates: BTreeMap<String, bool>,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            root_dir: None,
            pod_logs_dir: None,
            static_pod_path: None,
            // From here on the kubelet's own defaults (apis/config/v1beta1/defaults.go).
            file_check_frequency: Duration::from_secs(20),
            sync_frequency: Duration::from_secs(60),
            node_name: None,
            container_log_max_size: 10 << 20,
            container_log_max_files: 5,
            max_pods: None,
            pod_pids_limit: None,
            pod_cidr: None,
            cluster_dns: Vec::new(),
            cluster_domain: None,
            resolv_conf: None,
            host_path_allowed_prefixes: Vec::new(),
            memory_volume_dir: None,
            guest_threads: None,
            compile_jobs: None,
            baseline_compiler: BaselineCompiler::default(),
            artifact_dir: None,
            toolbox: ToolboxConfig::default(),
            registry_hosts_dir: PathBuf::from("/etc/containerd/certs.d"),
            pod_network: PodNetworkMode::default(),
            service_proxy: ServiceProxyMode::default(),
            server: ServerConfig::default(),
            registration: RegistrationConfig::default(),
            client: ClientConfig::default(),
            image_gc: ImageGcConfig::default(),
            feature_gates: BTreeMap::new(),
        }
    }
}

/// An address range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    /// Its first address.
    pub address: IpAddr,
    /// Bits that all its addresses share.
    pub prefix_length: u8,
}

impl std::str::FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = || format!("invalid CIDR address: {text}");
        let (address, length) = text.split_once('/').ok_or_else(invalid)?;
        let address: IpAddr = address.parse().map_err(|_| invalid())?;
        let prefix_length: u8 = length.parse().map_err(|_| invalid())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        if prefix_length > most { Err(invalid()) } else { Ok(Self { address, prefix_length }) }
    }
}

/// A configuration and what is to be said about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// The settings.
    pub config: NodeConfig,
    /// Fields that a kubelet has and this node does not honour, each named with its place.
    pub warnings: Vec<String>,
}

/// Why a config file is not acceptable. Each begins with `file:line:column` where there is one.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("failed to read config file {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is no YAML, or a value is of the wrong type.
    #[error("{}:{}: {source}", path.display(), source.place)]
    Yaml {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: YamlError,
    },
    /// A field nobody knows.
    #[error("{}:{place}: strict decoding error: {}", path.display(), join(unknown))]
    UnknownFields {
        /// The file.
        path: PathBuf,
        /// The first one's place.
        place: Place,
        /// All of them.
        unknown: Vec<UnknownField>,
    },
    /// A document of a kind that is no node configuration, or the second of its kind.
    #[error("{}:{place}: {problem}", path.display())]
    Document {
        /// The file.
        path: PathBuf,
        /// The document.
        place: Place,
        /// What is wrong with it.
        problem: String,
    },
    /// A value that makes no sense.
    #[error("{}: invalid configuration: {field} {problem}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

fn join(unknown: &[UnknownField]) -> String {
    unknown.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// A field's name and what is wrong with its value.
type Invalid = (&'static str, String);

/// Reads a config file over the defaults.
///
/// # Errors
/// [`ConfigError`]; nothing of a bad file is used.
pub fn load(path: &Path) -> Result<Loaded, ConfigError> {
    let read = |source| ConfigError::Read { path: path.to_owned(), source };
    let size = std::fs::metadata(path).map_err(read)?.len();
    if size > MAX_FILE_BYTES {
        return Err(read(io::Error::other(format!("larger than {MAX_FILE_BYTES} bytes"))));
    }
    parse(path, &std::fs::read_to_string(path).map_err(read)?)
}

/// Reads the text of a config file; `path` is for messages.
///
/// # Errors
/// As [`load`].
pub fn parse(path: &Path, text: &str) -> Result<Loaded, ConfigError> {
    let mut loaded = Loaded { config: NodeConfig::default(), warnings: Vec::new() };
    let mut seen = Vec::new();
    let documents = yaml::parse(text).map_err(|source| ConfigError::Yaml { path: path.to_owned(), source })?;
    for document in &documents {
        let word = |name| document.get(name).and_then(Node::as_str).unwrap_or_default();
        let (version, kind) = (word("apiVersion"), word("kind"));
        let wrong = |problem| ConfigError::Document { path: path.to_owned(), place: document.place, problem };
        if seen.contains(&kind) {
            return Err(wrong(format!("there is more than one {kind} document")));
        }
        seen.push(kind);
        match (version, kind) {
            (kubelet::API_VERSION, kubelet::KIND) => kubelet::apply(path, document, &mut loaded)?,
            (node::API_VERSION, node::KIND) => node::apply(path, document, &mut loaded.config)?,
            _ => return Err(wrong(format!("no kind {kind:?} is registered for version {version:?}"))),
        }
    }
    Ok(loaded)
}

/// Decodes a document and refuses the fields that `is_known` does not know; returns the others that the type lacks.
fn decode<T: serde::de::DeserializeOwned>(
    path: &Path,
    document: &Node,
    is_known: impl Fn(&str) -> bool,
) -> Result<(T, Vec<UnknownField>), ConfigError> {
    let decoded = yaml::decode::<T>(document).map_err(|source| ConfigError::Yaml { path: path.to_owned(), source })?;
    let (known, unknown): (Vec<_>, Vec<_>) = decoded.unknown.into_iter().partition(|field| is_known(&field.path));
    match unknown.first() {
        Some(first) => Err(ConfigError::UnknownFields { path: path.to_owned(), place: first.place, unknown }),
        None => Ok((decoded.value, known)),
    }
}

/// The machine's host name as the kubelet makes a node name of it: trimmed, lower case.
#[must_use]
pub fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().trim().to_lowercase();
    if name.is_empty() { "localhost".to_owned() } else { name }
}
