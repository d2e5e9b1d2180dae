//! What the node part is set to.
//!
//! In: the node's configuration. Out: [`NodeSettings`], thresholds read and labels checked. Reads no machine.

use std::collections::BTreeMap;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::Taint;

use super::pressure::thresholds::{Threshold, parse_graces, parse_reclaims, parse_thresholds};
use crate::config::{NodeConfig, RegistrationConfig};
use crate::pod::quantity::Quantity;

/// The label of a node's operating system.
pub const OS_LABEL: &str = "kubernetes.io/os";
/// The label of a node's architecture.
pub const ARCH_LABEL: &str = "kubernetes.io/arch";
/// The taint of a node whose config says nothing of taints.
pub const DEFAULT_TAINT: &str = "wasilet.dev/wasm";
/// `nodeInfo.containerRuntimeVersion`; a test holds it to the version that is built in.
pub(super) const RUNTIME_VERSION: &str = "wasmtime://48.0.8";

/// How many addresses pods have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PodAddresses {
    /// Those of the Node's podCIDR; none before it has one.
    #[default]
    OfNode,
    /// This many, of a range the node was configured with.
    Given(u64),
    /// Pods share the node's address, so addresses bound nothing.
    Shared,
}

/// Settings of the Node object, of pressure and of shutdown.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeSettings {
    /// The node's name, which is also its host name as far as the cluster is concerned.
    pub name: String,
    /// Where the node keeps everything; its file system is `nodefs`.
    pub root_dir: PathBuf,
    /// How it registers.
    pub registration: RegistrationConfig,
    /// `maxPods`.
    pub max_pods: Option<u32>,
    /// How many addresses pods have.
    pub addresses: PodAddresses,
    /// The port of the kubelet API, `None` when there is none.
    pub api_port: Option<u16>,
    /// `status.declaredFeatures`, sorted: what is true of this node.
    pub declared_features: Vec<String>,
    /// `evictionHard` and `evictionSoft` with what belongs to it, read.
    pub thresholds: Vec<Threshold>,
    /// `systemReserved` and `kubeReserved` together.
    pub reserved: BTreeMap<String, Quantity>,
}

impl NodeSettings {
    /// Takes them from the configuration.
    ///
    /// # Errors
    /// The field and what is wrong with it, when a threshold or a reserved quantity cannot be read.
    pub fn new(config: &NodeConfig, name: &str, root_dir: impl Into<PathBuf>) -> Result<Self, String> {
        let registration = config.registration.clone();
        let thresholds = read_thresholds(&registration)?;
        let mut reserved = BTreeMap::new();
        for (resource, text) in registration.reserved.iter().flatten() {
            let quantity: Quantity = text.parse().map_err(|error| format!("reserved {resource}: {error}"))?;
            if quantity.is_negative() {
                return Err(format!("reserved {resource}: {text:?} must not be negative"));
            }
            reserved
                .entry(resource.clone())
                .and_modify(|sum: &mut Quantity| *sum = sum.plus(quantity))
                .or_insert(quantity);
        }
        Ok(Self {
            name: name.to_owned(),
            root_dir: root_dir.into(),
            registration,
            max_pods: config.max_pods,
            addresses: PodAddresses::default(),
            api_port: config.server.enabled.then_some(config.server.port),
            declared_features: declared_features(&config.feature_gates),
            thresholds,
            reserved,
        })
    }

    /// The labels the node gives itself, and those of the config that it may not have (the API server would refuse the whole
    /// node for one of them).
    ///
    /// `kubernetes.io/os` and `kubernetes.io/arch` are what the node is, so that what is built for Linux does not land here;
    /// the config may say otherwise. Their beta names follow, as a kubelet's do.
    #[must_use]
    pub fn labels(&self) -> (BTreeMap<String, String>, Vec<String>) {
        let own = [("kubernetes.io/hostname", self.name.as_str()), (OS_LABEL, "wasi"), (ARCH_LABEL, "wasm32")];
        let mut labels: BTreeMap<String, String> =
            own.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        let mut forbidden = Vec::new();
        for (key, value) in &self.registration.labels {
            if may_set(key) {
                labels.insert(key.clone(), value.clone());
            } else {
                forbidden.push(key.clone());
            }
        }
        for (beta, stable) in [("beta.kubernetes.io/os", OS_LABEL), ("beta.kubernetes.io/arch", ARCH_LABEL)] {
            let value = labels[stable].clone();
            labels.insert(beta.to_owned(), value);
        }
        (labels, forbidden)
    }

    /// The taints a new Node gets.
    #[must_use]
    pub fn taints(&self) -> Vec<Taint> {
        self.registration.taints.clone().unwrap_or_else(|| {
            let (key, value, effect) = (DEFAULT_TAINT.to_owned(), Some("true".to_owned()), "NoSchedule".to_owned());
            vec![Taint { key, value, effect, ..Taint::default() }]
        })
    }
}

/// Hard thresholds, then soft ones, as the kubelet's `ParseThresholdConfig`.
fn read_thresholds(config: &RegistrationConfig) -> Result<Vec<Threshold>, String> {
    let named = |field: &'static str| move |problem: String| format!("{field}: {problem}");
    let mut thresholds = parse_thresholds(&config.eviction_hard).map_err(named("evictionHard"))?;
    let mut soft = parse_thresholds(&config.eviction_soft).map_err(named("evictionSoft"))?;
    let graces = parse_graces(&config.eviction_soft_grace_period).map_err(named("evictionSoftGracePeriod"))?;
    for threshold in &mut soft {
        let signal = threshold.signal.name();
        let grace = graces.get(&threshold.signal).ok_or_else(|| {
            format!("evictionSoft: grace period must be specified for the soft eviction threshold {signal}")
        })?;
        threshold.grace = Some(*grace);
    }
    thresholds.append(&mut soft);
    let reclaims = parse_reclaims(&config.eviction_minimum_reclaim).map_err(named("evictionMinimumReclaim"))?;
    for threshold in &mut thresholds {
        threshold.minimum_reclaim = reclaims.get(&threshold.signal).copied();
    }
    Ok(thresholds)
}

/// What of the 1.36 scheduler's and API server's features is true of this node, sorted as the API wants it.
///
/// The other name there is (`UserNamespacesHostNetworkSupport`) is not done here: not declaring it keeps pods that need it
/// away.
fn declared_features(gates: &BTreeMap<String, bool>) -> Vec<String> {
    const DONE: [&str; 4] = [
        "ExtendWebSocketsToKubelet",
        "InPlacePodLevelResourcesVerticalScaling",
        "InPlacePodVerticalScalingInitContainers",
        "RestartAllContainersOnContainerExits",
    ];
    let wanted = |name: &&str| gates.get(*name).copied().unwrap_or(true);
    DONE.into_iter().filter(wanted).map(str::to_owned).collect()
}

/// NodeRestriction's rule: of the labels of Kubernetes itself a node may set a few, and those of two namespaces
/// (`k8s.io/kubelet/pkg/apis/well_known_labels.go`).
fn may_set(key: &str) -> bool {
    const ALLOWED: [&str; 11] = [
        "kubernetes.io/hostname",
        "topology.kubernetes.io/zone",
        "topology.kubernetes.io/region",
        "failure-domain.beta.kubernetes.io/zone",
        "failure-domain.beta.kubernetes.io/region",
        "beta.kubernetes.io/instance-type",
        "node.kubernetes.io/instance-type",
        OS_LABEL,
        ARCH_LABEL,
        "beta.kubernetes.io/os",
        "beta.kubernetes.io/arch",
    ];
    let namespace = key.split_once('/').map_or("", |(namespace, _)| namespace);
    let within =
        |domain: &str| namespace.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    let of_kubernetes = within("kubernetes.io") || within("k8s.io");
    let allowed = ALLOWED.contains(&key) || within("kubelet.kubernetes.io") || within("node.kubernetes.io");
    !within("node-restriction.kubernetes.io") && (!of_kubernetes || allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(change: impl FnOnce(&mut NodeConfig)) -> NodeSettings {
        let mut config = NodeConfig::default();
        change(&mut config);
        NodeSettings::new(&config, "n1", "/r").unwrap()
    }

    #[test]
    fn labels_are_the_nodes_own_under_those_of_the_config() {
        let (labels, forbidden) = settings(|config| {
            for (key, value) in [
                (OS_LABEL, "linux"),
                ("pool", "edge"),
                ("node-role.kubernetes.io/worker", ""),
                ("x.node.kubernetes.io/y", "1"),
                ("a.node-restriction.kubernetes.io/b", "1"),
            ] {
                config.registration.labels.insert(key.to_owned(), value.to_owned());
            }
        })
        .labels();
        let shown: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        assert_eq!(
            shown,
            [
                "beta.kubernetes.io/arch=wasm32",
                "beta.kubernetes.io/os=linux",
                "kubernetes.io/arch=wasm32",
                "kubernetes.io/hostname=n1",
                "kubernetes.io/os=linux",
                "pool=edge",
                "x.node.kubernetes.io/y=1"
            ]
        );
        assert_eq!(forbidden, ["a.node-restriction.kubernetes.io/b", "node-role.kubernetes.io/worker"]);
    }

    #[test]
    fn taints_and_features_have_defaults() {
        let default = settings(|_| ());
        assert_eq!(default.taints()[0].key, DEFAULT_TAINT);
        assert_eq!(
            default.declared_features,
            [
                "ExtendWebSocketsToKubelet",
                "InPlacePodLevelResourcesVerticalScaling",
                "InPlacePodVerticalScalingInitContainers",
                "RestartAllContainersOnContainerExits"
            ]
        );
        let other = settings(|config| {
            config.registration.taints = Some(Vec::new());
            config.feature_gates.insert("ExtendWebSocketsToKubelet".to_owned(), false);
        });
        assert!(other.taints().is_empty());
        assert!(!other.declared_features.iter().any(|name| name == "ExtendWebSocketsToKubelet"));
        let mut config = NodeConfig::default();
        config.registration.eviction_hard.insert("memory.available".to_owned(), "lots".to_owned());
        assert!(NodeSettings::new(&config, "n", "/r").unwrap_err().starts_with("evictionHard: "));
        let mut config = NodeConfig::default();
        config.registration.eviction_soft.insert("memory.available".to_owned(), "1Gi".to_owned());
        assert_eq!(
            NodeSettings::new(&config, "n", "/r").unwrap_err(),
            "evictionSoft: grace period must be specified for the soft eviction threshold memory.available"
        );
        let grace = ("memory.available".to_owned(), "1m30s".to_owned());
        config.registration.eviction_soft_grace_period.extend([grace]);
        let soft = NodeSettings::new(&config, "n", "/r").unwrap().thresholds.pop().unwrap();
        assert_eq!(soft.grace, Some(std::time::Duration::from_secs(90)));
    }

    #[test]
    fn the_runtimes_version_is_the_one_that_is_built_in() {
        let version = RUNTIME_VERSION.trim_start_matches("wasmtime://");
        assert!(include_str!("../../Cargo.toml").contains(&format!("wasmtime = {{ version = \"={version}\"")));
    }
}
