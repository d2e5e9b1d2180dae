//! One hot path so many times, for a counter of instructions: `counts PATH TIMES`. What `scripts/bench-compare.sh` runs under
//! callgrind, twice with different TIMES, so that what it takes to begin is not in the difference. On one thread, for the
//! counts of two runs to be the same.

use std::hint::black_box;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use wasilet::ids::{PodRef, PodUid};
use wasilet::network::{Family, NodeNetwork, NodeNetworkConfig, OwnerId, PodNetworkSpec, TcpStream};
use wasilet::pod::plan::{
    ContainerState, ContainerView, Health, Phase, PodView, PostStart, Role, Sandbox, Startup, plan,
};
use wasilet::pod::restart::{RestartPolicy, RestartRules};
use wasilet::pod::run::{Access, DnsConfig, NetworkMode};
use wasilet::vfs::layer::LayerStack;
use wasilet::vfs::{
    Credentials, Dir, File, Follow, Namespace, NamespaceBuilder, OpenFlags, OpenOptions, Opened, Upper,
};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let [path, times] = args.as_slice() else {
        return println!("counts: run by scripts/bench-compare.sh (make bench-compare)");
    };
    let times: usize = times.parse().expect("TIMES is a number");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    match path.as_str() {
        "vfs-lookup" => runtime.block_on(lookups(times)),
        "vfs-open" => runtime.block_on(opens(times)),
        "vfs-write" => runtime.block_on(writes(times)),
        "loopback" => runtime.block_on(round_trips(times)),
        "plan" => plans(times),
        other => panic!("{other}: not vfs-lookup, vfs-open, vfs-write, loopback or plan"),
    }
}

/// A container's own tree in memory, its directory `/w` and a file `a/b/file` in there.
async fn files() -> (Namespace, Dir, File) {
    let upper = Upper::Memory { limit: 1 << 30 };
    let ns = NamespaceBuilder::new(LayerStack::empty(), upper, Access::ReadWrite).build().await.expect("a namespace");
    let cred = Credentials::root();
    for path in ["/w", "/w/a", "/w/a/b"] {
        ns.mkdir(&cred, &ns.root(), path, 0o755).await.expect("a directory");
    }
    let options = OpenOptions::new(OpenFlags::READ | OpenFlags::WRITE | OpenFlags::CREATE);
    let Ok(Opened::File(file)) = ns.open(&cred, &ns.root(), "/w/a/b/file", options).await else { panic!("a file") };
    let Ok(Opened::Dir(at)) = ns.open(&cred, &ns.root(), "/w", OpenOptions::read()).await else {
        panic!("a directory")
    };
    (ns, at, file)
}

async fn lookups(times: usize) {
    let (ns, at, _file) = files().await;
    let cred = Credentials::root();
    for _ in 0..times {
        black_box(ns.stat(&cred, &at, "a/b/file", Follow::Yes).await).expect("it is there");
    }
}

async fn opens(times: usize) {
    let (ns, at, _file) = files().await;
    let cred = Credentials::root();
    for _ in 0..times {
        drop(black_box(ns.open(&cred, &at, "a/b/file", OpenOptions::read()).await).expect("it opens"));
    }
}

async fn writes(times: usize) {
    let (_ns, _at, file) = files().await;
    let line = [b'.'; 100];
    for _ in 0..times {
        black_box(file.write_at(&line, 0).await).expect("written");
    }
}

async fn round_trips(times: usize) {
    let (mut client, mut server) = connection().await;
    let echo = tokio::spawn(async move {
        let mut byte = [0];
        while server.read_exact(&mut byte).await.is_ok() {
            server.write_all(&byte).await.expect("written");
        }
    });
    let mut byte = [1];
    for _ in 0..times {
        client.write_all(&byte).await.expect("written");
        client.read_exact(&mut byte).await.expect("read");
    }
    drop(client);
    echo.await.expect("the other end");
}

async fn connection() -> (TcpStream, TcpStream) {
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
    let at = SocketAddr::from(([127, 0, 0, 1], 80));
    let listener = pod.tcp_socket(OwnerId(1), Family::V4).expect("a socket");
    listener.bind(at).expect("bound");
    listener.listen(1).expect("listening");
    let client = pod.tcp_socket(OwnerId(2), Family::V4).expect("a socket");
    client.connect(at).await.expect("connected");
    let server = listener.accept().await.expect("accepted");
    // The pod would end with its node.
    std::mem::forget(node);
    (client.into_stream(), server.into_stream())
}

/// A pod of the usual size that runs: an init container that is done, a sidecar, three containers.
fn plans(times: usize) {
    let running = ContainerState::Running { startup: Startup::Started, health: Health::Healthy };
    let container = |name: &str, role, state| ContainerView {
        name: name.to_owned(),
        role,
        restart: RestartRules { policy: RestartPolicy::Always, rules: Vec::new() },
        state,
        back_off: None,
        hold_until: None,
        post_start: PostStart::Done,
    };
    let done = ContainerState::Exited { exit_code: 0, sandbox: wasilet::pod::plan::RanIn::Current };
    let view = PodView {
        phase: Phase::Syncing,
        restart_policy: RestartPolicy::Always,
        sandbox: Sandbox::Ready,
        init: vec![container("init", Role::Init, done), container("proxy", Role::Sidecar, running)],
        main: ["one", "two", "three"].map(|name| container(name, Role::Main, running)).to_vec(),
        ephemeral: Vec::new(),
        restarting_all: false,
        deadline: None,
        now: jiff::Timestamp::UNIX_EPOCH + Duration::from_secs(1000),
    };
    for _ in 0..times {
        assert!(black_box(plan(black_box(&view))).actions.is_empty());
    }
}
