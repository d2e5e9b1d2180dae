//! What containers, pods and the node use: `/stats/summary`, and what the metrics endpoints show.
//!
//! In: readings of the runtime, of `/proc`, of disks. Out: a [`Summary`]. CPU and memory are read when asked; rates
//! and disk figures come from a sampler that runs every few seconds, so that asking often costs little.
//! Takes no decision: eviction measures for itself.

mod build;
mod machine;
mod types;
mod window;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{RawQuery, State};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Volume};
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{NodeApi, query};
use crate::ids::{ContainerId, PodRef, PodUid};
use crate::image::ImageService;
use crate::logs::LogStore;
use crate::pod::status::container_statuses;
use crate::runtime::Runtime;
use crate::status::{PodSnapshot, StatusCache};
use crate::volume::{Fullness, VolumeManager};

pub(super) use machine::{Machine, ProcessReading};
pub use types::*;

use window::Rates;

/// How long a CPU window is (cAdvisor's housekeeping interval).
const SAMPLE_PERIOD: Duration = Duration::from_secs(10);
/// How often disks are measured (the kubelet's `volumeStatsAggPeriod`).
const DISK_PERIOD: Duration = Duration::from_secs(60);

/// What figures are made of.
pub(super) struct StatsSources {
    pub(super) node_name: String,
    pub(super) root_dir: PathBuf,
    pub(super) status: StatusCache,
    pub(super) runtime: Arc<Runtime>,
    pub(super) images: Arc<ImageService>,
    pub(super) logs: LogStore,
    pub(super) volumes: VolumeManager,
}

/// The figures of the node and its pods.
pub struct StatsProvider {
    sources: StatsSources,
    machine: Machine,
    rates: Mutex<Rates<Counter>>,
    disks: Mutex<Arc<Disks>>,
}

/// A CPU counter.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Counter {
    Node,
    Agent,
    Container(ContainerId),
}

/// What the last look at the disks found.
#[derive(Debug, Default)]
struct Disks {
    node: Option<FsStats>,
    image_bytes: u64,
    pods: HashMap<PodUid, PodDisk>,
}

/// One pod's part of the disks, bytes.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct PodDisk {
    /// By volume, with whether it lies on the disk and is the pod's own.
    volumes: Vec<VolumeUse>,
    /// Those of claims.
    claims: Vec<ClaimUse>,
    /// By container.
    logs: HashMap<String, u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct VolumeUse {
    name: String,
    bytes: u64,
    medium: VolumeMedium,
}

/// How full the volume of a claim is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ClaimUse {
    /// `volumes[].name`.
    volume: String,
    /// The claim's name.
    claim: String,
    fullness: Fullness,
}

/// What a volume takes its bytes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum VolumeMedium {
    /// The node's disk, charged to the pod as ephemeral storage.
    Disk,
    /// Memory, or objects that are shown as files.
    Memory,
}

/// A container that runs.
#[derive(Debug, Clone)]
struct Running {
    name: String,
    id: ContainerId,
    image: String,
    started_at: Timestamp,
}

impl StatsProvider {
    pub(super) fn new(sources: StatsSources) -> Self {
        Self { sources, machine: Machine::find(), rates: Mutex::new(Rates::new()), disks: Mutex::default() }
    }

    /// Samples CPU and measures disks until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        let mut samples = tokio::time::interval(SAMPLE_PERIOD);
        // A node that slept is not sampled several times for it.
        samples.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut measured_at: Option<Instant> = None;
        loop {
            tokio::select! {
                // Cancel-safe: a tick is taken or comes again.
                _ = samples.tick() => {}
                () = stop.cancelled() => return,
            }
            self.sample();
            if measured_at.is_none_or(|at| at.elapsed() >= DISK_PERIOD) {
                tokio::select! {
                    () = self.measure_disks() => {}
                    () = stop.cancelled() => return,
                }
                measured_at = Some(Instant::now());
            }
        }
    }

    fn sample(&self) {
        let mut totals = Vec::new();
        if let Some(total) = self.machine.read().cpu_nanoseconds {
            totals.push((Counter::Node, total));
        }
        if let Some(process) = self.machine.process() {
            totals.push((Counter::Agent, process.cpu_nanoseconds));
        }
        for snapshot in self.sources.status.matching(|_| true) {
            for container in running(&snapshot) {
                if let Some(cpu) = self.sources.runtime.cpu_used(&container.id) {
                    totals.push((Counter::Container(container.id), nanoseconds(cpu)));
                }
            }
        }
        self.rates.lock().observe(Instant::now(), totals);
    }

    async fn measure_disks(&self) {
        let root = self.sources.root_dir.clone();
        let node = tokio::task::spawn_blocking(move || file_system(&root)).await.ok().flatten();
        let image_bytes = match self.sources.images.disk_usage().await {
            Ok(usage) => usage.bytes,
            Err(error) => {
                tracing::warn!(err = %error, "Failed to measure the image store");
                0
            }
        };
        let (mut pods, mut logs) = (HashMap::new(), Vec::new());
        for snapshot in self.sources.status.matching(|_| true) {
            let Some((uid, name)) = identity(&snapshot) else { continue };
            let containers = running(&snapshot);
            if containers.is_empty() {
                continue;
            }
            pods.insert(uid.clone(), self.measure_volumes(&snapshot, &uid, &name).await);
            logs.push((uid, name, containers));
        }
        // All at once: a hop to another thread for each pod costs more than looking at its logs.
        let store = self.sources.logs.clone();
        let sizes = tokio::task::spawn_blocking(move || {
            let of_pod = |(uid, name, containers): (PodUid, PodRef, Vec<Running>)| {
                let sizes = containers.into_iter().map(|container| {
                    let bytes = store.usage(&name, &uid, &container.name).unwrap_or(0);
                    (container.name, bytes)
                });
                let sizes = sizes.collect();
                (uid, sizes)
            };
            logs.into_iter().map(of_pod).collect::<Vec<_>>()
        });
        for (uid, sizes) in sizes.await.unwrap_or_default() {
            if let Some(disk) = pods.get_mut(&uid) {
                disk.logs = sizes;
            }
        }
        *self.disks.lock() = Arc::new(Disks { node, image_bytes, pods });
    }

    async fn measure_volumes(&self, snapshot: &PodSnapshot, uid: &PodUid, name: &PodRef) -> PodDisk {
        let (mut volumes, mut claims) = (Vec::new(), Vec::new());
        for volume in snapshot.pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
            if let Some(claim) = claim_of(volume, name)
                && let Some(fullness) = self.sources.volumes.fullness(uid, &volume.name).await
            {
                claims.push(ClaimUse { volume: volume.name.clone(), claim, fullness });
            }
            let Some(medium) = measured_medium(volume) else { continue };
            // A volume that is just going is left out.
            if let Ok(bytes) = self.sources.runtime.volume_usage(uid, &volume.name).await {
                volumes.push(VolumeUse { name: volume.name.clone(), bytes, medium });
            }
        }
        PodDisk { volumes, claims, logs: HashMap::new() }
    }

    /// The figures now.
    #[must_use]
    pub fn summary(&self, scope: Scope) -> Summary {
        let now = Timestamp::now();
        let disks = self.disks.lock().clone();
        let pods: Vec<PodStats> = {
            let rates = self.rates.lock();
            let snapshots = self.sources.status.list();
            snapshots.iter().filter_map(|snapshot| self.pod(snapshot, now, scope, &rates, &disks)).collect()
        };
        Summary { node: self.node(now, scope, &disks, &pods), pods }
    }

    fn pod(
        &self,
        snapshot: &PodSnapshot,
        now: Timestamp,
        scope: Scope,
        rates: &Rates<Counter>,
        disks: &Disks,
    ) -> Option<PodStats> {
        let (uid, name) = identity(snapshot)?;
        let readings = running(snapshot).into_iter().filter_map(|container| {
            let usage = self.sources.runtime.usage(&container.id)?;
            let nano_cores = rates.nano_cores(&Counter::Container(container.id.clone()));
            Some(build::ContainerReading { container, usage, nano_cores })
        });
        build::pod(&build::PodInput {
            now,
            scope,
            snapshot,
            uid: &uid,
            name,
            containers: readings.collect(),
            disk: disks.pods.get(&uid),
            node_fs: disks.node.as_ref(),
            network: self.sources.runtime.traffic(&uid).map(build::pod_interface),
        })
    }

    fn node(&self, now: Timestamp, scope: Scope, disks: &Disks, pods: &[PodStats]) -> NodeStats {
        let reading = self.machine.read();
        let (node_rate, agent_rate) = {
            let rates = self.rates.lock();
            (rates.nano_cores(&Counter::Node), rates.nano_cores(&Counter::Agent))
        };
        let agent = self.machine.process().map(|process| build::agent(now, process, agent_rate));
        let mut node = NodeStats {
            node_name: self.sources.node_name.clone(),
            system_containers: agent.into_iter().chain([build::all_pods(now, self.machine.boot_time, pods)]).collect(),
            start_time: StatsTime(self.machine.boot_time),
            cpu: reading.cpu_nanoseconds.map(|total| CpuStats {
                time: StatsTime(now),
                usage_nano_cores: node_rate,
                usage_core_nano_seconds: total,
            }),
            memory: reading.memory.map(|memory| build::node_memory(now, memory)),
            network: None,
            fs: None,
            runtime: None,
            rlimit: None,
        };
        if scope == Scope::Everything {
            node.network = machine::interfaces().map(|(default, all)| build::network(now, default.as_deref(), all));
            node.fs.clone_from(&disks.node);
            node.runtime = disks.node.as_ref().map(|fs| RuntimeStats {
                image_fs: FsStats { used_bytes: disks.image_bytes, ..fs.clone() },
                container_fs: FsStats { used_bytes: build::writable_bytes(pods), ..fs.clone() },
            });
            node.rlimit = machine::processes(now);
        }
        node
    }

    /// The agent's own figures.
    pub(super) fn process(&self) -> Option<ProcessReading> {
        self.machine.process()
    }
}

/// How much is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All there is.
    Everything,
    /// What autoscalers need.
    CpuAndMemory,
}

/// `GET /stats/summary`.
pub(super) async fn summary(State(api): State<NodeApi>, RawQuery(query): RawQuery) -> Json<Summary> {
    Json(api.stats.summary(scope(query.as_deref())))
}

/// As the kubelet reads it: given once, and `true`.
fn scope(query: Option<&str>) -> Scope {
    let pairs = query::pairs(query);
    let mut given = pairs.iter().filter(|(name, _)| name == "only_cpu_and_memory").map(|(_, value)| value.as_str());
    match (given.next(), given.next()) {
        (Some("true"), None) => Scope::CpuAndMemory,
        _ => Scope::Everything,
    }
}

fn identity(snapshot: &PodSnapshot) -> Option<(PodUid, PodRef)> {
    let meta = &snapshot.pod.metadata;
    let uid = PodUid::new(meta.uid.clone()?).ok()?;
    let namespace = meta.namespace.clone().unwrap_or_else(|| "default".to_owned());
    Some((uid, PodRef { namespace, name: meta.name.clone()? }))
}

/// The containers of a pod that run, of all kinds.
fn running(snapshot: &PodSnapshot) -> Vec<Running> {
    container_statuses(&snapshot.status).filter_map(running_one).collect()
}

fn running_one(status: &ContainerStatus) -> Option<Running> {
    let running = status.state.as_ref()?.running.as_ref()?;
    Some(Running {
        name: status.name.clone(),
        id: status.container_id.as_ref()?.parse().ok()?,
        image: status.image.clone(),
        started_at: running.started_at.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0),
    })
}

/// The name of the claim behind a volume.
fn claim_of(volume: &Volume, pod: &PodRef) -> Option<String> {
    let named = volume.persistent_volume_claim.as_ref().map(|source| source.claim_name.clone());
    named.or_else(|| volume.ephemeral.as_ref().map(|_| format!("{}-{}", pod.name, volume.name)))
}

/// Which volumes are measured, as at the kubelet: those that have a size of their own; never a directory of the node.
fn measured_medium(volume: &Volume) -> Option<VolumeMedium> {
    if let Some(empty_dir) = &volume.empty_dir {
        let on_disk = empty_dir.medium.as_deref() != Some("Memory");
        return Some(if on_disk { VolumeMedium::Disk } else { VolumeMedium::Memory });
    }
    let projected = volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.projected.is_some()
        || volume.downward_api.is_some();
    projected.then_some(VolumeMedium::Memory)
}

/// A file system as a whole. Blocking.
fn file_system(path: &std::path::Path) -> Option<FsStats> {
    let stats = rustix::fs::statvfs(path).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(stats.f_frsize);
    Some(FsStats {
        time: StatsTime(Timestamp::now()),
        available_bytes: bytes(stats.f_bavail),
        capacity_bytes: bytes(stats.f_blocks),
        used_bytes: bytes(stats.f_blocks.saturating_sub(stats.f_bfree)),
        inodes_free: Some(stats.f_ffree),
        inodes: Some(stats.f_files),
        inodes_used: Some(stats.f_files.saturating_sub(stats.f_ffree)),
    })
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Figures for the tests of those who show them.
#[cfg(test)]
pub(super) mod testing {
    pub(crate) use super::build::tests::example as example_pod;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_cpu_and_memory_is_asked_for_in_one_way() {
        for (query, expected) in [
            (None, Scope::Everything),
            (Some("only_cpu_and_memory=true"), Scope::CpuAndMemory),
            (Some("only_cpu_and_memory=1"), Scope::Everything),
            (Some("only_cpu_and_memory=true&only_cpu_and_memory=true"), Scope::Everything),
        ] {
            assert_eq!(scope(query), expected, "{query:?}");
        }
    }

    #[test]
    fn volumes_of_the_pod_are_measured_and_directories_of_the_node_are_not() {
        for (volume, expected) in [
            (serde_json::json!({"name": "v", "emptyDir": {}}), Some(VolumeMedium::Disk)),
            (serde_json::json!({"name": "v", "emptyDir": {"medium": "Memory"}}), Some(VolumeMedium::Memory)),
            (serde_json::json!({"name": "v", "configMap": {"name": "c"}}), Some(VolumeMedium::Memory)),
            (serde_json::json!({"name": "v", "hostPath": {"path": "/"}}), None),
        ] {
            assert_eq!(measured_medium(&serde_json::from_value(volume.clone()).unwrap()), expected, "{volume}");
        }
    }
}
