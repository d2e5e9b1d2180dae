//! listen and accept: one queue in process, and for addresses the node can reach one listener in the kernel.
//!
//! In: a bound socket. Out: accepted sockets, from both places by turns. A listener on 127.0.0.1 or `::1` never
//! has a kernel socket; one on the unspecified address or the pod's own has one on each of the pod's addresses that it covers.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use futures::future::select_all;

use super::super::account::OwnerId;
use super::super::backlog::{Arrival, Backlog, Wire};
use super::super::kernel::KernelSocket;
use super::super::options::TcpOptions;
use super::super::pod::{ListenerInfo, PodNetwork, Protocol};
use super::super::route::present;
use super::super::wait::until;
use super::{Local, Phase, TcpSocket};
use crate::errno::Errno;
use crate::pod::run::PortProtocol;
use tokio::io::Interest;

/// A listener's parts.
pub(super) struct Listening {
    local: SocketAddr,
    backlog: Arc<Backlog>,
    kernel: Vec<Door>,
    /// Where the first kernel listener really is.
    node: Option<SocketAddr>,
    /// Whose turn it is, so that no place starves another.
    turn: AtomicUsize,
}

/// A listener in the kernel, and the address of the pod that it stands for.
#[derive(Clone)]
pub(super) struct Door {
    socket: Arc<KernelSocket>,
    ip: IpAddr,
}

impl Listening {
    pub(super) fn local(&self) -> SocketAddr {
        self.local
    }

    /// Resets what is queued; returns the port to release.
    pub(super) fn close(&self) -> u16 {
        self.backlog.close();
        self.local.port()
    }
}

/// What `accept` and its waiting need, without the lock of the socket.
pub(super) struct AcceptFrom {
    pub(super) backlog: Arc<Backlog>,
    kernel: Vec<Door>,
    local: SocketAddr,
    turn: usize,
}

impl AcceptFrom {
    pub(super) fn is_ready(&self) -> bool {
        use rustix::event::PollFlags;
        !self.backlog.is_empty() || self.kernel.iter().any(|door| door.socket.poll_now().intersects(PollFlags::IN))
    }
}

impl TcpSocket {
    /// listen(2). An unbound socket gets an ephemeral port, as on Linux; a listening one gets the new backlog.
    ///
    /// # Errors
    /// EADDRINUSE when another socket listens there, EINVAL on a connected socket.
    pub fn listen(&self, backlog: u32) -> Result<(), Errno> {
        self.check_open()?;
        let pod = self.pod()?;
        let backlog = backlog.min(pod.limits().backlog);
        let mut phase = self.phase.lock();
        match &*phase {
            Phase::Listening(listening) => {
                listening.backlog.set_limit(backlog);
                return Ok(());
            }
            Phase::Unbound => *phase = Phase::Bound(self.take_address(SocketAddr::new(self.family.unspecified(), 0))?),
            Phase::Bound(_) => {}
            Phase::Closed => return Err(Errno::BadF),
            Phase::Connecting(_) | Phase::Failed { .. } | Phase::Connected => return Err(Errno::Inval),
        }
        let Phase::Bound(local) = &mut *phase else { return Err(Errno::Inval) };
        let listening = self.start_listening(pod, local, backlog)?;
        *phase = Phase::Listening(listening);
        drop(phase);
        self.announce_change();
        Ok(())
    }

    fn start_listening(&self, pod: &Arc<PodNetwork>, local: &mut Local, limit: u32) -> Result<Listening, Errno> {
        let options = *self.options.lock();
        let queue = Arc::new(Backlog::new(limit, self.account.clone(), options));
        let mut listening = Listening {
            local: local.addr,
            backlog: queue.clone(),
            kernel: Vec::new(),
            node: None,
            turn: AtomicUsize::new(0),
        };
        let made = if let Some(fd) = &local.kernel {
            // A copy: if listen(2) fails, the socket stays bound.
            let fd = fd.try_clone()?;
            vec![pod.factory().listen(fd, limit, &options)?]
        } else {
            let port = local.addr.port();
            pod.tcp_ports().listen(self.id, port, queue)?;
            let kernel = listen_for_node(pod, local.addr, limit, &options);
            if kernel.is_err() {
                pod.tcp_ports().stop_listening(self.id, port);
            }
            kernel?
        };
        listening.node = made.first().map(|(_, node)| *node);
        let door = |(socket, node): (KernelSocket, SocketAddr)| Door { socket: Arc::new(socket), ip: node.ip() };
        listening.kernel = made.into_iter().map(door).collect();
        Ok(listening)
    }

    /// accept(2), EAGAIN when none waits. The new socket has the listener's owner and options.
    ///
    /// # Errors
    /// EINVAL when not listening, EMFILE at the pod's limit (the connection stays queued), EBADF when closed.
    pub fn try_accept(&self) -> Result<Arc<TcpSocket>, Errno> {
        self.check_open()?;
        let from = self.accept_from().ok_or(Errno::Inval)?;
        let pod = self.pod()?;
        pod.check_room()?;
        let arrival = self.next_arrival(pod, &from)?;
        let options = *self.options.lock();
        let socket = pod.tcp_socket(self.owner, self.family)?;
        *socket.options.lock() = options;
        *socket.phase.lock() = Phase::Connected;
        let Arrival { wire, local, peer } = arrival;
        if socket.link.set(socket.link_of(wire, local, peer, None)).is_err() {
            unreachable!("a socket made here has no link yet");
        }
        Ok(socket)
    }

    fn next_arrival(&self, pod: &PodNetwork, from: &AcceptFrom) -> Result<Arrival, Errno> {
        let places = from.kernel.len() + 1;
        let one = |place: usize| match place.checked_sub(1).and_then(|at| from.kernel.get(at)) {
            Some(door) => accept_kernel(pod, door, from.local),
            None => from.backlog.pop().ok_or(Errno::Again),
        };
        let any = || {
            let mut tried = (0..places).map(|step| one((from.turn + step) % places));
            tried.find(|arrival| !matches!(arrival, Err(Errno::Again))).unwrap_or(Err(Errno::Again))
        };
        loop {
            let arrival = any()?;
            // Where the kernel is in between, a connection is there before policies were asked.
            if pod.lets_in(arrival.peer.ip(), PortProtocol::Tcp, arrival.local.port()) {
                return Ok(arrival);
            }
            arrival.reset();
        }
    }

    /// Waits for a connection and accepts it. Cancel-safe.
    ///
    /// # Errors
    /// As [`Self::try_accept`], without EAGAIN.
    pub async fn accept(&self) -> Result<Arc<TcpSocket>, Errno> {
        loop {
            match self.try_accept() {
                Err(Errno::Again) => self.readable().await,
                other => return other,
            }
        }
    }

    pub(super) fn accept_from(&self) -> Option<AcceptFrom> {
        let phase = self.phase.lock();
        let Phase::Listening(listening) = &*phase else { return None };
        Some(AcceptFrom {
            backlog: listening.backlog.clone(),
            kernel: listening.kernel.clone(),
            local: listening.local,
            turn: listening.turn.fetch_add(1, Ordering::Relaxed),
        })
    }

    /// Waits until there is a connection to accept, or the listener changes.
    pub(super) async fn wait_for_arrival(&self, from: &AcceptFrom, generation: u32) {
        let changed = || self.generation.load(Ordering::SeqCst) != generation;
        let in_process = until([&from.backlog.arrivals, &self.changed], || !from.backlog.is_empty() || changed());
        if from.kernel.is_empty() {
            return in_process.await;
        }
        // Both arms only look; nothing is lost when the other wins.
        tokio::select! {
            () = in_process => {}
            _ = select_all(from.kernel.iter().map(|door| Box::pin(door.socket.ready(Interest::READABLE)))) => {}
        }
    }

    /// Takes no new connections; those that arrived can still be accepted.
    pub(in crate::network) fn stop_accepting(&self) {
        let Some(pod) = &self.pod else { return };
        {
            let mut phase = self.phase.lock();
            let Phase::Listening(listening) = &mut *phase else { return };
            listening.backlog.stop();
            if !pod.uses_node_sockets() {
                pod.tcp_ports().stop_listening(self.id, listening.local.port());
            }
            for door in std::mem::take(&mut listening.kernel) {
                // The kernel resets what it had queued when its listener closes, so take it over first; no more
                // than its backlog can be there.
                for _ in 0..=pod.limits().backlog {
                    let Ok(arrival) = accept_kernel(pod, &door, listening.local) else { break };
                    listening.backlog.push(arrival);
                }
            }
            listening.node = None;
        }
        self.announce_change();
    }

    /// Arrivals that nobody accepted yet.
    pub(in crate::network) fn has_arrivals(&self) -> bool {
        self.accept_from().is_some_and(|from| from.is_ready())
    }

    pub(in crate::network) fn listener_info(&self) -> Option<ListenerInfo> {
        let phase = self.phase.lock();
        let Phase::Listening(listening) = &*phase else { return None };
        let owner: OwnerId = self.owner;
        let local = present(listening.local, self.family);
        Some(ListenerInfo { owner, protocol: Protocol::Tcp, local, node: listening.node })
    }
}

/// The listener's part in the kernel, on those of the pod's addresses that its own covers.
fn listen_for_node(
    pod: &PodNetwork,
    local: SocketAddr,
    backlog: u32,
    options: &TcpOptions,
) -> Result<Vec<(KernelSocket, SocketAddr)>, Errno> {
    let listen = |want: SocketAddr| {
        let made = pod.factory().listen_on_pod(want, pod.port_choice(want.port()), backlog, options)?;
        if made.1.port() != want.port() {
            tracing::info!(pod = %pod.name(), listener = %want, node = %made.1, "Remapped a port the kernel refused");
        }
        Ok(made)
    };
    node_sides(pod, local, options.v6_only).into_iter().map(listen).collect()
}

/// The pod addresses under which the node reaches a socket bound to `local`: two for one bound to `::` in a pod of both
/// families, unless it is for IPv6 alone.
pub(in crate::network) fn node_sides(pod: &PodNetwork, local: SocketAddr, v6_only: bool) -> Vec<SocketAddr> {
    let covers = |pod_ip: &IpAddr| match local.ip() {
        ip if ip == *pod_ip => true,
        IpAddr::V4(v4) => v4.is_unspecified() && pod_ip.is_ipv4(),
        IpAddr::V6(v6) => v6.is_unspecified() && (pod_ip.is_ipv6() || !v6_only),
    };
    let covered = pod.ips().into_iter().filter(covers);
    covered.map(|pod_ip| SocketAddr::new(pod_ip, local.port())).collect()
}

fn accept_kernel(pod: &PodNetwork, door: &Door, local: SocketAddr) -> Result<Arrival, Errno> {
    let (socket, peer) = pod.factory().accept(&door.socket)?;
    if pod.uses_node_sockets() {
        let local = socket.local_addr()?;
        return Ok(Arrival { wire: Wire::Kernel(Arc::new(socket)), local, peer });
    }
    // The true local port, not the remapped one.
    let local = SocketAddr::new(door.ip, local.port());
    Ok(Arrival { wire: Wire::Kernel(Arc::new(socket)), local, peer: pod.shown_peer(peer) })
}

/// Numbers the node's own ends of in-process connections; it stands for ephemeral ports.
static NODE_PORT: AtomicU64 = AtomicU64::new(0);

/// A port for the node's end, for the guest to see.
pub(in crate::network) fn next_node_port() -> u16 {
    32768 + (NODE_PORT.fetch_add(1, Ordering::Relaxed) % 28232) as u16
}
