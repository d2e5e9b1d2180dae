//! Client certificates: whether an authority we trust signed them, and whom they name.
//!
//! In: the certificates a client showed in its handshake (rustls has checked by then that it holds the key).
//! Out: a user, CN as name and O as groups. The authorities' file is read again when it changes; a certificate is
//! looked at on every request, so that one that expires or whose authority is withdrawn ends with it, as at the kubelet.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::AuthError;
use super::user::UserInfo;

/// How often the file is looked at, at most; only requests with a certificate make us look.
const RELOAD_PERIOD: Duration = Duration::from_secs(1);
/// `user.CredentialIDKey` of the API server.
const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";
/// The attribute of a subject that is the user's UID (`asn1util.X509UID`).
const UID_OID: &str = "1.3.6.1.4.1.57683.2";

/// Authorities of client certificates.
#[derive(Debug)]
pub(super) struct ClientAuthorities {
    file: Option<PathBuf>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    verifier: Arc<dyn ClientCertVerifier>,
    content: Vec<u8>,
    looked_at: Instant,
}

/// Why a certificate proves nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum CertificateError {
    /// Not signed by an authority of ours, expired, not for clients.
    #[error("verifying the client certificate failed")]
    Unverified(#[source] rustls::Error),
    /// Bytes that are no certificate, or a subject that cannot be read.
    #[error("the client certificate cannot be read: {0}")]
    Malformed(String),
}

impl ClientAuthorities {
    /// Authorities of a file.
    pub(super) fn from_file(path: &Path) -> Result<Self, AuthError> {
        let content = std::fs::read(path)
            .map_err(|source| AuthError::ClientCaFile { path: path.to_owned(), reason: source.to_string() })?;
        let verifier =
            verifier_of_pem(&content).map_err(|reason| AuthError::ClientCaFile { path: path.to_owned(), reason })?;
        let state = State { verifier, content, looked_at: Instant::now() };
        Ok(Self { file: Some(path.to_owned()), state: Mutex::new(state) })
    }

    /// Authorities that stay what they are.
    pub(super) fn given(authorities: Vec<CertificateDer<'static>>) -> Result<Self, AuthError> {
        let verifier = verifier(authorities).map_err(|reason| AuthError::ClientCa { reason })?;
        let state = State { verifier, content: Vec::new(), looked_at: Instant::now() };
        Ok(Self { file: None, state: Mutex::new(state) })
    }

    /// The user of a certificate chain; `None` for one without a name.
    pub(super) async fn authenticate(
        &self,
        chain: &[CertificateDer<'static>],
    ) -> Result<Option<UserInfo>, CertificateError> {
        let Some((leaf, intermediates)) = chain.split_first() else { return Ok(None) };
        self.reload().await;
        let verifier = self.state.lock().verifier.clone();
        verifier.verify_client_cert(leaf, intermediates, UnixTime::now()).map_err(CertificateError::Unverified)?;
        user_of(leaf)
    }

    /// Reads the file again if it is time. What cannot be used leaves what was there.
    async fn reload(&self) {
        let Some(path) = &self.file else { return };
        {
            let mut state = self.state.lock();
            if state.looked_at.elapsed() < RELOAD_PERIOD {
                return;
            }
            state.looked_at = Instant::now();
        }
        let reloaded = match tokio::fs::read(path).await {
            Ok(content) if content == self.state.lock().content => return,
            Ok(content) => verifier_of_pem(&content).map(|verifier| (content, verifier)),
            Err(error) => Err(error.to_string()),
        };
        match reloaded {
            Ok((content, verifier)) => {
                let mut state = self.state.lock();
                state.content = content;
                state.verifier = verifier;
                tracing::info!(path = %path.display(), "Reloaded the authorities of client certificates");
            }
            Err(error) => {
                tracing::error!(path = %path.display(), err = error, "Could not reload the authorities of client certificates");
            }
        }
    }
}

fn verifier_of_pem(pem: &[u8]) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    verifier(certificates.map_err(|error| error.to_string())?)
}

fn verifier(authorities: Vec<CertificateDer<'static>>) -> Result<Arc<dyn ClientCertVerifier>, String> {
    if authorities.is_empty() {
        return Err("it has no certificate".to_owned());
    }
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority).map_err(|error| error.to_string())?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let built = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
    built.map_err(|error| error.to_string())
}

fn user_of(leaf: &CertificateDer<'_>) -> Result<Option<UserInfo>, CertificateError> {
    let malformed = |error: String| CertificateError::Malformed(error);
    let (_, certificate) = X509Certificate::from_der(leaf).map_err(|error| malformed(error.to_string()))?;
    let subject = certificate.subject();
    let text = |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| attribute.as_str().map(str::to_owned).ok();
    // Of several names the last one counts, as in Go's crypto/x509.
    let name = subject.iter_common_name().filter_map(text).last().unwrap_or_default();
    if name.is_empty() {
        return Ok(None);
    }
    let mut uids = subject.iter_attributes().filter(|attribute| attribute.attr_type().to_id_string() == UID_OID);
    let uid = match (uids.next(), uids.next()) {
        (None, _) => String::new(),
        (Some(uid), None) => match text(uid) {
            Some(uid) if !uid.is_empty() => uid,
            _ => return Err(malformed("its UID is not a name".to_owned())),
        },
        (Some(_), Some(_)) => return Err(malformed("it has several UIDs".to_owned())),
    };
    let id = format!("X509SHA256={}", hex::encode(Sha256::digest(leaf)));
    Ok(Some(UserInfo {
        name,
        uid,
        groups: subject.iter_organization().filter_map(text).collect(),
        extra: [(CREDENTIAL_ID.to_owned(), vec![id])].into(),
    }))
}

/// Asks clients for a certificate and takes any whose key they hold: what it is worth is decided request by request.
/// So a client with a stranger's certificate gets a 401 that says so, or is known by its token, as at the kubelet.
#[derive(Debug)]
pub(crate) struct RequestAnyCertificate {
    provider: Arc<rustls::crypto::CryptoProvider>,
}

impl RequestAnyCertificate {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { provider: Arc::new(rustls::crypto::ring::default_provider()) })
    }
}

impl ClientCertVerifier for RequestAnyCertificate {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // No hint: the authorities may change under a connection.
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<rustls::server::danger::ClientCertVerified, rustls::Error> {
        Ok(rustls::server::danger::ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Authority;
    use super::*;

    #[tokio::test]
    async fn a_certificate_of_ours_names_its_user_and_no_other_does() {
        let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
        let authorities = ClientAuthorities::given(vec![ours.certificate()]).unwrap();
        let chain = vec![ours.client("jane", &["dev"]).0];
        let user = authorities.authenticate(&chain).await.unwrap().unwrap();
        assert_eq!((user.name.as_str(), user.groups.as_slice()), ("jane", &["dev".to_owned()][..]));
        assert!(user.extra[CREDENTIAL_ID][0].starts_with("X509SHA256="), "{user:?}");
        assert_eq!(user.clone().authenticated().groups.last().unwrap(), "system:authenticated");

        let stranger = vec![theirs.client("jane", &[]).0];
        assert!(matches!(authorities.authenticate(&stranger).await, Err(CertificateError::Unverified(_))));
        let server = vec![ours.server("jane").0];
        assert!(matches!(authorities.authenticate(&server).await, Err(CertificateError::Unverified(_))));
        let nameless = vec![ours.client("", &["dev"]).0];
        assert_eq!(authorities.authenticate(&nameless).await.unwrap(), None);
        assert!(authorities.authenticate(&[CertificateDer::from(vec![1, 2, 3])]).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_file_counts_and_a_broken_one_does_not() {
        let (old, new) = (Authority::new("old"), Authority::new("new"));
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ca.crt");
        std::fs::write(&path, old.pem()).unwrap();
        let authorities = ClientAuthorities::from_file(&path).unwrap();
        let (of_old, of_new) = (vec![old.client("a", &[]).0], vec![new.client("b", &[]).0]);
        assert!(authorities.authenticate(&of_old).await.is_ok());
        assert!(authorities.authenticate(&of_new).await.is_err());

        std::fs::write(&path, "broken").unwrap();
        tokio::time::advance(RELOAD_PERIOD).await;
        assert!(authorities.authenticate(&of_old).await.is_ok(), "a broken file leaves what was there");

        std::fs::write(&path, new.pem()).unwrap();
        tokio::time::advance(RELOAD_PERIOD).await;
        assert!(authorities.authenticate(&of_new).await.is_ok());
        assert!(authorities.authenticate(&of_old).await.is_err(), "the old authority is withdrawn");
    }

    #[test]
    fn a_file_without_authorities_is_named() {
        let error = ClientAuthorities::from_file(Path::new("/nonexistent/ca.crt")).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/ca.crt"), "{error}");
    }
}
