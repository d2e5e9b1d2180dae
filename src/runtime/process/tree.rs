//! Which processes a container has, and who waits for whom.
//!
//! In: starts and ends of processes. Out: pids, statuses to parents, bounded numbers of both. Zombies (ended, not
//! waited for) count against the limit of processes, as in a pid cgroup. The pids are those of a [`PidNamespace`], which
//! may be others' too: all the rest is of this container alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::pids::{FirstPid, PidClaim, PidNamespace};
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

enum State {
    Running(Arc<Process>),
    Ended { parent: Pid, status: ExitStatus },
}

/// A process, and its id for as long as it is one.
struct Entry {
    state: State,
    claim: PidClaim,
}

impl Entry {
    fn parent(&self) -> Pid {
        match &self.state {
            State::Running(process) => process.parent(),
            State::Ended { parent, .. } => *parent,
        }
    }

    fn running(&self) -> Option<&Arc<Process>> {
        match &self.state {
            State::Running(process) => Some(process),
            State::Ended { .. } => None,
        }
    }
}

struct Table {
    entries: BTreeMap<Pid, Entry>,
    /// The container's own program, once it was started.
    first: Option<Pid>,
    sealed: bool,
}

impl Table {
    fn running(&self, pid: Pid) -> Option<&Arc<Process>> {
        self.entries.get(&pid).and_then(Entry::running)
    }
}

/// The processes of one container.
pub struct ProcessTree {
    table: Mutex<Table>,
    ended: Notify,
    limit: u32,
    pids: Arc<PidNamespace>,
    first: FirstPid,
}

impl ProcessTree {
    /// A tree for at most `limit` processes, which have their ids from `pids`.
    #[must_use]
    pub fn new(limit: u32, pids: Arc<PidNamespace>, first: FirstPid) -> Self {
        let table = Table { entries: BTreeMap::new(), first: None, sealed: false };
        Self { table: Mutex::new(table), ended: Notify::new(), limit: limit.max(1), pids, first }
    }

    /// The processes that see those of this tree and are seen by them.
    pub fn pids(&self) -> &Arc<PidNamespace> {
        &self.pids
    }

    /// Adds the process that `make` builds around its new pid. The first one is the container's own program.
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
        let claim = self.pids.claim(if table.first.is_none() { self.first } else { FirstPid::Next });
        let pid = claim.pid();
        table.first.get_or_insert(pid);
        let process = make(pid);
        claim.given_to(&process);
        table.entries.insert(pid, Entry { state: State::Running(process.clone()), claim });
        Ok(process)
    }

    /// Records an end: a child with a living parent in the tree becomes a zombie, any other is forgotten; its own
    /// children go to the container's first process.
    pub fn end(&self, pid: Pid, status: ExitStatus) {
        let mut table = self.table.lock();
        if table.running(pid).is_none() {
            return;
        }
        let Some(Entry { state: State::Running(process), claim }) = table.entries.remove(&pid) else { return };
        let parent = process.parent();
        let parent_process = table.running(parent).cloned();
        if parent_process.is_some() {
            table.entries.insert(pid, Entry { state: State::Ended { parent, status }, claim });
        }
        let heir = table.first.filter(|first| table.running(*first).is_some()).unwrap_or(0);
        table.entries.retain(|_, entry| {
            if entry.parent() != pid {
                return true;
            }
            match &entry.state {
                State::Running(orphan) => orphan.reparent(heir),
                // Nobody will ever ask: a program that is not a shell does not wait for grandchildren.
                State::Ended { .. } => return false,
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
            match &entry.state {
                State::Ended { status, .. } => {
                    found = Ok(WaitOutcome::Ended(pid, status.clone()));
                    break;
                }
                State::Running(_) => found = Ok(WaitOutcome::StillRunning),
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
        self.table.lock().running(pid).cloned().ok_or(Errno::Srch)
    }

    /// The container's own program, while it runs.
    ///
    /// # Errors
    /// `ESRCH`.
    pub fn first(&self) -> Result<Arc<Process>, Errno> {
        let table = self.table.lock();
        table.first.and_then(|first| table.running(first)).cloned().ok_or(Errno::Srch)
    }

    /// Whether `pid` is, or was, the container's own program.
    pub fn is_first(&self, pid: Pid) -> bool {
        self.table.lock().first == Some(pid)
    }

    /// Whether `pid` has not ended.
    pub fn is_running(&self, pid: Pid) -> bool {
        self.table.lock().running(pid).is_some()
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
        self.table.lock().entries.values().filter_map(Entry::running).cloned().collect()
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
