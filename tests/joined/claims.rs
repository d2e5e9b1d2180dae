//! The task "Configure a Pod to Use a PersistentVolume for Storage" of the Kubernetes documentation, start to end.

use std::fs;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::Api;

use super::volumes::until;
use crate::cluster::{Cluster, NodeOptions, Space, block_on};
use crate::support::{eventually, skipped};

/// As the documentation has them, with names of this test, a directory of its own and a server that is a guest.
const VOLUME: &str = r#"
apiVersion: v1
kind: PersistentVolume
metadata:
  name: SPACE-task
  labels: {type: local}
spec:
  storageClassName: SPACE
  capacity: {storage: 10Gi}
  accessModes: [MODE]
  persistentVolumeReclaimPolicy: POLICY
  hostPath: {path: "DIR"}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: task-pv-claim}
spec:
  storageClassName: SPACE
  accessModes: [MODE]
  resources: {requests: {storage: 3Gi}}
"#;

const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: NAME}
spec:
  nodeSelector: {wasilet.dev/test: SPACE}
  terminationGracePeriodSeconds: 1
  volumes: [{name: task-pv-storage, persistentVolumeClaim: {claimName: task-pv-claim}}]
  containers:
  - name: task-pv-container
    image: test/web:v1
    ports: [{containerPort: 80, name: http-server}]
    volumeMounts: [MOUNTS]
"#;

/// What the pod serves at a path, through the API server.
fn served(space: &Space<'_>, pod: &str, path: &str) -> String {
    let url = format!("/api/v1/namespaces/{}/pods/{pod}:80/proxy/{path}", space.name());
    eventually("the pod serves its file", || {
        let answer = space.kubectl(&["get", "--raw", &url]);
        if answer.code == Some(0) { Ok(answer.stdout) } else { Err(answer.stderr) }
    })
}

fn phase(space: &Space<'_>) -> Option<String> {
    let volumes: Api<PersistentVolume> = Api::all(space.cluster().client());
    let found = block_on(volumes.get_opt(&format!("{}-task", space.name()))).unwrap();
    found.map(|found| found.status.and_then(|status| status.phase).unwrap_or_default())
}

#[test]
fn the_documentations_persistent_volume_task_works_from_its_first_line_to_its_last() {
    let space = Cluster::shared().space("task");
    if space.cluster().try_plane().is_none() {
        skipped("the controllers' machine must be this one");
        return;
    }
    // Below /tmp: the controller that deletes hostPath volumes takes no other.
    let dir = tempfile::Builder::new().prefix("wasilet-task-").tempdir_in("/tmp").unwrap();
    let data = dir.path().join("data");
    let allowed = format!("hostPathAllowedPrefixes: [{}]", dir.path().display());
    let _node = space.node(NodeOptions { images: &["web"], node: &allowed, ..NodeOptions::default() });
    let volume = |mode: &str, policy: &str| {
        let text = VOLUME.replace("MODE", mode).replace("POLICY", policy);
        text.replace("DIR", &data.display().to_string())
    };
    let pod = |name: &str, mounts: &str| POD.replace("NAME", name).replace("MOUNTS", mounts);
    let whole = r#"{mountPath: "/usr/share/nginx/html", name: task-pv-storage}"#;
    fs::create_dir(&data).unwrap();
    fs::write(data.join("index.html"), "Hello from Kubernetes storage\n").unwrap();

    space.apply(&volume("ReadWriteOnce", "Retain"));
    space.wait::<PersistentVolumeClaim>("task-pv-claim", "is bound", |claim| {
        claim.and_then(|claim| claim.status.as_ref()?.phase.as_deref()) == Some("Bound")
    });
    space.apply(&pod("task-pv-pod", whole));
    space.wait_ready("task-pv-pod");
    assert_eq!(served(&space, "task-pv-pod", ""), "Hello from Kubernetes storage\n");
    // A change on the host is seen at once: it is the host's directory, no copy.
    fs::write(data.join("index.html"), "Changed\n").unwrap();
    assert_eq!(served(&space, "task-pv-pod", ""), "Changed\n");
    space.ok(&["delete", "pod", "task-pv-pod"]);

    // "Mount the same PersistentVolume in two places".
    fs::create_dir(data.join("html")).unwrap();
    fs::write(data.join("html/index.html"), "From a subPath\n").unwrap();
    fs::write(data.join("nginx.conf"), "worker_processes 1;\n").unwrap();
    let places = r#"{mountPath: "/usr/share/nginx/html", name: task-pv-storage, subPath: html}, {mountPath: "/usr/share/nginx/html/conf", name: task-pv-storage, subPath: nginx.conf}"#;
    space.apply(&pod("two-places", places));
    space.wait_ready("two-places");
    assert_eq!(served(&space, "two-places", ""), "From a subPath\n");
    assert_eq!(served(&space, "two-places", "conf"), "worker_processes 1;\n");

    // Retain: claim and volume go, the files stay.
    space.ok(&["delete", "pod", "two-places"]);
    space.ok(&["delete", "pvc", "task-pv-claim"]);
    until("the volume is released", || phase(&space).as_deref() == Some("Released"));
    space.ok(&["delete", "pv", &format!("{}-task", space.name())]);
    assert_eq!(fs::read_to_string(data.join("html/index.html")).unwrap(), "From a subPath\n");

    // Delete, and one pod alone: the scheduler leaves a second one out, and nothing goes while the first runs.
    space.apply(&volume("ReadWriteOncePod", "Delete"));
    space.apply(&pod("first", whole));
    space.wait_ready("first");
    space.apply(&pod("second", whole));
    space.wait_event("second", "FailedScheduling", &["ReadWriteOncePod access mode"]);
    space.ok(&["delete", "pod", "second"]);
    space.ok(&["delete", "pvc", "task-pv-claim", "--wait=false"]);
    space.wait::<PersistentVolumeClaim>("task-pv-claim", "is protected", |claim| {
        claim.is_some_and(|claim| claim.metadata.deletion_timestamp.is_some())
    });
    assert_eq!(served(&space, "first", ""), "Changed\n", "a claim that is going serves its pod");
    assert_eq!(phase(&space).as_deref(), Some("Bound"));
    space.ok(&["delete", "pod", "first"]);
    space.wait::<PersistentVolumeClaim>("task-pv-claim", "is gone", |claim| claim.is_none());
    until("the volume is gone", || phase(&space).is_none());
    assert!(!data.exists() && dir.path().exists(), "and so are its files, by the controller's hand");
}
