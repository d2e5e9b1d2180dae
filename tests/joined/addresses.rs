//! Addresses of pods: given back with the pod's end, and given to another only after all that nobody had.

use std::collections::BTreeSet;

use super::volumes::until;
use crate::cluster::{Cluster, Node, NodeOptions, Space};
use crate::support::pod_ip;

/// A range with room for five pods, beside those that the controller gives to nodes.
const RANGE: &str = "10.244.251.0/29";

fn pod(name: &str, image: &str, policy: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{nodeSelector: {{wasilet.dev/test: SPACE}}, \
         restartPolicy: {policy}, terminationGracePeriodSeconds: 1, containers: [{{name: main, image: 'test/{image}:v1', \
         args: [/tmp/x]}}]}}}}"
    )
}

fn address(space: &Space<'_>, name: &str) -> String {
    space.apply(&pod(name, "sleeper", "Always"));
    pod_ip(&space.wait_ready(name))
}

#[test]
fn an_address_is_given_back_and_rests_before_another_pod_has_it() {
    let space = Cluster::shared().space("addresses");
    if space.cluster().try_plane().is_none() {
        crate::support::skipped("the range of its node's pods must be the test's to choose");
        return;
    }
    let options = NodeOptions { images: &["sleeper", "init"], ..NodeOptions::default() };
    let node = Node::prepare(space.cluster(), space.name(), options);
    space.apply(&format!(
        "{{apiVersion: v1, kind: Node, metadata: {{name: {}, labels: {{wasilet.dev/test: SPACE}}}}, \
         spec: {{podCIDR: {RANGE}, podCIDRs: [{RANGE}]}}}}",
        node.name()
    ));
    node.run();
    node.wait_ready();

    // One ends by itself and is still there to be seen, one is deleted; the API server has told of both addresses.
    let stays = address(&space, "stays");
    space.apply(&pod("ended", "init", "Never"));
    let ended = pod_ip(&space.wait_phase("ended", "Succeeded"));
    let deleted = address(&space, "deleted");
    space.ok(&["delete", "pod", "deleted"]);
    // Two addresses are left that nobody had.
    let known = BTreeSet::from([stays.clone(), ended.clone(), deleted.clone()]);
    assert_eq!(known.len(), 3, "each pod has an address of its own: {known:?}");
    let fresh = BTreeSet::from([address(&space, "fourth"), address(&space, "fifth")]);
    assert!(fresh.len() == 2 && fresh.is_disjoint(&known), "{fresh:?} beside {known:?}");
    // Rather one that did not rest than none: both were given back.
    let again = BTreeSet::from([address(&space, "sixth"), address(&space, "seventh")]);
    assert_eq!(again, BTreeSet::from([ended, deleted]));

    space.apply(&pod("waits", "sleeper", "Always"));
    // The node takes no more pods than it has addresses.
    space.wait_event("waits", "FailedScheduling", &["Too many pods"]);
    space.ok(&["delete", "pod", "stays"]);
    assert_eq!(pod_ip(&space.wait_ready("waits")), stays);

    // The next agent knows whose they are, and gives back what a pod had that went meanwhile.
    let gone = space.wait_ready("seventh");
    node.stop();
    space.ok(&["delete", "pod", "seventh", "--force", "--grace-period=0"]);
    node.run();
    let directory = node.root().join("pods").join(gone.metadata.uid.as_deref().expect("a UID"));
    until("nothing is left of the pod", || !directory.exists());
    assert_eq!(address(&space, "eighth"), pod_ip(&gone));
    // One that ended long ago takes nothing from the one that has its address now.
    space.ok(&["delete", "pod", "ended"]);
    space.apply(&pod("ninth", "sleeper", "Always"));
    space.wait_event("ninth", "FailedScheduling", &["Too many pods"]);
    let sixth = pod_ip(&space.wait_ready("sixth"));
    space.ok(&["delete", "pod", "sixth"]);
    assert_eq!(pod_ip(&space.wait_ready("ninth")), sixth);
}
