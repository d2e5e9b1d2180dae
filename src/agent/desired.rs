//! Feeds what should run to the workers.
//!
//! In: updates of manifests and of the API server. Out: calls of the pool, refusals, and words for a person where a
//! manifest is bad. Keeps what is wanted and what was admitted. A source that has told everything once ends what was taken
//! over from the last run and is not wanted any more: only pods of its own, so that an API server that is away ends
//! nothing.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::events::{EventType, Recorder, node_reference, pod_reference};
use crate::ids::PodUid;
use crate::pod::admission::fit::Resident;
use crate::pod::admission::{self, NodePolicy};
use crate::pod::allocation::{self, PendingReason, PendingResize};
use crate::pod::status::PodPhase;
use crate::source::{DesiredPod, Origin, PodSource, PodUpdate};
use crate::state::PodRecord;
use crate::status::StatusCache;
use crate::worker::{Eviction, NodeRuntime, Termination, WorkerPool};

/// What becomes of a new pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It runs.
    Admitted {
        /// What of it is not done here.
        warnings: Vec<String>,
    },
    /// It fails.
    Rejected {
        /// `status.reason`.
        reason: String,
        /// `status.message` is this behind `Pod was rejected: `.
        message: String,
    },
    /// It runs when these have made room.
    AfterPreemption {
        /// Pods of less importance.
        victims: Vec<PodUid>,
    },
}

/// Decides about a new pod beside those that were admitted and are not over.
pub type Admit = Box<dyn Fn(&Pod, &[&Resident]) -> Verdict + Send + Sync>;

/// Which sources there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sources {
    /// A node of its own: pods of an API server it once had end.
    ManifestsOnly,
    /// A node of a cluster.
    WithApiServer,
}

/// A pod taken over from the last run.
#[derive(Debug, Clone)]
pub struct Adopted {
    /// Its UID.
    pub uid: PodUid,
    /// The pod.
    pub pod: Arc<Pod>,
    /// Its manifest, if it is a static one.
    pub manifest: Option<PathBuf>,
}

impl From<&PodRecord> for Adopted {
    fn from(record: &PodRecord) -> Self {
        Self { uid: record.uid.clone(), pod: record.pod.clone(), manifest: record.manifest.clone() }
    }
}

/// What the node's wishes are carried out with.
pub struct DesiredSettings {
    /// The workers.
    pub workers: WorkerPool<NodeRuntime>,
    /// What became of the pods.
    pub status: StatusCache,
    /// Where refusals are told.
    pub events: Recorder,
    /// The node's name.
    pub node_name: String,
    /// Who decides about new pods.
    pub admit: Admit,
    /// Which sources there are.
    pub sources: Sources,
    /// Pods of the last run.
    pub adopted: Vec<Adopted>,
    /// Cancelled when all manifests were read once; mirror pods wait for it.
    pub manifests_read: CancellationToken,
}

/// The pods that are wanted, as far as they are known.
pub struct Desired {
    settings: DesiredSettings,
    wanted: HashMap<PodUid, PodSource>,
    /// Pods that take room until they are over.
    admitted: HashMap<PodUid, Resident>,
    /// Those of them that nobody wants: they take their room until their workers have ended.
    leaving: HashSet<PodUid>,
    /// Pods of the API server that were refused once are refused for good.
    refused: HashSet<PodUid>,
    /// Critical pods that others are making room for.
    parked: BTreeMap<PodUid, Box<DesiredPod>>,
    /// Pods that wait for room to be resized, and since when.
    resizing: HashMap<PodUid, (Box<DesiredPod>, Instant)>,
    /// Files that could not be used: the pods of the last run that came from them stay.
    unreadable: HashSet<PathBuf>,
}

impl std::fmt::Debug for Desired {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desired").field("wanted", &self.wanted.len()).finish_non_exhaustive()
    }
}

impl Desired {
    /// Nothing is wanted yet.
    #[must_use]
    pub fn new(settings: DesiredSettings) -> Self {
        let admitted =
            settings.adopted.iter().map(|adopted| (adopted.uid.clone(), Resident::new(adopted.pod.clone()))).collect();
        let leaving = settings.adopted.iter().map(|adopted| adopted.uid.clone()).collect();
        Self {
            settings,
            wanted: HashMap::new(),
            admitted,
            leaving,
            refused: HashSet::new(),
            parked: BTreeMap::new(),
            resizing: HashMap::new(),
            unreadable: HashSet::new(),
        }
    }

    /// Carries out one update.
    pub async fn apply(&mut self, update: PodUpdate) {
        match update {
            PodUpdate::Add(pod) | PodUpdate::Update(pod) => match pod.origin {
                Origin::Manifest(_) => {
                    self.wanted.insert(pod.uid.clone(), PodSource::Manifest);
                    // Boxed: pods are large, and the futures that hold them.
                    Box::pin(self.run(pod)).await;
                }
                Origin::ApiServer => Box::pin(self.want_from_api(pod)).await,
            },
            PodUpdate::Remove { uid, .. } => {
                self.wanted.remove(&uid);
                if self.admitted.contains_key(&uid) {
                    self.leaving.insert(uid.clone());
                }
                self.refused.remove(&uid);
                self.parked.remove(&uid);
                self.resizing.remove(&uid);
                self.settings.workers.terminate(&uid, Termination::Graceful).await;
            }
            PodUpdate::Problem { manifest, message } => {
                self.unreadable.insert(manifest);
                tracing::error!("Could not use manifest {message}");
                let reference = node_reference(&self.settings.node_name);
                self.settings.events.event(&reference, EventType::Warning, "FailedManifest", message);
            }
            PodUpdate::Warning { message, .. } => tracing::warn!("{message}"),
            PodUpdate::Synced(source) => self.synced(source).await,
        }
    }

    /// Whether somebody waits for room; then [`Self::retry`] is to be called now and then.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        !self.parked.is_empty() || !self.resizing.is_empty()
    }

    /// Looks again whether there is room for those who wait.
    pub async fn retry(&mut self) {
        for pod in std::mem::take(&mut self.parked).into_values() {
            Box::pin(self.run(pod)).await;
        }
        for uid in self.resizes_in_order() {
            if let Some((pod, _)) = self.resizing.get(&uid) {
                Box::pin(self.run(pod.clone())).await;
            }
        }
    }

    /// Who is looked at first; of equals, who waits for longest.
    fn resizes_in_order(&self) -> Vec<PodUid> {
        let rank = |uid: &PodUid, desired: &Pod, since: Instant| {
            let allocated = self.admitted.get(uid).and_then(|resident| resident.pod.spec.as_ref());
            (allocation::resize_rank(desired, allocated), since)
        };
        let mut order: Vec<_> = self
            .resizing
            .iter()
            .map(|(uid, (desired, since))| (rank(uid, &desired.pod, *since), uid.clone()))
            .collect();
        order.sort();
        order.into_iter().map(|(_, uid)| uid).collect()
    }

    async fn synced(&mut self, source: PodSource) {
        if source == PodSource::Manifest {
            for Adopted { uid, manifest, .. } in &self.settings.adopted {
                if manifest.as_ref().is_some_and(|manifest| self.unreadable.contains(manifest)) {
                    self.wanted.insert(uid.clone(), PodSource::Manifest);
                }
            }
        }
        let of =
            |source| self.wanted.iter().filter(move |(_, of)| **of == source).map(|(uid, _)| uid.clone()).collect();
        self.settings.workers.retain(source, &of(source)).await;
        if source == PodSource::Manifest {
            self.settings.manifests_read.cancel();
            if self.settings.sources == Sources::ManifestsOnly {
                self.settings.workers.retain(PodSource::ApiServer, &HashSet::new()).await;
            }
        }
    }

    /// A pod of the API server, which says itself whether it is to run, to end, or over.
    async fn want_from_api(&mut self, desired: Box<DesiredPod>) {
        let DesiredPod { uid, pod, .. } = &*desired;
        self.wanted.insert(uid.clone(), PodSource::ApiServer);
        if pod.metadata.deletion_timestamp.is_some() {
            self.parked.remove(uid);
            self.resizing.remove(uid);
            let seconds = pod.metadata.deletion_grace_period_seconds.and_then(|s| u64::try_from(s).ok());
            let grace = Duration::from_secs(seconds.unwrap_or(0));
            return self.settings.workers.leave(uid, self.as_allocated(uid, pod), grace).await;
        }
        if pod.status.as_ref().is_some_and(PodPhase::is_over) {
            self.resizing.remove(uid);
            return self.settings.workers.settle(uid, self.as_allocated(uid, pod)).await;
        }
        if !self.refused.contains(uid) {
            self.run(desired).await;
        }
    }

    /// Runs a pod, if it is known or admitted.
    async fn run(&mut self, desired: Box<DesiredPod>) {
        let DesiredPod { uid, pod, origin } = &*desired;
        if !self.admitted.contains_key(uid) {
            match self.judge(uid, pod) {
                Verdict::Admitted { warnings } => {
                    for warning in warnings {
                        tracing::warn!(pod = %uid, "{warning}");
                        self.settings.events.event(&pod_reference(pod), EventType::Warning, "FieldIgnored", warning);
                    }
                }
                Verdict::Rejected { reason, message } => {
                    if *origin == Origin::ApiServer {
                        self.refused.insert(uid.clone());
                    }
                    return self.settings.workers.reject(uid, Pod::clone(pod), &reason, &message);
                }
                Verdict::AfterPreemption { victims } => {
                    for victim in victims {
                        self.settings.workers.evict(&victim, preemption_of()).await;
                    }
                    self.parked.insert(uid.clone(), desired);
                    return;
                }
            }
        }
        let (pod, pending) = self.allocate(&desired).await;
        self.admitted.insert(uid.clone(), Resident::new(pod.clone()));
        let manifest = match origin {
            Origin::Manifest(manifest) => Some(manifest.clone()),
            Origin::ApiServer => None,
        };
        self.settings.workers.update_resized(uid.clone(), pod, manifest, pending).await;
    }

    fn as_allocated(&self, uid: &PodUid, pod: &Pod) -> Pod {
        let allocated = self.admitted.get(uid);
        allocated.map_or_else(|| pod.clone(), |resident| allocation::as_allocated(pod, &resident.pod))
    }

    /// A pod with what the node gives it. If it asks for other resources than it was given before and there is no room,
    /// it keeps those, and waits.
    async fn allocate(&mut self, desired: &DesiredPod) -> (Arc<Pod>, Option<PendingResize>) {
        let DesiredPod { uid, pod, .. } = desired;
        let waited = self.resizing.remove(uid);
        let allocated = self.admitted.get(uid).map(|resident| resident.pod.clone());
        let specs = pod.spec.as_ref().zip(allocated.as_ref().and_then(|allocated| allocated.spec.as_ref()));
        let Some((spec, allocated)) =
            specs.filter(|(new, old)| allocation::differs(new, old)).map(|(new, _)| new).zip(allocated.as_ref())
        else {
            return (pod.clone(), None);
        };
        let message = match self.judge(uid, pod) {
            Verdict::Admitted { .. } => return (pod.clone(), None),
            Verdict::Rejected { message, .. } => message,
            Verdict::AfterPreemption { victims } => {
                for victim in victims {
                    self.settings.workers.evict(&victim, preemption_of()).await;
                }
                "pods of less importance are making room".to_owned()
            }
        };
        let (reason, generation) = (PendingReason::Deferred, pod.metadata.generation.unwrap_or(0));
        let event = allocation::summary("Pod resize Deferred", spec, generation, Some(&message));
        let since = waited.map_or_else(Instant::now, |(_, since)| since);
        let waiting = DesiredPod { uid: uid.clone(), pod: pod.clone(), origin: desired.origin.clone() };
        let kept = allocation::as_allocated(pod, allocated);
        self.resizing.insert(uid.clone(), (Box::new(waiting), since));
        (Arc::new(kept), Some(PendingResize { reason, message, generation, event }))
    }

    fn judge(&mut self, uid: &PodUid, pod: &Pod) -> Verdict {
        let Self { settings, wanted, admitted, leaving, .. } = self;
        leaving.retain(|uid| {
            if wanted.contains_key(uid) {
                return false;
            }
            let is_there = settings.workers.has(uid);
            if !is_there {
                admitted.remove(uid);
            }
            is_there
        });
        let others = admitted.iter().filter(|(other, _)| *other != uid);
        let others: Vec<&Resident> = settings.status.not_over(others);
        (settings.admit)(pod, &others)
    }
}

fn preemption_of() -> Eviction {
    Eviction {
        reason: "Preempting".to_owned(),
        message: "Preempted in order to admit critical pod".to_owned(),
        disruption: Some("Pod was preempted by Kubelet to accommodate a critical pod.".to_owned()),
        // Its own grace is the least of both.
        grace: Duration::MAX,
    }
}

/// Admission by fields and by number alone: what a node without a cluster needs.
#[must_use]
pub fn admit_by_number(max_pods: Option<usize>, policy: NodePolicy) -> Admit {
    Box::new(move |pod, others| {
        if let Some(capacity) = max_pods.filter(|capacity| others.len() >= *capacity) {
            let used = others.len();
            return Verdict::Rejected {
                reason: "OutOfpods".to_owned(),
                message: format!(
                    "Node didn't have enough resource: pods, requested: 1, used: {used}, capacity: {capacity}"
                ),
            };
        }
        match pod.spec.as_ref().map(|spec| admission::admit(spec, &policy)) {
            None => Verdict::Admitted { warnings: Vec::new() },
            Some(Ok(warnings)) => Verdict::Admitted { warnings },
            Some(Err((reason, message))) => Verdict::Rejected { reason: reason.to_owned(), message },
        }
    })
}
