//! What the containers of a pod share: host name and network settings.
//!
//! In: a spec, the node's DNS settings. Out: the plain data of [`SandboxSpec`](super::run::SandboxSpec).
//! Addresses are `network`'s, volumes `volume`'s.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Pod, PodSpec};

use super::run::{DnsConfig, HostAlias, HostPort, NetworkMode, PortProtocol, SandboxNetwork};

/// A Linux host name is no longer.
const MAX_HOSTNAME: usize = 63;
/// resolv.conf(5) reads no more.
const MAX_NAMESERVERS: usize = 3;
/// The kubelet's `MaxDNSSearchPaths`.
const MAX_SEARCHES: usize = 32;

/// DNS settings of the node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeDns {
    /// `clusterDNS`; empty on a node without a cluster.
    pub cluster_servers: Vec<IpAddr>,
    /// `clusterDomain`.
    pub cluster_domain: String,
    /// The node's own resolv.conf.
    pub host: DnsConfig,
}

/// What `hostname` shows: `spec.hostname` else the pod's name, cut to 63 characters.
#[must_use]
pub fn hostname(pod: &Pod) -> String {
    let spec = pod.spec.as_ref();
    let given = spec.and_then(|spec| spec.hostname_override.as_ref().or(spec.hostname.as_ref()));
    let given = given.filter(|hostname| !hostname.is_empty());
    let name = given.or(pod.metadata.name.as_ref()).cloned().unwrap_or_default();
    let cut = &name[..name.floor_char_boundary(MAX_HOSTNAME)];
    // The kubelet: hostname should not end with '-' or '.'.
    cut.trim_end_matches(['-', '.']).to_owned()
}

/// The pod's network settings.
#[must_use]
pub fn network(pod: &Pod, node: &NodeDns) -> SandboxNetwork {
    let default = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&default);
    let mode = if spec.host_network == Some(true) { NetworkMode::Host } else { NetworkMode::Pod };
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let aliases = spec.host_aliases.iter().flatten().filter_map(|alias| {
        let ip = alias.ip.parse().ok()?;
        Some(HostAlias { ip, hostnames: alias.hostnames.clone().unwrap_or_default() })
    });
    let dns = dns(spec, namespace, mode, node);
    SandboxNetwork { mode, dns, host_aliases: aliases.collect(), host_ports: host_ports(spec, mode) }
}

/// Ports that the node forwards: the kubelet's `MakePortMappings`. It leaves sidecars out though the scheduler counts
/// their ports; here they are forwarded too. A `hostNetwork` pod's ports are the node's already.
fn host_ports(spec: &PodSpec, mode: NetworkMode) -> Vec<HostPort> {
    if mode == NetworkMode::Host {
        return Vec::new();
    }
    let sidecars =
        spec.init_containers.iter().flatten().filter(|init| init.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    let mapped = ports.filter_map(|port| {
        let protocol = match port.protocol.as_deref().unwrap_or("TCP") {
            "TCP" => PortProtocol::Tcp,
            "UDP" => PortProtocol::Udp,
            _ => return None,
        };
        let host_port = port.host_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0)?;
        // An unparsable address is refused by validation; an empty one means all.
        let host_ip = port.host_ip.as_deref().and_then(|ip| ip.parse().ok()).filter(|ip: &IpAddr| !ip.is_unspecified());
        Some(HostPort { protocol, host_ip, host_port, container_port: u16::try_from(port.container_port).ok()? })
    });
    mapped.collect()
}

/// The kubelet's `GetPodDNS`.
fn dns(spec: &PodSpec, namespace: &str, mode: NetworkMode, node: &NodeDns) -> DnsConfig {
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let cluster = match policy {
        "None" | "Default" => false,
        "ClusterFirstWithHostNet" => true,
        _ => mode == NetworkMode::Pod,
    };
    let mut dns = match policy {
        "None" => DnsConfig::default(),
        // Without a cluster DNS the kubelet falls back to the node's (and says so in an event).
        _ if !cluster || node.cluster_servers.is_empty() => node.host.clone(),
        _ => {
            let domain = &node.cluster_domain;
            let mut searches = Vec::new();
            if !domain.is_empty() {
                searches = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
            }
            searches.extend(node.host.searches.iter().cloned());
            DnsConfig { nameservers: node.cluster_servers.clone(), searches, options: vec!["ndots:5".to_owned()] }
        }
    };
    if let Some(config) = &spec.dns_config {
        dns.nameservers.extend(config.nameservers.iter().flatten().filter_map(|server| server.parse::<IpAddr>().ok()));
        dns.searches.extend(config.searches.iter().flatten().cloned());
        for option in config.options.iter().flatten() {
            let Some(name) = option.name.as_deref() else { continue };
            // An option of the pod replaces one of the same name.
            dns.options.retain(|existing| existing.split(':').next() != Some(name));
            dns.options.push(match option.value.as_deref() {
                Some(value) if !value.is_empty() => format!("{name}:{value}"),
                _ => name.to_owned(),
            });
        }
    }
    dedup(&mut dns.nameservers);
    dedup(&mut dns.searches);
    dns.nameservers.truncate(MAX_NAMESERVERS);
    dns.searches.truncate(MAX_SEARCHES);
    dns
}

fn dedup<T: Clone + Eq + std::hash::Hash>(list: &mut Vec<T>) {
    let mut seen = std::collections::HashSet::new();
    list.retain(|item| seen.insert(item.clone()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        let mut spec = spec;
        spec["containers"] = json!([]);
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "ns"}, "spec": spec})).unwrap()
    }

    fn node() -> NodeDns {
        let host = DnsConfig {
            nameservers: vec!["9.9.9.9".parse().unwrap()],
            searches: vec!["lan".into()],
            options: vec!["edns0".into()],
        };
        NodeDns { cluster_servers: vec!["10.96.0.10".parse().unwrap()], cluster_domain: "cluster.local".into(), host }
    }

    #[test]
    fn dns_follows_the_policy() {
        let cluster = "10.96.0.10 ns.svc.cluster.local,svc.cluster.local,cluster.local,lan ndots:5";
        for (case, spec, expected) in [
            ("a pod of a cluster", json!({}), cluster),
            ("the node's own", json!({"dnsPolicy": "Default"}), "9.9.9.9 lan edns0"),
            ("a host-network pod", json!({"dnsPolicy": "ClusterFirst", "hostNetwork": true}), "9.9.9.9 lan edns0"),
            (
                "a host-network pod that wants the cluster",
                json!({"dnsPolicy": "ClusterFirstWithHostNet", "hostNetwork": true}),
                cluster,
            ),
            (
                "its own",
                json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1"], "searches": ["a.b"], "options": [{"name": "ndots", "value": "2"}]}}),
                "1.1.1.1 a.b ndots:2",
            ),
            (
                "merged",
                json!({"dnsConfig": {"nameservers": ["1.1.1.1"], "options": [{"name": "ndots", "value": "1"}, {"name": "edns0"}]}}),
                "10.96.0.10,1.1.1.1 ns.svc.cluster.local,svc.cluster.local,cluster.local,lan ndots:1,edns0",
            ),
        ] {
            let dns = network(&pod(spec), &node()).dns;
            let servers: Vec<_> = dns.nameservers.iter().map(ToString::to_string).collect();
            let got = format!("{} {} {}", servers.join(","), dns.searches.join(","), dns.options.join(","));
            assert_eq!(got, expected, "{case}");
        }
        let alone = NodeDns { cluster_servers: vec![], ..node() };
        assert_eq!(network(&pod(json!({})), &alone).dns, alone.host, "without a cluster the node's own");
    }

    #[test]
    fn host_names_are_cut_as_the_kubelet_cuts_them() {
        assert_eq!(hostname(&pod(json!({}))), "web");
        assert_eq!(hostname(&pod(json!({"hostname": "given"}))), "given");
        let mut long = pod(json!({}));
        long.metadata.name = Some(format!("{}-tail", "a".repeat(62)));
        assert_eq!(hostname(&long), "a".repeat(62));
    }
}
