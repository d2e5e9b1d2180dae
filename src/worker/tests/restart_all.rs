//! `RestartAllContainers`, and failures that are not told too often.

use super::*;

fn rules() -> Value {
    json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}}])
}

#[tokio::test(start_paused = true)]
async fn all_containers_run_again_when_one_says_so() {
    let world = World::new();
    let agent = world.agent();
    let seconds_of = Duration::from_secs;
    agent.sim.script("init", [Play::Exit { after: seconds_of(1), code: 0 }]);
    agent
        .sim
        .script("source", [Play::Exit { after: seconds_of(5), code: 42 }, Play::Serve { stops_in: seconds_of(1) }]);
    let uid = agent
        .apply(web(json!({"restartPolicy": "Never",
            "initContainers": [{"name": "init", "image": "x:1"}, {"name": "sidecar", "image": "x:1", "restartPolicy": "Always"}],
            "containers": [{"name": "source", "image": "x:1", "restartPolicy": "Never", "restartPolicyRules": rules()},
                {"name": "other", "image": "x:1"}]})))
        .await;
    seconds(4).await;
    assert_eq!(agent.phase(&uid), "Running");
    let condition = |status: &PodStatus| {
        let found = status.conditions.iter().flatten().find(|c| c.type_ == "AllContainersRestarting");
        found.map(|condition| condition.status.clone())
    };
    assert_eq!(condition(&agent.status(&uid)).as_deref(), Some("False"));
    seconds(10).await;
    let status = agent.status(&uid);
    for name in ["init", "sidecar", "source", "other"] {
        let seen = container(&status, name);
        assert_eq!(seen.restart_count, 1, "{name} {}", agent.calls());
        let last = seen.last_state.and_then(|state| state.terminated).unwrap();
        assert_eq!((last.exit_code, last.reason.as_deref()), (137, Some("RestartingAllContainers")), "{name}");
    }
    assert_eq!((agent.phase(&uid).as_str(), condition(&status).as_deref()), ("Running", Some("False")));
    let calls = agent.calls();
    assert!(calls.contains("end source 42, kill other") && calls.contains("kill sidecar"), "{calls}");
    // Containers of one rank start together.
    let again = ["start source#1, start other#1", "start other#1, start source#1"];
    let before = "start init#1, end init 0, start sidecar#1";
    assert!(again.iter().any(|both| calls.ends_with(&format!("{before}, {both}"))), "{calls}");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_restarted_meanwhile_runs_all_of_them_again_too() {
    let world = World::new();
    let first = world.agent();
    let manifest = web(json!({"restartPolicy": "Never", "containers": [
        {"name": "source", "image": "x:1", "restartPolicy": "Never", "restartPolicyRules": rules()},
        {"name": "other", "image": "x:1"}]}));
    let uid = first.apply(manifest.clone()).await;
    seconds(2).await;
    let mut record = first.state.load().unwrap().pods.remove(0);
    assert!(record.containers.values().all(|container| container.running.is_some()));
    record.restarting_all = true;
    first.pool.shutdown(ShutdownMode::KeepPods(Duration::from_secs(5))).await;
    // As a crash at that moment leaves it.
    first.state.save(&record).unwrap();
    drop(first);
    let second = world.agent();
    let again = second.apply(manifest).await;
    assert_eq!(again, uid);
    seconds(3).await;
    assert_eq!(second.phase(&uid), "Running", "{}", second.calls());
    assert_eq!(container(&second.status(&uid), "other").restart_count, 1);
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_stays_the_same_is_told_less_and_less_often() {
    let world = World::new();
    let agent = world.agent();
    let failure = ImageFailure {
        reason: "ErrImageNeverPull",
        message: "Container image \"x:1\" is not present with pull policy of Never".to_owned(),
        retry_after: Duration::from_secs(10),
    };
    agent.sim.fail_image("x:1", vec![failure; 100]);
    let uid = agent.apply(one("Always")).await;
    seconds(590).await;
    assert_eq!(state_reason(&container(&agent.status(&uid), "a")), "ErrImageNeverPull");
    let told: i32 = agent
        .events
        .recent()
        .iter()
        .filter(|event| event.reason.as_deref() == Some("ErrImageNeverPull"))
        .map(|event| event.count.unwrap_or(1))
        .max()
        .unwrap();
    // At 0, 10, 30, 70, 150 and 310 s, give or take a try.
    assert!((5..=7).contains(&told), "{told} events");
    seconds(500).await;
    assert_eq!(agent.phase(&uid), "Running", "it is tried every ten seconds all the same");
}

#[tokio::test(start_paused = true)]
async fn another_image_ends_the_crash_loops_wait() {
    let world = World::new();
    let agent = world.agent();
    agent.sim.script("a", [Play::Exit { after: Duration::from_secs(1), code: 1 }]);
    let pod = |image: &str| -> Pod {
        let metadata = json!({"name": "web", "namespace": "default", "uid": "u", "generation": 1});
        serde_json::from_value(json!({"metadata": metadata, "spec": {"containers": [{"name": "a", "image": image}]}}))
            .unwrap()
    };
    let uid = PodUid::new("u").unwrap();
    agent.pool.update(uid.clone(), pod("x:1"), None).await;
    seconds(200).await;
    assert_eq!(state_reason(&container(&agent.status(&uid), "a")), "CrashLoopBackOff");
    let before = container(&agent.status(&uid), "a").restart_count;
    agent.pool.update(uid.clone(), pod("x:2"), None).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(container(&agent.status(&uid), "a").restart_count, before + 1, "{}", agent.calls());
}
