//! A CPU quota by periods, as the CFS bandwidth controller has: pure arithmetic.
//!
//! In: used time and the present. Out: until when to hold back. A slice that overran its period is a debt that later
//! periods pay, so that the average is exact though slices are coarse.

use std::time::{Duration, Instant};

/// The kubelet's `cpuCFSQuotaPeriod`.
pub(super) const PERIOD: Duration = Duration::from_millis(100);

/// Budget of the current period.
#[derive(Debug)]
pub(super) struct Quota {
    budget_ns: i64,
    left_ns: i64,
    period_start: Instant,
}

impl Quota {
    /// `milli` thousandths of a core from `now` on.
    pub(super) fn new(milli: u64, now: Instant) -> Self {
        // At least a millisecond a period, as the kernel's smallest quota.
        let budget_ns = (milli.saturating_mul(100_000)).clamp(1_000_000, i64::MAX as u64) as i64;
        Self { budget_ns, left_ns: budget_ns, period_start: now }
    }

    /// Books used time.
    pub(super) fn consume(&mut self, time: Duration) {
        self.left_ns = self.left_ns.saturating_sub(time.as_nanos() as i64);
    }

    /// When the debt will be paid, if there is one.
    pub(super) fn throttled_until(&mut self, now: Instant) -> Option<Instant> {
        let elapsed = now.saturating_duration_since(self.period_start);
        let periods = (elapsed.as_nanos() / PERIOD.as_nanos()) as u32;
        if periods > 0 {
            self.period_start += PERIOD * periods;
            let refill = self.budget_ns.saturating_mul(i64::from(periods));
            // What a period did not use is lost; what it overdrew is not.
            self.left_ns = self.left_ns.saturating_add(refill).min(self.budget_ns);
        }
        if self.left_ns > 0 {
            return None;
        }
        let missing = self.left_ns.unsigned_abs() / self.budget_ns.unsigned_abs() + 1;
        Some(self.period_start + PERIOD * u32::try_from(missing).unwrap_or(u32::MAX))
    }
}
