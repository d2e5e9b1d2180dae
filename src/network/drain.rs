//! Ending a container's traffic in order, for a guest that SIGTERM cannot reach.
//!
//! In: a container attempt. Out: listeners that take no more, and the moment its connections are idle. The caller
//! has the clock of the grace period, and ends the guest.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::account::OwnerId;
use super::pod::{PodNetwork, Socket};

/// A connection without unread data and without bytes for this long is idle.
const IDLE_AFTER: Duration = Duration::from_millis(100);

/// What each connection had moved, by its place in memory; whether one is busy now.
struct Snapshot {
    moved: BTreeMap<usize, u64>,
    busy: bool,
}

impl PodNetwork {
    /// Closes the listeners of a container attempt to new connections; those that arrived can still be accepted.
    pub fn stop_accepting(&self, owner: OwnerId) {
        for socket in self.sockets_of(owner) {
            if let Socket::Tcp(socket) = socket {
                socket.stop_accepting();
            }
        }
    }

    /// Waits until all connections of a container attempt are idle or closed: no unread data, nobody waiting to be
    /// accepted, and no bytes for 100 ms. Cancel-safe.
    pub async fn idle(&self, owner: OwnerId) {
        let mut before = self.snapshot(owner);
        while before.busy || !before.moved.is_empty() {
            tokio::time::sleep(IDLE_AFTER).await;
            let now = self.snapshot(owner);
            let still = now.moved.iter().all(|(id, moved)| before.moved.get(id) == Some(moved));
            if still && !now.busy && !before.busy {
                return;
            }
            before = now;
        }
    }

    fn snapshot(&self, owner: OwnerId) -> Snapshot {
        let mut snapshot = Snapshot { moved: BTreeMap::new(), busy: false };
        for socket in self.sockets_of(owner) {
            let (id, activity) = match &socket {
                Socket::Tcp(socket) => {
                    snapshot.busy |= socket.has_arrivals();
                    (Arc::as_ptr(socket) as usize, socket.activity())
                }
                Socket::Udp(socket) => (Arc::as_ptr(socket) as usize, Some(socket.activity())),
            };
            if let Some((moved, unread)) = activity {
                snapshot.busy |= unread;
                snapshot.moved.insert(id, moved);
            }
        }
        snapshot
    }
}
