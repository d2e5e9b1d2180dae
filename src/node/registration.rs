//! The Node as it is created, and what of an existing one is set right.
//!
//! In: settings, a status, the Node that is there. Out: the Node to create, patches, warnings. Pure; by
//! `kubelet_node_status.go`. Taints are set when the Node is created and never after: NodeRestriction forbids it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, NodeSpec, NodeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::{Value, json};

use super::settings::{ARCH_LABEL, NodeSettings, OS_LABEL};

/// Tells the attach/detach controller that it is the one to attach volumes, as a kubelet's default does.
const ATTACH_ANNOTATION: &str = "volumes.kubernetes.io/controller-managed-attach-detach";

/// The Node to create.
#[must_use]
pub fn initial(settings: &NodeSettings, status: NodeStatus) -> Node {
    let taints = settings.taints();
    Node {
        metadata: ObjectMeta {
            name: Some(settings.name.clone()),
            labels: Some(settings.labels().0),
            annotations: Some([(ATTACH_ANNOTATION.to_owned(), "true".to_owned())].into()),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec {
            taints: Some(taints).filter(|taints| !taints.is_empty()),
            provider_id: settings.registration.provider_id.clone(),
            ..NodeSpec::default()
        }),
        status: Some(status),
    }
}

/// What of a Node that was there before this agent is to be changed.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Reconciliation {
    /// A merge patch of `nodes/NAME/status` for labels and annotations, if they differ.
    pub metadata: Option<Value>,
    /// A merge patch of `nodes/NAME` for `providerID`, which may be set once.
    pub spec: Option<Value>,
    /// What cannot be changed and is not as the config says.
    pub warnings: Vec<String>,
}

/// Compares a Node with the settings.
#[must_use]
pub fn reconcile(node: &Node, settings: &NodeSettings) -> Reconciliation {
    let labels = differing(node.metadata.labels.as_ref(), &settings.labels().0);
    let annotation = [(ATTACH_ANNOTATION.to_owned(), "true".to_owned())].into();
    let annotations = differing(node.metadata.annotations.as_ref(), &annotation);
    let metadata = (!labels.is_empty() || !annotations.is_empty())
        .then(|| json!({"metadata": {"labels": labels, "annotations": annotations}}));
    let spec = node.spec.clone().unwrap_or_default();
    let mut warnings = Vec::new();
    let has = spec.provider_id.as_deref().unwrap_or_default();
    let provider_patch = match settings.registration.provider_id.as_deref() {
        Some(wanted) if has.is_empty() => Some(json!({"spec": {"providerID": wanted}})),
        Some(wanted) if has != wanted => {
            warnings.push(format!("the Node's providerID is {has:?} and cannot become {wanted:?}"));
            None
        }
        _ => None,
    };
    // Taints of controllers (not-ready, pressure, cordon) come and go; only those of the config are looked for.
    if settings.registration.taints.is_some() {
        let wanted = settings.taints();
        let there = spec.taints.unwrap_or_default();
        let same = |a: &k8s_openapi::api::core::v1::Taint, b: &k8s_openapi::api::core::v1::Taint| {
            a.key == b.key
                && a.effect == b.effect
                && a.value.as_deref().unwrap_or("") == b.value.as_deref().unwrap_or("")
        };
        for taint in wanted.iter().filter(|taint| !there.iter().any(|other| same(taint, other))) {
            warnings.push(format!(
                "registerWithTaints has {}:{}, which the Node does not have; taints are set only when a Node is created",
                taint.key, taint.effect
            ));
        }
    }
    Reconciliation { metadata, spec: provider_patch, warnings }
}

/// The labels a kubelet sets right with each status, whoever changed them: the two that say what the node is.
#[must_use]
pub fn reconcile_platform(node: &Node, settings: &NodeSettings) -> Option<Value> {
    let mut wanted = settings.labels().0;
    wanted.retain(|key, _| key == OS_LABEL || key == ARCH_LABEL);
    let labels = differing(node.metadata.labels.as_ref(), &wanted);
    (!labels.is_empty()).then(|| json!({"metadata": {"labels": labels}}))
}

fn differing(there: Option<&BTreeMap<String, String>>, wanted: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let is_there = |key: &str, value: &str| there.and_then(|there| there.get(key)).is_some_and(|is| is == value);
    let missing = wanted.iter().filter(|(key, value)| !is_there(key, value));
    missing.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// The reference by which the Node's own objects go when it goes. `None` before the Node has a UID.
#[must_use]
pub fn owner(node: &Node) -> Option<OwnerReference> {
    Some(OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: node.metadata.name.clone()?,
        uid: node.metadata.uid.clone()?,
        ..OwnerReference::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::NodeConfig;

    fn settings(change: impl FnOnce(&mut NodeConfig)) -> NodeSettings {
        let mut config = NodeConfig::default();
        change(&mut config);
        NodeSettings::new(&config, "n1", "/r").unwrap()
    }

    #[test]
    fn a_node_that_is_as_it_should_be_is_left_alone() {
        let settings = settings(|config| config.registration.provider_id = Some("edge://1".to_owned()));
        let node = initial(&settings, NodeStatus::default());
        assert_eq!(node.spec.as_ref().unwrap().taints.as_ref().unwrap()[0].key, "wasilet.dev/wasm");
        assert_eq!(reconcile(&node, &settings), Reconciliation::default());
        assert_eq!(reconcile_platform(&node, &settings), None);
    }

    #[test]
    fn labels_come_back_and_taints_do_not() {
        let settings = settings(|config| {
            config.registration.provider_id = Some("edge://1".to_owned());
            config.registration.labels.insert("pool".to_owned(), "a".to_owned());
            config.registration.taints =
                Some(vec![serde_json::from_value(json!({"key": "k", "value": "v", "effect": "NoSchedule"})).unwrap()]);
        });
        let mut node = initial(&settings, NodeStatus::default());
        let labels = node.metadata.labels.as_mut().unwrap();
        labels.insert("pool".to_owned(), "b".to_owned());
        labels.insert("of-an-admin".to_owned(), "x".to_owned());
        labels.remove(OS_LABEL);
        node.spec.as_mut().unwrap().taints = None;
        node.spec.as_mut().unwrap().provider_id = None;
        let found = reconcile(&node, &settings);
        assert_eq!(
            found.metadata,
            Some(json!({"metadata": {"labels": {"kubernetes.io/os": "wasi", "pool": "a"}, "annotations": {}}}))
        );
        assert_eq!(found.spec, Some(json!({"spec": {"providerID": "edge://1"}})));
        assert_eq!(
            found.warnings,
            [
                "registerWithTaints has k:NoSchedule, which the Node does not have; taints are set only when a Node is created"
            ]
        );
        assert_eq!(
            reconcile_platform(&node, &settings),
            Some(json!({"metadata": {"labels": {"kubernetes.io/os": "wasi"}}}))
        );
    }
}
