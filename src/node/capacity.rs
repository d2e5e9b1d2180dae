//! What the node has and what pods can have of it.
//!
//! In: facts of the machine, settings, the podCIDR. Out: `status.capacity` and `status.allocatable`. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::facts::Facts;
use super::pressure::thresholds::Signal;
use super::settings::{NodeSettings, PodAddresses};
use crate::pod::admission::fit::Allocatable;
use crate::pod::downward::NodeFacts;
use crate::pod::quantity::Quantity;

/// Memory mappings of one pod: the reservation of a guest's memory and its guards, its fiber's stack, its module, and as much
/// again for a second container.
const MAPPINGS_PER_POD: u64 = 16;
/// Bytes the smallest pod takes: a guest's pages, its stack, its actor and its buffers.
const BYTES_PER_POD: u64 = 4 << 20;
/// Addresses of a range that no pod gets: the first, the last, and the node's.
const RESERVED_ADDRESSES: u64 = 3;

/// Quantities by resource name.
pub type Resources = BTreeMap<String, Quantity>;

/// `capacity` and `allocatable`.
#[derive(Debug, Clone, PartialEq)]
pub struct Capacity {
    /// What there is.
    pub capacity: Resources,
    /// What pods can have: less what is reserved and what eviction keeps free.
    pub allocatable: Resources,
}

impl Capacity {
    /// Adds it up. `pod_cidrs` are the Node's.
    #[must_use]
    pub fn of(facts: &Facts, settings: &NodeSettings, pod_cidrs: &[String]) -> Self {
        let bytes = |n: u64| Quantity::from_bytes(i64::try_from(n).unwrap_or(i64::MAX));
        let pods = pods(facts, settings, pod_cidrs);
        let capacity: Resources = [
            ("cpu", Quantity::from_millis(i64::from(facts.machine.cores) * 1000)),
            ("memory", bytes(facts.memory.capacity_bytes)),
            ("ephemeral-storage", bytes(facts.disk.capacity_bytes)),
            ("pods", Quantity::from_millis(i64::try_from(pods).unwrap_or(i64::MAX / 1000) * 1000)),
        ]
        .map(|(name, quantity)| (name.to_owned(), quantity))
        .into();
        let allocatable = capacity.iter().map(|(name, total)| {
            let kept = settings.reserved.get(name).copied().into_iter().chain(kept_by_eviction(settings, name, *total));
            (name.clone(), kept.fold(*total, minus))
        });
        Self { allocatable: allocatable.collect(), capacity }
    }

    /// What pods may know of their node.
    #[must_use]
    pub fn node_facts(&self, name: &str, host_ips: Vec<IpAddr>) -> NodeFacts {
        let allocatable = self.allocatable();
        NodeFacts {
            name: name.to_owned(),
            host_ips,
            allocatable_cpu_milli: allocatable.get("cpu"),
            allocatable_memory_bytes: allocatable.get("memory"),
            allocatable_ephemeral_storage_bytes: allocatable.get("ephemeral-storage"),
        }
    }

    /// For admission.
    #[must_use]
    pub fn allocatable(&self) -> Allocatable {
        Allocatable::new(self.allocatable.clone())
    }
}

/// What a hard threshold keeps free of a resource, as the kubelet takes it off (`hardEvictionReservation`).
fn kept_by_eviction(settings: &NodeSettings, resource: &str, total: Quantity) -> Option<Quantity> {
    let signal = match resource {
        "memory" => Signal::MemoryAvailable,
        "ephemeral-storage" => Signal::NodeFsAvailable,
        _ => return None,
    };
    let threshold = settings.thresholds.iter().find(|threshold| threshold.signal == signal)?;
    let total = u64::try_from(total.value()).unwrap_or(0);
    Some(Quantity::from_bytes(i64::try_from(threshold.value.of(total)).unwrap_or(i64::MAX)))
}

/// Never below zero.
fn minus(from: Quantity, less: Quantity) -> Quantity {
    let millis = from.milli_value();
    if from.is_fractional() || less.is_fractional() {
        return Quantity::from_millis(millis.saturating_sub(less.milli_value()).max(0));
    }
    let left = from.value().saturating_sub(less.value()).max(0);
    // CPU and pods are counted in powers of ten, bytes in powers of 1024; the notation of the total decides.
    if from.to_string().ends_with('i') || from.value() >= 1 << 20 {
        Quantity::from_bytes(left)
    } else {
        Quantity::from_millis(left.saturating_mul(1000))
    }
}

/// The least of what bounds pods.
fn pods(facts: &Facts, settings: &NodeSettings, pod_cidrs: &[String]) -> u64 {
    let addresses = match settings.addresses {
        // Of two families, the smaller range bounds.
        PodAddresses::OfNode => pod_cidrs.iter().filter_map(|cidr| addresses_of(cidr)).min(),
        PodAddresses::Given(count) => Some(count),
        PodAddresses::Shared => None,
    };
    // A quarter of the mappings is the agent's own.
    let mappings = facts.machine.max_map_count.map(|most| most / 4 * 3 / MAPPINGS_PER_POD);
    let memory = Some(facts.memory.capacity_bytes / BYTES_PER_POD);
    let bounds = [settings.max_pods.map(u64::from), addresses, mappings, memory];
    bounds.into_iter().flatten().min().unwrap_or(0)
}

fn addresses_of(cidr: &str) -> Option<u64> {
    let cidr: crate::config::Cidr = cidr.parse().ok()?;
    let bits = if cidr.address.is_ipv4() { 32 } else { 128 } - u32::from(cidr.prefix_length);
    Some(1u64.checked_shl(bits.min(63)).unwrap_or(u64::MAX).saturating_sub(RESERVED_ADDRESSES))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::NodeConfig;
    use crate::node::facts::{Disk, Machine, Memory, Processes};

    fn facts() -> Facts {
        Facts {
            machine: Machine { cores: 4, max_map_count: Some(65_536), ..Machine::default() },
            memory: Memory { capacity_bytes: 8 << 30, available_bytes: 4 << 30 },
            disk: Disk { capacity_bytes: 100 << 30, available_bytes: 50 << 30, inodes: 10, inodes_free: 5 },
            processes: Processes::default(),
        }
    }

    fn shown(resources: &Resources) -> Vec<String> {
        resources.iter().map(|(name, quantity)| format!("{name}={quantity}")).collect()
    }

    #[test]
    fn allocatable_is_capacity_less_what_is_kept() {
        let mut config = NodeConfig::default();
        config.registration.reserved =
            vec![[("cpu".to_owned(), "500m".to_owned()), ("memory".to_owned(), "1Gi".to_owned())].into()];
        let settings = NodeSettings::new(&config, "n", "/").unwrap();
        let capacity = Capacity::of(&facts(), &settings, &["10.1.0.0/24".to_owned()]);
        assert_eq!(shown(&capacity.capacity), ["cpu=4", "ephemeral-storage=100Gi", "memory=8Gi", "pods=253"]);
        assert_eq!(shown(&capacity.allocatable), ["cpu=3500m", "ephemeral-storage=90Gi", "memory=7068Mi", "pods=253"]);
        assert_eq!(capacity.allocatable().get("cpu"), 3500);
        assert_eq!(capacity.node_facts("n", Vec::new()).allocatable_memory_bytes, 7068 << 20);
        config.registration.reserved = vec![[("cpu".to_owned(), "8".to_owned())].into()];
        let settings = NodeSettings::new(&config, "n", "/").unwrap();
        assert_eq!(Capacity::of(&facts(), &settings, &[]).allocatable["cpu"], Quantity::ZERO, "never below zero");
    }

    #[test]
    fn the_least_bound_of_pods_counts() {
        let with = |addresses, max_pods, cidrs: &[&str], memory| {
            let config = NodeConfig { max_pods, ..NodeConfig::default() };
            let settings = NodeSettings { addresses, ..NodeSettings::new(&config, "n", "/").unwrap() };
            let mut facts = facts();
            facts.memory.capacity_bytes = memory;
            let cidrs: Vec<String> = cidrs.iter().map(|cidr| (*cidr).to_owned()).collect();
            pods(&facts, &settings, &cidrs)
        };
        for (case, got, expected) in [
            ("maxPods", with(PodAddresses::OfNode, Some(110), &["10.0.0.0/16"], 64 << 30), 110),
            ("addresses", with(PodAddresses::OfNode, Some(500), &["10.0.0.0/24", "fd00::/64"], 64 << 30), 253),
            ("a range of its own", with(PodAddresses::Given(5), None, &["10.0.0.0/24"], 64 << 30), 5),
            ("mappings", with(PodAddresses::Shared, None, &["10.0.0.0/30"], 64 << 30), 3072),
            ("memory", with(PodAddresses::Shared, None, &[], 1 << 30), 256),
        ] {
            assert_eq!(got, expected, "{case}");
        }
    }
}
