//! The runtime: the only importer of wasmtime.
//!
//! ```text
//!  worker --specs--> Runtime --> Sandbox (network, volumes) --> Container (files, charges, process tree)
//!    ^                 |                                             |
//!    '--ContainerExit--'     artifact + compile (programs)           '--> Process --> Store<Guest> on guest threads
//!                            engine, scheduler (gate, quota)                            wasi::{p1, p2}, http
//! ```
//!
//! In: plain data of `pod::run`. Out: running containers, their ends as [`ContainerExit`]s, sessions with byte
//! streams. Takes no decision about restarts, order or images: that is the worker's.
//! Invariant: nothing a guest does ends the agent or blocks its threads; guests have threads of their own.

pub mod artifact;
pub mod compile;
pub mod config;
pub mod container;
pub mod engine;
pub mod error;
mod http;
pub mod limits;
mod metrics;
pub mod output;
pub mod process;
mod sandbox;
pub mod scheduler;
pub mod store;
mod threads;
pub mod toolbox;
pub mod tty;
mod wasi;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc;

pub use artifact::CompileProgress;
pub use config::RuntimeConfig;
pub use container::{Session, SessionInput, SessionOutput, SessionResize, SessionWait};
pub use error::{ExecError, LookupError, ProgramError, RuntimeError, StartError};
pub use metrics::RuntimeMetrics;
pub use tty::WindowSize;

use crate::errno::Errno;
use crate::ids::{ContainerId, PodUid};
use crate::logs::LogStore;
use crate::network::{NodeNetwork, OwnerId, Protocol, TcpStream, Traffic};
use crate::pod::run::{
    ContainerExit, ContainerSpec, ContainerUsage, ExecSpec, ImageSpec, Limits, PodLimits, Projection, SandboxSpec,
    StopRequest,
};
use crate::vfs::Volume;
use artifact::{Programs, WasmSource};
use container::{Container, Prepared, Services};
use engine::Engines;
use limits::MemoryCharge;
use output::{ContainerOutput, LogPump};
use sandbox::Sandbox;
use scheduler::{CpuAccount, CpuLimits, Scheduler};
use threads::GuestThreads;
use toolbox::Toolbox;

/// Ends that the worker has not taken yet; above it ending containers wait, and nothing else does.
const EXIT_QUEUE: usize = 1024;
/// How long a removed pod's containers may take to be gone. A kill takes milliseconds; a hung mount may take for ever.
const REMOVAL_PATIENCE: Duration = Duration::from_secs(30);

/// What a new sandbox got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxInfo {
    /// The pod's addresses, the primary one first.
    pub ips: Vec<IpAddr>,
}

/// What a runtime holds at a moment: what grows of it while pods come and go is a leak.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Census {
    /// Tasks alive on the agent's own threads.
    pub agent_tasks: usize,
    /// Tasks alive on the threads of guests.
    pub guest_tasks: usize,
    /// Sandboxes that exist.
    pub sandboxes: usize,
    /// Addresses that pods have; none of them where pods share the node's.
    pub addresses: usize,
}

/// Containers by id.
#[derive(Default)]
struct Index {
    containers: HashMap<ContainerId, Weak<Container>>,
    /// How many there are when those that are gone are next removed: twice as many as lived then.
    sweep_at: usize,
}

impl Index {
    fn insert(&mut self, id: ContainerId, container: Weak<Container>) {
        const LEAST: usize = 64;
        if self.containers.len() >= self.sweep_at {
            self.containers.retain(|_, container| container.strong_count() > 0);
            self.sweep_at = (self.containers.len() * 2).max(LEAST);
        }
        self.containers.insert(id, container);
    }
}

/// The runtime of the node.
pub struct Runtime {
    services: Arc<Services>,
    network: Arc<NodeNetwork>,
    logs: LogStore,
    sandboxes: Mutex<HashMap<PodUid, Sandbox>>,
    /// Every container of every sandbox, for calls that name only the container.
    index: Mutex<Index>,
    next_owner: AtomicU64,
    metrics: RuntimeMetrics,
    // Last: its threads end when everything that runs on them is gone.
    _threads: GuestThreads,
}

impl Runtime {
    /// Starts engine, guest threads, ticker and log writer. Call it inside the agent's tokio runtime.
    ///
    /// # Errors
    /// [`RuntimeError`] when this machine cannot run it, or the root directory cannot be written.
    pub fn new(
        config: RuntimeConfig,
        network: Arc<NodeNetwork>,
    ) -> Result<(Arc<Self>, mpsc::Receiver<ContainerExit>), RuntimeError> {
        let started = |name| move |source| RuntimeError::Threads { name, source };
        let engines = Engines::new()?;
        let programs = Programs::new(engines.clone(), &config)?;
        let threads = GuestThreads::start(config.guest_threads).map_err(started("guest"))?;
        let scheduler = Scheduler::new(engines, config.guest_threads).map_err(started("epoch"))?;
        let metrics = RuntimeMetrics::new(programs.metrics().clone());
        let (exits, receiver) = mpsc::channel(EXIT_QUEUE);
        let services = Arc::new(Services {
            programs,
            toolbox: Toolbox::new(config.toolbox),
            scheduler,
            guests: threads.handle(),
            control: tokio::runtime::Handle::current(),
            pump: LogPump::start().map_err(started("container log"))?,
            exits,
        });
        let runtime = Arc::new(Self {
            services,
            network,
            logs: config.logs,
            sandboxes: Mutex::default(),
            index: Mutex::default(),
            next_owner: AtomicU64::new(1),
            metrics,
            _threads: threads,
        });
        Ok((runtime, receiver))
    }

    /// Gives a pod its network and opens its volumes. `ip` is the address it had before the agent restarted.
    ///
    /// # Errors
    /// [`RuntimeError`] naming what failed; nothing is left behind.
    pub async fn create_sandbox(&self, spec: SandboxSpec, ips: Vec<IpAddr>) -> Result<SandboxInfo, RuntimeError> {
        let (uid, pod) = (spec.uid.clone(), spec.pod.clone());
        let operation = self.metrics.begin("run_podsandbox");
        if self.sandboxes.lock().contains_key(&uid) {
            return Err(RuntimeError::SandboxExists { pod });
        }
        let sandbox = Sandbox::create(spec, ips, &self.network).await?;
        let ips = sandbox.network.ips();
        // One worker a pod: nobody else makes this one meanwhile.
        self.sandboxes.lock().insert(uid, sandbox);
        operation.succeeded();
        Ok(SandboxInfo { ips })
    }

    /// Replaces the content of a projected volume; containers see all of it at once.
    ///
    /// # Errors
    /// [`RuntimeError`] when there is no such sandbox or volume, or the content has an illegal path.
    pub fn update_volume(&self, uid: &PodUid, volume: &str, content: &Projection) -> Result<(), RuntimeError> {
        let sandboxes = self.sandboxes.lock();
        let sandbox = sandboxes.get(uid).ok_or_else(|| RuntimeError::NoSandbox { uid: uid.clone() })?;
        sandbox.update_volume(volume, content)
    }

    /// Until a guest has come to a volume whose content waits for that. Of a volume that is not there nobody hears.
    pub async fn volume_wanted(&self, uid: &PodUid, volume: &str) {
        match self.opened_volume(uid, volume) {
            Some(opened) => opened.wanted().await,
            None => std::future::pending().await,
        }
    }

    /// Whether a volume's content is still to come.
    pub fn is_volume_pending(&self, uid: &PodUid, volume: &str) -> bool {
        self.opened_volume(uid, volume).is_some_and(|opened| opened.is_pending())
    }

    fn opened_volume(&self, uid: &PodUid, volume: &str) -> Option<Arc<Volume>> {
        self.sandboxes.lock().get(uid).and_then(|sandbox| sandbox.volume(volume).ok().cloned())
    }

    /// Bytes in use in a volume, for `sizeLimit` and eviction.
    ///
    /// # Errors
    /// [`RuntimeError`] when there is no such sandbox or volume, or it cannot be read.
    pub async fn volume_usage(&self, uid: &PodUid, volume: &str) -> Result<u64, RuntimeError> {
        let opened = {
            let sandboxes = self.sandboxes.lock();
            let sandbox = sandboxes.get(uid).ok_or_else(|| RuntimeError::NoSandbox { uid: uid.clone() })?;
            sandbox.volume(volume)?.clone()
        };
        opened.used_bytes().await.map_err(|source| match self.sandboxes.lock().get(uid) {
            Some(sandbox) => sandbox.volume_error(volume, source),
            None => RuntimeError::NoSandbox { uid: uid.clone() },
        })
    }

    /// Kills what still runs in a sandbox, waits for it, and gives back network and volumes. Unknown is fine.
    pub async fn remove_sandbox(&self, uid: &PodUid) {
        let Some(sandbox) = self.sandboxes.lock().remove(uid) else {
            // One of an earlier run may have an address yet.
            self.network.remove_pod(uid);
            return;
        };
        let operation = self.metrics.begin("remove_podsandbox");
        for container in sandbox.containers.values() {
            container.kill_container();
        }
        for container in sandbox.containers.values() {
            if tokio::time::timeout(REMOVAL_PATIENCE, container.wait()).await.is_err() {
                tracing::error!(pod = %sandbox.pod, container = ?container, "Container did not end when killed");
            }
        }
        self.network.remove_pod(uid);
        operation.succeeded();
    }

    /// Starts a container. Its files are made at once; its program is started when `permit` says so. Returns when its first
    /// instruction is about to run; its end comes as a [`ContainerExit`].
    ///
    /// # Errors
    /// [`StartError`]; nothing of it runs then and no exit is reported.
    pub async fn start_container(
        &self,
        uid: &PodUid,
        spec: ContainerSpec,
        permit: impl Future<Output = Result<(), String>>,
    ) -> Result<(), StartError> {
        let operation = self.metrics.begin("start_container");
        let prepared = self.prepare_container(uid, spec).await?;
        let container = Container::new(&self.services, prepared);
        let id = container.spec().id.clone();
        container.connect_own_terminal();
        let has_sandbox = self.sandboxes.lock().get_mut(uid).is_some_and(|sandbox| {
            // Containers that ended were kept for those who wait for them; their successors take their place.
            sandbox.containers.retain(|_, container| !container.is_over());
            sandbox.containers.insert(id.clone(), container.clone());
            true
        });
        if !has_sandbox {
            container.abandon().await;
            return Err(StartError::NoSandbox { uid: uid.clone() });
        }
        {
            let mut index = self.index.lock();
            index.insert(id.clone(), Arc::downgrade(&container));
        }
        let result = match permit.await {
            Ok(()) => container.start().await,
            Err(reason) => Err(StartError::NotPermitted { reason }),
        };
        if result.is_err() {
            container.abandon().await;
            if let Some(sandbox) = self.sandboxes.lock().get_mut(uid) {
                sandbox.containers.remove(&id);
            }
            // Others may hold it for a moment longer.
            self.index.lock().containers.remove(&id);
        } else {
            operation.succeeded();
        }
        result
    }

    async fn prepare_container(&self, uid: &PodUid, spec: ContainerSpec) -> Result<Prepared, StartError> {
        let (files, network, hostname, memory, cpu, pids) = {
            let mut sandboxes = self.sandboxes.lock();
            let sandbox = sandboxes.get_mut(uid).ok_or_else(|| StartError::NoSandbox { uid: uid.clone() })?;
            if sandbox.containers.contains_key(&spec.id) {
                return Err(StartError::Exists { id: spec.id });
            }
            let (limits, pids) = ((sandbox.memory.clone(), sandbox.cpu.clone()), sandbox.process_ids(&spec));
            (sandbox.files.clone(), sandbox.network.clone(), sandbox.hostname.clone(), limits.0, limits.1, pids)
        };
        let charge = MemoryCharge::within(&memory, spec.limits.memory_bytes);
        let namespace = container::build_root(&spec, &files, charge.clone()).await?;
        let log = self
            .logs
            .writer(&spec.log_path, spec.log_rotation)
            .map_err(|source| StartError::Log { container: spec.name.clone(), source })?;
        let owner = OwnerId(self.next_owner.fetch_add(1, Ordering::Relaxed));
        network.add_owner(owner, charge.clone());
        Ok(Prepared {
            uid: uid.clone(),
            hostname,
            owner,
            network,
            namespace,
            credentials: container::credentials(&spec.user),
            charge,
            cpu: CpuAccount::new(&cpu, CpuLimits { milli: spec.limits.cpu_milli, shares: spec.limits.cpu_shares }),
            output: ContainerOutput::new(log, self.services.pump.clone()),
            pids,
            spec,
        })
    }

    /// Begins to stop a container and returns at once. Unknown is fine: it has ended.
    pub fn stop_container(&self, id: &ContainerId, request: StopRequest) {
        if let Some(container) = self.container(id) {
            self.metrics.begin("stop_container").succeeded();
            container.stop(request);
        }
    }

    /// Kills a container. Unknown is fine.
    pub fn kill_container(&self, id: &ContainerId) {
        if let Some(container) = self.container(id) {
            container.kill_container();
        }
    }

    /// Puts a running container under other limits of memory and CPU, from now on. Unknown is fine: it has ended.
    pub fn update_container(&self, id: &ContainerId, limits: &Limits) {
        if let Some(container) = self.container(id) {
            self.metrics.begin("update_container_resources").succeeded();
            container.charge().set_limit(limits.memory_bytes);
            container.cpu().set_limits(CpuLimits { milli: limits.cpu_milli, shares: limits.cpu_shares });
        }
    }

    /// Puts all containers of a pod together under other limits, from now on. Unknown is fine: it is gone.
    pub fn update_sandbox(&self, uid: &PodUid, limits: &PodLimits) {
        if let Some(sandbox) = self.sandboxes.lock().get(uid) {
            sandbox.set_limits(limits);
        }
    }

    /// Runs another program in a container.
    ///
    /// # Errors
    /// [`ExecError`] when the container does not run or the program cannot start.
    pub async fn exec(&self, id: &ContainerId, spec: ExecSpec) -> Result<Session, ExecError> {
        let operation = self.metrics.begin("exec");
        let session = self.running(id)?.exec(spec).await?;
        operation.succeeded();
        Ok(session)
    }

    /// Connects to the streams of a container's own program.
    ///
    /// # Errors
    /// [`ExecError::NotRunning`].
    #[allow(clippy::unused_async, reason = "the streams of a runtime behind a socket cannot be had without waiting")]
    pub async fn attach(&self, id: &ContainerId) -> Result<Session, ExecError> {
        let operation = self.metrics.begin("attach");
        let session = self.running(id)?.attach()?;
        operation.succeeded();
        Ok(session)
    }

    /// One reading of a container's use; `None` once it is forgotten.
    pub fn usage(&self, id: &ContainerId) -> Option<ContainerUsage> {
        self.container(id).map(|container| container.usage())
    }

    /// Time a container spent running guest code: of its use what is sampled all the time.
    pub fn cpu_used(&self, id: &ContainerId) -> Option<Duration> {
        self.container(id).map(|container| container.cpu_used())
    }

    /// What a pod sent and received; `None` for one on the node's network, whose bytes are the node's.
    pub fn traffic(&self, uid: &PodUid) -> Option<Traffic> {
        self.network.traffic(uid)
    }

    /// What there is of it now.
    pub fn census(&self) -> Census {
        let alive = |handle: &tokio::runtime::Handle| handle.metrics().num_alive_tasks();
        Census {
            agent_tasks: alive(&self.services.control),
            guest_tasks: alive(&self.services.guests),
            sandboxes: self.sandboxes.lock().len(),
            addresses: self.network.addresses_in_use(),
        }
    }

    /// Counters of what it did.
    pub fn metrics(&self) -> &RuntimeMetrics {
        &self.metrics
    }

    /// Connects the node to an address inside a pod, its loopback included: port-forward.
    ///
    /// # Errors
    /// As [`crate::network::PodNetwork::dial`]; EHOSTUNREACH when there is no such sandbox.
    pub async fn dial(&self, uid: &PodUid, to: SocketAddr) -> Result<TcpStream, Errno> {
        let network = self.sandboxes.lock().get(uid).map(|sandbox| sandbox.network.clone());
        network.ok_or(Errno::HostUnreach)?.dial(to).await
    }

    /// Connects the node to an address wherever it is: probes and hooks that name a host.
    ///
    /// # Errors
    /// As [`NodeNetwork::dial`].
    pub async fn dial_from_node(&self, to: SocketAddr) -> Result<TcpStream, Errno> {
        self.network.dial(to).await
    }

    /// Ports of a pod that the kernel refused, and where they are instead.
    pub fn remapped_ports(&self, uid: &PodUid) -> Vec<(u16, u16)> {
        let Some(network) = self.sandboxes.lock().get(uid).map(|sandbox| sandbox.network.clone()) else {
            return Vec::new();
        };
        let ports = network.listeners().into_iter().filter(|listener| listener.protocol == Protocol::Tcp);
        let moved = ports.filter_map(|listener| Some((listener.local.port(), listener.node?.port())));
        moved.filter(|(asked, given)| asked != given).collect()
    }

    /// Compiles a program ahead of its start: the artifact of `image`, or nothing for an image with a root filesystem,
    /// whose program is only known once the container's tree is.
    ///
    /// # Errors
    /// [`ProgramError`].
    pub async fn prepare(
        &self,
        image: &ImageSpec,
        progress: &(dyn Fn(CompileProgress) + Sync),
    ) -> Result<(), ProgramError> {
        let Some(artifact) = &image.artifact else { return Ok(()) };
        let source = WasmSource::File { digest: artifact.digest.clone(), path: artifact.path.clone() };
        self.services.programs.load(&image.reference, source, progress).await.map(drop)
    }

    /// Makes the toolbox ready ahead of its first use, which would wait for the compiler otherwise. Nothing without one.
    ///
    /// # Errors
    /// [`ProgramError`].
    pub async fn prepare_toolbox(&self, progress: &(dyn Fn(CompileProgress) + Sync)) -> Result<(), ProgramError> {
        if !self.services.toolbox.exists() {
            return Ok(());
        }
        self.services.toolbox.program(&self.services.programs, progress).await.map(drop)
    }

    /// Kills everything; for the agent's last moments.
    pub async fn shutdown(&self) {
        let uids: Vec<PodUid> = self.sandboxes.lock().keys().cloned().collect();
        futures::future::join_all(uids.iter().map(|uid| self.remove_sandbox(uid))).await;
    }

    fn container(&self, id: &ContainerId) -> Option<Arc<Container>> {
        self.index.lock().containers.get(id).and_then(Weak::upgrade)
    }

    fn running(&self, id: &ContainerId) -> Result<Arc<Container>, ExecError> {
        self.container(id).ok_or_else(|| ExecError::NotRunning { id: id.clone() })
    }
}
