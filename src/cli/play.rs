//! `wasilet play`: one manifest in the foreground, its logs and events here.
//!
//! In: a manifest. Out: `POD/CONTAINER  line` on stdout, events on stderr; exit code 0 when all pods succeeded or Ctrl-C
//! ended them, 1 when one failed. Nothing of its pods is left behind.

mod printer;

use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use k8s_openapi::api::core::v1::PodStatus;
use tokio_util::sync::CancellationToken;

use super::{Global, paths, signals};
use crate::agent::{Node, NodeOptions};
use crate::config::{self, NodeConfig, ToolboxFile};
use crate::source::manifest;
use crate::status::StatusChange;
use crate::worker::{ShutdownMode, Termination};

use self::printer::Printer;

/// Arguments of `wasilet play`.
#[derive(Debug, clap::Args)]
pub struct PlayArguments {
    /// The manifest, or `-` for stdin: Pods, what they refer to, and Deployments, Jobs and the like, which run as their pods
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// KubeletConfiguration and NodeConfiguration documents
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The toolbox's wasm file, "" for none [default: toolbox.wasm where it is installed]
    #[arg(long, value_name = "FILE", env = "WASILET_TOOLBOX")]
    toolbox: Option<OsString>,
    /// Leave out the events
    #[arg(long, short)]
    quiet: bool,
}

/// Plays a manifest.
///
/// # Errors
/// When the manifest is bad, or the node cannot start.
pub async fn play(global: &Global, args: PlayArguments) -> anyhow::Result<ExitCode> {
    global.init_logging(crate::telemetry::Level::Warn)?;
    let root_dir = global.root_dir();
    let mut config = match &args.config {
        Some(file) => config::load(file)?.config,
        None => NodeConfig::default(),
    };
    if let Some(path) = args.toolbox {
        config.toolbox.file = ToolboxFile::from_setting(path.into());
    }
    let (file, _stdin) = manifest_file(&args.file)?;
    // Read once before anything starts: a bad manifest is an error of this command, not a line in a log.
    let bytes = std::fs::read(&file).with_context(|| format!("{}", file.display()))?;
    let checked = manifest::parse(&file, &bytes)?;
    anyhow::ensure!(!checked.pods.is_empty(), "{}: there is no pod in it", file.display());

    let stop = CancellationToken::new();
    signals::cancel_on_signal(stop.clone())?;
    let socket = paths::socket(&root_dir);
    let name = config.node_name.clone().unwrap_or_else(config::host_name);
    let node =
        Node::start(NodeOptions { root_dir, name, manifests: Some(file), cluster: None, socket, config }).await?;
    let printer = Printer::start(&node, args.quiet);
    let failed = tokio::select! {
        // Runs until the token is cancelled; dropping it drops updates nobody wants any more.
        () = node.follow(&stop) => None,
        failed = all_ended(&node, checked.pods.len()) => Some(failed),
    };
    match failed {
        Some(failed) => {
            // Their logs are closed and go with them: read to their ends first.
            printer.finish().await;
            node.stop(ShutdownMode::EndPods(Termination::Graceful)).await?;
            Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
        }
        None => {
            eprintln!("Stopping");
            let result = node.stop(ShutdownMode::EndPods(Termination::Graceful)).await;
            printer.finish().await;
            result.map(|()| ExitCode::SUCCESS)
        }
    }
}

/// The manifest as an absolute path; stdin becomes a file that lives as long as the guard.
fn manifest_file(file: &Path) -> anyhow::Result<(PathBuf, Option<StdinFile>)> {
    if file != Path::new("-") {
        return Ok((std::path::absolute(file)?, None));
    }
    let mut bytes = Vec::new();
    std::io::stdin()
        .take(manifest::MAX_BYTES as u64 + 1)
        .read_to_end(&mut bytes)
        .context("reading the manifest from stdin")?;
    let path = std::env::temp_dir().join(format!("wasilet-play-{}.yaml", uuid::Uuid::new_v4()));
    std::fs::write(&path, bytes).with_context(|| format!("{}", path.display()))?;
    Ok((path.clone(), Some(StdinFile(path))))
}

struct StdinFile(PathBuf);

impl Drop for StdinFile {
    fn drop(&mut self) {
        // In the temporary directory: the machine's own cleaning takes what is left.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Waits until `pods` pods have ended for good; whether one of them failed.
async fn all_ended(node: &Node, pods: usize) -> bool {
    let status = node.status().clone();
    let mut changes = status.subscribe();
    loop {
        let ended: Vec<bool> = status.list().iter().filter_map(|pod| failed(&pod.status)).collect();
        if ended.len() >= pods {
            return ended.contains(&true);
        }
        match changes.recv().await {
            Ok(StatusChange::Changed(..) | StatusChange::Removed(..)) => {}
            Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {}
            Err(tokio::sync::broadcast::error::RecvError::Closed) => return false,
        }
    }
}

/// `None` while the pod has not ended.
fn failed(status: &PodStatus) -> Option<bool> {
    match status.phase.as_deref() {
        Some("Succeeded") => Some(false),
        Some("Failed") => Some(true),
        _ => None,
    }
}
