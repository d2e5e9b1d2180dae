//! Requests and limits of a container as numbers the runtime enforces.
//!
//! In: `resources` of a validated container. Out: [`Limits`]. Enforces nothing (`runtime`, eviction in `worker`).

use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use super::allocation::Numbers;
use super::quantity::Quantity;
use super::run::Limits;

/// Limits that a pod cannot ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeLimits {
    /// Processes of one container.
    pub processes: u32,
    /// Open files of one process.
    pub open_files: u32,
}

impl Default for NodeLimits {
    fn default() -> Self {
        // What containerd's own unit gives a container for files; as many processes as one guest can use
        // before its memory charge ends it.
        Self { processes: 1024, open_files: 65_536 }
    }
}

/// The limits of one container; CPU and memory are the pod's where it has none of its own.
#[must_use]
pub fn limits(container: &Container, spec: &PodSpec, node: NodeLimits) -> Limits {
    let limits = container.resources.as_ref().and_then(|resources| resources.limits.as_ref());
    let numbers = Numbers::of_container(container, spec);
    let positive = |number: i64| u64::try_from(number).ok().filter(|number| *number > 0);
    let weight = if numbers.cpu_request > 0 { numbers.cpu_request } else { numbers.cpu_limit };
    Limits {
        memory_bytes: positive(numbers.memory_limit),
        cpu_milli: positive(numbers.cpu_limit),
        cpu_shares: cpu_shares(weight),
        ephemeral_storage_bytes: limits.and_then(|l| quantity(l.get("ephemeral-storage"))).map(positive_bytes),
        processes: node.processes,
        open_files: node.open_files,
    }
}

/// The sum of the containers' `ephemeral-storage` limits: what the whole pod may use. `None` when one of them
/// has no limit, as the kubelet then bounds only those that have.
#[must_use]
pub fn pod_ephemeral_storage_limit(spec: &PodSpec) -> Option<Quantity> {
    let of = |c: &Container| c.resources.as_ref().and_then(|r| r.limits.as_ref()?.get("ephemeral-storage").cloned());
    let sum = |containers: &mut dyn Iterator<Item = &Container>| -> Option<Quantity> {
        let mut total = Quantity::ZERO;
        for container in containers {
            total = total.plus(quantity(of(container).as_ref())?);
        }
        Some(total)
    };
    let sidecars = || spec.init_containers.iter().flatten().filter(|c| super::restart::is_sidecar(c));
    sum(&mut spec.containers.iter().chain(sidecars()))
}

/// A quantity that is given, can be read and is not zero.
fn quantity(given: Option<&ApiQuantity>) -> Option<Quantity> {
    given.and_then(|q| Quantity::from_api(q).ok()).filter(|q| !q.is_zero() && !q.is_negative())
}

fn positive_bytes(quantity: Quantity) -> u64 {
    quantity.value().unsigned_abs()
}

/// The kubelet's `MilliCPUToShares`: 1024 a core, at least 2, at most 262144.
fn cpu_shares(milli: i64) -> u64 {
    (milli.max(0).unsigned_abs().saturating_mul(1024) / 1000).clamp(2, 262_144)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn quantities_become_limits() {
        for (case, resources, expected) in [
            ("nothing", json!({}), (None, None, 2, None)),
            ("a request is a weight", json!({"requests": {"cpu": "500m"}}), (None, None, 512, None)),
            (
                "a limit is a quota and, alone, a weight",
                json!({"limits": {"cpu": "2"}}),
                (None, Some(2000), 2048, None),
            ),
            ("memory", json!({"limits": {"memory": "64Mi"}}), (Some(67_108_864), None, 2, None)),
            ("storage", json!({"limits": {"ephemeral-storage": "1k"}}), (None, None, 2, Some(1000))),
            ("zero is no limit", json!({"limits": {"memory": "0"}}), (None, None, 2, None)),
        ] {
            let container: Container = serde_json::from_value(json!({"name": "c", "resources": resources})).unwrap();
            let got = limits(&container, &PodSpec::default(), NodeLimits::default());
            assert_eq!(
                (got.memory_bytes, got.cpu_milli, got.cpu_shares, got.ephemeral_storage_bytes),
                expected,
                "{case}"
            );
        }
    }

    #[test]
    fn a_pods_storage_limit_is_the_sum_of_all_or_none() {
        let spec = |a: &str, b: serde_json::Value| -> PodSpec {
            serde_json::from_value(json!({"containers": [
                {"name": "a", "resources": {"limits": {"ephemeral-storage": a}}}, {"name": "b", "resources": b}]}))
            .unwrap()
        };
        let both = pod_ephemeral_storage_limit(&spec("1Mi", json!({"limits": {"ephemeral-storage": "3Mi"}})));
        assert_eq!(both.map(|q| q.to_string()).as_deref(), Some("4Mi"));
        assert_eq!(pod_ephemeral_storage_limit(&spec("1Mi", json!({}))), None);
    }
}
