//! Requests and limits of a container as numbers the runtime enforces.
//!
//! In: `resources` of a validated pod. Out: [`Limits`] of each container, [`PodLimits`] of all together. Enforces nothing
//! (`runtime`, eviction in `worker`).

use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use super::admission::requests;
use super::allocation::Numbers;
use super::qos::{self, QosClass};
use super::quantity::Quantity;
use super::run::{Limits, PodLimits};

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

/// What the containers of a pod may use together: the kubelet's `ResourceConfigForPod`. Memory and CPU are bounded when the
/// pod has a limit of its own or every container has one.
#[must_use]
pub fn pod_limits(spec: &PodSpec) -> PodLimits {
    let class = qos::class(spec);
    if class == QosClass::BestEffort {
        return PodLimits { cpu_shares: cpu_shares(0), ..PodLimits::default() };
    }
    let limits = requests::pod_limits(spec);
    let is_declared = |name: &str| {
        let of =
            |resources: Option<&ResourceRequirements>| quantity(resources.and_then(|r| r.limits.as_ref()?.get(name)));
        let mut containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        class == QosClass::Guaranteed
            || of(spec.resources.as_ref()).is_some()
            || containers.all(|container| of(container.resources.as_ref()).is_some())
    };
    let bound = |name: &str, number: fn(Quantity) -> i64| {
        let limit = limits.get(name).copied().filter(|_| is_declared(name)).map_or(0, number);
        u64::try_from(limit).ok().filter(|limit| *limit > 0)
    };
    PodLimits {
        memory_bytes: bound("memory", Quantity::value),
        cpu_milli: bound("cpu", Quantity::milli_value),
        cpu_shares: cpu_shares(requests::request_of(spec, "cpu")),
    }
}

/// The containers' limits of `ephemeral-storage` together: what the whole pod may use. `None` when none has one; one that
/// has none adds nothing to the sum, but what it uses counts, as with the kubelet.
#[must_use]
pub fn pod_ephemeral_storage_limit(spec: &PodSpec) -> Option<Quantity> {
    requests::pod_limits(spec).get("ephemeral-storage").copied().filter(|limit| !limit.is_zero())
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
    fn a_pods_storage_limit_is_the_sum_of_those_there_are() {
        let spec = |a: &str, b: serde_json::Value| -> PodSpec {
            serde_json::from_value(json!({"containers": [
                {"name": "a", "resources": {"limits": {"ephemeral-storage": a}}}, {"name": "b", "resources": b}]}))
            .unwrap()
        };
        let both = pod_ephemeral_storage_limit(&spec("1Mi", json!({"limits": {"ephemeral-storage": "3Mi"}})));
        assert_eq!(both.map(|q| q.to_string()).as_deref(), Some("4Mi"));
        let one = pod_ephemeral_storage_limit(&spec("1Mi", json!({})));
        assert_eq!(one.map(|q| q.to_string()).as_deref(), Some("1Mi"), "who has no limit is bounded by the others'");
        let none = serde_json::from_value(json!({"containers": [{"name": "a"}]})).unwrap();
        assert_eq!(pod_ephemeral_storage_limit(&none), None);
    }

    #[test]
    fn containers_are_bounded_together_as_in_a_pods_cgroup() {
        // Rows of the kubelet's TestResourceConfigForPod, and of pods with resources of their own.
        let list = |cpu: &str, memory: &str| json!({"cpu": cpu, "memory": memory});
        let burstable = json!({"requests": list("100m", "100Mi"), "limits": list("200m", "200Mi")});
        let guaranteed = json!({"requests": list("100m", "100Mi"), "limits": list("100m", "100Mi")});
        let request = json!({"requests": list("100m", "100Mi")});
        let mib = |number: u64| Some(number << 20);
        for (case, spec, expected) in [
            ("best effort", json!({"containers": [{"name": "a"}, {"name": "b"}]}), (None, None, 2)),
            ("requests alone", json!({"containers": [{"name": "a", "resources": request}]}), (None, None, 102)),
            (
                "limits add up",
                json!({"containers": [{"name": "a", "resources": burstable}, {"name": "b", "resources": guaranteed}]}),
                (mib(300), Some(300), 204),
            ),
            (
                "one without limits frees all",
                json!({"containers": [{"name": "a", "resources": burstable}, {"name": "b", "resources": request}]}),
                (None, None, 204),
            ),
            (
                "an init container without limits, too",
                json!({"containers": [{"name": "a", "resources": burstable}], "initContainers": [{"name": "i"}]}),
                (None, None, 102),
            ),
            ("guaranteed", json!({"containers": [{"name": "a", "resources": guaranteed}]}), (mib(100), Some(100), 102)),
            (
                "the pod's own limits bound containers without any",
                json!({"resources": {"requests": list("300m", "30Mi"), "limits": list("1", "60Mi")},
                    "containers": [{"name": "a"}, {"name": "b", "resources": request}]}),
                (mib(60), Some(1000), 307),
            ),
            (
                "of one resource alone",
                json!({"resources": {"limits": {"memory": "60Mi"}}, "containers": [{"name": "a"}]}),
                (mib(60), None, 2),
            ),
            (
                "overhead is added",
                json!({"containers": [{"name": "a", "resources": guaranteed}], "overhead": list("50m", "8Mi")}),
                (mib(108), Some(150), 153),
            ),
        ] {
            let got = pod_limits(&serde_json::from_value(spec).unwrap());
            assert_eq!((got.memory_bytes, got.cpu_milli, got.cpu_shares), expected, "{case}");
        }
    }
}
