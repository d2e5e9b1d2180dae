//! A compiled program with its imports linked.
//!
//! In: a trusted artifact. Out: what to instantiate, by what the program exports; or which of its imports this node does
//! not provide. Everything that can be refused is refused here, before a store exists.

use std::fs::File;

use wasmtime::component::{Component, Linker as ComponentLinker, types::ComponentItem};
use wasmtime::{Engine, ExternType, InstancePre, Module, Precompiled, UnknownImportError};

use super::super::engine::{GuestEngine, Tier};
use super::super::error::ProgramError;
use super::super::store::Guest;
use super::super::wasi::p1;

/// What kind of program, ready to instantiate.
pub enum ProgramKind {
    /// A preview 1 module.
    Module {
        /// Linked.
        pre: InstancePre<Guest>,
        /// Whether it is a command.
        has_start: bool,
    },
    /// A component that exports `wasi:cli/run`.
    Command {
        /// Linked.
        pre: wasmtime::component::InstancePre<Guest>,
    },
    /// A component that exports `wasi:http/incoming-handler`.
    Http {
        /// Linked.
        pre: wasmtime::component::InstancePre<Guest>,
    },
}

/// One program.
pub struct Program {
    /// What it runs in.
    pub engine: GuestEngine,
    /// What it is.
    pub kind: ProgramKind,
}

/// Why an artifact gave no program.
pub(super) enum LoadError {
    /// The artifact is not good; compile again.
    Artifact(wasmtime::Error),
    /// The program is not good; do not.
    Program(ProgramError),
}

impl From<ProgramError> for LoadError {
    fn from(error: ProgramError) -> Self {
        Self::Program(error)
    }
}

impl Program {
    /// Which compiler made it.
    pub fn tier(&self) -> Tier {
        self.engine.tier()
    }

    /// Loads an artifact of our own compiler, opened and verified by the store.
    pub(super) fn load(engine: &GuestEngine, name: &str, file: File) -> Result<Self, LoadError> {
        let wasmtime = engine.wasmtime();
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        let kind = match Engine::detect_precompiled_file(&path).map_err(LoadError::Artifact)? {
            Some(Precompiled::Component) => component(engine, name, &deserialize_component(wasmtime, &path)?)?,
            Some(Precompiled::Module) => module(engine, name, &deserialize_module(wasmtime, file)?)?,
            None => return Err(LoadError::Artifact(wasmtime::Error::msg("not a compiled program"))),
        };
        Ok(Self { engine: engine.clone(), kind })
    }
}

#[allow(unsafe_code, reason = "wasmtime cannot check native code; the store's contract does")]
fn deserialize_module(engine: &Engine, file: File) -> Result<Module, LoadError> {
    // SAFETY: `ArtifactStore::get` gives out only files that our own compile subprocess made and that the agent wrote
    // and checksummed, in a directory nobody else can write to; they are never changed in place.
    unsafe { Module::deserialize_open_file(engine, file) }.map_err(LoadError::Artifact)
}

#[allow(unsafe_code, reason = "wasmtime cannot check native code; the store's contract does")]
fn deserialize_component(engine: &Engine, path: &str) -> Result<Component, LoadError> {
    // SAFETY: as in `deserialize_module`; the path is that of the verified open file itself.
    unsafe { Component::deserialize_file(engine, path) }.map_err(LoadError::Artifact)
}

fn module(engine: &GuestEngine, name: &str, module: &Module) -> Result<ProgramKind, ProgramError> {
    for import in module.imports() {
        if let ExternType::Memory(memory) = import.ty()
            && memory.is_shared()
        {
            return Err(ProgramError::SharedMemory {
                program: name.to_owned(),
                module: import.module().to_owned(),
                name: import.name().to_owned(),
            });
        }
    }
    let has_start = match module.get_export("_start") {
        Some(ExternType::Func(start)) => start.params().len() == 0 && start.results().len() == 0,
        _ => false,
    };
    let linked = match p1::adapt(engine.modules(), module) {
        Ok(Some(adapted)) => adapted.instantiate_pre(module),
        Ok(None) => engine.modules().instantiate_pre(module),
        Err(error) => Err(error),
    };
    let pre = linked.map_err(|error| {
        let (kind, program) = ("module", name.to_owned());
        match error.downcast_ref::<UnknownImportError>() {
            Some(unknown) => ProgramError::UnsatisfiedImport {
                kind,
                program,
                import: format!("{}::{}", unknown.module(), unknown.name()),
            },
            None => ProgramError::IncompatibleImport {
                kind,
                program,
                import: quoted(&error.to_string()),
                reason: error.root_cause().to_string(),
            },
        }
    })?;
    Ok(ProgramKind::Module { pre, has_start })
}

fn component(engine: &GuestEngine, name: &str, component: &Component) -> Result<ProgramKind, ProgramError> {
    let ty = component.component_type();
    let exports = |interface: &str| {
        ty.exports(engine.wasmtime()).any(|(export, item)| {
            let unversioned = export.split('@').next().unwrap_or(export);
            unversioned == interface && matches!(item.ty, ComponentItem::ComponentInstance(_))
        })
    };
    // In this order: some toolchains leave a `run` that does nothing in every component.
    if exports("wasi:http/incoming-handler") {
        return Ok(ProgramKind::Http { pre: link(engine.components(), name, component)? });
    }
    if exports("wasi:cli/run") {
        return Ok(ProgramKind::Command { pre: link(engine.components(), name, component)? });
    }
    Err(ProgramError::NoEntry { program: name.to_owned() })
}

fn link(
    linker: &ComponentLinker<Guest>,
    name: &str,
    component: &Component,
) -> Result<wasmtime::component::InstancePre<Guest>, ProgramError> {
    linker.instantiate_pre(component).map_err(|error| {
        let (kind, program) = ("component", name.to_owned());
        let text = format!("{error:#}");
        let import = quoted(&text);
        if text.contains("implementation was not found") || text.contains("was not found in the linker") {
            ProgramError::UnsatisfiedImport { kind, program, import }
        } else {
            ProgramError::IncompatibleImport { kind, program, import, reason: error.root_cause().to_string() }
        }
    })
}

/// The first name in backquotes of wasmtime's message.
fn quoted(text: &str) -> String {
    text.split('`').nth(1).unwrap_or(text).to_owned()
}
