//! A pod's resolver settings and the names it knows itself by, as the kubelet forms them.
//!
//! In: a pod, the cluster's DNS settings, the node's own resolver settings. Out: what `/etc/resolv.conf` says, the pod's
//! names, and what the kubelet tells about them in Events. Reads no file and asks no server. Rules and words are those of
//! `pkg/kubelet/network/dns/dns.go`, `kubelet_pods.go` and `kuberuntime_sandbox.go`.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Pod, PodDNSConfig, PodSpec};

use super::run::{DnsConfig, NetworkMode};

/// The kubelet's `MaxDNSNameservers`: resolv.conf(5) reads no more.
const MAX_NAMESERVERS: usize = 3;
/// The kubelet's `MaxDNSSearchPaths`.
const MAX_SEARCHES: usize = 32;
/// The kubelet's `MaxDNSSearchListChars`.
const MAX_SEARCH_CHARS: usize = 2048;
/// A search path longer than a name makes some resolvers abort (`DNS1123SubdomainMaxLength`).
const MAX_SEARCH_LENGTH: usize = 253;
/// A Linux host name is no longer.
const MAX_HOSTNAME: usize = 63;
/// The kernel's nodename holds one more than a label.
const MAX_FQDN: usize = 64;

/// DNS settings of the node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeDns {
    /// `clusterDNS`; empty on a node without a cluster.
    pub cluster_servers: Vec<IpAddr>,
    /// `clusterDomain`.
    pub cluster_domain: String,
    /// The node's own resolver settings, `resolvConf`.
    pub host: DnsConfig,
    /// Whether the node is one of a cluster, where pods may expect names of Services.
    pub membership: Membership,
}

/// Whether there is a cluster.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Membership {
    /// A node of its own: no cluster DNS is no news.
    #[default]
    Standalone,
    /// A node of a cluster.
    Joined,
}

/// Something the kubelet tells about a pod's resolver settings in a Warning Event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// `DNSConfigForming`, about the pod: a limit was exceeded.
    Forming(String),
    /// `MissingClusterDNS`, about pod and node: the pod's policy wants a cluster DNS, and there is none.
    MissingClusterDns(String),
}

/// A pod's resolver settings, and what is to be said about them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodDns {
    /// The settings.
    pub config: DnsConfig,
    /// In the order they were found.
    pub notices: Vec<Notice>,
}

/// Whose settings a pod begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Base {
    Cluster,
    Host,
    None,
}

fn base_of(spec: &PodSpec, mode: NetworkMode) -> Base {
    match spec.dns_policy.as_deref().unwrap_or("ClusterFirst") {
        "None" => Base::None,
        "Default" => Base::Host,
        "ClusterFirst" if mode == NetworkMode::Host => Base::Host,
        // ClusterFirstWithHostNet, and what no API server lets through, by the kubelet's choice.
        _ => Base::Cluster,
    }
}

/// The kubelet's `GetPodDNS`. Options keep their order, which the kubelet's come in at random.
#[must_use]
pub fn of_pod(pod: &Pod, node: &NodeDns) -> PodDns {
    let default = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&default);
    let mode = super::sandbox::mode(spec);
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let mut notices = Vec::new();
    let mut dns = match base_of(spec, mode) {
        Base::None => DnsConfig::default(),
        Base::Host => node.host.clone(),
        Base::Cluster if node.cluster_servers.is_empty() => {
            if node.membership == Membership::Joined {
                notices.push(Notice::MissingClusterDns(
                    "kubelet does not have ClusterDNS IP configured and cannot create Pod using \"ClusterFirst\" policy. \
                     Falling back to \"Default\" policy."
                        .to_owned(),
                ));
            }
            node.host.clone()
        }
        Base::Cluster => DnsConfig {
            nameservers: node.cluster_servers.clone(),
            searches: cluster_searches(namespace, node),
            options: vec!["ndots:5".to_owned()],
        },
    };
    if let Some(config) = &spec.dns_config {
        append(&mut dns, config);
    }
    limit_servers(&mut dns.nameservers, &mut notices);
    limit_searches(&mut dns.searches, &mut notices);
    PodDns { config: dns, notices }
}

/// The kubelet's `generateSearchesForDNSClusterFirst`.
fn cluster_searches(namespace: &str, node: &NodeDns) -> Vec<String> {
    let domain = &node.cluster_domain;
    let mut searches = Vec::new();
    if !domain.is_empty() {
        searches = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
    }
    // The root is what stands for no search path in the settings of a node without a resolv.conf.
    searches.extend(node.host.searches.iter().filter(|search| *search != ".").cloned());
    dedup(&mut searches);
    searches
}

/// The kubelet's `appendDNSConfig`.
fn append(dns: &mut DnsConfig, config: &PodDNSConfig) {
    dns.nameservers.extend(config.nameservers.iter().flatten().filter_map(|server| server.parse::<IpAddr>().ok()));
    dedup(&mut dns.nameservers);
    dns.searches.extend(config.searches.iter().flatten().cloned());
    dedup(&mut dns.searches);
    for option in config.options.iter().flatten() {
        let Some(name) = option.name.as_deref() else { continue };
        let text = match option.value.as_deref() {
            Some(value) if !value.is_empty() => format!("{name}:{value}"),
            _ => name.to_owned(),
        };
        set_option(&mut dns.options, text);
    }
}

/// Puts an option in the place of one of its name, or at the end.
pub fn set_option(options: &mut Vec<String>, option: String) {
    let name = |option: &str| option.split(':').next().unwrap_or_default().to_owned();
    match options.iter_mut().find(|existing| name(existing) == name(&option)) {
        Some(existing) => *existing = option,
        None => options.push(option),
    }
}

/// The kubelet's `formDNSNameserversFitsLimits`.
fn limit_servers(servers: &mut Vec<IpAddr>, notices: &mut Vec<Notice>) {
    if servers.len() <= MAX_NAMESERVERS {
        return;
    }
    servers.truncate(MAX_NAMESERVERS);
    let applied: Vec<String> = servers.iter().map(ToString::to_string).collect();
    notices.push(Notice::Forming(format!(
        "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {}",
        applied.join(" ")
    )));
}

/// The kubelet's `formDNSSearchFitsLimits`.
fn limit_searches(searches: &mut Vec<String>, notices: &mut Vec<Notice>) {
    let asked = searches.len();
    searches.truncate(MAX_SEARCHES);
    searches.retain(|search| search.len() <= MAX_SEARCH_LENGTH);
    while searches.join(" ").len() > MAX_SEARCH_CHARS {
        searches.pop();
    }
    if searches.len() < asked {
        notices.push(Notice::Forming(format!(
            "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {}",
            searches.join(" ")
        )));
    }
}

fn dedup<T: Clone + Eq + std::hash::Hash>(list: &mut Vec<T>) {
    let mut seen = std::collections::HashSet::new();
    list.retain(|item| seen.insert(item.clone()));
}

/// The names a pod knows itself by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodNames {
    /// What `hostname` shows.
    pub hostname: String,
    /// What its line of `/etc/hosts` says, its full name before its short one.
    pub in_hosts: Vec<String>,
}

/// A pod's full name that no kernel takes for a host name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "failed to construct FQDN from pod hostname and cluster domain, FQDN {fqdn} is too long ({MAX_FQDN} characters is the \
     max, {} characters requested)", fqdn.len()
)]
pub struct FqdnTooLong {
    fqdn: String,
}

/// The kubelet's `GeneratePodHostNameAndDomain` and `GetNodenameForKernel`. A pod on the node's network has the node's
/// name; its hosts file is the node's, too.
///
/// # Errors
/// [`FqdnTooLong`] when `setHostnameAsFQDN` asks for what does not fit.
pub fn names(pod: &Pod, node_name: &str, cluster_domain: &str) -> Result<PodNames, FqdnTooLong> {
    let default = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&default);
    if super::sandbox::mode(spec) == NetworkMode::Host {
        return Ok(PodNames { hostname: node_name.to_owned(), in_hosts: vec![node_name.to_owned()] });
    }
    let given = |name: &Option<String>| name.clone().filter(|name| !name.is_empty());
    let (hostname, domain) = match &spec.hostname_override {
        Some(name) => (name.clone(), None),
        None => {
            let name = given(&spec.hostname).or_else(|| pod.metadata.name.clone()).unwrap_or_default();
            let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
            let domain = given(&spec.subdomain).map(|sub| format!("{sub}.{namespace}.svc.{cluster_domain}"));
            (name, domain)
        }
    };
    let short = cut(&hostname);
    let Some(domain) = domain else {
        return Ok(PodNames { hostname: short.clone(), in_hosts: vec![short] });
    };
    let fqdn = format!("{short}.{domain}");
    let in_hosts = vec![fqdn.clone(), short.clone()];
    match spec.set_hostname_as_fqdn {
        Some(true) if fqdn.len() > MAX_FQDN => Err(FqdnTooLong { fqdn }),
        Some(true) => Ok(PodNames { hostname: fqdn, in_hosts }),
        _ => Ok(PodNames { hostname: short, in_hosts }),
    }
}

/// The kubelet: hostname should not end with '-' or '.' when it was cut.
fn cut(name: &str) -> String {
    if name.len() <= MAX_HOSTNAME {
        return name.to_owned();
    }
    name[..name.floor_char_boundary(MAX_HOSTNAME)].trim_end_matches(['-', '.']).to_owned()
}

#[cfg(test)]
#[path = "dns/tests.rs"]
mod tests;
