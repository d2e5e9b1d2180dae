//! The node's CSINode: the drivers it has; and what a driver says of the Node itself.
//!
//! In: the Node, the drivers that registered. Out: a CSINode owned by the Node, as the kubelet makes one at start, with the
//! drivers' entries; the Node's labels of topology and its annotation of node ids. As the kubelet's `nodeinfomanager`:
//! a driver that went away is taken out, one that is not back yet after a restart of the agent stays.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::{CSINode, CSINodeDriver, CSINodeSpec, VolumeNodeResources};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::watch;

use super::api::{ApiError, BackOff, Outage, bounded};
use super::registration::owner;
use crate::volume::{DriverFacts, DriversFacts};

const NODE_ID_ANNOTATION: &str = "csi.volume.kubernetes.io/nodeid";

/// Keeps the CSINode: once for each Node there is, and when drivers come and go. Ends when nobody tells of Nodes any more.
pub(super) async fn keep(
    client: Client,
    mut node: watch::Receiver<Option<Arc<Node>>>,
    mut drivers: watch::Receiver<DriversFacts>,
) {
    let (api, nodes): (Api<CSINode>, Api<Node>) = (Api::all(client.clone()), Api::all(client));
    let mut done_for = None;
    // Drivers that were here in this agent's life.
    let mut told = BTreeSet::new();
    let (mut back_off, mut outage) = (BackOff::default(), Outage::default());
    loop {
        let current = node.borrow_and_update().clone();
        let facts = drivers.borrow_and_update().clone();
        let wanted = current.as_ref().and_then(|node| Some((node.metadata.uid.clone()?, facts.clone())));
        if let Some(node) = current.filter(|_| wanted != done_for) {
            told.extend(facts.keys().cloned());
            let done = async {
                ensure(&api, &node, &facts, &told).await?;
                tell_node(&nodes, &node, &facts, &told).await
            };
            match done.await {
                Ok(()) => {
                    done_for = wanted;
                    back_off.reset();
                    outage.over("Wrote the CSINode");
                }
                Err(error) => {
                    outage.failed("Failed to write the CSINode, will retry", &error);
                    tokio::time::sleep(back_off.next()).await;
                    continue;
                }
            }
        }
        tokio::select! {
            // Both are cancel-safe: what changed is seen by the next look.
            changed = node.changed() => if changed.is_err() { return },
            Ok(()) = drivers.changed() => {}
        }
    }
}

/// The entries there should be. Pure.
fn entries(
    before: &[CSINodeDriver],
    facts: &BTreeMap<String, DriverFacts>,
    told: &BTreeSet<String>,
) -> Vec<CSINodeDriver> {
    let kept = before.iter().filter(|entry| !told.contains(&entry.name)).cloned();
    let mut all: Vec<CSINodeDriver> = kept
        .chain(facts.iter().map(|(name, facts)| CSINodeDriver {
            name: name.clone(),
            node_id: facts.node_id.clone(),
            topology_keys: Some(facts.topology.keys().cloned().collect::<Vec<_>>()).filter(|keys| !keys.is_empty()),
            allocatable: facts.max_volumes.map(|count| VolumeNodeResources { count: Some(count) }),
        }))
        .collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

/// The Node's labels and annotation that drivers call for, as a merge patch; `None` when it has them. Pure.
///
/// A label with another value already is not changed: pods were placed by it.
fn node_patch(
    node: &Node,
    facts: &BTreeMap<String, DriverFacts>,
    told: &BTreeSet<String>,
) -> Option<serde_json::Value> {
    let labels = node.metadata.labels.clone().unwrap_or_default();
    let mut wanted = BTreeMap::new();
    for (key, value) in facts.values().flat_map(|facts| &facts.topology) {
        match labels.get(key) {
            None => drop(wanted.insert(key.clone(), value.clone())),
            Some(there) if there != value => tracing::error!(
                label = key,
                has = there,
                driver = value,
                "Detected topology value collision: a CSI driver reports another value than the Node's label"
            ),
            Some(_) => {}
        }
    }
    let annotation = node.metadata.annotations.as_ref().and_then(|all| all.get(NODE_ID_ANNOTATION));
    let before: BTreeMap<String, String> =
        annotation.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let mut ids = before.clone();
    ids.retain(|name, _| !told.contains(name));
    ids.extend(facts.iter().map(|(name, facts)| (name.clone(), facts.node_id.clone())));
    if ids == before && wanted.is_empty() {
        return None;
    }
    let ids = if ids.is_empty() { serde_json::Value::Null } else { json!(json!(ids).to_string()) };
    Some(json!({"metadata": {"labels": wanted, "annotations": {NODE_ID_ANNOTATION: ids}}}))
}

async fn tell_node(
    api: &Api<Node>,
    node: &Node,
    facts: &BTreeMap<String, DriverFacts>,
    told: &BTreeSet<String>,
) -> Result<(), ApiError> {
    let (Some(name), Some(patch)) = (node.metadata.name.as_deref(), node_patch(node, facts, told)) else {
        return Ok(());
    };
    let params = PatchParams::default();
    bounded("labelling the Node for CSI drivers", api.patch(name, &params, &Patch::Merge(patch))).await.map(drop)
}

async fn ensure(
    api: &Api<CSINode>,
    node: &Node,
    facts: &BTreeMap<String, DriverFacts>,
    told: &BTreeSet<String>,
) -> Result<(), ApiError> {
    let (Some(name), Some(owner)) = (node.metadata.name.as_deref(), owner(node)) else { return Ok(()) };
    let post = PostParams::default();
    match bounded("reading the CSINode", api.get_opt(name)).await? {
        Some(mut there) => {
            let drivers = entries(&there.spec.drivers, facts, told);
            let is_ours = there.metadata.owner_references.iter().flatten().any(|other| other.uid == owner.uid);
            if is_ours && drivers == there.spec.drivers {
                return Ok(());
            }
            // Of a Node of this name that was deleted, if it is not ours.
            there.metadata.owner_references = Some(vec![owner]);
            there.spec.drivers = drivers;
            bounded("updating the CSINode", api.replace(name, &post, &there)).await?;
        }
        None => {
            let metadata = ObjectMeta {
                name: Some(name.to_owned()),
                owner_references: Some(vec![owner]),
                ..ObjectMeta::default()
            };
            let csi_node = CSINode { metadata, spec: CSINodeSpec { drivers: entries(&[], facts, told) } };
            bounded("creating the CSINode", api.create(&post, &csi_node)).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(id: &str, topology: &[(&str, &str)], max_volumes: Option<i32>) -> DriverFacts {
        let topology = topology.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        DriverFacts { node_id: id.to_owned(), max_volumes, topology }
    }

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn drivers_come_and_go_and_those_of_another_life_stay() {
        let old = entries(&[], &[("old".to_owned(), facts("n", &[], None))].into(), &names(&["old"]));
        let new: BTreeMap<_, _> = [("new".to_owned(), facts("id", &[("zone", "a"), ("rack", "b")], Some(7)))].into();
        let both = entries(&old, &new, &names(&["new"]));
        let shown: Vec<&str> = both.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(shown, ["new", "old"]);
        assert_eq!(both[0].topology_keys.as_deref(), Some(&["rack".to_owned(), "zone".to_owned()][..]));
        assert_eq!(both[0].allocatable.as_ref().and_then(|most| most.count), Some(7));
        assert_eq!(both[1].allocatable, None);
        let gone = entries(&both, &BTreeMap::new(), &names(&["new"]));
        assert_eq!(gone, old);
    }

    #[test]
    fn a_node_is_labelled_where_its_driver_says_it_is() {
        let node = |value: serde_json::Value| -> Node { serde_json::from_value(json!({"metadata": value})).unwrap() };
        let drivers: BTreeMap<_, _> = [("d".to_owned(), facts("id", &[("zone", "a")], None))].into();
        let patch = node_patch(&node(json!({})), &drivers, &names(&["d"])).unwrap();
        assert_eq!(patch["metadata"]["labels"], json!({"zone": "a"}));
        assert_eq!(patch["metadata"]["annotations"][NODE_ID_ANNOTATION], json!("{\"d\":\"id\"}"));
        let done = json!({"labels": {"zone": "a"}, "annotations": {NODE_ID_ANNOTATION: "{\"d\":\"id\"}"}});
        assert_eq!(node_patch(&node(done.clone()), &drivers, &names(&["d"])), None);
        let gone = node_patch(&node(done), &BTreeMap::new(), &names(&["d"])).unwrap();
        assert_eq!(gone["metadata"]["annotations"][NODE_ID_ANNOTATION], json!(null));
        let collides = node_patch(&node(json!({"labels": {"zone": "b"}})), &drivers, &names(&["d"])).unwrap();
        assert_eq!(collides["metadata"]["labels"], json!({}), "pods were placed by the label there is");
    }
}
