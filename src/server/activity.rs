//! Whether a connection is busy: for how long it has had no request under way.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// The requests of one connection.
#[derive(Debug)]
pub(super) struct Activity {
    state: Arc<watch::Sender<State>>,
    opening: Duration,
    idle: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    under_way: usize,
    /// Since when nothing is under way, and whether anything ever was.
    quiet_since: Instant,
    had_requests: bool,
}

/// A request under way, until it is dropped.
#[derive(Debug)]
pub(super) struct Busy(Arc<watch::Sender<State>>);

impl Activity {
    /// A new connection: its first request may take `opening`, later ones may be `idle` apart.
    pub(super) fn new(opening: Duration, idle: Duration) -> Self {
        let state = State { under_way: 0, quiet_since: Instant::now(), had_requests: false };
        Self { state: Arc::new(watch::Sender::new(state)), opening, idle }
    }

    /// A request begins.
    pub(super) fn begin(&self) -> Busy {
        self.state.send_modify(|state| {
            state.under_way += 1;
            state.had_requests = true;
        });
        Busy(self.state.clone())
    }

    /// Resolves when the connection has been quiet for too long. Cancel-safe.
    pub(super) async fn idle(&self) {
        let mut changes = self.state.subscribe();
        loop {
            let state = *changes.borrow_and_update();
            let patience = if state.had_requests { self.idle } else { self.opening };
            tokio::select! {
                // Both are cancel-safe: the state is looked at again.
                () = tokio::time::sleep_until(state.quiet_since + patience), if state.under_way == 0 => return,
                // The sender is ours.
                _ = changes.changed() => {}
            }
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.send_modify(|state| {
            state.under_way -= 1;
            state.quiet_since = Instant::now();
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_only_between_requests() {
        let (opening, idle) = (Duration::from_secs(10), Duration::from_secs(90));
        let start = Instant::now();
        Activity::new(opening, idle).idle().await;
        assert_eq!(start.elapsed(), opening, "a client that sends nothing has less time");

        let activity = Activity::new(opening, idle);
        let (first, second) = (activity.begin(), activity.begin());
        drop(first);
        let hour = Duration::from_secs(3600);
        assert!(tokio::time::timeout(hour, activity.idle()).await.is_err(), "a log is followed for hours");
        drop(second);
        let quiet = Instant::now();
        activity.idle().await;
        assert_eq!(quiet.elapsed(), idle);
    }
}
