//! One node: its parts, started in order and drained in order.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::cluster::{self, ClusterParts, Tasks, watch_machine};
use super::facts::{logs_dir, memory_root, node_dns, node_facts};
use super::toolbox::{find_toolbox, prepare_toolbox};
use super::{Admit, Adopted, Desired, DesiredSettings, Sources, admit_by_number};
use super::{limits, pod_cidr, policies, services};
use crate::clock::Clock;
use crate::config::{BaselineCompiler, NodeConfig};
use crate::descriptors::NodeDescriptors;
use crate::events::Recorder;
use crate::identity::ClusterAccess;
use crate::ids::PodUid;
use crate::image::{ImageConfig, ImageService, ToolboxImages};
use crate::logs::LogStore;
use crate::network::{
    Family, IpRange, ModeFacts, NodeNetwork, NodeNetworkConfig, decide_mode, default_resolv_conf, may_make_namespaces,
};
use crate::node::{NodeSettings, facts::address};
use crate::objects::{ApiObjects, ObjectStore};
use crate::pod::admission::NodePolicy;
use crate::pod::dns::Membership;
use crate::pod::run::LogRotation;
use crate::runtime::{Runtime, RuntimeConfig};
use crate::server::{MetricSources, NodeApi, NodeApiParts, Server, SyncLoopHealth};
use crate::source::file::{FileSource, FileSourceConfig};
use crate::source::{PodSource, PodUpdate};
use crate::state::{NoFaults, PodRecord, StateStore};
use crate::status::StatusCache;
use crate::volume::{Csi, VolumeConfig, VolumeManager};
use crate::worker::{Drained, NodeRuntime, Services, ShutdownMode, WorkerConfig, WorkerPool};

/// Updates the source may be ahead of the workers: a queue, not a store, since a full one makes it wait.
const UPDATES: usize = 64;

/// How often the loop shows that it turns; whoever asks `/healthz` waits five minutes for it.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// What reporters get for their last words, and servers for requests under way.
const LAST_WORDS: Duration = Duration::from_secs(8);

/// How often those who wait for room look for it.
const ROOM_CHECK: Duration = Duration::from_millis(250);

/// What a node is started with.
pub struct NodeOptions {
    /// The root directory.
    pub root_dir: PathBuf,
    /// The node's name.
    pub name: String,
    /// Manifests: a directory or one file. `None` is a node whose pods all come from a cluster.
    pub manifests: Option<PathBuf>,
    /// The cluster it is a node of.
    pub cluster: Option<ClusterAccess>,
    /// Where the local API is.
    pub socket: PathBuf,
    /// Settings.
    pub config: NodeConfig,
}

/// A running node.
pub struct Node {
    name: String,
    workers: WorkerPool<NodeRuntime>,
    status: StatusCache,
    events: Recorder,
    logs: LogStore,
    runtime: Arc<Runtime>,
    desired: Mutex<Option<(DesiredSettings, mpsc::Receiver<PodUpdate>)>>,
    health: SyncLoopHealth,
    /// What brings work.
    sources: Tasks,
    /// What reports.
    reporters: Tasks,
    /// What answers.
    servers: Tasks,
}

impl Node {
    /// Starts every part. Pods of the last run are taken over; those that nobody wants end once the manifests were read.
    ///
    /// # Errors
    /// What could not be started, and why; nothing of it runs then.
    pub async fn start(options: NodeOptions) -> anyhow::Result<Self> {
        let NodeOptions { root_dir, name, manifests, cluster, socket, config } = options;
        let open_files = raise_open_files();
        let clock = Clock::System;
        let state = StateStore::open(&root_dir, Arc::new(NoFaults))
            .with_context(|| format!("opening the root directory {}", root_dir.display()))?;
        let root_dir = state.root().to_owned();
        let records = load(&state)?;
        let logs = LogStore::open(logs_dir(&config, &root_dir), clock.clone()).context("opening the container logs")?;
        let toolbox = find_toolbox(&config)?;
        let images = ImageService::open(image_config(&config, &root_dir, toolbox.is_some()))
            .context("opening the image store")?;
        let settings = NodeSettings::new(&config, &name, root_dir.clone()).map_err(anyhow::Error::msg)?;
        let node_ips = match address::node_ips(&config.registration.node_ips).await {
            // A machine without a network can run pods of its own, but be nobody's node.
            Err(_) if cluster.is_none() && config.registration.node_ips.is_empty() => {
                vec![IpAddr::V4(Ipv4Addr::LOCALHOST)]
            }
            found => found.context("finding the node's address")?,
        };
        let setup = network_config(&config, &records, &node_ips, cluster.is_some(), &root_dir, open_files)?;
        let network = NodeNetwork::new(setup).context("starting the pod network")?;
        if cluster.is_some() {
            policies::begin(&network, &root_dir);
        }
        let host_ips = if cluster.is_some() { node_ips.clone() } else { vec![network.node_address()] };
        let (runtime, exits) = Runtime::new(runtime_config(&config, &root_dir, logs.clone(), toolbox), network.clone())
            .context("starting the runtime")?;
        let (events, status) = (Recorder::new(&name, clock.clone()), StatusCache::default());
        network.tell_limits(limits::sink(events.clone()));
        let api_objects = cluster.as_ref().map(|access| {
            let sink = services::sink(network.clone(), events.clone(), &name);
            ApiObjects::telling(access.client(), clock.clone(), Some(sink))
        });
        let objects = api_objects.as_ref().map_or_else(ObjectStore::default, ApiObjects::store);
        let volumes = VolumeManager::new(volume_config(&config, &root_dir), state.clone(), objects.clone());
        let known: HashSet<&PodUid> = records.iter().map(|record| &record.uid).collect();
        let stale_memory =
            volumes.pods_with_memory().into_iter().filter(|uid| !known.contains(uid)).collect::<Vec<_>>();
        let metrics = MetricSources { access: cluster.clone(), ..MetricSources::default() };
        let (evictions, statuses) = (metrics.workers.clone(), metrics.statuses.clone());

        let services = Services {
            runtime: Arc::new(NodeRuntime::new(images.clone(), runtime.clone())),
            volumes: volumes.clone(),
            objects: objects.clone(),
            state,
            logs: logs.clone(),
            events: events.clone(),
            status: status.clone(),
            probes: metrics.probes.clone(),
            metrics: metrics.workers.clone(),
            starts: statuses.clone(),
            clock: clock.clone(),
        };
        let membership = if cluster.is_some() { Membership::Joined } else { Membership::Standalone };
        let mut workers_config =
            WorkerConfig::new(node_facts(&name, host_ips, &root_dir), node_dns(&config, membership));
        workers_config.sync_period = config.sync_frequency;
        workers_config.resolv_conf = Some(config.resolv_conf.clone().unwrap_or_else(default_resolv_conf));
        workers_config.memory_capacity =
            i64::try_from(crate::node::facts::Memory::read().capacity_bytes).unwrap_or(i64::MAX);
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
        let adopted: Vec<Adopted> = records.iter().map(Adopted::from).collect();
        workers.readopt(records);

        let api = NodeApi::new(NodeApiParts {
            node_name: name.clone(),
            root_dir: root_dir.clone(),
            config: config.clone(),
            status: status.clone(),
            logs: logs.clone(),
            events: events.clone(),
            runtime: runtime.clone(),
            images: images.clone(),
            volumes: volumes.clone(),
            metrics,
        });
        let (sources, reporters, servers) = (Tasks::default(), Tasks::default(), Tasks::default());
        servers.spawn(Server::bind(&socket)?.serve(api.clone(), servers.stop()));
        servers.spawn(api.clone().run(servers.stop()));
        reporters.spawn(prepare_toolbox(runtime.clone(), reporters.stop()));
        let health = api.health.clone();
        // A standalone node's images were loaded by hand as often as not: nobody could bring them back.
        let collected = cluster.is_some().then_some(&images);
        let machine = watch_machine(
            &config,
            settings,
            (&workers, &status, &runtime, &events, &logs, evictions),
            collected,
            &sources,
        );
        let (sender, updates) = mpsc::channel(UPDATES);
        let manifests_read = CancellationToken::new();
        let (admit, kinds): (Admit, Sources) = match cluster.zip(api_objects) {
            Some((access, objects)) => {
                let parts = ClusterParts {
                    access,
                    objects,
                    config: &config,
                    root_dir: &root_dir,
                    clock: clock.clone(),
                    machine,
                    network,
                    node_ips,
                    workers: workers.clone(),
                    status: status.clone(),
                    events: events.clone(),
                    images,
                    volumes,
                    api,
                    statuses,
                    manifests_read: manifests_read.clone(),
                    updates: sender.clone(),
                    sources: &sources,
                    reporters: &reporters,
                    servers: &servers,
                };
                (cluster::start(parts).await?, Sources::WithApiServer)
            }
            None => {
                let max_pods = config.max_pods.and_then(|pods| usize::try_from(pods).ok());
                (admit_by_number(max_pods, NodePolicy::default()), Sources::ManifestsOnly)
            }
        };
        if let Some(path) = manifests {
            let source = FileSourceConfig { path, node_name: name.clone(), period: config.file_check_frequency };
            sources.spawn(FileSource::new(source, clock, objects).run(sender, sources.stop()));
        } else {
            // Nothing of manifests is wanted. The queue is empty but for what the API server said a moment ago.
            sources.spawn(async move { drop(sender.send(PodUpdate::Synced(PodSource::Manifest)).await) });
        }
        let settings = DesiredSettings {
            workers: workers.clone(),
            status: status.clone(),
            events: events.clone(),
            node_name: name.clone(),
            admit,
            sources: kinds,
            adopted,
            manifests_read,
        };
        let desired = Mutex::new(Some((settings, updates)));
        Ok(Self { name, workers, status, events, logs, runtime, desired, health, sources, reporters, servers })
    }

    /// The node's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
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

    /// Does what manifests and the API server say until `stop`. Called once.
    pub async fn follow(&self, stop: &CancellationToken) {
        let Some((settings, mut updates)) = self.desired.lock().take() else { return };
        let (health, stop) = (self.health.clone(), stop.clone());
        // On the runtime's own threads: the one that waits in `main` would be woken, and wake them, for every pod. A set,
        // so that it ends with its caller.
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut desired = Desired::new(settings);
            loop {
                health.beat();
                tokio::select! {
                    // Cancel-safe: an update is received or stays in the queue.
                    update = updates.recv() => match update {
                        Some(update) => desired.apply(update).await,
                        None => return,
                    },
                    // Cancel-safe: a timer.
                    () = tokio::time::sleep(ROOM_CHECK), if desired.is_waiting() => desired.retry().await,
                    // Cancel-safe: a timer.
                    () = tokio::time::sleep(HEARTBEAT) => {}
                    () = stop.cancelled() => return,
                }
            }
        });
        if let Some(Err(error)) = task.join_next().await
            && let Ok(panic) = error.try_into_panic()
        {
            std::panic::resume_unwind(panic);
        }
    }

    /// Stops every part, the last started first.
    ///
    /// # Errors
    /// When pods did not end in time; they are killed with the process then.
    pub async fn stop(self, mode: ShutdownMode) -> anyhow::Result<()> {
        self.sources.end(LAST_WORDS).await;
        let drained = self.workers.shutdown(mode).await;
        self.runtime.shutdown().await;
        self.reporters.end(LAST_WORDS).await;
        self.servers.end(LAST_WORDS).await;
        match drained {
            Drained::All => Ok(()),
            Drained::TimedOut(left) => bail!("{left} pods did not end in time"),
        }
    }
}

/// Open files of guests are the agent's: it takes as many as its owner lets it have (the usual soft limit is 1024), and
/// says how many that are.
fn raise_open_files() -> Option<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(err = %error, limit = ?limit.current, "Could not raise the limit of open files");
    }
    getrlimit(Resource::Nofile).current
}

/// The records of the last run; what cannot be used is put aside and said.
fn load(state: &StateStore) -> anyhow::Result<Vec<PodRecord>> {
    let loaded = state.load().context("reading the pods of the last run")?;
    for record in &loaded.quarantined {
        tracing::error!(?record, "Put aside a pod record that cannot be read");
    }
    let known: HashSet<&PodUid> = loaded.pods.iter().map(|record| &record.uid).collect();
    // One in which a driver mounted something stays until that is undone.
    let has_mounts = |uid: &PodUid| Csi::has_mounts(state.paths(uid).root());
    for uid in loaded.orphans.iter().filter(|uid| !known.contains(uid) && !has_mounts(uid)) {
        if let Err(error) = state.remove_pod(uid) {
            tracing::warn!(podUID = %uid, err = %error, "Could not remove the directory of a pod without a record");
        }
    }
    Ok(loaded.pods)
}

fn image_config(config: &NodeConfig, root_dir: &Path, has_toolbox: bool) -> ImageConfig {
    let mut images = ImageConfig::new(root_dir);
    if has_toolbox {
        images.toolbox = ToolboxImages::new(&config.toolbox.images);
    }
    if !images.hosts_dirs.contains(&config.registry_hosts_dir) {
        images.hosts_dirs.insert(0, config.registry_hosts_dir.clone());
    }
    images
}

fn network_config(
    config: &NodeConfig,
    records: &[PodRecord],
    node_ips: &[IpAddr],
    in_cluster: bool,
    root_dir: &Path,
    open_files: Option<u64>,
) -> anyhow::Result<NodeNetworkConfig> {
    let range = config.pod_cidr.as_ref().map(|cidr| IpRange::new(cidr.address, cidr.prefix_length)).transpose();
    let range = range.context("podCIDR")?;
    let ranges = match range {
        Some(range) => vec![range],
        None if in_cluster => pod_cidr::load(root_dir),
        None => Vec::new(),
    };
    let mode = decide_mode(ModeFacts {
        wanted: config.pod_network,
        in_cluster,
        privileged: may_make_namespaces(),
        ranges,
        cluster: Vec::new(),
        node_ip: node_ips[0],
        seed: root_dir.display().to_string(),
    });
    Ok(NodeNetworkConfig {
        mode: mode.context("choosing the pod network")?,
        node_ips: if in_cluster { node_ips.to_vec() } else { Vec::new() },
        // The kubelet's sortPodIPs: `podIP` is of the family of the address that the node was told to have.
        primary_family: config.registration.node_ips.first().map(|ip| Family::of(*ip)),
        name_servers: config.cluster_dns.iter().copied().filter(is_link_local).collect(),
        reserved: records.iter().map(|record| (record.uid.clone(), record.ips.clone())).collect(),
        descriptors: NodeDescriptors::of_limit(open_files),
        ..NodeNetworkConfig::default()
    })
}

fn is_link_local(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

fn runtime_config(config: &NodeConfig, root_dir: &Path, logs: LogStore, toolbox: Option<PathBuf>) -> RuntimeConfig {
    let mut runtime = RuntimeConfig::new(root_dir.to_owned(), logs);
    runtime.artifact_dir.clone_from(&config.artifact_dir);
    runtime.toolbox = toolbox;
    let count = |setting: Option<u32>| setting.and_then(|n| std::num::NonZeroUsize::new(n as usize));
    if let Some(threads) = count(config.guest_threads) {
        runtime.guest_threads = threads;
    }
    match config.baseline_compiler {
        BaselineCompiler::Auto => {}
        BaselineCompiler::Always => runtime.baseline_from = Some(0),
        BaselineCompiler::Never => runtime.baseline_from = None,
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
