//! One node: its parts, started in order and drained in order.

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::Desired;
use super::facts::{logs_dir, memory_root, node_dns, node_facts};
use crate::clock::Clock;
use crate::config::NodeConfig;
use crate::events::Recorder;
use crate::ids::PodUid;
use crate::image::{ImageConfig, ImageService};
use crate::logs::LogStore;
use crate::network::{IpRange, NodeNetwork, NodeNetworkConfig};
use crate::objects::ObjectStore;
use crate::pod::run::LogRotation;
use crate::runtime::{Runtime, RuntimeConfig};
use crate::server::{NodeApi, Server};
use crate::source::PodUpdate;
use crate::source::file::{FileSource, FileSourceConfig};
use crate::state::{NoFaults, PodRecord, StateStore};
use crate::status::StatusCache;
use crate::volume::{VolumeConfig, VolumeManager};
use crate::worker::{Drained, NodeRuntime, Services, ShutdownMode, WorkerConfig, WorkerPool};

/// Updates the source may be ahead of the workers: a queue, not a store, since a full one makes it wait.
const UPDATES: usize = 64;

/// What a node is started with.
#[derive(Debug)]
pub struct NodeOptions {
    /// The root directory.
    pub root_dir: PathBuf,
    /// The node's name.
    pub name: String,
    /// Manifests: a directory or one file.
    pub manifests: PathBuf,
    /// Where the local API is.
    pub socket: PathBuf,
    /// Settings.
    pub config: NodeConfig,
}

/// A running node.
pub struct Node {
    name: String,
    max_pods: Option<usize>,
    workers: WorkerPool<NodeRuntime>,
    status: StatusCache,
    events: Recorder,
    logs: LogStore,
    runtime: Arc<Runtime>,
    adopted: Vec<(PodUid, Option<PathBuf>)>,
    updates: Mutex<Option<mpsc::Receiver<PodUpdate>>>,
    stop_source: CancellationToken,
    source: JoinHandle<()>,
    stop_server: CancellationToken,
    server: JoinHandle<()>,
}

impl Node {
    /// Starts every part. Pods of the last run are taken over; those that nobody wants end once the manifests were read.
    ///
    /// # Errors
    /// What could not be started, and why; nothing of it runs then.
    pub fn start(options: NodeOptions) -> anyhow::Result<Self> {
        let NodeOptions { root_dir, name, manifests, socket, config } = options;
        raise_open_files();
        let clock = Clock::System;
        let state = StateStore::open(&root_dir, Arc::new(NoFaults))
            .with_context(|| format!("opening the root directory {}", root_dir.display()))?;
        let root_dir = state.root().to_owned();
        let records = load(&state)?;
        let logs = LogStore::open(logs_dir(&config, &root_dir), clock.clone()).context("opening the container logs")?;
        let images = ImageService::open(image_config(&config, &root_dir)).context("opening the image store")?;
        let network = NodeNetwork::new(network_config(&config, &records)?).context("starting the pod network")?;
        let host_ip = IpAddr::V4(network.node_address());
        let (runtime, exits) =
            Runtime::new(runtime_config(&config, &root_dir, logs.clone()), network).context("starting the runtime")?;
        let objects = ObjectStore::default();
        let volumes = VolumeManager::new(volume_config(&config, &root_dir), state.clone(), objects.clone());
        let known: HashSet<&PodUid> = records.iter().map(|record| &record.uid).collect();
        let stale_memory =
            volumes.pods_with_memory().into_iter().filter(|uid| !known.contains(uid)).collect::<Vec<_>>();
        let (events, status) = (Recorder::new(&name, clock.clone()), StatusCache::default());

        let services = Services {
            runtime: Arc::new(NodeRuntime::new(images, runtime.clone())),
            volumes,
            objects: objects.clone(),
            state,
            logs: logs.clone(),
            events: events.clone(),
            status: status.clone(),
            clock: clock.clone(),
        };
        let mut workers_config = WorkerConfig::new(node_facts(&name, host_ip, &root_dir), node_dns(&config));
        workers_config.log_rotation =
            LogRotation { max_size_bytes: config.container_log_max_size, max_files: config.container_log_max_files };
        if let Some(processes) = config.pod_pids_limit {
            workers_config.node_limits.processes = processes;
        }
        for uid in stale_memory {
            if let Err(error) = services.volumes.teardown(&uid) {
                tracing::warn!(podUID = %uid, err = %error, "Could not remove the memory volumes of a pod without a record");
            }
        }
        let workers = WorkerPool::new(services, workers_config, exits);
        let adopted = records.iter().map(|record| (record.uid.clone(), record.manifest.clone())).collect();
        workers.readopt(records);

        let api =
            NodeApi { status: status.clone(), logs: logs.clone(), events: events.clone(), runtime: runtime.clone() };
        let stop_server = CancellationToken::new();
        let server = tokio::spawn(Server::bind(&socket)?.serve(api, stop_server.clone()));
        let source = FileSource::new(
            FileSourceConfig { path: manifests, node_name: name.clone(), period: config.file_check_frequency },
            clock,
            objects,
        );
        let (sender, updates) = mpsc::channel(UPDATES);
        let stop_source = CancellationToken::new();
        let source = tokio::spawn(source.run(sender, stop_source.clone()));
        let updates = Mutex::new(Some(updates));
        let max_pods = config.max_pods.and_then(|pods| usize::try_from(pods).ok());
        Ok(Self {
            name,
            max_pods,
            workers,
            status,
            events,
            logs,
            runtime,
            adopted,
            updates,
            stop_source,
            source,
            stop_server,
            server,
        })
    }

    /// The node's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `maxPods`, when set.
    #[must_use]
    pub fn max_pods(&self) -> Option<usize> {
        self.max_pods
    }

    /// Its workers.
    #[must_use]
    pub fn workers(&self) -> &WorkerPool<NodeRuntime> {
        &self.workers
    }

    /// Its pods' statuses.
    #[must_use]
    pub fn status(&self) -> &StatusCache {
        &self.status
    }

    /// Its Events.
    #[must_use]
    pub fn events(&self) -> &Recorder {
        &self.events
    }

    /// Its containers' logs.
    #[must_use]
    pub fn logs(&self) -> &LogStore {
        &self.logs
    }

    /// Pods taken over from the last run, with their manifests.
    #[must_use]
    pub fn adopted(&self) -> &[(PodUid, Option<PathBuf>)] {
        &self.adopted
    }

    /// Does what the manifests say until `stop`. Called once.
    pub async fn follow(&self, stop: &CancellationToken) {
        let Some(mut updates) = self.updates.lock().take() else { return };
        let mut desired = Desired::default();
        loop {
            tokio::select! {
                // Cancel-safe: an update is received or stays in the queue.
                update = updates.recv() => match update {
                    Some(update) => desired.apply(self, update).await,
                    None => return,
                },
                () = stop.cancelled() => return,
            }
        }
    }

    /// Stops every part, the last started first.
    ///
    /// # Errors
    /// When pods did not end in time; they are killed with the process then.
    pub async fn stop(self, mode: ShutdownMode) -> anyhow::Result<()> {
        self.stop_source.cancel();
        let drained = self.workers.shutdown(mode).await;
        self.runtime.shutdown().await;
        self.stop_server.cancel();
        // Both only wait for their token; a panic in one is logged by the panic hook already.
        let _ = tokio::time::timeout(Duration::from_secs(5), async { tokio::join!(self.source, self.server) }).await;
        match drained {
            Drained::All => Ok(()),
            Drained::TimedOut(left) => bail!("{left} pods did not end in time"),
        }
    }
}

/// Open files of guests are the agent's: it takes as many as its owner lets it have (the usual soft limit is 1024).
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(err = %error, limit = ?limit.current, "Could not raise the limit of open files");
    }
}

/// The records of the last run; what cannot be used is put aside and said.
fn load(state: &StateStore) -> anyhow::Result<Vec<PodRecord>> {
    let loaded = state.load().context("reading the pods of the last run")?;
    for record in &loaded.quarantined {
        tracing::error!(?record, "Put aside a pod record that cannot be read");
    }
    let known: HashSet<&PodUid> = loaded.pods.iter().map(|record| &record.uid).collect();
    for uid in loaded.orphans.iter().filter(|uid| !known.contains(uid)) {
        if let Err(error) = state.remove_pod(uid) {
            tracing::warn!(podUID = %uid, err = %error, "Could not remove the directory of a pod without a record");
        }
    }
    Ok(loaded.pods)
}

fn image_config(config: &NodeConfig, root_dir: &Path) -> ImageConfig {
    let mut images = ImageConfig::new(root_dir);
    if !images.hosts_dirs.contains(&config.registry_hosts_dir) {
        images.hosts_dirs.insert(0, config.registry_hosts_dir.clone());
    }
    images
}

fn network_config(config: &NodeConfig, records: &[PodRecord]) -> anyhow::Result<NodeNetworkConfig> {
    let mut network = NodeNetworkConfig::default();
    if let Some(cidr) = &config.pod_cidr {
        network.pod_range = IpRange::new(cidr.address, cidr.prefix_length).context("podCIDR")?;
    }
    network.reserved = records.iter().flat_map(|record| record.ips.iter().copied()).collect();
    Ok(network)
}

fn runtime_config(config: &NodeConfig, root_dir: &Path, logs: LogStore) -> RuntimeConfig {
    let mut runtime = RuntimeConfig::new(root_dir.to_owned(), logs);
    let count = |setting: Option<u32>| setting.and_then(|n| std::num::NonZeroUsize::new(n as usize));
    if let Some(threads) = count(config.guest_threads) {
        runtime.guest_threads = threads;
    }
    if let Some(jobs) = count(config.compile_jobs) {
        runtime.compile_limits.parallel = jobs;
    }
    runtime
}

fn volume_config(config: &NodeConfig, root_dir: &Path) -> VolumeConfig {
    VolumeConfig {
        memory_root: memory_root(config, root_dir),
        host_path_allowed: config.host_path_allowed_prefixes.clone(),
        host_path_denied: vec![root_dir.to_owned()],
    }
}
