//! HTTP components: `wasi:http/incoming-handler` served on a port of the pod, and requests on their way out.
//!
//! In: a linked component, its process, a port. Out: [`Server`], which accepts connections of the pod's
//! network, gives each request an instance of its own for the time it takes, and ends gracefully.
//! `wasi:http` itself is wasmtime-wasi-http's; ours are the way in ([`server`], [`connection`], [`pool`],
//! [`request`]) and the way out ([`outgoing`], [`connector`], [`tls`]), both over `network` and never past it.
//! Does not schedule: every poll of guest code runs inside the container's meter.

mod body;
mod connection;
mod connector;
mod errors;
mod outgoing;
mod pool;
mod request;
mod server;
mod tls;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use wasmtime::component::Linker;
use wasmtime_wasi_http::p2::bindings::{LinkOptions, http};
use wasmtime_wasi_http::{WasiHttp, WasiHttpCtx, WasiHttpCtxView};

use crate::runtime::process::Process;
use crate::runtime::store::Guest;
use outgoing::PodHttp;

pub use server::Server;

/// `wasi:http` state of one store.
pub struct HttpState {
    ctx: WasiHttpCtx,
    hooks: PodHttp,
}

impl HttpState {
    /// State whose outgoing requests use the network of `process`.
    pub fn new(process: &Arc<Process>) -> Self {
        Self { ctx: WasiHttpCtx::new(), hooks: PodHttp::new(process.clone()) }
    }

    /// Shares one set of outgoing connections between the instances of a server.
    fn share(&mut self, hooks: PodHttp) {
        self.hooks = hooks;
    }
}

fn view(guest: &mut Guest) -> WasiHttpCtxView<'_> {
    let state = guest.component();
    WasiHttpCtxView { ctx: &mut state.http.ctx, hooks: &mut state.http.hooks, table: &mut state.table }
}

/// Defines `wasi:http`; the rest of the proxy world comes from [`super::wasi::p2::add_to_linker`]. Command
/// components get it too: requests out need no request in.
///
/// # Errors
/// Only when an interface is defined twice.
pub fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    let options = (&LinkOptions::default()).into();
    http::types::add_to_linker::<_, WasiHttp>(linker, &options, view)?;
    http::outgoing_handler::add_to_linker::<_, WasiHttp>(linker, view)?;
    Ok(())
}
