//! Ports of the node: `hostPort`s, and pods that share the node's address.

use std::net::{IpAddr, Ipv4Addr};

use super::cluster::{NODE, alone, echo_once};
use super::*;
use crate::pod::run::{HostPort, PortProtocol};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream as HostStream, UdpSocket as HostUdp};

fn port(protocol: PortProtocol, host_port: u16, container_port: u16) -> HostPort {
    HostPort { protocol, host_ip: None, host_port, container_port }
}

fn with_ports(name: &str, host_ports: Vec<HostPort>) -> PodNetworkSpec {
    PodNetworkSpec { host_ports, ..spec(name, NetworkMode::Pod) }
}

/// A free port of the node's; nobody else of this test's namespace takes it.
async fn free_port() -> u16 {
    let probe = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
    probe.local_addr().expect("an address").port()
}

#[tokio::test]
async fn a_host_port_leads_to_the_pod_and_ends_with_it() {
    let node = node(|_| {});
    let (outside, other) = (free_port().await, free_port().await);
    let ports = vec![port(PortProtocol::Tcp, outside, 8080), port(PortProtocol::Udp, outside, 5353)];
    let one = node.add_pod(with_ports("one", ports)).expect("a pod");
    assert_eq!(node.ports_in_use().len(), 2);

    let nobody = HostStream::connect(("127.0.0.1", outside)).await;
    let reset = async { nobody?.read(&mut [0; 1]).await }.await;
    assert!(reset.is_err(), "nobody listens in the pod yet: {reset:?}");
    let (server, _) = listener(&one, "0.0.0.0:8080");
    let client = async {
        let mut stream = HostStream::connect(("127.0.0.1", outside)).await.expect("connected");
        let local = stream.local_addr().expect("an address");
        stream.write_all(b"hello").await.expect("written");
        stream.shutdown().await.expect("shut");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("read");
        (answer, local)
    };
    let ((answer, local), peer) = tokio::join!(client, echo_once(&server));
    assert_eq!(answer, "hello");
    assert_eq!(peer, SocketAddr::new(node.node_address(), local.port()), "never 127.0.0.1");

    let datagrams = udp(&one);
    datagrams.bind(addr("0.0.0.0:5353")).expect("bound");
    let asking = HostUdp::bind("127.0.0.1:0").await.expect("a socket");
    asking.send_to(b"who", ("127.0.0.1", outside)).await.expect("sent");
    let (data, seen) = receive(&datagrams, 16).await.expect("received");
    assert_eq!(data, b"who");
    assert_eq!(datagrams.try_send_to(b"me", Some(seen.from)), Ok(2));
    let mut buffer = [0; 16];
    let (n, from) = asking.recv_from(&mut buffer).await.expect("answered");
    assert_eq!((&buffer[..n], from.port()), (&b"me"[..], outside));

    let second = node.add_pod(with_ports("two", vec![port(PortProtocol::Tcp, outside, 80)]));
    let words = second.err().expect("a conflict").to_string();
    assert!(words.contains(&format!("hostPort 0.0.0.0:{outside}/TCP of pod default/two")), "{words}");
    let elsewhere = HostPort { host_ip: Some(Ipv4Addr::LOCALHOST.into()), ..port(PortProtocol::Tcp, other, 80) };
    assert!(node.add_pod(with_ports("three", vec![elsewhere])).is_ok());

    node.remove_pod(one.uid());
    drop((one, server, datagrams));
    for _ in 0..1000 {
        if node.ports_in_use().len() == 1 && HostStream::connect(("127.0.0.1", outside)).await.is_err() {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("the port outlived its pod");
}

#[test]
fn pods_that_share_the_nodes_address_share_its_ports() {
    alone(|| async {
        let node_ip: IpAddr = NODE.parse().expect("address");
        let node = node(|config| config.mode = AddressMode::NodeAddress { ip: node_ip });
        assert!(node.check_ready().is_ok());
        node.set_pod_ranges(&["10.244.1.0/24".parse().expect("range")]).await.expect("nothing to do");
        let (one, two) = (pod(&node, "one"), pod(&node, "two"));
        assert_eq!((one.ips(), two.ips()), (vec![node_ip], vec![node_ip]));
        let (server, _) = listener(&one, "0.0.0.0:8080");
        assert_eq!(one.listeners()[0].node, Some(SocketAddr::new(node_ip, 8080)));
        let refused = tcp(&two);
        refused.bind(addr("0.0.0.0:8080")).expect("its own table has no objection");
        assert_eq!(refused.listen(1), Err(Errno::AddrInUse));
        assert_eq!(node.ports_in_use().len(), 1);

        // Loopback is each pod's own all the same.
        let (inside, at) = listener(&two, "127.0.0.1:8080");
        assert_eq!(tcp(&two).connect(at).await, Ok(()));
        drop(inside.try_accept().expect("accepted"));

        // The host, another pod, and the pod itself reach it by the one address.
        let to = SocketAddr::new(node_ip, 8080);
        let host = HostStream::connect(to).await.expect("connected");
        drop((server.accept().await.expect("accepted"), host));
        for from in [&two, &one] {
            let client = tcp(from);
            let (connected, accepted) = tokio::join!(client.connect(to), server.accept());
            assert_eq!(connected, Ok(()));
            let accepted = accepted.expect("accepted");
            assert_eq!(accepted.peer_addr(), client.local_addr());
            assert_eq!(accepted.peer_addr().map(|peer| peer.ip()), Ok(node_ip));
        }
        let (dialled, accepted) = tokio::join!(node.dial(to), server.accept());
        assert!(dialled.is_ok() && accepted.is_ok());

        let datagrams = udp(&one);
        datagrams.bind(addr("0.0.0.0:53")).expect("bound");
        let client = udp(&two);
        assert_eq!(client.try_send_to(b"who", Some(SocketAddr::new(node_ip, 53))), Ok(3));
        let (_, seen) = receive(&datagrams, 16).await.expect("received");
        assert_eq!(datagrams.try_send_to(b"me", Some(seen.from)), Ok(2));
        let (data, answered) = receive(&client, 16).await.expect("answered");
        assert_eq!((data.as_slice(), answered.from), (&b"me"[..], SocketAddr::new(node_ip, 53)));
    });
}

#[tokio::test]
async fn a_port_forward_dials_the_pods_loopback_in_either_family() {
    let node = node(|_| {});
    let one = pod(&node, "one");
    let (_four, at) = listener(&one, "127.0.0.1:0");
    let (_six, at6) = listener(&one, "[::1]:0");
    let dial = |port| node.dial_localhost(one.uid(), port);
    assert!(dial(at.port()).await.is_ok());
    assert!(dial(at6.port()).await.is_ok());
    assert_eq!(dial(9).await.err(), Some(Errno::ConnRefused));
    let nobody = PodUid::new("nobody").expect("a UID");
    assert_eq!(node.dial_localhost(&nobody, 80).await.err(), Some(Errno::HostUnreach));
    assert_eq!(node.traffic(one.uid()), Some(Traffic::default()), "what stays in the pod is not counted");

    // A probe's own `host` leads anywhere the node gets to.
    let outside = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a server of the node");
    assert!(node.dial(outside.local_addr().expect("an address")).await.is_ok());
}

#[tokio::test]
async fn traffic_between_pods_is_counted_on_both_sides_and_loopback_on_none() {
    let node = node(|_| {});
    let (one, two) = (pod(&node, "one"), pod(&node, "two"));
    let (client, server) = pair(&one).await;
    assert_eq!(client.try_write(b"inside"), Ok(6));
    assert_eq!(server.try_read(&mut [0; 16]), Ok(6));
    assert_eq!(one.traffic(), Traffic::default());
    let (listener, _) = listener(&two, "0.0.0.0:80");
    let client = tcp(&one);
    client.connect(SocketAddr::new(two.ips()[0], 80)).await.expect("connected");
    let server = listener.try_accept().expect("accepted");
    assert_eq!(client.try_write(b"question"), Ok(8));
    assert_eq!(server.try_read(&mut [0; 16]), Ok(8));
    assert_eq!(server.try_write(b"answer"), Ok(6));
    assert_eq!(client.try_read(&mut [0; 16]), Ok(6));
    assert_eq!(node.traffic(one.uid()), Some(Traffic { rx_bytes: 6, tx_bytes: 8 }));
    assert_eq!(node.traffic(two.uid()), Some(Traffic { rx_bytes: 8, tx_bytes: 6 }));
}
