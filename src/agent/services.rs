//! The cluster's Services, from the API server's watches to the pod network, and what there is to say about them.
//!
//! In: news of Services. Out: the network's table; Events of the node when the API server lets it not read them, when it
//! does again, and for a port of the node that something else has; whether this node serves Services' ports, which it does
//! unless a kube-proxy is there. Watches nothing and opens nothing itself.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::ServiceProxyMode;
use crate::events::{EventType, Recorder, node_reference};
use crate::network::{IpRange, NodeNetwork, NodePortReport, Protocol, kube_proxy_is_here};
use crate::objects::ServiceSink;
use crate::pod::services::ServiceNews;

/// How often it is asked whether a kube-proxy has come or gone.
const LOOK: Duration = Duration::from_secs(60);

/// Where news of Services go.
pub(super) fn sink(network: Arc<NodeNetwork>, events: Recorder, node: &str) -> ServiceSink {
    let (node, refused) = (node_reference(node), Mutex::new(BTreeSet::new()));
    Arc::new(move |news| match news {
        ServiceNews::PodRanges(ranges) => {
            network.set_cluster_ranges(ranges.iter().filter_map(|range| range.parse::<IpRange>().ok()).collect());
        }
        ServiceNews::Forbidden { resource, reason } => {
            if refused.lock().insert(resource) {
                let missing = without(resource);
                tracing::warn!(resource, err = reason, "Could not read what Services need: {missing}");
                let message = format!(
                    "{missing}: {reason}. An administrator allows it by 'wasilet rbac | kubectl apply -f -'; the node \
                     tries again by itself"
                );
                events.event(&node, EventType::Warning, "ServicesForbidden", message);
            }
        }
        ServiceNews::Allowed { resource } => {
            if refused.lock().remove(resource) {
                let message = format!("the API server lets the node read {resource} now");
                tracing::info!(resource, "Was allowed to read what Services need");
                events.event(&node, EventType::Normal, "ServicesAllowed", message);
            }
        }
        other => network.services().apply(other),
    })
}

/// What does not work without a resource.
fn without(resource: &str) -> &'static str {
    match resource {
        "nodes" => "pods reach those of other nodes from the node's address, not from their own",
        _ => "pods of this node do not reach Services, and NodePorts are not served here",
    }
}

/// Serves Services' ports on the node until `stop`.
pub(super) async fn serve(
    network: Arc<NodeNetwork>,
    mode: ServiceProxyMode,
    node_ip: IpAddr,
    (events, node): (Recorder, String),
    stop: CancellationToken,
) {
    let (wanted, told) = watch::channel(false);
    let node = node_reference(&node);
    let report = move |report: NodePortReport| {
        let NodePortReport { service, address, protocol, error } = report;
        let protocol = match protocol {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
        };
        tracing::warn!(%service, %address, protocol, err = error, "Could not open a port for a Service");
        let message = format!(
            "port {address}/{protocol} of Service {service} is not served on this node: {error}; free it, or set \
             serviceProxy: never where another program serves Services"
        );
        events.event(&node, EventType::Warning, "ServicePortUnavailable", message);
    };
    let deciding = async {
        loop {
            let serve = match mode {
                ServiceProxyMode::Always => true,
                ServiceProxyMode::Never => false,
                ServiceProxyMode::Auto => !kube_proxy_is_here(node_ip).await,
            };
            let changed = wanted.send_if_modified(|now| std::mem::replace(now, serve) != serve);
            if changed {
                tracing::info!(serve, "Decided whether to serve ports of Services on the node");
            }
            match mode {
                ServiceProxyMode::Auto => tokio::time::sleep(LOOK).await,
                ServiceProxyMode::Always | ServiceProxyMode::Never => std::future::pending().await,
            }
        }
    };
    tokio::select! {
        // Cancel-safe: open ports are closed with it, and a decision is made again.
        () = network.serve_services(told, report) => {}
        () = deciding => {}
        () = stop.cancelled() => {}
    }
}
