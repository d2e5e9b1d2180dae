//! Settings of the runtime.
//!
//! In: the agent's configuration. Out: plain values with defaults that fit this machine.

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use crate::logs::LogStore;

/// How to start the compile subprocess: the agent's own binary by default.
#[derive(Debug, Clone)]
pub struct CompilerCommand {
    /// The executable.
    pub executable: PathBuf,
    /// Its arguments, such as the one that makes `wasilet` a compiler.
    pub arguments: Vec<OsString>,
    /// Environment of the subprocess, which has no other.
    pub environment: Vec<(OsString, OsString)>,
}

/// The hidden first argument that makes `wasilet` the compile subprocess.
pub const COMPILE_ARGUMENT: &str = "__compile";

impl CompilerCommand {
    /// This very executable, asked by [`COMPILE_ARGUMENT`]. `/proc/self/exe` also works when the file was replaced
    /// by an upgrade: it is the one that runs, and its engine is ours.
    #[must_use]
    pub fn this_executable() -> Self {
        Self {
            executable: PathBuf::from("/proc/self/exe"),
            arguments: vec![COMPILE_ARGUMENT.into()],
            environment: Vec::new(),
        }
    }
}

/// Bounds of the compile subprocess.
#[derive(Debug, Clone)]
pub struct CompileLimits {
    /// Compilations at once; others wait. Cranelift itself uses every core.
    pub parallel: NonZeroUsize,
    /// Largest wasm file.
    pub max_wasm_bytes: u64,
    /// Address space of the subprocess.
    pub max_memory_bytes: u64,
    /// CPU time of the subprocess, over all its threads.
    pub max_cpu: Duration,
    /// Largest artifact.
    pub max_artifact_bytes: u64,
}

/// Programs of this many bytes and more are run as the baseline compiler makes them until Cranelift is done: it needs some
/// 0.4 s for each MiB of such a program on two cores. For a smaller one code that is slow for the container's whole life
/// is the higher price.
pub const BASELINE_FROM: u64 = 16 << 20;

impl Default for CompileLimits {
    fn default() -> Self {
        Self {
            // Two keep the cores busy while one reads and writes; each peaks above 200 MiB.
            parallel: const { NonZeroUsize::new(2).expect("not zero") },
            max_wasm_bytes: 512 << 20,
            max_memory_bytes: 8 << 30,
            max_cpu: Duration::from_secs(900),
            max_artifact_bytes: 2 << 30,
        }
    }
}

/// Everything [`super::Runtime::new`] needs besides the network.
#[derive(Debug, Clone)]
pub struct RuntimeConfig {
    /// The agent's directory; artifacts go to `<root_dir>/artifacts`, which only the agent writes.
    pub root_dir: PathBuf,
    /// Where artifacts go instead, for nodes that share what they compile.
    pub artifact_dir: Option<PathBuf>,
    /// The toolbox's wasm file, if the node has one.
    pub toolbox: Option<PathBuf>,
    /// Where container logs are written.
    pub logs: LogStore,
    /// Threads that run guests; one a core by default.
    pub guest_threads: NonZeroUsize,
    /// How to compile.
    pub compiler: CompilerCommand,
    /// How much a compilation may use.
    pub compile_limits: CompileLimits,
    /// Size in bytes of the wasm from which on a first start does not wait for Cranelift; `None` when every one does.
    pub baseline_from: Option<u64>,
}

impl RuntimeConfig {
    /// Defaults below `root_dir`.
    #[must_use]
    pub fn new(root_dir: PathBuf, logs: LogStore) -> Self {
        let cores = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        Self {
            root_dir,
            artifact_dir: None,
            toolbox: None,
            logs,
            guest_threads: cores,
            compiler: CompilerCommand::this_executable(),
            compile_limits: CompileLimits::default(),
            baseline_from: Some(BASELINE_FROM),
        }
    }
}
