//! Name lookup for one pod: hosts content, literals, then the pod's name servers.
//!
//! In: a name a guest asks for. Out: addresses, IPv4 first. The servers are asked by the node from its own
//! sockets, so a server on the node's loopback (systemd-resolved) works for pods with dnsPolicy `Default`, though
//! their own datagrams cannot reach it. The client is made at the first lookup that needs it.

use std::net::IpAddr;
use std::sync::OnceLock;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::Name;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

use super::names::{find_in_hosts, find_localhost};
use crate::pod::run::DnsConfig;

/// Lookups of one pod under way at once; more wait.
const CONCURRENT: usize = 32;
/// Answers kept per pod; a guest that asks for random names must not grow the node.
const CACHE: u64 = 256;

/// Why a name has no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// Not a name: empty, too long, or with illegal characters.
    #[error("{name:?} is not a valid host name")]
    InvalidName {
        /// What was asked.
        name: String,
    },
    /// The name does not exist, or has no address.
    #[error("lookup {name}: no such host")]
    NotFound {
        /// What was asked.
        name: String,
    },
    /// No server answered in time, or one failed; asking again may help.
    #[error("lookup {name}: {reason}")]
    Temporary {
        /// What was asked.
        name: String,
        /// What the servers did.
        reason: String,
    },
    /// There is no name server and the name is in no hosts file.
    #[error("lookup {name}: no such host (the pod has no name servers)")]
    NoServers {
        /// What was asked.
        name: String,
    },
}

/// The resolver of one pod.
pub(super) struct Resolver {
    /// Boxed: most pods never ask.
    client: OnceLock<Box<Result<TokioResolver, String>>>,
    permits: Semaphore,
}

impl Default for Resolver {
    fn default() -> Self {
        Self { client: OnceLock::new(), permits: Semaphore::new(CONCURRENT) }
    }
}

/// Where a lookup looks.
pub(super) struct Sources<'a> {
    pub(super) hosts: &'a str,
    pub(super) dns: &'a DnsConfig,
    pub(super) port: u16,
    pub(super) runtime: &'a Handle,
}

impl Resolver {
    pub(super) async fn resolve(&self, name: &str, from: Sources<'_>) -> Result<Vec<IpAddr>, ResolveError> {
        // A literal as getaddrinfo takes it; brackets belong to URLs.
        if let Ok(ip) = name.parse::<IpAddr>() {
            return Ok(vec![ip]);
        }
        let bare = name.strip_suffix('.').unwrap_or(name);
        if !is_host_name(bare) {
            return Err(ResolveError::InvalidName { name: name.to_owned() });
        }
        for known in [find_in_hosts(from.hosts, bare), find_localhost(bare)] {
            if !known.is_empty() {
                return Ok(known);
            }
        }
        if from.dns.nameservers.is_empty() {
            return Err(ResolveError::NoServers { name: name.to_owned() });
        }
        self.ask(name, from).await
    }

    async fn ask(&self, name: &str, from: Sources<'_>) -> Result<Vec<IpAddr>, ResolveError> {
        let temporary = |reason: String| ResolveError::Temporary { name: name.to_owned(), reason };
        let client = self.client.get_or_init(|| Box::new(client(from.dns, from.port)));
        let client = client.as_ref().as_ref().map_err(|reason| temporary(reason.clone()))?.clone();
        let _permit = self.permits.acquire().await.map_err(|error| temporary(error.to_string()))?;
        let asked = name.to_owned();
        // On the node's runtime: the guest's may have no IO driver, and the client's connections stay on the one
        // that made them. Dropping this future aborts the lookup.
        let lookup = AbortOnDropHandle::new(from.runtime.spawn(async move { client.lookup_ip(asked).await }));
        let answer = lookup.await.map_err(|error| temporary(error.to_string()))?;
        let mut found: Vec<IpAddr> = match answer {
            Ok(answer) => answer.iter().collect(),
            Err(error) if error.is_nx_domain() || error.is_no_records_found() => Vec::new(),
            Err(error) => return Err(temporary(error.to_string())),
        };
        // A pod without privileges has IPv6 only through the node, which may have none.
        found.sort_by_key(IpAddr::is_ipv6);
        if found.is_empty() { Err(ResolveError::NotFound { name: name.to_owned() }) } else { Ok(found) }
    }
}

fn client(dns: &DnsConfig, port: u16) -> Result<TokioResolver, String> {
    let servers = dns.nameservers.iter().take(3).map(|&ip| {
        let mut server = NameServerConfig::udp_and_tcp(ip);
        for connection in &mut server.connections {
            connection.port = port;
        }
        server
    });
    // A search domain that is no name is skipped, as by libc.
    let searches = dns.searches.iter().filter_map(|domain| Name::from_utf8(domain).ok()).collect();
    let config = ResolverConfig::from_parts(None, searches, servers.collect());
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    set_options(builder.options_mut(), &dns.options);
    builder.build().map_err(|error| error.to_string())
}

/// resolv.conf(5)'s options and defaults; those about libc's own business are ignored, as by other resolvers.
fn set_options(options: &mut ResolverOpts, words: &[String]) {
    options.use_hosts_file = ResolveHosts::Never;
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options.cache_size = CACHE;
    options.ndots = 1;
    options.timeout = Duration::from_secs(5);
    options.attempts = 2;
    for word in words {
        let (key, value) = word.split_once(':').unwrap_or((word, ""));
        match (key, value.parse::<u64>()) {
            ("ndots", Ok(n)) => options.ndots = n.min(15) as usize,
            ("timeout", Ok(n)) => options.timeout = Duration::from_secs(n.clamp(1, 30)),
            ("attempts", Ok(n)) => options.attempts = n.clamp(1, 5) as usize,
            ("edns0", _) => options.edns0 = true,
            _ => {}
        }
    }
}

/// Labels of letters, digits, `-` and `_`, as DNS and Kubernetes have them.
fn is_host_name(name: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let label = |label: &str| !label.is_empty() && label.len() <= 63 && label.chars().all(legal);
    name.len() <= 253 && name.split('.').all(label)
}
