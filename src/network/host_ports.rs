//! `hostPort`: ports of the node that lead to a pod.
//!
//! In: the pod's ports, on all addresses of the node or on `hostIP`. Out: listeners of the node's own namespace, one task
//! each, as long as the pod is there. An accepted connection is put into the queue of the pod's listener as it is: no byte
//! is copied on the way, and the guest sees the true peer. The kubelet leaves this to CNI (`portmap`).
//!
//! Nobody listening in the pod is a reset; a full queue keeps connections in the kernel's, as its own listener would.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::Interest;
use tokio_util::task::AbortOnDropHandle;

use super::backlog::{Arrival, Wire};
use super::config::NetworkError;
use super::kernel::{Factory, KernelSocket, Place};
use super::node::Shared;
use super::options::{TcpOptions, UdpOptions};
use super::pod::PodNetwork;
use super::recent::Recent;
use super::route::canonical;
use super::wait::until;
use crate::errno::Errno;
use crate::ids::PodRef;
use crate::pod::run::{HostPort, PortProtocol};

/// Connections the kernel keeps for a listener of ours, which takes them at once unless the pod is slow.
const BACKLOG: u32 = 1024;
/// How long to wait when the node is out of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(100);
/// The largest datagram, and one more to be sure.
const DATAGRAM: usize = 65_536;

/// A port of the node that is open, not yet served.
pub(super) struct Opened {
    port: HostPort,
    socket: KernelSocket,
}

/// The UDP port of a node, for the pod's answers.
pub(super) struct HostUdp {
    container_port: u16,
    socket: KernelSocket,
    peers: Mutex<Recent>,
}

impl HostUdp {
    /// Sends an answer of the pod's `from` port, if `to` asked through this port.
    pub(super) fn answer(&self, from: u16, to: SocketAddr, data: &[u8]) -> Option<Result<usize, Errno>> {
        let real = self.peers.lock().find(to).filter(|_| from == self.container_port)?;
        Some(self.socket.send_to(data, real))
    }
}

/// Opens the ports of a pod, all or none.
///
/// # Errors
/// [`NetworkError::HostPort`]: another pod or a program of the node has one of them.
pub(super) fn open<'a>(
    pod: &PodRef,
    ports: impl Iterator<Item = &'a HostPort>,
    pod_ips: &[IpAddr],
    factory: &Factory,
) -> Result<Vec<Opened>, NetworkError> {
    // The one for IPv6 takes connections over IPv4, too.
    let v6 = pod_ips.iter().any(IpAddr::is_ipv6);
    let all: IpAddr = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let open = |port: &HostPort| {
        let address = SocketAddr::new(port.host_ip.unwrap_or(all), port.host_port);
        let opened = match port.protocol {
            PortProtocol::Tcp => {
                let options = TcpOptions { reuse_address: true, v6_only: false, ..TcpOptions::default() };
                let bound = factory.bind_tcp(Place::Node, address, &options);
                bound.and_then(|fd| factory.listen(fd, BACKLOG, &TcpOptions::default()))
            }
            PortProtocol::Udp => {
                factory.udp_at(Place::Node, address, &UdpOptions { v6_only: false, ..UdpOptions::default() })
            }
        };
        let (socket, _) = opened.map_err(|errno| NetworkError::HostPort {
            pod: pod.clone(),
            address,
            protocol: port.protocol.as_str(),
            source: std::io::Error::from_raw_os_error(errno.raw()),
        })?;
        Ok(Opened { port: port.clone(), socket })
    };
    ports.map(open).collect()
}

/// Serves opened ports until the handles are dropped.
pub(super) fn serve(opened: Vec<Opened>, pod: &Arc<PodNetwork>, shared: &Arc<Shared>) -> Vec<AbortOnDropHandle<()>> {
    let mut datagrams = Vec::new();
    let mut tasks = Vec::new();
    for Opened { port, socket } in opened {
        let task = match port.protocol {
            PortProtocol::Tcp => {
                let forward = Forward { shared: Arc::downgrade(shared), pod: Arc::downgrade(pod), port };
                shared.factory.runtime().spawn(forward.connections(shared.factory.clone(), socket))
            }
            PortProtocol::Udp => {
                let door = Arc::new(HostUdp { container_port: port.container_port, socket, peers: Mutex::default() });
                datagrams.push(door.clone());
                shared.factory.runtime().spawn(receive(door, Arc::downgrade(pod)))
            }
        };
        tasks.push(AbortOnDropHandle::new(task));
    }
    pod.set_host_udp(datagrams);
    tasks
}

struct Forward {
    shared: Weak<Shared>,
    pod: Weak<PodNetwork>,
    port: HostPort,
}

impl Forward {
    async fn connections(self, factory: Factory, listener: KernelSocket) {
        loop {
            listener.ready(Interest::READABLE).await;
            match factory.accept(&listener) {
                Ok((socket, peer)) => self.deliver(socket, canonical(peer)).await,
                Err(Errno::Again | Errno::ConnAborted) => {}
                Err(errno) => {
                    tracing::warn!(hostPort = self.port.host_port, err = %errno, "Could not accept for a hostPort");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn deliver(&self, socket: KernelSocket, peer: SocketAddr) {
        let Some((pod, to)) = self.target(&socket) else { return socket.reset() };
        let peer = pod.shown_peer(peer);
        let Ok(backlog) = pod.find_listener(to) else { return socket.reset() };
        // The task must not keep the pod while it waits; the queue ends when its listener does.
        drop(pod);
        let mut arrival = Arrival { wire: Wire::Kernel(Arc::new(socket)), local: to, peer };
        loop {
            match backlog.try_push(arrival) {
                Ok(()) => return,
                Err(back) => arrival = back,
            }
            until([&backlog.room], || backlog.would_answer()).await;
        }
    }

    /// The pod of the port. Where pod addresses are the node's loopback, a listener on all addresses also has what goes to
    /// a pod's own address.
    fn target(&self, socket: &KernelSocket) -> Option<(Arc<PodNetwork>, SocketAddr)> {
        let local = canonical(socket.local_addr().ok()?);
        if let Some(pod) = self.shared.upgrade()?.pod_at(local.ip()) {
            return Some((pod, local));
        }
        let pod = self.pod.upgrade()?;
        let to = SocketAddr::new(pod.ip_towards(local.ip()), self.port.container_port);
        Some((pod, to))
    }
}

async fn receive(door: Arc<HostUdp>, pod: Weak<PodNetwork>) {
    let mut buffer = vec![0; DATAGRAM];
    loop {
        door.socket.ready(Interest::READABLE).await;
        let (n, from) = match door.socket.receive_from(&mut buffer) {
            Ok(received) => received,
            Err(Errno::Again) => continue,
            // A refusal of an earlier answer, told by ICMP: the asking program is gone.
            Err(Errno::ConnRefused) => continue,
            Err(errno) => {
                tracing::warn!(hostPort = door.container_port, err = %errno, "Could not receive for a hostPort");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Some(pod) = pod.upgrade() else { return };
        let shown = pod.shown_peer(canonical(from));
        door.peers.lock().note(shown, from);
        if let Some(inbox) = pod.find_inbox(SocketAddr::new(pod.ip_towards(shown.ip()), door.container_port)) {
            inbox.deliver(shown, &buffer[..n], None);
        }
    }
}
