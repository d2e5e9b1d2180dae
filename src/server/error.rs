//! Answers that are errors: a status code and a sentence, as the kubelet's text bodies.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::query::QueryError;

/// Why a request is refused; its text is what the user reads.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// No such pod.
    #[error("pods \"{namespace}/{pod}\" not found")]
    NoPod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        pod: String,
    },
    /// No such container in the pod.
    #[error("container \"{container}\" not found in pod \"{pod}\": it has {}", available.join(", "))]
    NoContainer {
        /// As asked for.
        container: String,
        /// The pod.
        pod: String,
        /// Those it has.
        available: Vec<String>,
    },
    /// The container has not run yet.
    #[error("container \"{container}\" in pod \"{pod}\" is waiting to start: {reason}")]
    Waiting {
        /// The container.
        container: String,
        /// The pod.
        pod: String,
        /// Its waiting reason and message.
        reason: String,
    },
    /// The container has ended without ever having run.
    #[error("container \"{container}\" in pod \"{pod}\" is terminated")]
    Terminated {
        /// The container.
        container: String,
        /// The pod.
        pod: String,
    },
    /// The node has not looked at the container yet.
    #[error("container \"{container}\" in pod \"{pod}\" is not available")]
    NotAvailable {
        /// The container.
        container: String,
        /// The pod.
        pod: String,
    },
    /// Memory of a guest is not written to disk.
    #[error(
        "checkpointing of {pod}/{container} failed (not implemented: this node's containers are WebAssembly, which it \
         cannot checkpoint)"
    )]
    NoCheckpoint {
        /// The pod.
        pod: crate::ids::PodRef,
        /// The container.
        container: String,
    },
    /// `previous` was asked for and there is none.
    #[error("previous terminated container \"{container}\" in pod \"{pod}\" not found")]
    NoPrevious {
        /// The container.
        container: String,
        /// The pod.
        pod: String,
    },
    /// A query that makes no sense.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// The log cannot be read.
    #[error(transparent)]
    Log(#[from] crate::logs::LogError),
}

impl ApiError {
    fn status(&self) -> StatusCode {
        match self {
            Self::NoPod { .. } | Self::NoContainer { .. } => StatusCode::NOT_FOUND,
            Self::Query(QueryError::Forbidden { .. }) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Waiting { .. }
            | Self::Terminated { .. }
            | Self::NotAvailable { .. }
            | Self::NoPrevious { .. }
            | Self::Query(_) => StatusCode::BAD_REQUEST,
            Self::NoCheckpoint { .. } => StatusCode::NOT_IMPLEMENTED,
            Self::Log(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status(), format!("{self}\n")).into_response()
    }
}
