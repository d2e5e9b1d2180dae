//! The node's local API on a Unix socket: the kubelet's paths, for `wasilet ps`, `logs` and `exec`.
//!
//! In: HTTP requests of this machine's users who may open the socket (mode 0600: the node's own user and root).
//! Out: what `status`, `logs`, `events` and `runtime` know. One file per endpoint. Decides nothing about pods.

pub mod channel;
mod error;
mod events;
mod exec;
mod logs;
mod pods;
pub mod query;
mod remote;
mod target;

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use crate::events::Recorder;
use crate::logs::LogStore;
use crate::runtime::Runtime;
use crate::status::StatusCache;

pub use self::pods::PORTS_ANNOTATION;

/// What the endpoints read and act on. Cheap to clone.
#[derive(Clone)]
pub struct NodeApi {
    /// Pods and their statuses.
    pub status: StatusCache,
    /// Container logs.
    pub logs: LogStore,
    /// Events of the node.
    pub events: Recorder,
    /// Execs and attaches.
    pub runtime: Arc<Runtime>,
}

/// Why the socket could not be served.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// It cannot be made.
    #[error("the node's socket {} cannot be made", path.display())]
    Bind {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A socket that is bound and not yet served.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
}

impl Server {
    /// Binds the socket. A leftover of a node that was killed is replaced: the caller holds the root
    /// directory's lock, so no other node can be serving there.
    ///
    /// # Errors
    /// [`ServerError::Bind`], such as for a path longer than the kernel's 107 bytes.
    pub fn bind(path: &Path) -> Result<Self, ServerError> {
        let failed = |source| ServerError::Bind { path: path.to_owned(), source };
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        // Whoever reaches the socket may exec in every pod.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Serves until `stop`; requests under way are dropped then, as their pods are.
    pub async fn serve(self, api: NodeApi, stop: CancellationToken) {
        let serving = axum::serve(self.listener, router(api)).into_future();
        tokio::select! {
            // Never ends by itself but for an error of accept, which axum has already waited out.
            result = serving => if let Err(error) = result {
                tracing::error!(err = %error, "Stopped serving the local API");
            },
            () = stop.cancelled() => {}
        }
        // The next node replaces a socket that is left over; removing it only spares clients the wait.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn router(api: NodeApi) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/pods", get(pods::list))
        .route("/events", get(events::list))
        .route("/containerLogs/{namespace}/{pod}/{container}", get(logs::read))
        .route("/exec/{namespace}/{pod}/{container}", get(exec::exec))
        .route("/attach/{namespace}/{pod}/{container}", get(exec::attach))
        .with_state(api)
}
