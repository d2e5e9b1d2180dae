//! Why the runtime could not do something, with the object's name, in words for a user.
//!
//! In: conditions of every part of the runtime. Out: typed errors; the worker maps them to the kubelet's reasons
//! (`reason()` gives the one that fits a container's waiting state).

use std::io;
use std::path::PathBuf;

use crate::errno::Errno;
use crate::ids::{ContainerId, PodRef, PodUid};
use crate::network::NetworkError;
use crate::vfs::layer::LayerError;
use crate::vfs::{MountError, VolumeError};

/// Why the runtime or a sandbox could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// wasmtime refuses this machine.
    #[error("the WebAssembly engine cannot start on this machine: {reason}")]
    Engine {
        /// wasmtime's words.
        reason: String,
    },
    /// A directory of the runtime could not be made.
    #[error("cannot prepare {}", path.display())]
    Directory {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No thread could be started.
    #[error("cannot start the {name} threads")]
    Threads {
        /// Which ones.
        name: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The sandbox exists already.
    #[error("sandbox of pod {pod} exists")]
    SandboxExists {
        /// The pod.
        pod: PodRef,
    },
    /// There is no such sandbox.
    #[error("pod {uid} has no sandbox")]
    NoSandbox {
        /// The pod.
        uid: PodUid,
    },
    /// The pod's network could not be made.
    #[error("network of pod {pod}")]
    Network {
        /// The pod.
        pod: PodRef,
        /// Why.
        #[source]
        source: NetworkError,
    },
    /// A volume could not be opened, or not updated.
    #[error("volume {volume:?} of pod {pod}")]
    Volume {
        /// The pod.
        pod: PodRef,
        /// The volume.
        volume: String,
        /// Why.
        #[source]
        source: VolumeError,
    },
    /// The pod has no volume of that name.
    #[error("pod {pod} has no volume {volume:?}")]
    NoSuchVolume {
        /// The pod.
        pod: PodRef,
        /// The volume.
        volume: String,
    },
}

/// Why bytes are not a program this node runs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProgramError {
    /// The toolbox's file cannot be read any more.
    #[error("reading the node's toolbox {}: {reason}", path.display())]
    Toolbox {
        /// The file on the node.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The bytes are something else.
    #[error("{program} is not a WebAssembly module or component (it begins with {found})")]
    NotWasm {
        /// The file.
        program: String,
        /// What it looks like.
        found: String,
    },
    /// A Linux executable.
    #[error("{program} is a {platform} executable; this node runs WASI modules and components")]
    LinuxExecutable {
        /// The file.
        program: String,
        /// Such as `linux/amd64`.
        platform: String,
    },
    /// The bytes end too early.
    #[error("{program} is a truncated WebAssembly file: unexpected end at byte {offset}")]
    Truncated {
        /// The file.
        program: String,
        /// How many bytes are there.
        offset: u64,
    },
    /// The bytes break the rules of the format.
    #[error("{program} is not valid WebAssembly: {reason}")]
    Invalid {
        /// The file.
        program: String,
        /// Where and which rule.
        reason: String,
    },
    /// It needs wasi-threads.
    #[error("{program} imports the shared memory \"{module}::{name}\": wasi-threads is not supported by this node")]
    SharedMemory {
        /// The file.
        program: String,
        /// The import's module.
        module: String,
        /// The import's name.
        name: String,
    },
    /// A library.
    #[error("module {program:?} exports no \"_start\" function: it is not a command")]
    NoStart {
        /// The file.
        program: String,
    },
    /// A component that is neither kind we run.
    #[error(
        "component {program:?} exports neither \"wasi:cli/run\" nor \"wasi:http/incoming-handler\": \
         this node cannot run it"
    )]
    NoEntry {
        /// The file.
        program: String,
    },
    /// An import that nobody satisfies.
    #[error("{kind} {program:?} imports \"{import}\" which this node does not provide")]
    UnsatisfiedImport {
        /// `module` or `component`.
        kind: &'static str,
        /// The file.
        program: String,
        /// Such as `env::foo`.
        import: String,
    },
    /// An import of the right name and the wrong type.
    #[error("{kind} {program:?} imports \"{import}\" with another type than this node provides: {reason}")]
    IncompatibleImport {
        /// `module` or `component`.
        kind: &'static str,
        /// The file.
        program: String,
        /// Such as `wasi_snapshot_preview1::fd_write`.
        import: String,
        /// The difference.
        reason: String,
    },
    /// Larger than this node compiles.
    #[error("{program} has {size} bytes; this node compiles at most {limit}")]
    TooLarge {
        /// The file.
        program: String,
        /// Its size.
        size: u64,
        /// The bound.
        limit: u64,
    },
    /// The compiler died or ran out of its limits.
    #[error("compiling {program} failed: {reason}")]
    Compile {
        /// The file.
        program: String,
        /// How it ended.
        reason: String,
    },
    /// The artifact store failed.
    #[error("storing the compiled form of {program} failed: {reason}")]
    Store {
        /// The file.
        program: String,
        /// Which step and why.
        reason: String,
    },
}

/// Why a program of a container's filesystem could not be found or opened, in runc's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// No such file on `PATH`.
    #[error("exec: \"{name}\": executable file not found in $PATH")]
    NotOnPath {
        /// `argv[0]`.
        name: String,
    },
    /// No such file.
    #[error("exec: \"{name}\": stat {name}: no such file or directory")]
    NoSuchFile {
        /// `argv[0]`.
        name: String,
    },
    /// A program that the toolbox would stand in for, on a node without one.
    #[error("{missing}; the image has no {name} and this node has no toolbox to stand in for it")]
    NoToolbox {
        /// `argv[0]`.
        name: String,
        /// What would be said of any other program.
        missing: Box<LookupError>,
    },
    /// Scripts that are each other's interpreters.
    #[error("exec: \"{name}\": too many levels of interpreters")]
    TooManyInterpreters {
        /// `argv[0]`.
        name: String,
    },
    /// A directory, or not to be read.
    #[error("exec: \"{name}\": permission denied")]
    Denied {
        /// `argv[0]`.
        name: String,
    },
    /// Reading it failed.
    #[error("exec: \"{name}\": {errno}")]
    Read {
        /// `argv[0]`.
        name: String,
        /// Why.
        errno: Errno,
    },
    /// `argv` is empty.
    #[error("exec: no command specified")]
    Empty,
}

/// Why a container did not start. Nothing of it runs.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is no such sandbox.
    #[error("pod {uid} has no sandbox")]
    NoSandbox {
        /// The pod.
        uid: PodUid,
    },
    /// The id is in use.
    #[error("container {id} exists")]
    Exists {
        /// The id.
        id: ContainerId,
    },
    /// The image's layers could not be opened.
    #[error("opening the layers of image {image}")]
    Layers {
        /// The image.
        image: String,
        /// Why.
        #[source]
        source: LayerError,
    },
    /// An image that is to be mounted has no files.
    #[error("cannot mount image {image} as volume {volume:?}: it is a bare WebAssembly artifact without a file system")]
    NoFiles {
        /// The volume.
        volume: String,
        /// The image.
        image: String,
    },
    /// A mount names a volume the pod does not have.
    #[error("volumeMount {mount_path} names volume {volume:?}, which the pod does not have")]
    NoSuchVolume {
        /// The volume.
        volume: String,
        /// Where it should have gone.
        mount_path: String,
    },
    /// The container's tree could not be put together.
    #[error("preparing the root filesystem of container {container:?}")]
    Mount {
        /// The container.
        container: String,
        /// Which mount and why.
        #[source]
        source: MountError,
    },
    /// The log could not be opened.
    #[error("opening the log of container {container:?}")]
    Log {
        /// The container.
        container: String,
        /// Why.
        #[source]
        source: crate::logs::LogError,
    },
    /// `workingDir` is not there.
    #[error("mkdir {path}: {errno}")]
    WorkingDir {
        /// The path.
        path: String,
        /// Why.
        errno: Errno,
    },
    /// Its starter took it back.
    #[error("{reason}")]
    NotPermitted {
        /// Why.
        reason: String,
    },
    /// The program was not found.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// The program cannot run here.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// Its memories do not fit in the container's limit.
    #[error("{program} needs more memory at its start than the container's limit of {limit} bytes")]
    OutOfMemory {
        /// The file.
        program: String,
        /// The limit.
        limit: u64,
    },
    /// Its arguments and environment do not fit in the container's limit.
    #[error("arguments and environment of {bytes} bytes do not fit in the container's memory limit")]
    ArgumentsTooLarge {
        /// Their size.
        bytes: u64,
    },
    /// wasmtime could not instantiate it, or its start section trapped.
    #[error("instantiating {program}: {reason}")]
    Instantiate {
        /// The file.
        program: String,
        /// wasmtime's words.
        reason: String,
    },
    /// The port of an HTTP component, or one that was to be open at the start, is taken or forbidden.
    #[error("listening on port {port} for the container: {errno}")]
    Listen {
        /// The port.
        port: u16,
        /// Why.
        errno: Errno,
    },
    /// The container has as many processes as it may.
    #[error("the container is at its limit of processes")]
    TooManyProcesses,
    /// Not even the standard streams fit.
    #[error("a limit of {limit} open files is too low to start a program")]
    TooFewFiles {
        /// The limit.
        limit: u32,
    },
    /// The container is ending.
    #[error("the container is stopping")]
    Stopping,
}

impl StartError {
    /// The kubelet's reason for a container's waiting state.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoSandbox { .. } | Self::Exists { .. } => "RunContainerError",
            // The kubelet makes subPaths while it describes the container.
            Self::NoSuchVolume { .. } | Self::Mount { source: MountError::SubPath { .. }, .. } => {
                "CreateContainerConfigError"
            }
            // Guest code has run by then (a start section is one): the attempt counts.
            Self::Lookup(_) | Self::OutOfMemory { .. } | Self::Listen { .. } | Self::Instantiate { .. } => {
                "RunContainerError"
            }
            _ => "CreateContainerError",
        }
    }

    /// What a shell would return for it: 127 not found, 126 found and not runnable, else 128.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Lookup(
                LookupError::NotOnPath { .. } | LookupError::NoSuchFile { .. } | LookupError::NoToolbox { .. },
            ) => 127,
            Self::Lookup(_) | Self::Program(_) => 126,
            Self::OutOfMemory { .. } => 137,
            _ => 128,
        }
    }

    /// What `spawn` returns for it.
    pub(super) fn errno(&self) -> Errno {
        match self {
            Self::Lookup(
                LookupError::NotOnPath { .. }
                | LookupError::NoSuchFile { .. }
                | LookupError::NoToolbox { .. }
                | LookupError::Empty,
            ) => Errno::NoEnt,
            Self::Lookup(LookupError::TooManyInterpreters { .. }) => Errno::Loop,
            Self::Lookup(LookupError::Denied { .. }) => Errno::Acces,
            Self::Lookup(LookupError::Read { errno, .. }) | Self::WorkingDir { errno, .. } => *errno,
            Self::Program(_) => Errno::NoExec,
            Self::OutOfMemory { .. } | Self::ArgumentsTooLarge { .. } => Errno::NoMem,
            Self::TooManyProcesses => Errno::Again,
            Self::Stopping => Errno::Srch,
            _ => Errno::Io,
        }
    }
}

/// Why an exec or attach did not begin.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The container is not running.
    #[error("container {id} is not running")]
    NotRunning {
        /// Which.
        id: ContainerId,
    },
    /// The program did not start.
    #[error(transparent)]
    Start(#[from] StartError),
}
