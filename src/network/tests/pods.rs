//! Pods among each other, with the node, and with the kernel.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use super::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

#[tokio::test]
async fn pods_talk_in_process_and_see_each_others_addresses() {
    let node = node(|_| {});
    let (one, two) = (pod(&node, "one"), pod(&node, "two"));
    assert_ne!(one.ips(), two.ips());
    let (listener, at) = listener(&two, "0.0.0.0:8080");
    let client = tcp(&one);
    let to = SocketAddr::new(two.ips()[0], at.port());
    client.start_connect(to).expect("connected at once: no kernel is involved");
    let server = listener.try_accept().expect("there at once");
    assert_eq!(server.peer_addr().map(|peer| peer.ip()), Ok(one.ips()[0]));
    assert_eq!(server.local_addr(), Ok(to));
    assert_eq!(client.local_addr(), server.peer_addr());
    assert_eq!(client.try_write(b"hello"), Ok(5));
    assert_eq!(server.try_read(&mut [0; 8]), Ok(5));

    let elsewhere = tcp(&one);
    assert_eq!(elsewhere.start_connect(SocketAddr::new(two.ips()[0], 9)), Err(Errno::ConnRefused));
    assert_eq!(elsewhere.start_connect(addr("127.127.255.9:80")), Err(Errno::HostUnreach));
    assert_eq!(elsewhere.start_connect(SocketAddr::new(node.node_address(), 22)), Err(Errno::ConnRefused));
}

#[tokio::test]
async fn datagrams_between_pods_carry_true_addresses_and_are_answered() {
    let node = node(|_| {});
    let (one, two) = (pod(&node, "one"), pod(&node, "two"));
    let server = udp(&two);
    server.bind(addr("0.0.0.0:5353")).expect("bound");
    let client = udp(&one);
    client.connect(SocketAddr::new(two.ips()[0], 5353)).expect("connected");
    assert_eq!(client.try_send_to(b"ping", None), Ok(4));
    let seen = server.try_recv_from(&mut [0; 8]).expect("there at once");
    assert_eq!(seen.from.ip(), one.ips()[0]);
    assert_eq!(Ok(seen.from), client.local_addr());
    assert_eq!(server.try_send_to(b"pong", Some(seen.from)), Ok(4));
    assert_eq!(client.try_recv().map(|(data, _)| data), Ok("pong".into()));
}

#[tokio::test]
async fn loopback_is_the_pods_own_and_never_the_kernels() {
    let node = node(|_| {});
    let (one, two) = (pod(&node, "one"), pod(&node, "two"));
    let outside = std::net::TcpListener::bind("127.0.0.1:0").expect("a server on the node");
    let port = outside.local_addr().expect("an address").port();
    assert_eq!(tcp(&one).connect(SocketAddr::from(([127, 0, 0, 1], port))).await, Err(Errno::ConnRefused));
    let mapped = one.tcp_socket(OWNER, Family::V6).expect("a socket");
    mapped.set_option(TcpOption::V6Only(false)).expect("an option");
    assert_eq!(mapped.connect(addr(&format!("[::ffff:127.0.0.1]:{port}"))).await, Err(Errno::ConnRefused));

    let (_inside, at) = listener(&one, &format!("127.0.0.1:{port}"));
    assert_eq!(at.port(), port, "the node's own port does not matter inside");
    assert_eq!(tcp(&one).connect(at).await, Ok(()));
    assert_eq!(tcp(&two).connect(at).await, Err(Errno::ConnRefused));
    assert_eq!(tcp(&two).connect(SocketAddr::new(one.ips()[0], port)).await, Err(Errno::ConnRefused));
    assert_eq!(one.listeners()[0].node, None);
    for refused in ["169.254.169.254:80", "224.0.0.1:80"] {
        assert_eq!(tcp(&one).connect(addr(refused)).await, Err(Errno::NetUnreach), "{refused}");
    }
}

#[tokio::test]
async fn two_containers_on_one_port_conflict() {
    let node = node(|_| {});
    let one = pod(&node, "one");
    let (_held, _) = listener(&one, "0.0.0.0:8080");
    for wanted in ["0.0.0.0:8080", "127.0.0.1:8080", &format!("{}:8080", one.ips()[0])] {
        let second = one.tcp_socket(OwnerId(2), Family::V4).expect("a socket");
        assert_eq!(second.bind(addr(wanted)), Err(Errno::AddrInUse), "{wanted}");
    }
    assert_eq!(tcp(&one).bind(addr("10.1.2.3:80")), Err(Errno::AddrNotAvail));
    let (_other, _) = listener(&pod(&node, "two"), "0.0.0.0:8080");
}

#[tokio::test]
async fn the_node_reaches_a_listener_through_the_kernel_and_through_a_dial() {
    let node = node(|_| {});
    let one = pod(&node, "one");
    let (listener, at) = listener(&one, "0.0.0.0:0");
    let reach = one.listeners()[0].node.expect("a kernel listener");
    assert_eq!(reach, SocketAddr::new(one.ips()[0], at.port()));

    let client = std::thread::spawn(move || {
        let mut stream = std::net::TcpStream::connect(reach).expect("connected");
        stream.write_all(b"from the kernel").expect("written");
        stream.shutdown(std::net::Shutdown::Write).expect("shut");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("read");
        answer
    });
    let server = listener.accept().await.expect("accepted");
    assert_eq!(server.peer_addr().map(|peer| peer.ip()), Ok(node.node_address()), "never 127.0.0.1");
    assert_eq!(server.local_addr(), Ok(reach));
    assert_eq!(read(&server, 64).await, Ok(b"from the kernel".to_vec()));
    assert_eq!(read(&server, 64).await, Ok(Vec::new()));
    server.try_write(b"seen").expect("written");
    drop(server);
    assert_eq!(client.join().expect("the client"), "seen");

    for (to, from) in
        [(reach, node.node_address()), (addr(&format!("127.0.0.1:{}", at.port())), addr("127.0.0.1:1").ip())]
    {
        let mut stream = one.dial(to).await.expect("dialled");
        let server = listener.try_accept().expect("there at once: in process");
        assert_eq!(server.peer_addr().map(|peer| peer.ip()), Ok(from));
        stream.write_all(b"dial").await.expect("written");
        assert_eq!(read(&server, 8).await, Ok(b"dial".to_vec()));
        drop(server);
        assert_eq!(stream.read(&mut [0; 8]).await.expect("the end"), 0);
    }
    assert_eq!(node.dial(addr("127.127.0.9:80")).await.err(), Some(Errno::HostUnreach));
    assert_eq!(one.dial(addr("10.0.0.1:80")).await.err(), Some(Errno::AddrNotAvail));
}

#[tokio::test]
async fn datagrams_of_the_node_are_answered_under_the_nodes_address() {
    let node = node(|_| {});
    let one = pod(&node, "one");
    let server = udp(&one);
    server.bind(addr("0.0.0.0:0")).expect("bound");
    let reach = one.listeners()[0].node.expect("a kernel socket");
    let client = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket of the node");
    client.send_to(b"ping", reach).expect("sent");
    let (data, seen) = receive(&server, 16).await.expect("received");
    assert_eq!(data, b"ping");
    assert_eq!(seen.from.ip(), node.node_address());
    assert_eq!(server.try_send_to(b"pong", Some(seen.from)), Ok(4));
    let mut buffer = [0; 16];
    let (n, from) = client.recv_from(&mut buffer).expect("answered");
    assert_eq!((&buffer[..n], from), (&b"pong"[..], reach));
    // Nobody else on the node's loopback is reached that way.
    assert_eq!(server.try_send_to(b"x", Some(SocketAddr::new(node.node_address(), 53))), Ok(1));
    assert!(client.set_nonblocking(true).is_ok() && client.recv_from(&mut buffer).is_err());
}

#[tokio::test]
async fn a_port_the_kernel_refuses_is_remapped_and_shown() {
    let node = node(|config| config.low_ports = LowPorts::Remap);
    let one = pod(&node, "one");
    let (listener, at) = listener(&one, "0.0.0.0:80");
    assert_eq!(at.port(), 80);
    let shown = one.listeners();
    let reach = shown[0].node.expect("a kernel listener");
    assert_eq!((shown[0].local.port(), reach.port()), (80, 10_080));
    let mut client = std::net::TcpStream::connect(reach).expect("connected");
    let server = listener.accept().await.expect("accepted");
    assert_eq!(server.local_addr(), Ok(SocketAddr::new(one.ips()[0], 80)), "the guest sees its own port");
    client.write_all(b"x").expect("written");
    assert_eq!(read(&server, 8).await, Ok(b"x".to_vec()));
    assert!(node.dial(SocketAddr::new(one.ips()[0], 80)).await.is_ok());

    // A server of the node's on every address does not keep a pod from its port.
    let in_the_way = std::net::TcpListener::bind("0.0.0.0:0").expect("a server on the node");
    let port = in_the_way.local_addr().expect("an address").port();
    let (_second, at) = super::listener(&one, &format!("0.0.0.0:{port}"));
    assert_eq!(at.port(), port);
    assert!(
        one.listeners()
            .iter()
            .any(|info| info.local.port() == port && info.node.is_some_and(|node| node.port() != port))
    );
}

#[tokio::test]
async fn a_removed_pod_wakes_everyone_and_frees_everything() {
    let node = node(|_| {});
    let one = pod(&node, "one");
    let two = pod(&node, "two");
    let (listener, at) = listener(&one, "0.0.0.0:0");
    let reach = one.listeners()[0].node.expect("a kernel listener");
    let (client, server) = pair(&one).await;
    let visitor = tcp(&two);
    visitor.connect(SocketAddr::new(one.ips()[0], at.port())).await.expect("connected");
    let visited = listener.try_accept().expect("accepted");
    let datagrams = udp(&one);
    datagrams.bind(addr("0.0.0.0:0")).expect("bound");
    let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let waits = (
        tokio::spawn({
            let listener = listener.clone();
            async move { listener.accept().await.err() }
        }),
        tokio::spawn({
            let client = client.clone();
            async move { read(&client, 8).await.err() }
        }),
        tokio::spawn({
            let datagrams = datagrams.clone();
            async move { receive(&datagrams, 8).await.err() }
        }),
        tokio::spawn({
            let visitor = visitor.clone();
            async move { read(&visitor, 8).await.err() }
        }),
    );
    tokio::task::yield_now().await;
    node.remove_pod(one.uid());
    assert_eq!(waits.0.await.expect("woken"), Some(Errno::ConnAborted));
    assert_eq!(waits.1.await.expect("woken"), Some(Errno::ConnAborted));
    assert_eq!(waits.2.await.expect("woken"), Some(Errno::ConnAborted));
    assert_eq!(waits.3.await.expect("woken"), Some(Errno::ConnReset));
    assert_eq!(server.try_write(b"x"), Err(Errno::ConnAborted));
    assert_eq!(visited.try_read(&mut [0; 8]), Err(Errno::ConnAborted));
    assert_eq!(one.tcp_socket(OWNER, Family::V4).err(), Some(Errno::NetUnreach));
    assert!(one.listeners().is_empty() && !one.has_sockets(OWNER));
    assert!(node.pod(one.uid()).is_none());
    assert!(std::net::TcpStream::connect(reach).is_err(), "the kernel listener is gone");
    assert_eq!(tcp(&two).connect(SocketAddr::new(one.ips()[0], at.port())).await, Err(Errno::HostUnreach));
    assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), tasks, "no task is left");
    assert!(one.tcp_ports().is_empty() && one.udp_ports().is_empty());
}

#[tokio::test]
async fn a_pod_gets_its_address_back_and_host_network_can_be_denied() {
    let node = node(|config| config.host_network = HostNetwork::Denied);
    let one = pod(&node, "one");
    let ip = one.ips()[0];
    let again = PodNetworkSpec { ips: vec![ip], ..spec("two", NetworkMode::Pod) };
    assert!(matches!(node.add_pod(again.clone()), Err(NetworkError::AddressTaken { .. })));
    assert!(matches!(node.add_pod(spec("one", NetworkMode::Pod)), Err(NetworkError::PodExists { .. })));
    node.remove_pod(one.uid());
    assert_eq!(node.add_pod(again).expect("adopted").ips(), [ip]);
    let error = node.add_pod(spec("host", NetworkMode::Host)).err().expect("denied");
    assert_eq!(error.to_string(), "pod default/host asks for hostNetwork, which this node does not allow");
    let far = PodNetworkSpec { ips: vec![addr("10.0.0.1:0").ip()], ..spec("far", NetworkMode::Pod) };
    assert!(matches!(node.add_pod(far), Err(NetworkError::AddressOutOfRange { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_container_is_drained_before_it_ends() {
    let node = node(|_| {});
    let one = pod(&node, "one");
    let (server_owner, client_owner) = (OwnerId(1), OwnerId(2));
    let (listener, at) = listener(&one, "127.0.0.1:8080");
    let connect = || {
        let socket = one.tcp_socket(client_owner, Family::V4).expect("a socket");
        (socket.start_connect(at), socket)
    };
    assert!(one.has_sockets(server_owner) && !one.has_sockets(client_owner));
    let (connected, first) = connect();
    connected.expect("connected");
    let (connected, queued) = connect();
    connected.expect("queued");
    let server = listener.try_accept().expect("accepted");
    one.stop_accepting(server_owner);
    assert_eq!(connect().0, Err(Errno::ConnRefused));
    assert!(one.listeners().iter().all(|info| info.node.is_none()));

    let idle = |owner| tokio::time::timeout(Duration::from_millis(350), one.idle(owner));
    assert!(idle(server_owner).await.is_err(), "one still waits to be accepted");
    let second = listener.try_accept().expect("what had arrived can be accepted");
    assert_eq!(listener.try_accept().err(), Some(Errno::Again));
    first.try_write(b"request").expect("written");
    assert!(idle(server_owner).await.is_err(), "a request is unread");
    server.try_read(&mut [0; 16]).expect("read");
    let before = tokio::time::Instant::now();
    idle(server_owner).await.expect("idle");
    assert!(before.elapsed() >= Duration::from_millis(100));
    drop((server, second, queued));
    idle(server_owner).await.expect("closed is idle");
    one.remove_owner(server_owner);
    assert!(!one.has_sockets(server_owner) && one.has_sockets(client_owner));
    assert_eq!(listener.try_accept().err(), Some(Errno::BadF));
}

#[tokio::test]
async fn what_the_kernel_queued_before_the_drain_is_served() {
    let node = node(|_| {});
    let one = pod(&node, "one");
    let (listener, _) = listener(&one, "0.0.0.0:0");
    let reach = one.listeners()[0].node.expect("a kernel listener");
    let _client = std::net::TcpStream::connect(reach).expect("connected");
    listener.readable().await;
    one.stop_accepting(OWNER);
    assert!(std::net::TcpStream::connect(reach).is_err());
    assert!(listener.try_accept().is_ok());
}

#[tokio::test]
async fn an_address_of_an_earlier_run_is_kept_until_the_last_pod_that_names_it_goes() {
    let kept = addr("127.60.0.2:0").ip();
    let uid = |name: &str| PodUid::new(name).expect("a name that is a UID");
    let node = node(|config| {
        config.mode = AddressMode::Loopback { range: "127.60.0.0/29".parse().expect("range") };
        config.quarantine = Duration::ZERO;
        config.reserved = vec![(uid("ended"), vec![kept]), (uid("runs"), vec![kept])];
    });
    node.remove_pod(&uid("ended"));
    let others: Vec<_> = (0..4).map(|number| pod(&node, &format!("p{number}"))).collect();
    assert!(others.iter().all(|pod| pod.ips() != [kept]), "the one that ended had it before the other");
    assert!(node.add_pod(spec("late", NetworkMode::Pod)).is_err(), "nobody else may have it");
    node.remove_pod(&uid("runs"));
    assert_eq!(pod(&node, "late").ips(), [kept]);
}
