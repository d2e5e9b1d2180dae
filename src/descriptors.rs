//! How many descriptors of the agent's process guests may hold, all together and each pod of them.
//!
//! In: wishes to open. Out: slots that are given back when they are dropped, or EMFILE and ENFILE as the kernel says them.
//! A guest's open file is one of the agent's, whose limit is shared with every other pod, the image store and the
//! API server's connections: what guests may have ends before it does. Opens nothing itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::errno::Errno;

/// Descriptors the agent keeps for itself where there are plenty: connections, logs, records and images of a full node.
const MAX_RESERVE: u64 = 4096;
/// Of what guests may have, one pod's part: three others can be as greedy before the fourth is refused.
const POD_PART: u64 = 4;
/// A pod has at least this many, however small the agent's limit is: a program and its standard streams.
const POD_LEAST: u64 = 64;

/// What the guests of a node may hold open.
#[derive(Debug)]
pub struct NodeDescriptors {
    used: AtomicU64,
    limit: u64,
}

/// What the containers of one pod may hold open.
#[derive(Debug)]
pub struct PodDescriptors {
    node: Arc<NodeDescriptors>,
    used: AtomicU64,
    limit: u64,
    warned: AtomicBool,
}

/// One open descriptor of a pod.
#[derive(Debug)]
pub struct Slot(Arc<PodDescriptors>);

impl NodeDescriptors {
    /// For an agent whose own limit (`RLIMIT_NOFILE`) is this; `None` for one without a limit.
    #[must_use]
    pub fn of_limit(limit: Option<u64>) -> Arc<Self> {
        let limit = limit.map_or(u64::MAX, |limit| limit - (limit / 4).min(MAX_RESERVE));
        Arc::new(Self { used: AtomicU64::new(0), limit })
    }

    /// The part of a new pod.
    #[must_use]
    pub fn pod(self: &Arc<Self>) -> Arc<PodDescriptors> {
        let limit = (self.limit / POD_PART).max(POD_LEAST);
        Arc::new(PodDescriptors { node: self.clone(), used: AtomicU64::new(0), limit, warned: AtomicBool::new(false) })
    }

    /// How many are open.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }
}

impl PodDescriptors {
    /// One more.
    ///
    /// # Errors
    /// `EMFILE` when the pod has its part, `ENFILE` when all pods have all there is.
    pub fn take(self: &Arc<Self>) -> Result<Slot, Errno> {
        let refused = if !take(&self.used, self.limit) {
            Errno::MFile
        } else if !take(&self.node.used, self.node.limit) {
            self.used.fetch_sub(1, Ordering::Relaxed);
            Errno::NFile
        } else {
            return Ok(Slot(self.clone()));
        };
        if !self.warned.swap(true, Ordering::Relaxed) {
            let (of_pod, of_node) = (self.limit, self.node.limit);
            tracing::warn!(err = %refused, of_pod, of_node, "Pod was refused an open file; raise the agent's LimitNOFILE if it needs more");
        }
        Err(refused)
    }

    /// How many are open.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.used.fetch_sub(1, Ordering::Relaxed);
        self.0.node.used.fetch_sub(1, Ordering::Relaxed);
    }
}

fn take(used: &AtomicU64, limit: u64) -> bool {
    used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| (used < limit).then(|| used + 1)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_keeps_a_reserve_and_no_pod_takes_it_all() {
        for (case, limit, node, pod) in [
            ("the usual soft limit", Some(1024), 768, 192),
            ("a container's limit", Some(1 << 20), (1 << 20) - 4096, (1 << 18) - 1024),
            ("hardly any", Some(100), 75, 64),
            ("none", None, u64::MAX, u64::MAX / 4),
        ] {
            let descriptors = NodeDescriptors::of_limit(limit);
            assert_eq!((descriptors.limit, descriptors.pod().limit), (node, pod), "{case}");
        }
    }

    #[test]
    fn a_greedy_pod_is_refused_before_the_node_is_and_slots_come_back() {
        let node = NodeDescriptors::of_limit(Some(160)); // 120 for guests, 64 for each pod.
        let (greedy, other) = (node.pod(), node.pod());
        let mut held: Vec<Slot> = (0..64).map(|_| greedy.take().unwrap()).collect();
        assert_eq!(greedy.take().err(), Some(Errno::MFile));
        held.extend((0..56).map(|_| other.take().unwrap()));
        assert_eq!(other.take().err(), Some(Errno::NFile), "the node has no more");
        assert_eq!((greedy.used(), other.used(), node.used()), (64, 56, 120));
        held.truncate(63);
        assert!(greedy.take().is_ok() && other.take().is_ok());
        drop(held);
        assert_eq!((greedy.used(), other.used(), node.used()), (0, 0, 0));
    }
}
