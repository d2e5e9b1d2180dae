//! `/metrics`: the node's own figures, under the kubelet's names where they mean the same, else `wasilet_*`.
//!
//! In: requests served, pods as they start, the figures of other rooms. Out: an exposition. Gauges are set when asked;
//! counters count as things happen. Labels are of fixed sets: nobody makes series by asking for odd paths.

use std::collections::HashMap;
use std::sync::OnceLock;

use http::Method;
use jiff::Timestamp;
use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::sync::atomic::{AtomicI64, AtomicU64};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::changes::{News, Seen, containers_of, state_of};
use super::text;
use crate::identity::{ClusterAccess, ServingCertificate};
use crate::ids::PodUid;
use crate::pod::static_pod;
use crate::probe::ProbeMetrics;
use crate::runtime::{Census, RuntimeMetrics};
use crate::server::stats::ProcessReading;
use crate::status::{Stage, StatusCache, StatusChange, StatusMetrics};
use crate::worker::WorkerMetrics;

/// Prometheus' default buckets, which the kubelet takes for requests.
const DEFAULT_BUCKETS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// The kubelet's `podStartupDurationBuckets`.
const POD_START_BUCKETS: [f64; 21] = [
    0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 20.0, 30.0, 45.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0, 480.0,
    600.0, 900.0,
];

/// First segments of paths that have a series of their own (the kubelet's buckets); all others are `other`.
const PATHS: [&str; 16] = [
    "attach",
    "checkpoint",
    "configz",
    "containerLogs",
    "debug",
    "exec",
    "healthz",
    "logs",
    "metrics",
    "metrics/cadvisor",
    "metrics/probes",
    "metrics/resource",
    "pods",
    "portForward",
    "runningpods",
    "stats",
];

/// Labels of a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct RequestLabels {
    /// `true` for exec, attach and port-forward.
    long_running: &'static str,
    method: String,
    path: &'static str,
    server_type: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    container_state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NodeLabel {
    node: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TypeLabel {
    container_type: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndLabels {
    container_type: &'static str,
    exit_code: i32,
    reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StaticLabel {
    /// `true`, or nothing, as the kubelet has it.
    r#static: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ThreadsLabel {
    /// `agent` or `guest`.
    threads: &'static str,
}

type FloatGauge = Gauge<f64, AtomicU64>;

/// Figures that other rooms keep.
#[derive(Default)]
pub struct MetricSources {
    /// Of probes.
    pub probes: ProbeMetrics,
    /// Of the workers.
    pub workers: WorkerMetrics,
    /// Of statuses on their way to the API server.
    pub statuses: StatusMetrics,
    /// Of the connections to the cluster, where there is one.
    pub access: Option<ClusterAccess>,
}

/// The node's registry.
pub struct ServerMetrics {
    registry: Mutex<Registry>,
    requests: Family<RequestLabels, Counter>,
    requests_in_flight: Family<RequestLabels, Gauge>,
    request_duration: Family<RequestLabels, Histogram, fn() -> Histogram>,
    running_pods: Gauge<i64, AtomicI64>,
    running_containers: Family<StateLabel, Gauge>,
    started_pods: Counter,
    started_containers: Family<TypeLabel, Counter>,
    terminated_containers: Family<EndLabels, Counter>,
    desired_pods: Family<StaticLabel, Gauge>,
    active_pods: Family<StaticLabel, Gauge>,
    pod_start: Histogram,
    access: Option<ClusterAccess>,
    client_ttl: FloatGauge,
    serving: OnceLock<ServingCertificate>,
    serving_ttl: FloatGauge,
    tasks: Family<ThreadsLabel, Gauge>,
    sandboxes: Gauge,
    addresses: Gauge,
    process_cpu: Counter<f64, AtomicU64>,
    process_resident: Gauge,
    process_virtual: Gauge,
    process_start: FloatGauge,
    process_open_files: Gauge,
    process_max_files: Gauge,
    probes: Mutex<Registry>,
}

/// A request under way; its end is counted when this is dropped.
pub(crate) struct Request<'a> {
    metrics: &'a ServerMetrics,
    labels: RequestLabels,
    began: Instant,
}

impl ServerMetrics {
    pub(crate) fn new(
        node_name: &str,
        runtime: &RuntimeMetrics,
        sources: MetricSources,
        process: Option<ProcessReading>,
    ) -> Self {
        let MetricSources { probes, workers, statuses, access } = sources;
        let mut registry = Registry::default();
        let metrics = Self {
            registry: Mutex::default(),
            requests: Family::default(),
            requests_in_flight: Family::default(),
            request_duration: Family::new_with_constructor(|| Histogram::new(DEFAULT_BUCKETS)),
            running_pods: Gauge::default(),
            running_containers: Family::default(),
            started_pods: Counter::default(),
            started_containers: Family::default(),
            terminated_containers: Family::default(),
            desired_pods: Family::default(),
            active_pods: Family::default(),
            pod_start: Histogram::new(POD_START_BUCKETS),
            access,
            client_ttl: Gauge::default(),
            serving: OnceLock::new(),
            serving_ttl: Gauge::default(),
            tasks: Family::default(),
            sandboxes: Gauge::default(),
            addresses: Gauge::default(),
            process_cpu: Counter::default(),
            process_resident: Gauge::default(),
            process_virtual: Gauge::default(),
            process_start: Gauge::default(),
            process_open_files: Gauge::default(),
            process_max_files: Gauge::default(),
            probes: Mutex::new(of_probes(&probes, process)),
        };
        let node = Family::<NodeLabel, Gauge>::default();
        node.get_or_create(&NodeLabel { node: node_name.to_owned() }).set(1);
        // prometheus-client ends each help text with a full stop, and a counter's name with _total.
        registry.register("kubelet_node_name", "The node's name. The count is always 1", node);
        registry.register(
            "kubelet_http_requests",
            "Number of the http requests received since the server started",
            metrics.requests.clone(),
        );
        registry.register(
            "kubelet_http_inflight_requests",
            "Number of the inflight http requests",
            metrics.requests_in_flight.clone(),
        );
        registry.register(
            "kubelet_http_requests_duration_seconds",
            "Duration in seconds to serve http requests",
            metrics.request_duration.clone(),
        );
        metrics.register_pods(&mut registry);
        workers.register(&mut registry);
        runtime.register(&mut registry);
        if let Some(access) = &metrics.access {
            statuses.register(&mut registry);
            access.metrics().register(&mut registry);
            registry.register(
                "kubelet_certificate_manager_client_ttl_seconds",
                "Gauge of the TTL (time-to-live) of the Kubelet's client certificate. The value is in seconds until certificate expiry (negative if already expired). If client certificate is invalid or unused, the value will be +INF",
                metrics.client_ttl.clone(),
            );
        }
        metrics.register_census(&mut registry);
        metrics.register_process(&mut registry);
        Self { registry: Mutex::new(registry), ..metrics }
    }

    fn register_pods(&self, registry: &mut Registry) {
        let metrics = self;
        registry.register(
            "kubelet_running_pods",
            "Number of pods that have a running pod sandbox",
            metrics.running_pods.clone(),
        );
        registry.register(
            "kubelet_running_containers",
            "Number of containers currently running",
            metrics.running_containers.clone(),
        );
        registry.register("kubelet_started_pods", "Cumulative number of pods started", metrics.started_pods.clone());
        registry.register(
            "kubelet_started_containers",
            "Cumulative number of containers started",
            metrics.started_containers.clone(),
        );
        registry.register(
            "kubelet_terminated_containers",
            "Cumulative number of container terminations",
            metrics.terminated_containers.clone(),
        );
        registry.register(
            "kubelet_desired_pods",
            "The number of pods the kubelet is being instructed to run. static is true if the pod is not from the apiserver",
            metrics.desired_pods.clone(),
        );
        registry.register(
            "kubelet_active_pods",
            "The number of pods the kubelet considers active and which are being considered when admitting new pods. static is true if the pod is not from the apiserver",
            metrics.active_pods.clone(),
        );
        registry.register(
            "kubelet_pod_start_duration_seconds",
            "Duration in seconds from kubelet seeing a pod for the first time to the pod starting to run",
            metrics.pod_start.clone(),
        );
    }

    fn register_census(&self, registry: &mut Registry) {
        registry.register("wasilet_tasks", "Number of tasks alive, by the threads that run them", self.tasks.clone());
        registry.register("wasilet_sandboxes", "Number of pod sandboxes that exist", self.sandboxes.clone());
        registry.register("wasilet_pod_addresses", "Number of addresses that pods have", self.addresses.clone());
    }

    fn register_process(&self, registry: &mut Registry) {
        registry.register(
            "process_cpu_seconds",
            "Total user and system CPU time spent in seconds",
            self.process_cpu.clone(),
        );
        registry.register(
            "process_resident_memory_bytes",
            "Resident memory size in bytes",
            self.process_resident.clone(),
        );
        registry.register("process_virtual_memory_bytes", "Virtual memory size in bytes", self.process_virtual.clone());
        registry.register(
            "process_start_time_seconds",
            "Start time of the process since unix epoch in seconds",
            self.process_start.clone(),
        );
        registry.register("process_open_fds", "Number of open file descriptors", self.process_open_files.clone());
        registry.register("process_max_fds", "Maximum number of open file descriptors", self.process_max_files.clone());
    }

    /// Shows from now on when this certificate ends. The first that is given counts.
    pub fn watch_serving(&self, certificate: ServingCertificate) {
        if self.serving.set(certificate).is_ok() {
            self.registry.lock().register(
                "kubelet_certificate_manager_server_ttl_seconds",
                "Gauge of the shortest TTL (time-to-live) of the Kubelet's serving certificate. The value is in seconds until certificate expiry (negative if already expired). If serving certificate is invalid or unused, the value will be +INF",
                self.serving_ttl.clone(),
            );
        }
    }

    /// A request begins.
    pub(crate) fn begin(&self, method: &Method, path: &str, server_type: &'static str) -> Request<'_> {
        let labels = request_labels(method, path, server_type);
        self.requests.get_or_create(&labels).inc();
        self.requests_in_flight.get_or_create(&labels).inc();
        Request { metrics: self, labels, began: Instant::now() }
    }

    /// Counts pods and containers as they start, until `stop`.
    pub async fn follow(&self, status: &StatusCache, stop: CancellationToken) {
        let mut changes = status.subscribe();
        let mut seen = Seen::default();
        // Those of the last run started then.
        for snapshot in status.list() {
            if let Some(uid) = snapshot.pod.metadata.uid.clone().and_then(|uid| PodUid::new(uid).ok()) {
                seen.observe(&uid, &snapshot.status, Instant::now());
            }
        }
        loop {
            let change = tokio::select! {
                // Cancel-safe: a change is received or stays in the queue.
                change = changes.recv() => change,
                () = stop.cancelled() => return,
            };
            match change {
                Ok(StatusChange::Changed(uid, snapshot)) => {
                    self.count(&seen.observe(&uid, &snapshot.status, Instant::now()));
                }
                Ok(StatusChange::Removed(uid, _)) => seen.forget(&uid),
                // What was missed is missing from the counts, and counts again from here.
                Err(RecvError::Lagged(missed)) => {
                    tracing::warn!(missed, "Missed changes of pods in the metrics");
                }
                Err(RecvError::Closed) => return,
            }
        }
    }

    fn count(&self, news: &News) {
        if let Some(after) = news.pod {
            self.started_pods.inc();
            self.pod_start.observe(after.as_secs_f64());
        }
        for container_type in &news.started {
            self.started_containers.get_or_create(&TypeLabel { container_type }).inc();
        }
        for end in &news.ended {
            let labels = EndLabels { container_type: end.kind, exit_code: end.exit_code, reason: end.reason.clone() };
            self.terminated_containers.get_or_create(&labels).inc();
        }
    }

    /// The exposition of `/metrics`.
    pub(crate) fn encode(&self, status: &StatusCache, census: Census, process: Option<ProcessReading>) -> String {
        self.set_pods(status);
        self.set_census(census);
        self.set_certificates(Timestamp::now());
        self.set_process(process);
        encode(&self.registry.lock())
    }

    /// The exposition of `/metrics/probes`.
    pub(crate) fn encode_probes(&self) -> String {
        encode(&self.probes.lock())
    }

    fn set_pods(&self, status: &StatusCache) {
        let mut pods = 0;
        let (mut desired, mut active) = ([0, 0], [0, 0]);
        let mut containers = HashMap::from([("created", 0), ("exited", 0), ("running", 0)]);
        for snapshot in status.list() {
            let of = usize::from(static_pod::is_static(&snapshot.pod));
            desired[of] += 1;
            active[of] += i64::from(snapshot.stage == Stage::Alive);
            let mut runs = false;
            for (container, _) in containers_of(&snapshot.status) {
                let state = state_of(container);
                runs |= state == "running";
                *containers.entry(state).or_insert(0) += 1;
            }
            pods += i64::from(runs);
        }
        self.running_pods.set(pods);
        for (of, r#static) in ["", "true"].into_iter().enumerate() {
            let label = StaticLabel { r#static };
            self.desired_pods.get_or_create(&label).set(desired[of]);
            self.active_pods.get_or_create(&label).set(active[of]);
        }
        for (container_state, count) in containers {
            self.running_containers.get_or_create(&StateLabel { container_state }).set(count);
        }
    }

    fn set_certificates(&self, now: Timestamp) {
        let left = |end: Option<Timestamp>| end.map_or(f64::INFINITY, |end| end.duration_since(now).as_secs() as f64);
        if let Some(access) = &self.access {
            self.client_ttl.set(left(access.certificate_end()));
        }
        if let Some(serving) = self.serving.get() {
            self.serving_ttl.set(left(Some(serving.certificate_end())));
        }
    }

    fn set_census(&self, census: Census) {
        let count = |found: usize| i64::try_from(found).unwrap_or(i64::MAX);
        for (threads, found) in [("agent", census.agent_tasks), ("guest", census.guest_tasks)] {
            self.tasks.get_or_create(&ThreadsLabel { threads }).set(count(found));
        }
        self.sandboxes.set(count(census.sandboxes));
        self.addresses.set(count(census.addresses));
    }

    fn set_process(&self, process: Option<ProcessReading>) {
        let Some(process) = process else { return };
        let seconds = process.cpu_nanoseconds as f64 / 1e9;
        self.process_cpu.inc_by((seconds - self.process_cpu.get()).max(0.0));
        self.process_resident.set(i64::try_from(process.resident_bytes).unwrap_or(i64::MAX));
        self.process_virtual.set(i64::try_from(process.virtual_bytes).unwrap_or(i64::MAX));
        self.process_start.set(process.started_at.as_nanosecond() as f64 / 1e9);
        if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
            self.process_open_files.set(i64::try_from(files.count()).unwrap_or(i64::MAX));
        }
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        self.process_max_files.set(limit.and_then(|limit| i64::try_from(limit).ok()).unwrap_or(i64::MAX));
    }
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        self.metrics.requests_in_flight.get_or_create(&self.labels).dec();
        self.metrics.request_duration.get_or_create(&self.labels).observe(self.began.elapsed().as_secs_f64());
    }
}

fn encode(registry: &Registry) -> String {
    let mut open_metrics = String::new();
    // Fails only when writing does, and writing to a string does not.
    let _ = prometheus_client::encoding::text::encode(&mut open_metrics, registry);
    text::from_open_metrics(&open_metrics)
}

fn of_probes(probes: &ProbeMetrics, process: Option<ProcessReading>) -> Registry {
    let mut registry = Registry::default();
    probes.register(&mut registry);
    if let Some(process) = process {
        let start = FloatGauge::default();
        start.set(process.started_at.as_nanosecond() as f64 / 1e9);
        registry.register("process_start_time_seconds", "Start time of the process since unix epoch in seconds", start);
    }
    registry
}

fn request_labels(method: &Method, path: &str, server_type: &'static str) -> RequestLabels {
    const METHODS: [Method; 8] = [
        Method::OPTIONS,
        Method::GET,
        Method::HEAD,
        Method::POST,
        Method::PUT,
        Method::DELETE,
        Method::TRACE,
        Method::CONNECT,
    ];
    let method = if METHODS.contains(method) { method.as_str() } else { "other" };
    let path = bucket(path);
    let long_running = matches!(path, "exec" | "attach" | "portForward" | "debug");
    RequestLabels {
        long_running: if long_running { "true" } else { "false" },
        method: method.to_owned(),
        path,
        server_type,
    }
}

/// The first segment of a path, two of `/metrics/...` (the kubelet's `getURLRootPath`).
fn bucket(path: &str) -> &'static str {
    let path = path.strip_prefix('/').unwrap_or(path);
    let mut segments = path.splitn(3, '/');
    let root = match (segments.next().unwrap_or_default(), segments.next()) {
        ("metrics", Some(second)) => format!("metrics/{second}"),
        (first, _) => first.to_owned(),
    };
    PATHS.into_iter().find(|known| *known == root).unwrap_or("other")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::changes::Ended;
    use super::*;
    use crate::ids::PodRef;
    use crate::pod::probe::{Outcome, ProbeKind};

    #[test]
    fn paths_have_the_kubelets_buckets() {
        for (path, expected) in [
            ("/metrics", "metrics"),
            ("/metrics/cadvisor", "metrics/cadvisor"),
            ("/metrics/odd", "other"),
            ("/exec/ns/pod/c", "exec"),
            ("/healthz/ping", "healthz"),
            ("/", "other"),
            ("", "other"),
            ("/etc/passwd", "other"),
        ] {
            assert_eq!(bucket(path), expected, "{path}");
        }
        let labels = request_labels(&"BREW".parse().unwrap(), "/exec/x", "readwrite");
        assert_eq!((labels.method.as_str(), labels.long_running), ("other", "true"));
    }

    #[test]
    fn the_exposition_has_the_kubelets_names() {
        let probes = ProbeMetrics::default();
        let pod = PodRef { namespace: "ns".to_owned(), name: "web".to_owned() };
        let sources = MetricSources { probes: probes.clone(), ..MetricSources::default() };
        let metrics = ServerMetrics::new("edge-1", &RuntimeMetrics::default(), sources, None);
        let probe = probes.series(&pod, &PodUid::new("u").unwrap(), "app", ProbeKind::Startup);
        probe.observe(&Outcome::Success, Duration::from_millis(7));
        drop(metrics.begin(&Method::GET, "/pods", "readwrite"));
        let end = Ended { kind: "init_container", exit_code: 0, reason: "Completed".to_owned() };
        metrics.count(&News { pod: Some(Duration::from_secs(1)), started: vec!["container"], ended: vec![end] });
        let census = Census { agent_tasks: 7, guest_tasks: 5, sandboxes: 3, addresses: 2 };
        let text = metrics.encode(&StatusCache::default(), census, None);
        for line in [
            "kubelet_node_name{node=\"edge-1\"} 1",
            "kubelet_http_requests_total{long_running=\"false\",method=\"GET\",path=\"pods\",server_type=\"readwrite\"} 1",
            "kubelet_running_pods 0",
            "kubelet_running_containers{container_state=\"running\"} 0",
            "kubelet_started_pods_total 1",
            "kubelet_started_containers_total{container_type=\"container\"} 1",
            "kubelet_terminated_containers_total{container_type=\"init_container\",exit_code=\"0\",reason=\"Completed\"} 1",
            "kubelet_desired_pods{static=\"\"} 0",
            "kubelet_active_pods{static=\"true\"} 0",
            "kubelet_pod_start_duration_seconds_count 1",
            "# TYPE kubelet_http_requests_total counter",
            "wasilet_tasks{threads=\"agent\"} 7",
            "wasilet_tasks{threads=\"guest\"} 5",
            "wasilet_sandboxes 3",
            "wasilet_pod_addresses 2",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        let text = metrics.encode_probes();
        let line = "prober_probe_total{container=\"app\",namespace=\"ns\",pod=\"web\",pod_uid=\"u\",probe_type=\"Startup\",result=\"successful\"} 1";
        assert!(text.lines().any(|found| found == line), "{text}");
    }
}
