//! The memory charge of a container: one account over everything it holds, inside that of its pod.
//!
//! In: growth of linear memories and tables, pipe buffers, socket buffers, memory volumes. Out: yes or no, and the
//! out-of-memory event of the whole container, once. Outside any store, because a wasmtime limiter is per store
//! and sees no host allocation.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use wasmtime::ResourceLimiter;

use crate::errno::Errno;
use crate::network::SocketCharge;
use crate::vfs::Charge;

/// What one instance of a table costs per element: wasmtime keeps a pointer.
const TABLE_ELEMENT_BYTES: u64 = size_of::<usize>() as u64;
/// A component may hold several core instances; far above what toolchains link, far below what hurts.
const MAX_INSTANCES: usize = 256;
/// Memories and tables of one store.
const MAX_MEMORIES: usize = 256;

/// The account.
pub struct MemoryCharge {
    used: AtomicU64,
    peak: AtomicU64,
    limit: AtomicU64,
    /// The account of the pod, which every byte is taken from as well.
    pod: Option<Arc<MemoryCharge>>,
    out_of_memory: AtomicBool,
    on_out_of_memory: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl MemoryCharge {
    /// An account of at most `limit` bytes.
    #[must_use]
    pub fn new(limit: Option<u64>) -> Arc<Self> {
        Self::make(limit, None)
    }

    /// An account of at most `limit` bytes that are taken from `pod`, too. Bytes that the pod does not have end the
    /// container that wants them.
    #[must_use]
    pub fn within(pod: &Arc<Self>, limit: Option<u64>) -> Arc<Self> {
        Self::make(limit, Some(pod.clone()))
    }

    fn make(limit: Option<u64>, pod: Option<Arc<Self>>) -> Arc<Self> {
        Arc::new(Self {
            pod,
            used: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            limit: AtomicU64::new(limit.unwrap_or(u64::MAX)),
            out_of_memory: AtomicBool::new(false),
            on_out_of_memory: OnceLock::new(),
        })
    }

    /// Another limit from now on. One below what is in use ends nothing: the next byte does.
    pub fn set_limit(&self, limit: Option<u64>) {
        self.limit.store(limit.unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// What to do, once, when the limit is hit. The call comes from inside a guest's host call.
    pub fn on_out_of_memory(&self, action: impl Fn() + Send + Sync + 'static) {
        // A second action would be a second owner of the container, of which there is none.
        let _ = self.on_out_of_memory.set(Box::new(action));
    }

    /// Takes `bytes`, or takes nothing and says so; the container lives on either way.
    pub fn try_charge(&self, bytes: u64) -> bool {
        let Some(pod) = &self.pod else { return self.take(bytes) };
        if !pod.try_charge(bytes) {
            return false;
        }
        let taken = self.take(bytes);
        if !taken {
            pod.release(bytes);
        }
        taken
    }

    fn take(&self, bytes: u64) -> bool {
        let limit = self.limit.load(Ordering::Relaxed);
        let taken = self.used.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |used| {
            used.checked_add(bytes).filter(|&sum| sum <= limit)
        });
        match taken {
            Ok(before) => {
                self.peak.fetch_max(before + bytes, Ordering::Relaxed);
                true
            }
            Err(_) => false,
        }
    }

    /// Takes `bytes`, or ends the container: memory it cannot do without.
    ///
    /// # Errors
    /// `ENOMEM`; the container is being killed then.
    pub fn charge_host(&self, bytes: u64) -> Result<(), Errno> {
        if self.try_charge(bytes) {
            return Ok(());
        }
        self.declare_out_of_memory();
        Err(Errno::NoMem)
    }

    /// Gives bytes back.
    pub fn release(&self, bytes: u64) {
        if let Some(pod) = &self.pod {
            pod.release(bytes);
        }
        let before = self.used.fetch_sub(bytes, Ordering::AcqRel);
        debug_assert!(before >= bytes, "released {bytes} of {before} charged bytes");
    }

    /// Bytes charged now.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// The highest [`Self::used`] so far.
    pub fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }

    /// The limit, if there is one.
    pub fn limit(&self) -> Option<u64> {
        let limit = self.limit.load(Ordering::Relaxed);
        (limit != u64::MAX).then_some(limit)
    }

    /// Whether `bytes` more could be taken now.
    pub fn has_room(&self, bytes: u64) -> bool {
        let fits = self.used().checked_add(bytes).is_some_and(|sum| sum <= self.limit.load(Ordering::Relaxed));
        fits && self.pod.as_ref().is_none_or(|pod| pod.has_room(bytes))
    }

    /// Whether the limit was hit.
    pub fn is_out_of_memory(&self) -> bool {
        self.out_of_memory.load(Ordering::Acquire)
    }

    fn declare_out_of_memory(&self) {
        if !self.out_of_memory.swap(true, Ordering::AcqRel)
            && let Some(action) = self.on_out_of_memory.get()
        {
            action();
        }
    }
}

impl Charge for MemoryCharge {
    fn charge(&self, bytes: u64) -> Result<(), Errno> {
        self.charge_host(bytes)
    }

    fn release(&self, bytes: u64) {
        Self::release(self, bytes);
    }
}

impl SocketCharge for MemoryCharge {
    fn charge(&self, bytes: u64) -> Result<(), Errno> {
        // A socket can wait for its peer to read: no reason to kill.
        if self.try_charge(bytes) { Ok(()) } else { Err(Errno::NoBufs) }
    }

    fn release(&self, bytes: u64) {
        Self::release(self, bytes);
    }
}

/// Bytes that a container pays for while this is kept.
pub struct Held {
    charge: Arc<MemoryCharge>,
    bytes: u64,
}

impl Held {
    /// Takes `bytes` from the account, if they are there.
    pub fn take(charge: &Arc<MemoryCharge>, bytes: u64) -> Option<Self> {
        charge.try_charge(bytes).then(|| Self { charge: charge.clone(), bytes })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.charge.release(self.bytes);
    }
}

/// The trap of a guest whose container went over its limit; seen only if the kill comes second.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the container's memory limit is reached")]
pub struct OutOfMemory;

/// wasmtime's view of the account: one per store, gives everything back when the store goes.
pub struct GuestLimiter {
    charge: Arc<MemoryCharge>,
    charged: u64,
    last: u64,
}

impl GuestLimiter {
    /// A limiter that takes from `charge`.
    pub fn new(charge: Arc<MemoryCharge>) -> Self {
        Self { charge, charged: 0, last: 0 }
    }

    fn take(&mut self, bytes: u64) -> wasmtime::Result<bool> {
        self.last = 0;
        if self.charge.charge_host(bytes).is_err() {
            return Err(OutOfMemory.into());
        }
        self.charged += bytes;
        self.last = bytes;
        Ok(true)
    }

    /// The growth allowed last did not happen.
    fn undo(&mut self) {
        self.charge.release(self.last);
        self.charged -= self.last;
        self.last = 0;
    }
}

impl ResourceLimiter for GuestLimiter {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            self.last = 0;
            return Ok(false); // The module's own maximum: malloc fails, the container lives.
        }
        self.take(desired.saturating_sub(current) as u64)
    }

    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        tracing::debug!(err = %error, "Memory growth failed");
        self.undo();
        Ok(())
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            self.last = 0;
            return Ok(false);
        }
        self.take(desired.saturating_sub(current) as u64 * TABLE_ELEMENT_BYTES)
    }

    fn table_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        tracing::debug!(err = %error, "Table growth failed");
        self.undo();
        Ok(())
    }

    fn instances(&self) -> usize {
        MAX_INSTANCES
    }

    fn memories(&self) -> usize {
        MAX_MEMORIES
    }

    fn tables(&self) -> usize {
        MAX_MEMORIES
    }
}

impl Drop for GuestLimiter {
    fn drop(&mut self) {
        self.charge.release(self.charged);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[test]
    fn the_limit_is_hit_once_and_nothing_is_taken_then() {
        let charge = MemoryCharge::new(Some(100));
        let calls = Arc::new(AtomicU32::new(0));
        let seen = calls.clone();
        charge.on_out_of_memory(move || {
            seen.fetch_add(1, Ordering::Relaxed);
        });
        assert!(charge.charge_host(100).is_ok());
        assert_eq!(charge.charge_host(1), Err(Errno::NoMem));
        assert_eq!(charge.charge_host(u64::MAX), Err(Errno::NoMem));
        assert_eq!((charge.used(), charge.peak(), calls.load(Ordering::Relaxed)), (100, 100, 1));
        charge.release(100);
        assert_eq!((charge.used(), charge.peak()), (0, 100));
    }

    #[test]
    fn containers_of_a_pod_are_bounded_together_and_the_one_that_wants_more_ends() {
        let pod = MemoryCharge::new(Some(100));
        let (first, second) = (MemoryCharge::within(&pod, Some(80)), MemoryCharge::within(&pod, None));
        assert!(first.charge_host(70).is_ok() && second.charge_host(30).is_ok());
        assert_eq!((pod.used(), first.used(), second.used()), (100, 70, 30));
        assert!(!second.has_room(1) && !second.try_charge(1) && !second.is_out_of_memory());
        assert_eq!(second.charge_host(1), Err(Errno::NoMem));
        assert!(second.is_out_of_memory() && !first.is_out_of_memory() && !pod.is_out_of_memory());
        second.release(30);
        assert!(first.has_room(10) && !first.has_room(11), "its own limit is the narrower one");
        assert!(!first.try_charge(11));
        assert_eq!((pod.used(), first.used()), (70, 70), "what its own limit refuses is given back to the pod");
        pod.set_limit(Some(72));
        assert!(first.try_charge(2) && !first.try_charge(1), "a resize of the pod's level counts at once");
        pod.set_limit(None);
        assert!(second.try_charge(1 << 40), "and can be lifted");
    }

    #[test]
    fn what_is_held_is_paid_for_as_long_and_kills_nobody() {
        let charge = MemoryCharge::new(Some(100));
        let held = Held::take(&charge, 60);
        assert!(held.is_some() && Held::take(&charge, 41).is_none() && !charge.is_out_of_memory());
        drop(held);
        assert_eq!(charge.used(), 0);
    }

    #[test]
    fn sockets_wait_instead_of_killing() {
        let charge = MemoryCharge::new(Some(10));
        assert_eq!(SocketCharge::charge(&*charge, 11), Err(Errno::NoBufs));
        assert!(!charge.is_out_of_memory());
    }

    #[test]
    fn a_store_gives_back_what_it_took() {
        let charge = MemoryCharge::new(Some(1 << 20));
        let mut limiter = GuestLimiter::new(charge.clone());
        assert!(limiter.memory_growing(0, 65536, None).unwrap());
        assert!(!limiter.memory_growing(65536, 1 << 30, Some(65536)).unwrap());
        assert!(limiter.memory_growing(65536, 131_072, None).unwrap());
        limiter.memory_grow_failed(wasmtime::Error::msg("mmap")).unwrap();
        assert_eq!(charge.used(), 65536);
        drop(limiter);
        assert_eq!(charge.used(), 0);
    }
}
