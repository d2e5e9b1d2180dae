//! What is admitted, what is refused, in which words.

use std::sync::Arc;

use super::*;
use crate::pod::static_pod::Origin;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

fn admit(spec: Value) -> Result<Admitted, Refusal> {
    let mut spec = spec;
    if spec.get("containers").is_none() {
        spec["containers"] = json!([{"name": "c", "image": "x"}]);
    }
    let pod = serde_json::from_value(json!({"metadata": {"name": "web"}, "spec": spec})).unwrap();
    let origin = Origin { node: "node-1", path: "/m/web.yaml", seen: jiff::Timestamp::UNIX_EPOCH };
    admit_static(pod, origin, &NodePolicy::default())
}

#[test]
fn an_admitted_pod_has_identity_and_defaults() {
    let admitted = admit(json!({})).unwrap();
    assert_eq!(admitted.name.to_string(), "default/web-node-1");
    assert_eq!(admitted.pod.metadata.uid.as_deref(), Some(admitted.uid.as_str()));
    assert_eq!(admitted.pod.spec.unwrap().restart_policy.as_deref(), Some("Always"));
    assert!(admitted.warnings.is_empty());
}

#[test]
fn what_asks_for_less_isolation_changes_nothing_and_is_accepted() {
    let spec = json!({"hostPID": true, "hostIPC": true, "shareProcessNamespace": true, "os": {"name": "linux"},
        "runtimeClassName": "wasi", "hostUsers": false, "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{"name": "c", "image": "x", "securityContext": {"privileged": true, "capabilities": {"add": ["SYS_ADMIN"]}}}]});
    assert!(admit(spec).is_ok());
}

#[test]
fn what_this_node_cannot_do_is_refused_by_name() {
    for (spec, expected_reason, expected) in [
        (
            json!({"os": {"name": "windows"}}),
            "PodOSNotSupported",
            "Failed to admit pod as the OS field doesn't match node OS",
        ),
        (
            json!({"runtimeClassName": "kata"}),
            "RuntimeClassNotSupported",
            "failed to get sandbox runtime: no runtime for \"kata\" is configured (this node has \"wasi\")",
        ),
        (
            json!({"volumes": [{"name": "data", "nfs": {"server": "s", "path": "/"}}]}),
            "UnsupportedVolumeType",
            "volume \"data\" is of type nfs; this node has configMap, csi, downwardAPI, emptyDir, \
             ephemeral, hostPath, image, persistentVolumeClaim, projected, secret",
        ),
        (
            json!({"volumes": [{"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}]}),
            "UnsupportedVolumeType",
            "volume \"t\" projects a serviceAccountToken; a static pod has none",
        ),
        (
            json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}}),
            "SysctlForbidden",
            "forbidden sysctl: \"kernel.msgmax\" not allowlisted",
        ),
        (
            json!({"securityContext": {"seccompProfile": {"type": "Localhost", "localhostProfile": "p.json"}}}),
            "SeccompNotSupported",
            "spec.securityContext.seccompProfile: a Localhost profile cannot be applied to WebAssembly guests",
        ),
    ] {
        match admit(spec) {
            Err(Refusal::Rejected { reason, message, .. }) => {
                assert_eq!((reason, message.as_str()), (expected_reason, expected));
            }
            other => panic!("{expected_reason}: {other:?}"),
        }
    }
}

#[test]
fn an_invalid_pod_is_refused_in_the_words_of_the_api() {
    let spec = json!({"containers": [{"name": "c", "image": "x", "volumeMounts": [{"name": "x", "mountPath": "/x"}]}]});
    let refusal = admit(spec).unwrap_err();
    assert_eq!(refusal.to_string(), "invalid pod: spec.containers[0].volumeMounts[0].name: Not found: \"x\"");
    let origin = Origin { node: "n", path: "p", seen: jiff::Timestamp::UNIX_EPOCH };
    let unnamed = admit_static(Pod::default(), origin, &NodePolicy::default()).unwrap_err();
    assert_eq!(unnamed.to_string(), "invalid pod: metadata.name: Required value");
}

#[test]
fn what_is_not_done_is_said() {
    let spec = json!({"containers": [{"name": "c", "image": "x", "readinessProbe": {"httpGet": {"port": 80}},
        "lifecycle": {"stopSignal": "SIGHELLO", "preStop": {"sleep": {"seconds": 1}}},
        "ports": [{"containerPort": 80, "hostPort": 8080}]},
        {"name": "d", "image": "x", "lifecycle": {"stopSignal": "SIGINT"}}]});
    let warnings = admit(spec).unwrap().warnings;
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].starts_with("spec.containers[0].lifecycle.stopSignal: \"SIGHELLO\""), "{warnings:?}");
}

fn api_pod(spec: Value) -> Pod {
    let mut spec = spec;
    if spec.get("containers").is_none() {
        spec["containers"] = json!([{"name": "c", "image": "x", "resources": {"requests": {"cpu": "1"}}}]);
    }
    serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "default"}, "spec": spec})).unwrap()
}

#[test]
fn a_pod_of_the_api_is_admitted_by_the_whole_node() {
    let node: Node = serde_json::from_value(json!({
        "metadata": {"name": "n1", "labels": {"kubernetes.io/os": "wasi"}},
        "spec": {"taints": [{"key": "k", "effect": "NoExecute"}]},
        "status": {"allocatable": {"cpu": "900m", "memory": "1Gi", "pods": "10"}}}))
    .unwrap();
    let allocatable = Allocatable::of_node(&node);
    let tolerant = |more: Value| {
        let mut spec = json!({"tolerations": [{"operator": "Exists"}], "containers": [{"name": "c", "image": "x"}]});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        api_pod(spec)
    };
    let memory = Pressure { memory: true, ..Pressure::default() };
    let none = Pressure::default();
    let token =
        json!({"volumes": [{"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}]});
    let cpu = json!({"containers": [{"name": "c", "image": "x", "resources": {"requests": {"cpu": "1"}}}]});
    for (case, pod, pressure, expected) in [
        ("a token is for pods of the API", tolerant(token), none, None),
        (
            "too little CPU",
            tolerant(cpu.clone()),
            none,
            Some(("OutOfcpu", "Node didn't have enough resource: cpu, requested: 1000, used: 0, capacity: 900")),
        ),
        (
            "another node is wanted",
            tolerant(json!({"nodeSelector": {"kubernetes.io/os": "linux"}})),
            none,
            Some(("NodeAffinity", "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector")),
        ),
        (
            "bound to another name",
            tolerant(json!({"nodeName": "n2"})),
            none,
            Some(("NodeName", "Predicate NodeName failed: node(s) didn't match the requested node name")),
        ),
        (
            "a taint it does not tolerate",
            api_pod(json!({"containers": [{"name": "c", "image": "x"}]})),
            none,
            Some((
                "TaintToleration",
                "Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate",
            )),
        ),
        ("all is tolerated, memory pressure too", tolerant(json!({})), memory, None),
        (
            "a best-effort pod under memory pressure",
            api_pod(json!({"containers": [{"name": "c", "image": "x"}]})),
            memory,
            Some(("Evicted", "The node had condition: [MemoryPressure]. ")),
        ),
        (
            "no pod under disk pressure",
            tolerant(cpu.clone()),
            Pressure { disk: true, ..memory },
            Some(("Evicted", "The node had condition: [MemoryPressure DiskPressure]. ")),
        ),
        (
            "Windows",
            tolerant(json!({"os": {"name": "windows"}})),
            none,
            Some(("PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS")),
        ),
    ] {
        let policy = NodePolicy::default();
        let view = NodeView {
            name: "n1",
            policy: &policy,
            node: Some(&node),
            allocatable: &allocatable,
            pressure,
            is_shutting_down: false,
        };
        let got = admit_pod(&pod, &view, &[]).err().map(|refusal| (refusal.reason, refusal.message));
        let expected = expected.map(|(reason, message)| (reason.to_owned(), message.to_owned()));
        assert_eq!(got, expected, "{case}");
    }
    let policy = NodePolicy::default();
    let view = NodeView {
        name: "n1",
        policy: &policy,
        node: None,
        allocatable: &allocatable,
        pressure: none,
        is_shutting_down: false,
    };
    let refusal = admit_pod(&tolerant(cpu), &view, &[]).unwrap_err();
    assert_eq!(refusal.missing.len(), 1, "a critical pod may preempt");
    let view = NodeView { is_shutting_down: true, ..view };
    assert_eq!(admit_pod(&tolerant(json!({})), &view, &[]).unwrap_err().reason, "NodeShutdown");
}

#[test]
fn a_critical_pod_waits_for_its_victims_or_is_refused_with_the_kubelets_words() {
    let node: Node = serde_json::from_value(json!({"metadata": {"name": "n1"},
        "status": {"allocatable": {"cpu": "1", "memory": "1Gi", "pods": "10"}}}))
    .unwrap();
    let (policy, allocatable) = (NodePolicy::default(), Allocatable::of_node(&node));
    let view = NodeView {
        name: "n1",
        policy: &policy,
        node: Some(&node),
        allocatable: &allocatable,
        pressure: Pressure::default(),
        is_shutting_down: false,
    };
    let mut other = api_pod(json!({}));
    other.metadata.uid = Some("other".to_owned());
    let important = api_pod(json!({"priority": preemption::SYSTEM_CRITICAL_PRIORITY,
        "containers": [{"name": "c", "image": "x", "resources": {"requests": {"cpu": "600m"}}}]}));
    let beside = |pod: &Pod, other: &Pod| decide(pod, &view, &[&Resident::new(Arc::new(other.clone()))]);
    assert_eq!(beside(&important, &other), Decision::AfterPreemption { victims: vec!["other".to_owned()] });
    assert!(matches!(beside(&other, &important), Decision::Rejected(r) if r.reason == "OutOfcpu"));
    assert_eq!(decide(&important, &view, &[]), Decision::Admitted { warnings: Vec::new() });
    let Decision::Rejected(refusal) = beside(&important, &important) else { panic!("there is no victim") };
    assert_eq!(refusal.reason, "UnexpectedAdmissionError");
    assert!(refusal.message.ends_with("no set of running pods found to reclaim resources: [(res: cpu, q: 200), ]"));
}
