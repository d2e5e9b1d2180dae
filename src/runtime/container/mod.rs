//! One container attempt: a process tree with its files, network, limits and streams.
//!
//! In: a `ContainerSpec`, programs, requests to stop, exec and attach. Out: processes that run on the guest threads,
//! and one `ContainerExit`. Everything that its processes share or are charged for is here; what one process has is
//! in [`super::process`].

mod launch;
mod lookup;
mod proc_files;
mod root;
mod session;
mod stop;
mod streams;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::sync::mpsc;

pub use launch::Launch;
pub(super) use root::{PodFiles, build as build_root, credentials};
pub use session::{Session, SessionInput, SessionOutput, SessionResize, SessionWait};

use super::artifact::Programs;
use super::limits::MemoryCharge;
use super::output::{ContainerOutput, LogPump};
use super::process::{ExitStatus, FirstPid, PidNamespace, Process, ProcessTree, Signal};
use super::scheduler::{CpuAccount, Scheduler};
use super::toolbox::Toolbox;
use super::tty::Terminal;
use crate::ids::PodUid;
use crate::network::{OwnerId, PodNetwork};
use crate::pod::run::{ContainerExit, ContainerSpec, ContainerUsage, ExitCause};
use crate::vfs::{Credentials, Namespace};
use streams::StdinSide;

/// What all containers of the node use.
pub struct Services {
    /// Compiled programs.
    pub programs: Programs,
    /// The shell and utilities for containers without them.
    pub toolbox: Toolbox,
    /// The run gate.
    pub scheduler: Arc<Scheduler>,
    /// The threads that run guests.
    pub guests: tokio::runtime::Handle,
    /// The agent's own threads.
    pub control: tokio::runtime::Handle,
    /// The log writer.
    pub pump: LogPump,
    /// Where ends are reported.
    pub exits: mpsc::Sender<ContainerExit>,
}

/// What was prepared for a container before it exists.
pub(super) struct Prepared {
    pub(super) uid: PodUid,
    pub(super) hostname: String,
    pub(super) spec: ContainerSpec,
    pub(super) owner: OwnerId,
    pub(super) network: Arc<PodNetwork>,
    pub(super) namespace: Namespace,
    pub(super) credentials: Credentials,
    pub(super) charge: Arc<MemoryCharge>,
    pub(super) cpu: Arc<CpuAccount>,
    pub(super) output: Arc<ContainerOutput>,
    pub(super) pids: (Arc<PidNamespace>, FirstPid),
}

/// How far a container is on its way to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// Nobody asked.
    No,
    /// Asked to stop; its grace runs.
    Stopping,
    /// Killed.
    Killed,
}

/// One container attempt.
pub struct Container {
    services: Arc<Services>,
    uid: PodUid,
    hostname: String,
    spec: ContainerSpec,
    owner: OwnerId,
    network: Arc<PodNetwork>,
    namespace: Namespace,
    credentials: Credentials,
    charge: Arc<MemoryCharge>,
    cpu: Arc<CpuAccount>,
    tree: ProcessTree,
    output: Arc<ContainerOutput>,
    terminal: Option<Arc<Terminal>>,
    stdin: Mutex<StdinSide>,
    ending: Mutex<Ending>,
    started: AtomicBool,
    /// An HTTP component's server knows when its last response is sent; quiet sockets do not.
    drains_itself: AtomicBool,
    /// Taken while a program is read and compiled.
    loading: tokio::sync::Semaphore,
    started_at: Mutex<SystemTime>,
    ended: tokio::sync::watch::Sender<Option<u8>>,
}

impl Container {
    /// A container without processes.
    pub(super) fn new(services: &Arc<Services>, prepared: Prepared) -> Arc<Self> {
        let Prepared { uid, hostname, spec, owner, network, namespace, credentials, charge, cpu, output, pids } =
            prepared;
        let (terminal, stdin) = streams::open(&spec.stdio, &output);
        let container = Arc::new(Self {
            services: services.clone(),
            uid,
            hostname,
            owner,
            network,
            namespace,
            credentials,
            charge,
            cpu,
            tree: ProcessTree::new(spec.limits.processes, pids.0, pids.1),
            spec,
            output,
            terminal,
            stdin: Mutex::new(stdin),
            ending: Mutex::new(Ending::No),
            started: AtomicBool::new(false),
            drains_itself: AtomicBool::new(false),
            loading: tokio::sync::Semaphore::new(1),
            started_at: Mutex::new(SystemTime::now()),
            ended: tokio::sync::watch::Sender::new(None),
        });
        let weak = Arc::downgrade(&container);
        container.charge.on_out_of_memory(move || {
            if let Some(container) = weak.upgrade() {
                container.kill_all(&ExitStatus::OutOfMemory);
            }
        });
        container
    }

    /// Its spec.
    pub fn spec(&self) -> &ContainerSpec {
        &self.spec
    }

    /// What `hostname` shows.
    pub fn hostname(&self) -> &str {
        &self.hostname
    }

    /// Its key in the network.
    pub fn owner(&self) -> OwnerId {
        self.owner
    }

    /// The pod's network.
    pub fn network(&self) -> &Arc<PodNetwork> {
        &self.network
    }

    /// Its files, without any process's `/proc/self`.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Who its processes are to the filesystem.
    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// Its memory.
    pub fn charge(&self) -> &Arc<MemoryCharge> {
        &self.charge
    }

    /// Its CPU time.
    pub fn cpu(&self) -> &Arc<CpuAccount> {
        &self.cpu
    }

    /// Its processes.
    pub fn tree(&self) -> &ProcessTree {
        &self.tree
    }

    /// What the node gives all containers.
    pub fn services(&self) -> &Arc<Services> {
        &self.services
    }

    /// Time spent running guest code.
    pub fn cpu_used(&self) -> Duration {
        self.cpu.used()
    }

    /// One reading of its use; that of its files takes a look at each.
    pub fn usage(&self) -> ContainerUsage {
        ContainerUsage {
            cpu: self.cpu.used(),
            memory_bytes: self.charge.used(),
            memory_peak_bytes: self.charge.peak(),
            processes: self.tree.count(),
            writable_bytes: self.namespace.writable_bytes(),
        }
    }

    /// Whether its first process runs.
    pub fn is_running(&self) -> bool {
        self.started.load(Ordering::Acquire) && self.tree.first().is_ok()
    }

    /// Whether everything is over and logged.
    pub fn is_over(&self) -> bool {
        self.ended.borrow().is_some()
    }

    /// Gives everything back after a start that failed.
    pub(super) async fn abandon(&self) {
        self.tree.seal();
        self.kill_all(&ExitStatus::Signaled(Signal::KILL));
        self.tree.empty().await;
        self.network.remove_owner(self.owner);
        self.output.close().await;
        self.ended.send_replace(Some(128));
    }

    /// Resolves to the exit code once everything is over and logged. Cancel-safe.
    pub async fn wait(&self) -> u8 {
        let mut ended = self.ended.subscribe();
        match ended.wait_for(Option::is_some).await {
            Ok(code) => code.unwrap_or(128),
            Err(_) => 128, // The sender is ours and lives as long as we do.
        }
    }

    /// Books the end of one process; the first one's is the container's.
    pub(super) fn process_ended(self: &Arc<Self>, process: &Process, status: ExitStatus) {
        let pid = process.pid();
        self.tree.end(pid, status.clone());
        if !self.tree.is_first(pid) {
            return;
        }
        self.tree.seal();
        self.kill_all(&ExitStatus::Signaled(Signal::KILL));
        if !self.started.load(Ordering::Acquire) {
            return; // Whoever started it is told, and abandons it.
        }
        let container = self.clone();
        // Not on the guest threads: what follows waits for the disk.
        self.services.control.spawn(async move { container.finish(status).await });
    }

    /// Waits for the rest of the tree, the log and the sockets, then reports.
    async fn finish(self: Arc<Self>, status: ExitStatus) {
        let finished_at = SystemTime::now();
        self.tree.empty().await;
        self.network.remove_owner(self.owner);
        self.output.close().await;
        let code = status.code();
        let exit = ContainerExit {
            uid: self.uid.clone(),
            id: self.spec.id.clone(),
            exit_code: code,
            cause: self.cause(status),
            started_at: *self.started_at.lock(),
            finished_at,
        };
        // Fails only when the worker is gone, and then nobody wants to know.
        let _ = self.services.exits.send(exit).await;
        self.ended.send_replace(Some(code));
    }

    fn cause(&self, status: ExitStatus) -> ExitCause {
        match status {
            ExitStatus::OutOfMemory => ExitCause::OutOfMemory,
            ExitStatus::Trapped { message } => ExitCause::Trapped { message },
            ExitStatus::HostFault { message } => ExitCause::HostFault { message },
            ExitStatus::Signaled(Signal::KILL) => ExitCause::Killed,
            ExitStatus::Exited(_) | ExitStatus::Signaled(_) => match *self.ending.lock() {
                Ending::No => ExitCause::Exited,
                Ending::Stopping | Ending::Killed => ExitCause::Stopped,
            },
        }
    }
}

impl std::fmt::Debug for Container {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Container").field("name", &self.spec.name).field("id", &self.spec.id).finish_non_exhaustive()
    }
}
