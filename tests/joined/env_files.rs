//! Variables from a file that an init container wrote, and the signal that a container asks to be stopped with.

use k8s_openapi::api::core::v1::Pod;

use crate::cluster::{Cluster, NodeOptions, Space};
use crate::support::{container, eventually};

/// A pod whose init container writes `vars` into a volume that the other reads variables from.
fn pod(name: &str, text: &str, env: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  nodeSelector: {{wasilet.dev/test: SPACE}}
  restartPolicy: Never
  volumes: [{{name: config, emptyDir: {{}}}}]
  initContainers:
  - name: init
    image: test/tools:v1
    command: [/bin/init, /data/vars, {text}]
    volumeMounts: [{{name: config, mountPath: /data}}]
  containers:
  - name: main
    image: test/tools:v1
    command: [/bin/hello, "$(FIRST)|$(SECOND)|$(THIRD)"]
    env:
{env}"#
    )
}

fn variable(name: &str, key: &str, more: &str) -> String {
    format!("    - {{name: {name}, valueFrom: {{fileKeyRef: {{volumeName: config, path: vars, key: {key}{more}}}}}}}\n")
}

fn waiting(pod: &Pod) -> Option<(String, String)> {
    let waiting = container(pod, "main").state.as_ref()?.waiting.clone()?;
    Some((waiting.reason.unwrap_or_default(), waiting.message.unwrap_or_default()))
}

#[test]
fn variables_come_from_a_file_that_an_init_container_wrote() {
    if Cluster::shared().lacks(35, "fileKeyRef") {
        return;
    }
    let space = Cluster::shared().space("env-files");
    let _node = space.node(NodeOptions { tools: &["hello", "init"], ..NodeOptions::default() });
    let good = "\"# made by init\\nONE='1 $HOME'\\nTWO='a\\nb' # c\\n\"";
    let env =
        [variable("FIRST", "ONE", ""), variable("SECOND", "TWO", ""), variable("THIRD", "NONE", ", optional: true")];
    space.apply(&pod("good", good, &env.concat()));
    space.apply(&pod("missing", good, &variable("FIRST", "NONE", "")));
    space.apply(&pod("bad", "ONE=1", &variable("FIRST", "ONE", "")));
    space.wait_phase("good", "Succeeded");
    let log = space.ok(&["logs", "good", "--container", "main"]);
    assert!(log.contains(r#""1 $HOME|a\nb|$(THIRD)""#), "{log}");
    for (name, words) in [
        ("missing", "environment variable key \"NONE\" not found in file \""),
        ("bad", "invalid environment variable format at line 1: value must be enclosed in single quotes"),
    ] {
        let pod = space.wait_pod(name, "waits", |pod| {
            waiting(pod).is_some_and(|(reason, _)| reason == "CreateContainerConfigError")
        });
        let (_, message) = waiting(&pod).expect("it was waited for");
        assert!(message.contains(words), "{name}: {message}");
        space.wait_event(name, "Failed", &["Error: ", words]);
    }
}

fn log_has(space: &Space<'_>, pod: &str, words: &str) {
    eventually("the log says so", || {
        let log = space.kubectl(&["logs", pod]).stdout;
        if log.contains(words) { Ok(()) } else { Err(log) }
    });
}

#[test]
fn a_container_is_stopped_with_the_signal_it_asks_for() {
    let Some(cluster) = Cluster::gated() else { return };
    let space = cluster.space("stop-signal");
    let _node =
        space.node(NodeOptions { images: &["signal"], labels: ", kubernetes.io/os: linux", ..NodeOptions::default() });
    // The API server takes a signal from those alone that say which system it is of.
    for (name, lifecycle) in [("asks", "lifecycle: {stopSignal: SIGUSR1}"), ("does-not", "")] {
        space.apply(&format!(
            r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}, finalizers: [test.wasilet.dev/look]}}
spec:
  nodeSelector: {{wasilet.dev/test: SPACE}}
  restartPolicy: Never
  os: {{name: linux}}
  containers:
  - name: main
    image: test/signal:v1
    {lifecycle}
"#
        ));
        space.wait_ready(name);
        log_has(&space, name, "signal: waiting");
    }
    let shown = |name: &str| {
        let pod = space.wait_ready(name);
        container(&pod, "main").stop_signal.clone()
    };
    assert_eq!((shown("asks").as_deref(), shown("does-not")), (Some("SIGUSR1"), None));
    for (name, number) in [("asks", 10), ("does-not", 15)] {
        space.ok(&["delete", "pod", name, "--wait=false"]);
        space.wait_phase(name, "Succeeded");
        log_has(&space, name, &format!("signal: got {number}\n"));
        space.ok(&["patch", "pod", name, "--type=merge", "--patch", r#"{"metadata": {"finalizers": []}}"#]);
        space.wait_gone(name);
    }
}
