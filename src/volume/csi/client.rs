//! Calls to a driver, or to what registers it, over its Unix socket.
//!
//! In: a socket and a message. Out: the answer, or the driver's own words with their code, as gRPC in Go prints them. Each
//! call opens a connection, as the kubelet's: a driver that was restarted is found again.

use std::path::{Path, PathBuf};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::codegen::http::Uri;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Endpoint;
use tonic::{Code, Status};

use super::wire::{
    Capabilities, Empty, ExpandRequest, NodeInfo, PluginInfo, PublishRequest, RegistrationStatus, StageRequest,
    VolumePath, VolumeStats,
};

/// The kubelet's `csiTimeout`.
const CALL_TIMEOUT: Duration = Duration::from_secs(120);
/// Longest wait for an answer about registration: the plugin watcher's.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(10);

/// A call that failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("rpc error: code = {} desc = {message}", go_name(*code))]
pub(super) struct CallError {
    pub(super) code: Code,
    pub(super) message: String,
}

impl CallError {
    /// Whether the driver has done nothing and will not: a later call may begin anew.
    pub(super) fn is_final(&self) -> bool {
        !matches!(
            self.code,
            Code::Cancelled | Code::DeadlineExceeded | Code::Unavailable | Code::ResourceExhausted | Code::Aborted
        )
    }
}

impl From<Status> for CallError {
    fn from(status: Status) -> Self {
        Self { code: status.code(), message: status.message().to_owned() }
    }
}

fn go_name(code: Code) -> String {
    match code {
        Code::Cancelled => "Canceled".to_owned(),
        other => format!("{other:?}"),
    }
}

/// Opens the socket, whatever address is asked for.
struct Connector {
    path: PathBuf,
}

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<UnixStream>;
    type Error = std::io::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let path = self.path.clone();
        Box::pin(async move { UnixStream::connect(path).await.map(TokioIo::new) })
    }
}

/// An error and its causes, each once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// One socket.
#[derive(Debug, Clone)]
pub(super) struct Socket {
    path: PathBuf,
}

impl Socket {
    pub(super) fn new(path: &Path) -> Self {
        // Some drivers give their endpoint as a URL.
        let text = path.to_string_lossy();
        let path = text.strip_prefix("unix://").map_or_else(|| path.to_owned(), PathBuf::from);
        Self { path }
    }

    async fn call<Q, A>(&self, method: &'static str, request: Q, within: Duration) -> Result<A, CallError>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let answer = async {
            let connector = Connector { path: self.path.clone() };
            let channel = Endpoint::from_static("http://localhost").connect_with_connector(connector).await;
            let channel = channel.map_err(|error| Status::unavailable(chain(&error)))?;
            let mut grpc = tonic::client::Grpc::new(channel);
            grpc.ready().await.map_err(|error| Status::unavailable(chain(&error)))?;
            let codec = tonic_prost::ProstCodec::<Q, A>::default();
            grpc.unary(tonic::Request::new(request), PathAndQuery::from_static(method), codec).await
        };
        match tokio::time::timeout(within, answer).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(status.into()),
            Err(_) => Err(CallError { code: Code::DeadlineExceeded, message: "context deadline exceeded".to_owned() }),
        }
    }

    pub(super) async fn plugin_info(&self) -> Result<PluginInfo, CallError> {
        self.call("/pluginregistration.Registration/GetInfo", Empty {}, REGISTER_TIMEOUT).await
    }

    pub(super) async fn notify(&self, status: RegistrationStatus) -> Result<(), CallError> {
        let method = "/pluginregistration.Registration/NotifyRegistrationStatus";
        self.call::<_, Empty>(method, status, REGISTER_TIMEOUT).await.map(drop)
    }

    pub(super) async fn node_info(&self) -> Result<NodeInfo, CallError> {
        self.call("/csi.v1.Node/NodeGetInfo", Empty {}, CALL_TIMEOUT).await
    }

    pub(super) async fn capabilities(&self) -> Result<Vec<i32>, CallError> {
        let answer: Capabilities = self.call("/csi.v1.Node/NodeGetCapabilities", Empty {}, CALL_TIMEOUT).await?;
        Ok(answer.capabilities.into_iter().filter_map(|one| one.rpc).map(|rpc| rpc.kind).collect())
    }

    pub(super) async fn stage(&self, request: StageRequest) -> Result<(), CallError> {
        self.call::<_, Empty>("/csi.v1.Node/NodeStageVolume", request, CALL_TIMEOUT).await.map(drop)
    }

    pub(super) async fn unstage(&self, request: VolumePath) -> Result<(), CallError> {
        self.call::<_, Empty>("/csi.v1.Node/NodeUnstageVolume", request, CALL_TIMEOUT).await.map(drop)
    }

    pub(super) async fn publish(&self, request: PublishRequest) -> Result<(), CallError> {
        self.call::<_, Empty>("/csi.v1.Node/NodePublishVolume", request, CALL_TIMEOUT).await.map(drop)
    }

    pub(super) async fn unpublish(&self, request: VolumePath) -> Result<(), CallError> {
        self.call::<_, Empty>("/csi.v1.Node/NodeUnpublishVolume", request, CALL_TIMEOUT).await.map(drop)
    }

    pub(super) async fn expand(&self, request: ExpandRequest) -> Result<(), CallError> {
        self.call::<_, Empty>("/csi.v1.Node/NodeExpandVolume", request, CALL_TIMEOUT).await.map(drop)
    }

    pub(super) async fn stats(&self, request: VolumePath) -> Result<VolumeStats, CallError> {
        self.call("/csi.v1.Node/NodeGetVolumeStats", request, REGISTER_TIMEOUT).await
    }
}
