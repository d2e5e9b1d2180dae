//! The process tree of containers, outside any wasmtime store.
//!
//! In: programs that the container starts, and the calls of every WASI front-end. Out: pids, arguments,
//! environment, the fd table, pending signals, exit statuses and waiting for them. Shared by preview 1,
//! WASI 0.2 streams, exec and the host imports `pipe` and `spawn`; no front-end keeps such state itself.
//! Does not know wasm: a process is whatever future its container drives for it.

mod child;
mod description;
mod fds;
mod pids;
pub mod pipe;
mod signals;
pub mod stdio;
mod tree;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

pub use child::ProcessEnd;
pub use description::{Access, DescriptionKind, FileDescription, OpenDirectory, OpenFile, StatusFlags};
pub use fds::{Fd, FdTable};
pub use pids::{FirstPid, PidNamespace};
pub use signals::{Signal, SignalListener, SignalQueue};
pub use tree::{ProcessTree, WaitOutcome, WaitTarget};

use super::container::Container;
use super::limits::Held;
use super::scheduler::{Entity, Metered};
use crate::errno::Errno;
use crate::vfs::{Credentials, Namespace};

/// A process id, unique in its [`PidNamespace`]; in a namespace of its own the container's program is 1.
pub type Pid = u32;

/// How a process ended, as `wait` reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExitStatus {
    /// It returned from its start function, or called exit with this code.
    Exited(u8),
    /// A signal ended it; its code is 128 and the number.
    Signaled(Signal),
    /// It trapped: 134, with the message and wasm backtrace.
    Trapped {
        /// Bounded to 4096 bytes.
        message: String,
    },
    /// The container went over its memory limit: 137.
    OutOfMemory,
    /// Host code failed on its behalf: 128.
    HostFault {
        /// What failed.
        message: String,
    },
}

impl ExitStatus {
    /// The code a shell would show.
    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            Self::Exited(code) => *code,
            Self::Signaled(signal) => 128 + signal.number(),
            Self::Trapped { .. } => 128 + Signal::ABRT.number(),
            Self::OutOfMemory => 128 + Signal::KILL.number(),
            Self::HostFault { .. } => 128,
        }
    }
}

/// Everything a new process is given.
pub struct ProcessSpec {
    /// Arguments, `argv[0]` first.
    pub argv: Vec<String>,
    /// Environment in order.
    pub env: Vec<(String, String)>,
    /// The program's own path in the container.
    pub exe: String,
    /// Absolute path in the container.
    pub cwd: String,
    /// Its descriptors; 0, 1 and 2 are the standard streams.
    pub fds: FdTable,
    /// The container's files, with this process's `/proc/self`.
    pub namespace: Namespace,
    /// Bits taken from the mode of what it makes.
    pub umask: u32,
    /// What the strings above cost, given back when the process is forgotten.
    pub held: Held,
}

/// One running or just ended program of a container.
pub struct Process {
    pid: Pid,
    parent: AtomicU32,
    container: Arc<Container>,
    argv: Vec<String>,
    env: Vec<(String, String)>,
    exe: String,
    cwd: String,
    fds: FdTable,
    signals: Arc<SignalQueue>,
    namespace: Namespace,
    umask: AtomicU32,
    draining: AtomicBool,
    drain_requested: Notify,
    entity: Arc<Entity>,
    life: Mutex<Life>,
    exited: Notify,
    _held: Held,
}

/// The end of a process, and the handle to bring it about.
///
/// ```text
///   Starting --task_started()--> Running --guest returns or is dropped--> Ended
///       '---------- kill() -------> Killed --task dropped--------------------^
/// ```
enum Life {
    /// Its task is not known yet.
    Starting,
    /// Its task runs.
    Running(AbortHandle),
    /// Somebody ended it with this status; the task is dropped at its next epoch.
    Killed(ExitStatus),
    /// Over.
    Ended(ExitStatus),
}

impl Process {
    /// A process that is in no tree yet; see [`ProcessTree::insert`].
    pub(super) fn new(
        pid: Pid,
        parent: Pid,
        container: Arc<Container>,
        entity: Arc<Entity>,
        spec: ProcessSpec,
    ) -> Self {
        Self {
            pid,
            parent: AtomicU32::new(parent),
            container,
            argv: spec.argv,
            env: spec.env,
            exe: spec.exe,
            cwd: spec.cwd,
            fds: spec.fds,
            signals: Arc::new(SignalQueue::default()),
            namespace: spec.namespace,
            umask: AtomicU32::new(spec.umask),
            draining: AtomicBool::new(false),
            drain_requested: Notify::new(),
            entity,
            life: Mutex::new(Life::Starting),
            exited: Notify::new(),
            _held: spec.held,
        }
    }

    /// Its task, which [`Self::kill`] drops.
    pub(super) fn task_started(&self, task: AbortHandle) {
        let mut life = self.life.lock();
        match &*life {
            Life::Starting => *life = Life::Running(task),
            Life::Killed(_) => task.abort(),
            Life::Running(_) | Life::Ended(_) => {}
        }
    }

    /// Ends it with `status`, within milliseconds, whatever it does. The first kill decides the status, except that
    /// running out of memory outranks all.
    pub(super) fn kill(&self, status: ExitStatus) {
        let mut life = self.life.lock();
        match std::mem::replace(&mut *life, Life::Starting) {
            Life::Starting => *life = Life::Killed(status),
            Life::Running(task) => {
                *life = Life::Killed(status);
                drop(life);
                task.abort();
            }
            Life::Killed(_) if status == ExitStatus::OutOfMemory => *life = Life::Killed(status),
            over @ (Life::Killed(_) | Life::Ended(_)) => *life = over,
        }
    }

    /// kill(2) and the keys of a terminal: readers of `/dev/signal` are told, others get the default action.
    pub fn signal(&self, signal: Signal) {
        if signal == Signal::KILL || !self.signals.has_listeners() && !signal.is_ignored_by_default() {
            self.kill(ExitStatus::Signaled(signal));
        } else {
            self.signals.raise(signal);
        }
    }

    /// Its task is over: with `returned` when the guest came to its own end. Gives the final status.
    pub(super) fn ended(&self, returned: Option<ExitStatus>) -> ExitStatus {
        let mut life = self.life.lock();
        let status = match (&*life, returned) {
            (Life::Ended(status) | Life::Killed(status @ ExitStatus::OutOfMemory), _) => status.clone(),
            (_, Some(status)) => status,
            (Life::Killed(status), None) => status.clone(),
            (Life::Starting | Life::Running(_), None) => ExitStatus::Signaled(Signal::KILL),
        };
        *life = Life::Ended(status.clone());
        drop(life);
        self.exited.notify_waiters();
        status
    }

    /// Whether it was killed and only waits to be dropped.
    pub fn is_killed(&self) -> bool {
        matches!(*self.life.lock(), Life::Killed(_))
    }

    /// Its status, once it has ended. Cancel-safe.
    pub async fn exit_status(&self) -> ExitStatus {
        loop {
            let exited = self.exited.notified();
            if let Life::Ended(status) = &*self.life.lock() {
                return status.clone();
            }
            exited.await;
        }
    }

    /// The container's files, with its own `/proc/self`.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Who it is to the filesystem.
    pub fn credentials(&self) -> &Credentials {
        self.container.credentials()
    }

    /// The same with its umask, for what makes files.
    pub fn creator(&self) -> Credentials {
        Credentials { umask: self.umask(), ..self.credentials().clone() }
    }

    /// Bits taken from the mode of what it makes.
    pub fn umask(&self) -> u32 {
        self.umask.load(Ordering::Relaxed)
    }

    /// Replaces the umask, of which only the permission bits count. Gives the old one.
    pub fn set_umask(&self, umask: u32) -> u32 {
        self.umask.swap(umask & 0o777, Ordering::Relaxed)
    }

    /// Whether it has not ended.
    pub fn is_running(&self) -> bool {
        !matches!(*self.life.lock(), Life::Ended(_))
    }

    /// Whether it may look into `other` and signal it: the user's own processes, and everybody's for user 0. Within one
    /// container all are the same user's.
    pub fn may_touch(&self, other: &Self) -> bool {
        let (own, others) = (self.credentials().uid, other.credentials().uid);
        own == 0 || own == others
    }

    /// What another process that it sees has open under a number: streams only, for a file's offset is its owner's.
    ///
    /// # Errors
    /// `ESRCH`, `EACCES` for another user's, `EBADF`.
    pub fn descriptor_of(&self, pid: Pid, fd: Fd) -> Result<Arc<FileDescription>, Errno> {
        let other = self.container.tree().pids().get(pid)?;
        if !self.may_touch(&other) {
            return Err(Errno::Acces);
        }
        let description = other.fds().get(fd)?;
        match description.kind() {
            DescriptionKind::File(_) | DescriptionKind::Directory(_) => Err(Errno::Acces),
            _ => Ok(description.for_child()),
        }
    }

    /// Its id.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Its parent's id; 0 for the container's first process and for execs, whose parent is outside.
    pub fn parent(&self) -> Pid {
        self.parent.load(Ordering::Relaxed)
    }

    /// Gives an orphan to the container's first process.
    pub(super) fn reparent(&self, parent: Pid) {
        self.parent.store(parent, Ordering::Relaxed);
    }

    /// The container it is charged to: files, network, limits.
    pub fn container(&self) -> &Arc<Container> {
        &self.container
    }

    /// Arguments, `argv[0]` first.
    pub fn argv(&self) -> &[String] {
        &self.argv
    }

    /// The program's own path in the container.
    pub fn exe(&self) -> &str {
        &self.exe
    }

    /// Environment in order.
    pub fn env(&self) -> &[(String, String)] {
        &self.env
    }

    /// The directory it was started in.
    pub fn cwd(&self) -> &str {
        &self.cwd
    }

    /// Its descriptors.
    pub fn fds(&self) -> &FdTable {
        &self.fds
    }

    /// Signals that were sent to it.
    pub fn signals(&self) -> &Arc<SignalQueue> {
        &self.signals
    }

    /// Asks it to stop accepting connections and to end once idle.
    pub fn request_drain(&self) {
        self.draining.store(true, Ordering::Release);
        self.drain_requested.notify_waiters();
    }

    /// Whether [`Self::request_drain`] was called: listening sockets then show no more connections.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Resolves once a drain is requested. Cancel-safe.
    pub async fn draining(&self) {
        loop {
            let requested = self.drain_requested.notified();
            if self.is_draining() {
                return;
            }
            requested.await;
        }
    }

    /// Runs `future` under the container's CPU quota and weight; for every task that executes this process's
    /// guest code beside its main one.
    pub fn meter<F: Future>(&self, future: F) -> Metered<F> {
        Metered::new(self.entity.sibling(), future)
    }

    /// The main task's place in the run gate.
    pub(super) fn entity(&self) -> &Arc<Entity> {
        &self.entity
    }
}

impl std::fmt::Debug for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Process").field("pid", &self.pid).field("argv", &self.argv).finish_non_exhaustive()
    }
}
