//! The HTTP clients of an endpoint: trust, identity, deadlines.
//!
//! In: an [`Endpoint`]'s configuration. Out: a client that follows no redirect by itself.

use std::path::Path;
use std::time::Duration;

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};

use super::RegistryError;
use super::answer::shown;
use super::hosts::Endpoint;

/// A connection on which nothing comes for so long is dead.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// Whether a client may show its certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Identify {
    Yes,
    No,
}

pub(super) fn build_client(endpoint: &Endpoint, identify: Identify) -> Result<reqwest::Client, RegistryError> {
    // The binary has one provider; a library user may have installed it already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let url = shown(&endpoint.base);
    let client_error = |source| RegistryError::Client { url: url.clone(), source };
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("wasilet/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(endpoint.dial_timeout)
        .read_timeout(READ_TIMEOUT)
        .tls_danger_accept_invalid_certs(endpoint.tls.skip_verify);
    if endpoint.is_loopback() {
        // A proxy's idea of this machine is not ours.
        builder = builder.no_proxy();
    }
    if endpoint.base.scheme() == "http" && identify == Identify::Yes {
        // A machine without system certificates can still talk to a local registry.
        builder = builder.tls_certs_only([]);
    }
    for path in &endpoint.tls.ca {
        let certificates = reqwest::Certificate::from_pem_bundle(&read_pem(path, &url)?).map_err(client_error)?;
        builder = builder.tls_certs_merge(certificates);
    }
    if let (Identify::Yes, Some((certificate, key))) = (identify, &endpoint.tls.client) {
        let mut pem = read_pem(certificate, &url)?;
        if let Some(key) = key {
            pem.push(b'\n');
            pem.extend(read_pem(key, &url)?);
        }
        builder = builder.identity(reqwest::Identity::from_pem(&pem).map_err(client_error)?);
    }
    builder.build().map_err(client_error)
}

fn read_pem(path: &Path, url: &str) -> Result<Vec<u8>, RegistryError> {
    std::fs::read(path).map_err(|source| RegistryError::TlsFile { url: url.to_owned(), path: path.to_owned(), source })
}

/// The headers of every request to the endpoint, and to nobody else.
pub(super) fn configured_headers(endpoint: &Endpoint) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in &endpoint.headers {
        match (HeaderName::try_from(name.as_str()), HeaderValue::from_str(value)) {
            (Ok(name), Ok(value)) => {
                headers.append(name, value);
            }
            _ => tracing::warn!(header = %name, "Left out a configured registry header that HTTP cannot carry"),
        }
    }
    headers
}
