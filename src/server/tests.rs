//! The API as clients meet it: real TLS, the real router, an authorizer that is a table.

use std::sync::Arc;
use std::time::Duration;

use axum::routing::any;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::auth::testing::{Authority, Identity, TableReviewer};
use super::*;
use crate::clock::Clock;
use crate::config::{ServerConfig, TlsVersion};
use crate::image::ImageConfig;
use crate::network::NodeNetworkConfig;
use crate::objects::ObjectStore;
use crate::runtime::RuntimeConfig;
use crate::state::{NoFaults, StateStore};
use crate::volume::{VolumeConfig, VolumeManager};

type Body = Empty<bytes::Bytes>;

#[derive(Debug)]
struct OneCertificate(Arc<CertifiedKey>);

impl ResolvesServerCert for OneCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

/// A node without pods.
fn node(config: NodeConfig) -> (NodeApi, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let root_dir = directory.path().join("root");
    let logs = LogStore::open(directory.path().join("logs"), Clock::System).unwrap();
    let network = crate::network::NodeNetwork::new(NodeNetworkConfig::default()).unwrap();
    let (runtime, _exits) = Runtime::new(RuntimeConfig::new(root_dir.clone(), logs.clone()), network).unwrap();
    let state = StateStore::open(directory.path().join("state"), Arc::new(NoFaults)).unwrap();
    let volumes = VolumeConfig {
        memory_root: directory.path().join("memory"),
        host_path_allowed: Vec::new(),
        host_path_denied: Vec::new(),
    };
    let api = NodeApi::new(NodeApiParts {
        node_name: "edge-1".to_owned(),
        root_dir: root_dir.clone(),
        config,
        status: StatusCache::default(),
        logs,
        events: Recorder::new("edge-1", Clock::System),
        runtime,
        images: ImageService::open(ImageConfig::new(root_dir)).unwrap(),
        volumes: VolumeManager::new(volumes, state, ObjectStore::default()),
        metrics: MetricSources::default(),
    });
    (api, directory)
}

/// An HTTPS server under test.
struct Served {
    address: SocketAddr,
    ca: Authority,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Served {
    async fn start(config: &ServerConfig, router: Router) -> Self {
        let ca = Authority::new("serving");
        let (certificate, key) = ca.server("localhost");
        let key = rustls::crypto::ring::sign::any_supported_type(&key).unwrap();
        let resolver = Arc::new(OneCertificate(Arc::new(CertifiedKey::new(vec![certificate], key))));
        let config = ServerConfig { address: "127.0.0.1".parse().unwrap(), port: 0, ..config.clone() };
        let server = HttpsServer::bind(&config, resolver).await.unwrap();
        let address = server.local_addr().unwrap();
        let stop = CancellationToken::new();
        let task = tokio::spawn(server.serve_router(router, stop.clone()));
        Self { address, ca, stop, task }
    }

    async fn connect(&self, identity: Option<&Identity>, alpn: &[u8]) -> TlsStream<TcpStream> {
        self.try_connect(identity, alpn, &rustls::version::TLS13).await.unwrap()
    }

    async fn try_connect(
        &self,
        identity: Option<&Identity>,
        alpn: &[u8],
        version: &'static rustls::SupportedProtocolVersion,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.ca.certificate()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match identity {
            Some((certificate, key)) => {
                builder.with_client_auth_cert(vec![certificate.clone()], key.clone_key()).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![alpn.to_vec()];
        let stream = TcpStream::connect(self.address).await?;
        TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost").unwrap(), stream).await
    }

    async fn ask(
        &self,
        identity: Option<&Identity>,
        token: Option<&str>,
        method: &Method,
        path: &str,
    ) -> (StatusCode, String) {
        let stream = self.connect(identity, b"http/1.1").await;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        let connection = tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let response = sender.send_request(request.body(Body::new()).unwrap()).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        connection.abort();
        (status, String::from_utf8_lossy(&body).into_owned())
    }
}

/// Every endpoint with the right it takes and its answer on a node without pods; `None` is any answer of its own.
const ENDPOINTS: &[(&str, &str, &str, Option<u16>)] = &[
    ("GET", "/healthz", "healthz", Some(200)),
    ("GET", "/healthz/ping", "healthz", Some(200)),
    ("GET", "/healthz/log", "healthz", Some(200)),
    ("GET", "/healthz/syncloop", "healthz", Some(200)),
    ("GET", "/healthz/odd", "healthz", Some(404)),
    ("GET", "/pods", "pods", Some(200)),
    ("GET", "/pods/", "pods", Some(200)),
    ("GET", "/runningpods/", "pods", Some(200)),
    ("GET", "/configz", "configz", Some(200)),
    ("GET", "/stats/summary", "stats", Some(200)),
    ("POST", "/stats/summary", "stats", Some(200)),
    ("GET", "/stats/summary?only_cpu_and_memory=true", "stats", Some(200)),
    ("GET", "/metrics", "metrics", Some(200)),
    ("GET", "/metrics/resource", "metrics", Some(200)),
    ("GET", "/metrics/cadvisor", "metrics", Some(200)),
    ("GET", "/metrics/probes", "metrics", Some(200)),
    ("GET", "/metrics/odd", "metrics", Some(404)),
    ("GET", "/logs/", "log", Some(200)),
    ("GET", "/logs/no-such-file", "log", Some(404)),
    ("POST", "/checkpoint/ns/pod/c", "checkpoint", Some(404)),
    ("GET", "/containerLogs/ns/pod/c", "proxy", Some(404)),
    ("GET", "/exec/ns/pod/c?command=id&output=1", "proxy", None),
    ("POST", "/exec/ns/pod/c?command=id&output=1", "proxy", None),
    ("GET", "/attach/ns/pod/c?output=1", "proxy", None),
    ("POST", "/attach/ns/pod/c?output=1", "proxy", None),
    ("POST", "/run/ns/pod/c?cmd=id", "proxy", None),
    ("POST", "/portForward/ns/pod", "proxy", None),
    ("GET", "/debug/pprof/heap", "proxy", Some(405)),
    ("PUT", "/debug/flags/v", "proxy", Some(405)),
    ("GET", "/events", "proxy", Some(404)),
    ("GET", "/", "proxy", Some(404)),
    ("DELETE", "/pods", "pods", Some(405)),
];

#[tokio::test]
async fn every_endpoint_is_for_those_who_may_and_for_nobody_else() {
    let ca = Authority::new("clients");
    let rights = ["healthz", "pods", "configz", "stats", "metrics", "log", "checkpoint", "proxy"];
    let rights: Vec<(&str, &str)> = rights.iter().map(|right| (*right, *right)).collect();
    let tokens = [("proxy-token", "proxy"), ("stats-token", "stats"), ("poor-token", "poor")];
    let config = NodeConfig::default();
    let reviewer = TableReviewer::new(&tokens, &rights);
    let auth = Auth::with_reviewer(&config.server, "edge-1", Some(reviewer), vec![ca.certificate()]).unwrap();
    let (api, _directory) = node(config.clone());
    let served = Served::start(&config.server, https_router(api, Arc::new(auth))).await;

    let stranger = Authority::new("strangers").client("proxy", &["system:masters"]);
    let poor = ca.client("poor", &[]);
    for (method, path, right, expected) in ENDPOINTS {
        let case = format!("{method} {path}");
        let method: Method = method.parse().unwrap();
        let unauthorized = (StatusCode::UNAUTHORIZED, "Unauthorized".to_owned());
        assert_eq!(served.ask(None, None, &method, path).await, unauthorized, "{case}: nothing shown");
        assert_eq!(served.ask(Some(&stranger), None, &method, path).await, unauthorized, "{case}: a stranger");
        assert_eq!(served.ask(None, Some("odd"), &method, path).await, unauthorized, "{case}: a wrong token");
        for (identity, token) in [(Some(&poor), None), (None, Some("poor-token"))] {
            let (status, text) = served.ask(identity, token, &method, path).await;
            assert_eq!(status, StatusCode::FORBIDDEN, "{case}: no right");
            assert!(text.starts_with("Forbidden (user=poor, verb=") && text.ends_with("])\n"), "{case}: {text}");
        }
        let allowed = ca.client(right, &[]);
        let (status, text) = served.ask(Some(&allowed), None, &method, path).await;
        match expected {
            Some(expected) => assert_eq!(status.as_u16(), *expected, "{case}: {text}"),
            None => assert!(!matches!(status.as_u16(), 401 | 403 | 500), "{case}: {status} {text}"),
        }
    }
    // A token is as good as a certificate, and a good one helps out a stranger's certificate.
    assert_eq!(served.ask(None, Some("stats-token"), &Method::GET, "/stats/summary").await.0, StatusCode::OK);
    assert_eq!(served.ask(Some(&stranger), Some("proxy-token"), &Method::GET, "/pods").await.0, StatusCode::OK);
}

#[tokio::test]
async fn what_looks_into_pods_can_be_turned_off() {
    let ca = Authority::new("clients");
    let mut config = NodeConfig::default();
    config.server.debugging_handlers = false;
    config.server.authorization.mode = crate::config::AuthorizationMode::AlwaysAllow;
    let auth = Auth::with_reviewer(&config.server, "edge-1", None, vec![ca.certificate()]).unwrap();
    let (api, _directory) = node(config.clone());
    let served = Served::start(&config.server, https_router(api, Arc::new(auth))).await;
    let admin = ca.client("admin", &[]);
    for path in ["/exec/ns/pod/c", "/attach/ns/pod/c", "/containerLogs/ns/pod/c", "/runningpods/", "/portForward/a/b"] {
        let answer = served.ask(Some(&admin), None, &Method::GET, path).await;
        assert_eq!(answer, (StatusCode::METHOD_NOT_ALLOWED, "Debug endpoints are disabled.\n".to_owned()), "{path}");
    }
    assert_eq!(served.ask(Some(&admin), None, &Method::GET, "/pods").await.0, StatusCode::OK);
}

#[tokio::test]
async fn the_figures_have_the_shapes_their_readers_know() {
    let (api, _directory) = node(NodeConfig::default());
    let summary = serde_json::to_value(api.stats.summary(Scope::Everything)).unwrap();
    assert_eq!(summary["node"]["nodeName"], "edge-1");
    assert!(summary["node"]["memory"]["workingSetBytes"].as_u64().unwrap() > 0);
    assert!(summary["node"]["cpu"]["usageCoreNanoSeconds"].as_u64().unwrap() > 0);
    assert_eq!(summary["node"]["systemContainers"][0]["name"], "kubelet");
    assert_eq!(summary["pods"], serde_json::json!([]));
    let cpu_only = serde_json::to_value(api.stats.summary(Scope::CpuAndMemory)).unwrap();
    assert_eq!(cpu_only["node"].get("rlimit"), None);
}

#[tokio::test]
async fn both_versions_of_http_are_spoken() {
    let router = Router::new()
        .route("/", any(|request: axum::extract::Request| async move { format!("{:?}", request.version()) }));
    let served = Served::start(&ServerConfig::default(), router).await;
    assert_eq!(served.ask(None, None, &Method::GET, "/").await.1, "HTTP/1.1");
    let stream = served.connect(None, b"h2").await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("https://localhost/").body(Body::new()).unwrap();
    let body = sender.send_request(request).await.unwrap().into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "HTTP/2.0");
}

#[tokio::test]
async fn the_least_version_of_tls_is_the_configured_one() {
    let tls13 = ServerConfig { tls_min_version: TlsVersion::Tls13, ..ServerConfig::default() };
    for (config, tls12_works) in [(ServerConfig::default(), true), (tls13, false)] {
        let served = Served::start(&config, Router::new()).await;
        let connected = served.try_connect(None, b"http/1.1", &rustls::version::TLS12).await;
        assert_eq!(connected.is_ok(), tls12_works);
        assert!(served.try_connect(None, b"http/1.1", &rustls::version::TLS13).await.is_ok());
    }
}

#[tokio::test]
async fn a_connection_can_be_upgraded() {
    let echo = |mut request: axum::extract::Request| async move {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut stream = TokioIo::new(upgrade.await.unwrap());
            let mut bytes = [0; 4];
            stream.read_exact(&mut bytes).await.unwrap();
            stream.write_all(&bytes).await.unwrap();
            stream.shutdown().await.unwrap();
        });
        (StatusCode::SWITCHING_PROTOCOLS, [("connection", "upgrade"), ("upgrade", "echo")])
    };
    let served = Served::start(&ServerConfig::default(), Router::new().route("/", any(echo))).await;
    let stream = served.connect(None, b"http/1.1").await;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    let request =
        Request::post("/").header("host", "localhost").header("connection", "upgrade").header("upgrade", "echo");
    let response = sender.send_request(request.body(Body::new()).unwrap()).await.unwrap();
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    stream.write_all(b"ping").await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"ping");
}

#[tokio::test]
async fn silent_clients_hold_nobody_up_and_the_stop_neither() {
    let endless = || async {
        let pieces = futures::stream::repeat_with(|| Ok::<_, std::io::Error>(vec![0u8; 1 << 16]));
        axum::body::Body::from_stream(pieces)
    };
    let router = Router::new().route("/", any(|| async { "ok" })).route("/endless", any(endless));
    let served = Served::start(&ServerConfig::default(), router).await;
    // One that never greets, one that greets and asks nothing, one that asks for much and reads nothing.
    let _mute = TcpStream::connect(served.address).await.unwrap();
    let _idle = served.connect(None, b"http/1.1").await;
    let mut greedy = served.connect(None, b"http/1.1").await;
    greedy.write_all(b"GET /endless HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    greedy.read_exact(&mut [0; 16]).await.unwrap();
    for _ in 0..3 {
        assert_eq!(served.ask(None, None, &Method::GET, "/").await, (StatusCode::OK, "ok".to_owned()));
    }
    served.stop.cancel();
    tokio::time::timeout(Duration::from_secs(60), served.task).await.expect("it stops").unwrap();
    assert!(TcpStream::connect(served.address).await.is_err(), "nobody listens any more");
}
