//! The hosts content of a pod, as text and as answers, and the text of its resolver settings.
//!
//! In: the pod's names and addresses, `hostAliases`, DNS settings. Out: `/etc/hosts` and `/etc/resolv.conf` as the
//! kubelet and containerd write them, and the addresses of a name in them. Asks no server. Pure.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::pod::run::{DnsConfig, HostAlias};

/// The first lines of the kubelet's managed hosts file (`managedHostsFileContent`).
const MANAGED: &str = "# Kubernetes-managed hosts file.\n\
    127.0.0.1\tlocalhost\n\
    ::1\tlocalhost ip6-localhost ip6-loopback\n\
    fe00::0\tip6-localnet\n\
    fe00::0\tip6-mcastprefix\n\
    fe00::1\tip6-allnodes\n\
    fe00::2\tip6-allrouters\n";
/// The first line for `hostNetwork` (`nodeHostsFileContent`).
const MANAGED_HOST: &str = "# Kubernetes-managed hosts file (host network).\n";

/// `/etc/hosts` of a pod with its own address.
pub(super) fn hosts_of_pod(ips: &[IpAddr], hostname: &str, aliases: &[HostAlias]) -> String {
    let mut text = MANAGED.to_owned();
    for ip in ips {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{ip}\t{hostname}");
    }
    push_aliases(&mut text, aliases);
    text
}

/// `/etc/hosts` of a `hostNetwork` pod: the node's, marked.
pub(super) fn hosts_of_node(node_hosts: &str, aliases: &[HostAlias]) -> String {
    let mut text = format!("{MANAGED_HOST}{node_hosts}");
    push_aliases(&mut text, aliases);
    text
}

fn push_aliases(text: &mut String, aliases: &[HostAlias]) {
    if aliases.is_empty() {
        return;
    }
    text.push_str("\n# Entries added by HostAliases.\n");
    for alias in aliases {
        let _ = writeln!(text, "{}\t{}", alias.ip, alias.hostnames.join("\t"));
    }
}

/// `/etc/resolv.conf` (containerd's `parseDNSOptions`).
pub(super) fn resolv_conf(dns: &DnsConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        let _ = writeln!(text, "search {}", dns.searches.join(" "));
    }
    for server in &dns.nameservers {
        let _ = writeln!(text, "nameserver {server}");
    }
    if !dns.options.is_empty() {
        let _ = writeln!(text, "options {}", dns.options.join(" "));
    }
    text
}

/// The addresses a hosts file has for a name, in the file's order, each once.
pub(super) fn find_in_hosts(hosts: &str, name: &str) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for line in hosts.lines() {
        let mut words = line.split('#').next().unwrap_or("").split_whitespace();
        let Some(ip) = words.next().and_then(|ip| ip.parse::<IpAddr>().ok()) else { continue };
        if words.any(|word| word.eq_ignore_ascii_case(name)) && !found.contains(&ip) {
            found.push(ip);
        }
    }
    found
}

/// `localhost` and names below it never leave the pod (RFC 6761).
pub(super) fn find_localhost(name: &str) -> Vec<IpAddr> {
    let lower = name.to_ascii_lowercase();
    if lower == "localhost" || lower.ends_with(".localhost") {
        return vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    }
    Vec::new()
}

/// Reads resolv.conf(5): the last `search` or `domain` wins, three servers at most, zones of addresses ignored.
pub(super) fn parse_resolv_conf(text: &str) -> DnsConfig {
    let mut dns = DnsConfig::default();
    for line in text.lines() {
        let line = line.split(['#', ';']).next().unwrap_or("");
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => {
                let ip = words.next().and_then(|word| word.split('%').next()?.parse().ok());
                if let Some(ip) = ip.filter(|_| dns.nameservers.len() < 3) {
                    dns.nameservers.push(ip);
                }
            }
            Some("search") => dns.searches = words.map(str::to_owned).collect(),
            Some("domain") => dns.searches = words.take(1).map(str::to_owned).collect(),
            Some("options") => dns.options.extend(words.map(str::to_owned)),
            _ => {}
        }
    }
    dns
}

/// The node's own resolver settings, from its `/etc/resolv.conf`: dnsPolicy `Default`.
///
/// # Errors
/// When the file is there but cannot be read; a missing one means no servers, as for libc.
pub fn host_dns_config() -> std::io::Result<DnsConfig> {
    match std::fs::read_to_string("/etc/resolv.conf") {
        Ok(text) => Ok(parse_resolv_conf(&text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(DnsConfig::default()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alias(ip: &str, names: &[&str]) -> HostAlias {
        HostAlias { ip: ip.parse().expect(ip), hostnames: names.iter().map(|&name| name.to_owned()).collect() }
    }

    #[test]
    fn the_hosts_file_is_the_kubelets() {
        let aliases = [alias("123.45.67.89", &["foo", "bar", "baz"])];
        let text = hosts_of_pod(&["203.0.113.1".parse().expect("address")], "podFoo", &aliases);
        // The expected text of the kubelet's TestManagedHostsFileContent.
        let expected = "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
            fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n\
            203.0.113.1\tpodFoo\n\n# Entries added by HostAliases.\n123.45.67.89\tfoo\tbar\tbaz\n";
        assert_eq!(text, expected);
        assert_eq!(find_in_hosts(&text, "PODFOO"), ["203.0.113.1".parse::<IpAddr>().expect("address")]);
        assert_eq!(find_in_hosts(&text, "localhost").len(), 2);
        assert!(find_in_hosts(&text, "Entries").is_empty());
    }

    #[test]
    fn resolver_settings_survive_their_text() {
        let text = "; by hand\nsearch a.example b.example\nnameserver 10.0.0.10\nnameserver fe80::1%eth0\n\
            nameserver 10.0.0.12\nnameserver 10.0.0.13\nnameserver nonsense\noptions ndots:5 timeout:2\noptions rotate\n";
        let dns = parse_resolv_conf(text);
        assert_eq!(dns.nameservers.len(), 3);
        assert_eq!(dns.options, ["ndots:5", "timeout:2", "rotate"]);
        assert_eq!(parse_resolv_conf(&resolv_conf(&dns)), dns);
        assert_eq!(resolv_conf(&DnsConfig::default()), "");
    }
}
