//! A disk that refuses for a while, under a node with pods: who runs, runs on; who comes is told why it waits and starts when the
//! disk is well; who goes is gone then, and nothing is left of it.

use super::pressure::disk;
use super::volumes::{TOOLS, holder, until};
use crate::cluster::{Cluster, NodeOptions, Space, is_ready};
use crate::support::{container, skipped};

/// A pod of a sleeper that is asked every second whether it still has its file on the disk.
fn pod(name: &str, more: &str) -> String {
    let probe = "livenessProbe: {exec: {command: [/bin/sleeper, --show, /data/seen]}, periodSeconds: 1, failureThreshold: 1, timeoutSeconds: 20}";
    holder(name, more, "emptyDir: {}").replace("    volumeMounts", &format!("    {probe}\n    volumeMounts"))
}

fn uid(space: &Space<'_>, name: &str) -> String {
    space.ok(&["get", "pod", name, "--output", "jsonpath={.metadata.uid}"])
}

#[test]
fn a_disk_that_refuses_for_a_while_stops_no_pod_and_nothing_is_left_on_it() {
    let space = Cluster::shared().space("bad-disk");
    if space.cluster().try_plane().is_none() {
        skipped("the node's disk must be the test's to fill");
        return;
    }
    // Nobody is evicted for its disk.
    let node = space.node(NodeOptions {
        tools: TOOLS,
        mounts: &disk("$0", "size=64m,nr_inodes=2000"),
        ..NodeOptions::default()
    });
    space.apply(&pod("steady", ""));
    space.wait_ready("steady");
    let mut uids = vec![uid(&space, "steady")];
    // No room for what is in files, then none for files.
    for (fault, fill, free) in [
        ("bytes", r#"dd if=/dev/zero of="$0/full" bs=64k 2>/dev/null || true"#, r#"rm "$0/full""#),
        (
            "inodes",
            r#"mkdir "$0/full"; (n=0; while : >"$0/full/$n"; do n=$((n + 1)); done) 2>/dev/null || true"#,
            r#"rm -r "$0/full""#,
        ),
    ] {
        let (going, late) = (format!("going-{fault}"), format!("late-{fault}"));
        space.apply(&pod(&going, ""));
        space.wait_ready(&going);
        uids.push(uid(&space, &going));
        node.shell(fill);
        // One that may run once only: it does not begin before that is on the disk.
        space.apply(&pod(&late, "restartPolicy: Never"));
        uids.push(uid(&space, &late));
        until(&format!("{late} is told why it waits: {}", space.dump(&late)), || {
            let told = |message: &str| message.contains("No space left on device");
            space.events(&late).iter().any(|event| event.message.as_deref().is_some_and(told))
        });
        space.ok(&["delete", "pod", &going, "--wait=false"]);
        space.wait_event(&going, "Killing", &["Stopping container main"]);
        assert!(!is_ready(&space.wait_phase(&late, "Pending")), "it waits");
        let seen = space.ok(&["exec", "steady", "--", "/bin/sleeper", "--show", "/data/seen"]);
        assert_eq!(seen, "steady\n");
        node.shell(free);
        space.wait_gone(&going);
        space.wait_ready(&late);
        let steady = space.wait_ready("steady");
        assert_eq!(container(&steady, "main").restart_count, 0, "{fault}: it ran on: {:#?}", steady.status);
    }
    space.ok(&["delete", "pod", "--all", "--wait=false"]);
    for name in ["steady", "late-bytes", "late-inodes"] {
        space.wait_gone(name);
    }
    let left = || {
        let all = node.shell(r#"find "$0" -path "$0/images" -prune -o -print"#);
        let named = |line: &&str| uids.iter().any(|uid| line.contains(uid.as_str()));
        all.lines().filter(named).map(str::to_owned).collect::<Vec<_>>()
    };
    until(&format!("nothing is left of them: {:?}", left()), || left().is_empty());
}
