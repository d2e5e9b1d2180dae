//! What a wasmtime store of a guest holds.
//!
//! In: a process of the process tree. Out: `Guest`, the `T` of every `Store<T>` of this node. Whatever must
//! outlive or be shared between stores (fd table, signals, memory charge, files) is in the process and its
//! container; here is only what wasmtime asks for by `&mut`.

use std::sync::Arc;

use wasmtime::Store;

use super::engine::GuestEngine;
use super::limits::GuestLimiter;
use super::process::Process;
use super::wasi::p2::ComponentState;

/// Store data of one running program.
pub struct Guest {
    /// The process this store executes.
    pub process: Arc<Process>,
    /// Charges memories and tables to the container.
    pub limiter: GuestLimiter,
    /// Resources of WASI 0.2; absent in core modules, whose idle cost is counted in kilobytes.
    pub component: Option<Box<ComponentState>>,
}

impl Guest {
    /// The component state.
    ///
    /// Only linkers of components call this, and [`new_store`] gives every component its state.
    pub fn component(&mut self) -> &mut ComponentState {
        self.component.as_deref_mut().expect("a store made for a component holds its component state")
    }
}

/// Which kind of program a store is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreFor {
    /// A core module over preview 1.
    Module,
    /// A component over WASI 0.2.
    Component,
}

/// A store for `process`, limited by its container and yielding at every epoch.
pub fn new_store(engine: &GuestEngine, process: &Arc<Process>, kind: StoreFor) -> Store<Guest> {
    let component = match kind {
        StoreFor::Module => None,
        StoreFor::Component => Some(Box::new(ComponentState::new(process))),
    };
    let guest =
        Guest { process: process.clone(), limiter: GuestLimiter::new(process.container().charge().clone()), component };
    let mut store = Store::new(engine.wasmtime(), guest);
    store.limiter(|guest| &mut guest.limiter);
    // One tick of the epoch is a time slice; whoever is due next is decided by the scheduler's gate.
    store.set_epoch_deadline(1);
    let scheduler = process.container().services().scheduler.clone();
    store.epoch_deadline_callback(move |_| Ok(scheduler.at_epoch()));
    store
}
