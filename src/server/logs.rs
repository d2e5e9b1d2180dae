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
use crate::logs::LogOptions;

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
    // So long ago that time cannot tell is everything.
    let since_seconds =
        query.since_seconds.and_then(|seconds| jiff::Timestamp::now().checked_sub(Duration::from_secs(seconds)).ok());
    let options = LogOptions {
        follow: query.follow,
        tail_lines: query.tail_lines,
        since: query.since_time.or(since_seconds),
        timestamps: query.timestamps,
        limit_bytes: query.limit_bytes,
        streams: query.stream,
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

/// Why there is no log, in the kubelet's words (`validateContainerLogStatus`).
fn refusal(target: &Target, previous: bool) -> ApiError {
    let (container, pod) = (target.container.clone(), target.pod.name.clone());
    let Some(status) = &target.status else { return ApiError::NotAvailable { container, pod } };
    if previous {
        return ApiError::NoPrevious { container, pod };
    }
    let state = status.state.as_ref();
    if state.is_some_and(|state| state.terminated.is_some()) {
        return ApiError::Terminated { container, pod };
    }
    let reason = match state.and_then(|state| state.waiting.as_ref()).and_then(|waiting| waiting.reason.as_deref()) {
        Some("ErrImagePull") => "image can't be pulled",
        Some("ImagePullBackOff") => "trying and failing to pull image",
        Some(reason) => reason,
        None => "ContainerCreating",
    };
    ApiError::Waiting { container, pod, reason: reason.to_owned() }
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

    #[test]
    fn why_there_is_no_log_is_said_in_the_kubelets_words() {
        let waiting = |reason| serde_json::json!({"waiting": {"reason": reason}});
        for (status, previous, expected) in [
            (None, false, "container \"a\" in pod \"web\" is not available"),
            (
                Some(waiting("ContainerCreating")),
                false,
                "container \"a\" in pod \"web\" is waiting to start: ContainerCreating",
            ),
            (
                Some(waiting("ErrImagePull")),
                false,
                "container \"a\" in pod \"web\" is waiting to start: image can't be pulled",
            ),
            (
                Some(waiting("ImagePullBackOff")),
                false,
                "container \"a\" in pod \"web\" is waiting to start: trying and failing to pull image",
            ),
            (
                Some(serde_json::json!({"terminated": {"exitCode": 128}})),
                false,
                "container \"a\" in pod \"web\" is terminated",
            ),
            (
                Some(serde_json::json!({"running": {}})),
                true,
                "previous terminated container \"a\" in pod \"web\" not found",
            ),
        ] {
            let status = status.map(|state| {
                serde_json::from_value(serde_json::json!({
                    "name": "a", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state,
                }))
                .unwrap()
            });
            let target = Target {
                snapshot: crate::status::PodSnapshot {
                    pod: std::sync::Arc::default(),
                    status: std::sync::Arc::default(),
                    version: 1,
                    stage: crate::status::Stage::Alive,
                },
                pod: crate::ids::PodRef { namespace: "ns".into(), name: "web".into() },
                container: "a".into(),
                status,
            };
            let refusal = refusal(&target, previous);
            assert_eq!(refusal.to_string(), expected);
            assert_eq!(refusal.into_response().status(), axum::http::StatusCode::BAD_REQUEST, "{expected}");
        }
    }
}
