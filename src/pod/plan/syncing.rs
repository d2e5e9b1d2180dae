//! A pod that is wanted: sandbox, init containers in order, containers, restarts.
//!
//! In: a view in `Phase::Syncing`. Out: its plan. Endings are decided here, carried out by `terminating`.

use jiff::Timestamp;

use super::{
    Action, ContainerState, ContainerView, EndCause, Health, Plan, PodView, PostStart, RanIn, RestartPolicy, Role,
    Sandbox, Startup, StopCause, Then,
};

pub(super) fn plan(view: &PodView) -> Plan {
    let mut plan = Plan::default();
    if let Some(deadline) = view.deadline {
        if view.now >= deadline {
            plan.act(Action::Terminate(EndCause::DeadlineExceeded));
            return plan;
        }
        plan.wake(deadline);
    }
    match view.sandbox {
        Sandbox::Ready => with_sandbox(view, &mut plan),
        Sandbox::Creating | Sandbox::Removing => {}
        Sandbox::Absent => without_sandbox(view, &mut plan),
        Sandbox::Failed { retry_at } if view.now < retry_at => plan.wake(retry_at),
        Sandbox::Failed { .. } => without_sandbox(view, &mut plan),
    }
    plan
}

/// There is no sandbox: a new pod, or one that outlived the agent.
fn without_sandbox(view: &PodView, plan: &mut Plan) {
    let ran = |c: &ContainerView| matches!(c.state, ContainerState::Exited { .. });
    let ran_before = view.init.iter().chain(&view.main).any(ran);
    // The kubelet: a pod that must not restart is done when its sandbox is gone, unless nothing ever ran.
    if view.restart_policy == RestartPolicy::Never && ran_before {
        let all_done = !view.main.is_empty() && view.main.iter().all(&ran);
        plan.act(Action::Terminate(if all_done { EndCause::Completed } else { EndCause::Failed }));
        return;
    }
    let wanted = view.main.iter().any(|c| match c.state {
        ContainerState::Exited { exit_code, .. } => c.restart.restarts_after(exit_code),
        _ => true,
    });
    let initialized = view.main.iter().any(ran);
    if !wanted && initialized {
        plan.act(Action::Terminate(EndCause::Completed));
        return;
    }
    plan.act(Action::CreateSandbox);
}

fn with_sandbox(view: &PodView, plan: &mut Plan) {
    if restart_all(view, plan) {
        return;
    }
    for container in &view.ephemeral {
        match container.state {
            // Whatever else the pod does: a debug container is most wanted while the others do not start.
            ContainerState::Absent => start(container, view, plan),
            ContainerState::Stopping { kill_at } => watch_overdue(container, kill_at, view, plan),
            ContainerState::Starting | ContainerState::Running { .. } | ContainerState::Exited { .. } => {}
        }
    }
    let Some(init) = init_actions(view, plan) else {
        plan.actions.retain(|action| !matches!(action, Action::Start { .. }));
        plan.backing_off.clear();
        plan.act(Action::Terminate(EndCause::Failed));
        return;
    };
    for index in init.to_start {
        start(&view.init[index], view, plan);
    }
    if init.finished == Initialized::Yes {
        main_actions(view, plan);
    }
}

/// Whether the main containers may run.
#[derive(PartialEq, Eq)]
enum Initialized {
    Yes,
    NotYet,
}

struct InitActions {
    to_start: Vec<usize>,
    finished: Initialized,
}

/// A rule of a container that ended wants all of them to run again: those that run are killed, the last ones first, and
/// when nothing runs any more they count as never started. Says whether this is under way.
fn restart_all(view: &PodView, plan: &mut Plan) -> bool {
    let asks = |container: &ContainerView| match container.state {
        ContainerState::Exited { exit_code, sandbox: RanIn::Current } => {
            container.restart.restarts_all_after(exit_code)
        }
        _ => false,
    };
    if !view.restarting_all {
        if view.init.iter().chain(&view.main).any(asks) {
            plan.act(Action::BeginRestartAll);
            return true;
        }
        return false;
    }
    let mut alive = false;
    for container in view.main.iter().rev().chain(view.init.iter().rev()) {
        match container.state {
            ContainerState::Absent | ContainerState::Exited { .. } => continue,
            ContainerState::Starting => plan.act(Action::CancelStart { container: container.name.clone() }),
            ContainerState::Running { .. } => plan.act(Action::Stop {
                container: container.name.clone(),
                grace: Some(std::time::Duration::ZERO),
                cause: StopCause::RestartAll,
            }),
            ContainerState::Stopping { kill_at } => watch_overdue(container, kill_at, view, plan),
        }
        alive = true;
    }
    if !alive {
        plan.act(Action::ResetContainers);
    }
    true
}

/// The kubelet's `computeInitContainerActions`; `None` when initialization failed for good.
///
/// Walks backwards to the last container that did something: those before it are done, and of them only
/// sidecars matter any more.
fn init_actions(view: &PodView, plan: &mut Plan) -> Option<InitActions> {
    let last = view.init.len().checked_sub(1);
    let mut finished = if last.is_none() || view.main.iter().any(|c| is_active(&c.state)) {
        Initialized::Yes
    } else {
        Initialized::NotYet
    };
    let mut previously = finished == Initialized::Yes;
    let mut to_start = Vec::new();
    for (index, container) in view.init.iter().enumerate().rev() {
        let state = in_this_sandbox(container.state);
        if state == ContainerState::Absent {
            if previously && container.role == Role::Sidecar {
                to_start.push(index);
            }
            continue;
        }
        if previously && container.role != Role::Sidecar {
            continue;
        }
        let mut done = || {
            if Some(index) == last {
                finished = Initialized::Yes;
            } else if !previously {
                to_start.push(index + 1);
            }
        };
        match (container.role, state) {
            // The startup probe of a sidecar gates those after it; a liveness probe does not.
            (Role::Sidecar, ContainerState::Running { startup: Startup::Pending, health }) => {
                if health == Health::FailedStartup {
                    stop_unhealthy(container, health, plan);
                }
            }
            (Role::Sidecar, ContainerState::Running { startup: Startup::Started, health }) => {
                done();
                if health != Health::Healthy {
                    stop_unhealthy(container, health, plan);
                }
            }
            (Role::Sidecar, ContainerState::Exited { .. }) => to_start.push(index),
            (_, ContainerState::Exited { exit_code: 0, .. }) => done(),
            (_, ContainerState::Exited { exit_code, .. }) => {
                if !container.restart.restarts_after(exit_code) {
                    return None;
                }
                to_start.push(index);
            }
            (_, ContainerState::Stopping { kill_at }) => watch_overdue(container, kill_at, view, plan),
            (_, ContainerState::Absent | ContainerState::Starting | ContainerState::Running { .. }) => {}
        }
        previously = true;
    }
    if !previously {
        to_start.push(0);
    }
    to_start.reverse();
    Some(InitActions { to_start, finished })
}

/// An init container or sidecar of an earlier sandbox counts as never run: the kubelet purges them.
fn in_this_sandbox(state: ContainerState) -> ContainerState {
    match state {
        ContainerState::Exited { sandbox: RanIn::Earlier, .. } => ContainerState::Absent,
        other => other,
    }
}

fn is_active(state: &ContainerState) -> bool {
    match state {
        ContainerState::Starting | ContainerState::Running { .. } | ContainerState::Stopping { .. } => true,
        // The kubelet leaves ended ones out: after a lost sandbox every container has ended, and the new
        // sandbox is not initialized for that.
        ContainerState::Absent | ContainerState::Exited { .. } => false,
    }
}

fn main_actions(view: &PodView, plan: &mut Plan) {
    let mut keep = 0usize;
    // A container before this one is being started and has a postStart hook.
    let mut held = false;
    for container in &view.main {
        let before = plan.actions.len();
        match container.state {
            ContainerState::Absent => {
                keep += 1;
                if !held {
                    start(container, view, plan);
                }
            }
            ContainerState::Exited { exit_code, .. } => {
                if container.restart.restarts_after(exit_code) {
                    keep += 1;
                    if !held {
                        start(container, view, plan);
                    }
                }
            }
            ContainerState::Starting => keep += 1,
            ContainerState::Stopping { kill_at } => {
                keep += 1;
                watch_overdue(container, kill_at, view, plan);
            }
            ContainerState::Running { health, .. } => {
                keep += 1;
                if health != Health::Healthy {
                    stop_unhealthy(container, health, plan);
                }
            }
        }
        let starts = plan.actions.len() > before
            || matches!(container.state, ContainerState::Starting | ContainerState::Running { .. });
        held |= starts && container.post_start == PostStart::Pending;
    }
    if keep == 0 {
        // Sidecars must not keep the pod alive, nor be restarted meanwhile.
        plan.actions.retain(|action| !matches!(action, Action::Start { .. }));
        plan.backing_off.clear();
        plan.act(Action::Terminate(EndCause::Completed));
    }
}

/// Starts a container, unless it has to wait.
fn start(container: &ContainerView, view: &PodView, plan: &mut Plan) {
    if let Some(back_off) = container.back_off
        && matches!(container.state, ContainerState::Exited { .. })
        && !back_off.is_over(view.now)
    {
        plan.backing_off.insert(container.name.clone(), back_off);
        plan.wake(back_off.until);
        return;
    }
    if let Some(hold) = container.hold_until
        && view.now < hold
    {
        plan.wake(hold);
        return;
    }
    // Two rows of the init table may name the same container.
    let action = Action::Start { container: container.name.clone() };
    if !plan.actions.contains(&action) {
        plan.act(action);
    }
}

fn stop_unhealthy(container: &ContainerView, health: Health, plan: &mut Plan) {
    // Probe failures follow the policy alone: there is no exit code yet for rules to look at.
    let then = if container.role == Role::Sidecar || container.restart.policy != RestartPolicy::Never {
        Then::Restart
    } else {
        Then::Stay
    };
    let cause = match health {
        Health::Healthy => return,
        Health::FailedLiveness => StopCause::FailedLiveness(then),
        Health::FailedStartup => StopCause::FailedStartup(then),
        Health::DefinitionChanged => StopCause::DefinitionChanged,
        Health::ResizeRestart => StopCause::ResizeRestart,
    };
    plan.act(Action::Stop { container: container.name.clone(), grace: None, cause });
}

/// A stop that never came to its end is repeated as a kill.
pub(super) fn watch_overdue(container: &ContainerView, kill_at: Timestamp, view: &PodView, plan: &mut Plan) {
    let overdue = crate::pod::back_off::later(kill_at, super::OVERDUE_AFTER);
    if view.now >= overdue {
        plan.act(Action::KillOverdue { container: container.name.clone() });
        plan.wake(crate::pod::back_off::later(view.now, super::OVERDUE_AFTER));
    } else {
        plan.wake(overdue);
    }
}
