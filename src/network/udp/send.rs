//! Sending datagrams: into an inbox of this node, or through the kernel.
//!
//! In: bytes and a destination. Out: how many were taken, which is all or an error. A refusal by a connected
//! peer is told on the next call, as ICMP's is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::kernel::KernelSocket;
use super::super::pod::PodNetwork;
use super::super::route::{Destination, Family, present};
use super::super::tcp::loopback_for_unspecified;
use super::inbox::Delivery;
use super::{MAX_DATAGRAM, State, UdpSocket, checked_addr};
use crate::errno::Errno;

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
        if self.pod.uses_node_sockets() {
            let socket = state.kernel.bound.clone().ok_or(Errno::BadF)?;
            drop(state);
            // A connected kernel socket is sent to by its own address all the same.
            return self.sent(socket.send_to(data, present(to, self.family)));
        }
        let source = self.source(local, to)?;
        match self.pod.routes().classify(to.ip()) {
            Destination::Loopback(_) => {
                drop(state);
                self.sent(self.deliver(&self.pod, source, to, data, connected))
            }
            Destination::Pod(ip) => {
                drop(state);
                let target = self.pod.neighbour(ip).ok_or(Errno::HostUnreach)?;
                self.sent(self.deliver(&target, source, to, data, connected))
            }
            Destination::Node => {
                let way = state.kernel.behind(to.port()).zip(state.kernel.bound.clone());
                drop(state);
                match way {
                    Some((real, socket)) => self.sent(socket.send_to(data, real)),
                    None => self.sent(self.refused(data, connected)),
                }
            }
            Destination::Outside => {
                let socket = self.uplink(&mut state, to)?;
                drop(state);
                self.sent(socket.send_to(data, to))
            }
            Destination::Denied(errno) => Err(errno),
        }
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
        let own = self.pod.ip();
        let asked = Some(local.ip()).filter(|ip| !ip.is_unspecified());
        let ip = match self.pod.routes().classify(to.ip()) {
            Destination::Loopback(IpAddr::V4(_)) => asked.unwrap_or(Ipv4Addr::LOCALHOST.into()),
            Destination::Loopback(IpAddr::V6(_)) => asked.unwrap_or(Ipv6Addr::LOCALHOST.into()),
            Destination::Pod(ip) if ip == own => asked.unwrap_or(own),
            Destination::Denied(errno) => return Err(errno),
            // Linux: a loopback source cannot leave.
            _ if asked.is_some_and(|ip| ip != own) => return Err(Errno::Inval),
            Destination::Outside if to.is_ipv6() => local.ip(),
            Destination::Pod(_) | Destination::Node | Destination::Outside => own,
        };
        Ok(SocketAddr::new(ip, local.port()))
    }

    /// The kernel socket to the world, made at the first need.
    pub(super) fn uplink(&self, state: &mut State, to: SocketAddr) -> Result<Arc<KernelSocket>, Errno> {
        let family = Family::of(to.ip());
        if let Some(socket) = state.kernel.uplink(family) {
            return Ok(socket.clone());
        }
        let options = *self.options.lock();
        let (socket, _) = self.pod.factory().udp_at(SocketAddr::new(family.unspecified(), 0), &options)?;
        let socket = Arc::new(socket);
        state.kernel.set_uplink(family, socket.clone());
        // Who waits to receive must look at this one too.
        self.announce_change();
        Ok(socket)
    }
}
