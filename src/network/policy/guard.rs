//! What a pod's sockets ask of policies.
//!
//! In: the other side of a connection or datagram. Out: whether it may be, or the error a guest sees: EACCES for what its
//! own pod's policies forbid, ECONNREFUSED for what the other pod's do. Keeps nothing.

use std::net::{IpAddr, SocketAddr};

use super::super::pod::PodNetwork;
use super::super::route::Destination;
use super::{Direction, Flow, Standing};
use crate::errno::Errno;
use crate::pod::run::{NetworkMode, PortProtocol};

impl PodNetwork {
    /// Whether policies have no say in what passes between the pod and an address: the pod itself and the node.
    fn is_unjudged(&self, peer: IpAddr) -> bool {
        self.policies().standing() == Standing::Off
            || self.mode() == NetworkMode::Host
            || self.has(peer)
            || self.is_node(peer)
            || matches!(self.routes().classify(peer), Destination::Loopback(_))
    }

    /// Whether something may begin from this pod, by its own policies and by those of the pod it goes to.
    pub(in crate::network) fn check_out(&self, to: SocketAddr, protocol: PortProtocol) -> Result<(), Errno> {
        if self.is_unjudged(to.ip()) {
            return Ok(());
        }
        let (subject, peer, port) = (self.name(), to.ip(), to.port());
        if !self.policies().allows(&Flow { direction: Direction::Egress, subject, peer, protocol, port }) {
            tracing::debug!(pod = %subject, %to, "NetworkPolicies do not allow this pod to connect");
            return Err(Errno::Acces);
        }
        let welcome = match self.neighbour(peer) {
            Some(neighbour) => neighbour.lets_in(self.ip_towards(peer), protocol, port),
            None => self.policies().lets_in(self.ip_towards(peer), peer, protocol, port),
        };
        if welcome { Ok(()) } else { Err(Errno::ConnRefused) }
    }

    /// Whether something may begin towards a port of this pod.
    pub(in crate::network) fn lets_in(&self, from: IpAddr, protocol: PortProtocol, port: u16) -> bool {
        if self.is_unjudged(from) {
            return true;
        }
        let subject = self.name();
        let allowed =
            self.policies().allows(&Flow { direction: Direction::Ingress, subject, peer: from, protocol, port });
        if !allowed {
            tracing::debug!(pod = %subject, %from, port, "NetworkPolicies do not let this connection in");
        }
        allowed
    }
}
