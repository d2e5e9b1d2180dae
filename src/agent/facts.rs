//! What pods are told of this machine, and where things are on it.
//!
//! In: facts of the machine, the settings, resolv.conf. Out: plain data. Measures nothing itself (`node::facts`).

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use crate::config::NodeConfig;
use crate::node::facts::Facts;
use crate::pod::dns::{Membership, NodeDns};
use crate::pod::downward::NodeFacts;
use crate::pod::run::DnsConfig;

/// The node as its pods may see it: what its status says of the machine, control groups included.
pub fn node_facts(name: &str, host_ips: Vec<IpAddr>, root_dir: &Path) -> NodeFacts {
    let Facts { machine, memory, disk, .. } = Facts::read(root_dir);
    let signed = |bytes| i64::try_from(bytes).unwrap_or(i64::MAX);
    NodeFacts {
        name: name.to_owned(),
        host_ips,
        allocatable_cpu_milli: i64::from(machine.cores) * 1000,
        allocatable_memory_bytes: signed(memory.capacity_bytes),
        allocatable_ephemeral_storage_bytes: signed(disk.capacity_bytes),
    }
}

/// Resolver settings of the node's cluster, if it has one; its own are read from `resolvConf` for each pod.
pub fn node_dns(config: &NodeConfig, membership: Membership) -> NodeDns {
    NodeDns {
        cluster_servers: config.cluster_dns.clone(),
        cluster_domain: config.cluster_domain.clone().unwrap_or_default(),
        host: DnsConfig::default(),
        membership,
    }
}

/// Where memory volumes are: a tmpfs of the machine, one directory a root directory and user, so that they outlive the
/// agent and two agents never meet.
pub fn memory_root(config: &NodeConfig, root_dir: &Path) -> PathBuf {
    if let Some(dir) = &config.memory_volume_dir {
        return dir.clone();
    }
    let name = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_URL, root_dir.as_os_str().as_encoded_bytes());
    PathBuf::from(format!("/dev/shm/wasilet-{}-{}", rustix::process::geteuid().as_raw(), name.simple()))
}

/// Where container logs are: the kubelet's place for a node that owns the machine's usual root directory, else below its own.
pub fn logs_dir(config: &NodeConfig, root_dir: &Path) -> PathBuf {
    match &config.pod_logs_dir {
        Some(dir) => dir.clone(),
        None if root_dir == Path::new("/var/lib/wasilet") => PathBuf::from("/var/log/pods"),
        None => root_dir.join("logs/pods"),
    }
}
