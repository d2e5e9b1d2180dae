//! `status.phase`, counted from container statuses: the kubelet's `getPhase`.
//!
//! In: the spec and the statuses of its containers. Out: the phase. Final phases are kept by the caller.

use k8s_openapi::api::core::v1::{Container, ContainerState, ContainerStatus, PodSpec, PodStatus};

use crate::pod::restart::{RestartRules, is_sidecar};

/// `status.phase`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodPhase {
    /// Not all containers were started.
    Pending,
    /// All were, and one runs or will again.
    Running,
    /// All ended well and none runs again.
    Succeeded,
    /// All ended, one badly, and none runs again.
    Failed,
}

impl PodPhase {
    /// As the API writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
        }
    }

    /// Reads an API value.
    #[must_use]
    pub fn parse(text: Option<&str>) -> Option<Self> {
        [Self::Pending, Self::Running, Self::Succeeded, Self::Failed].into_iter().find(|p| Some(p.as_str()) == text)
    }

    /// Whether a status has a final phase.
    #[must_use]
    pub fn is_over(status: &PodStatus) -> bool {
        Self::parse(status.phase.as_deref()).is_some_and(Self::is_final)
    }

    /// Whether no other phase can follow.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

/// Whether ended containers may run again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Restarts {
    /// As their policies say.
    ByPolicy,
    /// No more: the pod ends.
    Over,
}

/// What one state means for the count.
enum Seen {
    Unknown,
    Running,
    /// Waiting and never ended.
    Waiting,
    /// Ended, or waiting to run again after an end.
    Stopped {
        exit_code: i32,
        terminated: bool,
    },
}

fn see(statuses: &[ContainerStatus], name: &str) -> Seen {
    let Some(status) = statuses.iter().find(|status| status.name == name) else { return Seen::Unknown };
    let state = status.state.as_ref();
    let ended = |state: Option<&ContainerState>| state.and_then(|s| s.terminated.as_ref()).map(|t| t.exit_code);
    if state.is_some_and(|s| s.running.is_some()) {
        Seen::Running
    } else if let Some(exit_code) = ended(state) {
        Seen::Stopped { exit_code, terminated: true }
    } else if let Some(exit_code) = ended(status.last_state.as_ref()) {
        Seen::Stopped { exit_code, terminated: false }
    } else if state.is_some_and(|s| s.waiting.is_some()) {
        Seen::Waiting
    } else {
        Seen::Unknown
    }
}

/// Counts. `revived` are containers that run again whatever their policy says.
pub(super) fn phase(
    spec: &PodSpec,
    init: &[ContainerStatus],
    main: &[ContainerStatus],
    restarts: Restarts,
    revived: &dyn Fn(&str) -> bool,
) -> PodPhase {
    let again = |container: &Container, exit_code: i32| {
        let wanted = || revived(&container.name) || RestartRules::of(container, spec).restarts_after(exit_code);
        restarts == Restarts::ByPolicy && wanted()
    };
    let (mut unknown, mut running, mut waiting) = (0, 0, 0);
    let (mut stopped, mut stopped_for_good, mut succeeded) = (0, 0, 0);
    let mut pending_init = 0;
    let mut pending_sidecars = 0;
    let (init_containers, sidecars): (Vec<_>, Vec<_>) =
        spec.init_containers.iter().flatten().partition(|container| !is_sidecar(container));
    for container in init_containers {
        match see(init, &container.name) {
            Seen::Stopped { exit_code: 0, terminated: true } => {}
            Seen::Stopped { exit_code, .. } if exit_code != 0 && !again(container, exit_code) => {
                return PodPhase::Failed;
            }
            Seen::Stopped { .. } => {}
            Seen::Unknown | Seen::Running | Seen::Waiting => pending_init += 1,
        }
    }
    for container in sidecars {
        let started = init.iter().any(|s| s.name == container.name && s.started == Some(true));
        match see(init, &container.name) {
            Seen::Unknown => unknown += 1,
            Seen::Running => {
                running += 1;
                pending_sidecars += usize::from(!started);
            }
            Seen::Waiting => {
                waiting += 1;
                pending_sidecars += 1;
            }
            // Ended sidecars do not count: they run again, or the pod is over.
            Seen::Stopped { .. } => {}
        }
    }
    let mut initialized = false;
    for container in &spec.containers {
        match see(main, &container.name) {
            Seen::Unknown => unknown += 1,
            Seen::Waiting => waiting += 1,
            Seen::Running => {
                running += 1;
                initialized = true;
            }
            Seen::Stopped { exit_code, terminated } => {
                initialized = true;
                stopped += 1;
                stopped_for_good += usize::from(!again(container, exit_code));
                succeeded += usize::from(terminated && exit_code == 0);
            }
        }
    }
    if pending_init > 0 || (pending_sidecars > 0 && !initialized) || waiting > 0 {
        PodPhase::Pending
    } else if running > 0 && unknown == 0 {
        PodPhase::Running
    } else if running == 0 && stopped > 0 && unknown == 0 {
        match () {
            () if stopped != stopped_for_good => PodPhase::Running,
            () if stopped == succeeded => PodPhase::Succeeded,
            () => PodPhase::Failed,
        }
    } else {
        PodPhase::Pending
    }
}
