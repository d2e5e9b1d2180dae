//! Files in, images out: `load` and `push`.
//!
//! In: a path, or an image of the store. Out: images of the store, or blobs on a registry.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use futures::StreamExt as _;
use tokio::time::Instant;

use crate::ids::Digest;
use crate::pod::toolbox::TOOLBOX_PATH;

use super::archive::{self, Loaded};
use super::builder::{self, BuildError, BuildOptions};
use super::busybox;
use super::complete::{CompleteError, blocking, complete};
use super::credential::Credential;
use super::documents::{Document, media_type};
use super::error::{ImageError, PullError};
use super::reference::ImageRef;
use super::registry::{Action, Pushed, RegistryError, Repository};
use super::service::ImageService;
use super::store::{Ingest, RefEntry, Store};
use super::types::{Image, Progress, PullProgress};

/// Uploads of one image at once.
const PARALLEL_UPLOADS: usize = 3;

/// What a push did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushReport {
    /// The manifest's digest on the registry.
    pub digest: Digest,
    /// Blobs that were sent.
    pub sent: usize,
    /// Blobs the registry had.
    pub already_there: usize,
}

/// An archive on the store's own file system; it goes when this is dropped.
#[derive(Debug)]
pub struct Spooled {
    ingest: Ingest,
}

impl Spooled {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.ingest.path()
    }
}

impl ImageService {
    /// Loads what is at `path`: a wasm file (wrapped as the CNCF artifact), an OCI layout (directory or
    /// tar, compressed or not), a `docker save` archive, or, when `build` says what a container does by
    /// default, an image of a directory or file. `name` is needed unless the archive has names.
    ///
    /// # Errors
    /// [`ImageError`].
    pub async fn load(
        &self,
        path: &Path,
        name: Option<&ImageRef>,
        build: Option<&BuildOptions>,
    ) -> Result<Vec<Image>, ImageError> {
        let adding = Arc::clone(&self.store);
        let _guard = blocking(move || adding.adding()).await?;
        let (store, from, options) = (Arc::clone(&self.store), path.to_owned(), build.cloned());
        let loaded = blocking(move || read(&store, &from, options.as_ref())).await?;
        let names = names_for(path, name, &loaded)?;
        let mut images = Vec::new();
        for (loaded, names) in loaded.iter().zip(names) {
            images.extend(self.finish_load(loaded, &names).await?);
        }
        Ok(images)
    }

    async fn finish_load(&self, loaded: &Loaded, names: &[ImageRef]) -> Result<Vec<Image>, ImageError> {
        let store = Arc::clone(&self.store);
        let shown = names.first().map(ToString::to_string).unwrap_or_default();
        let failed = |error| match error {
            CompleteError::Shape(source) => ImageError::Shape { image: shown.clone(), source },
            CompleteError::Store(source) => ImageError::Store(source),
        };
        let (reading, accepted) = (Arc::clone(&store), loaded.accepted.clone());
        let shape = blocking(move || accepted.shape(&reading)).await.map_err(failed)?;
        let record = complete(&store, &loaded.accepted, &shape, Arc::new(|_| {})).await.map_err(failed)?;
        // The registry's digest of an index means nothing here: what was loaded is the manifest.
        let entry = RefEntry { manifest: record.manifest.clone(), repo_digest: record.manifest.clone() };
        let mut images = Vec::new();
        for name in names {
            let (naming, named, entry) = (Arc::clone(&store), name.clone(), entry.clone());
            blocking(move || naming.set_name(&named, &entry)).await?;
            images.push(store.image(name, &record.manifest, &record));
        }
        Ok(images)
    }

    /// The toolbox as the image `name`. The store has its blobs already, all but the first time.
    pub(super) async fn toolbox_image(&self, name: &ImageRef, progress: &Progress) -> Result<Image, PullError> {
        let started = Instant::now();
        progress(PullProgress::Pulling);
        let failed = |source| PullError::Toolbox { image: name.to_string(), source: Box::new(source) };
        let adding = Arc::clone(&self.store);
        let _guard = blocking(move || adding.adding()).await.map_err(|source| failed(ImageError::Store(source)))?;
        let store = Arc::clone(&self.store);
        let unbuilt = |source| ImageError::Build { path: TOOLBOX_PATH.into(), source };
        let loaded = blocking(move || busybox::build(&store).map_err(unbuilt)).await;
        let images = match loaded {
            Ok(loaded) => self.finish_load(&loaded, std::slice::from_ref(name)).await,
            Err(error) => Err(error),
        };
        let image = images.map_err(failed)?.pop().expect("one name gives one image");
        // It is the node's own: no registry could bring it back.
        self.pin(&image).await.map_err(failed)?;
        progress(PullProgress::Pulled { took: started.elapsed(), size: image.size });
        Ok(image)
    }

    /// Keeps an archive that comes as a stream where [`Self::load`] can read it. Blocking.
    ///
    /// # Errors
    /// [`ImageError::Store`], such as a full disk.
    pub fn spool(&self, reader: &mut dyn Read) -> Result<Spooled, ImageError> {
        let mut ingest = self.store.ingest_unknown(self.store.limits().layer_bytes)?;
        ingest.copy(&self.store, reader)?;
        Ok(Spooled { ingest })
    }

    /// Gives an image of this node another name.
    ///
    /// # Errors
    /// [`ImageError`].
    pub async fn tag(&self, name_or_id: &str, target: &ImageRef) -> Result<Image, ImageError> {
        let mut image = self.inspect(name_or_id).await?;
        let entry = RefEntry { manifest: image.manifest_digest.clone(), repo_digest: image.repo_digest.clone() };
        let (store, name) = (Arc::clone(&self.store), target.clone());
        blocking(move || Ok::<_, ImageError>(store.set_name(&name, &entry)?)).await?;
        image.reference = target.clone();
        image.spec.reference = target.to_string();
        Ok(image)
    }

    /// Sends an image of this node to the registry of `target`.
    ///
    /// # Errors
    /// [`ImageError`].
    pub async fn push(
        &self,
        name_or_id: &str,
        target: &ImageRef,
        credentials: &[Credential],
    ) -> Result<PushReport, ImageError> {
        let image = self.inspect(name_or_id).await?;
        let failed = |source| ImageError::Push { image: target.clone(), source };
        let (store, digest) = (Arc::clone(&self.store), image.manifest_digest.clone());
        let limits = *self.store.limits();
        let bytes = blocking(move || Ok::<_, ImageError>(store.read_blob(&digest, limits.manifest_bytes)?)).await?;
        let manifest = match Document::parse(&image.manifest_digest, &bytes) {
            Ok(Document::Manifest(manifest)) => manifest,
            Ok(Document::Index(_)) => return Err(ImageError::NotFound { image: name_or_id.to_owned() }),
            Err(error) => return Err(ImageError::Shape { image: name_or_id.to_owned(), source: error.into() }),
        };
        let (registry, to, credentials) = (self.registry.clone(), target.clone(), credentials.to_vec());
        let open = move || Repository::open(&registry, &to, &credentials, Action::Push, limits);
        let repository = blocking::<_, RegistryError>(open).await.map_err(failed)?;
        let mut blobs = vec![manifest.config.clone()];
        blobs.extend(manifest.layers.iter().cloned());
        blobs.sort_by(|a, b| a.digest.cmp(&b.digest));
        blobs.dedup_by(|a, b| a.digest == b.digest);
        let mut report = PushReport { digest: image.manifest_digest, sent: 0, already_there: 0 };
        let mut uploads = futures::stream::iter(blobs)
            .map(|blob| {
                let file = self.store.blob_path(&blob.digest);
                let repository = &repository;
                async move { repository.push_blob(&blob, file).await }
            })
            .buffer_unordered(PARALLEL_UPLOADS);
        while let Some(pushed) = uploads.next().await {
            match pushed.map_err(failed)? {
                Pushed::Sent => report.sent += 1,
                Pushed::AlreadyThere => report.already_there += 1,
            }
        }
        drop(uploads);
        let media_type = manifest.media_type.as_deref().unwrap_or(media_type::MANIFEST);
        repository.push_manifest(media_type, bytes).await.map_err(failed)?;
        Ok(report)
    }
}

/// Brings what is at `path` into the store. Blocking.
fn read(store: &Store, path: &Path, build: Option<&BuildOptions>) -> Result<Vec<Loaded>, ImageError> {
    let build_failed = |source: BuildError| ImageError::Build { path: path.to_owned(), source };
    if let Some(options) = build {
        return Ok(vec![builder::build_image(store, path, options).map_err(build_failed)?]);
    }
    if is_wasm(path) {
        return Ok(vec![builder::wrap_wasm(store, path).map_err(build_failed)?]);
    }
    let layout = !path.is_dir() || path.join("oci-layout").exists() || path.join("index.json").exists();
    if !layout {
        // A directory with one program needs no words.
        let built = builder::build_image(store, path, &BuildOptions::default());
        return Ok(vec![built.map_err(build_failed)?]);
    }
    archive::load(store, path).map_err(|source| ImageError::Archive { path: path.to_owned(), source })
}

/// A file of WebAssembly, or one that claims to be by its name and will be refused with its reason.
fn is_wasm(path: &Path) -> bool {
    let mut magic = [0; 4];
    let begins = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic));
    (begins.is_ok() && magic == *b"\0asm") || (path.is_file() && path.extension().is_some_and(|ext| ext == "wasm"))
}

/// The names each loaded image gets: the given one, else the archive's own.
fn names_for(path: &Path, given: Option<&ImageRef>, loaded: &[Loaded]) -> Result<Vec<Vec<ImageRef>>, ImageError> {
    let nameless = |found: String| ImageError::NameNeeded { path: path.to_owned(), found };
    if let Some(given) = given {
        let [_] = loaded else {
            return Err(nameless(format!("it holds {} images and one name was given", loaded.len())));
        };
        return Ok(vec![vec![given.clone()]]);
    }
    let mut all = Vec::new();
    for image in loaded {
        let names: Vec<ImageRef> =
            image.names.iter().filter(|name| name.contains(['/', ':'])).filter_map(|name| name.parse().ok()).collect();
        if names.is_empty() {
            return Err(nameless("an image in it has no name of its own".to_owned()));
        }
        all.push(names);
    }
    Ok(all)
}
