//! `POST /checkpoint/NAMESPACE/POD/CONTAINER`: refused, in words that say why.
//!
//! Whether pod and container exist is checked first, as at the kubelet.

use axum::extract::{Path, State};

use super::NodeApi;
use super::error::ApiError;
use super::target::Target;

pub(super) async fn refuse(
    State(api): State<NodeApi>,
    Path((namespace, pod, container)): Path<(String, String, String)>,
) -> Result<(), ApiError> {
    let target = Target::find(&api.status, &namespace, &pod, &container)?;
    Err(ApiError::NoCheckpoint { pod: target.pod, container: target.container })
}
