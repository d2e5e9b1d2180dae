//! RuntimeClasses: the handler counts, not the name; what the class costs beside the pod.

use crate::cluster::{Cluster, NodeOptions};

/// Thousandths of a core, as the API writes CPU.
fn millis(text: &str) -> u32 {
    match text.strip_suffix('m') {
        Some(millis) => millis.parse().expect("a number"),
        None => text.parse::<u32>().expect("a number") * 1000,
    }
}

#[test]
fn the_overhead_of_a_runtime_class_takes_room_beside_the_pods_own_requests() {
    let space = Cluster::shared().space("overhead");
    let node = space.node(NodeOptions { images: &["sleeper"], ..NodeOptions::default() });
    space.apply(
        "{apiVersion: node.k8s.io/v1, kind: RuntimeClass, metadata: {name: SPACE}, handler: wasi, overhead: {podFixed: {cpu: 250m, memory: 32Mi}}}",
    );
    let room = millis(&space.ok(&["get", "node", node.name(), "--output", "jsonpath={.status.allocatable.cpu}"]));
    // Bound to the node without the scheduler, which counts it as well.
    let pod = |name: &str, cpu: u32| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{nodeName: {}, runtimeClassName: SPACE, terminationGracePeriodSeconds: 1, containers: [{{name: main, image: 'test/sleeper:v1', resources: {{requests: {{cpu: {cpu}m}}}}}}]}}}}",
            node.name()
        )
    };
    space.apply(&pod("over", room - 249));
    let words = format!("requested: {}, used: 0, capacity: {room}", room + 1);
    space.wait_event("over", "OutOfcpu", &["Node didn't have enough resource: cpu", &words]);
    space.wait_phase("over", "Failed");
    space.apply(&pod("fits", room - 250));
    let fits = space.wait_ready("fits");
    let overhead = fits.spec.and_then(|spec| spec.overhead).expect("the API server writes it into the pod");
    assert_eq!(overhead["cpu"].0, "250m");
    // Nothing is left, not even for the overhead alone.
    space.apply(&pod("late", 0));
    let words = format!("requested: 250, used: {room}, capacity: {room}");
    space.wait_event("late", "OutOfcpu", &[&words]);
}

#[test]
fn a_class_is_known_by_its_handler() {
    let space = Cluster::shared().space("classes");
    let node = space.node(NodeOptions { images: &["sleeper"], ..NodeOptions::default() });
    for (class, handler) in [("SPACE", "wasi"), ("SPACE-kata", "kata")] {
        space.apply(&format!(
            "{{apiVersion: node.k8s.io/v1, kind: RuntimeClass, metadata: {{name: {class}}}, handler: {handler}}}"
        ));
    }
    for (name, class) in [("runs", "SPACE"), ("waits", "SPACE-kata")] {
        space.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{nodeName: {}, runtimeClassName: {class}, \
             terminationGracePeriodSeconds: 1, containers: [{{name: main, image: 'test/sleeper:v1'}}]}}}}",
            node.name()
        ));
    }
    space.wait_ready("runs");
    let words = "Failed to create pod sandbox: failed to get sandbox runtime: no runtime for \"kata\" is configured";
    space.wait_event("waits", "FailedCreatePodSandBox", &[words]);
    space.wait_phase("waits", "Pending");

    // Its class is another by the time of the next try.
    let other = format!("{}-kata", space.name());
    space.ok(&["delete", "runtimeclass", &other]);
    space.wait_event("waits", "FailedCreatePodSandBox", &[&format!("runtimeclass.node.k8s.io \"{other}\" not found")]);
    space.apply("{apiVersion: node.k8s.io/v1, kind: RuntimeClass, metadata: {name: SPACE-kata}, handler: wasi}");
    space.wait_ready("waits");
}
