//! Checks of UDP: datagrams with their sender, their borders, and sockets that know only one peer.

use std::io::ErrorKind;
use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use guest_support::check::{Checks, Step, ensure, equal};

use crate::poll::{Interest, poll, readable};
use crate::tcp::kind;

const PATIENCE: Duration = Duration::from_secs(5);
/// The longest payload of a datagram over IPv4: 65535 without the headers of IP (20) and UDP (8).
const LONGEST: usize = 65_507;
/// More datagrams of 1 KiB than any host keeps for a socket that nobody reads.
const FLOOD: usize = 20_000;

pub fn run(checks: &mut Checks, address: IpAddr) {
    let bind = || UdpSocket::bind((address, 0)).step("bind");
    checks.check(&format!("udp {address}: a datagram arrives with its sender's address"), || {
        let (one, two) = (bind()?, bind()?);
        one.send_to(b"hello", two.local_addr().step("local_addr")?).step("send_to")?;
        readable(&two, PATIENCE)?;
        let mut buffer = [0; 64];
        let (length, from) = two.recv_from(&mut buffer).step("recv_from")?;
        equal("the payload", &buffer[..length], b"hello")?;
        equal("the sender", from, one.local_addr().step("local_addr")?)?;
        two.send_to(b"back", from).step("send back")?;
        readable(&one, PATIENCE)?;
        equal("the answer's length", one.recv_from(&mut buffer).step("recv_from")?.0, 4)
    });
    checks.check(&format!("udp {address}: datagrams keep their borders and order, empty ones too"), || {
        let (one, two) = (bind()?, bind()?);
        let to = two.local_addr().step("local_addr")?;
        for length in [1, 0, 100, 3] {
            one.send_to(&vec![b'x'; length], to).step("send_to")?;
        }
        for length in [1, 0, 100, 3] {
            readable(&two, PATIENCE)?;
            equal("the length", two.recv_from(&mut [0; 2048]).step("recv_from")?.0, length)?;
        }
        Ok(())
    });
    checks.check(&format!("udp {address}: what does not fit the buffer is cut and gone"), || {
        let (one, two) = (bind()?, bind()?);
        let to = two.local_addr().step("local_addr")?;
        one.send_to(b"0123456789", to).step("send_to")?;
        one.send_to(b"next", to).step("send_to")?;
        let mut buffer = [0; 4];
        readable(&two, PATIENCE)?;
        let (length, _) = two.recv_from(&mut buffer).step("recv_from")?;
        equal("the cut one", &buffer[..length], b"0123")?;
        readable(&two, PATIENCE)?;
        let (length, _) = two.recv_from(&mut buffer).step("recv_from")?;
        equal("the next one", &buffer[..length], b"next")
    });
    checks.check(&format!("udp {address}: a connected socket hears its peer alone"), || {
        let (one, two, stranger) = (bind()?, bind()?, bind()?);
        let (first, second) = (one.local_addr().step("local_addr")?, two.local_addr().step("local_addr")?);
        one.connect(second).step("connect")?;
        equal("peer_addr", one.peer_addr().step("peer_addr")?, second)?;
        stranger.send_to(b"stranger", first).step("send_to")?;
        two.send_to(b"peer", first).step("send_to")?;
        readable(&one, PATIENCE)?;
        let mut buffer = [0; 64];
        let length = one.recv(&mut buffer).step("recv")?;
        equal("what it heard", &buffer[..length], b"peer")?;
        one.send(b"to you").step("send")?;
        readable(&two, PATIENCE)?;
        let (length, from) = two.recv_from(&mut buffer).step("recv_from")?;
        equal("what it sent", (&buffer[..length], from), (&b"to you"[..], first))
    });
    checks.check(&format!("udp {address}: a port in use is EADDRINUSE, and TCP's ports are others"), || {
        let socket = bind()?;
        let bound = socket.local_addr().step("local_addr")?;
        kind("a second bind", UdpSocket::bind(bound), &[ErrorKind::AddrInUse])?;
        std::net::TcpListener::bind(bound).step("TCP on the same number").map(drop)
    });
    checks.check(&format!("udp {address}: the longest datagram passes, a longer one is refused"), || {
        let (one, two) = (bind()?, bind()?);
        let to = two.local_addr().step("local_addr")?;
        one.send_to(&vec![1; LONGEST], to).step("send_to")?;
        readable(&two, PATIENCE)?;
        equal("the length", two.recv_from(&mut vec![0; 70_000]).step("recv_from")?.0, LONGEST)?;
        match one.send_to(&vec![1; 70_000], to) {
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => Ok(()),
            result => Err(format!("70000 bytes gave {result:?}, expected EMSGSIZE")),
        }
    });
    checks.check(&format!("udp {address}: what does not wait says EWOULDBLOCK"), || {
        let socket = bind()?;
        socket.set_nonblocking(true).step("set_nonblocking")?;
        kind("recv_from", socket.recv_from(&mut [0; 8]), &[ErrorKind::WouldBlock])
    });
    checks.check(&format!("udp {address}: a flood nobody reads is dropped, what comes later arrives"), || {
        let (one, two) = (bind()?, bind()?);
        let to = two.local_addr().step("local_addr")?;
        for _ in 0..FLOOD {
            // A host may also hold the sender up; both keep its memory bounded.
            if poll(&[(&one, Interest::Write)], Some(Duration::ZERO)).step("poll")?[0].write {
                one.send_to(&[0; 1024], to).step("send_to")?;
            }
        }
        let mut kept = 0;
        let mut buffer = [0; 2048];
        while readable(&two, Duration::from_millis(20)).is_ok() && two.recv_from(&mut buffer).is_ok() {
            kept += 1;
        }
        ensure(kept > 0 && kept < FLOOD, || format!("{kept} of {FLOOD} were kept"))?;
        one.send_to(b"later", to).step("send_to")?;
        readable(&two, PATIENCE)?;
        let (length, _) = two.recv_from(&mut buffer).step("recv_from")?;
        equal("what came later", &buffer[..length], b"later")
    });
}
