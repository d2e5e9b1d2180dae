//! The wasmtime engines of the node: one for each compiler.
//!
//! In: nothing but constants: the compile subprocess builds the same engines, and artifacts fit both. Out: an
//! engine with its linkers, and the hash that names artifacts made for it. Runs nothing.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, OnceLock};

use wasmtime::component::Linker as ComponentLinker;
use wasmtime::{Config, Engine, InstanceAllocationStrategy, Linker, OptLevel, Strategy, WasmBacktraceDetails};

use super::store::Guest;
use super::wasi::{p1, p2};
use super::{error::RuntimeError, http};

/// What wasm frames may use of a guest's stack: wasmtime's own default, which recursive programs are used to.
const MAX_WASM_STACK: usize = 512 * 1024;
/// What host functions have of it beyond that. Address space only: an idle guest touches two or three pages.
const HOST_STACK: usize = 512 * 1024;

/// Frames of the baseline compiler keep every local in memory: what fits an optimised stack shall fit theirs.
const BASELINE_STACK_FACTOR: usize = 4;

/// Which compiler made a program's code. Code of one runs in the engine of no other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tier {
    /// Winch: one pass over the bytes, for a first start that cannot wait. Knows no GC, exceptions or tail calls.
    Baseline,
    /// Cranelift.
    Optimised,
}

impl Tier {
    /// As metrics and messages name it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Baseline => "baseline",
            Self::Optimised => "optimised",
        }
    }
}

/// The engine, its linkers and its name for artifacts.
#[derive(Clone)]
pub struct GuestEngine(Arc<Inner>);

struct Inner {
    tier: Tier,
    engine: Engine,
    modules: Linker<Guest>,
    components: ComponentLinker<Guest>,
    hash: String,
}

/// Settings shared with the compile subprocess.
pub(super) fn config(tier: Tier) -> Config {
    let (strategy, wasm_stack, level) = match tier {
        // Cranelift makes the trampolines, one for each function of a table: of a Go program's compilation they were a third.
        Tier::Baseline => (Strategy::Winch, MAX_WASM_STACK * BASELINE_STACK_FACTOR, OptLevel::None),
        Tier::Optimised => (Strategy::Cranelift, MAX_WASM_STACK, OptLevel::Speed),
    };
    let mut config = Config::new();
    config
        .strategy(strategy)
        .wasm_component_model(true)
        .epoch_interruption(true)
        .allocation_strategy(InstanceAllocationStrategy::OnDemand)
        .memory_init_cow(true)
        .max_wasm_stack(wasm_stack)
        .async_stack_size(wasm_stack + HOST_STACK)
        .cranelift_opt_level(level)
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
    fn new(tier: Tier) -> Result<Self, RuntimeError> {
        let build = || -> wasmtime::Result<Inner> {
            let engine = Engine::new(&config(tier))?;
            let mut modules = Linker::new(&engine);
            p1::add_to_linker(&mut modules)?;
            let mut components = ComponentLinker::new(&engine);
            p2::add_to_linker(&mut components)?;
            // Commands too: requests out need no request in.
            http::add_to_linker(&mut components)?;
            let hash = compatibility_hash(&engine);
            Ok(Inner { tier, engine, modules, components, hash })
        };
        build()
            .map(|inner| Self(Arc::new(inner)))
            .map_err(|error| RuntimeError::Engine { reason: format!("{error:#}") })
    }

    /// Whose code it runs.
    pub fn tier(&self) -> Tier {
        self.0.tier
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

/// The node's engines. Cheap to clone.
#[derive(Clone)]
pub struct Engines(Arc<Both>);

struct Both {
    optimised: GuestEngine,
    /// Made when the first program asks for it: a node whose programs are small never does.
    baseline: OnceLock<GuestEngine>,
}

impl Engines {
    /// The engine of optimised code.
    ///
    /// # Errors
    /// [`RuntimeError::Engine`] when this machine cannot run it.
    pub fn new() -> Result<Self, RuntimeError> {
        let optimised = GuestEngine::new(Tier::Optimised)?;
        Ok(Self(Arc::new(Both { optimised, baseline: OnceLock::new() })))
    }

    /// Runs what Cranelift compiles.
    pub fn optimised(&self) -> &GuestEngine {
        &self.0.optimised
    }

    /// Runs what Winch compiles.
    ///
    /// # Errors
    /// [`RuntimeError::Engine`] when Winch has no code for this machine.
    pub fn baseline(&self) -> Result<&GuestEngine, RuntimeError> {
        if let Some(engine) = self.0.baseline.get() {
            return Ok(engine);
        }
        // Two that ask at once make two; one of them is kept.
        let made = GuestEngine::new(Tier::Baseline)?;
        Ok(self.0.baseline.get_or_init(|| made))
    }

    /// Moves the epoch of every engine there is.
    pub fn increment_epoch(&self) {
        self.0.optimised.wasmtime().increment_epoch();
        if let Some(baseline) = self.0.baseline.get() {
            baseline.wasmtime().increment_epoch();
        }
    }
}

/// Version, target and settings as a name. `DefaultHasher::new` has fixed keys, so that it holds across runs.
fn compatibility_hash(engine: &Engine) -> String {
    let mut hasher = DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}
