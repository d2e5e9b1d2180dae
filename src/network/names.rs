//! The hosts content of a pod, as text and as answers, and the text of its resolver settings.
//!
//! In: the pod's names and addresses, `hostAliases`, DNS settings. Out: `/etc/hosts` and `/etc/resolv.conf` as the
//! kubelet and containerd write them, and the addresses of a name in them. Asks no server. Pure.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use crate::pod::dns::set_option;
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
pub(super) fn hosts_of_pod(ips: &[IpAddr], names: &[String], aliases: &[HostAlias]) -> String {
    let mut text = MANAGED.to_owned();
    for ip in ips {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{ip}\t{}", names.join("\t"));
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

/// Reads resolv.conf(5) as the kubelet's `parseResolvConf` does: the last `search` wins, an option replaces one of its
/// name. Zones of addresses are left out, and so are more servers than a pod can have after the kubelet's limits.
pub(super) fn parse_resolv_conf(text: &str) -> DnsConfig {
    let mut dns = DnsConfig::default();
    for line in text.lines() {
        let line = line.split(['#', ';']).next().unwrap_or("");
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => {
                dns.nameservers.extend(words.next().and_then(|word| word.split('%').next()?.parse::<IpAddr>().ok()));
            }
            Some("search") => {
                let domains = words.filter(|domain| *domain != ".");
                dns.searches = domains.map(|domain| domain.trim_end_matches('.').to_owned()).collect();
            }
            Some("options") => words.for_each(|option| set_option(&mut dns.options, option.to_owned())),
            _ => {}
        }
    }
    dns
}

/// Where `systemd-resolved` keeps what it asks itself.
const RESOLVED: &str = "/run/systemd/resolve/resolv.conf";

/// The file that pods' settings come from when `resolvConf` names none: `/etc/resolv.conf`, or as kubeadm chooses it, the
/// one behind `systemd-resolved`, whose own address is the node's loopback and leads nowhere in a pod.
pub fn default_resolv_conf() -> PathBuf {
    let etc = PathBuf::from("/etc/resolv.conf");
    let stub = |ip: &IpAddr| *ip == IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53));
    let servers = host_dns_config(&etc).unwrap_or_default().nameservers;
    let resolved = PathBuf::from(RESOLVED);
    if !servers.is_empty() && servers.iter().all(stub) && resolved.exists() { resolved } else { etc }
}

/// The node's own resolver settings from a file: dnsPolicy `Default`. An empty path, the kubelet's way to say that there
/// is none, is a server on localhost.
///
/// # Errors
/// When the file is there but cannot be read; a missing one means no servers, as for libc.
pub fn host_dns_config(path: &Path) -> std::io::Result<DnsConfig> {
    if path.as_os_str().is_empty() {
        let nameservers = vec![Ipv4Addr::LOCALHOST.into()];
        return Ok(DnsConfig { nameservers, searches: vec![".".to_owned()], options: Vec::new() });
    }
    match std::fs::read_to_string(path) {
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
        let ips: Vec<IpAddr> = ["203.0.113.1", "fd00::6"].iter().map(|ip| ip.parse().expect("address")).collect();
        // The expected texts of the kubelet's TestManagedHostsFileContent.
        let begin = "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
            fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n";
        let (foo, end) = (alias("123.45.67.89", &["foo", "bar", "baz"]), "\n# Entries added by HostAliases.\n");
        let more = alias("45.78.90.123", &["park", "doo", "boo"]);
        for (ips, names, aliases, lines) in [
            (&ips[..1], &["podFoo"][..], &[][..], "203.0.113.1\tpodFoo\n".to_owned()),
            (&ips[..1], &["podFoo.domainFoo", "podFoo"], &[], "203.0.113.1\tpodFoo.domainFoo\tpodFoo\n".to_owned()),
            (
                &ips,
                &["podFoo.domainFoo", "podFoo"],
                std::slice::from_ref(&foo),
                format!(
                    "203.0.113.1\tpodFoo.domainFoo\tpodFoo\nfd00::6\tpodFoo.domainFoo\tpodFoo\n{end}123.45.67.89\tfoo\tbar\tbaz\n"
                ),
            ),
            (
                &ips,
                &["podFoo"],
                &[foo.clone(), more],
                format!(
                    "203.0.113.1\tpodFoo\nfd00::6\tpodFoo\n{end}123.45.67.89\tfoo\tbar\tbaz\n45.78.90.123\tpark\tdoo\tboo\n"
                ),
            ),
        ] {
            let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
            assert_eq!(hosts_of_pod(ips, &names, aliases), format!("{begin}{lines}"));
        }
        let text = hosts_of_pod(&ips[..1], &["podFoo".to_owned()], &[]);
        assert_eq!(find_in_hosts(&text, "PODFOO"), ips[..1]);
        assert_eq!(find_in_hosts(&text, "localhost").len(), 2);
        assert!(find_in_hosts(&text, "Kubernetes-managed").is_empty());
        let node = hosts_of_node("127.0.0.1\tlocalhost\n", &[alias("1.2.3.4", &["a"])]);
        assert_eq!(
            node,
            "# Kubernetes-managed hosts file (host network).\n127.0.0.1\tlocalhost\n\n# Entries added by HostAliases.\n1.2.3.4\ta\n"
        );
    }

    /// The cases of the kubelet's `TestParseResolvConf`; where it refuses a file we take what is there.
    #[test]
    fn resolver_settings_are_read_as_the_kubelet_reads_them() {
        for (text, servers, searches, options) in [
            ("", "", "", ""),
            ("\t\n\t", "", "", ""),
            (" #comment\n#comment", "", "", ""),
            ("; by hand\nnameserver", "", "", ""),
            ("#comment\nnameserver 1.2.3.4\nsearch", "1.2.3.4", "", ""),
            ("\tnameserver 1.2.3.4", "1.2.3.4", "", ""),
            ("nameserver \t 1.2.3.4", "1.2.3.4", "", ""),
            ("nameserver 1.2.3.4\nnameserver 5.6.7.8", "1.2.3.4 5.6.7.8", "", ""),
            ("nameserver 1.2.3.4 #comment", "1.2.3.4", "", ""),
            ("nameserver fe80::1%eth0\nnameserver nonsense", "fe80::1", "", ""),
            ("search .", "", "", ""),
            ("search foo .  bar", "", "foo bar", ""),
            ("search foo. bar", "", "foo bar", ""),
            ("search foo\nsearch bar", "", "bar", ""),
            ("nameserver 1.2.3.4\nsearch foo\nnameserver 5.6.7.8\nsearch bar", "1.2.3.4 5.6.7.8", "bar", ""),
            ("options ", "", "", ""),
            ("options ndots:5 attempts:2", "", "", "ndots:5 attempts:2"),
            ("options ndots:1 ndots:5 attempts:2", "", "", "ndots:5 attempts:2"),
            (
                "options ndots:1 edns0 attempts:2 single-request-reopen",
                "",
                "",
                "ndots:1 edns0 attempts:2 single-request-reopen",
            ),
            ("options ndots:1\noptions ndots:5 attempts:3", "", "", "ndots:5 attempts:3"),
            ("options ndots:1 timeout:3 timeout:1 attempts:3\noptions ndots:5", "", "", "ndots:5 timeout:1 attempts:3"),
        ] {
            let dns = parse_resolv_conf(text);
            let read: Vec<_> = dns.nameservers.iter().map(ToString::to_string).collect();
            let got = (read.join(" "), dns.searches.join(" "), dns.options.join(" "));
            assert_eq!(got, (servers.to_owned(), searches.to_owned(), options.to_owned()), "{text:?}");
            assert_eq!(parse_resolv_conf(&resolv_conf(&dns)), dns, "it survives its text");
        }
        assert_eq!(resolv_conf(&DnsConfig::default()), "");
        let none = host_dns_config(Path::new("")).expect("no file is read");
        assert_eq!(resolv_conf(&none), "search .\nnameserver 127.0.0.1\n");
    }
}
