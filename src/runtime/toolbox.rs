//! The toolbox: a shell and utilities in one wasm module, which every container may run.
//!
//! In: its wasm file. Out: where its bytes are, for the programs' loader; and the compiled module, made ready ahead of the
//! first exec and kept as long as the node runs. Which names it answers to is [`crate::pod::toolbox`]'s.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::OnceCell;

use super::artifact::{CompileProgress, Program, Programs, WasmSource};
use super::engine::Tier;
use super::error::ProgramError;
use crate::ids::Digest;

/// For messages, backtraces and the log.
pub(super) const NAME: &str = "toolbox.wasm";

/// The toolbox of a node, which may have none.
#[derive(Default)]
pub struct Toolbox {
    file: Option<PathBuf>,
    digest: OnceCell<Digest>,
    /// Kept: it is memory shared by all its processes, and loading it anew takes many milliseconds.
    program: OnceCell<Arc<Program>>,
}

impl Toolbox {
    pub(super) fn new(file: Option<PathBuf>) -> Self {
        Self { file, ..Self::default() }
    }

    /// Whether there is one.
    pub(super) fn exists(&self) -> bool {
        self.file.is_some()
    }

    /// Its program, compiled if need be.
    ///
    /// # Errors
    /// [`ProgramError`]; also when the file is gone.
    pub(super) async fn program(
        &self,
        programs: &Programs,
        progress: &(dyn Fn(CompileProgress) + Sync),
    ) -> Result<Arc<Program>, ProgramError> {
        let load = async {
            let path = self.file.clone().unwrap_or_default();
            let digest = self.digest.get_or_try_init(|| digest_of(path.clone())).await?.clone();
            programs.load(NAME, WasmSource::File { digest, path }, progress).await
        };
        if let Some(program) = self.program.get() {
            return Ok(program.clone());
        }
        let program = load.await?;
        // What is still compiled by the optimising compiler is asked for again.
        if program.tier() == Tier::Optimised {
            let _ = self.program.set(program.clone());
        }
        Ok(program)
    }
}

async fn digest_of(path: PathBuf) -> Result<Digest, ProgramError> {
    let reading = path.clone();
    let bytes = tokio::task::spawn_blocking(move || std::fs::read(reading).map(|bytes| Digest::of(&bytes)));
    let digest = bytes.await.expect("hashing does not panic");
    digest.map_err(|error| ProgramError::Toolbox { path, reason: error.to_string() })
}
