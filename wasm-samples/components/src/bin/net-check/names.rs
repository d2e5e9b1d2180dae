//! Checks of name lookup: `localhost`, the container's own name, and names that nobody has.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, ToSocketAddrs};

use guest_support::check::{Checks, Step, ensure, equal};

pub fn run(checks: &mut Checks) {
    let lookup = |name: &str| -> Result<Vec<IpAddr>, String> {
        Ok((name, 80).to_socket_addrs().step(name)?.map(|address| address.ip()).collect())
    };
    checks.check("names: localhost is a loopback address and nothing else", || {
        let found = lookup("localhost")?;
        ensure(found.contains(&IpAddr::V4(Ipv4Addr::LOCALHOST)), || format!("it is {found:?}"))?;
        ensure(found.iter().all(IpAddr::is_loopback), || format!("it is {found:?}"))
    });
    checks.check("names: localhost can be dialed", || {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).step("bind")?;
        let port = listener.local_addr().step("local_addr")?.port();
        let mut client = TcpStream::connect(("localhost", port)).step("connect")?;
        client.write_all(b"x").step("write")?;
        listener.accept().step("accept")?.0.read_exact(&mut [0]).step("read")
    });
    checks.check("names: an address is its own name", || {
        equal("127.0.0.1", lookup("127.0.0.1")?, vec![IpAddr::V4(Ipv4Addr::LOCALHOST)])
    });
    checks.check("names: the own host name is known", || {
        let name = fs::read_to_string("/etc/hostname").step("/etc/hostname")?;
        let found = lookup(name.trim_end())?;
        ensure(!found.is_empty(), || format!("{name} has no address"))
    });
    checks.check("names: a name that cannot exist is an error", || {
        // RFC 6761 keeps .invalid free for good.
        match lookup("no-such-host.invalid") {
            Ok(found) => Err(format!("it is {found:?}")),
            Err(_) => Ok(()),
        }
    });
}
