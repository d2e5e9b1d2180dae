//! Where a destination is, as a pod with its own address sees it. Pure.
//!
//! | destination | is |
//! |---|---|
//! | 127.0.0.0/8 outside the pod range, `::1`, the unspecified address | the pod's own loopback |
//! | an address of the pod range | that pod, in process; nobody there is EHOSTUNREACH |
//! | the second address of the pod range | the node, as pods see it: with addresses of 127.0.0.0/8 nothing listens, |
//! |  | with a namespace it is the node's end of the veth pair |
//! | a name server of the cluster on a link-local address | outside |
//! | link-local, metadata, multicast, broadcast, 0.0.0.0/8, 240.0.0.0/4 | denied |
//! | a range of `cluster` (namespace mode) | a kernel socket of the pod's own address |
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

    /// That of an address.
    pub fn of(ip: IpAddr) -> Self {
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
    /// The node's address of the pod range, where nothing listens.
    Node,
    /// Where the pod's own address is known, so that it is the source.
    Cluster,
    /// Somewhere a kernel socket goes.
    Outside,
    /// Nowhere.
    Denied(Errno),
}

/// A range that pods of this node have addresses of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PodRange {
    pub(super) range: IpRange,
    /// Its second address: the node, as pods see it.
    pub(super) node: IpAddr,
}

/// What the node's address of a pod range is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NodeEnd {
    /// A name for it in process.
    Fiction,
    /// An address of a link of the node.
    Link,
}

/// The rules of one node.
#[derive(Debug, Clone)]
pub(super) struct Routes {
    /// The range that new pods get addresses of comes first; then those of earlier podCIDRs with pods left.
    pub(super) pods: Vec<PodRange>,
    pub(super) node_end: NodeEnd,
    pub(super) cluster: Vec<IpRange>,
    pub(super) denied: Vec<IpRange>,
    /// Name servers of the cluster on link-local addresses (a cache on each node), which pods reach all the same.
    pub(super) name_servers: Vec<IpAddr>,
}

impl Routes {
    /// Judges a canonical address.
    pub(super) fn classify(&self, ip: IpAddr) -> Destination {
        if self.name_servers.contains(&ip) {
            return Destination::Outside;
        }
        if self.denied.iter().any(|range| range.contains(ip)) {
            return Destination::Denied(Errno::NetUnreach);
        }
        if let Some(pods) = self.pod_range(ip) {
            return match self.node_end {
                _ if ip != pods.node => Destination::Pod(ip),
                NodeEnd::Fiction => Destination::Node,
                NodeEnd::Link => Destination::Cluster,
            };
        }
        match ip {
            IpAddr::V4(v4) => self.classify_v4(v4),
            IpAddr::V6(v6) => self.classify_v6(v6),
        }
    }

    /// The range an address is of.
    pub(super) fn pod_range(&self, ip: IpAddr) -> Option<&PodRange> {
        self.pods.iter().find(|pods| pods.range.contains(ip))
    }

    fn away(&self, ip: IpAddr) -> Destination {
        if self.cluster.iter().any(|range| range.contains(ip)) { Destination::Cluster } else { Destination::Outside }
    }

    fn classify_v4(&self, ip: Ipv4Addr) -> Destination {
        if ip.is_unspecified() {
            Destination::Loopback(Ipv4Addr::LOCALHOST.into())
        } else if ip.is_loopback() {
            Destination::Loopback(ip.into())
        } else if ip.is_broadcast() {
            Destination::Denied(Errno::Acces)
        } else if ip.octets()[0] == 0 || ip.octets()[0] >= 224 {
            Destination::Denied(Errno::NetUnreach)
        } else {
            self.away(ip.into())
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
            Some(Destination::Outside) | None => self.away(ip.into()),
            Some(_) => Destination::Denied(Errno::NetUnreach),
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
    use super::super::config::{LOOPBACK_RANGE, NodeNetworkConfig};
    use super::*;

    #[test]
    fn no_spelling_reaches_the_nodes_loopback_or_metadata() {
        let ip = |s: &str| s.parse::<IpAddr>().expect(s);
        let node = Ipv4Addr::new(127, 64, 0, 1).into();
        let pods = vec![PodRange { range: LOOPBACK_RANGE, node }];
        let denied = NodeNetworkConfig::default().denied;
        let routes = Routes {
            pods,
            node_end: NodeEnd::Fiction,
            cluster: Vec::new(),
            denied,
            name_servers: vec![ip("169.254.20.10")],
        };
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
            ("169.254.20.10", Destination::Outside),
            ("169.254.20.11", denied),
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
    fn a_cluster_destination_is_reached_from_the_pods_address_and_no_other() {
        let ip = |s: &str| s.parse::<IpAddr>().expect(s);
        let range = |s: &str| s.parse::<IpRange>().expect(s);
        let pods = vec![
            PodRange { range: range("10.244.1.0/24"), node: ip("10.244.1.1") },
            PodRange { range: range("fd00:1::/64"), node: ip("fd00:1::1") },
        ];
        let cluster = vec![range("10.244.0.0/16"), range("fd00::/16")];
        let denied = NodeNetworkConfig::default().denied;
        let routes = Routes { pods, node_end: NodeEnd::Link, cluster, denied, name_servers: Vec::new() };
        for (to, expected) in [
            ("10.244.1.9", Destination::Pod(ip("10.244.1.9"))),
            ("10.244.1.1", Destination::Cluster),
            ("10.244.2.9", Destination::Cluster),
            ("10.245.0.1", Destination::Outside),
            ("fd00:1::9", Destination::Pod(ip("fd00:1::9"))),
            ("fd00:1::1", Destination::Cluster),
            ("fd00:2::9", Destination::Cluster),
            ("2001:db8::1", Destination::Outside),
            ("127.0.0.1", Destination::Loopback(ip("127.0.0.1"))),
            ("64:ff9b::10.244.2.9", Destination::Denied(Errno::NetUnreach)),
            ("fd00:ec2::254", Destination::Denied(Errno::NetUnreach)),
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
