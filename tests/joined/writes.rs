//! What a node costs the API server: as many writes a pod as a kubelet makes, or fewer.
//!
//! Counted by the API server itself, in its audit log. A kubelet writes, for a pod of one container with its image there:
//! the account's token, three or four statuses from creation to readiness (each a patch), the Events Pulled, Created and
//! Started; for its end: Killing, one or two statuses, the deletion.

use std::collections::BTreeMap;

use crate::cluster::{Cluster, NodeOptions, Space};
use crate::support::eventually;

/// The node's writes in the namespace, by verb and resource.
fn writes(space: &Space<'_>, node: &str) -> BTreeMap<String, usize> {
    let user = format!("system:node:{node}");
    let mut counts = BTreeMap::new();
    for line in space.cluster().plane().audit_log().lines() {
        // The last line may be half written.
        let Ok(event) = serde_json::from_str::<serde_json::Value>(line) else { continue };
        let object = &event["objectRef"];
        if event["user"]["username"] != user.as_str() || object["namespace"] != space.name() {
            continue;
        }
        let resource = object["resource"].as_str().unwrap_or_default();
        let part = object["subresource"].as_str().map(|part| format!("/{part}")).unwrap_or_default();
        let verb = event["verb"].as_str().unwrap_or_default();
        *counts.entry(format!("{verb} {resource}{part}")).or_default() += 1;
    }
    counts
}

#[test]
fn a_pod_costs_the_api_server_no_more_writes_than_a_kubelet_makes() {
    let cluster = Cluster::shared();
    if cluster.try_plane().is_none() {
        crate::support::skipped("the audit log of a control plane of our own is needed");
        return;
    }
    let space = cluster.space("writes");
    let node = space.node(NodeOptions { images: &["sleeper"], ..NodeOptions::default() });
    space.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: one}
spec:
  nodeSelector: {wasilet.dev/test: SPACE}
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: "test/sleeper:v1"}]
"#,
    );
    space.wait_ready("one");
    for reason in ["Pulled", "Created", "Started"] {
        space.wait_event("one", reason, &[]);
    }
    let started = writes(&space, node.name());
    let count = |counts: &BTreeMap<String, usize>, what: &str| counts.get(what).copied().unwrap_or_default();
    assert!(count(&started, "patch pods/status") <= 4, "{started:?}");
    assert!(count(&started, "create events") <= 4, "{started:?}");
    assert!(count(&started, "create serviceaccounts/token") <= 1, "{started:?}");

    space.ok(&["delete", "pod", "one", "--wait=false"]);
    space.wait_gone("one");
    space.wait_event("one", "Killing", &["Stopping container main"]);
    let all = eventually("the deletion is in the audit log", || {
        let all = writes(&space, node.name());
        if count(&all, "delete pods") == 1 { Ok(all) } else { Err(format!("{all:?}")) }
    });
    assert!(count(&all, "patch pods/status") <= count(&started, "patch pods/status") + 2, "{started:?} then {all:?}");
    assert!(count(&all, "create events") <= count(&started, "create events") + 1, "{started:?} then {all:?}");
    let total: usize = all.values().sum();
    assert!(total <= 12, "a kubelet makes twelve at most: {all:?}");
    eprintln!("writes of a pod's life: {all:?}");
}
