//! Ends pods before the machine goes down.
//!
//! In: logind's word that the machine is about to shut down, active pods, the time there is. Out: [`ShutdownState`] for
//! admission and for the Ready condition, pods ended by priority, the machine let go. [`plan`] decides, pure; `wasilet drain`
//! uses the same plan. By `pkg/kubelet/nodeshutdown`.
//!
//! ```text
//!            PrepareForShutdown(true)            every group ended or out of time
//!  Inhibited ------------------------> ShuttingDown ---------------------------> Released (the machine goes)
//!      ^                                                                            |
//!      +------------------- PrepareForShutdown(false): cancelled -------------------+
//! ```

mod logind;
mod plan;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use self::plan::{Group, ShutdownGrace, plan};

use self::logind::{Logind, LogindError};
use super::conditions::ShutdownState;
use super::pods::{NodePods, PodEnd};
use crate::events::{EventType, Recorder, node_reference};

/// `status.reason` of pods the node ended because it goes down.
pub const REASON: &str = "Terminated";
/// Their `status.message`.
pub const MESSAGE: &str = "Pod was terminated in response to imminent node shutdown.";
/// How long to wait before asking for the bus again (`dbusReconnectPeriod`).
const RECONNECT: Duration = Duration::from_secs(1);
/// The longest wait: a machine without logind gets none later.
const RECONNECT_MOST: Duration = Duration::from_secs(300);
/// How often a group is looked at.
const POLL: Duration = Duration::from_millis(100);

/// Holds the machine's shutdown up while pods end. [`Self::run`] is its one task.
pub struct ShutdownManager {
    node: String,
    grace: ShutdownGrace,
    pods: Arc<dyn NodePods>,
    events: Recorder,
    state: watch::Sender<ShutdownState>,
}

impl std::fmt::Debug for ShutdownManager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShutdownManager").field("grace", &self.grace).finish_non_exhaustive()
    }
}

impl ShutdownManager {
    /// A manager that inhibits nothing yet. Without a `shutdownGracePeriod` it never will.
    #[must_use]
    pub fn new(node: &str, grace: ShutdownGrace, pods: Arc<dyn NodePods>, events: Recorder) -> Self {
        Self { node: node.to_owned(), grace, pods, events, state: watch::Sender::default() }
    }

    /// Whether the machine goes down.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<ShutdownState> {
        self.state.subscribe()
    }

    /// Inhibits and listens until `stop`. A machine without D-Bus or logind is a warning, and tried again.
    pub async fn run(self, stop: CancellationToken) {
        if self.grace.total.is_zero() {
            stop.cancelled().await;
            return;
        }
        let mut wait = RECONNECT;
        let mut last = String::new();
        let work = async {
            loop {
                // Returns only when the bus is gone.
                if let Err(error) = self.listen().await {
                    let text = crate::image::chain(&error);
                    // The same again is no news.
                    if text != last {
                        tracing::warn!(
                            err = text,
                            "Could not inhibit the machine's shutdown, pods will not be ended before it"
                        );
                        last = text;
                    }
                }
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(RECONNECT_MOST);
            }
        };
        // Cancel-safe: dropping the connection gives the inhibitor back.
        stop.run_until_cancelled(work).await;
    }

    async fn listen(&self) -> Result<(), LogindError> {
        let logind = Logind::connect().await?;
        let delay = logind.max_delay().await?;
        if delay < self.grace.total {
            tracing::warn!(
                ?delay,
                wanted = ?self.grace.total,
                "InhibitDelayMaxSec of logind is less than shutdownGracePeriod: set it in logind.conf, or pods are cut short"
            );
        }
        // Before the inhibitor, so that no signal is missed.
        let mut signals = logind.prepare_for_shutdown().await?;
        let mut inhibitor = Some(logind.inhibit().await?);
        tracing::info!(grace = ?self.grace.total, "Holding up the machine's shutdown until pods have ended");
        while let Some(is_starting) = signals.next().await {
            let (state, message) = if is_starting {
                (ShutdownState::ShuttingDown, "Shutdown manager detected shutdown event")
            } else {
                (ShutdownState::Running, "Shutdown manager detected shutdown cancellation")
            };
            tracing::warn!(?state, "{message}");
            self.events.event(&node_reference(&self.node), EventType::Normal, "NodeShutdown", message);
            self.state.send_replace(state);
            if is_starting {
                end_pods(&*self.pods, self.grace).await;
                // Closing it lets the machine go.
                drop(inhibitor.take());
                tracing::warn!("Ended pods, the machine will shut down now");
            } else {
                inhibitor = Some(logind.inhibit().await?);
            }
        }
        Ok(())
    }
}

/// Ends all active pods of the node, group after group; each group has its time and no more.
pub async fn end_pods(pods: &dyn NodePods, grace: ShutdownGrace) {
    let active = pods.active();
    for group in plan(&active, grace) {
        for (uid, grace) in &group.pods {
            pods.end(uid, PodEnd { reason: REASON, message: MESSAGE.to_owned(), grace: *grace }).await;
        }
        let all_ended = async {
            while !group.pods.iter().all(|(uid, _)| pods.has_ended(uid)) {
                tokio::time::sleep(POLL).await;
            }
        };
        if tokio::time::timeout(group.time, all_ended).await.is_err() {
            let left = group.pods.iter().filter(|(uid, _)| !pods.has_ended(uid)).count();
            tracing::warn!(left, time = ?group.time, "Pods did not end within their part of the shutdown's time");
        }
    }
}
