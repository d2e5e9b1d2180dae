//! Any sequence of socket calls on a pod's loopback: no panic, no hang, bytes in order, and readiness that tells the
//! truth: what is said to be ready does not answer EAGAIN, what is said not to be does.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use wasilet::errno::Errno;
use wasilet::ids::{PodRef, PodUid};
use wasilet::network::{
    Family, NodeNetwork, NodeNetworkConfig, OwnerId, PodLimits, PodNetwork, PodNetworkSpec, Shutdown, TcpOption,
    TcpSocket, TcpState, UdpOption, UdpSocket,
};
use wasilet::pod::run::{DnsConfig, NetworkMode};

/// Few places, so that calls meet.
const SLOTS: usize = 8;
const OWNERS: u64 = 2;

#[test]
fn sockets() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let _entered = runtime.enter();
    let limits = PodLimits { sockets: 12, buffer_bytes: 64 * 1024, backlog: 2 };
    let config = NodeNetworkConfig { quarantine: Duration::ZERO, limits, ..NodeNetworkConfig::default() };
    // A panic ends the run: nobody looks at what it left behind.
    let node = std::panic::AssertUnwindSafe(NodeNetwork::new(config).expect("a node network"));
    let uid = PodUid::new("fuzz").expect("a UID");
    // Long enough for sockets to meet: a call takes two to five bytes, and bolero's own random inputs end at 64.
    let inputs = bolero::produce::<Vec<u8>>().with().len(0usize..=2048);
    bolero::check!().with_generator(inputs).for_each(|bytes: &Vec<u8>| {
        // What a failure left, when its input is being shrunk.
        node.remove_pod(&uid);
        let spec = PodNetworkSpec {
            uid: uid.clone(),
            pod: PodRef { namespace: "default".to_owned(), name: "fuzz".to_owned() },
            names: vec!["fuzz".to_owned()],
            mode: NetworkMode::Pod,
            ips: Vec::new(),
            dns: DnsConfig::default(),
            host_aliases: Vec::new(),
            host_ports: Vec::new(),
        };
        let mut world = World::new(node.add_pod(spec).expect("a pod network"));
        world.begin();
        let mut input = Input(bytes);
        while !input.0.is_empty() {
            world.step(&mut input);
        }
        world.drain();
        let pod = world.pod.clone();
        drop(world);
        assert!((0..OWNERS).all(|owner| !pod.has_sockets(OwnerId(owner))), "a socket outlived its last handle");
        assert!(pod.listeners().is_empty());
        node.remove_pod(&uid);
        assert_eq!(pod.tcp_socket(OwnerId(0), Family::V4).err(), Some(Errno::NetUnreach));
    });
}

/// The fuzzer's bytes, zero when they are used up.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> usize {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        usize::from(*first)
    }

    /// Mostly small, sometimes larger than a chunk.
    fn size(&mut self) -> usize {
        match self.byte() {
            n @ 0..=127 => n,
            n @ 128..=223 => (n - 128) * 100,
            n => (n - 223) * 5000,
        }
    }

    fn address(&mut self) -> SocketAddr {
        let port = [80, 80, 81, 0][self.byte() % 4];
        match self.byte() % 16 {
            0..=11 => SocketAddr::from(([127, 0, 0, 1], port)),
            12 => SocketAddr::from(([127, 0, 0, 2], port)),
            13 => SocketAddr::from(([0; 16], port)),
            14 => SocketAddr::new("::ffff:127.0.0.1".parse().expect("an address"), port),
            _ => SocketAddr::new("::1".parse().expect("an address"), port),
        }
    }
}

struct World {
    pod: Arc<PodNetwork>,
    tcp: Vec<Option<Tcp>>,
    udp: Vec<Option<Arc<UdpSocket>>>,
    /// What each direction of a known connection carried and gave: by writer's and reader's number.
    streams: HashMap<(u32, u32), Stream>,
    next: u32,
    /// Connections that were made and not accepted yet, by the client's address and the server's. In process no port rests
    /// in TIME_WAIT: a client that left can have a successor with the same pair of addresses while its own connection, with
    /// its bytes, is still in the listener's queue.
    queued: HashMap<(SocketAddr, SocketAddr), u32>,
    /// Clients whose connection is counted there.
    counted: HashSet<u32>,
}

#[derive(Clone)]
struct Tcp {
    socket: Arc<TcpSocket>,
    number: u32,
    peer: Option<u32>,
}

#[derive(Default)]
struct Stream {
    written: u64,
    read: u64,
}

/// An IPv4-mapped address as the IPv4 one it means.
fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// The byte at a place of any stream.
fn at(place: u64) -> u8 {
    (place ^ (place >> 8)) as u8
}

impl World {
    fn new(pod: Arc<PodNetwork>) -> Self {
        Self {
            pod,
            tcp: vec![None; SLOTS],
            udp: vec![None; SLOTS],
            streams: HashMap::new(),
            next: 0,
            queued: HashMap::new(),
            counted: HashSet::new(),
        }
    }

    /// A listener, a client of it, and the accepted end, so that short inputs find something to do.
    fn begin(&mut self) {
        let at = SocketAddr::from(([127, 0, 0, 1], 80));
        for slot in 0..2 {
            self.make_tcp(slot, &mut Input(&[1]));
        }
        let (Some(listener), Some(client)) = (self.tcp[0].clone(), self.tcp[1].clone()) else { return };
        listener.socket.bind(at).expect("bound");
        listener.socket.listen(2).expect("listening");
        client.socket.start_connect(at).expect("connected");
        self.count(&client);
        self.accept(&listener, 1, &mut Input(&[]));
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let slot = input.byte() % SLOTS;
        match input.byte() % 24 {
            0 | 1 => self.make_tcp(slot, input),
            2 | 3 => self.make_udp(slot, input),
            4..=19 => self.step_tcp(slot, input),
            20..=22 => self.step_udp(slot, input),
            _ => match input.byte() % 16 {
                0 => self.pod.remove_owner(OwnerId(0)),
                1 => self.pod.stop_accepting(OwnerId(1)),
                _ => drop(self.pod.listeners()),
            },
        }
    }

    fn numbered(&mut self, socket: Arc<TcpSocket>) -> Tcp {
        self.next += 1;
        Tcp { socket, number: self.next, peer: None }
    }

    fn make_tcp(&mut self, slot: usize, input: &mut Input<'_>) {
        let family = if input.byte() % 8 == 0 { Family::V6 } else { Family::V4 };
        match self.pod.tcp_socket(OwnerId(slot as u64 % OWNERS), family) {
            Ok(socket) => self.tcp[slot] = Some(self.numbered(socket)),
            Err(errno) => assert_eq!(errno, Errno::MFile),
        }
    }

    fn make_udp(&mut self, slot: usize, input: &mut Input<'_>) {
        let family = if input.byte() % 8 == 0 { Family::V6 } else { Family::V4 };
        match self.pod.udp_socket(OwnerId(slot as u64 % OWNERS), family) {
            Ok(socket) => self.udp[slot] = Some(socket),
            Err(errno) => assert_eq!(errno, Errno::MFile),
        }
    }

    fn step_tcp(&mut self, slot: usize, input: &mut Input<'_>) {
        let Some(tcp) = self.tcp[slot].clone() else { return };
        match input.byte() % 16 {
            0 => drop(tcp.socket.bind(input.address())),
            1 => {
                let _ = tcp.socket.bind(input.address());
                let _ = tcp.socket.listen(input.byte() as u32 % 3);
            }
            2 | 3 => drop(tcp.socket.start_connect(input.address())),
            4 => drop(tcp.socket.try_finish_connect()),
            5 | 6 => self.accept(&tcp, slot, input),
            7 | 8 => self.write(&tcp, input),
            9 | 10 => self.read(&tcp, input),
            11 => drop(tcp.socket.shutdown([Shutdown::Read, Shutdown::Write, Shutdown::Both][input.byte() % 3])),
            12 if input.byte() % 4 == 0 => tcp.socket.close(),
            13 if input.byte() % 2 == 0 => self.tcp[slot] = None,
            14 => drop(tcp.socket.set_option(match input.byte() % 5 {
                0 => TcpOption::V6Only(input.byte() % 2 == 0),
                1 => TcpOption::ReuseAddress(input.byte() % 2 == 0),
                2 => TcpOption::SendBuffer(input.size() as u64),
                3 => TcpOption::ReceiveBuffer(input.size() as u64),
                _ => TcpOption::Linger(Some(Duration::ZERO)),
            })),
            _ => drop((tcp.socket.take_error(), tcp.socket.local_addr(), tcp.socket.peer_addr())),
        }
        tells_the_truth(&tcp.socket);
        self.count(&tcp);
    }

    /// Notes a client's connection, once. An attempt makes progress only when its own socket is asked, so none is missed.
    fn count(&mut self, tcp: &Tcp) {
        let pair = tcp.socket.local_addr().ok().zip(tcp.socket.peer_addr().ok());
        if let Some((local, peer)) = pair
            && tcp.socket.state() == TcpState::Connected
            && self.counted.insert(tcp.number)
        {
            *self.queued.entry((canonical(local), canonical(peer))).or_default() += 1;
        }
    }

    fn accept(&mut self, listener: &Tcp, slot: usize, input: &mut Input<'_>) {
        let Ok(socket) = listener.socket.try_accept() else { return };
        assert_eq!(socket.state(), TcpState::Connected);
        let mut server = self.numbered(socket);
        // The client, if it is still here: the one that names the same pair of addresses from the other side, unless a
        // predecessor of it did so too.
        let pair = |socket: &TcpSocket| Some((socket.local_addr().ok()?, socket.peer_addr().ok()?));
        let mine = pair(&server.socket).map(|(local, peer)| (peer, local));
        // An accepted socket is no client.
        self.counted.insert(server.number);
        let others = mine.map(|(local, peer)| (canonical(local), canonical(peer)));
        let queued = others.and_then(|pair| self.queued.get_mut(&pair));
        let queued = queued.map_or(0, |queued| std::mem::replace(queued, queued.saturating_sub(1)));
        let twins: Vec<_> =
            self.tcp.iter_mut().flatten().filter(|tcp| mine.is_some() && pair(&tcp.socket) == mine).collect();
        if let [client] = &twins[..]
            && queued <= 1
            && client.peer.is_none()
        {
            server.peer = Some(client.number);
        }
        if let Some(number) = server.peer {
            for client in twins {
                client.peer = Some(server.number);
            }
            // What the client wrote before it had a number to write to.
            if let Some(early) = self.streams.remove(&(number, 0)) {
                self.streams.insert((number, server.number), early);
            }
        }
        let place = (slot + 1 + input.byte()) % SLOTS;
        self.tcp[place] = Some(server);
    }

    fn write(&mut self, tcp: &Tcp, input: &mut Input<'_>) {
        let stream = self.streams.entry((tcp.number, tcp.peer.unwrap_or(0))).or_default();
        let data: Vec<u8> = (0..input.size() as u64).map(|n| at(stream.written + n)).collect();
        let len = data.len();
        let result = if input.byte() % 2 == 0 {
            tcp.socket.try_write(&data)
        } else {
            let mut bytes = Bytes::from(data);
            let result = tcp.socket.try_write_bytes(&mut bytes);
            assert_eq!(len - bytes.len(), result.unwrap_or(0));
            result
        };
        if let Ok(n) = result {
            assert!(n <= len && (n > 0 || len == 0));
            stream.written += n as u64;
        }
    }

    fn read(&mut self, tcp: &Tcp, input: &mut Input<'_>) {
        let mut buffer = vec![0; input.size()];
        let data = if input.byte() % 2 == 0 {
            let Ok(n) = tcp.socket.try_read(&mut buffer) else { return };
            Bytes::copy_from_slice(&buffer[..n])
        } else {
            let Ok(bytes) = tcp.socket.try_read_bytes(buffer.len()) else { return };
            bytes
        };
        assert!(data.len() <= buffer.len());
        let Some(peer) = tcp.peer else { return };
        let Some(stream) = self.streams.get_mut(&(peer, tcp.number)) else {
            assert!(data.is_empty(), "bytes nobody wrote");
            return;
        };
        assert!(data.iter().zip(stream.read..).all(|(byte, place)| *byte == at(place)), "bytes out of order");
        stream.read += data.len() as u64;
        assert!(stream.read <= stream.written, "bytes nobody wrote");
    }

    fn step_udp(&mut self, slot: usize, input: &mut Input<'_>) {
        let Some(socket) = self.udp[slot].clone() else { return };
        match input.byte() % 10 {
            0 => drop(socket.bind(input.address())),
            1 => drop(socket.connect(input.address())),
            2 => drop(socket.disconnect()),
            3 | 4 => {
                let to = (input.byte() % 3 != 0).then(|| input.address());
                let data = vec![7; input.size()];
                assert!(socket.try_send_to(&data, to).map_or(true, |n| n == data.len()));
            }
            5 | 6 => {
                let mut buffer = vec![0; input.size()];
                if let Ok(received) = socket.try_recv_from(&mut buffer) {
                    assert!(received.len == received.datagram_len.min(buffer.len()));
                    assert!(buffer[..received.len].iter().all(|byte| *byte == 7));
                }
            }
            7 => socket.close(),
            8 => self.udp[slot] = None,
            _ => drop(socket.set_option(match input.byte() % 3 {
                0 => UdpOption::V6Only(input.byte() % 2 == 0),
                1 => UdpOption::ReuseAddress(input.byte() % 2 == 0),
                _ => UdpOption::ReceiveBuffer(input.size() as u64),
            })),
        }
        let ready = socket.readiness();
        let answer = socket.try_peek_from(&mut [0; 1]);
        assert_eq!(ready.readable, answer.err() != Some(Errno::Again), "{answer:?}");
        // Looking took the pending error, if there was one.
        assert_eq!(socket.readiness().readable, polls_ready(socket.readable()));
    }

    /// Whatever state it is in, reading and writing to the end comes to an end.
    fn drain(&mut self) {
        for tcp in self.tcp.iter().flatten() {
            let mut buffer = vec![0; 64 * 1024];
            let turns = std::iter::repeat_with(|| tcp.socket.try_read(&mut buffer));
            let read = turns.take_while(|result| result.is_ok_and(|n| n > 0)).count();
            assert!(read <= 4096, "a read that does not end");
        }
    }
}

fn polls_ready(future: impl Future<Output = ()>) -> bool {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    std::pin::pin!(future).poll(&mut context).is_ready()
}

fn tells_the_truth(socket: &TcpSocket) {
    let ready = socket.readiness();
    let state = socket.state();
    if state == TcpState::Connected {
        // Looking must not take the pending error, so only the plain answers are compared.
        let again = ready.read_bytes == 0 && !ready.readable;
        assert_eq!(polls_ready(socket.readable()), ready.readable);
        assert_eq!(polls_ready(socket.writable()), ready.writable);
        if again {
            assert_eq!(socket.try_peek(&mut [0; 1]), Err(Errno::Again));
        } else if ready.read_bytes > 0 {
            assert!(socket.try_peek(&mut [0; 1]).is_ok());
        }
        if ready.writable {
            assert_ne!(socket.write_room(), Ok(0));
        }
    } else if state == TcpState::Listening {
        assert_eq!(polls_ready(socket.readable()), ready.readable);
    } else if state == TcpState::Closed {
        assert!(matches!(socket.try_read(&mut [0; 1]), Err(Errno::BadF | Errno::ConnAborted)));
    }
}
