//! The variables that tell a container where Services are, as the kubelet's `envvars` package makes them.
//!
//! In: the Services a pod may see. Out: `NAME_SERVICE_HOST`, `NAME_SERVICE_PORT` and the Docker-compatible links.
//! Does not know which Services there are (`objects`).

use std::collections::BTreeMap;
use std::fmt::Write as _;

use k8s_openapi::api::core::v1::Service;

/// What of a Service its variables are made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceLink {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its cluster IP.
    pub cluster_ip: String,
    /// Its ports, in the order of the spec; never empty.
    pub ports: Vec<LinkPort>,
}

/// One port of a [`ServiceLink`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkPort {
    /// Its name; empty when it has none.
    pub name: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Its number.
    pub port: i32,
}

impl ServiceLink {
    /// `None` for a Service without an address (headless, `ExternalName`): nothing can be said about it.
    #[must_use]
    pub fn of(service: &Service) -> Option<Self> {
        let spec = service.spec.as_ref()?;
        let cluster_ip = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None")?;
        let ports: Vec<LinkPort> = spec.ports.iter().flatten().map(link_port).collect();
        (!ports.is_empty()).then(|| Self {
            namespace: service.metadata.namespace.clone().unwrap_or_default(),
            name: service.metadata.name.clone().unwrap_or_default(),
            cluster_ip: cluster_ip.to_owned(),
            ports,
        })
    }
}

fn link_port(port: &k8s_openapi::api::core::v1::ServicePort) -> LinkPort {
    LinkPort {
        name: port.name.clone().unwrap_or_default(),
        protocol: port.protocol.clone().filter(|protocol| !protocol.is_empty()).unwrap_or_else(|| "TCP".to_owned()),
        port: port.port,
    }
}

/// Which Services' variables a pod gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// Those of its namespace: `enableServiceLinks`, the default.
    Namespace,
    /// The API server's alone, which every pod gets.
    ApiServerOnly,
}

/// The variables of a pod in `namespace`.
#[must_use]
pub fn variables<'a>(
    services: impl Iterator<Item = &'a ServiceLink>,
    namespace: &str,
    links: Links,
) -> BTreeMap<String, String> {
    let mut seen: BTreeMap<&str, &ServiceLink> = BTreeMap::new();
    for service in services {
        if service.namespace == "default" && service.name == "kubernetes" {
            seen.entry(&service.name).or_insert(service);
        } else if service.namespace == namespace && links == Links::Namespace {
            // Another `kubernetes` in the pod's own namespace is nearer, as with the kubelet.
            seen.insert(&service.name, service);
        }
    }
    let mut variables = BTreeMap::new();
    for service in seen.into_values() {
        add(service, &mut variables);
    }
    variables
}

fn add(service: &ServiceLink, variables: &mut BTreeMap<String, String>) {
    let prefix = variable_name(&service.name);
    let host = &service.cluster_ip;
    variables.insert(format!("{prefix}_SERVICE_HOST"), host.clone());
    for (index, port) in service.ports.iter().enumerate() {
        let number = port.port.to_string();
        let protocol = port.protocol.to_lowercase();
        let address = if host.contains(':') { format!("[{host}]:{number}") } else { format!("{host}:{number}") };
        let url = format!("{protocol}://{address}");
        if index == 0 {
            variables.insert(format!("{prefix}_SERVICE_PORT"), number.clone());
            variables.insert(format!("{prefix}_PORT"), url.clone());
        }
        if !port.name.is_empty() {
            variables.insert(format!("{prefix}_SERVICE_PORT_{}", variable_name(&port.name)), number.clone());
        }
        let mut link = format!("{prefix}_PORT_{number}_");
        let _ = write!(link, "{}", port.protocol.to_uppercase());
        variables.insert(format!("{link}_PROTO"), protocol);
        variables.insert(format!("{link}_PORT"), number);
        variables.insert(format!("{link}_ADDR"), host.clone());
        variables.insert(link, url);
    }
}

fn variable_name(name: &str) -> String {
    name.replace('-', "_").to_uppercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn link(namespace: &str, name: &str, ip: &str, ports: &Value) -> Option<ServiceLink> {
        let service =
            json!({"metadata": {"name": name, "namespace": namespace}, "spec": {"clusterIP": ip, "ports": ports}});
        ServiceLink::of(&serde_json::from_value(service).unwrap())
    }

    fn shown(services: &[ServiceLink], namespace: &str, links: Links) -> Vec<String> {
        variables(services.iter(), namespace, links)
            .into_iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect()
    }

    #[test]
    fn a_service_is_told_in_both_ways() {
        let ports = json!([{"name": "http-web", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]);
        let service = link("ns", "my-web", "10.0.0.7", &ports).unwrap();
        assert_eq!(
            shown(&[service], "ns", Links::Namespace),
            [
                "MY_WEB_PORT=tcp://10.0.0.7:80",
                "MY_WEB_PORT_53_UDP=udp://10.0.0.7:53",
                "MY_WEB_PORT_53_UDP_ADDR=10.0.0.7",
                "MY_WEB_PORT_53_UDP_PORT=53",
                "MY_WEB_PORT_53_UDP_PROTO=udp",
                "MY_WEB_PORT_80_TCP=tcp://10.0.0.7:80",
                "MY_WEB_PORT_80_TCP_ADDR=10.0.0.7",
                "MY_WEB_PORT_80_TCP_PORT=80",
                "MY_WEB_PORT_80_TCP_PROTO=tcp",
                "MY_WEB_SERVICE_HOST=10.0.0.7",
                "MY_WEB_SERVICE_PORT=80",
                "MY_WEB_SERVICE_PORT_DNS=53",
                "MY_WEB_SERVICE_PORT_HTTP_WEB=80",
            ]
        );
    }

    #[test]
    fn a_pod_sees_its_namespace_and_always_the_api_server() {
        let port = json!([{"port": 1}]);
        let services = [
            link("ns", "mine", "10.0.0.1", &port).unwrap(),
            link("other", "theirs", "10.0.0.2", &port).unwrap(),
            link("default", "kubernetes", "10.0.0.3", &json!([{"port": 443}])).unwrap(),
            link("default", "web", "10.0.0.4", &port).unwrap(),
        ];
        let hosts = |namespace, links| -> Vec<String> {
            let all = shown(&services, namespace, links);
            all.into_iter().filter_map(|text| Some(text.split_once("_SERVICE_HOST")?.0.to_owned())).collect()
        };
        assert_eq!(hosts("ns", Links::Namespace), ["KUBERNETES", "MINE"]);
        assert_eq!(hosts("ns", Links::ApiServerOnly), ["KUBERNETES"]);
        assert_eq!(hosts("default", Links::Namespace), ["KUBERNETES", "WEB"]);
    }

    #[test]
    fn a_service_without_an_address_says_nothing_and_ipv6_is_bracketed() {
        assert_eq!(link("ns", "a", "None", &json!([{"port": 1}])), None);
        assert_eq!(link("ns", "a", "", &json!([{"port": 1}])), None);
        assert_eq!(link("ns", "a", "10.0.0.1", &json!([])), None);
        let six = link("ns", "a", "fd00::1", &json!([{"port": 1}])).unwrap();
        assert!(shown(&[six], "ns", Links::Namespace).contains(&"A_PORT=tcp://[fd00::1]:1".to_owned()));
    }
}
