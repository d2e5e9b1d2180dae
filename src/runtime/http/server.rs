//! The server of one HTTP component: listen, accept, drain.
//!
//! In: a pre-linked component, its process and a port. Out: an exit status when it was drained. Bounded:
//! connections by [`MAX_CONNECTIONS`], requests at once by [`MAX_REQUESTS`]; beyond them clients wait in the
//! listener's backlog, so back-pressure reaches them and memory does not grow.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wasmtime::component::InstancePre;
use wasmtime_wasi_http::p2::bindings::ProxyPre;

use super::connection;
use super::pool::Pool;
use crate::errno::Errno;
use crate::network::{Family, TcpOption, TcpSocket};
use crate::runtime::engine::GuestEngine;
use crate::runtime::error::StartError;
use crate::runtime::limits::OutOfMemory;
use crate::runtime::process::{ExitStatus, Process, Signal};
use crate::runtime::store::Guest;

/// Connections at once; each costs a few tens of kilobytes of buffers at most.
const MAX_CONNECTIONS: usize = 1024;
/// Requests at once, each in an instance with a stack and a memory of its own.
const MAX_REQUESTS: usize = 128;
/// Connections that wait in the kernel or the loopback while all are in use.
const BACKLOG: u32 = 512;
/// How often unused instances and finished tasks are looked for.
const REAP_INTERVAL: Duration = Duration::from_secs(5);
/// Pause after an accept that failed for want of something that time may bring back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What connections and requests of one server share.
pub(super) struct Shared {
    pub(super) pool: Pool,
    pub(super) in_flight: Arc<Semaphore>,
    /// Cancelled once: no new connections, no further requests on open ones.
    pub(super) drain: CancellationToken,
    /// What a request without a host was sent to.
    pub(super) authority: HeaderValue,
    tasks: Mutex<Tasks>,
    /// Tells when no task is left.
    running: TaskTracker,
}

/// Every task of the server, so that killing it ends them all.
#[derive(Default)]
struct Tasks {
    set: JoinSet<()>,
    killed: bool,
}

impl Shared {
    /// Starts a task that ends with the server at the latest. Its time is the container's, HTTP included.
    pub(super) fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        let future = self.running.track_future(self.pool.process().meter(future));
        let mut tasks = self.tasks.lock();
        // Two for one: a busy server must not keep what every task of the last seconds stood on.
        (0..2).map_while(|_| tasks.set.try_join_next()).for_each(|done| note_end(&done));
        let handle = tasks.set.spawn(future);
        if tasks.killed {
            // Started by a task that did not know yet.
            handle.abort();
        }
        handle
    }

    fn kill(&self) {
        let mut tasks = self.tasks.lock();
        tasks.killed = true;
        tasks.set.abort_all();
        drop(tasks);
        self.pool.clear();
    }

    /// A line for the container's standard error. Waits while its log is behind, as the guest would.
    pub(super) async fn report(&self, message: &str) {
        let Ok(stderr) = self.pool.process().fds().get(2) else { return };
        let line = format!("{}\n", bounded(message.trim_end()));
        let mut rest = line.as_bytes();
        while !rest.is_empty() {
            match stderr.write(rest).await {
                Ok(written) => rest = &rest[written..],
                Err(_) => return,
            }
        }
    }

    /// Forgets tasks that are done and that no new one has replaced.
    fn reap(&self) {
        let mut tasks = self.tasks.lock();
        while let Some(done) = tasks.set.try_join_next() {
            note_end(&done);
        }
    }
}

/// A panic of a task was its request's alone, and is said here.
fn note_end(done: &Result<(), JoinError>) {
    if let Err(error) = done
        && error.is_panic()
    {
        tracing::error!(err = %error, "Task of an HTTP component panicked");
    }
}

/// At most 4096 bytes of `message`: a backtrace can be as long as a hostile guest likes.
fn bounded(message: &str) -> &str {
    let mut end = message.len().min(4096);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    &message[..end]
}

/// Ends every task when the server's future is dropped, which is how a container is killed.
struct KillOnDrop(Arc<Shared>);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        self.0.kill();
    }
}

/// An HTTP component whose listener is bound.
pub struct Server {
    listener: Arc<TcpSocket>,
    shared: Arc<Shared>,
}

impl Server {
    /// Listens on `port` of all the pod's addresses and makes the first instance, so that a component that
    /// cannot start fails here. Runs guest code, so the caller meters it.
    ///
    /// # Errors
    /// The port is taken, the component exports no handler, or its first instance trapped.
    pub async fn bind(
        engine: &GuestEngine,
        process: &Arc<Process>,
        pre: InstancePre<Guest>,
        port: u16,
    ) -> Result<Self, StartError> {
        let pre = ProxyPre::new(pre).map_err(|error| start_error(process, &error))?;
        let listener = listen(process, port).map_err(|errno| StartError::Listen { port, errno })?;
        let pool = Pool::new(engine.clone(), process.clone(), pre);
        let first = pool.first().await.map_err(|error| start_error(process, &error))?;
        pool.give_back(first);
        let authority = HeaderValue::from_str(&format!("localhost:{port}")).expect("a port is visible ASCII");
        let shared = Shared {
            pool,
            in_flight: Arc::new(Semaphore::new(MAX_REQUESTS)),
            drain: CancellationToken::new(),
            authority,
            tasks: Mutex::default(),
            running: TaskTracker::new(),
        };
        Ok(Self { listener, shared: Arc::new(shared) })
    }

    /// Serves until the process is asked to drain, then finishes what is in flight. Dropping the future kills.
    pub async fn run(self) -> ExitStatus {
        let Self { listener, shared } = self;
        let kill = KillOnDrop(shared.clone());
        let status = tokio::select! {
            // Whatever was accepted is a task of its own, so nothing is lost when accepting is cancelled.
            status = accept_loop(&listener, &shared) => status,
            () = shared.pool.process().draining() => ExitStatus::Signaled(Signal::TERM),
            () = reap_loop(&shared) => unreachable!("reaping never ends"),
        };
        // Who is in the backlog was told that the connection is made.
        while let Ok(socket) = listener.try_accept() {
            shared.spawn(connection::serve(shared.clone(), socket.into_stream()));
        }
        drop(listener);
        shared.drain.cancel();
        shared.running.close();
        shared.running.wait().await;
        drop(kill);
        status
    }
}

fn start_error(process: &Process, error: &wasmtime::Error) -> StartError {
    let program = process.argv().first().cloned().unwrap_or_default();
    match process.container().charge().limit() {
        Some(limit) if error.is::<OutOfMemory>() => StartError::OutOfMemory { program, limit },
        _ => StartError::Instantiate { program, reason: format!("{error:#}") },
    }
}

fn listen(process: &Process, port: u16) -> Result<Arc<TcpSocket>, Errno> {
    let container = process.container();
    let network = container.network();
    // The one for IPv6 takes connections over IPv4, too.
    let v6 = network.ips().iter().any(IpAddr::is_ipv6);
    let (family, any) = if v6 {
        (Family::V6, IpAddr::V6(Ipv6Addr::UNSPECIFIED))
    } else {
        (Family::V4, IpAddr::V4(Ipv4Addr::UNSPECIFIED))
    };
    let socket = network.tcp_socket(container.owner(), family)?;
    if v6 {
        socket.set_option(TcpOption::V6Only(false))?;
    }
    socket.bind(SocketAddr::new(any, port))?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

async fn reap_loop(shared: &Shared) {
    let mut interval = tokio::time::interval(REAP_INTERVAL);
    loop {
        interval.tick().await;
        shared.reap();
        shared.pool.reap();
    }
}

/// Accepts until the listener is gone, which is the pod's end.
async fn accept_loop(listener: &Arc<TcpSocket>, shared: &Arc<Shared>) -> ExitStatus {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let permit = connections.clone().acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok(socket) => {
                let serving = connection::serve(shared.clone(), socket.into_stream());
                shared.spawn(async move {
                    serving.await;
                    drop(permit);
                });
            }
            Err(Errno::BadF | Errno::Inval | Errno::NetUnreach) => {
                return ExitStatus::HostFault { message: "the pod's network is gone".to_owned() };
            }
            // ECONNABORTED and its like are one client's; EMFILE and ENOMEM are over when a connection ends.
            Err(error) => {
                tracing::debug!(err = %error, "Accept of an HTTP component failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
