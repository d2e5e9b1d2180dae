//! Checks of TCP's addresses: binding, listening, connecting, who is who, and what must be refused.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use guest_support::check::{Checks, Step, ensure, equal};

use crate::poll::{Interest, poll, readable};

/// Connections that wait in a backlog before anyone accepts.
const WAITING: usize = 32;
/// Connections open at once.
const MANY: usize = 200;

/// Both ends of a connection over `address`: who dialed, who accepted.
pub fn pair(address: IpAddr) -> Result<(TcpStream, TcpStream), String> {
    let listener = TcpListener::bind((address, 0)).step("bind")?;
    let client = TcpStream::connect(listener.local_addr().step("local_addr")?).step("connect")?;
    let (server, _) = listener.accept().step("accept")?;
    Ok((client, server))
}

/// The error kind of a call that must fail.
pub fn kind<T>(what: &str, result: std::io::Result<T>, expected: &[ErrorKind]) -> Result<(), String> {
    match result {
        Ok(_) => Err(format!("{what} succeeded, expected {expected:?}")),
        Err(error) if expected.contains(&error.kind()) => Ok(()),
        Err(error) => Err(format!("{what} failed with {error} ({:?}), expected {expected:?}", error.kind())),
    }
}

pub fn run(checks: &mut Checks, address: IpAddr) {
    let listen = || TcpListener::bind((address, 0)).step("bind");
    checks.check(&format!("tcp {address}: connect, accept, and bytes both ways"), || {
        let (mut client, mut server) = pair(address)?;
        client.write_all(b"ping").step("write")?;
        let mut buffer = [0; 4];
        server.read_exact(&mut buffer).step("read")?;
        equal("what arrived", &buffer, b"ping")?;
        server.write_all(b"pong").step("write back")?;
        client.read_exact(&mut buffer).step("read back")?;
        equal("what came back", &buffer, b"pong")
    });
    checks.check(&format!("tcp {address}: both ends agree on their addresses"), || {
        let listener = listen()?;
        let bound = listener.local_addr().step("local_addr")?;
        ensure(bound.ip() == address && bound.port() != 0, || format!("bound to {bound}"))?;
        let client = TcpStream::connect(bound).step("connect")?;
        let (server, peer) = listener.accept().step("accept")?;
        let local = client.local_addr().step("local_addr of client")?;
        equal("the peer accept told", peer, local)?;
        equal("the server's peer", server.peer_addr().step("peer_addr")?, local)?;
        equal("the server's own", server.local_addr().step("local_addr of server")?, bound)?;
        equal("the client's peer", client.peer_addr().step("peer_addr of client")?, bound)?;
        ensure(local.ip() == address && local.port() != bound.port(), || format!("the client is {local}"))
    });
    checks.check(&format!("tcp {address}: ephemeral ports are all different"), || {
        let listeners: Vec<_> = (0..50).map(|_| listen()).collect::<Result<_, _>>()?;
        let ports: BTreeSet<_> =
            listeners.iter().filter_map(|one| one.local_addr().ok()).map(|one| one.port()).collect();
        equal("different ports", ports.len(), 50)
    });
    checks.check(&format!("tcp {address}: a port in use is EADDRINUSE, and free again when closed"), || {
        let first = listen()?;
        let bound = first.local_addr().step("local_addr")?;
        kind("a second bind", TcpListener::bind(bound), &[ErrorKind::AddrInUse])?;
        let any = if address.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
        kind("a bind of all addresses", TcpListener::bind((any, bound.port())), &[ErrorKind::AddrInUse])?;
        drop(first);
        TcpListener::bind(bound).step("bind after close").map(drop)
    });
    checks.check(&format!("tcp {address}: nobody listening is ECONNREFUSED"), || {
        let free = listen()?.local_addr().step("local_addr")?;
        kind("connect", TcpStream::connect(free), &[ErrorKind::ConnectionRefused])
    });
    checks.check(&format!("tcp {address}: who listens on all addresses is reached on this one"), || {
        let any = if address.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
        let listener = TcpListener::bind((any, 0)).step("bind")?;
        let port = listener.local_addr().step("local_addr")?.port();
        let _client = TcpStream::connect((address, port)).step("connect")?;
        let (server, _) = listener.accept().step("accept")?;
        equal("the accepted end's address", server.local_addr().step("local_addr")?, SocketAddr::new(address, port))
    });
    backlog(checks, address);
    waiting(checks, address);
}

fn backlog(checks: &mut Checks, address: IpAddr) {
    checks.check(&format!("tcp {address}: {WAITING} connections wait until they are accepted, in order"), || {
        let listener = TcpListener::bind((address, 0)).step("bind")?;
        let bound = listener.local_addr().step("local_addr")?;
        let mut clients = Vec::new();
        for number in 0..WAITING {
            let mut client = TcpStream::connect(bound).step("connect")?;
            client.write_all(&[number as u8]).step("write before accept")?;
            clients.push(client);
        }
        for number in 0..WAITING {
            let (mut server, _) = listener.accept().step("accept")?;
            let mut buffer = [0];
            server.read_exact(&mut buffer).step("read")?;
            equal("the connection", usize::from(buffer[0]), number)?;
        }
        Ok(())
    });
    checks.check(&format!("tcp {address}: {MANY} connections at once"), || {
        let listener = TcpListener::bind((address, 0)).step("bind")?;
        let bound = listener.local_addr().step("local_addr")?;
        let mut open = Vec::new();
        for _ in 0..MANY {
            let client = TcpStream::connect(bound).step("connect")?;
            open.push((client, listener.accept().step("accept")?.0));
        }
        for (client, server) in &mut open {
            client.write_all(b"x").step("write")?;
            server.read_exact(&mut [0]).step("read")?;
        }
        Ok(())
    });
}

fn waiting(checks: &mut Checks, address: IpAddr) {
    const SHORT: Duration = Duration::from_millis(50);
    checks.check(&format!("tcp {address}: what does not wait says EWOULDBLOCK"), || {
        let listener = TcpListener::bind((address, 0)).step("bind")?;
        listener.set_nonblocking(true).step("set_nonblocking")?;
        kind("accept", listener.accept(), &[ErrorKind::WouldBlock])?;
        let (mut client, _server) = pair(address)?;
        client.set_nonblocking(true).step("set_nonblocking")?;
        kind("read", client.read(&mut [0]), &[ErrorKind::WouldBlock])?;
        client.set_nonblocking(false).step("set_blocking")
    });
    checks.check(&format!("tcp {address}: poll waits its time when nothing happens"), || {
        let listener = TcpListener::bind((address, 0)).step("bind")?;
        let (client, _server) = pair(address)?;
        let begin = Instant::now();
        let ready = poll(&[(&listener, Interest::Read), (&client, Interest::Read)], Some(SHORT)).step("poll")?;
        equal("ready ones", ready.iter().filter(|one| one.any()).count(), 0)?;
        ensure(begin.elapsed() >= SHORT, || format!("it came back after {:?}", begin.elapsed()))
    });
    checks.check(&format!("tcp {address}: poll sees connections, data, room to write, and the end"), || {
        let listener = TcpListener::bind((address, 0)).step("bind")?;
        let mut client = TcpStream::connect(listener.local_addr().step("local_addr")?).step("connect")?;
        readable(&listener, Duration::from_secs(5))?;
        let (mut server, _) = listener.accept().step("accept")?;
        let write = poll(&[(&server, Interest::Write)], Some(Duration::from_secs(5))).step("poll")?[0].write;
        equal("an idle connection's room to write", write, true)?;
        client.write_all(b"x").step("write")?;
        readable(&server, Duration::from_secs(5))?;
        server.read_exact(&mut [0]).step("read")?;
        drop(client);
        readable(&server, Duration::from_secs(5))?;
        equal("read at the end", server.read(&mut [0]).step("read")?, 0)
    });
    checks.check(&format!("tcp {address}: options keep what they are set to"), || {
        let (client, _server) = pair(address)?;
        client.set_nodelay(true).step("set_nodelay")?;
        equal("nodelay", client.nodelay().step("nodelay")?, true)?;
        if address.is_ipv4() {
            client.set_ttl(33).step("set_ttl")?;
            equal("ttl", client.ttl().step("ttl")?, 33)?;
        }
        equal("a pending error", client.take_error().step("take_error")?.is_none(), true)
    });
}
