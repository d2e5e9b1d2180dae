//! Whether the node has room for one more pod.
//!
//! In: the pod, the pods admitted before it, what the node can give. Out: each resource there is too little of, in the
//! scheduler's numbers (`noderesources.Fits`), and whether its ports are free (`nodeports.Fits`).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, PodSpec};

use super::requests::{Requests, counted, pod_requests};
use crate::pod::quantity::Quantity;

/// What pods can have of a node, [`counted`] by resource name: `cpu` in thousandths.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allocatable {
    counts: BTreeMap<String, i64>,
}

impl Allocatable {
    /// From quantities as `status.allocatable` has them.
    #[must_use]
    pub fn new(quantities: impl IntoIterator<Item = (String, Quantity)>) -> Self {
        let counts = quantities.into_iter().map(|(name, quantity)| {
            let count = counted(&name, quantity);
            (name, count)
        });
        Self { counts: counts.collect() }
    }

    /// `status.allocatable` of a Node; empty when it has none.
    #[must_use]
    pub fn of_node(node: &Node) -> Self {
        let given = node.status.as_ref().and_then(|status| status.allocatable.as_ref());
        let read = |(name, quantity): (&String, _)| Some((name.clone(), Quantity::from_api(quantity).ok()?));
        Self::new(given.into_iter().flatten().filter_map(read))
    }

    /// One resource; 0 when the node does not have it.
    #[must_use]
    pub fn get(&self, resource: &str) -> i64 {
        self.counts.get(resource).copied().unwrap_or(0)
    }

    fn has(&self, resource: &str) -> bool {
        self.counts.contains_key(resource)
    }
}

/// A resource there is too little of. Shown in the kubelet's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Insufficient {
    /// Its name.
    pub resource: String,
    /// What the pod asks for.
    pub requested: i64,
    /// What other pods asked for.
    pub used: i64,
    /// What there is.
    pub capacity: i64,
}

impl Insufficient {
    /// What would have to be freed.
    #[must_use]
    pub fn amount(&self) -> i64 {
        self.requested - (self.capacity - self.used)
    }
}

impl fmt::Display for Insufficient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { resource, requested, used, capacity } = self;
        write!(
            f,
            "Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, capacity: {capacity}"
        )
    }
}

/// A pod that was admitted, and what it takes of the node: worked out once, since each new pod looks at all of them.
#[derive(Debug, Clone)]
pub struct Resident {
    /// The pod as it was given its resources.
    pub pod: Arc<Pod>,
    requests: Requests,
}

impl Resident {
    /// From a pod.
    #[must_use]
    pub fn new(pod: Arc<Pod>) -> Self {
        let requests = pod.spec.as_ref().map(pod_requests).unwrap_or_default();
        Self { pod, requests }
    }
}

/// Every resource there is too little of, in the scheduler's order: pods, cpu, memory, ephemeral-storage, others.
#[must_use]
pub fn insufficient(spec: &PodSpec, others: &[&Resident], allocatable: &Allocatable) -> Vec<Insufficient> {
    let mut found = Vec::new();
    let (count, room) = (others.len() as i64, allocatable.get("pods"));
    if count + 1 > room {
        found.push(Insufficient { resource: "pods".to_owned(), requested: 1, used: count, capacity: room });
    }
    let wanted = pod_requests(spec);
    let mut wanted: Vec<(&str, i64)> =
        wanted.iter().map(|(name, quantity)| (name.as_str(), counted(name, *quantity))).collect();
    // A resource of the cluster that this node does not know is not for it to judge.
    wanted.retain(|(name, request)| *request > 0 && (!is_extended(name) || allocatable.has(name)));
    let order =
        |name: &str| ["cpu", "memory", "ephemeral-storage"].iter().position(|known| *known == name).unwrap_or(3);
    wanted.sort_by_key(|(name, _)| order(name));
    if wanted.is_empty() {
        return found;
    }
    for (name, requested) in wanted {
        let theirs = others.iter().filter_map(|other| other.requests.get(name));
        let used = theirs.map(|quantity| counted(name, *quantity)).sum();
        let capacity = allocatable.get(name);
        if requested > capacity - used {
            found.push(Insufficient { resource: name.to_owned(), requested, used, capacity });
        }
    }
    found
}

/// Whether a resource is one that somebody else than Kubernetes defined (`example.com/gpu`).
fn is_extended(name: &str) -> bool {
    let native = !name.contains('/') || name.contains("kubernetes.io/");
    !native && !name.starts_with("requests.")
}

/// Which ports of a pod are ports of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NodePorts {
    /// Those it names as `hostPort`; a pod has an address of its own.
    #[default]
    HostPorts,
    /// All its ports: pods share the node's address.
    AllPorts,
}

/// Whether no other pod has a port of the node that this one asks for.
#[must_use]
pub fn ports_are_free(spec: &PodSpec, others: &[&Resident], ports: NodePorts) -> bool {
    let wanted = node_ports(spec, ports);
    if wanted.is_empty() {
        return true;
    }
    let taken: Vec<_> =
        others.iter().filter_map(|other| other.pod.spec.as_ref()).flat_map(|spec| node_ports(spec, ports)).collect();
    !wanted.iter().any(|port| taken.iter().any(|other| port.conflicts(other)))
}

#[derive(Debug, PartialEq, Eq)]
struct NodePort<'a> {
    ip: &'a str,
    protocol: &'a str,
    port: i32,
}

impl NodePort<'_> {
    fn conflicts(&self, other: &Self) -> bool {
        let any = |ip: &str| ip == "0.0.0.0";
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || any(self.ip) || any(other.ip))
    }
}

fn node_ports(spec: &PodSpec, ports: NodePorts) -> Vec<NodePort<'_>> {
    let sidecars = spec.init_containers.iter().flatten().filter(|c| crate::pod::restart::is_sidecar(c));
    let all = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    all.filter_map(|port| {
        let host_port = port.host_port.filter(|port| *port > 0);
        let on_node = match ports {
            NodePorts::HostPorts => host_port,
            NodePorts::AllPorts => host_port.or(Some(port.container_port)),
        };
        let ip = port.host_ip.as_deref().filter(|ip| !ip.is_empty()).unwrap_or("0.0.0.0");
        let protocol = port.protocol.as_deref().filter(|protocol| !protocol.is_empty()).unwrap_or("TCP");
        Some(NodePort { ip, protocol, port: on_node? })
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(requests: Value) -> Pod {
        serde_json::from_value(json!({"spec": {"containers": [{"name": "c", "resources": {"requests": requests}}]}}))
            .unwrap()
    }

    fn allocatable(list: Value) -> Allocatable {
        Allocatable::of_node(&serde_json::from_value(json!({"status": {"allocatable": list}})).unwrap())
    }

    #[test]
    fn what_is_missing_is_counted_as_the_scheduler_counts() {
        let room = allocatable(json!({"cpu": "900m", "memory": "1Ki", "pods": "2", "ephemeral-storage": "10"}));
        for (case, requests, others, expected) in [
            ("it fits", json!({"cpu": "900m"}), vec![], vec![]),
            (
                "too much CPU",
                json!({"cpu": "1"}),
                vec![],
                vec!["Node didn't have enough resource: cpu, requested: 1000, used: 0, capacity: 900"],
            ),
            (
                "others count, and order is the scheduler's",
                json!({"memory": "1Ki", "cpu": "500m"}),
                vec![json!({"cpu": "500m", "memory": "1"})],
                vec![
                    "Node didn't have enough resource: cpu, requested: 500, used: 500, capacity: 900",
                    "Node didn't have enough resource: memory, requested: 1024, used: 1, capacity: 1024",
                ],
            ),
            (
                "too many pods",
                json!({}),
                vec![json!({}), json!({})],
                vec!["Node didn't have enough resource: pods, requested: 1, used: 2, capacity: 2"],
            ),
            ("an extended resource the node does not know", json!({"example.com/gpu": "1"}), vec![], vec![]),
            (
                "a native one it does not have",
                json!({"hugepages-2Mi": "2Mi"}),
                vec![],
                vec!["Node didn't have enough resource: hugepages-2Mi, requested: 2097152, used: 0, capacity: 0"],
            ),
        ] {
            let others: Vec<Resident> = others.into_iter().map(|other| Resident::new(Arc::new(pod(other)))).collect();
            let others: Vec<&Resident> = others.iter().collect();
            let found = insufficient(pod(requests).spec.as_ref().unwrap(), &others, &room);
            let found: Vec<String> = found.iter().map(ToString::to_string).collect();
            assert_eq!(found, expected, "{case}");
        }
    }

    #[test]
    fn ports_of_the_node_are_given_once() {
        let pod = |port: Value| -> Pod {
            serde_json::from_value(json!({"spec": {"containers": [{"name": "c", "ports": [port]}]}})).unwrap()
        };
        for (case, ports, first, second, free) in [
            (
                "a container port is nobody else's",
                NodePorts::HostPorts,
                json!({"containerPort": 80}),
                json!({"containerPort": 80}),
                true,
            ),
            (
                "the same host port",
                NodePorts::HostPorts,
                json!({"containerPort": 1, "hostPort": 80}),
                json!({"containerPort": 2, "hostPort": 80, "protocol": "TCP"}),
                false,
            ),
            (
                "another protocol",
                NodePorts::HostPorts,
                json!({"containerPort": 1, "hostPort": 80}),
                json!({"containerPort": 2, "hostPort": 80, "protocol": "UDP"}),
                true,
            ),
            (
                "two addresses",
                NodePorts::HostPorts,
                json!({"containerPort": 1, "hostPort": 80, "hostIP": "10.0.0.1"}),
                json!({"containerPort": 1, "hostPort": 80, "hostIP": "10.0.0.2"}),
                true,
            ),
            (
                "one of all addresses",
                NodePorts::HostPorts,
                json!({"containerPort": 1, "hostPort": 80, "hostIP": "10.0.0.1"}),
                json!({"containerPort": 1, "hostPort": 80}),
                false,
            ),
            (
                "pods that share the node's address",
                NodePorts::AllPorts,
                json!({"containerPort": 80}),
                json!({"containerPort": 80}),
                false,
            ),
        ] {
            let (first, second) = (pod(first), Resident::new(Arc::new(pod(second))));
            assert_eq!(ports_are_free(first.spec.as_ref().unwrap(), &[&second], ports), free, "{case}");
        }
    }
}
