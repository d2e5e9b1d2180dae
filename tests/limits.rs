//! Guests that misbehave: each is held to its limits, and nobody else feels it.

use std::time::{Duration, Instant};

use super::standalone::sleeper;
use super::support::{Place, Process, container, eventually, text};

fn pod(name: &str, image: &str, args: &str, resources: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: test/{image}:v1
    args: {args}
    resources: {resources}
"#
    )
}

#[test]
fn a_guest_over_its_memory_limit_is_oom_killed() {
    let place = Place::with_images(&["grow", "sleeper"]);
    place.write_manifest("grow.yaml", &pod("grow", "grow", r#"["1"]"#, "{limits: {memory: 32Mi}}"));
    place.write_manifest("other.yaml", &sleeper("other", "x"));
    let node = place.start();
    let grown = node.wait_phase("grow", "Failed");
    let end = container(&grown, "main").state.as_ref().and_then(|s| s.terminated.clone()).expect("terminated");
    assert_eq!((end.exit_code, end.reason.as_deref()), (137, Some("OOMKilled")));
    let log = node.logs("grow", "main");
    assert!(log.contains("20 MiB") && !log.contains("40 MiB"), "it got what its limit allows, no more: {log}");
    assert_eq!(container(&node.wait_ready("other"), "main").restart_count, 0);
}

#[test]
fn a_trap_ends_with_134_and_its_backtrace() {
    let place = Place::with_images(&["trap"]);
    for kind in ["unreachable", "bounds", "stack"] {
        place.write_manifest(&format!("{kind}.yaml"), &pod(kind, "trap", &format!("[\"{kind}\"]"), "{}"));
    }
    let node = place.start();
    for (kind, word) in [("unreachable", "unreachable"), ("bounds", "out of bounds"), ("stack", "overflow_the_stack")] {
        let failed = node.wait_phase(kind, "Failed");
        let end = container(&failed, "main").state.as_ref().and_then(|s| s.terminated.clone()).expect("terminated");
        assert_eq!((end.exit_code, end.reason.as_deref()), (134, Some("Error")), "{kind}");
        let message = end.message.unwrap_or_default();
        assert!(message.contains(word) && message.contains("wasm backtrace"), "{kind}: {message}");
    }
}

#[test]
fn ten_thousand_open_files_end_at_the_limit_of_the_guest_alone() {
    let place = Place::with_images(&["open-files", "sleeper"]);
    place.write_manifest("open.yaml", &pod("open", "open-files", "[]", "{}"));
    place.write_manifest("other.yaml", &sleeper("other", "x"));
    let node = place.start();
    let ended = node.wait_for("open", "has ended", |pod| {
        matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Failed" | "Succeeded"))
    });
    let log = node.logs("open", "main");
    let phase = ended.status.and_then(|status| status.phase);
    assert!(phase.as_deref() == Some("Succeeded") || log.contains("No file descriptors available"), "{phase:?} {log}");
    assert_eq!(container(&node.wait_ready("other"), "main").restart_count, 0);
}

#[test]
fn a_flooded_log_is_rotated_and_stays_bounded() {
    let place = Place::with_images(&["flood", "sleeper"]);
    let config = place.path().join("config.yaml");
    std::fs::write(
        &config,
        "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\ncontainerLogMaxSize: 1Mi\ncontainerLogMaxFiles: 3\n",
    )
    .expect("a config file");
    place.write_manifest("flood.yaml", &pod("flood", "flood", r#"["100000", "100"]"#, "{}"));
    place.write_manifest("other.yaml", &sleeper("other", "x"));
    let node = place.start_with(&["--config", &config.to_string_lossy()]);
    node.wait_phase("flood", "Succeeded");
    let last = node.logs("flood", "main");
    assert!(
        last.contains("100000") || last.contains("99999"),
        "the newest lines are kept: {}",
        &last[last.len().saturating_sub(300)..]
    );
    let mut bytes = 0;
    let mut files = 0;
    let mut dirs = vec![place.root().join("logs")];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).expect("logs").flatten() {
            let meta = entry.metadata().expect("metadata");
            if meta.is_dir() {
                dirs.push(entry.path());
            } else if entry.path().to_string_lossy().contains("flood") {
                bytes += meta.len();
                files += 1;
            }
        }
    }
    assert!(files <= 3, "{files} files");
    assert!(bytes <= 4 << 20, "{bytes} bytes of 10 MB written");
    assert_eq!(container(&node.wait_ready("other"), "main").restart_count, 0);
}

#[test]
fn a_full_disk_takes_the_logs_of_dead_containers_before_any_pod() {
    let Some(place) = Place::with_disk_of(128) else { return };
    let place = place.loaded(&["flood", "sleeper"]);
    let config = place.path().join("config.yaml");
    std::fs::write(
        &config,
        "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\ncontainerLogMaxSize: 100Mi\nevictionHard: {nodefs.available: 64Mi}\nimageGCHighThresholdPercent: 100\n",
    )
    .expect("a config file");
    // About 70 MB of log, by a container that is over when the pod runs.
    place.write_manifest(
        "pod.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: tidy}\nspec:\n  initContainers: [{name: flood, image: \"test/flood:v1\", args: [\"500000\", \"100\"]}]\n  containers: [{name: main, image: \"test/sleeper:v1\", args: [well]}]\n",
    );
    let node = place.start_with(&["--config", &config.to_string_lossy()]);
    node.wait_ready("tidy");
    assert_eq!(node.logs("tidy", "main"), "well\n");
    eventually("the disk has room again", || {
        let output = node.process.output();
        if output.contains("Reduced resource pressure without evicting pods") { Ok(()) } else { Err(output) }
    });
    let logs =
        text(&place.shell(&format!("find {} -name '*.log*' -size +1k", place.root().join("logs").display())).stdout);
    assert_eq!(logs, "", "the dead container's");
    let pod = node.wait_ready("tidy");
    assert_eq!(container(&pod, "main").restart_count, 0, "the pod runs on");
    assert_eq!(node.logs("tidy", "main"), "well\n");
}

#[test]
fn an_exec_answers_within_a_second_beside_a_crowd_of_spinning_guests() {
    let place = Place::alone().loaded(&["spin", "sleeper"]);
    place.write_manifest("other.yaml", &sleeper("other", "calm"));
    let node = place.start();
    node.wait_ready("other");
    let replicas = 1000;
    place.write_manifest(
        "spinners.yaml",
        &format!(
            r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: spinners}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: spin}}}}
  template:
    metadata: {{labels: {{app: spin}}}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{{name: main, image: "test/spin:v1"}}]
"#
        ),
    );
    eventually("all spinners run", || {
        let pods = node.pods();
        let running = pods.iter().filter(|pod| {
            let spinner =
                pod.metadata.labels.as_ref().is_some_and(|labels| labels.get("app").is_some_and(|app| app == "spin"));
            spinner && pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running")
        });
        let running = running.count();
        if running == replicas { Ok(()) } else { Err(format!("{running} of {replicas}")) }
    });
    // The best of three: the machine's own noise is not what is asked about.
    let fastest = (0..3)
        .map(|_| {
            let begin = Instant::now();
            let output = node.exec("other", "main", &["/app.wasm", "--show", "/etc/hostname"]);
            assert!(output.status.success(), "{}", text(&output.stderr));
            begin.elapsed()
        })
        .min()
        .expect("three tries");
    assert!(fastest < Duration::from_secs(1), "{fastest:?}");
}

#[test]
fn limits_of_the_network_that_a_pod_hits_are_events_of_the_pod_and_lines_of_the_log() {
    let place = Place::with_images(&["net-check"]);
    let manifest = place.path().join("pod.yaml");
    std::fs::write(&manifest, pod("hoard", "net-check", r#"["hoard", "7000"]"#, "{}")).expect("a manifest");
    let mut play = Process::spawn(place.command(&["play", &manifest.to_string_lossy()]).env("WASILET_LOG", "warn"));
    // What one pod may have, of sockets or of the agent's open files, is the machine's affair.
    let sockets: &[(&str, &str)] = &[
        ("SocketLimitReached", "Pod hit a limit: another socket was refused with EMFILE: the pod has 4096"),
        ("OpenFileLimitReached", "Pod hit a limit: another socket was refused with"),
    ];
    let buffers: &[(&str, &str)] = &[("SocketBufferLimitReached", "hold 65536 KiB that nobody has read")];
    let backlog: &[(&str, &str)] = &[("BacklogFull", "a connection to 127.0.0.1:7000 waits for room: 129 are in")];
    for wanted in [buffers, sockets, backlog] {
        eventually(&format!("{wanted:?}"), || {
            let output = play.output();
            let told = |(reason, words): &(&str, &str)| {
                let line = |begin: &str| {
                    output.lines().any(|line| line.contains(begin) && line.contains(reason) && line.contains(words))
                };
                line("! ")
                    && output
                        .lines()
                        .any(|line| line.contains("Pod hit a limit of its network") && line.contains(reason))
            };
            if wanted.iter().any(told) { Ok(()) } else { Err(output) }
        });
    }
    // The node may have warnings of its own: a full disk.
    let of_pod = |line: &&str| line.starts_with("! ") && line.contains(" hoard: ");
    let events = play.output().lines().filter(of_pod).count();
    assert_eq!(events, 3, "one each, however many were refused: {}", play.output());
    play.signal(rustix::process::Signal::INT);
    play.wait();
}
