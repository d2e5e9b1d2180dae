//! `GET /containerLogs/NAMESPACE/POD/CONTAINER`: what a container wrote, with the options of `v1.PodLogOptions`.
//!
//! Which attempt is meant follows the kubelet's `validateContainerLogStatus`: the running or ended one; while a
//! restart is awaited, the last one that ended.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::response::{IntoResponse, Response};
use k8s_openapi::api::core::v1::ContainerStatus;

use super::NodeApi;
use super::error::ApiError;
use super::query::LogQuery;
use super::target::Target;
use crate::logs::{LogOptions, StreamSelection};

pub(super) async fn read(
    State(api): State<NodeApi>,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let query = LogQuery::parse(query.as_deref())?;
    let target = Target::find(&api.status, &namespace, &pod, &container)?;
    let wanted = which(target.status.as_ref(), query.previous);
    let uid = target.uid()?;
    let attempts = api.logs.attempts(&target.pod, &uid, &target.container)?;
    let attempt = match wanted {
        Wanted::Newest => attempts.last(),
        Wanted::BeforeNewest => attempts.iter().rev().nth(1),
        Wanted::None => None,
    };
    let Some(&attempt) = attempt else { return Err(refusal(&target, query.previous)) };
    let since_seconds = query.since_seconds.map(|seconds| jiff::Timestamp::now() - Duration::from_secs(seconds));
    let options = LogOptions {
        follow: query.follow,
        tail_lines: query.tail_lines,
        since: query.since_time.or(since_seconds),
        timestamps: query.timestamps,
        limit_bytes: query.limit_bytes,
        streams: StreamSelection::All,
    };
    let path = api.logs.path(&target.pod, &uid, &target.container, attempt);
    let reader = api.logs.read(&path, options).await?;
    Ok(Body::from_stream(reader.into_stream()).into_response())
}

/// Which attempt of those on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Newest,
    BeforeNewest,
    None,
}

fn which(status: Option<&ContainerStatus>, previous: bool) -> Wanted {
    let Some(status) = status else { return Wanted::None };
    let state = status.state.as_ref();
    let has_run = state.is_some_and(|state| state.running.is_some() || state.terminated.is_some());
    let ended_before = status.last_state.as_ref().is_some_and(|state| state.terminated.is_some());
    match (previous, has_run, ended_before) {
        (true, true, true) => Wanted::BeforeNewest,
        (false, true, _) | (_, false, true) => Wanted::Newest,
        (true, true, false) | (_, false, false) => Wanted::None,
    }
}

fn refusal(target: &Target, previous: bool) -> ApiError {
    let (container, pod) = (target.container.clone(), target.pod.name.clone());
    if previous {
        return ApiError::NoPrevious { container, pod };
    }
    let waiting = target.status.as_ref().and_then(|status| status.state.as_ref()).and_then(|s| s.waiting.as_ref());
    let reason = waiting.and_then(|waiting| waiting.message.clone().or_else(|| waiting.reason.clone()));
    ApiError::Waiting { container, pod, reason: reason.unwrap_or_else(|| "ContainerCreating".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_attempt_meant_is_the_kubelets() {
        let end = serde_json::json!({"terminated": {"exitCode": 1}});
        let (running, waiting) = (serde_json::json!({"running": {}}), serde_json::json!({"waiting": {}}));
        let none = serde_json::json!({});
        for (case, state, last, previous, expected) in [
            ("a first run", &running, &none, false, Wanted::Newest),
            ("before a first run there is nothing", &running, &none, true, Wanted::None),
            ("a second run", &running, &end, false, Wanted::Newest),
            ("before a second run is the first", &running, &end, true, Wanted::BeforeNewest),
            ("in its back-off the last run is meant", &waiting, &end, false, Wanted::Newest),
            ("in its back-off the last run is also the previous one", &waiting, &end, true, Wanted::Newest),
            ("it never ran", &waiting, &none, false, Wanted::None),
        ] {
            let status: ContainerStatus = serde_json::from_value(serde_json::json!({
                "name": "a", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state, "lastState": last,
            }))
            .unwrap();
            assert_eq!(which(Some(&status), previous), expected, "{case}");
        }
    }
}
