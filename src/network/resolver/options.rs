//! How a name is asked for: options, the names it may stand for, servers and their time. Pure.
//!
//! In: resolver settings and a name. Out: what to ask whom, in which order and for how long, as glibc does it
//! (resolv.conf(5), `res_nsearch`, `res_nsend`). Options about libc's own business are ignored, as by other resolvers.

use std::net::IpAddr;
use std::time::Duration;

use crate::pod::run::DnsConfig;

/// resolv.conf(5) reads no more.
const MAX_SERVERS: usize = 3;

/// The options of one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Options {
    /// A name with as many dots is asked for as it is before the search list.
    ndots: usize,
    timeout: Duration,
    attempts: u32,
    /// Each lookup begins with another server.
    pub(super) rotate: bool,
    /// Ask by TCP at once.
    pub(super) use_tcp: bool,
    pub(super) edns: bool,
    /// `no-aaaa`: IPv6 addresses are not asked for.
    pub(super) ipv4_only: bool,
}

impl Options {
    /// resolv.conf(5)'s defaults and limits.
    pub(super) fn parse(words: &[String]) -> Self {
        let mut options = Self {
            ndots: 1,
            timeout: Duration::from_secs(5),
            attempts: 2,
            rotate: false,
            use_tcp: false,
            edns: false,
            ipv4_only: false,
        };
        for word in words {
            let (key, value) = word.split_once(':').unwrap_or((word, ""));
            match (key, value.parse::<u32>()) {
                ("ndots", Ok(n)) => options.ndots = n.min(15) as usize,
                ("timeout", Ok(n)) => options.timeout = Duration::from_secs(n.clamp(1, 30).into()),
                ("attempts", Ok(n)) => options.attempts = n.clamp(1, 5),
                ("rotate", _) => options.rotate = true,
                ("use-vc", _) => options.use_tcp = true,
                ("edns0", _) => options.edns = true,
                ("no-aaaa", _) => options.ipv4_only = true,
                _ => {}
            }
        }
        options
    }

    /// The names that `name` may stand for, in the order to ask for them. One with a dot at its end stands for itself.
    pub(super) fn candidates(&self, name: &str, searches: &[String]) -> Vec<String> {
        if let Some(full) = name.strip_suffix('.') {
            return vec![full.to_owned()];
        }
        // The root in a search list is the name itself.
        let searched = searches.iter().map(|domain| domain.trim_matches('.')).map(|domain| match domain {
            "" => name.to_owned(),
            domain => format!("{name}.{domain}"),
        });
        let itself = std::iter::once(name.to_owned());
        let mut names: Vec<String> = if name.matches('.').count() >= self.ndots {
            itself.chain(searched).collect()
        } else {
            searched.chain(itself).collect()
        };
        let mut seen = std::collections::HashSet::new();
        names.retain(|name| name.len() <= 253 && seen.insert(name.clone()));
        names
    }

    /// Each server to ask and how long to wait for it, in order. `turn` counts lookups, for `rotate`.
    pub(super) fn tries(&self, dns: &DnsConfig, turn: usize) -> Vec<(IpAddr, Duration)> {
        let servers: Vec<IpAddr> = dns.nameservers.iter().copied().take(MAX_SERVERS).collect();
        let count = servers.len().max(1);
        let first = if self.rotate { turn % count } else { 0 };
        let round = |attempt: u32| {
            // The first round gives each server its time; a later one doubles the time and shares it (`res_nsend`).
            let wait = match attempt {
                0 => self.timeout,
                again => (self.timeout * (1 << again) / count as u32).max(Duration::from_secs(1)),
            };
            servers
                .iter()
                .cycle()
                .skip(first)
                .take(servers.len())
                .map(move |server| (*server, wait))
                .collect::<Vec<_>>()
        };
        (0..self.attempts).flat_map(round).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn names_are_searched_as_glibc_searches_them() {
        let cluster = "ns.svc.cluster.local svc.cluster.local cluster.local";
        for (case, options, searches, name, expected) in [
            (
                "a Service of the namespace",
                "ndots:5",
                cluster,
                "web",
                "web.ns.svc.cluster.local web.svc.cluster.local web.cluster.local web",
            ),
            (
                "a Service of another",
                "ndots:5",
                cluster,
                "web.other",
                "web.other.ns.svc.cluster.local web.other.svc.cluster.local web.other.cluster.local web.other",
            ),
            ("a full name with a dot", "ndots:5", cluster, "example.com.", "example.com"),
            ("few dots asked for", "ndots:1", "lan", "example.com", "example.com example.com.lan"),
            ("the default is one dot", "", "lan", "example.com", "example.com example.com.lan"),
            ("none are needed", "ndots:0", "lan", "web", "web web.lan"),
            (
                "more than glibc takes",
                "ndots:99",
                "lan",
                "a.".repeat(15).trim_end_matches('.'),
                &format!("{0}.lan {0}", "a.".repeat(15).trim_end_matches('.')),
            ),
            ("no search list", "ndots:5", "", "web", "web"),
            ("a root in the list", "ndots:5", ". lan", "web", "web web.lan"),
            ("domains with dots at their ends", "ndots:5", "lan. lan", "web", "web.lan web"),
            (
                "a name too long with a domain",
                "ndots:5",
                &"d".repeat(60),
                &format!("{}a", "a.".repeat(120)),
                &format!("{}a", "a.".repeat(120)),
            ),
        ] {
            let candidates = Options::parse(&words(options)).candidates(name, &words(searches));
            assert_eq!(candidates.join(" "), expected, "{case}");
        }
    }

    #[test]
    fn servers_are_asked_in_turn_and_for_a_time() {
        let dns = |servers: &str| DnsConfig {
            nameservers: words(servers).iter().map(|ip| ip.parse().expect("address")).collect(),
            ..DnsConfig::default()
        };
        for (case, options, servers, turn, expected) in [
            ("the defaults", "", "1.1.1.1", 7, "1.1.1.1=5 1.1.1.1=10"),
            ("two servers share a later round", "", "1.1.1.1 2.2.2.2", 0, "1.1.1.1=5 2.2.2.2=5 1.1.1.1=5 2.2.2.2=5"),
            ("one attempt", "attempts:1 timeout:2", "1.1.1.1 2.2.2.2", 3, "1.1.1.1=2 2.2.2.2=2"),
            ("rotation", "attempts:1 rotate", "1.1.1.1 2.2.2.2 3.3.3.3", 4, "2.2.2.2=5 3.3.3.3=5 1.1.1.1=5"),
            (
                "never less than a second",
                "timeout:1",
                "1.1.1.1 2.2.2.2 3.3.3.3",
                0,
                "1.1.1.1=1 2.2.2.2=1 3.3.3.3=1 1.1.1.1=1 2.2.2.2=1 3.3.3.3=1",
            ),
            ("limits of both", "attempts:0 timeout:900", "1.1.1.1", 0, "1.1.1.1=30"),
            ("no more than three", "attempts:1", "1.1.1.1 2.2.2.2 3.3.3.3 4.4.4.4", 0, "1.1.1.1=5 2.2.2.2=5 3.3.3.3=5"),
            ("nobody to ask", "rotate", "", 5, ""),
        ] {
            let tries = Options::parse(&words(options)).tries(&dns(servers), turn);
            let got: Vec<String> = tries.iter().map(|(ip, wait)| format!("{ip}={}", wait.as_secs())).collect();
            assert_eq!(got.join(" "), expected, "{case}");
        }
    }
}
