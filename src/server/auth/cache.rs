//! Answers kept for a while: who a token is, who may do what.
//!
//! In: keys, answers, the time. Out: answers that are not too old. Bounded: beyond its capacity the oldest goes, so
//! that nobody fills the memory with guesses. Reads no clock.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::time::Duration;

use tokio::time::Instant;

/// A map whose entries end by time or by number.
#[derive(Debug)]
pub(super) struct ExpiringCache<K, V> {
    entries: HashMap<K, Entry<V>>,
    /// Keys in the order they were written; a key written again is here again, with its later number.
    order: VecDeque<(u64, K)>,
    capacity: usize,
    next: u64,
}

#[derive(Debug)]
struct Entry<V> {
    value: V,
    expires: Instant,
    number: u64,
}

impl<K: Hash + Eq + Clone, V: Clone> ExpiringCache<K, V> {
    pub(super) fn new(capacity: usize) -> Self {
        Self { entries: HashMap::new(), order: VecDeque::new(), capacity, next: 0 }
    }

    /// What was put there, unless it is too old.
    pub(super) fn get(&self, key: &K, now: Instant) -> Option<V> {
        self.entries.get(key).filter(|entry| now < entry.expires).map(|entry| entry.value.clone())
    }

    /// Keeps `value` for `ttl`; zero keeps nothing.
    pub(super) fn put(&mut self, key: K, value: V, ttl: Duration, now: Instant) {
        if ttl.is_zero() {
            self.entries.remove(&key);
            return;
        }
        let number = self.next;
        self.next += 1;
        self.order.push_back((number, key.clone()));
        self.entries.insert(key, Entry { value, expires: now + ttl, number });
        while self.entries.len() > self.capacity || self.order.len() > 2 * self.capacity || self.front_is_over(now) {
            let Some((number, key)) = self.order.pop_front() else { break };
            if self.entries.get(&key).is_some_and(|entry| entry.number == number) {
                self.entries.remove(&key);
            }
        }
    }

    /// Whether the oldest note is of an entry that has expired or was written again.
    fn front_is_over(&self, now: Instant) -> bool {
        let Some((number, key)) = self.order.front() else { return false };
        self.entries.get(key).is_none_or(|entry| entry.number != *number || entry.expires <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_end_by_time_and_by_number() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut cache = ExpiringCache::new(2);
        cache.put("a", 1, Duration::from_secs(10), start);
        assert_eq!((cache.get(&"a", after(9)), cache.get(&"a", after(10))), (Some(1), None));
        cache.put("b", 2, Duration::from_secs(10), start);
        cache.put("c", 3, Duration::from_secs(10), start);
        assert_eq!(cache.get(&"a", start), None, "the oldest of three made room");
        assert_eq!((cache.get(&"b", start), cache.get(&"c", start)), (Some(2), Some(3)));
        cache.put("b", 4, Duration::ZERO, start);
        assert_eq!(cache.get(&"b", start), None, "no time to live is no entry");
    }

    #[test]
    fn writing_one_key_again_and_again_takes_no_memory() {
        let start = Instant::now();
        let mut cache = ExpiringCache::new(4);
        for n in 0..1000 {
            cache.put("same", n, Duration::from_secs(60), start);
        }
        assert_eq!(cache.get(&"same", start), Some(999));
        assert!(cache.order.len() <= 8, "{}", cache.order.len());
        cache.put("other", 0, Duration::from_secs(60), start + Duration::from_secs(61));
        assert_eq!(cache.entries.len(), 1, "what expired is dropped");
    }
}
