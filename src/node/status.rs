//! `status` of the Node: computed as a whole, compared, and patched.
//!
//! In: facts, settings, health, images, the status the Node has. Out: the status it should have, whether that differs, and
//! the strategic merge patch between the two. Pure.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeFeatures, NodeRuntimeHandler,
    NodeRuntimeHandlerFeatures, NodeStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Map, Value, json};

use super::capacity::{Capacity, Resources};
use super::conditions::{Health, OURS, conditions};
use super::facts::Machine;
use super::settings::{ARCH_LABEL, NodeSettings, OS_LABEL, RUNTIME_VERSION};
use crate::image::ImageSummary;
use crate::pod::sandbox::RUNTIME_HANDLERS;

/// Names of one image in a status (`MaxNamesPerImageInNodeStatus`).
const MAX_NAMES_PER_IMAGE: usize = 5;

/// What a status is made of.
#[derive(Debug, Clone)]
pub struct StatusInput<'a> {
    /// Settings.
    pub settings: &'a NodeSettings,
    /// Names and versions.
    pub machine: &'a Machine,
    /// What there is, and what pods can have.
    pub capacity: &'a Capacity,
    /// The node's addresses, the primary one first; none while it has none.
    pub addresses: &'a [IpAddr],
    /// `v1.36.0+wasilet`.
    pub kubelet_version: &'a str,
    /// What the image store has.
    pub images: &'a [ImageSummary],
    /// What conditions are made of.
    pub health: &'a Health,
    /// Names of volumes that no controller may detach, sorted.
    pub volumes_in_use: &'a [String],
    /// Now.
    pub now: Time,
}

/// The status a Node should have, and reasons of events about it.
#[must_use]
pub fn desired(before: &NodeStatus, input: &StatusInput<'_>) -> (NodeStatus, Vec<&'static str>) {
    let mut status = before.clone();
    let found = conditions(before.conditions.as_deref().unwrap_or_default(), input.health, input.now.clone());
    status.conditions = Some(found.all);
    // Resources of others (device plugins, extended resources set by an admin) are kept.
    merge(&mut status.capacity, &input.capacity.capacity);
    merge(&mut status.allocatable, &input.capacity.allocatable);
    let extended = status.capacity.clone().unwrap_or_default();
    let allocatable = status.allocatable.get_or_insert_default();
    for (name, quantity) in extended {
        allocatable.entry(name).or_insert(quantity);
    }
    let address = |kind: &str, address: String| NodeAddress { type_: kind.to_owned(), address };
    if !input.addresses.is_empty() {
        let internal = input.addresses.iter().map(|ip| address("InternalIP", ip.to_string()));
        status.addresses = Some(internal.chain([address("Hostname", input.settings.name.clone())]).collect());
    }
    let labels = input.settings.labels().0;
    status.node_info = Some(NodeSystemInfo {
        machine_id: input.machine.machine_id.clone(),
        system_uuid: input.machine.system_uuid.clone(),
        boot_id: input.machine.boot_id.clone(),
        kernel_version: input.machine.kernel_version.clone(),
        os_image: input.machine.os_image.clone(),
        container_runtime_version: RUNTIME_VERSION.to_owned(),
        kubelet_version: input.kubelet_version.to_owned(),
        kube_proxy_version: String::new(),
        // The API server validates neither; a kubelet's are always the values of its labels, and who reads one
        // (kubectl describe, dashboards, the e2e suite) expects the other.
        operating_system: labels.get(OS_LABEL).cloned().unwrap_or_default(),
        architecture: labels.get(ARCH_LABEL).cloned().unwrap_or_default(),
        swap: None,
    });
    status.daemon_endpoints = Some(NodeDaemonEndpoints {
        kubelet_endpoint: Some(DaemonEndpoint { port: input.settings.api_port.map_or(0, i32::from) }),
    });
    status.images = Some(images(input.images, input.settings.registration.max_images)).filter(|all| !all.is_empty());
    status.runtime_handlers = Some(runtime_handlers());
    status.features = Some(NodeFeatures { supplemental_groups_policy: Some(true) });
    status.declared_features = Some(input.settings.declared_features.clone()).filter(|all| !all.is_empty());
    status.volumes_in_use = Some(input.volumes_in_use.to_vec()).filter(|all| !all.is_empty());
    (status, found.events)
}

fn merge(
    into: &mut Option<std::collections::BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>>,
    from: &Resources,
) {
    let into = into.get_or_insert_default();
    for (name, quantity) in from {
        into.insert(name.clone(), (*quantity).into());
    }
}

/// The RuntimeClass handlers of this node: `wasi`, and the default one, which is the same. A guest never sees the node's users,
/// so user namespaces mean nothing here and are what every pod has; read-only mounts are read-only all the way down.
fn runtime_handlers() -> Vec<NodeRuntimeHandler> {
    let handler = |name: &str| NodeRuntimeHandler {
        name: Some(name.to_owned()),
        features: Some(NodeRuntimeHandlerFeatures {
            recursive_read_only_mounts: Some(true),
            user_namespaces: Some(true),
        }),
    };
    std::iter::once("").chain(RUNTIME_HANDLERS).map(handler).collect()
}

/// The largest images first, as the kubelet lists them: names by digest before names by tag.
fn images(all: &[ImageSummary], most: Option<usize>) -> Vec<ContainerImage> {
    let mut images: Vec<ContainerImage> = all
        .iter()
        .map(|image| {
            let mut names: Vec<String> = image.names.iter().map(ToString::to_string).collect();
            names.sort_by_key(|name| !name.contains('@'));
            if names.is_empty() {
                names.push(image.manifest_digest.to_string());
            }
            names.truncate(MAX_NAMES_PER_IMAGE);
            ContainerImage { names: Some(names), size_bytes: Some(i64::try_from(image.size).unwrap_or(i64::MAX)) }
        })
        .collect();
    images.sort_by(|a, b| b.size_bytes.cmp(&a.size_bytes).then_with(|| a.names.cmp(&b.names)));
    images.truncate(most.unwrap_or(usize::MAX));
    images
}

/// Whether two statuses differ in more than the times of heartbeats.
#[must_use]
pub fn differs(before: &NodeStatus, after: &NodeStatus) -> bool {
    let still = |status: &NodeStatus| {
        let mut status = status.clone();
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None;
        }
        status.conditions.get_or_insert_default().sort_by(|a, b| a.type_.cmp(&b.type_));
        status
    };
    still(before) != still(after)
}

/// The strategic merge patch that makes `before` into `after`: conditions of ours always (their heartbeats), other fields only
/// where they differ. `None` removes.
#[must_use]
pub fn patch(before: &NodeStatus, after: &NodeStatus) -> Value {
    let (old, new) = (fields(before), fields(after));
    let mut patch = Map::new();
    for (name, value) in &new {
        match name.as_str() {
            "conditions" => {}
            _ if old.get(name) == Some(value) => {}
            // Declared as a list that is merged by type, which loses one of two addresses of a type: replaced as a whole.
            "addresses" => {
                let mut list = vec![json!({"$patch": "replace"})];
                list.extend(value.as_array().into_iter().flatten().cloned());
                patch.insert(name.clone(), Value::Array(list));
            }
            _ => {
                patch.insert(name.clone(), value.clone());
            }
        }
    }
    for name in old.keys().filter(|name| !new.contains_key(*name)) {
        patch.insert(name.clone(), Value::Null);
    }
    let ours = |condition: &&NodeCondition| OURS.contains(&condition.type_.as_str());
    let conditions: Vec<_> = after.conditions.iter().flatten().filter(ours).collect();
    patch.insert("conditions".to_owned(), json!(conditions));
    json!({ "status": patch })
}

/// Its fields as JSON.
pub(super) fn fields(status: &NodeStatus) -> Map<String, Value> {
    match serde_json::to_value(status) {
        Ok(Value::Object(fields)) => fields,
        // A status has only string keys and is an object.
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::NodeConfig;
    use crate::image::ImageKind;
    use crate::node::conditions::{NetworkState, ShutdownState};
    use crate::pod::admission::Pressure;
    use crate::pod::quantity::Quantity;

    fn image(names: &[&str], size: u64) -> ImageSummary {
        ImageSummary {
            names: names.iter().map(|name| name.parse().unwrap()).collect(),
            manifest_digest: crate::ids::Digest::of(b"m"),
            image_id: crate::ids::Digest::of(b"i"),
            size,
            kind: ImageKind::Artifact,
            stored_at: std::time::SystemTime::UNIX_EPOCH,
            pinned: false,
        }
    }

    fn compute(before: &NodeStatus, second: i64, images: &[ImageSummary]) -> NodeStatus {
        let settings = NodeSettings::new(&NodeConfig::default(), "n1", "/r").unwrap();
        let one = |name: &str| [(name.to_owned(), Quantity::from_millis(1000))].into();
        let capacity = Capacity { capacity: one("cpu"), allocatable: one("cpu") };
        let health = Health {
            network: NetworkState::Ready,
            pressure: Pressure::default(),
            shutdown: ShutdownState::Running,
            problems: Vec::new(),
        };
        let addresses = ["198.51.100.1".parse().unwrap()];
        let input = StatusInput {
            settings: &settings,
            machine: &Machine::default(),
            capacity: &capacity,
            addresses: &addresses,
            kubelet_version: "v1.36.0+wasilet",
            images,
            health: &health,
            volumes_in_use: &["kubernetes.io/csi/d^h".to_owned()],
            now: Time(jiff::Timestamp::from_second(second).unwrap()),
        };
        desired(before, &input).0
    }

    #[test]
    fn a_heartbeat_is_no_change_and_its_patch_is_only_conditions() {
        let first = compute(&NodeStatus::default(), 1, &[]);
        assert_eq!(first.volumes_in_use.as_deref(), Some(&["kubernetes.io/csi/d^h".to_owned()][..]));
        let second = compute(&first, 11, &[]);
        assert!(differs(&NodeStatus::default(), &first) && !differs(&first, &second));
        let patch = patch(&first, &second);
        let fields: Vec<_> = patch["status"].as_object().unwrap().keys().collect();
        assert_eq!(fields, ["conditions"]);
        assert_eq!(patch["status"]["conditions"][3]["lastHeartbeatTime"], "1970-01-01T00:00:11Z");
        assert_eq!(patch["status"]["conditions"][3]["lastTransitionTime"], "1970-01-01T00:00:01Z");
    }

    #[test]
    fn what_changed_is_patched_and_what_others_wrote_is_kept() {
        let mut before = compute(&NodeStatus::default(), 1, &[]);
        before.addresses.as_mut().unwrap()[0].address = "10.0.0.1".to_owned();
        let gpu = k8s_openapi::apimachinery::pkg::api::resource::Quantity("2".to_owned());
        before.capacity.as_mut().unwrap().insert("example.com/gpu".to_owned(), gpu.clone());
        before.conditions.as_mut().unwrap().push(NodeCondition {
            type_: "NetworkUnavailable".to_owned(),
            status: "False".to_owned(),
            ..NodeCondition::default()
        });
        let images = [image(&["docker.io/library/small:1"], 1), image(&["docker.io/library/big:1"], 2)];
        let after = compute(&before, 2, &images);
        assert_eq!(after.allocatable.as_ref().unwrap()["example.com/gpu"], gpu);
        assert!(differs(&before, &after));
        let patch = patch(&before, &after);
        assert_eq!(
            patch["status"]["addresses"],
            json!([{"$patch": "replace"}, {"type": "InternalIP", "address": "198.51.100.1"},
                {"type": "Hostname", "address": "n1"}])
        );
        assert_eq!(patch["status"]["images"][0]["sizeBytes"], 2);
        assert_eq!(patch["status"]["conditions"].as_array().unwrap().len(), 4);
        let back = compute(&after, 3, &[]);
        assert_eq!(super::patch(&after, &back)["status"]["images"], Value::Null);
    }

    #[test]
    fn the_largest_images_are_listed_first_by_digest() {
        let digest = crate::ids::Digest::of(b"x");
        let all = [
            image(&["docker.io/library/a:1", &format!("docker.io/library/a@{digest}")], 5),
            image(&["docker.io/library/b:1"], 9),
            image(&["docker.io/library/c:1"], 1),
        ];
        let listed = images(&all, Some(2));
        assert_eq!(listed[0].names.as_ref().unwrap()[0], "docker.io/library/b:1");
        assert_eq!(
            listed[1].names.as_ref().unwrap(),
            &[format!("docker.io/library/a@{digest}"), "docker.io/library/a:1".to_owned()]
        );
        assert_eq!(listed.len(), 2);
        assert_eq!(images(&all, None).len(), 3);
    }
}
