//! Name lookup for one pod: literals, hosts content, then the pod's name servers.
//!
//! In: a name a guest asks for. Out: addresses, those of the pod's own family first. A stub resolver as libc's: it keeps no
//! answers, so that a Service made or changed a moment ago is found; what to ask and whom is `options`'s, one question to
//! one server `exchange`'s.

mod exchange;
mod options;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_resolver::proto::rr::{Name, RecordType};
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

use self::exchange::{Failure, Question};
use self::options::Options;
use super::names::{find_in_hosts, find_localhost};
use super::pod::PodNetwork;
use super::route::Family;
use crate::pod::run::DnsConfig;

/// Lookups of one pod under way at once; more wait.
const CONCURRENT: usize = 32;
/// Addresses one lookup returns at most; a name of a headless Service may have thousands.
const ADDRESSES: usize = 512;

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
    /// Most pods never ask.
    options: OnceLock<Options>,
    permits: Semaphore,
    /// Lookups so far.
    turn: AtomicUsize,
}

impl Default for Resolver {
    fn default() -> Self {
        Self { options: OnceLock::new(), permits: Semaphore::new(CONCURRENT), turn: AtomicUsize::new(0) }
    }
}

/// What one server says of one question.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    /// The name is there; its addresses of the family that was asked for, if any.
    Addresses(Vec<IpAddr>),
    /// There is no such name.
    NoSuchName,
}

/// What came of one name of the search list.
enum Outcome {
    Found(Vec<IpAddr>),
    /// Not there, or without an address: the next one may be.
    Nothing,
    /// A server failed with it; the next one may be found.
    ServerFailed(String),
    /// Nobody answers: nothing else is asked.
    Silent(String),
}

impl Resolver {
    fn options(&self, dns: &DnsConfig) -> &Options {
        self.options.get_or_init(|| Options::parse(&dns.options))
    }
}

/// Looks a name up for a pod. On the node's runtime where it has to ask: the guest's may have no timers. Dropping it ends it.
pub(super) async fn resolve(pod: &Arc<PodNetwork>, name: &str) -> Result<Vec<IpAddr>, ResolveError> {
    // A literal as getaddrinfo takes it; brackets belong to URLs.
    if let Ok(ip) = name.parse::<IpAddr>() {
        return Ok(vec![ip]);
    }
    let bare = name.strip_suffix('.').unwrap_or(name);
    if !is_host_name(bare) {
        return Err(ResolveError::InvalidName { name: name.to_owned() });
    }
    for known in [find_in_hosts(&pod.etc_hosts(), bare), find_localhost(bare)] {
        if !known.is_empty() {
            return Ok(known);
        }
    }
    if pod.dns().nameservers.is_empty() {
        return Err(ResolveError::NoServers { name: name.to_owned() });
    }
    let temporary = |reason: String| ResolveError::Temporary { name: name.to_owned(), reason };
    let _permit = pod.resolver().permits.acquire().await.map_err(|error| temporary(error.to_string()))?;
    let (asking, asked) = (pod.clone(), name.to_owned());
    let lookup = AbortOnDropHandle::new(pod.factory().runtime().spawn(async move { search(&asking, &asked).await }));
    lookup.await.map_err(|error| temporary(error.to_string()))?
}

/// Asks for the names of the search list, one after the other (`res_nsearch`).
async fn search(pod: &Arc<PodNetwork>, name: &str) -> Result<Vec<IpAddr>, ResolveError> {
    let resolver = pod.resolver();
    let options = resolver.options(pod.dns());
    let turn = resolver.turn.fetch_add(1, Ordering::Relaxed);
    let mut failed = None;
    for candidate in options.candidates(name, &pod.dns().searches) {
        // A search domain that is no name is skipped, as by libc.
        let Ok(mut full) = Name::from_ascii(&candidate) else { continue };
        full.set_fqdn(true);
        match ask_both(pod, options, &full, turn).await {
            Outcome::Found(mut addresses) => {
                let own = Family::of(pod.ip());
                addresses.sort_by_key(|ip| Family::of(*ip) != own);
                addresses.truncate(ADDRESSES);
                return Ok(addresses);
            }
            Outcome::Nothing => {}
            Outcome::ServerFailed(reason) => failed = Some(reason),
            Outcome::Silent(reason) => return Err(ResolveError::Temporary { name: name.to_owned(), reason }),
        }
    }
    match failed {
        Some(reason) => Err(ResolveError::Temporary { name: name.to_owned(), reason }),
        None => Err(ResolveError::NotFound { name: name.to_owned() }),
    }
}

/// Both families of one name at once, as getaddrinfo does.
async fn ask_both(pod: &Arc<PodNetwork>, options: &Options, name: &Name, turn: usize) -> Outcome {
    let question = |kind| Question { name: name.clone(), kind, edns: options.edns, use_tcp: options.use_tcp };
    let (v4, v6) = (question(RecordType::A), question(RecordType::AAAA));
    let answers = if options.ipv4_only {
        vec![ask_servers(pod, options, &v4, turn).await]
    } else {
        let (v4, v6) = tokio::join!(ask_servers(pod, options, &v4, turn), ask_servers(pod, options, &v6, turn));
        vec![v4, v6]
    };
    let mut found = Vec::new();
    let mut failure = None;
    for answer in answers {
        match answer {
            Ok(Answer::Addresses(addresses)) => found.extend(addresses),
            Ok(Answer::NoSuchName) => {}
            Err(error) => failure = Some(error),
        }
    }
    // What one family has is enough, whatever became of the other: glibc returns it.
    match failure {
        _ if !found.is_empty() => Outcome::Found(found),
        None => Outcome::Nothing,
        Some(error @ Failure::Refused { .. }) => Outcome::ServerFailed(error.to_string()),
        Some(error) => Outcome::Silent(error.to_string()),
    }
}

/// One question to the servers in turn, until one answers (`res_nsend`). The last failure tells why none did.
async fn ask_servers(
    pod: &Arc<PodNetwork>,
    options: &Options,
    question: &Question,
    turn: usize,
) -> Result<Answer, Failure> {
    let mut last = None;
    for (server, wait) in options.tries(pod.dns(), turn) {
        match exchange::ask(pod, question, SocketAddr::new(server, pod.dns_port()), wait).await {
            Ok(answer) => return Ok(answer),
            Err(failure) => last = Some(failure),
        }
    }
    // Callers have seen that there are servers.
    last.map_or(Ok(Answer::NoSuchName), Err)
}

/// Labels of letters, digits, `-` and `_`, as DNS and Kubernetes have them.
fn is_host_name(name: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let label = |label: &str| !label.is_empty() && label.len() <= 63 && label.chars().all(legal);
    name.len() <= 253 && name.split('.').all(label)
}
