//! What this machine is: cores, memory, disk and resolver, for the downward API and for limits.
//!
//! In: /proc, statvfs, resolv.conf. Out: plain data. A value that cannot be read is the most modest one, with a warning.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use crate::config::NodeConfig;
use crate::pod::dns::{Membership, NodeDns};
use crate::pod::downward::NodeFacts;
use crate::pod::run::DnsConfig;

/// The node as its pods may see it.
pub fn node_facts(name: &str, host_ip: IpAddr, root_dir: &Path) -> NodeFacts {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    NodeFacts {
        name: name.to_owned(),
        host_ips: vec![host_ip],
        allocatable_cpu_milli: i64::try_from(cores * 1000).unwrap_or(i64::MAX),
        allocatable_memory_bytes: memory_bytes(),
        allocatable_ephemeral_storage_bytes: storage_bytes(root_dir),
    }
}

fn memory_bytes() -> i64 {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total.and_then(|rest| rest.split_whitespace().next()).and_then(|kib| kib.parse::<i64>().ok());
    kib.map_or_else(
        || {
            tracing::warn!("Could not read MemTotal of /proc/meminfo, assumed 1 GiB");
            1 << 30
        },
        |kib| kib.saturating_mul(1024),
    )
}

fn storage_bytes(root_dir: &Path) -> i64 {
    match rustix::fs::statvfs(root_dir) {
        Ok(disk) => i64::try_from(disk.f_blocks.saturating_mul(disk.f_frsize)).unwrap_or(i64::MAX),
        Err(error) => {
            tracing::warn!(path = %root_dir.display(), err = %error, "Could not measure the disk, assumed 1 GiB");
            1 << 30
        }
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
