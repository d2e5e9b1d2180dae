//! `NodeConfiguration`: the settings that no kubelet has.
//!
//! In: the document. Out: settings. Every field is ours, so an unknown one is an error.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::yaml::Node;

use super::cluster::{PodNetworkMode, ServiceProxyMode};
use super::{ConfigError, Invalid, NodeConfig, ToolboxFile, decode};

pub(super) const API_VERSION: &str = "wasilet.dev/v1alpha1";
pub(super) const KIND: &str = "NodeConfiguration";

/// `baselineCompiler`: which programs first run as the baseline compiler makes them, in a fraction of the optimising one's
/// time, until that is done too. Their code is slower for as long as the container runs that began with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BaselineCompiler {
    /// Large ones, whose start would wait for seconds.
    #[default]
    Auto,
    /// Every one.
    Always,
    /// None.
    Never,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(dead_code, reason = "apiVersion and kind are fields of the document that were looked at before")]
struct NodeConfiguration {
    api_version: Option<String>,
    kind: Option<String>,
    root_dir: Option<PathBuf>,
    node_name: Option<String>,
    host_path_allowed_prefixes: Option<Vec<PathBuf>>,
    memory_volume_dir: Option<PathBuf>,
    guest_threads: Option<u32>,
    compile_jobs: Option<u32>,
    baseline_compiler: Option<String>,
    registry_hosts_dir: Option<PathBuf>,
    kubeconfig: Option<PathBuf>,
    bootstrap_kubeconfig: Option<PathBuf>,
    node_labels: Option<BTreeMap<String, String>>,
    #[serde(rename = "nodeIP")]
    node_ip: Option<String>,
    pod_network: Option<String>,
    service_proxy: Option<String>,
    artifact_dir: Option<PathBuf>,
    toolbox: Option<ToolboxDocument>,
}

/// One address, or two of different families with a comma between them (the kubelet's `--node-ip`).
///
/// # Errors
/// What is wrong with it.
pub fn node_ips(text: &str) -> Result<Vec<IpAddr>, String> {
    let parsed: Result<Vec<IpAddr>, _> = text.split(',').map(|part| part.trim().parse()).collect();
    let ips =
        parsed.map_err(|_| format!("{text:?} is not an IP address, nor one of each family with a comma between"))?;
    match ips.as_slice() {
        [_] => Ok(ips),
        [one, other] if one.is_ipv4() != other.is_ipv4() => Ok(ips),
        _ => Err(format!("{text:?} must be one address, or one IPv4 and one IPv6 address")),
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ToolboxDocument {
    path: Option<PathBuf>,
    images: Option<Vec<String>>,
}

pub(super) fn apply(path: &Path, document: &Node, config: &mut NodeConfig) -> Result<(), ConfigError> {
    let (document, _) = decode::<NodeConfiguration>(path, document, |_| false)?;
    let invalid = |(field, problem)| ConfigError::Invalid { path: path.to_owned(), field, problem };
    take_over(document, config).map_err(invalid)
}

fn take_over(document: NodeConfiguration, config: &mut NodeConfig) -> Result<(), Invalid> {
    config.root_dir = absolute("rootDir", document.root_dir)?;
    config.memory_volume_dir = absolute("memoryVolumeDir", document.memory_volume_dir)?;
    if let Some(dir) = absolute("registryHostsDir", document.registry_hosts_dir)? {
        config.registry_hosts_dir = dir;
    }
    for prefix in document.host_path_allowed_prefixes.unwrap_or_default() {
        config.host_path_allowed_prefixes.extend(absolute("hostPathAllowedPrefixes", Some(prefix))?);
    }
    if let Some(name) = document.node_name {
        let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        if name.is_empty() || name.len() > 253 || !name.chars().all(legal) || name.starts_with(['-', '.']) {
            return Err(("nodeName", format!("{name:?} is not a lower case DNS name")));
        }
        config.node_name = Some(name);
    }
    config.client.kubeconfig = absolute("kubeconfig", document.kubeconfig)?;
    config.client.bootstrap_kubeconfig = absolute("bootstrapKubeconfig", document.bootstrap_kubeconfig)?;
    config.registration.labels = document.node_labels.unwrap_or_default();
    config.registration.node_ips = match document.node_ip.as_deref() {
        None | Some("") => Vec::new(),
        Some(text) => node_ips(text).map_err(|problem| ("nodeIP", problem))?,
    };
    config.pod_network = match document.pod_network.as_deref() {
        None | Some("" | "auto") => PodNetworkMode::Auto,
        Some("namespace") => PodNetworkMode::Namespace,
        Some("nodeAddress") => PodNetworkMode::NodeAddress,
        Some(other) => return Err(("podNetwork", format!("{other:?} is not auto, namespace or nodeAddress"))),
    };
    config.service_proxy = match document.service_proxy.as_deref() {
        None | Some("" | "auto") => ServiceProxyMode::Auto,
        Some("always") => ServiceProxyMode::Always,
        Some("never") => ServiceProxyMode::Never,
        Some(other) => return Err(("serviceProxy", format!("{other:?} is not auto, always or never"))),
    };
    config.artifact_dir = absolute("artifactDir", document.artifact_dir)?;
    if let Some(toolbox) = document.toolbox {
        if let Some(path) = toolbox.path {
            config.toolbox.file = ToolboxFile::from_setting(path);
            if let ToolboxFile::At(path) = &config.toolbox.file {
                absolute("toolbox.path", Some(path.clone()))?;
            }
        }
        config.toolbox.images = toolbox.images.unwrap_or(std::mem::take(&mut config.toolbox.images));
    }
    config.guest_threads = at_least_one("guestThreads", document.guest_threads)?;
    config.baseline_compiler = match document.baseline_compiler.as_deref() {
        None | Some("" | "auto") => BaselineCompiler::Auto,
        Some("always") => BaselineCompiler::Always,
        Some("never") => BaselineCompiler::Never,
        Some(other) => return Err(("baselineCompiler", format!("{other:?} is not auto, always or never"))),
    };
    config.compile_jobs = at_least_one("compileJobs", document.compile_jobs)?;
    Ok(())
}

fn absolute(field: &'static str, path: Option<PathBuf>) -> Result<Option<PathBuf>, Invalid> {
    match path {
        Some(path) if !path.is_absolute() => Err((field, format!("{} must be an absolute path", path.display()))),
        path => Ok(path),
    }
}

fn at_least_one(field: &'static str, count: Option<u32>) -> Result<Option<u32>, Invalid> {
    if count == Some(0) { Err((field, "must be at least 1".to_owned())) } else { Ok(count) }
}
