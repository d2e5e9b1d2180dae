//! Which pods' statuses are to be written, and when.
//!
//! In: a time for a pod, or none any more. Out: the pods whose time has come, the longest due first. Asked at every change
//! of any pod, so that nothing here looks at all of them. Reads no clock.

use std::collections::{BTreeSet, HashMap};

use tokio::time::Instant;

use crate::ids::PodUid;

/// The times, by pod and in order.
#[derive(Debug, Default)]
pub(super) struct Due {
    order: BTreeSet<(Instant, PodUid)>,
    of: HashMap<PodUid, Instant>,
}

impl Due {
    /// When a pod is due.
    pub(super) fn get(&self, uid: &PodUid) -> Option<Instant> {
        self.of.get(uid).copied()
    }

    /// Sets when a pod is due, in place of the time before.
    pub(super) fn set(&mut self, uid: &PodUid, at: Option<Instant>) {
        let before = match at {
            Some(at) => self.of.insert(uid.clone(), at),
            None => self.of.remove(uid),
        };
        if before == at {
            return;
        }
        if let Some(before) = before {
            self.order.remove(&(before, uid.clone()));
        }
        if let Some(at) = at {
            self.order.insert((at, uid.clone()));
        }
    }

    /// When the first pod is due.
    pub(super) fn first(&self) -> Option<Instant> {
        self.order.first().map(|(at, _)| *at)
    }

    /// Takes out the pods that are due by `now`, at most so many.
    pub(super) fn take(&mut self, now: Instant, most: usize) -> Vec<PodUid> {
        let mut taken = Vec::new();
        while taken.len() < most
            && self.first().is_some_and(|at| at <= now)
            && let Some((_, uid)) = self.order.pop_first()
        {
            self.of.remove(&uid);
            taken.push(uid);
        }
        taken
    }

    /// How many pods are due at some time.
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pods_are_taken_when_their_last_set_time_has_come_the_longest_due_first() {
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let uid = |name: &str| PodUid::new(name).unwrap();
        let mut due = Due::default();
        for (name, seconds) in [("a", 3), ("b", 1), ("c", 2), ("d", 9), ("e", 1)] {
            due.set(&uid(name), Some(at(seconds)));
        }
        due.set(&uid("a"), Some(at(0)));
        due.set(&uid("e"), None);
        due.set(&uid("e"), None);
        assert_eq!((due.first(), due.get(&uid("c")), due.get(&uid("e"))), (Some(at(0)), Some(at(2)), None));
        assert_eq!(due.take(at(2), 2), [uid("a"), uid("b")]);
        assert_eq!(due.take(at(2), 2), [uid("c")]);
        assert_eq!((due.take(at(2), 2).len(), due.len()), (0, 1));
        assert_eq!(due.take(at(9), 2), [uid("d")]);
        assert!(due.len() == 0 && due.of.is_empty());
    }
}
