//! Pods of an API server: they stay known until it has forgotten them, whatever happens to the agent meanwhile.

use std::collections::{BTreeMap, HashSet};

use proptest::prelude::*;

use super::faults::BadDisk;
use super::*;
use crate::status::Stage;

/// A pod as the API server gives it.
fn api_pod(uid: &str, spec: Value) -> Pod {
    let metadata = json!({"name": "web", "namespace": "default", "uid": uid, "generation": 1,
        "annotations": {"kubernetes.io/config.source": "api"}});
    serde_json::from_value(json!({"metadata": metadata, "spec": spec, "status": {"phase": "Pending",
        "conditions": [{"type": "PodScheduled", "status": "True", "lastTransitionTime": "2025-12-31T23:59:00Z"}]}}))
    .unwrap()
}

fn spec(policy: &str) -> Value {
    json!({"restartPolicy": policy, "containers": [{"name": "a", "image": "x:1"}], "terminationGracePeriodSeconds": 30})
}

fn deleted(pod: &Pod, grace: i64) -> Pod {
    let mut pod = pod.clone();
    pod.metadata.deletion_grace_period_seconds = Some(grace);
    pod.metadata.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time("2026-01-01T00:00:00Z".parse().unwrap()));
    pod
}

impl Agent {
    async fn want(&self, pod: &Pod) -> PodUid {
        let uid = PodUid::new(pod.metadata.uid.clone().unwrap()).unwrap();
        self.pool.update(uid.clone(), pod.clone(), None).await;
        uid
    }

    async fn leave(&self, pod: &Pod, grace: i64) {
        let uid = PodUid::new(pod.metadata.uid.clone().unwrap()).unwrap();
        let within = Duration::from_secs(u64::try_from(grace).unwrap());
        self.pool.leave(&uid, deleted(pod, grace), within).await;
    }

    fn stage(&self, uid: &PodUid) -> Option<Stage> {
        self.status.get(uid).map(|snapshot| snapshot.stage)
    }
}

fn condition(status: &PodStatus, kind: &str) -> Option<(String, Option<String>)> {
    let found = status.conditions.iter().flatten().find(|condition| condition.type_ == kind)?;
    Some((found.status.clone(), found.reason.clone()))
}

#[tokio::test(start_paused = true)]
async fn a_deleted_pod_is_known_until_the_api_server_has_forgotten_it() {
    let world = World::new();
    let agent = world.agent();
    let pod = api_pod("u", spec("Always"));
    let uid = agent.want(&pod).await;
    seconds(2).await;
    assert_eq!((agent.phase(&uid).as_str(), agent.stage(&uid)), ("Running", Some(Stage::Alive)));
    let scheduled = agent.status(&uid).conditions.unwrap().into_iter().find(|c| c.type_ == "PodScheduled").unwrap();
    assert_eq!(scheduled.last_transition_time.unwrap().0.to_string(), "2025-12-31T23:59:00Z", "the scheduler's time");
    agent.leave(&pod, 20).await;
    seconds(5).await;
    assert!(agent.calls().ends_with("stop a 20, end a 143, remove"), "{}", agent.calls());
    assert_eq!((agent.phase(&uid).as_str(), agent.stage(&uid)), ("Failed", Some(Stage::Finished)));
    assert_eq!(agent.state.load().unwrap().pods.len(), 1);
    agent.pool.terminate(&uid, Termination::Graceful).await;
    agent.pool.emptied().await;
    assert!(agent.status.get(&uid).is_none() && agent.state.load().unwrap().pods.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_grace_gets_shorter_and_never_begins_again() {
    let world = World::new();
    let agent = world.agent();
    agent.sim.script("a", [Play::Deaf]);
    let pod = api_pod("u", spec("Always"));
    let uid = agent.want(&pod).await;
    seconds(2).await;
    let began = tokio::time::Instant::now();
    agent.leave(&pod, 30).await;
    for _ in 0..5 {
        seconds(2).await;
        // Any change of the object says its grace again.
        agent.leave(&pod, 30).await;
    }
    agent.leave(&pod, 5).await;
    seconds(1).await;
    agent.leave(&pod, 5).await;
    while agent.stage(&uid) == Some(Stage::Alive) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let took = began.elapsed().as_secs();
    assert!((15..18).contains(&took), "{took}: {}", agent.calls());
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_never_ran_is_over_at_once_when_it_is_deleted() {
    let world = World::new();
    let agent = world.agent();
    let first = agent.want(&api_pod("first", spec("Always"))).await;
    let second = api_pod("second", spec("Always"));
    let uid = agent.want(&second).await;
    seconds(2).await;
    assert!(agent.status.get(&uid).is_none(), "it waits for the name");
    agent.leave(&second, 30).await;
    assert_eq!((agent.phase(&uid).as_str(), agent.stage(&uid)), ("Failed", Some(Stage::Finished)));
    agent.pool.terminate(&first, Termination::Graceful).await;
    agent.pool.emptied().await;
    assert_eq!(agent.calls().matches("sandbox").count(), 1, "the second never runs: {}", agent.calls());
    let unknown = api_pod("third", spec("Always"));
    agent.leave(&unknown, 30).await;
    assert_eq!(agent.stage(&PodUid::new("third").unwrap()), Some(Stage::Finished));
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_over_by_the_api_servers_word_is_not_run_and_ends() {
    let world = World::new();
    let agent = world.agent();
    let mut over = api_pod("u", spec("Always"));
    over.status = Some(PodStatus {
        phase: Some("Failed".to_owned()),
        reason: Some("NodeLost".to_owned()),
        ..PodStatus::default()
    });
    let uid = PodUid::new("u").unwrap();
    agent.pool.settle(&uid, over.clone()).await;
    seconds(2).await;
    assert_eq!((agent.calls().as_str(), agent.stage(&uid)), ("", Some(Stage::Finished)));
    agent.pool.terminate(&uid, Termination::Graceful).await;
    agent.want(&api_pod("u", spec("Always"))).await;
    seconds(2).await;
    assert_eq!(agent.phase(&uid), "Running");
    agent.pool.settle(&uid, over).await;
    seconds(5).await;
    let status = agent.status(&uid);
    assert_eq!((status.phase.as_deref(), status.reason.as_deref()), (Some("Failed"), Some("NodeLost")));
    assert!(agent.sim.is_empty() && agent.stage(&uid) == Some(Stage::Finished));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_lost_its_disk_goes_on_from_what_the_api_server_remembers() {
    for (policy, phase, starts, restarts) in [("Never", "Failed", 0, 3), ("Always", "Running", 1, 4)] {
        let world = World::new();
        let agent = world.agent();
        let mut pod = api_pod("u", spec(policy));
        let id = crate::ids::ContainerId::random().to_status();
        pod.status = serde_json::from_value(json!({"phase": "Running", "startTime": "2025-12-31T00:00:00Z",
            "containerStatuses": [{"name": "a", "image": "x:1", "imageID": "x", "ready": true, "restartCount": 3,
                "containerID": id, "state": {"running": {"startedAt": "2025-12-31T00:00:01Z"}}}]}))
        .unwrap();
        let uid = agent.want(&pod).await;
        seconds(20).await;
        let status = agent.status(&uid);
        assert_eq!(status.phase.as_deref(), Some(phase), "{policy}");
        assert_eq!(agent.calls().matches("start").count(), starts, "{policy}: {}", agent.calls());
        assert_eq!(container(&status, "a").restart_count, restarts, "{policy}");
        assert_eq!(status.start_time.unwrap().0.to_string(), "2025-12-31T00:00:00Z");
    }
}

#[tokio::test(start_paused = true)]
async fn a_debug_container_joins_a_running_pod_once() {
    let world = World::new();
    let agent = world.agent();
    let pod = api_pod("u", spec("Always"));
    let uid = agent.want(&pod).await;
    seconds(2).await;
    agent.sim.script("debug", [Play::Exit { after: Duration::from_secs(3), code: 1 }]);
    let mut with_debug = pod.clone();
    with_debug.spec.as_mut().unwrap().ephemeral_containers =
        serde_json::from_value(json!([{"name": "debug", "image": "busybox", "targetContainerName": "a"}])).unwrap();
    agent.want(&with_debug).await;
    seconds(1).await;
    let debug = |agent: &Agent| agent.status(&uid).ephemeral_container_statuses.unwrap().remove(0);
    assert_eq!(state_reason(&debug(&agent)), "Running");
    assert_eq!((debug(&agent).ready, debug(&agent).started), (false, None));
    seconds(60).await;
    assert_eq!(state_reason(&debug(&agent)), "Error 1");
    assert_eq!(agent.phase(&uid), "Running");
    assert_eq!(agent.calls(), "sandbox web, start a#0, start debug#0, end debug 1");
}

#[tokio::test(start_paused = true)]
async fn readiness_gates_and_addresses_of_the_node_are_heard() {
    let world = World::new();
    let agent = world.agent();
    let mut gated = spec("Always");
    gated["readinessGates"] = json!([{"conditionType": "example.com/gate"}]);
    let mut pod = api_pod("u", gated);
    let uid = agent.want(&pod).await;
    seconds(2).await;
    let ready = |agent: &Agent| condition(&agent.status(&uid), "Ready").unwrap();
    assert_eq!(ready(&agent), ("False".to_owned(), Some("ReadinessGatesNotReady".to_owned())));
    let gate = json!({"type": "example.com/gate", "status": "True"});
    pod.status.as_mut().unwrap().conditions.as_mut().unwrap().push(serde_json::from_value(gate).unwrap());
    agent.want(&pod).await;
    seconds(1).await;
    assert_eq!(ready(&agent).0, "True");
    let mut node = agent.pool.config().node.clone();
    node.host_ips = vec!["192.0.2.7".parse().unwrap()];
    agent.pool.set_node(node).await;
    seconds(1).await;
    assert_eq!(agent.status(&uid).host_ip.as_deref(), Some("192.0.2.7"));
    let a = container(&agent.status(&uid), "a");
    assert!(a.resources.is_some() && a.user.unwrap().linux.unwrap().uid == 0);
}

#[tokio::test(start_paused = true)]
async fn an_eviction_is_a_disruption_and_keeps_its_words() {
    let world = World::new();
    let agent = world.agent();
    let uid = agent.want(&api_pod("u", spec("Always"))).await;
    seconds(2).await;
    let eviction = Eviction {
        reason: "Evicted".to_owned(),
        message: "The node was low on resource: memory. ".to_owned(),
        disruption: Some("The node was low on resource: memory. ".to_owned()),
        grace: Duration::from_secs(1),
    };
    agent.pool.evict(&uid, eviction).await;
    seconds(5).await;
    let status = agent.status(&uid);
    assert_eq!((status.phase.as_deref(), status.reason.as_deref()), (Some("Failed"), Some("Evicted")));
    let disruption = condition(&status, "DisruptionTarget").unwrap();
    assert_eq!(disruption, ("True".to_owned(), Some("TerminationByKubelet".to_owned())));
    assert_eq!(agent.stage(&uid), Some(Stage::Finished));
}

#[tokio::test(start_paused = true)]
async fn a_manifest_that_comes_back_while_its_pod_ends_runs_again() {
    let world = World::new();
    let agent = world.agent();
    agent.sim.script("a", [Play::Serve { stops_in: Duration::from_secs(5) }]);
    let uid = agent.apply(one("Always")).await;
    seconds(2).await;
    agent.pool.terminate(&uid, Termination::Graceful).await;
    seconds(1).await;
    assert_eq!(agent.apply(one("Always")).await, uid);
    seconds(10).await;
    assert_eq!(agent.phase(&uid), "Running");
    assert_eq!(agent.calls().matches("sandbox").count(), 2);
}

/// What happens in the world outside.
#[derive(Debug, Clone)]
enum Step {
    Create(u8),
    Delete(u8, i64),
    /// `--force --grace-period=0`, and any other end without the node's word.
    Forget(u8),
    Wait(u64),
    /// The agent dies, or is stopped; the next one runs on what is on disk.
    Crash,
    Stop,
    /// The disk refuses so many of the next steps.
    Disk(u32),
    /// The API server answers: the agent hears everything it missed. Else it is away.
    List,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0u8..3).prop_map(Step::Create),
        3 => (0u8..3, 0i64..40).prop_map(|(name, grace)| Step::Delete(name, grace)),
        1 => (0u8..3).prop_map(Step::Forget),
        4 => (0u64..20_000).prop_map(Step::Wait),
        1 => Just(Step::Crash),
        1 => Just(Step::Stop),
        2 => (1u32..20).prop_map(Step::Disk),
        4 => Just(Step::List),
    ]
}

/// The API server: pods by name, as it has them.
#[derive(Default)]
struct Server {
    pods: BTreeMap<u8, Pod>,
    created: u32,
}

impl Server {
    /// Tells the agent all there is, and completes deletions as the status writer would.
    async fn list(&mut self, agent: &Agent) {
        let uid_of = |pod: &Pod| PodUid::new(pod.metadata.uid.clone().unwrap()).unwrap();
        self.pods.retain(|_, pod| {
            let finished = agent.stage(&uid_of(pod)) == Some(Stage::Finished);
            !(finished && pod.metadata.deletion_timestamp.is_some())
        });
        let wanted: HashSet<PodUid> = self.pods.values().map(uid_of).collect();
        agent.pool.retain(PodSource::ApiServer, &wanted).await;
        for uid in agent.status.uids().into_iter().filter(|uid| !wanted.contains(uid)) {
            agent.pool.terminate(&uid, Termination::Graceful).await;
        }
        for pod in self.pods.values() {
            match pod.metadata.deletion_grace_period_seconds {
                Some(grace) => agent.leave(pod, grace).await,
                None => drop(agent.want(pod).await),
            }
        }
    }
}

fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).into_iter().flatten().flatten() {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            // A file that is being replaced at this very moment is one the crash took.
            let _ = std::fs::copy(entry.path(), target);
        }
    }
}

async fn live(steps: Vec<Step>) {
    let world = World::new();
    let mut generation = 0;
    let mut root = world.directory.path().join("0");
    std::fs::create_dir_all(&root).unwrap();
    let disk = Arc::new(BadDisk::default());
    let mut agent = Agent::start_on(&root, &world.hand, disk.clone());
    let mut server = Server::default();
    let mut once_starts: BTreeMap<String, usize> = BTreeMap::new();
    let count = |agent: &Agent, starts: &mut BTreeMap<String, usize>| {
        for call in agent.sim.journal().iter().filter(|call| call.starts_with("start once")) {
            *starts.entry(call.split('#').next().unwrap().to_owned()).or_default() += 1;
        }
    };
    for step in steps {
        match step {
            Step::Create(name) => {
                let number = server.created;
                if server.pods.contains_key(&name) {
                    continue;
                }
                server.created += 1;
                let (policy, container) =
                    if number % 2 == 0 { ("Always", "a".to_owned()) } else { ("Never", format!("once{number}")) };
                let spec = json!({"restartPolicy": policy, "containers": [{"name": container, "image": "x"}]});
                let mut pod = api_pod(&format!("uid-{number}"), spec);
                pod.metadata.name = Some(format!("web-{name}"));
                server.pods.insert(name, pod);
            }
            Step::Delete(name, grace) => {
                if let Some(pod) = server.pods.get_mut(&name) {
                    let before = pod.metadata.deletion_grace_period_seconds.unwrap_or(i64::MAX);
                    *pod = deleted(pod, grace.min(before));
                }
            }
            Step::Forget(name) => drop(server.pods.remove(&name)),
            Step::Wait(millis) => tokio::time::sleep(Duration::from_millis(millis)).await,
            Step::Crash | Step::Stop => {
                generation += 1;
                let next = world.directory.path().join(generation.to_string());
                if matches!(step, Step::Stop) {
                    let drained = agent.pool.shutdown(ShutdownMode::KeepPods(Duration::from_secs(3))).await;
                    assert_eq!(drained, Drained::All);
                }
                // Time moves when no file is being written.
                tokio::time::sleep(Duration::from_millis(1)).await;
                copy_tree(&root, &next);
                count(&agent, &mut once_starts);
                // What the dead one would still do, nobody sees.
                let _ = agent.pool.shutdown(ShutdownMode::KeepPods(Duration::ZERO)).await;
                root = next;
                // One that cannot read its directory does not start; what follows is what counts.
                let bad = disk.mend();
                agent = Agent::start_on(&root, &world.hand, disk.clone());
                disk.refuse(bad);
            }
            Step::Disk(steps) => disk.refuse(steps),
            Step::List => server.list(&agent).await,
        }
    }
    disk.mend();
    // Longer than the longest back-off.
    for _ in 0..8 {
        server.list(&agent).await;
        seconds(60).await;
    }
    count(&agent, &mut once_starts);
    let statuses = agent.status.list();
    assert_eq!(statuses.len(), server.pods.len(), "what the API server has is known, and nothing else");
    for pod in server.pods.values() {
        let uid = PodUid::new(pod.metadata.uid.clone().unwrap()).unwrap();
        assert!(pod.metadata.deletion_timestamp.is_none(), "{uid}: a deletion comes to its end");
        let policy = pod.spec.as_ref().unwrap().restart_policy.clone().unwrap();
        let phase = agent.phase(&uid);
        let fine = phase == "Running" || (policy == "Never" && phase == "Failed");
        assert!(fine, "{uid} with {policy} is {phase}: {}", agent.calls());
    }
    for (container, starts) in once_starts {
        assert!(starts <= 1, "{container} was started {starts} times");
    }
    server.pods.clear();
    server.list(&agent).await;
    agent.pool.emptied().await;
    assert!(agent.sim.is_empty() && agent.status.list().is_empty() && agent.state.load().unwrap().pods.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) })]

    #[test]
    fn deletions_restarts_outages_and_bad_disks_at_any_time_lose_no_pod_and_leave_none(steps in prop::collection::vec(step(), 1..40)) {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(live(steps));
    }
}
