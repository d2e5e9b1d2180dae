//! In-place resize of running pods.

use super::*;
use crate::pod::allocation::{PendingReason, PendingResize};

fn pod(generation: i64, resources: Value, policy: Value) -> Pod {
    let metadata = json!({"name": "web", "namespace": "default", "uid": "u", "generation": generation});
    serde_json::from_value(json!({"metadata": metadata, "spec": {"restartPolicy": "Never", "containers": [
        {"name": "a", "image": "x:1", "resources": resources, "resizePolicy": policy}, {"name": "b", "image": "x:1"}]}}))
    .unwrap()
}

fn limits(cpu: &str, memory: &str) -> Value {
    json!({"limits": {"cpu": cpu, "memory": memory}, "requests": {"cpu": cpu, "memory": memory}})
}

fn condition(status: &PodStatus, kind: &str) -> Option<(String, String)> {
    let found = status.conditions.iter().flatten().find(|condition| condition.type_ == kind)?;
    Some((found.reason.clone().unwrap_or_default(), found.message.clone().unwrap_or_default()))
}

/// `limits.cpu limits.memory / requests.cpu requests.memory` that run, and what was allocated of memory.
fn shown(status: &PodStatus) -> String {
    let a = container(status, "a");
    let resources = a.resources.unwrap();
    let of = |list: &Option<std::collections::BTreeMap<String, _>>| -> String {
        let quantity = |name: &str| -> String {
            let found: Option<&k8s_openapi::apimachinery::pkg::api::resource::Quantity> =
                list.as_ref().and_then(|l| l.get(name));
            found.map_or_else(|| "-".to_owned(), |q| q.0.clone())
        };
        format!("{} {}", quantity("cpu"), quantity("memory"))
    };
    format!("{} / {} given {}", of(&resources.limits), of(&resources.requests), of(&a.allocated_resources))
}

async fn running(agent: &Agent, policy: Value) -> PodUid {
    let uid = PodUid::new("u").unwrap();
    agent.pool.update(uid.clone(), pod(1, limits("100m", "64Mi"), policy), None).await;
    seconds(2).await;
    assert_eq!(agent.phase(&uid), "Running");
    uid
}

#[tokio::test(start_paused = true)]
async fn a_guest_gets_other_limits_while_it_runs() {
    let world = World::new();
    let agent = world.agent();
    let uid = running(&agent, json!([])).await;
    agent.pool.update(uid.clone(), pod(2, limits("200m", "32Mi"), json!([])), None).await;
    seconds(1).await;
    assert!(agent.calls().ends_with("limit a 33554432 200 204"), "{}", agent.calls());
    let status = agent.status(&uid);
    assert_eq!(shown(&status), "200m 32Mi / 200m 32Mi given 200m 32Mi");
    assert_eq!((status.observed_generation, condition(&status, "PodResizeInProgress")), (Some(2), None));
    assert_eq!(container(&status, "a").restart_count, 0);
    assert!(agent.has_event(
        r#"ResizeStarted: Pod resize started: {"containers":[{"name":"a","resources":{"limits":{"cpu":"200m""#
    ));
    assert!(agent.has_event("ResizeCompleted: Pod resize completed: ") && agent.has_event(r#""generation":2}"#));
}

#[tokio::test(start_paused = true)]
async fn a_container_whose_policy_says_so_starts_anew_even_in_a_pod_that_never_restarts() {
    let world = World::new();
    let agent = world.agent();
    let restart = json!([{"resourceName": "cpu", "restartPolicy": "RestartContainer"}]);
    let uid = running(&agent, restart.clone()).await;
    agent.pool.update(uid.clone(), pod(2, limits("200m", "64Mi"), restart.clone()), None).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let status = agent.status(&uid);
    assert_eq!(condition(&status, "PodResizeInProgress"), Some((String::new(), String::new())));
    assert_eq!(shown(&status), "100m 64Mi / 100m 64Mi given 200m 64Mi", "it ends under what it had");
    seconds(3).await;
    let status = agent.status(&uid);
    assert_eq!(
        (agent.phase(&uid).as_str(), shown(&status).as_str()),
        ("Running", "200m 64Mi / 200m 64Mi given 200m 64Mi")
    );
    let restarts = (container(&status, "a").restart_count, container(&status, "b").restart_count);
    assert_eq!(restarts, (1, 0), "{} {:?}", agent.calls(), agent.events());
    assert_eq!(condition(&status, "PodResizeInProgress"), None);
    assert!(agent.has_event("Killing: Container a resize requires restart"), "{:?}", agent.events());
    agent.pool.update(uid.clone(), pod(3, limits("200m", "32Mi"), restart), None).await;
    seconds(3).await;
    assert_eq!(container(&agent.status(&uid), "a").restart_count, 1, "memory has no such policy");
}

#[tokio::test(start_paused = true)]
async fn a_limit_below_what_is_used_is_an_error_until_it_fits_or_is_taken_back() {
    let world = World::new();
    let agent = world.agent();
    let uid = running(&agent, json!([])).await;
    agent.sim.set_memory_bytes(50 << 20);
    agent.pool.update(uid.clone(), pod(2, limits("100m", "10Ki"), json!([])), None).await;
    seconds(1).await;
    let status = agent.status(&uid);
    let message = "cannot decrease memory limits: attempting to set container \"a\" memory limit (10240) below current usage (52428800)";
    assert_eq!(condition(&status, "PodResizeInProgress"), Some(("Error".to_owned(), message.to_owned())));
    assert_eq!(shown(&status), "100m 64Mi / 100m 64Mi given 100m 10Ki");
    assert!(!agent.calls().contains("limit a"), "{}", agent.calls());
    assert_eq!(agent.events().iter().filter(|event| event.starts_with("ResizeError: ")).count(), 1);
    agent.sim.set_memory_bytes(1 << 10);
    seconds(11).await;
    assert!(agent.calls().ends_with("limit a 10240 100 102"), "tried again: {}", agent.calls());
    assert_eq!(condition(&agent.status(&uid), "PodResizeInProgress"), None);
    agent.sim.set_memory_bytes(50 << 20);
    agent.pool.update(uid.clone(), pod(3, limits("100m", "5Ki"), json!([])), None).await;
    agent.pool.update(uid.clone(), pod(4, limits("100m", "64Mi"), json!([])), None).await;
    seconds(1).await;
    assert_eq!(shown(&agent.status(&uid)), "100m 64Mi / 100m 64Mi given 100m 64Mi");
    assert_eq!(condition(&agent.status(&uid), "PodResizeInProgress"), None);
}

#[tokio::test(start_paused = true)]
async fn a_resize_that_waits_says_so_and_changes_nothing() {
    let world = World::new();
    let agent = world.agent();
    let uid = running(&agent, json!([])).await;
    let mut same = pod(1, limits("100m", "64Mi"), json!([]));
    same.metadata.generation = Some(2);
    let waits = PendingResize {
        reason: PendingReason::Deferred,
        message: "no room".to_owned(),
        generation: 2,
        event: "Pod resize Deferred: {}".to_owned(),
    };
    for _ in 0..3 {
        agent.pool.update_resized(uid.clone(), same.clone().into(), None, Some(waits.clone())).await;
        seconds(1).await;
    }
    let status = agent.status(&uid);
    assert_eq!(condition(&status, "PodResizePending"), Some(("Deferred".to_owned(), "no room".to_owned())));
    assert_eq!(status.observed_generation, Some(2));
    assert_eq!(agent.events().iter().filter(|event| event.starts_with("ResizeDeferred: ")).count(), 1);
    agent.pool.update(uid.clone(), pod(2, limits("200m", "64Mi"), json!([])), None).await;
    seconds(1).await;
    let status = agent.status(&uid);
    assert_eq!(
        (condition(&status, "PodResizePending"), shown(&status).as_str()),
        (None, "200m 64Mi / 200m 64Mi given 200m 64Mi")
    );
}

#[tokio::test(start_paused = true)]
async fn the_next_agent_starts_containers_under_what_was_given() {
    let world = World::new();
    let first = world.agent();
    let uid = running(&first, json!([])).await;
    let mut bigger = pod(2, limits("200m", "64Mi"), json!([]));
    bigger.spec.as_mut().unwrap().restart_policy = Some("Always".to_owned());
    first.pool.update(uid.clone(), bigger.clone(), None).await;
    seconds(1).await;
    first.pool.shutdown(ShutdownMode::KeepPods(Duration::from_secs(5))).await;
    drop(first);
    let second = world.agent();
    let record = second.state.load().unwrap().pods.remove(0);
    assert_eq!(
        record.pod.spec.as_ref().unwrap().containers[0].resources,
        bigger.spec.as_ref().unwrap().containers[0].resources
    );
    second.pool.update(uid.clone(), bigger, None).await;
    seconds(2).await;
    assert_eq!(shown(&second.status(&uid)), "200m 64Mi / 200m 64Mi given 200m 64Mi");
}
