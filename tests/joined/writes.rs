//! What a node costs the API server: as many writes a pod as a kubelet makes, or fewer.
//!
//! Counted by the API server itself, in its audit log. A kubelet writes, for a pod of one container with its image there:
//! the account's token, three or four statuses from creation to readiness (each a patch), the Events Pulled, Created and
//! Started; for its end: Killing, one or two statuses, the deletion.

use std::collections::BTreeMap;

use serde_json::Value;

use super::volumes::until;
use super::wrong;
use crate::cluster::{Cluster, NodeOptions, Space};
use crate::support::{eventually, skipped};

/// The cluster, if its API server keeps the log for us.
fn audited() -> Option<&'static Cluster> {
    let cluster = Cluster::shared();
    if cluster.try_plane().is_none() {
        skipped("the audit log of a control plane of our own is needed");
        return None;
    }
    Some(cluster)
}

/// What the audit log has of the node's requests in the namespace.
fn requests(space: &Space<'_>, node: &str) -> Vec<Value> {
    let user = format!("system:node:{node}");
    let log = space.cluster().plane().audit_log();
    // The last line may be half written.
    let events = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let ours =
        |event: &Value| event["user"]["username"] == user.as_str() && event["objectRef"]["namespace"] == space.name();
    events.filter(ours).collect()
}

/// The node's writes in the namespace, by verb and resource. What the server refused was not written: it may not have heard
/// yet of a pod whose token is asked for.
fn writes(space: &Space<'_>, node: &str) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    let refused = |event: &Value| event["responseStatus"]["code"].as_u64().is_some_and(|code| code >= 400);
    for event in requests(space, node).iter().filter(|event| event["verb"] != "watch" && !refused(event)) {
        let object = &event["objectRef"];
        let resource = object["resource"].as_str().unwrap_or_default();
        let part = object["subresource"].as_str().map(|part| format!("/{part}")).unwrap_or_default();
        let verb = event["verb"].as_str().unwrap_or_default();
        *counts.entry(format!("{verb} {resource}{part}")).or_default() += 1;
    }
    counts
}

#[test]
fn a_pod_costs_the_api_server_no_more_writes_than_a_kubelet_makes() {
    let Some(cluster) = audited() else { return };
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

#[test]
fn a_failure_that_stays_the_same_is_told_after_ten_and_twenty_seconds_and_costs_no_other_writes() {
    let Some(cluster) = audited() else { return };
    let space = cluster.space("same");
    let node = space.node(NodeOptions { images: &["sleeper"], ..NodeOptions::default() });
    let pod = |name: &str, spec: &str, container: &str| {
        space.apply(&wrong::pod(name, "test/sleeper:v1", spec, container));
    };
    pod("start", "", "    env: [{name: A, valueFrom: {configMapKeyRef: {name: absent, key: a}}}]");
    let mounts = "    volumeMounts: [{name: config, mountPath: /config}]";
    pod("mount", "  volumes: [{name: config, configMap: {name: absent}}]", mounts);
    let event =
        |name: &str, reason: &str| space.events(name).into_iter().find(|event| event.reason.as_deref() == Some(reason));
    let mut told: Vec<(i32, i64)> = Vec::new();
    until("the container's failure is told three times", || {
        if let Some(event) = event("start", "Failed") {
            let seen = (event.count.expect("a count"), event.last_timestamp.expect("a time").0.as_second());
            if told.last() != Some(&seen) {
                told.push(seen);
            }
        }
        told.last().is_some_and(|(count, _)| *count == 3)
    });
    let [(1, first), (2, second), (3, third)] = told[..] else { panic!("it is told one by one: {told:?}") };
    // It is tried every ten seconds; times are of seconds.
    assert!((9..19).contains(&(second - first)) && (19..29).contains(&(third - second)), "{told:?}");
    // At 0, 0.5, 1.5, 3.5, 7.5, 15.5 and 31.5 s, as the kubelet mounts again.
    let mounts = event("mount", "FailedMount").and_then(|event| event.count).expect("a count");
    assert!((5..=7).contains(&mounts), "{mounts} times");
    let all = eventually("every Event's telling is one write", || {
        let events = ["start", "mount"].map(|name| space.events(name)).concat();
        let ours = events
            .iter()
            .filter(|event| event.source.as_ref().is_some_and(|source| source.host.as_deref() == Some(node.name())));
        let tellings: usize = ours.map(|event| usize::try_from(event.count.unwrap_or(1)).expect("a count")).sum();
        let all = writes(&space, node.name());
        let written = ["create events", "patch events"].map(|what| all.get(what).copied().unwrap_or_default());
        if written.iter().sum::<usize>() == tellings { Ok(all) } else { Err(format!("{tellings} tellings: {all:?}")) }
    });
    let statuses = all.get("patch pods/status").copied().unwrap_or_default();
    assert!(statuses <= 6, "a status that stays the same is not written again: {all:?}");
    eprintln!("told {told:?}, {mounts} mounts; writes of two pods that cannot start: {all:?}");
    space.ok(&["create", "configmap", "absent", "--from-literal=a=1"]);
    for name in ["start", "mount"] {
        space.wait_ready(name);
    }
}

#[test]
fn an_immutable_object_is_watched_no_longer_than_it_takes_to_read_it() {
    let Some(cluster) = audited() else { return };
    let space = cluster.space("immutable");
    let node = space.node(NodeOptions { images: &["sleeper"], ..NodeOptions::default() });
    space.apply(
        r#"
{apiVersion: v1, kind: ConfigMap, metadata: {name: fixed}, immutable: true, data: {a: "1"}}
---
{apiVersion: v1, kind: Secret, metadata: {name: sealed}, immutable: true, stringData: {a: "1"}}
---
{apiVersion: v1, kind: ConfigMap, metadata: {name: loose}, data: {a: "1"}}
---
apiVersion: v1
kind: Pod
metadata: {name: one}
spec:
  nodeSelector: {wasilet.dev/test: SPACE}
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: test/sleeper:v1
    volumeMounts: [{name: all, mountPath: /all}]
  volumes:
  - name: all
    projected:
      sources:
      - {configMap: {name: fixed, items: [{key: a, path: fixed}]}}
      - {secret: {name: sealed, items: [{key: a, path: sealed}]}}
      - {configMap: {name: loose, items: [{key: a, path: loose}]}}
"#,
    );
    space.wait_ready("one");
    // Watches that began, and those of them that are over.
    let watches = |name: &str| {
        let of = |stage: &str| {
            let ours = |event: &&Value| {
                event["verb"] == "watch" && event["stage"] == stage && event["objectRef"]["name"] == name
            };
            requests(&space, node.name()).iter().filter(ours).count()
        };
        (of("ResponseStarted"), of("ResponseComplete"))
    };
    space.ok(&["patch", "configmap", "loose", "--patch", r#"{"data": {"a": "2"}}"#]);
    eventually("the change is seen", || {
        let shown = space.kubectl(&["exec", "one", "--", "/app.wasm", "--show", "/all/loose"]);
        if shown.stdout.trim() == "2" { Ok(()) } else { Err(shown.stdout + &shown.stderr) }
    });
    let (began, over) = watches("loose");
    assert_eq!(began - over, 1, "what can change is watched for as long as the pod is there");
    for name in ["fixed", "sealed"] {
        eventually("no watch of what cannot change is left", || {
            let (began, over) = watches(name);
            if began == over { Ok(()) } else { Err(format!("{name}: {began} began, {over} are over")) }
        });
    }
    // What goes stays mounted, also when the pod's volumes are looked at again.
    space.ok(&["delete", "configmap", "loose"]);
    space.ok(&["label", "pod", "one", "looked=again"]);
    let shown = space.ok(&["exec", "one", "--", "/app.wasm", "--show", "/all/loose"]);
    assert_eq!(shown.trim(), "2");
}
