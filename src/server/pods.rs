//! `GET /pods`: every pod of the node with its status; `GET /runningpods/`: those whose containers run now.

use axum::Json;
use axum::extract::State;
use k8s_openapi::List;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::NodeApi;
use crate::ids::PodUid;
use crate::pod::status::container_statuses;
use crate::status::PodSnapshot;

/// Annotation on the pods shown here: ports that the kernel refused and where they are instead, `80->8080,443->8443`.
pub const PORTS_ANNOTATION: &str = "wasilet.dev/ports";

pub(super) async fn list(State(api): State<NodeApi>) -> Json<List<Pod>> {
    let items = api.status.list().iter().map(|snapshot| shown(&api, snapshot.to_pod())).collect();
    Json(List { items, ..List::default() })
}

pub(super) async fn running(State(api): State<NodeApi>) -> Json<List<Pod>> {
    let items = api.status.list().iter().filter_map(runtime_view).collect();
    Json(List { items, ..List::default() })
}

/// The pod as its runtime knows it: names, and the containers that run (the kubelet's `Pod.ToAPIPod`).
fn runtime_view(snapshot: &PodSnapshot) -> Option<Pod> {
    let status = &snapshot.status;
    let running =
        container_statuses(status).filter(|status| status.state.as_ref().is_some_and(|state| state.running.is_some()));
    let containers: Vec<Container> = running
        .map(|status| Container {
            name: status.name.clone(),
            image: Some(status.image.clone()),
            ..Container::default()
        })
        .collect();
    if containers.is_empty() {
        return None;
    }
    let meta = &snapshot.pod.metadata;
    Some(Pod {
        metadata: ObjectMeta {
            name: meta.name.clone(),
            namespace: meta.namespace.clone(),
            uid: meta.uid.clone(),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec { containers, ..PodSpec::default() }),
        status: None,
    })
}

/// The pod with the ports it really has.
fn shown(api: &NodeApi, mut pod: Pod) -> Pod {
    let uid = pod.metadata.uid.clone().and_then(|uid| PodUid::new(uid).ok());
    let moved: Vec<String> = uid
        .map(|uid| api.runtime.remapped_ports(&uid))
        .unwrap_or_default()
        .iter()
        .map(|(asked, given)| format!("{asked}->{given}"))
        .collect();
    if !moved.is_empty() {
        pod.metadata.annotations.get_or_insert_default().insert(PORTS_ANNOTATION.to_owned(), moved.join(","));
    }
    pod
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    #[test]
    fn a_running_pod_shows_what_runs_and_no_more() {
        let state = |name: &str, state: &str| json!({"name": name, "image": "i", "imageID": "", "ready": true, "restartCount": 0, "state": {state: {"exitCode": 0}}});
        let snapshot = |state_of_a: &str| PodSnapshot {
            pod: Arc::new(
                serde_json::from_value(
                    json!({"metadata": {"name": "web", "namespace": "ns", "uid": "u", "labels": {"a": "b"}}}),
                )
                .unwrap(),
            ),
            status: Arc::new(
                serde_json::from_value(
                    json!({"containerStatuses": [state("a", state_of_a), state("b", "terminated")]}),
                )
                .unwrap(),
            ),
            version: 1,
            stage: crate::status::Stage::Alive,
        };
        let pod = runtime_view(&snapshot("running")).unwrap();
        assert_eq!(
            serde_json::to_value(&pod).unwrap(),
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": "ns", "uid": "u"},
                "spec": {"containers": [{"name": "a", "image": "i"}]}})
        );
        assert_eq!(runtime_view(&snapshot("waiting")), None);
    }
}
