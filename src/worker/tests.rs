//! Whole pods in paused time: the worker, the real state, logs, volumes, events and statuses, and the simulator.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};
use serde_json::{Value, json};

use super::simulator::{Play, Simulator};
use super::*;
use crate::clock::{Clock, ManualClock};
use crate::events::Recorder;
use crate::ids::PodUid;
use crate::logs::{LogStore, Stream};
use crate::objects::{ObjectSet, ObjectStore};
use crate::pod::admission::{NodePolicy, admit_static};
use crate::pod::dns::NodeDns;
use crate::pod::downward::NodeFacts;
use crate::pod::run::LogRotation;
use crate::pod::static_pod::{Origin, PodSource};
use crate::state::{Faults, NoFaults, StateStore};
use crate::status::StatusCache;
use crate::volume::{VolumeConfig, VolumeManager};

mod api;
mod faults;
mod probes;
mod resize;
mod restart_all;

/// One agent over a directory that may have had another before.
struct Agent {
    pool: WorkerPool<Simulator>,
    sim: Arc<Simulator>,
    status: StatusCache,
    events: Recorder,
    objects: ObjectStore,
    logs: LogStore,
    state: StateStore,
}

impl Agent {
    /// Starts with what the directory holds. Wall-clock time follows tokio's.
    fn start(root: &Path, hand: &ManualClock) -> Self {
        Self::start_on(root, hand, Arc::new(NoFaults))
    }

    /// On a disk that may fail.
    fn start_on(root: &Path, hand: &ManualClock, disk: Arc<dyn Faults>) -> Self {
        let clock = Clock::from(hand.clone());
        let state = StateStore::open(root.join("state"), disk).unwrap();
        let objects = ObjectStore::default();
        let memory_root = root.join("memory");
        let config = VolumeConfig { memory_root, host_path_allowed: vec![], host_path_denied: vec![] };
        let volumes = VolumeManager::new(config, state.clone(), objects.clone());
        let logs = LogStore::open(root.join("logs"), clock.clone()).unwrap();
        let events = Recorder::new("node-1", clock.clone());
        let status = StatusCache::default();
        let (sim, exits) = Simulator::new(clock.clone());
        let services = Services {
            probes: crate::probe::ProbeMetrics::default(),
            metrics: super::WorkerMetrics::default(),
            starts: crate::status::StatusMetrics::default(),
            runtime: sim.clone(),
            volumes,
            objects: objects.clone(),
            state: state.clone(),
            logs: logs.clone(),
            events: events.clone(),
            status: status.clone(),
            clock,
        };
        let node = NodeFacts {
            name: "node-1".into(),
            host_ips: vec!["192.0.2.1".parse().unwrap()],
            allocatable_cpu_milli: 1000,
            allocatable_memory_bytes: 1 << 30,
            allocatable_ephemeral_storage_bytes: 1 << 30,
        };
        let pool = WorkerPool::new(services, WorkerConfig::new(node, NodeDns::default()), exits);
        let records = state.load().unwrap().pods;
        let agent = Self { pool, sim, status, events, objects, logs, state };
        agent.pool.readopt(records);
        agent
    }

    /// Runs a manifest; returns its UID.
    async fn apply(&self, manifest: Value) -> PodUid {
        let pod: Pod = serde_json::from_value(manifest).unwrap();
        let origin = Origin { node: "n", path: "/m/web.yaml", seen: jiff::Timestamp::UNIX_EPOCH };
        let admitted = admit_static(pod, origin, &NodePolicy::default()).unwrap();
        self.pool.update(admitted.uid.clone(), admitted.pod, Some("/m/web.yaml".into())).await;
        admitted.uid
    }

    fn status(&self, uid: &PodUid) -> PodStatus {
        self.status.get(uid).map(|snapshot| (*snapshot.status).clone()).unwrap_or_default()
    }

    fn phase(&self, uid: &PodUid) -> String {
        self.status(uid).phase.unwrap_or_default()
    }

    /// `reason count: message` of all events so far.
    fn events(&self) -> Vec<String> {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        self.events.recent().iter().map(|e| format!("{}: {}", text(&e.reason), text(&e.message))).collect()
    }

    fn has_event(&self, text: &str) -> bool {
        self.events().iter().any(|event| event.contains(text))
    }

    /// The journal without what came before.
    fn calls(&self) -> String {
        self.sim.journal().join(", ")
    }
}

/// A world: a directory, a clock, and its tick.
struct World {
    directory: tempfile::TempDir,
    hand: ManualClock,
    ticking: tokio::task::JoinHandle<()>,
}

impl World {
    fn new() -> Self {
        let hand = ManualClock::at("2026-01-01T00:00:00Z".parse().unwrap());
        let clock = hand.clone();
        let ticking = tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(50)).await;
                clock.advance(Duration::from_millis(50));
            }
        });
        Self { directory: tempfile::tempdir().unwrap(), hand, ticking }
    }

    fn agent(&self) -> Agent {
        Agent::start(self.directory.path(), &self.hand)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.ticking.abort();
    }
}

async fn seconds(count: u64) {
    tokio::time::sleep(Duration::from_secs(count)).await;
}

fn web(spec: Value) -> Value {
    json!({"metadata": {"name": "web"}, "spec": spec})
}

fn one(policy: &str) -> Value {
    web(json!({"restartPolicy": policy, "containers": [{"name": "a", "image": "x:1"}]}))
}

fn container(status: &PodStatus, name: &str) -> ContainerStatus {
    let lists = [&status.init_container_statuses, &status.container_statuses];
    lists.into_iter().flatten().flatten().find(|s| s.name == name).cloned().unwrap()
}

fn state_reason(status: &ContainerStatus) -> String {
    let state = status.state.clone().unwrap();
    match (state.waiting, state.running, state.terminated) {
        (Some(waiting), ..) => waiting.reason.unwrap_or_default(),
        (_, Some(_), _) => "Running".to_owned(),
        (.., Some(end)) => format!("{} {}", end.reason.unwrap_or_default(), end.exit_code),
        _ => String::new(),
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_runs_and_a_deletion_leaves_nothing_of_it() {
    let world = World::new();
    let agent = world.agent();
    let uid = agent.apply(one("Always")).await;
    seconds(2).await;
    assert_eq!(agent.phase(&uid), "Running");
    let status = agent.status(&uid);
    assert_eq!((status.pod_ip.as_deref(), status.host_ip.as_deref()), (Some("10.0.0.1"), Some("192.0.2.1")));
    let a = container(&status, "a");
    assert!(a.ready && a.started == Some(true) && a.container_id.unwrap().starts_with("wasilet://"));
    for event in ["Pulling: Pulling image \"x:1\"", "Pulled: Successfully", "Created: ", "Started: "] {
        assert!(agent.has_event(event), "{event} in {:?}", agent.events());
    }
    let root = agent.state.paths(&uid).root().to_owned();
    assert!(root.exists());
    agent.pool.terminate(&uid, Termination::Graceful).await;
    agent.pool.emptied().await;
    assert_eq!(agent.calls(), "sandbox web-n, start a#0, stop a 30, end a 143, remove");
    assert!(agent.has_event("Killing: Stopping container a"));
    assert!(agent.status.get(&uid).is_none() && !root.exists());
    assert!(agent.state.load().unwrap().pods.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_crashing_container_waits_longer_and_longer_and_says_so() {
    let world = World::new();
    let agent = world.agent();
    agent.sim.script("a", [Play::Exit { after: Duration::from_secs(1), code: 3 }]);
    let uid = agent.apply(one("Always")).await;
    seconds(8).await;
    let status = agent.status(&uid);
    let a = container(&status, "a");
    assert_eq!((state_reason(&a).as_str(), a.restart_count), ("CrashLoopBackOff", 1), "{}", agent.calls());
    let message = a.state.unwrap().waiting.unwrap().message.unwrap();
    assert_eq!(message, format!("back-off 10s restarting failed container=a pod=web-n_default({uid})"));
    let last = a.last_state.unwrap().terminated.unwrap();
    assert_eq!((last.exit_code, last.reason.as_deref()), (3, Some("Error")));
    assert!(agent.has_event("BackOff: Back-off restarting failed container a in pod web-n_default("));
    assert_eq!(agent.phase(&uid), "Running");
    seconds(10).await;
    assert_eq!(container(&agent.status(&uid), "a").restart_count, 2);
    let state = agent.status(&uid);
    let waiting = container(&state, "a").state.unwrap().waiting.unwrap();
    assert!(waiting.message.unwrap().starts_with("back-off 20s "));
}

#[tokio::test(start_paused = true)]
async fn finished_pods_keep_their_status_and_lose_their_files() {
    let world = World::new();
    let agent = world.agent();
    agent.sim.script("a", [Play::Message { text: "all done", code: 0 }]);
    let uid = agent.apply(one("Never")).await;
    seconds(5).await;
    let status = agent.status(&uid);
    assert_eq!(status.phase.as_deref(), Some("Succeeded"), "{}", agent.calls());
    let end = container(&status, "a").state.unwrap().terminated.unwrap();
    assert_eq!((end.reason.as_deref(), end.message.as_deref()), (Some("Completed"), Some("all done")));
    assert!(!agent.state.paths(&uid).attempt_dir("a", 0).exists(), "the container's own files are gone");
    assert_eq!(agent.calls(), "sandbox web-n, start a#0, end a 0, remove");
    assert_eq!(agent.state.load().unwrap().pods.len(), 1, "it is known until it is deleted");
}

#[tokio::test(start_paused = true)]
async fn init_containers_and_sidecars_start_in_order_and_end_in_reverse() {
    let world = World::new();
    let agent = world.agent();
    let init = Play::Exit { after: Duration::from_secs(1), code: 0 };
    agent.sim.script("i1", [init.clone()]);
    agent.sim.script("i2", [init]);
    let uid = agent
        .apply(web(json!({
            "initContainers": [{"name": "i1", "image": "x"}, {"name": "s1", "image": "x", "restartPolicy": "Always"},
                {"name": "i2", "image": "x"}, {"name": "s2", "image": "x", "restartPolicy": "Always"}],
            "containers": [{"name": "a", "image": "x"}]})))
        .await;
    seconds(5).await;
    assert_eq!(agent.phase(&uid), "Running");
    let started = "sandbox web-n, start i1#0, end i1 0, start s1#0, start i2#0, end i2 0, start s2#0, start a#0";
    assert_eq!(agent.calls(), started);
    agent.pool.terminate(&uid, Termination::Graceful).await;
    agent.pool.emptied().await;
    let ended = agent.sim.journal().split_off(8);
    let order: Vec<&str> = ended.iter().filter(|call| call.starts_with("end")).map(String::as_str).collect();
    assert_eq!(order, ["end a 143", "end s2 143", "end s1 143"], "{ended:?}");
}

#[tokio::test(start_paused = true)]
async fn a_failing_init_container_fails_a_pod_that_never_restarts() {
    let world = World::new();
    let agent = world.agent();
    agent.sim.script("i", [Play::Exit { after: Duration::from_secs(1), code: 7 }]);
    let uid = agent
        .apply(web(json!({"restartPolicy": "Never", "initContainers": [{"name": "i", "image": "x"}],
            "containers": [{"name": "a", "image": "x"}]})))
        .await;
    seconds(5).await;
    let status = agent.status(&uid);
    assert_eq!(status.phase.as_deref(), Some("Failed"));
    assert_eq!(state_reason(&container(&status, "i")), "Error 7");
    assert_eq!(state_reason(&container(&status, "a")), "PodInitializing");
}

#[tokio::test(start_paused = true)]
async fn images_that_fail_are_shown_and_tried_again() {
    let world = World::new();
    let agent = world.agent();
    let failure = |reason, seconds| ImageFailure {
        reason,
        message: format!("message of {reason}"),
        retry_after: Duration::from_secs(seconds),
    };
    agent.sim.fail_image("x:1", [failure("ErrImagePull", 2), failure("ImagePullBackOff", 10)]);
    let uid = agent.apply(one("Always")).await;
    seconds(1).await;
    assert_eq!(state_reason(&container(&agent.status(&uid), "a")), "ErrImagePull");
    seconds(3).await;
    assert_eq!(state_reason(&container(&agent.status(&uid), "a")), "ImagePullBackOff");
    assert_eq!(agent.phase(&uid), "Pending");
    seconds(12).await;
    assert_eq!(agent.phase(&uid), "Running");
    for event in [
        "Failed: Failed to pull image \"x:1\": message of ErrImagePull",
        "Failed: Error: ErrImagePull",
        "BackOff: Back-off pulling image \"x:1\"",
        "Failed: Error: ImagePullBackOff",
    ] {
        assert!(agent.has_event(event), "{event} in {:?}", agent.events());
    }
}

#[tokio::test(start_paused = true)]
async fn containers_that_cannot_be_made_say_why_and_wait() {
    let world = World::new();
    let agent = world.agent();
    let message = "module \"/app.wasm\" imports \"env::foo\" which this node does not provide";
    agent.sim.script("a", [Play::Refuse { step: StartStep::Create, message }]);
    let uid = agent.apply(one("Always")).await;
    seconds(2).await;
    let a = container(&agent.status(&uid), "a");
    assert_eq!((state_reason(&a).as_str(), a.restart_count), ("CreateContainerError", 0));
    assert_eq!(a.state.unwrap().waiting.unwrap().message.as_deref(), Some(message));
    assert!(agent.has_event(&format!("Failed: Error: {message}")));
    agent.sim.script("a", [Play::Deaf]);
    seconds(15).await;
    let a = container(&agent.status(&uid), "a");
    assert_eq!((state_reason(&a).as_str(), a.restart_count), ("Running", 0), "a failed start is no restart");
}

#[tokio::test(start_paused = true)]
async fn a_start_that_fails_after_creation_counts_as_an_end() {
    let world = World::new();
    let agent = world.agent();
    agent.sim.script("a", [Play::Refuse { step: StartStep::Run { exit_code: 127 }, message: "exec: not found" }]);
    let uid = agent.apply(one("Never")).await;
    seconds(2).await;
    let status = agent.status(&uid);
    assert_eq!(status.phase.as_deref(), Some("Failed"));
    assert_eq!(state_reason(&container(&status, "a")), "StartError 127");
}

#[tokio::test(start_paused = true)]
async fn a_missing_config_map_is_named_and_its_arrival_starts_the_container() {
    let world = World::new();
    let agent = world.agent();
    let uid = agent
        .apply(web(json!({"containers": [{"name": "a", "image": "x", "envFrom": [{"configMapRef": {"name": "c"}}]}]})))
        .await;
    seconds(1).await;
    let a = container(&agent.status(&uid), "a");
    assert_eq!(state_reason(&a), "CreateContainerConfigError");
    assert_eq!(a.state.unwrap().waiting.unwrap().message.as_deref(), Some("configmap \"c\" not found"));
    assert!(agent.has_event("Failed: Error: configmap \"c\" not found"));
    let map = json!({"metadata": {"name": "c", "namespace": "default"}, "data": {"K": "v"}});
    let set = ObjectSet { config_maps: vec![serde_json::from_value(map).unwrap()], secrets: vec![] };
    agent.objects.replace("test", set);
    seconds(1).await;
    assert_eq!(agent.phase(&uid), "Running", "long before the next try was due");
}

#[tokio::test(start_paused = true)]
async fn volumes_are_made_before_containers_and_follow_their_objects() {
    let world = World::new();
    let agent = world.agent();
    let uid = agent
        .apply(web(
            json!({"containers": [{"name": "a", "image": "x", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
            "volumes": [{"name": "v", "configMap": {"name": "c"}}]}),
        ))
        .await;
    seconds(1).await;
    assert_eq!(state_reason(&container(&agent.status(&uid), "a")), "ContainerCreating");
    assert!(agent.has_event("FailedMount: MountVolume.SetUp failed for volume \"v\" : "), "{:?}", agent.events());
    let give = |value: &str| {
        let map = json!({"metadata": {"name": "c", "namespace": "default"}, "data": {"k": value}});
        let set = ObjectSet { config_maps: vec![serde_json::from_value(map).unwrap()], secrets: vec![] };
        agent.objects.replace("test", set);
    };
    give("one");
    seconds(1).await;
    assert_eq!(agent.phase(&uid), "Running");
    give("two");
    seconds(1).await;
    assert!(agent.calls().ends_with("volume v k=two"), "{}", agent.calls());
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_that_fails_is_tried_again() {
    let world = World::new();
    let agent = world.agent();
    agent.sim.fail_sandboxes(3);
    let uid = agent.apply(one("Always")).await;
    seconds(10).await;
    assert_eq!(agent.phase(&uid), "Running");
    assert!(agent.has_event("FailedCreatePodSandBox: Failed to create pod sandbox: no address is left"));
}

#[tokio::test(start_paused = true)]
async fn a_pod_over_its_deadline_fails_with_the_kubelets_reason() {
    let world = World::new();
    let agent = world.agent();
    let uid = agent.apply(web(json!({"activeDeadlineSeconds": 20, "containers": [{"name": "a", "image": "x"}]}))).await;
    seconds(15).await;
    assert_eq!(agent.phase(&uid), "Running");
    seconds(10).await;
    let status = agent.status(&uid);
    assert_eq!((status.phase.as_deref(), status.reason.as_deref()), (Some("Failed"), Some("DeadlineExceeded")));
    assert_eq!(status.message.as_deref(), Some("Pod was active on the node longer than the specified deadline"));
    assert!(agent.sim.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_full_empty_dir_evicts_its_pod() {
    let world = World::new();
    let agent = world.agent();
    let uid = agent
        .apply(web(
            json!({"containers": [{"name": "a", "image": "x", "volumeMounts": [{"name": "cache", "mountPath": "/c"}]}],
            "volumes": [{"name": "cache", "emptyDir": {"sizeLimit": "10Ki"}}]}),
        ))
        .await;
    seconds(2).await;
    let volume = agent.state.paths(&uid).empty_dir("cache");
    std::fs::write(volume.join("big"), vec![0u8; 64 << 10]).unwrap();
    seconds(15).await;
    let status = agent.status(&uid);
    assert_eq!((status.phase.as_deref(), status.reason.as_deref()), (Some("Failed"), Some("Evicted")));
    assert_eq!(status.message.as_deref(), Some("Usage of EmptyDir volume \"cache\" exceeds the limit \"10Ki\". "));
    assert!(agent.has_event("Evicted: Usage of EmptyDir volume"));
    assert!(agent.sim.is_empty() && !volume.exists());
}

#[tokio::test(start_paused = true)]
async fn a_container_over_its_ephemeral_storage_evicts_its_pod() {
    let world = World::new();
    let agent = world.agent();
    agent.sim.set_writable_bytes(1 << 20);
    let limits = json!({"limits": {"ephemeral-storage": "10Ki"}});
    let uid = agent.apply(web(json!({"containers": [{"name": "a", "image": "x", "resources": limits}]}))).await;
    seconds(15).await;
    assert_eq!(agent.status(&uid).reason.as_deref(), Some("Evicted"));
}

#[tokio::test(start_paused = true)]
async fn what_does_not_stop_is_killed_and_a_shorter_grace_is_heard() {
    let world = World::new();
    let agent = world.agent();
    agent.sim.script("a", [Play::Deaf]);
    let uid = agent.apply(one("Always")).await;
    seconds(2).await;
    let began = tokio::time::Instant::now();
    agent.pool.terminate(&uid, Termination::Graceful).await;
    seconds(5).await;
    agent.pool.terminate(&uid, Termination::Within(Duration::from_secs(3))).await;
    agent.pool.emptied().await;
    let took = began.elapsed().as_secs();
    assert!((8..11).contains(&took), "{took}: {}", agent.calls());
    assert!(agent.calls().contains("stop a 30, stop a 3, end a 137, remove"), "{}", agent.calls());
}

#[tokio::test(start_paused = true)]
async fn a_forced_deletion_kills_at_once() {
    let world = World::new();
    let agent = world.agent();
    agent.sim.script("a", [Play::Deaf]);
    let uid = agent.apply(one("Always")).await;
    seconds(2).await;
    agent.pool.terminate(&uid, Termination::Force).await;
    agent.pool.emptied().await;
    assert!(agent.calls().ends_with("kill a, end a 137, remove"), "{}", agent.calls());
}

#[tokio::test(start_paused = true)]
async fn a_deletion_during_a_slow_pull_gives_it_up() {
    let world = World::new();
    let agent = world.agent();
    agent.sim.set_pull_time(Duration::from_secs(3600));
    let uid = agent.apply(one("Always")).await;
    seconds(5).await;
    agent.pool.terminate(&uid, Termination::Graceful).await;
    let ended = tokio::time::timeout(Duration::from_secs(5), agent.pool.emptied()).await;
    assert!(ended.is_ok(), "{}", agent.calls());
    assert_eq!(agent.calls(), "sandbox web-n, remove");
}

#[tokio::test(start_paused = true)]
async fn an_exit_that_is_heard_before_its_start_is_not_lost() {
    let world = World::new();
    let agent = world.agent();
    agent.sim.script("a", [Play::EndAtOnce { code: 0 }]);
    let uid = agent.apply(one("Never")).await;
    seconds(5).await;
    assert_eq!(agent.phase(&uid), "Succeeded");
}

#[tokio::test(start_paused = true)]
async fn a_changed_manifest_replaces_its_pod_when_that_is_gone() {
    let world = World::new();
    let agent = world.agent();
    agent.sim.script("a", [Play::Serve { stops_in: Duration::from_secs(5) }]);
    let old = agent.apply(one("Always")).await;
    seconds(2).await;
    let new = agent.apply(one("OnFailure")).await;
    assert_ne!(old, new);
    seconds(2).await;
    assert!(agent.status.get(&new).is_none(), "it waits");
    agent.pool.terminate(&old, Termination::Graceful).await;
    seconds(10).await;
    assert_eq!(agent.phase(&new), "Running");
    assert!(agent.status.get(&old).is_none());
    assert_eq!(agent.calls(), "sandbox web-n, start a#0, stop a 30, end a 143, remove, sandbox web-n, start a#0");
}

#[tokio::test(start_paused = true)]
async fn an_agents_restart_fails_no_pod_and_keeps_counts_addresses_and_volumes() {
    let world = World::new();
    let first = world.agent();
    first.sim.script(
        "a",
        [Play::Exit { after: Duration::from_secs(1), code: 1 }, Play::Serve { stops_in: Duration::from_secs(1) }],
    );
    let uid = first
        .apply(web(json!({"containers": [{"name": "a", "image": "x", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}], "volumes": [{"name": "v", "emptyDir": {}}]})))
        .await;
    seconds(5).await;
    let before = first.status(&uid);
    assert_eq!(container(&before, "a").restart_count, 1);
    let file = first.state.paths(&uid).empty_dir("v").join("kept");
    std::fs::write(&file, "x").unwrap();
    let drained = first.pool.shutdown(ShutdownMode::KeepPods(Duration::from_secs(20))).await;
    assert_eq!(drained, Drained::All);
    assert!(first.calls().ends_with("stop a 20, end a 143, remove"), "{}", first.calls());
    assert_eq!(first.phase(&uid), "Running", "no pod failed");
    drop(first);
    let second = world.agent();
    seconds(3).await;
    assert_eq!(second.calls(), "", "it waits to be wanted");
    let pod = second.state.load().unwrap().pods[0].pod.clone();
    second.pool.update(uid.clone(), pod, Some("/m/web.yaml".into())).await;
    seconds(3).await;
    let after = second.status(&uid);
    assert_eq!(after.phase.as_deref(), Some("Running"));
    assert_eq!(after.pod_ip, before.pod_ip);
    assert_eq!(after.start_time, before.start_time);
    let a = container(&after, "a");
    assert_eq!((state_reason(&a).as_str(), a.restart_count), ("Running", 2), "{}", second.calls());
    let last = a.last_state.unwrap().terminated.unwrap();
    assert_eq!((last.exit_code, last.reason.as_deref()), (137, Some("ContainerStatusUnknown")));
    assert_eq!(last.message.as_deref(), Some("The agent was restarted while the container was running"));
    assert!(file.exists(), "volumes outlive the agent");
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_of_the_agent_policies_decide() {
    for (policy, phase, calls) in
        [("Never", "Failed", ""), ("OnFailure", "Running", "sandbox web-n, start i#1, end i 0, start b#1")]
    {
        let world = World::new();
        let first = world.agent();
        let done = Play::Exit { after: Duration::from_secs(1), code: 0 };
        first.sim.script("i", [done.clone()]);
        first.sim.script("a", [done.clone()]);
        let spec = json!({"restartPolicy": policy, "initContainers": [{"name": "i", "image": "x"}],
            "containers": [{"name": "a", "image": "x"}, {"name": "b", "image": "x"}]});
        let uid = first.apply(web(spec)).await;
        seconds(5).await;
        first.pool.shutdown(ShutdownMode::KeepPods(Duration::from_secs(5))).await;
        drop(first);
        let second = world.agent();
        second.sim.script("i", [done]);
        // Nobody says that it is wanted, nor that it is not.
        seconds(10).await;
        assert_eq!((second.phase(&uid).as_str(), second.calls().as_str()), (phase, calls), "{policy}");
        let status = second.status(&uid);
        assert_eq!(state_reason(&container(&status, "a")), "Completed 0", "{policy}: what finished is left alone");
    }
}

#[tokio::test(start_paused = true)]
async fn a_finished_pod_stays_finished_after_a_restart_and_a_deleted_one_goes() {
    let world = World::new();
    let first = world.agent();
    first.sim.script("a", [Play::Exit { after: Duration::from_secs(1), code: 0 }]);
    let uid = first.apply(one("Never")).await;
    seconds(5).await;
    first.pool.shutdown(ShutdownMode::KeepPods(Duration::from_secs(5))).await;
    drop(first);
    let second = world.agent();
    seconds(5).await;
    assert_eq!((second.phase(&uid).as_str(), second.calls().as_str()), ("Succeeded", ""));
    second.pool.retain(PodSource::Manifest, &std::collections::HashSet::new()).await;
    second.pool.emptied().await;
    assert!(second.state.load().unwrap().pods.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_pod_whose_manifest_went_while_no_agent_ran_starts_nothing() {
    let world = World::new();
    let first = world.agent();
    first.apply(one("Always")).await;
    seconds(2).await;
    first.pool.shutdown(ShutdownMode::KeepPods(Duration::from_secs(5))).await;
    drop(first);
    let second = world.agent();
    seconds(1).await;
    second.pool.retain(PodSource::Manifest, &std::collections::HashSet::new()).await;
    second.pool.emptied().await;
    assert_eq!(second.calls(), "");
    assert!(second.state.load().unwrap().pods.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_silent_failure_takes_its_message_from_the_log() {
    let world = World::new();
    let agent = world.agent();
    agent.sim.script("a", [Play::Exit { after: Duration::from_secs(3), code: 1 }]);
    let container_spec = json!([{"name": "a", "image": "x", "terminationMessagePolicy": "FallbackToLogsOnError"}]);
    let uid = agent.apply(web(json!({"restartPolicy": "Never", "containers": container_spec}))).await;
    seconds(1).await;
    let name = crate::ids::PodRef { namespace: "default".into(), name: "web-n".into() };
    let path = agent.logs.path(&name, &uid, "a", 0);
    let log = agent.logs.writer(&path, LogRotation { max_size_bytes: 1 << 20, max_files: 2 }).unwrap();
    log.write(Stream::Stderr, b"last words\n").unwrap();
    seconds(5).await;
    let end = container(&agent.status(&uid), "a").state.unwrap().terminated.unwrap();
    assert_eq!(end.message.as_deref(), Some("last words\n"));
}

#[tokio::test(start_paused = true)]
async fn every_pod_ends_when_a_play_ends() {
    let world = World::new();
    let agent = world.agent();
    for name in ["one", "two", "three"] {
        agent.apply(json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "a", "image": "x"}]}})).await;
    }
    seconds(2).await;
    assert_eq!(agent.pool.pods().len(), 3);
    let drained = agent.pool.shutdown(ShutdownMode::EndPods(Termination::Graceful)).await;
    assert_eq!(drained, Drained::All);
    assert!(agent.sim.is_empty() && agent.status.list().is_empty() && agent.state.load().unwrap().pods.is_empty());
}
