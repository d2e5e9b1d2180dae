//! Where a destination is, as a pod with its own address sees it. Pure.
//!
//! | destination | is |
//! |---|---|
//! | 127.0.0.0/8 outside the pod range, `::1`, the unspecified address | the pod's own loopback |
//! | an address of the pod range | that pod, in process; nobody there is EHOSTUNREACH |
//! | the second address of the pod range | the node, as pods see it: nothing listens |
//! | link-local, metadata, multicast, broadcast, 0.0.0.0/8, 240.0.0.0/4 | denied |
//! | anything else, the node's own non-loopback addresses included | outside: a kernel socket of the node |
//!
//! A node's LAN address is reachable as with any CNI: what listens there is open to the LAN anyway. What listens
//! on the node's 127.0.0.1 is not reachable by any spelling: IPv4-mapped, -compatible and NAT64 forms are
//! unwrapped before they are judged.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::config::IpRange;
use crate::errno::Errno;

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// `AF_INET`.
    V4,
    /// `AF_INET6`.
    V6,
}

impl Family {
    /// The family's unspecified address.
    pub(super) fn unspecified(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Self::V6 => Ipv6Addr::UNSPECIFIED.into(),
        }
    }

    /// The family's loopback address.
    pub(super) fn localhost(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::LOCALHOST.into(),
            Self::V6 => Ipv6Addr::LOCALHOST.into(),
        }
    }

    pub(super) fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// Where a destination is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Destination {
    /// In this pod; the address with 0.0.0.0 and `::` replaced, as Linux connects them.
    Loopback(IpAddr),
    /// An address of the pod range, this pod's own included.
    Pod(IpAddr),
    /// The node's address of the pod range.
    Node,
    /// Somewhere a kernel socket goes.
    Outside,
    /// Nowhere.
    Denied(Errno),
}

/// The rules of one node.
#[derive(Debug)]
pub(super) struct Routes {
    pub(super) pod_range: IpRange,
    pub(super) node_address: Ipv4Addr,
    pub(super) denied: Vec<IpRange>,
}

impl Routes {
    /// Judges a canonical address.
    pub(super) fn classify(&self, ip: IpAddr) -> Destination {
        if self.denied.iter().any(|range| range.contains(ip)) {
            return Destination::Denied(Errno::NetUnreach);
        }
        match ip {
            IpAddr::V4(v4) => self.classify_v4(v4),
            IpAddr::V6(v6) => self.classify_v6(v6),
        }
    }

    fn classify_v4(&self, ip: Ipv4Addr) -> Destination {
        if ip.is_unspecified() {
            Destination::Loopback(Ipv4Addr::LOCALHOST.into())
        } else if ip == self.node_address {
            Destination::Node
        } else if self.pod_range.contains(ip.into()) {
            Destination::Pod(ip.into())
        } else if ip.is_loopback() {
            Destination::Loopback(ip.into())
        } else if ip.is_broadcast() {
            Destination::Denied(Errno::Acces)
        } else if ip.octets()[0] == 0 || ip.octets()[0] >= 224 {
            Destination::Denied(Errno::NetUnreach)
        } else {
            Destination::Outside
        }
    }

    fn classify_v6(&self, ip: Ipv6Addr) -> Destination {
        if ip.is_unspecified() || ip.is_loopback() {
            return Destination::Loopback(Ipv6Addr::LOCALHOST.into());
        }
        if ip.is_multicast() {
            return Destination::Denied(Errno::NetUnreach);
        }
        match embedded_v4(ip).map(|v4| self.classify(v4.into())) {
            // A gateway would carry it to where the pod may not go.
            Some(inner) if inner != Destination::Outside => Destination::Denied(Errno::NetUnreach),
            _ => Destination::Outside,
        }
    }
}

/// The IPv4 address inside a mapped, compatible or NAT64 address.
fn embedded_v4(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let low = Ipv4Addr::from_bits(ip.to_bits() as u32);
    match ip.segments() {
        [0, 0, 0, 0, 0, 0 | 0xffff, _, _] | [0x64, 0xff9b, 0, 0, 0, 0, _, _] => Some(low),
        _ => None,
    }
}

/// Turns an IPv4-mapped address into the IPv4 one it means.
pub(super) fn canonical(addr: SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => SocketAddr::new(v4.into(), v6.port()),
            None => addr,
        },
        SocketAddr::V4(_) => addr,
    }
}

/// Shows a canonical address to a socket of `family`: a dual-stack socket sees IPv4 mapped.
pub(super) fn present(addr: SocketAddr, family: Family) -> SocketAddr {
    match (addr, family) {
        (SocketAddr::V4(v4), Family::V6) => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
        _ => addr,
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::NodeNetworkConfig;
    use super::*;

    #[test]
    fn no_spelling_reaches_the_nodes_loopback_or_metadata() {
        let config = NodeNetworkConfig::default();
        let node_address = Ipv4Addr::new(127, 64, 0, 1);
        let routes = Routes { pod_range: config.pod_range, node_address, denied: config.denied };
        let ip = |s: &str| s.parse::<IpAddr>().expect(s);
        let denied = Destination::Denied(Errno::NetUnreach);
        for (to, expected) in [
            ("127.0.0.1", Destination::Loopback(ip("127.0.0.1"))),
            ("127.0.0.53", Destination::Loopback(ip("127.0.0.53"))),
            ("127.128.0.1", Destination::Loopback(ip("127.128.0.1"))),
            ("0.0.0.0", Destination::Loopback(ip("127.0.0.1"))),
            ("::", Destination::Loopback(ip("::1"))),
            ("::1", Destination::Loopback(ip("::1"))),
            ("127.64.0.1", Destination::Node),
            ("127.64.0.9", Destination::Pod(ip("127.64.0.9"))),
            ("0.0.0.1", denied),
            ("169.254.169.254", denied),
            ("fe80::1", denied),
            ("fd00:ec2::254", denied),
            ("224.0.0.251", denied),
            ("ff02::fb", denied),
            ("255.255.255.255", Destination::Denied(Errno::Acces)),
            ("::127.0.0.1", denied),
            ("::ffff:127.0.0.1", denied),
            ("64:ff9b::169.254.169.254", denied),
            ("64:ff9b::8.8.8.8", Destination::Outside),
            ("10.0.0.1", Destination::Outside),
            ("2001:db8::1", Destination::Outside),
        ] {
            assert_eq!(routes.classify(ip(to)), expected, "{to}");
        }
    }

    #[test]
    fn mapped_addresses_come_and_go() {
        let mapped: SocketAddr = "[::ffff:127.0.0.1]:80".parse().expect("address");
        let plain: SocketAddr = "127.0.0.1:80".parse().expect("address");
        assert_eq!(canonical(mapped), plain);
        assert_eq!(present(plain, Family::V6), mapped);
        assert_eq!(present(plain, Family::V4), plain);
    }
}
