//! CPU and memory of a real node: what the containers of a pod share, what pods get of each other, what is accounted.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

use super::kubectl::tools;
use crate::cluster::{Cluster, Node, NodeOptions, Space};
use crate::support::{container, eventually};

/// The API server lets pods of Linux nodes alone be resized.
const LINUX: &str = ", kubernetes.io/os: linux";

fn log_has(space: &Space<'_>, pod: &str, container: &str, words: &str) {
    eventually("the log says so", || {
        let log = space.kubectl(&["logs", pod, "--container", container]).stdout;
        if log.contains(words) { Ok(()) } else { Err(log) }
    });
}

#[test]
fn a_limit_of_the_pod_bounds_its_containers_together() {
    if Cluster::shared().lacks(34, "the limit of a pod") {
        return;
    }
    let space = Cluster::shared().space("together");
    let _node = space.node(NodeOptions { tools: &["sleeper", "grow", "cat"], labels: LINUX, ..NodeOptions::default() });
    let holder = r#"  - name: holder
    image: test/tools:v1
    command: [/bin/grow, "1", "40"]
  resources: {limits: {memory: 64Mi, cpu: "2"}, requests: {memory: 64Mi, cpu: 100m}}"#;
    space.apply(&tools("pod", holder));
    space.wait_ready("pod");
    log_has(&space, "pod", "holder", "holding 40 MiB");
    // Each has the pod's limit for itself; together they do not.
    let limit = space.ok(&["exec", "pod", "--container", "main", "--", "/bin/cat", "/sys/fs/cgroup/memory.max"]);
    assert_eq!(limit.trim(), "67108864");
    let grown = space.kubectl(&["exec", "pod", "--container", "main", "--", "/bin/grow", "1", "40"]);
    assert_eq!(grown.code, Some(137), "{}{}", grown.stdout, grown.stderr);
    assert!(grown.stdout.contains("10 MiB") && !grown.stdout.contains("30 MiB"), "{}", grown.stdout);
    let ended = |pod: &Pod| container(pod, "main").last_state.clone().and_then(|state| state.terminated);
    let pod = space.wait_pod("pod", "was restarted", |pod| ended(pod).is_some() && container(pod, "main").ready);
    let end = ended(&pod).expect("it was waited for");
    assert_eq!((end.exit_code, end.reason.as_deref()), (137, Some("OOMKilled")));
    assert_eq!(container(&pod, "holder").restart_count, 0, "the one that wanted more ends, no other");

    if Cluster::shared().lacks(36, "a resize of it") {
        return;
    }
    // Below what both use is refused, and more is there at once.
    let resize = |memory: &str| {
        let list = format!("{{\"memory\": \"{memory}\"}}");
        let patch = format!("{{\"spec\": {{\"resources\": {{\"limits\": {list}, \"requests\": {list}}}}}}}");
        space.ok(&["patch", "pod", "pod", "--subresource", "resize", "--patch", &patch]);
    };
    resize("16Mi");
    space.wait_event("pod", "ResizeError", &["attempting to set pod memory limit (16777216) below current usage ("]);
    resize("128Mi");
    space.wait_event("pod", "ResizeCompleted", &["\"generation\":3"]);
    let mut command = space.kubectl_command(&["exec", "pod", "--container", "main", "--", "/bin/grow", "1", "40"]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("kubectl starts");
    let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
    let held = lines.map_while(Result::ok).any(|line| line == "holding 40 MiB");
    let _ = child.kill();
    let _ = child.wait();
    assert!(held, "{}", space.dump("pod"));
}

/// Three pods that compute without end on one thread.
const SPINNERS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: small}
spec:
  nodeSelector: {wasilet.dev/test: SPACE}
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: test/spin:v1, resources: {requests: {cpu: 100m}}}
---
apiVersion: v1
kind: Pod
metadata: {name: large}
spec:
  nodeSelector: {wasilet.dev/test: SPACE}
  terminationGracePeriodSeconds: 1
  containers:
  - {name: one, image: test/spin:v1, resources: {requests: {cpu: 100m}}}
  - {name: two, image: test/spin:v1, resources: {requests: {cpu: 200m}}}
---
apiVersion: v1
kind: Pod
metadata: {name: bounded}
spec:
  nodeSelector: {wasilet.dev/test: SPACE}
  terminationGracePeriodSeconds: 1
  resources: {limits: {cpu: 200m}, requests: {cpu: 200m}}
  containers:
  - {name: one, image: test/spin:v1}
  - {name: two, image: test/spin:v1}
"#;

/// What each container has used, in seconds of CPU: `/stats/summary` of the node.
fn used(space: &Space<'_>, node: &Node<'_>) -> impl Fn(&str, &str) -> f64 {
    let summary = space.ok(&["get", "--raw", &format!("/api/v1/nodes/{}/proxy/stats/summary", node.name())]);
    let summary: Value = serde_json::from_str(&summary).expect("a summary");
    move |pod, name| {
        let list = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
        let pods = list(&summary, "pods").into_iter().filter(|stats| stats["podRef"]["name"] == pod);
        let containers = pods.flat_map(|stats| list(&stats, "containers"));
        let found = containers.into_iter().find(|stats| stats["name"] == name).expect("its container");
        found["cpu"]["usageCoreNanoSeconds"].as_f64().expect("a number") / 1e9
    }
}

const CONTAINERS: [(&str, &str); 5] =
    [("small", "main"), ("large", "one"), ("large", "two"), ("bounded", "one"), ("bounded", "two")];

/// Only times of the CPU are compared, and only over a window that is long in them: however busy the machine is, guests
/// share what the node gets of it.
#[test]
#[ignore = "measures CPU time, so nothing else may run: `make test` has a stage for it"]
fn spinning_pods_share_the_cpu_as_they_asked_and_all_of_it_is_accounted() {
    let space = Cluster::shared().space("shares");
    let node = space.node(NodeOptions { images: &["spin"], node: "guestThreads: 1", ..NodeOptions::default() });
    space.apply(SPINNERS);
    for pod in ["small", "large", "bounded"] {
        space.wait_ready(pod);
    }
    let began = std::time::Instant::now();
    let (outer, before, inner) = (node.cpu_seconds(), used(&space, &node), node.cpu_seconds());
    let delta = |now: &dyn Fn(&str, &str) -> f64, (pod, name): (&str, &str)| now(pod, name) - before(pod, name);
    // Looked at from outside: each question would cost the node itself time.
    eventually("they have run for long enough", || {
        let so_far = node.cpu_seconds() - inner;
        if so_far < 4.0 { Err(format!("{so_far} s of CPU")) } else { Ok(()) }
    });
    let (start, after, end) = (node.cpu_seconds(), used(&space, &node), node.cpu_seconds());
    let (at_least, at_most, wall) = (start - inner, end - outer, began.elapsed().as_secs_f64());
    let [small, one, two, first, second] = CONTAINERS.map(|container| delta(&after, container));
    let (large, bounded) = (one + two, first + second);
    let all = small + large + bounded;
    let seen = format!("{small} {one} {two} {first} {second} of {at_least}..{at_most} in {wall} s");
    println!("{seen}");
    assert!((large / small / 3.0 - 1.0).abs() < 0.1, "pods at 100m and 300m share 1:3: {seen}");
    assert!((two / one / 2.0 - 1.0).abs() < 0.1, "and the containers of one at 100m and 200m 1:2: {seen}");
    // A third is its share beside the others, a fifth of a core is its limit: it gets the lesser.
    let wanted = f64::min(0.2 * wall, all / 3.0);
    assert!(bounded < 0.22 * wall && bounded > 0.8 * wanted, "both together are held to 200m: {seen}");
    // Slices are coarse beside 20 ms in a period: neither is left out.
    assert!((0.4..2.5).contains(&(first / second)), "and share that: {seen}");
    // The process has used what its guests did, and little more.
    assert!(all < 1.01 * at_most + 0.02, "no more than the process used: {seen}");
    assert!(all > 0.95 * at_least, "no less than 95 % of it: {seen}");
}
