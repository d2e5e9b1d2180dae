//! What a worker knows of its containers beyond what is on disk, and how both look to `pod::plan` and
//! `pod::status`.
//!
//! In: records, activities. Out: views and facts. No effect here.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerState as ApiState, ContainerStatus, Pod, PodStatus};
use tokio_util::sync::CancellationToken;

use super::probing::Checks;
use crate::ids::ContainerId;
use crate::pod::allocation::Numbers;
use crate::pod::back_off::BackOff;
use crate::pod::ephemeral;
use crate::pod::plan::{ContainerState, ContainerView, Health, PostStart, RanIn, Role};
use crate::pod::restart::{RestartRules, is_sidecar};
use crate::pod::run::ContainerExit;
use crate::pod::status::{ContainerFacts, Ended, LOST_REASON, Now, Run, Waiting, container_statuses};
use crate::state::{BackOffRecord, ContainerRecord, ExitRecord, PodRecord, RunRecord};

/// Message of an end that the agent's restart caused.
pub(super) const RESTARTED_MESSAGE: &str = "The agent was restarted while the container was running";
/// Reason of containers that all run again.
const RESTARTING_ALL: &str = "RestartingAllContainers";
/// In more words.
const RESTARTING_ALL_MESSAGE: &str = "The container is removed because RestartAllContainers in place";
/// Exit code of what was killed or lost.
const LOST_EXIT_CODE: i32 = 137;

/// One container, as long as its worker lives.
#[derive(Debug)]
pub(super) struct Live {
    pub role: Role,
    pub restart: RestartRules,
    pub activity: Activity,
    /// Where the newest recorded end happened.
    pub ended_in: RanIn,
    pub hold: Option<Hold>,
    /// Back-off of starts that failed.
    pub failures: Option<BackOff>,
    /// Until when a failure that is the same as before is not told again.
    pub told: Option<BackOff>,
    /// The image's stop signal.
    pub stop_signal: u8,
    pub health: Health,
    /// What probes and hooks say of the attempt.
    pub checks: Checks,
    /// `lifecycle.postStart` is given; it cannot change.
    pub has_post_start: bool,
    /// What the attempt runs under, from its preparation on.
    pub in_force: Option<Numbers>,
    /// It was stopped to run again, whatever its policy says of its end.
    pub revive: bool,
}

/// What is being done with a container.
///
/// ```text
///   Idle ─▶ Preparing ─▶ Launching ─▶ Running ─▶ Stopping ─▶ Ending ─▶ Idle
///    ▲          │ failed     │ failed     └──── exited ───────▲
///    └──────────┴────────────┘
/// ```
#[derive(Debug)]
pub(super) enum Activity {
    Idle,
    /// Image, environment, directories.
    Preparing {
        cancel: CancellationToken,
    },
    /// Reserved on disk; the runtime is starting it. Its exit may be heard before its start.
    Launching {
        id: ContainerId,
        exit: Option<ContainerExit>,
        wanted: Wanted,
    },
    Running {
        id: ContainerId,
    },
    Stopping {
        id: ContainerId,
        kill_at: Timestamp,
    },
    /// It ended; its last words are being collected.
    Ending {
        id: ContainerId,
        at: Timestamp,
    },
}

/// Whether a start under way is still wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    Yes,
    No,
}

/// A start that failed and why.
#[derive(Debug)]
pub(super) struct Hold {
    pub until: Timestamp,
    pub waiting: Waiting,
}

impl Live {
    pub fn new(role: Role, restart: RestartRules) -> Self {
        Self {
            role,
            restart,
            activity: Activity::Idle,
            ended_in: RanIn::Earlier,
            hold: None,
            failures: None,
            told: None,
            stop_signal: 15,
            health: Health::Healthy,
            checks: Checks::default(),
            has_post_start: false,
            in_force: None,
            revive: false,
        }
    }

    /// The attempt that runs or is about to.
    pub fn id(&self) -> Option<&ContainerId> {
        match &self.activity {
            Activity::Idle | Activity::Preparing { .. } => None,
            Activity::Launching { id, .. }
            | Activity::Running { id }
            | Activity::Stopping { id, .. }
            | Activity::Ending { id, .. } => Some(id),
        }
    }

    fn post_start(&self) -> PostStart {
        let done = match self.activity {
            Activity::Running { .. } => !self.checks.is_hidden(),
            _ => false,
        };
        if done || !self.has_post_start { PostStart::Done } else { PostStart::Pending }
    }

    pub fn view(&self, name: &str, record: &ContainerRecord) -> ContainerView {
        let state = match &self.activity {
            Activity::Idle if record.reset => ContainerState::Absent,
            Activity::Idle => match record.ends.first() {
                Some(end) => ContainerState::Exited { exit_code: end.exit_code, sandbox: self.ended_in },
                None => ContainerState::Absent,
            },
            Activity::Preparing { .. } | Activity::Launching { .. } => ContainerState::Starting,
            Activity::Running { .. } => ContainerState::Running { startup: self.checks.started(), health: self.health },
            Activity::Stopping { kill_at, .. } => ContainerState::Stopping { kill_at: *kill_at },
            Activity::Ending { at, .. } => ContainerState::Stopping { kill_at: *at },
        };
        ContainerView {
            name: name.to_owned(),
            role: self.role,
            restart: if self.revive { RestartRules::default() } else { self.restart.clone() },
            state,
            back_off: record.back_off.map(from_record).filter(|_| !self.revive && !record.reset),
            hold_until: self.hold.as_ref().map(|hold| hold.until),
            post_start: self.post_start(),
        }
    }

    /// What the status shows; `backing_off` is the plan's word, `default` the reason to wait of a new container.
    pub fn facts(&self, record: &ContainerRecord, backing_off: Option<Waiting>, default: &str) -> ContainerFacts {
        let ends: Vec<Ended> = record.ends.iter().map(ended).collect();
        let (first, second) = (ends.first().cloned(), ends.get(1).cloned());
        let run = |record: &ContainerRecord| {
            record.running.as_ref().map(|run| Run {
                id: run.id.clone(),
                image_id: run.image_id.clone(),
                user: run.user.clone(),
                started_at: run.started_at,
                readiness: self.checks.readiness(),
            })
        };
        let waits = |reason: &str| Waiting { reason: reason.to_owned(), message: None };
        let resets = || Waiting { reason: RESTARTING_ALL.to_owned(), message: Some(RESTARTING_ALL_MESSAGE.to_owned()) };
        let purged = matches!(self.role, Role::Init | Role::Sidecar) && self.ended_in == RanIn::Earlier;
        let (now, last_end) = match (&self.activity, run(record)) {
            (Activity::Running { .. } | Activity::Stopping { .. } | Activity::Ending { .. }, Some(run))
                if !self.checks.is_hidden() =>
            {
                (Now::Running(run), first)
            }
            _ => match (backing_off.or_else(|| self.hold.as_ref().map(|hold| hold.waiting.clone())), first) {
                (Some(waiting), first) => (Now::Waiting(waiting), first),
                (None, first) if record.reset => (Now::Waiting(resets()), first),
                // Its end is none that a status may show: what may not restart would seem to have ended for good.
                (None, first) if self.revive => (Now::Waiting(waits("ContainerCreating")), first),
                // An init container of a lost sandbox runs again: the kubelet forgets its end.
                (None, first) if purged => (Now::Waiting(waits(default)), first),
                (None, Some(first)) => (Now::Ended(first), second),
                (None, None) => (Now::Waiting(waits(default)), None),
            },
        };
        let in_force = self.in_force.filter(|_| matches!(now, Now::Running(_)));
        ContainerFacts {
            now,
            last_end,
            restart_count: record.restart_count,
            in_force,
            revived: self.revive || record.reset,
        }
    }
}

/// The containers of a pod, each at rest.
pub(super) fn containers(pod: &Pod) -> BTreeMap<String, Box<Live>> {
    let Some(spec) = &pod.spec else { return BTreeMap::new() };
    let init = spec.init_containers.iter().flatten().map(|container| {
        let role = if is_sidecar(container) { Role::Sidecar } else { Role::Init };
        (container, role)
    });
    let main = spec.containers.iter().map(|container| (container, Role::Main));
    let ordinary = init.chain(main).map(|(container, role)| {
        let has_post_start = container.lifecycle.as_ref().is_some_and(|lifecycle| lifecycle.post_start.is_some());
        let live = Live::new(role, RestartRules::of(container, spec));
        (container.name.clone(), Box::new(Live { has_post_start, ..live }))
    });
    let debug = ephemeral::containers(spec).into_iter().map(|container| {
        let restart = RestartRules::of(&container, spec);
        (container.name, Box::new(Live::new(Role::Ephemeral, restart)))
    });
    ordinary.chain(debug).collect()
}

/// Records that an attempt which was running is lost: the agent was restarted.
pub(super) fn record_lost(record: &mut ContainerRecord, now: Timestamp) {
    let Some(RunRecord { id, attempt, image_id, user, started_at }) = record.running.take() else { return };
    // That it had started may not have been written in time.
    (record.started, record.restart_count) = (true, record.restart_count.max(attempt));
    let end = ExitRecord {
        id,
        attempt,
        image_id,
        user,
        exit_code: LOST_EXIT_CODE,
        reason: LOST_REASON.to_owned(),
        message: Some(RESTARTED_MESSAGE.to_owned()),
        started_at,
        finished_at: now.max(started_at),
    };
    push_end(record, end);
}

/// Takes over what the API server remembers of a pod of which this node has no record: it was just bound, or the node's
/// disk was lost. In the latter case counts go on, and what may run once is known to have run.
pub(super) fn seed(record: &mut PodRecord, status: &PodStatus, now: Timestamp) {
    if let Some(began) = &status.start_time {
        record.accepted_at = began.0;
    }
    for status in container_statuses(status) {
        let Some(id) = status.container_id.as_ref().and_then(|id| id.parse::<ContainerId>().ok()) else { continue };
        let container = record.containers.entry(status.name.clone()).or_default();
        container.restart_count = u32::try_from(status.restart_count).unwrap_or(0);
        container.attempts = container.restart_count.saturating_add(1);
        container.started = true;
        let attempt = container.restart_count;
        let ends = [&status.state, &status.last_state].into_iter().flatten();
        container.ends = ends.filter_map(|state| remembered_end(status, state, attempt)).collect();
        if let Some(running) = status.state.as_ref().and_then(|state| state.running.as_ref()) {
            let started_at = running.started_at.as_ref().map_or(now, |at| at.0);
            let image_id = status.image_id.clone();
            container.running = Some(RunRecord { id, attempt, image_id, user: None, started_at });
            record_lost(container, now);
        }
    }
    record.status = status.clone();
}

fn remembered_end(status: &ContainerStatus, state: &ApiState, attempt: u32) -> Option<ExitRecord> {
    let end = state.terminated.as_ref()?;
    let finished_at = end.finished_at.as_ref().map_or(Timestamp::UNIX_EPOCH, |at| at.0);
    Some(ExitRecord {
        id: end.container_id.as_ref()?.parse().ok()?,
        attempt,
        image_id: status.image_id.clone(),
        user: None,
        exit_code: end.exit_code,
        reason: end.reason.clone().unwrap_or_default(),
        message: end.message.clone(),
        started_at: end.started_at.as_ref().map_or(finished_at, |at| at.0),
        finished_at,
    })
}

/// The container is to run as if it never had; what it came to shows as the kubelet shows what it removed.
pub(super) fn reset(record: &mut ContainerRecord) {
    if record.attempts == 0 {
        return;
    }
    record.reset = true;
    record.back_off = None;
    if let Some(end) = record.ends.first_mut() {
        RESTARTING_ALL.clone_into(&mut end.reason);
        end.message = Some(RESTARTING_ALL_MESSAGE.to_owned());
        end.exit_code = LOST_EXIT_CODE;
    }
}

/// Keeps the two newest ends.
pub(super) fn push_end(record: &mut ContainerRecord, end: ExitRecord) {
    record.ends.insert(0, end);
    record.ends.truncate(2);
}

fn ended(end: &ExitRecord) -> Ended {
    Ended {
        id: end.id.clone(),
        image_id: end.image_id.clone(),
        user: end.user.clone(),
        exit_code: end.exit_code,
        reason: end.reason.clone(),
        message: end.message.clone(),
        started_at: end.started_at,
        finished_at: end.finished_at,
    }
}

pub(super) fn from_record(record: BackOffRecord) -> BackOff {
    BackOff { delay: record.delay, until: record.until }
}

pub(super) fn to_record(back_off: BackOff) -> BackOffRecord {
    BackOffRecord { delay: back_off.delay, until: back_off.until }
}
