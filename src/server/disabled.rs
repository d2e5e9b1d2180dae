//! Endpoints that are turned off: they say so, in the kubelet's words and with its 405.

use axum::Router;
use axum::http::StatusCode;
use axum::routing::any;

/// What looks into running pods, when `enableDebuggingHandlers` is false.
const DEBUGGING: [&str; 8] = [
    "/run/{*rest}",
    "/exec/{*rest}",
    "/attach/{*rest}",
    "/portForward/{*rest}",
    "/containerLogs/{*rest}",
    "/runningpods/",
    "/debug/pprof/{*rest}",
    "/logs/{*rest}",
];

fn refuse<S: Clone + Send + Sync + 'static>(router: Router<S>, path: &str, words: &'static str) -> Router<S> {
    router.route(path, any(move || async move { (StatusCode::METHOD_NOT_ALLOWED, words) }))
}

/// Those that this node never has: the profiles of a Go program.
pub(super) fn never<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let mut router = Router::new();
    for path in ["/debug/pprof/", "/debug/pprof/{*rest}"] {
        router = refuse(router, path, "profiling endpoint is disabled.\n");
    }
    refuse(router, "/debug/flags/v", "flags endpoint is disabled.\n")
}

/// The machine's own logs, when `enableSystemLogHandler` is false.
pub(super) fn system_logs<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let paths = ["/logs", "/logs/", "/logs/{*rest}"];
    paths.into_iter().fold(Router::new(), |router, path| refuse(router, path, "logs endpoint is disabled.\n"))
}

/// Those that an administrator turned off.
pub(super) fn debugging<S: Clone + Send + Sync + 'static>() -> Router<S> {
    DEBUGGING.into_iter().fold(Router::new(), |router, path| refuse(router, path, "Debug endpoints are disabled.\n"))
}
