//! Compiled programs: found in memory, on disk, or made.
//!
//! In: wasm bytes, by digest. Out: a [`Program`] whose imports are checked and linked, shared by every container of
//! the same bytes. One compilation a digest at a time, whoever asks; the result is on disk for the next start of the
//! agent. Native code comes from our own compile subprocess only, never from an image.

mod detect;
mod program;
mod store;

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

use super::compile;
use super::config::{CompileLimits, CompilerCommand, RuntimeConfig};
use super::engine::GuestEngine;
use super::error::{ProgramError, RuntimeError};
use super::metrics::ProgramMetrics;
use crate::ids::Digest;
pub use detect::{WasmKind, detect};
pub use program::{Program, ProgramKind};
use store::ArtifactStore;

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
    recent: VecDeque<Arc<Program>>,
    flights: HashMap<Digest, Flight>,
}

struct Inner {
    engine: GuestEngine,
    store: ArtifactStore,
    compiler: CompilerCommand,
    limits: CompileLimits,
    slots: Semaphore,
    memory: Mutex<Memory>,
    metrics: ProgramMetrics,
}

/// The programs of the node. Cheap to clone.
#[derive(Clone)]
pub struct Programs(Arc<Inner>);

impl Programs {
    /// Programs for `engine`, kept below the configured root directory.
    ///
    /// # Errors
    /// [`RuntimeError::Directory`].
    pub fn new(engine: GuestEngine, config: &RuntimeConfig) -> Result<Self, RuntimeError> {
        let directory = config.artifact_dir.clone().unwrap_or_else(|| config.root_dir.join("artifacts"));
        let store = ArtifactStore::open(&directory, engine.hash())
            .map_err(|source| RuntimeError::Directory { path: directory, source })?;
        Ok(Self(Arc::new(Inner {
            engine,
            store,
            compiler: config.compiler.clone(),
            limits: config.compile_limits.clone(),
            slots: Semaphore::new(config.compile_limits.parallel.get()),
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
            if let Some(program) = memory.programs.get(&digest).and_then(Weak::upgrade) {
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
        if !self.0.store.contains(&digest) {
            progress(CompileProgress::Compiling { wasm_bytes: source.size().await });
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
        if let Some(program) = self.clone().load_stored(&name, &digest).await? {
            self.metrics.loaded("disk");
            return Ok(self.remember(digest, program));
        }
        let turn = self.slots.acquire().await;
        let began = Instant::now();
        let artifact = compile::run(&self.compiler, &self.limits, &name, source).await;
        self.metrics.compiled(&artifact, began);
        let artifact = artifact?;
        drop(turn);
        let inner = self.clone();
        let (for_store, for_errors) = (digest.clone(), name.clone());
        blocking(move || inner.store.put(&for_store, artifact))
            .await
            .map_err(|error| ProgramError::Store { program: for_errors, reason: error.to_string() })?;
        match self.clone().load_stored(&name, &digest).await? {
            Some(program) => Ok(self.remember(digest, program)),
            None => Err(ProgramError::Store { program: name, reason: "it changed on disk right after".to_owned() }),
        }
    }

    /// From disk, if it is there and whole.
    async fn load_stored(self: Arc<Self>, name: &str, digest: &Digest) -> Result<Option<Program>, ProgramError> {
        let (name, digest) = (name.to_owned(), digest.clone());
        blocking(move || match self.store.get(&digest) {
            Some(file) => match Program::load(&self.engine, &name, file) {
                Ok(program) => Ok(Some(program)),
                // wasmtime refuses what our checks passed: as good as not there.
                Err(program::LoadError::Artifact(error)) => {
                    tracing::warn!(digest = %digest, err = %error, "Compiled program did not load and is made again");
                    self.store.remove(&digest);
                    Ok(None)
                }
                Err(program::LoadError::Program(error)) => Err(error),
            },
            None => Ok(None),
        })
        .await
    }

    fn remember(&self, digest: Digest, program: Program) -> Arc<Program> {
        let program = Arc::new(program);
        let mut memory = self.memory.lock();
        memory.programs.retain(|_, program| program.strong_count() > 0);
        memory.programs.insert(digest, Arc::downgrade(&program));
        memory.recent.push_back(program.clone());
        let dropped = if memory.recent.len() > RECENT { memory.recent.pop_front() } else { None };
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
