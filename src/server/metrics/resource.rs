//! `/metrics/resource`: what metrics-server, and through it `kubectl top` and autoscalers, read.
//!
//! In: a summary. Out: the kubelet's series (`metrics/collectors/resource_metrics.go`) with the times of the readings:
//! metrics-server divides by the time between two of them. Pure.

use super::super::stats::{ContainerStats, PodStats, StatsTime, Summary};
use super::text::{Exposition, Kind};

pub(super) fn encode(summary: &Summary) -> String {
    let mut text = Exposition::default();
    let containers = || summary.pods.iter().flat_map(|pod| pod.containers.iter().map(move |c| (pod, c)));

    let mut family = text.family(
        "container_cpu_usage_seconds_total",
        Kind::Counter,
        "[STABLE] Cumulative cpu time consumed by the container in core-seconds",
    );
    for (pod, container) in containers() {
        let value = seconds(container.cpu.usage_core_nano_seconds);
        family.sample(&labels(pod, container), value, Some(container.cpu.time.0));
    }
    let mut family = text.family(
        "container_memory_working_set_bytes",
        Kind::Gauge,
        "[STABLE] Current working set of the container in bytes",
    );
    for (pod, container) in containers() {
        let value = container.memory.working_set_bytes as f64;
        family.sample(&labels(pod, container), value, Some(container.memory.time.0));
    }
    let mut family = text.family(
        "container_start_time_seconds",
        Kind::Gauge,
        "[STABLE] Start time of the container since unix epoch in seconds",
    );
    for (pod, container) in containers().filter(|(_, container)| container.start_time.0.as_second() > 0) {
        family.sample(&labels(pod, container), unix_seconds(container.start_time), None);
    }
    if let Some(cpu) = &summary.node.cpu {
        text.family(
            "node_cpu_usage_seconds_total",
            Kind::Counter,
            "[STABLE] Cumulative cpu time consumed by the node in core-seconds",
        )
        .sample(&[], seconds(cpu.usage_core_nano_seconds), Some(cpu.time.0));
    }
    if let Some(memory) = &summary.node.memory {
        text.family("node_memory_working_set_bytes", Kind::Gauge, "[STABLE] Current working set of the node in bytes")
            .sample(&[], memory.working_set_bytes as f64, Some(memory.time.0));
    }
    let mut family = text.family(
        "pod_cpu_usage_seconds_total",
        Kind::Counter,
        "[STABLE] Cumulative cpu time consumed by the pod in core-seconds",
    );
    for pod in &summary.pods {
        family.sample(&pod_labels(pod), seconds(pod.cpu.usage_core_nano_seconds), Some(pod.cpu.time.0));
    }
    let mut family =
        text.family("pod_memory_working_set_bytes", Kind::Gauge, "[STABLE] Current working set of the pod in bytes");
    for pod in &summary.pods {
        family.sample(&pod_labels(pod), pod.memory.working_set_bytes as f64, Some(pod.memory.time.0));
    }
    for name in ["resource_scrape_error", "scrape_error"] {
        text.family(name, Kind::Gauge, "1 if there was an error while getting container metrics, 0 otherwise").sample(
            &[],
            0.0,
            None,
        );
    }
    text.finish()
}

pub(super) fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

pub(super) fn unix_seconds(time: StatsTime) -> f64 {
    time.0.as_nanosecond() as f64 / 1e9
}

fn labels<'a>(pod: &'a PodStats, container: &'a ContainerStats) -> [(&'static str, &'a str); 3] {
    [("container", &container.name), ("namespace", &pod.pod_ref.namespace), ("pod", &pod.pod_ref.name)]
}

fn pod_labels(pod: &PodStats) -> [(&'static str, &str); 2] {
    [("namespace", &pod.pod_ref.namespace), ("pod", &pod.pod_ref.name)]
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;

    #[test]
    fn the_series_are_those_metrics_server_parses() {
        let text = encode(&testing::summary());
        for line in [
            "container_cpu_usage_seconds_total{container=\"app\",namespace=\"ns\",pod=\"web\"} 1.5 1767225660250",
            "container_memory_working_set_bytes{container=\"app\",namespace=\"ns\",pod=\"web\"} 524288 1767225660250",
            "container_start_time_seconds{container=\"app\",namespace=\"ns\",pod=\"web\"} 1767225601.5",
            "node_cpu_usage_seconds_total 42 1767225660250",
            "node_memory_working_set_bytes 1048576 1767225660250",
            "pod_cpu_usage_seconds_total{namespace=\"ns\",pod=\"web\"} 1.500001 1767225660250",
            "pod_memory_working_set_bytes{namespace=\"ns\",pod=\"web\"} 528384 1767225660250",
            "resource_scrape_error 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        // A container that does nothing still has figures above zero: with a zero its pod would be left out.
        let idle =
            "container_cpu_usage_seconds_total{container=\"idle\",namespace=\"ns\",pod=\"web\"} 0.000001 1767225660250";
        assert!(text.contains(idle), "{text}");
    }
}
