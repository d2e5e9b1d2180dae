//! What time it is: one seam for the whole node, so that tests can move time by hand.
//!
//! In: nothing. Out: wall-clock timestamps for logs, events, records and statuses. Timers stay with
//! tokio (whose own clock can be paused); this is only what is written down or compared across restarts.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use jiff::Timestamp;

/// The source of wall-clock time. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub enum Clock {
    /// The machine's clock.
    #[default]
    System,
    /// A clock that moves only when told.
    Manual(ManualClock),
}

impl Clock {
    /// The time now.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        match self {
            Self::System => Timestamp::now(),
            Self::Manual(manual) => manual.now(),
        }
    }
}

/// Time as a test sets it; clones share one hand.
#[derive(Debug, Clone)]
pub struct ManualClock {
    /// Nanoseconds since the epoch: 1677 to 2262 fit, and a test wants no other year.
    nanoseconds: Arc<AtomicI64>,
}

impl ManualClock {
    /// A clock that stands at `start`.
    #[must_use]
    pub fn at(start: Timestamp) -> Self {
        let nanoseconds = i64::try_from(start.as_nanosecond()).unwrap_or(i64::MAX);
        Self { nanoseconds: Arc::new(AtomicI64::new(nanoseconds)) }
    }

    /// Moves the hand forward.
    pub fn advance(&self, by: Duration) {
        let step = i64::try_from(by.as_nanos()).unwrap_or(i64::MAX);
        self.nanoseconds.fetch_add(step, Ordering::SeqCst);
    }

    /// Where the hand is.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        let nanoseconds = self.nanoseconds.load(Ordering::SeqCst);
        Timestamp::from_nanosecond(i128::from(nanoseconds)).unwrap_or(Timestamp::MAX)
    }
}

impl From<ManualClock> for Clock {
    fn from(manual: ManualClock) -> Self {
        Self::Manual(manual)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_moves_only_when_told_and_for_every_clone() {
        let start: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
        let hand = ManualClock::at(start);
        let clock = Clock::from(hand.clone());
        assert_eq!(clock.now(), start);
        hand.advance(Duration::from_millis(1500));
        assert_eq!(clock.now().to_string(), "2026-01-02T03:04:06.5Z");
    }
}
