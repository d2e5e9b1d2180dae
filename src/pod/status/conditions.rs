//! `status.conditions`: those the kubelet owns, by `status/generate.go`.
//!
//! In: container statuses and the phase. Out: conditions with transition times kept while nothing changes.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodCondition, PodSpec};

use super::phase::PodPhase;
use super::{SandboxReadiness, StatusInput, time};
use crate::pod::allocation::{RESIZE_IN_PROGRESS, RESIZE_PENDING};
use crate::pod::restart::{could_restart_all, is_sidecar};

/// Types this module makes; conditions of other types are kept as they are.
const OWNED: [&str; 8] = [
    ALL_CONTAINERS_RESTARTING,
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
    RESIZE_PENDING,
    RESIZE_IN_PROGRESS,
];

/// Says why a pod was ended that could have gone on; the node shares it with others.
pub const DISRUPTION_TARGET: &str = "DisruptionTarget";

/// Says that a container's rule makes all of them run again.
pub const ALL_CONTAINERS_RESTARTING: &str = "AllContainersRestarting";

/// Whether the node alone says a condition.
#[must_use]
pub fn is_owned(kind: &str) -> bool {
    OWNED.contains(&kind)
}

/// The conditions of others: readiness gates, schedulers, controllers.
#[must_use]
pub fn foreign(conditions: Option<&[PodCondition]>) -> Vec<PodCondition> {
    let foreign = |condition: &&PodCondition| !is_owned(&condition.type_);
    conditions.unwrap_or_default().iter().filter(foreign).cloned().collect()
}

/// The condition of a pod the node ends: eviction, preemption, shutdown of the machine.
#[must_use]
pub fn disruption(pod: &Pod, message: &str, now: Timestamp) -> PodCondition {
    PodCondition {
        type_: DISRUPTION_TARGET.to_owned(),
        status: "True".to_owned(),
        reason: Some("TerminationByKubelet".to_owned()),
        message: Some(message.to_owned()),
        observed_generation: pod.metadata.generation,
        last_probe_time: None,
        last_transition_time: Some(time(now)),
    }
}

/// A condition before it has times.
struct Verdict {
    status: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

impl Verdict {
    const TRUE: Self = Self { status: true, reason: None, message: None };

    fn no(reason: &'static str) -> Self {
        Self { status: false, reason: Some(reason), message: None }
    }
}

pub(super) fn generate(
    input: &StatusInput<'_>,
    spec: &PodSpec,
    phase: PodPhase,
    init: &[ContainerStatus],
    main: &[ContainerStatus],
) -> Vec<PodCondition> {
    let old = input.old.conditions.as_deref().unwrap_or(&[]);
    let mut conditions = foreign(Some(old));
    if !phase.is_final() {
        conditions.extend(resize(input, old));
    }
    let sandbox = Verdict { status: input.sandbox == SandboxReadiness::Ready, ..Verdict::TRUE };
    let containers_ready = containers_ready(spec, phase, init, main);
    let ready = if containers_ready.status {
        readiness_gates(spec, &conditions)
    } else {
        Verdict { message: containers_ready.message.clone(), ..containers_ready }
    };
    for (kind, verdict) in [
        ("PodReadyToStartContainers", sandbox),
        ("Initialized", initialized(spec, phase, init, main)),
        ("Ready", ready),
        ("ContainersReady", containers_ready),
        ("PodScheduled", Verdict::TRUE),
    ] {
        conditions.push(timed(input, kind, verdict, old));
    }
    if could_restart_all(spec) {
        let restarting = match phase {
            PodPhase::Succeeded => Verdict::no("PodCompleted"),
            PodPhase::Failed => Verdict::no("PodFailed"),
            _ if input.restarting_all => Verdict {
                status: true,
                reason: Some("RestartAllContainersStarted"),
                message: Some("container exited with restart policy rule".to_owned()),
            },
            PodPhase::Pending | PodPhase::Running => Verdict { status: false, ..Verdict::TRUE },
        };
        conditions.push(timed(input, ALL_CONTAINERS_RESTARTING, restarting, old));
    }
    conditions
}

/// The conditions of a resize are there as long as it is under way.
fn resize(input: &StatusInput<'_>, old: &[PodCondition]) -> Vec<PodCondition> {
    let condition = |kind: &str, reason: Option<&str>, message: Option<&str>, generation: i64| {
        let before = old.iter().find(|condition| condition.type_ == kind && condition.reason.as_deref() == reason);
        PodCondition {
            type_: kind.to_owned(),
            status: "True".to_owned(),
            reason: reason.map(str::to_owned),
            message: message.map(str::to_owned),
            observed_generation: Some(generation).filter(|generation| *generation > 0),
            last_probe_time: None,
            last_transition_time: before
                .and_then(|condition| condition.last_transition_time.clone())
                .or_else(|| Some(time(input.now))),
        }
    };
    let pending = input.resize_pending.map(|pending| {
        condition(RESIZE_PENDING, Some(pending.reason.as_str()), Some(&pending.message), pending.generation)
    });
    let in_progress = input.resize_in_progress.map(|progress| {
        let reason = progress.error.as_ref().map(|_| "Error");
        condition(RESIZE_IN_PROGRESS, reason, progress.error.as_deref(), progress.generation)
    });
    pending.into_iter().chain(in_progress).collect()
}

fn timed(input: &StatusInput<'_>, kind: &str, verdict: Verdict, old: &[PodCondition]) -> PodCondition {
    let status = if verdict.status { "True" } else { "False" };
    let before = old.iter().find(|condition| condition.type_ == kind && condition.status == status);
    PodCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: verdict.reason.map(str::to_owned),
        message: verdict.message,
        observed_generation: input.pod.metadata.generation,
        last_probe_time: None,
        last_transition_time: before
            .and_then(|condition| condition.last_transition_time.clone())
            .or_else(|| Some(time(input.now))),
    }
}

fn containers_ready(spec: &PodSpec, phase: PodPhase, init: &[ContainerStatus], main: &[ContainerStatus]) -> Verdict {
    match phase {
        PodPhase::Succeeded => return Verdict::no("PodCompleted"),
        PodPhase::Failed => return Verdict::no("PodFailed"),
        PodPhase::Pending | PodPhase::Running => {}
    }
    let sidecars = spec.init_containers.iter().flatten().filter(|container| is_sidecar(container));
    let of_sidecars = sidecars.map(|container| (&container.name, find(init, &container.name)));
    let of_main = spec.containers.iter().map(|container| (&container.name, find(main, &container.name)));
    let (mut unknown, mut unready) = (Vec::new(), Vec::new());
    for (name, status) in of_sidecars.chain(of_main) {
        match status {
            None => unknown.push(name.as_str()),
            Some(status) if !status.ready => unready.push(name.as_str()),
            Some(_) => {}
        }
    }
    listed("ContainersNotReady", [("unknown", unknown), ("unready", unready)])
}

fn initialized(spec: &PodSpec, phase: PodPhase, init: &[ContainerStatus], main: &[ContainerStatus]) -> Verdict {
    let (mut unknown, mut incomplete) = (Vec::new(), Vec::new());
    for container in spec.init_containers.iter().flatten() {
        match find(init, &container.name) {
            None => unknown.push(container.name.as_str()),
            Some(status) => {
                let done = if is_sidecar(container) { status.started == Some(true) } else { status.ready };
                if !done {
                    incomplete.push(container.name.as_str());
                }
            }
        }
    }
    if phase == PodPhase::Succeeded && unknown.is_empty() {
        return Verdict { reason: Some("PodCompleted"), ..Verdict::TRUE };
    }
    // A main container that started proves it, even while a sidecar restarts.
    let started = main.iter().filter_map(|status| status.state.as_ref());
    if started.into_iter().any(|state| state.running.is_some() || state.terminated.is_some()) {
        return Verdict::TRUE;
    }
    listed("ContainersNotInitialized", [("unknown", unknown), ("incomplete", incomplete)])
}

fn readiness_gates(spec: &PodSpec, conditions: &[PodCondition]) -> Verdict {
    let mut messages = Vec::new();
    for gate in spec.readiness_gates.iter().flatten() {
        let name = &gate.condition_type;
        match conditions.iter().find(|condition| condition.type_ == *name) {
            None => {
                messages.push(format!("corresponding condition of pod readiness gate {name:?} does not exist."));
            }
            Some(condition) if condition.status != "True" => messages
                .push(format!("the status of pod readiness gate {name:?} is not \"True\", but {}", condition.status)),
            Some(_) => {}
        }
    }
    if messages.is_empty() {
        return Verdict::TRUE;
    }
    Verdict { message: Some(messages.join(", ")), ..Verdict::no("ReadinessGatesNotReady") }
}

/// `containers with unready status: [a b]`, lists printed as Go prints them.
fn listed(reason: &'static str, lists: [(&str, Vec<&str>); 2]) -> Verdict {
    let messages: Vec<_> = lists
        .into_iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(what, names)| format!("containers with {what} status: [{}]", names.join(" ")))
        .collect();
    if messages.is_empty() {
        return Verdict::TRUE;
    }
    Verdict { message: Some(messages.join(", ")), ..Verdict::no(reason) }
}

fn find<'a>(statuses: &'a [ContainerStatus], name: &str) -> Option<&'a ContainerStatus> {
    statuses.iter().find(|status| status.name == name)
}
