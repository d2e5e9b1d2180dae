//! Images without Docker: a wasm file, or a directory with one, becomes an image of the store.
//!
//! In: a path and the defaults a container should have. Out: blobs of the store. The same directory gives
//! the same digest: members are sorted, owned by 0:0, and nothing of now is written.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::ids::Digest;

use super::archive::{Loaded, descriptor};
use super::complete::Accepted;
use super::documents::{Configuration, ContainerDefaults, Descriptor, Manifest, RootFs, media_type};
use super::magic::{HEAD_BYTES, WasmKind, wasm_kind};
use super::shape::ShapeError;
use super::store::{Ingest, Store, StoreError};

/// What a container of the image does by default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BuildOptions {
    /// `Entrypoint`; of a directory with one wasm file, that file when empty.
    pub entrypoint: Vec<String>,
    /// `Cmd`.
    pub cmd: Vec<String>,
    /// `Env`, as `NAME=value`.
    pub env: Vec<String>,
    /// `WorkingDir`.
    pub working_dir: String,
    /// `User`.
    pub user: String,
    /// `ExposedPorts`, as `8080/tcp`.
    pub exposed_ports: Vec<String>,
    /// `Labels`, as `name=value`.
    pub labels: Vec<String>,
    /// `StopSignal`.
    pub stop_signal: String,
}

/// Why an image could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A file cannot be read.
    #[error("reading {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file that no image can hold.
    #[error("{} is a device, socket or pipe", path.display())]
    Special {
        /// The file.
        path: PathBuf,
    },
    /// Nobody says what to run.
    #[error("it has {found} .wasm files at its top; say which one to run with --entrypoint")]
    Entrypoint {
        /// How many.
        found: usize,
    },
    /// More files than an image may have.
    #[error("it has more than {limit} files")]
    TooManyFiles {
        /// The bound.
        limit: usize,
    },
    /// The program is not WebAssembly, or something else does not fit.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A bare wasm file as the CNCF artifact: configuration `application/vnd.wasm.config.v0+json`, one layer
/// `application/wasm`. Blocking.
///
/// # Errors
/// [`BuildError`].
pub fn wrap_wasm(store: &Store, path: &Path) -> Result<Loaded, BuildError> {
    let kind = kind_of(path)?;
    let mut file = File::open(path).map_err(|source| read_error(path, source))?;
    let mut ingest = store.ingest_unknown(store.limits().wasm_bytes)?;
    ingest.copy(store, &mut file)?;
    let size = ingest.written();
    let digest = ingest.commit(store)?;
    let configuration = Configuration {
        architecture: "wasm".to_owned(),
        os: os_of(kind).to_owned(),
        layer_digests: vec![digest.clone()],
        ..Configuration::default()
    };
    finish(store, media_type::WASM_CONFIG, &configuration, descriptor(media_type::WASM, digest, size))
}

/// A directory (or one file of it) as an ordinary image of one layer. Blocking.
///
/// # Errors
/// [`BuildError`].
pub fn build_image(store: &Store, path: &Path, options: &BuildOptions) -> Result<Loaded, BuildError> {
    let metadata = fs::metadata(path).map_err(|source| read_error(path, source))?;
    let (root, files) = if metadata.is_dir() {
        (path.to_owned(), walk(path, store.limits().archive_entries)?)
    } else {
        let root = path.parent().unwrap_or(Path::new("/")).to_owned();
        (root, vec![path.to_owned()])
    };
    let entrypoint = if options.entrypoint.is_empty() && options.cmd.is_empty() {
        vec![only_wasm(&root, &files)?]
    } else {
        options.entrypoint.clone()
    };
    // The program's kind labels the image; a program that is elsewhere (or missing) is found when completing.
    let program = entrypoint.first().or(options.cmd.first()).map(|path| path.split('#').next().unwrap_or_default());
    let kind = match program.map(|program| root.join(program.trim_start_matches('/'))).filter(|path| path.is_file()) {
        Some(program) => kind_of(&program)?,
        None => WasmKind::Module,
    };
    let layer =
        write_layer(store, |tar| files.iter().try_for_each(|file| append(tar, &root, file)).map_err(LayerError::Build));
    let (layer, diff_id) = layer.map_err(|error| error.at(&root))?;
    finish_layer(store, os_of(kind), container_defaults(entrypoint, options), (layer, diff_id))
}

/// An image of one layer that `write` writes, whose programs need no looking at. Blocking.
///
/// # Errors
/// [`BuildError`].
pub fn image_of_layer(
    store: &Store,
    options: &BuildOptions,
    write: impl FnOnce(&mut LayerTar<'_>) -> Result<(), LayerError>,
) -> Result<Loaded, BuildError> {
    let layer = write_layer(store, write).map_err(|error| error.at(Path::new("toolbox")))?;
    let defaults = container_defaults(options.entrypoint.clone(), options);
    finish_layer(store, os_of(WasmKind::Module), defaults, layer)
}

fn finish_layer(
    store: &Store,
    os: &str,
    config: ContainerDefaults,
    (layer, diff_id): (Descriptor, Digest),
) -> Result<Loaded, BuildError> {
    let configuration = Configuration {
        architecture: "wasm".to_owned(),
        os: os.to_owned(),
        config,
        rootfs: Some(RootFs { kind: "layers".to_owned(), diff_ids: vec![diff_id] }),
        ..Configuration::default()
    };
    finish(store, media_type::CONFIG, &configuration, layer)
}

fn container_defaults(entrypoint: Vec<String>, options: &BuildOptions) -> ContainerDefaults {
    let pair = |text: &String| match text.split_once('=') {
        Some((name, value)) => (name.to_owned(), value.to_owned()),
        None => (text.clone(), String::new()),
    };
    let port = |port: &String| {
        let port = if port.contains('/') { port.clone() } else { format!("{port}/tcp") };
        (port, serde_json::json!({}))
    };
    ContainerDefaults {
        user: options.user.clone(),
        exposed_ports: options.exposed_ports.iter().map(port).collect(),
        env: options.env.clone(),
        entrypoint,
        cmd: options.cmd.clone(),
        working_dir: options.working_dir.clone(),
        labels: options.labels.iter().map(pair).collect(),
        stop_signal: options.stop_signal.clone(),
    }
}

fn finish(
    store: &Store,
    config_type: &str,
    configuration: &Configuration,
    layer: Descriptor,
) -> Result<Loaded, BuildError> {
    let config = serde_json::to_vec(configuration).expect("a configuration has string keys only");
    let config_digest = store.put_blob(&config)?;
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(media_type::MANIFEST.to_owned()),
        artifact_type: None,
        config: descriptor(config_type, config_digest, config.len() as u64),
        layers: vec![layer],
        annotations: std::collections::BTreeMap::new(),
    };
    let bytes = serde_json::to_vec(&manifest).expect("a manifest has string keys only");
    let digest = store.put_blob(&bytes)?;
    let accepted = Accepted::check(digest.clone(), bytes.len() as u64, manifest, store.limits())?;
    Ok(Loaded { names: Vec::new(), accepted })
}

fn read_error(path: &Path, source: io::Error) -> BuildError {
    BuildError::Read { path: path.to_owned(), source }
}

fn kind_of(path: &Path) -> Result<WasmKind, BuildError> {
    let mut head = Vec::with_capacity(HEAD_BYTES);
    File::open(path)
        .and_then(|file| file.take(HEAD_BYTES as u64).read_to_end(&mut head))
        .map_err(|source| read_error(path, source))?;
    Ok(wasm_kind(&path.display().to_string(), &head)?)
}

/// The CNCF artifact's `os`.
fn os_of(kind: WasmKind) -> &'static str {
    match kind {
        WasmKind::Module => "wasip1",
        WasmKind::Component => "wasip2",
    }
}

fn only_wasm(root: &Path, files: &[PathBuf]) -> Result<String, BuildError> {
    let at_top = files
        .iter()
        .filter(|file| file.parent() == Some(root) && file.extension().is_some_and(|extension| extension == "wasm"));
    let found: Vec<&PathBuf> = at_top.collect();
    match found.as_slice() {
        [one] => Ok(format!("/{}", one.file_name().unwrap_or_default().to_string_lossy())),
        other => Err(BuildError::Entrypoint { found: other.len() }),
    }
}

/// Everything below a directory, parents first, sorted; symlinks are not followed.
fn walk(root: &Path, limit: usize) -> Result<Vec<PathBuf>, BuildError> {
    let mut found = Vec::new();
    let mut pending = vec![root.to_owned()];
    // A list instead of recursion: the depth is the directory's to choose.
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).map_err(|source| read_error(&dir, source))? {
            let entry = entry.map_err(|source| read_error(&dir, source))?;
            let kind = entry.file_type().map_err(|source| read_error(&entry.path(), source))?;
            if kind.is_dir() {
                pending.push(entry.path());
            }
            found.push(entry.path());
            if found.len() > limit {
                return Err(BuildError::TooManyFiles { limit });
            }
        }
    }
    found.sort();
    Ok(found)
}

/// A layer under way: hashed, compressed, into the store.
pub type LayerTar<'a> = tar::Builder<Hashing<flate2::write::GzEncoder<IngestWriter<'a>>>>;

/// Why a layer could not be written.
#[derive(Debug)]
pub enum LayerError {
    /// A file of a directory.
    Build(BuildError),
    /// The toolbox's own files, or the end of the archive.
    Write(io::Error),
    /// The store.
    Store(StoreError),
}

impl LayerError {
    fn at(self, path: &Path) -> BuildError {
        match self {
            Self::Build(error) => error,
            Self::Write(source) => read_error(path, source),
            Self::Store(error) => error.into(),
        }
    }
}

impl From<StoreError> for LayerError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Writes a gzipped tar into the store; gives its descriptor and its diff id.
fn write_layer(
    store: &Store,
    write: impl FnOnce(&mut LayerTar<'_>) -> Result<(), LayerError>,
) -> Result<(Descriptor, Digest), LayerError> {
    let ingest = store.ingest_unknown(store.limits().blob_bytes)?;
    let encoder = flate2::write::GzEncoder::new(IngestWriter { ingest, store }, flate2::Compression::default());
    let mut tar = tar::Builder::new(Hashing { inner: encoder, hasher: Sha256::new() });
    write(&mut tar)?;
    let hashing = tar.into_inner().map_err(LayerError::Write)?;
    let diff_id = Digest::from_sha256(hashing.hasher.finalize().into());
    let ingest = hashing.inner.finish().map_err(LayerError::Write)?.ingest;
    let size = ingest.written();
    let digest = ingest.commit(store)?;
    Ok((descriptor(media_type::LAYER_GZIP, digest, size), diff_id))
}

fn append(tar: &mut tar::Builder<impl Write>, root: &Path, path: &Path) -> Result<(), BuildError> {
    let failed = |source| read_error(path, source);
    let name = path.strip_prefix(root).unwrap_or(path);
    let metadata = fs::symlink_metadata(path).map_err(failed)?;
    let kind = metadata.file_type();
    let mut header = tar::Header::new_gnu();
    header.set_mode(metadata.permissions().mode() & 0o7777);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(metadata.mtime().max(0) as u64);
    if kind.is_symlink() {
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        let target = fs::read_link(path).map_err(failed)?;
        tar.append_link(&mut header, name, target).map_err(failed)
    } else if kind.is_dir() {
        header.set_entry_type(tar::EntryType::Directory);
        header.set_size(0);
        tar.append_data(&mut header, format!("{}/", name.display()), io::empty()).map_err(failed)
    } else if kind.is_file() {
        header.set_entry_type(tar::EntryType::Regular);
        header.set_size(metadata.len());
        let file = File::open(path).map_err(failed)?;
        // A file that grows meanwhile would break the tar's framing.
        tar.append_data(&mut header, name, file.take(metadata.len())).map_err(failed)
    } else {
        Err(BuildError::Special { path: path.to_owned() })
    }
}

/// The store's side of a writer chain.
pub struct IngestWriter<'a> {
    ingest: Ingest,
    store: &'a Store,
}

impl Write for IngestWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.ingest.write(self.store, bytes).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Hashes what goes through: the diff id.
pub struct Hashing<W> {
    inner: W,
    hasher: Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
