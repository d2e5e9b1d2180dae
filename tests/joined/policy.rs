//! NetworkPolicies: said when they cannot be read, in force with the right to read them, changed at once.

use crate::cluster::{Cluster, NodeOptions, Space};
use crate::support::{eventually, pod_ip};

/// Two who ask and one who answers, with a probe by the node.
const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: server, labels: {app: server}}
spec:
  nodeSelector: {wasilet.dev/test: SPACE}
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: test/net-check:v1
    args: [serve, "7000"]
    ports: [{containerPort: 7000, name: echo}, {containerPort: 7000, name: echo-udp, protocol: UDP}]
    readinessProbe: {tcpSocket: {port: 7000}, periodSeconds: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: friend, labels: {app: friend}}
spec:
  nodeSelector: {wasilet.dev/test: SPACE}
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: test/tools:v1}]
---
apiVersion: v1
kind: Pod
metadata: {name: stranger, labels: {app: stranger}}
spec:
  nodeSelector: {wasilet.dev/test: SPACE}
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: test/tools:v1}]
"#;

const DENY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny}
spec: {podSelector: {matchLabels: {app: server}}}
";

const FRIENDS: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: friends}
spec:
  podSelector: {matchLabels: {app: server}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: friend}}}]
    ports: [{port: echo}, {port: echo-udp, protocol: UDP}]
";

const STAY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: stay}
spec: {podSelector: {matchLabels: {app: friend}}, policyTypes: [Egress]}
";

fn rights(space: &Space<'_>, node: &str) -> String {
    format!(
        "
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {{name: policies-{0}}}
rules:
- {{apiGroups: [networking.k8s.io], resources: [networkpolicies], verbs: [list, watch]}}
- {{apiGroups: [''], resources: [namespaces, pods], verbs: [list, watch]}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{name: policies-{0}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: policies-{0}}}
subjects: [{{apiGroup: rbac.authorization.k8s.io, kind: User, name: 'system:node:{node}'}}]
",
        space.name()
    )
}

/// What a pod says of the server.
fn knock(space: &Space<'_>, pod: &str, protocol: &str, ip: &str) -> String {
    let said = space.kubectl(&["exec", pod, "--", "name-check", protocol, ip, "7000"]);
    format!("{}{}", said.stdout.trim(), if said.code == Some(0) { "" } else { " (failed)" })
}

/// Waits until a pod gets in, or does not.
fn becomes(space: &Space<'_>, pod: &str, protocol: &str, ip: &str, open: bool) {
    eventually(&format!("{pod} by {protocol}: open={open}"), || {
        let said = knock(space, pod, protocol, ip);
        if said.ends_with("(failed)") == open { Err(said) } else { Ok(()) }
    });
}

fn node_event(cluster: &Cluster, node: &str, reason: &str) -> String {
    eventually(&format!("{reason} of {node}"), || {
        let selector = format!("involvedObject.name={node},reason={reason}");
        let args = [
            "get",
            "events",
            "--namespace=default",
            "--field-selector",
            &selector,
            "--output=jsonpath={.items[*].message}",
        ];
        let said = cluster.kubectl(&args).stdout;
        if said.is_empty() { Err("no event".to_owned()) } else { Ok(said) }
    })
}

#[test]
fn policies_are_in_force_once_they_can_be_read_and_changes_hold_at_once() {
    let cluster = Cluster::shared();
    if cluster.try_plane().is_none() {
        crate::support::skipped("the rights of a node are changed, which another cluster may have given");
        return;
    }
    let space = cluster.space("policy");
    let node =
        space.node(NodeOptions { images: &["net-check"], tools: &["sleeper", "name-check"], ..NodeOptions::default() });
    space.apply(PODS);
    let ip = pod_ip(&space.wait_ready("server")).clone();
    space.wait_ready("friend");
    space.wait_ready("stranger");

    // A node that may not read policies says so, and lets everything through.
    let told = node_event(cluster, node.name(), "NetworkPolicyNotEnforced");
    assert!(told.contains("networkpolicies") || told.contains("pods") || told.contains("namespaces"), "{told}");
    assert!(told.contains("wasilet rbac"), "{told}");
    space.apply(DENY);
    becomes(&space, "stranger", "tcp", &ip, true);

    // With the rights, without a restart.
    cluster.kubectl_with(&["apply", "--filename", "-"], &rights(&space, node.name()));
    node_event(cluster, node.name(), "NetworkPolicyEnforced");
    becomes(&space, "stranger", "tcp", &ip, false);
    becomes(&space, "friend", "tcp", &ip, false);
    becomes(&space, "friend", "udp", &ip, false);
    let from_elsewhere =
        format!("timeout 5 bash -c 'exec 3<>/dev/tcp/{ip}/7000; echo x >&3; read -r line <&3 && echo got $line'");
    let said = space.host("sh", &["-c", &from_elsewhere]);
    assert!(!said.stdout.contains("got"), "the API server's machine is no pod's node: {said:?}");

    space.apply(FRIENDS);
    becomes(&space, "friend", "tcp", &ip, true);
    becomes(&space, "friend", "udp", &ip, true);
    becomes(&space, "stranger", "tcp", &ip, false);
    becomes(&space, "stranger", "udp", &ip, false);
    // Labels change who is who.
    space.ok(&["label", "pod", "stranger", "app=friend", "--overwrite"]);
    becomes(&space, "stranger", "tcp", &ip, true);

    space.apply(STAY);
    becomes(&space, "friend", "tcp", &ip, false);
    becomes(&space, "friend", "udp", &ip, false);
    let said = knock(&space, "friend", "tcp", &ip);
    assert!(said.to_lowercase().contains("denied"), "what the pod's own policy forbids is told so: {said}");

    space.ok(&["delete", "networkpolicy", "--all"]);
    becomes(&space, "friend", "tcp", &ip, true);
    becomes(&space, "friend", "udp", &ip, true);
    // All the time the node's probes came through.
    let server = space.wait_ready("server");
    assert_eq!(crate::support::container(&server, "main").restart_count, 0);
}
