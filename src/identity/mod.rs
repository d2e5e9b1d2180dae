//! Who this node is to its cluster.
//!
//! In: a kubeconfig, a bootstrap token or a service account. Out: one [`kube::Client`] whose certificate may be
//! replaced under it ([`ClusterAccess`]), and the certificate that the kubelet API serves with.
//! Certificates are asked for as the kubelet does, by CertificateSigningRequests, and kept in `ROOT/pki`.
//! Does not register the node, and makes no Events: what users should hear is handed to a callback ([`Notice`]).

pub mod access;
pub mod csr;
mod error;
pub mod join;
pub mod kubeconfig;
mod limit;
mod metrics;
pub mod pair;
pub mod rotation;
mod serving;
pub mod store;
mod transport;

pub use access::{AccessOptions, ClusterAccess, connect};
pub use error::{IdentityError, PairError};
pub use metrics::ClientMetrics;
pub use serving::{InCluster, Keeper, Notice, Notify, ServingCertificate, ServingSource, serving_request};
