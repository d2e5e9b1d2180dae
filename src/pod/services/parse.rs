//! API objects to plain data.
//!
//! In: `Service` and `EndpointSlice`. Out: what traffic depends on; nothing where another proxy or nobody serves them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{
    Endpoint, Facts, NodePlace, ServiceKey, ServicePort, ServiceSpec, SlicePort, SliceSpec, SourceRange, TrafficPolicy,
};
use crate::pod::run::PortProtocol;

/// Another proxy serves what has it.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Nobody needs to serve what has it.
const HEADLESS: &str = "service.kubernetes.io/headless";
/// Which Service a slice is of.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The default of `timeoutSeconds`, which the API server fills in.
const AFFINITY_TIMEOUT: i32 = 10_800;

/// `namespace/name` of an object.
fn key(metadata: &ObjectMeta) -> Arc<str> {
    named(metadata, metadata.name.as_deref().unwrap_or_default())
}

fn named(metadata: &ObjectMeta, name: &str) -> Arc<str> {
    format!("{}/{name}", metadata.namespace.as_deref().unwrap_or_default()).into()
}

fn is_for_us(labels: Option<&BTreeMap<String, String>>) -> bool {
    labels.is_none_or(|labels| !labels.contains_key(PROXY_NAME) && !labels.contains_key(HEADLESS))
}

fn protocol(text: Option<&str>) -> Option<PortProtocol> {
    match text {
        None | Some("" | "TCP") => Some(PortProtocol::Tcp),
        Some("UDP") => Some(PortProtocol::Udp),
        // WASI has no SCTP.
        Some(_) => None,
    }
}

fn number(port: Option<i32>) -> Option<u16> {
    port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0)
}

fn addresses<'a>(all: impl Iterator<Item = &'a String>) -> Vec<IpAddr> {
    all.filter_map(|ip| ip.parse().ok()).collect()
}

fn range(text: &str) -> Option<SourceRange> {
    let (base, prefix) = text.trim().split_once('/')?;
    Some(SourceRange { base: base.parse().ok()?, prefix: prefix.parse().ok()? })
}

/// The key of a Service.
#[must_use]
pub(super) fn service_key(service: &Service) -> ServiceKey {
    key(&service.metadata)
}

impl ServiceSpec {
    /// Its key, `namespace/name`.
    #[must_use]
    pub fn key_of(service: &Service) -> ServiceKey {
        service_key(service)
    }

    /// `None` for a Service that has no address to serve: headless, `ExternalName`, or another proxy's.
    #[must_use]
    pub fn of(service: &Service) -> Option<Self> {
        let spec = service.spec.as_ref().filter(|_| is_for_us(service.metadata.labels.as_ref()))?;
        let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
        let first = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None")?;
        if kind == "ExternalName" {
            return None;
        }
        let mut cluster_ips = addresses(spec.cluster_ips.iter().flatten());
        if cluster_ips.is_empty() {
            cluster_ips.extend(first.parse::<IpAddr>());
        }
        let ingress = service.status.iter().filter_map(|status| status.load_balancer.as_ref());
        let ingress = ingress.flat_map(|balancer| balancer.ingress.iter().flatten());
        let vip = ingress.filter(|one| one.ip_mode.as_deref().is_none_or(|mode| mode == "VIP"));
        let ports = spec.ports.iter().flatten().filter_map(|port| {
            Some(ServicePort {
                name: port.name.as_deref().unwrap_or_default().into(),
                protocol: protocol(port.protocol.as_deref())?,
                port: number(Some(port.port))?,
                node_port: number(port.node_port),
            })
        });
        let policy = |text: Option<&str>| match text {
            Some("Local") => TrafficPolicy::Local,
            _ => TrafficPolicy::Cluster,
        };
        let external = policy(spec.external_traffic_policy.as_deref());
        let ranges: Vec<SourceRange> =
            spec.load_balancer_source_ranges.iter().flatten().filter_map(|text| range(text)).collect();
        let timeout = || {
            let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
            let seconds = config.and_then(|config| config.timeout_seconds).unwrap_or(AFFINITY_TIMEOUT);
            Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
        };
        Some(Self {
            key: service_key(service),
            cluster_ips,
            external_ips: addresses(spec.external_ips.iter().flatten()),
            balancer_ips: addresses(vip.filter_map(|one| one.ip.as_ref())),
            // A range of everything is no restriction.
            source_ranges: if ranges.iter().any(|range| range.prefix == 0) { Vec::new() } else { ranges },
            ports: ports.collect(),
            affinity: (spec.session_affinity.as_deref() == Some("ClientIP")).then(timeout),
            internal: policy(spec.internal_traffic_policy.as_deref()),
            external,
            health_check_port: number(spec.health_check_node_port)
                .filter(|_| kind == "LoadBalancer" && external == TrafficPolicy::Local),
        })
    }
}

impl SliceSpec {
    /// The key of a slice, `namespace/name`.
    #[must_use]
    pub fn key_of(slice: &EndpointSlice) -> Arc<str> {
        key(&slice.metadata)
    }

    /// `None` for a slice of no Service, of a headless one, or one of names.
    #[must_use]
    pub fn of(slice: &EndpointSlice, place: &NodePlace) -> Option<Self> {
        let labels = slice.metadata.labels.as_ref()?;
        let service = labels.get(SERVICE_NAME).filter(|_| is_for_us(Some(labels)))?;
        if !matches!(slice.address_type.as_str(), "IPv4" | "IPv6") {
            return None;
        }
        let ports = slice.ports.iter().flatten().filter_map(|port| {
            Some(SlicePort {
                name: port.name.as_deref().unwrap_or_default().into(),
                protocol: protocol(port.protocol.as_deref())?,
                port: number(port.port)?,
            })
        });
        Some(Self {
            key: key(&slice.metadata),
            service: named(&slice.metadata, service),
            ports: ports.collect(),
            endpoints: slice.endpoints.iter().flatten().filter_map(|one| endpoint(one, place)).collect(),
        })
    }
}

fn endpoint(endpoint: &k8s_openapi::api::discovery::v1::Endpoint, place: &NodePlace) -> Option<Endpoint> {
    // All addresses of one endpoint are the same one: the first is used.
    let ip = endpoint.addresses.first()?.parse().ok()?;
    let conditions = endpoint.conditions.clone().unwrap_or_default();
    let ready = conditions.ready.unwrap_or(true);
    let mut facts = Facts::READY
        .when(ready.into())
        .with(Facts::SERVING.when(conditions.serving.unwrap_or(ready).into()))
        .with(Facts::TERMINATING.when(conditions.terminating.unwrap_or(false).into()))
        .with(Facts::LOCAL.when((endpoint.node_name.as_deref() == Some(&place.name)).into()));
    if let Some(hints) = &endpoint.hints {
        let nodes = hints.for_nodes.as_deref().unwrap_or_default();
        let zones = hints.for_zones.as_deref().unwrap_or_default();
        facts = facts
            .with(Facts::FOR_NODES.when((!nodes.is_empty()).into()))
            .with(Facts::FOR_THIS_NODE.when(nodes.iter().any(|node| node.name == place.name).into()))
            .with(Facts::FOR_ZONES.when((!zones.is_empty()).into()))
            .with(Facts::FOR_THIS_ZONE.when(zones.iter().any(|zone| zone.name == place.zone).into()));
    }
    Some(Endpoint { ip, facts })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn service(spec: Value) -> Option<ServiceSpec> {
        let object = json!({"metadata": {"name": "web", "namespace": "ns"}, "spec": spec});
        ServiceSpec::of(&serde_json::from_value(object).unwrap())
    }

    #[test]
    fn a_service_is_what_its_traffic_depends_on() {
        let object = json!({
            "metadata": {"name": "web", "namespace": "ns"},
            "spec": {
                "type": "LoadBalancer", "clusterIP": "10.0.0.7", "clusterIPs": ["10.0.0.7", "fd00::7"],
                "externalIPs": ["192.0.2.9"], "sessionAffinity": "ClientIP",
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 7}},
                "externalTrafficPolicy": "Local", "healthCheckNodePort": 32000,
                "loadBalancerSourceRanges": [" 10.0.0.0/8"],
                "ports": [{"name": "a", "port": 80, "nodePort": 30080},
                          {"name": "b", "port": 53, "protocol": "UDP"},
                          {"name": "c", "port": 9, "protocol": "SCTP"}]},
            "status": {"loadBalancer": {"ingress": [
                {"ip": "192.0.2.1", "ipMode": "VIP"}, {"ip": "192.0.2.2", "ipMode": "Proxy"},
                {"ip": "192.0.2.3"}, {"hostname": "lb"}]}}
        });
        let found = ServiceSpec::of(&serde_json::from_value(object).unwrap()).unwrap();
        let ips = |all: &[&str]| -> Vec<IpAddr> { all.iter().map(|ip| ip.parse().unwrap()).collect() };
        let port = |name: &str, protocol, port, node_port| ServicePort { name: name.into(), protocol, port, node_port };
        let expected = ServiceSpec {
            key: "ns/web".into(),
            cluster_ips: ips(&["10.0.0.7", "fd00::7"]),
            external_ips: ips(&["192.0.2.9"]),
            balancer_ips: ips(&["192.0.2.1", "192.0.2.3"]),
            source_ranges: vec![SourceRange { base: "10.0.0.0".parse().unwrap(), prefix: 8 }],
            ports: vec![port("a", PortProtocol::Tcp, 80, Some(30080)), port("b", PortProtocol::Udp, 53, None)],
            affinity: Some(Duration::from_secs(7)),
            internal: TrafficPolicy::Cluster,
            external: TrafficPolicy::Local,
            health_check_port: Some(32000),
        };
        assert_eq!(found, expected);
        assert_eq!(found.uses(), super::super::Uses { cluster: true, local: true });
    }

    #[test]
    fn services_without_an_address_of_ours_are_none() {
        let ports = json!([{"port": 1}]);
        assert!(service(json!({"clusterIP": "10.0.0.1", "ports": ports})).is_some());
        assert_eq!(service(json!({"clusterIP": "None", "ports": ports})), None);
        assert_eq!(service(json!({"clusterIP": "", "ports": ports})), None);
        let named = json!({"type": "ExternalName", "externalName": "x.example", "clusterIP": "10.0.0.1"});
        assert_eq!(service(named), None);
        for label in [PROXY_NAME, HEADLESS] {
            let object = json!({"metadata": {"name": "web", "labels": {label: "x"}},
                                "spec": {"clusterIP": "10.0.0.1", "ports": ports}});
            assert_eq!(ServiceSpec::of(&serde_json::from_value(object).unwrap()), None);
        }
        let local =
            service(json!({"clusterIP": "10.0.0.1", "internalTrafficPolicy": "Local", "ports": ports})).unwrap();
        assert_eq!(local.uses(), super::super::Uses { cluster: false, local: true });
    }

    #[test]
    fn what_a_slice_leaves_out_has_its_default() {
        let place = NodePlace { name: "n1".to_owned(), zone: "z1".to_owned() };
        let object = json!({
            "metadata": {"name": "web-x", "namespace": "ns", "labels": {SERVICE_NAME: "web"}},
            "addressType": "IPv4",
            "ports": [{"name": "a", "port": 8080}, {"name": "all"}, {"name": "s", "port": 1, "protocol": "SCTP"}],
            "endpoints": [
                {"addresses": ["10.1.0.1", "10.1.0.9"]},
                {"addresses": ["10.1.0.2"], "nodeName": "n1", "conditions": {"ready": false, "serving": true, "terminating": true}},
                {"addresses": ["10.1.0.3"], "conditions": {"ready": false},
                 "hints": {"forNodes": [{"name": "n2"}], "forZones": [{"name": "z0"}, {"name": "z1"}]}},
                {"addresses": ["not an address"]}]
        });
        let slice: EndpointSlice = serde_json::from_value(object).unwrap();
        let found = SliceSpec::of(&slice, &place).unwrap();
        assert_eq!((&*found.key, &*found.service), ("ns/web-x", "ns/web"));
        let port = SlicePort { name: "a".into(), protocol: PortProtocol::Tcp, port: 8080 };
        assert_eq!(found.ports, [port]);
        let facts: Vec<Facts> = found.endpoints.iter().map(|one| one.facts).collect();
        assert_eq!(
            facts,
            [
                Facts::READY.with(Facts::SERVING),
                Facts::SERVING.with(Facts::TERMINATING).with(Facts::LOCAL),
                Facts::FOR_NODES.with(Facts::FOR_ZONES).with(Facts::FOR_THIS_ZONE),
            ]
        );
        let mut headless = slice.clone();
        headless.metadata.labels.as_mut().unwrap().insert(HEADLESS.to_owned(), String::new());
        assert_eq!(SliceSpec::of(&headless, &place), None);
        let names = EndpointSlice { address_type: "FQDN".to_owned(), ..slice };
        assert_eq!(SliceSpec::of(&names, &place), None);
    }
}
