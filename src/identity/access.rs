//! The node's way to its API server: found or made at the start, kept while the node runs.
//!
//! In: where credentials may be. Out: a [`kube::Client`] that goes on working when its certificate is renewed.
//! The order is the kubelet's: a kubeconfig that can be used, else a bootstrap kubeconfig, with which a certificate is
//! asked for and a kubeconfig written; else the service account of this pod. Registers no node.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::client::{ClientBuilder, ConfigExt};
use kube::config::Cluster;
use parking_lot::Mutex;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio_util::sync::CancellationToken;

use super::csr::{self, CsrError, Wanted};
use super::error::IdentityError;
use super::kubeconfig::{self, CertificateFiles, Login, User};
use super::limit::Bucket;
use super::metrics::ClientMetrics;
use super::pair::Pair;
use super::rotation;
use super::store::{self, PairStore};
use super::transport::{Transport, TransportOptions};

/// client-go's defaults, for the one of the two that was not given.
const DEFAULT_QPS: f32 = 50.0;
const DEFAULT_BURST: u32 = 100;
/// How often certificate files that others replace are looked at.
const FILES_PERIOD: Duration = Duration::from_secs(60);
/// Pauses after a failed renewal double from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LAST_PAUSE: Duration = Duration::from_secs(300);

/// Where credentials may be, and what is done with them.
#[derive(Debug, Clone)]
pub struct AccessOptions {
    /// The kubeconfig; written here after a bootstrap.
    pub kubeconfig: Option<PathBuf>,
    /// Used while there is no kubeconfig that can be used.
    pub bootstrap_kubeconfig: Option<PathBuf>,
    /// Where certificates are kept: `ROOT/pki`.
    pub pki_dir: PathBuf,
    /// The node's name.
    pub node_name: String,
    /// `rotateCertificates`.
    pub rotate: bool,
    /// `kubeAPIQPS`.
    pub qps: Option<f32>,
    /// `kubeAPIBurst`.
    pub burst: Option<u32>,
}

impl AccessOptions {
    /// The settings of a node. Its certificates are in `pki` below `root_dir`, and so is its kubeconfig if only a
    /// bootstrap kubeconfig is given.
    #[must_use]
    pub fn new(config: &crate::config::ClientConfig, root_dir: &std::path::Path, node_name: &str) -> Self {
        // The kubeconfig names the certificate's file, which must mean the same whatever the next run's directory is.
        let root_dir = std::path::absolute(root_dir).unwrap_or_else(|_| root_dir.to_owned());
        let default = || config.bootstrap_kubeconfig.as_ref().map(|_| root_dir.join("kubeconfig"));
        Self {
            kubeconfig: config.kubeconfig.clone().or_else(default),
            bootstrap_kubeconfig: config.bootstrap_kubeconfig.clone(),
            pki_dir: root_dir.join("pki"),
            node_name: node_name.to_owned(),
            rotate: config.rotate_certificates,
            qps: config.qps,
            burst: config.burst,
        }
    }

    fn store(&self) -> PairStore {
        PairStore::new(&self.pki_dir, "wasilet-client")
    }

    fn bucket(&self) -> Option<Arc<Bucket>> {
        if self.qps.is_none() && self.burst.is_none() {
            return None;
        }
        let (qps, burst) = (self.qps.unwrap_or(DEFAULT_QPS), self.burst.unwrap_or(DEFAULT_BURST));
        Some(Arc::new(Bucket::new(qps, burst)))
    }
}

/// The node's access to its cluster. Cheap to clone.
#[derive(Clone)]
pub struct ClusterAccess {
    inner: Arc<Inner>,
}

struct Inner {
    options: AccessOptions,
    client: kube::Client,
    unlimited: kube::Client,
    transport: Transport,
    authorities: Vec<CertificateDer<'static>>,
    renewal: Renewal,
    /// The certificate that is shown.
    current: Mutex<Option<Pair>>,
}

/// How the client certificate is kept fresh.
#[derive(Debug)]
enum Renewal {
    /// There is none, or it is in the kubeconfig and stays.
    Nothing,
    /// Somebody else replaces the files.
    Files(CertificateFiles),
    /// We ask for a new one.
    Request(PairStore),
}

/// Finds or makes the node's access to its cluster. With a kubeconfig that can be used this asks nobody, so that a node
/// starts while its API server is away; a bootstrap waits for its certificate as long as it takes, or until `stop`.
///
/// # Errors
/// [`IdentityError`]: nothing that trying again alone would mend.
pub async fn connect(options: AccessOptions, stop: &CancellationToken) -> Result<ClusterAccess, IdentityError> {
    let now = Timestamp::now();
    let login = match (&options.kubeconfig, &options.bootstrap_kubeconfig) {
        (Some(path), bootstrap) => match usable(&options, path.clone(), now).await {
            Ok(login) => login,
            Err(problem) => match bootstrap {
                Some(bootstrap) if bootstrap.exists() => {
                    match problem {
                        IdentityError::NoKubeconfig { .. } => {}
                        // Never silently: these are another node's credentials, not stale ones.
                        IdentityError::OtherNode { .. } => return Err(problem),
                        problem => tracing::warn!(err = %problem.in_full(), "Bootstrapping again"),
                    }
                    bootstrap_into(&options, bootstrap, path, stop).await?;
                    usable(&options, path.clone(), Timestamp::now()).await?
                }
                _ => return Err(problem),
            },
        },
        (None, Some(bootstrap)) => {
            // Without a place for the kubeconfig it is beside the certificates.
            let path = options.pki_dir.join("kubeconfig");
            return Box::pin(connect(
                AccessOptions { kubeconfig: Some(path), bootstrap_kubeconfig: Some(bootstrap.clone()), ..options },
                stop,
            ))
            .await;
        }
        (None, None) if kubeconfig::is_in_cluster() => blocking(kubeconfig::in_cluster).await?,
        (None, None) => return Err(IdentityError::NotConfigured),
    };
    blocking(move || ClusterAccess::build(options, login)).await
}

/// Runs file IO and credential plugins where they may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, IdentityError> + Send + 'static,
) -> Result<T, IdentityError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(IdentityError::Stopped),
    }
}

/// The kubeconfig, if it can be used, with the newest certificate that belongs to it.
async fn usable(options: &AccessOptions, path: PathBuf, now: Timestamp) -> Result<Login, IdentityError> {
    let options = options.clone();
    blocking(move || {
        let mut login = kubeconfig::load(&path)?;
        let Some(certificate) = &mut login.certificate else { return Ok(login) };
        let place = certificate.files.as_ref().map_or(path, |files| files.certificate.clone());
        if options.rotate
            && certificate.pair.node_name().is_some()
            && let Ok(Some(stored)) = options.store().current()
            && rotation::supersedes(&stored.facts, &certificate.pair.facts, now)
        {
            certificate.pair = stored;
        }
        let pair = &certificate.pair;
        if !rotation::is_valid(&pair.facts, now) {
            return Err(IdentityError::Expired { path: place, not_after: pair.facts.not_after });
        }
        if pair.facts.not_before > now {
            tracing::warn!(
                path = %place.display(), notBefore = %pair.facts.not_before, now = %now,
                "The client certificate is not valid yet: is this machine's clock behind"
            );
        }
        match pair.node_name() {
            Some(name) if name != options.node_name => {
                Err(IdentityError::OtherNode { path: place, certificate: name.to_owned(), node: options.node_name })
            }
            _ => Ok(login),
        }
    })
    .await
}

/// The kubelet's TLS bootstrap: a key, a request, a certificate, a kubeconfig that refers to it.
async fn bootstrap_into(
    options: &AccessOptions,
    bootstrap: &std::path::Path,
    kubeconfig: &std::path::Path,
    stop: &CancellationToken,
) -> Result<(), IdentityError> {
    let (client, cluster) = bootstrap_client(bootstrap.to_owned()).await?;
    tracing::info!(node = %options.node_name, "Asking for a client certificate with the bootstrap credentials");
    let (store, wanted) = (options.store(), Wanted::client(&options.node_name));
    tokio::select! {
        // Dropping the request is safe: the key is on disk and the next start asks for the same.
        pair = request(&client, &store, &wanted) => { pair?; }
        () = stop.cancelled() => return Err(IdentityError::Stopped),
    }
    let text = kubeconfig::render(&cluster, User::CertificateFile(&store.current_path()));
    let path = kubeconfig.to_owned();
    blocking(move || {
        if let Some(dir) = path.parent() {
            store::make_private_dir(dir)?;
        }
        store::write_private(&path, &text)?;
        tracing::info!(kubeconfig = %path.display(), "Bootstrapped");
        Ok(())
    })
    .await
}

async fn bootstrap_client(path: PathBuf) -> Result<(kube::Client, Cluster), IdentityError> {
    blocking(move || {
        let login = kubeconfig::load(&path)?;
        let cluster = login.cluster.clone().unwrap_or_default();
        let transport = transport(&login, login.certificate.as_ref().map(|certificate| &certificate.pair))?;
        Ok((client(&login, transport)?, cluster))
    })
    .await
}

/// Asks for a client certificate and keeps it.
async fn request(client: &kube::Client, store: &PairStore, wanted: &Wanted) -> Result<Pair, IdentityError> {
    let mut key = {
        let store = store.clone();
        blocking(move || store.pending_key()).await?
    };
    loop {
        let said = |name: &str| {
            // Where controllers approve, this takes a second and nobody hears of it.
            tracing::warn!(csr = %name, "Waiting for the client certificate: 'kubectl certificate approve {name}' if nobody does");
        };
        match csr::obtain(client, &key, wanted, said).await {
            Ok(chain) => {
                let store = store.clone();
                return blocking(move || store.update(&chain, &key.serialize_pem(), Timestamp::now())).await;
            }
            Err(CsrError::Unusable { name, problem }) => {
                tracing::info!(csr = %name, problem = %problem, "Asking with a new key");
                let store = store.clone();
                key = blocking(move || store.new_pending_key()).await?;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn transport(login: &Login, pair: Option<&Pair>) -> Result<Transport, IdentityError> {
    let tls = login.config.rustls_client_config().map_err(|source| IdentityError::Client { source })?;
    let server_name = match &login.config.tls_server_name {
        Some(name) => Some(ServerName::try_from(name.clone()).map_err(|_| IdentityError::Tls {
            source: rustls::Error::General(format!("{name:?} is no server name")),
        })?),
        None => None,
    };
    let options = TransportOptions { tls, server_name, proxy: login.proxy.clone() };
    Ok(Transport::new(options, pair.map(|pair| pair.key.clone())))
}

/// A client without credentials of its own.
pub(super) fn anonymous(config: &kube::Config, transport: Transport) -> Result<kube::Client, IdentityError> {
    let login = Login { config: config.clone(), certificate: None, proxy: None, cluster: None };
    client(&login, transport)
}

/// A client of a kubeconfig as it is, for a few requests: nothing is renewed.
///
/// # Errors
/// [`IdentityError`], naming the file.
pub async fn plain_client(path: &std::path::Path) -> Result<kube::Client, IdentityError> {
    bootstrap_client(path.to_owned()).await.map(|(client, _)| client)
}

/// A client over these connections: URL, tokens and impersonation are layers, outermost last.
fn client(login: &Login, transport: Transport) -> Result<kube::Client, IdentityError> {
    let failed = |source| IdentityError::Client { source };
    let config = &login.config;
    let builder = ClientBuilder::new(transport, config.default_namespace.clone())
        .with_layer(&config.extra_headers_layer().map_err(failed)?);
    Ok(match config.auth_layer().map_err(failed)? {
        Some(auth) => builder.with_layer(&auth).with_layer(&config.base_uri_layer()).build(),
        None => builder.with_layer(&config.base_uri_layer()).build(),
    })
}

impl ClusterAccess {
    fn build(options: AccessOptions, login: Login) -> Result<Self, IdentityError> {
        let pair = login.certificate.as_ref().map(|certificate| certificate.pair.clone());
        let renewal = match &login.certificate {
            // Only the certificate of a node can be asked for; an admin's in a kubeconfig stays what it is.
            Some(certificate) if options.rotate && certificate.pair.node_name().is_some() => {
                Renewal::Request(options.store())
            }
            Some(certificate) => certificate.files.clone().map_or(Renewal::Nothing, Renewal::Files),
            None => Renewal::Nothing,
        };
        let unlimited = transport(&login, pair.as_ref())?;
        let limited = unlimited.limited(options.bucket());
        let access = Inner {
            client: client(&login, limited)?,
            unlimited: client(&login, unlimited.clone())?,
            transport: unlimited,
            authorities: login.authorities(),
            renewal,
            current: Mutex::new(pair),
            options,
        };
        Ok(Self { inner: Arc::new(access) })
    }

    /// The client. Its certificate is replaced under it; it honours `kubeAPIQPS` and `kubeAPIBurst`.
    #[must_use]
    pub fn client(&self) -> kube::Client {
        self.inner.client.clone()
    }

    /// A client of the same connections that is never throttled: Leases and the node's status must not wait behind pods.
    #[must_use]
    pub fn heartbeat_client(&self) -> kube::Client {
        self.inner.unlimited.clone()
    }

    /// The node's name; that of the certificate, when there is one of a node.
    #[must_use]
    pub fn node_name(&self) -> &str {
        &self.inner.options.node_name
    }

    /// The authorities of the cluster: what client certificates of the kubelet API are checked by when `clientCAFile` is not
    /// set. Empty when the kubeconfig names none.
    #[must_use]
    pub fn cluster_ca(&self) -> Vec<CertificateDer<'static>> {
        self.inner.authorities.clone()
    }

    /// What was asked of the API server, for metrics.
    #[must_use]
    pub fn metrics(&self) -> &ClientMetrics {
        self.inner.transport.metrics()
    }

    /// When the client certificate ends, for metrics; `None` without one.
    #[must_use]
    pub fn certificate_end(&self) -> Option<Timestamp> {
        self.inner.current.lock().as_ref().map(|pair| pair.facts.not_after)
    }

    /// Keeps the client certificate fresh until `stop`.
    pub async fn keep(self, stop: CancellationToken) {
        let work = async {
            match &self.inner.renewal {
                Renewal::Nothing => std::future::pending::<()>().await,
                Renewal::Files(files) => self.follow_files(files).await,
                Renewal::Request(store) => self.renew_forever(store).await,
            }
        };
        tokio::select! {
            // Dropping a renewal is safe: its key is on disk and the next start asks for the same.
            () = work => {}
            () = stop.cancelled() => {}
        }
    }

    fn show(&self, pair: Pair) {
        tracing::info!(notAfter = %pair.facts.not_after, "Replaced the client certificate, connections are made anew");
        self.inner.transport.replace(pair.key.clone());
        *self.inner.current.lock() = Some(pair);
    }

    async fn follow_files(&self, files: &CertificateFiles) {
        loop {
            tokio::time::sleep(FILES_PERIOD).await;
            let read = {
                let files = files.clone();
                blocking(move || files.read()).await
            };
            match read {
                Ok(pair) => {
                    let same = self.inner.current.lock().as_ref().is_some_and(|shown| shown.key.cert == pair.key.cert);
                    if !same {
                        self.show(pair);
                    }
                }
                // Half of a replacement may be seen: the old pair stays until both files fit.
                Err(error) => tracing::warn!(err = %error.in_full(), "Could not read the client certificate again"),
            }
        }
    }

    async fn renew_forever(&self, store: &PairStore) {
        let mut pause = FIRST_PAUSE;
        loop {
            let facts = self.inner.current.lock().as_ref().map(|pair| pair.facts.clone());
            if let Some(facts) = facts {
                let deadline = rotation::renewal_time(&facts, rand::random());
                tracing::debug!(notAfter = %facts.not_after, deadline = %deadline, "Will renew the client certificate");
                loop {
                    let wait = rotation::sleep_until(deadline, Timestamp::now());
                    if wait.is_zero() {
                        break;
                    }
                    tokio::time::sleep(wait).await;
                }
            }
            match self.renew(store).await {
                Ok(pair) => {
                    pause = FIRST_PAUSE;
                    self.show(pair);
                }
                Err(error) => {
                    tracing::error!(err = %error.in_full(), retry = ?pause, "Could not renew the client certificate");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LAST_PAUSE);
                }
            }
        }
    }

    async fn renew(&self, store: &PairStore) -> Result<Pair, IdentityError> {
        let wanted = Wanted::client(self.node_name());
        let valid =
            self.inner.current.lock().as_ref().is_some_and(|pair| rotation::is_valid(&pair.facts, Timestamp::now()));
        if valid {
            // Asked for with the current identity. When it ends before somebody signs, the bootstrap credentials take over.
            let end = self.certificate_end().unwrap_or(Timestamp::MAX);
            let expiry = async {
                loop {
                    let left = rotation::sleep_until(end, Timestamp::now());
                    if left.is_zero() {
                        return;
                    }
                    tokio::time::sleep(left).await;
                }
            };
            tokio::select! {
                result = request(&self.inner.unlimited, store, &wanted) => return result,
                () = expiry => {}
            }
        }
        match &self.inner.options.bootstrap_kubeconfig {
            Some(path) if path.exists() => {
                tracing::warn!(path = %path.display(), "The client certificate has expired, using the bootstrap credentials");
                let (client, _) = bootstrap_client(path.clone()).await?;
                request(&client, store, &wanted).await
            }
            _ => Err(IdentityError::Expired {
                path: store.current_path(),
                not_after: self.certificate_end().unwrap_or(Timestamp::MIN),
            }),
        }
    }
}

impl std::fmt::Debug for ClusterAccess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterAccess").field("options", &self.inner.options).finish_non_exhaustive()
    }
}
