//! Puts readings together: pure, every number and time comes in.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Container;

use super::machine::{NodeMemory, ProcessReading};
use super::types::{
    ClaimReference, ContainerDetail, ContainerStats, CpuStats, FsStats, InterfaceStats, MemoryStats, NetworkStats,
    PodReference, PodStats, ProcessStats, StatsTime, VolumeStats,
};
use super::{PodDisk, Running, Scope, VolumeMedium, nanoseconds};
use crate::ids::{PodRef, PodUid};
use crate::network::Traffic;
use crate::pod::quantity::Quantity;
use crate::pod::run::ContainerUsage;
use crate::status::PodSnapshot;

/// What a running container is said to take at least: the pages of the node's own records of it, and the time it took
/// to start it. metrics-server takes a zero for a container that has ended and leaves its whole pod out.
const LEAST_MEMORY_BYTES: u64 = 4096;
/// See [`LEAST_MEMORY_BYTES`].
const LEAST_CPU_NANOSECONDS: u64 = 1000;

/// One running container.
pub(super) struct ContainerReading {
    pub(super) container: Running,
    pub(super) usage: ContainerUsage,
    pub(super) nano_cores: Option<u64>,
}

/// One pod.
pub(super) struct PodInput<'a> {
    pub(super) now: Timestamp,
    pub(super) scope: Scope,
    pub(super) snapshot: &'a PodSnapshot,
    pub(super) uid: &'a PodUid,
    pub(super) name: PodRef,
    pub(super) containers: Vec<ContainerReading>,
    pub(super) disk: Option<&'a PodDisk>,
    pub(super) node_fs: Option<&'a FsStats>,
    /// Bytes of the pod's own addresses; none on the node's network.
    pub(super) network: Option<InterfaceStats>,
}

/// A pod with running containers.
pub(super) fn pod(input: &PodInput<'_>) -> Option<PodStats> {
    if input.containers.is_empty() {
        return None;
    }
    let containers: Vec<ContainerStats> = input.containers.iter().map(|reading| container(input, reading)).collect();
    let started = input.snapshot.status.start_time.as_ref().map_or(input.now, |time| time.0);
    let full = input.scope == Scope::Everything;
    Some(PodStats {
        pod_ref: PodReference {
            name: input.name.name.clone(),
            namespace: input.name.namespace.clone(),
            uid: input.uid.to_string(),
        },
        start_time: StatsTime(started),
        cpu: sum_cpu(input.now, containers.iter().map(|container| &container.cpu)),
        memory: sum_memory(input.now, containers.iter().map(|container| &container.memory)),
        network: input.network.clone().filter(|_| full).map(|interface| NetworkStats {
            time: StatsTime(input.now),
            default: interface.clone(),
            interfaces: vec![interface],
        }),
        volumes: if full { volumes(input) } else { Vec::new() },
        ephemeral_storage: if full { ephemeral_storage(input) } else { None },
        process_stats: ProcessStats {
            process_count: input.containers.iter().map(|reading| u64::from(reading.usage.processes)).sum(),
        },
        containers,
    })
}

fn container(input: &PodInput<'_>, reading: &ContainerReading) -> ContainerStats {
    let ContainerReading { container, usage, nano_cores } = reading;
    let time = StatsTime(input.now);
    let spec = input.snapshot.pod.spec.as_ref();
    let containers =
        spec.into_iter().flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
    let spec = containers.into_iter().find(|spec| spec.name == container.name);
    let limit = |resource| spec.and_then(|spec| limit(spec, resource));
    let memory_limit_bytes = limit("memory").and_then(|limit| u64::try_from(limit.value()).ok());
    let memory = usage.memory_bytes.max(LEAST_MEMORY_BYTES);
    let full = input.scope == Scope::Everything;
    let fs = |used_bytes| {
        let fs = input.node_fs.filter(|_| full)?;
        // Inodes of a part of a file system are nobody's count.
        Some(FsStats { time, used_bytes, inodes_used: None, ..fs.clone() })
    };
    let logs = input.disk.and_then(|disk| disk.logs.get(&container.name));
    ContainerStats {
        name: container.name.clone(),
        start_time: StatsTime(container.started_at),
        cpu: CpuStats {
            time,
            usage_nano_cores: *nano_cores,
            usage_core_nano_seconds: nanoseconds(usage.cpu).max(LEAST_CPU_NANOSECONDS),
        },
        memory: MemoryStats {
            time,
            available_bytes: memory_limit_bytes.map(|limit| limit.saturating_sub(memory)),
            usage_bytes: memory,
            // A guest's memory is not of files: none of it could be taken away.
            working_set_bytes: memory,
            rss_bytes: memory,
        },
        rootfs: fs(usage.writable_bytes),
        logs: logs.and_then(|bytes| fs(*bytes)),
        detail: Some(ContainerDetail {
            id: container.id.to_string(),
            image: container.image.clone(),
            memory_peak_bytes: usage.memory_peak_bytes.max(memory),
            memory_limit_bytes,
            cpu_limit_milli: limit("cpu").and_then(|limit| u64::try_from(limit.milli_value()).ok()),
            processes: u64::from(usage.processes),
        }),
    }
}

fn limit(container: &Container, resource: &str) -> Option<Quantity> {
    let limit = container.resources.as_ref()?.limits.as_ref()?.get(resource)?;
    Quantity::from_api(limit).ok()
}

fn volumes(input: &PodInput<'_>) -> Vec<VolumeStats> {
    let (Some(disk), Some(node_fs)) = (input.disk, input.node_fs) else { return Vec::new() };
    let stats = disk.volumes.iter().map(|volume| VolumeStats {
        name: volume.name.clone(),
        fs: FsStats { used_bytes: volume.bytes, inodes_used: None, ..node_fs.clone() },
        claim: None,
    });
    let namespace = input.name.namespace.clone();
    let claims = disk.claims.iter().map(|claim| {
        let ((available_bytes, capacity_bytes, used_bytes), (inodes_free, inodes, inodes_used)) =
            (claim.fullness.bytes, claim.fullness.inodes);
        VolumeStats {
            name: claim.volume.clone(),
            fs: FsStats {
                time: node_fs.time,
                available_bytes,
                capacity_bytes,
                used_bytes,
                inodes_free: Some(inodes_free),
                inodes: Some(inodes),
                inodes_used: Some(inodes_used),
            },
            claim: Some(ClaimReference { name: claim.claim.clone(), namespace: namespace.clone() }),
        }
    });
    stats.chain(claims).collect()
}

fn ephemeral_storage(input: &PodInput<'_>) -> Option<FsStats> {
    let (disk, node_fs) = (input.disk?, input.node_fs?);
    let on_disk = disk.volumes.iter().filter(|volume| volume.medium == VolumeMedium::Disk);
    let volumes: u64 = on_disk.map(|volume| volume.bytes).sum();
    let writable: u64 = input.containers.iter().map(|reading| reading.usage.writable_bytes).sum();
    let used_bytes = volumes + writable + disk.logs.values().sum::<u64>();
    Some(FsStats { used_bytes, inodes_used: None, ..node_fs.clone() })
}

/// The sum of several; a rate only when each has one.
fn sum_cpu<'a>(now: Timestamp, parts: impl Iterator<Item = &'a CpuStats> + Clone) -> CpuStats {
    CpuStats {
        time: StatsTime(now),
        usage_nano_cores: parts.clone().map(|cpu| cpu.usage_nano_cores).sum(),
        usage_core_nano_seconds: parts.map(|cpu| cpu.usage_core_nano_seconds).sum(),
    }
}

/// The sum of several; something is available only when each has a limit.
fn sum_memory<'a>(now: Timestamp, parts: impl Iterator<Item = &'a MemoryStats> + Clone) -> MemoryStats {
    MemoryStats {
        time: StatsTime(now),
        available_bytes: parts.clone().map(|memory| memory.available_bytes).sum(),
        usage_bytes: parts.clone().map(|memory| memory.usage_bytes).sum(),
        working_set_bytes: parts.clone().map(|memory| memory.working_set_bytes).sum(),
        rss_bytes: parts.map(|memory| memory.rss_bytes).sum(),
    }
}

/// The agent as the system container `kubelet`.
pub(super) fn agent(now: Timestamp, process: ProcessReading, nano_cores: Option<u64>) -> ContainerStats {
    let time = StatsTime(now);
    ContainerStats {
        name: "kubelet".to_owned(),
        start_time: StatsTime(process.started_at),
        cpu: CpuStats { time, usage_nano_cores: nano_cores, usage_core_nano_seconds: process.cpu_nanoseconds },
        memory: MemoryStats {
            time,
            available_bytes: None,
            usage_bytes: process.resident_bytes,
            working_set_bytes: process.resident_bytes,
            rss_bytes: process.resident_bytes,
        },
        rootfs: None,
        logs: None,
        detail: None,
    }
}

/// All pods as the system container `pods`.
pub(super) fn all_pods(now: Timestamp, boot_time: Timestamp, pods: &[PodStats]) -> ContainerStats {
    let mut memory = sum_memory(now, pods.iter().map(|pod| &pod.memory));
    memory.available_bytes = None;
    ContainerStats {
        name: "pods".to_owned(),
        start_time: StatsTime(boot_time),
        cpu: sum_cpu(now, pods.iter().map(|pod| &pod.cpu)),
        memory,
        rootfs: None,
        logs: None,
        detail: None,
    }
}

/// The node's memory.
pub(super) fn node_memory(now: Timestamp, memory: NodeMemory) -> MemoryStats {
    MemoryStats {
        time: StatsTime(now),
        available_bytes: Some(memory.capacity.saturating_sub(memory.working_set)),
        usage_bytes: memory.usage,
        working_set_bytes: memory.working_set,
        rss_bytes: memory.rss,
    }
}

/// The node's interfaces; the one with the default route first, else the first of all.
pub(super) fn network(now: Timestamp, default: Option<&str>, interfaces: Vec<InterfaceStats>) -> NetworkStats {
    let named = interfaces.iter().find(|interface| Some(interface.name.as_str()) == default);
    let default = named.or(interfaces.first()).cloned().unwrap_or_default();
    NetworkStats { time: StatsTime(now), default, interfaces }
}

/// A pod's traffic as its one interface, under the name that pods of other runtimes have it.
pub(super) fn pod_interface(traffic: Traffic) -> InterfaceStats {
    let Traffic { rx_bytes, tx_bytes } = traffic;
    InterfaceStats { name: "eth0".to_owned(), rx_bytes, tx_bytes, ..InterfaceStats::default() }
}

/// Bytes of all writable layers.
pub(super) fn writable_bytes(pods: &[PodStats]) -> u64 {
    let containers = pods.iter().flat_map(|pod| &pod.containers);
    containers.filter_map(|container| container.rootfs.as_ref()).map(|fs| fs.used_bytes).sum()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use serde_json::json;

    use super::super::{ClaimUse, VolumeUse};
    use super::*;
    use crate::volume::Fullness;

    fn fs() -> FsStats {
        FsStats {
            time: StatsTime(Timestamp::UNIX_EPOCH),
            available_bytes: 600,
            capacity_bytes: 1000,
            used_bytes: 400,
            inodes_free: Some(6),
            inodes: Some(10),
            inodes_used: Some(4),
        }
    }

    fn reading(name: &str, cpu: Duration, memory_bytes: u64, nano_cores: Option<u64>) -> ContainerReading {
        ContainerReading {
            container: Running {
                name: name.to_owned(),
                id: "a".repeat(64).parse().unwrap(),
                image: "example.com/app:1".to_owned(),
                started_at: "2026-01-01T00:00:01.5Z".parse().unwrap(),
            },
            usage: ContainerUsage {
                cpu,
                memory_bytes,
                memory_peak_bytes: memory_bytes,
                processes: 1,
                writable_bytes: 7,
            },
            nano_cores,
        }
    }

    /// A pod of two containers, one of them with limits and idle.
    pub(crate) fn example(scope: Scope) -> PodStats {
        let pod = json!({"metadata": {"name": "web", "namespace": "ns", "uid": "u1"}, "spec": {"containers": [
            {"name": "app", "resources": {"limits": {"memory": "1Mi", "cpu": "250m"}}}, {"name": "idle"}]}});
        let status = json!({"startTime": "2026-01-01T00:00:00Z"});
        let snapshot = PodSnapshot {
            pod: Arc::new(serde_json::from_value(pod).unwrap()),
            status: Arc::new(serde_json::from_value(status).unwrap()),
            version: 1,
            stage: crate::status::Stage::Alive,
        };
        let volume = |name: &str, medium| VolumeUse { name: name.to_owned(), bytes: 100, medium };
        let disk = PodDisk {
            volumes: vec![volume("cache", VolumeMedium::Disk), volume("config", VolumeMedium::Memory)],
            claims: vec![ClaimUse {
                volume: "data".to_owned(),
                claim: "data-web-0".to_owned(),
                fullness: Fullness { bytes: (60, 100, 40), inodes: (6, 10, 4) },
            }],
            logs: [("app".to_owned(), 30)].into(),
        };
        let stats = super::pod(&PodInput {
            now: "2026-01-01T00:01:00.25Z".parse().unwrap(),
            scope,
            snapshot: &snapshot,
            uid: &PodUid::new("u1").unwrap(),
            name: PodRef { namespace: "ns".into(), name: "web".into() },
            containers: vec![
                reading("app", Duration::from_millis(1500), 1 << 19, Some(25_000_000)),
                reading("idle", Duration::ZERO, 0, None),
            ],
            disk: Some(&disk),
            node_fs: Some(&fs()),
            network: Some(InterfaceStats {
                name: "eth0".into(),
                rx_bytes: 5,
                tx_bytes: 6,
                ..InterfaceStats::default()
            }),
        });
        stats.unwrap()
    }

    #[test]
    fn a_pod_is_the_sum_of_its_containers() {
        let stats = example(Scope::Everything);
        let json = serde_json::to_value(&stats).unwrap();
        assert_eq!(json["podRef"], json!({"name": "web", "namespace": "ns", "uid": "u1"}));
        assert_eq!(json["startTime"], "2026-01-01T00:00:00Z");
        assert_eq!(json["cpu"], json!({"time": "2026-01-01T00:01:00Z", "usageCoreNanoSeconds": 1_500_001_000}));
        assert_eq!(json["containers"][0]["cpu"]["usageNanoCores"], 25_000_000);
        assert_eq!(json["containers"][0]["memory"]["availableBytes"], 1 << 19);
        assert_eq!(json["containers"][0]["rootfs"]["usedBytes"], 7);
        assert_eq!(json["containers"][0]["logs"]["usedBytes"], 30);
        assert_eq!(json["containers"][1]["logs"], json!(null), "never measured is not zero");
        assert_eq!(json["memory"]["workingSetBytes"], (1 << 19) + 4096);
        assert_eq!(json["memory"].get("availableBytes"), None, "one has no limit");
        assert_eq!(json["network"]["name"], "eth0");
        assert_eq!(json["volume"][0]["name"], "cache");
        assert_eq!(json["volume"][0]["usedBytes"], 100);
        assert_eq!(json["volume"][2]["pvcRef"], serde_json::json!({"name": "data-web-0", "namespace": "ns"}));
        assert_eq!((&json["volume"][2]["capacityBytes"], &json["volume"][2]["inodesUsed"]), (&100.into(), &4.into()));
        assert_eq!(json["ephemeral-storage"]["usedBytes"], 100 + 7 + 7 + 30);
        assert_eq!(json["process_stats"]["process_count"], 2);
    }

    #[test]
    fn cpu_and_memory_alone_is_nothing_else_and_never_zero() {
        let json = serde_json::to_value(example(Scope::CpuAndMemory)).unwrap();
        for absent in ["network", "volume", "ephemeral-storage"] {
            assert_eq!(json.get(absent), None, "{absent}");
        }
        assert_eq!(json["containers"][0].get("rootfs"), None);
        assert!(json["containers"][1]["cpu"]["usageCoreNanoSeconds"].as_u64().unwrap() > 0);
        assert!(json["containers"][1]["memory"]["workingSetBytes"].as_u64().unwrap() > 0);
    }

    #[test]
    fn the_node_has_its_default_interface_and_what_is_available() {
        let interface = |name: &str| InterfaceStats { name: name.to_owned(), ..InterfaceStats::default() };
        let all = vec![interface("veth0"), interface("eth0")];
        assert_eq!(network(Timestamp::UNIX_EPOCH, Some("eth0"), all.clone()).default.name, "eth0");
        assert_eq!(network(Timestamp::UNIX_EPOCH, None, all).default.name, "veth0");
        let memory = NodeMemory { capacity: 10, usage: 8, working_set: 6, rss: 5 };
        assert_eq!(node_memory(Timestamp::UNIX_EPOCH, memory).available_bytes, Some(4));
    }
}
