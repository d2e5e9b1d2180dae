//! Where pods get their addresses: one decision, from the settings and from what this process may do.
//!
//! In: `podNetwork`, `podCIDR`, whether there is a cluster, privileges. Out: an [`AddressMode`]. Opens nothing.
//!
//! | `podNetwork` | in a cluster | privileges | addresses |
//! |---|---|---|---|
//! | auto | yes | yes | the podCIDR, in a namespace |
//! | auto | yes | no | the node's own |
//! | auto | no | any | 127.0.0.0/8, or a `podCIDR` elsewhere, in a namespace |
//! | namespace | any | yes | the podCIDR, in a namespace |
//! | namespace | any | no | refused, as is one without a cluster and without a `podCIDR` |
//! | nodeAddress | any | any | the node's own |

use std::net::{IpAddr, Ipv4Addr};

use super::config::{AddressMode, IpRange, LOOPBACK_RANGE, NetworkError};
use crate::config::PodNetworkMode;

/// What the decision is made of.
#[derive(Debug, Clone)]
pub struct ModeFacts {
    /// `podNetwork`.
    pub wanted: PodNetworkMode,
    /// Whether the node joins a cluster.
    pub in_cluster: bool,
    /// [`may_make_namespaces`].
    pub privileged: bool,
    /// `podCIDR` of the settings, for a standalone node or a cluster whose Node objects have none, or those the Node object
    /// had last. A cluster's own come later, by [`super::NodeNetwork::set_pod_ranges`], and replace them.
    pub ranges: Vec<IpRange>,
    /// Further ranges of the cluster, reached from pods' own addresses.
    pub cluster: Vec<IpRange>,
    /// The node's address.
    pub node_ip: IpAddr,
    /// The root directory: what two nodes of one machine never share.
    pub seed: String,
}

/// Whether this process may make a network namespace and links: CAP_SYS_ADMIN for the one, CAP_NET_ADMIN for the others.
pub fn may_make_namespaces() -> bool {
    use rustix::thread::{CapabilitySet, capabilities};
    let needed = CapabilitySet::NET_ADMIN | CapabilitySet::SYS_ADMIN;
    capabilities(None).is_ok_and(|sets| sets.effective.contains(needed))
}

/// Chooses.
///
/// # Errors
/// [`NetworkError::NoPrivileges`] when the settings insist on a namespace, [`NetworkError::NoPodCidr`] when they do so
/// without a cluster and without a range, [`NetworkError::BadRange`] for a standalone `podCIDR` that would need one.
pub fn decide_mode(facts: ModeFacts) -> Result<AddressMode, NetworkError> {
    let ModeFacts { wanted, in_cluster, privileged, ranges, cluster, node_ip, seed } = facts;
    let range = ranges.first().copied();
    let namespace = || AddressMode::Namespace { seed, ranges, cluster };
    match wanted {
        PodNetworkMode::NodeAddress => Ok(AddressMode::NodeAddress { ip: node_ip }),
        PodNetworkMode::Namespace if !in_cluster && range.is_none() => Err(NetworkError::NoPodCidr),
        PodNetworkMode::Namespace if privileged => Ok(namespace()),
        PodNetworkMode::Namespace => Err(NetworkError::NoPrivileges),
        PodNetworkMode::Auto if in_cluster && privileged => Ok(namespace()),
        PodNetworkMode::Auto if in_cluster => Ok(AddressMode::NodeAddress { ip: node_ip }),
        PodNetworkMode::Auto => {
            let range = range.unwrap_or(LOOPBACK_RANGE);
            let loopback = IpRange::new(Ipv4Addr::new(127, 0, 0, 0).into(), 8).is_ok_and(|all| all.overlaps(&range));
            match (loopback, privileged) {
                (true, _) => Ok(AddressMode::Loopback { range }),
                (false, true) => Ok(namespace()),
                (false, false) => Err(NetworkError::BadRange { range }),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mode_follows_settings_cluster_and_privileges() {
        use PodNetworkMode::{Auto, Namespace, NodeAddress};
        let node_ip: IpAddr = "192.0.2.7".parse().expect("address");
        let (standalone, joined, plain, root) = (false, true, false, true);
        for (case, wanted, in_cluster, privileged, range, expected) in [
            ("newcomer", Auto, standalone, plain, None, Some("loopback 127.64.0.0/10")),
            ("newcomer as root", Auto, standalone, root, None, Some("loopback 127.64.0.0/10")),
            ("standalone, loopback range", Auto, standalone, root, Some("127.9.0.0/16"), Some("loopback 127.9.0.0/16")),
            ("standalone, own range", Auto, standalone, root, Some("10.1.0.0/24"), Some("namespace 10.1.0.0/24")),
            ("standalone, own range, no rights", Auto, standalone, plain, Some("10.1.0.0/24"), None),
            ("joined, range to come", Auto, joined, root, None, Some("namespace")),
            ("joined, range of the settings", Auto, joined, root, Some("10.1.0.0/24"), Some("namespace 10.1.0.0/24")),
            ("joined, no rights", Auto, joined, plain, None, Some("node 192.0.2.7")),
            ("insisting without rights", Namespace, joined, plain, None, None),
            ("insisting without a range", Namespace, standalone, root, None, None),
            ("insisting with rights", Namespace, standalone, root, Some("10.1.0.0/24"), Some("namespace 10.1.0.0/24")),
            ("node address by choice", NodeAddress, joined, root, None, Some("node 192.0.2.7")),
        ] {
            let ranges: Vec<IpRange> = range.iter().map(|range| range.parse().expect("range")).collect();
            let seed = "/".to_owned();
            let facts = ModeFacts { wanted, in_cluster, privileged, ranges, cluster: Vec::new(), node_ip, seed };
            let decided = decide_mode(facts).ok().map(|mode| match mode {
                AddressMode::Loopback { range } => format!("loopback {range}"),
                AddressMode::Namespace { ranges, .. } => match ranges.first() {
                    Some(range) => format!("namespace {range}"),
                    None => "namespace".to_owned(),
                },
                AddressMode::NodeAddress { ip } => format!("node {ip}"),
            });
            assert_eq!(decided.as_deref(), expected, "{case}");
        }
    }
}
