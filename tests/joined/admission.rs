//! What a node refuses to run, in the kubelet's words, and who makes room for a critical pod.

use k8s_openapi::api::core::v1::{Node as NodeObject, Pod};
use kube::Api;

use crate::cluster::{Cluster, NodeOptions, Space, block_on};
use crate::support::container;

/// A pod bound to the node by its name: the scheduler would see to most of this first.
fn bound(space: &Space<'_>, node: &str, name: &str, spec: &str, container: &str) {
    space.apply(&format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 1
{spec}
  containers:
  - name: main
    image: test/sleeper:v1
{container}
"
    ));
}

/// A quantity of memory in bytes, as a Node object has it.
fn bytes(text: &str) -> u64 {
    let number = |suffix: &str| text.strip_suffix(suffix).and_then(|number| number.parse::<u64>().ok());
    let factors = [("Ki", 1 << 10), ("Mi", 1 << 20), ("", 1)];
    factors.iter().find_map(|(suffix, factor)| Some(number(suffix)? * factor)).expect("a quantity")
}

fn millis(text: &str) -> u64 {
    match text.strip_suffix('m') {
        Some(millis) => millis.parse().expect("a number"),
        None => text.parse::<u64>().expect("a number") * 1000,
    }
}

#[test]
fn what_is_refused_says_why_and_what_the_machine_keeps_for_itself_is_not_given_to_pods() {
    let space = Cluster::shared().space("admission");
    let settings = "systemReserved: {cpu: 100m, memory: 64Mi}\nkubeReserved: {cpu: 50m, memory: 32Mi}";
    let node = space.node(NodeOptions { images: &["sleeper"], kubelet: settings, ..NodeOptions::default() });
    let nodes: Api<NodeObject> = Api::all(space.cluster().client());
    let status = block_on(nodes.get(node.name())).expect("the Node").status.expect("a status");
    let (capacity, allocatable) = (status.capacity.expect("it has"), status.allocatable.expect("it has"));
    let room = millis(&allocatable["cpu"].0);
    assert_eq!(room, millis(&capacity["cpu"].0) - 150);
    // The tests' nodes evict at 50Mi.
    assert_eq!(bytes(&allocatable["memory"].0), bytes(&capacity["memory"].0) - ((64 + 32 + 50) << 20));

    let bound = |name: &str, spec: &str, container: &str| bound(&space, node.name(), name, spec, container);
    bound("first", "", "    ports: [{containerPort: 7788, hostPort: 7788}]");
    space.wait_ready("first");
    let over = format!("    resources: {{requests: {{cpu: {}m}}}}", room + 1);
    let cpu = format!("Node didn't have enough resource: cpu, requested: {}, used: 0, capacity: {room}", room + 1);
    let localhost = "a Localhost profile cannot be applied to WebAssembly guests";
    let cases = [
        ("cpu", "", over.as_str(), "OutOfcpu", cpu.as_str()),
        (
            "memory",
            "",
            "    resources: {requests: {memory: 100Ti}}",
            "OutOfmemory",
            "Node didn't have enough resource: memory, requested: 109951162777600, used: 0, capacity: ",
        ),
        (
            "affinity",
            "  nodeSelector: {absent: here}",
            "",
            "NodeAffinity",
            "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector",
        ),
        (
            "port",
            "",
            "    ports: [{containerPort: 80, hostPort: 7788}]",
            "NodePorts",
            "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports",
        ),
        (
            "sysctl",
            "  securityContext: {sysctls: [{name: kernel.msgmax, value: \"65536\"}]}",
            "",
            "SysctlForbidden",
            "forbidden sysctl: \"kernel.msgmax\" not allowlisted",
        ),
        (
            "windows",
            "  os: {name: windows}",
            "",
            "PodOSNotSupported",
            "Failed to admit pod as the OS field doesn't match node OS",
        ),
        (
            "seccomp",
            "  securityContext: {seccompProfile: {type: Localhost, localhostProfile: own.json}}",
            "",
            "SeccompNotSupported",
            localhost,
        ),
        (
            "apparmor",
            "",
            "    securityContext: {appArmorProfile: {type: Localhost, localhostProfile: own}}",
            "AppArmor",
            localhost,
        ),
    ];
    for (name, spec, container, reason, words) in cases {
        bound(name, spec, container);
        let failed: Pod = space.wait_phase(name, "Failed");
        let status = failed.status.expect("a status");
        assert_eq!(status.reason.as_deref(), Some(reason), "{name}");
        let message = status.message.unwrap_or_default();
        assert!(message.starts_with("Pod was rejected: ") && message.contains(words), "{name}: {message}");
        assert!(status.container_statuses.unwrap_or_default().iter().all(|status| status.started != Some(true)));
        space.wait_event(name, reason, &[words]);
    }
    // What asks for no more isolation than a guest has anyway changes nothing.
    bound(
        "less",
        "  securityContext: {seccompProfile: {type: RuntimeDefault}}",
        "    securityContext: {capabilities: {add: [NET_ADMIN], drop: [ALL]}, appArmorProfile: {type: RuntimeDefault}}",
    );
    space.wait_ready("less");
    assert_eq!(container(&space.wait_ready("first"), "main").restart_count, 0);
}

#[test]
fn a_critical_pod_gets_room_from_who_asked_for_it_and_from_nobody_else() {
    let space = Cluster::shared().space("critical");
    let node = space.node(NodeOptions { images: &["sleeper"], ..NodeOptions::default() });
    let nodes: Api<NodeObject> = Api::all(space.cluster().client());
    let status = block_on(nodes.get(node.name())).expect("the Node").status.expect("a status");
    let room = millis(&status.allocatable.expect("it has")["cpu"].0);
    let asks = |millis: u64| format!("    resources: {{requests: {{cpu: {millis}m}}}}");
    let bound = |name: &str, spec: &str, container: &str| bound(&space, node.name(), name, spec, container);
    bound("idle", "", "");
    bound("small", "", &asks(100));
    bound("large", "", &asks(room - 200));
    for name in ["idle", "small", "large"] {
        space.wait_ready(name);
    }
    bound("ordinary", "", &asks(200));
    space.wait_event("ordinary", "OutOfcpu", &[&format!("requested: 200, used: {}, capacity: {room}", room - 100)]);
    bound("critical", "  priorityClassName: system-node-critical", &asks(room - 150));
    space.wait_ready("critical");
    let large = space.wait_phase("large", "Failed");
    let status = large.status.expect("a status");
    let words = "Preempted in order to admit critical pod";
    assert_eq!((status.reason.as_deref(), status.message.as_deref()), (Some("Preempting"), Some(words)));
    let conditions = status.conditions.unwrap_or_default();
    let target = conditions.iter().find(|condition| condition.type_ == "DisruptionTarget").expect("the condition");
    assert_eq!((target.status.as_str(), target.reason.as_deref()), ("True", Some("TerminationByKubelet")));
    space.wait_event("large", "Preempting", &[words]);
    for name in ["idle", "small"] {
        assert_eq!(container(&space.wait_ready(name), "main").restart_count, 0, "{name}");
    }
}
