//! Name lookup against a small name server on the node's loopback.

use std::net::IpAddr;
use std::time::Duration;

use super::*;
use crate::pod::run::HostAlias;
use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, AAAA};
use hickory_resolver::proto::rr::{RData, Record, RecordType};
use hickory_resolver::proto::serialize::binary::{BinDecodable as _, BinEncodable as _};

/// Answers for `web.default.svc.example.` and `both.example.`; everything else does not exist.
async fn serve(socket: tokio::net::UdpSocket, asked: tokio::sync::mpsc::UnboundedSender<String>) {
    let mut buffer = [0; 1500];
    loop {
        let (n, from) = socket.recv_from(&mut buffer).await.expect("a query");
        let query = Message::from_bytes(&buffer[..n]).expect("a query");
        let question = query.queries[0].clone();
        let name = question.name().to_string().to_ascii_lowercase();
        let _ = asked.send(name.clone());
        let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
        answer.add_query(question.clone());
        let data = match (name.as_str(), question.query_type()) {
            ("web.default.svc.example.", RecordType::A) => Some(RData::A(A::new(10, 96, 0, 7))),
            ("both.example.", RecordType::A) => Some(RData::A(A::new(192, 0, 2, 1))),
            ("both.example.", RecordType::AAAA) => Some(RData::AAAA(AAAA("2001:db8::1".parse().expect("ip")))),
            _ => None,
        };
        match data {
            Some(data) => {
                answer.add_answer(Record::from_rdata(question.name().clone(), 60, data));
            }
            None if name.ends_with(".svc.example.") || name == "both.example." => {}
            None => answer.metadata.response_code = ResponseCode::NXDomain,
        }
        socket.send_to(&answer.to_bytes().expect("an answer"), from).await.expect("sent");
    }
}

#[tokio::test]
async fn names_come_from_hosts_then_literals_then_the_servers_by_search_domain() {
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("a server");
    let port = socket.local_addr().expect("an address").port();
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
    assert_eq!(one.resolve("nowhere.test").await, Err(ResolveError::NotFound { name: "nowhere.test".to_owned() }));

    let bare = pod(&node, "bare");
    let error = bare.resolve("web").await.expect_err("no servers");
    assert_eq!(error.to_string(), "lookup web: no such host (the pod has no name servers)");
    server.abort();
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
