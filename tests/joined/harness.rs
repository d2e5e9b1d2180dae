//! The test cluster itself: what the other tests stand on holds without a node of ours.

use crate::cluster::Cluster;

const FAKE_NODE: &str = r#"
apiVersion: v1
kind: Node
metadata: {name: SPACE, labels: {wasilet.dev/test: SPACE}}
"#;

const FAKE_STATUS: &str = r#"{"status": {
  "allocatable": {"cpu": "1", "memory": "1Gi", "pods": "10"}, "capacity": {"cpu": "1", "memory": "1Gi", "pods": "10"},
  "conditions": [{"type": "Ready", "status": "True", "reason": "Test", "message": "", "lastHeartbeatTime": "2020-01-01T00:00:00Z", "lastTransitionTime": "2020-01-01T00:00:00Z"}]
}}"#;

#[test]
fn a_pod_is_scheduled_to_a_ready_node() {
    let cluster = Cluster::shared();
    let space = cluster.space("harness");
    space.apply(FAKE_NODE);
    space.ok(&["patch", "node", space.name(), "--subresource=status", "--type=merge", "--patch", FAKE_STATUS]);
    space.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: one}, spec: {nodeSelector: {wasilet.dev/test: SPACE}, containers: [{name: main, image: none}]}}",
    );
    let pod =
        space.wait_pod("one", "is scheduled", |pod| pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some()));
    assert_eq!(pod.spec.and_then(|spec| spec.node_name).as_deref(), Some(space.name()));
    let events = space.wait_event("one", "Scheduled", &["Successfully assigned"]);
    assert!(events.contains(space.name()), "{events}");
    space.ok(&["delete", "pod", "one", "--force", "--grace-period=0"]);
    space.ok(&["delete", "node", space.name()]);
    space.wait_gone("one");
}

#[test]
fn the_metrics_api_is_served() {
    let cluster = Cluster::shared();
    if !cluster.has_metrics() {
        return;
    }
    cluster.kubectl_ok(&["wait", "--for=condition=Available", "apiservice/v1beta1.metrics.k8s.io", "--timeout=120s"]);
    let list = cluster.kubectl_ok(&["get", "--raw", "/apis/metrics.k8s.io/v1beta1/nodes"]);
    assert!(list.contains("NodeMetricsList"), "{list}");
}
