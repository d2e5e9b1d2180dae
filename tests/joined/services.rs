//! Services without a kube-proxy: from pods of two nodes, from outside by NodePorts, and what rights that takes.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::ListParams;

use crate::cluster::{Cluster, Node, NodeOptions, Space, block_on};
use crate::support::{eventually, pod_ip};

const NODE: NodeOptions<'static> = NodeOptions {
    images: &["net-check"],
    tools: &["sleeper", "net-check", "cat"],
    kubelet: "",
    node: "",
    labels: "",
    mounts: "",
};

fn pod(name: &str, node: &str, container: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}, group: {group}}}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 1
  containers: [{{name: main, {container}}}]
",
        group = name.split('-').next().unwrap_or_default()
    )
}

/// Echoes by TCP and UDP; tells who connects.
fn server(name: &str, node: &str) -> String {
    let ports = "ports: [{containerPort: 7000, name: tcp}, {containerPort: 7000, name: udp, protocol: UDP}]";
    pod(name, node, &format!("image: test/net-check:v1, args: [serve, '7000'], {ports}"))
}

fn client(name: &str, node: &str) -> String {
    pod(name, node, "image: test/tools:v1")
}

const SERVICE: &str = "
---
apiVersion: v1
kind: Service
metadata: {name: echo}
spec:
  type: NodePort
  selector: {group: echo}
  ports:
  - {name: tcp, port: 80, targetPort: tcp}
  - {name: udp, port: 80, targetPort: udp, protocol: UDP}
";

/// `net-check dial` in a pod: what it says, and whether all was well.
fn dial(space: &Space<'_>, from: &str, host: &str, port: &str) -> Result<String, String> {
    let said = space.kubectl(&["exec", from, "--", "net-check", "dial", host, port]);
    let text = format!("{}{}", said.stdout, said.stderr);
    if said.code == Some(0) { Ok(text) } else { Err(text) }
}

fn dials(space: &Space<'_>, from: &str, host: &str, port: &str) -> String {
    eventually(&format!("{from} dials {host}:{port}"), || dial(space, from, host, port))
}

/// Addresses that connected to a server.
fn callers(space: &Space<'_>, server: &str) -> Vec<String> {
    let log = space.ok(&["logs", server]);
    let lines = log.lines().filter_map(|line| line.strip_prefix("net-check: ")?.strip_suffix(" connected"));
    lines.filter_map(|peer| Some(peer.rsplit_once(':')?.0.to_owned())).collect()
}

/// Says something by bash's own TCP or UDP beside the control plane: the cluster's outside.
fn from_outside(space: &Space<'_>, protocol: &str, address: &str, port: i32) -> Result<(), String> {
    let script = format!("exec 3<>/dev/{protocol}/{address}/{port} && printf ping >&3 && timeout 2 head -c4 <&3");
    let done = space.host("bash", &["-c", &script]);
    if done.stdout == "ping" { Ok(()) } else { Err(format!("{}{}", done.stdout, done.stderr)) }
}

/// Waits until the Service has so many endpoints that are ready.
fn wait_endpoints(space: &Space<'_>, count: usize) {
    eventually(&format!("{count} endpoints"), || {
        let label = ListParams::default().labels("kubernetes.io/service-name=echo");
        let slices = block_on(space.api::<EndpointSlice>().list(&label)).map_err(|error| error.to_string())?;
        let endpoints = slices.items.iter().flat_map(|slice| slice.endpoints.iter().flatten());
        let ready: BTreeSet<_> = endpoints
            .filter(|one| one.conditions.as_ref().is_none_or(|conditions| conditions.ready != Some(false)))
            .flat_map(|one| one.addresses.clone())
            .collect();
        if ready.len() == count { Ok(()) } else { Err(format!("{ready:?}")) }
    });
}

#[test]
fn pods_of_two_nodes_reach_each_other_by_service_and_the_world_by_node_port() {
    let space = Cluster::shared().space("services");
    let (a, b) = (space.node(NODE), space.node(NODE));
    let names = ["echo-a", "echo-b"];
    let (one, two) = (a.name(), b.name());
    space.apply(&[server("echo-a", one), server("echo-b", two), client("from-a", one), client("from-b", two)].concat());
    space.apply(SERVICE);
    let ip = |name: &str| pod_ip(&space.wait_ready(name)).clone();
    let servers = names.map(ip);
    let clients = ["from-a", "from-b"].map(ip);
    let service: Service = space.wait("echo", "has an address", |service| service.is_some()).expect("it was seen");
    let spec = service.spec.expect("a spec");
    let vip = spec.cluster_ip.expect("an address");
    let ports = spec.ports.unwrap_or_default();
    wait_endpoints(&space, 2);

    // By the Service, from both nodes to both: each server sees each client's own address.
    for from in ["from-a", "from-b"] {
        let said = dials(&space, from, &vip, "80");
        assert!(said.contains(&format!("to {vip}:80")), "the peer is the Service: {said}");
    }
    let both = |server: &str| {
        let seen = callers(&space, server);
        if clients.iter().all(|client| seen.contains(client)) { Ok(()) } else { Err(format!("{server} saw {seen:?}")) }
    };
    eventually("each server is found by each client", || {
        for from in ["from-a", "from-b"] {
            dial(&space, from, &vip, "80")?;
        }
        names.iter().try_for_each(|server| both(server))
    });
    // By the pod's own address, across nodes.
    dials(&space, "from-a", &servers[1], "7000");
    dials(&space, "from-b", &servers[0], "7000");

    // From outside, by either node, to whichever server.
    for port in &ports {
        let (number, protocol) = (node_port(port), port.protocol.as_deref().unwrap_or("TCP"));
        for address in [a.address(), b.address()] {
            let what = format!("{protocol} {address}:{number} from outside");
            for _ in 0..4 {
                eventually(&what, || from_outside(&space, &protocol.to_lowercase(), address, number));
            }
            // And from a pod: of its own node in process, of the other by the kernel.
            dials_tcp(&space, "from-a", address, number, protocol);
        }
    }

    // One client stays with one server, and is free again.
    space.ok(&["patch", "service", "echo", "--patch", "{\"spec\": {\"sessionAffinity\": \"ClientIP\"}}"]);
    eventually("a client stays with one server", || {
        let before = names.map(|name| callers(&space, name).len());
        for _ in 0..4 {
            dial(&space, "from-a", &vip, "80")?;
        }
        let after = names.map(|name| callers(&space, name).len());
        let used = (0..2).filter(|at| after[*at] > before[*at]).count();
        if used == 1 { Ok(()) } else { Err(format!("{before:?} became {after:?}")) }
    });
    space.ok(&["patch", "service", "echo", "--patch", "{\"spec\": {\"sessionAffinity\": \"None\"}}"]);

    // The API server itself, whose address is no pod's.
    let said = dial(&space, "from-a", "10.96.0.1", "443").expect_err("it speaks TLS");
    assert!(said.contains("to 10.96.0.1:443"), "{said}");

    // An endpoint goes, then the last one.
    space.ok(&["delete", "pod", "echo-b"]);
    wait_endpoints(&space, 1);
    for _ in 0..3 {
        dials(&space, "from-b", &vip, "80");
    }
    space.ok(&["delete", "pod", "echo-a"]);
    wait_endpoints(&space, 0);
    eventually("nobody is there", || match dial(&space, "from-a", &vip, "80") {
        Err(said) if said.contains("refused") => Ok(()),
        Ok(said) | Err(said) => Err(said),
    });
    eventually("its NodePort is closed", || match from_outside(&space, "tcp", a.address(), node_port(&ports[0])) {
        Err(said) if said.contains("refused") => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

fn node_port(port: &ServicePort) -> i32 {
    port.node_port.expect("a NodePort")
}

/// net-check asks for TCP and UDP on one port, which NodePorts are not: whether the one that is meant was found.
fn dials_tcp(space: &Space<'_>, from: &str, address: &str, port: i32, protocol: &str) {
    let wanted = if protocol == "TCP" { "connect and hear an echo" } else { "a datagram comes back" };
    eventually(&format!("{from} dials {protocol} {address}:{port}"), || {
        let said = dial(space, from, address, &port.to_string()).unwrap_or_else(|said| said);
        let good = said.lines().any(|line| line.contains(wanted) && !line.to_lowercase().contains("fail"));
        if good { Ok(()) } else { Err(said) }
    });
}

/// Events about a node, by reason.
fn node_events(cluster: &Cluster, node: &str) -> Vec<(String, String)> {
    let selector = format!("involvedObject.kind=Node,involvedObject.name={node}");
    let list =
        cluster.kubectl_ok(&["get", "events", "--namespace", "default", "--field-selector", &selector, "-o", "json"]);
    let list: serde_json::Value = serde_json::from_str(&list).expect("JSON");
    let text = |event: &serde_json::Value, field: &str| event[field].as_str().unwrap_or_default().to_owned();
    list["items"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|event| (text(event, "reason"), text(event, "message")))
        .collect()
}

#[test]
fn a_node_without_the_rights_says_so_and_works_once_it_has_them() {
    let cluster = Cluster::shared();
    let space = cluster.space("rights");
    let node = Node::prepare_without_rights(cluster, space.name(), NODE);
    let user = format!("--as=system:node:{}", node.name());
    let may = ["auth", "can-i", "list", "endpointslices.discovery.k8s.io", "--all-namespaces", &user];
    if cluster.kubectl(&[&may[..], &["--as-group=system:nodes"]].concat()).code == Some(0) {
        crate::support::skipped("this cluster's administrator has given every node the rights");
        return;
    }
    node.run();
    node.wait_ready();
    space.apply(&[server("echo-a", node.name()), client("from-a", node.name()), SERVICE.to_owned()].concat());
    let server: Pod = space.wait_ready("echo-a");
    space.wait_ready("from-a");
    wait_endpoints(&space, 1);
    let service: Service = space.wait("echo", "has an address", |service| service.is_some()).expect("it was seen");
    let vip = service.spec.and_then(|spec| spec.cluster_ip).expect("an address");
    let event = |reason: &str, words: &str| {
        eventually(&format!("an Event {reason}"), || {
            let events = node_events(cluster, node.name());
            let said = events.iter().any(|(other, message)| other == reason && message.contains(words));
            if said { Ok(()) } else { Err(format!("{events:?}")) }
        });
    };
    event("ServicesForbidden", "endpointslices");
    event("ServicesForbidden", "wasilet rbac | kubectl apply -f -");
    assert!(dial(&space, "from-a", &vip, "80").is_err());
    dials(&space, "from-a", &pod_ip(&server).clone(), "7000");

    node.grant();
    event("ServicesAllowed", "endpointslices");
    dials(&space, "from-a", &vip, "80");
}

/// The addresses of a pod, the primary one first.
fn ips(pod: &Pod) -> Vec<String> {
    let ips = pod.status.iter().flat_map(|status| status.pod_ips.iter().flatten());
    ips.map(|ip| ip.ip.clone()).collect()
}

#[test]
fn pods_of_both_families_reach_each_other_and_services_over_either() {
    let cluster = Cluster::shared();
    if cluster.try_plane().is_none() || !cluster.sandbox().is_dual_stack() {
        crate::support::skipped("it needs a control plane of our own and a kernel with IPv6");
        return;
    }
    let space = cluster.space("families");
    let (a, b) = (space.node(NODE), space.node(NODE));
    let host = pod("host-a", a.name(), "image: test/tools:v1").replace("spec:", "spec:\n  hostNetwork: true");
    space.apply(&[server("echo-b", b.name()), client("from-a", a.name()), host].concat());
    space.apply(&SERVICE.replace("type: NodePort", "type: NodePort\n  ipFamilyPolicy: RequireDualStack"));
    let (server, client) = (space.wait_ready("echo-b"), space.wait_ready("from-a"));
    let (servers, clients) = (ips(&server), ips(&client));
    let families = |ips: &[String]| ips.iter().map(|ip| ip.contains(':')).collect::<Vec<_>>();
    assert_eq!(
        (families(&servers), families(&clients)),
        (vec![false, true], vec![false, true]),
        "{servers:?} {clients:?}"
    );
    let nodes = [b.address().to_owned(), crate::cluster::Sandbox::v6(b.address())];
    let host_ips = server.status.as_ref().and_then(|status| status.host_ips.clone()).unwrap_or_default();
    assert_eq!(host_ips.iter().map(|one| one.ip.clone()).collect::<Vec<_>>(), nodes);
    let on_node = ips(&space.wait_ready("host-a"));
    assert_eq!(on_node, [a.address().to_owned(), crate::cluster::Sandbox::v6(a.address())]);
    let hosts = space.ok(&["exec", "from-a", "--", "cat", "/etc/hosts"]);
    assert!(clients.iter().all(|ip| hosts.contains(&format!("{ip}\tfrom-a"))), "{hosts}");

    let service: Service = space.wait("echo", "has addresses", |service| service.is_some()).expect("it was seen");
    let spec = service.spec.expect("a spec");
    let vips = spec.cluster_ips.unwrap_or_default();
    assert_eq!(families(&vips), [false, true]);
    wait_endpoints(&space, 2);
    for at in 0..2 {
        // Across nodes from the pod's own address of that family, by pod and by Service.
        for (to, port) in [(&servers[at], "7000"), (&vips[at], "80")] {
            dials(&space, "from-a", to, port);
        }
        eventually("the server saw the client", || {
            let seen = callers(&space, "echo-b");
            let wanted = if at == 0 { clients[0].clone() } else { format!("[{}]", clients[1]) };
            if seen.contains(&wanted) { Ok(()) } else { Err(format!("{wanted} is not among {seen:?}")) }
        });
        // From outside: the pod by its address, the Service by either node.
        eventually("the pod from outside", || from_outside(&space, "tcp", &servers[at], 7000));
        for port in spec.ports.iter().flatten() {
            let protocol = port.protocol.as_deref().unwrap_or("TCP").to_lowercase();
            for node in [&nodes[at], &on_node[at]] {
                let what = format!("{protocol} {node}:{}", node_port(port));
                eventually(&what, || from_outside(&space, &protocol, node, node_port(port)));
            }
        }
    }
}
