//! The node's heartbeat: its Lease in `kube-node-lease`.
//!
//! In: the node's name and UID, the clock. Out: a Lease renewed four times in its duration. A Lease belongs to its Node and
//! goes with it. By `component-helpers/apimachinery/lease`. Knows nothing of the node's status.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;

use super::api::{ApiError, BackOff, Outage, bounded};
use super::registration::owner;
use crate::clock::Clock;

/// Where Leases of nodes are.
const NAMESPACE: &str = "kube-node-lease";

/// Keeps the Lease.
pub(super) struct LeaseKeeper {
    pub api: Api<Lease>,
    pub name: String,
    pub duration: Duration,
    pub clock: Clock,
    pub node: watch::Receiver<Option<Arc<Node>>>,
    /// The Lease as it was written last: usually nobody else writes it, so it need not be read.
    latest: Option<Lease>,
}

impl LeaseKeeper {
    pub(super) fn new(
        client: &Client,
        name: &str,
        duration: Duration,
        clock: Clock,
        node: watch::Receiver<Option<Arc<Node>>>,
    ) -> Self {
        let api = Api::namespaced(client.clone(), NAMESPACE);
        Self { api, name: name.to_owned(), duration, clock, node, latest: None }
    }

    /// Renews for ever.
    pub(super) async fn run(mut self) {
        let (mut back_off, mut outage) = (BackOff::default(), Outage::default());
        // A Lease without a Node would be nobody's. The sender lives as long as this.
        let _ = self.node.wait_for(Option::is_some).await;
        loop {
            let wait = match self.renew().await {
                Ok(()) => {
                    back_off.reset();
                    outage.over("Renewed the node's lease again");
                    // A little apart, so that nodes started together do not stay together.
                    self.duration / 4 + (self.duration / 100).mul_f64(rand::random::<f64>())
                }
                Err(error) => {
                    outage.failed("Failed to renew the node's lease, will retry", &error);
                    back_off.next().min(self.duration / 4)
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    async fn renew(&mut self) -> Result<(), ApiError> {
        let node = self.node.borrow().clone();
        let base = match self.latest.take() {
            Some(lease) => Some(lease),
            None => bounded("reading the Lease", self.api.get_opt(&self.name)).await?,
        };
        let post = PostParams::default();
        let lease = lease(base.as_ref(), &self.name, self.duration, node.as_deref(), MicroTime(self.clock.now()));
        self.latest = Some(if base.is_some() {
            bounded("renewing the Lease", self.api.replace(&self.name, &post, &lease)).await?
        } else {
            bounded("creating the Lease", self.api.create(&post, &lease)).await?
        });
        Ok(())
    }
}

/// The Lease as it is to be written: what is there, renewed, and owned by the Node there is now.
fn lease(base: Option<&Lease>, name: &str, duration: Duration, node: Option<&Node>, now: MicroTime) -> Lease {
    let mut lease = base.cloned().unwrap_or_else(|| Lease {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(NAMESPACE.to_owned()),
            ..ObjectMeta::default()
        },
        ..Lease::default()
    });
    let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
    spec.holder_identity.get_or_insert_with(|| name.to_owned());
    // The configuration may have changed since it was made.
    spec.lease_duration_seconds = Some(i32::try_from(duration.as_secs()).unwrap_or(i32::MAX));
    spec.renew_time = Some(now);
    if let Some(owner) = node.and_then(owner)
        && !lease.metadata.owner_references.iter().flatten().any(|other| other.uid == owner.uid)
    {
        lease.metadata.owner_references = Some(vec![owner]);
    }
    lease
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(uid: &str) -> Node {
        serde_json::from_value(serde_json::json!({"metadata": {"name": "n1", "uid": uid}})).unwrap()
    }

    #[test]
    fn a_lease_is_renewed_and_follows_its_node() {
        let at = |second| MicroTime(jiff::Timestamp::from_second(second).unwrap());
        let first = lease(None, "n1", Duration::from_secs(40), None, at(1));
        let spec = first.spec.as_ref().unwrap();
        assert_eq!((spec.holder_identity.as_deref(), spec.lease_duration_seconds), (Some("n1"), Some(40)));
        assert!(first.metadata.owner_references.is_none());
        let owned = lease(Some(&first), "n1", Duration::from_secs(8), Some(&node("u1")), at(2));
        let references = owned.metadata.owner_references.as_ref().unwrap();
        assert_eq!((references[0].kind.as_str(), references[0].uid.as_str()), ("Node", "u1"));
        assert_eq!(owned.spec.as_ref().unwrap().lease_duration_seconds, Some(8));
        assert_eq!(owned.spec.as_ref().unwrap().renew_time, Some(at(2)));
        let moved = lease(Some(&owned), "n1", Duration::from_secs(8), Some(&node("u2")), at(3));
        assert_eq!(moved.metadata.owner_references.unwrap()[0].uid, "u2", "the Node was deleted and made again");
    }
}
