//! An HTTP component behind the node beside `wasmtime serve`: requests a second, and how long the slowest hundredth took.
//!
//! The same component (`wasm-samples/http-component`) runs as a pod of the built node and under wasmtime's own server, of the
//! same version (`scripts/wasmtime.sh`; `WASILET_BENCH_WASMTIME` names another binary). One client asks both over the kernel's
//! loopback, by the same connections kept alive, in turns that swap. wasmtime makes an instance for each request unless it is
//! told otherwise, the node keeps one for 128: both are shown, and the target is what `serve` does by itself.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

#[path = "common/report.rs"]
#[allow(dead_code, reason = "it draws nothing and measures no CPU")]
mod report;

/// Clients at once: several for each core of a small node, far from what either server refuses.
const CONNECTIONS: usize = 16;
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(3);
/// Before what counts: instances are made, caches filled.
const WARM_UP: Duration = Duration::from_secs(1);
/// Requests that an instance serves in the node (`runtime::http::pool`).
const REUSE: &str = "128";
const PATIENCE: Duration = Duration::from_secs(60);

/// What is asked.
struct Question {
    name: &'static str,
    method: Method,
    path: &'static str,
    body: usize,
}

const QUESTIONS: [Question; 2] = [
    Question { name: "GET of a page", method: Method::GET, path: "/page?x=1", body: 0 },
    Question { name: "echo of 64 KiB", method: Method::POST, path: "/echo", body: 64 << 10 },
];

/// What a server did in one round.
#[derive(Clone, Copy)]
struct Round {
    per_second: f64,
    p99: Duration,
}

fn main() {
    let guest = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/guests/http-component.wasm");
    assert!(guest.exists(), "{} is missing: run scripts/build-guests.sh", guest.display());
    let wasmtime = wasmtime();
    let node = Node::start(&guest);
    let fresh = Peer::start(&wasmtime, &guest, &[]);
    let reusing = Peer::start(&wasmtime, &guest, &["--max-instance-reuse-count", REUSE]);
    // One thread: what the client takes of the machine is the same for all.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    for question in &QUESTIONS {
        let servers = [node.address, fresh.address, reusing.address];
        for server in servers {
            runtime.block_on(round(server, question, WARM_UP));
        }
        let mut rounds: [Vec<Round>; 3] = Default::default();
        for turn in 0..ROUNDS {
            let mut order = [0, 1, 2];
            order.rotate_left(turn % 3);
            for at in order {
                rounds[at].push(runtime.block_on(round(servers[at], question, ROUND)));
            }
        }
        tell(question.name, rounds.map(|rounds| median(&rounds)));
    }
}

fn tell(what: &str, [ours, fresh, reusing]: [Round; 3]) {
    let what = format!("HTTP component, {what}, {CONNECTIONS} connections");
    let beside = |peer: Round| {
        format!(
            "{:.0}/s (p99 {:.1} ms); wasmtime {:.0}/s (p99 {:.1} ms); {:.2}x",
            ours.per_second,
            millis(ours.p99),
            peer.per_second,
            millis(peer.p99),
            ours.per_second / peer.per_second
        )
    };
    let met = ours.per_second >= fresh.per_second && ours.p99 <= fresh.p99;
    report::target(&what, ">= wasmtime serve", &beside(fresh), met);
    report::figure(&format!("{what}, beside wasmtime serve with {REUSE} requests an instance"), &beside(reusing));
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The median of each figure.
fn median(rounds: &[Round]) -> Round {
    let (mut rates, mut p99s): (Vec<f64>, Vec<Duration>) =
        rounds.iter().map(|round| (round.per_second, round.p99)).unzip();
    rates.sort_by(f64::total_cmp);
    p99s.sort();
    Round { per_second: rates[rates.len() / 2], p99: p99s[p99s.len() / 2] }
}

/// Asks a server for a while by every connection at once. An answer that is not 200 and whole ends the bench.
async fn round(server: SocketAddr, question: &'static Question, length: Duration) -> Round {
    let begin = Instant::now();
    let clients = (0..CONNECTIONS).map(|_| tokio::spawn(ask(server, question, begin + length)));
    let times = futures::future::join_all(clients).await;
    let took = begin.elapsed();
    let mut times: Vec<Duration> = times.into_iter().flat_map(|times| times.expect("every answer is good")).collect();
    times.sort();
    let per_second = times.len() as f64 / took.as_secs_f64();
    Round { per_second, p99: times.get(times.len() * 99 / 100).copied().expect("some were answered") }
}

/// One connection: how long each answer took, its body included.
async fn ask(server: SocketAddr, question: &Question, until: Instant) -> Vec<Duration> {
    let stream = tokio::net::TcpStream::connect(server).await.expect("it listens");
    stream.set_nodelay(true).expect("an option");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.expect("a connection");
    let driving = tokio::spawn(connection);
    let body = Bytes::from(vec![b'x'; question.body]);
    let mut times = Vec::new();
    while Instant::now() < until {
        let request = Request::builder().method(&question.method).uri(question.path).header("host", "bench.test");
        let request = request.body(Full::new(body.clone())).expect("a request");
        let begin = Instant::now();
        let response = sender.send_request(request).await.unwrap_or_else(|error| panic!("{server}: {error:?}"));
        let status = response.status();
        let answer = response.into_body().collect().await.expect("a whole answer").to_bytes();
        times.push(begin.elapsed());
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&answer));
        assert!(question.body == 0 || answer.len() == question.body, "{} bytes", answer.len());
    }
    driving.abort();
    times
}

/// The peer's binary, built when it is not there.
fn wasmtime() -> PathBuf {
    if let Some(path) = std::env::var_os("WASILET_BENCH_WASMTIME") {
        return path.into();
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/wasmtime.sh");
    let script = Command::new(script).stderr(Stdio::inherit()).output().expect("bash");
    assert!(script.status.success(), "scripts/wasmtime.sh failed");
    PathBuf::from(String::from_utf8_lossy(&script.stdout).trim())
}

fn wait_for(server: SocketAddr) {
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect(server).is_err() {
        assert!(Instant::now() < deadline, "nobody listens on {server}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A process that ends with the bench.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `wasmtime serve`.
struct Peer {
    address: SocketAddr,
    _process: Process,
}

impl Peer {
    fn start(wasmtime: &Path, guest: &Path, more: &[&str]) -> Self {
        // Free a moment ago; whoever takes it meanwhile makes the peer fail, and the bench with it.
        let free = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port");
        let mut command = Command::new(wasmtime);
        // What the guest prints goes to a file in the node; here it costs less.
        command.args(["serve", "-Scli", "--addr", &free.to_string()]).args(more).arg(guest);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = Process(command.spawn().expect("wasmtime starts"));
        wait_for(free);
        Self { address: free, _process: process }
    }
}

/// The component as a pod of a standalone node.
struct Node {
    address: SocketAddr,
    // The process first: it writes to the place.
    _process: Process,
    _place: tempfile::TempDir,
}

impl Node {
    fn start(guest: &Path) -> Self {
        let place = tempfile::tempdir().expect("a temporary directory");
        let wasilet = || {
            let mut command = Command::new(env!("CARGO_BIN_EXE_wasilet"));
            command.arg("--root-dir").arg(place.path().join("root")).env("WASILET_TOOLBOX", "");
            command
        };
        let loaded = wasilet().args(["image", "load"]).arg(guest).arg("bench/http:v1").output();
        assert!(loaded.is_ok_and(|output| output.status.success()), "the guest cannot be loaded");
        let manifests = place.path().join("manifests");
        std::fs::create_dir_all(&manifests).expect("a directory");
        let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: http}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers:\n  - {name: main, image: \"bench/http:v1\", ports: [{containerPort: 8080}]}\n";
        std::fs::write(manifests.join("pod.yaml"), pod).expect("a manifest");
        let mut run = wasilet();
        run.args(["run", "--node-name", "node", "--manifests"]).arg(&manifests).env("WASILET_LOG", "warn");
        let process = Process(run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("wasilet starts"));
        let deadline = Instant::now() + PATIENCE;
        let address = loop {
            let output = wasilet().args(["ps", "--output", "json"]).output().expect("wasilet");
            let pods: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            if let Some(ip) = pods["items"][0]["status"]["podIP"].as_str() {
                break format!("{ip}:8080").parse().expect("an address");
            }
            assert!(Instant::now() < deadline, "the pod has no address");
            std::thread::sleep(Duration::from_millis(20));
        };
        wait_for(address);
        Self { address, _process: process, _place: place }
    }
}
