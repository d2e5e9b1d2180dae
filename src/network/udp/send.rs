//! Sending datagrams: into an inbox of this node, or through the kernel.
//!
//! In: bytes and a destination. Out: how many were taken, which is all or an error. A refusal by a connected
//! peer is told on the next call, as ICMP's is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::kernel::{KernelSocket, Place};
use super::super::pod::PodNetwork;
use super::super::policy::Standing;
use super::super::route::{Destination, Family, present};
use super::super::tcp::loopback_for_unspecified;
use super::inbox::Delivery;
use super::{MAX_DATAGRAM, State, UdpSocket, checked_addr};
use crate::errno::Errno;
use crate::pod::run::PortProtocol;

impl UdpSocket {
    /// sendto(2); `None` needs a connected socket. An unbound socket gets an ephemeral port.
    ///
    /// # Errors
    /// EDESTADDRREQ without a destination, EMSGSIZE above 65507 bytes, ENETUNREACH, EHOSTUNREACH and EACCES by
    /// destination, ECONNREFUSED of an earlier send of a connected socket, EAGAIN.
    pub fn try_send_to(&self, data: &[u8], to: Option<SocketAddr>) -> Result<usize, Errno> {
        self.check_open()?;
        if let Some(errno) = self.take_error() {
            return Err(errno);
        }
        if data.len() > MAX_DATAGRAM {
            return Err(Errno::MsgSize);
        }
        let mut state = self.state.lock();
        let to = match to {
            Some(to) => loopback_for_unspecified(checked_addr(to, self.family, self.options.lock().v6_only)?),
            None => state.peer.ok_or(Errno::DestAddrReq)?,
        };
        if to.port() == 0 {
            return Err(Errno::Inval);
        }
        let connected = state.peer == Some(to);
        let local = self.ensure_bound(&mut state)?;
        let before = state.flows.current(to);
        let Ok(target) = self.pod.service_flow(&mut state.flows, to) else {
            drop(state);
            return self.sent(self.refused(data, connected));
        };
        if connected && before.is_some_and(|before| before != target) {
            // Its endpoint is gone: what goes on goes on with another one.
            self.point_at(&mut state, target)?;
        }
        let to = target;
        if self.pod.uses_node_sockets() {
            let socket = state.kernel.itself().cloned().ok_or(Errno::BadF)?;
            drop(state);
            // A connected kernel socket is sent to by its own address all the same.
            return self.sent(socket.send_to(data, present(to, self.family)));
        }
        if let Some(answered) = self.pod.answer_by_node(local.port(), to, data) {
            drop(state);
            return self.sent_away(answered);
        }
        let source = self.source(local, to)?;
        self.check_out(&mut state, to)?;
        match self.pod.routes().classify(to.ip()) {
            Destination::Loopback(_) => {
                drop(state);
                self.sent(self.deliver(&self.pod, source, to, data, connected))
            }
            Destination::Pod(ip) => {
                drop(state);
                let target = self.pod.neighbour(ip).ok_or(Errno::HostUnreach)?;
                self.sent_to_pod(&target, self.deliver(&target, source, to, data, connected))
            }
            Destination::Node => {
                let bound = state.kernel.bound(Family::of(to.ip())).cloned();
                let way = state.kernel.behind(to.port()).zip(bound);
                drop(state);
                match way {
                    Some((real, socket)) => self.sent_away(socket.send_to(data, real)),
                    None => self.sent(self.refused(data, connected)),
                }
            }
            Destination::Cluster | Destination::Outside => {
                let socket = self.way_out(&mut state, local, to)?.ok_or(Errno::NetUnreach)?;
                drop(state);
                self.sent_away(socket.send_to(data, to))
            }
            Destination::Denied(errno) => Err(errno),
        }
    }

    /// Asks policies once for each peer; what it is asked it may answer.
    fn check_out(&self, state: &mut State, to: SocketAddr) -> Result<(), Errno> {
        if self.pod.policies().standing() == Standing::Off || state.spoken.find(to).is_some() {
            return Ok(());
        }
        match self.pod.check_out(to, PortProtocol::Udp) {
            // A datagram that the other pod's policies do not let in is lost on the way.
            Err(Errno::ConnRefused) => Err(Errno::Perm),
            other => other,
        }?;
        state.spoken.note(to, to);
        Ok(())
    }

    fn sent_away(&self, result: Result<usize, Errno>) -> Result<usize, Errno> {
        if let Ok(n) = result {
            self.pod.counters().sent(n);
        }
        self.sent(result)
    }

    fn sent_to_pod(&self, target: &PodNetwork, result: Result<usize, Errno>) -> Result<usize, Errno> {
        if std::ptr::eq(target, &raw const *self.pod) { self.sent(result) } else { self.sent_away(result) }
    }

    fn sent(&self, result: Result<usize, Errno>) -> Result<usize, Errno> {
        let n = result?;
        self.moved.fetch_add(n as u64 + 1, Ordering::Relaxed);
        Ok(n)
    }

    fn deliver(
        &self,
        target: &PodNetwork,
        source: SocketAddr,
        to: SocketAddr,
        data: &[u8],
        connected: bool,
    ) -> Result<usize, Errno> {
        let inbox = target.find_inbox(to);
        match inbox.map(|inbox| inbox.deliver(source, data, Some(&self.account))) {
            Some(Delivery::Queued | Delivery::Dropped) => Ok(data.len()),
            Some(Delivery::Refused) | None => self.refused(data, connected),
        }
    }

    /// Nobody is there: the datagram is gone, and a connected sender learns it with its next call.
    fn refused(&self, data: &[u8], connected: bool) -> Result<usize, Errno> {
        if connected {
            self.set_error(Errno::ConnRefused);
        }
        Ok(data.len())
    }

    /// The sender address a destination sees.
    pub(super) fn source(&self, local: SocketAddr, to: SocketAddr) -> Result<SocketAddr, Errno> {
        let own = self.pod.ip_towards(to.ip());
        let asked = Some(local.ip()).filter(|ip| !ip.is_unspecified());
        let ip = match self.pod.routes().classify(to.ip()) {
            Destination::Loopback(IpAddr::V4(_)) => asked.unwrap_or(Ipv4Addr::LOCALHOST.into()),
            Destination::Loopback(IpAddr::V6(_)) => asked.unwrap_or(Ipv6Addr::LOCALHOST.into()),
            Destination::Pod(ip) if ip == own => asked.unwrap_or(own),
            Destination::Denied(errno) => return Err(errno),
            // Linux: a loopback source cannot leave.
            _ if asked.is_some_and(|ip| ip != own) => return Err(Errno::Inval),
            Destination::Outside if to.is_ipv6() != own.is_ipv6() => local.ip(),
            Destination::Pod(_) | Destination::Node | Destination::Cluster | Destination::Outside => own,
        };
        Ok(SocketAddr::new(ip, local.port()))
    }

    /// The kernel socket that a destination is reached through; `None` for one in process. An answer leaves by the pod's
    /// address, as does what is for the cluster and, where that is the node's, everything; the rest leaves from the node.
    pub(super) fn way_out(
        &self,
        state: &mut State,
        local: SocketAddr,
        to: SocketAddr,
    ) -> Result<Option<Arc<KernelSocket>>, Errno> {
        let own = self.pod.ip_of(Family::of(to.ip()));
        let from_pod = match self.pod.routes().classify(to.ip()) {
            Destination::Cluster => true,
            Destination::Outside => self.pod.shares_node_address() || state.kernel.was_asked_by(to),
            _ => return Ok(None),
        };
        match own.filter(|_| from_pod) {
            Some(own) => self.pod_side(state, own, local).map(Some),
            None => self.uplink(state, to).map(Some),
        }
    }

    /// The kernel socket on the pod's address, made at the first need of a socket that the guest did not bind.
    fn pod_side(&self, state: &mut State, own: IpAddr, local: SocketAddr) -> Result<Arc<KernelSocket>, Errno> {
        let family = Family::of(own);
        if let Some(socket) = state.kernel.bound(family) {
            return Ok(socket.clone());
        }
        let options = *self.options.lock();
        let at = |port| self.pod.factory().udp_at(Place::Pods, SocketAddr::new(own, port), &options);
        // The port that the pod's table gave; any other when a socket of the kernel's has it.
        let (socket, _) = at(local.port()).or_else(|_| at(0))?;
        let socket = Arc::new(socket);
        state.kernel.set_bound(family, socket.clone());
        self.announce_change();
        Ok(socket)
    }

    /// The kernel socket to the world, made at the first need.
    fn uplink(&self, state: &mut State, to: SocketAddr) -> Result<Arc<KernelSocket>, Errno> {
        let family = Family::of(to.ip());
        if let Some(socket) = state.kernel.uplink(family) {
            return Ok(socket.clone());
        }
        let options = *self.options.lock();
        let anywhere = SocketAddr::new(family.unspecified(), 0);
        let (socket, _) = self.pod.factory().udp_at(Place::Node, anywhere, &options)?;
        let socket = Arc::new(socket);
        state.kernel.set_uplink(family, socket.clone());
        // Who waits to receive must look at this one too.
        self.announce_change();
        Ok(socket)
    }
}
