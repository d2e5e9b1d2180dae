//! A pod's status as the kubelet fills it: typed `PodStatus` objects.
//!
//! In: the spec, what is known of each container, addresses, the last status. Out: the next status.
//! Reads no clock (times come in) and sends nothing (`status` keeps, later patches).

mod conditions;
mod containers;
mod finish;
mod phase;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, HostIP, Pod, PodIP, PodStatus};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

pub use conditions::{ALL_CONTAINERS_RESTARTING, DISRUPTION_TARGET, disruption, foreign, is_owned};
pub use containers::{ContainerFacts, Ended, LOST_MESSAGE, LOST_REASON, Now, Readiness, Run, Waiting};
pub use finish::finish;
pub use phase::PodPhase;

use super::admission::requests::pod_requests;
use super::allocation::{PendingResize, ResizeInProgress};
use super::ephemeral;
use super::qos;
use super::quantity::Quantity;
use super::static_pod;

/// Bytes of termination messages of one pod over all its containers.
const MAX_POD_MESSAGE_BYTES: usize = 12 * 1024;

/// Everything a status is made of.
#[derive(Debug)]
pub struct StatusInput<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// What is known of each container, by name; one that is missing has never been looked at.
    pub containers: &'a BTreeMap<String, ContainerFacts>,
    /// Whether the network is there.
    pub sandbox: SandboxReadiness,
    /// The pod's addresses.
    pub pod_ips: &'a [IpAddr],
    /// The node's addresses, the primary one first.
    pub host_ips: &'a [IpAddr],
    /// How it ended or was forced to end.
    pub end: Option<&'a PodEnd>,
    /// When the node accepted the pod.
    pub accepted_at: Timestamp,
    /// The status before this one.
    pub old: &'a PodStatus,
    /// The time now: of conditions that change.
    pub now: Timestamp,
    /// All containers are to run again, and not all have ended yet.
    pub restarting_all: bool,
    /// A resize that waits for room.
    pub resize_pending: Option<&'a PendingResize>,
    /// A resize that the containers do not run under yet.
    pub resize_in_progress: Option<&'a ResizeInProgress>,
}

/// Whether a pod's containers could be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SandboxReadiness {
    /// Network and volumes are there.
    Ready,
    /// Not yet, or no more.
    NotReady,
}

/// The end of a pod that its containers alone do not tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodEnd {
    /// Its containers are done: their exit codes say how.
    Completed,
    /// It failed, whatever its containers say: evicted, over its deadline, rejected, lost.
    Failed {
        /// `status.reason`.
        reason: Option<String>,
        /// `status.message`.
        message: Option<String>,
    },
    /// Somebody deleted it; its containers say how it went.
    Deleted,
}

/// Makes the status.
#[must_use]
pub fn generate(input: &StatusInput<'_>) -> PodStatus {
    let Some(spec) = &input.pod.spec else { return PodStatus::default() };
    let init = spec.init_containers.as_deref().unwrap_or(&[]);
    let init_statuses = containers::statuses(input, init, containers::Kind::Init);
    let main_statuses = containers::statuses(input, &spec.containers, containers::Kind::Main);
    let ephemeral = ephemeral::containers(spec);
    let ephemeral_statuses = containers::statuses(input, &ephemeral, containers::Kind::Ephemeral);
    let mut status = PodStatus {
        qos_class: Some(qos::class(spec).as_str().to_owned()),
        observed_generation: input.pod.metadata.generation.max(input.old.observed_generation),
        start_time: input.old.start_time.clone().or(Some(time(input.accepted_at))),
        ..PodStatus::default()
    };
    let revived = |name: &str| input.restarting_all || input.containers.get(name).is_some_and(|facts| facts.revived);
    let counted = phase::phase(spec, &init_statuses, &main_statuses, terminal(input), &revived);
    let (phase, reason, message) = final_phase(input, counted);
    status.phase = Some(phase.as_str().to_owned());
    status.reason = reason;
    status.message = message;
    addresses(input, &mut status);
    status.conditions = Some(conditions::generate(input, spec, phase, &init_statuses, &main_statuses));
    status.init_container_statuses = (!init.is_empty()).then_some(init_statuses);
    status.container_statuses = Some(main_statuses);
    status.ephemeral_container_statuses = (!ephemeral.is_empty()).then_some(ephemeral_statuses);
    if let Some(resources) = &spec.resources {
        let count = |(name, quantity): (String, Quantity)| (name, ApiQuantity(quantity.to_string()));
        status.allocated_resources = Some(pod_requests(spec).into_iter().map(count).collect());
        status.resources = Some(containers::canonical(resources.clone()));
    }
    bound_messages(&mut status);
    status
}

/// The status of a pod this node refuses to run, as the kubelet's `rejectPod`.
#[must_use]
pub fn rejected(pod: &Pod, reason: &str, message: &str, now: Timestamp) -> PodStatus {
    PodStatus {
        phase: Some("Failed".to_owned()),
        reason: Some(reason.to_owned()),
        message: Some(format!("Pod was rejected: {message}")),
        qos_class: pod.spec.as_ref().map(|spec| qos::class(spec).as_str().to_owned()),
        start_time: Some(time(now)),
        observed_generation: pod.metadata.generation,
        ..PodStatus::default()
    }
}

fn terminal(input: &StatusInput<'_>) -> phase::Restarts {
    // The kubelet gives a static pod no terminal phase for being deleted.
    match input.end {
        Some(PodEnd::Deleted) if !static_pod::is_static(input.pod) => phase::Restarts::Over,
        Some(PodEnd::Completed | PodEnd::Failed { .. }) => phase::Restarts::Over,
        _ => phase::Restarts::ByPolicy,
    }
}

/// A phase that is final stays; an eviction's reason wins over what containers say.
fn final_phase(input: &StatusInput<'_>, counted: PodPhase) -> (PodPhase, Option<String>, Option<String>) {
    if let Some(PodEnd::Failed { reason, message }) = input.end {
        return (PodPhase::Failed, reason.clone(), message.clone());
    }
    let old = PodPhase::parse(input.old.phase.as_deref());
    let phase = match old {
        Some(old) if old.is_final() => old,
        _ => counted,
    };
    let (reason, message) =
        if Some(phase) == old { (input.old.reason.clone(), input.old.message.clone()) } else { (None, None) };
    (phase, reason, message)
}

fn addresses(input: &StatusInput<'_>, status: &mut PodStatus) {
    let host_network = input.pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true);
    let pod_ips = if host_network { input.host_ips } else { input.pod_ips };
    let text = |ips: &[IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>();
    let (pod_ips, host_ips) = (text(pod_ips), text(input.host_ips));
    status.pod_ip = pod_ips.first().cloned();
    status.host_ip = host_ips.first().cloned();
    let list = |ips: Vec<String>| (!ips.is_empty()).then_some(ips);
    status.pod_ips = list(pod_ips).map(|ips| ips.into_iter().map(|ip| PodIP { ip }).collect());
    status.host_ips = list(host_ips).map(|ips| ips.into_iter().map(|ip| HostIP { ip }).collect());
}

/// The statuses of all containers, of whatever kind.
pub fn container_statuses(status: &PodStatus) -> impl Iterator<Item = &ContainerStatus> {
    let all = [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    all.into_iter().flatten().flatten()
}

/// Cuts termination messages so that a pod's status stays small.
fn bound_messages(status: &mut PodStatus) {
    let most = MAX_POD_MESSAGE_BYTES / container_statuses(status).count().max(1);
    let lists =
        [&mut status.init_container_statuses, &mut status.container_statuses, &mut status.ephemeral_container_statuses];
    for list in lists.into_iter().flatten() {
        for container in list {
            for state in [&mut container.state, &mut container.last_state].into_iter().flatten() {
                if let Some(message) = state.terminated.as_mut().and_then(|t| t.message.as_mut()) {
                    message.truncate(message.floor_char_boundary(most));
                }
            }
        }
    }
}

/// API times have whole seconds.
fn time(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}
