//! Feeds what should run to the workers.
//!
//! In: the source's updates. Out: calls of the pool, and words for a person where a manifest is bad. Keeps the set of
//! wanted pods until the source has read everything once: what was taken over from the last run and is not wanted any more
//! ends then.

use std::collections::HashSet;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::ObjectReference;

use super::node::Node;
use crate::events::{EventType, node_reference, pod_reference};
use crate::ids::PodUid;
use crate::pod::admission::{self, NodePolicy};
use crate::source::{PodUpdate, StaticPod};
use crate::worker::Termination;

/// The pods that manifests want, as far as they are known.
#[derive(Debug, Default)]
pub struct Desired {
    wanted: HashSet<PodUid>,
    /// Files that could not be used: the pods of the last run that came from them stay.
    unreadable: HashSet<PathBuf>,
}

impl Desired {
    /// Carries out one update.
    pub async fn apply(&mut self, node: &Node, update: PodUpdate) {
        match update {
            PodUpdate::Add(pod) => self.want(node, *pod).await,
            PodUpdate::Update(pod) => self.want(node, *pod).await,
            PodUpdate::Remove { uid, .. } => {
                self.wanted.remove(&uid);
                node.workers().terminate(&uid, Termination::Graceful).await;
            }
            PodUpdate::Problem { manifest, message } => {
                self.unreadable.insert(manifest);
                tracing::error!("Could not use manifest {message}");
                let reference: ObjectReference = node_reference(node.name());
                node.events().event(&reference, EventType::Warning, "FailedManifest", message);
            }
            PodUpdate::Warning { message, .. } => tracing::warn!("{message}"),
            PodUpdate::Synced => {
                for (uid, manifest) in node.adopted() {
                    if manifest.as_ref().is_some_and(|manifest| self.unreadable.contains(manifest)) {
                        self.wanted.insert(uid.clone());
                    }
                }
                node.workers().retain(&self.wanted).await;
            }
        }
    }

    async fn want(&mut self, node: &Node, pod: StaticPod) {
        let StaticPod { uid, pod, manifest } = pod;
        let Some(spec) = &pod.spec else { return };
        let is_new = self.wanted.insert(uid.clone());
        if let Some(capacity) = node.max_pods()
            && is_new
            && self.wanted.len() > capacity
        {
            let message = format!(
                "Node didn't have enough resource: pods, requested: 1, used: {}, capacity: {capacity}",
                self.wanted.len() - 1
            );
            // Not counted: the place of a pod that ends is free for the next.
            self.wanted.remove(&uid);
            return node.workers().reject(&uid, pod, "OutOfpods", &message);
        }
        match admission::admit(spec, &NodePolicy::default()) {
            Ok(warnings) => {
                for warning in warnings {
                    tracing::warn!(pod = %uid, "{warning}");
                    node.events().event(&pod_reference(&pod), EventType::Warning, "FieldIgnored", warning);
                }
                node.workers().update(uid, pod, Some(manifest)).await;
            }
            Err((reason, message)) => node.workers().reject(&uid, pod, reason, &message),
        }
    }
}
