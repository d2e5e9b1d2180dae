//! How long to wait after a failed pull: 10 s, doubling to 300 s, per image.
//!
//! In: failures, successes and the time. Out: whether to try. Reads no clock.
//! The kubelet's numbers (`flowcontrol.NewBackOff(10s, 300s)`); like it, an entry left alone for twice
//! the maximum is forgotten.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::reference::ImageRef;

/// The first wait.
pub const INITIAL: Duration = Duration::from_secs(10);
/// No wait is longer.
pub const MAX: Duration = Duration::from_secs(300);

/// The wait after `failures` failures in a row.
#[must_use]
pub fn delay(failures: u32) -> Duration {
    match failures.checked_sub(1) {
        None => Duration::ZERO,
        Some(doublings) => INITIAL.saturating_mul(2u32.saturating_pow(doublings)).min(MAX),
    }
}

/// Failures per image, and what each failed with.
#[derive(Debug, Default)]
pub struct PullBackoff {
    entries: HashMap<ImageRef, Entry>,
}

#[derive(Debug)]
struct Entry {
    failures: u32,
    failed_at: Instant,
    reason: String,
}

/// An image that must not be pulled yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Time until the next try.
    pub remaining: Duration,
    /// What the last try failed with, as `Reason: message`.
    pub last_failure: String,
}

impl PullBackoff {
    /// Whether `image` has to wait at `now`.
    #[must_use]
    pub fn waiting(&self, image: &ImageRef, now: Instant) -> Option<Waiting> {
        let entry = self.entries.get(image)?;
        let remaining = delay(entry.failures).checked_sub(now.saturating_duration_since(entry.failed_at))?;
        if remaining.is_zero() {
            return None;
        }
        Some(Waiting { remaining, last_failure: entry.reason.clone() })
    }

    /// Records a failure, and forgets entries nobody tried again for twice [`MAX`]: this bounds the map.
    pub fn failed(&mut self, image: &ImageRef, reason: String, now: Instant) {
        self.entries.retain(|_, entry| now.saturating_duration_since(entry.failed_at) <= MAX * 2);
        let entry =
            self.entries.entry(image.clone()).or_insert(Entry { failures: 0, failed_at: now, reason: String::new() });
        entry.failures = entry.failures.saturating_add(1);
        entry.failed_at = now;
        entry.reason = reason;
    }

    /// Forgets the failures of an image that was pulled.
    pub fn succeeded(&mut self, image: &ImageRef) {
        self.entries.remove(image);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_from_ten_seconds_to_five_minutes() {
        let seconds: Vec<u64> = (0..8).map(|failures| delay(failures).as_secs()).collect();
        assert_eq!(seconds, [0, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(delay(u32::MAX), MAX, "a huge count neither overflows nor panics");
    }

    #[tokio::test(start_paused = true)]
    async fn an_image_waits_out_its_failure_and_a_success_clears_it() {
        let image: ImageRef = "web".parse().unwrap();
        let other: ImageRef = "db".parse().unwrap();
        let mut backoff = PullBackoff::default();
        let start = Instant::now();
        backoff.failed(&image, "ErrImagePull: gone".to_owned(), start);
        let waiting = backoff.waiting(&image, start + Duration::from_secs(4)).unwrap();
        assert_eq!(waiting.remaining, Duration::from_secs(6));
        assert_eq!(waiting.last_failure, "ErrImagePull: gone");
        assert_eq!(backoff.waiting(&other, start), None);
        assert_eq!(backoff.waiting(&image, start + Duration::from_secs(10)), None, "over at its end");
        backoff.failed(&image, String::new(), start + Duration::from_secs(10));
        assert!(backoff.waiting(&image, start + Duration::from_secs(29)).is_some(), "twice as long");
        backoff.succeeded(&image);
        assert_eq!(backoff.waiting(&image, start + Duration::from_secs(11)), None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_entry_nobody_retries_is_forgotten() {
        let mut backoff = PullBackoff::default();
        let start = Instant::now();
        for n in 0..100 {
            backoff.failed(&format!("img{n}").parse().unwrap(), String::new(), start);
        }
        backoff.failed(&"late".parse().unwrap(), String::new(), start + MAX * 3);
        assert_eq!(backoff.entries.len(), 1);
    }
}
