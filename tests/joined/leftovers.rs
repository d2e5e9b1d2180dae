//! What pods leave behind: nothing of their own, also when the agent was down as they went, and everything that is not.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use k8s_openapi::api::core::v1::Pod;

use super::volumes::{TOOLS, claim, persistent, shared_directory, until};
use crate::cluster::{Cluster, NodeOptions};
use crate::support::skipped;

/// A pod with a volume of every kind that is its own, and of every kind that is the host's.
const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: NAME}
spec:
  nodeSelector: {wasilet.dev/test: SPACE}
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: test/tools:v1
    imagePullPolicy: IfNotPresent
    args: [--file, /own/seen, NAME]
    ports: [{containerPort: 7777, hostPort: 7777}]
    volumeMounts:
    - {name: own, mountPath: /own}
    - {name: memory, mountPath: /memory}
    - {name: host, mountPath: /host}
    - {name: host, mountPath: /part, subPath: part}
    - {name: local, mountPath: /local}
    - {name: config, mountPath: /config}
  volumes:
  - {name: own, emptyDir: {}}
  - {name: memory, emptyDir: {medium: Memory}}
  - {name: host, hostPath: {path: HOST, type: Directory}}
  - {name: local, persistentVolumeClaim: {claimName: data}}
  - {name: config, configMap: {name: kube-root-ca.crt}}
"#;

/// Every file below a directory, with its content; links as what they say.
fn content(dir: &Path) -> BTreeSet<(String, String)> {
    let mut found = BTreeSet::new();
    let mut left = vec![dir.to_owned()];
    while let Some(path) = left.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let text = if meta.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            String::new()
        } else if meta.is_symlink() {
            fs::read_link(&path).unwrap().display().to_string()
        } else {
            fs::read_to_string(&path).unwrap()
        };
        found.insert((path.display().to_string(), text));
    }
    found
}

/// What a hostile guest could leave: links in the pod's own directories that lead to what is not the pod's.
fn plant(own: &Path, outside: &Path) {
    symlink(outside, own.join("link")).unwrap();
    symlink(outside.join("keep"), own.join("file")).unwrap();
    fs::create_dir_all(own.join("deep/er")).unwrap();
    symlink("../../../../../../../../..", own.join("deep/er/up")).unwrap();
    symlink(outside, own.join("deep/er/link")).unwrap();
    fs::set_permissions(own.join("deep"), fs::Permissions::from_mode(0o0)).unwrap();
}

/// Names below `dir`, at any depth, that have the pod's UID in them.
fn named(dir: &Path, uid: &str) -> Vec<String> {
    let (mut found, mut left) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(path) = left.pop() {
        for entry in fs::read_dir(&path).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.to_string_lossy().contains(uid) {
                found.push(path.display().to_string());
            } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                left.push(path);
            }
        }
    }
    found
}

#[test]
fn a_pod_leaves_nothing_of_its_own_and_takes_nothing_of_the_hosts_whenever_it_goes() {
    let space = Cluster::shared().space("leftovers");
    if space.cluster().try_plane().is_none() {
        skipped("the node must have its machine for itself");
        return;
    }
    let (dir, allowed) = shared_directory(&space);
    for (name, text) in
        [("host/keep", "host"), ("host/part/keep", "part"), ("local/keep", "local"), ("outside/keep", "outside")]
    {
        fs::create_dir_all(dir.join(name).parent().unwrap()).unwrap();
        fs::write(dir.join(name), text).unwrap();
    }
    let node = space.node(NodeOptions { tools: TOOLS, node: &allowed, ..NodeOptions::default() });
    let local = format!("local: {{path: {}}}", dir.join("local").display());
    let affinity = "nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: wasilet.dev/test, operator: In, values: [SPACE]}]}]}}";
    space.apply(&persistent("SPACE-local", &local, "ReadWriteOnce", affinity));
    space.apply(&claim("data", "SPACE-local", "ReadWriteOnce"));
    let host = dir.join("host").display().to_string();
    for round in ["here", "away", "killed"] {
        let before = content(&dir);
        space.apply(&POD.replace("NAME", round).replace("HOST", &host));
        let pod: Pod = space.wait_ready(round);
        let uid = pod.metadata.uid.clone().unwrap();
        let own = node.root().join("pods").join(&uid).join("volumes/kubernetes.io~empty-dir/own");
        assert_eq!(fs::read_to_string(own.join("seen")).unwrap().trim(), round);
        plant(&own, &dir.join("outside"));
        space.ok(&["exec", round, "--", "/bin/init", "/memory/secret", "x"]);
        assert!(!named(&node.root(), &uid).is_empty(), "its record, its logs, its volumes");
        if round == "here" {
            space.ok(&["delete", "pod", round]);
        } else {
            // Gone from the API server before the agent is back: it never hears of a deletion.
            if round == "away" {
                node.stop();
            } else {
                node.kill();
            }
            space.ok(&["delete", "pod", round, "--force", "--grace-period=0"]);
            node.run();
        }
        until(&format!("nothing is left of {round}: {:?}", named(&node.root(), &uid)), || {
            named(&node.root(), &uid).is_empty() && named(Path::new("/dev/shm"), &uid).is_empty()
        });
        assert_eq!(content(&dir), before, "{round}: what is the host's stays as it was");
        // The next one has the host's port, which was this one's.
        node.wait_ready();
    }
}
