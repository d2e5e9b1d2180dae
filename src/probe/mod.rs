//! Asks containers how they are, and runs their lifecycle hooks.
//!
//! In: a [`Handler`] and the attempt it is about. Out: its [`Outcome`]. Pods of the node are reached in process, what a
//! handler's `host` names as the node reaches it. Knows no thresholds, no periods and no Events: `pod::probe` decides
//! those, the worker drives them.

mod exec;
mod grpc;
mod http;
mod metrics;
#[cfg(test)]
mod tests;

pub use metrics::{ProbeMetrics, ProbeSeries};

use std::net::SocketAddr;
use std::time::Duration;

use crate::errno::Errno;
use crate::ids::{ContainerId, PodUid};
use crate::network::TcpStream;
use crate::pod::probe::{Address, Handler, Host, Outcome};
use crate::runtime::Runtime;

/// Most of what a container says that is kept: the kubelet's `maxReadLength`.
const MAX_OUTPUT_BYTES: usize = 10 * 1024;

/// The attempt that is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its pod.
    pub uid: PodUid,
    /// Which attempt.
    pub id: ContainerId,
    /// What for.
    pub purpose: Purpose,
}

/// Why a handler is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To see how the container is.
    Probe,
    /// As a lifecycle hook: any answer will do.
    Hook,
}

impl Purpose {
    /// The kubelet's, of the version whose ways these are.
    const fn user_agent(self) -> &'static str {
        match self {
            Self::Probe => "kube-probe/1.36",
            Self::Hook => "kube-lifecycle/1.36",
        }
    }
}

/// Runs one handler, for at most `timeout`. Cancel-safe: a probe's program ends with it, a hook's goes on.
pub async fn ask(runtime: &Runtime, target: &Target, handler: &Handler, timeout: Option<Duration>) -> Outcome {
    match handler {
        Handler::Exec(command) => exec::run(runtime, target, command, timeout).await,
        Handler::Http(request) => {
            let asked = async { http::ask(runtime, target, request).await };
            let late = || Outcome::Failure(http::timed_out(request));
            limited(asked, timeout).await.unwrap_or_else(late)
        }
        Handler::Tcp(address) => match limited(dial(runtime, target, address), timeout).await {
            Some(Ok(_)) => Outcome::Success,
            Some(Err(failure)) => Outcome::Failure(failure.to_string()),
            None => Outcome::Failure(format!("dial tcp {address}: i/o timeout")),
        },
        Handler::Grpc { address, service } => {
            let timeout = timeout.unwrap_or(Duration::from_secs(1));
            grpc::check(runtime, target, address, service, timeout).await
        }
        Handler::Sleep(time) => {
            tokio::time::sleep(*time).await;
            Outcome::Success
        }
    }
}

/// `None` when the time is over.
async fn limited<T>(work: impl Future<Output = T>, timeout: Option<Duration>) -> Option<T> {
    match timeout {
        Some(timeout) => tokio::time::timeout(timeout, work).await.ok(),
        None => Some(work.await),
    }
}

/// Why nobody was reached, as Go's dialer says it.
#[derive(Debug, thiserror::Error)]
enum DialError {
    #[error("dial tcp: lookup {host}: no such host")]
    NoSuchHost { host: String },
    #[error("dial tcp {address}: connect: {}", strerror(*.errno))]
    Connect { address: String, errno: Errno },
}

async fn dial(runtime: &Runtime, target: &Target, address: &Address) -> Result<TcpStream, DialError> {
    let failed = |errno| DialError::Connect { address: address.to_string(), errno };
    let name = match &address.host {
        Host::Pod(ip) => return runtime.dial(&target.uid, SocketAddr::new(*ip, address.port)).await.map_err(failed),
        Host::Named(name) => name,
    };
    let found = tokio::net::lookup_host((name.as_str(), address.port)).await;
    let found = found.map_err(|_| DialError::NoSuchHost { host: name.clone() })?;
    let mut last = DialError::NoSuchHost { host: name.clone() };
    for to in found {
        match runtime.dial_from_node(to).await {
            Ok(stream) => return Ok(stream),
            Err(errno) => last = DialError::Connect { address: to.to_string(), errno },
        }
    }
    Err(last)
}

/// An error of the kernel in Go's words, which are those of strerror(3) in small letters.
fn strerror(errno: Errno) -> String {
    let text = std::io::Error::from_raw_os_error(errno.raw()).to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}
