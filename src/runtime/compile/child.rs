//! The compile subprocess itself.
//!
//! In: wasm on standard input, limits in the environment. Out: the artifact as the whole content of standard output
//! (a file, cut to nothing first), or a message on standard error and the exit code for invalid input. `main` calls
//! [`child_main`] before anything else.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::AsFd as _;
use std::process::ExitCode;

use rustix::process::{Resource, Rlimit};
use wasmtime::Engine;

use super::super::artifact::{WasmKind, detect};
use super::super::config::COMPILE_ARGUMENT;
use super::super::engine::{self, Tier};
use super::{CPU_VARIABLE, INVALID, MEMORY_VARIABLE, NICE, NICE_VARIABLE, SIZE_VARIABLE, TIER_VARIABLE, sandbox};

/// Standard streams and what the loader needs while it starts.
const MAX_FILES: u64 = 16;

/// Compiles and gives the exit code, when this process was started to compile; `None` otherwise.
#[must_use]
pub fn child_main() -> Option<ExitCode> {
    (std::env::args_os().nth(1)? == COMPILE_ARGUMENT).then(|| ExitCode::from(run()))
}

/// The work of the subprocess.
pub(super) fn run() -> u8 {
    match compile() {
        Ok(()) => 0,
        Err(Failure::Invalid(reason)) => {
            eprintln!("{reason}");
            INVALID
        }
        Err(Failure::Step(step, reason)) => {
            eprintln!("{step}: {reason}");
            1
        }
    }
}

enum Failure {
    /// The input's fault.
    Invalid(String),
    /// This step failed.
    Step(&'static str, String),
}

/// For `map_err`: names the step.
fn at<E: std::fmt::Display>(step: &'static str) -> impl FnOnce(E) -> Failure {
    move |error| Failure::Step(step, error.to_string())
}

fn compile() -> Result<(), Failure> {
    limit_resources()?;
    let engine = Engine::new(&engine::config(tier())).map_err(at("building the engine"))?;
    let mut input = File::from(std::io::stdin().as_fd().try_clone_to_owned().map_err(at("opening the input"))?);
    let mut output = File::from(std::io::stdout().as_fd().try_clone_to_owned().map_err(at("opening the output"))?);
    sandbox::enter().map_err(at("entering the sandbox"))?;
    let mut wasm = Vec::new();
    input.read_to_end(&mut wasm).map_err(at("reading the input"))?;
    let kind = detect("the input", &wasm).map_err(|error| Failure::Invalid(error.to_string()))?;
    let artifact = match kind {
        WasmKind::Module => engine.precompile_module(&wasm),
        WasmKind::Component => engine.precompile_component(&wasm),
    };
    let artifact = artifact.map_err(|error| Failure::Invalid(format!("{error:#}")))?;
    output.set_len(0).map_err(at("emptying the output"))?;
    output.seek(SeekFrom::Start(0)).map_err(at("emptying the output"))?;
    output.write_all(&artifact).map_err(at("writing the output"))
}

fn limit_resources() -> Result<(), Failure> {
    let limits = [
        (Resource::As, variable(MEMORY_VARIABLE)),
        (Resource::Cpu, variable(CPU_VARIABLE)),
        (Resource::Fsize, variable(SIZE_VARIABLE)),
        (Resource::Nofile, Some(MAX_FILES)),
        (Resource::Core, Some(0)),
    ];
    for (resource, limit) in limits {
        let Some(limit) = limit else { continue };
        let limit = Rlimit { current: Some(limit), maximum: Some(limit) };
        rustix::process::setrlimit(resource, limit).map_err(at("limiting resources"))?;
    }
    let nice = std::env::var(NICE_VARIABLE).ok().and_then(|nice| nice.parse().ok()).unwrap_or(NICE);
    rustix::process::nice(nice).map(|_| ()).map_err(at("lowering the priority"))
}

/// Which compiler is wanted.
fn tier() -> Tier {
    let asked = std::env::var(TIER_VARIABLE);
    if asked.is_ok_and(|asked| asked == Tier::Baseline.name()) { Tier::Baseline } else { Tier::Optimised }
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}
