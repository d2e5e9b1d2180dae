//! Starting a process and driving it to its end.
//!
//! In: a program and what the process is given. Out: a task on the guest threads, behind the run gate, whose end is
//! booked whatever way it comes: return, exit, trap, kill, or a panic of host code.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use futures::FutureExt as _;
use tokio::sync::oneshot;
use wasmtime::{Instance, WasmBacktrace};

use super::super::artifact::{Program, ProgramKind};
use super::super::error::{LookupError, ProgramError, StartError};
use super::super::http;
use super::super::limits::{Held, OutOfMemory};
use super::super::process::stdio::{Input, Output, OutputStream};
use super::super::process::{
    Access, DescriptionKind, ExitStatus, FdTable, FileDescription, OpenDirectory, Pid, Process, ProcessSpec,
    StatusFlags,
};
use super::super::scheduler::{Credit, Entity, Metered};
use super::super::store::{Guest, StoreFor, new_store};
use super::super::wasi::{p1, p2};
use super::lookup::{Fallback, Found};
use super::proc_files::ProcFiles;
use super::{Container, Services};
use crate::errno::Errno;
use crate::network::{Family, TcpOption, TcpSocket};

/// What a kubelet shows of a termination message.
const MAX_MESSAGE: usize = 4096;

/// A process to start.
pub struct Launch {
    /// What to run: a path, or a name to look for on `PATH`.
    pub program: String,
    /// Its parent, 0 for none.
    pub parent: Pid,
    /// Arguments, `argv[0]` first.
    pub argv: Vec<String>,
    /// Environment.
    pub env: Vec<(String, String)>,
    /// Absolute path.
    pub cwd: String,
    /// Its descriptors.
    pub fds: FdTable,
    /// How soon it gets the CPU among others.
    pub credit: Credit,
}

impl Container {
    /// Starts the container's own program.
    pub(in super::super) async fn start(self: &Arc<Self>) -> Result<(), StartError> {
        let (input, stdout, stderr) = self.main_streams();
        let fds = self.fd_table(input, stdout, stderr)?;
        let mut env = self.spec.env.clone();
        env.extend(self.preopen_listeners(&fds)?);
        let launch = Launch {
            program: self.spec.argv.first().ok_or(LookupError::Empty)?.clone(),
            parent: 0,
            argv: self.spec.argv.clone(),
            env,
            cwd: self.spec.working_dir.clone(),
            fds,
            credit: Credit::Start,
        };
        self.launch(launch, Fallback::Artifact).await.map(|_| ())
    }

    /// Starts a child of `parent`; what the host import `spawn` does.
    ///
    /// # Errors
    /// As errno: `ENOENT`, `EACCES`, `ENOEXEC`, `EAGAIN` at the limit of processes, `ENOMEM`.
    pub async fn spawn(self: &Arc<Self>, launch: Launch) -> Result<Pid, Errno> {
        match self.launch(launch, Fallback::None).await {
            Ok(process) => Ok(process.pid()),
            Err(error) => {
                tracing::debug!(err = %error, "Spawning a process failed");
                Err(error.errno())
            }
        }
    }

    /// Finds the program, makes the process, and returns once the guest is about to run its first instruction.
    pub(super) async fn launch(
        self: &Arc<Self>,
        mut launch: Launch,
        fallback: Fallback,
    ) -> Result<Arc<Process>, StartError> {
        // One program of a container is read and compiled at a time: its bytes are the agent's memory, and its place in
        // the queue of compilations is one among all containers'.
        let loading = self.loading.acquire().await.map_err(|_| StartError::Stopping)?;
        let Found { name, path, source, function } = self.find_program(&mut launch, fallback).await?;
        let Services { programs, toolbox, .. } = &*self.services;
        let program = match source.wasm() {
            Some(source) => programs.load(&name, source, &|_| ()).await?,
            None => toolbox.program(programs, &|_| ()).await?,
        };
        drop(loading);
        if let (ProgramKind::Module { has_start: false, .. }, None) = (&program.kind, &function) {
            return Err(ProgramError::NoStart { program: name }.into());
        }
        // Go and others take their working directory from PWD; preview 1 has no other way to say it.
        if !launch.env.iter().any(|(key, _)| key == "PWD") {
            launch.env.push(("PWD".to_owned(), launch.cwd.clone()));
        }
        let process = self.insert(launch, path)?;
        let (ready, started) = oneshot::channel();
        let run = Run { name: name.clone(), program, function, process: process.clone(), ready: Some(ready) };
        let guard = EndGuard { process: process.clone(), returned: None };
        let task = self.services.guests.spawn(run.guarded(guard));
        process.task_started(task.abort_handle());
        match started.await {
            Ok(result) => result.map(|()| process),
            // Killed before it was ready.
            Err(_) if self.charge.is_out_of_memory() => {
                let limit = self.charge.limit().unwrap_or(u64::MAX);
                Err(StartError::OutOfMemory { program: name, limit })
            }
            Err(_) => Err(StartError::Stopping),
        }
    }

    /// A new process's descriptors: the standard streams, and "/" as 3.
    pub(super) fn fd_table(&self, input: Input, stdout: Output, stderr: Output) -> Result<FdTable, StartError> {
        let limit = self.spec.limits.open_files;
        super::streams::table(limit, input, stdout, stderr)
            .and_then(|fds| fds.insert(self.root_preopen()).map(|_| fds))
            .map_err(|_| StartError::TooFewFiles { limit })
    }

    /// Listeners for the ports that the pod wants open at the start; the variable that names them. They come behind "/",
    /// where preview 1's libc has stopped to look for directories.
    fn preopen_listeners(&self, fds: &FdTable) -> Result<Option<(String, String)>, StartError> {
        let limit = self.spec.limits.open_files;
        let mut named = Vec::new();
        for &port in &self.spec.preopened_ports {
            let socket = self.listen(port).map_err(|errno| StartError::Listen { port, errno })?;
            let description =
                FileDescription::new(DescriptionKind::Tcp(socket), Access::READ | Access::WRITE, StatusFlags::empty());
            let fd = fds.insert(description).map_err(|_| StartError::TooFewFiles { limit })?;
            named.push(format!("{fd}:{port}"));
        }
        Ok((!named.is_empty()).then(|| ("WASILET_LISTEN_FDS".to_owned(), named.join(","))))
    }

    fn listen(&self, port: u16) -> Result<Arc<TcpSocket>, Errno> {
        let network = self.network();
        // The one for IPv6 takes connections over IPv4, too.
        let family = if network.ips().iter().any(IpAddr::is_ipv6) { Family::V6 } else { Family::V4 };
        let any = match family {
            Family::V4 => IpAddr::from(Ipv4Addr::UNSPECIFIED),
            Family::V6 => IpAddr::from(Ipv6Addr::UNSPECIFIED),
        };
        let socket = network.tcp_socket(self.owner, family)?;
        if family == Family::V6 {
            socket.set_option(TcpOption::V6Only(false))?;
        }
        socket.bind(SocketAddr::new(any, port))?;
        // The pod's own limit holds.
        socket.listen(u32::MAX)?;
        Ok(socket)
    }

    /// The container's root as a descriptor that preview 1 finds as "/".
    pub fn root_preopen(&self) -> Arc<FileDescription> {
        let open = OpenDirectory { dir: self.namespace.root(), preopen: Some("/".into()) };
        FileDescription::new(DescriptionKind::Directory(open), Access::READ, StatusFlags::empty())
    }

    fn insert(self: &Arc<Self>, launch: Launch, exe: String) -> Result<Arc<Process>, StartError> {
        let Launch { program: _, parent, argv, env, cwd, fds, credit } = launch;
        // The host keeps them for as long as the process lives: they are the container's memory.
        let strings = argv.iter().chain(env.iter().flat_map(|(key, value)| [key, value])).chain([&cwd, &exe]);
        let bytes = strings.map(|string| (string.len() + size_of::<String>()) as u64).sum();
        let held = Held::take(&self.charge, bytes).ok_or(StartError::ArgumentsTooLarge { bytes })?;
        let entity = match (credit, self.tree.get(parent)) {
            (Credit::Inherit, Ok(parent)) => parent.entity().sibling(),
            _ => Entity::new(&self.services.scheduler, &self.cpu, credit),
        };
        let umask = self.tree.get(parent).map_or(self.credentials.umask, |parent| parent.umask());
        let inserted = self.tree.insert(|pid| {
            Arc::new_cyclic(|weak| {
                let namespace = self.namespace.for_process(Arc::new(ProcFiles::new(self.clone(), weak.clone())));
                let spec = ProcessSpec { argv, env, exe, cwd, fds, namespace, umask, held };
                Process::new(pid, parent, self.clone(), entity, spec)
            })
        });
        inserted.map_err(|errno| match errno {
            Errno::Again => StartError::TooManyProcesses,
            _ => StartError::Stopping,
        })
    }

    /// What the first process has as standard streams.
    fn main_streams(&self) -> (Input, Output, Output) {
        let input = std::mem::replace(&mut self.stdin.lock().input, Input::Closed);
        match &self.terminal {
            Some(terminal) => {
                let screen = Output::Terminal(terminal.clone());
                (input, screen.clone(), screen)
            }
            None => (
                input,
                Output::Container(self.output.clone(), OutputStream::Stdout),
                Output::Container(self.output.clone(), OutputStream::Stderr),
            ),
        }
    }
}

/// Books the end of a process when its task goes, in whatever way.
struct EndGuard {
    process: Arc<Process>,
    returned: Option<ExitStatus>,
}

impl Drop for EndGuard {
    fn drop(&mut self) {
        self.process.fds().clear();
        let status = self.process.ended(self.returned.take());
        self.process.container().process_ended(&self.process, status);
    }
}

/// One program on its way.
struct Run {
    name: String,
    program: Arc<Program>,
    function: Option<String>,
    process: Arc<Process>,
    ready: Option<oneshot::Sender<Result<(), StartError>>>,
}

impl Run {
    /// The whole task. The guard outlives the store: the end is booked when the memory is given back.
    async fn guarded(self, mut guard: EndGuard) {
        let process = self.process.clone();
        let run = AssertUnwindSafe(self.run()).catch_unwind();
        let status = match Metered::new(process.entity().clone(), run).await {
            Ok(status) => status,
            Err(panic) => {
                let message = panic_message(&*panic);
                tracing::error!(container = ?process.container(), err = message, "Host code panicked for a container");
                ExitStatus::HostFault { message: format!("host code panicked: {message}") }
            }
        };
        if let ExitStatus::Trapped { message } | ExitStatus::HostFault { message } = &status {
            say_on_stderr(&process, message).await;
        }
        guard.returned = Some(status);
    }

    async fn run(mut self) -> ExitStatus {
        let program = self.program.clone();
        let result = match &program.kind {
            ProgramKind::Module { pre, .. } => self.run_module(pre).await,
            ProgramKind::Command { pre } => self.run_command(pre).await,
            ProgramKind::Http { pre } => self.run_http(pre).await,
        };
        // `None`: it did not start, and the starter was told why.
        result.unwrap_or(ExitStatus::Exited(128))
    }

    async fn run_module(&mut self, pre: &wasmtime::InstancePre<Guest>) -> Option<ExitStatus> {
        let mut store = new_store(&self.program.engine, &self.process, StoreFor::Module);
        let instance: Instance = match pre.instantiate_async(&mut store).await {
            Ok(instance) => instance,
            Err(error) => return self.not_started(&error),
        };
        let function = self.function.as_deref().unwrap_or("_start");
        let start = match instance.get_typed_func::<(), ()>(&mut store, function) {
            Ok(start) => start,
            Err(error) => return self.not_started(&error),
        };
        self.started();
        Some(exit_status(start.call_async(&mut store, ()).await.map(|()| 0)))
    }

    async fn run_command(&mut self, pre: &wasmtime::component::InstancePre<Guest>) -> Option<ExitStatus> {
        let mut store = new_store(&self.program.engine, &self.process, StoreFor::Component);
        let command = match p2::Command::instantiate(&mut store, pre).await {
            Ok(command) => command,
            Err(error) => return self.not_started(&error),
        };
        self.started();
        Some(exit_status(command.run(&mut store).await))
    }

    async fn run_http(&mut self, pre: &wasmtime::component::InstancePre<Guest>) -> Option<ExitStatus> {
        let container = self.process.container();
        let port = container.spec().container_ports.first().copied().unwrap_or(80);
        match http::Server::bind(&self.program.engine, &self.process, pre.clone(), port).await {
            Ok(server) => {
                if container.tree.is_first(self.process.pid()) {
                    container.drains_itself.store(true, Ordering::Release);
                }
                self.started();
                Some(server.run().await)
            }
            Err(error) => {
                self.tell(Err(error));
                None
            }
        }
    }

    fn started(&mut self) {
        let container = self.process.container();
        if container.tree.is_first(self.process.pid()) {
            *container.started_at.lock() = SystemTime::now();
            container.started.store(true, Ordering::Release);
        }
        self.tell(Ok(()));
    }

    /// A start section that exits or traps is a start that failed: nothing the user wrote as a program has run.
    fn not_started(&mut self, error: &wasmtime::Error) -> Option<ExitStatus> {
        let program = self.name.clone();
        let charge = self.process.container().charge();
        let error = if charge.is_out_of_memory() {
            StartError::OutOfMemory { program, limit: charge.limit().unwrap_or(u64::MAX) }
        } else {
            StartError::Instantiate { program, reason: bounded(format!("{error:#}")) }
        };
        self.tell(Err(error));
        None
    }

    fn tell(&mut self, result: Result<(), StartError>) {
        if let Some(ready) = self.ready.take() {
            // Whoever started it may have given up; the guest then goes its own way.
            let _ = ready.send(result);
        }
    }
}

/// What the outcome of a guest's start function means.
fn exit_status(result: wasmtime::Result<u8>) -> ExitStatus {
    let error = match result {
        Ok(code) => return ExitStatus::Exited(code),
        Err(error) => error,
    };
    if let Some(exit) = error.downcast_ref::<p1::ProcExit>() {
        return ExitStatus::Exited(exit.code);
    }
    if error.is::<OutOfMemory>() {
        return ExitStatus::OutOfMemory;
    }
    ExitStatus::Trapped { message: trap_message(&error) }
}

/// The trap first, for it is what a reader of four lines sees, then the wasm frames.
fn trap_message(error: &wasmtime::Error) -> String {
    let mut message = error.root_cause().to_string();
    if let Some(backtrace) = error.downcast_ref::<WasmBacktrace>() {
        message.push('\n');
        message.push_str(backtrace.to_string().trim_end());
    }
    bounded(message)
}

fn bounded(mut message: String) -> String {
    if message.len() > MAX_MESSAGE {
        let end = (0..=MAX_MESSAGE).rev().find(|&end| message.is_char_boundary(end)).unwrap_or(0);
        message.truncate(end);
    }
    message
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic without a message")
}

/// Leaves the trap where people look first: in the log. Streams that are gone are gone.
async fn say_on_stderr(process: &Process, message: &str) {
    let Ok(stderr) = process.fds().get(2) else { return };
    let text = format!("Error: {message}\n");
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        match stderr.write(rest).await {
            Ok(written @ 1..) => rest = &rest[written.min(rest.len())..],
            _ => return,
        }
    }
}
