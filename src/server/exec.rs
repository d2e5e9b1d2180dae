//! `/exec`, `/attach` and `/run`: a program's streams over an upgraded connection, or its output as an answer.
//!
//! In: the names and options of a request. Out: an upgraded connection that [`super::streaming`] serves. A program that
//! cannot run is an error on the error stream, as from a kubelet: the upgrade itself has succeeded by then.

use axum::extract::{Path, RawQuery, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::NodeApi;
use super::channel::Outcome;
use super::error::ApiError;
use super::query::{self, RemoteOptions};
use super::remote::RemoteStreams;
use super::streaming::{StreamingError, remote_command};
use super::target::Target;
use crate::ids::ContainerId;
use crate::pod::run::{ExecSpec, Stdin, StdioSpec, Tty};
use crate::runtime::{ExecError, Session, WindowSize};

/// Bytes of output that `/run` answers with; CRI runtimes cut at the same.
const MAX_RUN_BYTES: u64 = 16 << 20;

/// The path of a request.
#[derive(Debug, Deserialize)]
pub(super) struct Names {
    namespace: String,
    pod: String,
    uid: Option<String>,
    container: String,
}

/// What is done with the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    /// Another program is run in it.
    Exec,
    /// The client is connected to its own program.
    Attach,
}

pub(super) async fn exec(
    State(api): State<NodeApi>,
    Path(names): Path<Names>,
    RawQuery(query): RawQuery,
    request: Request,
) -> Result<Response, StreamingError> {
    serve(api, names, query.as_deref(), request, Action::Exec).await
}

pub(super) async fn attach(
    State(api): State<NodeApi>,
    Path(names): Path<Names>,
    RawQuery(query): RawQuery,
    request: Request,
) -> Result<Response, StreamingError> {
    serve(api, names, query.as_deref(), request, Action::Attach).await
}

async fn serve(
    api: NodeApi,
    names: Names,
    query: Option<&str>,
    request: Request,
    action: Action,
) -> Result<Response, StreamingError> {
    let options = RemoteOptions::parse(query)?;
    let id = running(&api, &names, action)?;
    let settings = api.streaming;
    let asked = options.clone();
    remote_command(request, options, settings, async move || {
        let session = match action {
            Action::Exec => api.runtime.exec(&id, exec_spec(&asked)).await,
            Action::Attach => api.runtime.attach(&id).await,
        };
        streams(session, &asked, action)
    })
    .await
}

fn exec_spec(options: &RemoteOptions) -> ExecSpec {
    let stdio = StdioSpec {
        stdin: if options.stdin { Stdin::Once } else { Stdin::Closed },
        tty: if options.tty { Tty::Terminal } else { Tty::None },
    };
    ExecSpec { argv: options.command.clone(), stdio }
}

/// `/run`: the output of a program, standard output and error together.
pub(super) async fn run(
    State(api): State<NodeApi>,
    Path(names): Path<Names>,
    RawQuery(query): RawQuery,
) -> Result<Response, StreamingError> {
    let id = running(&api, &names, Action::Exec)?;
    let command = query::pairs(query.as_deref()).into_iter().find(|(name, _)| name == "cmd");
    // kubelet splits at every space, and knows no quotes here.
    let argv: Vec<String> = command.map_or(String::new(), |(_, value)| value).split(' ').map(str::to_owned).collect();
    let shown = argv.join(" ");
    let spec = ExecSpec { argv, stdio: StdioSpec { stdin: Stdin::Closed, tty: Tty::None } };
    let session = api.runtime.exec(&id, spec).await.map_err(|error| StreamingError::Run(describe(&error)))?;
    let waiter = session.waiter();
    let Session { stdout, stderr, .. } = session;
    let errors = async {
        match stderr {
            Some(stderr) => read_output(stderr).await,
            None => Vec::new(),
        }
    };
    let (mut output, errors) = tokio::join!(read_output(stdout), errors);
    let code = waiter.wait().await;
    if code != 0 {
        let errors = String::from_utf8_lossy(&errors);
        return Err(StreamingError::Run(format!("command '{shown}' exited with {code}: {errors}")));
    }
    output.extend_from_slice(&errors);
    // The kubelet calls it JSON whatever it is.
    Ok(([(CONTENT_TYPE, "application/json")], output).into_response())
}

/// All of a program's output, up to what is answered; the rest is read, so that the program can end, and dropped.
async fn read_output(mut from: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut output = Vec::new();
    // A pipe of this process breaks in no other way than by its end.
    let _ = (&mut from).take(MAX_RUN_BYTES).read_to_end(&mut output).await;
    let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
    output
}

/// The id of a container that runs now.
fn running(api: &NodeApi, names: &Names, action: Action) -> Result<ContainerId, StreamingError> {
    let not_found = || match action {
        Action::Exec => StreamingError::NoContainer { container: names.container.clone() },
        Action::Attach => StreamingError::NoContainerInPod {
            container: names.container.clone(),
            full_name: format!("{}_{}", names.pod, names.namespace),
        },
    };
    let target = Target::find(&api.status, &names.namespace, &names.pod, &names.container);
    let target = target.map_err(|error| match error {
        ApiError::NoPod { .. } => StreamingError::NoPod,
        _ => not_found(),
    })?;
    if names.uid.is_some() && names.uid != target.snapshot.pod.metadata.uid {
        return Err(not_found());
    }
    let status = target.status.as_ref();
    let runs = status.and_then(|status| status.state.as_ref()).is_some_and(|state| state.running.is_some());
    let id = status.filter(|_| runs).and_then(|status| status.container_id.as_deref());
    id.and_then(|id| id.parse().ok()).ok_or_else(not_found)
}

/// The streams the client asked for, of a session that may have failed.
fn streams(session: Result<Session, ExecError>, options: &RemoteOptions, action: Action) -> RemoteStreams {
    let session = match session {
        Ok(session) => session,
        Err(error) => {
            let what = match action {
                Action::Exec => "error executing command in container",
                Action::Attach => "error attaching to container",
            };
            let outcome = Outcome::Failed(format!("Internal error occurred: {what}: {}", describe(&error)));
            let outcome = Box::pin(std::future::ready(outcome));
            return RemoteStreams { stdin: None, stdout: None, stderr: None, resize: None, outcome };
        }
    };
    let (resizer, waiter) = (session.resizer(), session.waiter());
    let Session { stdin, stdout, stderr, .. } = session;
    let outcome = async move {
        let code = waiter.wait().await;
        // An attach succeeded, however the program ended that it watched.
        Outcome::Exited(if action == Action::Exec { code } else { 0 })
    };
    RemoteStreams {
        stdin: stdin.filter(|_| options.stdin).map(|stdin| Box::new(stdin) as _),
        stdout: options.stdout.then(|| Box::new(stdout) as _),
        stderr: stderr.filter(|_| options.stderr).map(|stderr| Box::new(stderr) as _),
        resize: Some(Box::new(move |size| {
            resizer.resize(WindowSize { columns: size.width, rows: size.height });
        })),
        outcome: Box::pin(outcome),
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
