//! The pod's loopback against the kernel's: throughput and round-trip time of the same code over both. And the way from a
//! Service's address to an endpoint, in a cluster of 10,000 Services and 100,000 endpoints, with the memory that takes.
//!
//! Both sides are tokio's `AsyncRead` and `AsyncWrite`, on the same runtime, in 64 KiB calls as the WASI front-ends
//! make them. The ratios at the end are of the medians of this run; above 1 ours is better.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::runtime::Runtime;
use wasilet::ids::{PodRef, PodUid};
use wasilet::network::{
    Family, NodeNetwork, NodeNetworkConfig, OwnerId, PodNetworkSpec, Protocol, ServiceTable, Source, TcpStream,
};
use wasilet::pod::run::{DnsConfig, NetworkMode, PortProtocol};
use wasilet::pod::services::{
    Endpoint, Facts, ServiceNews, ServicePort, ServiceSpec, SlicePort, SliceSpec, TrafficPolicy,
};

#[path = "common/report.rs"]
#[allow(dead_code, reason = "shared by the benchmarks")]
mod report;

/// Bytes of one transfer: long against the start of a task.
const TRANSFER: usize = 256 << 20;
const CALL: usize = 64 * 1024;
const ROUND_TRIPS: u32 = 10_000;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let mut criterion = Criterion::default().configure_from_args().sample_size(10);
    let ours = || runtime.block_on(ours());
    let kernel = || runtime.block_on(kernel());

    let mut group = criterion.benchmark_group("loopback throughput");
    group.throughput(Throughput::Bytes(TRANSFER as u64));
    let (mut a, mut b) = (Vec::new(), Vec::new());
    group.bench_function("in process", |bench| bench.iter_custom(|n| repeat(n, &mut a, || transfer(&runtime, ours()))));
    group.bench_function("kernel", |bench| bench.iter_custom(|n| repeat(n, &mut b, || transfer(&runtime, kernel()))));
    group.finish();

    let mut group = criterion.benchmark_group("loopback round trips");
    group.throughput(Throughput::Elements(u64::from(ROUND_TRIPS)));
    let (mut c, mut d) = (Vec::new(), Vec::new());
    group
        .bench_function("in process", |bench| bench.iter_custom(|n| repeat(n, &mut c, || ping_pong(&runtime, ours()))));
    group.bench_function("kernel", |bench| bench.iter_custom(|n| repeat(n, &mut d, || ping_pong(&runtime, kernel()))));
    group.finish();

    let before = resident_bytes();
    let table = services();
    println!("services: 10,000 with 100,000 endpoints take {} bytes", resident_bytes().saturating_sub(before));
    let source = Source::Inside(IpAddr::from([10, 244, 1, 2]));
    let mut next = 0u32;
    criterion.bench_function("service lookup", |bench| {
        bench.iter(|| {
            next = (next + 7919) % SERVICES;
            table.pick(SocketAddr::new(cluster_ip(next), 80), Protocol::Tcp, source, |_| false)
        });
    });
    criterion.final_summary();

    let (a, b, c, d) = (median(a), median(b), median(c), median(d));
    let gib = |time: Duration| TRANSFER as f64 / time.as_secs_f64() / f64::from(1 << 30);
    let micros = |time: Duration| time.as_secs_f64() * 1e6 / f64::from(ROUND_TRIPS);
    let ratio = gib(a) / gib(b);
    report::target(
        "loopback throughput, 64 KiB calls",
        ">= 2x the kernel's",
        &format!("{:.2} GiB/s; kernel {:.2} GiB/s; {ratio:.2}x", gib(a), gib(b)),
        ratio >= 2.0,
    );
    let ratio = micros(c) / micros(d);
    report::target(
        "loopback round trip",
        "<= 0.5x the kernel's",
        &format!("{:.2} us; kernel {:.2} us; {ratio:.2}x", micros(c), micros(d)),
        ratio <= 0.5,
    );
}

const SERVICES: u32 = 10_000;

fn cluster_ip(number: u32) -> IpAddr {
    IpAddr::from((0x0a60_0000 + number).to_be_bytes())
}

/// A table of as many Services as a large cluster has, ten endpoints each.
fn services() -> ServiceTable {
    let table = ServiceTable::default();
    let key = |number: u32| format!("namespace-{}/service-{number}", number % 100).into();
    let spec = |number| ServiceSpec {
        key: key(number),
        cluster_ips: vec![cluster_ip(number)],
        external_ips: Vec::new(),
        balancer_ips: Vec::new(),
        source_ranges: Vec::new(),
        ports: vec![ServicePort { name: "http".into(), protocol: PortProtocol::Tcp, port: 80, node_port: None }],
        affinity: None,
        internal: TrafficPolicy::Cluster,
        external: TrafficPolicy::Cluster,
        health_check_port: None,
    };
    let endpoint = |number: u32| Endpoint {
        ip: IpAddr::from((0x0af4_0000 + number).to_be_bytes()),
        facts: Facts::READY.with(Facts::SERVING),
    };
    let slice = |number| SliceSpec {
        key: format!("namespace-{}/service-{number}-abcde", number % 100).into(),
        service: key(number),
        ports: vec![SlicePort { name: "http".into(), protocol: PortProtocol::Tcp, port: 8080 }],
        endpoints: (0..10).map(|at| endpoint(number * 10 + at)).collect(),
    };
    table.apply(ServiceNews::Services((0..SERVICES).map(spec).collect()));
    table.apply(ServiceNews::Slices((0..SERVICES).map(slice).collect()));
    table
}

/// What this process has in memory.
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0);
    pages * 4096
}

fn repeat(times: u64, all: &mut Vec<Duration>, one: impl Fn() -> Duration) -> Duration {
    let durations: Vec<_> = (0..times).map(|_| one()).collect();
    all.extend_from_slice(&durations);
    durations.iter().sum()
}

fn median(mut all: Vec<Duration>) -> Duration {
    all.sort();
    // A filter on the command line may leave one out.
    all.get(all.len() / 2).copied().unwrap_or(Duration::from_nanos(1))
}

async fn ours() -> (TcpStream, TcpStream) {
    let node = NodeNetwork::new(NodeNetworkConfig::default()).expect("a node network");
    let spec = PodNetworkSpec {
        uid: PodUid::new("bench").expect("a UID"),
        pod: PodRef { namespace: "default".to_owned(), name: "bench".to_owned() },
        names: vec!["bench".to_owned()],
        mode: NetworkMode::Pod,
        ips: Vec::new(),
        dns: DnsConfig::default(),
        host_aliases: Vec::new(),
        host_ports: Vec::new(),
    };
    let pod = node.add_pod(spec).expect("a pod network");
    let listener = pod.tcp_socket(OwnerId(1), Family::V4).expect("a socket");
    listener.bind(SocketAddr::from(([127, 0, 0, 1], 80))).expect("bound");
    listener.listen(1).expect("listening");
    let client = pod.tcp_socket(OwnerId(2), Family::V4).expect("a socket");
    client.connect(SocketAddr::from(([127, 0, 0, 1], 80))).await.expect("connected");
    let server = listener.accept().await.expect("accepted");
    // The pod would end with its node.
    std::mem::forget(node);
    (client.into_stream(), server.into_stream())
}

async fn kernel() -> (tokio::net::TcpStream, tokio::net::TcpStream) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let at = listener.local_addr().expect("an address");
    let (client, server) = tokio::join!(tokio::net::TcpStream::connect(at), listener.accept());
    let (client, server) = (client.expect("connected"), server.expect("accepted").0);
    client.set_nodelay(true).expect("an option");
    server.set_nodelay(true).expect("an option");
    (client, server)
}

fn transfer<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    runtime: &Runtime,
    (mut from, mut to): (S, S),
) -> Duration {
    let started = Instant::now();
    let writer = runtime.spawn(async move {
        let data = vec![7; CALL];
        for _ in 0..TRANSFER / CALL {
            from.write_all(&data).await.expect("written");
        }
    });
    let reader = runtime.spawn(async move {
        let mut buffer = vec![0; CALL];
        let mut left = TRANSFER;
        while left > 0 {
            left -= to.read(&mut buffer).await.expect("read");
        }
    });
    runtime.block_on(async {
        writer.await.expect("the writer");
        reader.await.expect("the reader");
    });
    started.elapsed()
}

fn ping_pong<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    runtime: &Runtime,
    (mut from, mut to): (S, S),
) -> Duration {
    let started = Instant::now();
    let ponger = runtime.spawn(async move {
        let mut byte = [0];
        while to.read_exact(&mut byte).await.is_ok() {
            to.write_all(&byte).await.expect("written");
        }
    });
    let pinger = runtime.spawn(async move {
        let mut byte = [1];
        for _ in 0..ROUND_TRIPS {
            from.write_all(&byte).await.expect("written");
            from.read_exact(&mut byte).await.expect("read");
        }
    });
    runtime.block_on(async {
        pinger.await.expect("the pinger");
        ponger.await.expect("the ponger");
    });
    started.elapsed()
}
