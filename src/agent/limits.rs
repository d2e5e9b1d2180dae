//! Limits of the network that pods hit, as Events of the pods.
//!
//! In: what the network says, not too often, about a pod. Out: one Warning each. Decides nothing.

use crate::events::{EventType, Recorder, named_pod_reference};
use crate::network::LimitSink;

/// Where limits that were hit go.
pub(super) fn sink(events: Recorder) -> LimitSink {
    Box::new(move |hit| {
        let pod = named_pod_reference(hit.pod, hit.uid);
        events.event(&pod, EventType::Warning, hit.refusal.reason(), format!("Pod hit a limit: {}", hit.refusal));
    })
}
