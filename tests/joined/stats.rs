//! `/stats/summary` of a node at work, beside what the work is known to take.

use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

use crate::cluster::{Cluster, Node, NodeOptions, Space};
use crate::support::{PATIENCE, eventually_within, skipped};

/// One pod for each thing that is counted; each does what its name says and then nothing else.
const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: spin}
spec:
  nodeSelector: {wasilet.dev/test: SPACE}
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: "test/spin:v1", resources: {limits: {cpu: 300m}}}]
---
apiVersion: v1
kind: Pod
metadata: {name: grow}
spec:
  nodeSelector: {wasilet.dev/test: SPACE}
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: "test/grow:v1", args: ["10", "100"], resources: {limits: {memory: 256Mi}}}]
---
apiVersion: v1
kind: Pod
metadata: {name: fill}
spec:
  nodeSelector: {wasilet.dev/test: SPACE}
  terminationGracePeriodSeconds: 1
  containers:
  - {name: own, image: "test/fill:v1", args: [/tmp/fill, "24"]}
  - {name: volume, image: "test/fill:v1", args: [/data/fill, "40"], volumeMounts: [{name: data, mountPath: /data}]}
  volumes: [{name: data, emptyDir: {}}]
---
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  nodeSelector: {wasilet.dev/test: SPACE}
  terminationGracePeriodSeconds: 1
  initContainers:
  - {name: page, image: "test/init:v1", args: [/usr/share/nginx/html/index.html, TEXT], volumeMounts: [{name: pages, mountPath: /usr/share/nginx/html}]}
  containers:
  - {name: main, image: "test/web:v1", ports: [{containerPort: 80}], volumeMounts: [{name: pages, mountPath: /usr/share/nginx/html}]}
  volumes: [{name: pages, emptyDir: {}}]
"#;

/// Bytes of the page, and how often it is fetched.
const PAGE: usize = 100_000;
const FETCHES: u32 = 40;
const MIB: f64 = 1_048_576.0;

fn summary(space: &Space<'_>, node: &Node<'_>) -> Value {
    let path = format!("/api/v1/nodes/{}/proxy/stats/summary", node.name());
    serde_json::from_str(&space.ok(&["get", "--raw", &path])).expect("a summary")
}

fn named(list: &Value, is: impl Fn(&Value) -> bool) -> &Value {
    list.as_array().and_then(|all| all.iter().find(|one| is(one))).unwrap_or(&Value::Null)
}

fn pod<'a>(summary: &'a Value, name: &str) -> &'a Value {
    named(&summary["pods"], |pod| pod["podRef"]["name"] == name)
}

fn part<'a>(of: &'a Value, list: &str, name: &str) -> &'a Value {
    named(&of[list], |one| one["name"] == name)
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}

/// What is counted, by name, with what it should be: at least and at most.
fn figures(summary: &Value, network: (f64, f64)) -> Vec<(&'static str, f64, f64, f64)> {
    let main = |name| part(pod(summary, name), "containers", "main");
    let fill = pod(summary, "fill");
    let (own, volume) = (part(fill, "containers", "own"), part(fill, "containers", "volume"));
    let memory = number(&main("grow")["memory"]["workingSetBytes"]);
    let data = number(&part(fill, "volume", "data")["usedBytes"]);
    let sent = |direction: &str| number(&pod(summary, "web")["network"][direction]);
    // Blocks of a file system are what files take, so a little more than their bytes; a guest's program and its stack
    // come to its memory.
    vec![
        ("nanocores of a pod at its limit of 300m", number(&main("spin")["cpu"]["usageNanoCores"]) / 1e9, 0.27, 0.33),
        ("and of its pod", number(&pod(summary, "spin")["cpu"]["usageNanoCores"]) / 1e9, 0.27, 0.33),
        ("memory of a guest that holds 100 MiB", memory / MIB, 100.0, 106.0),
        (
            "what is left below its limit",
            (number(&main("grow")["memory"]["availableBytes"]) + memory) / MIB,
            256.0,
            256.0,
        ),
        ("a file of 24 MiB in the container", number(&own["rootfs"]["usedBytes"]) / MIB, 24.0, 24.5),
        ("nothing in the other's", number(&volume["rootfs"]["usedBytes"]) / MIB, 0.0, 0.5),
        ("a file of 40 MiB in the volume", data / MIB, 40.0, 40.5),
        ("both, and the logs, are the pod's", number(&fill["ephemeral-storage"]["usedBytes"]) / MIB, 64.0, 65.0),
        // Each request and each answer has its head too.
        ("bytes sent", sent("txBytes"), network.1, network.1 * 1.03),
        ("bytes received", sent("rxBytes"), network.0, network.0 + f64::from(FETCHES) * 400.0),
    ]
}

#[test]
fn the_summary_of_a_node_at_work_agrees_with_what_the_work_takes() {
    let space = Cluster::shared().space("stats");
    if space.cluster().try_plane().is_none() {
        skipped("the node must have its machine for itself");
        return;
    }
    let node = space.node(NodeOptions { images: &["spin", "grow", "fill", "web", "init"], ..NodeOptions::default() });
    space.apply(&PODS.replace("TEXT", &"x".repeat(PAGE - 1)));
    for name in ["spin", "grow", "fill", "web"] {
        space.wait_ready(name);
    }
    let web: Pod = space.wait_ready("web");
    let url = format!("http://{}/", web.status.and_then(|status| status.pod_ip).expect("an address"));
    for _ in 0..FETCHES {
        let answer = space.host("curl", &["--silent", "--fail", "--max-time", "20", &url]);
        assert_eq!((answer.code, answer.stdout.len()), (Some(0), PAGE), "{}", answer.stderr);
    }
    // At least what curl asks: `GET / HTTP/1.1` and its fields.
    let network = (f64::from(FETCHES) * 60.0, f64::from(FETCHES) * PAGE as f64);
    // Disks are looked at once a minute: the files may be there just after one look.
    let last = eventually_within(3 * PATIENCE, "the figures agree", || {
        let summary = summary(&space, &node);
        let figures = figures(&summary, network);
        let wrong: Vec<_> = figures.iter().filter(|(_, is, least, most)| !(least..=most).contains(&is)).collect();
        if wrong.is_empty() { Ok(figures) } else { Err(format!("{wrong:#?}")) }
    });
    for (what, is, least, most) in last {
        println!("{what}: {is} of {least}..{most}");
    }
    // The node has all of it: the agent and its guests are what runs here.
    let summary = summary(&space, &node);
    let all = part(&summary["node"], "systemContainers", "pods");
    let used = number(&all["memory"]["workingSetBytes"]) / MIB;
    assert!((100.0..160.0).contains(&used), "all pods: {used} MiB");
    let total = |pod: &Value| number(&pod["cpu"]["usageCoreNanoSeconds"]);
    let pods: f64 = summary["pods"].as_array().into_iter().flatten().map(total).sum();
    let (all, process) = (total(all), node.cpu_seconds() * 1e9);
    assert!((all / pods - 1.0).abs() < 0.01, "the pods together: {all} and {pods}");
    assert!(pods < process * 1.02, "no more than the process: {pods} of {process}");
}
