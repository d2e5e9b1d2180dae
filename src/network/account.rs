//! Who pays for socket buffers.
//!
//! In: bytes about to be queued in a pipe or an inbox. Out: the container's answer, and whether the pod is
//! under pressure. The writer pays: a client that floods a server fills its own account, not the server's.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::refusals::{Refusal, Refusals};
use crate::errno::Errno;

/// Who a socket belongs to: one container attempt, numbered by the runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OwnerId(pub u64);

/// Where socket buffers are charged: the container's memory.
pub trait SocketCharge: Send + Sync {
    /// Asks for `bytes` more.
    ///
    /// # Errors
    /// What the guest's write returns when its container has no more memory.
    fn charge(&self, bytes: u64) -> Result<(), Errno>;
    /// Gives `bytes` back.
    fn release(&self, bytes: u64);
}

/// Bytes queued by all sockets of one pod.
pub(super) struct PodBuffers {
    used: AtomicU64,
    limit: u64,
    refusals: Arc<Refusals>,
}

impl PodBuffers {
    pub(super) fn new(limit: u64, refusals: Arc<Refusals>) -> Self {
        Self { used: AtomicU64::new(0), limit, refusals }
    }

    #[cfg(test)]
    pub(super) fn alone(limit: u64) -> Arc<Self> {
        let pod = crate::ids::PodRef { namespace: "default".to_owned(), name: "alone".to_owned() };
        let uid = crate::ids::PodUid::new("alone").expect("a UID");
        Arc::new(Self::new(limit, Arc::new(Refusals::new(pod, uid, Arc::default()))))
    }

    #[cfg(test)]
    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }
}

/// What one container attempt's sockets are charged to.
pub(super) struct Account {
    pod: Arc<PodBuffers>,
    container: Option<Arc<dyn SocketCharge>>,
}

impl Account {
    pub(super) fn new(pod: Arc<PodBuffers>, container: Option<Arc<dyn SocketCharge>>) -> Self {
        Self { pod, container }
    }

    /// Whether the pod is over its limit: windows shrink and datagrams are dropped until it is not.
    pub(super) fn under_pressure(&self) -> bool {
        self.pod.used.load(Ordering::Relaxed) >= self.pod.limit
    }

    /// Takes note that the pressure cost somebody a window or a datagram.
    pub(super) fn note_pressure(&self) {
        self.pod.refusals.note(Refusal::Buffer { limit: self.pod.limit });
    }

    /// Takes note that a listener's queue had no room.
    pub(super) fn note_full(&self, listener: SocketAddr, backlog: usize) {
        self.pod.refusals.note(Refusal::Connection { listener, backlog });
    }

    pub(super) fn charge(&self, bytes: u64) -> Result<(), Errno> {
        if let Some(container) = &self.container {
            container.charge(bytes).inspect_err(|_| self.pod.refusals.note(Refusal::Memory))?;
        }
        self.pod.used.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    pub(super) fn release(&self, bytes: u64) {
        self.pod.used.fetch_sub(bytes, Ordering::Relaxed);
        if let Some(container) = &self.container {
            container.release(bytes);
        }
    }
}
