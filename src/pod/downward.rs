//! The downward API: what a pod may know about itself.
//!
//! In: a pod, its addresses, facts of the node. Out: the strings of `fieldRef` and `resourceFieldRef`, for
//! env (`env`) and for files (the `volume` room asks through the worker).

use std::fmt::Write as _;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, ObjectFieldSelector, Pod, ResourceFieldSelector};

use super::names;
use super::quantity::{Quantity, QuantityError};

/// What the node tells its pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFacts {
    /// The node's name.
    pub name: String,
    /// Its addresses, the primary one first.
    pub host_ips: Vec<IpAddr>,
    /// CPU a container without a limit may use, in thousandths.
    pub allocatable_cpu_milli: i64,
    /// Memory a container without a limit may use, in bytes.
    pub allocatable_memory_bytes: i64,
    /// Ephemeral storage a container without a limit may use, in bytes.
    pub allocatable_ephemeral_storage_bytes: i64,
}

/// A pod as it may see itself.
#[derive(Debug, Clone, Copy)]
pub struct Downward<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// Its addresses; empty while it has none.
    pub pod_ips: &'a [IpAddr],
    /// Its node.
    pub node: &'a NodeFacts,
}

/// Why a field cannot be shown; in the kubelet's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DownwardError {
    /// No such field can be asked for.
    #[error("unsupported fieldPath: {path}")]
    UnsupportedField {
        /// `fieldPath`.
        path: String,
    },
    /// The key in `['...']` cannot be one.
    #[error("invalid key subscript in {path}: {reason}")]
    InvalidSubscript {
        /// `fieldPath`.
        path: String,
        /// What is wrong with the key.
        reason: String,
    },
    /// Only labels and annotations have keys.
    #[error("fieldPath {path:?} does not support subscript")]
    NoSubscript {
        /// `fieldPath`.
        path: String,
    },
    /// No such resource can be asked for.
    #[error("unsupported container resource : {resource}")]
    UnsupportedResource {
        /// `resource`.
        resource: String,
    },
    /// The container of a `resourceFieldRef` is not in the pod.
    #[error("container {container} not found")]
    ContainerNotFound {
        /// `containerName`.
        container: String,
    },
    /// A quantity of the pod or the divisor cannot be read.
    #[error("resource {resource}: {source}")]
    Quantity {
        /// `resource`.
        resource: String,
        /// What is wrong with it.
        source: QuantityError,
    },
}

impl Downward<'_> {
    /// The value of a `fieldRef`.
    ///
    /// # Errors
    /// [`DownwardError`] when there is no such field.
    pub fn field(&self, selector: &ObjectFieldSelector) -> Result<String, DownwardError> {
        let path = selector.field_path.as_str();
        let meta = &self.pod.metadata;
        let spec = self.pod.spec.as_ref();
        if let Some((map, key)) = split_subscript(path) {
            let (values, key_name) = match map {
                "metadata.annotations" => (&meta.annotations, key.to_lowercase()),
                "metadata.labels" => (&meta.labels, key.to_owned()),
                _ => return Err(DownwardError::NoSubscript { path: path.to_owned() }),
            };
            if let Some(reason) = names::qualified_name(&key_name) {
                return Err(DownwardError::InvalidSubscript { path: path.to_owned(), reason });
            }
            return Ok(values.as_ref().and_then(|values| values.get(key)).cloned().unwrap_or_default());
        }
        let first = |ips: &[IpAddr]| ips.first().map(ToString::to_string).unwrap_or_default();
        let all = |ips: &[IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        Ok(match path {
            "metadata.name" => meta.name.clone().unwrap_or_default(),
            "metadata.namespace" => meta.namespace.clone().unwrap_or_default(),
            "metadata.uid" => meta.uid.clone().unwrap_or_default(),
            "metadata.labels" => format_map(meta.labels.iter().flatten()),
            "metadata.annotations" => format_map(meta.annotations.iter().flatten()),
            "spec.nodeName" | "spec.host" => self.node.name.clone(),
            "spec.serviceAccountName" => spec.and_then(|s| s.service_account_name.clone()).unwrap_or_default(),
            "status.hostIP" => first(&self.node.host_ips),
            "status.hostIPs" => all(&self.node.host_ips),
            "status.podIP" => first(self.pod_ips),
            "status.podIPs" => all(self.pod_ips),
            _ => return Err(DownwardError::UnsupportedField { path: path.to_owned() }),
        })
    }

    /// The value of a `resourceFieldRef` in the env of `container`, or of the container it names.
    ///
    /// # Errors
    /// [`DownwardError`] when there is no such container or resource.
    pub fn resource(
        &self,
        selector: &ResourceFieldSelector,
        container: Option<&Container>,
    ) -> Result<String, DownwardError> {
        let name = selector.container_name.as_deref().unwrap_or("");
        let container = if name.is_empty() { container } else { self.container(name) };
        let container = container.ok_or_else(|| DownwardError::ContainerNotFound { container: name.to_owned() })?;
        let resource = selector.resource.as_str();
        let quantity_error = |source| DownwardError::Quantity { resource: resource.to_owned(), source };
        let amount = self.amount(container, resource)?;
        let divisor = match &selector.divisor {
            None => Quantity::ZERO,
            Some(divisor) => Quantity::from_api(divisor).map_err(quantity_error)?,
        };
        let (amount, divisor) = if resource.ends_with(".cpu") {
            (amount.milli_value(), if divisor.is_zero() { 1000 } else { divisor.milli_value() })
        } else {
            (amount.value(), if divisor.is_zero() { 1 } else { divisor.value() })
        };
        let divisor = divisor.max(1);
        Ok((amount / divisor + i64::from(amount % divisor > 0)).to_string())
    }

    fn container(&self, name: &str) -> Option<&Container> {
        let spec = self.pod.spec.as_ref()?;
        spec.containers.iter().chain(spec.init_containers.iter().flatten()).find(|c| c.name == name)
    }

    /// A limit or request; a missing limit is what the node has.
    fn amount(&self, container: &Container, resource: &str) -> Result<Quantity, DownwardError> {
        let unsupported = || DownwardError::UnsupportedResource { resource: resource.to_owned() };
        let (list, name) = resource.split_once('.').ok_or_else(unsupported)?;
        if !matches!(name, "cpu" | "memory" | "ephemeral-storage") && !name.starts_with("hugepages-") {
            return Err(unsupported());
        }
        let resources = container.resources.as_ref();
        let (values, fallback) = match list {
            "limits" => (
                resources.and_then(|r| r.limits.as_ref()),
                match name {
                    "cpu" => Quantity::from_millis(self.node.allocatable_cpu_milli),
                    "memory" => Quantity::from_bytes(self.node.allocatable_memory_bytes),
                    "ephemeral-storage" => Quantity::from_bytes(self.node.allocatable_ephemeral_storage_bytes),
                    _ => Quantity::ZERO,
                },
            ),
            "requests" => (resources.and_then(|r| r.requests.as_ref()), Quantity::ZERO),
            _ => return Err(unsupported()),
        };
        let given = match values.and_then(|values| values.get(name)) {
            None => Quantity::ZERO,
            Some(quantity) => Quantity::from_api(quantity)
                .map_err(|source| DownwardError::Quantity { resource: resource.to_owned(), source })?,
        };
        Ok(if given.is_zero() { fallback } else { given })
    }
}

/// `metadata.labels['key']` as (`metadata.labels`, `key`).
#[must_use]
pub fn split_subscript(path: &str) -> Option<(&str, &str)> {
    let (map, key) = path.strip_suffix("']")?.split_once("['")?;
    (!map.is_empty()).then_some((map, key))
}

/// `key="value"` lines in the order of the keys, quoted as Go quotes.
fn format_map<'a>(entries: impl Iterator<Item = (&'a String, &'a String)>) -> String {
    let lines: Vec<_> = entries.map(|(key, value)| format!("{key}={}", go_quote(value))).collect();
    lines.join("\n")
}

/// `strconv.Quote`.
fn go_quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        let simple = match c {
            '"' => "\\\"",
            '\\' => "\\\\",
            '\u{7}' => "\\a",
            '\u{8}' => "\\b",
            '\u{c}' => "\\f",
            '\n' => "\\n",
            '\r' => "\\r",
            '\t' => "\\t",
            '\u{b}' => "\\v",
            _ => "",
        };
        if !simple.is_empty() {
            quoted.push_str(simple);
        } else if (c as u32) < 0x20 || c == '\u{7f}' {
            let _ = write!(quoted, "\\x{:02x}", c as u32);
        } else if c.is_control() {
            let _ = write!(quoted, "\\u{:04x}", c as u32);
        } else {
            quoted.push(c);
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> NodeFacts {
        NodeFacts {
            name: "node-1".into(),
            host_ips: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            allocatable_cpu_milli: 2000,
            allocatable_memory_bytes: 4 << 30,
            allocatable_ephemeral_storage_bytes: 1 << 30,
        }
    }

    fn pod() -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "web", "namespace": "ns", "uid": "u-1",
                "labels": {"app": "web", "b": "say \"hi\"\n"}, "annotations": {"Build": "two"}},
            "spec": {"serviceAccountName": "sa", "containers": [
                {"name": "a", "resources": {"limits": {"cpu": "1500m", "memory": "100Mi"},
                                            "requests": {"cpu": "250m", "memory": "64Mi"}}},
                {"name": "b"}]}}))
        .unwrap()
    }

    #[test]
    fn a_pod_sees_its_own_fields() {
        let (pod, node) = (pod(), node());
        let ips = ["10.1.0.5".parse().unwrap(), "fd01::5".parse().unwrap()];
        let downward = Downward { pod: &pod, pod_ips: &ips, node: &node };
        for (path, expected) in [
            ("metadata.name", Ok("web")),
            ("metadata.namespace", Ok("ns")),
            ("metadata.uid", Ok("u-1")),
            ("metadata.labels['app']", Ok("web")),
            ("metadata.labels['none']", Ok("")),
            ("metadata.annotations['Build']", Ok("two")),
            ("metadata.labels", Ok("app=\"web\"\nb=\"say \\\"hi\\\"\\n\"")),
            ("spec.nodeName", Ok("node-1")),
            ("spec.serviceAccountName", Ok("sa")),
            ("status.hostIP", Ok("10.0.0.1")),
            ("status.hostIPs", Ok("10.0.0.1,fd00::1")),
            ("status.podIP", Ok("10.1.0.5")),
            ("status.podIPs", Ok("10.1.0.5,fd01::5")),
            ("spec.containers", Err("unsupported fieldPath: spec.containers")),
            ("spec['a']", Err("fieldPath \"spec['a']\" does not support subscript")),
        ] {
            let selector = ObjectFieldSelector { api_version: None, field_path: path.to_owned() };
            let got = downward.field(&selector).map_err(|e| e.to_string());
            assert_eq!(got, expected.map(str::to_owned).map_err(str::to_owned), "{path}");
        }
    }

    #[test]
    fn resources_are_divided_and_rounded_up() {
        let (pod, node) = (pod(), node());
        let downward = Downward { pod: &pod, pod_ips: &[], node: &node };
        for (case, container, resource, divisor, expected) in [
            ("whole cores, rounded up", "a", "limits.cpu", None, Ok("2")),
            ("thousandths", "a", "limits.cpu", Some("1m"), Ok("1500")),
            ("bytes", "a", "limits.memory", None, Ok("104857600")),
            ("mebibytes", "a", "limits.memory", Some("1Mi"), Ok("100")),
            ("rounded up to the divisor", "a", "requests.memory", Some("50Mi"), Ok("2")),
            ("a missing limit is the node's", "b", "limits.memory", Some("1Gi"), Ok("4")),
            ("a missing limit of cpu too", "b", "limits.cpu", None, Ok("2")),
            ("a missing request is nothing", "b", "requests.memory", None, Ok("0")),
            ("an unknown resource", "a", "limits.gpu", None, Err("unsupported container resource : limits.gpu")),
            ("an unknown container", "c", "limits.cpu", None, Err("container c not found")),
        ] {
            let selector = ResourceFieldSelector {
                container_name: Some(container.to_owned()),
                resource: resource.to_owned(),
                divisor: divisor.map(|d| k8s_openapi::apimachinery::pkg::api::resource::Quantity(d.to_owned())),
            };
            let got = downward.resource(&selector, None).map_err(|e| e.to_string());
            assert_eq!(got, expected.map(str::to_owned).map_err(str::to_owned), "{case}");
        }
    }
}
