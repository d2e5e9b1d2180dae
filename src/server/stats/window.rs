//! CPU rates: how fast counters grow, from two readings some seconds apart.
//!
//! In: readings of counters with their times. Out: nanocores over the last window. Memory is one entry a counter that
//! still exists. Reads no clock.

use std::collections::HashMap;
use std::hash::Hash;

use tokio::time::Instant;

/// The last window of every counter.
#[derive(Debug)]
pub(super) struct Rates<K> {
    windows: HashMap<K, Window>,
}

#[derive(Debug, Clone, Copy)]
struct Window {
    at: Instant,
    total: u64,
    nano_cores: Option<u64>,
}

impl<K: Hash + Eq> Rates<K> {
    pub(super) fn new() -> Self {
        Self { windows: HashMap::new() }
    }

    /// Takes all counters of one moment; what is not among them any more is forgotten.
    pub(super) fn observe(&mut self, now: Instant, totals: impl IntoIterator<Item = (K, u64)>) {
        let mut windows = HashMap::new();
        for (key, total) in totals {
            let nano_cores = self.windows.get(&key).and_then(|last| rate(*last, now, total));
            windows.insert(key, Window { at: now, total, nano_cores });
        }
        self.windows = windows;
    }

    /// Nanocores over the last window; `None` before there were two readings, and after a counter began anew.
    pub(super) fn nano_cores(&self, key: &K) -> Option<u64> {
        self.windows.get(key)?.nano_cores
    }
}

fn rate(last: Window, now: Instant, total: u64) -> Option<u64> {
    let grown = total.checked_sub(last.total)?;
    let elapsed = now.checked_duration_since(last.at)?.as_nanos();
    if elapsed == 0 {
        return last.nano_cores;
    }
    u64::try_from(u128::from(grown) * 1_000_000_000 / elapsed).ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_rate_is_growth_over_time_and_only_of_what_exists() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut rates = Rates::new();
        rates.observe(at(0), [("a", 1_000), ("b", 0)]);
        assert_eq!(rates.nano_cores(&"a"), None, "one reading is no rate");
        rates.observe(at(10), [("a", 5_000_001_000), ("b", 0)]);
        assert_eq!((rates.nano_cores(&"a"), rates.nano_cores(&"b")), (Some(500_000_000), Some(0)));
        rates.observe(at(20), [("a", 7)]);
        assert_eq!(rates.nano_cores(&"a"), None, "a counter that began anew");
        assert_eq!((rates.nano_cores(&"b"), rates.windows.len()), (None, 1));
        rates.observe(at(30), [("a", u64::MAX)]);
        assert!(rates.nano_cores(&"a").is_some(), "no overflow");
    }
}
