//! The machine goes down under a node of a cluster: what the API server is told of its pods and of the node, and that a
//! shutdown that is called off is forgotten.

use k8s_openapi::api::core::v1::Pod;

use super::pressure::wait_condition;
use crate::cluster::{Cluster, NodeOptions, Space};
use crate::shutdown::Logind;
use crate::support::{container, eventually, skipped};

/// A pod that takes three seconds to end.
fn pod(name: &str, spec: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}, annotations: {{wasilet.dev/termination: wait}}}}
spec:
  terminationGracePeriodSeconds: 3
  containers: [{{name: main, image: test/sleeper:v1}}]
  {spec}
"
    )
}

/// Waits until a pod was ended for the shutdown; when its container was over, in seconds.
fn ended(space: &Space<'_>, name: &str) -> i64 {
    let over = |pod: &Pod| container(pod, "main").state.as_ref().and_then(|state| state.terminated.clone());
    let pod = space.wait_pod(name, "has ended", |pod| over(pod).is_some());
    let status = pod.status.as_ref().expect("a status");
    let message = "Pod was terminated in response to imminent node shutdown.";
    assert_eq!(
        (status.phase.as_deref(), status.reason.as_deref(), status.message.as_deref()),
        (Some("Failed"), Some("Terminated"), Some(message)),
        "{name}"
    );
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let target = conditions.iter().find(|condition| condition.type_ == "DisruptionTarget").expect("the condition");
    assert_eq!(
        (target.status.as_str(), target.reason.as_deref(), target.message.as_deref()),
        ("True", Some("TerminationByKubelet"), Some(message))
    );
    over(&pod).and_then(|state| state.finished_at).expect("a time").0.as_second()
}

#[test]
fn pods_end_by_priority_before_the_machine_goes_down_and_a_shutdown_called_off_is_forgotten() {
    let cluster = Cluster::shared();
    if cluster.try_plane().is_none() || !rustix::process::geteuid().is_root() {
        skipped("the node must be on the bus of the test");
        return;
    }
    let space = cluster.space("shutdown");
    let dir = cluster.dir().join(space.name());
    std::fs::create_dir(&dir).expect("a directory");
    let Some(logind) = Logind::start(&dir) else { return };
    let node = space.node(NodeOptions {
        images: &["sleeper"],
        kubelet: "shutdownGracePeriod: 24s\nshutdownGracePeriodCriticalPods: 10s",
        mounts: &format!("export DBUS_SYSTEM_BUS_ADDRESS={}\n", logind.address()),
        ..NodeOptions::default()
    });
    logind.wait_locks(1, || node.tail());
    let here = "nodeSelector: {wasilet.dev/test: SPACE}";
    space.apply(&pod("usual", here));
    space.apply(&pod("critical", &format!("{here}\n  priorityClassName: system-node-critical")));
    for name in ["usual", "critical"] {
        space.wait_ready(name);
    }
    assert!(logind.is_held(0));

    logind.prepare_for_shutdown(true);
    let down = wait_condition(&space, &node, "Ready", "False");
    assert_eq!(down.reason.as_deref(), Some("KubeletNotReady"));
    assert_eq!(down.message.as_deref(), Some("node is shutting down"));
    space.apply(&pod("late", &format!("nodeName: {}", node.name())));
    let refused = space.wait_phase("late", "Failed").status.expect("a status");
    assert_eq!(refused.reason.as_deref(), Some("NodeShutdown"));
    let words = "Pod was rejected as the node is shutting down.";
    assert_eq!(refused.message.as_deref(), Some(format!("Pod was rejected: {words}").as_str()));
    space.wait_event("late", "NodeShutdown", &[words]);
    let (usual, critical) = (ended(&space, "usual"), ended(&space, "critical"));
    // Each takes its three seconds, one after the other; times are of seconds.
    assert!(critical - usual >= 2, "the critical one is last: {usual}, {critical}");
    eventually("the machine may go", || if logind.is_held(0) { Err(node.tail()) } else { Ok(()) });

    logind.prepare_for_shutdown(false);
    logind.wait_locks(2, || node.tail());
    assert!(logind.is_held(1), "the next shutdown is held up again");
    cluster.wait_node(node.name(), "True");
    space.apply(&pod("next", here));
    space.wait_ready("next");
    for name in ["usual", "critical", "late"] {
        space.wait_phase(name, "Failed");
    }
    node.stop();
    assert!(!logind.is_held(1), "the node's end lets go");
}
