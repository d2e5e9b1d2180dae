//! A certificate chain with its private key, and what the certificate says.
//!
//! In: PEM. Out: a [`Pair`] that rustls takes, with the facts that renewal is decided by. Touches no file.

use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::error::PairError;

/// What a certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Common name of the subject.
    pub common_name: String,
    /// Organizations of the subject: groups, to Kubernetes.
    pub organizations: Vec<String>,
    /// The issuer as text: a kubeconfig of another cluster is told from ours by it.
    pub issuer: String,
    /// First moment of its validity.
    pub not_before: Timestamp,
    /// Last moment of its validity.
    pub not_after: Timestamp,
    /// DNS names it is for.
    pub dns_names: Vec<String>,
    /// Addresses it is for.
    pub ips: Vec<IpAddr>,
}

/// A certificate chain and its key.
#[derive(Debug, Clone)]
pub struct Pair {
    /// As rustls wants it.
    pub key: Arc<CertifiedKey>,
    /// What the first certificate says.
    pub facts: Facts,
}

/// Reads a certificate.
///
/// # Errors
/// [`PairError::Der`].
pub fn facts(der: &[u8]) -> Result<Facts, PairError> {
    let broken = |problem: &dyn std::fmt::Display| PairError::Der(problem.to_string());
    let (_, certificate) = X509Certificate::from_der(der).map_err(|error| broken(&error))?;
    let text = |value: &x509_parser::x509::AttributeTypeAndValue<'_>| value.as_str().unwrap_or_default().to_owned();
    let time = |seconds| Timestamp::from_second(seconds).map_err(|error| broken(&error));
    let (mut dns_names, mut ips) = (Vec::new(), Vec::new());
    let names = certificate.subject_alternative_name().map_err(|error| broken(&error))?;
    for name in names.iter().flat_map(|names| &names.value.general_names) {
        match name {
            GeneralName::DNSName(name) => dns_names.push((*name).to_owned()),
            GeneralName::IPAddress(bytes) => ips.extend(ip(bytes)),
            _ => {}
        }
    }
    Ok(Facts {
        common_name: certificate.subject().iter_common_name().next().map(text).unwrap_or_default(),
        organizations: certificate.subject().iter_organization().map(text).collect(),
        issuer: certificate.issuer().to_string(),
        not_before: time(certificate.validity().not_before.timestamp())?,
        not_after: time(certificate.validity().not_after.timestamp())?,
        dns_names,
        ips,
    })
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

impl Pair {
    /// Reads a chain and a key from PEM; both may be in one text.
    ///
    /// # Errors
    /// [`PairError`], also when the two do not belong together.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, PairError> {
        let chain = certificates(chain)?;
        let leaf = chain.first().ok_or(PairError::NoCertificate)?;
        let facts = facts(leaf)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| match error {
            pem::Error::NoItemsFound => PairError::NoKey,
            error => PairError::Pem(error.to_string()),
        })?;
        let provider = rustls::crypto::ring::default_provider();
        let key = CertifiedKey::from_der(chain, key, &provider).map_err(|error| PairError::Key(error.to_string()))?;
        Ok(Self { key: Arc::new(key), facts })
    }

    /// The name of the node whose client certificate this is, if it is one.
    #[must_use]
    pub fn node_name(&self) -> Option<&str> {
        self.facts.common_name.strip_prefix("system:node:")
    }
}

/// The certificates of a PEM text, in order; other blocks are passed over.
///
/// # Errors
/// [`PairError::Pem`].
pub fn certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, PairError> {
    CertificateDer::pem_slice_iter(text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| PairError::Pem(error.to_string()))
}

/// SHA-256 of the public key (SubjectPublicKeyInfo) of a certificate: what `--discovery-token-ca-cert-hash` pins.
///
/// # Errors
/// [`PairError::Der`].
pub fn public_key_hash(der: &[u8]) -> Result<[u8; 32], PairError> {
    use sha2::Digest as _;
    let (_, certificate) = X509Certificate::from_der(der).map_err(|error| PairError::Der(error.to_string()))?;
    Ok(sha2::Sha256::digest(certificate.public_key().raw).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn self_signed(name: &str) -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["node-1".to_owned(), "192.0.2.7".to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:nodes");
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    #[test]
    fn a_pair_says_whose_it_is_and_for_what() {
        let (chain, key) = self_signed("system:node:edge-1");
        let pair = Pair::from_pem(chain.as_bytes(), key.as_bytes()).unwrap();
        assert_eq!(pair.node_name(), Some("edge-1"));
        assert_eq!(pair.facts.organizations, ["system:nodes"]);
        assert_eq!(pair.facts.dns_names, ["node-1"]);
        assert_eq!(pair.facts.ips, ["192.0.2.7".parse::<IpAddr>().unwrap()]);
        assert!(pair.facts.not_before < pair.facts.not_after);
        let (other, _) = self_signed("admin");
        assert!(matches!(Pair::from_pem(other.as_bytes(), key.as_bytes()), Err(PairError::Key(_))));
    }

    #[test]
    fn what_is_missing_is_said() {
        let (chain, key) = self_signed("x");
        for (case, chain, key, expected) in [
            ("no certificate", "", key.as_str(), PairError::NoCertificate),
            ("a key where the certificate should be", key.as_str(), key.as_str(), PairError::NoCertificate),
            ("no key", chain.as_str(), chain.as_str(), PairError::NoKey),
        ] {
            assert_eq!(Pair::from_pem(chain.as_bytes(), key.as_bytes()).unwrap_err(), expected, "{case}");
        }
        let cut = &chain[..chain.len() / 2];
        assert!(matches!(Pair::from_pem(cut.as_bytes(), key.as_bytes()), Err(PairError::Pem(_))));
    }
}
