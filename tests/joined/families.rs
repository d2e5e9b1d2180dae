//! A node whose primary family is IPv6: what its pods are called, and that everything of them is reached over both families.

use k8s_openapi::api::core::v1::{Node as NodeObject, Pod, Service};
use kube::Api;

use crate::cluster::{Cluster, HOST, NodeOptions, Sandbox, Space, block_on};
use crate::support::eventually;

/// The cluster's DNS server as pods of the node ask it.
const DNS: &str = "fd00:10:96::a";

const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: echo, labels: {app: echo}}
spec:
  nodeSelector: {wasilet.dev/test: SPACE}
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: test/net-check:v1
    args: [serve, '7000']
    ports: [{containerPort: 7000, hostPort: 7001}, {containerPort: 7000, hostPort: 7001, protocol: UDP}]
---
apiVersion: v1
kind: Pod
metadata: {name: asker}
spec:
  nodeSelector: {wasilet.dev/test: SPACE}
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: test/tools:v1}]
---
apiVersion: v1
kind: Pod
metadata: {name: preopened, annotations: {wasilet.dev/preopen-ports: 'true'}}
spec:
  nodeSelector: {wasilet.dev/test: SPACE}
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: test/accept:v1, ports: [{containerPort: 7100, hostPort: 7101}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  nodeSelector: {wasilet.dev/test: SPACE}
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: test/http-component:v1, ports: [{containerPort: 8080, hostPort: 8081}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: on-node}
spec:
  nodeSelector: {wasilet.dev/test: SPACE}
  hostNetwork: true
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: test/tools:v1}]
";

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: echo}
spec:
  type: NodePort
  ipFamilies: [IPv6]
  ipFamilyPolicy: SingleStack
  selector: {app: echo}
  ports:
  - {name: tcp, port: 80, targetPort: 7000}
  - {name: udp, port: 80, targetPort: 7000, protocol: UDP}
---
apiVersion: v1
kind: Service
metadata: {name: dns}
spec:
  clusterIP: '@DNS@'
  ipFamilies: [IPv6]
  ipFamilyPolicy: SingleStack
  ports: [{name: dns, protocol: UDP, port: 53}, {name: dns-tcp, protocol: TCP, port: 53}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: dns-host, labels: {kubernetes.io/service-name: dns}}
addressType: IPv6
endpoints: [{addresses: ['@SERVER@'], conditions: {ready: true}}]
ports: [{name: dns, protocol: UDP, port: 53}, {name: dns-tcp, protocol: TCP, port: 53}]
";

/// A cluster of both families with DNS; `None`, and a word about it, elsewhere.
fn cluster() -> Option<&'static Cluster> {
    let cluster = Cluster::shared();
    let plane = cluster.try_plane().filter(|_| cluster.sandbox().is_dual_stack());
    let Some(plane) = plane else {
        eprintln!("SKIPPED: it needs a control plane of our own and a kernel with IPv6");
        return None;
    };
    plane.dns(|manifest| drop(cluster.kubectl_with(&["apply", "--filename", "-"], manifest)));
    Some(cluster)
}

/// Says something by bash's own TCP or UDP beside the control plane, and hears an answer that begins so.
fn hears(space: &Space<'_>, protocol: &str, address: &str, port: i32, say: &str, answer: &str) {
    let (say, length) = (say.escape_default(), answer.len());
    let script =
        format!("exec 3<>/dev/{protocol}/{address}/{port} && printf '{say}' >&3 && timeout 2 head -c{length} <&3");
    eventually(&format!("{protocol} {address}:{port} from outside"), || {
        let done = space.host("bash", &["-c", &script]);
        if done.stdout == answer { Ok(()) } else { Err(format!("{}{}", done.stdout, done.stderr)) }
    });
}

fn pod_ips(pod: &Pod) -> Vec<String> {
    let ips = pod.status.iter().flat_map(|status| status.pod_ips.iter().flatten());
    ips.map(|ip| ip.ip.clone()).collect()
}

#[test]
fn a_node_of_ipv6_first_has_pods_of_ipv6_first_and_both_families_reach_them() {
    let Some(cluster) = cluster() else { return };
    let space = cluster.space("ipv6-first");
    let node = space.node(NodeOptions {
        images: &["net-check", "accept", "http-component"],
        tools: &["sleeper", "net-check", "name-check", "cat"],
        kubelet: &format!("clusterDNS: ['{DNS}']"),
        node: "nodeIP: '@V6@,@V4@'",
        labels: "",
        mounts: "",
    });
    let own = [Sandbox::v6(node.address()), node.address().to_owned()];
    space.apply(PODS);
    space.apply(&SERVICES.replace("@DNS@", DNS).replace("@SERVER@", &Sandbox::v6(HOST)));

    // The order of everything that has two addresses.
    let nodes: Api<NodeObject> = Api::all(cluster.client());
    let object = block_on(nodes.get(node.name())).expect("the Node");
    let addresses = object.status.and_then(|status| status.addresses).unwrap_or_default();
    let internal = addresses.iter().filter(|address| address.type_ == "InternalIP");
    assert_eq!(internal.map(|address| address.address.clone()).collect::<Vec<_>>(), own);
    let pods = ["echo", "preopened", "web"].map(|name| space.wait_ready(name));
    let asker = space.wait_ready("asker");
    for pod in pods.iter().chain([&asker]) {
        let status = pod.status.as_ref().expect("a status");
        let families: Vec<bool> = pod_ips(pod).iter().map(|ip| ip.contains(':')).collect();
        assert_eq!(families, [true, false], "{status:?}");
        assert_eq!(status.pod_ip.as_ref(), pod_ips(pod).first());
        let host_ips: Vec<String> = status.host_ips.iter().flatten().map(|one| one.ip.clone()).collect();
        assert_eq!((host_ips.as_slice(), status.host_ip.as_ref()), (&own[..], Some(&own[0])));
    }
    assert_eq!(pod_ips(&space.wait_ready("on-node")), own);
    let hosts = space.ok(&["exec", "asker", "--", "cat", "/etc/hosts"]);
    let of_pod: Vec<String> = pod_ips(&asker).iter().map(|ip| format!("{ip}\tasker")).collect();
    let lines: Vec<&str> = hosts.lines().filter(|line| line.ends_with("\tasker")).collect();
    assert_eq!(lines, of_pod, "{hosts}");

    // By the pods' addresses and by the node's ports, from outside, over either family: a socket of the guest's own, a
    // listener that it was given, and one that the node has for it.
    let page = "HTTP/1.1 200";
    let get = "GET / HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n";
    for (family, host) in own.iter().enumerate() {
        let ip = |at: usize| pod_ips(&pods[at])[family].clone();
        for (protocol, address, port, say, answer) in [
            ("tcp", ip(0), 7000, "ping", "ping"),
            ("udp", ip(0), 7000, "ping", "ping"),
            ("tcp", host.clone(), 7001, "ping", "ping"),
            ("udp", host.clone(), 7001, "ping", "ping"),
            ("tcp", ip(1), 7100, "ping\n", "7100 ping"),
            ("tcp", host.clone(), 7101, "ping\n", "7100 ping"),
            ("tcp", ip(2), 8080, get, page),
            ("tcp", host.clone(), 8081, get, page),
        ] {
            hears(&space, protocol, &address, port, say, answer);
        }
    }

    // A Service of IPv6 alone, by name through a DNS server that is asked over IPv6, by its address, by the node's port.
    let service: Service = space.wait("echo", "has an address", |service| service.is_some()).expect("it was seen");
    let spec = service.spec.expect("a spec");
    let vip = spec.cluster_ip.expect("an address");
    assert!(vip.contains(':'), "{vip}");
    let resolv = space.ok(&["exec", "asker", "--", "cat", "/etc/resolv.conf"]);
    assert!(resolv.contains(&format!("nameserver {DNS}\n")), "{resolv}");
    eventually("the Service has a name", || {
        let said = space.kubectl(&["exec", "asker", "--", "name-check", "lookup", "echo"]);
        if said.stdout.trim() == vip { Ok(()) } else { Err(format!("{}{}", said.stdout, said.stderr)) }
    });
    for host in ["echo", vip.as_str()] {
        eventually(&format!("{host} from a pod"), || {
            let said = space.kubectl(&["exec", "asker", "--", "net-check", "dial", host, "80"]);
            if said.code == Some(0) { Ok(()) } else { Err(format!("{}{}", said.stdout, said.stderr)) }
        });
    }
    for port in spec.ports.iter().flatten() {
        let (number, protocol) = (port.node_port.expect("a NodePort"), port.protocol.as_deref().unwrap_or("TCP"));
        hears(&space, &protocol.to_lowercase(), &own[0], number, "ping", "ping");
        let script = format!("exec 3<>/dev/tcp/{}/{number}", own[1]);
        assert_ne!(space.host("bash", &["-c", &script]).code, Some(0), "it has no address of IPv4");
    }
}
