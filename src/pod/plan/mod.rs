//! Decides what a pod needs next: from what was asked, what its containers do and what time it is.
//!
//! In: a [`PodView`]. Out: a [`Plan`] of actions the worker carries out, and when to look again.
//! Reads no clock, starts nothing, remembers nothing. The rules are those of the kubelet's
//! `computePodActions` and `terminationOrdering`.
//!
//! ```text
//!              deleted, evicted, deadline, all containers done
//!   Syncing ───────────────────────────────────────────────────▶ Terminating
//!     │ create sandbox                                              │ stop containers (sidecars last,
//!     │ start init containers in order                              │   in reverse), each with what is
//!     │ start containers, restart them                              │   left of the grace
//!     ▼                                                             │ remove the sandbox
//!   (stays)                                                         ▼
//!                                                                Terminated
//! ```

mod syncing;
mod terminating;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use super::back_off::BackOff;
use super::restart::{RestartPolicy, RestartRules};

/// The least time between the first signal and the kill, as the kubelet's `minimumGracePeriodInSeconds`.
pub const MINIMUM_GRACE: Duration = Duration::from_secs(2);

/// A container whose end is overdue by this much is killed again.
pub const OVERDUE_AFTER: Duration = Duration::from_secs(5);

/// Everything a decision needs.
#[derive(Debug, Clone)]
pub struct PodView {
    /// Where the pod is in its life.
    pub phase: Phase,
    /// `spec.restartPolicy`.
    pub restart_policy: RestartPolicy,
    /// The network and volumes that its containers share.
    pub sandbox: Sandbox,
    /// `spec.initContainers`, in order: init containers and sidecars.
    pub init: Vec<ContainerView>,
    /// `spec.containers`, in order.
    pub main: Vec<ContainerView>,
    /// `spec.ephemeralContainers`: run once each beside the others, keep nothing alive.
    pub ephemeral: Vec<ContainerView>,
    /// A container's rule has asked for all of them to run again, and not all have ended yet.
    pub restarting_all: bool,
    /// `status.startTime` plus `spec.activeDeadlineSeconds`.
    pub deadline: Option<Timestamp>,
    /// The time now.
    pub now: Timestamp,
}

/// Where a pod is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It is wanted: its containers are started and restarted.
    Syncing,
    /// It ends: nothing is started any more.
    Terminating(Termination),
    /// Nothing of it runs.
    Terminated,
}

/// How a pod ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Termination {
    /// When it began to end.
    pub since: Timestamp,
    /// How long its containers may take; zero kills at once.
    pub grace: Duration,
}

impl Termination {
    /// When the time is over.
    #[must_use]
    pub fn deadline(&self) -> Timestamp {
        super::back_off::later(self.since, self.grace)
    }
}

/// State of the sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sandbox {
    /// There is none: not yet, or the agent was restarted.
    Absent,
    /// Being made.
    Creating,
    /// It could not be made; not before this time again.
    Failed {
        /// When to try again.
        retry_at: Timestamp,
    },
    /// It is there.
    Ready,
    /// Being removed.
    Removing,
}

/// One container as the plan sees it.
#[derive(Debug, Clone)]
pub struct ContainerView {
    /// Its name.
    pub name: String,
    /// What kind it is.
    pub role: Role,
    /// When it runs again.
    pub restart: RestartRules,
    /// What it does now.
    pub state: ContainerState,
    /// The crash-loop wait in force, if it ever ended.
    pub back_off: Option<BackOff>,
    /// A start that failed (image, configuration): not before this time again.
    pub hold_until: Option<Timestamp>,
    /// Whether others wait for its start.
    pub post_start: PostStart,
}

/// Whether a container has a postStart hook that others wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PostStart {
    /// It has none, or it is done.
    Done,
    /// Main containers behind it start when it is done, as the kubelet starts one after the other. Proxies that must
    /// be there before everything else rely on it.
    Pending,
}

/// The kinds of containers of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Runs once, before those after it.
    Init,
    /// An init container with `restartPolicy: Always`.
    Sidecar,
    /// One of `spec.containers`.
    Main,
    /// One of `spec.ephemeralContainers`: never restarted.
    Ephemeral,
}

/// What a container does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerState {
    /// It never ran in this sandbox and, if it is a main container, in no earlier one.
    Absent,
    /// A start is under way: image, compilation, instantiation.
    Starting,
    /// It runs.
    Running {
        /// Whether its startup probe (if any) has succeeded.
        startup: Startup,
        /// Whether it should go on running.
        health: Health,
    },
    /// It was told to stop and will be killed at this time.
    Stopping {
        /// End of its grace.
        kill_at: Timestamp,
    },
    /// It ended.
    Exited {
        /// 0-255.
        exit_code: i32,
        /// In which sandbox it ran.
        sandbox: RanIn,
    },
}

/// Which sandbox an ended container ran in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RanIn {
    /// The one that is there now.
    Current,
    /// One before it: the agent was restarted since.
    Earlier,
}

/// Result of the startup probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Startup {
    /// Not yet.
    Pending,
    /// It succeeded, or there is none.
    Started,
}

/// Why a running container should not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// It should.
    Healthy,
    /// Its liveness probe failed.
    FailedLiveness,
    /// Its startup probe failed.
    FailedStartup,
    /// Its definition (its image) changed.
    DefinitionChanged,
    /// Its resources changed, and its `resizePolicy` wants it to start anew.
    ResizeRestart,
}

/// What to do now and when to decide again.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// In the order to begin them; none waits for another.
    pub actions: Vec<Action>,
    /// Containers that wait in a crash loop.
    pub backing_off: BTreeMap<String, BackOff>,
    /// Decide again at this time even if nothing happens.
    pub wake_at: Option<Timestamp>,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Set up volumes and network.
    CreateSandbox,
    /// Start a container (its next attempt).
    Start {
        /// Which.
        container: String,
    },
    /// End a running container.
    Stop {
        /// Which.
        container: String,
        /// From the signal to the kill; zero kills at once, `None` is the pod's own grace.
        grace: Option<Duration>,
        /// Why, for the `Killing` event.
        cause: StopCause,
    },
    /// Give up a start that is under way.
    CancelStart {
        /// Which.
        container: String,
    },
    /// Kill a container that should have ended long ago.
    KillOverdue {
        /// Which.
        container: String,
    },
    /// A container's rule asks for all of them to run again: remember it.
    BeginRestartAll,
    /// All have ended: forget that they ran.
    ResetContainers,
    /// Enter [`Phase::Terminating`].
    Terminate(EndCause),
    /// Give back network and mounts; nothing runs in it.
    RemoveSandbox,
    /// Enter [`Phase::Terminated`].
    Finish,
}

/// Why a container is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopCause {
    /// The pod ends.
    PodEnds,
    /// Its liveness probe failed.
    FailedLiveness(Then),
    /// Its startup probe failed.
    FailedStartup(Then),
    /// Its definition changed.
    DefinitionChanged,
    /// Its resources changed.
    ResizeRestart,
    /// All containers run again, for another one's end.
    RestartAll,
    /// Its postStart hook failed.
    FailedPostStartHook,
}

/// What follows a container's stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// It runs again.
    Restart,
    /// It stays as it is.
    Stay,
}

impl StopCause {
    /// The message of the `Killing` event, as the kubelet words it.
    #[must_use]
    pub fn message(self, container: &str, role: Role) -> String {
        let subject = if matches!(role, Role::Main | Role::Ephemeral) { "Container" } else { "Init container" };
        let then = |then: Then| if then == Then::Restart { ", will be restarted" } else { "" };
        match self {
            Self::PodEnds => format!("Stopping container {container}"),
            Self::FailedLiveness(t) => format!("{subject} {container} failed liveness probe{}", then(t)),
            Self::FailedStartup(t) => format!("{subject} {container} failed startup probe{}", then(t)),
            Self::DefinitionChanged => format!("{subject} {container} definition changed, will be restarted"),
            Self::RestartAll => "killing".to_owned(),
            Self::ResizeRestart => format!("Container {container} resize requires restart"),
            Self::FailedPostStartHook => "FailedPostStartHook".to_owned(),
        }
    }
}

/// Why a pod that nobody deleted ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndCause {
    /// No container runs and none will.
    Completed,
    /// An init container failed for good, or the pod may not run again after its sandbox was lost.
    Failed,
    /// `activeDeadlineSeconds` are over.
    DeadlineExceeded,
}

/// Decides.
#[must_use]
pub fn plan(view: &PodView) -> Plan {
    match view.phase {
        Phase::Syncing => syncing::plan(view),
        Phase::Terminating(termination) => terminating::plan(view, termination),
        Phase::Terminated => Plan::default(),
    }
}

impl Plan {
    fn act(&mut self, action: Action) {
        self.actions.push(action);
    }

    /// Looks again at `at`, unless an earlier look is planned.
    fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |planned| planned.min(at)));
    }
}
