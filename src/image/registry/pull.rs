//! Manifests and blobs out of a repository.
//!
//! In: a tag or digests. Out: bounded manifests whose digest is checked, and blobs in the store. A blob that
//! breaks off goes on from where it was; a mirror that has not got it, or sends something else, is passed over.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::header::{ACCEPT, CONTENT_RANGE, HeaderValue, RANGE};
use http::{HeaderMap, Method, StatusCode};

use crate::ids::Digest;

use super::super::complete::blocking;
use super::super::documents::{Descriptor, media_type};
use super::super::store::{Ingest, Store, StoreError};
use super::answer::{read_bounded, shown, transport};
use super::session::{Body, Call, Session};
use super::{RegistryError, Repository};

/// Tries in a row without a byte of progress before a blob is given up at an endpoint.
const MAX_FUTILE_ATTEMPTS: u32 = 5;
/// Tries of one blob in all: a server that gives a byte at a time does not hold us for ever.
const MAX_ATTEMPTS: u32 = 50;
/// The first pause between tries; it doubles.
const RETRY_BASE: Duration = Duration::from_millis(200);
/// The longest pause, also when a server asks for more: the pull's own back-off is there for that.
const RETRY_MAX: Duration = Duration::from_secs(10);
/// Bytes handed to the disk at once: hashing and writing a mebibyte takes a few milliseconds.
const BATCH_BYTES: usize = 1 << 20;

/// A manifest as the registry sent it.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Their digest.
    pub digest: Digest,
}

/// What happens to a blob on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlobEvent {
    /// So many bytes are here.
    Progress(u64),
    /// It broke and is tried again.
    Retry {
        /// From 2.
        attempt: u32,
        /// How the last try ended.
        error: String,
    },
}

impl Repository {
    /// The digest of what the name points at, without transferring it; `None` when the registry does not say.
    ///
    /// # Errors
    /// [`RegistryError`] of the last endpoint.
    pub async fn head(&self) -> Result<Option<Digest>, RegistryError> {
        let selector = self.reference.manifest_selector();
        let ask = |session| {
            async move {
                let call = manifest_call(session, Method::HEAD, selector);
                let response = send_with_retry(session, &call, &[StatusCode::OK]).await?;
                Ok(announced_digest(&response))
            }
            .boxed()
        };
        self.on_endpoints(self.tag_or_digest(), ask).await
    }

    /// What the name points at: a manifest or an index.
    ///
    /// # Errors
    /// [`RegistryError`] of the last endpoint.
    pub async fn manifest(&self) -> Result<Fetched, RegistryError> {
        self.fetch(self.reference.manifest_selector(), self.reference.digest(), self.tag_or_digest()).await
    }

    /// A manifest by digest, such as an entry of an index.
    ///
    /// # Errors
    /// [`RegistryError`] of the last endpoint.
    pub async fn manifest_by_digest(&self, digest: &Digest) -> Result<Fetched, RegistryError> {
        self.fetch(digest.as_str(), Some(digest), Need::Pull).await
    }

    async fn fetch<'a>(
        &'a self,
        selector: &'a str,
        expected: Option<&'a Digest>,
        need: Need,
    ) -> Result<Fetched, RegistryError> {
        let limit = self.limits.manifest_bytes;
        self.on_endpoints(need, |session| fetch_manifest(session, selector, expected, limit).boxed()).await
    }

    /// Brings a blob into the store, from the first endpoint that has it whole.
    ///
    /// # Errors
    /// [`RegistryError`] of the last endpoint; [`RegistryError::Store`] at once, no other endpoint mends a disk.
    pub async fn blob<'a>(
        &'a self,
        store: &'a Arc<Store>,
        blob: &'a Descriptor,
        on_event: &'a (dyn Fn(BlobEvent) + Send + Sync),
    ) -> Result<(), RegistryError> {
        self.on_endpoints(Need::Pull, |session| download(session, store, blob, on_event).boxed()).await
    }

    fn tag_or_digest(&self) -> Need {
        if self.reference.digest().is_some() { Need::Pull } else { Need::Resolve }
    }

    /// Runs `step` on the endpoints in order until one succeeds; the last failure stands for all.
    async fn on_endpoints<'a, T>(
        &'a self,
        need: Need,
        step: impl Fn(&'a Session) -> BoxFuture<'a, Result<T, RegistryError>>,
    ) -> Result<T, RegistryError> {
        let mut last = None;
        for session in self.endpoints.iter().map(AsRef::as_ref).filter(|session| need.is_met(session)) {
            match step(session).await {
                Ok(done) => return Ok(done),
                Err(RegistryError::Store(error)) if !error.is_about_content() => return Err(error.into()),
                Err(error) => {
                    let url = shown(&session.endpoint().base);
                    tracing::debug!(endpoint = %url, err = %super::super::error::chain(&error), "Registry endpoint failed");
                    last = Some(error);
                }
            }
        }
        Err(last.unwrap_or_else(|| RegistryError::NoEndpoint {
            registry: self.reference.registry().to_owned(),
            action: "pull",
        }))
    }
}

/// Which capability of an endpoint a request needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    Pull,
    Resolve,
}

impl Need {
    fn is_met(self, session: &Session) -> bool {
        let capabilities = session.endpoint().capabilities;
        match self {
            Self::Pull => capabilities.pull,
            Self::Resolve => capabilities.resolve,
        }
    }
}

impl StoreError {
    /// Whether another source may have better bytes.
    fn is_about_content(&self) -> bool {
        matches!(self, Self::DigestMismatch { .. } | Self::Truncated { .. } | Self::TooLarge { .. })
    }
}

async fn fetch_manifest(
    session: &Session,
    selector: &str,
    expected: Option<&Digest>,
    limit: u64,
) -> Result<Fetched, RegistryError> {
    let call = manifest_call(session, Method::GET, selector);
    let response = send_with_retry(session, &call, &[StatusCode::OK]).await?;
    let url = shown(response.url());
    let announced = announced_digest(&response);
    let bytes = read_bounded(response, limit).await?;
    let digest = Digest::of(&bytes);
    // The digest asked for decides; what a registry says of a tag is at least checked for truth.
    for expected in expected.into_iter().chain(announced.as_ref()) {
        if *expected != digest {
            return Err(RegistryError::ManifestDigest { url, expected: expected.clone(), actual: digest });
        }
    }
    Ok(Fetched { bytes, digest })
}

/// `Docker-Content-Digest`, when it is one this node knows.
fn announced_digest(response: &reqwest::Response) -> Option<Digest> {
    response.headers().get("docker-content-digest")?.to_str().ok()?.parse().ok()
}

fn manifest_call(session: &Session, method: Method, selector: &str) -> Call {
    let accept = [media_type::MANIFEST, media_type::INDEX, media_type::DOCKER_MANIFEST, media_type::DOCKER_LIST];
    let mut headers = HeaderMap::new();
    let accept = HeaderValue::from_str(&accept.join(", ")).expect("media types are ASCII");
    headers.insert(ACCEPT, accept);
    Call { method, url: session.url(&format!("manifests/{selector}")), headers, body: Body::Empty }
}

/// Sends, and again after a pause when that may help.
pub(super) async fn send_with_retry(
    session: &Session,
    call: &Call,
    expected: &[StatusCode],
) -> Result<reqwest::Response, RegistryError> {
    let mut attempt = 1;
    loop {
        match session.send(call, expected).await {
            Err(error) if error.is_transient() && attempt < MAX_FUTILE_ATTEMPTS && !is_refused(&error) => {
                tokio::time::sleep(pause(attempt, &error)).await;
                attempt += 1;
            }
            result => return result,
        }
    }
}

/// Nobody listens there: waiting two seconds more does not change that, the pull's own back-off will see.
fn is_refused(error: &RegistryError) -> bool {
    matches!(error, RegistryError::Transport { source, .. } if source.is_connect())
}

fn pause(attempt: u32, error: &RegistryError) -> Duration {
    let doubled = RETRY_BASE.saturating_mul(2u32.saturating_pow(attempt.saturating_sub(1)));
    // Up to a quarter more, so that a fleet does not come back as one.
    let jittered = doubled.mul_f64(1.0 + f64::from(rand::random::<u8>()) / 1024.0);
    match error {
        RegistryError::RateLimited { retry_after: Some(asked), .. } => (*asked).max(jittered),
        _ => jittered,
    }
    .min(RETRY_MAX)
}

/// Downloads one blob from one endpoint.
async fn download(
    session: &Session,
    store: &Arc<Store>,
    blob: &Descriptor,
    on_event: &(dyn Fn(BlobEvent) + Send + Sync),
) -> Result<(), RegistryError> {
    let (digest, size) = (blob.digest.clone(), blob.size);
    let opening = Arc::clone(store);
    let mut ingest = on_disk(move || opening.ingest(&digest, size)).await?;
    let mut futile = 0;
    for attempt in 1.. {
        let before = ingest.written();
        let (returned, result) = transfer(session, store, blob, ingest, on_event).await;
        ingest = returned?;
        let error = match result {
            Ok(()) if ingest.written() == blob.size => break,
            Ok(()) => RegistryError::BrokeOff { url: shown(&session.url(&format!("blobs/{}", blob.digest))) },
            Err(error) => error,
        };
        futile = if ingest.written() > before { 0 } else { futile + 1 };
        if !error.is_transient() || is_refused(&error) && before == 0 {
            return Err(error);
        }
        if futile >= MAX_FUTILE_ATTEMPTS || attempt >= MAX_ATTEMPTS {
            return Err(RegistryError::Interrupted {
                digest: blob.digest.clone(),
                done: ingest.written(),
                total: blob.size,
                attempts: attempt,
                source: Box::new(error),
            });
        }
        let text = super::super::error::chain(&error);
        on_event(BlobEvent::Retry { attempt: attempt + 1, error: text });
        tokio::time::sleep(pause(futile + 1, &error)).await;
    }
    let committing = Arc::clone(store);
    on_disk(move || ingest.commit(&committing)).await.map(drop)
}

/// One request for what is missing of a blob. Gives the ingest back unless the disk failed under it.
async fn transfer(
    session: &Session,
    store: &Arc<Store>,
    blob: &Descriptor,
    ingest: Ingest,
    on_event: &(dyn Fn(BlobEvent) + Send + Sync),
) -> (Result<Ingest, RegistryError>, Result<(), RegistryError>) {
    let offset = ingest.written();
    if offset == blob.size {
        return (Ok(ingest), Ok(()));
    }
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
    if offset > 0 {
        let range = format!("bytes={offset}-");
        headers.insert(RANGE, HeaderValue::from_str(&range).expect("digits"));
    }
    let url = session.url(&format!("blobs/{}", blob.digest));
    let call = Call { method: Method::GET, url, headers, body: Body::Empty };
    let expected = [StatusCode::OK, StatusCode::PARTIAL_CONTENT];
    let response = match session.send(&call, &expected).await {
        Ok(response) => response,
        Err(error) => return (Ok(ingest), Err(error)),
    };
    let mut ingest = ingest;
    if offset > 0 && !resumes_at(&response, offset) {
        // It starts over, and so do we.
        if let Err(error) = ingest.restart() {
            return (Err(error.into()), Ok(()));
        }
    }
    receive(response, store, ingest, on_event).await
}

/// Whether an answer goes on at `offset`.
fn resumes_at(response: &reqwest::Response, offset: u64) -> bool {
    let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    response.status() == StatusCode::PARTIAL_CONTENT
        && range.is_some_and(|range| {
            range.strip_prefix("bytes ").and_then(|range| range.split('-').next()) == Some(offset.to_string().as_str())
        })
}

/// Takes a body in, in batches that go to the blocking pool.
async fn receive(
    mut response: reqwest::Response,
    store: &Arc<Store>,
    mut ingest: Ingest,
    on_event: &(dyn Fn(BlobEvent) + Send + Sync),
) -> (Result<Ingest, RegistryError>, Result<(), RegistryError>) {
    let url = response.url().clone();
    loop {
        let mut batch: Vec<Bytes> = Vec::new();
        let mut batched = 0;
        let end = loop {
            match response.chunk().await {
                Ok(Some(chunk)) => {
                    batched += chunk.len();
                    batch.push(chunk);
                    if batched >= BATCH_BYTES {
                        break None;
                    }
                }
                Ok(None) => break Some(Ok(())),
                Err(source) => break Some(Err(transport(&url, source))),
            }
        };
        let writing = Arc::clone(store);
        let written = on_disk(move || {
            for chunk in &batch {
                ingest.write(&writing, chunk)?;
            }
            Ok(ingest)
        })
        .await;
        ingest = match written {
            Ok(ingest) => ingest,
            Err(error) => return (Err(error), Ok(())),
        };
        on_event(BlobEvent::Progress(ingest.written()));
        match end {
            None => {}
            Some(result) => return (Ok(ingest), result),
        }
    }
}

/// Runs a step of the store on the blocking pool.
async fn on_disk<T: Send + 'static>(
    step: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, RegistryError> {
    blocking(step).await.map_err(RegistryError::Store)
}
