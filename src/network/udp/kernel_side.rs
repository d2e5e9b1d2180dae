//! The kernel sockets behind one UDP socket, and how their peers are shown.
//!
//! In: what the socket is bound and sent to. Out: at most four kernel sockets: one on each of the pod's addresses, for
//! the node and the cluster to reach, and one a family for the world. A peer on the node's loopback is shown with the node's
//! address of the pod range: in the pod, 127.0.0.1 is the pod. The port it is shown with leads back to it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::super::kernel::KernelSocket;
use super::super::recent::Recent;
use super::super::route::Family;

/// Peers on the node remembered per socket, so that they can be answered; the oldest is forgotten.
const MAX_ALIASES: usize = 64;

/// Which of the sockets a datagram came through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Door {
    /// The pod's address.
    Pod,
    /// The world.
    World,
    /// The node's own sockets, for `hostNetwork`.
    Node,
}

/// The kernel sockets of one UDP socket.
#[derive(Default)]
pub(super) struct KernelSide {
    /// On the pod's addresses: IPv4, IPv6. For `hostNetwork` the socket itself, in its family's place.
    bound: [Option<Arc<KernelSocket>>; 2],
    /// Where the first of `bound` really is.
    pub(super) node: Option<SocketAddr>,
    /// To the world: IPv4, IPv6.
    uplinks: [Option<Arc<KernelSocket>>; 2],
    aliases: Vec<(u16, SocketAddr)>,
    /// Who asked through `bound`: the answer leaves by it.
    askers: Recent,
}

impl KernelSide {
    /// The socket on the pod's address of a family.
    pub(super) fn bound(&self, family: Family) -> Option<&Arc<KernelSocket>> {
        self.bound[family as usize].as_ref()
    }

    pub(super) fn set_bound(&mut self, family: Family, socket: Arc<KernelSocket>) {
        self.bound[family as usize] = Some(socket);
    }

    /// For `hostNetwork`: the socket itself.
    pub(super) fn itself(&self) -> Option<&Arc<KernelSocket>> {
        self.bound.iter().flatten().next()
    }

    pub(super) fn uplink(&self, family: Family) -> Option<&Arc<KernelSocket>> {
        self.uplinks[family as usize].as_ref()
    }

    pub(super) fn set_uplink(&mut self, family: Family, socket: Arc<KernelSocket>) {
        self.uplinks[family as usize] = Some(socket);
    }

    /// All that can have something to receive.
    pub(super) fn doors(&self, bound_is: Door) -> Vec<(Door, Arc<KernelSocket>)> {
        let bound = self.bound.iter().flatten().map(|socket| (bound_is, socket.clone()));
        bound.chain(self.uplinks.iter().flatten().map(|socket| (Door::World, socket.clone()))).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bound.iter().chain(&self.uplinks).all(Option::is_none)
    }

    /// How a kernel peer is shown; `None` when its datagram must not be seen.
    pub(super) fn show(&mut self, door: Door, from: SocketAddr, node_address: IpAddr) -> Option<SocketAddr> {
        match door {
            Door::Node => Some(from),
            // Somebody on the node guessed the port; the pod never talked to the node's loopback.
            Door::World if from.ip().is_loopback() => None,
            Door::World => Some(from),
            Door::Pod if from.ip().is_loopback() => Some(SocketAddr::new(node_address, self.alias(from))),
            Door::Pod => {
                self.askers.note(from, from);
                Some(from)
            }
        }
    }

    /// Whether a destination asked through the pod's address.
    pub(super) fn was_asked_by(&self, peer: SocketAddr) -> bool {
        self.askers.find(peer).is_some()
    }

    /// Who is behind a port of the node's address.
    pub(super) fn behind(&self, port: u16) -> Option<SocketAddr> {
        self.aliases.iter().find(|(alias, _)| *alias == port).map(|(_, real)| *real)
    }

    /// The peer's own port where it is free, else the next one.
    fn alias(&mut self, real: SocketAddr) -> u16 {
        if let Some(at) = self.aliases.iter().position(|(_, other)| *other == real) {
            let known = self.aliases.remove(at);
            self.aliases.push(known);
            return known.0;
        }
        if self.aliases.len() == MAX_ALIASES {
            self.aliases.remove(0);
        }
        let mut port = real.port();
        while self.behind(port).is_some() {
            port = port.checked_add(1).unwrap_or(1024);
        }
        self.aliases.push((port, real));
        port
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_on_the_node_are_told_apart_and_found_again() {
        let node: IpAddr = "127.64.0.1".parse().expect("address");
        let mut side = KernelSide::default();
        let peer = |n: u8, port| SocketAddr::from(([127, 0, 0, n], port));
        let first = side.show(Door::Pod, peer(1, 5000), node).expect("shown");
        let second = side.show(Door::Pod, peer(2, 5000), node).expect("shown");
        assert_eq!(first, SocketAddr::new(node, 5000));
        assert_eq!(second, SocketAddr::new(node, 5001));
        assert_eq!(side.show(Door::Pod, peer(1, 5000), node), Some(first));
        assert_eq!(side.behind(5001), Some(peer(2, 5000)));
        for port in 6000..6064 {
            side.show(Door::Pod, peer(1, port), node);
        }
        assert_eq!(side.behind(5001), None, "the oldest is forgotten");
        assert_eq!(side.show(Door::World, peer(1, 5000), node), None);
    }
}
