//! A pod's quality-of-service class.
//!
//! In: requests and limits of a spec. Out: the class, by the kubelet's `ComputePodQOS`. Sets no limit.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use super::quantity::Quantity;

/// `status.qosClass`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QosClass {
    /// CPU and memory limits everywhere, equal to the requests.
    Guaranteed,
    /// Something in between.
    Burstable,
    /// No requests, no limits.
    BestEffort,
}

impl QosClass {
    /// As the API writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

/// Score of what should go last.
const GUARANTEED_SCORE: i32 = -997;
/// Score of what should go first.
const BEST_EFFORT_SCORE: i32 = 1000;
/// `scheduling.SystemNodeCritical`.
const NODE_CRITICAL: &str = "system-node-critical";

/// The kubelet's `GetContainerOOMScoreAdjust`, of a machine with `capacity` bytes.
#[must_use]
pub fn oom_score_adj(pod: &Pod, container: &Container, capacity: i64) -> i32 {
    let Some(spec) = &pod.spec else { return BEST_EFFORT_SCORE };
    if spec.priority_class_name.as_deref() == Some(NODE_CRITICAL) {
        return GUARANTEED_SCORE;
    }
    match class(spec) {
        QosClass::Guaranteed => return GUARANTEED_SCORE,
        QosClass::BestEffort => return BEST_EFFORT_SCORE,
        QosClass::Burstable => {}
    }
    let own = memory_request(container.resources.as_ref());
    let shared = spare_of_pod(spec);
    let score = |request: i64| 1000 - 1000_i64.saturating_mul(request) / capacity.max(1);
    let mut adjusted = score(own + shared);
    let is_sidecar =
        spec.init_containers.iter().flatten().any(|c| c.name == container.name && super::restart::is_sidecar(c));
    if is_sidecar {
        let least = spec.containers.iter().map(|c| memory_request(c.resources.as_ref())).min().unwrap_or(0);
        adjusted = adjusted.min(score(least + shared));
    }
    let lowest = i64::from(1000 + GUARANTEED_SCORE);
    i32::try_from(adjusted.clamp(lowest, i64::from(BEST_EFFORT_SCORE - 1))).unwrap_or(BEST_EFFORT_SCORE)
}

/// What the pod asks for beyond its containers, in equal parts (`remainingPodMemReqPerContainer`).
fn spare_of_pod(spec: &PodSpec) -> i64 {
    let of_pod = memory_request(spec.resources.as_ref());
    if of_pod == 0 {
        return 0;
    }
    let count = i64::try_from(spec.containers.len() + spec.init_containers.iter().flatten().count()).unwrap_or(1);
    let containers = PodSpec { resources: None, overhead: None, ..spec.clone() };
    let sum = super::admission::requests::request_of(&containers, "memory");
    (of_pod - sum).max(0) / count.max(1)
}

fn memory_request(resources: Option<&ResourceRequirements>) -> i64 {
    let request = resources.and_then(|resources| resources.requests.as_ref()?.get("memory"));
    request.and_then(|quantity| Quantity::from_api(quantity).ok()).map_or(0, Quantity::value)
}

type Sums = BTreeMap<&'static str, Quantity>;

/// The class of a pod whose defaults are applied and whose quantities were validated.
#[must_use]
pub fn class(spec: &PodSpec) -> QosClass {
    let mut requests = Sums::new();
    let mut limits = Sums::new();
    let mut guaranteed = true;
    let mut add = |resources: Option<&ResourceRequirements>| {
        add_all(&mut requests, resources.and_then(|r| r.requests.as_ref()));
        guaranteed &= add_all(&mut limits, resources.and_then(|r| r.limits.as_ref())) == 2;
    };
    if spec.resources.is_some() {
        add(spec.resources.as_ref());
    } else {
        for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
            add(container.resources.as_ref());
        }
    }
    if requests.is_empty() && limits.is_empty() {
        return QosClass::BestEffort;
    }
    let equal = requests.len() == limits.len()
        && requests.iter().all(|(name, request)| limits.get(name).is_some_and(|limit| limit.compare(*request).is_eq()));
    if guaranteed && equal { QosClass::Guaranteed } else { QosClass::Burstable }
}

/// Adds CPU and memory to the sums; says how many of the two were given and above zero.
fn add_all(sums: &mut Sums, list: Option<&BTreeMap<String, ApiQuantity>>) -> usize {
    let mut given = 0;
    for name in ["cpu", "memory"] {
        let quantity = list.and_then(|list| list.get(name)).and_then(|q| Quantity::from_api(q).ok());
        let Some(quantity) = quantity.filter(|q| !q.is_zero() && !q.is_negative()) else { continue };
        given += 1;
        sums.entry(name).and_modify(|sum| *sum = sum.plus(quantity)).or_insert(quantity);
    }
    given
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn classes_follow_requests_and_limits() {
        let full = json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1024Mi"}});
        for (case, containers, expected) in [
            ("nothing given", vec![json!({})], QosClass::BestEffort),
            ("zero is nothing", vec![json!({"requests": {"cpu": "0"}})], QosClass::BestEffort),
            (
                "other resources do not count",
                vec![json!({"limits": {"ephemeral-storage": "1Gi"}})],
                QosClass::BestEffort,
            ),
            ("equal everywhere, in other words", vec![full.clone()], QosClass::Guaranteed),
            ("one container without", vec![full.clone(), json!({})], QosClass::Burstable),
            ("requests only", vec![json!({"requests": {"memory": "1Mi"}})], QosClass::Burstable),
            ("memory only", vec![json!({"limits": {"memory": "1"}, "requests": {"memory": "1"}})], QosClass::Burstable),
            (
                "requests below limits",
                vec![json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1m", "memory": "1Gi"}})],
                QosClass::Burstable,
            ),
        ] {
            let containers: Vec<_> = containers.into_iter().map(|r| json!({"name": "c", "resources": r})).collect();
            let spec: PodSpec = serde_json::from_value(json!({"containers": containers})).unwrap();
            assert_eq!(class(&spec), expected, "{case}");
        }
    }
}
