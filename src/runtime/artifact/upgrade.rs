//! Optimised code for programs that run as the baseline compiler made them.
//!
//! In: a program whose first start did not wait. Out: the same, compiled by Cranelift, for every container that starts from
//! then on; those that run keep the code they began with. One at a time, behind every compilation that a start waits for.

use std::collections::HashSet;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::super::compile::Job;
use super::{Inner, Key, ProgramError, Tier, WasmSource, blocking};
use crate::ids::Digest;

/// What is to be compiled anew.
pub(super) struct Upgrades {
    /// Also what could not be: it stays as it is until the agent starts again.
    begun: Mutex<HashSet<Digest>>,
    turn: Semaphore,
}

impl Default for Upgrades {
    fn default() -> Self {
        Self { begun: Mutex::default(), turn: Semaphore::new(1) }
    }
}

#[cfg(test)]
impl Upgrades {
    /// Keeps an upgrade from beginning.
    pub(super) fn pretend_begun(&self, digest: Digest) {
        self.begun.lock().insert(digest);
    }
}

impl Inner {
    /// Compiles `source` once more, by the optimising compiler; when that is done, starts get its code.
    pub(super) fn upgrade_later(self: &Arc<Self>, name: String, digest: Digest, source: WasmSource) {
        if self.upgrades.begun.lock().insert(digest.clone()) {
            tokio::spawn(upgrade(Arc::downgrade(self), name, digest, source));
        }
    }
}

async fn upgrade(programs: Weak<Inner>, name: String, digest: Digest, source: WasmSource) {
    // An agent that ends does not wait for this: its tasks are dropped, and the subprocess with them.
    let Some(programs) = programs.upgrade() else { return };
    let _turn = programs.upgrades.turn.acquire().await;
    match programs.clone().optimise(&name, &digest, source).await {
        Ok(true) => {
            programs.upgrades.begun.lock().remove(&digest);
            tracing::info!(program = name, digest = %digest, "Compiled with optimisation; containers that start now run it");
        }
        Ok(false) => {
            programs.upgrades.begun.lock().remove(&digest);
        }
        Err(error) => {
            tracing::warn!(program = name, digest = %digest, err = %error, "Program stays as the baseline compiler made it");
        }
    }
}

impl Inner {
    /// Whether it was done here; else another agent that shares the directory is at it.
    async fn optimise(self: Arc<Self>, name: &str, digest: &Digest, source: WasmSource) -> Result<bool, ProgramError> {
        let (inner, of) = (self.clone(), digest.clone());
        let claim = blocking(move || inner.store.claim(inner.optimised(&of))).await;
        let claim =
            claim.map_err(|error| ProgramError::Store { program: name.to_owned(), reason: error.to_string() })?;
        let Some(claim) = claim else { return Ok(false) };
        let found = self.clone().load_stored(Tier::Optimised, name, digest).await;
        let made = match found {
            Ok(Some(program)) => Ok(program),
            Ok(None) => self.clone().compile(Job::in_background(Tier::Optimised, name), digest, source).await,
            Err(error) => Err(error),
        };
        let program = made.map(|program| self.remember(digest.clone(), program));
        let (inner, of) = (self, digest.clone());
        let done = program.is_ok();
        blocking(move || {
            inner.store.release(inner.optimised(&of), claim);
            if done && let Ok(baseline) = inner.engines.baseline() {
                inner.store.remove(Key { digest: &of, engine: baseline.hash() });
            }
        })
        .await;
        program.map(|_| true)
    }

    fn optimised<'a>(&'a self, digest: &'a Digest) -> Key<'a> {
        Key { digest, engine: self.engines.optimised().hash() }
    }
}
