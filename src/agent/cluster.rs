//! What a node of a cluster has besides: its Node object, the pods bound to it, what it writes back, its HTTPS API.
//!
//! In: access to the API server and the parts every node has. Out: tasks, in two groups: those that bring work and stop
//! first, and those that report and stop when all is said. Decides nothing that `pod`, `node` or `source` can decide.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures::FutureExt as _;
use k8s_openapi::api::core::v1::{Node as NodeObject, NodeAddress, Pod};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::desired::{Admit, Verdict};
use super::{pod_cidr, policies, services};
use crate::clock::Clock;
use crate::config::NodeConfig;
use crate::events::{EventType, EventWriter, Recorder, node_reference};
use crate::identity::{ClusterAccess, InCluster, Keeper, Notify, ServingCertificate, ServingSource};
use crate::ids::{PodRef, PodUid};
use crate::image::ImageService;
use crate::logs::LogStore;
use crate::network::{IpRange, NodeNetwork};
use crate::node::{
    Capacity, DiskUse, ImageCollector, NetworkState, NodeManager, NodeParts, NodePods, NodeSettings, PodAddresses,
    PressureManager, PressureParts, Readers, ShutdownGrace, ShutdownManager, ShutdownState, WorkerPods, facts,
};
use crate::objects::{ApiObjects, watch_policies};
use crate::pod::admission::fit::{Allocatable, NodePorts};
use crate::pod::admission::{Decision, NodePolicy, NodeView, Pressure, Rejection, decide};
use crate::pod::downward::NodeFacts;
use crate::pod::services::NodePlace;
use crate::runtime::Runtime;
use crate::server::{Auth, HealthzServer, HttpsServer, NodeApi};
use crate::source::PodUpdate;
use crate::source::apiserver::ApiSource;
use crate::source::mirror::Mirrors;
use crate::status::{ApiPods, StatusCache, StatusMetrics, StatusWriter};
use crate::volume::VolumeManager;
use crate::worker::{NodeRuntime, WorkerMetrics, WorkerPool};

/// Tasks of one group and what ends them.
#[derive(Debug, Default)]
pub(super) struct Tasks {
    stop: CancellationToken,
    tracker: TaskTracker,
}

impl Tasks {
    pub(super) fn stop(&self) -> CancellationToken {
        self.stop.clone()
    }

    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn(task);
    }

    /// Ends them, and waits for them for a while: each only has to notice.
    pub(super) async fn end(&self, within: Duration) {
        self.stop.cancel();
        self.tracker.close();
        if tokio::time::timeout(within, self.tracker.wait()).await.is_err() {
            tracing::warn!(left = self.tracker.len(), "Some parts of the node did not end in time");
        }
    }
}

/// What watches the machine, with or without a cluster.
pub(super) struct Machine {
    pub(super) settings: NodeSettings,
    pub(super) pressure: watch::Receiver<Pressure>,
    pub(super) shutdown: watch::Receiver<ShutdownState>,
}

/// Starts pressure, image collection (where `images` are given) and the machine's shutdown.
pub(super) fn watch_machine(
    config: &NodeConfig,
    settings: NodeSettings,
    parts: (&WorkerPool<NodeRuntime>, &StatusCache, &Arc<Runtime>, &Recorder, &LogStore, WorkerMetrics),
    images: Option<&Arc<ImageService>>,
    tasks: &Tasks,
) -> Machine {
    let (workers, status, runtime, events, logs, metrics) = parts;
    let (usage, disk, logs_of) = (runtime.clone(), runtime.clone(), logs.clone());
    let readers = Readers {
        usage: Box::new(move |id| usage.usage(id)),
        disk: Box::new(move |uid, pod| disk_use(disk.clone(), logs_of.clone(), uid.clone(), pod.clone()).boxed()),
        logs: logs.clone(),
    };
    let pods: Arc<dyn NodePods> = Arc::new(WorkerPods::new(workers.clone(), status.clone(), readers));
    let collector =
        images.map(|images| ImageCollector::new(images.clone(), &config.image_gc, settings.root_dir.clone()));
    let parts = PressureParts { pods: pods.clone(), images: collector, events: events.clone(), metrics };
    let pressure_manager = PressureManager::new(&settings, parts);
    let pressure = pressure_manager.pressure();
    let registration = &config.registration;
    let grace = ShutdownGrace {
        total: registration.shutdown_grace_period,
        critical: registration.shutdown_grace_period_critical_pods,
    };
    let shutdown_manager = ShutdownManager::new(&settings.name, grace, pods, events.clone());
    let shutdown = shutdown_manager.state();
    tasks.spawn(pressure_manager.run(tasks.stop()));
    tasks.spawn(shutdown_manager.run(tasks.stop()));
    Machine { settings, pressure, shutdown }
}

/// What a pod has in emptyDirs on the disk and in logs, measured now.
async fn disk_use(runtime: Arc<Runtime>, logs: LogStore, uid: PodUid, pod: Arc<Pod>) -> DiskUse {
    let Some(spec) = &pod.spec else { return DiskUse::default() };
    let mut volumes = 0u64;
    for volume in spec.volumes.iter().flatten() {
        let on_disk = volume.empty_dir.as_ref().is_some_and(|dir| dir.medium.as_deref() != Some("Memory"));
        if on_disk && let Ok(bytes) = runtime.volume_usage(&uid, &volume.name).await {
            volumes = volumes.saturating_add(bytes);
        }
    }
    let name = PodRef::of(&pod);
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let names: Vec<String> = containers.map(|container| container.name.clone()).collect();
    let measured = tokio::task::spawn_blocking(move || {
        let sized = names.into_iter().map(|container: String| {
            let bytes = logs.usage(&name, &uid, &container).unwrap_or(0);
            (container, bytes)
        });
        sized.collect::<HashMap<_, _>>()
    });
    DiskUse { volumes, logs: measured.await.unwrap_or_default() }
}

/// What the parts of a cluster are made of.
pub(super) struct ClusterParts<'a> {
    pub(super) access: ClusterAccess,
    pub(super) objects: ApiObjects,
    pub(super) config: &'a NodeConfig,
    pub(super) root_dir: &'a Path,
    pub(super) clock: Clock,
    pub(super) machine: Machine,
    pub(super) network: Arc<NodeNetwork>,
    pub(super) node_ips: Vec<IpAddr>,
    pub(super) workers: WorkerPool<NodeRuntime>,
    pub(super) status: StatusCache,
    pub(super) events: Recorder,
    pub(super) images: Arc<ImageService>,
    pub(super) volumes: VolumeManager,
    pub(super) api: NodeApi,
    pub(super) statuses: StatusMetrics,
    pub(super) manifests_read: CancellationToken,
    pub(super) updates: mpsc::Sender<PodUpdate>,
    /// Bring work: stopped first.
    pub(super) sources: &'a Tasks,
    /// Report: stopped when the last pod has ended.
    pub(super) reporters: &'a Tasks,
    /// Answer requests.
    pub(super) servers: &'a Tasks,
}

/// Starts them. The node's admission of pods comes back.
///
/// # Errors
/// A port that is taken, certificates that cannot be read.
pub(super) async fn start(parts: ClusterParts<'_>) -> anyhow::Result<Admit> {
    let ClusterParts { access, objects, config, root_dir, clock, machine, network, node_ips, .. } = parts;
    let Machine { mut settings, pressure, shutdown } = machine;
    let client = access.client();
    settings.addresses = match network.check_ready() {
        _ if network.shares_node_address() => PodAddresses::Shared,
        Ok(()) if config.pod_cidr.is_some() => network.capacity().map_or(PodAddresses::OfNode, PodAddresses::Given),
        _ => PodAddresses::OfNode,
    };
    let name = settings.name.clone();
    let (network_state, network_told) = watch::channel(network_state(&network));
    // The Lease and the status must come through whatever else is asked at the moment.
    let manager = NodeManager::new(
        access.heartbeat_client(),
        settings.clone(),
        NodeParts {
            clock: clock.clone(),
            events: parts.events.clone(),
            images: Some(parts.images),
            network: network_told,
            pressure: pressure.clone(),
            shutdown: shutdown.clone(),
            drivers: parts.volumes.csi().drivers(),
            volumes_in_use: parts.volumes.csi().in_use(),
        },
    );
    let node = manager.node();

    // The HTTPS API first: a port that is taken must be said before the node shows itself.
    let (addresses, addresses_told) = watch::channel(own_addresses(&node_ips, &name));
    if config.server.enabled {
        let source = ServingSource::new(&config.server, InCluster::Yes);
        let certificate = ServingCertificate::open(source, &root_dir.join("pki"), &name, &addresses.borrow())
            .context("the kubelet API's certificate")?;
        let https = HttpsServer::bind(&config.server, certificate.resolver()).await?;
        let auth = Auth::new(&config.server, &name, Some(client.clone()), access.cluster_ca())?;
        if let Some(healthz) = HealthzServer::bind(&config.server).await? {
            parts.servers.spawn(healthz.serve(parts.api.clone(), parts.servers.stop()));
        }
        parts.api.metrics.watch_serving(certificate.clone());
        parts.servers.spawn(https.serve(parts.api, Arc::new(auth), parts.servers.stop()));
        let keeper = Keeper {
            client: Some(access.heartbeat_client()),
            addresses: addresses_told,
            notify: notify(&parts.events, &name),
        };
        parts.servers.spawn(certificate.keep(keeper, parts.servers.stop()));
    }

    let reporters = parts.reporters;
    reporters.spawn(access.keep(reporters.stop()));
    let api_pods = ApiPods::default();
    let writer = StatusWriter::new(client.clone(), parts.status.clone(), api_pods.clone(), parts.statuses);
    let backlog = parts.status.backlog();
    reporters.spawn(writer.run(reporters.stop()));
    let rate = (config.client.event_qps, config.client.event_burst);
    let others_wait = Box::new(move || backlog.is_long());
    reporters.spawn(EventWriter::new(client.clone(), &parts.events, rate, others_wait).run(reporters.stop()));
    let (place, placed) = watch::channel(None);
    objects.watch_services(placed);
    reporters.spawn(objects.run(reporters.stop()));
    let told = (parts.events.clone(), name.clone());
    let serving = services::serve(network.clone(), config.service_proxy, node_ips[0], told, reporters.stop());
    reporters.spawn(serving);
    let sink = policies::sink(network.clone(), parts.events.clone(), &name);
    let watching = Box::pin(watch_policies(client.clone(), sink));
    let storing = policies::keep(network.clone(), root_dir.to_owned());
    let stop = reporters.stop();
    // Cancel-safe: what was heard stays in force until the pods have ended.
    reporters.spawn(async move {
        let _ = stop.run_until_cancelled(async { tokio::join!(watching, storing) }).await;
    });
    reporters.spawn(manager.run(reporters.stop()));
    let (volumes, living, stop) = (parts.volumes, parts.workers.clone(), reporters.stop());
    reporters.spawn(async move { volumes.run(|uid| living.pods().contains(uid), stop).await });
    let follower = Follower {
        node: node.clone(),
        network,
        network_state,
        addresses,
        place,
        workers: parts.workers,
        settings: settings.clone(),
    };
    reporters.spawn(follower.run(reporters.stop()));

    let sources = parts.sources;
    let mirrors = Mirrors::new(
        client.clone(),
        (parts.status, api_pods.clone()),
        parts.events,
        node.clone(),
        parts.manifests_read,
    );
    sources.spawn(mirrors.run(sources.stop()));
    sources.spawn(ApiSource::new(client, &name, api_pods, clock).run(parts.updates, sources.stop()));
    Ok(admit_on_node(settings, node, pressure, shutdown))
}

fn own_addresses(ips: &[IpAddr], name: &str) -> Vec<NodeAddress> {
    let address = |type_: &str, address| NodeAddress { type_: type_.to_owned(), address };
    let internal = ips.iter().map(|ip| address("InternalIP", ip.to_string()));
    internal.chain([address("Hostname", name.to_owned())]).collect()
}

/// What the certificates have to say becomes Events of the node.
fn notify(events: &Recorder, name: &str) -> Notify {
    let (events, reference) = (events.clone(), node_reference(name));
    Arc::new(move |notice| {
        let kind = if notice.warning { EventType::Warning } else { EventType::Normal };
        events.event(&reference, kind, notice.reason, notice.message);
    })
}

fn network_state(network: &NodeNetwork) -> NetworkState {
    match network.check_ready() {
        Ok(()) => NetworkState::Ready,
        Err(error) => NetworkState::NotReady(error.to_string()),
    }
}

/// Takes over what the Node object says: the podCIDR, the addresses, what is allocatable.
struct Follower {
    node: watch::Receiver<Option<Arc<NodeObject>>>,
    network: Arc<NodeNetwork>,
    network_state: watch::Sender<NetworkState>,
    addresses: watch::Sender<Vec<NodeAddress>>,
    place: watch::Sender<Option<NodePlace>>,
    workers: WorkerPool<NodeRuntime>,
    settings: NodeSettings,
}

impl Follower {
    async fn run(mut self, stop: CancellationToken) {
        let work = async {
            loop {
                let node = self.node.borrow_and_update().clone();
                if let Some(node) = node {
                    self.take(&node).await;
                }
                if self.node.changed().await.is_err() {
                    return;
                }
            }
        };
        // Cancel-safe: everything is taken over again at the next start.
        let _ = stop.run_until_cancelled(work).await;
    }

    async fn take(&self, node: &NodeObject) {
        let ranges = pod_ranges(node);
        if self.wants(&ranges) {
            match self.network.set_pod_ranges(&ranges).await {
                Ok(()) => self.remember(ranges).await,
                Err(error) => {
                    let err = crate::image::chain(&error);
                    tracing::error!(?ranges, err, "Could not use the podCIDRs of the Node");
                }
            }
        }
        let zone = node.metadata.labels.as_ref().and_then(|labels| labels.get("topology.kubernetes.io/zone"));
        let place = NodePlace { name: self.settings.name.clone(), zone: zone.cloned().unwrap_or_default() };
        self.place.send_if_modified(|current| {
            let differs = current.as_ref() != Some(&place);
            *current = Some(place);
            differs
        });
        let state = network_state(&self.network);
        self.network_state.send_if_modified(|current| {
            let differs = *current != state;
            *current = state;
            differs
        });
        let found: Vec<NodeAddress> =
            node.status.as_ref().and_then(|status| status.addresses.clone()).unwrap_or_default();
        if !found.is_empty() {
            self.addresses.send_if_modified(|current| {
                let differs = *current != found;
                current.clone_from(&found);
                differs
            });
        }
        let facts = node_facts(&self.settings, node, &self.workers.config().node);
        if facts != self.workers.config().node {
            self.workers.set_node(facts).await;
        }
    }

    async fn remember(&self, ranges: Vec<IpRange>) {
        let root_dir = self.settings.root_dir.clone();
        let stored = tokio::task::spawn_blocking(move || pod_cidr::store(&root_dir, &ranges)).await;
        if let Ok(Err(error)) = stored {
            tracing::warn!(err = %error, "Could not store the podCIDR; a start without the API server will lack it");
        }
    }

    fn wants(&self, ranges: &[IpRange]) -> bool {
        !ranges.is_empty() && !self.network.shares_node_address() && self.network.pod_ranges() != ranges
    }
}

/// The Node's podCIDRs, the primary one first. The API server has one a family at most.
fn pod_ranges(node: &NodeObject) -> Vec<IpRange> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let all = spec.pod_cidrs.as_deref().filter(|all| !all.is_empty());
    let all = all.map_or_else(|| spec.pod_cidr.iter().collect(), |all| all.iter().collect::<Vec<_>>());
    all.into_iter().filter_map(|cidr| cidr.parse().ok()).collect()
}

/// The node as its pods may see it.
fn node_facts(settings: &NodeSettings, node: &NodeObject, before: &NodeFacts) -> NodeFacts {
    let addresses = node.status.as_ref().and_then(|status| status.addresses.as_ref());
    let internal = addresses.into_iter().flatten().filter(|address| address.type_ == "InternalIP");
    let host_ips: Vec<IpAddr> = internal.filter_map(|address| address.address.parse().ok()).collect();
    let allocatable = allocatable_of(settings, node);
    NodeFacts {
        name: before.name.clone(),
        host_ips: if host_ips.is_empty() { before.host_ips.clone() } else { host_ips },
        allocatable_cpu_milli: allocatable.get("cpu"),
        allocatable_memory_bytes: allocatable.get("memory"),
        allocatable_ephemeral_storage_bytes: allocatable.get("ephemeral-storage"),
    }
}

/// What the Node says is allocatable; before it says anything, what it is going to say.
fn allocatable_of(settings: &NodeSettings, node: &NodeObject) -> Allocatable {
    if node.status.as_ref().is_some_and(|status| status.allocatable.as_ref().is_some_and(|all| !all.is_empty())) {
        return Allocatable::of_node(node);
    }
    let cidrs = node.spec.as_ref().and_then(|spec| spec.pod_cidrs.clone()).unwrap_or_default();
    Capacity::of(&facts::Facts::read(&settings.root_dir), settings, &cidrs).allocatable()
}

/// Admission by the whole node, as the kubelet's.
fn admit_on_node(
    settings: NodeSettings,
    node: watch::Receiver<Option<Arc<NodeObject>>>,
    pressure: watch::Receiver<Pressure>,
    shutdown: watch::Receiver<ShutdownState>,
) -> Admit {
    let node_ports =
        if settings.addresses == PodAddresses::Shared { NodePorts::AllPorts } else { NodePorts::HostPorts };
    let policy = NodePolicy { node_ports, ..NodePolicy::default() };
    Box::new(move |pod, others| {
        let newest = node.borrow().clone();
        let allocatable = allocatable_of(&settings, newest.as_deref().unwrap_or(&NodeObject::default()));
        let view = NodeView {
            name: &settings.name,
            policy: &policy,
            node: newest.as_deref(),
            allocatable: &allocatable,
            pressure: *pressure.borrow(),
            is_shutting_down: *shutdown.borrow() == ShutdownState::ShuttingDown,
        };
        match decide(pod, &view, others) {
            Decision::Admitted { warnings } => Verdict::Admitted { warnings },
            Decision::AfterPreemption { victims } => Verdict::AfterPreemption {
                victims: victims.into_iter().filter_map(|uid| PodUid::new(uid).ok()).collect(),
            },
            Decision::Rejected(Rejection { reason, message, .. }) => Verdict::Rejected { reason, message },
        }
    })
}
