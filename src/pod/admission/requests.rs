//! What a pod asks of its node.
//!
//! In: a spec. Out: requests and limits by resource name, by the rules of `component-helpers/resource.PodRequests` and
//! `PodLimits`. Reads no usage.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use crate::pod::quantity::Quantity;
use crate::pod::restart::is_sidecar;

/// Requests by resource name.
pub type Requests = BTreeMap<String, Quantity>;

/// What the whole pod needs at any one moment: its containers and sidecars together, or an init container with the
/// sidecars before it if that is more; what `spec.resources` says instead of the sum; and its overhead.
#[must_use]
pub fn pod_requests(spec: &PodSpec) -> Requests {
    let mut total = at_any_moment(spec, requests);
    total.extend(pod_level(spec, requests));
    add(&mut total, &parsed(spec.overhead.as_ref()));
    total
}

/// What the whole pod may use at any one moment, by the same sums. A resource that only some containers have a limit of
/// is here too, as the kubelet's `PodLimits` has it.
#[must_use]
pub fn pod_limits(spec: &PodSpec) -> Requests {
    let mut total = at_any_moment(spec, limits);
    total.extend(pod_level(spec, limits));
    for (name, overhead) in parsed(spec.overhead.as_ref()) {
        total.entry(name).and_modify(|limit| {
            if !limit.is_zero() {
                *limit = limit.plus(overhead);
            }
        });
    }
    total
}

/// One of the two lists of `resources`.
type List = fn(&ResourceRequirements) -> Option<&BTreeMap<String, ApiQuantity>>;

fn requests(resources: &ResourceRequirements) -> Option<&BTreeMap<String, ApiQuantity>> {
    resources.requests.as_ref()
}

fn limits(resources: &ResourceRequirements) -> Option<&BTreeMap<String, ApiQuantity>> {
    resources.limits.as_ref()
}

fn at_any_moment(spec: &PodSpec, list: List) -> Requests {
    let of = |container: &Container| parsed(container.resources.as_ref().and_then(list));
    let mut total = Requests::new();
    for container in &spec.containers {
        add(&mut total, &of(container));
    }
    let mut sidecars = Requests::new();
    let mut peak = Requests::new();
    for container in spec.init_containers.iter().flatten() {
        let own = of(container);
        let now = if is_sidecar(container) {
            add(&mut total, &own);
            add(&mut sidecars, &own);
            sidecars.clone()
        } else {
            let mut now = own;
            add(&mut now, &sidecars);
            now
        };
        raise(&mut peak, &now);
    }
    raise(&mut total, &peak);
    total
}

/// What `spec.resources` says instead of the sum: no other resources count there.
fn pod_level(spec: &PodSpec, list: List) -> Requests {
    let mut given = parsed(spec.resources.as_ref().and_then(list));
    given.retain(|name, _| matches!(name.as_str(), "cpu" | "memory") || name.starts_with("hugepages-"));
    given
}

/// The number the scheduler counts a resource in: thousandths of CPU, whole units of all else.
#[must_use]
pub fn counted(resource: &str, quantity: Quantity) -> i64 {
    if resource == "cpu" { quantity.milli_value() } else { quantity.value() }
}

/// One request as [`counted`]; `pods` is 1.
#[must_use]
pub fn request_of(spec: &PodSpec, resource: &str) -> i64 {
    if resource == "pods" {
        return 1;
    }
    pod_requests(spec).get(resource).map_or(0, |quantity| counted(resource, *quantity))
}

/// A quantity that cannot be read counts as nothing: validation refused it before.
fn parsed(list: Option<&BTreeMap<String, ApiQuantity>>) -> Requests {
    let each = list.into_iter().flatten();
    each.filter_map(|(name, quantity)| Some((name.clone(), Quantity::from_api(quantity).ok()?))).collect()
}

fn add(to: &mut Requests, more: &Requests) {
    for (name, quantity) in more {
        to.entry(name.clone()).and_modify(|sum| *sum = sum.plus(*quantity)).or_insert(*quantity);
    }
}

fn raise(to: &mut Requests, floor: &Requests) {
    for (name, quantity) in floor {
        let entry = to.entry(name.clone()).or_insert(*quantity);
        if entry.compare(*quantity).is_lt() {
            *entry = *quantity;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn requests_are_summed_as_the_scheduler_sums_them() {
        let cpu = |cpu: &str| json!({"requests": {"cpu": cpu}});
        for (case, spec, expected) in [
            ("nothing", json!({"containers": [{"name": "a"}]}), 0),
            (
                "containers add up",
                json!({"containers": [{"name": "a", "resources": cpu("1")}, {"name": "b", "resources": cpu("250m")}]}),
                1250,
            ),
            (
                "an init container is a floor",
                json!({"containers": [{"name": "a", "resources": cpu("1")}],
                    "initContainers": [{"name": "i", "resources": cpu("3")}]}),
                3000,
            ),
            (
                "sidecars add to the containers and to later init containers",
                json!({"containers": [{"name": "a", "resources": cpu("1")}], "initContainers": [
                    {"name": "s", "restartPolicy": "Always", "resources": cpu("2")},
                    {"name": "i", "resources": cpu("2")}]}),
                4000,
            ),
            (
                "requests of the pod replace the sum, overhead is added",
                json!({"containers": [{"name": "a", "resources": cpu("1")}], "resources": cpu("2"),
                    "overhead": {"cpu": "10m"}}),
                2010,
            ),
        ] {
            let spec: PodSpec = serde_json::from_value(spec).unwrap();
            assert_eq!(request_of(&spec, "cpu"), expected, "{case}");
        }
    }
}
