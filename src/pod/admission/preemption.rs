//! Which pods make room for a critical one.
//!
//! In: a critical pod that was refused for want of resources, and the pods that have them. Out: who has to go, by the
//! kubelet's `preemption` package: best-effort before burstable before guaranteed, as few as possible, as small as
//! possible. Ends no pod.

use std::fmt::Write as _;

use k8s_openapi::api::core::v1::Pod;

use super::fit::Insufficient;
use super::requests::request_of;
use crate::pod::qos::{self, QosClass};
use crate::pod::static_pod::is_static;

/// `status.reason` and the event of a pod that made room.
pub const PREEMPTING: &str = "Preempting";
/// Its message.
pub const PREEMPTED_MESSAGE: &str = "Preempted in order to admit critical pod";
/// `scheduling.SystemCriticalPriority`: what is above is the cluster's own.
pub const SYSTEM_CRITICAL_PRIORITY: i32 = 2_000_000_000;
/// The annotation of the API's image of a static pod.
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// `spec.priority`; 0 when admission of the API server gave none.
#[must_use]
pub fn priority(pod: &Pod) -> i32 {
    pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0)
}

/// Whether a pod is of the cluster or node itself: static pods, their mirrors, and those of system-critical priority.
#[must_use]
pub fn is_critical(pod: &Pod) -> bool {
    let mirror = pod.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(MIRROR_ANNOTATION));
    is_static(pod) || mirror || priority(pod) >= SYSTEM_CRITICAL_PRIORITY
}

fn is_preemptable(by: &Pod, pod: &Pod) -> bool {
    if is_critical(by) && !is_critical(pod) {
        return true;
    }
    let priority = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.priority);
    matches!((priority(by), priority(pod)), (Some(by), Some(pod)) if by > pod)
}

/// The pods whose requests, given back, make room for `pod`; in the order they should end.
///
/// # Errors
/// What could not be freed, in the kubelet's words. `pod` must be critical; others preempt nobody here.
pub fn victims<'a>(pod: &Pod, missing: &[Insufficient], others: &[&'a Pod]) -> Result<Vec<&'a Pod>, String> {
    let needs = Needs(missing.iter().map(|m| (m.resource.clone(), m.amount())).collect());
    let of_class = |class: QosClass| -> Vec<&'a Pod> {
        let mine = |other: &&&Pod| {
            is_preemptable(pod, other) && other.spec.as_ref().is_some_and(|spec| qos::class(spec) == class)
        };
        others.iter().filter(mine).copied().collect()
    };
    let (best_effort, burstable, guaranteed) =
        (of_class(QosClass::BestEffort), of_class(QosClass::Burstable), of_class(QosClass::Guaranteed));
    let unmet = needs.without(&best_effort).without(&burstable).without(&guaranteed);
    if !unmet.0.is_empty() {
        return Err(format!("no set of running pods found to reclaim resources: {}", unmet.show()));
    }
    // Who must go although everybody of the classes below went; then the class below, and so on.
    let guaranteed = closest(guaranteed, needs.without(&best_effort).without(&burstable));
    let burstable = closest(burstable, needs.without(&best_effort).without(&guaranteed));
    let best_effort = closest(best_effort, needs.without(&burstable).without(&guaranteed));
    Ok([best_effort, burstable, guaranteed].concat())
}

/// Resources and how much of each is still needed; never zero or less.
struct Needs(Vec<(String, i64)>);

impl Needs {
    fn without(&self, pods: &[&Pod]) -> Self {
        let left = self.0.iter().map(|(resource, amount)| {
            let freed: i64 = pods.iter().map(|pod| request(pod, resource)).sum();
            (resource.clone(), amount - freed)
        });
        Self(left.filter(|(_, amount)| *amount > 0).collect())
    }

    /// How far a pod's requests are from what is needed: 0 for a pod that frees all of it.
    fn distance(&self, pod: &Pod) -> f64 {
        let part = |(resource, amount): &(String, i64)| {
            let left = amount - request(pod, resource);
            if left > 0 { (left as f64 / *amount as f64).powi(2) } else { 0.0 }
        };
        self.0.iter().map(part).sum()
    }

    fn show(&self) -> String {
        let mut text = String::from("[");
        for (resource, amount) in &self.0 {
            let _ = write!(text, "(res: {resource}, q: {amount}), ");
        }
        text + "]"
    }
}

fn request(pod: &Pod, resource: &str) -> i64 {
    pod.spec.as_ref().map_or(0, |spec| request_of(spec, resource))
}

/// Pods that meet the needs, the best one first each time; of two as good, the one that asked for less.
fn closest(mut pods: Vec<&Pod>, mut needs: Needs) -> Vec<&Pod> {
    let mut chosen = Vec::new();
    while !needs.0.is_empty() && !pods.is_empty() {
        let size = |pod: &Pod| (request(pod, "memory"), request(pod, "cpu"));
        let better =
            |a: &&Pod, b: &&Pod| needs.distance(a).total_cmp(&needs.distance(b)).then_with(|| size(a).cmp(&size(b)));
        let Some(best) = (0..pods.len()).min_by(|a, b| better(&pods[*a], &pods[*b])) else { break };
        let pod = pods.swap_remove(best);
        needs = needs.without(&[pod]);
        chosen.push(pod);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, priority: i32, cpu: &str, guaranteed: bool) -> Pod {
        let list = json!({"cpu": cpu, "memory": "1Ki"});
        let resources = if guaranteed { json!({"requests": list, "limits": list}) } else { json!({"requests": list}) };
        let resources = if cpu == "0" { json!({}) } else { resources };
        serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"priority": priority,
            "containers": [{"name": "c", "resources": resources}]}}))
        .unwrap()
    }

    fn needs(cpu: i64, pods: i64) -> Vec<Insufficient> {
        let one = |resource: &str, amount| Insufficient {
            resource: resource.to_owned(),
            requested: amount,
            used: 0,
            capacity: 0,
        };
        [("cpu", cpu), ("pods", pods)].into_iter().filter(|(_, n)| *n > 0).map(|(r, n)| one(r, n)).collect()
    }

    #[test]
    fn as_few_and_as_small_pods_as_possible_go() {
        let critical = pod("critical", SYSTEM_CRITICAL_PRIORITY, "1", false);
        let pods = [
            pod("best-effort", 0, "0", false),
            pod("small", 0, "200m", false),
            pod("middle", 0, "500m", false),
            pod("big", 0, "1", false),
            pod("guaranteed", 0, "2", true),
            pod("also-critical", SYSTEM_CRITICAL_PRIORITY, "8", false),
        ];
        let all: Vec<&Pod> = pods.iter().collect();
        for (case, missing, expected) in [
            ("the one that is enough and not more", needs(500, 0), Ok(vec!["middle"])),
            ("two when one is not enough", needs(1200, 0), Ok(vec!["big", "small"])),
            ("a place is free when the least pod goes", needs(0, 1), Ok(vec!["best-effort"])),
            ("guaranteed ones only when all others are not enough", needs(3000, 0), Ok(vec!["big", "guaranteed"])),
            (
                "critical pods stay",
                needs(9000, 0),
                Err("no set of running pods found to reclaim resources: [(res: cpu, q: 5300), ]".to_owned()),
            ),
        ] {
            let got = victims(&critical, &missing, &all)
                .map(|pods| pods.iter().map(|pod| pod.metadata.name.as_deref().unwrap()).collect::<Vec<_>>());
            assert_eq!(got, expected, "{case}");
        }
    }

    #[test]
    fn critical_pods_are_those_of_the_system() {
        let with = |annotation: &str, priority: i32| -> Pod {
            serde_json::from_value(json!({"metadata": {"annotations": {annotation: "file"}},
                "spec": {"priority": priority, "containers": []}}))
            .unwrap()
        };
        assert!(is_critical(&with("kubernetes.io/config.source", 0)));
        assert!(is_critical(&with(MIRROR_ANNOTATION, 0)));
        assert!(is_critical(&with("x", SYSTEM_CRITICAL_PRIORITY)));
        assert!(!is_critical(&with("x", SYSTEM_CRITICAL_PRIORITY - 1)));
    }
}
