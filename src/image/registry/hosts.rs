//! How to reach a registry: containerd's `hosts.toml`.
//!
//! In: a registry's name and `certs.d` directories. Out: [`Endpoint`]s to try in order, the registry itself
//! last. The layout is containerd's `docs/hosts.md`, Docker's `*.crt`, `*.cert`, `*.key` included, so an
//! administrator's directory carries over. Opens no connection.

mod file;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use url::Url;

use super::Action;

pub use file::parse;

/// A configuration is a few lines.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// One place that serves (a part of) a registry's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Up to and with `/v2`, without a slash at its end.
    pub base: Url,
    /// The registry it stands for, sent as `ns=` to a mirror.
    pub registry: String,
    /// Whether it is the registry itself or a mirror.
    pub role: Role,
    /// What it may be asked for.
    pub capabilities: Capabilities,
    /// How to trust it and be trusted.
    pub tls: Tls,
    /// Headers of every request to it.
    pub headers: Vec<(String, String)>,
    /// Time to connect; 30 s unless configured.
    pub dial_timeout: Duration,
}

/// Whose host it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The registry's own.
    Origin,
    /// Somebody else's: credentials of the registry are not for it.
    Mirror,
}

/// `capabilities`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Manifests by digest, and blobs.
    pub pull: bool,
    /// Tags.
    pub resolve: bool,
    /// Uploads.
    pub push: bool,
}

impl Capabilities {
    const ALL: Self = Self { pull: true, resolve: true, push: true };
}

/// TLS settings of an endpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// PEM files of authorities trusted besides the system's.
    pub ca: Vec<PathBuf>,
    /// PEM files of the client's certificate and key; one file may hold both.
    pub client: Option<(PathBuf, Option<PathBuf>)>,
    /// Trust anybody.
    pub skip_verify: bool,
}

/// Why a host's configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HostsError {
    /// It cannot be read.
    #[error("reading {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is larger than any configuration.
    #[error("{} is larger than {MAX_FILE_BYTES} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// It is not TOML of the right shape.
    #[error("parsing {}", path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// Where.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A host is no URL.
    #[error("{}: {host:?} is not an http or https URL", path.display())]
    Host {
        /// The file.
        path: PathBuf,
        /// As written.
        host: String,
    },
    /// A capability nobody knows.
    #[error("{}: {host:?} has unknown capability {capability:?}; known are pull, resolve, push", path.display())]
    Capability {
        /// The file.
        path: PathBuf,
        /// As written.
        host: String,
        /// As written.
        capability: String,
    },
    /// A duration that is none.
    #[error("{}: {host:?} has dial_timeout {value:?}, which is not a duration such as 3s or 500ms", path.display())]
    DialTimeout {
        /// The file.
        path: PathBuf,
        /// As written.
        host: String,
        /// As written.
        value: String,
    },
    /// More than one client certificate, of which TLS can offer one.
    #[error("{}: {host:?} has more than one client certificate", path.display())]
    Clients {
        /// The file.
        path: PathBuf,
        /// As written.
        host: String,
    },
}

impl Endpoint {
    /// Whether it may be asked for `action` at all.
    #[must_use]
    pub fn can(&self, action: Action) -> bool {
        match action {
            Action::Pull => self.capabilities.pull || self.capabilities.resolve,
            Action::Push => self.capabilities.push,
        }
    }

    /// Whether it is this machine itself.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        is_loopback(&self.base)
    }
}

/// Whether a URL's host is this machine, by its name.
#[must_use]
pub fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// The endpoints of `registry`, by the first directory of `dirs` that has something about it.
///
/// # Errors
/// [`HostsError`]: a configuration that is there and wrong is not skipped, or a pull would bypass its mirror.
pub fn endpoints(dirs: &[PathBuf], registry: &str) -> Result<Vec<Endpoint>, HostsError> {
    for dir in dirs {
        for name in directory_names(registry) {
            let host_dir = dir.join(name);
            if !host_dir.is_dir() {
                continue;
            }
            let path = host_dir.join("hosts.toml");
            match fs::metadata(&path) {
                Ok(metadata) if metadata.len() > MAX_FILE_BYTES => return Err(HostsError::TooLarge { path }),
                Ok(_) => {
                    let text =
                        fs::read_to_string(&path).map_err(|source| HostsError::Read { path: path.clone(), source })?;
                    return parse(&path, &text, registry);
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    return Ok(vec![Endpoint { tls: docker_tls(&host_dir), ..default_endpoint(registry) }]);
                }
                Err(source) => return Err(HostsError::Read { path, source }),
            }
        }
    }
    Ok(vec![default_endpoint(registry)])
}

/// containerd's names for a host's directory: `host_port_`, `host:port`, `_default`.
fn directory_names(registry: &str) -> Vec<String> {
    let mut names = Vec::new();
    if let Some((host, port)) = registry.rsplit_once(':').filter(|(host, port)| !host.is_empty() && !port.contains(']'))
    {
        names.push(format!("{host}_{port}_"));
    }
    names.extend([registry.to_owned(), "_default".to_owned()]);
    names
}

/// containerd's default for a connection attempt.
const DIAL_TIMEOUT: Duration = Duration::from_secs(30);

/// Plain HTTP for this machine (unless on 443), as Docker's default for `127.0.0.0/8`; HTTPS else.
fn default_scheme(registry: &str) -> &'static str {
    let probe = Url::parse(&format!("http://{registry}"));
    match probe {
        Ok(url) if is_loopback(&url) && url.port() != Some(443) => "http",
        _ => "https",
    }
}

fn default_endpoint(registry: &str) -> Endpoint {
    let host = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
    let base = Url::parse(&format!("{}://{host}/v2", default_scheme(host)));
    Endpoint {
        base: base.expect("an ImageRef's registry is a host name or address with an optional port"),
        registry: registry.to_owned(),
        role: Role::Origin,
        capabilities: Capabilities::ALL,
        tls: Tls::default(),
        headers: Vec::new(),
        dial_timeout: DIAL_TIMEOUT,
    }
}

/// Docker's own layout: `*.crt` are authorities, `NAME.cert` with `NAME.key` the client.
fn docker_tls(dir: &Path) -> Tls {
    let mut tls = Tls::default();
    let Ok(entries) = fs::read_dir(dir) else { return tls };
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    for file in files {
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => tls.ca.push(file),
            Some("cert") if tls.client.is_none() => {
                let key = file.with_extension("key");
                tls.client = Some((file, Some(key)));
            }
            _ => {}
        }
    }
    tls
}

#[cfg(test)]
mod tests;
