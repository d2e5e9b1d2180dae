//! What a pod sent and received: two counters for the kubelet's statistics.
//!
//! In: payload bytes of its sockets, to and from other pods, the node and the world. Out: totals since the pod began.
//! What stays inside the pod is not counted, as no interface would see it; neither are headers, which in process do not
//! exist. A pod on the node's network has no counters, as with the kubelet.

use std::sync::atomic::{AtomicU64, Ordering};

/// Totals of one pod.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
}

/// The counters behind [`Traffic`].
#[derive(Debug, Default)]
pub(super) struct Counters {
    rx: AtomicU64,
    tx: AtomicU64,
}

impl Counters {
    pub(super) fn received(&self, bytes: usize) {
        self.rx.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn sent(&self, bytes: usize) {
        self.tx.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> Traffic {
        Traffic { rx_bytes: self.rx.load(Ordering::Relaxed), tx_bytes: self.tx.load(Ordering::Relaxed) }
    }
}

/// Whether a connection or datagram leaves the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Span {
    Inside,
    Leaves,
}
