//! The metrics endpoints: `/metrics`, `/metrics/resource`, `/metrics/cadvisor`, `/metrics/probes`.
//!
//! In: the node's figures. Out: the Prometheus text format. Measures nothing itself (`stats`).

mod cadvisor;
mod changes;
mod kubelet;
mod resource;
mod text;
mod volumes;

use axum::extract::{Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::NodeApi;
use super::stats::Scope;

pub use kubelet::{MetricSources, ServerMetrics};

fn exposition(text: String) -> Response {
    ([(CONTENT_TYPE, text::CONTENT_TYPE)], text).into_response()
}

/// `GET /metrics`.
pub(super) async fn node(State(api): State<NodeApi>) -> Response {
    let own = api.metrics.encode(&api.status, api.runtime.census(), api.stats.process());
    exposition(own + &volumes::encode(&api.stats.summary(Scope::Everything)))
}

/// `GET /metrics/resource`.
pub(super) async fn resource(State(api): State<NodeApi>) -> Response {
    exposition(resource::encode(&api.stats.summary(Scope::CpuAndMemory)))
}

/// `GET /metrics/cadvisor`.
pub(super) async fn cadvisor(State(api): State<NodeApi>) -> Response {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    exposition(cadvisor::encode(&api.stats.summary(Scope::Everything), cadvisor::MachineInfo { cores }))
}

/// `GET /metrics/probes`.
pub(super) async fn probes(State(api): State<NodeApi>) -> Response {
    exposition(api.metrics.encode_probes())
}

/// Counts a request over HTTPS, those that are refused included, until its answer begins.
pub(super) async fn count(State(api): State<NodeApi>, request: Request, next: Next) -> Response {
    let counted = api.metrics.begin(request.method(), request.uri().path(), "readwrite");
    let response = next.run(request).await;
    drop(counted);
    response
}

#[cfg(test)]
mod testing {
    use super::super::stats::testing::example_pod;
    use super::super::stats::{CpuStats, MemoryStats, NodeStats, Scope, StatsTime, Summary};

    /// A node with one pod of two containers.
    pub(super) fn summary() -> Summary {
        let time = StatsTime("2026-01-01T00:01:00.25Z".parse().unwrap());
        Summary {
            node: NodeStats {
                node_name: "edge-1".to_owned(),
                system_containers: Vec::new(),
                start_time: time,
                cpu: Some(CpuStats { time, usage_nano_cores: None, usage_core_nano_seconds: 42_000_000_000 }),
                memory: Some(MemoryStats {
                    time,
                    available_bytes: Some(1 << 20),
                    usage_bytes: 1 << 20,
                    working_set_bytes: 1 << 20,
                    rss_bytes: 1 << 20,
                }),
                network: None,
                fs: None,
                runtime: None,
                rlimit: None,
            },
            pods: vec![example_pod(Scope::Everything)],
        }
    }
}
