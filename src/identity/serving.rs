//! The certificate that the kubelet API is served with: files of the admin's, one signed by the cluster, or one of our own.
//!
//! In: settings, and the node's addresses as they change. Out: a resolver for rustls whose certificate is replaced under
//! it, and a [`Notice`] when somebody has to approve a request. Until the cluster has signed one, a self-signed certificate
//! is served: clients that do not verify (the API server by default) work at once.
//! Listens on nothing.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::NodeAddress;
use parking_lot::RwLock;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::csr::{self, CsrError, SERVING_SIGNER, Wanted};
use super::error::IdentityError;
use super::kubeconfig::CertificateFiles;
use super::pair::{Facts, Pair};
use super::rotation;
use super::store::{PairStore, make_private_dir};

/// How often certificate files that others replace are looked at.
const FILES_PERIOD: Duration = Duration::from_secs(60);
/// Life of a self-signed certificate: the kubelet's, a year; made anew at a start within the last tenth of it.
const SELF_SIGNED_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);
/// Pauses after a failed request double from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LAST_PAUSE: Duration = Duration::from_secs(300);

/// Something the node's users should hear: an Event on the Node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Whether it is a warning.
    pub warning: bool,
    /// The reason, in the form of Events.
    pub reason: &'static str,
    /// What to know and what to do.
    pub message: String,
}

/// Hears notices. Called seldom and must not block.
pub type Notify = Arc<dyn Fn(Notice) + Send + Sync>;

/// Where the serving certificate comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServingSource {
    /// `tlsCertFile` and `tlsPrivateKeyFile`.
    Files(CertificateFiles),
    /// `serverTLSBootstrap`: the cluster signs it.
    Cluster,
    /// We sign it.
    SelfSigned,
}

impl ServingSource {
    /// As the settings say: files go first, as in the kubelet. Without a cluster nobody signs.
    #[must_use]
    pub fn new(config: &crate::config::ServerConfig, in_cluster: InCluster) -> Self {
        match (&config.tls_cert_file, &config.tls_private_key_file) {
            (Some(certificate), Some(key)) => {
                Self::Files(CertificateFiles { certificate: certificate.clone(), key: key.clone() })
            }
            _ if config.tls_bootstrap && in_cluster == InCluster::Yes => Self::Cluster,
            _ => Self::SelfSigned,
        }
    }
}

/// Whether there is a cluster to sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InCluster {
    /// There is.
    Yes,
    /// A standalone node.
    No,
}

/// What keeps the certificate fresh.
pub struct Keeper {
    /// Who signs it; `None` is a standalone node.
    pub client: Option<kube::Client>,
    /// The node's addresses (`status.addresses`), whenever they change.
    pub addresses: watch::Receiver<Vec<NodeAddress>>,
    /// Who hears that a request waits for approval.
    pub notify: Notify,
}

/// The certificate. Clones share it.
#[derive(Debug, Clone)]
pub struct ServingCertificate {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    source: ServingSource,
    node_name: String,
    store: PairStore,
    shown: RwLock<Pair>,
}

impl ResolvesServerCert for Inner {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.shown.read().key.clone())
    }
}

impl ServingCertificate {
    /// Reads or makes the certificate to begin with: the files, the one that the cluster signed last, or a self-signed one
    /// that is kept in `pki_dir` so that clients see the same after a restart. Does file IO.
    ///
    /// # Errors
    /// When the files cannot be used, or ours cannot be written.
    pub fn open(
        source: ServingSource,
        pki_dir: &Path,
        node_name: &str,
        addresses: &[NodeAddress],
    ) -> Result<Self, IdentityError> {
        let now = Timestamp::now();
        let store = PairStore::new(pki_dir, "wasilet-server");
        let shown = match &source {
            ServingSource::Files(files) => files.read()?,
            ServingSource::Cluster => match store.current() {
                Ok(Some(pair)) if rotation::is_valid(&pair.facts, now) => pair,
                Ok(_) => self_signed(pki_dir, node_name, addresses, now)?,
                Err(error) => {
                    tracing::warn!(err = %error.in_full(), "Could not use the serving certificate, asking for another");
                    self_signed(pki_dir, node_name, addresses, now)?
                }
            },
            ServingSource::SelfSigned => self_signed(pki_dir, node_name, addresses, now)?,
        };
        let inner = Inner { source, node_name: node_name.to_owned(), store, shown: RwLock::new(shown) };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// For [`rustls::ServerConfig`]: what it gives to each handshake is the newest certificate.
    #[must_use]
    pub fn resolver(&self) -> Arc<dyn ResolvesServerCert> {
        self.inner.clone()
    }

    /// When it ends, for metrics.
    #[must_use]
    pub fn certificate_end(&self) -> Timestamp {
        self.inner.shown.read().facts.not_after
    }

    /// Keeps it fresh until `stop`: follows the files, or asks the cluster, again before its end and when the node's
    /// addresses are no longer those of the certificate.
    pub async fn keep(self, keeper: Keeper, stop: CancellationToken) {
        let work = async {
            match (&self.inner.source, &keeper.client) {
                (ServingSource::Files(files), _) => self.follow_files(files).await,
                (ServingSource::Cluster, Some(client)) => {
                    self.ask_forever(client, keeper.addresses.clone(), &keeper.notify).await;
                }
                _ => std::future::pending::<()>().await,
            }
        };
        tokio::select! {
            // Dropping a request is safe: its key is on disk and the next start asks for the same.
            () = work => {}
            () = stop.cancelled() => {}
        }
    }

    async fn follow_files(&self, files: &CertificateFiles) {
        loop {
            tokio::time::sleep(FILES_PERIOD).await;
            let files = files.clone();
            match tokio::task::spawn_blocking(move || files.read()).await {
                Ok(Ok(pair)) => {
                    let same = self.inner.shown.read().key.cert == pair.key.cert;
                    if !same {
                        tracing::info!(notAfter = %pair.facts.not_after, "Read a new serving certificate");
                        *self.inner.shown.write() = pair;
                    }
                }
                // Half of a replacement may be seen: the old pair stays until both files fit.
                Ok(Err(error)) => {
                    tracing::warn!(err = %error.in_full(), "Could not read the serving certificate again");
                }
                Err(_) => return,
            }
        }
    }

    async fn ask_forever(
        &self,
        client: &kube::Client,
        mut addresses: watch::Receiver<Vec<NodeAddress>>,
        notify: &Notify,
    ) {
        let mut pause = FIRST_PAUSE;
        loop {
            let Some(wanted) = serving_request(&self.inner.node_name, &addresses.borrow_and_update()) else {
                // The signer wants an address at least; before the node has one there is nothing to ask for.
                changed(&mut addresses).await;
                continue;
            };
            let request = self.wait_and_request(client, &wanted, self.renewal_deadline(&wanted), notify);
            tokio::pin!(request);
            let outcome = loop {
                tokio::select! {
                    outcome = &mut request => break Some(outcome),
                    // Cancel-safe: a change is seen by the next look.
                    () = changed(&mut addresses) => {
                        let now_wanted = serving_request(&self.inner.node_name, &addresses.borrow_and_update());
                        if now_wanted.as_ref() != Some(&wanted) {
                            break None;
                        }
                    }
                }
            };
            match outcome {
                None => {}
                Some(Ok(pair)) => {
                    pause = FIRST_PAUSE;
                    tracing::info!(notAfter = %pair.facts.not_after, "Serving with a certificate of the cluster");
                    *self.inner.shown.write() = pair;
                }
                Some(Err(error)) => {
                    let error = error.in_full();
                    tracing::error!(err = %error, retry = ?pause, "Could not get a serving certificate");
                    notify(Notice {
                        warning: true,
                        reason: "ServingCertificateNotIssued",
                        message: format!("{error}. Until then the kubelet API is served with the previous certificate"),
                    });
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LAST_PAUSE);
                }
            }
        }
    }

    /// When to ask: now, unless the certificate shown is the cluster's, valid, and for these names.
    fn renewal_deadline(&self, wanted: &Wanted) -> Timestamp {
        let shown = self.inner.shown.read();
        let now = Timestamp::now();
        if !rotation::is_valid(&shown.facts, now) {
            return now;
        }
        match rotation::missing(&shown.facts, wanted) {
            // A self-signed one has another name, and lacks the group.
            Some(problem) => {
                tracing::info!(problem = %problem, "Asking for a serving certificate");
                now
            }
            None => rotation::renewal_time(&shown.facts, rand::random()),
        }
    }

    async fn wait_and_request(
        &self,
        client: &kube::Client,
        wanted: &Wanted,
        deadline: Timestamp,
        notify: &Notify,
    ) -> Result<Pair, IdentityError> {
        loop {
            let wait = rotation::sleep_until(deadline, Timestamp::now());
            if wait.is_zero() {
                break;
            }
            tokio::time::sleep(wait).await;
        }
        let store = &self.inner.store;
        let mut key = blocking(store, PairStore::pending_key).await?;
        loop {
            let said = |name: &str| {
                notify(waiting(name, &self.inner.shown.read().facts));
                tracing::warn!(
                    csr = %name,
                    "The serving certificate waits for approval: 'kubectl certificate approve {name}'"
                );
            };
            match csr::obtain(client, &key, wanted, said).await {
                Ok(chain) => {
                    let pem = key.serialize_pem();
                    return blocking(store, move |store| store.update(&chain, &pem, Timestamp::now())).await;
                }
                Err(CsrError::Unusable { name, problem }) => {
                    tracing::info!(csr = %name, problem = %problem, "Asking with a new key");
                    key = blocking(store, PairStore::new_pending_key).await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

async fn blocking<T: Send + 'static>(
    store: &PairStore,
    work: impl FnOnce(&PairStore) -> Result<T, IdentityError> + Send + 'static,
) -> Result<T, IdentityError> {
    let store = store.clone();
    match tokio::task::spawn_blocking(move || work(&store)).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(IdentityError::Stopped),
    }
}

fn waiting(name: &str, shown: &Facts) -> Notice {
    let meanwhile = if shown.common_name.starts_with("system:node:") {
        format!("the previous certificate, which ends at {}", shown.not_after)
    } else {
        "a self-signed certificate, and logs and exec fail where the API server verifies it".to_owned()
    };
    Notice {
        warning: true,
        reason: "ServingCertificatePending",
        message: format!(
            "The certificate signing request {name} (signer {SERVING_SIGNER}) waits for approval, which no controller \
             gives by itself: run 'kubectl certificate approve {name}'. Until then the kubelet API is served with {meanwhile}"
        ),
    }
}

/// What is asked for with these addresses; `None` when there is no IP among them (kubelet's `newGetTemplateFn`).
#[must_use]
pub fn serving_request(node_name: &str, addresses: &[NodeAddress]) -> Option<Wanted> {
    let (dns_names, ips) = names_and_ips(addresses);
    if ips.is_empty() {
        return None;
    }
    Some(Wanted { signer: SERVING_SIGNER, node_name: node_name.to_owned(), dns_names, ips })
}

/// The kubelet's `addressesToHostnamesAndIPs`: sorted, each once.
fn names_and_ips(addresses: &[NodeAddress]) -> (Vec<String>, Vec<IpAddr>) {
    let (mut names, mut ips) = (Vec::new(), Vec::new());
    for NodeAddress { address, type_ } in addresses.iter().filter(|address| !address.address.is_empty()) {
        match (type_.as_str(), address.parse::<IpAddr>()) {
            ("Hostname" | "ExternalIP" | "InternalIP", Ok(ip)) => ips.push(ip),
            ("Hostname" | "ExternalDNS" | "InternalDNS", _) => names.push(address.clone()),
            _ => {}
        }
    }
    names.sort();
    names.dedup();
    ips.sort();
    ips.dedup();
    (names, ips)
}

/// `kubelet.crt` and `kubelet.key` of the kubelet's kind: read, or made for a year when there is none that can be used.
fn self_signed(
    pki_dir: &Path,
    node_name: &str,
    addresses: &[NodeAddress],
    now: Timestamp,
) -> Result<Pair, IdentityError> {
    let (certificate, key): (PathBuf, PathBuf) = (pki_dir.join("wasilet.crt"), pki_dir.join("wasilet.key"));
    let files = CertificateFiles { certificate: certificate.clone(), key: key.clone() };
    if let Ok(pair) = files.read()
        && now < rotation::renewal_time(&pair.facts, 1.0)
        && pair.facts.dns_names.iter().any(|name| name == node_name)
    {
        return Ok(pair);
    }
    let made = |source| IdentityError::Make { source };
    let (names, ips) = names_and_ips(addresses);
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, format!("{node_name}-ca@{}", now.as_second()));
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let second = u64::try_from(now.as_second()).unwrap_or_default();
    // An hour back: clocks of clients may be behind.
    params.not_before = epoch + Duration::from_secs(second.saturating_sub(3600));
    params.not_after = epoch + Duration::from_secs(second) + SELF_SIGNED_LIFE;
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
    for name in std::iter::once(node_name.to_owned()).chain(names) {
        let san = rcgen::SanType::DnsName(name.as_str().try_into().map_err(made)?);
        if !params.subject_alt_names.contains(&san) {
            params.subject_alt_names.push(san);
        }
    }
    params.subject_alt_names.extend(ips.into_iter().map(rcgen::SanType::IpAddress));
    let pair_key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(made)?;
    let chain = params.self_signed(&pair_key).map_err(made)?.pem();
    make_private_dir(pki_dir)?;
    // A crash between the two leaves a pair that does not fit, and it is made anew.
    super::store::write_private(&key, &pair_key.serialize_pem())?;
    super::store::write_private(&certificate, &chain)?;
    files.read()
}

/// Waits for a change; when nobody can make one any more, for ever.
async fn changed(addresses: &mut watch::Receiver<Vec<NodeAddress>>) {
    if addresses.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(kind: &str, address: &str) -> NodeAddress {
        NodeAddress { type_: kind.to_owned(), address: address.to_owned() }
    }

    #[test]
    fn what_is_asked_for_follows_the_addresses() {
        for (case, addresses, expected) in [
            ("none yet", vec![], None),
            ("a name alone is not signed", vec![address("Hostname", "edge-1")], None),
            (
                "each once, sorted",
                vec![
                    address("InternalIP", "192.0.2.9"),
                    address("Hostname", "edge-1"),
                    address("InternalDNS", "edge-1"),
                    address("ExternalIP", "192.0.2.10"),
                    address("InternalIP", "192.0.2.9"),
                    address("InternalIP", "not an address"),
                    address("InternalIP", ""),
                ],
                Some((vec!["edge-1"], vec!["192.0.2.9", "192.0.2.10"])),
            ),
            (
                "a host name that is an address",
                vec![address("Hostname", "192.0.2.9")],
                Some((vec![], vec!["192.0.2.9"])),
            ),
        ] {
            let wanted = serving_request("edge-1", &addresses);
            let found = wanted.as_ref().map(|wanted| {
                (
                    wanted.dns_names.iter().map(String::as_str).collect::<Vec<_>>(),
                    wanted.ips.iter().map(ToString::to_string).collect::<Vec<_>>(),
                )
            });
            let expected =
                expected.map(|(names, ips)| (names, ips.iter().map(ToString::to_string).collect::<Vec<_>>()));
            assert_eq!(found, expected, "{case}");
        }
    }

    #[test]
    fn a_self_signed_certificate_survives_a_restart_and_not_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let addresses = [address("InternalIP", "192.0.2.9")];
        let open = |now| self_signed(dir.path(), "edge-1", &addresses, now).unwrap();
        let now = Timestamp::now();
        let first = open(now);
        assert!(first.facts.common_name.starts_with("edge-1-ca@"), "the kubelet's form");
        assert_eq!(first.facts.dns_names, ["edge-1"]);
        assert_eq!(open(now).key.cert, first.key.cert);
        let much_later = now + Duration::from_secs(360 * 24 * 3600);
        assert_ne!(open(much_later).key.cert, first.key.cert);
    }

    #[test]
    fn files_go_before_the_cluster_and_nobody_signs_without_one() {
        let mut config = crate::config::ServerConfig { tls_bootstrap: true, ..Default::default() };
        assert_eq!(ServingSource::new(&config, InCluster::Yes), ServingSource::Cluster);
        assert_eq!(ServingSource::new(&config, InCluster::No), ServingSource::SelfSigned);
        config.tls_cert_file = Some("a".into());
        config.tls_private_key_file = Some("b".into());
        assert!(matches!(ServingSource::new(&config, InCluster::Yes), ServingSource::Files(_)));
    }

    #[test]
    fn a_notice_names_the_request_the_command_and_what_is_served_meanwhile() {
        let dir = tempfile::tempdir().unwrap();
        let own = self_signed(dir.path(), "edge-1", &[], Timestamp::now()).unwrap().facts;
        let signed = Facts { common_name: "system:node:edge-1".to_owned(), ..own.clone() };
        for (case, facts, expected) in
            [("ours", own, "self-signed"), ("the cluster's", signed, "the previous certificate")]
        {
            let message = waiting("serving-csr-1", &facts).message;
            assert!(message.contains("kubectl certificate approve serving-csr-1"), "{case}: {message}");
            assert!(message.contains(expected), "{case}: {message}");
        }
    }
}
