//! Services and their endpoints as a node needs them, and which endpoints it may use.
//!
//! In: `Service` and `EndpointSlice` objects, the node's name and zone. Out: small plain data, and for each port of a
//! Service the addresses that connections of either traffic policy go to. The rules are kube-proxy's
//! (`pkg/proxy/topology.go`, `serviceport.go`). Opens nothing, remembers nothing.

mod choice;
mod parse;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::run::PortProtocol;

pub use choice::{Candidate, Usable, Uses, usable};

/// `namespace/name` of a Service, shared by all that speak of it.
pub type ServiceKey = Arc<str>;

/// Where this node is, for hints and `Local` policies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodePlace {
    /// Its name.
    pub name: String,
    /// Its label `topology.kubernetes.io/zone`; empty without one.
    pub zone: String,
}

/// Which endpoints a kind of traffic may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrafficPolicy {
    /// Those of every node.
    Cluster,
    /// Those of this node.
    Local,
}

/// A range of addresses that may use a load balancer's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceRange {
    /// Its first address.
    pub base: IpAddr,
    /// How many bits its addresses share.
    pub prefix: u8,
}

/// What of a Service its traffic depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceSpec {
    /// Which one.
    pub key: ServiceKey,
    /// `clusterIPs`; none for a headless Service.
    pub cluster_ips: Vec<IpAddr>,
    /// `externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// Addresses of `status.loadBalancer` whose `ipMode` is `VIP`.
    pub balancer_ips: Vec<IpAddr>,
    /// `loadBalancerSourceRanges`; empty is everybody.
    pub source_ranges: Vec<SourceRange>,
    /// Its TCP and UDP ports.
    pub ports: Vec<ServicePort>,
    /// `sessionAffinity: ClientIP` and its timeout.
    pub affinity: Option<Duration>,
    /// `internalTrafficPolicy`.
    pub internal: TrafficPolicy,
    /// `externalTrafficPolicy`.
    pub external: TrafficPolicy,
    /// `healthCheckNodePort` of a Service that needs it.
    pub health_check_port: Option<u16>,
}

/// One port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name; empty when it has none.
    pub name: Box<str>,
    /// Its transport.
    pub protocol: PortProtocol,
    /// Its number.
    pub port: u16,
    /// `nodePort`.
    pub node_port: Option<u16>,
}

impl ServiceSpec {
    /// Whether it is reached by anything but its cluster IPs.
    #[must_use]
    pub fn is_external(&self) -> bool {
        !self.external_ips.is_empty()
            || !self.balancer_ips.is_empty()
            || self.ports.iter().any(|port| port.node_port.is_some())
    }

    /// Which lists of endpoints it needs: with `Local` for external traffic, pods and the node itself still reach every
    /// endpoint.
    #[must_use]
    pub fn uses(&self) -> Uses {
        let external = self.is_external();
        Uses {
            cluster: self.internal == TrafficPolicy::Cluster || external,
            local: self.internal == TrafficPolicy::Local || (self.external == TrafficPolicy::Local && external),
        }
    }
}

/// What of an `EndpointSlice` matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceSpec {
    /// `namespace/name` of the slice.
    pub key: Arc<str>,
    /// Whose endpoints they are.
    pub service: ServiceKey,
    /// Its TCP and UDP ports that have a number.
    pub ports: Vec<SlicePort>,
    /// Its endpoints.
    pub endpoints: Box<[Endpoint]>,
}

/// One port of a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlicePort {
    /// The name of the Service's port that it is of.
    pub name: Box<str>,
    /// Its transport.
    pub protocol: PortProtocol,
    /// Where the endpoints listen.
    pub port: u16,
}

/// One endpoint: small, for a cluster has very many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address.
    pub ip: IpAddr,
    /// What is said of it.
    pub facts: Facts,
}

/// Conditions and hints of an endpoint, as this node sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Facts(u8);

impl Facts {
    /// `conditions.ready`.
    pub const READY: Self = Self(1);
    /// `conditions.serving`.
    pub const SERVING: Self = Self(2);
    /// `conditions.terminating`.
    pub const TERMINATING: Self = Self(4);
    /// On this node.
    pub const LOCAL: Self = Self(8);
    /// `hints.forNodes` names nodes.
    pub const FOR_NODES: Self = Self(16);
    /// This one among them.
    pub const FOR_THIS_NODE: Self = Self(32);
    /// `hints.forZones` names zones.
    pub const FOR_ZONES: Self = Self(64);
    /// This node's among them.
    pub const FOR_THIS_ZONE: Self = Self(128);

    /// Both sets of facts.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// These facts when `said`, else none.
    #[must_use]
    pub const fn when(self, said: Said) -> Self {
        match said {
            Said::Yes => self,
            Said::No => Self(0),
        }
    }

    /// Whether all of `other` are among them.
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Whether an object says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// It does.
    Yes,
    /// It does not.
    No,
}

impl From<bool> for Said {
    fn from(said: bool) -> Self {
        if said { Self::Yes } else { Self::No }
    }
}

/// Where a connection to a Service goes: an endpoint's address and port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target {
    /// The endpoint.
    pub ip: IpAddr,
    /// Its port.
    pub port: u16,
}

impl From<Target> for std::net::SocketAddr {
    fn from(target: Target) -> Self {
        Self::new(target.ip, target.port)
    }
}

/// News of the cluster's Services.
#[derive(Debug, Clone, PartialEq)]
pub enum ServiceNews {
    /// All Services there are.
    Services(Vec<ServiceSpec>),
    /// One is new or changed.
    Service(ServiceSpec),
    /// One is gone.
    ServiceGone(ServiceKey),
    /// All slices there are.
    Slices(Vec<SliceSpec>),
    /// One is new or changed.
    Slice(SliceSpec),
    /// One is gone, of this Service where that is known.
    SliceGone(Arc<str>),
    /// The podCIDRs of all nodes.
    PodRanges(Vec<String>),
    /// The API server does not let this node read that.
    Forbidden {
        /// The resource, such as `endpointslices`.
        resource: &'static str,
        /// Its words.
        reason: String,
    },
    /// It does now, after it did not, or for the first time.
    Allowed {
        /// The resource.
        resource: &'static str,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_thousand_endpoints_are_a_few_megabytes() {
        assert!(size_of::<Endpoint>() <= 18, "{}", size_of::<Endpoint>());
        assert!(size_of::<Target>() <= 20, "{}", size_of::<Target>());
    }
}
