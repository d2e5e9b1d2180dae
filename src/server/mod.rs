//! The kubelet's API: over HTTPS for the cluster, and on a Unix socket for `wasilet ps`, `logs` and `exec`.
//!
//! In: HTTP requests. Out: what `status`, `logs`, `events` and `runtime` know, and streams of programs. One file per
//! endpoint. Decides nothing about pods.
//!
//! ```text
//!  Unix socket (mode 0600: its owner and root) ────────────────┐
//!  HTTPS 10250 ─▶ count ─▶ auth (401, 403) ────────────────────┼─▶ router ─▶ endpoint
//!  127.0.0.1:10248 ─▶ /healthz alone                           └ streaming: exec, attach, run, portForward
//! ```

mod activity;
pub mod auth;
pub mod channel;
mod checkpoint;
mod configz;
mod disabled;
mod error;
mod events;
mod exec;
mod healthz;
mod https;
mod inbox;
mod logs;
mod metrics;
mod pods;
mod portforward;
pub mod query;
mod remote;
pub mod spdy;
mod stats;
mod streaming;
mod system_logs;
mod target;
#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::routing::{get, post};
use axum::{Router, middleware};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use crate::config::NodeConfig;
use crate::events::Recorder;
use crate::image::ImageService;
use crate::logs::LogStore;
use crate::runtime::Runtime;
use crate::status::StatusCache;
use crate::volume::VolumeManager;

pub use self::auth::{Auth, AuthError};
pub use self::healthz::{HealthzServer, SyncLoopHealth};
pub use self::https::HttpsServer;
pub use self::metrics::{MetricSources, ServerMetrics};
pub use self::pods::PORTS_ANNOTATION;
pub use self::stats::{Scope, StatsProvider, Summary};
pub use self::streaming::StreamingSettings;

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
    /// How their streams, and those of port-forward, are kept.
    pub streaming: StreamingSettings,
    /// What is used.
    pub stats: Arc<StatsProvider>,
    /// What happened.
    pub metrics: Arc<ServerMetrics>,
    /// Whether the node's loop turns.
    pub health: SyncLoopHealth,
    /// The settings the node runs with.
    pub config: Arc<NodeConfig>,
}

/// What a [`NodeApi`] is made of.
pub struct NodeApiParts {
    /// The node's name.
    pub node_name: String,
    /// The node's root directory, whose file system is the node's.
    pub root_dir: PathBuf,
    /// The settings the node runs with.
    pub config: NodeConfig,
    /// Pods and their statuses.
    pub status: StatusCache,
    /// Container logs.
    pub logs: LogStore,
    /// Events of the node.
    pub events: Recorder,
    /// The runtime.
    pub runtime: Arc<Runtime>,
    /// The image store.
    pub images: Arc<ImageService>,
    /// Volumes.
    pub volumes: VolumeManager,
    /// What other rooms count.
    pub metrics: MetricSources,
}

impl NodeApi {
    /// Over the node's parts. Figures are fresh while [`Self::run`] runs.
    #[must_use]
    pub fn new(parts: NodeApiParts) -> Self {
        let NodeApiParts { node_name, root_dir, config, status, logs, events, runtime, images, volumes, metrics } =
            parts;
        let stats = StatsProvider::new(stats::StatsSources {
            node_name: node_name.clone(),
            root_dir,
            status: status.clone(),
            runtime: runtime.clone(),
            images,
            logs: logs.clone(),
            volumes,
        });
        let metrics = ServerMetrics::new(&node_name, runtime.metrics(), metrics, stats.process());
        let streaming = StreamingSettings {
            idle_timeout: config.server.streaming_idle_timeout,
            extended_websockets: config.feature_gates.get("ExtendWebSocketsToKubelet").copied().unwrap_or(true),
        };
        Self {
            status,
            logs,
            events,
            runtime,
            streaming,
            stats: Arc::new(stats),
            metrics: Arc::new(metrics),
            health: SyncLoopHealth::default(),
            config: Arc::new(config),
        }
    }

    /// Samples what is used and counts what happens, until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        tokio::join!(self.stats.run(stop.clone()), self.metrics.follow(&self.status, stop));
    }
}

/// Why the API could not be served.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The socket cannot be made.
    #[error("the node's socket {} cannot be made", path.display())]
    Bind {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A port cannot be listened on.
    #[error("cannot listen on {address}: {fix}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What to do.
        fix: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// TLS cannot be had as configured.
    #[error("the kubelet API's TLS settings cannot be used")]
    Tls(#[source] rustls::Error),
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
        let serving = axum::serve(self.listener, local_router(api)).into_future();
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

/// The Unix socket's: everything, since whoever can open it owns the node; no layer asks who it is.
fn local_router(api: NodeApi) -> Router {
    routes(&api).merge(debugging_routes(&api)).route("/events", get(events::list)).with_state(api)
}

/// HTTPS's: everything but what the administrator turned off, behind authentication and authorization. The layers
/// are around paths that do not exist too: strangers learn nothing.
fn https_router(api: NodeApi, auth: Arc<Auth>) -> Router {
    let debugging = if api.config.server.debugging_handlers { debugging_routes(&api) } else { disabled::debugging() };
    routes(&api)
        .merge(debugging)
        .layer(middleware::from_fn_with_state(auth, auth::check))
        .layer(middleware::from_fn_with_state(api.clone(), metrics::count))
        .with_state(api)
}

/// What is served in every case (the kubelet's `InstallAuthNotRequiredHandlers` and its like).
fn routes(api: &NodeApi) -> Router<NodeApi> {
    let summary = || get(stats::summary).post(stats::summary);
    Router::new()
        .merge(healthz::routes(api.health.clone()))
        .route("/pods", get(pods::list))
        .route("/pods/", get(pods::list))
        .route("/stats/summary", summary())
        .route("/stats/summary/", summary())
        .route("/metrics", get(metrics::node))
        .route("/metrics/resource", get(metrics::resource))
        .route("/metrics/cadvisor", get(metrics::cadvisor))
        .route("/metrics/probes", get(metrics::probes))
        .route("/configz", get(configz::show))
        .route("/checkpoint/{namespace}/{pod}/{container}", post(checkpoint::refuse))
}

/// What looks into running pods: off with `enableDebuggingHandlers: false`.
fn debugging_routes(api: &NodeApi) -> Router<NodeApi> {
    let system_logs = if api.config.server.system_log_handler {
        let path = "/logs/{*path}";
        Router::new()
            .route("/logs", get(system_logs::root))
            .route("/logs/", get(system_logs::root))
            .route(path, get(system_logs::file))
    } else {
        disabled::system_logs()
    };
    Router::new()
        .merge(system_logs)
        .route("/containerLogs/{namespace}/{pod}/{container}", get(logs::read))
        .route("/runningpods", get(pods::running))
        .route("/runningpods/", get(pods::running))
        .merge(disabled::never())
        .merge(streaming::routes())
}
