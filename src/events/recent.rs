//! A map that forgets what was not used for longest.
//!
//! In: keys and values. Out: values of lately used keys. Bounded, so that a node that runs for years counts events
//! in constant memory.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// A map of at most `capacity` entries.
#[derive(Debug)]
pub(super) struct Recent<K, V> {
    capacity: usize,
    entries: HashMap<K, (u64, V)>,
    /// Keys by their last use.
    uses: BTreeMap<u64, K>,
    next_use: u64,
}

impl<K: Clone + Eq + Hash, V> Recent<K, V> {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, entries: HashMap::new(), uses: BTreeMap::new(), next_use: 0 }
    }

    /// The value of `key`, made when absent; the key counts as used.
    pub(super) fn get_or_insert_with(&mut self, key: &K, make: impl FnOnce() -> V) -> &mut V {
        let now = self.next_use;
        self.next_use += 1;
        match self.entries.get(key) {
            Some((used, _)) => {
                self.uses.remove(used);
            }
            None if self.entries.len() >= self.capacity => {
                if let Some((_, oldest)) = self.uses.pop_first() {
                    self.entries.remove(&oldest);
                }
            }
            None => {}
        }
        self.uses.insert(now, key.clone());
        let (used, value) = self.entries.entry(key.clone()).or_insert_with(|| (now, make()));
        *used = now;
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_not_used_for_longest_is_forgotten_first() {
        let mut map = Recent::new(2);
        *map.get_or_insert_with(&"a", || 1) += 1;
        map.get_or_insert_with(&"b", || 1);
        map.get_or_insert_with(&"a", || 1);
        map.get_or_insert_with(&"c", || 1);
        assert_eq!(*map.get_or_insert_with(&"a", || 0), 2, "a was used after b");
        assert_eq!(*map.get_or_insert_with(&"b", || 0), 0, "b was forgotten");
        assert_eq!(map.entries.len(), 2);
        assert_eq!(map.uses.len(), 2);
    }
}
