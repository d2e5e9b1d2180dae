//! listen and accept: one queue in process, and for addresses the node can reach one listener in the kernel.
//!
//! In: a bound socket. Out: accepted sockets, from both places by turns. A listener on 127.0.0.1 or `::1` never
//! has a kernel socket; one on the unspecified address or the pod's own has one on the pod's address.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

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
    kernel: Option<Arc<KernelSocket>>,
    /// Where the kernel listener really is.
    node: Option<SocketAddr>,
    /// Whose turn it is, so that neither place starves the other.
    kernel_first: AtomicBool,
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
    pub(super) kernel: Option<Arc<KernelSocket>>,
    local: SocketAddr,
    kernel_first: bool,
}

impl AcceptFrom {
    pub(super) fn is_ready(&self) -> bool {
        use rustix::event::PollFlags;
        !self.backlog.is_empty()
            || self.kernel.as_ref().is_some_and(|kernel| kernel.poll_now().intersects(PollFlags::IN))
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
            kernel: None,
            node: None,
            kernel_first: AtomicBool::new(false),
        };
        let made = if let Some(fd) = &local.kernel {
            // A copy: if listen(2) fails, the socket stays bound.
            let fd = fd.try_clone()?;
            Some(pod.factory().listen(fd, limit, &options)?)
        } else {
            let port = local.addr.port();
            pod.tcp_ports().listen(self.id, port, queue)?;
            let kernel = listen_for_node(pod, local.addr, limit, &options);
            if kernel.is_err() {
                pod.tcp_ports().stop_listening(self.id, port);
            }
            kernel?
        };
        if let Some((kernel, node)) = made {
            listening.kernel = Some(Arc::new(kernel));
            listening.node = Some(node);
        }
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
        let queued = || from.backlog.pop();
        let kernel = || match &from.kernel {
            Some(kernel) => accept_kernel(pod, kernel, from.local),
            None => Err(Errno::Again),
        };
        loop {
            let arrival = if from.kernel_first {
                match kernel() {
                    Err(Errno::Again) => queued().ok_or(Errno::Again),
                    other => other,
                }
            } else {
                queued().map_or_else(kernel, Ok)
            }?;
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
            kernel_first: listening.kernel_first.fetch_xor(true, Ordering::Relaxed),
        })
    }

    /// Waits until there is a connection to accept, or the listener changes.
    pub(super) async fn wait_for_arrival(&self, from: &AcceptFrom, generation: u32) {
        let changed = || self.generation.load(Ordering::SeqCst) != generation;
        let in_process = until([&from.backlog.arrivals, &self.changed], || !from.backlog.is_empty() || changed());
        match &from.kernel {
            // Both arms only look; nothing is lost when the other wins.
            Some(kernel) => tokio::select! {
                () = in_process => {}
                () = kernel.ready(Interest::READABLE) => {}
            },
            None => in_process.await,
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
            if let Some(kernel) = listening.kernel.take() {
                // The kernel resets what it had queued when its listener closes, so take it over first; no more
                // than its backlog can be there.
                for _ in 0..=pod.limits().backlog {
                    let Ok(arrival) = accept_kernel(pod, &kernel, listening.local) else { break };
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

/// The listener's part in the kernel, on the pod's address, if its own address covers that.
fn listen_for_node(
    pod: &PodNetwork,
    local: SocketAddr,
    backlog: u32,
    options: &TcpOptions,
) -> Result<Option<(KernelSocket, SocketAddr)>, Errno> {
    let Some(want) = node_side(pod, local, options.v6_only) else { return Ok(None) };
    let made = pod.factory().listen_on_pod(want, pod.port_choice(want.port()), backlog, options)?;
    if made.1.port() != want.port() {
        tracing::info!(pod = %pod.name(), listener = %want, node = %made.1, "Remapped a port the kernel refused");
    }
    Ok(Some(made))
}

/// The pod address under which the node reaches a socket bound to `local`.
pub(in crate::network) fn node_side(pod: &PodNetwork, local: SocketAddr, v6_only: bool) -> Option<SocketAddr> {
    let pod_ip = pod.ip();
    let covered = match local.ip() {
        ip if ip == pod_ip => true,
        IpAddr::V4(v4) => v4.is_unspecified() && pod_ip.is_ipv4(),
        IpAddr::V6(v6) => v6 == Ipv6Addr::UNSPECIFIED && (pod_ip.is_ipv6() || !v6_only),
    };
    covered.then(|| SocketAddr::new(pod_ip, local.port()))
}

fn accept_kernel(pod: &PodNetwork, listener: &KernelSocket, local: SocketAddr) -> Result<Arrival, Errno> {
    let (socket, peer) = pod.factory().accept(listener)?;
    if pod.uses_node_sockets() {
        let local = socket.local_addr()?;
        return Ok(Arrival { wire: Wire::Kernel(Arc::new(socket)), local, peer });
    }
    // The true local port, not the remapped one.
    let local = SocketAddr::new(pod.ip(), local.port());
    Ok(Arrival { wire: Wire::Kernel(Arc::new(socket)), local, peer: pod.shown_peer(peer) })
}

/// Numbers the node's own ends of in-process connections; it stands for ephemeral ports.
static NODE_PORT: AtomicU64 = AtomicU64::new(0);

/// A port for the node's end, for the guest to see.
pub(in crate::network) fn next_node_port() -> u16 {
    32768 + (NODE_PORT.fetch_add(1, Ordering::Relaxed) % 28232) as u16
}
