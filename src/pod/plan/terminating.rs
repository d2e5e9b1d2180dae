//! A pod that ends: containers stop, sidecars after the others and in reverse, then the sandbox goes.
//!
//! In: a view in `Phase::Terminating`. Out: its plan. Starts nothing.

use std::time::Duration;

use super::syncing::watch_overdue;
use super::{
    Action, ContainerState, ContainerView, MINIMUM_GRACE, Plan, PodView, Role, Sandbox, StopCause, Termination,
};
use crate::pod::back_off::elapsed;

pub(super) fn plan(view: &PodView, termination: Termination) -> Plan {
    let mut plan = Plan::default();
    let mut alive = 0usize;
    // What must have ended before the next container may be told to: main containers first, then sidecars
    // from the last to the first (the kubelet's terminationOrdering).
    let mut waiting_for = 0usize;
    for container in &view.main {
        alive += usize::from(end(container, 0, view, termination, &mut plan));
    }
    waiting_for += alive;
    for container in &view.ephemeral {
        alive += usize::from(end(container, 0, view, termination, &mut plan));
    }
    for container in view.init.iter().rev() {
        let before = if container.role == Role::Sidecar { waiting_for } else { 0 };
        let lives = usize::from(end(container, before, view, termination, &mut plan));
        alive += lives;
        if container.role == Role::Sidecar {
            waiting_for += lives;
        }
    }
    if alive == 0 {
        match view.sandbox {
            Sandbox::Absent | Sandbox::Failed { .. } => plan.act(Action::Finish),
            Sandbox::Ready => plan.act(Action::RemoveSandbox),
            // Their results come as events.
            Sandbox::Creating | Sandbox::Removing => {}
        }
    }
    plan
}

/// Moves one container towards its end; says whether it still lives.
fn end(
    container: &ContainerView,
    waiting_for: usize,
    view: &PodView,
    termination: Termination,
    plan: &mut Plan,
) -> bool {
    let name = || container.name.clone();
    match container.state {
        ContainerState::Absent | ContainerState::Exited { .. } => return false,
        ContainerState::Starting => plan.act(Action::CancelStart { container: name() }),
        ContainerState::Running { .. } => {
            let deadline = termination.deadline();
            if waiting_for > 0 && view.now < deadline {
                plan.wake(deadline);
            } else {
                let grace = remaining_grace(view, termination);
                plan.act(Action::Stop { container: name(), grace: Some(grace), cause: StopCause::PodEnds });
            }
        }
        ContainerState::Stopping { kill_at } => {
            // A second deletion with a shorter grace shortens a stop that is under way.
            let grace = remaining_grace(view, termination);
            let wanted = crate::pod::back_off::later(view.now, grace);
            if wanted < kill_at && termination.deadline() < kill_at {
                plan.act(Action::Stop { container: name(), grace: Some(grace), cause: StopCause::PodEnds });
            } else {
                watch_overdue(container, kill_at, view, plan);
            }
        }
    }
    true
}

/// What is left of the grace: at least two seconds, unless a kill was asked for.
fn remaining_grace(view: &PodView, termination: Termination) -> Duration {
    if termination.grace.is_zero() {
        return Duration::ZERO;
    }
    elapsed(view.now, termination.deadline()).max(MINIMUM_GRACE)
}
