//! The two sides of a check between containers: an echo server for TCP and UDP, and a client that judges it.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use guest_support::check::{Checks, Step, ensure, equal};

use crate::poll::{Interest, poll, readable};

const CHUNK: usize = 65_536;
const PATIENCE: Duration = Duration::from_secs(10);
/// What the dialing side sends, more than all buffers on the way hold.
const PAYLOAD: usize = 8 * 1024 * 1024;

/// A connection being echoed: what was read and is not yet written back. It is read only when that is empty, so that
/// a peer that does not read is held up rather than buffered.
struct Echo {
    stream: TcpStream,
    pending: Vec<u8>,
    ended: bool,
}

/// Where one family is listened for: a socket of WASI 0.2 is never of both.
struct Door {
    listener: TcpListener,
    datagrams: UdpSocket,
}

impl Door {
    fn open(any: IpAddr, port: u16) -> io::Result<Self> {
        let door = Self { listener: TcpListener::bind((any, port))?, datagrams: UdpSocket::bind((any, port))? };
        door.listener.set_nonblocking(true)?;
        door.datagrams.set_nonblocking(true)?;
        Ok(door)
    }
}

/// Echoes on `port` of all addresses until the process is ended.
pub fn serve(port: u16) -> io::Result<()> {
    let doors = [Door::open(Ipv4Addr::UNSPECIFIED.into(), port)?, Door::open(Ipv6Addr::UNSPECIFIED.into(), port)?];
    println!("net-check: echoing on port {port}");
    let mut connections: Vec<Echo> = Vec::new();
    loop {
        let mut sockets: Vec<(&dyn AsRawFd, Interest)> = Vec::new();
        for door in &doors {
            sockets.push((&door.listener, Interest::Read));
            sockets.push((&door.datagrams, Interest::Read));
        }
        for one in &connections {
            sockets.push((&one.stream, if one.pending.is_empty() { Interest::Read } else { Interest::Write }));
        }
        let ready = poll(&sockets, None)?;
        drop(sockets);
        let (ready_doors, ready_connections) = ready.split_at(2 * doors.len());
        let mut ready_connections = ready_connections.iter();
        // A failing connection is its peer's affair.
        connections.retain_mut(|one| {
            !ready_connections.next().is_some_and(|ready| ready.any()) || one.step().unwrap_or(false)
        });
        for (door, ready) in doors.iter().zip(ready_doors.chunks(2)) {
            if ready[1].read {
                let mut buffer = vec![0; CHUNK];
                if let Ok((length, from)) = door.datagrams.recv_from(&mut buffer) {
                    let _ = door.datagrams.send_to(&buffer[..length], from);
                }
            }
            if ready[0].read
                && let Ok((stream, peer)) = door.listener.accept()
            {
                println!("net-check: {peer} connected");
                stream.set_nonblocking(true)?;
                connections.push(Echo { stream, pending: Vec::new(), ended: false });
            }
        }
    }
}

impl Echo {
    /// Moves what can be moved. Whether the connection goes on.
    fn step(&mut self) -> io::Result<bool> {
        if self.pending.is_empty() {
            let mut buffer = vec![0; CHUNK];
            match self.stream.read(&mut buffer) {
                Ok(0) => self.ended = true,
                Ok(count) => self.pending.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(error) => return Err(error),
            }
        }
        match self.stream.write(&self.pending) {
            Ok(count) => drop(self.pending.drain(..count)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        if self.ended {
            self.stream.shutdown(Shutdown::Write)?;
        }
        Ok(!self.ended)
    }
}

/// Checks against an echo server.
pub fn dial(checks: &mut Checks, host: &str, port: u16) {
    let connect = || TcpStream::connect((host, port)).step("connect");
    checks.check(&format!("dial {host}:{port}: connect and hear an echo"), || {
        let mut stream = connect()?;
        let (local, peer) = (stream.local_addr().step("local_addr")?, stream.peer_addr().step("peer_addr")?);
        println!("     from {local} to {peer}");
        stream.write_all(b"hello").step("write")?;
        let mut buffer = [0; 5];
        stream.read_exact(&mut buffer).step("read")?;
        equal("the echo", &buffer, b"hello")
    });
    checks.check(&format!("dial {host}:{port}: {PAYLOAD} bytes come back whole, then the end"), || {
        let stream = connect()?;
        let sent: Vec<u8> = (0..PAYLOAD).map(|at| (at % 241) as u8).collect();
        let received = exchange(&stream, &sent)?;
        ensure(received == sent, || format!("{} of {PAYLOAD} bytes came back, or not the same", received.len()))
    });
    checks.check(&format!("dial {host}:{port}: a datagram comes back"), || {
        // Of the family that the connections above found.
        let v6 = connect()?.peer_addr().step("peer_addr")?.is_ipv6();
        let any: IpAddr = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0)).step("bind")?;
        socket.connect((host, port)).step("connect")?;
        socket.send(b"datagram").step("send")?;
        readable(&socket, PATIENCE)?;
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer).step("recv")?;
        equal("the echo", &buffer[..length], b"datagram")
    });
}

/// Sends all of `sent`, finishes, and gives what came back until the other side finished too.
fn exchange(mut stream: &TcpStream, sent: &[u8]) -> Result<Vec<u8>, String> {
    stream.set_nonblocking(true).step("set_nonblocking")?;
    let (mut written, mut received) = (0, Vec::with_capacity(sent.len()));
    let mut buffer = vec![0; CHUNK];
    loop {
        let interest = if written < sent.len() { Interest::Both } else { Interest::Read };
        let ready = poll(&[(stream, interest)], Some(PATIENCE)).step("poll")?[0];
        ensure(ready.any(), || format!("stalled after {written} sent, {} received", received.len()))?;
        if ready.write && written < sent.len() {
            match stream.write(&sent[written..(written + CHUNK).min(sent.len())]) {
                Ok(count) => written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(format!("write: {error}")),
            }
            if written == sent.len() {
                stream.shutdown(Shutdown::Write).step("shutdown")?;
            }
        }
        if ready.read {
            match stream.read(&mut buffer) {
                Ok(0) => return Ok(received),
                Ok(count) => received.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(format!("read: {error}")),
            }
        }
    }
}
