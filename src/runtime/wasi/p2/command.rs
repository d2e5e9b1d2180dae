//! Command components: `wasi:cli/run`.
//!
//! In: a linked component and a store. Out: its exit code, or its trap. Whoever calls decides what a trap
//! means for the container.

use wasmtime::Store;
use wasmtime::component::InstancePre;
use wasmtime_wasi::p2::bindings;

use crate::runtime::store::Guest;

/// How `wasi:cli/exit` unwinds the guest: an error that is no failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("exit with code {0}")]
pub struct ComponentExit(pub u8);

/// A command component that is instantiated and about to run.
pub struct Command(bindings::Command);

impl Command {
    /// Instantiates; nothing of `run` has happened yet.
    ///
    /// # Errors
    /// A component without `wasi:cli/run`, a trap while it initialises, or no memory.
    pub async fn instantiate(store: &mut Store<Guest>, pre: &InstancePre<Guest>) -> wasmtime::Result<Self> {
        let pre = bindings::CommandPre::new(pre.clone())?;
        Ok(Self(pre.instantiate_async(store).await?))
    }

    /// Calls `wasi:cli/run#run`. `Ok(code)` is the exit code: 0, 1 for an error result, or what
    /// `wasi:cli/exit` was given.
    ///
    /// # Errors
    /// A trap, with its wasm backtrace.
    pub async fn run(self, store: &mut Store<Guest>) -> wasmtime::Result<u8> {
        match self.0.wasi_cli_run().call_run(store).await {
            Ok(result) => Ok(u8::from(result.is_err())),
            Err(error) => match error.downcast_ref::<ComponentExit>() {
                Some(ComponentExit(code)) => Ok(*code),
                None => Err(error),
            },
        }
    }
}
