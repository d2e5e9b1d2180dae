//! Which port of a pod belongs to whom: Linux's bind rules as a pure table.
//!
//! In: addresses to bind, to listen on, to find. Out: EADDRINUSE where Linux says so, ephemeral ports, and the
//! listener or inbox that a destination reaches. Holds canonical addresses only (no IPv4-mapped IPv6), knows
//! no sockets: `T` is whatever answers at a port. Not kept: TIME_WAIT, which in process has nothing to wait for.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::errno::Errno;

/// Linux's default `net.ipv4.ip_local_port_range`.
const EPHEMERAL: std::ops::RangeInclusive<u16> = 32768..=60999;

/// Names one socket in the tables of its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct SocketId(pub(super) u64);

/// A wish to bind.
#[derive(Debug, Clone, Copy)]
pub(super) struct BindRequest {
    pub(super) id: SocketId,
    /// Port 0 for an ephemeral one.
    pub(super) local: SocketAddr,
    pub(super) reuse: Reuse,
    pub(super) scope: Scope,
}

/// `SO_REUSEADDR`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reuse {
    Shared,
    Exclusive,
}

/// What the unspecified IPv6 address covers (`IPV6_V6ONLY`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    OneFamily,
    DualStack,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Stream,
    Datagram,
}

/// Who is at which port, for one protocol of one pod.
pub(super) struct Ports<T> {
    by_port: HashMap<u16, Vec<Binding<T>>>,
    next_ephemeral: u16,
}

struct Binding<T> {
    id: SocketId,
    addr: IpAddr,
    reuse: Reuse,
    scope: Scope,
    target: Option<T>,
    peer: Option<SocketAddr>,
}

impl<T> Default for Ports<T> {
    fn default() -> Self {
        Self { by_port: HashMap::new(), next_ephemeral: *EPHEMERAL.start() }
    }
}

/// Whether a socket bound to `bound` is reached by traffic to `addr`.
fn covers(bound: IpAddr, scope: Scope, addr: IpAddr) -> bool {
    match bound {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => addr.is_ipv4(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => addr.is_ipv6() || scope == Scope::DualStack,
        _ => bound == addr,
    }
}

impl<T: Clone> Ports<T> {
    /// Binds, and returns the address with its port.
    ///
    /// Two sockets share an address when both are [`Reuse::Shared`] and, for streams, the one there does not
    /// listen (`inet_csk_bind_conflict`). A datagram socket has its target, its inbox, from the start.
    pub(super) fn bind(&mut self, request: BindRequest, target: Option<T>) -> Result<SocketAddr, Errno> {
        let mut local = request.local;
        if local.port() == 0 {
            local.set_port(self.ephemeral().ok_or(Errno::AddrInUse)?);
        } else {
            let kind = if target.is_some() { Kind::Datagram } else { Kind::Stream };
            if self.conflicts(&request, local.port(), kind) {
                return Err(Errno::AddrInUse);
            }
        }
        let BindRequest { id, reuse, scope, .. } = request;
        let binding = Binding { id, addr: local.ip(), reuse, scope, target, peer: None };
        self.by_port.entry(local.port()).or_default().push(binding);
        Ok(local)
    }

    fn conflicts(&self, request: &BindRequest, port: u16, kind: Kind) -> bool {
        let wanted = request.local.ip();
        self.by_port.get(&port).into_iter().flatten().any(|there| {
            let overlap = covers(there.addr, there.scope, wanted) || covers(wanted, request.scope, there.addr);
            let quiet = there.target.is_none() || kind == Kind::Datagram;
            let shared = request.reuse == Reuse::Shared && there.reuse == Reuse::Shared && quiet;
            there.id != request.id && overlap && !shared
        })
    }

    /// Makes a bound socket the one that answers. EADDRINUSE when another got there first.
    pub(super) fn listen(&mut self, id: SocketId, port: u16, target: T) -> Result<(), Errno> {
        let mine = self.binding(id, port).ok_or(Errno::Inval)?;
        let request = BindRequest { id, local: SocketAddr::new(mine.addr, port), reuse: mine.reuse, scope: mine.scope };
        if self.conflicts(&request, port, Kind::Stream) {
            return Err(Errno::AddrInUse);
        }
        self.binding(id, port).ok_or(Errno::Inval)?.target = Some(target);
        Ok(())
    }

    /// The socket keeps its address and answers no more.
    pub(super) fn stop_listening(&mut self, id: SocketId, port: u16) {
        if let Some(binding) = self.binding(id, port) {
            binding.target = None;
        }
    }

    /// Notes a connection's peer. EADDRNOTAVAIL when the same pair of addresses is already connected.
    pub(super) fn connect(&mut self, id: SocketId, port: u16, peer: SocketAddr) -> Result<(), Errno> {
        let taken =
            self.by_port.get(&port).into_iter().flatten().any(|other| other.id != id && other.peer == Some(peer));
        if taken {
            return Err(Errno::AddrNotAvail);
        }
        if let Some(binding) = self.binding(id, port) {
            binding.peer = Some(peer);
        }
        Ok(())
    }

    pub(super) fn disconnect(&mut self, id: SocketId, port: u16) {
        if let Some(binding) = self.binding(id, port) {
            binding.peer = None;
        }
    }

    /// Who answers at `to`: an exact address before the unspecified one, the latest bound first.
    pub(super) fn find(&self, to: SocketAddr) -> Option<&T> {
        let there = || {
            let all = self.by_port.get(&to.port()).into_iter().flatten().rev();
            all.filter_map(|binding| Some((binding, binding.target.as_ref()?)))
        };
        let exact = there().find(|(binding, _)| binding.addr == to.ip());
        let found = exact.or_else(|| there().find(|(binding, _)| covers(binding.addr, binding.scope, to.ip())));
        found.map(|(_, target)| target)
    }

    /// Gives a port back.
    pub(super) fn release(&mut self, id: SocketId, port: u16) {
        let Some(there) = self.by_port.get_mut(&port) else { return };
        there.retain(|binding| binding.id != id);
        if there.is_empty() {
            self.by_port.remove(&port);
        }
        if self.by_port.is_empty() {
            self.by_port = HashMap::new();
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.by_port.is_empty()
    }

    fn binding(&mut self, id: SocketId, port: u16) -> Option<&mut Binding<T>> {
        self.by_port.get_mut(&port)?.iter_mut().find(|binding| binding.id == id)
    }

    /// Goes round, so that a port is not reused soon after its release.
    fn ephemeral(&mut self) -> Option<u16> {
        let count = EPHEMERAL.end() - EPHEMERAL.start() + 1;
        for _ in 0..count {
            let port = self.next_ephemeral;
            self.next_ephemeral = if port == *EPHEMERAL.end() { *EPHEMERAL.start() } else { port + 1 };
            if !self.by_port.contains_key(&port) {
                return Some(port);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(id: u64, local: &str, reuse: Reuse, scope: Scope) -> BindRequest {
        BindRequest { id: SocketId(id), local: local.parse().expect("address"), reuse, scope }
    }

    #[test]
    fn binds_conflict_as_on_linux() {
        use Reuse::{Exclusive, Shared};
        use Scope::{DualStack, OneFamily};
        let taken = Err(Errno::AddrInUse);
        for (case, first, first_listens, second, expected) in [
            (
                "exclusive sockets never share",
                ("127.0.0.1:80", Exclusive, OneFamily),
                false,
                ("127.0.0.1:80", Exclusive, OneFamily),
                taken,
            ),
            (
                "sharing takes two",
                ("127.0.0.1:80", Exclusive, OneFamily),
                false,
                ("127.0.0.1:80", Shared, OneFamily),
                taken,
            ),
            (
                "sharing sockets share until one listens",
                ("127.0.0.1:80", Shared, OneFamily),
                false,
                ("127.0.0.1:80", Shared, OneFamily),
                Ok(()),
            ),
            (
                "a listener shares with nobody",
                ("127.0.0.1:80", Shared, OneFamily),
                true,
                ("127.0.0.1:80", Shared, OneFamily),
                taken,
            ),
            (
                "the unspecified address overlaps each",
                ("0.0.0.0:80", Shared, OneFamily),
                true,
                ("127.0.0.1:80", Shared, OneFamily),
                taken,
            ),
            (
                "each overlaps the unspecified address",
                ("127.0.0.1:80", Shared, OneFamily),
                true,
                ("0.0.0.0:80", Shared, OneFamily),
                taken,
            ),
            (
                "different addresses do not meet",
                ("127.0.0.1:80", Exclusive, OneFamily),
                true,
                ("127.0.0.2:80", Exclusive, OneFamily),
                Ok(()),
            ),
            (
                "families do not meet",
                ("0.0.0.0:80", Exclusive, OneFamily),
                true,
                ("[::]:80", Exclusive, OneFamily),
                Ok(()),
            ),
            (
                "unless one is dual-stack",
                ("0.0.0.0:80", Exclusive, OneFamily),
                true,
                ("[::]:80", Exclusive, DualStack),
                taken,
            ),
        ] {
            let mut ports = Ports::default();
            ports.bind(request(1, first.0, first.1, first.2), None).expect("the first bind");
            if first_listens {
                ports.listen(SocketId(1), 80, ()).expect("the first listen");
            }
            let second = ports.bind(request(2, second.0, second.1, second.2), None).map(|_| ());
            assert_eq!(second, expected, "{case}");
        }
    }

    #[test]
    fn of_two_that_share_the_first_to_listen_wins() {
        let mut ports = Ports::default();
        for id in [1, 2] {
            ports.bind(request(id, "0.0.0.0:80", Reuse::Shared, Scope::OneFamily), None).expect("shared");
        }
        assert_eq!(ports.listen(SocketId(2), 80, "two"), Ok(()));
        assert_eq!(ports.listen(SocketId(1), 80, "one"), Err(Errno::AddrInUse));
        ports.release(SocketId(2), 80);
        assert_eq!(ports.listen(SocketId(1), 80, "one"), Ok(()));
        assert_eq!(ports.find("127.9.9.9:80".parse().expect("address")), Some(&"one"));
    }

    #[test]
    fn ephemeral_ports_go_round_and_run_out() {
        let mut ports = Ports::<()>::default();
        let wish = |id| request(id, "127.0.0.1:0", Reuse::Shared, Scope::OneFamily);
        let first = ports.bind(wish(0), None).expect("a port").port();
        ports.release(SocketId(0), first);
        for id in 0..28232 {
            assert_ne!(ports.bind(wish(id), None).map(|addr| addr.port()), Ok(0));
        }
        assert_eq!(ports.bind(wish(28232), None), Err(Errno::AddrInUse));
        for id in 0..28232u64 {
            let port = 32768 + ((id + 1) % 28232) as u16;
            ports.release(SocketId(id), port);
        }
        assert!(ports.is_empty());
    }

    #[test]
    fn an_exact_address_is_found_before_the_unspecified_one() {
        let mut ports = Ports::default();
        let exclusive = |id, local| request(id, local, Reuse::Shared, Scope::OneFamily);
        ports.bind(exclusive(1, "127.0.0.1:53"), Some("exact")).expect("bound");
        ports.bind(exclusive(2, "0.0.0.0:54"), Some("any")).expect("bound");
        let find = |to: &str| ports.find(to.parse().expect("address")).copied();
        assert_eq!(find("127.0.0.1:53"), Some("exact"));
        assert_eq!(find("127.0.0.2:53"), None);
        assert_eq!(find("127.0.0.2:54"), Some("any"));
        assert_eq!(find("[::1]:54"), None);
    }
}
