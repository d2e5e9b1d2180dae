//! WASI 0.2 over the process tree.
//!
//! In: a component and the process that runs it. Out: a linker with every interface of `wasi:cli/command`, and
//! [`Command`], the run of one. Filesystem, sockets and standard streams are ours, over `vfs`, `network` and
//! the process's descriptors; clocks, random numbers, polls and the stream interface itself are
//! wasmtime-wasi's. `wasi:http` is linked by [`super::super::http`].

mod bindings;
mod cli;
mod command;
mod errors;
mod filesystem;
mod sockets;
mod streams;

use std::sync::Arc;

use wasmtime::component::{HasData, Linker, ResourceTable};
use wasmtime_wasi::clocks::{WasiClocks, WasiClocksCtx, WasiClocksCtxView};
use wasmtime_wasi::p2::bindings::{cli as stock_cli, clocks, random};
use wasmtime_wasi::random::{WasiRandom, WasiRandomCtx};
use wasmtime_wasi_io::bindings::wasi::io;

use crate::network::{OwnerId, PodNetwork};
use crate::runtime::http::HttpState;
use crate::runtime::process::Process;
use crate::runtime::store::Guest;
use crate::vfs::{Credentials, Namespace};

#[cfg(test)]
pub(in crate::runtime) mod tests;

pub use command::{Command, ComponentExit};

/// Handles a component may have at once: files, sockets, streams, polls, headers.
///
/// A server of ten thousand connections needs about six a connection; more than this is a leak, and the
/// table is host memory.
const MAX_RESOURCES: usize = 65_536;

/// What a component's store holds besides its process.
pub struct ComponentState {
    /// Resources of the guest.
    pub table: ResourceTable,
    clocks: WasiClocksCtx,
    random: WasiRandomCtx,
    /// `wasi:http`: limits of header fields, and the way out.
    pub(in crate::runtime) http: HttpState,
}

impl ComponentState {
    /// State for `process`; arguments, environment and streams stay in the process.
    pub fn new(process: &Arc<Process>) -> Self {
        let mut table = ResourceTable::new();
        table.set_max_capacity(MAX_RESOURCES);
        Self {
            table,
            clocks: WasiClocksCtx::default(),
            random: WasiRandomCtx::default(),
            http: HttpState::new(process),
        }
    }
}

/// What the functions of our interfaces work on.
pub struct View<'a> {
    /// The process.
    pub process: &'a Arc<Process>,
    /// Its resources.
    pub table: &'a mut ResourceTable,
}

impl<'a> View<'a> {
    fn namespace(&self) -> &'a Namespace {
        self.process.namespace()
    }

    fn credentials(&self) -> &'a Credentials {
        self.process.credentials()
    }

    fn creator(&self) -> Credentials {
        self.process.creator()
    }

    fn network(&self) -> &'a Arc<PodNetwork> {
        self.process.container().network()
    }

    fn owner(&self) -> OwnerId {
        self.process.container().owner()
    }
}

fn view(guest: &mut Guest) -> View<'_> {
    let Guest { process, component, .. } = guest;
    let state = component.as_deref_mut().expect("a store made for a component holds its component state");
    View { process, table: &mut state.table }
}

/// [`View`] as bindgen's functions name it.
struct HasView;

impl HasData for HasView {
    type Data<'a> = View<'a>;
}

/// The resource table alone, all that `wasi:io` needs.
struct HasTable;

impl HasData for HasTable {
    type Data<'a> = &'a mut ResourceTable;
}

/// Defines every import of `wasi:cli/command` that this node provides, each by name: a guest gets nothing
/// that is not written here.
///
/// # Errors
/// Only when an interface is defined twice.
pub fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    add_stock(linker)?;

    stock_cli::environment::add_to_linker::<_, HasView>(linker, view)?;
    stock_cli::exit::add_to_linker::<_, HasView>(linker, view)?;
    stock_cli::stdin::add_to_linker::<_, HasView>(linker, view)?;
    stock_cli::stdout::add_to_linker::<_, HasView>(linker, view)?;
    stock_cli::stderr::add_to_linker::<_, HasView>(linker, view)?;
    stock_cli::terminal_input::add_to_linker::<_, HasView>(linker, view)?;
    stock_cli::terminal_output::add_to_linker::<_, HasView>(linker, view)?;
    stock_cli::terminal_stdin::add_to_linker::<_, HasView>(linker, view)?;
    stock_cli::terminal_stdout::add_to_linker::<_, HasView>(linker, view)?;
    stock_cli::terminal_stderr::add_to_linker::<_, HasView>(linker, view)?;

    bindings::filesystem::types::add_to_linker::<_, HasView>(linker, view)?;
    bindings::filesystem::preopens::add_to_linker::<_, HasView>(linker, view)?;

    let network = (&bindings::LinkOptions::default()).into();
    bindings::sockets::network::add_to_linker::<_, HasView>(linker, &network, view)?;
    bindings::sockets::instance_network::add_to_linker::<_, HasView>(linker, view)?;
    bindings::sockets::tcp::add_to_linker::<_, HasView>(linker, view)?;
    bindings::sockets::tcp_create_socket::add_to_linker::<_, HasView>(linker, view)?;
    bindings::sockets::udp::add_to_linker::<_, HasView>(linker, view)?;
    bindings::sockets::udp_create_socket::add_to_linker::<_, HasView>(linker, view)?;
    bindings::sockets::ip_name_lookup::add_to_linker::<_, HasView>(linker, view)?;
    Ok(())
}

/// The interfaces that are wasmtime-wasi's as they are.
fn add_stock(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    io::error::add_to_linker::<_, HasTable>(linker, |guest| &mut guest.component().table)?;
    io::poll::add_to_linker::<_, HasTable>(linker, |guest| &mut guest.component().table)?;
    io::streams::add_to_linker::<_, HasTable>(linker, |guest| &mut guest.component().table)?;

    clocks::wall_clock::add_to_linker::<_, WasiClocks>(linker, clocks_view)?;
    clocks::monotonic_clock::add_to_linker::<_, WasiClocks>(linker, clocks_view)?;

    random::random::add_to_linker::<_, WasiRandom>(linker, |guest| &mut guest.component().random)?;
    random::insecure::add_to_linker::<_, WasiRandom>(linker, |guest| &mut guest.component().random)?;
    random::insecure_seed::add_to_linker::<_, WasiRandom>(linker, |guest| &mut guest.component().random)?;
    Ok(())
}

fn clocks_view(guest: &mut Guest) -> WasiClocksCtxView<'_> {
    let state = guest.component();
    WasiClocksCtxView { ctx: &mut state.clocks, table: &mut state.table }
}
