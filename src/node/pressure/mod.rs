//! Keeps the node from running out: watches memory, disk and processes, collects images, evicts pods.
//!
//! In: thresholds, measurements, active pods. Out: [`Pressure`] for the Node's conditions and for admission, evictions,
//! collected images. Needs no API server: a node without a cluster runs it too. What to do is decided in [`thresholds`] and
//! [`rank`], pure.
//!
//! A pod's own limits (emptyDir `sizeLimit`, `ephemeral-storage`) are its worker's to watch.

pub mod images;
pub mod rank;
pub mod thresholds;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use self::images::ImageCollector;
use self::thresholds::{History, LastSeen, Observation, Observations, Signal, Threshold, met};
use super::facts::{Disk, Memory, Processes};
use super::pods::{ActivePod, NodePods, PodEnd};
use super::settings::NodeSettings;
use crate::events::{EventType, Recorder, node_reference};
use crate::pod::admission::Pressure;
use crate::worker::WorkerMetrics;

/// The kubelet's `evictionMonitoringPeriod`.
const PERIOD: Duration = Duration::from_secs(10);
/// How often the same shortage is told again.
const TELL_AGAIN: Duration = Duration::from_secs(60);
/// What an evicted pod gets (`immediateEvictionGracePeriodSeconds`).
const EVICTION_GRACE: Duration = Duration::from_secs(1);
/// How long the next look waits for an evicted pod to be gone, and how often it looks (`podCleanupTimeout`, `podCleanupPollFreq`).
const CLEANUP_TIMEOUT: Duration = Duration::from_secs(30);
const CLEANUP_POLL: Duration = Duration::from_secs(1);

/// What the manager works on.
pub struct PressureParts {
    /// The pods.
    pub pods: Arc<dyn NodePods>,
    /// Frees disk by removing images.
    pub images: Option<ImageCollector>,
    /// Where events go.
    pub events: Recorder,
    /// Where evictions are counted.
    pub metrics: WorkerMetrics,
}

/// Watches what can run out. [`Self::run`] is its one task.
pub struct PressureManager {
    node: String,
    root_dir: PathBuf,
    thresholds: Vec<Threshold>,
    transition_period: Duration,
    parts: PressureParts,
    last_seen: LastSeen,
    history: History,
    /// Most that a pod gets which ends for a soft threshold.
    soft_grace: Duration,
    /// What was told last, and when.
    told: Option<(Signal, Instant)>,
    pressure: watch::Sender<Pressure>,
}

impl std::fmt::Debug for PressureManager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { thresholds, pressure, .. } = self;
        f.debug_struct("PressureManager")
            .field("thresholds", thresholds)
            .field("pressure", &*pressure.borrow())
            .finish_non_exhaustive()
    }
}

impl PressureManager {
    /// A manager that has not looked yet.
    #[must_use]
    pub fn new(settings: &NodeSettings, parts: PressureParts) -> Self {
        Self {
            node: settings.name.clone(),
            root_dir: settings.root_dir.clone(),
            thresholds: settings.thresholds.clone(),
            transition_period: settings.registration.eviction_pressure_transition_period,
            parts,
            last_seen: LastSeen::default(),
            history: History::default(),
            soft_grace: settings.registration.eviction_max_pod_grace_period,
            told: None,
            pressure: watch::Sender::default(),
        }
    }

    /// What the node is short of, now and as it changes.
    #[must_use]
    pub fn pressure(&self) -> watch::Receiver<Pressure> {
        self.pressure.subscribe()
    }

    /// Looks every ten seconds and acts, until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Cancel-safe: an eviction that was begun is the worker's, a collection is done or not.
        let work = async {
            loop {
                ticks.tick().await;
                if let Some(images) = &mut self.parts.images {
                    images.collect_if_due(&*self.parts.pods, &self.parts.events, &self.node).await;
                }
                self.look().await;
            }
        };
        stop.run_until_cancelled(work).await;
    }

    async fn look(&mut self) {
        if self.thresholds.is_empty() {
            return;
        }
        let observed = self.observe().await;
        let now = Instant::now();
        let (holding, due) = self.history.look(&self.thresholds, &observed, now);
        self.last_seen.note(&holding, now);
        let pressure = self.last_seen.pressure(self.transition_period, now);
        self.pressure.send_if_modified(|before| std::mem::replace(before, pressure) != pressure);
        let Some(threshold) = due.first().copied() else {
            self.told = None;
            return;
        };
        let resource = threshold.signal.resource();
        self.tell(threshold.signal, now);
        if threshold.signal.is_disk() {
            self.parts.pods.remove_dead().await;
            if let Some(images) = &mut self.parts.images {
                images.remove_unused(&*self.parts.pods).await;
            }
            if !met(&self.thresholds, &self.observe().await).contains(&threshold) {
                tracing::info!(resource, "Reduced resource pressure without evicting pods");
                return;
            }
        }
        self.evict_one(threshold, &observed).await;
    }

    /// A disk that is full of other things stays full: it is not worth a line each look.
    fn tell(&mut self, signal: Signal, now: Instant) {
        let again = |(told, at): (Signal, Instant)| told == signal && now.duration_since(at) < TELL_AGAIN;
        if !self.told.is_some_and(again) {
            self.told = Some((signal, now));
            let message = format!("Attempting to reclaim {}", signal.resource());
            tracing::warn!("{message}");
            self.parts.events.event(&node_reference(&self.node), EventType::Warning, "EvictionThresholdMet", message);
        }
    }

    /// One pod a look: what it frees is seen at the next.
    async fn evict_one(&self, threshold: Threshold, observed: &Observations) {
        let mut pods = self.parts.pods.active();
        if threshold.signal.is_disk() {
            self.parts.pods.measure_disks(&mut pods).await;
        }
        let Some(victim) = rank::rank(&pods, threshold.signal).first().copied() else {
            tracing::debug!("Eviction thresholds have been met, but no pods are active to evict");
            return;
        };
        let message = rank::message(victim, threshold, observed);
        let ActivePod { uid, pod, .. } = victim;
        tracing::warn!(podUID = %uid, pod = pod.metadata.name, message, "Evicting pod");
        // A hard threshold leaves no time; the worker bounds what a soft one leaves by the pod's own grace.
        let grace = if threshold.grace.is_some() { self.soft_grace } else { EVICTION_GRACE };
        self.parts.pods.end(uid, PodEnd { reason: "Evicted", message, grace }).await;
        self.parts.metrics.evicted(threshold.signal.name());
        let gone = async {
            while !self.parts.pods.has_ended(uid) {
                tokio::time::sleep(CLEANUP_POLL).await;
            }
        };
        if tokio::time::timeout(CLEANUP_TIMEOUT, gone).await.is_err() {
            tracing::warn!(podUID = %uid, "Timed out waiting for an evicted pod to end");
        }
    }

    async fn observe(&self) -> Observations {
        let root_dir = self.root_dir.clone();
        let images = self.parts.images.as_ref().map(ImageCollector::directory);
        let measure = move || {
            let nodefs = Disk::read(&root_dir);
            let imagefs = images.filter(|directory| directory.exists()).map(|directory| Disk::read(&directory));
            observations(Memory::read(), nodefs, imagefs.unwrap_or(nodefs), Processes::read())
        };
        // A panic in it would be a bug of ours; nothing observed is nothing met.
        tokio::task::spawn_blocking(measure).await.unwrap_or_default()
    }
}

/// What was measured, by signal. A file system without a number of inodes has no such signal.
fn observations(memory: Memory, nodefs: Disk, imagefs: Disk, processes: Processes) -> Observations {
    let memory = Observation { capacity: memory.capacity_bytes, available: memory.available_bytes };
    let mut seen =
        Observations::from([(Signal::MemoryAvailable, memory), (Signal::AllocatableMemoryAvailable, memory)]);
    for (disk, available, inodes_free) in [
        (nodefs, Signal::NodeFsAvailable, Signal::NodeFsInodesFree),
        (imagefs, Signal::ImageFsAvailable, Signal::ImageFsInodesFree),
        (nodefs, Signal::ContainerFsAvailable, Signal::ContainerFsInodesFree),
    ] {
        seen.insert(available, Observation { capacity: disk.capacity_bytes, available: disk.available_bytes });
        if disk.inodes > 0 {
            seen.insert(inodes_free, Observation { capacity: disk.inodes, available: disk.inodes_free });
        }
    }
    if processes.most > 0 {
        let available = processes.most.saturating_sub(processes.running);
        seen.insert(Signal::PidAvailable, Observation { capacity: processes.most, available });
    }
    seen
}

#[cfg(test)]
mod tests;
