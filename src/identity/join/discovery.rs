//! Finds the cluster behind an address and a token, and makes sure that it is the one that was meant.
//!
//! In: `HOST:PORT`, a token, pins; or a kubeconfig-like file. Out: a [`ClusterInfo`] that can be trusted. As kubeadm:
//! `cluster-info` is read over TLS that nobody has verified, its signature is checked with the token's secret, its
//! authority with the pins, and then it's read again over TLS that is verified with that authority, and must be the same.
//! Sends no secret: nothing but anonymous GETs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::config::{Cluster, Kubeconfig};

use super::jws::{self, JwsError};
use super::probe::{Recorder, Source, Trust, download, skew_warning};
use super::token::{BootstrapToken, Pins};
use crate::identity::pair::{self, Facts};
use crate::identity::{IdentityError, kubeconfig};

/// A cluster that can be trusted.
#[derive(Debug, Clone)]
pub struct ClusterInfo {
    /// Its server and authority, embedded.
    pub cluster: Cluster,
    /// PEM of its authorities.
    pub authority_pem: Vec<u8>,
    /// What is to be said although it worked.
    pub warnings: Vec<String>,
}

/// Why a cluster cannot be joined: each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// Nobody answers.
    #[error(
        "the API server at {endpoint} could not be reached within {}: {problem}. Is the address right, and does a \
         firewall let this machine through?",
        seconds(*.timeout)
    )]
    Unreachable {
        /// Who was asked.
        endpoint: String,
        /// For how long.
        timeout: Duration,
        /// The last failure.
        problem: String,
    },
    /// It answers, and refuses.
    #[error("{endpoint} does not show the cluster-info ConfigMap of kube-public ({problem}). {advice}")]
    NoClusterInfo {
        /// Who was asked.
        endpoint: String,
        /// Its words.
        problem: String,
        /// What to do.
        advice: &'static str,
    },
    /// No signature by this token.
    #[error(
        "token id {id:?} is invalid for this cluster or it has expired. Use \"kubeadm token create \
         --print-join-command\" on the control-plane node to create a new valid token"
    )]
    NoSignature {
        /// The token's public half.
        id: String,
    },
    /// A signature that does not fit.
    #[error(
        "failed to verify the signature of the cluster-info ConfigMap ({problem}), can't trust this API server: the \
         token's secret is wrong, or {endpoint} is not the server you mean"
    )]
    Signature {
        /// Who was asked.
        endpoint: String,
        /// What does not fit.
        problem: JwsError,
    },
    /// The kubeconfig in it is none.
    #[error("the kubeconfig in {place} cannot be used: {problem}")]
    Kubeconfig {
        /// The ConfigMap or file.
        place: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The authority is not the pinned one.
    #[error(
        "the authority of the cluster is not the one that --discovery-token-ca-cert-hash pins: none of the public keys \
         {found:?} are pinned. If you trust {endpoint}, take the hash from 'kubeadm token create --print-join-command' \
         on the control plane"
    )]
    Pin {
        /// Who was asked.
        endpoint: String,
        /// The pins of what was found.
        found: Vec<String>,
    },
    /// TLS fails with the authority of the cluster.
    #[error("the certificate of {endpoint} is not accepted with the cluster's own authority: {problem}. {advice}")]
    Tls {
        /// Who was asked.
        endpoint: String,
        /// What TLS said.
        problem: String,
        /// What to do.
        advice: String,
    },
    /// It changed between the two readings.
    #[error(
        "the second kubeconfig from the cluster-info ConfigMap (using validated TLS) was different from the first: \
         somebody is between this machine and {endpoint}, or the cluster is being changed; try again"
    )]
    Changed {
        /// Who was asked.
        endpoint: String,
    },
    /// The discovery file cannot be used.
    #[error(transparent)]
    File(#[from] IdentityError),
    /// A discovery file cannot be downloaded.
    #[error("downloading {url}: {problem}")]
    Download {
        /// Its address.
        url: String,
        /// What happened.
        problem: String,
    },
}

pub(super) fn seconds(duration: Duration) -> String {
    format!("{} s", duration.as_secs())
}

/// What discovery starts from.
#[derive(Debug, Clone)]
pub struct TokenDiscovery {
    /// `HOST:PORT`.
    pub endpoint: String,
    /// Verifies the signature.
    pub token: BootstrapToken,
    /// Authorities that are trusted; empty trusts the signature alone.
    pub pins: Pins,
    /// How long an API server that does not answer is waited for.
    pub timeout: Duration,
}

/// Finds the cluster by a token. `progress` hears why it takes long.
///
/// # Errors
/// [`DiscoveryError`].
pub async fn by_token(
    discovery: &TokenDiscovery,
    mut progress: impl FnMut(&str) + Send,
) -> Result<ClusterInfo, DiscoveryError> {
    let TokenDiscovery { endpoint, token, pins, timeout } = discovery;
    let place = "the cluster-info ConfigMap";
    let recorder = Arc::new(Recorder::default());
    let client = Source::new(endpoint, Trust::Record(recorder.clone()))?;
    let first = client.cluster_info(token, *timeout, &mut progress).await?;
    let text = signed_kubeconfig(&first.config_map, token, endpoint)?;
    let cluster = sole_cluster(&text, place)?;
    let authority_pem = authority(&cluster, place)?;
    let mut warnings = Vec::new();
    if let Some(warning) = first.skew.and_then(skew_warning) {
        warnings.push(warning);
    }
    if pins.is_empty() {
        // As kubeadm: who pins nothing trusts whoever knows the token.
        return Ok(ClusterInfo { cluster, authority_pem, warnings });
    }
    let chain = pair::certificates(&authority_pem)
        .map_err(|error| DiscoveryError::Kubeconfig { place: place.to_owned(), problem: error.to_string() })?;
    pins.check_any(&chain).map_err(|found| DiscoveryError::Pin { endpoint: endpoint.clone(), found })?;

    let client = Source::new(endpoint, Trust::Authority(chain.iter().map(|der| der.to_vec()).collect()))?;
    let second = client.cluster_info(token, *timeout, &mut progress).await.map_err(|error| match error {
        DiscoveryError::Tls { endpoint, problem, .. } => {
            let advice = tls_advice(recorder.leaf().as_ref(), &endpoint, Timestamp::now());
            DiscoveryError::Tls { endpoint, problem, advice }
        }
        error => error,
    })?;
    if second.config_map.data.as_ref().and_then(|data| data.get("kubeconfig")) != Some(&text) {
        return Err(DiscoveryError::Changed { endpoint: endpoint.clone() });
    }
    Ok(ClusterInfo { cluster, authority_pem, warnings })
}

/// Finds the cluster by a file or an `https` URL of one; its credentials, if it has any, stay in it.
///
/// # Errors
/// [`DiscoveryError`].
pub async fn by_file(
    place: &str,
    timeout: Duration,
    mut progress: impl FnMut(&str) + Send,
) -> Result<(ClusterInfo, Kubeconfig), DiscoveryError> {
    let file = if place.starts_with("https://") {
        let text = download(place).await?;
        let wrong = |error: kube::config::KubeconfigError| DiscoveryError::Kubeconfig {
            place: place.to_owned(),
            problem: error.to_string(),
        };
        Kubeconfig::from_yaml(&text).map_err(wrong)?
    } else {
        // One like that of cluster-info will do, which has neither contexts nor users.
        if !Path::new(place).exists() {
            return Err(IdentityError::NoKubeconfig { path: PathBuf::from(place) }.into());
        }
        Kubeconfig::read_from(Path::new(place))
            .map_err(|error| DiscoveryError::Kubeconfig { place: place.to_owned(), problem: error.to_string() })?
    };
    let mut cluster = current_cluster(&file, place)?;
    let host = cluster.server.clone().unwrap_or_default();
    let endpoint = host.trim_start_matches("https://").trim_end_matches('/').to_owned();
    let mut warnings = Vec::new();
    // Without one, the machine's own authorities are trusted and `cluster-info` says the rest.
    let authority_pem = authority(&cluster, place).unwrap_or_default();
    let trust = if authority_pem.is_empty() {
        Trust::Machine
    } else {
        let chain = pair::certificates(&authority_pem)
            .map_err(|error| DiscoveryError::Kubeconfig { place: place.to_owned(), problem: error.to_string() })?;
        Trust::Authority(chain.iter().map(|der| der.to_vec()).collect())
    };
    let source = Source::new(&endpoint, trust)?;
    let authority_pem = match source.any_cluster_info(timeout, &mut progress).await {
        Ok(found) => {
            let text = found.data.as_ref().and_then(|data| data.get("kubeconfig")).cloned().unwrap_or_default();
            let refreshed = sole_cluster(&text, "the cluster-info ConfigMap").ok();
            match refreshed {
                Some(refreshed) if authority_pem.is_empty() => authority(&refreshed, "the cluster-info ConfigMap")?,
                Some(refreshed) if refreshed.server != cluster.server => {
                    warnings.push(format!(
                        "the API server {host} in use is different from {} in the cluster-info ConfigMap",
                        refreshed.server.unwrap_or_default()
                    ));
                    authority_pem
                }
                _ => authority_pem,
            }
        }
        // The admin does not show it to everybody; TLS was verified.
        Err(DiscoveryError::NoClusterInfo { .. }) if !authority_pem.is_empty() => authority_pem,
        Err(error) => return Err(error),
    };
    let embedded = kubeconfig::cluster(&host, &authority_pem);
    cluster.certificate_authority = None;
    cluster.certificate_authority_data = embedded.certificate_authority_data;
    Ok((ClusterInfo { cluster, authority_pem, warnings }, file))
}

/// The kubeconfig of `cluster-info`, once its signature is verified.
fn signed_kubeconfig(found: &ConfigMap, token: &BootstrapToken, endpoint: &str) -> Result<String, DiscoveryError> {
    let data = found.data.clone().unwrap_or_default();
    let Some(text) = data.get("kubeconfig").filter(|text| !text.is_empty()) else {
        return Err(DiscoveryError::NoClusterInfo {
            endpoint: endpoint.to_owned(),
            problem: "there is no kubeconfig key in it".to_owned(),
            advice: "This API server isn't set up for token bootstrapping",
        });
    };
    let Some(signature) = data.get(&signature_key(token)).filter(|signature| !signature.is_empty()) else {
        return Err(DiscoveryError::NoSignature { id: token.id().to_owned() });
    };
    jws::verify(signature, text, token)
        .map_err(|problem| DiscoveryError::Signature { endpoint: endpoint.to_owned(), problem })?;
    Ok(text.clone())
}

/// The key of `cluster-info` that holds the signature by this token.
pub(super) fn signature_key(token: &BootstrapToken) -> String {
    format!("jws-kubeconfig-{}", token.id())
}

/// The cluster of a kubeconfig that may have no context: that of `cluster-info` has none.
fn sole_cluster(text: &str, place: &str) -> Result<Cluster, DiscoveryError> {
    let wrong = |problem: String| DiscoveryError::Kubeconfig { place: place.to_owned(), problem };
    let file = Kubeconfig::from_yaml(text).map_err(|error| wrong(error.to_string()))?;
    current_cluster(&file, place)
}

fn current_cluster(file: &Kubeconfig, place: &str) -> Result<Cluster, DiscoveryError> {
    let wrong = |problem: &str| DiscoveryError::Kubeconfig { place: place.to_owned(), problem: problem.to_owned() };
    let context = file.current_context.as_deref().filter(|name| !name.is_empty());
    let named = context.and_then(|name| file.contexts.iter().find(|context| context.name == name));
    let name = named.and_then(|named| named.context.as_ref()).map(|context| context.cluster.as_str());
    let found = match name {
        Some(name) => file.clusters.iter().find(|cluster| cluster.name == name),
        None => file.clusters.first(),
    };
    let cluster = found.and_then(|named| named.cluster.clone()).ok_or_else(|| wrong("it has no cluster"))?;
    match &cluster.server {
        Some(server) if server.starts_with("https://") => Ok(cluster),
        _ => Err(wrong("its cluster has no https server")),
    }
}

/// The authority of a cluster, from its data or file.
fn authority(cluster: &Cluster, place: &str) -> Result<Vec<u8>, DiscoveryError> {
    use base64::Engine as _;
    let wrong = |problem: String| DiscoveryError::Kubeconfig { place: place.to_owned(), problem };
    let data = cluster.certificate_authority_data.as_deref().filter(|data| !data.is_empty());
    let pem = match (data, &cluster.certificate_authority) {
        (Some(data), _) => base64::engine::general_purpose::STANDARD
            .decode(data.trim())
            .map_err(|error| wrong(format!("its certificate-authority-data is not base64: {error}")))?,
        (None, Some(path)) => std::fs::read(path).map_err(|error| wrong(format!("{path}: {error}")))?,
        (None, None) => return Err(wrong("it has no certificate-authority-data".to_owned())),
    };
    match pair::certificates(&pem) {
        Ok(chain) if !chain.is_empty() => Ok(pem),
        Ok(_) => Err(wrong("its certificate-authority-data has no certificate".to_owned())),
        Err(error) => Err(wrong(error.to_string())),
    }
}

/// Why TLS may have failed although the authority is right.
fn tls_advice(leaf: Option<&Facts>, endpoint: &str, now: Timestamp) -> String {
    let Some(leaf) = leaf else { return "Is a proxy between this machine and it?".to_owned() };
    if now < leaf.not_before {
        return format!("It is valid from {} on, and this machine's clock says {now}: set the clock", leaf.not_before);
    }
    if now >= leaf.not_after {
        return format!(
            "It ended at {}, and this machine's clock says {now}: set the clock, or renew the certificates of the \
             control plane ('kubeadm certs renew all')",
            leaf.not_after
        );
    }
    let host = endpoint.rsplit_once(':').map_or(endpoint, |(host, _)| host).trim_matches(['[', ']']);
    let names = leaf.dns_names.iter().cloned().chain(leaf.ips.iter().map(ToString::to_string)).collect::<Vec<_>>();
    if !names.iter().any(|name| name == host) {
        return format!("It is for {}, not for {host}: use one of these addresses", names.join(", "));
    }
    "Is a proxy between this machine and it?".to_owned()
}

#[cfg(test)]
mod tests;
