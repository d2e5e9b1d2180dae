//! Compiled programs: found in memory, on disk, or made.
//!
//! In: wasm bytes, by digest. Out: a [`Program`] whose imports are checked and linked, shared by every container of
//! the same bytes. One compilation a digest at a time, whoever asks; the result is on disk for the next start of the
//! agent. Native code comes from our own compile subprocess only, never from an image. A large program is first what the
//! baseline compiler makes of it, and [`upgrade`]d behind the back of those who run it.

mod detect;
mod program;
mod store;
mod upgrade;

#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::compile::{self, Job};
use super::config::{CompileLimits, CompilerCommand, RuntimeConfig};
use super::engine::{Engines, GuestEngine, Tier};
use super::error::{ProgramError, RuntimeError};
use super::metrics::ProgramMetrics;
use crate::ids::Digest;
pub use detect::{WasmKind, detect};
pub use program::{Program, ProgramKind};
use store::{ArtifactStore, Key};
use upgrade::Upgrades;

/// Programs kept though nobody runs them: a crash loop or a burst of execs does not load from disk each time.
const RECENT: usize = 16;

/// Where wasm bytes are.
#[derive(Debug, Clone)]
pub enum WasmSource {
    /// A file of the node, with its digest.
    File {
        /// Digest of the bytes, checked by the image store.
        digest: Digest,
        /// The file.
        path: PathBuf,
    },
    /// Bytes already read.
    Bytes(Arc<[u8]>),
}

/// What happens to a program that is being made ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CompileProgress {
    /// It must be compiled; so many wasm bytes.
    Compiling {
        /// Size of the wasm.
        wasm_bytes: u64,
    },
    /// It is ready.
    Ready {
        /// How long that took.
        elapsed: Duration,
    },
}

type Flight = Shared<BoxFuture<'static, Result<Arc<Program>, ProgramError>>>;

#[derive(Default)]
struct Memory {
    programs: HashMap<Digest, Weak<Program>>,
    recent: VecDeque<(Digest, Arc<Program>)>,
    flights: HashMap<Digest, Flight>,
}

struct Inner {
    engines: Engines,
    store: ArtifactStore,
    compiler: CompilerCommand,
    limits: CompileLimits,
    slots: Semaphore,
    baseline_from: Option<u64>,
    upgrades: Upgrades,
    memory: Mutex<Memory>,
    metrics: ProgramMetrics,
}

/// The programs of the node. Cheap to clone.
#[derive(Clone)]
pub struct Programs(Arc<Inner>);

impl Programs {
    /// Programs for `engines`, kept below the configured root directory.
    ///
    /// # Errors
    /// [`RuntimeError::Directory`].
    pub fn new(engines: Engines, config: &RuntimeConfig) -> Result<Self, RuntimeError> {
        let directory = config.artifact_dir.clone().unwrap_or_else(|| config.root_dir.join("artifacts"));
        let store =
            ArtifactStore::open(&directory).map_err(|source| RuntimeError::Directory { path: directory, source })?;
        Ok(Self(Arc::new(Inner {
            engines,
            store,
            compiler: config.compiler.clone(),
            limits: config.compile_limits.clone(),
            slots: Semaphore::new(config.compile_limits.parallel.get()),
            baseline_from: config.baseline_from,
            upgrades: Upgrades::default(),
            memory: Mutex::default(),
            metrics: ProgramMetrics::default(),
        })))
    }

    /// Counters of what was loaded and compiled.
    pub(super) fn metrics(&self) -> &ProgramMetrics {
        &self.0.metrics
    }

    /// The largest wasm file this node takes.
    pub fn max_wasm_bytes(&self) -> u64 {
        self.0.limits.max_wasm_bytes
    }

    /// The program of these bytes, compiled if need be. `name` is for messages.
    ///
    /// # Errors
    /// [`ProgramError`].
    pub async fn load(
        &self,
        name: &str,
        source: WasmSource,
        progress: &(dyn Fn(CompileProgress) + Sync),
    ) -> Result<Arc<Program>, ProgramError> {
        let started = Instant::now();
        let digest = match &source {
            WasmSource::File { digest, .. } => digest.clone(),
            WasmSource::Bytes(bytes) => {
                let bytes = bytes.clone();
                // Up to hundreds of MiB that a guest may have written: not on a guest's thread.
                tokio::task::spawn_blocking(move || Digest::of(&bytes)).await.expect("hashing does not panic")
            }
        };
        let flight = {
            let mut memory = self.0.memory.lock();
            if let Some(program) = memory.programs.get(&digest).and_then(Weak::upgrade)
                && !self.0.is_superseded(&program, &digest)
            {
                self.0.metrics.loaded("memory");
                return Ok(program);
            }
            match memory.flights.get(&digest) {
                Some(flight) => flight.clone(),
                None => {
                    let flight = self.0.clone().make(name.to_owned(), digest.clone(), source.clone()).boxed().shared();
                    memory.flights.insert(digest.clone(), flight.clone());
                    flight
                }
            }
        };
        if !self.0.is_optimised(&digest) {
            let wasm_bytes = source.size().await;
            if !self.0.has_baseline(&digest, wasm_bytes) {
                progress(CompileProgress::Compiling { wasm_bytes });
            }
        }
        // When every caller gives up, the flight is dropped with its subprocess; the entry must not outlive it.
        let _landing = Landing { programs: self, digest: &digest };
        let program = flight.await?;
        progress(CompileProgress::Ready { elapsed: started.elapsed() });
        Ok(program)
    }
}

impl WasmSource {
    async fn size(&self) -> u64 {
        match self {
            Self::File { path, .. } => tokio::fs::metadata(path).await.map_or(0, |metadata| metadata.len()),
            Self::Bytes(bytes) => bytes.len() as u64,
        }
    }
}

/// Forgets a flight when the last of its passengers leaves or it has landed.
struct Landing<'a> {
    programs: &'a Programs,
    digest: &'a Digest,
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        let mut memory = self.programs.0.memory.lock();
        // Ours is gone by now: if only the map's is left, nobody waits.
        let last = memory
            .flights
            .get(self.digest)
            .is_some_and(|flight| flight.peek().is_some() || flight.strong_count().is_none_or(|count| count <= 1));
        if last {
            memory.flights.remove(self.digest);
        }
    }
}

impl Inner {
    /// One flight: disk, else compiler; then memory.
    async fn make(
        self: Arc<Self>,
        name: String,
        digest: Digest,
        source: WasmSource,
    ) -> Result<Arc<Program>, ProgramError> {
        if let Some(program) = self.clone().load_stored(Tier::Optimised, &name, &digest).await? {
            self.metrics.loaded("disk");
            return Ok(self.remember(digest, program));
        }
        if let Some(program) = self.clone().make_baseline(&name, &digest, &source).await {
            let program = self.remember(digest.clone(), program);
            self.upgrade_later(name, digest, source);
            return Ok(program);
        }
        let turn = self.slots.acquire().await;
        let program = self.clone().compile(Job::for_start(Tier::Optimised, &name), &digest, source).await?;
        drop(turn);
        Ok(self.remember(digest, program))
    }

    /// What a start that cannot wait gets, from disk or the compiler. `None`: the program is not large, or baseline code of
    /// it cannot be had, and why that is so the optimising compiler says better.
    async fn make_baseline(self: Arc<Self>, name: &str, digest: &Digest, source: &WasmSource) -> Option<Program> {
        if !self.is_large(source.size().await) {
            return None;
        }
        match self.clone().load_stored(Tier::Baseline, name, digest).await {
            Ok(None) => {}
            Ok(Some(program)) => {
                self.metrics.loaded("disk");
                return Some(program);
            }
            Err(_) => return None,
        }
        let _turn = self.slots.acquire().await;
        match self.clone().compile(Job::for_start(Tier::Baseline, name), digest, source.clone()).await {
            Ok(program) => Some(program),
            Err(error) => {
                tracing::debug!(program = name, err = %error, "Baseline compiler refused; the optimising one is waited for");
                None
            }
        }
    }

    /// Compiles, stores, loads.
    async fn compile(
        self: Arc<Self>,
        job: Job<'_>,
        digest: &Digest,
        source: WasmSource,
    ) -> Result<Program, ProgramError> {
        let began = Instant::now();
        let artifact = compile::run(&self.compiler, &self.limits, job, source).await;
        self.metrics.compiled(job.tier, &artifact, began);
        let artifact = artifact?;
        let (name, tier, digest) = (job.name.to_owned(), job.tier, digest.clone());
        blocking(move || {
            let failed = |reason: String| ProgramError::Store { program: name.clone(), reason };
            let engine = self.engine(tier).map_err(|error| failed(error.to_string()))?;
            let key = Key { digest: &digest, engine: engine.hash() };
            let stored = self.store.put(key, artifact).map_err(|error| failed(error.to_string()))?;
            match Program::load(engine, &name, stored) {
                Ok(program) => Ok(program),
                Err(program::LoadError::Program(error)) => Err(error),
                Err(program::LoadError::Artifact(error)) => {
                    self.store.remove(key);
                    Err(failed(format!("it does not load: {error}")))
                }
            }
        })
        .await
    }

    fn engine(&self, tier: Tier) -> Result<&GuestEngine, RuntimeError> {
        match tier {
            Tier::Baseline => self.engines.baseline(),
            Tier::Optimised => Ok(self.engines.optimised()),
        }
    }

    /// Whether its first start does not wait for optimised code.
    fn is_large(&self, wasm_bytes: u64) -> bool {
        self.baseline_from.is_some_and(|least| wasm_bytes >= least)
    }

    /// Whether optimised code is on disk; it may still fail its check.
    fn is_optimised(&self, digest: &Digest) -> bool {
        self.store.contains(Key { digest, engine: self.engines.optimised().hash() })
    }

    /// Whether a start finds baseline code. Small programs never have any, and make no engine for it.
    fn has_baseline(&self, digest: &Digest, wasm_bytes: u64) -> bool {
        self.is_large(wasm_bytes)
            && self.engines.baseline().is_ok_and(|engine| self.store.contains(Key { digest, engine: engine.hash() }))
    }

    /// Whether there is better code of `program`, such as another agent with the same directory made.
    fn is_superseded(&self, program: &Program, digest: &Digest) -> bool {
        program.tier() == Tier::Baseline && self.is_optimised(digest)
    }

    /// From disk, if it is there and whole.
    async fn load_stored(
        self: Arc<Self>,
        tier: Tier,
        name: &str,
        digest: &Digest,
    ) -> Result<Option<Program>, ProgramError> {
        let (name, digest) = (name.to_owned(), digest.clone());
        blocking(move || {
            // No engine for its code is as good as no artifact.
            let Ok(engine) = self.engine(tier) else { return Ok(None) };
            let key = Key { digest: &digest, engine: engine.hash() };
            let Some(file) = self.store.get(key) else { return Ok(None) };
            match Program::load(engine, &name, file) {
                Ok(program) => Ok(Some(program)),
                // wasmtime refuses what our checks passed: as good as not there.
                Err(program::LoadError::Artifact(error)) => {
                    tracing::warn!(digest = %digest, err = %error, "Compiled program did not load and is made again");
                    self.store.remove(key);
                    Ok(None)
                }
                Err(program::LoadError::Program(error)) => Err(error),
            }
        })
        .await
    }

    /// Keeps it in memory, in the place of what was there of the same bytes.
    fn remember(&self, digest: Digest, program: Program) -> Arc<Program> {
        let program = Arc::new(program);
        let mut memory = self.memory.lock();
        memory.programs.retain(|_, program| program.strong_count() > 0);
        memory.programs.insert(digest.clone(), Arc::downgrade(&program));
        let mut dropped: Vec<_> = match memory.recent.iter().position(|(recent, _)| *recent == digest) {
            Some(place) => memory.recent.remove(place).into_iter().collect(),
            None => Vec::new(),
        };
        memory.recent.push_back((digest, program.clone()));
        if memory.recent.len() > RECENT {
            dropped.extend(memory.recent.pop_front());
        }
        drop(memory);
        drop(dropped); // Unmapping code takes a while; not under the lock.
        program
    }
}

/// Runs `work` on the blocking pool; a panic in it is the caller's.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(join) => std::panic::resume_unwind(join.into_panic()),
    }
}
