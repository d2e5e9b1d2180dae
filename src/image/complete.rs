//! From blobs to a whole image: shape, layers, program, record.
//!
//! In: a manifest whose configuration (later: all of whose blobs) are in the store. Out: an
//! [`ImageRecord`], written. The program is looked at by its first bytes before anything may run it.

use std::collections::HashSet;
use std::io::Read as _;
use std::sync::Arc;

use crate::errno::Errno;
use crate::ids::Digest;
use crate::pod::run::{Access, ImageSpec};
use crate::pod::toolbox::{TOOLBOX_PATH, stands_in_for};
use crate::vfs::layer::LayerStack;
use crate::vfs::{Credentials, Namespace, NamespaceBuilder, OpenOptions, Opened, Upper};

use super::documents::{Configuration, Descriptor, Manifest};
use super::limits::ImageLimits;
use super::magic::{HEAD_BYTES, wasm_kind};
use super::shape::{Parts, Shape, ShapeError};
use super::store::{Content, ImageRecord, Store, StoreError};
use super::types::ImageConfigData;

/// Why an image could not be completed.
#[derive(Debug, thiserror::Error)]
pub enum CompleteError {
    /// It is not one this node can run.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// The store failed, or a blob is not what it should be.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A manifest, found good as far as it goes.
#[derive(Debug, Clone)]
pub struct Accepted {
    /// Its digest.
    pub digest: Digest,
    /// Its own bytes.
    pub size: u64,
    /// The manifest.
    pub manifest: Manifest,
}

impl Accepted {
    /// Checks the numbers of a manifest before anything of it is transferred.
    ///
    /// # Errors
    /// [`ShapeError`].
    pub fn check(digest: Digest, size: u64, manifest: Manifest, limits: &ImageLimits) -> Result<Self, ShapeError> {
        if manifest.layers.len() > limits.layers {
            return Err(ShapeError::TooManyLayers { found: manifest.layers.len(), limit: limits.layers });
        }
        let bound = |what, blob: &Descriptor, limit| {
            if blob.size <= limit {
                return Ok(());
            }
            Err(ShapeError::TooLarge { what, digest: blob.digest.clone(), size: blob.size, limit })
        };
        bound("configuration", &manifest.config, limits.config_bytes)?;
        manifest.layers.iter().try_for_each(|layer| bound("layer", layer, limits.blob_bytes))?;
        Ok(Self { digest, size, manifest })
    }

    /// The layers as blobs to transfer, each once.
    #[must_use]
    pub fn layer_blobs(&self) -> Vec<Descriptor> {
        let mut seen = HashSet::new();
        self.manifest.layers.iter().filter(|layer| seen.insert(layer.digest.clone())).cloned().collect()
    }

    /// Reads the configuration, which is in the store by now, and tells the shape. Blocking.
    ///
    /// # Errors
    /// [`CompleteError`].
    pub fn shape(&self, store: &Store) -> Result<Shape, CompleteError> {
        let limits = store.limits();
        let bytes = store.read_blob(&self.manifest.config.digest, limits.config_bytes)?;
        // Artifacts may have the empty configuration `{}`, or (older tools) something that is not JSON.
        let configuration = match Configuration::parse(&self.manifest.config.digest, &bytes) {
            Ok(configuration) => configuration,
            Err(_) if !self.has_image_configuration() => Configuration::default(),
            Err(error) => return Err(ShapeError::from(error).into()),
        };
        let shape = Shape::of(&self.manifest, &configuration)?;
        if let Parts::Artifact(wasm) = &shape.parts
            && wasm.size > limits.wasm_bytes
        {
            let limit = limits.wasm_bytes;
            let (digest, size) = (wasm.digest.clone(), wasm.size);
            return Err(ShapeError::TooLarge { what: "wasm file", digest, size, limit }.into());
        }
        Ok(shape)
    }

    fn has_image_configuration(&self) -> bool {
        use super::documents::media_type::{CONFIG, DOCKER_CONFIG, WASM_CONFIG};
        matches!(self.manifest.config.media_type.as_str(), CONFIG | DOCKER_CONFIG | WASM_CONFIG | "")
    }

    fn blobs(&self) -> Vec<(Digest, u64)> {
        let config = &self.manifest.config;
        let mut blobs = vec![(self.digest.clone(), self.size), (config.digest.clone(), config.size)];
        blobs.extend(self.layer_blobs().into_iter().map(|layer| (layer.digest, layer.size)));
        blobs
    }
}

/// Unpacks the layers, looks at the program, writes the record. All blobs must be in the store.
///
/// # Errors
/// [`CompleteError`].
pub async fn complete(
    store: &Arc<Store>,
    accepted: &Accepted,
    shape: &Shape,
    on_unpack: Arc<dyn Fn(&Digest) + Send + Sync>,
) -> Result<ImageRecord, CompleteError> {
    let content = match &shape.parts {
        Parts::Artifact(wasm) => {
            let (reading, digest) = (Arc::clone(store), wasm.digest.clone());
            blocking(move || check_artifact(&reading, &digest)).await?;
            Content::Artifact(wasm.digest.clone())
        }
        Parts::Layers(layers) => {
            let (unpacking, parts) = (Arc::clone(store), layers.clone());
            let stack = blocking(move || unpack(&unpacking, &parts, &*on_unpack)).await?;
            check_program(stack, &shape.config).await?;
            Content::Layers(layers.iter().map(|(_, diff_id)| diff_id.clone()).collect())
        }
    };
    let image_id = accepted.manifest.config.digest.clone();
    let record = ImageRecord::new(accepted.digest.clone(), image_id, accepted.blobs(), content, shape.config.clone());
    let (writing, written) = (Arc::clone(store), record.clone());
    blocking(move || writing.put_record(&written).map_err(CompleteError::from)).await?;
    Ok(record)
}

fn check_artifact(store: &Store, digest: &Digest) -> Result<(), CompleteError> {
    let path = store.blob_path(digest);
    let mut head = Vec::with_capacity(HEAD_BYTES);
    std::fs::File::open(&path)
        .and_then(|file| file.take(HEAD_BYTES as u64).read_to_end(&mut head))
        .map_err(|source| StoreError::Io { step: "reading", path, source })?;
    wasm_kind(ImageSpec::ARTIFACT_PATH, &head)?;
    Ok(())
}

fn unpack(
    store: &Store,
    layers: &[(Descriptor, Digest)],
    on_unpack: &dyn Fn(&Digest),
) -> Result<Arc<LayerStack>, CompleteError> {
    let mut specs = Vec::with_capacity(layers.len());
    for (blob, diff_id) in layers {
        if !store.has_layer(diff_id) {
            on_unpack(&blob.digest);
        }
        specs.push(store.unpack_layer(&blob.digest, diff_id)?);
    }
    LayerStack::open(&specs).map_err(|error| ShapeError::Layers(error).into())
}

/// Looks at the file the image starts with. An image that names none is for pods that do.
async fn check_program(stack: Arc<LayerStack>, config: &ImageConfigData) -> Result<(), ShapeError> {
    let Some(program) = config.entrypoint.first().or_else(|| config.cmd.first()) else { return Ok(()) };
    // `path#func` names a function of the module.
    let path = program.split_once('#').map_or(program.as_str(), |(path, _)| path);
    let namespace = NamespaceBuilder::new(stack, Upper::Memory { limit: 0 }, Access::ReadOnly)
        .build()
        .await
        .map_err(ShapeError::FileSystem)?;
    let unreadable = |source| ShapeError::EntrypointUnreadable { path: path.to_owned(), source };
    for candidate in program_paths(path, config) {
        let Some(head) = head_of(&namespace, &candidate).await.map_err(unreadable)? else { continue };
        return match wasm_kind(&candidate, &head) {
            Err(ShapeError::Script { path, interpreter }) => check_script(&namespace, path, interpreter).await,
            kind => kind.map(drop),
        };
    }
    Err(ShapeError::EntrypointMissing { path: path.to_owned() })
}

/// A script runs where its interpreter does: one of the image's that is wasm, or the toolbox.
async fn check_script(namespace: &Namespace, path: String, interpreter: String) -> Result<(), ShapeError> {
    let program = interpreter.split_ascii_whitespace().next().unwrap_or_default().to_owned();
    if program == TOOLBOX_PATH {
        return Ok(());
    }
    let unreadable = |source| ShapeError::EntrypointUnreadable { path: program.clone(), source };
    match head_of(namespace, &program).await.map_err(unreadable)? {
        Some(head) => match wasm_kind(&program, &head) {
            // One more level and no further: what it comes to is seen when it runs.
            Ok(_) | Err(ShapeError::Script { .. }) => Ok(()),
            Err(error) => Err(error),
        },
        None if stands_in_for(&program) => Ok(()),
        None => Err(ShapeError::Script { path, interpreter }),
    }
}

/// The first bytes of a file; none where there is no file.
async fn head_of(namespace: &Namespace, path: &str) -> Result<Option<Vec<u8>>, Errno> {
    match namespace.open(&Credentials::root(), &namespace.root(), path, OpenOptions::read()).await {
        Ok(Opened::File(file)) => {
            let mut head = vec![0; HEAD_BYTES];
            let read = file.read_at(&mut head, 0).await?;
            head.truncate(read);
            Ok(Some(head))
        }
        Ok(_) | Err(Errno::NoEnt | Errno::NotDir) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Where a program may be: as written, else beside the working directory, in `PATH`, at the root.
fn program_paths(path: &str, config: &ImageConfigData) -> Vec<String> {
    if path.starts_with('/') {
        return vec![path.to_owned()];
    }
    let below = |dir: &str| format!("{}/{path}", dir.trim_end_matches('/'));
    let mut paths = vec![below(&config.working_dir)];
    if !path.contains('/') {
        let search = config.env.iter().rev().find(|(name, _)| name == "PATH").map(|(_, value)| value.as_str());
        // Bounded: PATH is the image's to write.
        paths.extend(search.unwrap_or_default().split(':').filter(|dir| dir.starts_with('/')).take(32).map(below));
    }
    paths.push(below("/"));
    paths
}

/// Runs a step on the blocking pool.
pub async fn blocking<T: Send + 'static, E: From<StoreError> + Send + 'static>(
    step: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E> {
    match tokio::task::spawn_blocking(step).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is going away; so does this step.
            Err(error) => Err(StoreError::Io {
                step: "running",
                path: "blocking pool".into(),
                source: std::io::Error::other(error),
            }
            .into()),
        },
    }
}
