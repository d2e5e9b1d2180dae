//! Registries over HTTP(S): the OCI distribution protocol, as a client.
//!
//! In: a name, credentials, and how the host is configured. Out: manifests and blobs, checked by the
//! store; pushed ones. One [`Repository`] is one repository of one registry with its mirrors.
//!
//! Written directly on reqwest. The `oci-client` crate was looked at and does not fit: it reads manifests
//! without a bound, drops the token service's answer when that refuses, and has no place for `hosts.toml`
//! (mirrors under a path, client certificates, headers, capabilities).

mod answer;
mod auth;
mod client;
pub mod hosts;
mod pull;
mod push;
mod session;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::ids::Digest;

use super::credential::Credential;
use super::limits::ImageLimits;
use super::reference::ImageRef;
use super::store::StoreError;

use hosts::{Endpoint, HostsError};
use session::Session;

pub use pull::{BlobEvent, Fetched};
pub use push::Pushed;

/// Why a registry did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The host's configuration cannot be used.
    #[error(transparent)]
    Hosts(#[from] HostsError),
    /// TLS or the client cannot be set up.
    #[error("preparing the connection to {url}")]
    Client {
        /// The endpoint.
        url: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// A certificate or key of the configuration cannot be read.
    #[error("reading {} for {url}", path.display())]
    TlsFile {
        /// The endpoint.
        url: String,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// No answer: no connection, or it broke, or it took too long.
    #[error("no answer from {url}")]
    Transport {
        /// The request.
        url: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// A body shorter than the blob, without an error of the connection.
    #[error("{url} ended before the blob did")]
    BrokeOff {
        /// The request.
        url: String,
    },
    /// The registry has it not.
    #[error("not found at {url}{detail}: check the name and the tag")]
    NotFound {
        /// The request.
        url: String,
        /// What the registry says, after a colon.
        detail: String,
    },
    /// The registry wants (other) credentials.
    #[error("{url} refused access{detail}: {advice}")]
    Unauthorized {
        /// The request.
        url: String,
        /// What the registry says, after a colon.
        detail: String,
        /// What to do.
        advice: &'static str,
    },
    /// The registry said to ask less often.
    #[error("{url} asked to slow down (429 Too Many Requests){detail}")]
    RateLimited {
        /// The request.
        url: String,
        /// What the registry says, after a colon.
        detail: String,
        /// Its `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// Another answer than expected.
    #[error("{url} answered {status}{detail}")]
    Status {
        /// The request.
        url: String,
        /// The HTTP status.
        status: u16,
        /// What the registry says, after a colon.
        detail: String,
    },
    /// A redirect this node does not follow.
    #[error("{url} redirects to {target}, which {problem}")]
    Redirect {
        /// The request.
        url: String,
        /// Where to.
        target: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The registry's way to authenticate cannot be used.
    #[error("{url} asks for authentication in a way that cannot be used: {problem}")]
    Challenge {
        /// The request.
        url: String,
        /// What is wrong with it.
        problem: String,
    },
    /// An answer that breaks the protocol.
    #[error("{url} sent {problem}")]
    Protocol {
        /// The request.
        url: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The manifest is not the one its digest names.
    #[error("{url} sent a manifest with digest {actual} instead of {expected}")]
    ManifestDigest {
        /// The request.
        url: String,
        /// What was asked for.
        expected: Digest,
        /// What came.
        actual: Digest,
    },
    /// The blob broke off and did not come whole after several tries.
    #[error("downloading blob {digest} stopped at {done} of {total} bytes after {attempts} attempts")]
    Interrupted {
        /// The blob.
        digest: Digest,
        /// Bytes that came.
        done: u64,
        /// Bytes it has.
        total: u64,
        /// Tries.
        attempts: u32,
        /// How the last one ended.
        #[source]
        source: Box<RegistryError>,
    },
    /// The store could not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No endpoint may do this.
    #[error("no endpoint of {registry} is configured to {action}; see capabilities in its hosts.toml")]
    NoEndpoint {
        /// The registry.
        registry: String,
        /// `pull` or `push`.
        action: &'static str,
    },
}

impl RegistryError {
    /// Whether nobody answered, as opposed to an answer that is no.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::Transport { .. } | Self::BrokeOff { .. } => true,
            Self::Status { status, .. } => *status >= 500,
            Self::Interrupted { source, .. } => source.is_unavailable(),
            _ => false,
        }
    }

    /// Whether the same request may succeed a little later.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Transport { .. } | Self::BrokeOff { .. } | Self::RateLimited { .. } => true,
            Self::Status { status, .. } => *status >= 500 || *status == 408,
            _ => false,
        }
    }
}

/// Where hosts are configured, and the node's own credentials.
#[derive(Debug, Clone, Default)]
pub struct RegistryConfig {
    /// containerd's `certs.d` directories; the first that has the host decides.
    pub hosts_dirs: Vec<PathBuf>,
    /// Docker configuration files or directories, read anew for every pull: tokens in them rotate.
    pub docker_configs: Vec<PathBuf>,
}

/// What is wanted of a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Manifests and blobs out.
    Pull,
    /// Manifests and blobs in.
    Push,
}

/// One repository of one registry, through its mirrors in order.
#[derive(Debug)]
pub struct Repository {
    reference: ImageRef,
    endpoints: Vec<Arc<Session>>,
    limits: ImageLimits,
}

impl Repository {
    /// Reads the host's configuration and the credentials for it. Blocking (small files); connects to nothing.
    ///
    /// # Errors
    /// [`RegistryError::Hosts`], [`RegistryError::NoEndpoint`], [`RegistryError::Client`], [`RegistryError::TlsFile`].
    pub fn open(
        config: &RegistryConfig,
        reference: &ImageRef,
        credentials: &[Credential],
        action: Action,
        limits: ImageLimits,
    ) -> Result<Self, RegistryError> {
        let endpoints: Vec<Endpoint> = hosts::endpoints(&config.hosts_dirs, reference.registry())?
            .into_iter()
            .filter(|endpoint| endpoint.can(action))
            .collect();
        if endpoints.is_empty() {
            let action = match action {
                Action::Pull => "pull",
                Action::Push => "push",
            };
            return Err(RegistryError::NoEndpoint { registry: reference.registry().to_owned(), action });
        }
        let mut all = credentials.to_vec();
        all.extend(node_credentials(&config.docker_configs));
        let sessions = endpoints
            .into_iter()
            .map(|endpoint| Session::new(endpoint, reference, &all, action).map(Arc::new))
            .collect::<Result<_, _>>()?;
        Ok(Self { reference: reference.clone(), endpoints: sessions, limits })
    }
}

/// A file that cannot be read costs its own credentials, not the pull: it may be public.
fn node_credentials(paths: &[PathBuf]) -> Vec<Credential> {
    let mut all = Vec::new();
    for path in paths {
        match Credential::from_path(path) {
            Ok(mut found) => all.append(&mut found),
            Err(error) => {
                tracing::warn!(path = %path.display(), err = %super::error::chain(&error), "Skipped registry credentials");
            }
        }
    }
    all
}
