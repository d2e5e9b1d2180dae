//! A pod's life in order: who starts when, who runs again and who does not, who stops last.

use std::fs;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use crate::cluster::{Cluster, NodeOptions, Space};

const TOOLS: &[&str] = &["sleeper", "signal", "exit-code", "init"];

/// Two sidecars around an init container; the inner one is started only a second after it runs.
const TURNS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: turns, finalizers: [test.wasilet.dev/look]}
spec:
  nodeSelector: {wasilet.dev/test: SPACE}
  restartPolicy: Never
  initContainers:
  - {name: outer, image: "test/tools:v1", command: [/bin/signal], restartPolicy: Always}
  - {name: between, image: "test/tools:v1", command: [/bin/exit-code, "0", "1"]}
  - name: inner
    image: test/tools:v1
    command: [/bin/signal]
    restartPolicy: Always
    startupProbe: {exec: {command: [/bin/exit-code, "0"]}, initialDelaySeconds: 1, periodSeconds: 1, timeoutSeconds: 30}
  containers:
  - {name: main, image: "test/tools:v1", command: [/bin/signal]}
"#;

/// The status of one of its containers, of whatever kind, once there is one.
fn status_of<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let mut all = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    all.find(|status| status.name == name)
}

fn restarts(pod: &Pod, name: &str) -> i32 {
    status_of(pod, name).map_or(0, |status| status.restart_count)
}

/// When a container said what, oldest first.
fn said(space: &Space<'_>, pod: &str, containers: &[&str]) -> Vec<(Timestamp, String)> {
    let mut all = Vec::new();
    for container in containers {
        let log = space.ok(&["logs", pod, "--container", container, "--timestamps"]);
        let lines = log.lines().filter_map(|line| line.split_once(' '));
        all.extend(lines.map(|(at, line)| (at.parse().expect("a time"), format!("{container} {line}"))));
    }
    all.sort();
    all
}

#[test]
fn sidecars_start_in_their_turn_and_stop_last_and_in_reverse() {
    let space = Cluster::shared().space("turns");
    let _node = space.node(NodeOptions { tools: TOOLS, ..NodeOptions::default() });
    space.apply(TURNS);
    space.wait_ready("turns");
    space.ok(&["delete", "pod", "turns", "--wait=false"]);
    space.wait_phase("turns", "Succeeded");
    let lines = said(&space, "turns", &["outer", "between", "inner", "main"]);
    let order: Vec<&str> = lines.iter().map(|(_, line)| line.as_str()).collect();
    let words = [
        "outer signal: waiting",
        "between exiting with 0",
        "inner signal: waiting",
        "main signal: waiting",
        "main signal: got 15",
        "inner signal: got 15",
        "outer signal: got 15",
    ];
    assert!(
        order.len() == words.len() && order.iter().zip(words).all(|(line, words)| line.starts_with(words)),
        "{lines:#?}"
    );
    space.ok(&["patch", "pod", "turns", "--type=merge", "--patch", r#"{"metadata": {"finalizers": []}}"#]);
    space.wait_gone("turns");
}

const AGAIN: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: again}
spec:
  nodeSelector: {wasilet.dev/test: SPACE}
  terminationGracePeriodSeconds: 1
  initContainers: [{name: init, image: "test/tools:v1", command: [/bin/init, /tmp/x]}]
  containers:
  - {name: main, image: "test/tools:v1", command: [/bin/exit-code, "3"]}
  - {name: steady, image: "test/tools:v1"}
"#;

#[test]
fn a_container_that_keeps_ending_backs_off_and_init_containers_run_again_with_a_new_sandbox_alone() {
    let space = Cluster::shared().space("again");
    let node = space.node(NodeOptions { tools: TOOLS, ..NodeOptions::default() });
    space.apply(AGAIN);
    let waiting = |pod: &Pod| status_of(pod, "main")?.state.as_ref()?.waiting.clone();
    let crashes = |pod: &Pod| waiting(pod).is_some_and(|one| one.reason.as_deref() == Some("CrashLoopBackOff"));
    let pod = space.wait_pod("again", "backs off", |pod| restarts(pod, "main") == 1 && crashes(pod));
    let uid = pod.metadata.uid.clone().expect("a UID");
    let name = format!("again_{}({uid})", space.name());
    let message = waiting(&pod).and_then(|waiting| waiting.message);
    assert_eq!(message, Some(format!("back-off 10s restarting failed container=main pod={name}")));
    space.wait_event("again", "BackOff", &[&format!("Back-off restarting failed container main in pod {name}")]);
    let last = status_of(&pod, "main")
        .and_then(|status| status.last_state.clone())
        .and_then(|state| state.terminated)
        .expect("it ended");
    assert_eq!((last.exit_code, last.reason.as_deref()), (3, Some("Error")));
    let init = status_of(&pod, "init").expect("its status");
    assert!(init.restart_count == 0 && init.ready, "a container that runs again alone takes no other with it");
    assert_eq!(restarts(&pod, "steady"), 0);
    // Of attempts that are over the log of one stays.
    let logs = node.root().join("logs/pods").join(format!("{}_again_{uid}", space.name())).join("main");
    let kept: Vec<_> = fs::read_dir(&logs).expect("its logs").flatten().map(|entry| entry.file_name()).collect();
    assert!(kept.len() <= 2, "{kept:?}");

    // A container does not outlive its agent: the next one makes another sandbox.
    node.kill();
    node.run();
    let pod = space.wait_pod("again", "runs again as a whole", |pod| {
        restarts(pod, "steady") == 1 && status_of(pod, "steady").is_some_and(|status| status.ready)
    });
    assert_eq!(restarts(&pod, "init"), 1);
}

const RULES: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: rules}
spec:
  nodeSelector: {wasilet.dev/test: SPACE}
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
  - name: by-rule
    image: test/tools:v1
    command: [/bin/exit-code, "42"]
    restartPolicy: Never
    restartPolicyRules: [{action: Restart, exitCodes: {operator: In, values: [42]}}]
  - name: no-rule
    image: test/tools:v1
    command: [/bin/exit-code, "1"]
    restartPolicy: Never
    restartPolicyRules: [{action: Restart, exitCodes: {operator: In, values: [42]}}]
  - {name: own-policy, image: "test/tools:v1", command: [/bin/exit-code, "0"], restartPolicy: Always}
  - {name: of-the-pod, image: "test/tools:v1", command: [/bin/exit-code, "0"]}
"#;

#[test]
fn a_container_runs_again_by_its_own_policy_and_rules() {
    if Cluster::shared().lacks(35, "restartPolicyRules") {
        return;
    }
    let space = Cluster::shared().space("rules");
    let _node = space.node(NodeOptions { tools: TOOLS, ..NodeOptions::default() });
    space.apply(RULES);
    let over = |pod: &Pod, name: &str| {
        status_of(pod, name).and_then(|status| status.state.as_ref()).is_some_and(|state| state.terminated.is_some())
    };
    let pod = space.wait_pod("rules", "has run again where it should", |pod| {
        ["by-rule", "own-policy"].iter().all(|name| restarts(pod, name) > 0)
            && ["no-rule", "of-the-pod"].iter().all(|name| over(pod, name))
    });
    for name in ["no-rule", "of-the-pod"] {
        assert_eq!(restarts(&pod, name), 0, "{name}");
    }
    assert_eq!(crate::cluster::phase_of(&pod), "Running", "two of it run again and again");
}

const ALL: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: all}
spec:
  nodeSelector: {wasilet.dev/test: SPACE}
  terminationGracePeriodSeconds: 1
  initContainers:
  - {name: init, image: "test/tools:v1", command: [/bin/init, /tmp/x]}
  - {name: sidecar, image: "test/tools:v1", restartPolicy: Always}
  containers:
  - {name: steady, image: "test/tools:v1"}
  - name: source
    image: test/tools:v1
    command: [/bin/exit-code, "88", "1"]
    restartPolicy: Never
    restartPolicyRules: [{action: RestartAllContainers, exitCodes: {operator: In, values: [88]}}]
"#;

#[test]
fn a_rule_has_all_containers_run_again_with_init_containers_and_sidecars() {
    if Cluster::shared().lacks(36, "action: RestartAllContainers") {
        return;
    }
    let space = Cluster::shared().space("all-again");
    let _node = space.node(NodeOptions { tools: TOOLS, ..NodeOptions::default() });
    space.apply(ALL);
    let names = ["init", "sidecar", "steady", "source"];
    let pod = space.wait_pod("all", "has run again as a whole", |pod| names.iter().all(|name| restarts(pod, name) > 0));
    let conditions = pod.status.and_then(|status| status.conditions).unwrap_or_default();
    assert!(conditions.iter().any(|condition| condition.type_ == "AllContainersRestarting"), "{conditions:#?}");
}

#[test]
fn a_container_with_another_image_runs_again_whatever_its_policy_says() {
    let space = Cluster::shared().space("changed");
    let _node = space.node(NodeOptions { images: &["sleeper", "exit-code"], ..NodeOptions::default() });
    // One that runs and would not run again, and one that waits to.
    for (name, policy, image) in [("runs", "Never", "sleeper"), ("waits", "Always", "exit-code")] {
        space.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{nodeSelector: {{wasilet.dev/test: SPACE}}, \
             restartPolicy: {policy}, terminationGracePeriodSeconds: 1, containers: [\
             {{name: main, image: 'test/{image}:v1', args: ['3']}}]}}}}"
        ));
    }
    space.wait_ready("runs");
    space.wait_pod("waits", "backs off", |pod| restarts(pod, "main") == 1);
    for (name, image) in [("runs", "exit-code"), ("waits", "sleeper")] {
        space.ok(&["set", "image", &format!("pod/{name}"), &format!("main=test/{image}:v1")]);
    }
    space.wait_event("runs", "Killing", &["Container main definition changed, will be restarted"]);
    let ended = space.wait_phase("runs", "Failed");
    let end = status_of(&ended, "main").and_then(|status| status.state.clone()?.terminated).expect("it ended");
    assert_eq!((end.exit_code, restarts(&ended, "main")), (3, 1), "the other image ran, once");
    let pod = space.wait_ready("waits");
    assert!(restarts(&pod, "main") >= 2, "{:#?}", pod.status);
}
