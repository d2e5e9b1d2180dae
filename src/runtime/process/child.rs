//! A descriptor for the end of a process, so that a guest's poller can wait for it among others.
//!
//! In: a pid of the container, or of another that it sees. Out: end of file once that process has ended. Takes no status: that is `wait`'s.

use std::sync::Arc;

use super::Pid;
use crate::errno::Errno;
use crate::runtime::container::Container;

/// What `pidfd_open` gives.
pub struct ProcessEnd {
    container: Arc<Container>,
    pid: Pid,
}

impl ProcessEnd {
    /// Watches `pid`.
    ///
    /// # Errors
    /// `ESRCH` when there is no such process, ended or not.
    pub fn new(container: Arc<Container>, pid: Pid) -> Result<Self, Errno> {
        if container.tree().contains(pid) {
            return Ok(Self { container, pid });
        }
        let container = container.tree().pids().get(pid)?.container().clone();
        Ok(Self { container, pid })
    }

    /// Whether it has ended.
    pub fn is_over(&self) -> bool {
        !self.container.tree().is_running(self.pid)
    }

    /// Resolves once it has ended. Cancel-safe.
    pub async fn over(&self) {
        self.container.tree().over(self.pid).await;
    }
}
