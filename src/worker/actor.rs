//! The actor: owns one pod's state, and the loop that drives it.
//!
//! In: commands and results of spawned work. Out: calls of `apply`, `publish` and the savers.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use tokio::sync::{mpsc, watch};
use tokio::task::{self, JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::DropGuard;

use super::config::{Services, WorkerConfig};
use super::metrics::{Passes, Step, Work};
use super::model::{self, Live};
use super::probing::{self, Hook, Reports};
use super::resize::Resize;
use super::runtime::{ContainerRuntime, StartFailure};
use super::sandbox::{SandboxMade, SetupFailure};
use super::start::{PrepareFailure, Prepared};
use super::usage::Excess;
use crate::ids::{ContainerId, PodRef, PodUid};
use crate::objects::Change;
use crate::pod::allocation::PendingResize;
use crate::pod::back_off::{BackOff, elapsed, later};
use crate::pod::plan::{self, Phase, PodView, RanIn, Sandbox};
use crate::pod::restart::RestartPolicy;
use crate::pod::run::{ContainerExit, PodLimits, VolumeSpec};
use crate::pod::static_pod;
use crate::pod::status::{PodEnd, PodPhase};
use crate::pod::volumes;
use crate::state::{ContainerRecord, Outlives, PodRecord, StateError, TerminationRecord};
use crate::volume::VolumeError;

/// Commands that wait for a worker: exits of its containers and a few words of the pool. A worker never
/// waits for anything slow, so that a full queue empties by itself.
pub(super) const COMMANDS: usize = 32;

/// How long the record of a new pod with volumes of drivers may wait for its first attempt, which has to be on disk anyway.
/// Others wait as a status does: what they have made so far, the next agent finds without it.
const FIRST_SAVE: Duration = Duration::from_millis(50);

/// How long a status may wait for more when nothing else of the record changed. The next agent makes it anew from what the
/// containers did, which never waits; a pod that is started among a thousand others, or ends soon, costs one write less.
const STATUS_SAVE: Duration = Duration::from_secs(10);

/// Plans carried out in one turn; more would mean that two of them undo each other.
const MAX_ROUNDS: usize = 64;

/// How long a pod of the agent before this one waits to be wanted again before it starts anything: the manifests
/// are read in this time, and a pod whose manifest went meanwhile must not flash up. Longer would keep pods down
/// while their source is away.
const ADOPTION_PATIENCE: Duration = Duration::from_secs(5);

/// The same for pods of the API server. It is asked over a network that may come up after the agent; a pod that was
/// deleted meanwhile is better not run again. An API server that is away for longer keeps no pod down.
const API_ADOPTION_PATIENCE: Duration = Duration::from_secs(10);

/// How a pod is asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Termination {
    /// With its own `terminationGracePeriodSeconds`.
    Graceful,
    /// With at most this much.
    Within(Duration),
    /// Its containers are killed.
    Force,
}

/// What a worker is told. Small: a queue has room for thirty-two from the start, and most pods are never told anything.
#[derive(Debug)]
pub(super) enum Command {
    /// The pod changed under the same UID. Its resources are those it was given; a resize may wait.
    Update { pod: Arc<Pod>, pending: Option<Box<PendingResize>> },
    /// The pod is not wanted any more.
    Terminate(Termination),
    /// The API server wants the pod to end within this time; it stays known until the API server has forgotten it.
    Leave { pod: Box<Pod>, grace: Duration },
    /// The API server says that the pod is over.
    Settle(Box<Pod>),
    /// The pod must leave.
    Evict(Box<Eviction>),
    /// Settings of the node changed.
    Configure(Arc<WorkerConfig>),
    /// A container ended.
    Exit(Box<ContainerExit>),
    /// What the pod is made from changed (`None`: anything may have).
    ObjectsChanged(Option<Box<Change>>),
    /// The agent stops: end the guests within this time, keep the pod.
    Shutdown(Duration),
}

/// Why and how a pod is ended that could go on: pressure, preemption, shutdown of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Eviction {
    /// `status.reason`.
    pub reason: String,
    /// `status.message`.
    pub message: String,
    /// Message of the condition `DisruptionTarget`; without one it gets none.
    pub disruption: Option<String>,
    /// Most its containers may take.
    pub grace: Duration,
}

/// What spawned work came to.
#[derive(Debug)]
pub(super) enum Done {
    SandboxCreated(Result<SandboxMade, SetupFailure>),
    SandboxRemoved,
    Prepared { container: String, result: Result<Box<Prepared>, PrepareFailure> },
    Launched { container: String, id: ContainerId, result: Result<(), StartFailure> },
    Hooked { container: String, id: ContainerId, hook: Hook, result: Option<Result<(), String>> },
    ExitCollected { container: String, exit: ContainerExit, message: Option<String> },
    Saved { result: Result<(), StateError> },
    Measured(Option<Excess>),
    Refreshed,
    Remounted(Vec<VolumeError>),
    TornDown,
    Removed(Removal),
}

/// What spawned work is about, should it panic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Subject {
    Sandbox,
    /// A start or an end of a container.
    Container(String),
    /// A lifecycle hook of a container.
    Hook(String),
    Record,
    Cleanup,
    Usage,
    /// Nothing waits for it.
    Side,
}

/// Whether the worker goes on.
#[derive(Debug, PartialEq, Eq)]
enum Flow {
    Continue,
    Stop,
}

/// What becomes of the pod when its containers are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It stays known, running or ended.
    Kept,
    /// It was deleted in the API server, which waits for word that nothing of it is left.
    Leaving,
    /// It was deleted.
    Deleted,
    /// The agent stops.
    AgentStops,
}

/// What came of removing a deleted pod's directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Removal {
    Complete,
    /// Something is left: the disk refused.
    Partial,
}

/// Progress of what follows the end of the containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cleanup {
    NotYet,
    /// Volumes and directories of containers are being removed.
    TearingDown,
    TornDown,
    /// The record and the logs are being removed.
    Removing,
}

/// One pod's actor.
pub(super) struct PodWorker<R> {
    pub services: Arc<Services<R>>,
    pub config: Arc<WorkerConfig>,
    pub uid: PodUid,
    pub name: PodRef,
    pub pod: Arc<Pod>,
    pub record: PodRecord,
    /// Boxed: a map has room for eleven, and a pod seldom has more than two.
    pub containers: BTreeMap<String, Box<Live>>,
    pub phase: Phase,
    pub sandbox: Sandbox,
    pub sandbox_failures: u32,
    pub volumes: Arc<Vec<VolumeSpec>>,
    /// A change of objects came while the sandbox was being made.
    pub stale_volumes: bool,
    /// Held while volumes are read anew and shown: of two changes at a time, the older must not be shown last.
    pub refreshing: Arc<tokio::sync::Mutex<()>>,
    /// Ends the wait for volumes whose content is still to come.
    pub bringing: Option<DropGuard>,
    pub end: Option<PodEnd>,
    pub fate: Fate,
    pub cleanup: Cleanup,
    pub backing_off: BTreeMap<String, BackOff>,
    pub ops: JoinSet<Done>,
    pub next_usage: Option<Instant>,
    /// When volumes of drivers are looked at again; `None` while that is done, or where there are none.
    pub next_remount: Option<Instant>,
    /// An adopted pod that nobody has wanted yet starts nothing before this.
    pub unconfirmed_until: Option<Instant>,
    pub saves: Saves,
    /// When the agent took it over from the one before.
    pub adopted_at: Option<Instant>,
    /// News of probes, once there are any.
    pub reports: Reports,
    pub resize: Resize,
    /// What the containers of the sandbox run under together.
    pub pod_limits: PodLimits,
    /// When a removal that failed is tried again, and how often it has.
    pub remove_again: Option<(Instant, u32)>,
    pub passes: Passes,
    subjects: HashMap<task::Id, Subject>,
    wake_at: Option<Timestamp>,
    commands: mpsc::Receiver<Command>,
    orphaned: bool,
}

/// What is on disk and what should be.
pub(super) struct Saves {
    /// Version of the record in memory.
    pub wanted: u64,
    /// Newest version that must not wait for more.
    pub urgent: u64,
    /// Version being written.
    pub writing: Option<u64>,
    /// Until when the next write waits for more.
    pub held_until: Option<Instant>,
    /// Newest version that the next agent would find, or that was tried: a full disk must not stop pods.
    pub staged: watch::Sender<u64>,
    /// Newest version that the disk has, or that was tried.
    pub done: watch::Sender<u64>,
    /// Newest version that is on disk.
    pub stored: watch::Sender<u64>,
    /// What the disk said when it refused last.
    pub refusal: watch::Sender<String>,
}

impl<R: ContainerRuntime> PodWorker<R> {
    /// A worker for a pod the node just accepted.
    pub fn new(
        services: Arc<Services<R>>,
        config: Arc<WorkerConfig>,
        uid: PodUid,
        pod: Arc<Pod>,
        manifest: Option<PathBuf>,
        commands: mpsc::Receiver<Command>,
    ) -> Self {
        let now = services.clock.now();
        let status = pod.status.clone();
        let pod = if status.is_some() { Arc::new(Pod { status: None, ..Pod::clone(&pod) }) } else { pod };
        let mut record = PodRecord::new(uid.clone(), pod, now);
        record.manifest = manifest;
        if !static_pod::is_static(&record.pod)
            && let Some(status) = &status
        {
            model::seed(&mut record, status, now);
        }
        Self::with_record(services, config, record, commands)
    }

    /// A worker for a pod that outlived the agent before this one.
    pub fn readopt(
        services: Arc<Services<R>>,
        config: Arc<WorkerConfig>,
        mut record: PodRecord,
        commands: mpsc::Receiver<Command>,
    ) -> Self {
        let now = services.clock.now();
        for container in record.containers.values_mut() {
            model::record_lost(container, now);
        }
        if std::mem::take(&mut record.restarting_all) {
            // They have ended with the agent.
            record.containers.values_mut().for_each(|container| model::reset(container));
        }
        let termination = record.termination.clone();
        let over = PodPhase::is_over(&record.status);
        let mut worker = Self::with_record(services, config, record, commands);
        let is_static = static_pod::is_static(&worker.pod);
        let patience = if is_static { ADOPTION_PATIENCE } else { API_ADOPTION_PATIENCE };
        worker.unconfirmed_until = Some(Instant::now() + patience);
        worker.adopted_at = Some(Instant::now());
        if let Some(TerminationRecord { requested_at, grace, reason, message }) = termination {
            worker.phase = Phase::Terminating(plan::Termination { since: requested_at, grace });
            (worker.end, worker.fate) = match reason {
                None if is_static => (Some(PodEnd::Deleted), Fate::Deleted),
                // Gone from the API server, or not: its next list says.
                None => (Some(PodEnd::Deleted), Fate::Leaving),
                Some(_) => (Some(PodEnd::Failed { reason, message }), Fate::Kept),
            };
        } else if over {
            worker.phase = Phase::Terminating(plan::Termination { since: now, grace: Duration::ZERO });
        }
        worker
    }

    fn with_record(
        services: Arc<Services<R>>,
        config: Arc<WorkerConfig>,
        record: PodRecord,
        commands: mpsc::Receiver<Command>,
    ) -> Self {
        let pod = record.pod.clone();
        let name = PodRef::of(&pod);
        let next_usage = super::usage::is_limited(&pod).then(|| Instant::now() + config.usage_period);
        Self {
            containers: model::containers(&pod),
            services,
            config,
            uid: record.uid.clone(),
            name,
            pod,
            record,
            phase: Phase::Syncing,
            sandbox: Sandbox::Absent,
            sandbox_failures: 0,
            volumes: Arc::default(),
            stale_volumes: false,
            refreshing: Arc::default(),
            bringing: None,
            end: None,
            fate: Fate::Kept,
            cleanup: Cleanup::NotYet,
            backing_off: BTreeMap::new(),
            ops: JoinSet::new(),
            next_usage,
            next_remount: None,
            unconfirmed_until: None,
            saves: Saves {
                wanted: 1,
                urgent: 1,
                writing: None,
                held_until: None,
                staged: watch::Sender::new(0),
                done: watch::Sender::new(0),
                stored: watch::Sender::new(0),
                refusal: watch::Sender::default(),
            },
            adopted_at: None,
            reports: None,
            resize: Resize::default(),
            pod_limits: PodLimits::default(),
            remove_again: None,
            passes: Passes::default(),
            subjects: HashMap::new(),
            wake_at: None,
            commands,
            orphaned: false,
        }
    }

    /// Drives the pod until it is deleted or the agent stops.
    #[tracing::instrument(name = "pod_worker", skip_all, fields(pod = %self.name, podUID = %self.uid))]
    pub async fn run(mut self: Box<Self>) {
        loop {
            let began = Instant::now();
            self.turn();
            let (step, work) = self.step();
            self.passes.turned(&self.services.metrics, began, step, work);
            if self.finished() == Flow::Stop {
                break;
            }
            let wake = self.sleep_until();
            tokio::select! {
                // Cancel safe: a command is received or stays in the queue.
                // Guarded: a closed queue stays ready and would spin us.
                command = self.commands.recv(), if !self.orphaned => match command {
                    Some(command) => self.handle(command),
                    None => {
                        // The pool is gone, so is the agent.
                        self.orphaned = true;
                        self.handle(Command::Shutdown(Duration::ZERO));
                    }
                },
                // Cancel safe: a result is taken or stays in the set.
                Some(done) = self.ops.join_next_with_id() => self.finish(done),
                // Cancel safe: news are received or stay in their queue.
                report = probing::next(&mut self.reports) => self.judge(report),
                // Cancel safe: a timer.
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    /// Decides and acts until there is nothing to do now.
    fn turn(&mut self) {
        if self.unconfirmed_until.is_some_and(|until| Instant::now() >= until) {
            self.unconfirmed_until = None;
        }
        let rounds = if self.unconfirmed_until.is_some() && self.phase == Phase::Syncing { 0 } else { MAX_ROUNDS };
        self.actuate_resize();
        for _ in 0..rounds {
            let plan = plan::plan(&self.view());
            self.wake_at = plan.wake_at;
            self.note_back_off(plan.backing_off);
            let waiting = plan.actions.is_empty();
            for action in plan.actions {
                self.apply(action);
            }
            if waiting {
                break;
            }
        }
        self.after_end();
        self.measure_if_due();
        self.remount_if_due();
        self.publish();
        self.save_if_dirty();
    }

    /// How far the pod is, and whether what it waits for is under way. Measuring its disks is not waited for.
    fn step(&self) -> (Step, Work) {
        let step = match (self.phase, self.cleanup) {
            (Phase::Syncing, _) => Step::Syncing,
            (Phase::Terminating(_), _) => Step::Terminating,
            (Phase::Terminated, Cleanup::NotYet | Cleanup::TearingDown) => Step::Terminated,
            (Phase::Terminated, Cleanup::TornDown | Cleanup::Removing) => Step::Over,
        };
        let waits = self.subjects.values().any(|subject| !matches!(subject, Subject::Usage | Subject::Side));
        (step, if waits { Work::UnderWay } else { Work::Done })
    }

    fn view(&self) -> PodView {
        let now = self.services.clock.now();
        let default = PodSpec::default();
        let spec = self.pod.spec.as_ref().unwrap_or(&default);
        let unknown = ContainerRecord::default();
        let view = |name: &String| {
            let record = self.record.containers.get(name).map_or(&unknown, |record| &**record);
            self.containers.get(name).map(|live| live.view(name, record))
        };
        let active = spec.active_deadline_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        PodView {
            phase: self.phase,
            restart_policy: RestartPolicy::parse(spec.restart_policy.as_deref()),
            restarting_all: self.record.restarting_all,
            sandbox: self.sandbox,
            init: spec.init_containers.iter().flatten().filter_map(|container| view(&container.name)).collect(),
            main: spec.containers.iter().filter_map(|container| view(&container.name)).collect(),
            ephemeral: spec.ephemeral_containers.iter().flatten().filter_map(|c| view(&c.name)).collect(),
            deadline: active.map(|seconds| later(self.record.accepted_at, Duration::from_secs(seconds))),
            now,
        }
    }

    fn sleep_until(&self) -> Instant {
        // Nothing planned: an hour is as good as never, and heals a missed wake-up.
        let mut delay = Duration::from_secs(3600);
        if let Some(at) = self.wake_at {
            // A millisecond more than the clock's resolution needs, so that the plan finds the time over.
            delay = delay.min(elapsed(self.services.clock.now(), at) + Duration::from_millis(1));
        }
        let wake = Instant::now() + delay;
        let held =
            if self.saves.is_clean() { None } else { self.saves.held_until.filter(|until| *until > Instant::now()) };
        let may_remove = self.cleanup == Cleanup::TornDown && self.saves.writing.is_none();
        let remove_at = self.remove_again.map(|(at, _)| at).filter(|_| may_remove);
        [self.next_usage, self.next_remount, self.unconfirmed_until, held, self.resize.retry_at, remove_at]
            .into_iter()
            .flatten()
            .fold(wake, Instant::min)
    }

    fn finished(&self) -> Flow {
        let quiet = self.ops.is_empty();
        let stop = match self.fate {
            Fate::Kept | Fate::Leaving => false,
            Fate::Deleted => self.cleanup == Cleanup::Removing && quiet,
            Fate::AgentStops => self.sandbox == Sandbox::Absent && quiet && self.saves.is_clean(),
        };
        if stop { Flow::Stop } else { Flow::Continue }
    }

    fn finish(&mut self, done: Result<(task::Id, Done), JoinError>) {
        match done {
            Ok((id, done)) => {
                self.subjects.remove(&id);
                self.done(done);
            }
            // Nothing aborts these tasks: it panicked. What it was to do is tried again.
            Err(error) => {
                tracing::error!(err = %error, "Work for a pod panicked");
                if let Some(subject) = self.subjects.remove(&error.id()) {
                    self.recover_from_panic(subject);
                }
            }
        }
    }

    /// Adds work whose result comes back to this worker.
    pub fn spawn(&mut self, subject: Subject, work: impl Future<Output = Done> + Send + 'static) {
        let span = tracing::Span::current();
        let id = self.ops.spawn(tracing::Instrument::instrument(work, span)).id();
        self.subjects.insert(id, subject);
    }

    /// Adds work that blocks its thread.
    pub fn spawn_blocking(&mut self, subject: Subject, work: impl FnOnce() -> Done + Send + 'static) {
        let span = tracing::Span::current();
        let id = self.ops.spawn_blocking(move || span.in_scope(work)).id();
        self.subjects.insert(id, subject);
    }

    /// The record has changed and must be written.
    pub fn dirty(&mut self) {
        self.saves.wanted += 1;
        self.saves.urgent = self.saves.wanted;
    }

    /// The record has changed in what the next agent would make anew: it must be written, in a while.
    pub fn dirty_later(&mut self) {
        self.saves.wanted += 1;
    }

    /// How long the next write may wait for more.
    fn may_wait(&self) -> Option<Duration> {
        if self.phase != Phase::Syncing || self.fate != Fate::Kept {
            return None;
        }
        // A start that failed before anything ran takes back what was written of it.
        if self.has_run_nothing() && *self.saves.staged.borrow() == 0 {
            let driven = self.pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).any(volumes::is_of_driver);
            return Some(if driven { FIRST_SAVE } else { STATUS_SAVE });
        }
        (self.saves.urgent <= *self.saves.done.borrow()).then_some(STATUS_SAVE)
    }

    /// Whether a machine that forgets the pod, as if it never began, may start it again.
    fn may_be_lost(&self) -> bool {
        self.phase == Phase::Syncing && self.fate == Fate::Kept && !super::start::runs_any_once(&self.pod)
    }

    /// Whether a crash now would lose nothing that the next agent would not make again: no attempt was begun, and nobody
    /// asked for the pod's end.
    fn has_run_nothing(&self) -> bool {
        self.record.containers.values().all(|record| record.attempts == 0)
    }

    /// Changes the record of one container.
    pub fn container_record(&mut self, name: &str) -> &mut ContainerRecord {
        self.dirty();
        self.record.containers.entry(name.to_owned()).or_default()
    }

    /// Whether a container's record says it has ended in this sandbox.
    pub fn mark_ended_here(&mut self, name: &str) {
        if let Some(live) = self.containers.get_mut(name) {
            live.ended_in = RanIn::Current;
        }
    }

    fn save_if_dirty(&mut self) {
        if self.saves.writing.is_some() || self.saves.is_clean() || self.cleanup == Cleanup::Removing {
            return;
        }
        if let Some(wait) = self.may_wait() {
            let now = Instant::now();
            if now < *self.saves.held_until.get_or_insert(now + wait) {
                return;
            }
        }
        self.saves.held_until = None;
        let version = self.saves.wanted;
        self.saves.writing = Some(version);
        let (state, record) = (self.services.state.clone(), self.record.clone());
        let (staged, done, stored) = (self.saves.staged.clone(), self.saves.done.clone(), self.saves.stored.clone());
        let refusal = self.saves.refusal.clone();
        let may_be_lost = self.may_be_lost();
        self.spawn_blocking(Subject::Record, move || {
            let result = state.stage(&record);
            staged.send_replace(version);
            let result = result.and_then(|staged| match may_be_lost {
                true => staged.place(),
                false => staged.commit().map(|()| Outlives::Machine),
            });
            match &result {
                Ok(Outlives::Agent) => {}
                Ok(Outlives::Machine) => {
                    stored.send_replace(version);
                }
                Err(error) => {
                    refusal.send_replace(cause(error));
                }
            }
            // From here, not by the worker's next turn: a start waits for it.
            done.send_replace(version);
            Done::Saved { result: result.map(drop) }
        });
    }
}

impl Saves {
    /// Whether everything is on disk, or was tried.
    pub fn is_clean(&self) -> bool {
        self.writing.is_none() && *self.done.borrow() >= self.wanted
    }
}

/// What the disk itself said, without the path: that is the node's own affair.
pub(super) fn cause(error: &StateError) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}
