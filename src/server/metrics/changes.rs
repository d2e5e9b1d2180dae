//! What is new in the status of a pod: that it runs, that a container started or ended.
//!
//! In: statuses one after the other. Out: what to count. Pure. One entry a pod that exists.

use std::collections::HashMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, PodStatus};
use tokio::time::Instant;

use crate::ids::PodUid;

/// Containers of a status with the kubelet's words for their kinds.
pub(super) fn containers_of(status: &PodStatus) -> impl Iterator<Item = (&ContainerStatus, &'static str)> {
    let kinds = [
        (&status.container_statuses, "container"),
        (&status.init_container_statuses, "init_container"),
        (&status.ephemeral_container_statuses, "ephemeral_container"),
    ];
    kinds.into_iter().flat_map(|(statuses, kind)| statuses.iter().flatten().map(move |status| (status, kind)))
}

/// CRI's words: a container that has not been made is `created` here as there.
pub(super) fn state_of(status: &ContainerStatus) -> &'static str {
    match &status.state {
        Some(state) if state.running.is_some() => "running",
        Some(state) if state.terminated.is_some() => "exited",
        _ => "created",
    }
}

/// The newest end of a container: one that waits to run again tells it as its last state.
fn end_of(status: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    let now = status.state.as_ref().and_then(|state| state.terminated.as_ref());
    now.or_else(|| status.last_state.as_ref().and_then(|state| state.terminated.as_ref()))
}

/// What is new.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct News {
    /// The pod runs, so long after it was seen first.
    pub(super) pod: Option<Duration>,
    /// Containers that started, by kind.
    pub(super) started: Vec<&'static str>,
    /// Containers that ended.
    pub(super) ended: Vec<Ended>,
}

/// A container that ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) kind: &'static str,
    pub(super) exit_code: i32,
    pub(super) reason: String,
}

/// What is known of pods, to see what is new.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pods: HashMap<PodUid, SeenPod>,
}

#[derive(Debug)]
struct SeenPod {
    first: Instant,
    has_run: bool,
    containers: HashMap<String, SeenContainer>,
}

/// The ids under which a container started and ended last.
#[derive(Debug, Default)]
struct SeenContainer {
    started: Option<String>,
    ended: Option<String>,
}

impl Seen {
    pub(super) fn observe(&mut self, uid: &PodUid, status: &PodStatus, now: Instant) -> News {
        let pod = self.pods.entry(uid.clone()).or_insert_with(|| SeenPod {
            first: now,
            has_run: false,
            containers: HashMap::new(),
        });
        let mut news = News::default();
        for (container, kind) in containers_of(status) {
            let id = container.container_id.as_ref().filter(|_| state_of(container) != "created");
            let end = end_of(container).filter(|end| end.container_id.is_some());
            if id.is_none() && end.is_none() {
                continue;
            }
            let known = pod.containers.entry(container.name.clone()).or_default();
            if id.is_some() && known.started.as_ref() != id {
                known.started = id.cloned();
                news.started.push(kind);
            }
            if let Some(end) = end.filter(|end| end.container_id != known.ended) {
                known.ended.clone_from(&end.container_id);
                let reason = end.reason.clone().unwrap_or_default();
                news.ended.push(Ended { kind, exit_code: end.exit_code, reason });
            }
        }
        if !pod.has_run && matches!(status.phase.as_deref(), Some("Running" | "Succeeded")) {
            pod.has_run = true;
            news.pod = Some(now.saturating_duration_since(pod.first));
        }
        news
    }

    pub(super) fn forget(&mut self, uid: &PodUid) {
        self.pods.remove(uid);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn status(phase: &str, id: Option<&str>, state: &Value, last: &Value) -> PodStatus {
        serde_json::from_value(json!({"phase": phase, "containerStatuses": [{"name": "a", "image": "", "imageID": "",
            "ready": false, "restartCount": 0, "containerID": id, "state": state, "lastState": last}]}))
        .unwrap()
    }

    fn end(id: &str, exit_code: i32) -> Value {
        json!({"terminated": {"containerID": id, "exitCode": exit_code, "reason": "Error"}})
    }

    #[test]
    fn a_start_and_an_end_are_counted_once() {
        let (uid, start) = (PodUid::new("u").unwrap(), Instant::now());
        let (none, runs, waits) = (json!({}), json!({"running": {}}), json!({"waiting": {}}));
        let mut seen = Seen::default();
        let mut look = |seconds, phase: &str, id: Option<&str>, state: &Value, last: &Value| {
            let news = seen.observe(&uid, &status(phase, id, state, last), start + Duration::from_secs(seconds));
            let ends: Vec<i32> = news.ended.iter().map(|end| end.exit_code).collect();
            (news.pod.map(|after| after.as_secs()), news.started.len(), ends)
        };
        for (case, (seconds, phase, id, state, last), expected) in [
            ("it waits", (0, "Pending", None, &waits, &none), (None, 0, vec![])),
            ("it starts", (3, "Running", Some("1"), &runs, &none), (Some(3), 1, vec![])),
            ("nothing new", (4, "Running", Some("1"), &runs, &none), (None, 0, vec![])),
            ("it ends", (5, "Running", Some("1"), &end("1", 7), &none), (None, 0, vec![7])),
            ("it waits to run again", (6, "Running", Some("1"), &waits, &end("1", 7)), (None, 0, vec![])),
            ("it runs again", (7, "Running", Some("2"), &runs, &end("1", 7)), (None, 1, vec![])),
            ("an end that is seen late", (8, "Running", Some("3"), &runs, &end("2", 9)), (None, 1, vec![9])),
            ("both at once", (9, "Failed", Some("4"), &end("4", 1), &end("3", 2)), (None, 1, vec![1])),
        ] {
            assert_eq!(look(seconds, phase, id, state, last), expected, "{case}");
        }
        seen.forget(&uid);
        assert!(seen.pods.is_empty());
    }
}
