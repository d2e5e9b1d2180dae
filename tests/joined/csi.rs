//! Volumes of a CSI driver that runs beside the node: the mock driver of the Kubernetes suite.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::api::storage::v1::{CSINode, VolumeAttachment};
use kube::Api;
use kube::api::ListParams;
use serde_json::Value;

use super::volumes::{TOOLS, claim, holder, persistent, until};
use crate::cluster::{At, Cluster, NodeOptions, Space, block_on};
use crate::support::{repository, skipped, text};

/// The mock driver of the Kubernetes suite, as a process beside a node.
struct Driver {
    process: crate::cluster::Daemon,
    log: PathBuf,
}

impl Driver {
    fn start(cluster: &Cluster, at: At<'_>, name: &str, root: &Path, config: &str) -> Self {
        let script = Command::new(repository().join("scripts/csi-mock.sh")).stderr(Stdio::inherit()).output().unwrap();
        assert!(script.status.success(), "scripts/csi-mock.sh failed");
        let binary = PathBuf::from(text(&script.stdout).trim());
        let log = cluster.logs().join(format!("{name}.log"));
        let args = [name.to_owned(), root.display().to_string(), config.to_owned()];
        let process = cluster.sandbox().daemon(at, &log, &binary, &args, &[]);
        Self { process, log }
    }

    /// Calls of a method so far, each a line of JSON with what was asked.
    fn calls(&self, method: &str) -> Vec<String> {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let wanted = format!("/{method}\"");
        log.lines().filter(|line| line.contains(&wanted)).map(str::to_owned).collect()
    }
}

#[test]
fn a_csi_driver_beside_the_node_gives_pods_its_volumes() {
    let space = Cluster::shared().space("csi");
    let node = space.node(NodeOptions { tools: TOOLS, kubelet: "syncFrequency: 1s", ..NodeOptions::default() });
    let name = format!("{}.example", space.name());
    let config = r#"{"AttachLimit": 7, "EnableTopology": true, "PermissiveTargetPath": true}"#;
    let driver = Driver::start(space.cluster(), node.at(), &name, &node.root(), config);
    let csi_nodes: Api<CSINode> = Api::all(space.cluster().client());
    until("the driver is in the CSINode", || {
        let found = block_on(csi_nodes.get(node.name())).ok();
        let drivers = found.map(|found| found.spec.drivers).unwrap_or_default();
        drivers.iter().any(|driver| {
            driver.name == name
                && driver.allocatable.as_ref().and_then(|most| most.count) == Some(7)
                && driver.topology_keys.as_deref() == Some(&["io.kubernetes.storage.mock/node".to_owned()][..])
        })
    });
    let labels = space.ok(&["get", "node", node.name(), "--output", "jsonpath={.metadata.labels}"]);
    assert!(labels.contains("\"io.kubernetes.storage.mock/node\":\"some-mock-node\""), "{labels}");
    space.apply(&format!(
        "apiVersion: storage.k8s.io/v1
kind: CSIDriver
metadata: {{name: {name}}}
spec: {{attachRequired: true, podInfoOnMount: true, fsGroupPolicy: File, requiresRepublish: true}}"
    ));
    space.ok(&["create", "secret", "generic", "key", "--from-literal=password=hunter2"]);
    let source = format!(
        "csi: {{driver: {name}, volumeHandle: '1', fsType: ext4, nodePublishSecretRef: {{name: key, namespace: SPACE}}, volumeAttributes: {{color: blue}}}}"
    );
    space.apply(&persistent("SPACE-csi", &source, "ReadWriteOnce", "mountOptions: [noatime]"));
    space.apply(&claim("data", "SPACE-csi", "ReadWriteOnce"));
    space.apply(&holder("web", "securityContext: {fsGroup: 4242}", "persistentVolumeClaim: {claimName: data}"));
    attach(&space, &name);
    space.wait_ready("web");
    let in_use = space.ok(&["get", "node", node.name(), "--output", "jsonpath={.status.volumesInUse}"]);
    assert!(in_use.contains(&format!("kubernetes.io/csi/{name}^1")), "{in_use}");
    let published = driver.calls("NodePublishVolume").pop().expect("it was published");
    for word in [
        "\"device\":\"/dev/mock\"",
        "\"color\":\"blue\"",
        "\"password\":\"hunter2\"",
        "csi.storage.k8s.io/pod.name\":\"web\"",
        "\"noatime\"",
        "\"ext4\"",
        "/globalmount\"",
        "/volumes/kubernetes.io~csi/",
    ] {
        assert!(published.contains(word), "{word} in {published}");
    }
    assert_eq!(driver.calls("NodeStageVolume").len(), 1);
    let uid = space.ok(&["get", "pod", "web", "--output", "jsonpath={.metadata.uid}"]);
    let mount = node.root().join("pods").join(uid.trim()).join("volumes/kubernetes.io~csi");
    let mount = mount.join(format!("{}-csi", space.name())).join("mount");
    assert_eq!(fs::read_to_string(mount.join("seen")).unwrap(), "web\n", "the guest wrote into the driver's directory");
    assert_eq!(fs::metadata(&mount).unwrap().gid(), 4242);

    until("the summary has what the driver says of the volume", || {
        let path = format!("/api/v1/nodes/{}/proxy/stats/summary", node.name());
        let summary: Value = serde_json::from_str(&space.ok(&["get", "--raw", &path])).expect("a summary");
        let pods = summary["pods"].as_array().into_iter().flatten();
        let mut volumes = pods.flat_map(|pod| pod["volume"].as_array().into_iter().flatten());
        volumes.any(|volume| volume["pvcRef"]["name"] == "data" && volume["capacityBytes"] == 100_u64 << 30)
    });

    // Asked again and again, as it wants; nothing else is done again, and the guest keeps its files.
    until("it is published again and again", || driver.calls("NodePublishVolume").len() >= 3);
    assert_eq!((driver.calls("NodeStageVolume").len(), driver.calls("NodeUnpublishVolume").len()), (1, 0));
    assert_eq!(space.ok(&["exec", "web", "--", "/bin/cat", "/data/seen"]), "web\n");

    // An agent that was killed mounts again, and one that finds a pod gone undoes what is left.
    node.kill();
    node.run();
    until("it is staged again", || driver.calls("NodeStageVolume").len() >= 2);
    space.wait_ready("web");
    node.kill();
    space.ok(&["delete", "pod", "web", "--force", "--grace-period=0"]);
    node.run();
    until("it is unpublished and unstaged", || {
        !driver.calls("NodeUnpublishVolume").is_empty() && !driver.calls("NodeUnstageVolume").is_empty()
    });
    until("the node does not use it any more", || {
        space.ok(&["get", "node", node.name(), "--output", "jsonpath={.status.volumesInUse}"]).trim().is_empty()
    });
    assert!(!mount.exists());

    driver.process.signal("TERM");
    until("the driver is out of the CSINode", || {
        block_on(csi_nodes.get(node.name())).is_ok_and(|found| found.spec.drivers.iter().all(|one| one.name != name))
    });
}

/// Plays the driver's attacher: what the attach-detach controller asks for is done.
fn attach(space: &Space<'_>, driver: &str) {
    let attachments: Api<VolumeAttachment> = Api::all(space.cluster().client());
    let mut found = None;
    until("the controller wants it attached", || {
        let all = block_on(attachments.list(&ListParams::default())).map(|list| list.items).unwrap_or_default();
        found = all.into_iter().find(|one| one.spec.attacher == driver).and_then(|one| one.metadata.name);
        found.is_some()
    });
    let name = found.expect("it was found");
    let patch = r#"{"status": {"attached": true, "attachmentMetadata": {"device": "/dev/mock"}}}"#;
    space.ok(&["patch", "volumeattachment", &name, "--subresource=status", "--type=merge", "--patch", patch]);
}

/// Plays the driver's resizer: it makes the volume larger, and the node has its part still to do.
fn grow(space: &Space<'_>, size: &str) {
    let status = |phase: &str, conditions: &str| {
        let patch = format!(
            r#"{{"status": {{"allocatedResources": {{"storage": "{size}"}}, "allocatedResourceStatuses": {{"storage": "{phase}"}}, "conditions": {conditions}}}}}"#
        );
        space.ok(&["patch", "pvc", "data", "--subresource=status", "--type=merge", "--patch", &patch]);
    };
    // In its order: while it is at it, a node leaves the volume alone.
    status("ControllerResizeInProgress", r#"[{"type": "Resizing", "status": "True"}]"#);
    let capacity = format!(r#"{{"spec": {{"capacity": {{"storage": "{size}"}}}}}}"#);
    space.ok(&["patch", "pv", &format!("{}-csi", space.name()), "--type=merge", "--patch", &capacity]);
    status("NodeResizePending", r#"[{"type": "FileSystemResizePending", "status": "True"}]"#);
}

/// Waits until the claim says its size and no word of a resize any more.
fn wait_size(space: &Space<'_>, size: &str) {
    space.wait::<PersistentVolumeClaim>("data", &format!("has {size}"), |claim| {
        let Some(status) = claim.and_then(|claim| claim.status.as_ref()) else { return false };
        status.capacity.as_ref().is_some_and(|capacity| capacity["storage"].0 == size)
            && status.conditions.as_ref().is_none_or(Vec::is_empty)
            && status.allocated_resource_statuses.as_ref().is_none_or(std::collections::BTreeMap::is_empty)
    });
}

#[test]
fn a_volume_that_grew_is_expanded_by_its_driver_and_its_claim_says_so() {
    let space = Cluster::shared().space("grown");
    if space.cluster().try_plane().is_none() {
        skipped("it makes a StorageClass, which would stay in another's cluster");
        return;
    }
    let node = space.node(NodeOptions { tools: TOOLS, kubelet: "syncFrequency: 1s", ..NodeOptions::default() });
    let name = format!("{}.example", space.name());
    let config = r#"{"DisableAttach": true, "NodeExpansionRequired": true, "PermissiveTargetPath": true}"#;
    let driver = Driver::start(space.cluster(), node.at(), &name, &node.root(), config);
    space.apply(&format!(
        "{{apiVersion: storage.k8s.io/v1, kind: CSIDriver, metadata: {{name: {name}}}, spec: {{attachRequired: false}}}}"
    ));
    space.apply(&format!(
        "{{apiVersion: storage.k8s.io/v1, kind: StorageClass, metadata: {{name: {name}}}, provisioner: {name}, allowVolumeExpansion: true}}"
    ));
    space.ok(&["create", "secret", "generic", "key", "--from-literal=password=hunter2"]);
    let source = format!(
        "csi: {{driver: {name}, volumeHandle: '1', fsType: ext4, nodeExpandSecretRef: {{name: key, namespace: SPACE}}}}"
    );
    let of_class = |text: String| text.replace("storageClassName: manual", &format!("storageClassName: {name}"));
    space.apply(&of_class(persistent("SPACE-csi", &source, "ReadWriteOnce", "")));
    space.apply(&of_class(claim("data", "SPACE-csi", "ReadWriteOnce")));
    let volume = "persistentVolumeClaim: {claimName: data}";
    space.apply(&holder("web", "", volume));
    space.wait_ready("web");
    assert!(driver.calls("NodeExpandVolume").is_empty(), "it has its size");

    // While a pod has it.
    let ask = |size: &str| {
        let patch = format!(r#"{{"spec": {{"resources": {{"requests": {{"storage": "{size}"}}}}}}}}"#);
        space.ok(&["patch", "pvc", "data", "--patch", &patch]);
    };
    ask("2Mi");
    grow(&space, "2Mi");
    wait_size(&space, "2Mi");
    let words = format!("MountVolume.NodeExpandVolume succeeded for volume \"{}-csi\" {}", space.name(), node.name());
    space.wait_event("web", "FileSystemResizeSuccessful", &[&words]);
    space.wait_event("data", "FileSystemResizeSuccessful", &[&words]);
    let call = driver.calls("NodeExpandVolume").pop().expect("it was asked");
    let uid = space.ok(&["get", "pod", "web", "--output", "jsonpath={.metadata.uid}"]);
    for word in [
        "\"required_bytes\":2097152",
        "\"password\":\"hunter2\"",
        "/globalmount\"",
        &format!("/pods/{}/volumes/kubernetes.io~csi/{}-csi/mount\"", uid.trim(), space.name()),
    ] {
        assert!(call.contains(word), "{word} in {call}");
    }
    assert_eq!(driver.calls("NodeExpandVolume").len(), 1, "once is enough");

    // While no pod has it: with the next mount.
    space.ok(&["delete", "pod", "web"]);
    ask("3Mi");
    grow(&space, "3Mi");
    space.apply(&holder("next", "", volume));
    space.wait_ready("next");
    wait_size(&space, "3Mi");
    let call = driver.calls("NodeExpandVolume").pop().expect("it was asked again");
    assert!(call.contains("\"required_bytes\":3145728"), "{call}");

    // A driver that knows nothing of it any more fails for good: the claim says why, the pod runs on.
    driver.process.signal("TERM");
    drop(driver);
    let config = r#"{"DisableAttach": true, "PermissiveTargetPath": true}"#;
    let driver = Driver::start(space.cluster(), node.at(), &name, &node.root(), config);
    until("it is there again", || {
        driver.calls("NodeGetCapabilities").len() > 1 || !driver.calls("NodeGetInfo").is_empty()
    });
    ask("4Mi");
    grow(&space, "4Mi");
    let words = format!(
        "NodeExpandVolume.NodeExpandVolume failed for volume \"{}-csi\" : NodeExpand is not supported by the CSI driver {name}",
        space.name()
    );
    space.wait_event("next", "VolumeResizeFailed", &[&words]);
    space.wait::<PersistentVolumeClaim>("data", "says why", |claim| {
        let conditions = claim.and_then(|claim| claim.status.as_ref()?.conditions.clone()).unwrap_or_default();
        let failed = conditions.iter().find(|condition| condition.type_ == "NodeResizeError");
        failed.is_some_and(|failed| failed.message.as_deref().is_some_and(|words| words.contains("is not supported")))
    });
    space.wait_ready("next");
}
