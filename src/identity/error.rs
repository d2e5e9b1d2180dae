//! Why this node cannot prove who it is, or reach its cluster: every message names the file or object and the way out.
//!
//! In: what failed. Out: one enum. Decides nothing.

use std::io;
use std::path::PathBuf;

use super::csr::{CsrError, describe};

/// Why there is no access to the cluster.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Neither a kubeconfig, nor a bootstrap kubeconfig, nor a service account.
    #[error(
        "this node has no cluster: give --kubeconfig FILE, or join one with 'wasilet join HOST:6443 --token TOKEN \
         --discovery-token-ca-cert-hash sha256:HASH'"
    )]
    NotConfigured,
    /// The kubeconfig that was asked for is not there.
    #[error(
        "the kubeconfig {} does not exist: name the right file with --kubeconfig, or join a cluster with 'wasilet join'",
        path.display()
    )]
    NoKubeconfig {
        /// The file.
        path: PathBuf,
    },
    /// A kubeconfig cannot be used.
    #[error("the kubeconfig {} cannot be used: {problem}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, in words.
        problem: String,
    },
    /// A certificate file or its key cannot be used.
    #[error("the certificate in {} cannot be used", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: PairError,
    },
    /// The client certificate is past its end, and nothing can get a new one.
    #[error(
        "the client certificate in {} expired at {not_after} and there is no bootstrap kubeconfig to get a new one: \
         join again with a new token ('kubeadm token create --print-join-command' on the control plane prints it)",
        path.display()
    )]
    Expired {
        /// Where it is.
        path: PathBuf,
        /// Its end.
        not_after: jiff::Timestamp,
    },
    /// The certificate is another node's.
    #[error(
        "the client certificate in {} is that of node {certificate:?}, but this node is named {node:?}: start it with \
         --node-name {certificate}, or give it credentials of its own",
        path.display()
    )]
    OtherNode {
        /// Where it is.
        path: PathBuf,
        /// Its name.
        certificate: String,
        /// Ours.
        node: String,
    },
    /// The service account of this pod cannot be used.
    #[error("the service account of this pod cannot be used: {problem}")]
    ServiceAccount {
        /// What is wrong with it.
        problem: String,
    },
    /// A file of ours could not be read or written.
    #[error("{action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A certificate was asked for and not given.
    #[error(transparent)]
    Csr(#[from] CsrError),
    /// A client could not be built.
    #[error("setting up the client of the API server")]
    Client {
        /// Why.
        #[source]
        source: kube::Error,
    },
    /// The settings of TLS do not fit together.
    #[error("setting up TLS")]
    Tls {
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// The proxy of the kubeconfig is of a kind that is not supported.
    #[error("the proxy-url {url} of the kubeconfig is not supported: only http:// proxies (CONNECT) are")]
    Proxy {
        /// The proxy.
        url: String,
    },
    /// A key or a request could not be made.
    #[error("making a key or a certificate")]
    Make {
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// The node was told to stop meanwhile.
    #[error("stopped while waiting for a certificate")]
    Stopped,
}

/// What is wrong with a certificate and its key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PairError {
    /// The PEM cannot be read.
    #[error("it is not PEM: {0}")]
    Pem(String),
    /// There is no certificate.
    #[error("there is no CERTIFICATE block in it")]
    NoCertificate,
    /// There is no key.
    #[error("there is no PRIVATE KEY block in it")]
    NoKey,
    /// The certificate cannot be read.
    #[error("its certificate cannot be read: {0}")]
    Der(String),
    /// They do not belong together, or the key is of a kind that is not supported.
    #[error("its key cannot be used with its certificate: {0}")]
    Key(String),
}

impl IdentityError {
    /// The message with its causes, in one line, for logs and Events.
    #[must_use]
    pub fn in_full(&self) -> String {
        describe(self)
    }

    /// For `map_err` of file operations.
    pub(super) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }
}
