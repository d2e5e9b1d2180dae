//! The node's CSINode: the drivers it has, which are none.
//!
//! In: the Node. Out: a CSINode owned by it, as the kubelet makes one at start; the scheduler and controllers of volumes
//! look for it.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::{CSINode, CSINodeSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;

use super::api::{ApiError, BackOff, Outage, bounded};
use super::registration::owner;

/// Makes the CSINode, once for each Node there is. Ends when nobody tells of Nodes any more.
pub(super) async fn keep(client: Client, mut node: watch::Receiver<Option<Arc<Node>>>) {
    let api: Api<CSINode> = Api::all(client);
    let mut done_for = None;
    let (mut back_off, mut outage) = (BackOff::default(), Outage::default());
    loop {
        let current = node.borrow_and_update().clone();
        let uid = current.as_ref().and_then(|node| node.metadata.uid.clone());
        if let Some(node) = current.filter(|_| uid != done_for) {
            match ensure(&api, &node).await {
                Ok(()) => {
                    done_for = uid;
                    back_off.reset();
                    outage.over("Made the CSINode");
                }
                Err(error) => {
                    outage.failed("Failed to make the CSINode, will retry", &error);
                    tokio::time::sleep(back_off.next()).await;
                    continue;
                }
            }
        }
        if node.changed().await.is_err() {
            return;
        }
    }
}

async fn ensure(api: &Api<CSINode>, node: &Node) -> Result<(), ApiError> {
    let (Some(name), Some(owner)) = (node.metadata.name.as_deref(), owner(node)) else { return Ok(()) };
    let post = PostParams::default();
    match bounded("reading the CSINode", api.get_opt(name)).await? {
        Some(there) if there.metadata.owner_references.iter().flatten().any(|other| other.uid == owner.uid) => {}
        // Of a Node of this name that was deleted.
        Some(mut there) => {
            there.metadata.owner_references = Some(vec![owner]);
            bounded("updating the CSINode", api.replace(name, &post, &there)).await?;
        }
        None => {
            let metadata = ObjectMeta {
                name: Some(name.to_owned()),
                owner_references: Some(vec![owner]),
                ..ObjectMeta::default()
            };
            let csi_node = CSINode { metadata, spec: CSINodeSpec { drivers: Vec::new() } };
            bounded("creating the CSINode", api.create(&post, &csi_node)).await?;
        }
    }
    Ok(())
}
