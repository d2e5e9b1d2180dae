//! Asks an API server for `cluster-info`, which anybody may see, whether or not its certificate can be verified yet.
//!
//! In: an address and whom to trust. Out: the ConfigMap, or why not; failures that may pass are tried again for a time.
//! Judges no signature and no pin. Answers are bounded: the server may be anybody.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Config;
use kube::client::{Body, ConfigExt};
use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use tokio::time::Instant;

use super::discovery::{DiscoveryError, seconds, signature_key};
use super::token::BootstrapToken;
use crate::identity::csr::reason;
use crate::identity::pair::{self, Facts};
use crate::identity::transport::{Transport, TransportOptions};
use crate::identity::{IdentityError, access};

/// `cluster-info` is a few KiB; more is not read from a server that nobody has verified.
const MAX_ANSWER_BYTES: usize = 1 << 20;
/// kubeadm's pause between attempts.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// A token's signature is written within seconds of the token.
const SIGNATURE_PATIENCE: Duration = Duration::from_secs(30);
/// Clocks that differ by more make certificates look expired or not valid yet, and tokens refused.
const MAX_SKEW: Duration = Duration::from_secs(60);

/// How far this machine's clock is from the server's, from its `Date` header; positive is ahead.
pub(super) fn skew(date: &str, now: Timestamp) -> Option<jiff::SignedDuration> {
    let server = jiff::fmt::rfc2822::parse(date).ok()?.timestamp();
    Some(now.duration_since(server))
}

pub(super) fn skew_warning(skew: jiff::SignedDuration) -> Option<String> {
    if skew.unsigned_abs() <= MAX_SKEW {
        return None;
    }
    let side = if skew.is_negative() { "behind" } else { "ahead of" };
    Some(format!(
        "this machine's clock is {} s {side} the API server's: certificates may look expired or not valid yet, set it",
        skew.unsigned_abs().as_secs()
    ))
}

/// Which certificates of the server are accepted.
pub(super) enum Trust {
    /// Any; the chain is remembered.
    Record(Arc<Recorder>),
    /// Those of these authorities.
    Authority(Vec<Vec<u8>>),
    /// Those of the machine's authorities.
    Machine,
}

/// An API server that is asked for what everybody may see.
pub(super) struct Source {
    endpoint: String,
    client: kube::Client,
}

/// `cluster-info`, and how far the clocks are apart.
pub(super) struct Found {
    pub(super) config_map: ConfigMap,
    pub(super) skew: Option<jiff::SignedDuration>,
}

impl Source {
    pub(super) fn new(endpoint: &str, trust: Trust) -> Result<Self, DiscoveryError> {
        let url = format!("https://{endpoint}");
        let uri = url.parse().map_err(|_| DiscoveryError::NoClusterInfo {
            endpoint: endpoint.to_owned(),
            problem: "it is no HOST:PORT".to_owned(),
            advice: "Give the address that 'kubeadm token create --print-join-command' prints",
        })?;
        let mut config = Config::new(uri);
        let recorder = match trust {
            Trust::Record(recorder) => Some(recorder),
            Trust::Authority(authorities) => {
                config.root_cert = Some(authorities);
                None
            }
            Trust::Machine => None,
        };
        let mut tls = config.rustls_client_config().map_err(|source| IdentityError::Client { source })?;
        if let Some(recorder) = recorder {
            tls.dangerous().set_certificate_verifier(recorder);
        }
        let transport = Transport::new(TransportOptions { tls, server_name: None, proxy: None }, None);
        let client = access::anonymous(&config, transport)?;
        Ok(Self { endpoint: endpoint.to_owned(), client })
    }

    /// `cluster-info` with a signature by this token, waited for.
    pub(super) async fn cluster_info(
        &self,
        token: &BootstrapToken,
        timeout: Duration,
        progress: &mut (impl FnMut(&str) + Send),
    ) -> Result<Found, DiscoveryError> {
        let start = Instant::now();
        loop {
            let problem = match self.attempt().await {
                Ok(found) => {
                    let signed =
                        found.config_map.data.as_ref().is_some_and(|data| data.contains_key(&signature_key(token)));
                    if signed || start.elapsed() >= SIGNATURE_PATIENCE.min(timeout) {
                        return Ok(found);
                    }
                    format!("there is no signature by the token {} yet", token.id())
                }
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing(problem)) => problem,
            };
            self.pause(start, timeout, problem, progress).await?;
        }
    }

    pub(super) async fn any_cluster_info(
        &self,
        timeout: Duration,
        progress: &mut (impl FnMut(&str) + Send),
    ) -> Result<ConfigMap, DiscoveryError> {
        let start = Instant::now();
        loop {
            match self.attempt().await {
                Ok(found) => return Ok(found.config_map),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing(problem)) => self.pause(start, timeout, problem, progress).await?,
            }
        }
    }

    async fn pause(
        &self,
        start: Instant,
        timeout: Duration,
        problem: String,
        progress: &mut (impl FnMut(&str) + Send),
    ) -> Result<(), DiscoveryError> {
        let left = timeout.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Err(DiscoveryError::Unreachable { endpoint: self.endpoint.clone(), timeout, problem });
        }
        progress(&format!("{}: {problem}; trying again for {}", self.endpoint, seconds(left)));
        tokio::time::sleep(RETRY_INTERVAL.min(left)).await;
        Ok(())
    }

    async fn attempt(&self) -> Result<Found, Failure> {
        let request = http::Request::get("/api/v1/namespaces/kube-public/configmaps/cluster-info")
            .body(Body::empty())
            .expect("a constant path is a valid request");
        let answer = self.client.send(request).await.map_err(|error| self.classify(&error))?;
        let (parts, body) = answer.into_parts();
        let date = parts.headers.get(http::header::DATE).and_then(|date| date.to_str().ok());
        let skew = date.and_then(|date| skew(date, Timestamp::now()));
        let bytes = Limited::new(body, MAX_ANSWER_BYTES)
            .collect()
            .await
            .map_err(|error| Failure::Passing(error.to_string()))?
            .to_bytes();
        let refused = |problem: String, advice| {
            Failure::Final(DiscoveryError::NoClusterInfo { endpoint: self.endpoint.clone(), problem, advice })
        };
        match parts.status.as_u16() {
            200 => match serde_json::from_slice(&bytes) {
                Ok(config_map) => Ok(Found { config_map, skew }),
                Err(error) => Err(refused(format!("the answer is no ConfigMap: {error}"), "Is it an API server?")),
            },
            401 | 403 => Err(refused(
                parts.status.to_string(),
                "It is not shown to anonymous clients: join with --discovery-file instead",
            )),
            404 => Err(refused(
                parts.status.to_string(),
                "This cluster was not made by kubeadm, or its bootstrap-token add-on is missing ('kubeadm init phase \
                 bootstrap-token'): join with --discovery-file, or give this node a kubeconfig",
            )),
            _ => Err(Failure::Passing(parts.status.to_string())),
        }
    }

    fn classify(&self, error: &kube::Error) -> Failure {
        let problem = reason(error);
        // rustls' words; the error comes through three layers of boxes.
        if problem.contains("invalid peer certificate") {
            let (endpoint, advice) = (self.endpoint.clone(), String::new());
            return Failure::Final(DiscoveryError::Tls { endpoint, problem, advice });
        }
        Failure::Passing(problem)
    }
}

enum Failure {
    Final(DiscoveryError),
    Passing(String),
}

/// Reads a discovery file from an `https` URL.
pub(super) async fn download(url: &str) -> Result<String, DiscoveryError> {
    let failed = |problem: String| DiscoveryError::Download { url: url.to_owned(), problem };
    let rest = url.trim_start_matches("https://");
    let (endpoint, path) = rest.split_once('/').unwrap_or((rest, ""));
    let source = Source::new(endpoint, Trust::Machine)?;
    let request =
        http::Request::get(format!("/{path}")).body(Body::empty()).map_err(|error| failed(error.to_string()))?;
    let answer = source.client.send(request).await.map_err(|error| failed(reason(&error)))?;
    if !answer.status().is_success() {
        return Err(failed(answer.status().to_string()));
    }
    let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await;
    let bytes = body.map_err(|error| failed(error.to_string()))?.to_bytes();
    String::from_utf8(bytes.into()).map_err(|_| failed("it is not UTF-8".to_owned()))
}

/// Accepts any certificate and remembers it; that the server has its key is still checked.
#[derive(Debug)]
pub(super) struct Recorder {
    provider: CryptoProvider,
    leaf: Mutex<Option<Facts>>,
}

impl Default for Recorder {
    fn default() -> Self {
        Self { provider: rustls::crypto::ring::default_provider(), leaf: Mutex::default() }
    }
}

impl Recorder {
    pub(super) fn leaf(&self) -> Option<Facts> {
        self.leaf.lock().clone()
    }
}

impl ServerCertVerifier for Recorder {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        *self.leaf.lock() = pair::facts(end_entity).ok();
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
