//! A guest's UDP socket over in-process inboxes and, where a destination asks for it, kernel sockets.
//!
//! In: calls of a WASI front-end, none of which blocks. Out: whole datagrams with their true senders. All that is
//! received goes through one inbox: the kernel's share is fetched when somebody receives or waits, so filters
//! apply before readiness is told. Knows neither WASI nor file descriptors of guests.

mod inbox;
mod kernel_side;
mod receive;
mod send;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU8, AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;

use self::kernel_side::KernelSide;
use super::account::{Account, OwnerId};
use super::kernel::{KernelSocket, Place};
use super::options::{UdpOption, UdpOptions};
use super::pod::{ListenerInfo, PodNetwork, Protocol};
use super::ports::{BindRequest, Reuse, Scope, SocketId};
use super::recent::Recent;
use super::route::{Family, present};
use super::services::Flows;
use super::tcp::{CLOSED, OPEN, checked_addr, end_errno, loopback_for_unspecified, node_sides};
use super::wait::Waiters;
use crate::errno::Errno;

pub(super) use self::inbox::Inbox;
pub use self::receive::Received;

/// The largest payload of a datagram over IPv4.
pub(super) const MAX_DATAGRAM: usize = 65_507;

/// A guest's UDP socket. All calls take `&self`; dropping the last `Arc` closes it.
pub struct UdpSocket {
    id: SocketId,
    pod: Arc<PodNetwork>,
    owner: OwnerId,
    account: Arc<Account>,
    family: Family,
    options: Mutex<UdpOptions>,
    state: Mutex<State>,
    inbox: Arc<Inbox>,
    /// Pending `SO_ERROR` as a raw number; 0 is none.
    error: AtomicI32,
    /// Woken when `state` changes; `generation` counts.
    changed: Waiters,
    generation: AtomicU32,
    end: AtomicU8,
    moved: AtomicU64,
}

#[derive(Default)]
struct State {
    /// Canonical; in the pod's table unless the pod uses the node's sockets.
    local: Option<SocketAddr>,
    /// Canonical.
    peer: Option<SocketAddr>,
    kernel: KernelSide,
    /// Who it talked to while policies are in force: what goes on needs no leave.
    spoken: Recent,
    /// The kernel socket that is connected to `peer` too.
    connected: Option<Arc<KernelSocket>>,
    /// Endpoints of the Services it talks to.
    flows: Flows,
}

/// Whether a bound socket shall be reachable from the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// The guest bound it.
    Node,
    /// It was bound by its first send: nobody knows its port but those it talks to.
    InProcess,
}

impl UdpSocket {
    pub(super) fn new(
        id: SocketId,
        pod: Arc<PodNetwork>,
        owner: OwnerId,
        account: Arc<Account>,
        family: Family,
    ) -> Self {
        let options = UdpOptions::default();
        Self {
            id,
            pod,
            owner,
            account,
            family,
            options: Mutex::new(options),
            state: Mutex::default(),
            inbox: Arc::new(Inbox::new(options.receive_buffer)),
            error: AtomicI32::new(0),
            changed: Waiters::default(),
            generation: AtomicU32::new(0),
            end: AtomicU8::new(OPEN),
            moved: AtomicU64::new(0),
        }
    }

    /// Its address family.
    pub fn family(&self) -> Family {
        self.family
    }

    /// The container attempt it belongs to.
    pub fn owner(&self) -> OwnerId {
        self.owner
    }

    /// bind(2). Port 0 picks an ephemeral port.
    ///
    /// # Errors
    /// EINVAL when bound already, EADDRINUSE, EADDRNOTAVAIL for an address that is not the pod's, EAFNOSUPPORT
    /// for one of another family.
    pub fn bind(&self, local: SocketAddr) -> Result<(), Errno> {
        self.check_open()?;
        let local = checked_addr(local, self.family, self.options.lock().v6_only)?;
        let mut state = self.state.lock();
        if state.local.is_some() {
            return Err(Errno::Inval);
        }
        self.take_address(&mut state, local, Reach::Node)?;
        drop(state);
        self.announce_change();
        Ok(())
    }

    fn take_address(&self, state: &mut State, local: SocketAddr, reach: Reach) -> Result<(), Errno> {
        let options = *self.options.lock();
        if self.pod.uses_node_sockets() {
            let (socket, addr) = self.pod.factory().udp_at(Place::Node, present(local, self.family), &options)?;
            state.kernel.set_bound(Family::of(addr.ip()), Arc::new(socket));
            state.kernel.node = Some(addr);
            state.local = Some(addr);
            return Ok(());
        }
        self.pod.check_local(local.ip())?;
        let request = BindRequest {
            id: self.id,
            local,
            reuse: if options.reuse_address { Reuse::Shared } else { Reuse::Exclusive },
            scope: if options.v6_only { Scope::OneFamily } else { Scope::DualStack },
        };
        let bound = self.pod.udp_ports().bind(request, Some(self.inbox.clone()))?;
        let wanted = if reach == Reach::Node { node_sides(&self.pod, bound, options.v6_only) } else { Vec::new() };
        for want in wanted {
            match self.pod.factory().udp_on_pod(want, self.pod.port_choice(want.port()), &options) {
                Ok((socket, node)) => {
                    if node.port() != want.port() {
                        tracing::info!(pod = %self.pod.name(), socket = %want, %node, "Remapped a port the kernel refused");
                    }
                    state.kernel.set_bound(Family::of(node.ip()), Arc::new(socket));
                    state.kernel.node.get_or_insert(node);
                }
                Err(errno) => {
                    state.kernel = KernelSide::default();
                    self.pod.udp_ports().release(self.id, bound.port());
                    return Err(errno);
                }
            }
        }
        state.local = Some(bound);
        Ok(())
    }

    /// Binds an unbound socket as its first send or connect does.
    fn ensure_bound(&self, state: &mut State) -> Result<SocketAddr, Errno> {
        if state.local.is_none() {
            let any = SocketAddr::new(self.family.unspecified(), 0);
            self.take_address(state, any, Reach::InProcess).map_err(|errno| match errno {
                Errno::AddrInUse => Errno::AddrNotAvail,
                other => other,
            })?;
        }
        state.local.ok_or(Errno::AddrNotAvail)
    }

    /// connect(2): the default destination and the only accepted sender.
    ///
    /// # Errors
    /// ENETUNREACH, EHOSTUNREACH and EACCES by destination, EINVAL for a loopback source to elsewhere.
    pub fn connect(&self, remote: SocketAddr) -> Result<(), Errno> {
        self.check_open()?;
        let remote = loopback_for_unspecified(checked_addr(remote, self.family, self.options.lock().v6_only)?);
        let mut state = self.state.lock();
        // A Service without an endpoint refuses what is sent, not this.
        let target = self.pod.service_flow(&mut state.flows, remote).unwrap_or(remote);
        self.point_at(&mut state, target)?;
        state.peer = Some(remote);
        drop(state);
        self.announce_change();
        Ok(())
    }

    /// Lets nobody but `target` answer.
    fn point_at(&self, state: &mut State, target: SocketAddr) -> Result<(), Errno> {
        let local = self.ensure_bound(state)?;
        if self.pod.uses_node_sockets() {
            let socket = state.kernel.itself().cloned().ok_or(Errno::BadF)?;
            socket.connect_datagrams(present(target, self.family))?;
            state.connected = Some(socket);
        } else {
            self.source(local, target)?;
            // In the kernel too: it filters, and brings ICMP's refusals.
            if let Some(socket) = self.way_out(state, local, target)? {
                socket.connect_datagrams(target)?;
                state.connected = Some(socket);
            }
        }
        self.inbox.set_peer(Some(target));
        Ok(())
    }

    /// connect(2) with `AF_UNSPEC`: any sender again.
    ///
    /// # Errors
    /// EBADF when closed; what the kernel says of its sockets.
    pub fn disconnect(&self) -> Result<(), Errno> {
        self.check_open()?;
        let mut state = self.state.lock();
        if state.peer.take().is_none() {
            return Ok(());
        }
        self.inbox.set_peer(None);
        state.connected.take().map_or(Ok(()), |socket| socket.disconnect_datagrams())
    }

    fn check_open(&self) -> Result<(), Errno> {
        end_errno(self.end.load(Ordering::SeqCst))
    }

    fn has_ended(&self) -> bool {
        self.end.load(Ordering::SeqCst) != OPEN
    }

    fn announce_change(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.changed.wake();
    }

    /// Closes now, though other `Arc`s of it exist; they get EBADF.
    pub fn close(&self) {
        self.end_with(CLOSED);
    }

    /// Ends the socket once: frees its port and its kernel sockets, wakes who waits.
    pub(super) fn end_with(&self, end: u8) {
        if self.end.compare_exchange(OPEN, end, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            return;
        }
        let state = std::mem::take(&mut *self.state.lock());
        if let Some(local) = state.local.filter(|_| !self.pod.uses_node_sockets()) {
            self.pod.udp_ports().release(self.id, local.port());
        }
        drop(state);
        self.inbox.close();
        self.pod.unregister(self.id);
        self.announce_change();
    }

    /// getsockname(2); the unspecified address and port 0 when unbound.
    ///
    /// # Errors
    /// EBADF when closed.
    pub fn local_addr(&self) -> Result<SocketAddr, Errno> {
        self.check_open()?;
        let state = self.state.lock();
        if let Some(bound) = state.kernel.itself().filter(|_| self.pod.uses_node_sockets()) {
            return bound.local_addr();
        }
        let local = match (state.local, state.peer) {
            (Some(local), Some(peer)) => self.source(local, peer).unwrap_or(local),
            (Some(local), None) => local,
            (None, _) => SocketAddr::new(self.family.unspecified(), 0),
        };
        Ok(present(local, self.family))
    }

    /// getpeername(2).
    ///
    /// # Errors
    /// ENOTCONN without a peer, EBADF when closed.
    pub fn peer_addr(&self) -> Result<SocketAddr, Errno> {
        self.check_open()?;
        let peer = self.state.lock().peer.ok_or(Errno::NotConn)?;
        Ok(present(peer, self.family))
    }

    /// `SO_ERROR`: reads and clears the pending error.
    pub fn take_error(&self) -> Option<Errno> {
        let raw = self.error.swap(0, Ordering::SeqCst);
        (raw != 0).then(|| Errno::from_raw(raw))
    }

    fn set_error(&self, errno: Errno) {
        self.error.store(errno.raw(), Ordering::SeqCst);
        self.changed.wake();
    }

    /// All options.
    pub fn options(&self) -> UdpOptions {
        *self.options.lock()
    }

    /// Sets one option.
    ///
    /// # Errors
    /// EINVAL for a value out of range or at a wrong time, ENOPROTOOPT for `IPV6_V6ONLY` on IPv4.
    pub fn set_option(&self, option: UdpOption) -> Result<(), Errno> {
        self.check_open()?;
        let state = self.state.lock();
        if matches!(option, UdpOption::V6Only(_)) {
            if self.family == Family::V4 {
                return Err(Errno::NoProtoOpt);
            }
            if state.local.is_some() {
                return Err(Errno::Inval);
            }
        }
        let (before, after) = {
            let mut options = self.options.lock();
            let before = *options;
            options.set(option)?;
            (before, *options)
        };
        self.inbox.set_limit(after.receive_buffer);
        for (_, socket) in state.kernel.doors(kernel_side::Door::Pod) {
            socket.apply_udp(&before, &after)?;
        }
        Ok(())
    }

    pub(super) fn listener_info(&self) -> Option<ListenerInfo> {
        let state = self.state.lock();
        let local = state.local.filter(|_| state.peer.is_none())?;
        let info = ListenerInfo {
            owner: self.owner,
            protocol: Protocol::Udp,
            local: present(local, self.family),
            node: state.kernel.node,
        };
        Some(info)
    }

    /// What tells an idle socket: bytes moved so far, and whether some wait to be read.
    pub(super) fn activity(&self) -> (u64, bool) {
        (self.moved.load(Ordering::Relaxed), !self.inbox.is_empty())
    }
}

impl Drop for UdpSocket {
    fn drop(&mut self) {
        self.end_with(CLOSED);
    }
}
