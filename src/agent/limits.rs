//! Limits of the network that pods hit, as Events of the pods.
//!
//! In: what the network says, not too often, about a pod. Out: one Warning each. Decides nothing.

use k8s_openapi::api::core::v1::ObjectReference;

use crate::events::{EventType, Recorder};
use crate::network::LimitSink;

/// Where limits that were hit go.
pub(super) fn sink(events: Recorder) -> LimitSink {
    Box::new(move |hit| {
        let pod = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(hit.pod.namespace.clone()),
            name: Some(hit.pod.name.clone()),
            uid: Some(hit.uid.to_string()),
            ..ObjectReference::default()
        };
        events.event(&pod, EventType::Warning, hit.refusal.reason(), format!("Pod hit a limit: {}", hit.refusal));
    })
}
