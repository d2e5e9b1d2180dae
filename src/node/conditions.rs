//! The conditions of the Node: Ready and the three pressures.
//!
//! In: what is wrong with the node, the conditions it had, the time. Out: the conditions it has, and the words of events for
//! those that changed. Pure; reasons and messages are the kubelet's (`nodestatus/setters.go`).

use k8s_openapi::api::core::v1::NodeCondition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::pod::admission::Pressure;

/// Whether pods can have addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkState {
    /// They can.
    Ready,
    /// They cannot yet, and why: `waiting for podCIDR`.
    NotReady(String),
}

/// Whether the machine goes down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ShutdownState {
    /// It does not.
    #[default]
    Running,
    /// It does: no pod is taken any more.
    ShuttingDown,
}

/// What conditions are made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// The pods' network.
    pub network: NetworkState,
    /// What the node is short of.
    pub pressure: Pressure,
    /// The machine.
    pub shutdown: ShutdownState,
    /// Anything else that keeps pods from running here, such as no address of the node.
    pub problems: Vec<String>,
}

/// Conditions and what is to be said about them.
#[derive(Debug, Clone, PartialEq)]
pub struct Conditions {
    /// All that the node had, those of others included, with ours as they are now. Ready is last of ours, as old
    /// controllers expect.
    pub all: Vec<NodeCondition>,
    /// Reasons of events `Node NAME status is now: REASON`.
    pub events: Vec<&'static str>,
}

/// Computes them. A condition keeps its `lastTransitionTime` while its status does not change.
#[must_use]
pub fn conditions(before: &[NodeCondition], health: &Health, now: Time) -> Conditions {
    let mut result = Conditions { all: before.to_vec(), events: Vec::new() };
    for (kind, is_true, reasons, message, events) in [
        (
            "MemoryPressure",
            health.pressure.memory,
            ["KubeletHasInsufficientMemory", "KubeletHasSufficientMemory"],
            ["kubelet has insufficient memory available", "kubelet has sufficient memory available"],
            ["NodeHasInsufficientMemory", "NodeHasSufficientMemory"],
        ),
        (
            "DiskPressure",
            health.pressure.disk,
            ["KubeletHasDiskPressure", "KubeletHasNoDiskPressure"],
            ["kubelet has disk pressure", "kubelet has no disk pressure"],
            ["NodeHasDiskPressure", "NodeHasNoDiskPressure"],
        ),
        (
            "PIDPressure",
            health.pressure.pid,
            ["KubeletHasInsufficientPID", "KubeletHasSufficientPID"],
            ["kubelet has insufficient PID available", "kubelet has sufficient PID available"],
            ["NodeHasInsufficientPID", "NodeHasSufficientPID"],
        ),
    ] {
        let index = usize::from(!is_true);
        if result.set(kind, is_true, reasons[index], message[index].to_owned(), &now) != Transition::None {
            result.events.push(events[index]);
        }
    }
    let problems = problems(health);
    let (is_ready, reason, message) = if problems.is_empty() {
        (true, "KubeletReady", "kubelet is posting ready status".to_owned())
    } else {
        (false, "KubeletNotReady", aggregate(&problems))
    };
    // A new Node is no news: the kubelet tells only that one changed.
    if result.set("Ready", is_ready, reason, message, &now) == Transition::Changed {
        result.events.push(if is_ready { "NodeReady" } else { "NodeNotReady" });
    }
    result
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transition {
    None,
    New,
    Changed,
}

impl Conditions {
    fn set(&mut self, kind: &str, is_true: bool, reason: &str, message: String, now: &Time) -> Transition {
        let status = if is_true { "True" } else { "False" };
        let before = self.all.iter().position(|condition| condition.type_ == kind);
        let mut condition = NodeCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_heartbeat_time: Some(now.clone()),
            last_transition_time: Some(now.clone()),
        };
        let Some(index) = before else {
            self.all.push(condition);
            return Transition::New;
        };
        let transition = if self.all[index].status == status {
            condition.last_transition_time.clone_from(&self.all[index].last_transition_time);
            Transition::None
        } else {
            Transition::Changed
        };
        self.all[index] = condition;
        transition
    }
}

fn problems(health: &Health) -> Vec<String> {
    let mut problems = health.problems.clone();
    if let NetworkState::NotReady(why) = &health.network {
        problems.push(format!(
            "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:{why}"
        ));
    }
    if health.shutdown == ShutdownState::ShuttingDown {
        problems.push("node is shutting down".to_owned());
    }
    problems
}

/// As apimachinery shows errors: one as it is, several in brackets.
fn aggregate(problems: &[String]) -> String {
    match problems {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    }
}

/// The conditions that are this node's to write; others' are left alone.
pub(super) const OURS: [&str; 4] = ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"];

#[cfg(test)]
mod tests {
    use super::*;

    fn healthy() -> Health {
        Health {
            network: NetworkState::Ready,
            pressure: Pressure::default(),
            shutdown: ShutdownState::Running,
            problems: Vec::new(),
        }
    }

    fn at(seconds: i64) -> Time {
        Time(jiff::Timestamp::from_second(seconds).unwrap())
    }

    #[test]
    fn a_new_node_has_four_conditions_with_the_kubelets_words() {
        let new = conditions(&[], &healthy(), at(1));
        let shown: Vec<String> = new
            .all
            .iter()
            .map(|c| format!("{} {} {} {}", c.type_, c.status, c.reason.as_ref().unwrap(), c.message.as_ref().unwrap()))
            .collect();
        assert_eq!(
            shown,
            [
                "MemoryPressure False KubeletHasSufficientMemory kubelet has sufficient memory available",
                "DiskPressure False KubeletHasNoDiskPressure kubelet has no disk pressure",
                "PIDPressure False KubeletHasSufficientPID kubelet has sufficient PID available",
                "Ready True KubeletReady kubelet is posting ready status"
            ]
        );
        assert_eq!(new.events, ["NodeHasSufficientMemory", "NodeHasNoDiskPressure", "NodeHasSufficientPID"]);
    }

    #[test]
    fn what_is_wrong_is_said_and_transitions_are_timed() {
        let waiting = Health { network: NetworkState::NotReady("waiting for podCIDR".to_owned()), ..healthy() };
        let first = conditions(&[], &waiting, at(1));
        let ready = first.all.last().unwrap();
        assert_eq!(
            ready.message.as_deref(),
            Some(
                "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady \
                 message:waiting for podCIDR"
            )
        );
        let network = NodeCondition { type_: "NetworkUnavailable".to_owned(), ..NodeCondition::default() };
        let mut before = first.all.clone();
        before.push(network.clone());
        let second = conditions(&before, &healthy(), at(5));
        assert_eq!(second.events, ["NodeReady"]);
        assert_eq!(second.all[3].last_transition_time, Some(at(5)));
        assert_eq!(second.all[0].last_transition_time, Some(at(1)), "unchanged");
        assert_eq!(second.all[0].last_heartbeat_time, Some(at(5)));
        assert_eq!(second.all[4], network, "the controller's own is left alone");
        let down = Health {
            shutdown: ShutdownState::ShuttingDown,
            problems: vec!["a".to_owned()],
            pressure: Pressure { disk: true, ..Pressure::default() },
            ..healthy()
        };
        let third = conditions(&second.all, &down, at(9));
        assert_eq!(third.events, ["NodeHasDiskPressure", "NodeNotReady"]);
        assert_eq!(third.all[3].message.as_deref(), Some("[a, node is shutting down]"));
    }
}
