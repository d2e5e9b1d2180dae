//! Limits: sockets, buffers, backlog, charges, and how little an idle pod costs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::*;

/// A node that keeps which limits its pods hit, by the pod's name.
fn telling_node(change: impl FnOnce(&mut NodeNetworkConfig)) -> (Arc<NodeNetwork>, Arc<Mutex<Vec<(String, Refusal)>>>) {
    let (node, heard) = (node(change), Arc::new(Mutex::new(Vec::new())));
    let hits = heard.clone();
    node.tell_limits(Box::new(move |hit| hits.lock().push((hit.pod.name.clone(), hit.refusal))));
    (node, heard)
}

fn taken(heard: &Mutex<Vec<(String, Refusal)>>) -> Vec<(String, Refusal)> {
    std::mem::take(&mut *heard.lock())
}

#[tokio::test(start_paused = true)]
async fn every_limit_that_a_pod_hits_is_named_and_no_more_than_once_a_minute() {
    let (node, heard) = telling_node(|config| {
        config.limits = PodLimits { sockets: 12, buffer_bytes: 100_000, backlog: 1 };
    });
    let one = pod(&node, "one");
    let of_one = |refusal| vec![("one".to_owned(), refusal)];

    let (listening, at) = listener(&one, "127.0.0.1:80");
    let clients: Vec<_> = (0..3).map(|_| tcp(&one)).collect();
    for client in &clients {
        let _ = client.start_connect(at);
    }
    assert_eq!(taken(&heard), of_one(Refusal::Connection { listener: at, backlog: 2 }), "the third waits");
    let servers = [listening.try_accept().expect("accepted"), listening.try_accept().expect("accepted")];

    let held: Vec<_> = (0..6).map(|_| udp(&one)).collect();
    assert_eq!(taken(&heard), []);
    for _ in 0..100 {
        assert_eq!(one.udp_socket(OWNER, Family::V4).err(), Some(Errno::MFile));
    }
    assert_eq!(taken(&heard), of_one(Refusal::Socket { limit: 12 }));
    tokio::time::advance(Duration::from_secs(61)).await;
    assert_eq!(listening.try_accept().err(), Some(Errno::MFile));
    assert_eq!(taken(&heard), of_one(Refusal::Socket { limit: 12 }), "an accept needs one too");
    drop(held);

    assert_eq!(clients[0].try_write(&[0; 200_000]), Ok(65_536));
    assert_eq!(servers[0].try_write(&[0; 200_000]), Ok(65_536));
    assert_eq!(taken(&heard), [], "all was taken");
    assert_eq!(clients[1].try_write(&[0; 200_000]), Ok(4096));
    assert_eq!(taken(&heard), of_one(Refusal::Buffer { limit: 100_000 }));
    let (sender, receiver) = (udp(&one), udp(&one));
    receiver.bind(addr("127.0.0.1:9")).expect("bound");
    tokio::time::advance(Duration::from_secs(61)).await;
    assert_eq!(sender.try_send_to(b"x", Some(addr("127.0.0.1:9"))), Ok(1));
    assert_eq!(receiver.try_recv().err(), Some(Errno::Again), "dropped");
    assert_eq!(taken(&heard), of_one(Refusal::Buffer { limit: 100_000 }));

    let other = pod(&node, "two");
    let (client, server) = pair(&other).await;
    assert_eq!(client.try_write(b"x"), Ok(1));
    drop(server);
    assert_eq!(taken(&heard), [], "another pod has limits of its own");
}

#[tokio::test]
async fn a_container_without_memory_for_its_sockets_and_a_node_without_files_are_named() {
    let (node, heard) =
        telling_node(|config| config.descriptors = crate::descriptors::NodeDescriptors::of_limit(Some(100)));
    let one = pod(&node, "one");
    one.add_owner(OwnerId(7), Arc::new(Budget(AtomicU64::new(0), 1000)));
    let (listening, at) = listener(&one, "127.0.0.1:0");
    let client = one.tcp_socket(OwnerId(7), Family::V4).expect("a socket");
    client.connect(at).await.expect("connected");
    assert_eq!(client.try_write(&[1; 60_000]), Err(Errno::NoMem));
    let _files: Vec<_> = std::iter::from_fn(|| one.descriptors().take().ok()).collect();
    assert_eq!(one.tcp_socket(OWNER, Family::V4).err(), Some(Errno::MFile));
    let two = pod(&node, "two");
    let _more: Vec<_> = std::iter::from_fn(|| two.descriptors().take().ok()).collect();
    assert_eq!(two.tcp_socket(OWNER, Family::V4).err(), Some(Errno::NFile));
    drop(listening);
    let expected = [("one", Refusal::Memory), ("one", Refusal::PodFiles), ("two", Refusal::NodeFiles)]
        .map(|(pod, refusal)| (pod.to_owned(), refusal));
    assert_eq!(taken(&heard), expected);
}

#[tokio::test]
async fn a_pod_at_its_socket_limit_gets_emfile_until_one_is_closed() {
    let node = node(|config| config.limits.sockets = 3);
    let one = pod(&node, "one");
    let (listener, at) = listener(&one, "127.0.0.1:0");
    let (client, third) = (tcp(&one), udp(&one));
    assert_eq!(one.tcp_socket(OWNER, Family::V4).err(), Some(Errno::MFile));
    client.connect(at).await.expect("queued");
    assert_eq!(listener.try_accept().err(), Some(Errno::MFile));
    drop(third);
    assert!(listener.try_accept().is_ok(), "the connection had stayed in the queue");
}

#[tokio::test]
async fn sockets_share_the_pods_open_files_with_its_programs() {
    // 75 for all pods, 64 for each.
    let node = node(|config| config.descriptors = crate::descriptors::NodeDescriptors::of_limit(Some(100)));
    let (one, two) = (pod(&node, "one"), pod(&node, "two"));
    let files: Vec<_> = (0..60).map(|_| one.descriptors().take().expect("a file")).collect();
    let sockets: Vec<_> = (0..4).map(|_| tcp(&one)).collect();
    assert_eq!(one.udp_socket(OWNER, Family::V4).err(), Some(Errno::MFile));
    let others: Vec<_> = (0..11).map(|_| udp(&two)).collect();
    assert_eq!(two.tcp_socket(OWNER, Family::V4).err(), Some(Errno::NFile));
    drop(sockets);
    assert!(two.tcp_socket(OWNER, Family::V4).is_ok());
    drop((files, others));
    assert_eq!((one.descriptors().used(), two.descriptors().used()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_full_backlog_holds_connects_until_one_is_accepted_or_they_time_out() {
    let node = node(|_| {});
    let one = pod(&node, "one");
    let listener = tcp(&one);
    listener.bind(addr("127.0.0.1:80")).expect("bound");
    listener.listen(1).expect("listening");
    let clients: Vec<_> = (0..4).map(|_| tcp(&one)).collect();
    let outcomes: Vec<_> = clients.iter().map(|client| client.start_connect(addr("127.0.0.1:80"))).collect();
    let waiting = Err(Errno::InProgress);
    assert_eq!(outcomes, [Ok(()), Ok(()), waiting, waiting]);
    assert_eq!(clients[2].try_finish_connect(), Err(Errno::Again));
    assert_eq!(clients[2].start_connect(addr("127.0.0.1:80")), Err(Errno::Already));
    assert_eq!(clients[2].try_read(&mut [0; 1]), Err(Errno::Again));
    let wait = tokio::spawn({
        let client = clients[2].clone();
        async move { client.writable().await }
    });
    tokio::task::yield_now().await;
    assert!(!wait.is_finished());
    drop(listener.try_accept().expect("accepted"));
    wait.await.expect("woken");
    assert_eq!(clients[2].try_finish_connect(), Ok(()));
    let before = tokio::time::Instant::now();
    clients[3].writable().await;
    assert_eq!(clients[3].try_finish_connect(), Err(Errno::TimedOut));
    assert!(before.elapsed() >= Duration::from_secs(120));
    assert_eq!(clients[3].start_connect(addr("127.0.0.1:80")), waiting, "a failed connect can be tried again");
    listener.close();
    assert_eq!(clients[3].try_finish_connect(), Err(Errno::ConnRefused));
    assert_eq!(clients[0].try_read(&mut [0; 1]).err(), None, "an accepted and dropped one ended in order");
    assert_eq!(clients[1].try_read(&mut [0; 1]), Err(Errno::ConnReset), "a queued one was reset");
}

/// A container that has so many bytes.
struct Budget(AtomicU64, u64);

impl SocketCharge for Budget {
    fn charge(&self, bytes: u64) -> Result<(), Errno> {
        let fits = |used: u64| (used + bytes <= self.1).then_some(used + bytes);
        self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fits).map(|_| ()).map_err(|_| Errno::NoMem)
    }

    fn release(&self, bytes: u64) {
        self.0.fetch_sub(bytes, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn the_writer_is_charged_and_gets_everything_back() {
    let node = node(|_| {});
    let one = pod(&node, "one");
    let budget = Arc::new(Budget(AtomicU64::new(0), 100_000));
    one.add_owner(OwnerId(7), budget.clone());
    let (listener, at) = listener(&one, "127.0.0.1:0");
    let client = one.tcp_socket(OwnerId(7), Family::V4).expect("a socket");
    client.connect(at).await.expect("connected");
    let server = listener.accept().await.expect("accepted");
    assert_eq!(client.try_write(&[1; 60_000]), Ok(60_000));
    assert_eq!(client.try_write(&[1; 60_000]), Err(Errno::NoMem));
    assert_eq!(server.try_write(&[1; 60_000]), Ok(60_000), "the other side pays for itself");
    assert_eq!(server.try_read(&mut [0; 65_536]), Ok(60_000));
    assert_eq!(budget.0.load(Ordering::SeqCst), 0);
    assert_eq!(client.try_write(&[1; 60_000]), Ok(60_000));
    let datagrams = one.udp_socket(OwnerId(7), Family::V4).expect("a socket");
    datagrams.bind(addr("127.0.0.1:9")).expect("bound");
    assert_eq!(datagrams.try_send_to(&[2; 60_000], Some(addr("127.0.0.1:9"))), Ok(60_000), "dropped, as UDP may");
    assert_eq!(datagrams.try_recv().err(), Some(Errno::Again));
    assert_eq!(datagrams.try_send_to(&[2; 100], Some(addr("127.0.0.1:9"))), Ok(100));
    drop((client, server, datagrams));
    assert_eq!(budget.0.load(Ordering::SeqCst), 0);
    assert_eq!(one.buffered(), 0);
}

#[tokio::test]
async fn a_pod_over_its_buffer_limit_keeps_moving_bytes() {
    let node = node(|config| config.limits.buffer_bytes = 100_000);
    let one = pod(&node, "one");
    let pairs = [pair(&one).await, pair(&one).await];
    assert_eq!(pairs[0].0.try_write(&[0; 200_000]), Ok(65_536));
    assert_eq!(pairs[0].0.try_write(&[0; 200_000]), Ok(65_536));
    assert_eq!(pairs[0].0.try_write(&[0; 200_000]), Err(Errno::Again));
    assert_eq!(pairs[1].0.try_write(&[0; 200_000]), Ok(4096), "the rest of the pod still has its small windows");
    assert_eq!(pairs[1].0.try_write(&[0; 200_000]), Err(Errno::Again));
    assert_eq!(read(&pairs[1].1, 65_536).await.map(|data| data.len()), Ok(4096));
    assert_eq!(pairs[1].0.try_write(&[0; 1]), Ok(1));
}

/// Set for the copy of this test that runs alone.
const ALONE: &str = "WASILET_TEST_MEASURES_ALONE";

#[tokio::test]
async fn an_idle_pod_costs_less_than_three_kibibytes() {
    assert!(std::mem::size_of::<PodNetwork>() < 1024, "{} bytes", std::mem::size_of::<PodNetwork>());
    assert!(std::mem::size_of::<TcpSocket>() < 512, "{} bytes", std::mem::size_of::<TcpSocket>());
    if std::env::var_os(ALONE).is_none() {
        // In a process of its own: other tests allocate meanwhile.
        let name = "network::tests::limits::an_idle_pod_costs_less_than_three_kibibytes";
        let mut command = std::process::Command::new(std::env::current_exe().expect("this binary"));
        let output = command.args(["--exact", name, "--nocapture"]).env(ALONE, "1").output().expect("a copy");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    let node = node(|config| config.mode = AddressMode::Loopback { range: "127.32.0.0/16".parse().expect("a range") });
    let rss = || {
        let statm = std::fs::read_to_string("/proc/self/statm").expect("statm");
        statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("pages") * 4096
    };
    let before = rss();
    let pods: Vec<_> = (0..4000).map(|n| pod(&node, &format!("pod-{n}"))).collect();
    let each = rss().saturating_sub(before) / pods.len() as u64;
    eprintln!("{each} bytes a pod");
    assert!(each < 3072, "{each} bytes a pod");
    let ips: std::collections::HashSet<_> = pods.iter().flat_map(|pod| pod.ips()).collect();
    assert_eq!(ips.len(), pods.len());
}

#[tokio::test]
async fn peers_that_reset_stall_and_flood_hurt_only_themselves() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let node = node(|config| config.limits.buffer_bytes = 1 << 20);
    let (server, flooder) = (pod(&node, "server"), pod(&node, "flooder"));
    let (listening, _) = listener(&server, "0.0.0.0:7050");
    let at = server.listeners()[0].node.expect("it is reachable");
    // It echoes, each connection for itself.
    let serving = tokio::spawn(async move {
        while let Ok(accepted) = listening.accept().await {
            tokio::spawn(async move {
                let (mut reader, mut writer) = tokio::io::split(accepted.into_stream());
                drop(tokio::io::copy(&mut reader, &mut writer).await);
            });
        }
    });
    for _ in 0..64 {
        let reset = tokio::net::TcpStream::connect(at).await.expect("connected");
        reset.set_zero_linger().expect("an option");
    }
    // Half open: connected, and never a word.
    let silent: Vec<_> = futures::future::join_all((0..64).map(|_| tokio::net::TcpStream::connect(at))).await;
    // Writes for as long as anything is taken, and reads nothing of what comes back.
    let mut stalled = tokio::net::TcpStream::connect(at).await.expect("connected");
    let chunk = vec![b'x'; 64 << 10];
    let full = async { while stalled.write_all(&chunk).await.is_ok() {} };
    assert!(tokio::time::timeout(std::time::Duration::from_millis(300), full).await.is_err(), "it is held back");
    // A pod that floods another with datagrams nobody reads pays for them itself, up to its limit.
    let deaf = udp(&server);
    deaf.bind(addr("0.0.0.0:7051")).expect("bound");
    let flood = udp(&flooder);
    for _ in 0..2000 {
        flood.try_send_to(&[0; 8192], Some(SocketAddr::new(server.ips()[0], 7051))).expect("dropped or queued");
    }
    assert!(flooder.buffered() <= 2 << 20, "{}", flooder.buffered());
    assert!(server.buffered() <= 2 << 20, "{}", server.buffered());
    // Who behaves is served.
    let mut good = tokio::net::TcpStream::connect(at).await.expect("connected");
    good.write_all(b"hello").await.expect("taken");
    let mut answer = [0; 5];
    good.read_exact(&mut answer).await.expect("answered");
    assert_eq!(&answer, b"hello");
    assert!(silent.iter().all(Result::is_ok));
    serving.abort();
}
