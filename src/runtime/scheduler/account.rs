//! The CPU account of a container, over all its processes.
//!
//! In: measured slices of thread CPU time. Out: the total for statistics, the weight that turns time into virtual
//! time, and the quota's verdict.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::quota::Quota;

/// What a container may use of the CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuLimits {
    /// Quota in thousandths of a core.
    pub milli: Option<u64>,
    /// Share under contention, as `cpu.shares`.
    pub shares: u64,
}

/// A weight of 100 runs in real time; smaller ones pay more virtual time for the same slice.
const WEIGHT_SCALE: u64 = 100;

/// `cpu.weight` of cgroup v2 for `cpu.shares` of v1, as runc converts them. The range is narrower than that of
/// shares, so that the smallest pod next to a large one still gets its turn within a second.
#[must_use]
pub fn cpu_weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

/// The account.
pub struct CpuAccount {
    used_ns: AtomicU64,
    throttled_ns: AtomicU64,
    throttled_periods: AtomicU64,
    weight: AtomicU64,
    shares: AtomicU64,
    /// Quota in thousandths of a core; 0 for none, so that a guest without one takes no lock.
    milli: AtomicU64,
    quota: Mutex<Option<Quota>>,
    runnable: AtomicUsize,
}

impl CpuAccount {
    /// An account with these limits.
    #[must_use]
    pub fn new(limits: CpuLimits) -> Arc<Self> {
        let account = Self {
            used_ns: AtomicU64::new(0),
            throttled_ns: AtomicU64::new(0),
            throttled_periods: AtomicU64::new(0),
            weight: AtomicU64::new(1),
            shares: AtomicU64::new(0),
            milli: AtomicU64::new(0),
            quota: Mutex::new(None),
            runnable: AtomicUsize::new(0),
        };
        account.set_limits(limits);
        Arc::new(account)
    }

    /// Other limits from now on. What was overdrawn of the old quota is forgiven: a resize must not stall.
    pub fn set_limits(&self, limits: CpuLimits) {
        let milli = limits.milli.filter(|milli| *milli > 0);
        let mut quota = self.quota.lock();
        if self.limits().milli != milli {
            *quota = milli.map(|milli| Quota::new(milli, Instant::now()));
        }
        self.milli.store(milli.unwrap_or(0), Ordering::Relaxed);
        self.shares.store(limits.shares, Ordering::Relaxed);
        self.weight.store(cpu_weight(limits.shares), Ordering::Relaxed);
    }

    /// CPU time used so far.
    pub fn used(&self) -> Duration {
        Duration::from_nanos(self.used_ns.load(Ordering::Relaxed))
    }

    /// Time its processes were held back by the quota, and how often.
    pub fn throttled(&self) -> (Duration, u64) {
        let time = Duration::from_nanos(self.throttled_ns.load(Ordering::Relaxed));
        (time, self.throttled_periods.load(Ordering::Relaxed))
    }

    /// Its limits.
    pub fn limits(&self) -> CpuLimits {
        let milli = self.milli.load(Ordering::Relaxed);
        CpuLimits { milli: (milli > 0).then_some(milli), shares: self.shares.load(Ordering::Relaxed) }
    }

    /// Its `cpu.weight`.
    pub fn weight(&self) -> u64 {
        self.weight.load(Ordering::Relaxed)
    }

    /// Virtual time for `time` of one of its entities: a container's weight is shared by those that want to run.
    pub(super) fn virtual_time(&self, time: Duration) -> u64 {
        let runnable = self.runnable.load(Ordering::Relaxed).max(1) as u64;
        self.scaled(time).saturating_mul(runnable)
    }

    /// Virtual time for `time`, as if one entity ran.
    pub(super) fn scaled(&self, time: Duration) -> u64 {
        (time.as_nanos() as u64).saturating_mul(WEIGHT_SCALE) / self.weight()
    }

    /// Books a slice.
    pub(super) fn consume(&self, time: Duration) {
        self.used_ns.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
        if self.has_quota()
            && let Some(quota) = self.quota.lock().as_mut()
        {
            quota.consume(time);
        }
    }

    /// Until when the quota holds its processes back.
    pub(super) fn throttled_until(&self) -> Option<Instant> {
        let now = Instant::now();
        let until = self.quota.lock().as_mut()?.throttled_until(now)?;
        self.throttled_ns.fetch_add((until - now).as_nanos() as u64, Ordering::Relaxed);
        self.throttled_periods.fetch_add(1, Ordering::Relaxed);
        Some(until)
    }

    pub(super) fn has_quota(&self) -> bool {
        self.milli.load(Ordering::Relaxed) > 0
    }

    pub(super) fn became_runnable(&self) {
        self.runnable.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn no_longer_runnable(&self) {
        self.runnable.fetch_sub(1, Ordering::Relaxed);
    }
}
