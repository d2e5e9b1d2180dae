//! A node that runs short: who is evicted for memory, for processes, for either disk, and what a pod is told that is over
//! limits of its own.
//!
//! What the node measures is the test's: files in the place of those of `/proc`, and small disks, all seen by the node alone.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Node as NodeObject, NodeCondition, Pod};
use kube::Api;

use super::volumes::until;
use crate::cluster::{Cluster, LONG, Node, NodeOptions, Space, is_ready};
use crate::support::{container, skipped};

/// A pod of one guest.
fn pod(name: &str, spec: &str, image: &str, args: &str, container: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  nodeSelector: {{wasilet.dev/test: SPACE}}
  terminationGracePeriodSeconds: 1
{spec}
  containers:
  - name: main
    image: test/{image}:v1
    args: {args}
{container}
"
    )
}

/// A file that is seen in the place of one of `/proc`. It is written at once and keeps its length: a reader sees one or the
/// other.
struct Measure {
    path: PathBuf,
    show: fn(u64) -> String,
}

impl Measure {
    fn new(dir: &Path, name: &str, show: fn(u64) -> String, value: u64) -> Self {
        let path = dir.join(name);
        fs::write(&path, show(value)).expect("a file");
        Self { path, show }
    }

    fn set(&self, value: u64) {
        let file = fs::OpenOptions::new().write(true).open(&self.path).expect("a file");
        file.write_all_at((self.show)(value).as_bytes(), 0).expect("it is written");
    }
}

/// A machine of 1 GiB with so many MiB available.
fn meminfo(mebibytes: u64) -> String {
    let kib = mebibytes * 1024;
    format!("MemTotal:        1048576 kB\nMemFree:      {kib:>10} kB\nMemAvailable: {kib:>10} kB\n")
}

/// So many processes.
fn loadavg(processes: u64) -> String {
    format!("0.00 0.00 0.00 1/{processes:<6} 1\n")
}

/// Waits until a condition of the Node has that status; the condition.
pub(super) fn wait_condition(space: &Space<'_>, node: &Node<'_>, kind: &str, status: &str) -> NodeCondition {
    let nodes: Api<NodeObject> = Api::all(space.cluster().client());
    let found = |node: Option<&NodeObject>| {
        let conditions = node.and_then(|node| node.status.as_ref()?.conditions.as_deref()).unwrap_or_default();
        conditions.iter().find(|condition| condition.type_ == kind && condition.status == status).cloned()
    };
    let what = format!("has {kind} {status}");
    let node = space.cluster().wait_for(&nodes, node.name(), LONG, &what, |node| found(node).is_some());
    found(node.as_ref()).expect("it was seen")
}

/// Waits until a pod was evicted for `resource`; its message.
fn evicted(space: &Space<'_>, name: &str, resource: &str) -> String {
    let pod = space.wait_phase(name, "Failed");
    let status = pod.status.expect("a status");
    assert_eq!(status.reason.as_deref(), Some("Evicted"), "{name}");
    let message = status.message.unwrap_or_default();
    assert!(message.starts_with(&format!("The node was low on resource: {resource}. ")), "{name}: {message}");
    let conditions = status.conditions.unwrap_or_default();
    let target = conditions.iter().find(|condition| condition.type_ == "DisruptionTarget").expect("the condition");
    assert_eq!(target.reason.as_deref(), Some("TerminationByKubelet"));
    space.wait_event(name, "Evicted", &[message.trim_end()]);
    message
}

fn runs_on(space: &Space<'_>, name: &str) {
    let pod: Pod = space.wait_phase(name, "Running");
    assert!(is_ready(&pod) && container(&pod, "main").restart_count == 0, "{name} runs on: {:#?}", pod.status);
}

fn is_ours(space: &Space<'_>) -> bool {
    let ours = space.cluster().try_plane().is_some();
    if !ours {
        skipped("what its node measures must be the test's to choose");
    }
    ours
}

#[test]
fn memory_and_processes_that_run_short_take_who_is_over_its_requests_then_who_matters_least() {
    let space = Cluster::shared().space("pressure");
    if !is_ours(&space) {
        return;
    }
    let dir = space.cluster().dir().join(space.name());
    fs::create_dir(&dir).expect("a directory");
    let memory = Measure::new(&dir, "meminfo", meminfo, 600);
    let processes = Measure::new(&dir, "loadavg", loadavg, 100);
    fs::write(dir.join("pid_max"), "1000\n").expect("a file");
    let mounts = ["meminfo", "loadavg", "pid_max"].map(|name| {
        let at = if name == "pid_max" { "sys/kernel/pid_max" } else { name };
        format!("mount --bind {}/{name} /proc/{at}\n", dir.display())
    });
    let node = space.node(NodeOptions {
        images: &["grow", "sleeper"],
        kubelet: "evictionHard: {memory.available: 200Mi, pid.available: \"100\"}\nevictionPressureTransitionPeriod: 1s",
        mounts: &mounts.concat(),
        ..NodeOptions::default()
    });
    let class = "{apiVersion: scheduling.k8s.io/v1, kind: PriorityClass, metadata: {name: SPACE-high}, value: 1000}";
    space.apply(class);
    let high = "  priorityClassName: SPACE-high";
    let asks = |memory: &str| format!("    resources: {{requests: {{memory: {memory}}}}}");
    for manifest in [
        pod("within", "", "grow", r#"["1", "40"]"#, &asks("64Mi")),
        pod("over", "", "grow", r#"["1", "40"]"#, &asks("16Mi")),
        pod("most", high, "grow", r#"["1", "60"]"#, ""),
        pod("precious", high, "sleeper", "[x]", &asks("16Mi")),
    ] {
        space.apply(&manifest);
    }
    for name in ["within", "over", "most", "precious"] {
        space.wait_ready(name);
    }
    for (name, held) in [("within", 40), ("over", 40), ("most", 60)] {
        let words = format!("holding {held} MiB");
        until(&format!("{name} holds {held} MiB"), || space.ok(&["logs", name]).contains(&words));
    }

    memory.set(150);
    // Two are over their requests: the one of lesser priority goes first, though the other is further above.
    let message = evicted(&space, "over", "memory");
    assert!(message.contains("Threshold quantity: 200Mi, available: 150Mi. Container main was using "), "{message}");
    assert!(message.ends_with(", request is 16Mi, has larger consumption of memory. "), "{message}");
    runs_on(&space, "most");
    wait_condition(&space, &node, "MemoryPressure", "True");
    let bound = pod("late", "", "sleeper", "[x]", "");
    space.apply(&bound.replace("nodeSelector: {wasilet.dev/test: SPACE}", &format!("nodeName: {}", node.name())));
    space.wait_event("late", "Evicted", &["The node had condition: [MemoryPressure]. "]);
    // Then the other, whatever its priority, before one that is within its requests.
    let message = evicted(&space, "most", "memory");
    memory.set(600);
    assert!(message.ends_with(", request is 0, has larger consumption of memory. "), "{message}");
    wait_condition(&space, &node, "MemoryPressure", "False");
    runs_on(&space, "within");

    processes.set(950);
    let message = evicted(&space, "within", "pids");
    processes.set(100);
    assert_eq!(message, "The node was low on resource: pids. Threshold quantity: 100, available: 50. ");
    wait_condition(&space, &node, "PIDPressure", "False");
    runs_on(&space, "precious");
}

#[test]
fn a_soft_threshold_is_borne_for_its_grace_and_left_behind_with_what_is_to_be_reclaimed() {
    let space = Cluster::shared().space("soft");
    if !is_ours(&space) {
        return;
    }
    let dir = space.cluster().dir().join(space.name());
    fs::create_dir(&dir).expect("a directory");
    let memory = Measure::new(&dir, "meminfo", meminfo, 600);
    let mounts = format!("mount --bind {}/meminfo /proc/meminfo\n", dir.display());
    let settings = [
        "evictionHard: {memory.available: 50Mi}",
        "evictionSoft: {memory.available: 200Mi}",
        "evictionSoftGracePeriod: {memory.available: 12s}",
        "evictionMinimumReclaim: {memory.available: 100Mi}",
        "evictionMaxPodGracePeriod: 4",
        "evictionPressureTransitionPeriod: 1s",
    ];
    let node = space.node(NodeOptions {
        images: &["grow", "sleeper"],
        kubelet: &settings.join("\n"),
        mounts: &mounts,
        ..NodeOptions::default()
    });
    // Takes what it is given of its grace.
    let waits = pod("most", "", "grow", r#"["1", "40"]"#, "")
        .replace("metadata: {", "metadata: {annotations: {wasilet.dev/termination: wait}, ")
        .replace("terminationGracePeriodSeconds: 1", "terminationGracePeriodSeconds: 60");
    space.apply(&waits);
    space.apply(&pod("little", "", "sleeper", "[x]", ""));
    for name in ["most", "little"] {
        space.wait_ready(name);
    }
    until("it holds 40 MiB", || space.ok(&["logs", "most"]).contains("holding 40 MiB"));

    // A shortage that is over within the grace costs nobody; above the threshold it is over, for nothing was reclaimed.
    memory.set(150);
    wait_condition(&space, &node, "MemoryPressure", "True");
    memory.set(250);
    wait_condition(&space, &node, "MemoryPressure", "False");
    for name in ["most", "little"] {
        runs_on(&space, name);
    }

    memory.set(150);
    let pressure = wait_condition(&space, &node, "MemoryPressure", "True");
    let since = pressure.last_transition_time.expect("a time").0;
    runs_on(&space, "most");
    let message = evicted(&space, "most", "memory");
    memory.set(250);
    assert!(message.starts_with("The node was low on resource: memory. Threshold quantity: 200Mi, available: 150Mi. "));
    let pod = space.wait_phase("most", "Failed");
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let target = conditions.iter().find(|condition| condition.type_ == "DisruptionTarget").expect("the condition");
    let told = target.last_transition_time.as_ref().expect("a time").0;
    let borne = told.duration_since(since).as_secs();
    // Times are of seconds.
    assert!(borne >= 11, "the grace is 12 s, it was borne for {borne} s");
    let state = container(&pod, "main").state.as_ref().and_then(|state| state.terminated.clone()).expect("it ended");
    let ended = state.finished_at.expect("a time").0.duration_since(told).as_secs();
    assert!((3..20).contains(&ended), "evictionMaxPodGracePeriod is 4 s, it ended after {ended} s");

    // What ended the shortage before does not end it now: 100Mi more than the threshold have to be free.
    let message = evicted(&space, "little", "memory");
    assert!(message.contains(" Threshold quantity: 200Mi, available: 250Mi. "), "{message}");
    memory.set(400);
    wait_condition(&space, &node, "MemoryPressure", "False");
}

/// The directory `at` as a disk of its own, with what is in it; `options` are those of a tmpfs.
pub(super) fn disk(at: &str, options: &str) -> String {
    let from = at.replace('/', ".");
    format!(
        r#"mkdir "{from}.disk"
mount -t tmpfs -o {options} tmpfs "{from}.disk"
cp -a "{at}/." "{from}.disk"
mount --bind "{from}.disk" "{at}"
"#
    )
}

#[test]
fn a_disk_without_inodes_takes_who_has_most_files() {
    let space = Cluster::shared().space("inodes");
    if !is_ours(&space) {
        return;
    }
    let node = space.node(NodeOptions {
        images: &["fill"],
        kubelet: "evictionHard: {nodefs.inodesFree: \"1000\"}\nevictionPressureTransitionPeriod: 1s",
        mounts: &disk("$0", "size=128m,nr_inodes=3000"),
        ..NodeOptions::default()
    });
    let volume = "  volumes: [{name: data, emptyDir: {}}]";
    let mount = "    volumeMounts: [{name: data, mountPath: /data}]";
    let mut uids = Vec::new();
    for (name, mebibytes) in [("files", 1), ("bytes", 16)] {
        space.apply(&pod(name, volume, "fill", &format!(r#"[/data/fill, "{mebibytes}"]"#), mount));
        until(&format!("{name} has filled its file"), || space.kubectl(&["logs", name]).stdout.contains(" MiB in "));
        uids.push(space.wait_ready(name).metadata.uid.expect("a UID"));
    }
    // What a guest does in its volume, without waiting for thousands of its files.
    node.shell(&format!(
        r#"cd "$0/pods/{}/volumes/kubernetes.io~empty-dir/data"
        free=$(df -Pi . | tail -n 1 | tr -s ' ' | cut -d ' ' -f 4)
        while [ "$free" -gt 700 ]; do : >"$free"; free=$((free - 1)); done"#,
        uids[0]
    ));
    let message = evicted(&space, "files", "inodes");
    assert!(
        message.starts_with("The node was low on resource: inodes. Threshold quantity: 1000, available: "),
        "{message}"
    );
    assert_eq!(message.matches(". ").count(), 2, "of containers nothing is said: {message}");
    wait_condition(&space, &node, "DiskPressure", "False");
    runs_on(&space, "bytes");
}

#[test]
fn a_full_disk_takes_unused_images_and_then_who_has_most_on_it() {
    let space = Cluster::shared().space("disks");
    if !is_ours(&space) {
        return;
    }
    let node = space.node(NodeOptions {
        images: &["fill", "hello"],
        kubelet: "evictionHard: {nodefs.available: 64Mi, imagefs.available: 16Mi}\nevictionPressureTransitionPeriod: 1s",
        mounts: &(disk("$0", "size=128m") + &disk("$0/images", "size=64m")),
        ..NodeOptions::default()
    });
    let images =
        || space.cluster().kubectl_ok(&["get", "node", node.name(), "--output", "jsonpath={.status.images[*].names}"]);
    assert!(images().contains("test/hello:v1"), "{}", images());
    let volume = "  volumes: [{name: data, emptyDir: {}}]";
    let mount = "    volumeMounts: [{name: data, mountPath: /data}]";
    let filled = |manifest: &str, name: &str| {
        space.apply(manifest);
        until(&format!("{name} has filled its file"), || space.kubectl(&["logs", name]).stdout.contains(" MiB in "));
    };
    filled(&pod("little", "", "fill", r#"[/tmp/fill, "8"]"#, ""), "little");
    filled(&pod("in-a-volume", volume, "fill", r#"[/data/fill, "30"]"#, mount), "in-a-volume");
    space.apply(&pod("of-its-own", "", "fill", r#"[/tmp/fill, "28"]"#, ""));

    let message = evicted(&space, "in-a-volume", "ephemeral-storage");
    assert!(message.contains(" Threshold quantity: 64Mi, available: "), "{message}");
    until("the image that nobody uses is gone", || !images().contains("test/hello:v1"));
    assert!(images().contains("test/fill:v1"), "{}", images());
    wait_condition(&space, &node, "DiskPressure", "False");
    runs_on(&space, "of-its-own");

    node.shell(
        r#"free=$(df -Pk "$0/images" | tail -n 1 | tr -s ' ' | cut -d ' ' -f 4)
        head -c "$(((free - 8192) * 1024))" /dev/zero >"$0/images/full""#,
    );
    let message = evicted(&space, "of-its-own", "ephemeral-storage");
    node.shell(r#"rm "$0/images/full""#);
    assert!(message.contains(" Threshold quantity: 16Mi, available: "), "{message}");
    assert!(message.contains(" Container main was using ") && message.contains(", request is 0, "), "{message}");
    wait_condition(&space, &node, "DiskPressure", "False");
    runs_on(&space, "little");
}

#[test]
fn a_pod_over_its_own_limits_of_storage_is_evicted_and_a_log_is_rotated() {
    let space = Cluster::shared().space("storage");
    let node = space.node(NodeOptions {
        images: &["fill", "flood", "sleeper"],
        kubelet: "containerLogMaxSize: 1Mi\ncontainerLogMaxFiles: 2\ncontainerLogMonitorInterval: 3s",
        ..NodeOptions::default()
    });
    let volume = "  volumes: [{name: data, emptyDir: {sizeLimit: 1Mi}}]";
    let mount = "    volumeMounts: [{name: data, mountPath: /data}]";
    let limit = |size: &str| format!("    resources: {{limits: {{ephemeral-storage: {size}}}}}");
    let beside = format!("{}\n  - name: other\n    image: test/sleeper:v1\n{}", limit("1Mi"), limit("100Mi"));
    let fill = r#"[/tmp/fill, "3"]"#;
    space.apply(&pod("volume", volume, "fill", r#"[/data/fill, "3"]"#, mount));
    space.apply(&pod("pod", "", "fill", fill, &limit("1Mi")));
    space.apply(&pod("container", "", "fill", fill, &beside));
    space.apply(&pod("flood", "  restartPolicy: Never", "flood", r#"["100000", "100"]"#, ""));
    for (name, message) in [
        ("volume", "Usage of EmptyDir volume \"data\" exceeds the limit \"1Mi\". "),
        ("pod", "Pod ephemeral local storage usage exceeds the total limit of containers 1Mi. "),
        ("container", "Container main exceeded its local ephemeral storage limit \"1Mi\". "),
    ] {
        let status = space.wait_phase(name, "Failed").status.expect("a status");
        assert_eq!((status.reason.as_deref(), status.message.as_deref()), (Some("Evicted"), Some(message)), "{name}");
        space.wait_event(name, "Evicted", &[message.trim_end()]);
    }
    let flood = space.wait_phase("flood", "Succeeded");
    let last = space.ok(&["logs", "flood", "--tail=2"]);
    assert!(last.contains("100000 ..") || last.contains("99999 .."), "{last}");
    let uid = flood.metadata.uid.expect("a UID");
    let logs = node.root().join("logs/pods").join(format!("{}_flood_{uid}", space.name())).join("main");
    let files: Vec<u64> =
        fs::read_dir(logs).expect("its logs").map(|entry| entry.unwrap().metadata().unwrap().len()).collect();
    assert!(files.len() <= 2 && files.iter().sum::<u64>() < 4 << 20, "of 14 MB are left: {files:?}");
}
