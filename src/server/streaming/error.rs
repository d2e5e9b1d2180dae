//! Why a streaming request is refused before its connection is upgraded, in the kubelet's words.
//!
//! In: what is wrong. Out: a status code and a sentence; kubectl shows it as `unable to upgrade connection: ...`.

use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};

use super::super::query::QueryError;

/// The header that lists what would have been understood.
pub(super) const ACCEPTED_VERSIONS: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");

/// Why there is no upgrade. Texts and codes are those of `pkg/kubelet/server/server.go` and `k8s.io/cri-streaming`.
#[derive(Debug, thiserror::Error)]
pub(in super::super) enum StreamingError {
    /// A query that makes no sense.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// A port-forward over WebSocket whose ports make no sense.
    #[error("{0}")]
    Ports(String),
    /// No pod of that name.
    #[error("pod does not exist")]
    NoPod,
    /// The pod of that name has another UID.
    #[error("pod not found")]
    OtherPod,
    /// The pod's sandbox is not there.
    #[error("pod not found ({full_name:?})")]
    NoSandbox {
        /// `NAME_NAMESPACE`.
        full_name: String,
    },
    /// No such container runs, for an exec.
    #[error("container not found ({container:?})")]
    NoContainer {
        /// As asked for.
        container: String,
    },
    /// No such container runs, for an attach.
    #[error("container {container} not found in pod {full_name}")]
    NoContainerInPod {
        /// As asked for.
        container: String,
        /// `NAME_NAMESPACE` of the pod.
        full_name: String,
    },
    /// A plain request.
    #[error("Upgrade request required")]
    NotUpgrade,
    /// An upgrade to something else.
    #[error("unable to upgrade: missing upgrade headers in request")]
    NotSpdy,
    /// A SPDY request that does not say what it speaks.
    #[error("unable to upgrade: header X-Stream-Protocol-Version does not exist in request")]
    NoVersion,
    /// None of the versions offered is known.
    #[error(
        "unable to upgrade: unable to negotiate protocol: client supports {offered:?}, server accepts {accepted:?}"
    )]
    NoCommonVersion {
        /// By the client.
        offered: Vec<String>,
        /// By this server.
        accepted: Vec<&'static str>,
    },
    /// None of the subprotocols offered is known.
    #[error("unable to upgrade: requested protocol(s) are not supported: {offered:?}; supports {accepted:?}")]
    NoCommonProtocol {
        /// By the client.
        offered: Vec<String>,
        /// By this server.
        accepted: Vec<&'static str>,
    },
    /// Not a WebSocket handshake after all.
    #[error(transparent)]
    WebSocket(#[from] axum::extract::ws::rejection::WebSocketUpgradeRejection),
    /// The connection cannot be taken over, such as one of HTTP/2.
    #[error("unable to upgrade: unable to hijack response")]
    NoHijack,
    /// A `/run` whose program could not run, or failed.
    #[error("{0}")]
    Run(String),
}

impl StreamingError {
    fn status(&self) -> StatusCode {
        match self {
            Self::Query(_) | Self::Ports(_) | Self::NotSpdy | Self::NoVersion => StatusCode::BAD_REQUEST,
            Self::NoPod | Self::OtherPod => StatusCode::NOT_FOUND,
            Self::NoCommonVersion { .. } | Self::NoCommonProtocol { .. } => StatusCode::FORBIDDEN,
            // The kubelet has no better word for these.
            Self::NoSandbox { .. }
            | Self::NoContainer { .. }
            | Self::NoContainerInPod { .. }
            | Self::NotUpgrade
            | Self::NoHijack
            | Self::Run(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::WebSocket(rejection) => rejection.status(),
        }
    }
}

impl IntoResponse for StreamingError {
    fn into_response(self) -> Response {
        let mut response = (self.status(), self.to_string()).into_response();
        if let Self::NoCommonVersion { accepted, .. } = &self {
            for version in accepted {
                response.headers_mut().append(ACCEPTED_VERSIONS, HeaderValue::from_static(version));
            }
        }
        response
    }
}
