//! The Services of the cluster, without a kube-proxy: for guests in process, for others on ports of the node.
//!
//! In: news of Services and endpoints ([`crate::pod::services`]). Out: where a guest's connection to a Service goes
//! (`guest`, from `table`), and listeners of the node for NodePorts, external and load balancers' addresses (`node_ports`,
//! with `connections` and `datagrams`; `health` for `healthCheckNodePort`). A guest's socket is connected to the endpoint
//! itself, so endpoints of this node stay in process; it is shown the Service's address as its peer, as by kube-proxy.
//!
//! Watches nothing (`objects`); decides nothing that `pod::services` can. Until both Services and endpoints were read there
//! is no Service here, and every address is what `route` says: a kube-proxy of the machine may know it.

mod affinity;
mod connections;
mod datagrams;
mod detect;
mod flows;
mod guest;
mod health;
mod node_ports;
mod table;

#[cfg(test)]
mod tests;

pub use detect::kube_proxy_is_here;
pub use node_ports::NodePortReport;
pub use table::{ServiceTable, Source};

pub(super) use datagrams::Replies;
pub(super) use flows::Flows;
