//! `containerStatuses` and `initContainerStatuses`.
//!
//! In: what the worker knows of each container. Out: API statuses, in the API's order: init containers as in
//! the spec, others by name.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    ContainerUser, LinuxContainerUser, ResourceRequirements, VolumeMount, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use super::{StatusInput, time};
use crate::ids::ContainerId;
use crate::pod::allocation::Numbers;
use crate::pod::quantity::Quantity;
use crate::pod::restart::is_sidecar;
use crate::pod::run::User;

/// Message of a container whose end nobody saw.
pub const LOST_MESSAGE: &str = "The container could not be located when the pod was terminated";
/// Reason of a container whose end nobody saw.
pub const LOST_REASON: &str = "ContainerStatusUnknown";

/// What is known of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerFacts {
    /// What it does now.
    pub now: Now,
    /// The end before `now`: `lastState` (also of a container that waits to run again).
    pub last_end: Option<Ended>,
    /// Restarts so far.
    pub restart_count: u32,
    /// What it runs under; `None` while it does not run.
    pub in_force: Option<Numbers>,
    /// It was stopped to run again, whatever its policy says of its end.
    pub revived: bool,
}

/// What a container does now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Now {
    /// Nothing yet, for a reason.
    Waiting(Waiting),
    /// It runs.
    Running(Run),
    /// It ended.
    Ended(Ended),
}

/// Why a container waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// `ContainerCreating`, `PodInitializing`, `CrashLoopBackOff`, `ErrImagePull` ...
    pub reason: String,
    /// More words.
    pub message: Option<String>,
}

/// A container that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Its id.
    pub id: ContainerId,
    /// Image id: config digest or manifest reference.
    pub image_id: String,
    /// Who its processes are.
    pub user: Option<User>,
    /// Its first instruction.
    pub started_at: Timestamp,
    /// Whether it is started and ready.
    pub readiness: Readiness,
}

/// How far a running container has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// Its startup probe has not succeeded.
    Starting,
    /// Started; its readiness probe has not succeeded.
    Started,
    /// Ready.
    Ready,
}

/// An attempt that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Its id.
    pub id: ContainerId,
    /// Image id.
    pub image_id: String,
    /// Who its processes were.
    pub user: Option<User>,
    /// 0-255.
    pub exit_code: i32,
    /// `Completed`, `Error`, `OOMKilled` ...
    pub reason: String,
    /// Termination message.
    pub message: Option<String>,
    /// Its first instruction.
    pub started_at: Timestamp,
    /// Its end.
    pub finished_at: Timestamp,
}

/// The three lists of statuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Init,
    Main,
    Ephemeral,
}

pub(super) fn statuses(input: &StatusInput<'_>, containers: &[Container], kind: Kind) -> Vec<ContainerStatus> {
    let mut statuses: Vec<_> = containers.iter().map(|container| status(input, container, kind)).collect();
    if kind != Kind::Init {
        statuses.sort_by(|a, b| a.name.cmp(&b.name));
    }
    statuses
}

fn status(input: &StatusInput<'_>, container: &Container, kind: Kind) -> ContainerStatus {
    let mut status = ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        // Probes do not look at ephemeral containers, so that nothing says whether they are started.
        started: (kind != Kind::Ephemeral).then_some(false),
        volume_mounts: volume_mounts(container),
        ..ContainerStatus::default()
    };
    let has_init =
        input.pod.spec.as_ref().is_some_and(|spec| spec.init_containers.as_ref().is_some_and(|c| !c.is_empty()));
    let Some(facts) = input.containers.get(&container.name) else {
        let reason = if has_init { "PodInitializing" } else { "ContainerCreating" };
        status.state = Some(waiting(reason, None));
        return status;
    };
    status.restart_count = i32::try_from(facts.restart_count).unwrap_or(i32::MAX);
    let exists = facts.last_end.is_some() || !matches!(facts.now, Now::Waiting(_));
    if exists {
        let allocated = container.resources.clone().map(canonical).unwrap_or_default();
        status.allocated_resources.clone_from(&allocated.requests);
        // Behind a feature gate that is off by default: only pods whose API server has it can name one.
        status.stop_signal = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.stop_signal.clone());
        status.resources = Some(match (facts.in_force, &input.pod.spec) {
            (Some(in_force), Some(spec)) => actual(allocated, in_force, Numbers::of_container(container, spec)),
            _ => allocated,
        });
    }
    if let Some(end) = &facts.last_end {
        status.user = user(end.user.as_ref());
        status.container_id = Some(end.id.to_status());
        status.image_id.clone_from(&end.image_id);
        status.last_state = Some(terminated(end));
    }
    match &facts.now {
        Now::Waiting(why) => status.state = Some(waiting(&why.reason, why.message.clone())),
        Now::Running(run) => {
            status.user = user(run.user.as_ref());
            status.container_id = Some(run.id.to_status());
            status.image_id.clone_from(&run.image_id);
            let running = ContainerStateRunning { started_at: Some(time(run.started_at)) };
            status.state = Some(ContainerState { running: Some(running), ..ContainerState::default() });
            if kind != Kind::Ephemeral {
                status.started = Some(run.readiness != Readiness::Starting);
            }
            // An init container is ready when it is done; a sidecar as any other.
            let counts = kind == Kind::Main || is_sidecar(container);
            status.ready = counts && run.readiness == Readiness::Ready;
        }
        Now::Ended(end) => {
            status.user = user(end.user.as_ref());
            status.container_id = Some(end.id.to_status());
            status.image_id.clone_from(&end.image_id);
            status.state = Some(terminated(end));
            status.ready = kind == Kind::Init && !is_sidecar(container) && end.exit_code == 0;
        }
    }
    status
}

/// Where its volumes are; told from the first status on, as the kubelet does.
fn volume_mounts(container: &Container) -> Option<Vec<VolumeMountStatus>> {
    let status = |mount: &VolumeMount| {
        let read_only = mount.read_only == Some(true);
        // Mounts of the guest's own file system have nothing mounted below them: what is read-only is so to its depth.
        let wanted = mount.recursive_read_only.as_deref().is_some_and(|wanted| wanted != "Disabled");
        VolumeMountStatus {
            name: mount.name.clone(),
            mount_path: mount.mount_path.clone(),
            read_only: read_only.then_some(true),
            recursive_read_only: read_only.then(|| if wanted { "Enabled" } else { "Disabled" }.to_owned()),
            volume_status: None,
        }
    };
    let mounts: Vec<_> = container.volume_mounts.iter().flatten().map(status).collect();
    (!mounts.is_empty()).then_some(mounts)
}

fn user(user: Option<&User>) -> Option<ContainerUser> {
    let user = user?;
    let groups: Vec<i64> = user.groups.iter().map(|group| i64::from(*group)).collect();
    Some(ContainerUser {
        linux: Some(LinuxContainerUser {
            uid: i64::from(user.uid),
            gid: i64::from(user.gid),
            supplemental_groups: (!groups.is_empty()).then_some(groups),
        }),
    })
}

/// What a running container has of what was given to it. What both agree on stays as it was written.
fn actual(mut resources: ResourceRequirements, in_force: Numbers, wanted: Numbers) -> ResourceRequirements {
    let set = |list: &mut Option<BTreeMap<String, ApiQuantity>>, name: &str, now: i64, wanted: i64| {
        let Some(list) = list.as_mut().filter(|_| now != wanted) else { return };
        let quantity = if name == "cpu" { Quantity::from_millis(now) } else { Quantity::from_bytes(now) };
        if now == 0 {
            list.remove(name);
        } else {
            list.insert(name.to_owned(), ApiQuantity(quantity.to_string()));
        }
    };
    set(&mut resources.limits, "cpu", in_force.cpu_limit, wanted.cpu_limit);
    set(&mut resources.limits, "memory", in_force.memory_limit, wanted.memory_limit);
    set(&mut resources.requests, "cpu", in_force.cpu_request, wanted.cpu_request);
    set(&mut resources.requests, "memory", in_force.memory_request, wanted.memory_request);
    resources
}

/// Quantities as the API server writes them back, so that a comparison with its copy finds no difference.
pub(super) fn canonical(mut resources: ResourceRequirements) -> ResourceRequirements {
    for quantity in [&mut resources.limits, &mut resources.requests].into_iter().flatten().flat_map(|l| l.values_mut())
    {
        if let Ok(parsed) = Quantity::from_api(quantity) {
            *quantity = ApiQuantity(parsed.to_string());
        }
    }
    resources
}

fn waiting(reason: &str, message: Option<String>) -> ContainerState {
    let waiting = ContainerStateWaiting { reason: Some(reason.to_owned()), message };
    ContainerState { waiting: Some(waiting), ..ContainerState::default() }
}

fn terminated(end: &Ended) -> ContainerState {
    let terminated = ContainerStateTerminated {
        container_id: Some(end.id.to_status()),
        exit_code: end.exit_code,
        reason: Some(end.reason.clone()),
        message: end.message.clone().filter(|message| !message.is_empty()),
        started_at: Some(time(end.started_at)),
        finished_at: Some(time(end.finished_at)),
        signal: None,
    };
    ContainerState { terminated: Some(terminated), ..ContainerState::default() }
}
