//! Pods with addresses of a podCIDR: a namespace, its links and routes, and other nodes. Each test is in a network
//! namespace of its own, so it needs privileges, and says so when it has none.

use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use super::*;
use crate::network::namespace::leave;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener as HostListener, TcpStream as HostStream, UdpSocket as HostUdp};

/// The node's address.
pub(super) const NODE: &str = "198.51.100.1";

/// Runs a test as if it were alone on a machine whose address is [`NODE`].
pub(super) fn alone<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    if !may_make_namespaces() {
        eprintln!("SKIPPED: it needs CAP_NET_ADMIN and CAP_SYS_ADMIN");
        return;
    }
    let thread = std::thread::spawn(move || {
        leave().expect("a network namespace");
        ip("link set lo up");
        ip(&format!("addr add {NODE}/32 dev lo"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let limit = Duration::from_secs(60);
        runtime.block_on(async { tokio::time::timeout(limit, test()).await }).expect("it ends");
    });
    thread.join().expect("the test");
}

/// ip(8) in the namespace of the calling thread.
fn ip(args: &str) -> String {
    let output = Command::new("ip").args(args.split(' ')).output().expect("iproute2");
    assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn mode(seed: &str, range: Option<&str>, cluster: &[&str]) -> AddressMode {
    let parse = |range: &str| range.parse::<IpRange>().expect(range);
    AddressMode::Namespace {
        seed: seed.to_owned(),
        ranges: range.into_iter().map(parse).collect(),
        cluster: cluster.iter().map(|range| parse(range)).collect(),
    }
}

/// What the other end says, to its end.
async fn say(stream: &mut HostStream, text: &str) -> String {
    stream.write_all(text.as_bytes()).await.expect("written");
    stream.shutdown().await.expect("shut");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("read");
    answer
}

/// Answers one connection with its own words, and returns who it was.
pub(super) async fn echo_once(listener: &TcpSocket) -> SocketAddr {
    let server = listener.accept().await.expect("accepted");
    let peer = server.peer_addr().expect("a peer");
    loop {
        match read(&server, 4096).await.expect("read") {
            data if data.is_empty() => return peer,
            data => assert_eq!(server.try_write(&data), Ok(data.len())),
        }
    }
}

#[test]
fn the_host_reaches_a_pod_though_something_listens_on_every_address_of_it() {
    alone(|| async {
        for (range, node_end) in [("10.244.1.0/24", "10.244.1.1"), ("fd00:10:244:1::/64", "fd00:10:244:1::1")] {
            let node = node(|config| config.mode = mode("a", None, &[]));
            let early = node.add_pod(spec("early", NetworkMode::Pod));
            let words = early.err().expect("refused").to_string();
            assert!(words.starts_with("network is not ready: container runtime network not ready: "), "{words}");
            assert!(node.check_ready().is_err());
            node.set_pod_ranges(&[range.parse().expect(range)]).await.expect("routes");
            node.set_pod_ranges(&[range.parse().expect(range)]).await.expect("the same again");
            assert!(node.check_ready().is_ok());

            let any = if range.contains("::") { "[::]:80" } else { "0.0.0.0:80" };
            let in_the_way = HostListener::bind(any).await.expect("a server of the host");
            let one = pod(&node, "one");
            let family = Family::of(one.ips()[0]);
            let server = one.tcp_socket(OWNER, family).expect("a socket");
            server.bind(addr(any)).expect("bound");
            server.listen(16).expect("listening");
            let to = SocketAddr::new(one.ips()[0], 80);
            assert_eq!(one.listeners()[0].node, Some(to), "no port is remapped");
            let client = async {
                let mut stream = HostStream::connect(to).await.expect("connected");
                say(&mut stream, "hello").await
            };
            let (answer, peer) = tokio::join!(client, echo_once(&server));
            assert_eq!((answer.as_str(), peer.ip()), ("hello", node_end.parse::<IpAddr>().expect("address")));
            assert_eq!(one.traffic(), Traffic { rx_bytes: 5, tx_bytes: 5 });
            drop(in_the_way);
        }
    });
}

#[test]
fn a_pod_reaches_the_world_from_the_node_and_the_cluster_from_itself() {
    alone(|| async {
        let node = node(|config| config.mode = mode("a", Some("10.244.1.0/24"), &["10.244.0.0/16"]));
        let one = pod(&node, "one");
        let world = HostListener::bind((NODE, 0)).await.expect("a server");
        for (to, source) in [
            (world.local_addr().expect("an address"), NODE.parse::<IpAddr>().expect("address")),
            (SocketAddr::new("10.244.1.1".parse().expect("address"), 7000), one.ips()[0]),
        ] {
            let here = if to.port() == 7000 { Some(HostListener::bind(to).await.expect("a server")) } else { None };
            let client = tcp(&one);
            let (connected, accepted) = tokio::join!(client.connect(to), here.as_ref().unwrap_or(&world).accept());
            assert_eq!(connected, Ok(()));
            let (mut server, peer) = accepted.expect("accepted");
            assert_eq!(peer.ip(), source, "{to}");
            assert_eq!(client.local_addr().map(|addr| addr.ip()), Ok(one.ips()[0]), "what the guest sees");
            assert_eq!(client.try_write(b"ping"), Ok(4));
            let mut buffer = [0; 4];
            server.read_exact(&mut buffer).await.expect("read");
            server.write_all(b"pong").await.expect("written");
            assert_eq!(read(&client, 8).await, Ok(b"pong".to_vec()));
        }
        // A port of the pod's choice is the one the cluster sees.
        let there = HostListener::bind("10.244.1.1:7001").await.expect("a server");
        let client = tcp(&one);
        client.bind(addr("0.0.0.0:5555")).expect("bound");
        let (connected, accepted) = tokio::join!(client.connect(addr("10.244.1.1:7001")), there.accept());
        assert_eq!(connected, Ok(()));
        assert_eq!(accepted.expect("accepted").1, SocketAddr::new(one.ips()[0], 5555));
        assert_eq!(tcp(&one).connect(addr("10.244.1.1:9")).await, Err(Errno::ConnRefused));
        assert_eq!(tcp(&one).connect(addr("10.244.1.77:80")).await, Err(Errno::HostUnreach));
    });
}

/// What the dual-stack tests give a node, the primary range first.
fn both() -> [IpRange; 2] {
    ["fd00:10:244:1::/64", "10.244.1.0/24"].map(|range| range.parse().expect(range))
}

#[test]
fn a_pod_of_both_families_is_reached_at_both_its_addresses_by_one_listener() {
    alone(|| async {
        let node = node(|config| config.mode = mode("a", None, &[]));
        node.set_pod_ranges(&both()[..1]).await.expect("routes");
        let early = pod(&node, "early");
        node.set_pod_ranges(&both()).await.expect("routes");
        node.set_pod_ranges(&both()).await.expect("the same again");
        assert_eq!(node.pod_ranges(), both());
        let (one, two) = (pod(&node, "one"), pod(&node, "two"));
        assert_eq!(early.ips().len(), 1, "a pod keeps what it has");
        let families: Vec<Family> = one.ips().into_iter().map(Family::of).collect();
        assert_eq!(families, [Family::V6, Family::V4], "the primary one first");
        let hosts = one.etc_hosts();
        assert!(one.ips().iter().all(|ip| hosts.contains(&format!("{ip}\tone"))), "{hosts}");

        let server = one.tcp_socket(OWNER, Family::V6).expect("a socket");
        server.set_option(TcpOption::V6Only(false)).expect("set");
        server.bind(addr("[::]:80")).expect("bound");
        server.listen(16).expect("listening");
        let datagrams = one.udp_socket(OWNER, Family::V6).expect("a socket");
        datagrams.set_option(UdpOption::V6Only(false)).expect("set");
        datagrams.bind(addr("[::]:53")).expect("bound");
        for ip in one.ips() {
            // From the node, by way of the kernel.
            let to = SocketAddr::new(ip, 80);
            let host = async { say(&mut HostStream::connect(to).await.expect("connected"), "x").await };
            let (answer, peer) = tokio::join!(host, echo_once(&server));
            let peer = crate::network::route::canonical(peer);
            assert_eq!((answer.as_str(), peer.is_ipv4()), ("x", ip.is_ipv4()));
            let client = HostUdp::bind(SocketAddr::new(peer.ip(), 0)).await.expect("a socket");
            client.send_to(b"who", SocketAddr::new(ip, 53)).await.expect("sent");
            let (data, seen) = receive(&datagrams, 16).await.expect("received");
            assert_eq!(data, b"who");
            assert_eq!(datagrams.try_send_to(b"me", Some(seen.from)), Ok(2));
            let (_, answered) = client.recv_from(&mut [0; 16]).await.expect("answered");
            assert_eq!(answered, SocketAddr::new(ip, 53));
            // From another pod, in process: of its address of the same family.
            let client = two.tcp_socket(OWNER, Family::of(ip)).expect("a socket");
            let (connected, accepted) = tokio::join!(client.connect(to), server.accept());
            assert_eq!(connected, Ok(()));
            let own = two.ip_towards(ip);
            assert_eq!(client.local_addr().map(|addr| addr.ip()), Ok(own));
            let peer = accepted.expect("accepted").peer_addr().expect("a peer");
            assert_eq!(crate::network::route::canonical(peer).ip(), own);
            // And from the node itself, in process (a probe).
            assert!(node.dial(to).await.is_ok());
            drop(server.accept().await.expect("accepted"));
        }
        // One for IPv6 alone leaves IPv4 to another.
        let only = two.tcp_socket(OWNER, Family::V6).expect("a socket");
        only.set_option(TcpOption::V6Only(true)).expect("set");
        only.bind(addr("[::]:81")).expect("bound");
        only.listen(16).expect("listening");
        let (other, _) = listener(&two, "0.0.0.0:81");
        for (ip, mine, not_mine) in [(two.ips()[0], &only, &other), (two.ips()[1], &other, &only)] {
            let host = async { say(&mut HostStream::connect((ip, 81)).await.expect("connected"), "x").await };
            let (answer, _) = tokio::join!(host, echo_once(mine));
            assert_eq!(answer, "x");
            assert!(matches!(not_mine.try_accept(), Err(Errno::Again)));
        }
        // A pod of before the change ends: its range is current, and stays.
        node.remove_pod(early.uid());
        assert_eq!(node.pod_ranges(), both());
        let (was, uid) = (two.ips(), two.uid().clone());
        drop((only, other, two));
        node.remove_pod(&uid);
        let again = node.add_pod(PodNetworkSpec { ips: was.clone(), ..spec("two", NetworkMode::Pod) });
        assert_eq!(again.expect("a pod network").ips(), was, "a restarted node gives both back");
    });
}

#[test]
fn the_family_that_the_node_was_told_to_have_is_its_pods_primary_one() {
    alone(|| async {
        for (case, primary, ranges, expected) in [
            ("IPv6 before the order of the podCIDRs", Some(Family::V6), [1, 0], [Family::V6, Family::V4]),
            ("IPv4 before it", Some(Family::V4), [0, 1], [Family::V4, Family::V6]),
            ("without one that order counts", None, [0, 1], [Family::V6, Family::V4]),
        ] {
            let node = node(|config| {
                config.mode = mode("a", None, &[]);
                config.primary_family = primary;
            });
            node.set_pod_ranges(&ranges.map(|at| both()[at])).await.expect("routes");
            let families: Vec<Family> = pod(&node, "one").ips().into_iter().map(Family::of).collect();
            assert_eq!(families, expected, "{case}");
        }
    });
}

#[test]
fn an_answer_to_a_datagram_leaves_from_where_the_question_arrived() {
    alone(|| async {
        let node = node(|config| config.mode = mode("a", Some("10.244.1.0/24"), &[]));
        let one = pod(&node, "one");
        let server = udp(&one);
        server.bind(addr("0.0.0.0:53")).expect("bound");
        let to = SocketAddr::new(one.ips()[0], 53);
        // By way of the pair, and from an address of the node that is not of it.
        for from in ["10.244.1.1:0".to_owned(), format!("{NODE}:0")] {
            let client = HostUdp::bind(&from).await.expect("a socket");
            client.send_to(b"who", to).await.expect("sent");
            let (data, seen) = receive(&server, 16).await.expect("received");
            assert_eq!((data.as_slice(), seen.from), (&b"who"[..], client.local_addr().expect("an address")));
            assert_eq!(server.try_send_to(b"me", Some(seen.from)), Ok(2));
            let mut buffer = [0; 16];
            let (n, answered) = client.recv_from(&mut buffer).await.expect("answered");
            assert_eq!((&buffer[..n], answered), (&b"me"[..], to));
        }
        // One that never asked is the world's, and sees the node.
        let stranger = HostUdp::bind((NODE, 0)).await.expect("a socket");
        assert_eq!(server.try_send_to(b"hi", Some(stranger.local_addr().expect("an address"))), Ok(2));
        let (_, from) = stranger.recv_from(&mut [0; 16]).await.expect("received");
        assert_ne!(from.ip(), one.ips()[0]);
        // A client of the node's end is answered too, connected or not.
        let there = HostUdp::bind("10.244.1.1:9053").await.expect("a socket");
        let client = udp(&one);
        client.connect(addr("10.244.1.1:9053")).expect("connected");
        assert_eq!(client.try_send_to(b"q", None), Ok(1));
        let (_, from) = there.recv_from(&mut [0; 16]).await.expect("received");
        assert_eq!(Ok(from), client.local_addr());
        there.send_to(b"a", from).await.expect("sent");
        assert_eq!(receive(&client, 16).await.map(|(data, _)| data), Ok(b"a".to_vec()));
        client.disconnect().expect("disconnected");
        let traffic = one.traffic();
        assert_eq!((traffic.rx_bytes, traffic.tx_bytes), (7, 7));
    });
}

#[test]
fn a_changed_pod_cidr_is_for_new_pods_and_the_old_routes_go_with_the_last_old_one() {
    alone(|| async {
        let old_ip: IpAddr = "10.244.1.9".parse().expect("address");
        let node = node(|config| {
            config.mode = mode("a", None, &[]);
            config.reserved = vec![(spec("old", NetworkMode::Pod).uid, vec![old_ip])];
        });
        node.set_pod_ranges(&["10.244.1.0/24".parse().expect("range")]).await.expect("routes");
        let old = PodNetworkSpec { ips: vec![old_ip], ..spec("old", NetworkMode::Pod) };
        let old = node.add_pod(old).expect("the address it had");
        assert_eq!(old.ips(), [old_ip]);
        let overlapping = node.set_pod_ranges(&["10.244.0.0/16".parse().expect("range")]).await;
        assert!(matches!(overlapping, Err(NetworkError::BadPodCidr { .. })));
        node.set_pod_ranges(&["10.244.7.0/24".parse().expect("range")]).await.expect("routes");
        let former =
            PodNetworkSpec { ips: vec!["10.244.1.8".parse().expect("address")], ..spec("new", NetworkMode::Pod) };
        let new = node.add_pod(former).expect("another address");
        assert!(new.ips()[0].to_string().starts_with("10.244.7."), "{:?}", new.ips());

        let (server, _) = listener(&old, "0.0.0.0:80");
        let to = SocketAddr::new(old_ip, 80);
        let client = tcp(&new);
        assert_eq!(client.connect(to).await, Ok(()), "in process, over both ranges");
        drop(server.try_accept().expect("accepted"));
        let host = async { say(&mut HostStream::connect(to).await.expect("connected"), "x").await };
        let (answer, _) = tokio::join!(host, echo_once(&server));
        assert_eq!(answer, "x");
        assert!(ip("route show").contains("10.244.1.0/24"));
        node.remove_pod(old.uid());
        drop(old);
        // The thread of the namespace does it; a later change waits for it.
        node.set_pod_ranges(&["10.244.8.0/24".parse().expect("range")]).await.expect("routes");
        let routes = ip("route show");
        assert!(!routes.contains("10.244.1.0/24") && routes.contains("10.244.7.0/24"), "{routes}");
        assert!(!ip("addr show").contains("10.244.1.1/32"));
    });
}

#[test]
fn what_a_killed_agent_left_is_replaced_and_two_nodes_of_one_machine_do_not_collide() {
    alone(|| async {
        let start = |seed: &'static str, range: &'static str| node(|config| config.mode = mode(seed, Some(range), &[]));
        // It keeps its threads and sockets, as a killed one may for a moment.
        let killed = start("a", "10.244.1.0/24");
        let again = start("a", "10.244.1.0/24");
        let other = start("b", "10.244.2.0/24");
        let links = ip("-o link show type veth");
        assert_eq!(links.lines().count(), 2, "{links}");
        for node in [&again, &other] {
            let pod = pod(node, "one");
            let (server, _) = listener(&pod, "0.0.0.0:80");
            let to = SocketAddr::new(pod.ips()[0], 80);
            let host = async { say(&mut HostStream::connect(to).await.expect("connected"), "x").await };
            let (answer, _) = tokio::join!(host, echo_once(&server));
            assert_eq!(answer, "x");
        }
        // Nodes of one machine are two nodes: one's pod reaches the other's through the kernel.
        let (one, two) = (pod(&again, "from"), pod(&other, "to"));
        let (server, _) = listener(&two, "0.0.0.0:81");
        let client = tcp(&one);
        let to = SocketAddr::new(two.ips()[0], 81);
        let (connected, accepted) = tokio::join!(client.connect(to), server.accept());
        assert_eq!((connected, accepted.is_ok()), (Ok(()), true));
        drop((killed, again, other));
        for _ in 0..500 {
            if ip("-o link show type veth").is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("a node that ended left its link: {}", ip("-o link show type veth"));
    });
}

#[test]
fn pods_of_two_nodes_with_routes_between_them_meet_by_address() {
    if !may_make_namespaces() {
        eprintln!("SKIPPED: it needs CAP_NET_ADMIN and CAP_SYS_ADMIN");
        return;
    }
    // The second machine: a thread in a namespace of its own, with a pod that echoes until it is told to stop.
    let (tell_id, id) = std::sync::mpsc::channel::<u32>();
    let (joined, wait_joined) = std::sync::mpsc::channel::<()>();
    let (tell_ip, pod_ip) = std::sync::mpsc::channel::<IpAddr>();
    let (tell_peers, peers) = std::sync::mpsc::channel::<[IpAddr; 2]>();
    let far = std::thread::spawn(move || {
        leave().expect("a network namespace");
        ip("link set lo up");
        tell_id.send(u32::try_from(rustix::thread::gettid().as_raw_nonzero().get()).expect("an id")).expect("told");
        wait_joined.recv().expect("joined");
        ip("addr add 192.0.2.2/24 dev far");
        ip("link set far up");
        ip("route add 10.244.1.0/24 via 192.0.2.1");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let node = node(|config| config.mode = mode("far", Some("10.244.2.0/24"), &["10.244.0.0/16"]));
            let pod = pod(&node, "far");
            let (server, _) = listener(&pod, "0.0.0.0:80");
            let datagrams = udp(&pod);
            datagrams.bind(addr("0.0.0.0:53")).expect("bound");
            tell_ip.send(pod.ips()[0]).expect("told");
            let peer = echo_once(&server).await.ip();
            let (data, seen) = receive(&datagrams, 64).await.expect("received");
            assert_eq!(datagrams.try_send_to(&data, Some(seen.from)), Ok(data.len()));
            tell_peers.send([peer, seen.from.ip()]).expect("told");
            // Until the near one has all.
            wait_joined.recv().expect("done");
        });
    });
    alone(move || async move {
        let far_thread = id.recv().expect("its id");
        ip(&format!("link add near type veth peer name far netns {far_thread}"));
        ip("addr add 192.0.2.1/24 dev near");
        ip("link set near up");
        ip("route add 10.244.2.0/24 via 192.0.2.2");
        joined.send(()).expect("told");
        let node = node(|config| config.mode = mode("near", Some("10.244.1.0/24"), &["10.244.0.0/16"]));
        let pod = pod(&node, "near");
        let far_ip = pod_ip.recv().expect("its address");
        let client = tcp(&pod);
        assert_eq!(client.connect(SocketAddr::new(far_ip, 80)).await, Ok(()));
        assert_eq!(client.try_write(b"over the hill"), Ok(13));
        assert_eq!(read(&client, 64).await, Ok(b"over the hill".to_vec()));
        client.close();
        let question = udp(&pod);
        assert_eq!(question.try_send_to(b"who", Some(SocketAddr::new(far_ip, 53))), Ok(3));
        let (data, seen) = receive(&question, 64).await.expect("answered");
        assert_eq!((data.as_slice(), seen.from), (&b"who"[..], SocketAddr::new(far_ip, 53)));
        assert_eq!(peers.recv().expect("seen"), [pod.ips()[0]; 2], "true addresses, no translation");
        joined.send(()).expect("told");
    });
    far.join().expect("the far node");
}
