//! Collects images nobody uses: regularly by the disk's fill, and at once when the disk is nearly full.
//!
//! In: `imageGC*`, the images pods refer to. Out: removed images. What pods use is never removed; deciding which of the rest
//! go is the image store's.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::config::ImageGcConfig;
use crate::events::{EventType, Recorder, node_reference};
use crate::ids::Digest;
use crate::image::{GcPolicy, ImageService, PruneScope};
use crate::node::pods::NodePods;

/// The kubelet's `ImageGCPeriod`.
const PERIOD: Duration = Duration::from_secs(5 * 60);

/// Removes images nobody uses.
pub struct ImageCollector {
    images: Arc<ImageService>,
    directory: PathBuf,
    policy: GcPolicy,
    /// When images can be past their maximum age: what the node used before its start is not known.
    old_from: Option<Instant>,
    next: Instant,
}

impl std::fmt::Debug for ImageCollector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageCollector").field("policy", &self.policy).finish_non_exhaustive()
    }
}

impl ImageCollector {
    /// A collector that looks for the first time after one period: pods of the last run have said by then what they use.
    #[must_use]
    pub fn new(images: Arc<ImageService>, config: &ImageGcConfig, root_dir: impl Into<PathBuf>) -> Self {
        let policy = GcPolicy {
            high_percent: config.high_threshold_percent,
            low_percent: config.low_threshold_percent,
            min_age: config.minimum_age,
            max_age: config.maximum_age,
        };
        Self {
            images,
            directory: root_dir.into().join("images"),
            policy,
            old_from: config.maximum_age.map(|age| Instant::now() + age),
            next: Instant::now() + PERIOD,
        }
    }

    /// Where images are: `imagefs` is its file system.
    pub(super) fn directory(&self) -> PathBuf {
        self.directory.clone()
    }

    /// The regular collection, when its time has come.
    pub(super) async fn collect_if_due(&mut self, pods: &dyn NodePods, events: &Recorder, node: &str) {
        let now = Instant::now();
        if now < self.next {
            return;
        }
        self.next = now + PERIOD;
        let max_age = self.policy.max_age.filter(|_| self.old_from.is_some_and(|from| now >= from));
        let policy = GcPolicy { max_age, ..self.policy };
        if policy.high_percent >= 100 && max_age.is_none() {
            return;
        }
        let as_of = SystemTime::now();
        let in_use = self.in_use(pods).await;
        match self.images.collect_garbage(policy, &in_use, as_of).await {
            Ok(removed) if removed.deleted.is_empty() => {}
            Ok(removed) => {
                tracing::info!(images = removed.deleted.len(), bytes = removed.freed_bytes, "Collected unused images");
            }
            Err(error) => {
                tracing::error!(err = %error, "Image garbage collection failed");
                events.event(&node_reference(node), EventType::Warning, "ImageGCFailed", error.to_string());
            }
        }
    }

    /// Everything nobody uses, now: the disk is nearly full.
    pub(super) async fn remove_unused(&mut self, pods: &dyn NodePods) {
        let as_of = SystemTime::now();
        let in_use = self.in_use(pods).await;
        match self.images.prune(PruneScope::Unused, &in_use, as_of).await {
            Ok(removed) if removed.deleted.is_empty() => {}
            Ok(removed) => {
                tracing::info!(
                    images = removed.deleted.len(),
                    bytes = removed.freed_bytes,
                    "Removed all unused images"
                );
            }
            Err(error) => tracing::warn!(err = %error, "Could not remove unused images"),
        }
    }

    /// Manifests of the images pods refer to. A name that is not here now may be being pulled: content that nothing names
    /// yet is kept by the store itself.
    async fn in_use(&self, pods: &dyn NodePods) -> HashSet<Digest> {
        let mut in_use = HashSet::new();
        for name in pods.images() {
            if let Ok(image) = self.images.inspect(&name).await {
                in_use.insert(image.manifest_digest);
            }
        }
        in_use
    }
}
