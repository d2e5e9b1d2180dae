//! A guest's TCP socket: POSIX's states over an in-process connection or a kernel one.
//!
//! In: calls of a WASI front-end, none of which blocks. Out: bytes, errors as Linux gives them, and readiness to
//! await. This file has the states, bind, options and the end of a socket; `listen`, `connect` and `io` have the
//! calls of their names, `stream` the adapter to tokio's traits. Knows neither WASI nor file descriptors of guests.
//!
//! ```text
//! Unbound -> Bound -> Listening
//!    |         |
//!    +----> Connecting -> Connected      (a failed connect goes back to where it came from)
//!    any state -> Closed                 (close, drop, or the pod is removed)
//! ```

mod connect;
mod io;
mod listen;
mod stream;

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use self::connect::Attempt;
use self::listen::Listening;
use super::account::{Account, OwnerId};
use super::backlog::Wire;
use super::connection::Close;
use super::kernel::{self, Place};
use super::options::{Shutdown, TcpOption, TcpOptions};
use super::pod::PodNetwork;
use super::ports::{BindRequest, Reuse, Scope, SocketId};
use super::route::{Family, canonical, present};
use super::traffic::Span;
use super::wait::Waiters;
use crate::errno::Errno;

pub(super) use self::connect::loopback_for_unspecified;
pub(super) use self::listen::{next_node_port, node_sides};
pub use self::stream::TcpStream;

/// Where a TCP socket is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TcpState {
    /// Made.
    Unbound,
    /// Has a local address.
    Bound,
    /// Accepts.
    Listening,
    /// `start_connect` was called and its outcome was not fetched.
    Connecting,
    /// Has, or had, a peer.
    Connected,
    /// Closed by its owner, or its pod is gone.
    Closed,
}

/// What a socket is ready for, for `poll_oneoff`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Readiness {
    /// A read (or accept) would not return EAGAIN.
    pub readable: bool,
    /// A write (or finishing a connect) would not return EAGAIN.
    pub writable: bool,
    /// The peer is gone, or both directions ended.
    pub hangup: bool,
    /// Bytes a read would return now, 0 for a listener.
    pub read_bytes: u64,
}

/// A guest's TCP socket. All calls take `&self`; dropping the last `Arc` closes it.
pub struct TcpSocket {
    id: SocketId,
    /// `None` for the node's own end of a dial.
    pod: Option<Arc<PodNetwork>>,
    owner: OwnerId,
    account: Option<Arc<Account>>,
    family: Family,
    options: Mutex<TcpOptions>,
    phase: Mutex<Phase>,
    /// Set once, so that reads and writes take no lock of the socket.
    link: OnceLock<Link>,
    /// Woken at each change of `phase`; `generation` counts them.
    changed: Waiters,
    generation: AtomicU32,
    end: AtomicU8,
    /// Bytes that went through, to tell an idle connection.
    moved: AtomicU64,
}

/// How a socket ended, as a number for an atomic.
pub(super) const OPEN: u8 = 0;
/// By its owner: EBADF.
pub(super) const CLOSED: u8 = 1;
/// With its pod: ECONNABORTED.
pub(super) const POD_GONE: u8 = 2;

/// With its last `Arc`: nobody is left to see an error.
const DROPPED: u8 = 3;

/// What every call of an ended socket returns.
pub(super) fn end_errno(end: u8) -> Result<(), Errno> {
    match end {
        OPEN => Ok(()),
        CLOSED => Err(Errno::BadF),
        _ => Err(Errno::ConnAborted),
    }
}

enum Phase {
    Unbound,
    Bound(Local),
    Listening(Listening),
    Connecting(Attempt),
    Failed { errno: Errno, back: Option<Local> },
    Connected,
    Closed,
}

/// A local address, and for `hostNetwork` the kernel socket that has it.
struct Local {
    /// Canonical.
    addr: SocketAddr,
    kernel: Option<OwnedFd>,
}

/// A made connection.
struct Link {
    wire: Wire,
    /// Canonical, as the guest sees it.
    local: SocketAddr,
    peer: SocketAddr,
    /// The port in the pod's table that goes when the socket goes.
    port: Option<u16>,
    /// Whether its bytes are the pod's traffic.
    span: Span,
}

impl TcpSocket {
    pub(super) fn new(
        id: SocketId,
        pod: Arc<PodNetwork>,
        owner: OwnerId,
        account: Arc<Account>,
        family: Family,
    ) -> Self {
        Self {
            id,
            pod: Some(pod),
            owner,
            account: Some(account),
            family,
            options: Mutex::default(),
            phase: Mutex::new(Phase::Unbound),
            link: OnceLock::new(),
            changed: Waiters::default(),
            generation: AtomicU32::new(0),
            end: AtomicU8::new(OPEN),
            moved: AtomicU64::new(0),
        }
    }

    /// The node's end of a connection into a pod.
    pub(super) fn of_node(wire: Wire, local: SocketAddr, peer: SocketAddr) -> Arc<Self> {
        Arc::new(Self {
            id: SocketId(0),
            pod: None,
            owner: OwnerId(u64::MAX),
            account: None,
            family: Family::of(peer.ip()),
            options: Mutex::default(),
            phase: Mutex::new(Phase::Connected),
            link: OnceLock::from(Link { wire, local, peer, port: None, span: Span::Inside }),
            changed: Waiters::default(),
            generation: AtomicU32::new(0),
            end: AtomicU8::new(OPEN),
            moved: AtomicU64::new(0),
        })
    }

    /// Its address family.
    pub fn family(&self) -> Family {
        self.family
    }

    /// The container attempt it belongs to.
    pub fn owner(&self) -> OwnerId {
        self.owner
    }

    /// Where it is in its life.
    pub fn state(&self) -> TcpState {
        match &*self.phase.lock() {
            Phase::Unbound => TcpState::Unbound,
            Phase::Bound(_) => TcpState::Bound,
            Phase::Listening(_) => TcpState::Listening,
            Phase::Connecting(_) | Phase::Failed { .. } => TcpState::Connecting,
            Phase::Connected => TcpState::Connected,
            Phase::Closed => TcpState::Closed,
        }
    }

    /// bind(2). Port 0 picks an ephemeral port.
    ///
    /// # Errors
    /// EINVAL when bound already, EADDRINUSE, EADDRNOTAVAIL for an address that is not the pod's, EAFNOSUPPORT
    /// for one of another family.
    pub fn bind(&self, local: SocketAddr) -> Result<(), Errno> {
        self.check_open()?;
        let mut phase = self.phase.lock();
        if !matches!(*phase, Phase::Unbound) {
            return Err(Errno::Inval);
        }
        let local = self.checked(local)?;
        *phase = Phase::Bound(self.take_address(local)?);
        Ok(())
    }

    /// A connection of this socket.
    fn link_of(&self, wire: Wire, local: SocketAddr, peer: SocketAddr, port: Option<u16>) -> Link {
        let span = match (&self.pod, &wire) {
            (Some(pod), Wire::Local(_)) => pod.span(peer.ip()),
            (Some(pod), Wire::Kernel(_)) if !pod.uses_node_sockets() => Span::Leaves,
            _ => Span::Inside,
        };
        Link { wire, local, peer, port, span }
    }

    fn pod(&self) -> Result<&Arc<PodNetwork>, Errno> {
        self.pod.as_ref().ok_or(Errno::Inval)
    }

    /// Reserves a canonical address in the pod's table, or binds it in the kernel.
    fn take_address(&self, local: SocketAddr) -> Result<Local, Errno> {
        let pod = self.pod()?;
        let options = *self.options.lock();
        if pod.uses_node_sockets() {
            let fd = pod.factory().bind_tcp(Place::Node, present(local, self.family), &options)?;
            return Ok(Local { addr: kernel::local_addr(&fd)?, kernel: Some(fd) });
        }
        pod.check_local(local.ip())?;
        let request = BindRequest {
            id: self.id,
            local,
            reuse: if options.reuse_address { Reuse::Shared } else { Reuse::Exclusive },
            scope: if options.v6_only { Scope::OneFamily } else { Scope::DualStack },
        };
        Ok(Local { addr: pod.tcp_ports().bind(request, None)?, kernel: None })
    }

    /// The canonical form of an address of this socket's family.
    fn checked(&self, addr: SocketAddr) -> Result<SocketAddr, Errno> {
        checked_addr(addr, self.family, self.options.lock().v6_only)
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

    /// Ends the socket once: frees its port, leaves its peer, wakes who waits.
    pub(super) fn end_with(&self, end: u8) {
        if self.end.compare_exchange(OPEN, end, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            return;
        }
        let phase = std::mem::replace(&mut *self.phase.lock(), Phase::Closed);
        let mut port = self.link.get().and_then(|link| link.port);
        match &phase {
            Phase::Bound(local) | Phase::Failed { back: Some(local), .. } => port = Some(local.addr.port()),
            Phase::Connecting(attempt) => port = attempt.port(),
            Phase::Listening(listening) => port = Some(listening.close()),
            Phase::Unbound | Phase::Failed { .. } | Phase::Connected | Phase::Closed => {}
        }
        if let Some(link) = self.link.get() {
            match &link.wire {
                Wire::Local(endpoint) => {
                    let reset = end == POD_GONE || self.options.lock().linger.is_some_and(|linger| linger.is_zero());
                    endpoint.close(if reset { Close::Reset } else { Close::Orderly });
                }
                // close(2) follows at once and decides between FIN and RST itself.
                Wire::Kernel(_) if end == DROPPED => {}
                // The descriptor itself goes with the last `Arc`; ENOTCONN only says the peer was faster.
                Wire::Kernel(socket) => drop(socket.shutdown(Shutdown::Both)),
            }
        }
        if let Some(pod) = &self.pod {
            if let Some(port) = port {
                pod.tcp_ports().release(self.id, port);
            }
            pod.unregister(self.id);
        }
        self.announce_change();
    }

    /// getsockname(2); the unspecified address and port 0 when unbound.
    ///
    /// # Errors
    /// EBADF when closed.
    pub fn local_addr(&self) -> Result<SocketAddr, Errno> {
        self.check_open()?;
        if let Some(link) = self.link.get() {
            return Ok(present(link.local, self.family));
        }
        let addr = match &*self.phase.lock() {
            Phase::Bound(local) | Phase::Failed { back: Some(local), .. } => local.addr,
            Phase::Listening(listening) => listening.local(),
            Phase::Connecting(attempt) => attempt.local(),
            Phase::Unbound | Phase::Failed { .. } | Phase::Connected | Phase::Closed => {
                SocketAddr::new(self.family.unspecified(), 0)
            }
        };
        // A dual-stack socket on `::` shows `::`, not a mapped address: it is IPv6 already.
        Ok(present(addr, self.family))
    }

    /// getpeername(2).
    ///
    /// # Errors
    /// ENOTCONN without a peer, EBADF when closed.
    pub fn peer_addr(&self) -> Result<SocketAddr, Errno> {
        self.check_open()?;
        let link = self.link.get().ok_or(Errno::NotConn)?;
        Ok(present(link.peer, self.family))
    }

    /// All options.
    pub fn options(&self) -> TcpOptions {
        *self.options.lock()
    }

    /// Sets one option.
    ///
    /// # Errors
    /// EINVAL for a value out of range or at a wrong time, ENOPROTOOPT for `IPV6_V6ONLY` on IPv4.
    pub fn set_option(&self, option: TcpOption) -> Result<(), Errno> {
        self.check_open()?;
        if matches!(option, TcpOption::V6Only(_)) {
            if self.family == Family::V4 {
                return Err(Errno::NoProtoOpt);
            }
            if !matches!(*self.phase.lock(), Phase::Unbound) {
                return Err(Errno::Inval);
            }
        }
        let (before, after) = {
            let mut options = self.options.lock();
            let before = *options;
            options.set(option)?;
            (before, *options)
        };
        match self.link.get().map(|link| &link.wire) {
            Some(Wire::Kernel(socket)) => socket.apply_tcp(&before, &after),
            Some(Wire::Local(endpoint)) => {
                if before.send_buffer != after.send_buffer {
                    endpoint.set_window_out(after.send_buffer as usize);
                }
                if before.receive_buffer != after.receive_buffer {
                    endpoint.set_window_in(after.receive_buffer as usize);
                }
                Ok(())
            }
            None => Ok(()),
        }
    }
}

/// The canonical form of an address, if a socket of `family` can use it.
pub(super) fn checked_addr(addr: SocketAddr, family: Family, v6_only: bool) -> Result<SocketAddr, Errno> {
    if Family::of(addr.ip()) != family {
        return Err(Errno::AfNoSupport);
    }
    let canonical = canonical(addr);
    if canonical.is_ipv4() && family == Family::V6 && v6_only {
        return Err(Errno::Inval);
    }
    Ok(canonical)
}

impl Drop for TcpSocket {
    fn drop(&mut self) {
        self.end_with(DROPPED);
    }
}
