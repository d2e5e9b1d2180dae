//! The end of a container: what SIGTERM means to a guest without signal handlers, grace, and the kill.
//!
//! In: stop requests. Out: processes that end. The rule is DESIGN.md's: a guest
//! that reads `/dev/signal` is told; one with open sockets stops accepting and drains; any other ends at once.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::process::{ExitStatus, Process, Signal};
use super::{Container, Ending};
use crate::pod::run::{StopRequest, TerminationStyle};

/// What the first signal of a stop does to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reaction {
    /// It reads `/dev/signal`, or has the whole grace by annotation.
    Tell,
    /// It serves: no new connections, end when idle.
    Drain,
    /// It cannot know.
    End,
}

impl Container {
    /// Begins to stop. Returns at once; the end is reported as every end.
    pub(in super::super) fn stop(self: &Arc<Self>, request: StopRequest) {
        {
            let mut ending = self.ending.lock();
            if *ending == Ending::Killed {
                return;
            }
            *ending = Ending::Stopping;
        }
        let signal = Signal::new(u32::from(request.signal)).unwrap_or(Signal::TERM);
        if signal == Signal::KILL || request.grace.is_zero() {
            self.kill_container();
            return;
        }
        let Ok(process) = self.tree.first() else {
            // Still compiling: it must not start any more.
            self.tree.seal();
            return;
        };
        match self.reaction(&process) {
            Reaction::Tell => process.signals().raise(signal),
            Reaction::Drain => self.drain(signal),
            Reaction::End => {
                process.kill(ExitStatus::Signaled(signal));
                return;
            }
        }
        let container = Arc::downgrade(self);
        let mut ended = self.ended.subscribe();
        self.services.control.spawn(async move {
            // Cancel-safe: a wait on a watch, and a timer.
            tokio::select! {
                _ = ended.wait_for(Option::is_some) => {}
                () = tokio::time::sleep(request.grace) => {
                    if let Some(container) = container.upgrade() {
                        container.kill_container();
                    }
                }
            }
        });
    }

    fn reaction(&self, process: &Process) -> Reaction {
        if process.signals().has_listeners() || self.spec.termination == TerminationStyle::Wait {
            Reaction::Tell
        } else if self.network.has_sockets(self.owner) {
            Reaction::Drain
        } else {
            Reaction::End
        }
    }

    /// Closes the doors, and ends the container once everybody has left.
    fn drain(self: &Arc<Self>, signal: Signal) {
        for process in self.tree.running() {
            process.request_drain();
        }
        if self.drains_itself.load(Ordering::Acquire) {
            return;
        }
        self.network.stop_accepting(self.owner);
        let container = self.clone();
        self.services.control.spawn(async move {
            let mut ended = container.ended.subscribe();
            // Cancel-safe: both only wait.
            tokio::select! {
                _ = ended.wait_for(Option::is_some) => {}
                () = container.network.idle(container.owner) => {
                    if let Ok(process) = container.tree.first() {
                        process.kill(ExitStatus::Signaled(signal));
                    }
                }
            }
        });
    }

    /// Ends the container now, with 137.
    pub(in super::super) fn kill_container(&self) {
        *self.ending.lock() = Ending::Killed;
        self.tree.seal();
        self.kill_all(&ExitStatus::Signaled(Signal::KILL));
    }

    /// Ends every process with `status`.
    pub(super) fn kill_all(&self, status: &ExitStatus) {
        for process in self.tree.running() {
            process.kill(status.clone());
        }
    }
}
