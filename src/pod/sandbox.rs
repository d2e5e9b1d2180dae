//! What the containers of a pod share: host name and network settings.
//!
//! In: a spec, resolver settings. Out: the plain data of [`SandboxSpec`](super::run::SandboxSpec).
//! Addresses are `network`'s, volumes `volume`'s.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Pod, PodSpec};

use super::dns::PodNames;
use super::run::{DnsConfig, HostAlias, HostPort, NetworkMode, PortProtocol, SandboxNetwork};

/// The runtime handlers of this node that a RuntimeClass may name. The default one, `""`, is the same.
pub const RUNTIME_HANDLERS: [&str; 1] = ["wasi"];

/// The RuntimeClass a pod names.
#[must_use]
pub fn runtime_class(spec: &PodSpec) -> Option<&str> {
    spec.runtime_class_name.as_deref().filter(|class| !class.is_empty())
}

/// Whether this node has a runtime handler.
///
/// # Errors
/// containerd's words.
pub fn check_handler(handler: &str) -> Result<(), String> {
    if handler.is_empty() || RUNTIME_HANDLERS.contains(&handler) {
        return Ok(());
    }
    let there = RUNTIME_HANDLERS.map(|known| format!("{known:?}")).join(", ");
    Err(format!("failed to get sandbox runtime: no runtime for {handler:?} is configured (this node has {there})"))
}

/// Whether the pod has addresses of its own.
#[must_use]
pub fn mode(spec: &PodSpec) -> NetworkMode {
    if spec.host_network == Some(true) { NetworkMode::Host } else { NetworkMode::Pod }
}

/// The pod's network settings, with resolver settings and names by [`super::dns`].
#[must_use]
pub fn network(pod: &Pod, dns: DnsConfig, names: &PodNames) -> SandboxNetwork {
    let default = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&default);
    let mode = mode(spec);
    let aliases = spec.host_aliases.iter().flatten().filter_map(|alias| {
        let ip = alias.ip.parse().ok()?;
        Some(HostAlias { ip, hostnames: alias.hostnames.clone().unwrap_or_default() })
    });
    let (names, host_ports) = (names.in_hosts.clone(), host_ports(spec, mode));
    SandboxNetwork { mode, dns, names, host_aliases: aliases.collect(), host_ports }
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
