//! What a guest reads of itself: its limits, its mounts, its user, the settings of a kernel that it does not have.

use k8s_openapi::api::core::v1::Node as NodeObject;
use kube::Api;

use crate::cluster::{Cluster, NodeOptions, Space, block_on};

/// Pods of each class; the burstable one has a volume to write and one to read.
const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: guaranteed}
spec:
  nodeSelector: {wasilet.dev/test: SPACE}
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: "test/tools:v1", resources: {limits: {cpu: 250m, memory: 64Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: burstable}
spec:
  nodeSelector: {wasilet.dev/test: SPACE}
  terminationGracePeriodSeconds: 1
  securityContext:
    runAsUser: 1001
    runAsGroup: 1002
    fsGroup: 1003
    supplementalGroups: [1004, 1005]
    sysctls: [{name: net.ipv4.tcp_keepalive_time, value: "77"}, {name: net.ipv4.ping_group_range, value: "1 2"}]
  containers:
  - name: main
    image: test/tools:v1
    resources: {requests: {cpu: 100m, memory: 512Mi}}
    volumeMounts: [{name: own, mountPath: /own}, {name: config, mountPath: /etc/config, readOnly: true, recursiveReadOnly: Enabled}]
  volumes: [{name: own, emptyDir: {}}, {name: config, configMap: {name: kube-root-ca.crt}}]
---
apiVersion: v1
kind: Pod
metadata: {name: best-effort}
spec:
  nodeSelector: {wasilet.dev/test: SPACE}
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: "test/tools:v1", securityContext: {readOnlyRootFilesystem: true}}
"#;

fn read(space: &Space<'_>, pod: &str, path: &str) -> String {
    space.ok(&["exec", pod, "--", "/bin/cat", path])
}

/// The score that the kubelet gives a burstable container that asks for 512Mi of this node.
fn burstable_score(space: &Space<'_>, node: &str) -> u64 {
    let nodes: Api<NodeObject> = Api::all(space.cluster().client());
    let status = block_on(nodes.get(node)).expect("the Node").status.expect("a status");
    let capacity = status.capacity.expect("it has")["memory"].0.clone();
    let kib: u64 = capacity.strip_suffix("Ki").expect("in Ki").parse().expect("a number");
    (1000 - 1000 * 512 * 1024 / kib).clamp(3, 999)
}

#[test]
fn a_guest_reads_its_limits_its_mounts_and_its_user() {
    let space = Cluster::shared().space("proc");
    let node = space.node(NodeOptions { tools: &["sleeper", "cat", "init"], ..NodeOptions::default() });
    space.apply(PODS);
    for pod in ["guaranteed", "burstable", "best-effort"] {
        space.wait_ready(pod);
    }
    let score = burstable_score(&space, node.name()).to_string();
    for (pod, file, expected) in [
        ("guaranteed", "/proc/self/oom_score_adj", "-997"),
        ("burstable", "/proc/self/oom_score_adj", score.as_str()),
        ("best-effort", "/proc/self/oom_score_adj", "1000"),
        // 250m are 256 shares, which are a weight of 10 as runc converts them.
        ("guaranteed", "/sys/fs/cgroup/cpu.max", "25000 100000"),
        ("guaranteed", "/sys/fs/cgroup/cpu.weight", "10"),
        ("guaranteed", "/sys/fs/cgroup/cpu/cpu.shares", "256"),
        ("guaranteed", "/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "25000"),
        ("guaranteed", "/sys/fs/cgroup/memory.max", "67108864"),
        ("guaranteed", "/sys/fs/cgroup/memory/memory.limit_in_bytes", "67108864"),
        ("guaranteed", "/sys/fs/cgroup/memory.events", "oom 0\noom_kill 0"),
        ("guaranteed", "/sys/fs/cgroup/cgroup.controllers", "cpu memory pids"),
        ("burstable", "/sys/fs/cgroup/cpu.max", "max 100000"),
        ("burstable", "/sys/fs/cgroup/memory.max", "max"),
        ("burstable", "/sys/fs/cgroup/cpu/cpu.shares", "102"),
        ("best-effort", "/sys/fs/cgroup/cpu/cpu.shares", "2"),
        ("burstable", "/proc/sys/net/ipv4/tcp_keepalive_time", "77"),
        ("burstable", "/proc/sys/net/ipv4/ping_group_range", "1 2"),
        ("burstable", "/proc/sys/kernel/shm_rmid_forced", "0"),
    ] {
        assert_eq!(read(&space, pod, file).trim_end(), expected, "{file} of {pod}");
    }
    let number = |file: &str| -> u64 {
        let text = read(&space, "guaranteed", &format!("/sys/fs/cgroup/{file}"));
        text.trim().parse().unwrap_or_else(|_| panic!("{file}: {text}"))
    };
    // The one that sleeps and the one that asks.
    assert_eq!(number("pids.current"), 2);
    let (current, peak) = (number("memory.current"), number("memory.peak"));
    assert!(current > 0 && peak < 67_108_864, "{current} of {peak} bytes");
    let stat = read(&space, "guaranteed", "/sys/fs/cgroup/cpu.stat");
    assert!(stat.starts_with("usage_usec ") && stat.contains("\nnr_throttled "), "{stat}");

    let status = read(&space, "burstable", "/proc/self/status");
    for line in ["Uid:\t1001\t1001\t1001\t1001", "Gid:\t1002\t1002\t1002\t1002"] {
        assert!(status.lines().any(|one| one == line), "{line} in {status}");
    }
    let groups = status.lines().find_map(|line| line.strip_prefix("Groups:\t")).expect("its groups");
    for group in ["1003", "1004", "1005"] {
        assert!(groups.split_whitespace().any(|one| one == group), "{group} in {groups}");
    }
    mounts(&space);
}

/// What is mounted where, and that it cannot be written where it says so.
fn mounts(space: &Space<'_>) {
    let mounts = |pod: &str| -> Vec<(String, String, String)> {
        let text = read(space, pod, "/proc/mounts");
        let fields = |line: &str| {
            let fields: Vec<&str> = line.split(' ').collect();
            assert_eq!(fields.len(), 6, "{line}");
            (fields[1].to_owned(), fields[2].to_owned(), fields[3].to_owned())
        };
        assert_eq!(read(space, pod, "/proc/self/mounts"), text);
        text.lines().map(fields).collect()
    };
    let at = |mounts: &[(String, String, String)], path: &str| {
        let found = mounts.iter().find(|(at, ..)| at == path).unwrap_or_else(|| panic!("{path} in {mounts:?}"));
        found.2.split(',').next().unwrap_or_default().to_owned()
    };
    let burstable = mounts("burstable");
    let service_account = "/var/run/secrets/kubernetes.io/serviceaccount";
    let expected = [
        ("/", "rw"),
        ("/proc", "ro"),
        ("/sys/fs/cgroup", "ro"),
        ("/own", "rw"),
        ("/etc/config", "ro"),
        (service_account, "ro"),
    ];
    for (path, access) in expected {
        assert_eq!(at(&burstable, path), access, "{path}");
        let file = format!("{path}/new");
        let written = space.kubectl(&["exec", "burstable", "--", "/bin/init", &file, "x"]);
        let may = access == "rw" && path != "/";
        assert_eq!(written.code == Some(0), may, "{file}: {}", written.stderr);
    }
    assert_eq!(at(&mounts("best-effort"), "/"), "ro");
    let written = space.kubectl(&["exec", "best-effort", "--", "/bin/init", "/tmp/new", "x"]);
    assert!(written.code != Some(0) && written.stderr.contains("Read-only file system"), "{}", written.stderr);

    let path = "jsonpath={.status.containerStatuses[0].volumeMounts[?(@.name==\"config\")].recursiveReadOnly}";
    assert_eq!(space.ok(&["get", "pod", "burstable", "--output", path]), "Enabled");
}
