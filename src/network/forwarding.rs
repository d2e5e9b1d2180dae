//! Lets the node's kernel forward packets between other nodes and the pods' namespace.
//!
//! In: an address family. Out: its sysctl set, as every CNI plugin does, or a warning. What the node itself sends to pods
//! needs no forwarding. A node that forwards IPv6 takes no router advertisements unless its `accept_ra` is 2. Firewalls are
//! the admin's: a FORWARD policy of DROP (Docker's) also drops this.

use super::route::Family;

/// Turns forwarding on.
pub(super) fn enable(family: Family) {
    let path = match family {
        Family::V4 => "/proc/sys/net/ipv4/ip_forward",
        Family::V6 => "/proc/sys/net/ipv6/conf/all/forwarding",
    };
    if std::fs::read_to_string(path).is_ok_and(|value| value.trim() == "1") {
        return;
    }
    match std::fs::write(path, "1") {
        Ok(()) => tracing::info!(path, "Turned on forwarding, for other nodes to reach pods"),
        Err(error) => {
            tracing::warn!(path, err = %error, "Could not turn on forwarding: other nodes do not reach pods of this one");
        }
    }
}
