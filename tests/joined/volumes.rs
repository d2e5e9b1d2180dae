//! Volumes of a cluster: claims, images, and what Events say when they are not there.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::Api;

use crate::cluster::{Cluster, LONG, NodeOptions, Space, block_on};
use crate::support::container;

/// A pod of one program of `test/tools:v1` that stays, with a volume at /data.
pub(super) fn holder(name: &str, more: &str, volume: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  nodeSelector: {{wasilet.dev/test: SPACE}}
  terminationGracePeriodSeconds: 1
  {more}
  containers:
  - name: main
    image: test/tools:v1
    imagePullPolicy: IfNotPresent
    command: [/bin/sleeper, --file, /data/seen, {name}]
    volumeMounts: [{{name: data, mountPath: /data}}]
  volumes: [{{name: data, {volume}}}]
"#
    )
}

pub(super) fn claim(name: &str, volume: &str, mode: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: {name}}}
spec: {{accessModes: [{mode}], storageClassName: manual, volumeName: {volume}, resources: {{requests: {{storage: 1Mi}}}}}}
"#
    )
}

pub(super) fn persistent(name: &str, source: &str, mode: &str, more: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: PersistentVolume
metadata: {{name: {name}}}
spec:
  capacity: {{storage: 1Mi}}
  accessModes: [{mode}]
  storageClassName: manual
  persistentVolumeReclaimPolicy: Retain
  {source}
  {more}
"#
    )
}

/// A directory on the machine that pods may have, and the line of the configuration that says so.
pub(super) fn shared_directory(space: &Space<'_>) -> (PathBuf, String) {
    let dir = space.cluster().dir().join(format!("host-{}", space.name()));
    fs::create_dir_all(&dir).unwrap();
    let line = format!("hostPathAllowedPrefixes: [{}]", dir.display());
    (dir, line)
}

/// Waits until it is so, looking again now and then.
pub(super) fn until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + LONG;
    while !so() {
        assert!(std::time::Instant::now() < deadline, "{what}");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

pub(super) const TOOLS: &[&str] = &["sleeper", "cat", "init"];

#[test]
fn a_claim_gives_a_pod_its_volume_and_what_was_written_stays() {
    let space = Cluster::shared().space("claims");
    let (dir, allowed) = shared_directory(&space);
    let node = space.node(NodeOptions { tools: TOOLS, node: &allowed, ..NodeOptions::default() });
    fs::create_dir(dir.join("local")).unwrap();
    fs::set_permissions(dir.join("local"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(dir.join("local/old"), "kept\n").unwrap();
    let affinity = |value: &str| {
        format!(
            "nodeAffinity: {{required: {{nodeSelectorTerms: [{{matchExpressions: [{{key: wasilet.dev/test, operator: In, values: [{value}]}}]}}]}}}}"
        )
    };
    let local = format!("local: {{path: {}}}", dir.join("local").display());
    space.apply(&persistent("SPACE-local", &local, "ReadWriteOncePod", &affinity("SPACE")));
    space.apply(&claim("data", "SPACE-local", "ReadWriteOncePod"));
    let source = "persistentVolumeClaim: {claimName: data}";
    space.apply(&holder("one", "securityContext: {fsGroup: 4242, runAsUser: 1001}", source));
    space.wait_ready("one");
    assert_eq!(space.ok(&["exec", "one", "--", "/bin/cat", "/data/old", "/data/seen"]), "kept\none\n");
    let top = fs::metadata(dir.join("local")).unwrap();
    assert_eq!((top.gid(), top.mode() & 0o7777), (4242, 0o2775), "the volume was given to the pod's group");
    let written = fs::metadata(dir.join("local/seen")).unwrap();
    assert_eq!((written.uid(), written.gid()), (1001, 4242));

    // ReadWriteOncePod: the scheduler sees to it, and the node where there is none.
    let pinned = holder("two", &format!("nodeName: {}", node.name()), source);
    space.apply(&pinned);
    space.wait_event(
        "two",
        "FailedMount",
        &[
            "MountVolume.SetUp failed for volume",
            "volume uses the ReadWriteOncePod access mode and is already in use by another pod",
        ],
    );
    space.ok(&["delete", "pod", "one"]);
    space.wait_ready("two");
    assert_eq!(space.ok(&["exec", "two", "--", "/bin/cat", "/data/seen"]), "two\n");

    // The claim is protected while a pod has it, and its volume is kept when it goes.
    space.ok(&["delete", "pvc", "data", "--wait=false"]);
    space.wait::<PersistentVolumeClaim>("data", "is protected", |claim| {
        claim.is_some_and(|claim| claim.metadata.deletion_timestamp.is_some())
    });
    space.ok(&["delete", "pod", "two"]);
    space.wait::<PersistentVolumeClaim>("data", "is gone", |claim| claim.is_none());
    let volumes: Api<PersistentVolume> = Api::all(space.cluster().client());
    let name = format!("{}-local", space.name());
    until("the volume is released", || {
        let found = block_on(volumes.get(&name)).unwrap();
        found.status.and_then(|status| status.phase).as_deref() == Some("Released")
    });
    assert_eq!(fs::read_to_string(dir.join("local/old")).unwrap(), "kept\n");
}

#[test]
fn volumes_that_no_container_mounts_are_left_alone() {
    let space = Cluster::shared().space("unmounted");
    let node = space.node(NodeOptions { tools: TOOLS, ..NodeOptions::default() });
    let absent = [
        "configMap: {name: absent}",
        "secret: {secretName: absent}",
        "projected: {sources: [{configMap: {name: absent}}]}",
        "persistentVolumeClaim: {claimName: absent}",
        "hostPath: {path: /etc, type: Directory}",
    ];
    let unused: String =
        absent.iter().enumerate().map(|(n, source)| format!(", {{name: unused-{n}, {source}}}")).collect();
    // Bound to the node: the scheduler would wait for the claim.
    let pod = holder("one", &format!("nodeName: {}", node.name()), "emptyDir: {}");
    space.apply(&pod.replace("{name: data, emptyDir: {}}", &format!("{{name: data, emptyDir: {{}}}}{unused}")));
    let pod = space.wait_ready("one");
    assert_eq!(pod.spec.and_then(|spec| spec.volumes).map(|all| all.len()), Some(absent.len() + 2), "and the token's");
    let told: Vec<_> =
        space.events("one").into_iter().filter(|event| event.type_.as_deref() == Some("Warning")).collect();
    assert!(told.is_empty(), "{told:#?}");
    // The same volume with a mount is waited for.
    let mounted = holder("two", &format!("nodeName: {}", node.name()), absent[0]);
    space.apply(&mounted);
    space.wait_event("two", "FailedMount", &["configmap \"absent\" not found"]);
}

#[test]
fn a_volume_gives_its_group_to_every_container_of_the_pod() {
    let space = Cluster::shared().space("volume-group");
    let (dir, allowed) = shared_directory(&space);
    let _node = space.node(NodeOptions { tools: TOOLS, node: &allowed, ..NodeOptions::default() });
    let path = dir.join("shared");
    fs::create_dir(&path).unwrap();
    std::os::unix::fs::chown(&path, Some(0), Some(4343)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o770)).unwrap();
    let volume = format!("{}-group", space.name());
    space.apply(&persistent(&volume, &format!("hostPath: {{path: {}}}", path.display()), "ReadWriteMany", ""));
    space.ok(&["annotate", "persistentvolume", &volume, "pv.beta.kubernetes.io/gid=4343"]);
    space.apply(&claim("data", &volume, "ReadWriteMany"));
    // It mounts nothing, and is of the same pod.
    let beside = "initContainers: [{name: beside, image: 'test/tools:v1', imagePullPolicy: IfNotPresent, command: [/bin/cat, /proc/self/status]}]";
    let user = "securityContext: {runAsUser: 1001, runAsGroup: 1002, supplementalGroups: [1003]}";
    let source = "persistentVolumeClaim: {claimName: data}";
    space.apply(&holder("one", &format!("{user}\n  {beside}"), source));
    let pod = space.wait_ready("one");
    let status = [
        space.ok(&["logs", "one", "--container=beside"]),
        space.ok(&["exec", "one", "--", "/bin/cat", "/proc/self/status"]),
    ];
    for status in status {
        let groups = status.lines().find_map(|line| line.strip_prefix("Groups:\t")).expect("its groups");
        let mut groups: Vec<u32> = groups.split_whitespace().map(|group| group.parse().unwrap()).collect();
        groups.sort_unstable();
        assert_eq!(groups, [1003, 4343], "{status}");
    }
    let shown = container(&pod, "main").user.as_ref().and_then(|user| user.linux.as_ref()?.supplemental_groups.clone());
    assert!(shown.as_ref().is_some_and(|groups| groups.contains(&4343)), "{shown:?}");
    // By that group alone may it write there; the volume keeps its own owner, for no fsGroup was asked for.
    let written = fs::metadata(path.join("seen")).unwrap();
    assert_eq!((written.uid(), written.gid()), (1001, 1002));
    let top = fs::metadata(&path).unwrap();
    assert_eq!((top.gid(), top.mode() & 0o7777), (4343, 0o770));
    // Without it there is no way in.
    space.ok(&["annotate", "persistentvolume", &volume, "pv.beta.kubernetes.io/gid-"]);
    space.apply(&holder("two", &format!("restartPolicy: Never\n  {user}"), source));
    space.wait_phase("two", "Failed");
    assert!(space.ok(&["logs", "two"]).contains("ermission denied"));
}

/// Two pods with a claim each by a template, and one whose claim is its own.
const TEMPLATES: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, selector: {app: db}, ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 2
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      nodeSelector: {wasilet.dev/test: SPACE}
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: test/tools:v1
        imagePullPolicy: IfNotPresent
        env: [{name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
        command: [/bin/sleeper, --file, /data/seen, $(NAME)]
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], storageClassName: SPACE, resources: {requests: {storage: 1Mi}}}
"#;

#[test]
fn a_stateful_set_and_an_ephemeral_volume_have_claims_of_their_own() {
    let space = Cluster::shared().space("templates");
    let (dir, allowed) = shared_directory(&space);
    let _node = space.node(NodeOptions { tools: TOOLS, node: &allowed, ..NodeOptions::default() });
    for number in 0..3 {
        let path = dir.join(number.to_string());
        fs::create_dir(&path).unwrap();
        // A class of this test alone: any claim of it takes any of them.
        let source = format!("hostPath: {{path: {}, type: Directory}}", path.display());
        let volume = persistent(&format!("SPACE-{number}"), &source, "ReadWriteOnce", "");
        space.apply(&volume.replace("storageClassName: manual", "storageClassName: SPACE"));
    }
    space.apply(TEMPLATES);
    let template = "ephemeral: {volumeClaimTemplate: {spec: {accessModes: [ReadWriteOnce], storageClassName: SPACE, resources: {requests: {storage: 1Mi}}}}}";
    space.apply(&holder("scratch", "", template));
    let seen = |pod: &str, file: &str| space.ok(&["exec", pod, "--", "/bin/cat", file]).trim().to_owned();
    for pod in ["db-0", "db-1", "scratch"] {
        space.wait_ready(pod);
        assert_eq!(seen(pod, "/data/seen"), pod, "each has a volume of its own");
    }
    let owner = space.ok(&["get", "pvc", "scratch-data", "--output", "jsonpath={.metadata.ownerReferences[0].kind}"]);
    assert_eq!(owner, "Pod");
    space.ok(&["exec", "db-0", "--", "/bin/init", "/data/kept", "by the first"]);
    let uid = |pod: &str| space.ok(&["get", "pod", pod, "--output", "jsonpath={.metadata.uid}"]);
    let first = uid("db-0");
    space.ok(&["delete", "pod", "db-0"]);
    until("there is another of the same name", || {
        let now = space.kubectl(&["get", "pod", "db-0", "--output", "jsonpath={.metadata.uid}"]);
        now.code == Some(0) && now.stdout != first
    });
    space.wait_ready("db-0");
    assert_eq!(seen("db-0", "/data/kept"), "by the first", "with the same claim");
    space.ok(&["delete", "pod", "scratch"]);
    space.wait::<PersistentVolumeClaim>("scratch-data", "goes with its pod", |claim| claim.is_none());
    space.ok(&["scale", "statefulset", "db", "--replicas=0"]);
    space.wait_gone("db-0");
    space.wait_gone("db-1");
    for claim in ["data-db-0", "data-db-1"] {
        let phase = space.ok(&["get", "pvc", claim, "--output", "jsonpath={.status.phase}"]);
        assert_eq!(phase, "Bound", "a set's claims stay");
    }
    let kept = (0..3).filter(|number| dir.join(number.to_string()).join("kept").exists()).count();
    assert_eq!(kept, 1, "and so does what is in them");
}

#[test]
fn what_a_pod_waits_for_is_said_in_the_kubelets_words() {
    let space = Cluster::shared().space("mounts");
    let node = space.node(NodeOptions { tools: TOOLS, ..NodeOptions::default() });
    let pinned = |name: &str, volume: &str| holder(name, &format!("nodeName: {}", node.name()), volume);
    space.apply(&claim("unbound", "SPACE-none", "ReadWriteOnce"));
    space.apply(&persistent(
        "SPACE-elsewhere",
        "hostPath: {path: /tmp}",
        "ReadWriteMany",
        "nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: wasilet.dev/test, operator: In, values: [nowhere]}]}]}}",
    ));
    space.apply(&claim("elsewhere", "SPACE-elsewhere", "ReadWriteMany"));
    space.apply(&persistent("SPACE-nfs", "nfs: {server: a, path: /}", "ReadWriteMany", ""));
    space.apply(&claim("nfs", "SPACE-nfs", "ReadWriteMany"));
    space.apply(&persistent("SPACE-missing", "local: {path: /nonexistent/x}", "ReadWriteMany", "nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: wasilet.dev/test, operator: Exists}]}]}}"));
    space.apply(&claim("missing", "SPACE-missing", "ReadWriteMany"));
    let block = |text: String| text.replace("accessModes:", "volumeMode: Block, accessModes:");
    space.apply(&persistent("SPACE-block", "local: {path: /dev/null}", "ReadWriteMany", "volumeMode: Block\n  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: wasilet.dev/test, operator: Exists}]}]}}"));
    space.apply(&block(claim("block", "SPACE-block", "ReadWriteMany")));
    for bound in ["elsewhere", "nfs", "missing", "block"] {
        space.wait::<PersistentVolumeClaim>(bound, "is bound", |claim| {
            claim.and_then(|claim| claim.status.as_ref()?.phase.as_deref()) == Some("Bound")
        });
    }
    for (name, volume, words) in [
        (
            "no-config",
            "configMap: {name: absent}",
            &["MountVolume.SetUp failed for volume \"data\" : configmap \"absent\" not found"][..],
        ),
        (
            "no-secret",
            "secret: {secretName: absent}",
            &["MountVolume.SetUp failed for volume \"data\" : secret \"absent\" not found"],
        ),
        (
            "no-claim",
            "persistentVolumeClaim: {claimName: absent}",
            &[
                "Unable to attach or mount volumes: unmounted volumes=[data], unattached volumes=[], failed to process volumes=[data]: error processing PVC ",
                "/absent: failed to fetch PVC from API server: persistentvolumeclaims \"absent\" ",
            ],
        ),
        ("unbound", "persistentVolumeClaim: {claimName: unbound}", &["/unbound: PVC is not bound"]),
        (
            "elsewhere",
            "persistentVolumeClaim: {claimName: elsewhere}",
            &["MountVolume.NodeAffinity check failed for volume", "no matching NodeSelectorTerms"],
        ),
        (
            "block",
            "persistentVolumeClaim: {claimName: block}",
            &[
                "volume data has volumeMode Block, but is specified in volumeMounts: PVC ",
                "/block is a block device, which a WebAssembly guest cannot have",
            ],
        ),
        ("nfs", "persistentVolumeClaim: {claimName: nfs}", &["volumes of type nfs are not supported by this node"]),
        (
            "missing",
            "persistentVolumeClaim: {claimName: missing}",
            &["MountVolume.NewMounter initialization failed for volume", "path \"/nonexistent/x\" does not exist"],
        ),
        (
            "no-driver",
            "csi: {driver: absent.example}",
            &["volume mode \"Ephemeral\" not supported by driver absent.example (no CSIDriver object)"],
        ),
    ] {
        space.apply(&pinned(name, volume));
        space.wait_event(name, "FailedMount", words);
    }
    // As a device it is refused at once, by name.
    let device = pinned("device", "persistentVolumeClaim: {claimName: block}");
    space.apply(&device.replace(
        "volumeMounts: [{name: data, mountPath: /data}]",
        "volumeDevices: [{name: data, devicePath: /dev/data}]",
    ));
    space.wait_event(
        "device",
        "BlockVolumesNotSupported",
        &["volume \"data\" (PVC block) is asked for as a block device, which a WebAssembly guest cannot have"],
    );
    space.wait_phase("device", "Failed");
    // What comes later is seen.
    space.ok(&["create", "configmap", "absent", "--from-literal=k=v"]);
    space.wait_phase("no-config", "Running");
    for name in ["no-secret", "no-claim", "unbound", "elsewhere", "nfs", "missing", "block", "device", "no-driver"] {
        space.ok(&["delete", "pod", name, "--wait=false"]);
    }
    space.wait_gone("nfs");
}

#[test]
fn a_host_path_is_what_its_type_says_or_its_pod_waits() {
    let space = Cluster::shared().space("host-paths");
    let (dir, allowed) = shared_directory(&space);
    let _node = space.node(NodeOptions { tools: TOOLS, node: &allowed, ..NodeOptions::default() });
    fs::write(dir.join("file"), "here\n").unwrap();
    let path = |name: &str, kind: &str| format!("hostPath: {{path: {}/{name}, type: {kind}}}", dir.display());
    space.apply(&holder("made", "", &path("made/deep", "DirectoryOrCreate")));
    space.apply(&holder("any", "", &path("untyped", "''")));
    space.apply(&holder("later", "", &path("later", "Directory")));
    let failed = "MountVolume.SetUp failed for volume \"data\" : ";
    for (name, file, kind, words) in [
        ("no-directory", "file", "Directory", "is not a directory"),
        ("no-file", "none", "File", "is not a file"),
        ("no-socket", "file", "Socket", "is not a socket file"),
    ] {
        space.apply(&holder(name, "", &path(file, kind)));
        let words = format!("hostPath type check failed: {}/{file} {words}", dir.display());
        space.wait_event(name, "FailedMount", &[failed, &words]);
    }
    space.apply(&holder("outside", "", "hostPath: {path: /etc}"));
    space.wait_event("outside", "FailedMount", &[failed, "/etc"]);
    for (name, at) in [("made", "made/deep"), ("any", "untyped")] {
        space.wait_ready(name);
        assert_eq!(fs::read_to_string(dir.join(at).join("seen")).unwrap(), format!("{name}\n"));
    }
    fs::create_dir(dir.join("later")).unwrap();
    space.wait_ready("later");
}

#[test]
fn an_image_is_a_volume_and_a_part_of_one_too() {
    let cluster = Cluster::shared();
    if cluster.lacks(35, "the type image of volumes") {
        return;
    }
    let space = cluster.space("image-volume");
    let _node = space.node(NodeOptions { images: &["sleeper"], tools: TOOLS, ..NodeOptions::default() });
    let pod = |name: &str, sub_path: &str, policy: &str, image: &str| {
        format!(
            r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  nodeSelector: {{wasilet.dev/test: SPACE}}
  restartPolicy: Never
  containers:
  - name: main
    image: test/tools:v1
    imagePullPolicy: IfNotPresent
    command: [/bin/sleeper, x]
    volumeMounts: [{{name: data, mountPath: /img, {sub_path}}}]
  volumes: [{{name: data, image: {{reference: '{image}', pullPolicy: {policy}}}}}]
"#
        )
    };
    space.apply(&pod("whole", "readOnly: true", "IfNotPresent", "test/tools:v1"));
    space.apply(&pod("part", "subPath: bin", "Never", "test/tools:v1"));
    space.wait_ready("whole");
    space.wait_ready("part");
    for (name, path) in [("whole", "/img/bin/cat"), ("part", "/img/cat")] {
        let there = space.kubectl(&["exec", name, "--", path, "/etc/hostname"]);
        assert_eq!((there.code, there.stdout.trim()), (Some(0), name), "{}", there.stderr);
        let written = space.kubectl(&["exec", name, "--", "/bin/init", &format!("{path}.new"), "x"]);
        assert!(written.code != Some(0) && written.stderr.to_lowercase().contains("read-only"), "{}", written.stderr);
    }
    space.apply(&pod("wrong", "subPath: nowhere", "IfNotPresent", "test/tools:v1"));
    space.wait_event("wrong", "Failed", &["failed to mount subPath \"nowhere\" of the image volume at /img"]);
    space.apply(&pod("never", "readOnly: true", "Never", "test/absent:v1"));
    space.wait_event("never", "ErrImageNeverPull", &["test/absent:v1"]);
    space.apply(&pod("artifact", "readOnly: true", "IfNotPresent", "test/sleeper:v1"));
    space.wait_event("artifact", "Failed", &["it is a bare WebAssembly artifact without a file system"]);
}
