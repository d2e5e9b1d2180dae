//! Services as guests and the node's ports have them: scenarios on one node, the other node played by a kernel socket.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener as HostListener, TcpStream as HostStream, UdpSocket as HostUdp};
use tokio::sync::watch;

use super::Source;
use crate::errno::Errno;
use crate::network::tests::{addr, listener, node, pod, read, receive, tcp, udp};
use crate::network::{NodeNetwork, Protocol, UdpSocket};
use crate::pod::services::{NodePlace, ServiceNews, ServiceSpec, SliceSpec};

const VIP: &str = "10.96.0.7";

fn service(spec: &Value) -> ServiceNews {
    let object = json!({"metadata": {"name": "web", "namespace": "ns"}, "spec": spec});
    ServiceNews::Service(ServiceSpec::of(&serde_json::from_value(object).unwrap()).unwrap())
}

/// A slice of endpoints on node `here` (with `local`) or elsewhere; all ready.
fn slice(name: &str, port: &Value, endpoints: &[(IpAddr, bool)]) -> ServiceNews {
    let endpoint =
        |(ip, local): &(IpAddr, bool)| json!({"addresses": [ip], "nodeName": if *local { "here" } else { "there" }});
    let object = json!({
        "metadata": {"name": name, "namespace": "ns", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": if endpoints.iter().any(|(ip, _)| ip.is_ipv6()) { "IPv6" } else { "IPv4" }, "ports": [port],
        "endpoints": endpoints.iter().map(endpoint).collect::<Vec<_>>(),
    });
    let place = NodePlace { name: "here".to_owned(), zone: String::new() };
    ServiceNews::Slice(SliceSpec::of(&serde_json::from_value(object).unwrap(), &place).unwrap())
}

#[tokio::test]
async fn an_address_of_a_service_leads_to_endpoints_of_its_own_family() {
    let node = here();
    let services = node.services();
    services.apply(service(&json!({
        "type": "NodePort", "clusterIP": VIP, "clusterIPs": [VIP, "fd00:96::7"],
        "ports": [{"port": 80, "nodePort": 30080}],
    })));
    let port = json!({"port": 8080});
    let v4: IpAddr = "10.1.0.1".parse().unwrap();
    let v6: IpAddr = "fd00:1::1".parse().unwrap();
    services.apply(slice("web-4", &port, &[(v4, false)]));
    let pick = |to: &str| {
        let picked = services.pick(addr(to), Protocol::Tcp, Source::Inside(v4), |_| true).expect("a Service's");
        picked.map(|target| target.ip)
    };
    assert_eq!(pick("[fd00:96::7]:80"), Err(Errno::ConnRefused), "none of that family yet");
    services.apply(slice("web-6", &port, &[(v6, false)]));
    for (to, expected) in
        [("10.96.0.7:80", v4), ("[fd00:96::7]:80", v6), ("192.0.2.1:30080", v4), ("[2001:db8::1]:30080", v6)]
    {
        assert_eq!(pick(to), Ok(expected), "{to}");
    }
    services.apply(ServiceNews::ServiceGone("ns/web".into()));
    assert!(services.pick(addr("[2001:db8::1]:30080"), Protocol::Tcp, Source::Inside(v4), |_| true).is_none());
}

/// A node on 127.0.0.1 that has read the cluster's Services: there are none.
fn here() -> Arc<NodeNetwork> {
    let node = node(|config| config.node_ips = vec![Ipv4Addr::LOCALHOST.into()]);
    node.services().apply(ServiceNews::Services(Vec::new()));
    assert!(!node.services().is_in_use(), "without endpoints nothing is known of Services");
    node.services().apply(ServiceNews::Slices(Vec::new()));
    node
}

fn vip(port: u16) -> SocketAddr {
    SocketAddr::new(VIP.parse().unwrap(), port)
}

async fn free_port() -> u16 {
    HostListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

#[tokio::test]
async fn a_guest_reaches_an_endpoint_by_the_address_of_its_service() {
    let node = here();
    let (client, server) = (pod(&node, "client"), pod(&node, "server"));
    let spec = json!({"clusterIP": VIP, "ports": [{"name": "http", "port": 80, "targetPort": "web"}]});
    node.services().apply(service(&spec));
    assert_eq!(tcp(&client).connect(vip(80)).await, Err(Errno::ConnRefused), "no endpoint yet");
    let ports = json!({"name": "http", "port": 8080});
    node.services().apply(slice("a", &ports, &[(server.ips()[0], true)]));
    assert_eq!(tcp(&client).connect(vip(80)).await, Err(Errno::ConnRefused), "nobody listens there");

    let (listening, at) = listener(&server, "0.0.0.0:8080");
    for from in [&client, &server] {
        let socket = tcp(from);
        let (connected, accepted) = tokio::join!(socket.connect(vip(80)), listening.accept());
        assert_eq!(connected, Ok(()));
        let accepted = accepted.unwrap();
        assert_eq!(socket.peer_addr(), Ok(vip(80)), "getpeername says what was asked for");
        assert_eq!(accepted.peer_addr(), socket.local_addr(), "and the server sees its true peer");
        assert_eq!(accepted.peer_addr().unwrap().ip(), from.ips()[0]);
        assert_eq!(accepted.local_addr(), Ok(SocketAddr::new(server.ips()[0], at.port())));
        socket.try_write(b"hello").unwrap();
        assert_eq!(read(&accepted, 16).await.unwrap(), b"hello");
    }
    assert_eq!(tcp(&client).connect(vip(81)).await, Err(Errno::ConnRefused), "a port that the Service does not have");

    node.services().apply(ServiceNews::SliceGone("ns/a".into()));
    assert_eq!(tcp(&client).connect(vip(80)).await, Err(Errno::ConnRefused));
    node.services().apply(ServiceNews::ServiceGone("ns/web".into()));
    assert!(client.service_target(vip(80)).is_ok_and(|to| to == vip(80)), "an address like any other");
}

/// What a server receives and from whom; it answers with its name.
async fn serve(socket: &UdpSocket, name: &[u8]) -> SocketAddr {
    let (_, seen) = receive(socket, 16).await.unwrap();
    socket.try_send_to(name, Some(seen.from)).unwrap();
    seen.from
}

#[tokio::test]
async fn datagrams_of_one_flow_stay_with_an_endpoint_and_answers_come_from_the_service() {
    let node = here();
    let client = pod(&node, "client");
    let servers = [pod(&node, "a"), pod(&node, "b")];
    let sockets: Vec<_> = servers
        .iter()
        .map(|pod| {
            let socket = udp(pod);
            socket.bind(addr("0.0.0.0:5353")).unwrap();
            socket
        })
        .collect();
    let ports = json!({"name": "dns", "port": 5353, "protocol": "UDP"});
    let (a, b) = (servers[0].ips()[0], servers[1].ips()[0]);
    node.services()
        .apply(service(&json!({"clusterIP": VIP, "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}]})));
    node.services().apply(slice("s", &ports, &[(a, true)]));

    let (plain, connected) = (udp(&client), udp(&client));
    connected.connect(vip(53)).unwrap();
    assert_eq!(connected.peer_addr(), Ok(vip(53)));
    for _ in 0..2 {
        for (socket, to) in [(&plain, Some(vip(53))), (&connected, None)] {
            assert_eq!(socket.try_send_to(b"who", to), Ok(3));
            assert_eq!(serve(&sockets[0], b"a").await.ip(), client.ips()[0]);
            let (data, answered) = receive(socket, 16).await.unwrap();
            assert_eq!((data.as_slice(), answered.from), (&b"a"[..], vip(53)));
        }
    }
    // A second endpoint changes nothing for flows that go on; when theirs is gone, they go to it.
    node.services().apply(slice("s", &ports, &[(a, true), (b, true)]));
    for (socket, to) in [(&plain, Some(vip(53))), (&connected, None)] {
        socket.try_send_to(b"who", to).unwrap();
        serve(&sockets[0], b"a").await;
        assert_eq!(receive(socket, 16).await.unwrap().0, b"a");
    }
    node.services().apply(slice("s", &ports, &[(b, true)]));
    for (socket, to) in [(&plain, Some(vip(53))), (&connected, None)] {
        socket.try_send_to(b"who", to).unwrap();
        serve(&sockets[1], b"b").await;
        let (data, answered) = receive(socket, 16).await.unwrap();
        assert_eq!((data.as_slice(), answered.from), (&b"b"[..], vip(53)));
    }
    // Without one, what is sent is lost, and a connected socket hears of it.
    node.services().apply(slice("s", &ports, &[]));
    assert_eq!(plain.try_send_to(b"who", Some(vip(53))), Ok(3));
    assert_eq!(connected.try_send_to(b"who", None), Ok(3));
    assert_eq!(connected.try_send_to(b"who", None), Err(Errno::ConnRefused));
}

#[tokio::test(start_paused = true)]
async fn a_client_stays_with_its_endpoint_for_as_long_as_its_service_says() {
    let node = here();
    let ips: Vec<IpAddr> = (1..=8).map(|n| IpAddr::from([10, 1, 0, n])).collect();
    let all: Vec<(IpAddr, bool)> = ips.iter().map(|ip| (*ip, false)).collect();
    node.services().apply(slice("s", &json!({"port": 8080}), &all));
    let put = |affinity: &str| {
        let config = json!({"clientIP": {"timeoutSeconds": 10}});
        let ports = json!([{"port": 80, "nodePort": 30080}]);
        node.services().apply(service(
            &json!({"type": "NodePort", "clusterIP": VIP, "ports": ports, "sessionAffinity": affinity, "sessionAffinityConfig": config}),
        ));
    };
    let pick = |to: SocketAddr, client: u8| {
        let source = Source::Inside(IpAddr::from([10, 2, 0, client]));
        node.services().pick(to, Protocol::Tcp, source, |_| true).unwrap().unwrap().ip
    };
    let differ = |to| (0..200).map(|_| pick(to, 1)).collect::<std::collections::HashSet<_>>().len();
    put("None");
    assert_eq!(differ(vip(80)), 8);
    put("ClientIP");
    let mine = pick(vip(80), 1);
    assert!((0..100).all(|_| pick(vip(80), 1) == mine));
    assert_eq!(pick(addr("192.0.2.1:30080"), 1), mine, "one client of the port, whichever address it takes");
    put("ClientIP");
    assert_eq!(pick(vip(80), 1), mine, "another change of the Service forgets nobody");
    assert!((2..100).map(|client| pick(vip(80), client)).any(|other| other != mine), "others are others");
    let rest: Vec<(IpAddr, bool)> = all.iter().copied().filter(|(ip, _)| *ip != mine).collect();
    node.services().apply(slice("s", &json!({"port": 8080}), &rest));
    assert_ne!(pick(vip(80), 1), mine, "an endpoint that is gone is nobody's");
    put("None");
    assert_eq!(differ(vip(80)), 7);
    put("ClientIP");
    let firsts: std::collections::HashSet<IpAddr> = {
        let mut seen = std::collections::HashSet::new();
        for _ in 0..60 {
            seen.insert(pick(vip(80), 7));
            tokio::time::advance(Duration::from_secs(10)).await;
        }
        seen
    };
    assert!(firsts.len() > 1, "its time was over each time");
}

#[tokio::test]
async fn addresses_of_a_service_and_their_policies() {
    let node = here();
    let (near, far) = (IpAddr::from([10, 1, 0, 1]), IpAddr::from([10, 1, 0, 2]));
    node.services().apply(slice("s", &json!({"port": 8080}), &[(near, true), (far, false)]));
    let spec = json!({
        "type": "LoadBalancer", "clusterIP": VIP, "externalIPs": ["192.0.2.9"], "externalTrafficPolicy": "Local",
        "internalTrafficPolicy": "Local", "healthCheckNodePort": 32000, "loadBalancerSourceRanges": ["203.0.113.0/24"],
        "ports": [{"port": 80, "nodePort": 30080}],
    });
    let object = json!({"metadata": {"name": "web", "namespace": "ns"}, "spec": spec,
                        "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.8"}]}}});
    let found = ServiceSpec::of(&serde_json::from_value(object).unwrap()).unwrap();
    node.services().apply(ServiceNews::Service(found));
    let (inside, outside) = (Source::Inside([10, 2, 0, 1].into()), Source::Outside([203, 0, 113, 5].into()));
    let stranger = Source::Outside([198, 51, 100, 5].into());
    let node_ip = addr("192.0.2.1:30080");
    for (case, to, source, expected) in [
        ("the cluster IP is internal", vip(80), inside, Some(vec![near])),
        ("a NodePort from inside is everybody's", node_ip, inside, Some(vec![near, far])),
        ("a NodePort from outside", node_ip, outside, Some(vec![near])),
        ("an external IP", addr("192.0.2.9:80"), stranger, Some(vec![near])),
        ("a load balancer's address", addr("192.0.2.8:80"), outside, Some(vec![near])),
        ("a load balancer's address, of a stranger", addr("192.0.2.8:80"), stranger, Some(vec![])),
        ("a port it does not have", vip(81), inside, Some(vec![])),
        ("another address", addr("192.0.2.7:80"), inside, None),
        ("another address of that port", addr("192.0.2.7:30080"), inside, None),
    ] {
        let pick = || node.services().pick(to, Protocol::Tcp, source, |ip| ip == node_ip.ip());
        let found = pick().map(|_| {
            let all = (0..100).filter_map(|_| pick().unwrap().ok()).map(|target| target.ip);
            let mut all: Vec<IpAddr> = all.collect();
            all.sort_unstable();
            all.dedup();
            all
        });
        assert_eq!(found, expected, "{case}");
        assert_eq!(
            node.services().pick(to, Protocol::Udp, source, |_| false).map(|found| found.is_err()),
            (to.ip() == vip(1).ip()).then_some(true),
            "{case}, UDP"
        );
    }
    assert_eq!(node.services().health().get(&32000).map(|(_, ready)| *ready), Some(1));
}

/// Serves Services' ports of a node until dropped.
fn serving(
    node: &Arc<NodeNetwork>,
) -> (watch::Sender<bool>, tokio::sync::mpsc::UnboundedReceiver<super::NodePortReport>) {
    let (wanted, told) = watch::channel(true);
    let (report, reports) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(node.clone().serve_services(told, move |one| drop(report.send(one))));
    (wanted, reports)
}

/// Connects as soon as somebody listens.
async fn connected(port: u16) -> HostStream {
    loop {
        match HostStream::connect(("127.0.0.1", port)).await {
            Ok(stream) => return stream,
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

async fn closed(port: u16) {
    while HostStream::connect(("127.0.0.1", port)).await.is_ok() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_port_of_the_node_leads_to_endpoints_here_and_elsewhere_and_closes_without_them() {
    let node = here();
    let (_wanted, mut reports) = serving(&node);
    let server = pod(&node, "server");
    let (port, taken) = (free_port().await, HostListener::bind("0.0.0.0:0").await.unwrap());
    let elsewhere = HostListener::bind("127.0.0.1:8080").await.ok();
    let spec = json!({"type": "NodePort", "clusterIP": VIP, "ports": [{"port": 80, "nodePort": port}]});
    node.services().apply(service(&spec));
    node.services().apply(slice("s", &json!({"port": 8080}), &[(server.ips()[0], true)]));
    let (listening, _) = listener(&server, "0.0.0.0:8080");
    let mut stream = connected(port).await;
    let accepted = listening.accept().await.unwrap();
    assert_eq!(accepted.peer_addr().unwrap().ip(), node.node_address(), "never 127.0.0.1");
    stream.write_all(b"hello").await.unwrap();
    assert_eq!(read(&accepted, 16).await.unwrap(), b"hello");

    if let Some(elsewhere) = elsewhere {
        let there = elsewhere.local_addr().unwrap();
        node.services().apply(slice("s", &json!({"port": there.port()}), &[(there.ip(), false)]));
        let mut stream = connected(port).await;
        let (mut far, _) = elsewhere.accept().await.unwrap();
        stream.write_all(b"ping").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut said = String::new();
        far.read_to_string(&mut said).await.unwrap();
        far.write_all(b"pong").await.unwrap();
        drop(far);
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert_eq!((said.as_str(), answer.as_str()), ("ping", "pong"));
    }
    node.services().apply(slice("s", &json!({"port": 8080}), &[]));
    closed(port).await;

    let busy = taken.local_addr().unwrap().port();
    let spec = json!({"type": "NodePort", "clusterIP": VIP, "ports": [{"port": 80, "nodePort": busy}]});
    node.services().apply(service(&spec));
    node.services().apply(slice("s", &json!({"port": 8080}), &[(server.ips()[0], true)]));
    let report = reports.recv().await.unwrap();
    assert_eq!((&*report.service, report.address.port(), report.protocol), ("ns/web", busy, Protocol::Tcp));
}

#[tokio::test]
async fn datagrams_to_a_port_of_the_node_come_back_from_it() {
    let node = here();
    let (wanted, _reports) = serving(&node);
    let server = pod(&node, "server");
    let inside = udp(&server);
    inside.bind(addr("0.0.0.0:5353")).unwrap();
    let elsewhere = HostUdp::bind("127.0.0.1:0").await.unwrap();
    let port = free_port().await;
    let spec =
        json!({"type": "NodePort", "clusterIP": VIP, "ports": [{"port": 53, "protocol": "UDP", "nodePort": port}]});
    node.services().apply(service(&spec));
    node.services().apply(slice("s", &json!({"port": 5353, "protocol": "UDP"}), &[(server.ips()[0], true)]));
    let client = HostUdp::bind("127.0.0.1:0").await.unwrap();
    client.connect(("127.0.0.1", port)).await.unwrap();
    let mut buffer = [0; 16];
    let mut received = None;
    // Refused until the port is open.
    while received.is_none() {
        drop(client.send(b"who").await);
        tokio::time::sleep(Duration::from_millis(5)).await;
        let mut one = [0; 16];
        received = inside.try_recv_from(&mut one).ok();
    }
    let from = received.unwrap().from;
    assert_eq!(from.ip(), node.node_address());
    inside.try_send_to(b"me", Some(from)).unwrap();
    while client.recv(&mut buffer).await.is_err() {}
    assert_eq!(&buffer[..2], b"me");

    let there = elsewhere.local_addr().unwrap();
    node.services().apply(slice("s", &json!({"port": there.port(), "protocol": "UDP"}), &[(there.ip(), false)]));
    client.send(b"you").await.unwrap();
    let mut theirs = [0; 16];
    let (n, asking) = elsewhere.recv_from(&mut theirs).await.unwrap();
    assert_eq!(&theirs[..n], b"you");
    elsewhere.send_to(b"them", asking).await.unwrap();
    let n = client.recv(&mut buffer).await.unwrap();
    assert_eq!(&buffer[..n], b"them");

    wanted.send_replace(false);
    while HostUdp::bind(("127.0.0.1", port)).await.is_err() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_load_balancer_is_told_whether_there_is_an_endpoint_here() {
    let node = here();
    let (_wanted, _reports) = serving(&node);
    let port = free_port().await;
    let near = IpAddr::from([10, 1, 0, 1]);
    let spec = json!({"type": "LoadBalancer", "clusterIP": VIP, "externalTrafficPolicy": "Local",
                      "healthCheckNodePort": port, "ports": [{"port": 80, "nodePort": 1}]});
    for (ready, status) in [(false, "HTTP/1.1 503"), (true, "HTTP/1.1 200")] {
        node.services().apply(slice("s", &json!({"port": 8080}), &[(near, ready)]));
        node.services().apply(service(&spec));
        let mut stream = connected(port).await;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with(status) && answer.contains("\"name\":\"web\""), "{answer}");
    }
}
