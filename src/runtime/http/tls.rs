//! Whom outgoing HTTPS trusts.
//!
//! In: the process's `SSL_CERT_FILE` and the container's files, as an OpenSSL program would look. Out: a rustls
//! configuration. A container without certificates (a bare wasm artifact has none) trusts what the node trusts.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use super::errors::ConnectError;
use crate::runtime::process::Process;

/// Where images keep their bundle: Debian and Alpine, Fedora, openSUSE.
const BUNDLES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem"];
/// Largest bundle that is read: ten times what Mozilla's weighs.
const MAX_BUNDLE_BYTES: u64 = 2 * 1024 * 1024;

/// The configuration of every TLS connection of `process`; made once, at the first.
///
/// # Errors
/// [`ConnectError::NoRoots`] when neither container nor node has a certificate authority.
pub async fn client_config(process: &Process) -> Result<Arc<ClientConfig>, ConnectError> {
    let (mut roots, mut searched) = container_roots(process).await;
    if roots.is_empty() {
        searched.push_str(", the node's own store");
        roots = tokio::task::spawn_blocking(node_roots).await.unwrap_or_else(|_| RootCertStore::empty());
    }
    if roots.is_empty() {
        return Err(ConnectError::NoRoots { searched });
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring supports the default protocol versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// The first bundle of the container that holds a certificate, and the names of all that were tried.
async fn container_roots(process: &Process) -> (RootCertStore, String) {
    let namespace = process.namespace();
    let credentials = process.credentials();
    let root = namespace.root();
    let asked = process.env().iter().find(|(name, _)| name == "SSL_CERT_FILE").map(|(_, path)| path.as_str());
    // A variable that was set is the whole answer, as for OpenSSL.
    let candidates: &[&str] = if let Some(path) = &asked { &[path] } else { &BUNDLES };
    for path in candidates {
        let Ok(pem) = namespace.read(credentials, &root, path, MAX_BUNDLE_BYTES).await else { continue };
        let roots = parse(&pem);
        if !roots.is_empty() {
            return (roots, (*path).to_owned());
        }
    }
    (RootCertStore::empty(), candidates.join(", "))
}

/// Certificates of a PEM bundle; what is no certificate is passed over, as every TLS library does.
fn parse(pem: &[u8]) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(pem).filter_map(Result::ok));
    roots
}

fn node_roots() -> RootCertStore {
    let loaded = rustls_native_certs::load_native_certs();
    for error in &loaded.errors {
        tracing::warn!(err = %error, "Certificate of the node could not be read");
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(loaded.certs);
    roots
}
