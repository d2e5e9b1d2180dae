//! File locks between the processes, and the tasks, that share a store.
//!
//! `flock(2)` on files opened anew each time: the kernel releases them when their holder dies, and two
//! tasks of one process exclude each other as two processes do.

use std::fs::File;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;

use super::{Store, StoreError};

/// How long to wait for the others: a removal takes milliseconds, a rewrite of the table less.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a removal waits for pulls to end; they can take minutes, and a removal can be tried again.
const REMOVAL_PATIENCE: Duration = Duration::from_secs(5);
/// Between two tries.
const RETRY: Duration = Duration::from_millis(20);

/// Holds a lock until dropped.
#[derive(Debug)]
pub struct Guard {
    _file: File,
}

/// Takes an exclusive lock if nobody has one.
pub(super) fn try_exclusive(file: &File) -> bool {
    rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive).is_ok()
}

impl Store {
    /// Keeps content from being removed while more is added. Blocking.
    ///
    /// # Errors
    /// [`StoreError::Busy`] when a removal does not end.
    pub fn adding(&self) -> Result<Guard, StoreError> {
        self.lock("gc.lock", FlockOperation::NonBlockingLockShared, PATIENCE)
    }

    /// Keeps content from being added while some is removed. Blocking.
    ///
    /// # Errors
    /// [`StoreError::Busy`] while a pull or load runs.
    pub fn removing(&self) -> Result<Guard, StoreError> {
        self.lock("gc.lock", FlockOperation::NonBlockingLockExclusive, REMOVAL_PATIENCE)
    }

    /// Keeps the table of names from being rewritten by two at once. Blocking.
    pub(super) fn rewriting(&self) -> Result<Guard, StoreError> {
        self.lock("refs.lock", FlockOperation::NonBlockingLockExclusive, PATIENCE)
    }

    fn lock(&self, name: &str, operation: FlockOperation, patience: Duration) -> Result<Guard, StoreError> {
        let path = self.root.join(name);
        let io = |step, source| StoreError::Io { step, path: path.clone(), source };
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|source| io("opening", source))?;
        let deadline = Instant::now() + patience;
        loop {
            match rustix::fs::flock(&file, operation) {
                Ok(()) => return Ok(Guard { _file: file }),
                Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {}
                Err(error) => return Err(io("locking", error.into())),
            }
            if Instant::now() >= deadline {
                return Err(StoreError::Busy { path: self.root.clone() });
            }
            thread::sleep(RETRY);
        }
    }
}
