//! A node of a real cluster beside kwok, which runs nothing and so is the floor that the API server sets.
//!
//! One control plane, one client, the same pods on both: bound by `spec.nodeName`, so that no scheduler's time is in the
//! figures. A latency runs from the call that creates the pod to the watch event that says it is Ready. The client runs
//! beside the API server, in the network of the test cluster (this program again, as `client`), and has no limit of
//! requests of its own.
//!
//! `WASILET_BENCH_MANY=1` adds 5,000 pods at once, probes on each tenth; that takes minutes.

#![allow(clippy::unwrap_used, reason = "a benchmark that meets an error it did not expect has failed")]

#[allow(dead_code, unused_imports, reason = "the harness of the tests; a benchmark needs a part of it")]
#[path = "../tests/cluster/mod.rs"]
mod cluster;
#[path = "common/report.rs"]
#[allow(dead_code, reason = "shared by the benchmarks")]
mod report;
#[allow(dead_code, reason = "the harness of the tests; a benchmark needs a part of it")]
#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, PostParams, WatchEvent, WatchParams};
use kube::{Api, Client};

use cluster::{At, Cluster, Extra, LONG, Node, NodeOptions, is_ready};

/// Pods one after the other.
const ONE_BY_ONE: usize = 100;
/// Pods at once.
const BURST: usize = 1000;
/// Bursts of each, in turns: the machine is not as fast at one time as at another.
const PAIRS: usize = 3;
/// Whose CPU is counted, as the kernel cuts their names.
const PROCESSES: [&str; 6] = ["etcd", "kube-apiserver", "kube-controller", "kube-scheduler", "kwok", "wasilet"];
/// Calls that the client has under way in a burst.
const IN_FLIGHT: usize = 32;
/// What the node is left alone for before its idle cost is taken, and while it is.
const IDLE: Duration = Duration::from_secs(20);
/// What the Events of a burst take to be written.
const EVENTS: Duration = Duration::from_secs(75);
/// What controllers and the API server take to be done with the pods of the part before: each part begins on a control plane
/// that has come to rest, the peer's and ours.
const SETTLE: Duration = Duration::from_secs(10);
/// The peer's node.
const KWOK: &str = "kwok";

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if let [_, first, kubeconfig, node, count, mode] = args.as_slice()
        && first == "client"
    {
        return client(Path::new(kubeconfig), node, count.parse().unwrap(), mode);
    }
    // The controller-manager takes the flag of one family or that of both.
    let both_families = Path::new("/proc/net/if_inet6").exists();
    let mask = if both_families { "--node-cidr-mask-size-ipv4=18" } else { "--node-cidr-mask-size=18" };
    let cluster = Cluster::own(Extra {
        controller_manager: vec![mask.to_owned()],
        api_server: ["--max-requests-inflight=2000", "--max-mutating-requests-inflight=1000"]
            .map(str::to_owned)
            .to_vec(),
    });
    let Some(cluster) = cluster else { return };
    binary_size();
    let many = std::env::var_os("WASILET_BENCH_MANY").is_some();
    let space = cluster.space("bench");
    let kubelet = "maxPods: 11000";
    let node =
        Node::prepare(&cluster, space.name(), NodeOptions { images: &["sleeper"], kubelet, ..NodeOptions::default() });
    let begin = Instant::now();
    node.run();
    node.wait_ready();
    let seconds = begin.elapsed().as_secs_f64();
    report::target("start of the agent to node Ready", "<= 1 s", &format!("{seconds:.2} s"), seconds <= 1.0);
    let agent = Agent::find(&node.root());
    std::thread::sleep(IDLE);
    let mib = agent.pss_kib() / 1024.0;
    report::target("agent alone, joined, idle", "<= 40 MiB PSS", &format!("{mib:.1} MiB"), mib <= 40.0);

    let kwok = start_kwok(&cluster);
    let floor = one_by_one(&cluster, KWOK);
    drop(kwok);
    let ours = one_by_one(&cluster, node.name());
    let ratio = ours.median / floor.median;
    report::target(
        "create -> Ready p50, image compiled",
        "<= 2x kwok",
        &format!(
            "{:.1} ms (p99 {:.1}); kwok {:.1} ms (p99 {:.1}); {ratio:.2}x",
            ours.median, ours.p99, floor.median, floor.p99
        ),
        ratio <= 2.0,
    );
    writes(&cluster, &node);

    // What the pods one by one took is given back in the moments after.
    std::thread::sleep(SETTLE);
    let before = agent.pss_kib();
    let mut pairs = Vec::new();
    for turn in 1..=PAIRS {
        let kwok = start_kwok(&cluster);
        let floor = burst(&cluster, KWOK, BURST, "burst");
        drop(kwok);
        let ours = burst(&cluster, node.name(), BURST, if turn == PAIRS { "keep" } else { "burst" });
        if turn < PAIRS {
            // What is still to be written of it is not the peer's burden.
            std::thread::sleep(EVENTS);
        }
        pairs.push((ours, floor));
    }
    pairs.sort_by(|(a, b), (c, d)| (a.rate / b.rate).total_cmp(&(c.rate / d.rate)));
    let ratios = pairs.iter().map(|(ours, floor)| format!("{:.2}x", ours.rate / floor.rate)).collect::<Vec<_>>();
    let (ours, floor) = &pairs[PAIRS / 2];
    let ratio = ours.rate / floor.rate;
    let qps = configured_qps(&cluster, node.name());
    report::target(
        &format!("burst of {BURST} pods"),
        ">= 0.8x kwok's rate",
        &format!(
            "{:.0} pods/s; kwok {:.0} pods/s; {ratio:.2}x (the median of {}; node's client: {qps})",
            ours.rate,
            floor.rate,
            ratios.join(", ")
        ),
        ratio >= 0.8,
    );
    report::figure(
        "CPU of that burst, ms a pod",
        &format!("{}; with kwok: {}", ours.cpu.join(", "), floor.cpu.join(", ")),
    );
    std::thread::sleep(Duration::from_secs(5));
    let each = (agent.pss_kib() - before) / BURST as f64;
    report::figure(&format!("memory per pod of a cluster at {BURST}"), &format!("{each:.0} KiB"));
    // It is not idle before it has written the burst's Events, 50 a second (`eventRecordQPS`).
    std::thread::sleep(EVENTS);
    let cpu = agent.cpu_share(IDLE) * 100.0;
    report::target(&format!("idle CPU at {BURST} pods"), "<= 0.5 % of a core", &format!("{cpu:.2} %"), cpu <= 0.5);
    if many {
        let rate = burst(&cluster, node.name(), 4000, "probes").rate;
        let each = (agent.pss_kib() - before) / (BURST + 4000) as f64;
        report::target(
            "pods through the API server",
            "5,000 with probes on 1 in 10",
            &format!("{} Ready, the last 4,000 at {rate:.0} pods/s, {each:.0} KiB each", BURST + 4000),
            true,
        );
    } else {
        println!("pods through the API server: not measured (WASILET_BENCH_MANY=1 does)");
    }
}

/// The agent's process, seen from here.
struct Agent(PathBuf);

impl Agent {
    /// The one that runs on this root directory.
    fn find(root: &Path) -> Self {
        let root = root.to_string_lossy().into_owned();
        let is_it = |dir: &Path| {
            let line = std::fs::read(dir.join("cmdline")).unwrap_or_default();
            let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
            words.first().is_some_and(|program| program.ends_with(b"wasilet")) && words.contains(&root.as_bytes())
        };
        let processes = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
        Self(processes.into_iter().find(|dir| is_it(dir)).expect("the agent runs"))
    }

    fn pss_kib(&self) -> f64 {
        let rollup = std::fs::read_to_string(self.0.join("smaps_rollup")).unwrap();
        let line = rollup.lines().find(|line| line.starts_with("Pss:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// How much of a core it takes, over this time.
    fn cpu_share(&self, over: Duration) -> f64 {
        report::cpu_share(&self.0, over)
    }
}

fn binary_size() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let stripped = Command::new("strip").args(["-o"]).arg(file.path()).arg(env!("CARGO_BIN_EXE_wasilet")).status();
    if !stripped.is_ok_and(|status| status.success()) {
        return println!("binary, stripped: not measured, there is no strip (binutils)");
    }
    let megabytes = std::fs::metadata(file.path()).unwrap().len() as f64 / 1e6;
    report::target("agent's binary, stripped", "<= 60 MB", &format!("{megabytes:.1} MB"), megabytes <= 60.0);
}

/// kwok and its node, which it keeps Ready and whose pods it says are. It watches all pods, also those of other nodes: it runs
/// while it is measured, and ends with what is returned.
fn start_kwok(cluster: &Cluster) -> cluster::Daemon {
    let script = Command::new(support::repository().join("scripts/kwok.sh")).stderr(Stdio::inherit()).output().unwrap();
    assert!(script.status.success(), "scripts/kwok.sh failed");
    let binary = PathBuf::from(support::text(&script.stdout).trim());
    let manifest = format!(
        "{{apiVersion: v1, kind: Node, metadata: {{name: {KWOK}, annotations: {{kwok.x-k8s.io/node: fake}}, labels: {{type: kwok}}}}}}"
    );
    cluster.kubectl_with(&["apply", "--filename", "-"], &manifest);
    let kubeconfig = format!("--kubeconfig={}", cluster.kubeconfig().display());
    let stages = format!("--config={}", binary.with_file_name("stages.yaml").display());
    let args = [
        &kubeconfig,
        &stages,
        "--manage-all-nodes=false",
        "--manage-nodes-with-label-selector=type=kwok",
        "--cidr=10.250.0.1/16",
    ];
    let args = args.map(str::to_owned);
    let log = cluster.logs().join("kwok.log");
    let process = cluster.sandbox().daemon(At::Host, &log, &binary, &args, &[]);
    cluster.wait_node(KWOK, "True");
    process
}

struct Latency {
    median: f64,
    p99: f64,
}

/// Milliseconds from creation to readiness.
fn one_by_one(cluster: &Cluster, node: &str) -> Latency {
    let answer = run_client(cluster, node, ONE_BY_ONE, "one-by-one");
    let mut times: Vec<f64> = answer.lines().map(|line| line.parse().expect("a time")).collect();
    times.sort_by(f64::total_cmp);
    Latency { median: times[times.len() / 2], p99: times[times.len() * 99 / 100] }
}

/// From the first call to the last pod's readiness.
struct Burst {
    /// Pods a second.
    rate: f64,
    /// What each process took of the CPU, in milliseconds a pod.
    cpu: Vec<String>,
}

fn burst(cluster: &Cluster, node: &str, pods: usize, mode: &str) -> Burst {
    let answer = run_client(cluster, node, pods, mode);
    let mut lines = answer.lines();
    let seconds: f64 = lines.next().and_then(|line| line.parse().ok()).expect("seconds");
    Burst { rate: pods as f64 / seconds, cpu: lines.map(str::to_owned).collect() }
}

/// Milliseconds of CPU that the processes of a cluster have taken so far, by name.
fn cpu_taken() -> BTreeMap<&'static str, f64> {
    let mut taken: BTreeMap<&'static str, f64> = BTreeMap::new();
    for process in std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path()) {
        let name = std::fs::read_to_string(process.join("comm")).unwrap_or_default();
        if let Some(known) = PROCESSES.iter().find(|known| **known == name.trim()) {
            *taken.entry(known).or_default() += report::cpu_seconds(&process) * 1e3;
        }
    }
    taken
}

fn run_client(cluster: &Cluster, node: &str, count: usize, mode: &str) -> String {
    std::thread::sleep(SETTLE);
    let mut command = cluster.sandbox().command(At::Host, std::env::current_exe().unwrap());
    command.arg("client").arg(cluster.kubeconfig()).args([node, &count.to_string(), mode]).stderr(Stdio::inherit());
    let output = command.output().unwrap();
    assert!(output.status.success(), "the client failed");
    support::text(&output.stdout)
}

/// What the node wrote for the pods that came and went one by one, by its own count in the audit log.
fn writes(cluster: &Cluster, node: &Node<'_>) {
    let user = format!("system:node:{}", node.name());
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for line in cluster.plane().audit_log().lines() {
        let Ok(event) = serde_json::from_str::<serde_json::Value>(line) else { continue };
        let object = &event["objectRef"];
        if event["user"]["username"] == user.as_str() && object["namespace"] == "default" {
            let part = object["subresource"].as_str().map(|part| format!("/{part}")).unwrap_or_default();
            let what = [&event["verb"], &object["resource"]].map(|word| word.as_str().unwrap_or_default()).join(" ");
            *counts.entry(what + &part).or_default() += 1;
        }
    }
    let of = |what: &str| counts.get(what).copied().unwrap_or_default() as f64 / ONE_BY_ONE as f64;
    let (statuses, all) = (of("patch pods/status"), counts.values().sum::<usize>() as f64 / ONE_BY_ONE as f64);
    // A kubelet: Pending, Ready, not Ready, ended, and sometimes one between.
    report::target(
        "status writes per pod started and stopped",
        "<= kubelet's (4 to 5)",
        &format!("{statuses:.2} ({all:.2} writes with events, tokens and the deletion)"),
        statuses <= 5.0,
    );
}

/// The limit of the node's client as it is in force.
fn configured_qps(cluster: &Cluster, node: &str) -> String {
    let configz = cluster.kubectl_ok(&["get", "--raw", &format!("/api/v1/nodes/{node}/proxy/configz")]);
    let value: serde_json::Value = serde_json::from_str(&configz).unwrap_or_default();
    match value["kubeletconfig"]["kubeAPIQPS"].as_f64() {
        Some(qps) if qps > 0.0 => format!("{qps} requests/s"),
        _ => "no limit of its own".to_owned(),
    }
}

fn client(kubeconfig: &Path, node: &str, count: usize, mode: &str) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let config = kube::config::Kubeconfig::read_from(kubeconfig).unwrap();
        let config = kube::Config::from_custom_kubeconfig(config, &kube::config::KubeConfigOptions::default()).await;
        let client = Client::try_from(config.unwrap()).unwrap();
        match mode {
            "one-by-one" => each_alone(client, node, count).await,
            mode => all_at_once(client, node, count, mode).await,
        }
    });
}

fn pod(name: &str, node: &str, mode: &str, number: usize) -> Pod {
    let probe = if mode == "probes" && number.is_multiple_of(10) {
        serde_json::json!({"exec": {"command": ["sleeper", "--help"]}, "periodSeconds": 30})
    } else {
        serde_json::Value::Null
    };
    serde_json::from_value(serde_json::json!({
        "metadata": {"name": name, "labels": {"of": node}},
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 0,
            "tolerations": [{"operator": "Exists"}],
            "containers": [{"name": "main", "image": "test/sleeper:v1", "livenessProbe": probe}],
        },
    }))
    .unwrap()
}

/// Creates pods one after the other; prints what each took, in milliseconds.
async fn each_alone(client: Client, node: &str, count: usize) {
    let pods: Api<Pod> = Api::default_namespaced(client);
    let params = WatchParams::default().labels(&format!("of={node}"));
    let mut changes = pods.watch(&params, "0").await.unwrap().boxed();
    for number in 0..=count {
        let name = format!("{node}-alone-{number}");
        let pod = pod(&name, node, "one-by-one", number);
        let begin = Instant::now();
        pods.create(&PostParams::default(), &pod).await.unwrap();
        let mut ready = None;
        while let Some(event) = changes.try_next().await.unwrap() {
            match event {
                WatchEvent::Modified(pod) | WatchEvent::Added(pod)
                    if ready.is_none() && pod.metadata.name.as_ref() == Some(&name) && is_ready(&pod) =>
                {
                    ready = Some(begin.elapsed());
                    pods.delete(&name, &DeleteParams::default().grace_period(0)).await.unwrap();
                }
                WatchEvent::Deleted(pod) if pod.metadata.name.as_ref() == Some(&name) => break,
                _ => {}
            }
        }
        // The first one finds cold caches on every side.
        if number > 0 {
            println!("{:.3}", ready.expect("it was Ready").as_secs_f64() * 1e3);
        }
    }
}

/// Creates pods all at once; prints the seconds until the last is Ready. `keep` and `probes` leave them, `probes` puts one on
/// each tenth.
async fn all_at_once(client: Client, node: &str, count: usize, mode: &str) {
    let pods: Api<Pod> = Api::default_namespaced(client);
    let prefix = format!("{node}-{mode}-");
    let list = pods.list(&ListParams::default().limit(1)).await.unwrap();
    let params = WatchParams::default().labels(&format!("of={node}")).timeout(290);
    let mut version = list.metadata.resource_version.unwrap_or_default();
    let mut changes = pods.watch(&params, &version).await.unwrap().boxed();
    let (begin, before) = (Instant::now(), cpu_taken());
    let creating = {
        let (pods, node, prefix, mode) = (pods.clone(), node.to_owned(), prefix.clone(), mode.to_owned());
        tokio::spawn(async move {
            let calls = (0..count).map(|number| {
                let pod = pod(&format!("{prefix}{number}"), &node, &mode, number);
                let pods = pods.clone();
                async move { pods.create(&PostParams::default(), &pod).await.map(drop) }
            });
            futures::stream::iter(calls).buffer_unordered(IN_FLIGHT).try_collect::<Vec<()>>().await.unwrap();
        })
    };
    let mut ready: HashSet<String> = HashSet::new();
    while ready.len() < count {
        let next = tokio::time::timeout(LONG, changes.next()).await;
        match next.unwrap_or_else(|_| panic!("only {} of {count} pods are Ready", ready.len())) {
            Some(Ok(WatchEvent::Added(pod) | WatchEvent::Modified(pod))) => {
                version = pod.metadata.resource_version.clone().unwrap_or(version);
                let name = pod.metadata.name.clone().unwrap_or_default();
                if name.starts_with(&prefix) && is_ready(&pod) {
                    ready.insert(name);
                }
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => panic!("the watch failed: {error}"),
            None => changes = pods.watch(&params, &version).await.unwrap().boxed(),
        }
    }
    let (seconds, after) = (begin.elapsed().as_secs_f64(), cpu_taken());
    creating.await.unwrap();
    if mode == "burst" {
        let of = ListParams::default().labels(&format!("of={node}"));
        pods.delete_collection(&DeleteParams::default().grace_period(0), &of).await.unwrap();
        while !pods.list_metadata(&of.clone().limit(1)).await.unwrap().items.is_empty() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    println!("{seconds:.4}");
    for (name, taken) in after {
        println!("{name} {:.1}", (taken - before.get(name).unwrap_or(&0.0)) / count as f64);
    }
}
