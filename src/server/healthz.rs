//! `/healthz`: whether the node does its work, on the API itself and on a listener of its own.
//!
//! In: the time the node's loop was last entered. Out: `ok`, or which check failed, as `apiserver/pkg/server/healthz`.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Router, middleware};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::https::{PortSetting, listen};
use super::{NodeApi, ServerError, query};
use crate::config::ServerConfig;

/// A loop that was not entered for so long is stuck (the kubelet's bound).
const LOOP_PATIENCE: Duration = Duration::from_secs(300);

/// The checks, in the order they are shown.
const CHECKS: [&str; 3] = ["ping", "log", "syncloop"];

/// The heartbeat of the node's loop. Cheap to clone. Without a single beat nothing is expected, as at the kubelet.
#[derive(Debug, Clone, Default)]
pub struct SyncLoopHealth {
    entered: Arc<Mutex<Option<Instant>>>,
}

impl SyncLoopHealth {
    /// The loop is entered: call it at each turn, at least once a minute.
    pub fn beat(&self) {
        *self.entered.lock() = Some(Instant::now());
    }

    /// Whether the loop turns.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.entered.lock().is_none_or(|entered| entered.elapsed() <= LOOP_PATIENCE)
    }
}

/// The routes, for every listener.
pub(super) fn routes<S: Clone + Send + Sync + 'static>(health: SyncLoopHealth) -> Router<S> {
    Router::new()
        .route("/healthz", get(all))
        .route("/healthz/{check}", get(one))
        .layer(middleware::map_response(no_sniffing))
        .with_state(health)
}

async fn no_sniffing(mut response: Response) -> Response {
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, http::HeaderValue::from_static("nosniff"));
    response
}

fn passes(check: &str, health: &SyncLoopHealth) -> bool {
    // `log` is the kubelet's check that its log is flushed, which ours is with each line.
    check != "syncloop" || health.is_alive()
}

async fn all(State(health): State<SyncLoopHealth>, RawQuery(query): RawQuery) -> Response {
    let (status, text) = report(&query::pairs(query.as_deref()), &health);
    (status, [(CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response()
}

fn report(query: &[(String, String)], health: &SyncLoopHealth) -> (StatusCode, String) {
    let excluded = |check: &str| query.iter().any(|(name, value)| name == "exclude" && value == check);
    let mut text = String::new();
    let mut failed = false;
    for check in CHECKS {
        let _ = if excluded(check) {
            writeln!(text, "[+]{check} excluded: ok")
        } else if passes(check, health) {
            writeln!(text, "[+]{check} ok")
        } else {
            failed = true;
            writeln!(text, "[-]{check} failed: reason withheld")
        };
    }
    if failed {
        return (StatusCode::INTERNAL_SERVER_ERROR, text + "healthz check failed\n");
    }
    let verbose = query.iter().any(|(name, _)| name == "verbose");
    (StatusCode::OK, if verbose { text + "healthz check passed\n" } else { "ok".to_owned() })
}

async fn one(State(health): State<SyncLoopHealth>, Path(check): Path<String>) -> Response {
    if !CHECKS.contains(&check.as_str()) {
        return (StatusCode::NOT_FOUND, "404 page not found\n").into_response();
    }
    if passes(&check, &health) {
        return "ok".into_response();
    }
    let text = "internal server error: sync Loop took longer than expected\n";
    (StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
}

/// The listener of `healthzBindAddress:healthzPort`: nothing but `/healthz`, for nobody in particular.
#[derive(Debug)]
pub struct HealthzServer {
    listener: TcpListener,
}

impl HealthzServer {
    /// Binds it; `None` when `healthzPort` is 0.
    ///
    /// # Errors
    /// [`ServerError::Listen`] naming the port and what to do.
    pub async fn bind(config: &ServerConfig) -> Result<Option<Self>, ServerError> {
        let Some(port) = config.healthz_port else { return Ok(None) };
        let listener = listen(SocketAddr::new(config.healthz_address, port), PortSetting::Healthz).await?;
        Ok(Some(Self { listener }))
    }

    /// Serves until `stop`.
    pub async fn serve(self, api: NodeApi, stop: CancellationToken) {
        let serving = axum::serve(self.listener, routes::<()>(api.health)).into_future();
        tokio::select! {
            result = serving => if let Err(error) = result {
                tracing::error!(err = %error, "Failed to start healthz server");
            },
            () = stop.cancelled() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stuck_loop_is_told() {
        let health = SyncLoopHealth::default();
        let ask = |query| report(&query::pairs(Some(query)), &health);
        tokio::time::advance(LOOP_PATIENCE * 2).await;
        assert_eq!(ask(""), (StatusCode::OK, "ok".to_owned()), "before the first turn nothing is expected");
        health.beat();
        assert_eq!(ask("verbose").1, "[+]ping ok\n[+]log ok\n[+]syncloop ok\nhealthz check passed\n");
        tokio::time::advance(LOOP_PATIENCE + Duration::from_secs(1)).await;
        let (status, text) = ask("");
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(text, "[+]ping ok\n[+]log ok\n[-]syncloop failed: reason withheld\nhealthz check failed\n");
        assert_eq!(ask("exclude=syncloop").0, StatusCode::OK);
        health.beat();
        assert_eq!(ask("").0, StatusCode::OK);
    }
}
