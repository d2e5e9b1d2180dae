//! How many statuses wait to be written.
//!
//! In: the writer's count. Out: whether what matters less should wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// So many statuses that are written or to be written are a lot.
const LONG: usize = 4;

/// How many statuses are being written or are to be; none on a node without a cluster. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Backlog(Arc<AtomicUsize>);

impl Backlog {
    /// Whether many pods start, or end, at once: what can wait does.
    #[must_use]
    pub fn is_long(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= LONG
    }

    pub(super) fn set(&self, count: usize) {
        self.0.store(count, Ordering::Relaxed);
    }
}
