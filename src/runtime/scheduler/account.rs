//! The CPU account of a container, over all its processes, inside that of its pod.
//!
//! In: measured slices of thread CPU time. Out: the total for statistics, the weight that turns time into virtual
//! time, and the quota's verdict. A pod has its weight against other pods; its containers that want to run divide that
//! by theirs, as nested cgroups do. Both quotas hold.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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

/// A quota that may be there.
#[derive(Default)]
struct Bandwidth {
    /// Thousandths of a core; 0 for none, so that a guest without one takes no lock.
    milli: AtomicU64,
    quota: Mutex<Option<Quota>>,
}

impl Bandwidth {
    /// Another quota from now on. What was overdrawn of the old one is forgiven: a resize must not stall.
    fn set(&self, milli: Option<u64>) {
        let milli = milli.filter(|milli| *milli > 0);
        let mut quota = self.quota.lock();
        if self.milli() != milli {
            *quota = milli.map(|milli| Quota::new(milli, Instant::now()));
        }
        self.milli.store(milli.unwrap_or(0), Ordering::Relaxed);
    }

    fn milli(&self) -> Option<u64> {
        let milli = self.milli.load(Ordering::Relaxed);
        (milli > 0).then_some(milli)
    }

    fn consume(&self, time: Duration) {
        if self.milli().is_some()
            && let Some(quota) = self.quota.lock().as_mut()
        {
            quota.consume(time);
        }
    }

    fn throttled_until(&self, now: Instant) -> Option<Instant> {
        self.milli()?;
        self.quota.lock().as_mut()?.throttled_until(now)
    }
}

/// What the containers of one pod share of the CPU.
#[derive(Default)]
pub struct PodCpu {
    weight: AtomicU64,
    bandwidth: Bandwidth,
    /// The weights of its containers that want to run.
    contenders: AtomicU64,
}

impl PodCpu {
    /// A pod with these limits.
    #[must_use]
    pub fn new(limits: CpuLimits) -> Arc<Self> {
        let pod = Self::default();
        pod.set_limits(limits);
        Arc::new(pod)
    }

    /// Other limits from now on.
    pub fn set_limits(&self, limits: CpuLimits) {
        self.bandwidth.set(limits.milli);
        self.weight.store(cpu_weight(limits.shares), Ordering::Relaxed);
    }
}

/// Which entities of a container want to run.
#[derive(Default)]
struct Runnable {
    entities: u64,
    /// The weight that the container has in its pod meanwhile.
    counted: u64,
}

/// The account.
pub struct CpuAccount {
    pod: Arc<PodCpu>,
    used_ns: AtomicU64,
    throttled_ns: AtomicU64,
    throttled_periods: AtomicU64,
    weight: AtomicU64,
    shares: AtomicU64,
    bandwidth: Bandwidth,
    runnable: Mutex<Runnable>,
}

impl CpuAccount {
    /// An account with these limits, in a pod.
    #[must_use]
    pub fn new(pod: &Arc<PodCpu>, limits: CpuLimits) -> Arc<Self> {
        let account = Self {
            pod: pod.clone(),
            used_ns: AtomicU64::new(0),
            throttled_ns: AtomicU64::new(0),
            throttled_periods: AtomicU64::new(0),
            weight: AtomicU64::new(1),
            shares: AtomicU64::new(0),
            bandwidth: Bandwidth::default(),
            runnable: Mutex::default(),
        };
        account.set_limits(limits);
        Arc::new(account)
    }

    /// Other limits from now on.
    pub fn set_limits(&self, limits: CpuLimits) {
        self.bandwidth.set(limits.milli);
        self.shares.store(limits.shares, Ordering::Relaxed);
        self.weight.store(cpu_weight(limits.shares), Ordering::Relaxed);
        let mut runnable = self.runnable.lock();
        if runnable.entities > 0 {
            self.count(&mut runnable, self.weight());
        }
    }

    /// What the pod counts for this container.
    fn count(&self, runnable: &mut Runnable, weight: u64) {
        self.pod.contenders.fetch_add(weight, Ordering::Relaxed);
        self.pod.contenders.fetch_sub(runnable.counted, Ordering::Relaxed);
        runnable.counted = weight;
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
        CpuLimits { milli: self.bandwidth.milli(), shares: self.shares.load(Ordering::Relaxed) }
    }

    /// Its `cpu.weight`.
    pub fn weight(&self) -> u64 {
        self.weight.load(Ordering::Relaxed)
    }

    /// Virtual time for `time` of one of its entities: a container's weight is shared by those that want to run.
    pub(super) fn virtual_time(&self, time: Duration) -> u64 {
        let runnable = self.runnable.lock().entities.max(1);
        self.scaled(time).saturating_mul(runnable)
    }

    /// Virtual time for `time`, as if one entity ran: the pod's time, as many times as the weights of all its containers
    /// that want to run are this one's.
    pub(super) fn scaled(&self, time: Duration) -> u64 {
        let own = self.weight();
        let together = self.pod.contenders.load(Ordering::Relaxed).max(own);
        let of_pod = self.pod.weight.load(Ordering::Relaxed);
        (time.as_nanos() as u64).saturating_mul(WEIGHT_SCALE).saturating_mul(together) / of_pod.saturating_mul(own)
    }

    /// Books a slice.
    pub(super) fn consume(&self, time: Duration) {
        self.used_ns.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
        self.bandwidth.consume(time);
        self.pod.bandwidth.consume(time);
    }

    /// Until when a quota holds its processes back.
    pub(super) fn throttled_until(&self) -> Option<Instant> {
        let now = Instant::now();
        // The longer of the two waits.
        let until = self.bandwidth.throttled_until(now).max(self.pod.bandwidth.throttled_until(now))?;
        self.throttled_ns.fetch_add((until - now).as_nanos() as u64, Ordering::Relaxed);
        self.throttled_periods.fetch_add(1, Ordering::Relaxed);
        Some(until)
    }

    pub(super) fn has_quota(&self) -> bool {
        self.bandwidth.milli().is_some() || self.pod.bandwidth.milli().is_some()
    }

    pub(super) fn became_runnable(&self) {
        let mut runnable = self.runnable.lock();
        runnable.entities += 1;
        if runnable.entities == 1 {
            self.count(&mut runnable, self.weight());
        }
    }

    pub(super) fn no_longer_runnable(&self) {
        let mut runnable = self.runnable.lock();
        runnable.entities -= 1;
        if runnable.entities == 0 {
            self.count(&mut runnable, 0);
        }
    }
}
