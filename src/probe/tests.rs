//! Handlers against servers on this machine's loopback, which a handler's `host` may name.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::pod::probe::{HttpTarget, Scheme};
use crate::runtime::testing::Node;

/// Answers each connection with the next of these, or for ever with the last; returns what it was sent.
async fn server(answers: &'static [&'static str]) -> (SocketAddr, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (asked, requests) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        for count in 0.. {
            let Ok((mut stream, _)) = listener.accept().await else { return };
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") && request.first() != Some(&0x16) {
                let mut buffer = [0; 1024];
                match stream.read(&mut buffer).await {
                    Ok(0) | Err(_) => break,
                    Ok(read) => request.extend_from_slice(&buffer[..read]),
                }
            }
            let _ = asked.send(String::from_utf8_lossy(&request).into_owned());
            let _ = stream.write_all(answers[count.min(answers.len() - 1)].as_bytes()).await;
        }
    });
    (address, requests)
}

fn address(of: SocketAddr) -> Address {
    Address { host: Host::Named(of.ip().to_string()), port: of.port() }
}

fn get(of: SocketAddr) -> HttpTarget {
    HttpTarget { scheme: Scheme::Http, address: address(of), path: "/healthz?a=b".into(), headers: vec![] }
}

async fn run(node: &Node, purpose: Purpose, handler: Handler) -> Outcome {
    let target = Target { uid: node.uid.clone(), id: ContainerId::random(), purpose };
    ask(&node.runtime, &target, &handler, Some(Duration::from_secs(5))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn http_statuses_redirects_and_headers_are_judged_as_by_the_kubelet() {
    let node = Node::start().await;
    for (case, answers, expected) in [
        ("a success", &["HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"][..], Outcome::Success),
        (
            "a failure, without its body",
            &["HTTP/1.1 503 Service Unavailable\r\ncontent-length: 6\r\n\r\nsecret"],
            Outcome::Failure("HTTP probe failed with statuscode: 503".into()),
        ),
        (
            "a redirect on the same host is followed",
            &[
                "HTTP/1.1 302 Found\r\nlocation: /other\r\ncontent-length: 0\r\n\r\n",
                "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
            ],
            Outcome::Failure("HTTP probe failed with statuscode: 404".into()),
        ),
        (
            "a redirect elsewhere is not",
            &["HTTP/1.1 301 Moved\r\nlocation: http://203.0.113.1/\r\ncontent-length: 4\r\n\r\nmove"],
            Outcome::Warning("Probe terminated redirects, Response body: move".into()),
        ),
    ] {
        let (at, mut requests) = server(answers).await;
        assert_eq!(run(&node, Purpose::Probe, Handler::Http(get(at))).await, expected, "{case}");
        let request = requests.recv().await.unwrap();
        assert!(request.starts_with("GET /healthz?a=b HTTP/1.1\r\n"), "{request}");
        for header in ["user-agent: kube-probe/1.36\r\n", "accept: */*\r\n", "connection: close\r\n"] {
            assert!(request.contains(header), "{header} in {request}");
        }
        assert!(request.contains(&format!("host: {at}\r\n")), "{request}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_handler_says_about_headers_wins_and_hooks_take_any_answer() {
    let node = Node::start().await;
    let (at, mut requests) = server(&["HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n"]).await;
    let headers = [("Host", "a.example"), ("User-Agent", "mine"), ("Accept", "")];
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let handler = Handler::Http(HttpTarget { headers, ..get(at) });
    assert_eq!(run(&node, Purpose::Hook, handler).await, Outcome::Success);
    let request = requests.recv().await.unwrap();
    assert!(request.contains("host: a.example\r\n") && request.contains("user-agent: mine\r\n"), "{request}");
    assert!(!request.contains("accept"), "{request}");

    let (at, mut requests) = server(&["HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n"]).await;
    let secret = vec![("Authorization".to_owned(), "x".to_owned())];
    let encrypted = HttpTarget { scheme: Scheme::Https, headers: secret, ..get(at) };
    assert_eq!(run(&node, Purpose::Hook, Handler::Http(encrypted.clone())).await, Outcome::Success);
    let _hello = requests.recv().await;
    let plain = requests.recv().await.unwrap();
    assert!(plain.contains("kube-lifecycle/1.36") && !plain.contains("authorization"), "{plain}");
    let outcome = run(&node, Purpose::Probe, Handler::Http(encrypted)).await;
    let expected = format!("Get \"https://{at}/healthz?a=b\": http: server gave HTTP response to HTTPS client");
    assert_eq!(outcome, Outcome::Failure(expected));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_answer_is_described_in_the_words_of_go() {
    let node = Node::start().await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    assert_eq!(run(&node, Purpose::Probe, Handler::Tcp(address(at))).await, Outcome::Success);
    drop(listener);
    let refused = format!("dial tcp {at}: connect: connection refused");
    assert_eq!(run(&node, Purpose::Probe, Handler::Tcp(address(at))).await, Outcome::Failure(refused.clone()));
    let expected = format!("Get \"http://{at}/healthz?a=b\": {refused}");
    assert_eq!(run(&node, Purpose::Probe, Handler::Http(get(at))).await, Outcome::Failure(expected));
    let (at, _requests) = server(&[""]).await;
    let expected = format!("Get \"http://{at}/healthz?a=b\": EOF");
    assert_eq!(run(&node, Purpose::Probe, Handler::Http(get(at))).await, Outcome::Failure(expected));
}
