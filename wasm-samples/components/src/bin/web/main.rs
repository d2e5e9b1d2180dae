//! A small web server: HTTP/1.1 over WASI 0.2 sockets, serving the files of a directory.
//!
//! Usage: `web [--port PORT] [--root DIRECTORY]`, defaults `$PORT`, else 80, and `$WEB_ROOT`, else
//! `/usr/share/nginx/html`. GET and HEAD, keep-alive, an `index.html` per directory, an access log in the combined
//! format on stdout.
//!
//! One task per connection on one event loop over `wasi:io/poll`: there are no threads in WASI 0.2, and nothing
//! here ever asks twice for what is not ready. On SIGTERM (a byte from `/dev/signal`) it stops accepting, drops the
//! connections that wait for a next request, finishes the others, says "stopped" and exits 0.

mod connection;
mod files;
mod request;
mod response;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;
use std::{env, io};

use components::signal::{SIGTERM, Signals};
use components::tcp::{Connection, Listener};
use guest_support::args::Args;
use wstd::runtime::{Task, block_on, spawn};

/// More at once are told to come back later: each costs buffers, and a container's memory is bounded.
const MAX_CONNECTIONS: usize = 512;
/// A failing accept (say, too many open sockets) is tried again after this long.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// What all connections share.
struct Server {
    root: PathBuf,
    stopping: Cell<bool>,
    next_id: Cell<u64>,
    connections: RefCell<HashMap<u64, Open>>,
}

/// A connection that is being served.
struct Open {
    task: Task<()>,
    /// False while it waits for a next request: such a connection may be dropped at any time (RFC 9112, 9.5).
    busy: Rc<Cell<bool>>,
}

fn main() -> ExitCode {
    let mut args = Args::new("web [--port PORT] [--root DIRECTORY]");
    let port = args.option("--port").or_else(|| env::var("PORT").ok()?.parse().ok()).unwrap_or(80);
    let root = args.option("--root").or_else(|| env::var_os("WEB_ROOT").map(PathBuf::from));
    let root = root.unwrap_or_else(|| PathBuf::from("/usr/share/nginx/html"));
    match block_on(run(port, root)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("web: port {port}: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(port: u16, root: PathBuf) -> io::Result<()> {
    let mut signals = Signals::open();
    let server =
        Rc::new(Server { root, stopping: Cell::new(false), next_id: Cell::new(0), connections: RefCell::default() });
    let mut accepting = Vec::new();
    let v4 = Listener::bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port)).await?;
    accepting.push(spawn(accept_all(v4, Rc::clone(&server))));
    // A pod without IPv6 is an ordinary pod.
    match Listener::bind(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port)).await {
        Ok(v6) => accepting.push(spawn(accept_all(v6, Rc::clone(&server)))),
        Err(error) => eprintln!("web: no IPv6 on port {port}: {error}"),
    }
    eprintln!("web: serving {} on port {port}", server.root.display());
    while signals.next().await? != SIGTERM {}
    drop(accepting);
    drain(&server).await;
    eprintln!("web: stopped");
    Ok(())
}

async fn accept_all(listener: Listener, server: Rc<Server>) {
    loop {
        match listener.accept().await {
            Ok(connection) => server.serve(connection),
            Err(error) => {
                eprintln!("web: accept: {error}");
                wstd::task::sleep(ACCEPT_RETRY.into()).await;
            }
        }
    }
}

/// Ends the idle connections and waits for the others.
async fn drain(server: &Server) {
    server.stopping.set(true);
    let (busy, idle): (Vec<_>, Vec<_>) = server.connections.take().into_values().partition(|open| open.busy.get());
    eprintln!("web: stopping, {} requests to finish", busy.len());
    drop(idle);
    for open in busy {
        open.task.await;
    }
}

impl Server {
    fn serve(self: &Rc<Self>, connection: Connection) {
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        let busy = Rc::new(Cell::new(false));
        let overloaded = self.connections.borrow().len() >= MAX_CONNECTIONS;
        let (server, flag) = (Rc::clone(self), Rc::clone(&busy));
        let task = spawn(async move {
            // The peer's resets and half requests end its own connection and concern nobody else.
            let _ = connection::serve(&server, &connection, &flag, overloaded.into()).await;
            if let Some(done) = server.connections.borrow_mut().remove(&id) {
                done.task.detach();
            }
        });
        self.connections.borrow_mut().insert(id, Open { task, busy });
    }
}
