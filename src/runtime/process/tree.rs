//! Which processes a container has, and who waits for whom.
//!
//! In: starts and ends of processes. Out: pids, statuses to parents, bounded numbers of both. Zombies (ended, not
//! waited for) count against the limit of processes, as in a pid cgroup.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{ExitStatus, Pid, Process, Signal};
use crate::errno::Errno;

/// Whom to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitTarget {
    /// Any child.
    Any,
    /// This child.
    Child(Pid),
}

/// What a wait found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WaitOutcome {
    /// This child ended; it is forgotten now.
    Ended(Pid, ExitStatus),
    /// Children match, none has ended.
    StillRunning,
}

enum Entry {
    Running(Arc<Process>),
    Ended { parent: Pid, status: ExitStatus },
}

impl Entry {
    fn parent(&self) -> Pid {
        match self {
            Self::Running(process) => process.parent(),
            Self::Ended { parent, .. } => *parent,
        }
    }
}

struct Table {
    entries: BTreeMap<Pid, Entry>,
    last_pid: Pid,
    sealed: bool,
}

/// The processes of one container.
pub struct ProcessTree {
    table: Mutex<Table>,
    ended: Notify,
    limit: u32,
}

/// The pid of the container's own program.
pub const INIT: Pid = 1;
/// Wraps before values that a guest's signed pid cannot hold.
const PID_MAX: Pid = 4_194_304;

impl ProcessTree {
    /// A tree for at most `limit` processes.
    #[must_use]
    pub fn new(limit: u32) -> Self {
        let table = Table { entries: BTreeMap::new(), last_pid: 0, sealed: false };
        Self { table: Mutex::new(table), ended: Notify::new(), limit: limit.max(1) }
    }

    /// Adds the process that `make` builds around its new pid.
    ///
    /// # Errors
    /// `EAGAIN` at the limit, as fork(2); `ESRCH` when the container is ending.
    pub fn insert(&self, make: impl FnOnce(Pid) -> Arc<Process>) -> Result<Arc<Process>, Errno> {
        let mut table = self.table.lock();
        if table.sealed {
            return Err(Errno::Srch);
        }
        if table.entries.len() >= self.limit as usize {
            return Err(Errno::Again);
        }
        let mut pid = table.last_pid % PID_MAX + 1;
        while table.entries.contains_key(&pid) {
            pid = pid % PID_MAX + 1;
        }
        table.last_pid = pid;
        let process = make(pid);
        table.entries.insert(pid, Entry::Running(process.clone()));
        Ok(process)
    }

    /// Records an end: a child with a living parent in the tree becomes a zombie, any other is forgotten; its own
    /// children go to the container's first process.
    pub fn end(&self, pid: Pid, status: ExitStatus) {
        let mut table = self.table.lock();
        let Some(Entry::Running(process)) = table.entries.remove(&pid) else { return };
        let parent = process.parent();
        let parent_process = match table.entries.get(&parent) {
            Some(Entry::Running(process)) => Some(process.clone()),
            _ => None,
        };
        if parent_process.is_some() {
            table.entries.insert(pid, Entry::Ended { parent, status });
        }
        let init_lives = matches!(table.entries.get(&INIT), Some(Entry::Running(_)));
        table.entries.retain(|_, entry| {
            if entry.parent() != pid {
                return true;
            }
            match entry {
                Entry::Running(orphan) => orphan.reparent(if init_lives { INIT } else { 0 }),
                // Nobody will ever ask: a program that is not a shell does not wait for grandchildren.
                Entry::Ended { .. } => return false,
            }
            true
        });
        drop(table);
        if let Some(parent) = parent_process {
            parent.signals().raise(Signal::CHLD);
        }
        self.ended.notify_waiters();
    }

    /// Looks for an ended child of `parent`, and forgets it.
    ///
    /// # Errors
    /// `ECHILD` when no such child exists.
    pub fn try_wait(&self, parent: Pid, target: WaitTarget) -> Result<WaitOutcome, Errno> {
        let mut table = self.table.lock();
        let wanted = |pid: Pid, entry: &Entry| {
            entry.parent() == parent && matches!(target, WaitTarget::Any)
                || target == WaitTarget::Child(pid) && entry.parent() == parent
        };
        let mut found = Err(Errno::Child);
        for (&pid, entry) in table.entries.iter().filter(|&(&pid, entry)| wanted(pid, entry)) {
            match entry {
                Entry::Ended { status, .. } => {
                    found = Ok(WaitOutcome::Ended(pid, status.clone()));
                    break;
                }
                Entry::Running(_) => found = Ok(WaitOutcome::StillRunning),
            }
        }
        if let Ok(WaitOutcome::Ended(pid, _)) = &found {
            table.entries.remove(pid);
        }
        found
    }

    /// Waits for a child of `parent` to end. Cancel-safe: a child is taken only by the poll that returns it.
    ///
    /// # Errors
    /// `ECHILD` when no such child exists.
    pub async fn wait(&self, parent: Pid, target: WaitTarget) -> Result<(Pid, ExitStatus), Errno> {
        loop {
            let ended = self.ended.notified();
            if let WaitOutcome::Ended(pid, status) = self.try_wait(parent, target)? {
                return Ok((pid, status));
            }
            ended.await;
        }
    }

    /// The running process `pid`.
    ///
    /// # Errors
    /// `ESRCH`.
    pub fn get(&self, pid: Pid) -> Result<Arc<Process>, Errno> {
        match self.table.lock().entries.get(&pid) {
            Some(Entry::Running(process)) => Ok(process.clone()),
            _ => Err(Errno::Srch),
        }
    }

    /// Whether `pid` has not ended.
    pub fn is_running(&self, pid: Pid) -> bool {
        matches!(self.table.lock().entries.get(&pid), Some(Entry::Running(_)))
    }

    /// Whether `pid` is a process, ended or not.
    pub fn contains(&self, pid: Pid) -> bool {
        self.table.lock().entries.contains_key(&pid)
    }

    /// Resolves when `pid` does not run any more. Cancel-safe.
    pub async fn over(&self, pid: Pid) {
        loop {
            let ended = self.ended.notified();
            if !self.is_running(pid) {
                return;
            }
            ended.await;
        }
    }

    /// Every running process.
    pub fn running(&self) -> Vec<Arc<Process>> {
        let table = self.table.lock();
        let running = table.entries.values().filter_map(|entry| match entry {
            Entry::Running(process) => Some(process.clone()),
            Entry::Ended { .. } => None,
        });
        running.collect()
    }

    /// Processes that count against the limit.
    pub fn count(&self) -> u32 {
        self.table.lock().entries.len() as u32
    }

    /// No process starts any more.
    pub fn seal(&self) {
        self.table.lock().sealed = true;
    }

    /// Resolves when no process runs. Cancel-safe.
    pub async fn empty(&self) {
        loop {
            let ended = self.ended.notified();
            if self.running().is_empty() {
                return;
            }
            ended.await;
        }
    }
}
