//! `wasilet run`: the node, until it is told to stop.
//!
//! In: flags and a config file. Out: exit code 0 after a clean stop. SIGTERM and SIGINT stop guests gracefully and keep
//! their pods for the next run; a second one stops at once.

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio_util::sync::CancellationToken;

use super::{Global, paths, signals};
use crate::agent::{Node, NodeOptions};
use crate::config::{self, NodeConfig, ToolboxFile};
use crate::identity::{self, AccessOptions, IdentityError};
use crate::worker::ShutdownMode;

/// What guests get to end when the agent stops. systemd's own patience is 90 s; a guest's `terminationGracePeriodSeconds` is
/// honoured up to this.
const STOP_GRACE: Duration = Duration::from_secs(30);

/// Arguments of `wasilet run`.
#[derive(Debug, clap::Args)]
pub struct RunArguments {
    /// Directory of manifests, or one file, re-read when it changes [default: staticPodPath of the config file]
    #[arg(long, value_name = "PATH")]
    manifests: Option<PathBuf>,
    /// KubeletConfiguration and NodeConfiguration documents [default: config.yaml of the root directory, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Name of the node, appended to the names of its static pods [default: the host name in lower case]
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// The same, as the kubelet calls it
    #[arg(long, value_name = "NAME", hide = true, conflicts_with = "node_name")]
    hostname_override: Option<String>,
    /// Credentials of the node in its cluster; written after a bootstrap
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Credentials to ask for those with, while there are none
    #[arg(long, value_name = "FILE")]
    bootstrap_kubeconfig: Option<PathBuf>,
    /// Be a node of the cluster that this pod runs in, by its service account
    #[arg(long, conflicts_with_all = ["kubeconfig", "bootstrap_kubeconfig"])]
    in_cluster: bool,
    /// Address of the node, or one of each family as IP,IP [default: that of the default route]
    #[arg(long, value_name = "IP", value_parser = parse_node_ips)]
    node_ip: Option<NodeIps>,
    /// The toolbox's wasm file, "" for none [default: toolbox.wasm where it is installed]
    #[arg(long, value_name = "FILE", env = "WASILET_TOOLBOX")]
    toolbox: Option<OsString>,
    /// Labels of the node, as key=value,key=value
    #[arg(long, value_name = "LABELS", value_delimiter = ',', value_parser = label)]
    node_labels: Vec<(String, String)>,
}

/// What `--node-ip` says.
#[derive(Debug, Clone)]
struct NodeIps(Vec<IpAddr>);

fn parse_node_ips(text: &str) -> Result<NodeIps, String> {
    config::node_ips(text).map(NodeIps)
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not key=value"))?;
    if key.is_empty() { Err(format!("{text:?} has no key")) } else { Ok((key.to_owned(), value.to_owned())) }
}

/// Runs the node.
///
/// # Errors
/// When it cannot start, or pods did not end in time.
pub async fn run(global: &Global, args: RunArguments) -> anyhow::Result<ExitCode> {
    global.init_logging(crate::telemetry::Level::Info)?;
    let mut config = load_config(args.config.or_else(|| joined_config(global)).as_deref())?;
    config.client.kubeconfig = absolute(args.kubeconfig)?.or(config.client.kubeconfig);
    config.client.bootstrap_kubeconfig = absolute(args.bootstrap_kubeconfig)?.or(config.client.bootstrap_kubeconfig);
    if let Some(path) = args.toolbox {
        config.toolbox.file = ToolboxFile::from_setting(path.into());
    }
    if let Some(NodeIps(ips)) = args.node_ip {
        config.registration.node_ips = ips;
    }
    config.registration.labels.extend(args.node_labels);
    let joins = args.in_cluster || config.client.kubeconfig.is_some() || config.client.bootstrap_kubeconfig.is_some();
    // A pod remembers the file it came from: the path must mean the same whatever the next run's directory is.
    let manifests = absolute(args.manifests.or_else(|| config.static_pod_path.clone()))?;
    if manifests.is_none() && !joins {
        bail!(
            "nothing to run: give --manifests PATH (or staticPodPath in the file of --config) for a node of its own, \
             --kubeconfig FILE for a node of a cluster, or both"
        );
    }
    let root_dir = global.root_dir.clone().or_else(|| config.root_dir.clone()).unwrap_or_else(paths::default_root_dir);
    let name = args.node_name.or(args.hostname_override).or_else(|| config.node_name.clone());
    let name = name.unwrap_or_else(config::host_name);
    let socket = paths::socket(&root_dir);
    let stop = CancellationToken::new();
    signals::cancel_on_signal(stop.clone())?;
    let cluster = if joins {
        let options = AccessOptions::new(&config.client, &root_dir, &name);
        match identity::connect(options, &stop).await {
            Err(IdentityError::Stopped) => return Ok(ExitCode::SUCCESS),
            access => Some(access?),
        }
    } else {
        None
    };
    let node = Node::start(NodeOptions { root_dir, name, manifests, cluster, socket, config }).await?;
    tracing::info!(node = %node.name(), version = env!("CARGO_PKG_VERSION"), "Started");
    node.follow(&stop).await;
    tracing::info!("Stopping: guests end, their pods stay for the next run");
    node.stop(ShutdownMode::KeepPods(STOP_GRACE)).await?;
    Ok(ExitCode::SUCCESS)
}

fn absolute(path: Option<PathBuf>) -> anyhow::Result<Option<PathBuf>> {
    path.map(|path| std::path::absolute(&path).with_context(|| format!("{}", path.display()))).transpose()
}

/// What `wasilet join` has written below the root directory.
fn joined_config(global: &Global) -> Option<PathBuf> {
    let root_dir = global.root_dir.clone().unwrap_or_else(paths::default_root_dir);
    Some(root_dir.join("config.yaml")).filter(|file| file.exists())
}

fn load_config(file: Option<&std::path::Path>) -> anyhow::Result<NodeConfig> {
    let Some(file) = file else { return Ok(NodeConfig::default()) };
    let loaded = config::load(file)?;
    for warning in loaded.warnings {
        tracing::warn!("{warning}");
    }
    Ok(loaded.config)
}
