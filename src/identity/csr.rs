//! Asks the cluster for a certificate: one CertificateSigningRequest, waited for as long as it takes.
//!
//! In: a key, who to be, which signer. Out: the certificate that was issued. The name of the request is a hash of the key
//! and of all that is asked for, so that a restart finds the same request again (kubelet's `digestedName`).
//! Approves nothing and keeps no file.

use std::net::IpAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{PostParams, WatchEvent, WatchParams};
use rcgen::PublicKeyData as _;
use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject;
use sha2::Digest as _;
use x509_parser::prelude::{FromDer, X509CertificationRequest};

use super::pair;

/// Signer of the certificates that nodes are clients with.
pub const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// Signer of the certificates that the kubelet API is served with. No controller of Kubernetes approves its requests.
pub const SERVING_SIGNER: &str = "kubernetes.io/kubelet-serving";

/// How long one watch lasts: below the five minutes after which load balancers commonly cut idle connections.
const WATCH_SECONDS: u32 = 290;
/// Pauses after failures double from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(32);

/// What a certificate is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// [`CLIENT_SIGNER`] or [`SERVING_SIGNER`].
    pub signer: &'static str,
    /// The node.
    pub node_name: String,
    /// Names it shall be for, sorted; a client's has none.
    pub dns_names: Vec<String>,
    /// Addresses it shall be for, sorted; a client's has none.
    pub ips: Vec<IpAddr>,
}

/// Why a certificate was not given.
#[derive(Debug, thiserror::Error)]
pub enum CsrError {
    /// An admin or an approver said no.
    #[error(
        "the certificate signing request {name} was denied ({reason}: {message}): delete it with \
         'kubectl delete csr {name}' and approve the next one"
    )]
    Denied {
        /// The request.
        name: String,
        /// Why, in a word.
        reason: String,
        /// Why, in a sentence.
        message: String,
    },
    /// The signer could not issue it.
    #[error("the certificate signing request {name} was approved but the signer failed ({reason}: {message})")]
    Failed {
        /// The request.
        name: String,
        /// Why, in a word.
        reason: String,
        /// Why, in a sentence.
        message: String,
    },
    /// The API server does not let these credentials ask.
    #[error(
        "the API server refused to take a certificate signing request: {message}; if these are bootstrap credentials, \
         the token may have expired: 'kubeadm token create --print-join-command' on the control plane makes a new one"
    )]
    Refused {
        /// What the API server said.
        message: String,
    },
    /// A request of that name is there, and it is not ours, or its certificate is past its end: a new key makes a new name.
    #[error("the certificate signing request {name} is of no use: {problem}")]
    Unusable {
        /// The request.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The request could not be made.
    #[error("making the certificate signing request")]
    Make(#[from] rcgen::Error),
}

/// A certificate, or what is known while it is waited for.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Issued(String),
    Waiting,
    Denied { reason: String, message: String },
    Failed { reason: String, message: String },
}

impl Wanted {
    /// What a node is a client with.
    #[must_use]
    pub fn client(node_name: &str) -> Self {
        Self { signer: CLIENT_SIGNER, node_name: node_name.to_owned(), dns_names: Vec::new(), ips: Vec::new() }
    }

    /// `system:node:NAME`.
    #[must_use]
    pub fn common_name(&self) -> String {
        format!("system:node:{}", self.node_name)
    }

    /// The key usages that the signers allow for an ECDSA key (no key encipherment).
    fn usages(&self) -> Vec<String> {
        let purpose = if self.signer == SERVING_SIGNER { "server auth" } else { "client auth" };
        vec!["digital signature".to_owned(), purpose.to_owned()]
    }

    /// The name of the request: a digest of the key and of everything asked for.
    fn name(&self, key: &rcgen::KeyPair) -> String {
        let mut hash = sha2::Sha512_256::new();
        let mut add = |part: &[u8]| {
            // The delimiter is not in the alphabet of the encoding: no two lists of parts read the same.
            hash.update(URL_SAFE_NO_PAD.encode(part));
            hash.update(b"|");
        };
        add(&key.subject_public_key_info());
        add(self.common_name().as_bytes());
        add(b"system:nodes");
        for usage in self.usages() {
            add(usage.as_bytes());
        }
        for name in &self.dns_names {
            add(name.as_bytes());
        }
        for ip in &self.ips {
            add(ip.to_string().as_bytes());
        }
        let prefix = if self.signer == SERVING_SIGNER { "serving-csr-" } else { "node-csr-" };
        // Names of objects are lower case (unlike the kubelet's, which the API server takes for this kind alone).
        format!("{prefix}{}", hex::encode(&hash.finalize()[..20]))
    }

    fn request(&self, key: &rcgen::KeyPair) -> Result<CertificateSigningRequest, rcgen::Error> {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:nodes");
        params.distinguished_name.push(rcgen::DnType::CommonName, self.common_name());
        for name in &self.dns_names {
            params.subject_alt_names.push(rcgen::SanType::DnsName(name.as_str().try_into()?));
        }
        params.subject_alt_names.extend(self.ips.iter().map(|ip| rcgen::SanType::IpAddress(*ip)));
        let pem = params.serialize_request(key)?.pem()?;
        Ok(CertificateSigningRequest {
            metadata: ObjectMeta { name: Some(self.name(key)), ..ObjectMeta::default() },
            spec: CertificateSigningRequestSpec {
                request: ByteString(pem.into_bytes()),
                signer_name: self.signer.to_owned(),
                usages: Some(self.usages()),
                ..CertificateSigningRequestSpec::default()
            },
            status: None,
        })
    }
}

/// Asks for a certificate and waits until it is issued, as PEM. `waiting` hears the request's name once it is known that
/// somebody has to approve it. Failures of the connection are logged and tried again; the request is made anew when it was
/// deleted. Cancel-safe: dropping the future leaves the request in the cluster for the next call with the same key.
///
/// # Errors
/// [`CsrError`]: what trying again does not mend.
pub async fn obtain(
    client: &kube::Client,
    key: &rcgen::KeyPair,
    wanted: &Wanted,
    mut waiting: impl FnMut(&str) + Send,
) -> Result<String, CsrError> {
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let request = wanted.request(key)?;
    let name = request.metadata.name.clone().unwrap_or_default();
    let mut pause = FIRST_PAUSE;
    let mut said = false;
    loop {
        match attempt(&api, &request, &name, key, &mut || {
            if !std::mem::replace(&mut said, true) {
                waiting(&name);
            }
        })
        .await
        {
            Ok(Some(certificate)) => return Ok(certificate),
            // Gone, or the watch ended: look again at once.
            Ok(None) => pause = FIRST_PAUSE,
            Err(Trouble::Final(error)) => return Err(error),
            Err(Trouble::Passing(error)) => {
                tracing::warn!(csr = %name, err = %reason(&error), retry = ?pause, "Could not ask for a certificate yet");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LAST_PAUSE);
            }
        }
    }
}

enum Trouble {
    Final(CsrError),
    Passing(kube::Error),
}

impl From<kube::Error> for Trouble {
    fn from(error: kube::Error) -> Self {
        match &error {
            // 401 and 403 do not mend by themselves: an expired token, a missing ClusterRoleBinding.
            kube::Error::Api(status) if matches!(status.code, 400 | 401 | 403 | 422) => {
                Self::Final(CsrError::Refused { message: status.message.clone() })
            }
            _ => Self::Passing(error),
        }
    }
}

/// What the API server, or the way to it, said: the layers of the client in between are left out.
pub(super) fn reason(error: &kube::Error) -> String {
    let kube::Error::Service(service) = error else { return describe(error) };
    // hyper's own layer says only in which phase it was.
    let cause = service.source().filter(|_| service.is::<hyper_util::client::legacy::Error>());
    cause.map_or_else(|| describe(service.as_ref()), describe)
}

/// An error with its causes in one line.
pub(super) fn describe(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

async fn attempt(
    api: &Api<CertificateSigningRequest>,
    request: &CertificateSigningRequest,
    name: &str,
    key: &rcgen::KeyPair,
    waiting: &mut (dyn FnMut() + Send),
) -> Result<Option<String>, Trouble> {
    let current = match api.create(&PostParams::default(), request).await {
        Ok(created) => {
            tracing::info!(csr = %name, signer = %request.spec.signer_name, "Certificate signing request created");
            created
        }
        Err(kube::Error::Api(status)) if status.code == 409 => {
            let Some(found) = api.get_opt(name).await? else { return Ok(None) };
            check_ours(&found, request, key, Timestamp::now())
                .map_err(|problem| Trouble::Final(CsrError::Unusable { name: name.to_owned(), problem }))?;
            found
        }
        Err(error) => return Err(error.into()),
    };
    if let Some(done) = settle(name, &current)? {
        return Ok(Some(done));
    }
    let uid = current.metadata.uid.clone();
    // Client requests are approved within a second where somebody approves them at all.
    let version = current.metadata.resource_version.clone().unwrap_or_default();
    let params = WatchParams::default().fields(&format!("metadata.name={name}")).timeout(WATCH_SECONDS);
    let mut events = api.watch(&params, &version).await?.boxed();
    let patience = tokio::time::sleep(Duration::from_secs(3));
    tokio::pin!(patience);
    let mut patient = true;
    loop {
        let event = tokio::select! {
            // Cancel-safe: an event is taken or stays in the stream.
            event = events.try_next() => event?,
            () = &mut patience, if patient => {
                patient = false;
                waiting();
                continue;
            }
        };
        match event {
            Some(WatchEvent::Added(changed) | WatchEvent::Modified(changed)) => {
                if changed.metadata.uid != uid {
                    return Ok(None);
                }
                if let Some(done) = settle(name, &changed)? {
                    return Ok(Some(done));
                }
            }
            Some(WatchEvent::Deleted(_)) => {
                tracing::warn!(csr = %name, "The certificate signing request was deleted, asking again");
                return Ok(None);
            }
            Some(WatchEvent::Bookmark(_)) => {}
            // Such as 410: the version we watch from is gone.
            Some(WatchEvent::Error(_)) | None => return Ok(None),
        }
    }
}

fn settle(name: &str, request: &CertificateSigningRequest) -> Result<Option<String>, Trouble> {
    let name = name.to_owned();
    match verdict(request) {
        Verdict::Issued(certificate) => Ok(Some(certificate)),
        Verdict::Waiting => Ok(None),
        Verdict::Denied { reason, message } => Err(Trouble::Final(CsrError::Denied { name, reason, message })),
        Verdict::Failed { reason, message } => Err(Trouble::Final(CsrError::Failed { name, reason, message })),
    }
}

/// What became of a request.
fn verdict(request: &CertificateSigningRequest) -> Verdict {
    let Some(status) = &request.status else { return Verdict::Waiting };
    let condition = |kind: &str| status.conditions.iter().flatten().find(|condition| condition.type_ == kind);
    let why = |condition: &k8s_openapi::api::certificates::v1::CertificateSigningRequestCondition| {
        (condition.reason.clone().unwrap_or_default(), condition.message.clone().unwrap_or_default())
    };
    if let Some(condition) = condition("Denied") {
        let (reason, message) = why(condition);
        return Verdict::Denied { reason, message };
    }
    if let Some(condition) = condition("Failed") {
        let (reason, message) = why(condition);
        return Verdict::Failed { reason, message };
    }
    match &status.certificate {
        Some(certificate) if condition("Approved").is_some() && !certificate.0.is_empty() => {
            Verdict::Issued(String::from_utf8_lossy(&certificate.0).into_owned())
        }
        _ => Verdict::Waiting,
    }
}

/// Whether a request that was there already is the one we would make (kubelet's `ensureCompatible`).
fn check_ours(
    found: &CertificateSigningRequest,
    ours: &CertificateSigningRequest,
    key: &rcgen::KeyPair,
    now: Timestamp,
) -> Result<(), String> {
    if found.spec.signer_name != ours.spec.signer_name {
        return Err(format!("it is for the signer {}", found.spec.signer_name));
    }
    let der = CertificateSigningRequestDer::from_pem_slice(&found.spec.request.0).map_err(|error| error.to_string())?;
    let (_, parsed) = X509CertificationRequest::from_der(&der).map_err(|error| error.to_string())?;
    if parsed.certification_request_info.subject_pki.raw != key.subject_public_key_info() {
        return Err("it is for another key".to_owned());
    }
    if let Verdict::Issued(certificate) = verdict(found) {
        for der in pair::certificates(certificate.as_bytes()).map_err(|error| error.to_string())? {
            let end = pair::facts(&der).map_err(|error| error.to_string())?.not_after;
            if end <= now {
                return Err(format!("its certificate expired at {end}"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::certificates::v1::{CertificateSigningRequestCondition, CertificateSigningRequestStatus};

    use super::*;

    fn with(conditions: &[&str], certificate: Option<&str>) -> CertificateSigningRequest {
        let condition = |kind: &&str| CertificateSigningRequestCondition {
            type_: (*kind).to_owned(),
            status: "True".to_owned(),
            reason: Some("Why".to_owned()),
            message: Some("because".to_owned()),
            ..CertificateSigningRequestCondition::default()
        };
        CertificateSigningRequest {
            status: Some(CertificateSigningRequestStatus {
                conditions: Some(conditions.iter().map(condition).collect()),
                certificate: certificate.map(|text| ByteString(text.as_bytes().to_vec())),
            }),
            ..CertificateSigningRequest::default()
        }
    }

    #[test]
    fn a_request_is_settled_by_its_conditions() {
        let (reason, message) = ("Why".to_owned(), "because".to_owned());
        for (case, request, expected) in [
            ("nothing yet", CertificateSigningRequest::default(), Verdict::Waiting),
            ("approved, not signed yet", with(&["Approved"], None), Verdict::Waiting),
            ("signed before it is approved cannot be", with(&[], Some("pem")), Verdict::Waiting),
            ("issued", with(&["Approved"], Some("pem")), Verdict::Issued("pem".to_owned())),
            ("denied", with(&["Denied"], None), Verdict::Denied { reason: reason.clone(), message: message.clone() }),
            ("failed after approval", with(&["Approved", "Failed"], None), Verdict::Failed { reason, message }),
        ] {
            assert_eq!(verdict(&request), expected, "{case}");
        }
    }

    #[test]
    fn the_name_depends_on_the_key_and_on_all_that_is_asked_for() {
        let (key, other) = (rcgen::KeyPair::generate().unwrap(), rcgen::KeyPair::generate().unwrap());
        let wanted = Wanted::client("edge-1");
        let name = wanted.name(&key);
        assert_eq!(name, Wanted::client("edge-1").name(&key), "a restart asks for the same");
        assert!(name.starts_with("node-csr-") && name.len() <= 63, "{name}");
        let serving = |ip: &str| Wanted {
            signer: SERVING_SIGNER,
            ips: vec![ip.parse().unwrap()],
            dns_names: vec!["edge-1".to_owned()],
            ..wanted.clone()
        };
        let names = [
            wanted.name(&other),
            Wanted::client("edge-2").name(&key),
            serving("192.0.2.1").name(&key),
            serving("192.0.2.2").name(&key),
        ];
        for (i, one) in names.iter().enumerate() {
            assert!(*one != name && !names[..i].contains(one), "{names:?}");
        }
    }

    #[test]
    fn a_request_found_in_the_cluster_must_be_for_our_key() {
        let (key, other) = (rcgen::KeyPair::generate().unwrap(), rcgen::KeyPair::generate().unwrap());
        let wanted = Wanted::client("edge-1");
        let ours = wanted.request(&key).unwrap();
        let now = Timestamp::now();
        assert_eq!(check_ours(&ours, &ours, &key, now), Ok(()));
        assert!(check_ours(&ours, &ours, &other, now).is_err());
        let mut serving = ours.clone();
        serving.spec.signer_name = SERVING_SIGNER.to_owned();
        assert!(check_ours(&serving, &ours, &key, now).is_err());
        let mut issued = with(&["Approved"], None);
        issued.spec = ours.spec.clone();
        let certificate = rcgen::CertificateParams::default().self_signed(&key).unwrap();
        let status = issued.status.as_mut().unwrap();
        status.certificate = Some(ByteString(certificate.pem().into_bytes()));
        assert_eq!(check_ours(&issued, &ours, &key, now), Ok(()));
        let later: Timestamp = "9000-01-01T00:00:00Z".parse().unwrap();
        assert!(check_ours(&issued, &ours, &key, later).unwrap_err().contains("expired"));
    }
}
