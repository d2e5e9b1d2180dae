//! The one wasmtime engine of the node.
//!
//! In: nothing but constants: the compile subprocess builds the same engine, and artifacts fit both. Out: an
//! engine with its linkers, and the hash that names artifacts made for it. Runs nothing.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use wasmtime::component::Linker as ComponentLinker;
use wasmtime::{Config, Engine, InstanceAllocationStrategy, Linker, OptLevel, WasmBacktraceDetails};

use super::store::Guest;
use super::wasi::{p1, p2};
use super::{error::RuntimeError, http};

/// What wasm frames may use of a guest's stack: wasmtime's own default, which recursive programs are used to.
const MAX_WASM_STACK: usize = 512 * 1024;
/// The whole stack of a running guest. Host functions run on what wasm leaves, so there is as much again for them.
/// Address space only: an idle guest touches two or three pages.
const ASYNC_STACK: usize = 1024 * 1024;

/// The engine, its linkers and its name for artifacts.
#[derive(Clone)]
pub struct GuestEngine(Arc<Inner>);

struct Inner {
    engine: Engine,
    modules: Linker<Guest>,
    components: ComponentLinker<Guest>,
    hash: String,
}

/// Settings shared with the compile subprocess.
pub(super) fn config() -> Config {
    let mut config = Config::new();
    config
        .wasm_component_model(true)
        .epoch_interruption(true)
        .allocation_strategy(InstanceAllocationStrategy::OnDemand)
        .memory_init_cow(true)
        .max_wasm_stack(MAX_WASM_STACK)
        .async_stack_size(ASYNC_STACK)
        .cranelift_opt_level(OptLevel::Speed)
        // Names come from the name section. DWARF would be parsed in the agent, and it is the guest's.
        .wasm_backtrace_details(WasmBacktraceDetails::Disable)
        // Panics are caught before they reach wasm frames, so nothing unwinds through them.
        .native_unwind_info(false);
    config
}

impl GuestEngine {
    /// Builds engine and linkers.
    ///
    /// # Errors
    /// [`RuntimeError::Engine`] when this machine cannot run it.
    pub fn new() -> Result<Self, RuntimeError> {
        let build = || -> wasmtime::Result<Inner> {
            let engine = Engine::new(&config())?;
            let mut modules = Linker::new(&engine);
            p1::add_to_linker(&mut modules)?;
            let mut components = ComponentLinker::new(&engine);
            p2::add_to_linker(&mut components)?;
            // Commands too: requests out need no request in.
            http::add_to_linker(&mut components)?;
            let hash = compatibility_hash(&engine);
            Ok(Inner { engine, modules, components, hash })
        };
        build()
            .map(|inner| Self(Arc::new(inner)))
            .map_err(|error| RuntimeError::Engine { reason: format!("{error:#}") })
    }

    /// wasmtime's engine.
    pub fn wasmtime(&self) -> &Engine {
        &self.0.engine
    }

    /// Imports of preview 1 modules.
    pub fn modules(&self) -> &Linker<Guest> {
        &self.0.modules
    }

    /// Imports of components, commands and HTTP handlers alike.
    pub fn components(&self) -> &ComponentLinker<Guest> {
        &self.0.components
    }

    /// Names artifacts that this engine can load.
    pub fn hash(&self) -> &str {
        &self.0.hash
    }
}

/// Version, target and settings as a name. `DefaultHasher::new` has fixed keys, so that it holds across runs.
fn compatibility_hash(engine: &Engine) -> String {
    let mut hasher = DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}
