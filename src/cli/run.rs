//! `wasilet run`: the node, until it is told to stop.
//!
//! In: flags and a config file. Out: exit code 0 after a clean stop. SIGTERM and SIGINT stop guests gracefully and keep
//! their pods for the next run; a second one stops at once.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio_util::sync::CancellationToken;

use super::{Global, paths, signals};
use crate::agent::{Node, NodeOptions};
use crate::config::{self, NodeConfig};
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
    /// KubeletConfiguration and NodeConfiguration documents
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Name of the node, appended to the names of its pods [default: the host name in lower case]
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
}

/// Runs the node.
///
/// # Errors
/// When it cannot start, or pods did not end in time.
pub async fn run(global: &Global, args: RunArguments) -> anyhow::Result<ExitCode> {
    global.init_logging(crate::telemetry::Level::Info)?;
    let config = load_config(args.config.as_deref())?;
    let Some(manifests) = args.manifests.or_else(|| config.static_pod_path.clone()) else {
        bail!("no manifests: give --manifests PATH, or staticPodPath in the file of --config");
    };
    // A pod remembers the file it came from: the path must mean the same whatever the next run's directory is.
    let manifests = std::path::absolute(&manifests).with_context(|| format!("{}", manifests.display()))?;
    let root_dir = global.root_dir.clone().or_else(|| config.root_dir.clone()).unwrap_or_else(paths::default_root_dir);
    let name = args.node_name.or_else(|| config.node_name.clone()).unwrap_or_else(config::host_name);
    let socket = paths::socket(&root_dir);
    let stop = CancellationToken::new();
    signals::cancel_on_signal(stop.clone())?;
    let node = Node::start(NodeOptions { root_dir, name, manifests, socket, config })?;
    tracing::info!(node = %node.name(), version = env!("CARGO_PKG_VERSION"), "Started");
    node.follow(&stop).await;
    tracing::info!("Stopping: guests end, their pods stay for the next run");
    node.stop(ShutdownMode::KeepPods(STOP_GRACE)).await?;
    Ok(ExitCode::SUCCESS)
}

fn load_config(file: Option<&std::path::Path>) -> anyhow::Result<NodeConfig> {
    let Some(file) = file else { return Ok(NodeConfig::default()) };
    let loaded = config::load(file)?;
    for warning in loaded.warnings {
        tracing::warn!("{warning}");
    }
    Ok(loaded.config)
}
