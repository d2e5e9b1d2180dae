//! `/exec` and `/attach`: a program's streams over a WebSocket.
//!
//! In: the names and options of a request. Out: an upgraded connection that [`super::remote`] serves. A program that
//! cannot run is an error on the error channel, as from a kubelet: the upgrade itself has succeeded by then.

use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{Path, RawQuery, State};
use axum::response::Response;

use super::NodeApi;
use super::channel::{MAX_MESSAGE_BYTES, Outcome, PROTOCOLS};
use super::error::ApiError;
use super::query::RemoteOptions;
use super::remote::{self, RemoteStreams};
use super::target::Target;
use crate::ids::ContainerId;
use crate::pod::run::{ExecSpec, Stdin, StdioSpec, Tty};
use crate::runtime::{ExecError, Session, WindowSize};

type Names = Path<(String, String, String)>;

pub(super) async fn exec(
    State(api): State<NodeApi>,
    Path((namespace, pod, container)): Names,
    RawQuery(query): RawQuery,
    upgrade: WebSocketUpgrade,
) -> Result<Response, ApiError> {
    let options = RemoteOptions::parse(query.as_deref())?;
    let id = running(&api, &namespace, &pod, &container)?;
    let stdio = StdioSpec {
        stdin: if options.stdin { Stdin::Once } else { Stdin::Closed },
        tty: if options.tty { Tty::Terminal } else { Tty::None },
    };
    let spec = ExecSpec { argv: options.command.clone(), stdio };
    let upgrade = upgrade.protocols(PROTOCOLS).max_message_size(MAX_MESSAGE_BYTES);
    Ok(upgrade.on_upgrade(async move |socket| {
        let session = api.runtime.exec(&id, spec).await;
        remote::serve(socket, streams(session, &options)).await;
    }))
}

pub(super) async fn attach(
    State(api): State<NodeApi>,
    Path((namespace, pod, container)): Names,
    RawQuery(query): RawQuery,
    upgrade: WebSocketUpgrade,
) -> Result<Response, ApiError> {
    let options = RemoteOptions::parse(query.as_deref())?;
    let id = running(&api, &namespace, &pod, &container)?;
    let upgrade = upgrade.protocols(PROTOCOLS).max_message_size(MAX_MESSAGE_BYTES);
    Ok(upgrade.on_upgrade(async move |socket| {
        let session = api.runtime.attach(&id).await;
        remote::serve(socket, streams(session, &options)).await;
    }))
}

/// The id of a container that runs now.
fn running(api: &NodeApi, namespace: &str, pod: &str, container: &str) -> Result<ContainerId, ApiError> {
    let target = Target::find(&api.status, namespace, pod, container)?;
    let status = target.status.as_ref();
    let runs = status.and_then(|status| status.state.as_ref()).is_some_and(|state| state.running.is_some());
    let id = status.filter(|_| runs).and_then(|status| status.container_id.as_deref());
    id.and_then(|id| id.parse().ok()).ok_or(ApiError::NotRunning { container: target.container, pod: target.pod.name })
}

/// The streams the client asked for, of a session that may have failed.
fn streams(session: Result<Session, ExecError>, options: &RemoteOptions) -> RemoteStreams {
    let session = match session {
        Ok(session) => session,
        Err(error) => {
            let outcome = Outcome::Failed(describe(&error));
            let outcome = Box::pin(std::future::ready(outcome));
            return RemoteStreams { stdin: None, stdout: None, stderr: None, resize: None, outcome };
        }
    };
    let (resizer, waiter) = (session.resizer(), session.waiter());
    let Session { stdin, stdout, stderr, .. } = session;
    RemoteStreams {
        stdin: stdin.filter(|_| options.stdin).map(|stdin| Box::new(stdin) as _),
        stdout: options.stdout.then(|| Box::new(stdout) as _),
        stderr: stderr.filter(|_| options.stderr).map(|stderr| Box::new(stderr) as _),
        resize: Some(Box::new(move |size| {
            resizer.resize(WindowSize { columns: size.width, rows: size.height });
        })),
        outcome: Box::pin(async move { Outcome::Exited(waiter.wait().await) }),
    }
}

/// The error with its causes, as one line.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
