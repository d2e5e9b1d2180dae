//! `kubectl patch --subresource resize`: a running container gets other memory and CPU, or waits for room, and says so.

use k8s_openapi::api::core::v1::{Pod, PodCondition};

use super::kubectl::tools;
use crate::cluster::{Cluster, NodeOptions, Space};
use crate::support::{container, eventually};

/// The API server lets pods of Linux nodes alone be resized.
const LINUX: &str = ", kubernetes.io/os: linux";

fn resize(space: &Space<'_>, pod: &str, patch: &str) {
    space.ok(&["patch", "pod", pod, "--subresource", "resize", "--patch", patch]);
}

fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == kind)
}

/// Whether the container runs under these, has them allocated, and nothing is under way.
fn has(pod: &Pod, cpu: &str, memory: &str) -> bool {
    let status = container(pod, "main");
    let of = |list: Option<&std::collections::BTreeMap<String, _>>| {
        let text = |name: &str| {
            list.and_then(|list| list.get(name))
                .map(|q: &k8s_openapi::apimachinery::pkg::api::resource::Quantity| q.0.clone())
        };
        (text("cpu"), text("memory"))
    };
    let wanted = (Some(cpu.to_owned()), Some(memory.to_owned()));
    let resources = status.resources.clone().unwrap_or_default();
    of(resources.limits.as_ref()) == wanted
        && of(resources.requests.as_ref()) == wanted
        && of(status.allocated_resources.as_ref()) == wanted
        && condition(pod, "PodResizePending").is_none()
        && condition(pod, "PodResizeInProgress").is_none()
        && pod.status.as_ref().and_then(|status| status.observed_generation) == pod.metadata.generation
}

fn main_resources(cpu: &str, memory: &str) -> String {
    let list = format!("{{\"cpu\": \"{cpu}\", \"memory\": \"{memory}\"}}");
    format!(
        "{{\"spec\": {{\"containers\": [{{\"name\": \"main\", \"resources\": {{\"limits\": {list}, \"requests\": {list}}}}}]}}}}"
    )
}

#[test]
fn a_running_container_is_resized_in_place_or_restarted_or_refused() {
    let cluster = Cluster::shared();
    if cluster.lacks(34, "the generation that a status is about") {
        return;
    }
    let space = cluster.space("resize");
    let _node = space.node(NodeOptions { tools: &["sleeper", "cat"], labels: LINUX, ..NodeOptions::default() });
    let more = "    resizePolicy: [{resourceName: cpu, restartPolicy: NotRequired}, {resourceName: memory, restartPolicy: RestartContainer}]\n    resources: {limits: {cpu: 100m, memory: 64Mi}, requests: {cpu: 100m, memory: 64Mi}}";
    space.apply(&tools("pod", more));
    space.apply(&tools(
        "still",
        "    resources: {limits: {cpu: 100m, memory: 64Mi}, requests: {cpu: 100m, memory: 64Mi}}",
    ));
    let limit = |pod: &str, file: &str| {
        space.ok(&["exec", pod, "--", "/bin/cat", &format!("/sys/fs/cgroup/{file}")]).trim().to_owned()
    };
    let shows = |pod: &str, file: &str, expected: &str| {
        eventually("the container sees its limits", || {
            let seen = limit(pod, file);
            if seen == expected { Ok(()) } else { Err(format!("{file}: {seen}")) }
        });
    };
    space.wait_ready("pod");
    space.wait_ready("still");
    shows("pod", "cpu.max", "10000 100000");
    shows("pod", "memory.max", "67108864");

    resize(&space, "pod", &main_resources("300m", "64Mi"));
    let pod = space.wait_pod("pod", "has its CPU", |pod| has(pod, "300m", "64Mi"));
    assert_eq!(container(&pod, "main").restart_count, 0);
    shows("pod", "cpu.max", "30000 100000");
    space.wait_event("pod", "ResizeCompleted", &["\"cpu\":\"300m\"", "\"generation\":2"]);

    resize(&space, "pod", &main_resources("300m", "96Mi"));
    let pod = space.wait_pod("pod", "was restarted for its memory", |pod| {
        has(pod, "300m", "96Mi") && container(pod, "main").restart_count == 1
    });
    assert!(container(&pod, "main").ready);
    shows("pod", "memory.max", "100663296");
    space.wait_event("pod", "Killing", &["Container main resize requires restart"]);

    // Below what it uses: an error that is taken back.
    resize(&space, "still", &main_resources("100m", "10Ki"));
    let still = space.wait_pod("still", "cannot shrink", |pod| {
        condition(pod, "PodResizeInProgress").is_some_and(|condition| condition.reason.as_deref() == Some("Error"))
    });
    let message = condition(&still, "PodResizeInProgress").and_then(|condition| condition.message.clone()).unwrap();
    assert!(message.contains("memory limit (10240) below current usage ("), "{message}");
    resize(&space, "still", &main_resources("100m", "64Mi"));
    let still = space.wait_pod("still", "is as it was", |pod| has(pod, "100m", "64Mi"));
    assert_eq!(container(&still, "main").restart_count, 0);
}

#[test]
fn a_resize_waits_for_room() {
    let cluster = Cluster::shared();
    if cluster.lacks(34, "the generation that a status is about") {
        return;
    }
    let space = cluster.space("deferred");
    let node = space.node(NodeOptions { tools: &["sleeper", "cat"], labels: LINUX, ..NodeOptions::default() });
    let milli = std::thread::available_parallelism().map_or(1, usize::from) * 1000;
    let half = format!("{}m", milli / 2 - 50);
    for name in ["one", "two"] {
        space.apply(&tools(
            name,
            &format!(
                "    resources: {{limits: {{cpu: {half}, memory: 64Mi}}, requests: {{cpu: {half}, memory: 64Mi}}}}"
            ),
        ));
        space.wait_ready(name);
    }
    let more = format!("{}m", milli / 2 + 100);
    resize(&space, "one", &main_resources(&more, "64Mi"));
    let one = space.wait_pod("one", "waits", |pod| condition(pod, "PodResizePending").is_some());
    let pending = condition(&one, "PodResizePending").unwrap();
    assert_eq!(pending.reason.as_deref(), Some("Deferred"));
    let message = pending.message.as_deref().unwrap_or_default();
    assert!(message.starts_with("Node didn't have enough resource: cpu, requested: "), "{message}");
    assert_eq!(container(&one, "main").allocated_resources.as_ref().unwrap()["cpu"].0, half);
    space.wait_event("one", "ResizeDeferred", &["Pod resize Deferred"]);

    // The agent forgets nothing of it.
    node.stop();
    node.run();
    space.wait_pod("one", "still waits", |pod| {
        container(pod, "main").restart_count == 1 && condition(pod, "PodResizePending").is_some()
    });
    space.ok(&["delete", "pod", "two", "--timeout=60s"]);
    space.wait_pod("one", "has room", |pod| has(pod, &more, "64Mi"));
}
