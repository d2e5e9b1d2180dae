//! Waiting before doing again what failed: crash loops, image pulls, sandbox creation.
//!
//! In: when something ended and how long it had been well. Out: when it may happen again.
//! Reads no clock. The numbers are the kubelet's: 10 s doubling to 300 s, forgotten after 10 min of health.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The first delay that is not zero.
pub const BASE: Duration = Duration::from_secs(10);
/// No delay is longer.
pub const MAX: Duration = Duration::from_secs(300);
/// A container that ran longer than this starts over with no delay.
pub const RESET_AFTER: Duration = Duration::from_secs(600);

/// The delay in force and its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackOff {
    /// How long the wait is; zero for the first restart, which is immediate.
    pub delay: Duration,
    /// When it may happen again.
    pub until: Timestamp,
}

impl BackOff {
    /// The back-off after a container's end. The first restart is immediate; later ones wait 10 s, 20 s ... 300 s.
    #[must_use]
    pub fn after_exit(previous: Option<Self>, ran_for: Duration, finished_at: Timestamp) -> Self {
        let delay = match previous {
            Some(previous) if ran_for <= RESET_AFTER => double(previous.delay),
            _ => Duration::ZERO,
        };
        Self { delay, until: later(finished_at, delay) }
    }

    /// The back-off after a failed attempt at something that never was well (a pull): 10 s at once.
    #[must_use]
    pub fn after_failure(previous: Option<Self>, now: Timestamp) -> Self {
        let delay = previous.map_or(BASE, |previous| double(previous.delay));
        Self { delay, until: later(now, delay) }
    }

    /// Whether the wait is over.
    #[must_use]
    pub fn is_over(&self, now: Timestamp) -> bool {
        now >= self.until
    }
}

fn double(delay: Duration) -> Duration {
    if delay.is_zero() { BASE } else { delay.saturating_mul(2).min(MAX) }
}

/// `at` plus `delay`; far beyond any real time at the end of the calendar.
#[must_use]
pub fn later(at: Timestamp, delay: Duration) -> Timestamp {
    at.checked_add(delay).unwrap_or(Timestamp::MAX)
}

/// Time from `start` to `end`; zero when the clock went backwards.
#[must_use]
pub fn elapsed(start: Timestamp, end: Timestamp) -> Duration {
    end.duration_since(start).try_into().unwrap_or(Duration::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_wait_longer_and_longer_until_the_container_was_healthy() {
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut back_off = None;
        for (exit, expected) in [0, 10, 20, 40, 80, 160, 300, 300].into_iter().enumerate() {
            let next = BackOff::after_exit(back_off, Duration::from_secs(1), start);
            assert_eq!(next.delay, Duration::from_secs(expected), "exit {exit}");
            assert_eq!(next.until, later(start, next.delay));
            back_off = Some(next);
        }
        let healthy = BackOff::after_exit(back_off, RESET_AFTER + Duration::from_secs(1), start);
        assert_eq!(healthy.delay, Duration::ZERO);
        let exactly = BackOff::after_exit(back_off, RESET_AFTER, start);
        assert_eq!(exactly.delay, MAX, "ten minutes exactly are not more than ten minutes");
    }

    #[test]
    fn a_failed_pull_waits_from_the_first_time() {
        let now = Timestamp::UNIX_EPOCH;
        let first = BackOff::after_failure(None, now);
        assert_eq!(first.delay, BASE);
        assert!(!first.is_over(now) && first.is_over(later(now, BASE)));
        assert_eq!(BackOff::after_failure(Some(first), now).delay, Duration::from_secs(20));
    }
}
