//! Takes what there is: bytes that nobody reads, sockets until one is refused, connections that nobody accepts.

use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};

/// Datagrams that fill a pod's 64 MiB of socket buffers, and some more.
const DATAGRAM: usize = 60_000;
const DATAGRAMS_EACH: usize = 3;
const RECEIVERS: usize = 400;

/// Hits every limit once, tells how far each went, and waits in a connect that nobody accepts.
pub fn hoard(port: u16) -> io::Result<()> {
    let any = (Ipv4Addr::LOCALHOST, 0);
    let sender = UdpSocket::bind(any)?;
    let mut held = Vec::new();
    for _ in 0..RECEIVERS {
        let receiver = UdpSocket::bind(any)?;
        for _ in 0..DATAGRAMS_EACH {
            sender.send_to(&[0; DATAGRAM], receiver.local_addr()?)?;
        }
        held.push(receiver);
    }
    println!("net-check: sent {} bytes to nobody", RECEIVERS * DATAGRAMS_EACH * DATAGRAM);
    let refused = loop {
        match UdpSocket::bind(any) {
            Ok(socket) => held.push(socket),
            Err(error) => break error,
        }
    };
    println!("net-check: made {} sockets: {refused}", held.len());
    held.clear();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    let mut queued = Vec::new();
    loop {
        queued.push(TcpStream::connect(listener.local_addr()?)?);
        println!("net-check: queued {} connections", queued.len());
    }
}
