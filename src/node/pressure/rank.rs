//! Which pod is evicted, and what is said about it.
//!
//! In: active pods with what they use, the thresholds that are met. Out: the pods in the order they go, and the message.
//! Pure; by `pkg/kubelet/eviction/helpers.go`: those above their requests first, then by priority, then by how far above.

use std::cmp::Reverse;
use std::fmt::Write as _;

use k8s_openapi::api::core::v1::PodSpec;

use super::thresholds::{Observations, Signal, Threshold};
use crate::node::pods::{ActivePod, ContainerUse};
use crate::pod::admission::preemption::{is_critical, priority};
use crate::pod::admission::requests::request_of;
use crate::pod::quantity::Quantity;

/// Pods in the order in which they are evicted for `signal`; critical ones never are.
#[must_use]
pub fn rank(pods: &[ActivePod], signal: Signal) -> Vec<&ActivePod> {
    let mut ranked: Vec<&ActivePod> = pods.iter().filter(|pod| !is_critical(&pod.pod)).collect();
    ranked.sort_by_cached_key(|pod| {
        let excess = excess(pod, signal);
        // A pod that is within its requests goes after all that are not; for processes there are no requests.
        let within = signal != Signal::PidAvailable && excess <= 0;
        (within, priority(&pod.pod), Reverse(excess))
    });
    ranked
}

/// How much more than it asked for a pod uses.
fn excess(pod: &ActivePod, signal: Signal) -> i64 {
    let of_containers = || pod.containers.iter().map(|container| use_of(container, signal)).sum::<u64>();
    let used = match signal.resource() {
        "inodes" => pod.inodes,
        "ephemeral-storage" => of_containers().saturating_add(pod.volume_bytes),
        _ => of_containers(),
    };
    let request = pod.pod.spec.as_ref().map_or(0, |spec| request_of(spec, signal.resource()));
    i64::try_from(used).unwrap_or(i64::MAX).saturating_sub(request)
}

fn use_of(container: &ContainerUse, signal: Signal) -> u64 {
    match signal.resource() {
        "memory" => container.memory_bytes,
        "pids" => container.processes,
        _ => container.disk_bytes,
    }
}

/// `status.message` of an evicted pod.
#[must_use]
pub fn message(pod: &ActivePod, threshold: Threshold, observed: &Observations) -> String {
    let signal = threshold.signal;
    let resource = signal.resource();
    let mut message = format!("The node was low on resource: {resource}. ");
    if let Some(seen) = observed.get(&signal) {
        let least = signal.show(threshold.value.of(seen.capacity));
        let _ = write!(message, "Threshold quantity: {least}, available: {}. ", signal.show(seen.available));
    }
    let Some(spec) = &pod.pod.spec else { return message };
    if !matches!(resource, "memory" | "ephemeral-storage") {
        return message;
    }
    let of_pod = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref()?.get("memory"));
    if let Some(request) = of_pod.filter(|_| resource == "memory").and_then(|q| Quantity::from_api(q).ok()) {
        let name = pod.pod.metadata.name.as_deref().unwrap_or_default();
        let used: u64 = pod.containers.iter().map(|container| container.memory_bytes).sum();
        let used = Quantity::from_bytes(i64::try_from(used).unwrap_or(i64::MAX));
        let _ = write!(
            message,
            "Pod {name} was using {used}, request is {request}, has larger consumption of {resource}. "
        );
    }
    for container in &pod.containers {
        let request = container_request(spec, &container.name, resource);
        let used = Quantity::from_bytes(i64::try_from(use_of(container, signal)).unwrap_or(i64::MAX));
        if used.compare(request).is_gt() {
            let name = &container.name;
            let _ = write!(
                message,
                "Container {name} was using {used}, request is {request}, has larger consumption of {resource}. "
            );
        }
    }
    message
}

fn container_request(spec: &PodSpec, name: &str, resource: &str) -> Quantity {
    let mut all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let requests = all.find(|container| container.name == name).and_then(|c| c.resources.as_ref()?.requests.as_ref());
    let request = requests.and_then(|requests| requests.get(resource));
    request.and_then(|quantity| Quantity::from_api(quantity).ok()).unwrap_or(Quantity::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::PodUid;
    use crate::node::pressure::thresholds::{Observation, ThresholdValue};
    use serde_json::json;
    use std::sync::Arc;

    fn pod(name: &str, priority: i32, request: &str, used: u64) -> ActivePod {
        let pod = json!({"metadata": {"name": name}, "spec": {"priority": priority, "containers":
            [{"name": "c", "resources": {"requests": {"memory": request}}}]}});
        ActivePod {
            uid: PodUid::new(name).unwrap(),
            pod: Arc::new(serde_json::from_value(pod).unwrap()),
            containers: vec![ContainerUse { name: "c".to_owned(), memory_bytes: used, disk_bytes: 0, processes: used }],
            volume_bytes: 0,
            inodes: 0,
        }
    }

    #[test]
    fn a_full_disk_ranks_by_files_logs_and_volumes_together() {
        let on_disk = |name: &str, request: &str, own: u64, volumes: u64, inodes: u64| {
            let spec =
                json!({"containers": [{"name": "c", "resources": {"requests": {"ephemeral-storage": request}}}]});
            ActivePod {
                uid: PodUid::new(name).unwrap(),
                pod: Arc::new(serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap()),
                containers: vec![ContainerUse {
                    name: "c".to_owned(),
                    memory_bytes: 1 << 40,
                    disk_bytes: own,
                    processes: 1,
                }],
                volume_bytes: volumes,
                inodes,
            }
        };
        let pods = [
            on_disk("quiet", "0", 10, 0, 5),
            on_disk("volumes", "0", 0, 5000, 4),
            on_disk("asked", "1Mi", 3000, 500_000, 3),
            on_disk("logs", "0", 4000, 0, 2),
            on_disk("both", "1Ki", 3000, 3500, 1),
        ];
        for signal in [Signal::NodeFsAvailable, Signal::ImageFsAvailable, Signal::NodeFsInodesFree] {
            let ranked = rank(&pods, signal);
            let names: Vec<&str> = ranked.iter().map(|pod| pod.uid.as_str()).collect();
            if signal == Signal::NodeFsInodesFree {
                // Many small files: their bytes do not count.
                assert_eq!(names, ["quiet", "volumes", "asked", "logs", "both"]);
            } else {
                assert_eq!(names, ["both", "volumes", "logs", "quiet", "asked"], "{signal:?}");
            }
        }
        // The message is of containers alone, as the kubelet's.
        let threshold = Threshold::hard(Signal::NodeFsAvailable, ThresholdValue::Quantity(1));
        let message = message(&pods[4], threshold, &Observations::new());
        assert_eq!(
            message,
            "The node was low on resource: ephemeral-storage. Container c was using 3000, request is 1Ki, has larger \
             consumption of ephemeral-storage. "
        );
    }

    #[test]
    fn a_request_of_the_whole_pod_is_named_too() {
        let spec = json!({"resources": {"requests": {"memory": "1Mi"}}, "containers": [{"name": "c"}]});
        let mut shared = pod("web", 0, "0", 2 << 20);
        shared.pod = Arc::new(serde_json::from_value(json!({"metadata": {"name": "web"}, "spec": spec})).unwrap());
        let threshold = Threshold::hard(Signal::MemoryAvailable, ThresholdValue::Quantity(1));
        assert_eq!(
            message(&shared, threshold, &Observations::new()),
            "The node was low on resource: memory. Pod web was using 2Mi, request is 1Mi, has larger consumption of \
             memory. Container c was using 2Mi, request is 0, has larger consumption of memory. "
        );
    }

    #[test]
    fn pods_above_their_requests_go_first_then_by_priority_then_by_excess() {
        let pods = [
            pod("within-small", 0, "1Ki", 10),
            pod("over-important", 10, "0", 5000),
            pod("over-little", 0, "0", 100),
            pod("over-much", 0, "0", 1000),
            pod("within-big", 0, "2Ki", 2000),
            pod("critical", 2_000_000_000, "0", 9999),
        ];
        let names =
            |signal| -> Vec<String> { rank(&pods, signal).iter().map(|pod| pod.uid.as_str().to_owned()).collect() };
        assert_eq!(
            names(Signal::MemoryAvailable),
            ["over-much", "over-little", "over-important", "within-big", "within-small"]
        );
        assert_eq!(
            names(Signal::PidAvailable),
            ["within-big", "over-much", "over-little", "within-small", "over-important"]
        );
    }

    #[test]
    fn the_message_is_the_kubelets() {
        let threshold = Threshold::hard(Signal::MemoryAvailable, ThresholdValue::Quantity(100 << 20));
        let observed = [(Signal::MemoryAvailable, Observation { capacity: 1 << 30, available: 50 << 20 })].into();
        assert_eq!(
            message(&pod("web", 0, "1Ki", 2048), threshold, &observed),
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. \
             Container c was using 2Ki, request is 1Ki, has larger consumption of memory. "
        );
        let pid = Threshold::hard(Signal::PidAvailable, ThresholdValue::Quantity(1));
        assert_eq!(message(&pod("web", 0, "0", 1), pid, &observed), "The node was low on resource: pids. ");
    }
}
