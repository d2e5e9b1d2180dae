//! What the node's network is set up with, what a pod asks of it, and why it may be refused.
//!
//! In: settings of the agent and one spec per pod. Out: plain checked data. Opens nothing.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use super::route::Family;
use crate::descriptors::NodeDescriptors;
use crate::ids::{PodRef, PodUid};
use crate::pod::run::{DnsConfig, HostAlias, HostPort, NetworkMode};

/// A range of addresses in CIDR form, such as `127.64.0.0/10`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpRange {
    base: IpAddr,
    prefix: u8,
}

impl IpRange {
    /// The range `base/prefix`; bits of `base` behind the prefix are cleared.
    ///
    /// # Errors
    /// [`InvalidRange`] when the prefix is longer than the address.
    pub fn new(base: IpAddr, prefix: u8) -> Result<Self, InvalidRange> {
        let base = match base {
            IpAddr::V4(v4) if prefix <= 32 => IpAddr::V4(Ipv4Addr::from_bits(
                v4.to_bits() & u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0),
            )),
            IpAddr::V6(v6) if prefix <= 128 => {
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask))
            }
            _ => return Err(InvalidRange { value: format!("{base}/{prefix}") }),
        };
        Ok(Self { base, prefix })
    }

    /// Its first address.
    pub fn base(&self) -> IpAddr {
        self.base
    }

    /// Its prefix length in bits.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether it has an address in common with another.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.base) || other.contains(self.base)
    }

    /// Whether an address is in it.
    pub fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.base.is_ipv4() && Self::new(ip, self.prefix).is_ok_and(|range| range.base == self.base)
    }
}

impl FromStr for IpRange {
    type Err = InvalidRange;

    fn from_str(s: &str) -> Result<Self, InvalidRange> {
        let invalid = || InvalidRange { value: s.to_owned() };
        let (base, prefix) = s.split_once('/').ok_or_else(invalid)?;
        let base = base.parse().map_err(|_| invalid())?;
        let prefix = prefix.parse().map_err(|_| invalid())?;
        Self::new(base, prefix).map_err(|_| invalid())
    }
}

impl fmt::Display for IpRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

/// Where an unprivileged standalone node takes addresses from unless its settings say otherwise.
pub const LOOPBACK_RANGE: IpRange = IpRange { base: IpAddr::V4(Ipv4Addr::new(127, 64, 0, 0)), prefix: 10 };

/// A string that is not a CIDR range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not an address range such as 127.64.0.0/10")]
pub struct InvalidRange {
    /// What it was.
    pub value: String,
}

/// Where pods get their addresses. [`super::decide_mode`] chooses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddressMode {
    /// Without privileges and without a cluster: addresses of 127.0.0.0/8, reachable by every local user.
    Loopback {
        /// Inside 127.0.0.0/8. The whole range stops being loopback inside pods.
        range: IpRange,
    },
    /// With privileges: a network namespace of the node's own, joined to the agent's by a veth pair, with the whole
    /// podCIDR routed into it.
    Namespace {
        /// What the pair's name is derived from, so that two nodes of one machine have two: the root directory.
        seed: String,
        /// The podCIDRs, one a family, when they are known at the start; else [`super::NodeNetwork::set_pod_ranges`].
        ranges: Vec<IpRange>,
        /// Destinations besides the node's own range that pods reach from their own addresses. Everything else is
        /// reached from the node's address, so that no other router has to know the range.
        cluster: Vec<IpRange>,
    },
    /// Without privileges in a cluster: every pod has the node's address, and a port belongs to one pod.
    NodeAddress {
        /// The node's address.
        ip: IpAddr,
    },
}

/// How the node's network is set up. `Default` is the unprivileged standalone node.
#[derive(Debug, Clone)]
pub struct NodeNetworkConfig {
    /// Where pod addresses come from.
    pub mode: AddressMode,
    /// The node's addresses, the primary one first: what `hostNetwork` pods have. Empty is what the kernel sends to the world
    /// from.
    pub node_ips: Vec<IpAddr>,
    /// The family of which pods have their primary address, whatever the order of the podCIDRs; `None` is that order.
    pub primary_family: Option<Family>,
    /// Addresses that pods of an earlier run of this agent have: given only to who asks for them, until the pod is removed.
    pub reserved: Vec<(PodUid, Vec<IpAddr>)>,
    /// How long a released address rests before another pod gets it.
    pub quarantine: Duration,
    /// What each pod may use.
    pub limits: PodLimits,
    /// Open files and sockets of all pods together.
    pub descriptors: Arc<NodeDescriptors>,
    /// In [`AddressMode::Loopback`]: whether ports below 1024 are asked of the kernel or remapped without asking.
    pub low_ports: LowPorts,
    /// Whether pods may use the node's own sockets (`hostNetwork: true`).
    pub host_network: HostNetwork,
    /// Destinations that no pod with its own address reaches, link-local and metadata addresses by default.
    pub denied: Vec<IpRange>,
    /// Name servers of the cluster that pods reach though they are among `denied`; never a metadata service.
    pub name_servers: Vec<IpAddr>,
    /// Port of the name servers: 53 outside of tests.
    pub dns_port: u16,
}

impl Default for NodeNetworkConfig {
    fn default() -> Self {
        let range = |ip: IpAddr, prefix| IpRange { base: ip, prefix };
        Self {
            mode: AddressMode::Loopback { range: LOOPBACK_RANGE },
            node_ips: Vec::new(),
            primary_family: None,
            reserved: Vec::new(),
            // Longer than clients keep a connection to, or a resolver caches, a pod that is gone.
            quarantine: Duration::from_secs(60),
            limits: PodLimits::default(),
            descriptors: NodeDescriptors::of_limit(None),
            low_ports: LowPorts::AskKernel,
            host_network: HostNetwork::Allowed,
            denied: vec![
                range(Ipv4Addr::new(169, 254, 0, 0).into(), 16),
                range(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0).into(), 10),
                // The metadata service of EC2 over IPv6 is a unique local address.
                range(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254).into(), 128),
            ],
            name_servers: Vec::new(),
            dns_port: 53,
        }
    }
}

/// What to do with a listener below port 1024 on a pod's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LowPorts {
    /// Ask the kernel; remap when it refuses.
    AskKernel,
    /// Remap at once.
    Remap,
}

/// Whether `hostNetwork: true` is honoured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostNetwork {
    /// Such pods use the node's sockets.
    Allowed,
    /// Such pods are refused.
    Denied,
}

/// What one pod may use of the node's network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodLimits {
    /// Sockets at once, accepted ones included; more is EMFILE.
    pub sockets: usize,
    /// Bytes of socket buffers after which windows shrink to 4 KiB and datagrams are dropped.
    pub buffer_bytes: u64,
    /// Highest backlog of a listener, as `net.core.somaxconn`.
    pub backlog: u32,
}

impl Default for PodLimits {
    fn default() -> Self {
        // Four times a Linux process's usual 1024 files; two full windows for 128 busy connections; somaxconn.
        Self { sockets: 4096, buffer_bytes: 64 << 20, backlog: 4096 }
    }
}

/// One pod to connect to the network.
#[derive(Debug, Clone)]
pub struct PodNetworkSpec {
    /// Its UID, the key.
    pub uid: PodUid,
    /// Its name, for messages.
    pub pod: PodRef,
    /// The names that resolve to the pod's own addresses, as `/etc/hosts` has them.
    pub names: Vec<String>,
    /// Own address or the node's.
    pub mode: NetworkMode,
    /// The addresses it had before, to have them again.
    pub ips: Vec<IpAddr>,
    /// Resolver settings.
    pub dns: DnsConfig,
    /// `hostAliases`.
    pub host_aliases: Vec<HostAlias>,
    /// Ports of the node that lead to the pod; empty for `hostNetwork`, whose ports are the node's already.
    pub host_ports: Vec<HostPort>,
}

/// Why there is no network, or none for a pod.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The network was made outside a tokio runtime.
    #[error("the node's network needs a tokio runtime")]
    NoRuntime,
    /// Without privileges only 127.0.0.0/8 is ours to give away.
    #[error(
        "pod range {range} is not usable: without CAP_NET_ADMIN and CAP_SYS_ADMIN it must be in 127.0.0.0/8, without \
         127.0.0.1, and no longer than /30"
    )]
    BadRange {
        /// The configured range.
        range: IpRange,
    },
    /// A podCIDR that has no addresses for pods, or is no network's.
    #[error("podCIDR {range} is not usable: {reason}")]
    BadPodCidr {
        /// What the Node object or the settings say.
        range: IpRange,
        /// Why not.
        reason: &'static str,
    },
    /// `podNetwork: namespace` without the privileges for it.
    #[error(
        "podNetwork \"namespace\" needs CAP_NET_ADMIN and CAP_SYS_ADMIN: it makes a network namespace and a veth pair"
    )]
    NoPrivileges,
    /// `podNetwork: namespace` on a standalone node that has no range to give away.
    #[error("podNetwork \"namespace\" without a cluster needs a podCIDR: nobody else assigns one")]
    NoPodCidr,
    /// The namespace or its links could not be made.
    #[error("setting up the network namespace of pods: {step}: {source}")]
    Namespace {
        /// Which step failed.
        step: &'static str,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The node has no podCIDR yet; in the kubelet's words (`NetworkNotReadyErrorMsg`, `runtimeState.networkErrors`).
    #[error(
        "network is not ready: container runtime network not ready: NetworkReady=false \
         reason:NetworkPluginNotReady message:the node has no podCIDR yet"
    )]
    NotReady,
    /// A `hostPort` belongs to something else.
    #[error("hostPort {address}/{protocol} of pod {pod}: {source}")]
    HostPort {
        /// The pod.
        pod: PodRef,
        /// Where on the node.
        address: std::net::SocketAddr,
        /// `TCP` or `UDP`.
        protocol: &'static str,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The pod asked for the node's network and the node does not give it.
    #[error("pod {pod} asks for hostNetwork, which this node does not allow")]
    HostNetworkDenied {
        /// The pod.
        pod: PodRef,
    },
    /// The pod has a network already.
    #[error("pod {pod} ({uid}) has a network already")]
    PodExists {
        /// The pod.
        pod: PodRef,
        /// Its UID.
        uid: PodUid,
    },
    /// A pod's former address is not one of this node's.
    #[error("address {ip} of pod {pod} is not in the pod range {range}")]
    AddressOutOfRange {
        /// The pod.
        pod: PodRef,
        /// Its former address.
        ip: IpAddr,
        /// The configured range.
        range: IpRange,
    },
    /// A pod's former address belongs to another pod, or to another agent on this machine.
    #[error("address {ip} of pod {pod} is in use by another pod or another agent")]
    AddressTaken {
        /// The pod.
        pod: PodRef,
        /// Its former address.
        ip: IpAddr,
    },
    /// Every address is in use or resting.
    #[error("no address is left for pod {pod} in {range}")]
    NoAddressLeft {
        /// The pod.
        pod: PodRef,
        /// The configured range.
        range: IpRange,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_contains_its_addresses_and_no_others() {
        for (range, inside, outside) in [
            ("127.64.0.0/10", "127.127.255.255", "127.128.0.0"),
            ("127.64.3.7/32", "127.64.3.7", "127.64.3.8"),
            ("0.0.0.0/0", "255.255.255.255", "::1"),
            ("fe80::1/10", "febf::1", "fec0::1"),
        ] {
            let parsed: IpRange = range.parse().expect(range);
            assert!(parsed.contains(inside.parse().expect(inside)), "{range} has {inside}");
            assert!(!parsed.contains(outside.parse().expect(outside)), "{range} has no {outside}");
        }
        for bad in ["127.0.0.1", "127.0.0.0/33", "::/129", "x/8", ""] {
            assert!(bad.parse::<IpRange>().is_err(), "{bad:?}");
        }
    }
}
