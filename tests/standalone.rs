//! A node without a cluster: static pods from a directory, their volumes, restarts and ends.

use std::time::Duration;

use super::support::{Place, container, eventually, http_get, pod_ip, text};

const WEB_WITH_UPDATER: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  volumes: [{name: shared-data, emptyDir: {}}]
  initContainers:
  - name: init
    image: test/init:v1
    args: ["/pod-data/index.html", "from", "init"]
    volumeMounts: [{name: shared-data, mountPath: /pod-data}]
  containers:
  - name: web
    image: test/web:v1
    args: ["--port", "8080"]
    ports: [{containerPort: 8080}]
    volumeMounts: [{name: shared-data, mountPath: /usr/share/nginx/html, readOnly: true}]
  - name: updater
    image: test/updater:v1
    args: ["/pod-data/index.html", "0.2"]
    volumeMounts: [{name: shared-data, mountPath: /pod-data}]
"#;

#[test]
fn a_sidecar_changes_the_page_that_a_server_serves_from_a_shared_volume() {
    let place = Place::with_images(&["init", "web", "updater"]);
    place.write_manifest("web.yaml", WEB_WITH_UPDATER);
    let node = place.start();
    let pod = node.wait_ready("web");
    let init = container(&pod, "init").state.as_ref().and_then(|state| state.terminated.as_ref());
    assert_eq!(init.map(|end| (end.exit_code, end.reason.as_deref())), Some((0, Some("Completed"))));

    let address = format!("{}:8080", pod_ip(&pod));
    let fetch = || http_get(&address, "/").map_err(|error| error.to_string());
    let (code, first) = eventually("the page is served", fetch);
    assert_eq!(code, 200);
    eventually("the page changes", || match fetch()? {
        (200, page) if page != first => Ok(()),
        (code, page) => Err(format!("{code} {page}")),
    });
    let log = node.wait_log("web", "web", "GET / HTTP/1.1");
    assert!(log.contains("\" 200 "), "{log}");
    node.stop();
}

#[test]
fn writing_through_a_read_only_mount_gets_erofs() {
    let place = Place::with_images(&["updater"]);
    place.write_manifest(
        "pod.yaml",
        r#"
apiVersion: v1
kind: Pod
metadata: {name: reader}
spec:
  restartPolicy: Never
  volumes: [{name: data, emptyDir: {}}]
  containers:
  - name: updater
    image: test/updater:v1
    args: ["/data/page.html"]
    volumeMounts: [{name: data, mountPath: /data, readOnly: true}]
"#,
    );
    let node = place.start();
    node.wait_phase("reader", "Failed");
    let log = node.logs("reader", "updater");
    assert!(log.contains("Read-only file system"), "{log}");
}

#[test]
fn a_restarted_container_keeps_the_volumes_and_loses_its_own_files() {
    let place = Place::new();
    place.load_tools(&["sleeper", "init", "kill"]);
    place.write_manifest(
        "pod.yaml",
        r#"
apiVersion: v1
kind: Pod
metadata: {name: keeper}
spec:
  volumes: [{name: data, emptyDir: {}}]
  containers:
  - name: main
    image: test/tools:v1
    args: ["--file", "/data/kept", "one"]
    volumeMounts: [{name: data, mountPath: /data}]
"#,
    );
    let node = place.start();
    node.wait_ready("keeper");
    node.wait_log("keeper", "main", "one");
    let write_own = node.exec("keeper", "main", &["/bin/init", "/tmp/own", "two"]);
    assert!(write_own.status.success(), "{}", text(&write_own.stderr));
    let show = |path: &str| node.exec("keeper", "main", &["/bin/sleeper", "--show", path]);
    assert_eq!(text(&show("/data/kept").stdout).trim(), "one");
    assert_eq!(text(&show("/tmp/own").stdout).trim(), "two");

    // Killed from inside, as an operator would: the container's first process is pid 1.
    let killed = node.exec("keeper", "main", &["/bin/kill", "1"]);
    assert!(killed.status.success(), "{}", text(&killed.stderr));
    node.wait_for("keeper", "has restarted", |pod| {
        let status = container(pod, "main");
        status.restart_count == 1 && status.ready
    });
    assert_eq!(text(&show("/data/kept").stdout).trim(), "one", "the volume outlives the container");
    assert!(!show("/tmp/own").status.success(), "the container's own files do not");
}

#[test]
fn a_removed_manifest_ends_its_pod_with_everything_it_had() {
    let place = Place::with_images(&["sleeper"]);
    let manifest = sleeper("gone", "x");
    place.write_manifest("pod.yaml", &manifest);
    let node = place.start();
    let pod = node.wait_ready("gone");
    let uid = pod.metadata.uid.expect("a UID");
    let pod_dir = place.root().join("pods").join(&uid);
    assert!(pod_dir.exists(), "{}", pod_dir.display());
    std::fs::remove_file(place.manifests().join("pod.yaml")).expect("the manifest is there");
    node.wait_gone("gone");
    eventually("the pod's directory is removed", || if pod_dir.exists() { Err(uid.clone()) } else { Ok(()) });
}

#[test]
fn a_changed_manifest_replaces_its_pod() {
    let place = Place::with_images(&["sleeper"]);
    place.write_manifest("pod.yaml", &sleeper("same", "first"));
    let node = place.start();
    let before = node.wait_ready("same");
    node.wait_log("same", "main", "first");
    place.write_manifest("pod.yaml", &sleeper("same", "second"));
    let after = node.wait_for("same", "is another pod", |pod| {
        pod.metadata.uid != before.metadata.uid
            && pod.status.as_ref().is_some_and(|s| s.phase.as_deref() == Some("Running"))
    });
    node.wait_log("same", "main", "second");
    assert_eq!(container(&after, "main").restart_count, 0);
}

/// A pod of one sleeper with a nonce.
pub fn sleeper(name: &str, nonce: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: test/sleeper:v1
    args: ["{nonce}"]
"#
    )
}

#[test]
fn restart_policies_decide_what_an_exit_means() {
    let place = Place::with_images(&["exit-code"]);
    for (name, policy, code) in
        [("never", "Never", 3), ("onfailure", "OnFailure", 4), ("done", "OnFailure", 0), ("always", "Always", 0)]
    {
        place.write_manifest(
            &format!("{name}.yaml"),
            &format!(
                r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  restartPolicy: {policy}
  containers: [{{name: main, image: "test/exit-code:v1", args: ["{code}"]}}]
"#
            ),
        );
    }
    let node = place.start();
    let never = node.wait_phase("never", "Failed");
    let end = container(&never, "main").state.as_ref().and_then(|state| state.terminated.clone()).expect("terminated");
    assert_eq!((end.exit_code, end.reason.as_deref()), (3, Some("Error")));
    node.wait_phase("done", "Succeeded");
    for name in ["onfailure", "always"] {
        let pod = node.wait_for(name, "is in its back-off", |pod| {
            let waiting = container(pod, "main").state.as_ref().and_then(|state| state.waiting.as_ref());
            waiting.and_then(|waiting| waiting.reason.as_deref()) == Some("CrashLoopBackOff")
        });
        let status = container(&pod, "main");
        assert!(status.restart_count >= 1, "the first restart is immediate: {status:?}");
        let message = status.state.as_ref().and_then(|state| state.waiting.as_ref()).and_then(|w| w.message.clone());
        assert!(
            message.as_deref().is_some_and(|m| m.starts_with("back-off 10s restarting failed container=main")),
            "{message:?}"
        );
    }
    assert_eq!(container(&node.pod("never").expect("still shown"), "main").restart_count, 0);
}

#[test]
fn every_exit_code_is_kept_exactly() {
    let place = Place::with_images(&["exit-code", "exit-code-p2"]);
    let codes = [0, 1, 2, 126, 127, 128, 137, 255];
    for image in ["exit-code", "exit-code-p2"] {
        for code in codes {
            let manifest = format!(
                r#"
apiVersion: v1
kind: Pod
metadata: {{name: {image}-{code}}}
spec:
  restartPolicy: Never
  containers: [{{name: main, image: "test/{image}:v1", args: ["{code}"]}}]
"#
            );
            place.write_manifest(&format!("{image}-{code}.yaml"), &manifest);
        }
    }
    let node = place.start();
    for image in ["exit-code", "exit-code-p2"] {
        for code in codes {
            let pod = node.wait_phase(&format!("{image}-{code}"), if code == 0 { "Succeeded" } else { "Failed" });
            let end = container(&pod, "main").state.as_ref().and_then(|s| s.terminated.clone()).expect("terminated");
            assert_eq!(end.exit_code, code, "{image}");
        }
    }
}

#[test]
fn sigterm_to_the_agent_stops_guests_and_a_later_start_goes_on_where_it_left() {
    let place = Place::with_images(&["sleeper", "exit-code"]);
    place.write_manifest("sleeper.yaml", &sleeper("stays", "again"));
    place.write_manifest(
        "job.yaml",
        r#"
apiVersion: v1
kind: Pod
metadata: {name: once}
spec:
  restartPolicy: OnFailure
  containers: [{name: main, image: "test/exit-code:v1", args: ["0"]}]
"#,
    );
    let node = place.start();
    let before = node.wait_ready("stays");
    let once = node.wait_phase("once", "Succeeded");
    node.stop();

    let node = place.start();
    let after = node.wait_ready("stays");
    assert_eq!(before.metadata.uid, after.metadata.uid, "the same pod");
    assert_eq!(pod_ip(&before), pod_ip(&after), "the same address");
    assert_eq!(container(&after, "main").restart_count, 1);
    let again = node.wait_phase("once", "Succeeded");
    assert_eq!(container(&once, "main").container_id, container(&again, "main").container_id, "it ran once");
}

#[test]
fn kill_9_of_the_agent_loses_no_volume_no_log_and_no_restart_count() {
    let place = Place::with_images(&["sleeper"]);
    place.load_tools(&["sleeper", "init"]);
    place.write_manifest(
        "always.yaml",
        r#"
apiVersion: v1
kind: Pod
metadata: {name: always}
spec:
  volumes: [{name: data, emptyDir: {}}, {name: fast, emptyDir: {medium: Memory}}]
  containers:
  - name: main
    image: test/tools:v1
    args: ["--file", "/data/kept", "nonce"]
    volumeMounts: [{name: data, mountPath: /data}, {name: fast, mountPath: /fast}]
"#,
    );
    place.write_manifest("never.yaml", &sleeper("never", "n").replace("spec:", "spec:\n  restartPolicy: Never"));
    let mut node = place.start();
    node.wait_ready("always");
    node.wait_ready("never");
    node.wait_log("always", "main", "nonce");
    let wrote = node.exec("always", "main", &["/bin/init", "/fast/x", "ram"]);
    assert!(wrote.status.success(), "{}", text(&wrote.stderr));
    node.process.signal(rustix::process::Signal::KILL);
    node.process.wait();
    drop(node);

    let node = place.start();
    let pod = node.wait_for("always", "runs again", |pod| {
        let status = container(pod, "main");
        status.restart_count == 1 && status.ready
    });
    let last =
        container(&pod, "main").last_state.as_ref().and_then(|state| state.terminated.clone()).expect("a last state");
    assert_eq!(last.exit_code, 137);
    let show =
        |path: &str| text(&node.exec("always", "main", &["/bin/sleeper", "--show", path]).stdout).trim().to_owned();
    assert_eq!(show("/data/kept"), "nonce");
    assert_eq!(show("/fast/x"), "ram", "memory volumes outlive the agent");
    let previous = place.run(&["logs", "always-node", "--previous"]);
    assert!(text(&previous.stdout).contains("nonce"), "{}", text(&previous.stderr));
    node.wait_phase("never", "Failed");
}

#[test]
fn init_containers_run_in_order_and_a_failing_one_holds_the_pod_back() {
    let place = Place::with_images(&["init", "exit-code", "sleeper"]);
    place.write_manifest(
        "ordered.yaml",
        r#"
apiVersion: v1
kind: Pod
metadata: {name: ordered}
spec:
  volumes: [{name: data, emptyDir: {}}]
  initContainers:
  - {name: first, image: "test/init:v1", args: ["/data/a", "first"], volumeMounts: [{name: data, mountPath: /data}]}
  - {name: side, image: "test/sleeper:v1", restartPolicy: Always, args: ["side"]}
  - {name: second, image: "test/init:v1", args: ["/data/b", "second"], volumeMounts: [{name: data, mountPath: /data}]}
  containers: [{name: main, image: "test/sleeper:v1", args: ["main"]}]
"#,
    );
    place.write_manifest(
        "blocked.yaml",
        r#"
apiVersion: v1
kind: Pod
metadata: {name: blocked}
spec:
  restartPolicy: Never
  initContainers: [{name: bad, image: "test/exit-code:v1", args: ["9"]}]
  containers: [{name: main, image: "test/sleeper:v1", args: ["main"]}]
"#,
    );
    let node = place.start();
    let pod = node.wait_ready("ordered");
    let ended = |name: &str| {
        let end = container(&pod, name).state.as_ref().and_then(|state| state.terminated.clone()).expect("terminated");
        (end.started_at.map(|t| t.0), end.finished_at.map(|t| t.0))
    };
    let started = |name: &str| {
        container(&pod, name)
            .state
            .as_ref()
            .and_then(|s| s.running.as_ref())
            .and_then(|r| r.started_at.as_ref())
            .map(|t| t.0)
    };
    assert!(ended("first").1 <= started("side"), "{pod:#?}");
    assert!(started("side") <= ended("second").0, "{pod:#?}");
    assert!(ended("second").1 <= started("main"), "{pod:#?}");
    let blocked = node.wait_phase("blocked", "Failed");
    let main = container(&blocked, "main").state.as_ref().and_then(|state| state.waiting.as_ref());
    assert_eq!(main.and_then(|w| w.reason.as_deref()), Some("PodInitializing"));
}

#[test]
fn config_maps_secrets_and_pod_fields_reach_a_container() {
    let place = Place::with_images(&["hello", "sleeper"]);
    place.write_manifest(
        "config.yaml",
        r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {COLOUR: teal, page.html: "<p>hi</p>"}
---
apiVersion: v1
kind: Secret
metadata: {name: keys}
stringData: {TOKEN: s3cr3t}
---
apiVersion: v1
kind: Pod
metadata: {name: configured, labels: {tier: edge}}
spec:
  restartPolicy: Never
  containers:
  - name: main
    image: test/hello:v1
    args: ["$(COLOUR)", "$(MISSING)", "$$(COLOUR)"]
    envFrom: [{configMapRef: {name: settings}}]
    env:
    - {name: TOKEN, valueFrom: {secretKeyRef: {name: keys, key: TOKEN}}}
    - {name: TIER, valueFrom: {fieldRef: {fieldPath: "metadata.labels['tier']"}}}
    - {name: HELLO_ENV, value: "$(TIER)-$(TOKEN)"}
  - name: files
    image: test/sleeper:v1
    args: ["--show", "/etc/settings/page.html"]
    volumeMounts: [{name: settings, mountPath: /etc/settings}, {name: keys, mountPath: /etc/keys}]
  volumes:
  - {name: settings, configMap: {name: settings}}
  - {name: keys, secret: {secretName: keys}}
"#,
    );
    let node = place.start();
    node.wait_phase("configured", "Succeeded");
    let log = node.logs("configured", "main");
    assert!(log.contains("teal") && log.contains("$(MISSING)") && log.contains("$(COLOUR)"), "{log}");
    assert!(log.contains("edge-s3cr3t"), "{log}");
    assert!(node.logs("configured", "files").contains("<p>hi</p>"));
}

#[test]
fn a_guest_that_listens_for_signals_is_told_and_any_other_ends_at_once() {
    let place = Place::with_images(&["sleeper", "signal"]);
    place.write_manifest("plain.yaml", &sleeper("plain", "x").replace("Seconds: 1", "Seconds: 30"));
    place.write_manifest(
        "told.yaml",
        r#"
apiVersion: v1
kind: Pod
metadata: {name: told}
spec:
  terminationGracePeriodSeconds: 30
  containers: [{name: main, image: "test/signal:v1"}]
"#,
    );
    let node = place.start();
    node.wait_ready("plain");
    node.wait_ready("told");
    node.wait_log("told", "main", "waiting");
    let begin = std::time::Instant::now();
    node.stop();
    assert!(begin.elapsed() < Duration::from_secs(10), "neither needs its 30 s: {:?}", begin.elapsed());
    let node = place.start();
    node.wait_ready("told");
    let previous = text(&place.run(&["logs", "told-node", "--previous"]).stdout);
    assert!(previous.contains("15"), "it was told SIGTERM: {previous}");
}

#[test]
fn a_manifest_removed_while_the_agent_is_down_ends_its_pod_with_everything_but_what_is_the_hosts() {
    let place = Place::with_images(&["sleeper"]);
    let host = place.manifests().join("host");
    std::fs::create_dir_all(host.join("deep")).expect("a directory");
    std::fs::write(host.join("deep/keep"), "kept").expect("a file");
    let pod = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers:\n  - name: main\n    image: test/sleeper:v1\n    args: [--file, /own/seen, {name}]\n    volumeMounts: [{{name: own, mountPath: /own}}, {{name: memory, mountPath: /memory}}, {{name: host, mountPath: /host}}]\n  volumes: [{{name: own, emptyDir: {{}}}}, {{name: memory, emptyDir: {{medium: Memory}}}}, {{name: host, hostPath: {{path: {}}}}}]\n",
            host.display()
        )
    };
    for killed in [false, true] {
        place.write_manifest("stays.yaml", &pod("stays"));
        place.write_manifest("goes.yaml", &pod("goes"));
        let mut node = place.start();
        node.wait_ready("stays");
        let uid = node.wait_ready("goes").metadata.uid.expect("a UID");
        let dir = place.root().join("pods").join(&uid);
        let own = dir.join("volumes/kubernetes.io~empty-dir/own");
        assert!(own.join("seen").exists());
        std::os::unix::fs::symlink(&host, own.join("link")).expect("a link");
        std::os::unix::fs::symlink(host.join("deep/keep"), own.join("file")).expect("a link");
        if killed {
            node.process.signal(rustix::process::Signal::KILL);
            node.process.wait();
            drop(node);
        } else {
            node.stop();
        }
        assert!(dir.exists(), "an agent that stops keeps what its pods have");
        std::fs::remove_file(place.manifests().join("goes.yaml")).expect("the manifest is there");
        let node = place.start();
        node.wait_ready("stays");
        node.wait_gone("goes");
        let left = || {
            let places = [place.root(), std::path::PathBuf::from("/dev/shm")];
            let found = std::process::Command::new("find").args(places).args(["-name", &format!("*{uid}*")]).output();
            text(&found.expect("find(1)").stdout)
        };
        eventually("nothing of it is left", || if left().is_empty() { Ok(()) } else { Err(left()) });
        assert_eq!(std::fs::read_to_string(host.join("deep/keep")).expect("it is there"), "kept");
        node.stop();
    }
}
