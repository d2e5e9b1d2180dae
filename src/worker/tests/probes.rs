//! Probes and hooks of whole pods in paused time: what is asked when, and what follows from the answers.

use super::*;
use crate::pod::probe::Outcome;

const NO: Duration = Duration::ZERO;

fn failure() -> Outcome {
    Outcome::Failure("no".to_owned())
}

/// One container `a` with more fields, in a pod with 30 s of grace.
fn pod(fields: &Value) -> Value {
    let mut container = json!({"name": "a", "image": "x:1"});
    for (name, value) in fields.as_object().unwrap() {
        container[name] = value.clone();
    }
    web(json!({"terminationGracePeriodSeconds": 30, "containers": [container]}))
}

fn exec(command: &str, settings: Value) -> Value {
    let mut probe = json!({"exec": {"command": [command]}});
    for (name, value) in settings.as_object().unwrap() {
        probe[name] = value.clone();
    }
    probe
}

fn ready(agent: &Agent, uid: &PodUid) -> bool {
    let status = agent.status(uid);
    let condition =
        status.conditions.iter().flatten().find(|condition| condition.type_ == "Ready").unwrap().status == "True";
    assert_eq!(condition, container(&status, "a").ready);
    condition
}

fn asked(agent: &Agent, what: &str) -> usize {
    agent.sim.journal().iter().filter(|call| **call == format!("ask {what}")).count()
}

#[tokio::test(start_paused = true)]
async fn a_readiness_probe_alone_makes_ready_and_unready() {
    let world = World::new();
    let agent = world.agent();
    agent.sim.answer("r", [(NO, failure()), (NO, Outcome::Success), (NO, failure()), (NO, failure())]);
    let probe = exec("r", json!({"periodSeconds": 5, "failureThreshold": 2, "initialDelaySeconds": 3}));
    let uid = agent.apply(pod(&json!({"readinessProbe": probe}))).await;
    seconds(2).await;
    assert_eq!((agent.phase(&uid).as_str(), asked(&agent, "r")), ("Running", 0), "the initial delay");
    assert_eq!(container(&agent.status(&uid), "a").started, Some(true));
    assert!(!ready(&agent, &uid), "until the first success");
    seconds(3).await;
    assert!(!ready(&agent, &uid) && asked(&agent, "r") == 1);
    assert!(agent.has_event("Unhealthy: Readiness probe failed: no"));
    seconds(5).await;
    assert!(ready(&agent, &uid));
    seconds(5).await;
    assert!(ready(&agent, &uid), "one failure of two");
    seconds(5).await;
    assert!(!ready(&agent, &uid));
    assert_eq!(container(&agent.status(&uid), "a").restart_count, 0);
    assert!(!agent.calls().contains("stop"), "{}", agent.calls());
}

#[tokio::test(start_paused = true)]
async fn a_failed_liveness_probe_restarts_the_container_with_the_probes_grace() {
    let world = World::new();
    let agent = world.agent();
    agent.sim.answer("l", [(NO, Outcome::Success), (NO, failure())]);
    let probe = exec("l", json!({"periodSeconds": 1, "failureThreshold": 3, "terminationGracePeriodSeconds": 7}));
    let uid = agent.apply(pod(&json!({"livenessProbe": probe}))).await;
    seconds(2).await;
    assert!(ready(&agent, &uid));
    seconds(5).await;
    let calls = agent.calls();
    let expected = "start a#0, ask l, ask l, ask l, ask l, stop a 7, end a 143, start a#1";
    assert!(calls.contains(expected), "{calls}");
    assert!(agent.has_event("Unhealthy: Liveness probe failed: no"));
    assert!(agent.has_event("Killing: Container a failed liveness probe, will be restarted"), "{:?}", agent.events());
    assert_eq!(container(&agent.status(&uid), "a").restart_count, 1);
}

#[tokio::test(start_paused = true)]
async fn other_probes_wait_for_the_startup_probe_whose_failure_restarts() {
    let world = World::new();
    let agent = world.agent();
    agent.sim.answer("s", [(NO, failure()), (NO, failure()), (NO, failure()), (NO, Outcome::Success)]);
    let startup = exec("s", json!({"periodSeconds": 2, "failureThreshold": 2}));
    let fields = json!({"startupProbe": startup, "livenessProbe": exec("l", json!({})),
        "readinessProbe": exec("r", json!({"periodSeconds": 1}))});
    let uid = agent.apply(pod(&fields)).await;
    seconds(1).await;
    let a = container(&agent.status(&uid), "a");
    assert_eq!((a.started, a.ready), (Some(false), false));
    seconds(2).await;
    assert!(agent.has_event("Killing: Container a failed startup probe, will be restarted"), "{:?}", agent.events());
    assert_eq!((asked(&agent, "l"), asked(&agent, "r")), (0, 0));
    seconds(25).await;
    let a = container(&agent.status(&uid), "a");
    assert_eq!((a.restart_count, a.started, a.ready), (1, Some(true), true), "{}", agent.calls());
    assert_eq!(asked(&agent, "s"), 4, "it rests after its success");
    assert!(asked(&agent, "l") > 0 && asked(&agent, "r") > 1);
}

#[tokio::test(start_paused = true)]
async fn a_sidecar_that_has_not_started_holds_up_those_after_it() {
    let world = World::new();
    let agent = world.agent();
    agent.sim.answer("s", [(NO, failure()), (NO, failure()), (NO, Outcome::Success)]);
    agent.sim.script("i", [Play::Exit { after: Duration::from_secs(1), code: 0 }]);
    let probe = exec("s", json!({"periodSeconds": 2, "failureThreshold": 9}));
    let uid = agent
        .apply(web(json!({"initContainers": [
            {"name": "p", "image": "x", "restartPolicy": "Always", "startupProbe": probe}, {"name": "i", "image": "x"}],
            "containers": [{"name": "a", "image": "x"}]})))
        .await;
    seconds(3).await;
    assert_eq!(agent.calls(), "sandbox web-n, start p#0, ask s, ask s");
    seconds(5).await;
    assert!(agent.calls().ends_with("ask s, start i#0, end i 0, start a#0"), "{}", agent.calls());
    assert!(ready(&agent, &uid));
}

#[tokio::test(start_paused = true)]
async fn questions_that_cannot_be_asked_are_tried_again_and_say_nothing() {
    let world = World::new();
    let agent = world.agent();
    agent.sim.answer("l", [(NO, Outcome::Errored("no such program".to_owned()))]);
    let probe = exec("l", json!({"periodSeconds": 1, "failureThreshold": 1}));
    let uid = agent.apply(pod(&json!({"livenessProbe": probe}))).await;
    seconds(5).await;
    assert!(ready(&agent, &uid) && !agent.calls().contains("stop"), "{}", agent.calls());
    assert_eq!(asked(&agent, "l") % 3, 0);
    let event = "Unhealthy: Liveness probe errored and resulted in unknown state: no such program";
    assert!(agent.has_event(event), "{:?}", agent.events());
}

#[tokio::test(start_paused = true)]
async fn probes_that_would_end_a_container_rest_while_it_ends() {
    let world = World::new();
    let agent = world.agent();
    agent.sim.script("a", [Play::Serve { stops_in: Duration::from_secs(10) }]);
    agent.sim.answer("r", [(NO, Outcome::Success), (NO, Outcome::Success), (NO, failure())]);
    let fields = json!({"livenessProbe": exec("l", json!({"periodSeconds": 1})),
        "readinessProbe": exec("r", json!({"periodSeconds": 1, "failureThreshold": 1}))});
    let uid = agent.apply(pod(&fields)).await;
    seconds(1).await;
    let before = asked(&agent, "l");
    agent.pool.terminate(&uid, Termination::Graceful).await;
    seconds(4).await;
    assert!(asked(&agent, "l") <= before + 1, "{}", agent.calls());
    assert!(!ready(&agent, &uid), "readiness goes on");
    agent.pool.emptied().await;
    assert_eq!(agent.calls().matches("stop a").count(), 1, "{}", agent.calls());
}

#[tokio::test(start_paused = true)]
async fn a_container_runs_when_its_post_start_hook_is_done() {
    let world = World::new();
    let agent = world.agent();
    let hook = json!({"postStart": {"sleep": {"seconds": 5}}});
    let uid = agent
        .apply(web(json!({"containers": [{"name": "a", "image": "x", "lifecycle": hook,
            "readinessProbe": exec("r", json!({}))}, {"name": "b", "image": "x"}]})))
        .await;
    seconds(3).await;
    let status = agent.status(&uid);
    assert_eq!(state_reason(&container(&status, "a")), "ContainerCreating");
    assert_eq!((agent.phase(&uid).as_str(), asked(&agent, "r")), ("Pending", 0));
    assert_eq!(agent.calls(), "sandbox web-n, start a#0, ask sleep 5", "the others wait");
    seconds(4).await;
    let status = agent.status(&uid);
    assert_eq!(state_reason(&container(&status, "a")), "Running");
    assert!(ready(&agent, &uid) && state_reason(&container(&status, "b")) == "Running");
}

#[tokio::test(start_paused = true)]
async fn a_failed_post_start_hook_ends_the_container() {
    let world = World::new();
    let agent = world.agent();
    agent.sim.answer("setup", [(NO, failure())]);
    let hook = json!({"lifecycle": {"postStart": {"exec": {"command": ["setup"]}}}});
    let uid = agent.apply(pod(&hook)).await;
    seconds(2).await;
    for event in ["FailedPostStartHook: PostStartHook failed", "Killing: FailedPostStartHook"] {
        assert!(agent.has_event(event), "{event} in {:?}", agent.events());
    }
    assert!(agent.calls().contains("start a#0, ask setup, stop a 30, end a 143"), "{}", agent.calls());
    // The next attempt failed the same way, and waits.
    seconds(4).await;
    let a = container(&agent.status(&uid), "a");
    assert!(["CrashLoopBackOff", "PostStartHookError"].contains(&state_reason(&a).as_str()), "{}", state_reason(&a));
    assert!(!a.ready && agent.phase(&uid) != "Failed");
}

#[tokio::test(start_paused = true)]
async fn a_pre_stop_hook_comes_before_the_signal_and_its_time_counts() {
    for (case, hook, answer, expected) in [
        ("it is done in time", json!({"sleep": {"seconds": 10}}), None, "ask sleep 10, stop a 20, end a 143"),
        ("it fails", json!({"exec": {"command": ["x"]}}), Some((NO, failure())), "ask x, stop a 30, end a 143"),
        (
            "it takes all the time there is",
            json!({"httpGet": {"path": "/bye", "port": 80}}),
            Some((Duration::from_secs(99), Outcome::Success)),
            "ask /bye, stop a 2, end a 143",
        ),
    ] {
        let world = World::new();
        let agent = world.agent();
        let fails = answer.as_ref().is_some_and(|(_, outcome)| *outcome == failure());
        agent.sim.answer("x", answer.clone());
        agent.sim.answer("/bye", answer);
        let uid = agent.apply(pod(&json!({"lifecycle": {"preStop": hook}}))).await;
        seconds(2).await;
        agent.pool.terminate(&uid, Termination::Graceful).await;
        agent.pool.emptied().await;
        assert_eq!(agent.calls(), format!("sandbox web-n, start a#0, {expected}, remove"), "{case}");
        assert_eq!(agent.has_event("FailedPreStopHook: PreStopHook failed"), fails, "{case}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_pre_stop_hook_is_not_run_without_grace_nor_when_the_container_is_gone_and_is_cut_off_by_a_kill() {
    let hook = json!({"lifecycle": {"preStop": {"sleep": {"seconds": 20}}}});
    let world = World::new();
    let agent = world.agent();
    let uid = agent.apply(pod(&hook)).await;
    seconds(2).await;
    agent.pool.terminate(&uid, Termination::Force).await;
    agent.pool.emptied().await;
    assert_eq!(agent.calls(), "sandbox web-n, start a#0, kill a, end a 137, remove");

    let world = World::new();
    let agent = world.agent();
    agent.sim.script("a", [Play::Exit { after: Duration::from_secs(1), code: 0 }]);
    let mut once = pod(&hook);
    once["spec"]["restartPolicy"] = json!("Never");
    agent.apply(once).await;
    seconds(5).await;
    assert_eq!(agent.calls(), "sandbox web-n, start a#0, end a 0, remove");

    let world = World::new();
    let agent = world.agent();
    let uid = agent.apply(pod(&hook)).await;
    seconds(2).await;
    agent.pool.terminate(&uid, Termination::Graceful).await;
    seconds(3).await;
    agent.pool.terminate(&uid, Termination::Within(Duration::from_secs(4))).await;
    seconds(7).await;
    let calls = agent.calls();
    assert!(calls.ends_with("ask sleep 20, stop a 2, end a 143, remove"), "a shorter grace shortens the hook: {calls}");

    let world = World::new();
    let agent = world.agent();
    let uid = agent.apply(pod(&hook)).await;
    seconds(2).await;
    agent.pool.terminate(&uid, Termination::Graceful).await;
    seconds(3).await;
    agent.pool.terminate(&uid, Termination::Force).await;
    seconds(1).await;
    assert!(agent.calls().ends_with("ask sleep 20, kill a, end a 137, remove"), "{}", agent.calls());
}
