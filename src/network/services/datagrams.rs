//! Datagrams from outside to a Service's port on this node.
//!
//! In: a bound socket. Out: flows, one a client, each with one endpoint as long as that is there and the flow is used (the
//! kernel's conntrack, for a kube-proxy). An endpoint of this node gets datagrams in process, and its answers leave by the
//! socket they were asked through; to one of another node a flow has a socket of its own. Bounded.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::RwLock;
use tokio::io::Interest;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::table::{Door, Source};
use crate::errno::Errno;
use crate::network::kernel::{KernelSocket, Place};
use crate::network::node::Shared;
use crate::network::options::UdpOptions;
use crate::network::route::{Family, canonical};
use crate::pod::services::Target;

/// Clients of one port at once; what others send is lost until there is room.
const FLOWS: usize = 4096;
/// `nf_conntrack_udp_timeout_stream`.
const IDLE: Duration = Duration::from_secs(120);
/// How often idle flows are looked for.
const SWEEP: Duration = Duration::from_secs(15);
/// How long to wait when the node is out of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(100);
/// The largest datagram, and one more to be sure.
const DATAGRAM: usize = 65_536;

/// An endpoint's address and its client, as the endpoint sees it.
type Asked = (SocketAddr, SocketAddr);

/// How pods of this node answer clients of Services.
#[derive(Default)]
pub(in crate::network) struct Replies {
    ways: RwLock<HashMap<Asked, (Arc<KernelSocket>, SocketAddr)>>,
    /// Nearly always none: then a send costs nothing.
    count: AtomicUsize,
}

impl Replies {
    /// Sends an answer of a pod, if its client asked through a Service.
    pub(in crate::network) fn answer(
        &self,
        from: SocketAddr,
        to: SocketAddr,
        data: &[u8],
    ) -> Option<Result<usize, Errno>> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let (socket, real) = self.ways.read().get(&(from, to)).cloned()?;
        Some(socket.send_to(data, real))
    }

    fn insert(&self, asked: Asked, way: (Arc<KernelSocket>, SocketAddr)) {
        let mut ways = self.ways.write();
        ways.insert(asked, way);
        self.count.store(ways.len(), Ordering::Relaxed);
    }

    fn remove(&self, asked: &Asked) {
        let mut ways = self.ways.write();
        ways.remove(asked);
        self.count.store(ways.len(), Ordering::Relaxed);
    }
}

/// One client's datagrams.
struct Flow {
    target: Target,
    generation: u64,
    last: Instant,
    way: Way,
}

enum Way {
    /// Of this node: how it answers is in [`Replies`].
    Pod { asked: Asked, replies: Weak<Shared> },
    /// Elsewhere.
    Away { socket: Arc<KernelSocket>, answered: Arc<AtomicBool>, _answers: AbortOnDropHandle<()> },
}

impl Drop for Way {
    fn drop(&mut self) {
        if let Self::Pod { asked, replies } = self
            && let Some(shared) = replies.upgrade()
        {
            shared.replies.remove(asked);
        }
    }
}

/// Serves one door until dropped.
pub(super) async fn serve(door: Door, socket: KernelSocket, shared: Weak<Shared>) {
    let mut port = Port { door, socket: Arc::new(socket), shared, flows: HashMap::new() };
    let mut buffer = vec![0; DATAGRAM];
    let mut sweep = tokio::time::interval(SWEEP);
    loop {
        tokio::select! {
            // Cancel-safe: it only looks.
            () = port.socket.ready(Interest::READABLE) => {}
            // Cancel-safe: a timer.
            _ = sweep.tick() => {
                port.sweep();
                continue;
            }
        }
        match port.socket.receive_from(&mut buffer) {
            Ok((n, from)) => {
                if port.take(&buffer[..n], from).is_none() {
                    tracing::debug!(port = door.1, client = %from, "Lost a datagram for a Service");
                }
            }
            // A refusal of an earlier answer, told by ICMP: the asking program is gone.
            Err(Errno::Again | Errno::ConnRefused) => {}
            Err(errno) => {
                tracing::warn!(port = door.1, err = %errno, "Could not receive for a Service");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

struct Port {
    door: Door,
    socket: Arc<KernelSocket>,
    shared: Weak<Shared>,
    /// By the client's true address.
    flows: HashMap<SocketAddr, Flow>,
}

impl Port {
    /// Sends one datagram on; `None` when it is lost.
    fn take(&mut self, data: &[u8], from: SocketAddr) -> Option<()> {
        let shared = self.shared.upgrade()?;
        let client = canonical(from);
        let source =
            if shared.is_inside(client.ip()) { Source::Inside(client.ip()) } else { Source::Outside(client.ip()) };
        let (frontend, generation) = (shared.services.behind(self.door)?, shared.services.generation());
        let now = Instant::now();
        let goes_on = self.flows.get_mut(&from).is_some_and(|flow| {
            let valid = flow.generation == generation || frontend.still_has(source, flow.target);
            (flow.generation, flow.last) = (generation, now);
            valid
        });
        if !goes_on {
            self.flows.remove(&from);
            if self.flows.len() >= FLOWS {
                return None;
            }
            let target = frontend.pick(source).ok()?;
            let way = self.way(&shared, target, from)?;
            self.flows.insert(from, Flow { target, generation, last: now, way });
        }
        match &self.flows.get(&from)?.way {
            Way::Pod { asked: (target, client), .. } => {
                let pod = shared.pod_at(target.ip())?;
                pod.find_inbox(*target)?.deliver(*client, data, None);
            }
            Way::Away { socket, .. } => {
                // Lost, as datagrams may be.
                let _ = socket.send_to(data, self.flows.get(&from)?.target.into());
            }
        }
        Some(())
    }

    fn way(&self, shared: &Arc<Shared>, target: Target, from: SocketAddr) -> Option<Way> {
        let target = SocketAddr::from(target);
        if let Some(pod) = shared.pod_at(target.ip()) {
            let asked = (target, pod.shown_peer(canonical(from)));
            shared.replies.insert(asked, (self.socket.clone(), from));
            return Some(Way::Pod { asked, replies: self.shared.clone() });
        }
        let anywhere = SocketAddr::new(Family::of(target.ip()).unspecified(), 0);
        let (socket, _) = shared.factory.udp_at(Place::Node, anywhere, &UdpOptions::default()).ok()?;
        socket.connect_datagrams(target).ok()?;
        let (socket, answered) = (Arc::new(socket), Arc::new(AtomicBool::new(false)));
        let task = answers(socket.clone(), self.socket.clone(), from, answered.clone());
        let task = AbortOnDropHandle::new(shared.factory.runtime().spawn(task));
        Some(Way::Away { socket, answered, _answers: task })
    }

    fn sweep(&mut self) {
        let now = Instant::now();
        self.flows.retain(|_, flow| {
            if let Way::Away { answered, .. } = &flow.way
                && answered.swap(false, Ordering::Relaxed)
            {
                flow.last = now;
            }
            now.duration_since(flow.last) < IDLE
        });
    }
}

/// Carries the answers of an endpoint elsewhere to its client.
async fn answers(from: Arc<KernelSocket>, by: Arc<KernelSocket>, to: SocketAddr, answered: Arc<AtomicBool>) {
    let mut buffer = vec![0; DATAGRAM];
    loop {
        from.ready(Interest::READABLE).await;
        match from.receive_from(&mut buffer) {
            Ok((n, _)) => {
                answered.store(true, Ordering::Relaxed);
                // Lost, as datagrams may be.
                let _ = by.send_to(&buffer[..n], to);
            }
            Err(Errno::Again) => {}
            // Refused: the endpoint is gone, or not there yet. The flow ends when the Service says so.
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}
