//! Requests to the API server, under client-go's names.
//!
//! In: requests as they are sent, answers as they begin. Out: metrics that somebody registers. Labels are of few values: a
//! node speaks to one server, by the methods of its own code.

use http::{Method, StatusCode, Uri};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tokio::time::Instant;

/// client-go's buckets.
const BUCKETS: [f64; 12] = [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    code: String,
    host: String,
    method: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DurationLabels {
    host: String,
    verb: String,
}

/// Figures of the node's connections to its cluster. Cheap to clone; all clones are the same figures.
#[derive(Debug, Clone)]
pub struct ClientMetrics {
    requests: Family<RequestLabels, Counter>,
    durations: Family<DurationLabels, Histogram, fn() -> Histogram>,
}

impl Default for ClientMetrics {
    fn default() -> Self {
        Self { requests: Family::default(), durations: Family::new_with_constructor(|| Histogram::new(BUCKETS)) }
    }
}

/// A request that was sent.
#[derive(Debug)]
pub(super) struct Sent {
    host: String,
    method: String,
    at: Instant,
}

impl ClientMetrics {
    /// Names its figures in a registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "rest_client_requests",
            "Number of HTTP requests, partitioned by status code, method, and host",
            self.requests.clone(),
        );
        registry.register(
            "rest_client_request_duration_seconds",
            "Request latency in seconds. Broken down by verb, and host",
            self.durations.clone(),
        );
    }

    /// A request is sent.
    pub(super) fn sent(method: &Method, uri: &Uri) -> Sent {
        let host = uri.authority().map(ToString::to_string).unwrap_or_default();
        Sent { host, method: method.to_string(), at: Instant::now() }
    }

    /// Its answer has begun, or none came.
    pub(super) fn answered(&self, sent: Sent, code: Option<StatusCode>) {
        let Sent { host, method, at } = sent;
        let labels = DurationLabels { host: host.clone(), verb: method.clone() };
        self.durations.get_or_create(&labels).observe(at.elapsed().as_secs_f64());
        let code = code.map_or_else(|| "<error>".to_owned(), |code| code.as_u16().to_string());
        self.requests.get_or_create(&RequestLabels { code, host, method }).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_what_came_of_them() {
        let metrics = ClientMetrics::default();
        let uri = Uri::from_static("https://192.0.2.1:6443/api/v1/pods?watch=1");
        for code in [Some(StatusCode::OK), Some(StatusCode::OK), None] {
            metrics.answered(ClientMetrics::sent(&Method::GET, &uri), code);
        }
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "rest_client_requests_total{code=\"200\",host=\"192.0.2.1:6443\",method=\"GET\"} 2",
            "rest_client_requests_total{code=\"<error>\",host=\"192.0.2.1:6443\",method=\"GET\"} 1",
            "rest_client_request_duration_seconds_count{host=\"192.0.2.1:6443\",verb=\"GET\"} 3",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
