//! Requests whose connection becomes streams: exec, attach and port-forward, over SPDY and over WebSocket.
//!
//! ```text
//!  exec, portforward (which pod, which program)
//!     |  a request and what to do with its streams
//!  streaming: negotiate (pure) -> upgrade -> spdy::connection | websocket channels | tunnel -> spdy::connection
//!     |  ClientStreams | pairs of streams
//!  remote::join, portforward::Forwarder
//! ```
//!
//! In: HTTP requests. Out: the routes, and what carries the streams of each protocol. Finds no pods, starts nothing.

mod error;
mod forward;
mod negotiate;
mod remote_command;
#[cfg(test)]
mod tests;
mod tunnel;
mod websocket;

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{CONNECTION, HeaderValue, UPGRADE};
use axum::http::{Response, StatusCode};
use axum::routing::{get, post};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::{NodeApi, exec, portforward};

pub(super) use error::StreamingError;
pub(super) use forward::{BoxDuplex, Dial, check_ports, port_forward};
pub(super) use remote_command::remote_command;

/// How streams are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamingSettings {
    /// `streamingConnectionIdleTimeout`: a connection on which nothing is said for this long is closed. Zero is never.
    pub idle_timeout: Duration,
    /// The feature gate `ExtendWebSocketsToKubelet`: v5 of exec and attach, and the port-forward tunnel, as WebSockets.
    pub extended_websockets: bool,
}

impl Default for StreamingSettings {
    fn default() -> Self {
        Self { idle_timeout: Duration::from_secs(4 * 3600), extended_websockets: true }
    }
}

/// How long a client may take to open the streams it asked for (`DefaultStreamCreationTimeout`).
const STREAM_CREATION_TIMEOUT: Duration = Duration::from_secs(30);

/// The kubelet's paths of exec, attach, run and port-forward. The connections must be served with upgrades.
pub(super) fn routes() -> Router<NodeApi> {
    Router::new()
        .route("/exec/{namespace}/{pod}/{container}", get(exec::exec).post(exec::exec))
        .route("/exec/{namespace}/{pod}/{uid}/{container}", get(exec::exec).post(exec::exec))
        .route("/attach/{namespace}/{pod}/{container}", get(exec::attach).post(exec::attach))
        .route("/attach/{namespace}/{pod}/{uid}/{container}", get(exec::attach).post(exec::attach))
        .route("/run/{namespace}/{pod}/{container}", post(exec::run))
        .route("/run/{namespace}/{pod}/{uid}/{container}", post(exec::run))
        .route("/portForward/{namespace}/{pod}", get(portforward::handle).post(portforward::handle))
        .route("/portForward/{namespace}/{pod}/{uid}", get(portforward::handle).post(portforward::handle))
}

/// Answers a request with an upgrade to SPDY and serves the connection when it comes.
fn upgrade_to_spdy<F>(
    mut request: Request,
    version: &'static str,
    serve: impl FnOnce(TokioIo<hyper::upgrade::Upgraded>) -> F + Send + 'static,
) -> Result<Response<Body>, StreamingError>
where
    F: Future<Output = ()> + Send + 'static,
{
    let upgraded = request.extensions_mut().remove::<OnUpgrade>().ok_or(StreamingError::NoHijack)?;
    tokio::spawn(async move {
        match upgraded.await {
            Ok(connection) => serve(TokioIo::new(connection)).await,
            Err(error) => tracing::debug!(err = %error, "Client left before its connection was upgraded"),
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(negotiate::SPDY));
    headers.insert(negotiate::STREAM_VERSION, HeaderValue::from_static(version));
    Ok(response)
}

/// Runs what a client asked for beside the driver of its connection. The driver ends last: when the client has gone, or
/// when `session` has dropped its streams and they were sent.
async fn run_beside(driver: impl Future<Output = ()>, session: impl Future<Output = ()>) {
    let session = async move {
        session.await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        // The client has gone: what it started is not kept waiting for it.
        () = driver => {}
        () = session => {}
    }
}
