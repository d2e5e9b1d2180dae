//! What probes came to, under the kubelet's names.
//!
//! In: answers of probes. Out: counters and durations for `/metrics/probes`. A probe's series go when it ends: nobody makes
//! more of them than there are probes.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::ids::{PodRef, PodUid};
use crate::pod::probe::{Outcome, ProbeKind};

/// Prometheus' default buckets, which the kubelet takes for probes.
const BUCKETS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

const RESULTS: [&str; 3] = ["successful", "failed", "unknown"];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    container: String,
    namespace: String,
    pod: String,
    pod_uid: String,
    probe_type: &'static str,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DurationLabels {
    container: String,
    namespace: String,
    pod: String,
    probe_type: &'static str,
}

/// Figures of all probes of the node. Cheap to clone; all clones are the same figures.
#[derive(Debug, Clone)]
pub struct ProbeMetrics {
    results: Family<ResultLabels, Counter>,
    durations: Family<DurationLabels, Histogram, fn() -> Histogram>,
}

/// Figures of one probe of one container, gone when this is dropped.
#[derive(Debug)]
pub struct ProbeSeries {
    metrics: ProbeMetrics,
    result: ResultLabels,
    duration: DurationLabels,
}

impl Default for ProbeMetrics {
    fn default() -> Self {
        Self { results: Family::default(), durations: Family::new_with_constructor(|| Histogram::new(BUCKETS)) }
    }
}

impl ProbeMetrics {
    /// Names its figures in a registry.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Cumulative number of a liveness, readiness or startup probe for a container by result";
        registry.register("prober_probe", help, self.results.clone());
        registry.register(
            "prober_probe_duration_seconds",
            "Duration in seconds for a probe response",
            self.durations.clone(),
        );
    }

    /// The figures of a probe that begins.
    #[must_use]
    pub fn series(&self, pod: &PodRef, uid: &PodUid, container: &str, kind: ProbeKind) -> ProbeSeries {
        let duration = DurationLabels {
            container: container.to_owned(),
            namespace: pod.namespace.clone(),
            pod: pod.name.clone(),
            probe_type: kind.name(),
        };
        let DurationLabels { container, namespace, pod, probe_type } = duration.clone();
        let pod_uid = uid.as_str().to_owned();
        let result = ResultLabels { container, namespace, pod, pod_uid, probe_type, result: RESULTS[0] };
        ProbeSeries { metrics: self.clone(), result, duration }
    }
}

impl ProbeSeries {
    /// Counts an answer that took so long. As in the kubelet, a question that could not be asked has no duration.
    pub fn observe(&self, outcome: &Outcome, took: Duration) {
        let result = match outcome {
            Outcome::Success | Outcome::Warning(_) => "successful",
            Outcome::Failure(_) => "failed",
            Outcome::Errored(_) => "unknown",
        };
        self.metrics.results.get_or_create(&ResultLabels { result, ..self.result.clone() }).inc();
        if result != "unknown" {
            self.metrics.durations.get_or_create(&self.duration).observe(took.as_secs_f64());
        }
    }
}

impl Drop for ProbeSeries {
    fn drop(&mut self) {
        for result in RESULTS {
            self.metrics.results.remove(&ResultLabels { result, ..self.result.clone() });
        }
        self.metrics.durations.remove(&self.duration);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_by_probe_and_forgotten_with_it() {
        let metrics = ProbeMetrics::default();
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let text = || {
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
            text
        };
        let pod = PodRef { namespace: "ns".to_owned(), name: "web".to_owned() };
        let series = metrics.series(&pod, &PodUid::new("u1").unwrap(), "app", ProbeKind::Liveness);
        for outcome in [
            Outcome::Success,
            Outcome::Warning("hm".to_owned()),
            Outcome::Failure("no".to_owned()),
            Outcome::Errored("whom".to_owned()),
        ] {
            series.observe(&outcome, Duration::from_millis(20));
        }
        let labels = |result| {
            format!(
                "{{container=\"app\",namespace=\"ns\",pod=\"web\",pod_uid=\"u1\",probe_type=\"Liveness\",result=\"{result}\"}}"
            )
        };
        for line in [
            format!("prober_probe_total{} 2", labels("successful")),
            format!("prober_probe_total{} 1", labels("failed")),
            format!("prober_probe_total{} 1", labels("unknown")),
            "prober_probe_duration_seconds_count{container=\"app\",namespace=\"ns\",pod=\"web\",probe_type=\"Liveness\"} 3".to_owned(),
        ] {
            assert!(text().lines().any(|found| found == line), "{line} is not in\n{}", text());
        }
        drop(series);
        assert!(!text().contains("app"), "{}", text());
    }
}
