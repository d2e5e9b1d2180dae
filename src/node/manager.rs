//! Keeps this node's objects in the API: the Node itself, its Lease, its CSINode.
//!
//! In: an API client, settings, what the other rooms tell of network, pressure and shutdown. Out: objects in the API, and the
//! newest Node for whoever wants it. Each object has its own loop, so that one that fails holds up no other; the API server
//! away for any time changes nothing else of the node.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Node;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch_objects};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::api::Outage;
use super::conditions::{NetworkState, ShutdownState};
use super::csi;
use super::keeper::StatusKeeper;
use super::lease::LeaseKeeper;
use super::settings::NodeSettings;
use crate::clock::Clock;
use crate::events::Recorder;
use crate::image::ImageService;
use crate::pod::admission::Pressure;
use crate::volume::DriversFacts;

/// What the other rooms give.
#[derive(Debug, Clone)]
pub struct NodeParts {
    /// The time that is written down.
    pub clock: Clock,
    /// Where events go.
    pub events: Recorder,
    /// For `status.images`.
    pub images: Option<Arc<ImageService>>,
    /// Whether pods can have addresses; the node is not Ready before.
    pub network: watch::Receiver<NetworkState>,
    /// What the node is short of ([`super::PressureManager::pressure`]).
    pub pressure: watch::Receiver<Pressure>,
    /// Whether the machine goes down ([`super::ShutdownManager::state`]).
    pub shutdown: watch::Receiver<ShutdownState>,
    /// The CSI drivers of the node.
    pub drivers: watch::Receiver<DriversFacts>,
    /// Volumes that no controller may detach.
    pub volumes_in_use: watch::Receiver<BTreeSet<String>>,
}

/// The Node, or none while there is none: everybody's newest view of it.
pub(super) type NodeSender = watch::Sender<Option<Arc<Node>>>;

/// Registers the node and keeps it. [`Self::run`] is its one task.
pub struct NodeManager {
    client: Client,
    settings: Arc<NodeSettings>,
    parts: NodeParts,
    node: NodeSender,
}

impl std::fmt::Debug for NodeManager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeManager").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl NodeManager {
    /// A manager that has asked nothing yet.
    #[must_use]
    pub fn new(client: Client, settings: NodeSettings, parts: NodeParts) -> Self {
        Self { client, settings: Arc::new(settings), parts, node: watch::Sender::default() }
    }

    /// The newest Node object: UID, podCIDRs, labels, taints. `None` before it is known and while it is deleted.
    #[must_use]
    pub fn node(&self) -> watch::Receiver<Option<Arc<Node>>> {
        self.node.subscribe()
    }

    /// Registers, reports and renews until `stop`. The Node stays as it is then: an agent that is upgraded comes back before
    /// its Lease ends.
    pub async fn run(self, stop: CancellationToken) {
        let Self { client, settings, parts, node } = self;
        let api: Api<Node> = Api::all(client.clone());
        let duration = settings.registration.lease_duration;
        let lease = LeaseKeeper::new(&client, &settings.name, duration, parts.clock.clone(), node.subscribe());
        let csi_node = csi::keep(client.clone(), node.subscribe(), parts.drivers.clone());
        let watch = follow(api, &settings.name, &node);
        let status = StatusKeeper::new(client, settings.clone(), parts, node.clone());
        // On the heap: a watch and four requests are more than a task's caller should carry.
        let work = Box::pin(async { tokio::join!(watch, lease.run(), csi_node, status.run()) });
        // Cancel-safe: every request is repeated by the next run, and none leaves another half done.
        stop.run_until_cancelled(work).await;
    }
}

/// Watches this one Node, which is all a node may watch, for ever.
async fn follow(api: Api<Node>, name: &str, node: &NodeSender) {
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut events = std::pin::pin!(watch_objects(api, config).default_backoff());
    let (mut is_there, mut outage) = (false, Outage::default());
    while let Some(event) = events.next().await {
        if matches!(event, Ok(Event::InitDone | Event::Apply(_) | Event::Delete(_))) {
            outage.over("Watching the Node again");
        }
        match event {
            Ok(Event::Init) => is_there = false,
            Ok(Event::InitApply(found)) => {
                is_there = true;
                publish(node, found);
            }
            Ok(Event::Apply(found)) => publish(node, found),
            Ok(Event::InitDone) if !is_there => forget(node, None),
            Ok(Event::InitDone) => {}
            Ok(Event::Delete(gone)) => {
                tracing::warn!(node = name, "The Node object was deleted");
                forget(node, gone.metadata.uid.as_deref());
            }
            Err(error) => outage.failed("Watching the Node failed, will go on", &error),
        }
    }
}

/// Tells of a Node unless a newer state of the same one was told before.
pub(super) fn publish(sender: &NodeSender, node: Node) {
    sender.send_if_modified(|current| {
        let is_older = current.as_ref().is_some_and(|current| is_newer(current, &node));
        if !is_older {
            *current = Some(Arc::new(node));
        }
        !is_older
    });
}

/// Whether `a` is a later or the same state of the Node that `b` is. Versions of one object are numbers that grow (the API
/// promises it since 1.35, etcd always did); others are taken as they come.
fn is_newer(a: &Node, b: &Node) -> bool {
    let version = |node: &Node| node.metadata.resource_version.as_ref()?.parse::<u64>().ok();
    a.metadata.uid == b.metadata.uid && matches!((version(a), version(b)), (Some(a), Some(b)) if a >= b)
}

/// Tells that there is no Node; of a deletion, only if it is the Node that was told of.
fn forget(sender: &NodeSender, uid: Option<&str>) {
    sender.send_if_modified(|current| {
        let concerned = current.as_ref().is_some_and(|current| uid.is_none() || current.metadata.uid.as_deref() == uid);
        if concerned {
            *current = None;
        }
        concerned
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(uid: &str, version: &str) -> Node {
        let json = serde_json::json!({"metadata": {"name": "n", "uid": uid, "resourceVersion": version}});
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn an_old_word_does_not_hide_a_new_one() {
        let sender = NodeSender::default();
        let told = || {
            let current = sender.borrow().clone();
            current.map(|node| node.metadata.uid.clone().unwrap() + node.metadata.resource_version.as_deref().unwrap())
        };
        publish(&sender, node("a", "9"));
        publish(&sender, node("a", "10"));
        publish(&sender, node("a", "9"));
        assert_eq!(told().as_deref(), Some("a10"));
        publish(&sender, node("b", "1"));
        assert_eq!(told().as_deref(), Some("b1"), "another Node of the same name");
        forget(&sender, Some("a"));
        assert_eq!(told().as_deref(), Some("b1"), "the old one's end");
        forget(&sender, Some("b"));
        assert_eq!(told(), None);
        publish(&sender, node("c", "1"));
        forget(&sender, None);
        assert_eq!(told(), None);
    }
}
