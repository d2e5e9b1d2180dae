//! Authorities, certificates and an authorizer for tests.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::{AccessQuestion, ReviewError, Reviewer, TokenAnswer, UserInfo};

/// A certificate with its key.
pub(crate) type Identity = (CertificateDer<'static>, PrivateKeyDer<'static>);

/// A certificate authority.
pub(crate) struct Authority {
    certificate: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn certificate(&self) -> CertificateDer<'static> {
        self.certificate.der().clone()
    }

    pub(crate) fn pem(&self) -> String {
        self.certificate.pem()
    }

    pub(crate) fn client(&self, name: &str, groups: &[&str]) -> Identity {
        self.issue(name, groups, ExtendedKeyUsagePurpose::ClientAuth)
    }

    pub(crate) fn server(&self, name: &str) -> Identity {
        self.issue(name, &[], ExtendedKeyUsagePurpose::ServerAuth)
    }

    fn issue(&self, name: &str, groups: &[&str], usage: ExtendedKeyUsagePurpose) -> Identity {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.distinguished_name = DistinguishedName::new();
        for group in groups {
            params.distinguished_name.push(DnType::OrganizationName, *group);
        }
        if !name.is_empty() {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.der().clone(), PrivatePkcs8KeyDer::from(key.serialize_der()).into())
    }
}

/// An API server of two tables: tokens and their bearers, users and the subresources they may use. The token `down`
/// is one that it cannot be asked about.
pub(crate) struct TableReviewer {
    tokens: HashMap<String, String>,
    rights: HashSet<(String, String)>,
    pub(crate) tokens_asked: AtomicUsize,
    pub(crate) access_asked: AtomicUsize,
    pub(crate) away: AtomicBool,
}

impl TableReviewer {
    pub(crate) fn new(tokens: &[(&str, &str)], rights: &[(&str, &str)]) -> Arc<Self> {
        let owned = |(a, b): &(&str, &str)| ((*a).to_owned(), (*b).to_owned());
        Arc::new(Self {
            tokens: tokens.iter().map(owned).collect(),
            rights: rights.iter().map(owned).collect(),
            tokens_asked: AtomicUsize::new(0),
            access_asked: AtomicUsize::new(0),
            away: AtomicBool::new(false),
        })
    }
}

impl Reviewer for TableReviewer {
    fn review_token<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<TokenAnswer, ReviewError>> {
        self.tokens_asked.fetch_add(1, Ordering::SeqCst);
        let answer = if self.away.load(Ordering::SeqCst) || token == "down" {
            Err(ReviewError::TimedOut)
        } else {
            Ok(self.tokens.get(token).map_or(TokenAnswer::Unknown { reason: "unknown".into() }, |name| {
                TokenAnswer::User(UserInfo { name: name.clone(), ..UserInfo::default() })
            }))
        };
        std::future::ready(answer).boxed()
    }

    fn review_access<'a>(
        &'a self,
        user: &'a UserInfo,
        question: AccessQuestion<'a>,
    ) -> BoxFuture<'a, Result<bool, ReviewError>> {
        self.access_asked.fetch_add(1, Ordering::SeqCst);
        let answer = if self.away.load(Ordering::SeqCst) {
            Err(ReviewError::TimedOut)
        } else {
            Ok(self.rights.contains(&(user.name.clone(), question.subresource.to_owned())))
        };
        std::future::ready(answer).boxed()
    }
}
