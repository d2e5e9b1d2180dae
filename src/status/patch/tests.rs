//! What is written, when, and how often, over the life of a pod.

use std::sync::Arc;

use serde_json::{Value, json};

use super::*;

/// A pod as the API server has it.
fn object(status: Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "ns", "uid": "u"},
        "spec": {"containers": [{"name": "a"}]}, "status": status}))
    .unwrap()
}

fn local(status: Value, stage: Stage) -> PodSnapshot {
    let status = Arc::new(serde_json::from_value(status).unwrap());
    PodSnapshot { pod: Arc::new(object(json!({}))), status, stage, version: 1 }
}

fn condition(kind: &str, status: &str) -> Value {
    json!({"type": kind, "status": status, "lastTransitionTime": "2026-01-01T00:00:00Z"})
}

/// What the API server would make of a patch.
pub fn patched(object: &Pod, patch: &Value) -> Pod {
    assert_eq!(patch["metadata"]["uid"], json!(object.metadata.uid), "a patch is for one pod only");
    let mut status = serde_json::to_value(object.status.clone().unwrap_or_default()).unwrap();
    for (field, value) in patch["status"].as_object().unwrap() {
        let mut value = value.clone();
        if field == "conditions" {
            let mut all = status[field].as_array().cloned().unwrap_or_default();
            for change in value.as_array().unwrap() {
                match all.iter_mut().find(|old| old["type"] == change["type"]) {
                    Some(old) => change.as_object().unwrap().iter().for_each(|(k, v)| old[k] = v.clone()),
                    None => all.push(change.clone()),
                }
            }
            value = Value::Array(all);
        } else if let Some(items) = value.as_array_mut() {
            items.retain(|item| item.get("$patch").is_none());
        }
        status[field] = value;
    }
    Pod { status: Some(serde_json::from_value(status).unwrap()), ..object.clone() }
}

fn container(state: Value, ready: bool) -> Value {
    json!([{"name": "a", "image": "x", "imageID": "", "ready": ready, "restartCount": 0, "state": state}])
}

fn status(phase: &str, ready: &str, state: Value, more: Value) -> Value {
    let mut status = json!({"phase": phase, "qosClass": "BestEffort", "startTime": "2026-01-01T00:00:00Z",
        "hostIP": "192.0.2.1", "hostIPs": [{"ip": "192.0.2.1"}],
        "conditions": [condition("Ready", ready), condition("ContainersReady", ready), condition("PodScheduled", "True")],
        "containerStatuses": container(state, ready == "True")});
    status.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    status
}

/// Milliseconds a change may wait.
const SOON: u64 = 500;

/// Plays statuses at their times against an API server; returns the writes with their times.
fn play(mut object: Pod, story: &[(u64, PodSnapshot)]) -> Vec<(u64, &'static str)> {
    let mut written = Vec::new();
    let mut due: Option<u64> = None;
    let end = story.last().unwrap().0 + 10_000;
    let mut current = None;
    for now in 0..end {
        if let Some((_, snapshot)) = story.iter().rev().find(|(at, _)| *at == now) {
            current = Some(snapshot);
        }
        let Some(snapshot) = current else { continue };
        let Some((write, urgency)) = decide(&object, snapshot, None) else {
            due = None;
            continue;
        };
        if urgency == Urgency::Soon && now < *due.get_or_insert(now + SOON) {
            continue;
        }
        due = None;
        match write {
            Write::Patch(patch) => {
                written.push((now, "patch"));
                object = patched(&object, &patch);
            }
            Write::Delete => {
                written.push((now, "delete"));
                return written;
            }
        }
        assert!(written.len() < 20, "it never comes to rest: {:?}", decide(&object, snapshot, None));
    }
    written
}

fn creating() -> Value {
    status("Pending", "False", json!({"waiting": {"reason": "ContainerCreating"}}), json!({}))
}

fn with_ip() -> Value {
    let ip = json!({"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}]});
    status("Pending", "False", json!({"waiting": {"reason": "ContainerCreating"}}), ip)
}

fn running() -> Value {
    let ip = json!({"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}]});
    status("Running", "True", json!({"running": {"startedAt": "2026-01-01T00:00:01Z"}}), ip)
}

fn ended(phase: &str, exit_code: i32) -> Value {
    let ip = json!({"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}]});
    status(phase, "False", json!({"terminated": {"exitCode": exit_code}}), ip)
}

#[test]
fn a_pod_costs_no_more_writes_than_the_kubelets_two_to_start_and_two_to_stop() {
    let new = || {
        object(json!({"phase": "Pending", "qosClass": "BestEffort", "conditions": [condition("PodScheduled", "True")]}))
    };
    let alive = |status: Value| local(status, Stage::Alive);
    let fast = [(0, alive(creating())), (5, alive(with_ip())), (40, alive(running()))];
    assert_eq!(play(new(), &fast), [(40, "patch")], "a fast start is one write");
    let slow = [(0, alive(creating())), (5, alive(with_ip())), (9000, alive(running()))];
    assert_eq!(play(new(), &slow), [(500, "patch"), (9000, "patch")], "a slow one tells that it is being made");

    let mut deleted = object(running());
    deleted.metadata.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH));
    let mut noticed = running();
    noticed["observedGeneration"] = json!(2);
    let stop = [
        (0, alive(noticed.clone())),
        (100, alive(ended("Failed", 143))),
        (110, local(ended("Failed", 143), Stage::Stopped)),
        (130, local(ended("Failed", 143), Stage::Finished)),
    ];
    let expected = [(110, "patch"), (130, "delete")];
    assert_eq!(
        play(deleted.clone(), &stop),
        expected,
        "the end is told when nothing runs, and completed when nothing is left"
    );
    let slow_stop = [
        (0, alive(noticed)),
        (20_000, alive(ended("Failed", 143))),
        (20_010, local(ended("Failed", 143), Stage::Stopped)),
        (20_030, local(ended("Failed", 143), Stage::Finished)),
    ];
    let writes = play(deleted, &slow_stop);
    assert_eq!(writes.iter().map(|(_, what)| *what).collect::<Vec<_>>(), ["patch", "patch", "delete"]);
}

#[test]
fn no_final_phase_is_told_while_a_container_may_run() {
    let (before, after) = (object(running()), local(ended("Succeeded", 0), Stage::Alive));
    let Some((Write::Patch(patch), Urgency::Soon)) = decide(&before, &after, None) else { panic!() };
    assert!(patch["status"].get("phase").is_none(), "{patch}");
    let stopped = local(ended("Succeeded", 0), Stage::Stopped);
    let Some((Write::Patch(patch), Urgency::Now)) = decide(&before, &stopped, None) else { panic!() };
    assert_eq!(patch["status"]["phase"], "Succeeded");
    let over = patched(&before, &patch);
    assert_eq!(decide(&over, &stopped, None), None);
    let back = local(running(), Stage::Alive);
    let Some((Write::Patch(patch), _)) = decide(&over, &back, None) else { panic!() };
    assert!(patch["status"].get("phase").is_none(), "nothing follows a final phase: {patch}");
}

#[test]
fn what_others_say_is_neither_lost_nor_written() {
    let mut theirs = running();
    theirs["conditions"].as_array_mut().unwrap().push(condition("example.com/gate", "True"));
    theirs["nominatedNodeName"] = json!("n");
    theirs["qosClass"] = json!("Burstable");
    theirs["startTime"] = json!("2025-12-31T00:00:00Z");
    let api = object(theirs);
    assert_eq!(decide(&api, &local(running(), Stage::Alive), None), None);
    let Some((Write::Patch(patch), _)) = decide(&api, &local(with_ip(), Stage::Alive), None) else { panic!() };
    let after = patched(&api, &patch).status.unwrap();
    assert!(after.conditions.unwrap().iter().any(|c| c.type_ == "example.com/gate" && c.status == "True"));
    assert_eq!(after.nominated_node_name.as_deref(), Some("n"));
    assert_eq!(after.qos_class.as_deref(), Some("Burstable"));
}

#[test]
fn what_go_leaves_out_is_no_difference() {
    let mut theirs = running();
    let first = theirs["containerStatuses"][0].as_object_mut().unwrap();
    first.insert("lastState".to_owned(), json!({}));
    first.insert("allocatedResources".to_owned(), json!({}));
    theirs["conditions"][0]["lastTransitionTime"] = json!("2020-01-01T00:00:00Z");
    theirs["conditions"][0]["observedGeneration"] = json!(7);
    assert_eq!(decide(&object(theirs), &local(running(), Stage::Alive), None), None);
}

#[test]
fn a_patch_says_only_what_changed_and_replaces_addresses_as_a_whole() {
    let mut before = running();
    before["conditions"][0] = json!({"type": "Ready", "status": "False", "reason": "ContainersNotReady", "message": "m",
        "lastTransitionTime": "2026-01-01T00:00:00Z"});
    before["message"] = json!("old");
    let mut after = running();
    after["podIP"] = json!("10.0.0.2");
    after["podIPs"] = json!([{"ip": "10.0.0.2"}, {"ip": "fd00::2"}]);
    let Some((Write::Patch(patch), Urgency::Now)) = decide(&object(before), &local(after, Stage::Alive), None) else {
        panic!()
    };
    let expected = json!({"metadata": {"uid": "u"}, "status": {
        "message": null, "podIP": "10.0.0.2", "podIPs": [{"$patch": "replace"}, {"ip": "10.0.0.2"}, {"ip": "fd00::2"}],
        "conditions": [{"type": "Ready", "status": "True", "reason": null, "message": null}]}});
    assert_eq!(patch, expected);
}

#[test]
fn a_disruption_is_told_with_the_end_it_led_to() {
    let mut evicted = ended("Failed", 137);
    evicted["reason"] = json!("Evicted");
    evicted["conditions"].as_array_mut().unwrap().push(condition("DisruptionTarget", "True"));
    let told = |stage| {
        let Some((Write::Patch(patch), _)) = decide(&object(running()), &local(evicted.clone(), stage), None) else {
            panic!()
        };
        let kinds = patch["status"]["conditions"].as_array().unwrap().clone();
        (patch["status"].get("reason").is_some(), kinds.iter().any(|c| c["type"] == "DisruptionTarget"))
    };
    assert_eq!(told(Stage::Alive), (false, false));
    assert_eq!(told(Stage::Stopped), (true, true));
}

#[test]
fn a_final_phase_is_never_ready_and_a_refusal_keeps_what_is_known() {
    let refused = json!({"phase": "Failed", "reason": "OutOfcpu", "message": "Pod was rejected: no"});
    let api = object(
        json!({"phase": "Pending", "qosClass": "BestEffort", "conditions": [condition("PodScheduled", "True")]}),
    );
    let Some((Write::Patch(patch), Urgency::Now)) = decide(&api, &local(refused, Stage::Finished), None) else {
        panic!()
    };
    let after = patched(&api, &patch).status.unwrap();
    assert_eq!((after.phase.as_deref(), after.reason.as_deref()), (Some("Failed"), Some("OutOfcpu")));
    assert_eq!(after.conditions.unwrap()[0].type_, "PodScheduled");
    let mut wrong = ended("Failed", 1);
    wrong["conditions"][0] = condition("Ready", "True");
    let Some((Write::Patch(patch), _)) = decide(&object(running()), &local(wrong, Stage::Stopped), None) else {
        panic!()
    };
    let after = patched(&object(running()), &patch).status.unwrap();
    let ready = after.conditions.unwrap().into_iter().find(|c| c.type_ == "Ready").unwrap();
    assert_eq!((ready.status.as_str(), ready.reason.as_deref()), ("False", Some("PodFailed")));
}

#[test]
fn a_deletion_is_completed_when_all_is_over_on_both_sides_and_never_for_a_mirror() {
    let mut api = object(ended("Failed", 137));
    let finished = local(ended("Failed", 137), Stage::Finished);
    assert_eq!(decide(&api, &finished, None), None, "nobody deleted it");
    api.metadata.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH));
    assert_eq!(decide(&api, &local(ended("Failed", 137), Stage::Stopped), None), None, "its volumes are still there");
    assert_eq!(decide(&api, &finished, None), Some((Write::Delete, Urgency::Now)));
    api.metadata.annotations = Some([(super::super::api::HASH_OF_MIRROR.to_owned(), "h".to_owned())].into());
    assert_eq!(decide(&api, &finished, None), None);
}

#[test]
fn what_the_server_does_not_keep_is_told_once_and_holds_up_no_deletion() {
    let mut api = object(ended("Failed", 137));
    api.metadata.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH));
    let mut status = ended("Failed", 137);
    status["observedGeneration"] = json!(2);
    let finished = local(status.clone(), Stage::Finished);
    assert!(matches!(decide(&api, &finished, None), Some((Write::Patch(_), _))), "it is told");
    // The server answers without the field.
    let unkept = Unkept::of(told(&api, &finished), &api).expect("it took over less");
    assert_eq!(decide(&api, &finished, Some(&unkept)), Some((Write::Delete, Urgency::Now)));
    // What is new is told all the same.
    status["podIP"] = json!("10.0.0.9");
    let decided = decide(&api, &local(status, Stage::Finished), Some(&unkept));
    assert!(matches!(decided, Some((Write::Patch(_), _))), "{decided:?}");
    // One that takes over all of it leaves nothing to remember.
    let mut kept = api.clone();
    kept.status.as_mut().unwrap().observed_generation = Some(2);
    assert!(Unkept::of(told(&api, &finished), &kept).is_none());
}
