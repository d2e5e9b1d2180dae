//! In-place resize: what a pod asks for, what the node has given it, what is in force.
//!
//! ```text
//!  spec of the API server ──(room on the node?)──▶ allocated ──(limits of the running guest)──▶ in force
//!           PodResizePending                            PodResizeInProgress
//! ```
//!
//! In: specs, what a container runs under. Out: whether they differ, what to do about a container, the words of Events and
//! conditions. Whether there is room is `admission`'s; nothing is changed here. By `pkg/kubelet/allocation` and
//! `kuberuntime`'s `computePodResizeAction`.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use super::admission::preemption::priority;
use super::admission::requests::pod_requests;
use super::qos::{self, QosClass};
use super::quantity::Quantity;

/// Condition of a pod that waits for room.
pub const RESIZE_PENDING: &str = "PodResizePending";
/// Condition of a pod whose guests do not run under what was given yet.
pub const RESIZE_IN_PROGRESS: &str = "PodResizeInProgress";

/// Why a resize waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PendingReason {
    /// There is no room now.
    Deferred,
    /// There will never be.
    Infeasible,
}

impl PendingReason {
    /// `reason` of the condition.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Deferred => "Deferred",
            Self::Infeasible => "Infeasible",
        }
    }

    /// `reason` of the Event.
    #[must_use]
    pub const fn event(self) -> &'static str {
        match self {
            Self::Deferred => "ResizeDeferred",
            Self::Infeasible => "ResizeInfeasible",
        }
    }
}

/// A resize that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingResize {
    /// Why.
    pub reason: PendingReason,
    /// In more words.
    pub message: String,
    /// The pod's generation that asks for it.
    pub generation: i64,
    /// Words of its Event: what was asked for.
    pub event: String,
}

/// A resize that was given room.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResizeInProgress {
    /// The pod's generation that asked for it.
    pub generation: i64,
    /// Why the guests do not run under it, if that was tried in vain.
    pub error: Option<String>,
}

/// Whether two specs ask for other CPU or memory, whatever notation they are written in.
#[must_use]
pub fn differs(desired: &PodSpec, allocated: &PodSpec) -> bool {
    let of = |spec: &PodSpec| -> Vec<(String, Numbers)> {
        let pod = (String::new(), Numbers::of(spec.resources.as_ref()));
        let each = containers(spec).map(|c| (c.name.clone(), Numbers::of(c.resources.as_ref())));
        std::iter::once(pod).chain(each).collect()
    };
    of(desired) != of(allocated)
}

/// `desired` with the resources of `allocated`: what the node runs while a resize waits.
#[must_use]
pub fn as_allocated(desired: &Pod, allocated: &Pod) -> Pod {
    let mut pod = desired.clone();
    let (Some(spec), Some(given)) = (pod.spec.as_mut(), allocated.spec.as_ref()) else { return pod };
    spec.resources.clone_from(&given.resources);
    for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
        if let Some(same) = containers(given).find(|other| other.name == container.name) {
            container.resources.clone_from(&same.resources);
        }
    }
    pod
}

/// Whether a resize asks for more of anything the node has to keep free.
#[must_use]
pub fn increases_requests(desired: &PodSpec, allocated: &PodSpec) -> bool {
    let (desired, allocated) = (pod_requests(desired), pod_requests(allocated));
    ["cpu", "memory"].into_iter().any(|name| {
        let amount = |list: &BTreeMap<String, Quantity>| list.get(name).copied().unwrap_or(Quantity::ZERO);
        amount(&desired).compare(amount(&allocated)).is_gt()
    })
}

/// Which waiting resize is looked at first when room appears, as the kubelet's `sortPendingResizes`: the least is. What
/// needs no more room, then by priority, then class; the caller adds the time.
#[must_use]
pub fn resize_rank(desired: &Pod, allocated: Option<&PodSpec>) -> (bool, Reverse<i32>, bool) {
    let spec = desired.spec.as_ref();
    let grows = spec.zip(allocated).is_some_and(|(new, old)| increases_requests(new, old));
    let is_guaranteed = spec.is_some_and(|spec| qos::class(spec) == QosClass::Guaranteed);
    (grows, Reverse(priority(desired)), !is_guaranteed)
}

fn containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.init_containers.iter().flatten().chain(&spec.containers)
}

/// CPU and memory as the kubelet compares them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Bytes; 0 for none.
    pub memory_limit: i64,
    /// Bytes; 0 for none.
    pub memory_request: i64,
    /// Thousandths; 0 for none.
    pub cpu_limit: i64,
    /// Thousandths; 0 for none.
    pub cpu_request: i64,
}

impl Numbers {
    fn of(resources: Option<&ResourceRequirements>) -> Self {
        let limit = |name| amount(resources.and_then(|r| r.limits.as_ref()), name);
        let request = |name| amount(resources.and_then(|r| r.requests.as_ref()), name);
        Self {
            memory_limit: limit("memory").value(),
            memory_request: request("memory").value(),
            cpu_limit: limit("cpu").milli_value(),
            cpu_request: request("cpu").milli_value(),
        }
    }

    /// What a container of a pod is to run under: a limit that it does not have is the pod's (`GetLimits`).
    #[must_use]
    pub fn of_container(container: &Container, spec: &PodSpec) -> Self {
        let mut own = Self::of(container.resources.as_ref());
        let pod = Self::of(spec.resources.as_ref());
        if own.memory_limit == 0 {
            own.memory_limit = pod.memory_limit;
        }
        if own.cpu_limit == 0 {
            own.cpu_limit = pod.cpu_limit;
        }
        own
    }
}

fn amount(list: Option<&BTreeMap<String, ApiQuantity>>, name: &str) -> Quantity {
    let given = list.and_then(|list| list.get(name));
    given.and_then(|quantity| Quantity::from_api(quantity).ok()).unwrap_or(Quantity::ZERO)
}

/// What a running container needs to run under what was given to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    None,
    /// Other limits.
    Update,
    /// Another start: `resizePolicy` says so of what changes.
    Restart,
}

/// Decides about one running container.
#[must_use]
pub fn step(container: &Container, in_force: Numbers, wanted: Numbers) -> Step {
    if in_force == wanted {
        return Step::None;
    }
    let restarts = |resource: &str| {
        let policies = container.resize_policy.iter().flatten();
        let policy = policies.into_iter().find(|policy| policy.resource_name == resource);
        policy.is_some_and(|policy| policy.restart_policy == "RestartContainer")
    };
    let memory = |n: Numbers| (n.memory_limit, n.memory_request);
    let cpu = |n: Numbers| (n.cpu_limit, n.cpu_request);
    let restart =
        memory(in_force) != memory(wanted) && restarts("memory") || cpu(in_force) != cpu(wanted) && restarts("cpu");
    if restart { Step::Restart } else { Step::Update }
}

/// A container whose limits are about to change, and what it uses.
#[derive(Debug, Clone, Copy)]
pub struct Shrink<'a> {
    /// Its name.
    pub container: &'a str,
    /// What it runs under.
    pub in_force: Numbers,
    /// What it is to run under.
    pub wanted: Numbers,
    /// Bytes it uses; `None` when that is not known.
    pub used: Option<u64>,
}

/// The limit of all containers together that is about to change, and what they use.
#[derive(Debug, Clone, Copy)]
pub struct PodShrink {
    /// Bytes they run under; `None` for no limit.
    pub in_force: Option<u64>,
    /// Bytes they are to run under.
    pub wanted: Option<u64>,
    /// Bytes they use.
    pub used: u64,
}

/// Refuses limits below what is in use: they would end a container, which nobody asked for.
///
/// # Errors
/// The message of `PodResizeInProgress`.
pub fn check_memory(pod: Option<PodShrink>, all: &[Shrink<'_>]) -> Result<(), String> {
    let of_pod = pod.and_then(|PodShrink { in_force, wanted, used }| {
        let wanted = wanted.filter(|wanted| in_force.is_none_or(|in_force| *wanted < in_force))?;
        let message = || format!("attempting to set pod memory limit ({wanted}) below current usage ({used})");
        (used >= wanted).then(message)
    });
    let problem = |shrink: &Shrink<'_>| {
        let Shrink { container, in_force, wanted, used } = shrink;
        let limit = wanted.memory_limit;
        let shrinks = limit != 0 && (in_force.memory_limit == 0 || limit < in_force.memory_limit);
        match used {
            _ if !shrinks => None,
            None => Some(format!("missing container {container:?} memory usage")),
            Some(used) if *used >= limit.unsigned_abs() => Some(format!(
                "attempting to set container {container:?} memory limit ({limit}) below current usage ({used})"
            )),
            Some(_) => None,
        }
    };
    let mut problems: Vec<String> = of_pod.into_iter().chain(all.iter().filter_map(problem)).collect();
    problems.dedup();
    match problems.len() {
        0 => Ok(()),
        // An aggregate of one error is that error.
        1 => Err(format!("cannot decrease memory limits: {}", problems[0])),
        _ => Err(format!("cannot decrease memory limits: [{}]", problems.join(", "))),
    }
}

/// The message of an Event about a resize: what the pod's containers were to have.
#[must_use]
pub fn summary(prefix: &str, spec: &PodSpec, generation: i64, error: Option<&str>) -> String {
    let list = |containers: &[Container]| {
        let each = containers.iter().map(|container| {
            let resources = serde_json::to_string(&container.resources.clone().unwrap_or_default());
            let name = serde_json::Value::from(container.name.as_str());
            format!("{{\"name\":{name},\"resources\":{}}}", resources.unwrap_or_default())
        });
        format!("[{}]", each.collect::<Vec<_>>().join(","))
    };
    let mut fields = Vec::new();
    if let Some(init) = spec.init_containers.as_ref().filter(|init| !init.is_empty()) {
        fields.push(format!("\"initContainers\":{}", list(init)));
    }
    if !spec.containers.is_empty() {
        fields.push(format!("\"containers\":{}", list(&spec.containers)));
    }
    fields.push(format!("\"generation\":{generation}"));
    if let Some(error) = error.filter(|error| !error.is_empty()) {
        fields.push(format!("\"error\":{}", serde_json::Value::from(error)));
    }
    format!("{prefix}: {{{}}}", fields.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn spec(containers: Value) -> PodSpec {
        serde_json::from_value(json!({"containers": containers})).unwrap()
    }

    fn container(resources: Value, policy: Value) -> Container {
        serde_json::from_value(json!({"name": "c", "resources": resources, "resizePolicy": policy})).unwrap()
    }

    #[test]
    fn room_goes_first_to_what_needs_none_then_by_priority_and_class() {
        let spec = |cpu: &str, limit: Option<&str>, priority: i32| -> PodSpec {
            let list = json!({"cpu": cpu, "memory": "1Mi"});
            let limits = limit.map_or(json!({}), |cpu| json!({"cpu": cpu, "memory": "1Mi"}));
            let container = json!({"name": "c", "resources": {"requests": list, "limits": limits}});
            serde_json::from_value(json!({"containers": [container], "priority": priority})).unwrap()
        };
        let before = spec("200m", None, 0);
        let rank = |desired: PodSpec| resize_rank(&Pod { spec: Some(desired), ..Pod::default() }, Some(&before));
        let in_order = [
            ("shrinks, of high priority", spec("100m", None, 9)),
            ("shrinks", spec("100m", None, 0)),
            ("grows, of high priority", spec("300m", None, 9)),
            ("grows, guaranteed", spec("300m", Some("300m"), 0)),
            ("grows, burstable", spec("300m", None, 0)),
        ];
        for pair in in_order.windows(2) {
            assert!(rank(pair[0].1.clone()) < rank(pair[1].1.clone()), "{} before {}", pair[0].0, pair[1].0);
        }
    }

    #[test]
    fn only_other_numbers_of_cpu_and_memory_are_a_resize() {
        let before = json!({"requests": {"cpu": "20m", "memory": "35Mi"}, "limits": {"cpu": "1"}});
        for (case, after, expected) in [
            ("the same", before.clone(), false),
            (
                "other notation",
                json!({"requests": {"cpu": "0.02", "memory": "36700160"}, "limits": {"cpu": "1000m"}}),
                false,
            ),
            ("more CPU", json!({"requests": {"cpu": "21m", "memory": "35Mi"}, "limits": {"cpu": "1"}}), true),
            (
                "a limit added",
                json!({"requests": {"cpu": "20m", "memory": "35Mi"}, "limits": {"cpu": "1", "memory": "1Gi"}}),
                true,
            ),
            (
                "another resource",
                json!({"requests": {"cpu": "20m", "memory": "35Mi", "ephemeral-storage": "1"}, "limits": {"cpu": "1"}}),
                false,
            ),
        ] {
            let of = |resources: Value| spec(json!([{"name": "c", "resources": resources}]));
            assert_eq!(differs(&of(after), &of(before.clone())), expected, "{case}");
        }
    }

    #[test]
    fn what_waits_runs_with_what_it_had() {
        let pod = |cpu: &str, image: &str| -> Pod {
            serde_json::from_value(
                json!({"spec": {"initContainers": [{"name": "i", "resources": {"requests": {"cpu": cpu}}}],
                "containers": [{"name": "c", "image": image, "resources": {"requests": {"cpu": cpu}}}]}}),
            )
            .unwrap()
        };
        assert_eq!(as_allocated(&pod("2", "new"), &pod("1", "old")), pod("1", "new"));
        let spec = |cpu: &str| pod(cpu, "x").spec.unwrap();
        assert!(increases_requests(&spec("2"), &spec("1")) && !increases_requests(&spec("1"), &spec("2")));
    }

    #[test]
    fn a_container_is_updated_or_restarted_by_its_policy() {
        let resources = |cpu: &str, memory: &str| json!({"limits": {"cpu": cpu, "memory": memory}});
        let restart = |resource: &str| json!([{"resourceName": resource, "restartPolicy": "RestartContainer"}]);
        for (case, policy, cpu, memory, expected) in [
            ("nothing changes", json!([]), "1", "1Gi", Step::None),
            ("no policy is no restart", json!([]), "2", "2Gi", Step::Update),
            ("the policy of what changes", restart("cpu"), "2", "1Gi", Step::Restart),
            ("the policy of what does not", restart("cpu"), "1", "2Gi", Step::Update),
            ("memory", restart("memory"), "1", "2Gi", Step::Restart),
        ] {
            let wanted = container(resources(cpu, memory), policy);
            let in_force = Numbers::of_container(&container(resources("1", "1Gi"), json!([])), &PodSpec::default());
            assert_eq!(
                step(&wanted, in_force, Numbers::of_container(&wanted, &PodSpec::default())),
                expected,
                "{case}"
            );
        }
    }

    #[test]
    fn a_limit_that_is_not_there_is_the_pods() {
        let pod: PodSpec = serde_json::from_value(
            json!({"containers": [], "resources": {"limits": {"cpu": "2", "memory": "1k"}, "requests": {"cpu": "1"}}}),
        )
        .unwrap();
        let own = container(json!({"limits": {"cpu": "500m"}}), json!([]));
        let expected = Numbers { memory_limit: 1000, cpu_limit: 500, ..Numbers::default() };
        assert_eq!(Numbers::of_container(&own, &pod), expected);
    }

    #[test]
    fn a_limit_below_use_is_refused_in_the_kubelets_words() {
        let numbers = |limit| Numbers { memory_limit: limit, ..Numbers::default() };
        let shrink = |from, to, used| Shrink { container: "c", in_force: numbers(from), wanted: numbers(to), used };
        for (case, all, expected) in [
            ("grows", vec![shrink(10, 20, Some(15))], Ok(())),
            ("shrinks above use", vec![shrink(20, 16, Some(15))], Ok(())),
            ("a limit is lifted", vec![shrink(20, 0, Some(15))], Ok(())),
            (
                "shrinks to what is used",
                vec![shrink(20, 15, Some(15))],
                Err(
                    "cannot decrease memory limits: attempting to set container \"c\" memory limit (15) below current usage (15)",
                ),
            ),
            ("a limit is added", vec![shrink(0, 16, Some(15))], Ok(())),
            (
                "two of them",
                vec![shrink(20, 1, Some(15)), shrink(20, 2, None)],
                Err(
                    "cannot decrease memory limits: [attempting to set container \"c\" memory limit (1) below current usage (15), \
                     missing container \"c\" memory usage]",
                ),
            ),
        ] {
            assert_eq!(check_memory(None, &all), expected.map_err(str::to_owned), "{case}");
        }
    }

    #[test]
    fn a_limit_of_the_pod_below_what_all_use_is_refused_too() {
        let pod = |in_force, wanted, used| Some(PodShrink { in_force, wanted, used });
        let refused = "cannot decrease memory limits: attempting to set pod memory limit (15) below current usage (15)";
        for (case, shrink, expected) in [
            ("nothing changes", None, Ok(())),
            ("grows below use, as after an agent's restart", pod(Some(10), Some(15), 20), Ok(())),
            ("shrinks above use", pod(Some(20), Some(15), 14), Ok(())),
            ("is lifted", pod(Some(20), None, 15), Ok(())),
            ("shrinks to what is used", pod(Some(20), Some(15), 15), Err(refused)),
            ("is added", pod(None, Some(15), 15), Err(refused)),
        ] {
            assert_eq!(check_memory(shrink, &[]), expected.map_err(str::to_owned), "{case}");
        }
    }

    #[test]
    fn events_say_what_was_asked_for_as_the_kubelets_do() {
        // Rows of the kubelet's TestPodResizeCompletedMsg and TestPodResizeErrorMsg.
        let full = json!({"limits": {"cpu": "100m", "memory": "100"}, "requests": {"cpu": "100m", "memory": "100"}});
        let one = spec(json!([{"name": "c0", "resources": full}]));
        assert_eq!(
            summary("Pod resize completed", &one, 1, None),
            r#"Pod resize completed: {"containers":[{"name":"c0","resources":{"limits":{"cpu":"100m","memory":"100"},"requests":{"cpu":"100m","memory":"100"}}}],"generation":1}"#
        );
        let mut init = spec(json!([{"name": "c1"}]));
        init.init_containers =
            spec(json!([{"name": "c0", "resources": {"requests": {"cpu": "100m"}}}])).containers.into();
        assert_eq!(
            summary("Pod resize error", &init, 3, Some("a \"b\"")),
            r#"Pod resize error: {"initContainers":[{"name":"c0","resources":{"requests":{"cpu":"100m"}}}],"containers":[{"name":"c1","resources":{}}],"generation":3,"error":"a \"b\""}"#
        );
    }
}
