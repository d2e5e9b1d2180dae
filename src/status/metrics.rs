//! How long statuses take to reach the API server, and pods to start, under the kubelet's names.
//!
//! In: pods that are new to the API server's eyes, pulls of their images, answers of the API server. Out: histograms that
//! somebody registers. A pod is followed from when it is seen here, without a start time, until the API server has been
//! told that all its containers run; the kubelet looks at what its watch brings back, which is the same a moment later.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use parking_lot::Mutex;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tokio::time::Instant;

use crate::ids::PodUid;
use crate::pod::status::PodPhase;

/// The kubelet's buckets.
const SYNC_BUCKETS: [f64; 11] = [0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 20.0, 30.0, 45.0, 60.0];
/// The kubelet's `podStartupDurationBuckets`.
const START_BUCKETS: [f64; 21] = [
    0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 20.0, 30.0, 45.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0, 480.0,
    600.0, 900.0,
];

/// Figures of all pods of the node. Cheap to clone; all clones are the same figures.
#[derive(Debug, Clone)]
pub struct StatusMetrics {
    sync: Histogram,
    start_total: Histogram,
    start_sli: Histogram,
    /// Pods that have not started yet.
    starting: Arc<Mutex<HashMap<PodUid, Pulls>>>,
}

/// The time a pod's pulls have taken: each moment once, however many there were at the same time.
#[derive(Debug, Default)]
struct Pulls {
    took: Duration,
    until: Option<Instant>,
}

impl Pulls {
    /// Pulls come in the order in which they ended.
    fn add(&mut self, began: Instant, ended: Instant) {
        let from = self.until.map_or(began, |until| began.max(until));
        self.took += ended.saturating_duration_since(from);
        self.until = Some(self.until.map_or(ended, |until| ended.max(until)));
    }
}

impl Default for StatusMetrics {
    fn default() -> Self {
        Self {
            sync: Histogram::new(SYNC_BUCKETS),
            start_total: Histogram::new(START_BUCKETS),
            start_sli: Histogram::new(START_BUCKETS),
            starting: Arc::default(),
        }
    }
}

impl StatusMetrics {
    /// Names its figures in a registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "kubelet_pod_status_sync_duration_seconds",
            "Duration in seconds to sync a pod status update. Measures time from detection of a change to pod status until the API is successfully updated for that pod, even if multiple intevening changes to pod status occur",
            self.sync.clone(),
        );
        registry.register(
            "kubelet_pod_start_total_duration_seconds",
            "Duration in seconds to start a pod since creation, including time to pull images and run init containers, measured from pod creation timestamp to when all its containers are reported as started and observed via watch",
            self.start_total.clone(),
        );
        registry.register(
            "kubelet_pod_start_sli_duration_seconds",
            "Duration in seconds to start a pod, excluding time to pull images and run init containers, measured from pod creation timestamp to when all its containers are reported as started and observed via watch",
            self.start_sli.clone(),
        );
    }

    /// An image of a pod was pulled. Nothing is kept of pods that have started before.
    pub fn pulled(&self, uid: &PodUid, began: Instant, ended: Instant) {
        if let Some(pulls) = self.starting.lock().get_mut(uid) {
            pulls.add(began, ended);
        }
    }

    /// The API server has a pod; one without a start time is new.
    pub(super) fn seen(&self, uid: &PodUid, pod: &Pod) {
        if pod.status.as_ref().is_none_or(|status| status.start_time.is_none()) {
            self.starting.lock().entry(uid.clone()).or_default();
        }
    }

    /// The API server has taken over a status, so long after it was made.
    pub(super) fn written(&self, after: Duration) {
        self.sync.observe(after.as_secs_f64());
    }

    /// The API server answered with `pod`; `status` is what this node knows of it, to the nanosecond.
    pub(super) fn answered(&self, uid: &PodUid, pod: &Pod, status: &PodStatus, now: Timestamp) {
        let over = PodPhase::is_over(status);
        let started = pod.status.as_ref().is_some_and(all_run);
        if !over && !started {
            return;
        }
        let Some(pulls) = self.starting.lock().remove(uid).filter(|_| started) else { return };
        let Some(created) = pod.metadata.creation_timestamp.as_ref() else { return };
        // A pod that is made within the second it is shown to be created in is none the faster for it.
        let total = Duration::try_from(now.duration_since(created.0)).unwrap_or_default();
        self.start_total.observe(total.as_secs_f64());
        if !is_stateful(pod) {
            self.start_sli.observe(total.saturating_sub(pulls.took).saturating_sub(of_init(status)).as_secs_f64());
        }
    }

    /// Pods for which this is false are gone.
    pub(super) fn retain(&self, mut is_there: impl FnMut(&PodUid) -> bool) {
        self.starting.lock().retain(|uid, _| is_there(uid));
    }

    /// A pod is gone.
    pub(super) fn forget(&self, uid: &PodUid) {
        self.starting.lock().remove(uid);
    }
}

/// Whether each container runs: the definition of the SLI.
fn all_run(status: &PodStatus) -> bool {
    let containers = status.container_statuses.as_deref().unwrap_or_default();
    let runs = |state: &k8s_openapi::api::core::v1::ContainerState| state.running.is_some();
    !containers.is_empty() && containers.iter().all(|container| container.state.as_ref().is_some_and(runs))
}

/// How long the init containers ran.
fn of_init(status: &PodStatus) -> Duration {
    let ended =
        status.init_container_statuses.iter().flatten().filter_map(|init| init.state.as_ref()?.terminated.as_ref());
    let took = ended.filter_map(|end| {
        let (began, ended) = (end.started_at.as_ref()?, end.finished_at.as_ref()?);
        Duration::try_from(ended.0.duration_since(began.0)).ok()
    });
    took.sum()
}

/// Whether a pod has volumes that the SLI leaves out, as they take what they take.
fn is_stateful(pod: &Pod) -> bool {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.into_iter().any(|volume| {
        volume.secret.is_none()
            && volume.config_map.is_none()
            && volume.downward_api.is_none()
            && volume.empty_dir.is_none()
            && volume.projected.is_none()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sums(metrics: &StatusMetrics) -> (String, String) {
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).expect(name);
            line.trim().to_owned()
        };
        (value("kubelet_pod_start_total_duration_seconds_sum"), value("kubelet_pod_start_sli_duration_seconds_sum"))
    }

    fn pod(state: &str, volumes: &serde_json::Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"containers": [], "volumes": volumes},
            "status": {
                "phase": "Running",
                "initContainerStatuses": [{"name": "i", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                    "state": {"terminated": {"exitCode": 0, "startedAt": "2026-01-01T00:00:10Z", "finishedAt": "2026-01-01T00:00:12Z"}}}],
                "containerStatuses": [{"name": "a", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": {state: {}}}],
            }
        }))
        .unwrap()
    }

    #[test]
    fn a_start_leaves_out_pulls_and_init_containers_and_counts_once() {
        let (uid, none) = (PodUid::new("u").unwrap(), json!([]));
        let now: Timestamp = "2026-01-01T00:00:20Z".parse().unwrap();
        let metrics = StatusMetrics::default();
        let answer = |pod: Pod| metrics.answered(&uid, &pod, pod.status.as_ref().unwrap(), now);
        answer(pod("running", &none));
        assert_eq!(sums(&metrics), ("0.0".to_owned(), "0.0".to_owned()), "it ran before this agent did");

        metrics.seen(&uid, &Pod::default());
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        // Two at a time from 1 to 5, one of 7 to 8: five seconds.
        metrics.pulled(&uid, at(1), at(4));
        metrics.pulled(&uid, at(2), at(5));
        metrics.pulled(&uid, at(7), at(8));
        answer(pod("waiting", &none));
        answer(pod("running", &none));
        assert_eq!(sums(&metrics), ("20.0".to_owned(), "13.0".to_owned()));
        answer(pod("running", &none));
        assert_eq!(sums(&metrics).0, "20.0", "once");

        metrics.seen(&uid, &Pod::default());
        answer(pod("running", &json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}])));
        assert_eq!(sums(&metrics), ("40.0".to_owned(), "13.0".to_owned()), "a stateful one is not in the SLI");
    }

    #[test]
    fn what_ends_before_it_started_is_not_kept() {
        let (uid, metrics) = (PodUid::new("u").unwrap(), StatusMetrics::default());
        metrics.seen(&uid, &Pod::default());
        let mut failed = pod("waiting", &json!([]));
        failed.status.as_mut().unwrap().phase = Some("Failed".to_owned());
        metrics.answered(&uid, &failed, failed.status.as_ref().unwrap(), Timestamp::UNIX_EPOCH);
        assert!(metrics.starting.lock().is_empty());
        metrics.seen(&uid, &Pod::default());
        metrics.forget(&uid);
        assert!(metrics.starting.lock().is_empty());
        assert_eq!(sums(&metrics).0, "0.0");
    }
}
