//! The process ids of containers that see each other, as a pid namespace of Linux.
//!
//! In: claims of process trees. Out: ids that no two processes have at a time, and from an id the process, of whichever
//! container. A container has a namespace of its own, unless its pod shares one (`shareProcessNamespace`) or it is a
//! debug container with a target. Who waits for whom stays the affair of each container's own [`ProcessTree`].
//!
//! [`ProcessTree`]: super::ProcessTree

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::{Pid, Process};
use crate::errno::Errno;

/// The pid of the first process of the container whose namespace it is. In a namespace of a whole pod nobody has it: on
/// Linux it is the pause container's.
const INIT: Pid = 1;
/// Wraps before values that a guest's signed pid cannot hold.
const PID_MAX: Pid = 4_194_304;

/// Which number the first process of a container gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstPid {
    /// [`INIT`]: the namespace is the container's own.
    Init,
    /// The next one: it has joined others.
    Next,
}

/// Ids and who has them.
#[derive(Default)]
pub struct PidNamespace {
    ids: Mutex<Ids>,
}

struct Ids {
    /// Empty between the claim and the process, and once the process is forgotten.
    taken: BTreeMap<Pid, Weak<Process>>,
    last: Pid,
}

impl Default for Ids {
    fn default() -> Self {
        Self { taken: BTreeMap::new(), last: INIT }
    }
}

/// An id that is taken for as long as this is kept: longer than the process runs, until its parent has waited for it.
pub struct PidClaim {
    namespace: Arc<PidNamespace>,
    pid: Pid,
}

impl PidNamespace {
    /// Takes [`INIT`] where the container owns it and it is free, else the next free id.
    pub(super) fn claim(self: &Arc<Self>, first: FirstPid) -> PidClaim {
        let mut ids = self.ids.lock();
        let pid = if first == FirstPid::Init && !ids.taken.contains_key(&INIT) { INIT } else { ids.next() };
        ids.taken.insert(pid, Weak::new());
        PidClaim { namespace: self.clone(), pid }
    }

    /// The process `pid`, running or just ended, of whichever container.
    ///
    /// # Errors
    /// `ESRCH`.
    pub fn get(&self, pid: Pid) -> Result<Arc<Process>, Errno> {
        let process = self.ids.lock().taken.get(&pid).and_then(Weak::upgrade);
        process.filter(|process| process.is_running()).ok_or(Errno::Srch)
    }

    /// Every running process, by id.
    pub fn running(&self) -> Vec<Arc<Process>> {
        // The lock is not held where the last reference to a process, and with it a claim, could go.
        let all: Vec<_> = self.ids.lock().taken.values().filter_map(Weak::upgrade).collect();
        all.into_iter().filter(|process| process.is_running()).collect()
    }
}

impl Ids {
    fn next(&mut self) -> Pid {
        // The limits of processes of a pod's containers are far below the number of ids.
        loop {
            self.last = if self.last >= PID_MAX { INIT + 1 } else { self.last + 1 };
            if !self.taken.contains_key(&self.last) {
                return self.last;
            }
        }
    }
}

impl PidClaim {
    /// The id.
    pub(super) fn pid(&self) -> Pid {
        self.pid
    }

    /// Lets the id be found.
    pub(super) fn given_to(&self, process: &Arc<Process>) {
        self.namespace.ids.lock().taken.insert(self.pid, Arc::downgrade(process));
    }
}

impl Drop for PidClaim {
    fn drop(&mut self) {
        self.namespace.ids.lock().taken.remove(&self.pid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique_and_the_first_is_the_owners() {
        let namespace = Arc::new(PidNamespace::default());
        let claim = |first| namespace.claim(first);
        let joined = claim(FirstPid::Next);
        let owner = claim(FirstPid::Init);
        let child = claim(FirstPid::Next);
        assert_eq!((joined.pid(), owner.pid(), child.pid()), (2, 1, 3), "who joins first does not become the first");
        drop((owner, joined));
        assert_eq!(claim(FirstPid::Init).pid(), 1, "the next attempt is the first again");
        assert_eq!(claim(FirstPid::Next).pid(), 4, "a number is not given again while others are fresh");
        assert_eq!(namespace.get(3).err(), Some(Errno::Srch), "an id without its process is nobody");
    }

    #[test]
    fn ids_wrap_past_those_in_use() {
        let namespace = Arc::new(PidNamespace::default());
        let _kept = (namespace.claim(FirstPid::Init), namespace.claim(FirstPid::Next));
        namespace.ids.lock().last = PID_MAX - 1;
        let pids = [(); 2].map(|()| namespace.claim(FirstPid::Next));
        assert_eq!(pids.each_ref().map(PidClaim::pid), [PID_MAX, 3]);
    }
}
