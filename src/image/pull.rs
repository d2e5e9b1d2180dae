//! One pull: resolve, transfer what is missing, complete, name.
//!
//! In: a name and credentials. Out: an [`Image`]. Blobs come in parallel, bounded over all pulls; a blob two
//! pulls want is transferred once. What is refused for its shape is refused before its layers are transferred.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use futures::StreamExt as _;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::ids::Digest;

use super::complete::{Accepted, CompleteError, blocking, complete};
use super::credential::Credential;
use super::documents::{Descriptor, Document, DocumentError};
use super::error::PullError;
use super::platform;
use super::reference::ImageRef;
use super::registry::{Action, BlobEvent, Fetched, RegistryConfig, RegistryError, Repository};
use super::shape::ShapeError;
use super::store::{ImageRecord, RefEntry, Store, StoreError};
use super::types::{Image, Progress, PullProgress};

/// Blobs of one image at once; the rest of the node's downloads is for other images.
const PARALLEL_PER_IMAGE: usize = 3;

/// Pulls images into a store.
#[derive(Debug)]
pub struct Puller {
    store: Arc<Store>,
    registry: RegistryConfig,
    downloads: Semaphore,
    /// One download per blob: the lock of each blob under way.
    blobs: Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
}

/// A step's failure, before it knows its image.
#[derive(Debug)]
enum Failure {
    Registry(RegistryError),
    Shape(ShapeError),
    Store(StoreError),
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Self {
        match error {
            RegistryError::Store(error) => Self::Store(error),
            error => Self::Registry(error),
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<ShapeError> for Failure {
    fn from(error: ShapeError) -> Self {
        Self::Shape(error)
    }
}

impl From<DocumentError> for Failure {
    fn from(error: DocumentError) -> Self {
        Self::Shape(error.into())
    }
}

impl Failure {
    fn of_completion(error: CompleteError) -> Self {
        match error {
            CompleteError::Shape(error) => Self::Shape(error),
            CompleteError::Store(error) => Self::Store(error),
        }
    }

    fn of_image(self, image: &ImageRef) -> PullError {
        let name = image.to_string();
        match self {
            Self::Registry(source) if source.is_unavailable() => {
                PullError::RegistryUnavailable { image: name, registry: image.registry().to_owned(), source }
            }
            Self::Registry(source) => PullError::Registry { image: name, source },
            Self::Shape(source) => PullError::Shape { image: name, source },
            Self::Store(source) => PullError::Store { image: name, source },
        }
    }
}

impl Puller {
    /// A puller into `store`.
    #[must_use]
    pub fn new(store: Arc<Store>, registry: RegistryConfig) -> Self {
        let downloads = Semaphore::new(store.limits().parallel_downloads.max(1));
        Self { store, registry, downloads, blobs: Mutex::default() }
    }

    /// Pulls `image`.
    ///
    /// # Errors
    /// [`PullError`].
    pub async fn pull(
        &self,
        image: &ImageRef,
        credentials: &[Credential],
        progress: &Progress,
    ) -> Result<Image, PullError> {
        let started = Instant::now();
        progress(PullProgress::Pulling);
        let pulled = self.run(image, credentials, progress).await.map_err(|failure| failure.of_image(image))?;
        progress(PullProgress::Pulled { took: started.elapsed(), size: pulled.size });
        Ok(pulled)
    }

    async fn run(&self, image: &ImageRef, credentials: &[Credential], progress: &Progress) -> Result<Image, Failure> {
        let adding = Arc::clone(&self.store);
        // Held to the end: nothing that was just written is taken for a leftover.
        let _guard = blocking(move || adding.adding()).await?;
        let repository = self.repository(image, credentials).await?;
        if let Some(here) = self.unchanged(image, &repository).await? {
            self.store.touch(&here.manifest_digest);
            return Ok(here);
        }
        let top = repository.manifest().await?;
        let repo_digest = top.digest.clone();
        let (accepted, bytes) = self.resolve(&repository, top).await?;
        let record = match self.known(&accepted.digest).await? {
            Some(record) => record,
            None => self.transfer(&repository, &accepted, bytes, progress).await?,
        };
        let entry = RefEntry { manifest: record.manifest.clone(), repo_digest: repo_digest.clone() };
        let (naming, name) = (Arc::clone(&self.store), image.clone());
        blocking(move || naming.set_name(&name, &entry)).await?;
        self.store.touch(&record.manifest);
        Ok(self.store.image(image, &repo_digest, &record))
    }

    async fn repository(&self, image: &ImageRef, credentials: &[Credential]) -> Result<Repository, Failure> {
        let (registry, image, credentials) = (self.registry.clone(), image.clone(), credentials.to_vec());
        let limits = *self.store.limits();
        let open = move || Repository::open(&registry, &image, &credentials, Action::Pull, limits);
        Ok(blocking(open).await?)
    }

    async fn known(&self, manifest: &Digest) -> Result<Option<ImageRecord>, Failure> {
        let (store, manifest) = (Arc::clone(&self.store), manifest.clone());
        Ok(blocking(move || store.record(&manifest)).await?)
    }

    /// The image as it is here, when the registry's name still points at it: one HEAD request.
    async fn unchanged(&self, image: &ImageRef, repository: &Repository) -> Result<Option<Image>, Failure> {
        let (store, name) = (Arc::clone(&self.store), image.clone());
        let Some(here) = blocking(move || store.lookup(&name)).await? else { return Ok(None) };
        match repository.head().await {
            Ok(Some(digest)) if digest == here.repo_digest => Ok(Some(here)),
            // Some registries answer HEAD badly; GET then says what is wrong.
            Ok(_) => Ok(None),
            Err(error) if error.is_unavailable() => Err(error.into()),
            Err(_) => Ok(None),
        }
    }

    /// From what the name points at to a manifest this node takes.
    async fn resolve(&self, repository: &Repository, top: Fetched) -> Result<(Accepted, Vec<u8>), Failure> {
        let limits = self.store.limits();
        let mut current = top;
        for _ in 0..=limits.index_depth {
            match Document::parse(&current.digest, &current.bytes)? {
                Document::Manifest(manifest) => {
                    let size = current.bytes.len() as u64;
                    return Ok((Accepted::check(current.digest, size, manifest, limits)?, current.bytes));
                }
                Document::Index(index) => {
                    let found = index.manifests.len();
                    if found > limits.index_entries {
                        return Err(ShapeError::IndexEntries { found, limit: limits.index_entries }.into());
                    }
                    let digest = platform::choose(&index)?.digest.clone();
                    current = repository.manifest_by_digest(&digest).await?;
                }
            }
        }
        Err(ShapeError::IndexDepth { limit: limits.index_depth }.into())
    }

    async fn transfer(
        &self,
        repository: &Repository,
        accepted: &Accepted,
        manifest: Vec<u8>,
        progress: &Progress,
    ) -> Result<ImageRecord, Failure> {
        let store = Arc::clone(&self.store);
        blocking(move || store.put_blob(&manifest).map(drop)).await?;
        self.blob(repository, &accepted.manifest.config, progress).await?;
        let (store, reading) = (Arc::clone(&self.store), accepted.clone());
        let shape = blocking(move || reading.shape(&store)).await.map_err(Failure::of_completion)?;
        let missing: Vec<Descriptor> =
            accepted.layer_blobs().into_iter().filter(|blob| !self.store.has_blob(&blob.digest, blob.size)).collect();
        progress(PullProgress::Resolved {
            manifest: accepted.digest.clone(),
            blobs: missing.len(),
            bytes: missing.iter().map(|blob| blob.size).sum(),
        });
        let mut transfers = futures::stream::iter(missing)
            .map(|blob| async move { self.blob(repository, &blob, progress).await })
            .buffer_unordered(PARALLEL_PER_IMAGE);
        while let Some(done) = transfers.next().await {
            done?;
        }
        let telling = Arc::clone(progress);
        let on_unpack = Arc::new(move |digest: &Digest| telling(PullProgress::Unpacking { digest: digest.clone() }));
        complete(&self.store, accepted, &shape, on_unpack).await.map_err(Failure::of_completion)
    }

    /// Brings one blob in, unless it is here or on its way already.
    async fn blob(&self, repository: &Repository, blob: &Descriptor, progress: &Progress) -> Result<(), Failure> {
        let lock = self.lock_of(&blob.digest);
        let _only_one = lock.lock().await;
        if self.store.has_blob(&blob.digest, blob.size) {
            return Ok(());
        }
        let _turn = self.downloads.acquire().await.expect("the semaphore is never closed");
        let digest = blob.digest.clone();
        let total = blob.size;
        let on_event = |event: BlobEvent| {
            progress(match event {
                BlobEvent::Progress(done) => PullProgress::Downloading { digest: digest.clone(), done, total },
                BlobEvent::Retry { attempt, error } => {
                    PullProgress::Retrying { digest: digest.clone(), attempt, error }
                }
            });
        };
        Ok(repository.blob(&self.store, blob, &on_event).await?)
    }

    fn lock_of(&self, digest: &Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut blobs = self.blobs.lock();
        // Only blobs somebody waits for are kept: this bounds the map.
        blobs.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = blobs.get(digest).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::new(tokio::sync::Mutex::new(()));
        blobs.insert(digest.clone(), Arc::downgrade(&lock));
        lock
    }
}
