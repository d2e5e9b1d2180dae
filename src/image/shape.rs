//! Which shape an image has: a wasm artifact, or a root file system with a wasm entrypoint.
//!
//! In: a manifest and its configuration, later the first bytes of its program. Out: a [`Shape`], or a
//! [`ShapeError`] in words a user can act on. Module or component is told by the bytes, never by media
//! types; whether it is a command or serves HTTP, the runtime tells by exports. Pure.

use crate::ids::Digest;
use crate::pod::run::ImageSpec;

use super::documents::{Configuration, Descriptor, DocumentError, Manifest, media_type};
use super::types::ImageConfigData;

/// What a manifest and its configuration describe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// What a container's root is made of.
    pub parts: Parts,
    /// The image's defaults.
    pub config: ImageConfigData,
}

/// The blobs of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parts {
    /// One wasm file.
    Artifact(Descriptor),
    /// Layers with their diff ids, lowest first.
    Layers(Vec<(Descriptor, Digest)>),
}

/// Why this node cannot run an image.
#[derive(Debug, thiserror::Error)]
pub enum ShapeError {
    /// A document of it is malformed.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// The index has nothing for this node.
    #[error("no image for a WASI platform in the index, only {found}")]
    NoPlatform {
        /// The platforms there are.
        found: String,
    },
    /// Indexes inside indexes without end.
    #[error("its indexes are nested more than {limit} deep")]
    IndexDepth {
        /// The bound.
        limit: usize,
    },
    /// More entries than an honest index has.
    #[error("its index has {found} entries, more than {limit}")]
    IndexEntries {
        /// How many.
        found: usize,
        /// The bound.
        limit: usize,
    },
    /// Nothing in it.
    #[error("it has no layers")]
    NoLayers,
    /// More than Docker itself allows.
    #[error("it has {found} layers, more than {limit}")]
    TooManyLayers {
        /// How many.
        found: usize,
        /// The bound.
        limit: usize,
    },
    /// An artifact of several files.
    #[error(
        "it is a wasm artifact of {found} layers ({types}); a wasm artifact has exactly one application/wasm layer"
    )]
    MultiLayerArtifact {
        /// How many.
        found: usize,
        /// Their media types.
        types: String,
    },
    /// A layer nobody told us how to read.
    #[error("layer {digest} has unsupported media type {media_type:?}{hint}")]
    UnknownLayer {
        /// The layer.
        digest: Digest,
        /// Its media type.
        media_type: String,
        /// What it probably is.
        hint: &'static str,
    },
    /// The configuration and the manifest disagree.
    #[error("its configuration lists {diff_ids} diff ids for {layers} layers")]
    LayerCount {
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        diff_ids: usize,
    },
    /// The wasm configuration names another layer.
    #[error("its configuration lists layer {listed}, its manifest has {digest}")]
    LayerMismatch {
        /// In the manifest.
        digest: Digest,
        /// In the configuration.
        listed: Digest,
    },
    /// A blob is announced larger than anything this node takes.
    #[error("{what} {digest} has {size} bytes, more than {limit}")]
    TooLarge {
        /// `manifest`, `configuration` or `wasm file`.
        what: &'static str,
        /// The blob.
        digest: Digest,
        /// Its announced size.
        size: u64,
        /// The bound.
        limit: u64,
    },
    /// A program for another kind of machine.
    #[error("{path} is a {platform} executable; this node runs WASI modules")]
    NativeExecutable {
        /// In the image.
        path: String,
        /// Such as `linux/amd64`.
        platform: String,
    },
    /// A script, whose interpreter would be a native program.
    #[error("{path} is a script for {interpreter}; this node runs WASI modules")]
    Script {
        /// In the image.
        path: String,
        /// From its first line.
        interpreter: String,
    },
    /// Neither wasm nor anything known.
    #[error("{path} is not WebAssembly: it starts with {start}")]
    NotWasm {
        /// In the image.
        path: String,
        /// Its first bytes.
        start: String,
    },
    /// WebAssembly of a version nobody has defined yet.
    #[error("{path} is WebAssembly of unknown version {version:#x}")]
    WasmVersion {
        /// In the image.
        path: String,
        /// From its header.
        version: u32,
    },
    /// The file that should run is not in the image.
    #[error("its entrypoint {path} is not in the image")]
    EntrypointMissing {
        /// As the configuration has it.
        path: String,
    },
    /// The entrypoint is there and is no file, or cannot be reached.
    #[error("its entrypoint {path} cannot be read")]
    EntrypointUnreadable {
        /// As the configuration has it.
        path: String,
        /// Why.
        #[source]
        source: crate::errno::Errno,
    },
    /// Nobody says what to run.
    #[error("no command specified: the image has no entrypoint and the container no command")]
    NoCommand,
    /// Its layers cannot be merged to a file system.
    #[error("its layers cannot be opened")]
    Layers(#[source] crate::vfs::layer::LayerError),
    /// Its file system cannot be put together.
    #[error("its file system cannot be opened")]
    FileSystem(#[source] crate::vfs::MountError),
}

/// Media types of a bare wasm layer: the CNCF artifact, runwasi, and the family of wasm-to-oci.
fn is_wasm_layer(media_type: &str) -> bool {
    matches!(
        media_type,
        media_type::WASM
            | "application/vnd.wasm.content.layer.v1+wasm"
            | "application/vnd.module.wasm.content.layer.v1+wasm"
            | "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm"
            | "application/vnd.bytecodealliance.component.layer.v0+wasm"
            | "application/vnd.w3c.wasm.component.v1+wasm"
            | "application/vnd.w3c.wasm.module.v1+wasm"
    )
}

/// Media types of a layer that is a tar. The compression in them is not believed.
fn is_tar_layer(media_type: &str) -> bool {
    let base = media_type.split('+').next().unwrap_or_default();
    let known = matches!(
        base,
        "application/vnd.oci.image.layer.v1.tar" | "application/vnd.oci.image.layer.nondistributable.v1.tar"
    ) && !media_type.contains("encrypted");
    known
        || matches!(
            media_type,
            "application/vnd.docker.image.rootfs.diff.tar.gzip"
                | "application/vnd.docker.image.rootfs.diff.tar.zstd"
                | "application/vnd.docker.image.rootfs.diff.tar"
                | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
                | "application/vnd.docker.image.rootfs.foreign.diff.tar"
        )
}

fn hint(manifest: &Manifest, media_type: &str) -> &'static str {
    let config = manifest.config.media_type.as_str();
    match () {
        () if media_type.contains("encrypted") => ": encrypted layers are not supported",
        () if config.contains("helm.config") => ": this is a Helm chart, not an image",
        () if config.contains("fermyon.spin") || media_type.contains("fermyon.spin") => {
            ": this is a Spin application; push its component as a wasm artifact"
        }
        () if media_type.contains("wasmcloud.provider") => ": this is a wasmCloud provider, a native program",
        () if media_type.contains("precompiled") => ": native code is not accepted from a registry",
        () if config.contains("cosign") || media_type.contains("cosign") || media_type.contains("sigstore") => {
            ": this is a signature, not an image"
        }
        () => "",
    }
}

impl Shape {
    /// Reads the shape of a manifest with its configuration.
    ///
    /// # Errors
    /// [`ShapeError`].
    pub fn of(manifest: &Manifest, configuration: &Configuration) -> Result<Self, ShapeError> {
        let wasm_layers = manifest.layers.iter().filter(|layer| is_wasm_layer(&layer.media_type)).count();
        match (manifest.layers.as_slice(), wasm_layers) {
            ([], _) => Err(ShapeError::NoLayers),
            ([layer], 1) => artifact(layer, configuration),
            (layers, 1..) => Err(ShapeError::MultiLayerArtifact { found: layers.len(), types: types_of(layers) }),
            (layers, 0) => rootfs(manifest, layers, configuration),
        }
    }
}

fn artifact(layer: &Descriptor, configuration: &Configuration) -> Result<Shape, ShapeError> {
    // `layerDigests` is optional in practice; when it is there it must be true.
    if let Some(listed) = configuration.layer_digests.first().filter(|listed| **listed != layer.digest) {
        return Err(ShapeError::LayerMismatch { digest: layer.digest.clone(), listed: listed.clone() });
    }
    let mut config = defaults(configuration);
    // The file has one place in its container. An entrypoint of an image configuration (runwasi's images)
    // names it otherwise; its function and arguments are kept.
    let function = config.entrypoint.first().and_then(|path| path.split_once('#')).map(|(_, function)| function);
    let program = match function {
        Some(function) => format!("{}#{function}", ImageSpec::ARTIFACT_PATH),
        None => ImageSpec::ARTIFACT_PATH.to_owned(),
    };
    if config.entrypoint.is_empty() {
        config.entrypoint.push(program);
    } else {
        config.entrypoint[0] = program;
    }
    Ok(Shape { parts: Parts::Artifact(layer.clone()), config })
}

fn rootfs(manifest: &Manifest, layers: &[Descriptor], configuration: &Configuration) -> Result<Shape, ShapeError> {
    if let Some(layer) = layers.iter().find(|layer| !is_tar_layer(&layer.media_type)) {
        return Err(ShapeError::UnknownLayer {
            digest: layer.digest.clone(),
            media_type: layer.media_type.chars().take(128).collect(),
            hint: hint(manifest, &layer.media_type),
        });
    }
    let diff_ids = configuration.diff_ids();
    if diff_ids.len() != layers.len() {
        return Err(ShapeError::LayerCount { layers: layers.len(), diff_ids: diff_ids.len() });
    }
    let layers = layers.iter().cloned().zip(diff_ids.iter().cloned()).collect();
    Ok(Shape { parts: Parts::Layers(layers), config: defaults(configuration) })
}

fn types_of(layers: &[Descriptor]) -> String {
    let mut types: Vec<&str> = layers.iter().map(|layer| layer.media_type.as_str()).take(4).collect();
    types.dedup();
    types.join(", ").chars().take(256).collect()
}

fn defaults(configuration: &Configuration) -> ImageConfigData {
    let config = &configuration.config;
    let env = config.env.iter().map(|entry| match entry.split_once('=') {
        Some((name, value)) => (name.to_owned(), value.to_owned()),
        None => (entry.clone(), String::new()),
    });
    ImageConfigData {
        entrypoint: config.entrypoint.clone(),
        cmd: config.cmd.clone(),
        env: env.collect(),
        working_dir: config.working_dir.clone(),
        user: config.user.clone(),
        stop_signal: Some(config.stop_signal.clone()).filter(|signal| !signal.is_empty()),
        exposed_ports: config.exposed_ports.keys().cloned().collect(),
        labels: config.labels.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
        platform: format!("{}/{}", configuration.os, configuration.architecture),
        created: configuration.created.clone(),
    }
}

#[cfg(test)]
mod tests;
