//! `GET /pods`: every pod of the node with its status, as the kubelet's endpoint of that name.

use axum::Json;
use axum::extract::State;
use k8s_openapi::List;
use k8s_openapi::api::core::v1::Pod;

use super::NodeApi;
use crate::ids::PodUid;

/// Annotation on the pods shown here: ports that the kernel refused and where they are instead, `80->8080,443->8443`.
pub const PORTS_ANNOTATION: &str = "wasilet.dev/ports";

pub(super) async fn list(State(api): State<NodeApi>) -> Json<List<Pod>> {
    let items = api.status.list().iter().map(|snapshot| shown(&api, snapshot.to_pod())).collect();
    Json(List { items, ..List::default() })
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
