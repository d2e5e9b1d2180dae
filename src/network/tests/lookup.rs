//! Name lookup against a small name server on the node's loopback.

use std::net::IpAddr;
use std::time::Duration;

use super::*;
use crate::pod::run::HostAlias;
use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, AAAA};
use hickory_resolver::proto::rr::{RData, Record, RecordType};
use hickory_resolver::proto::serialize::binary::{BinDecodable as _, BinEncodable as _};

/// What the test server says to a query. `web.default.svc.example.`, `both.example.` and `long.example.` exist, the last
/// with an answer that a datagram does not hold; `broken.example.` is a failure.
fn answer_to(query: &[u8], by_tcp: bool) -> (String, Vec<u8>) {
    let query = Message::from_bytes(query).expect("a query");
    let question = query.queries[0].clone();
    let name = question.name().to_string().to_ascii_lowercase();
    let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
    answer.add_query(question.clone());
    let data: Vec<RData> = match (name.as_str(), question.query_type()) {
        ("web.default.svc.example.", RecordType::A) => vec![RData::A(A::new(10, 96, 0, 7))],
        ("both.example.", RecordType::A) => vec![RData::A(A::new(192, 0, 2, 1))],
        ("both.example.", RecordType::AAAA) => vec![RData::AAAA(AAAA("2001:db8::1".parse().expect("ip")))],
        ("long.example.", RecordType::A) if by_tcp => (0..100).map(|n| RData::A(A::new(192, 0, 2, n))).collect(),
        _ => vec![],
    };
    match name.as_str() {
        "long.example." if !by_tcp => answer.metadata.truncation = true,
        "broken.example." => answer.metadata.response_code = ResponseCode::ServFail,
        "both.example." | "long.example." => {}
        name if name.ends_with(".svc.example.") => {}
        _ => answer.metadata.response_code = ResponseCode::NXDomain,
    }
    for data in data {
        answer.add_answer(Record::from_rdata(question.name().clone(), 60, data));
    }
    (name, answer.to_bytes().expect("an answer"))
}

async fn serve(socket: tokio::net::UdpSocket, asked: tokio::sync::mpsc::UnboundedSender<String>) {
    let mut buffer = [0; 1500];
    loop {
        let (n, from) = socket.recv_from(&mut buffer).await.expect("a query");
        let (name, answer) = answer_to(&buffer[..n], false);
        let _ = asked.send(name);
        // What is not the answer is not heard.
        socket.send_to(b"nonsense", from).await.expect("sent");
        socket.send_to(&answer, from).await.expect("sent");
    }
}

async fn serve_by_tcp(listener: tokio::net::TcpListener) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    loop {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut query = vec![0; stream.read_u16().await.expect("a length").into()];
        stream.read_exact(&mut query).await.expect("a query");
        let (_, answer) = answer_to(&query, true);
        let length = u16::try_from(answer.len()).expect("it fits");
        stream.write_all(&[&length.to_be_bytes()[..], &answer].concat()).await.expect("sent");
    }
}

/// A server that is a guest of a pod, at port 53 of its address.
async fn serve_in_pod(server: Arc<PodNetwork>) {
    let socket = server.udp_socket(OwnerId(9), Family::V4).expect("a socket");
    socket.bind(addr("0.0.0.0:53")).expect("the port of name servers");
    let listener = server.tcp_socket(OwnerId(9), Family::V4).expect("a socket");
    listener.bind(addr("0.0.0.0:53")).expect("the port of name servers");
    listener.listen(8).expect("it listens");
    loop {
        tokio::select! {
            () = socket.readable() => {
                let Ok((query, from)) = socket.try_recv() else { continue };
                let (_, answer) = answer_to(&query, false);
                socket.try_send_to(&answer, Some(from)).expect("sent");
            }
            accepted = listener.accept() => {
                use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
                let mut stream = accepted.expect("a connection").into_stream();
                let mut query = vec![0; stream.read_u16().await.expect("a length").into()];
                stream.read_exact(&mut query).await.expect("a query");
                let (_, answer) = answer_to(&query, true);
                let length = u16::try_from(answer.len()).expect("it fits");
                stream.write_all(&[&length.to_be_bytes()[..], &answer].concat()).await.expect("sent");
            }
        }
    }
}

fn resolver(server: IpAddr, options: &[&str]) -> DnsConfig {
    DnsConfig {
        nameservers: vec![server],
        searches: vec!["default.svc.example".to_owned(), "svc.example".to_owned()],
        options: options.iter().map(|&option| option.to_owned()).collect(),
    }
}

#[tokio::test]
async fn a_server_in_a_pod_is_asked_by_the_pods_own_sockets() {
    let node = node(|_| {});
    let server = pod(&node, "dns");
    let serving = tokio::spawn(serve_in_pod(server.clone()));
    let dns = resolver(server.ips()[0], &["ndots:5", "timeout:1"]);
    let one = node.add_pod(PodNetworkSpec { dns, ..spec("one", NetworkMode::Pod) }).expect("a pod network");
    let ip = |text: &str| text.parse::<IpAddr>().expect(text);
    assert_eq!(one.resolve("web").await, Ok(vec![ip("10.96.0.7")]));
    assert_eq!(one.resolve("both.example.").await, Ok(vec![ip("192.0.2.1"), ip("2001:db8::1")]));
    assert_eq!(one.resolve("long.example.").await.map(|all| all.len()), Ok(100), "truncated, so asked by TCP");
    assert!(one.traffic().tx_bytes > 0, "it is the pod's traffic");
    let error = one.resolve("broken.example.").await.expect_err("the server fails");
    assert!(matches!(&error, ResolveError::Temporary { reason, .. } if reason.contains("Server Failure")), "{error:?}");
    // Options of the pod hold.
    let dns = resolver(server.ips()[0], &["ndots:5", "no-aaaa", "use-vc", "rotate", "edns0"]);
    let two = node.add_pod(PodNetworkSpec { dns, ..spec("two", NetworkMode::Pod) }).expect("a pod network");
    assert_eq!(two.resolve("both.example.").await, Ok(vec![ip("192.0.2.1")]));
    assert_eq!(two.resolve("long.example.").await.map(|all| all.len()), Ok(100));
    // Nothing of a lookup stays behind.
    assert!(!one.has_sockets(OwnerId(u64::MAX)) && !two.has_sockets(OwnerId(u64::MAX)));
    serving.abort();
    drop(serving.await);
    node.remove_pod(server.uid());
    assert!(matches!(one.resolve("web").await, Err(ResolveError::Temporary { .. })), "nobody is there");
}

#[tokio::test]
async fn a_failing_server_is_passed_over() {
    let node = node(|_| {});
    let server = pod(&node, "dns");
    let serving = tokio::spawn(serve_in_pod(server.clone()));
    // Nobody listens in this pod: a refusal, not a timeout.
    let silent = pod(&node, "silent");
    let dns =
        DnsConfig { nameservers: vec![silent.ips()[0], server.ips()[0]], ..resolver(server.ips()[0], &["timeout:1"]) };
    let one = node.add_pod(PodNetworkSpec { dns, ..spec("one", NetworkMode::Pod) }).expect("a pod network");
    assert_eq!(one.resolve("both.example").await.map(|all| all.len()), Ok(2));
    serving.abort();
}

#[tokio::test]
async fn names_come_from_hosts_then_literals_then_the_servers_by_search_domain() {
    // The same port by both; another test's socket may have it by one.
    let (listener, socket, port) = loop {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a server");
        let port = listener.local_addr().expect("an address").port();
        if let Ok(socket) = tokio::net::UdpSocket::bind(("127.0.0.1", port)).await {
            break (listener, socket, port);
        }
    };
    let by_tcp = tokio::spawn(serve_by_tcp(listener));
    let (sender, mut asked) = tokio::sync::mpsc::unbounded_channel();
    let server = tokio::spawn(serve(socket, sender));
    let node = node(|config| config.dns_port = port);
    let one = node
        .add_pod(PodNetworkSpec {
            dns: DnsConfig {
                nameservers: vec![addr("127.0.0.1:53").ip()],
                searches: vec!["default.svc.example".to_owned(), "svc.example".to_owned()],
                options: vec!["ndots:5".to_owned(), "timeout:1".to_owned()],
            },
            host_aliases: vec![HostAlias { ip: addr("10.9.9.9:0").ip(), hostnames: vec!["db".to_owned()] }],
            ..spec("one", NetworkMode::Pod)
        })
        .expect("a pod network");
    let ip = |text: &str| text.parse::<IpAddr>().expect(text);
    for (name, expected) in [
        ("localhost", vec![ip("127.0.0.1"), ip("::1")]),
        ("app.localhost", vec![ip("127.0.0.1"), ip("::1")]),
        ("one", one.ips()),
        ("DB", vec![ip("10.9.9.9")]),
        ("10.1.2.3", vec![ip("10.1.2.3")]),
        ("2001:db8::5", vec![ip("2001:db8::5")]),
    ] {
        assert_eq!(one.resolve(name).await, Ok(expected), "{name}");
    }
    for name in ["", "a..b", "a b", "http://x", &"x".repeat(64), &"x.".repeat(200)] {
        assert!(matches!(one.resolve(name).await, Err(ResolveError::InvalidName { .. })), "{name:?}");
    }
    assert!(asked.try_recv().is_err(), "no server was asked for any of these");

    assert_eq!(one.resolve("web").await, Ok(vec![ip("10.96.0.7")]));
    assert_eq!(asked.recv().await.as_deref(), Some("web.default.svc.example."));
    assert_eq!(one.resolve("both.example.").await, Ok(vec![ip("192.0.2.1"), ip("2001:db8::1")]));
    assert_eq!(one.resolve("long.example.").await.map(|all| all.len()), Ok(100), "truncated, so asked by TCP");
    assert_eq!(one.resolve("nowhere.test").await, Err(ResolveError::NotFound { name: "nowhere.test".to_owned() }));

    let bare = pod(&node, "bare");
    let error = bare.resolve("web").await.expect_err("no servers");
    assert_eq!(error.to_string(), "lookup web: no such host (the pod has no name servers)");
    server.abort();
    by_tcp.abort();
}

#[tokio::test]
async fn a_server_that_is_not_there_is_a_temporary_failure() {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port nobody answers at");
    let port = socket.local_addr().expect("an address").port();
    let node = node(|config| config.dns_port = port);
    let dns = DnsConfig {
        nameservers: vec![addr("127.0.0.1:53").ip()],
        options: vec!["timeout:1".to_owned(), "attempts:1".to_owned()],
        ..DnsConfig::default()
    };
    let one = node.add_pod(PodNetworkSpec { dns, ..spec("one", NetworkMode::Pod) }).expect("a pod network");
    drop(socket);
    let answer = tokio::time::timeout(Duration::from_secs(20), one.resolve("web.example.")).await.expect("in time");
    assert!(matches!(answer, Err(ResolveError::Temporary { .. })), "{answer:?}");
}
