//! Compilation in a subprocess.
//!
//! In: wasm bytes. Out: an artifact in memory, which only the agent writes to disk. The compiler reads hostile input and
//! needs hundreds of megabytes: it runs as another process of the same binary, niced, under rlimits, and under a
//! seccomp filter that lets it compute and nothing else. It gets the bytes as its standard input and leaves the result
//! in its standard output, both files without a name.

mod child;
mod sandbox;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitStatus, Stdio};

use rustix::fs::MemfdFlags;
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;

pub use child::child_main;

use super::artifact::{WasmSource, detect};
use super::config::{CompileLimits, CompilerCommand};
use super::engine::Tier;
use super::error::ProgramError;

/// The child's exit code for input that is not valid; its standard error says why.
const INVALID: u8 = 65;
/// Longest message taken from the child.
const MAX_MESSAGE: u64 = 16 * 1024;
/// How the child is told what to do.
const TIER_VARIABLE: &str = "WASILET_COMPILE_TIER";
const NICE_VARIABLE: &str = "WASILET_COMPILE_NICE";
/// How the child is told its limits.
const MEMORY_VARIABLE: &str = "WASILET_COMPILE_MEMORY";
const CPU_VARIABLE: &str = "WASILET_COMPILE_CPU_SECONDS";
const SIZE_VARIABLE: &str = "WASILET_COMPILE_ARTIFACT_BYTES";

/// One above guests: a compilation holds a start up, while they run on.
const NICE: i32 = 4;
/// Behind everything that somebody waits for.
const NICE_IN_BACKGROUND: i32 = 15;

/// What to compile, and for whom.
#[derive(Debug, Clone, Copy)]
pub(super) struct Job<'a> {
    /// For messages.
    pub(super) name: &'a str,
    /// The compiler.
    pub(super) tier: Tier,
    nice: i32,
}

impl<'a> Job<'a> {
    /// A start waits for it.
    pub(super) const fn for_start(tier: Tier, name: &'a str) -> Self {
        Self { name, tier, nice: NICE }
    }

    /// Nobody does.
    pub(super) const fn in_background(tier: Tier, name: &'a str) -> Self {
        Self { name, tier, nice: NICE_IN_BACKGROUND }
    }
}

/// Compiles `source`; dropping the future kills the subprocess.
pub(super) async fn run(
    command: &CompilerCommand,
    limits: &CompileLimits,
    job: Job<'_>,
    source: WasmSource,
) -> Result<File, ProgramError> {
    let name = job.name;
    let failed = |reason: String| ProgramError::Compile { program: name.to_owned(), reason };
    let input = open(name, source, limits).await?;
    let output = memory_file("artifact").map_err(|error| failed(error.to_string()))?;
    let child_output = output.try_clone().map_err(|error| failed(error.to_string()))?;
    let mut child = Command::new(&command.executable)
        .args(&command.arguments)
        .env_clear()
        .envs(command.environment.iter().map(|(key, value)| (key, value)))
        // The allocator needs no thread of its own in a process that ends soon.
        .env("_RJEM_MALLOC_CONF", "background_thread:false")
        .env(TIER_VARIABLE, job.tier.name())
        .env(NICE_VARIABLE, job.nice.to_string())
        .env(MEMORY_VARIABLE, limits.max_memory_bytes.to_string())
        .env(CPU_VARIABLE, limits.max_cpu.as_secs().to_string())
        .env(SIZE_VARIABLE, limits.max_artifact_bytes.to_string())
        .current_dir("/")
        .stdin(Stdio::from(input))
        .stdout(Stdio::from(child_output))
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(format!("starting {}: {error}", command.executable.display())))?;
    let mut message = String::new();
    if let Some(stderr) = child.stderr.take() {
        // Bytes that are no UTF-8 end the message; the exit status still tells the outcome.
        let _ = stderr.take(MAX_MESSAGE).read_to_string(&mut message).await;
    }
    let status = child.wait().await.map_err(|error| failed(error.to_string()))?;
    if status.success() {
        return Ok(output);
    }
    if status.code() == Some(i32::from(INVALID)) {
        return Err(invalid(name, message.trim()));
    }
    Err(failed(ending(status, message.trim(), limits)))
}

/// The wasm as a file to hand over, its first bytes checked.
async fn open(name: &str, source: WasmSource, limits: &CompileLimits) -> Result<File, ProgramError> {
    let owned = name.to_owned();
    let limit = limits.max_wasm_bytes;
    let opened = tokio::task::spawn_blocking(move || -> Result<File, ProgramError> {
        let read_failed = |error: std::io::Error| ProgramError::Compile {
            program: owned.clone(),
            reason: format!("reading it: {error}"),
        };
        let mut file = match source {
            WasmSource::File { path, .. } => File::open(path).map_err(read_failed)?,
            WasmSource::Bytes(bytes) => {
                let mut file = memory_file("wasm").map_err(read_failed)?;
                file.write_all(&bytes).map_err(read_failed)?;
                file.seek(SeekFrom::Start(0)).map_err(read_failed)?;
                file
            }
        };
        let size = file.metadata().map_err(read_failed)?.len();
        if size > limit {
            return Err(ProgramError::TooLarge { program: owned, size, limit });
        }
        let mut head = Vec::with_capacity(64);
        (&mut file).take(64).read_to_end(&mut head).map_err(read_failed)?;
        file.seek(SeekFrom::Start(0)).map_err(read_failed)?;
        detect(&owned, &head)?;
        Ok(file)
    });
    match opened.await {
        Ok(result) => result,
        Err(join) => std::panic::resume_unwind(join.into_panic()),
    }
}

fn memory_file(name: &str) -> std::io::Result<File> {
    Ok(File::from(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?))
}

/// What the validator's words mean.
fn invalid(name: &str, message: &str) -> ProgramError {
    let program = name.to_owned();
    let offset = message.rsplit_once("at offset 0x").and_then(|(_, rest)| {
        let digits: String = rest.chars().take_while(char::is_ascii_hexdigit).collect();
        u64::from_str_radix(&digits, 16).ok()
    });
    match offset {
        Some(offset) if message.contains("unexpected end") || message.contains("out of bounds: unexpected") => {
            ProgramError::Truncated { program, offset }
        }
        _ => ProgramError::Invalid { program, reason: message.to_owned() },
    }
}

fn ending(status: ExitStatus, message: &str, limits: &CompileLimits) -> String {
    let how = match status.signal() {
        Some(libc::SIGXCPU) => format!("the compiler used more than {} s of CPU time", limits.max_cpu.as_secs()),
        Some(libc::SIGABRT | libc::SIGSEGV) => {
            format!("the compiler died; it may use {} MiB of memory", limits.max_memory_bytes >> 20)
        }
        Some(libc::SIGKILL) => "the compiler was killed, perhaps by the machine's OOM killer".to_owned(),
        Some(signal) => format!("the compiler was ended by signal {signal}"),
        None => format!("the compiler ended with code {}", status.code().unwrap_or(-1)),
    };
    // The last line: a panic or an abort says it there.
    match message.lines().last() {
        Some(line) => format!("{how}: {line}"),
        None => how,
    }
}
