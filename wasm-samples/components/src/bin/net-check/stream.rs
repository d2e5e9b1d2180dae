//! Checks of TCP as a stream: half-closed connections, back-pressure, large transfers, peers that leave.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use guest_support::check::{Checks, Step, ensure, equal};

use crate::poll::{Interest, poll, readable};
use crate::tcp::{kind, pair};

const MIB: usize = 1024 * 1024;
/// What one direction carries in the large transfer.
const LARGE: usize = 32 * MIB;
/// No host buffers this much for a peer that does not read.
const UNBOUNDED: usize = 256 * MIB;
const PATIENCE: Duration = Duration::from_secs(10);

pub fn run(checks: &mut Checks, address: IpAddr) {
    checks.check(&format!("tcp {address}: who dialed may finish first and still listen"), || {
        let (client, server) = pair(address)?;
        half_close(client, server)
    });
    checks.check(&format!("tcp {address}: who accepted may finish first and still listen"), || {
        let (client, server) = pair(address)?;
        half_close(server, client)
    });
    checks.check(&format!("tcp {address}: nothing can be written after the own end"), || {
        let (mut client, _server) = pair(address)?;
        client.shutdown(Shutdown::Write).step("shutdown")?;
        kind("write", client.write(b"x"), &[ErrorKind::BrokenPipe, ErrorKind::NotConnected])
    });
    checks.check(&format!("tcp {address}: what was sent before the end arrives, then the end"), || {
        let (mut client, mut server) = pair(address)?;
        client.write_all(&vec![7; 50_000]).step("write")?;
        drop(client);
        let mut all = Vec::new();
        server.read_to_end(&mut all).step("read")?;
        equal("bytes", all.len(), 50_000)
    });
    checks.check(&format!("tcp {address}: writing to a peer that left fails soon"), || {
        let (client, mut server) = pair(address)?;
        drop(client);
        for _ in 0..1000 {
            match server.write(&[0; 4096]) {
                Ok(_) => std::thread::sleep(Duration::from_millis(1)),
                result => {
                    return kind(
                        "write",
                        result,
                        &[ErrorKind::BrokenPipe, ErrorKind::ConnectionReset, ErrorKind::ConnectionAborted],
                    );
                }
            }
        }
        Err("a thousand writes went into the void".into())
    });
    checks.check(
        &format!("tcp {address}: a writer is held up when nobody reads, and goes on when somebody does"),
        || {
            let (client, server) = pair(address)?;
            client.set_nonblocking(true).step("set_nonblocking")?;
            let held = write_until_held(&client)?;
            ensure(held > 0 && held < UNBOUNDED, || format!("{held} bytes were taken"))?;
            let ready = poll(&[(&client, Interest::Write)], Some(Duration::from_millis(50))).step("poll")?;
            ensure(!ready[0].write, || format!("it is still writable after {held} bytes"))?;
            let mut left = held;
            let mut buffer = vec![0; 65_536];
            while left > 0 {
                let wanted = left.min(buffer.len());
                left -= (&server).read(&mut buffer[..wanted]).step("read")?;
            }
            let ready = poll(&[(&client, Interest::Write)], Some(PATIENCE)).step("poll")?;
            ensure(ready[0].write, || "it never became writable again".into())
        },
    );
    checks.check(&format!("tcp {address}: {} MiB each way at once arrive whole", LARGE / MIB), || {
        let (client, server) = pair(address)?;
        exchange(&client, &server)
    });
}

fn half_close(mut first: TcpStream, mut second: TcpStream) -> Result<(), String> {
    first.write_all(b"question").step("write")?;
    first.shutdown(Shutdown::Write).step("shutdown")?;
    let mut text = String::new();
    second.read_to_string(&mut text).step("read to the end")?;
    equal("what arrived", text.as_str(), "question")?;
    equal("read behind the end", second.read(&mut [0]).step("read")?, 0)?;
    second.write_all(b"answer").step("answer")?;
    second.shutdown(Shutdown::Write).step("second shutdown")?;
    let mut text = String::new();
    first.read_to_string(&mut text).step("read the answer")?;
    equal("the answer", text.as_str(), "answer")
}

/// Writes until the connection takes no more for a while; how much it took.
fn write_until_held(mut stream: &TcpStream) -> Result<usize, String> {
    let chunk = vec![0; 65_536];
    let mut taken = 0;
    loop {
        match stream.write(&chunk) {
            Ok(count) => taken += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                // The host may still be moving what it has; held up is who stays so.
                let ready = poll(&[(stream, Interest::Write)], Some(Duration::from_millis(100))).step("poll")?;
                if !ready[0].write {
                    return Ok(taken);
                }
            }
            Err(error) => return Err(format!("write: {error}")),
        }
        if taken >= UNBOUNDED {
            return Ok(taken);
        }
    }
}

/// One direction of a large transfer: a position on either side and a pattern that shows a lost or doubled byte.
#[derive(Default)]
struct Direction {
    written: usize,
    read: usize,
}

impl Direction {
    fn byte(at: usize) -> u8 {
        (at % 253) as u8
    }

    /// Writes one chunk. Whether it got anywhere.
    fn write(&mut self, mut stream: &TcpStream, buffer: &mut [u8]) -> Result<(), String> {
        let length = buffer.len().min(LARGE - self.written);
        for (at, byte) in buffer[..length].iter_mut().enumerate() {
            *byte = Self::byte(self.written + at);
        }
        match stream.write(&buffer[..length]) {
            Ok(count) => self.written += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(format!("write at {}: {error}", self.written)),
        }
        if self.written == LARGE { stream.shutdown(Shutdown::Write).step("shutdown") } else { Ok(()) }
    }

    fn read(&mut self, mut stream: &TcpStream, buffer: &mut [u8]) -> Result<(), String> {
        match stream.read(buffer) {
            Ok(0) => Err(format!("the stream ended at {} of {LARGE}", self.read)),
            Ok(count) => {
                let wrong = buffer[..count].iter().enumerate().find(|&(at, &byte)| byte != Self::byte(self.read + at));
                self.read += count;
                wrong.map_or(Ok(()), |(at, _)| Err(format!("the byte at {} is wrong", self.read - count + at)))
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(format!("read at {}: {error}", self.read)),
        }
    }
}

fn exchange(client: &TcpStream, server: &TcpStream) -> Result<(), String> {
    let (mut up, mut down) = (Direction::default(), Direction::default());
    let mut buffer = vec![0; 65_536];
    client.set_nonblocking(true).step("set_nonblocking")?;
    server.set_nonblocking(true).step("set_nonblocking")?;
    let interest = |wants_read: bool, wants_write: bool| match (wants_read, wants_write) {
        (true, true) => Some(Interest::Both),
        (true, false) => Some(Interest::Read),
        (false, true) => Some(Interest::Write),
        (false, false) => None,
    };
    while up.read < LARGE || down.read < LARGE {
        let ends = [
            (client, interest(down.read < LARGE, up.written < LARGE)),
            (server, interest(up.read < LARGE, down.written < LARGE)),
        ];
        let waiting: Vec<_> = ends.iter().filter_map(|&(end, interest)| Some((end, interest?))).collect();
        let sockets: Vec<_> = waiting.iter().map(|(end, interest)| (*end as &dyn AsRawFd, *interest)).collect();
        let ready = poll(&sockets, Some(PATIENCE)).step("poll")?;
        ensure(ready.iter().any(|one| one.any()), || format!("stalled at {} up, {} down", up.read, down.read))?;
        for ((end, interest), ready) in waiting.iter().zip(ready) {
            let is_client = std::ptr::eq(*end, client);
            if ready.write && *interest != Interest::Read {
                if is_client { up.write(end, &mut buffer)? } else { down.write(end, &mut buffer)? }
            }
            if ready.read && *interest != Interest::Write {
                if is_client { down.read(end, &mut buffer)? } else { up.read(end, &mut buffer)? }
            }
        }
    }
    readable(client, PATIENCE)?;
    equal("what follows the last byte", (&*client).read(&mut [0]).step("read")?, 0)
}
