//! TCP connections from outside to a Service's port on this node.
//!
//! In: a listening socket. Out: connections to endpoints. One of this node gets the accepted connection itself: no byte is
//! copied on the way, and the guest sees the true peer. One of another node is copied to, from this node's address, so that
//! its answers come back this way. An endpoint that does not answer, or no endpoint, is a reset.

use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::io::Interest;
use tokio::sync::Semaphore;

use super::table::{Door, Source};
use crate::errno::Errno;
use crate::network::backlog::{Arrival, Wire};
use crate::network::kernel::KernelSocket;
use crate::network::node::{Shared, dial_kernel};
use crate::network::route::canonical;
use crate::network::tcp::TcpSocket;
use crate::network::wait::until;

/// Connections copied, or waiting for an endpoint, at once over all ports: more wait in the kernel's queues.
pub(super) const CONNECTIONS: usize = 4096;
/// How long to wait when the node is out of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves one door until dropped.
pub(super) async fn serve(door: Door, listener: KernelSocket, shared: Weak<Shared>, room: Arc<Semaphore>) {
    loop {
        listener.ready(Interest::READABLE).await;
        // Closed never: nobody closes it.
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let Some(shared) = shared.upgrade() else { return };
        match shared.factory.accept(&listener) {
            Ok((socket, peer)) => {
                let runtime = shared.factory.runtime().clone();
                if let Some(rest) = hand_on(&shared, door, socket, canonical(peer)) {
                    runtime.spawn(async move {
                        rest.finish(&shared).await;
                        drop(permit);
                    });
                }
            }
            Err(Errno::Again | Errno::ConnAborted) => {}
            Err(errno) => {
                tracing::warn!(port = door.1, err = %errno, "Could not accept for a Service");
                drop(shared);
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// What is left to do for a connection.
enum Rest {
    /// The listener's queue was full.
    Wait { backlog: Arc<crate::network::backlog::Backlog>, arrival: Arrival },
    /// The endpoint is elsewhere.
    Copy { socket: KernelSocket, peer: SocketAddr, target: SocketAddr },
}

/// Gives a connection to its endpoint, if that needs no waiting.
fn hand_on(shared: &Shared, door: Door, socket: KernelSocket, peer: SocketAddr) -> Option<Rest> {
    let source = if shared.is_inside(peer.ip()) { Source::Inside(peer.ip()) } else { Source::Outside(peer.ip()) };
    let Some(Ok(target)) = shared.services.behind(door).map(|frontend| frontend.pick(source)) else {
        socket.reset();
        return None;
    };
    let target = SocketAddr::from(target);
    let Some(pod) = shared.pod_at(target.ip()) else { return Some(Rest::Copy { socket, peer, target }) };
    let Ok(backlog) = pod.find_listener(target) else {
        socket.reset();
        return None;
    };
    let arrival = Arrival { wire: Wire::Kernel(Arc::new(socket)), local: target, peer: pod.shown_peer(peer) };
    match backlog.try_push(arrival) {
        Ok(()) => None,
        Err(arrival) => Some(Rest::Wait { backlog, arrival }),
    }
}

impl Rest {
    async fn finish(self, shared: &Shared) {
        match self {
            Self::Wait { backlog, mut arrival } => loop {
                until([&backlog.room], || backlog.would_answer()).await;
                match backlog.try_push(arrival) {
                    Ok(()) => return,
                    Err(back) => arrival = back,
                }
            },
            Self::Copy { socket, peer, target } => {
                let Ok(mut there) = dial_kernel(&shared.factory, target).await else { return socket.reset() };
                let local = socket.local_addr().unwrap_or(target);
                let mut here = TcpSocket::of_node(Wire::Kernel(Arc::new(socket)), local, peer).into_stream();
                // Either side's error ends both: there is nobody else to tell.
                let _ = tokio::io::copy_bidirectional(&mut here, &mut there).await;
            }
        }
    }
}
