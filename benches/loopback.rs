//! The pod's loopback against the kernel's: throughput and round-trip time of the same code over both.
//!
//! Both sides are tokio's `AsyncRead` and `AsyncWrite`, on the same runtime, in 64 KiB calls as the WASI front-ends
//! make them. The ratios at the end are of the medians of this run; above 1 ours is better.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::runtime::Runtime;
use wasilet::ids::{PodRef, PodUid};
use wasilet::network::{Family, NodeNetwork, NodeNetworkConfig, OwnerId, PodNetworkSpec, TcpStream};
use wasilet::pod::run::{DnsConfig, NetworkMode};

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
    criterion.final_summary();

    let (a, b, c, d) = (median(a), median(b), median(c), median(d));
    let gib = |time: Duration| TRANSFER as f64 / time.as_secs_f64() / f64::from(1 << 30);
    let micros = |time: Duration| time.as_secs_f64() * 1e6 / f64::from(ROUND_TRIPS);
    println!("throughput: {:.2} GiB/s in process, {:.2} GiB/s kernel, ratio {:.2}", gib(a), gib(b), gib(a) / gib(b));
    println!(
        "round trip: {:.2} us in process, {:.2} us kernel, ratio {:.2}",
        micros(c),
        micros(d),
        micros(d) / micros(c)
    );
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
        hostname: "bench".to_owned(),
        mode: NetworkMode::Pod,
        ip: None,
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
