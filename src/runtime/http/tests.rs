//! The sample HTTP component behind the real server, asked through the pod's network.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::pod::run::{ContainerSpec, ExitCause, StopRequest};
use crate::runtime::testing::{Node, log};
use crate::runtime::wasi::p2::tests::sample;

const PORT: u16 = 8080;

struct Web {
    node: Node,
    spec: ContainerSpec,
}

impl Web {
    async fn start() -> Option<Self> {
        let wasm = sample("http-component")?;
        let node = Node::start().await;
        let mut spec = node.spec(&wasm);
        spec.container_ports = vec![PORT];
        node.start_container(&spec).await.expect("the component starts");
        Some(Self { node, spec })
    }

    fn address(&self) -> SocketAddr {
        let network = self.node.runtime.network.pod(&self.node.uid).expect("the pod has a network");
        SocketAddr::new(network.ips()[0], PORT)
    }

    async fn dial(&self) -> crate::network::TcpStream {
        let address = self.address();
        self.node.runtime.network.dial(address).await.expect("the component listens")
    }

    async fn connect(&self) -> http1::SendRequest<Full<Bytes>> {
        let (sender, connection) = http1::handshake(TokioIo::new(self.dial().await)).await.expect("a connection");
        tokio::spawn(connection);
        sender
    }

    async fn get(&self, path: &str) -> (StatusCode, String) {
        text(self.connect().await.send_request(get(path)).await.expect("a response")).await
    }

    fn log(&self) -> String {
        log(&self.spec.log_path)
    }
}

fn get(path: &str) -> Request<Full<Bytes>> {
    Request::get(path).header("host", "web.test").body(Full::default()).expect("a request")
}

async fn text(response: Response<Incoming>) -> (StatusCode, String) {
    let status = response.status();
    let body = response.into_body().collect().await.expect("a whole body").to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_component_answers_on_its_port_and_writes_to_its_log() {
    let Some(web) = Web::start().await else { return };
    let (status, page) = web.get("/hello?x=1").await;
    assert_eq!(status, 200);
    assert!(page.contains("path: /hello") && page.contains("query: x=1"), "{page}");
    let (status, page) = web.get("/env").await;
    assert_eq!(status, 200);
    assert!(page.contains("GREETING=hello"), "{page}");
    assert_eq!(web.get("/status/418").await.0, 418);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_stream_both_ways() {
    let Some(web) = Web::start().await else { return };
    let body = Bytes::from(vec![b'x'; 3 << 20]);
    let request = Request::post("/echo").header("host", "web.test").body(Full::new(body.clone())).unwrap();
    let response = web.connect().await.send_request(request).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), body);

    let started = Instant::now();
    let response = web.connect().await.send_request(get("/stream?chunks=5&pause_ms=100")).await.unwrap();
    let mut body = response.into_body();
    body.frame().await.unwrap().unwrap();
    assert!(started.elapsed() < Duration::from_millis(350), "the first line waits for no other");
    let rest = body.collect().await.unwrap().to_bytes();
    assert!(rest.ends_with(b"line 5\n"), "{rest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_without_tls_is_spoken_too() {
    let Some(web) = Web::start().await else { return };
    let io = TokioIo::new(web.dial().await);
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("http://web.test/two").body(Full::<Bytes>::default()).unwrap();
    let (status, page) = text(sender.send_request(request).await.unwrap()).await;
    assert_eq!(status, 200);
    assert!(page.contains("path: /two"), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_serves_many_requests_one_after_the_other() {
    let Some(web) = Web::start().await else { return };
    let mut connection = web.connect().await;
    let mut counts = Vec::new();
    for _ in 0..5 {
        counts.push(text(connection.send_request(get("/count")).await.unwrap()).await.1);
        // The handler may end a moment after its response did.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(counts, ["1\n", "2\n", "3\n", "4\n", "5\n"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trap_fails_its_own_request_only() {
    let Some(web) = Web::start().await else { return };
    assert_eq!(web.get("/trap").await.0, 500);
    assert_eq!(web.get("/").await.0, 200);
    let deadline = Instant::now() + Duration::from_secs(5);
    while !web.log().contains("GET /trap: the component trapped") {
        assert!(Instant::now() < deadline, "{}", web.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(web.log().contains("wasm"), "{}", web.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_out_use_the_pods_network() {
    let Some(web) = Web::start().await else { return };
    let (status, page) = web.get(&format!("/fetch?url=http://127.0.0.1:{PORT}/inner")).await;
    assert_eq!(status, 200, "{page}");
    assert!(page.contains("path: /inner"), "{page}");
    let (status, page) = web.get("/fetch?url=http://localhost:1/").await;
    assert_eq!(status, 502, "{page}");
    assert!(page.contains("ConnectionRefused"), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_requests_at_once_are_all_answered() {
    let Some(web) = Web::start().await else { return };
    let web = std::sync::Arc::new(web);
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let web = web.clone();
        clients.spawn(async move {
            let mut connection = web.connect().await;
            for _ in 0..20 {
                let (status, _) = text(connection.send_request(get("/")).await.unwrap()).await;
                assert_eq!(status, 200);
            }
        });
    }
    while let Some(done) = clients.join_next().await {
        done.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_server_finishes_what_is_in_flight() {
    let Some(web) = Web::start().await else { return };
    let response = web.connect().await.send_request(get("/stream?chunks=10&pause_ms=100")).await.unwrap();
    web.node.runtime.stop_container(&web.spec.id, StopRequest { signal: 15, grace: Duration::from_secs(20) });
    let (status, page) = text(response).await;
    assert_eq!(status, 200);
    assert!(page.ends_with("line 10\n"), "{page}");
    let exit = web.node.exit().await;
    assert_eq!((exit.exit_code, exit.cause), (143, ExitCause::Stopped));
    assert!(web.node.runtime.network.dial(web.address()).await.is_err(), "nobody listens any more");
}
