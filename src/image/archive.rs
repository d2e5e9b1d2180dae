//! Images from files: OCI layouts (a directory or a tar) and `docker save` archives.
//!
//! In: a path. Out: every image in it as blobs of the store, with the names the archive gives. Archives are
//! hostile: digests are checked, members are looked up by exact name and never extracted, numbers are
//! bounded. Completing the images is `complete`'s.

mod docker;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::ids::Digest;

use super::complete::Accepted;
use super::documents::{Descriptor, Document, DocumentError};
use super::platform;
use super::shape::ShapeError;
use super::store::{Store, StoreError};

/// Why an archive or a layout cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// It cannot be read.
    #[error("reading {what}")]
    Read {
        /// The file or member.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is nothing an image comes in.
    #[error(
        "it is neither a .wasm file, an OCI layout, nor an archive of `docker save`; a directory to build an image from needs --entrypoint"
    )]
    Unknown,
    /// It names a file that is not in it.
    #[error("{name} is missing from it")]
    Missing {
        /// The file.
        name: String,
    },
    /// More members than an image archive has.
    #[error("it has more than {limit} members")]
    TooManyMembers {
        /// The bound.
        limit: usize,
    },
    /// A document in it is larger than it may be.
    #[error("{name} in it is larger than {limit} bytes")]
    TooLarge {
        /// The member.
        name: String,
        /// The bound.
        limit: u64,
    },
    /// A document in it is malformed.
    #[error("{name} in it is malformed")]
    Malformed {
        /// The member.
        name: String,
        /// Where.
        #[source]
        source: serde_json::Error,
    },
    /// A manifest in it is malformed.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// An image in it is not for this node.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// The store failed, or a blob is not what its digest says.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no image in it.
    #[error("it holds no image")]
    Empty,
}

/// One image found in an archive; its blobs are in the store.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// Names the archive gives, as written.
    pub names: Vec<String>,
    /// The manifest.
    pub accepted: Accepted,
}

/// Reads every image of the layout or archive at `path` into the store. Blocking.
///
/// # Errors
/// [`ArchiveError`].
pub fn load(store: &Store, path: &Path) -> Result<Vec<Loaded>, ArchiveError> {
    let mut source = Source::open(store, path)?;
    let loaded = if source.contains("oci-layout") || source.contains("index.json") {
        load_layout(store, &mut source)?
    } else if source.contains("manifest.json") {
        docker::load(store, &mut source)?
    } else {
        return Err(ArchiveError::Unknown);
    };
    if loaded.is_empty() { Err(ArchiveError::Empty) } else { Ok(loaded) }
}

/// The files of a layout, wherever they are.
enum Source {
    Directory(PathBuf),
    Tar { file: File, members: HashMap<String, Member> },
}

enum Member {
    File {
        offset: u64,
        size: u64,
    },
    /// Older `docker save` links a layer that is there twice.
    Link(String),
}

impl Source {
    fn open(store: &Store, path: &Path) -> Result<Self, ArchiveError> {
        if path.is_dir() {
            return Ok(Self::Directory(path.to_owned()));
        }
        let read = |source| ArchiveError::Read { what: path.display().to_string(), source };
        let mut file = File::open(path).map_err(read)?;
        let mut magic = [0; 4];
        let got = file.read(&mut magic).map_err(read)?;
        file.rewind().map_err(read)?;
        let file = match &magic[..got] {
            [0x1f, 0x8b, ..] => spool(store, flate2::bufread::MultiGzDecoder::new(BufReader::new(file)), path)?,
            [0x28, 0xb5, 0x2f, 0xfd] => {
                let mut decoder = zstd::stream::read::Decoder::new(file).map_err(read)?;
                decoder.window_log_max(27).map_err(read)?;
                spool(store, decoder, path)?
            }
            _ => file,
        };
        let members = list(&file, store.limits().archive_entries)?;
        Ok(Self::Tar { file, members })
    }

    fn contains(&self, name: &str) -> bool {
        match self {
            Self::Directory(dir) => dir.join(name).is_file(),
            Self::Tar { members, .. } => members.contains_key(name),
        }
    }

    /// Opens a file of the layout. `name` has no `..`: it is a constant, a digest, or looked up among members.
    fn open_member(&mut self, name: &str) -> Result<(Box<dyn Read + '_>, u64), ArchiveError> {
        let missing = || ArchiveError::Missing { name: name.to_owned() };
        let read = |source| ArchiveError::Read { what: name.to_owned(), source };
        match self {
            Self::Directory(dir) => {
                let file = File::open(dir.join(name))
                    .map_err(|error| if error.kind() == io::ErrorKind::NotFound { missing() } else { read(error) })?;
                let size = file.metadata().map_err(read)?.len();
                Ok((Box::new(file), size))
            }
            Self::Tar { file, members } => {
                let mut name = name;
                // A link to a link is more than Docker ever wrote.
                for _ in 0..4 {
                    match members.get(name).ok_or_else(missing)? {
                        Member::Link(target) => name = target,
                        Member::File { offset, size } => {
                            file.seek(SeekFrom::Start(*offset)).map_err(read)?;
                            return Ok((Box::new(BufReader::with_capacity(256 << 10, &*file).take(*size)), *size));
                        }
                    }
                }
                Err(missing())
            }
        }
    }

    fn read_small(&mut self, name: &str, limit: u64) -> Result<Vec<u8>, ArchiveError> {
        let (reader, size) = self.open_member(name)?;
        if size > limit {
            return Err(ArchiveError::TooLarge { name: name.to_owned(), limit });
        }
        let mut bytes = Vec::new();
        let read = reader.take(limit).read_to_end(&mut bytes);
        read.map_err(|source| ArchiveError::Read { what: name.to_owned(), source })?;
        Ok(bytes)
    }

    /// Brings one blob of an OCI layout into the store.
    fn take_blob(&mut self, store: &Store, blob: &Descriptor) -> Result<(), ArchiveError> {
        if store.has_blob(&blob.digest, blob.size) {
            return Ok(());
        }
        let (mut reader, _) = self.open_member(&blob_name(&blob.digest))?;
        Ok(store.put_reader(&mut *reader, &blob.digest, blob.size)?)
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// A compressed archive as a plain file that can be sought in; unnamed, it goes with its handle.
fn spool(store: &Store, mut reader: impl Read, path: &Path) -> Result<File, ArchiveError> {
    let limit = store.limits().layer_bytes;
    let mut ingest = store.ingest_unknown(limit)?;
    ingest.copy(store, &mut reader).map_err(|error| match error {
        StoreError::Io { source, .. } => ArchiveError::Read { what: path.display().to_string(), source },
        other => other.into(),
    })?;
    let mut file = ingest.into_unnamed_file()?;
    file.rewind().map_err(|source| ArchiveError::Read { what: path.display().to_string(), source })?;
    Ok(file)
}

/// Where each member of a tar is.
fn list(file: &File, limit: usize) -> Result<HashMap<String, Member>, ArchiveError> {
    let read = |source| ArchiveError::Read { what: "the archive".to_owned(), source };
    let mut archive = tar::Archive::new(file);
    let mut members = HashMap::new();
    for entry in archive.entries_with_seek().map_err(read)? {
        // What is no tar fails at its first header.
        let entry = entry.map_err(|error| if members.is_empty() { ArchiveError::Unknown } else { read(error) })?;
        if members.len() >= limit {
            return Err(ArchiveError::TooManyMembers { limit });
        }
        let path = entry.path_bytes();
        let name = String::from_utf8_lossy(path.strip_prefix(b"./").unwrap_or(&path)).into_owned();
        let member = match entry.header().entry_type() {
            kind if kind.is_file() => Member::File { offset: entry.raw_file_position(), size: entry.size() },
            kind if kind.is_symlink() || kind.is_hard_link() => {
                let Some(target) = entry.link_name_bytes() else { continue };
                Member::Link(link_target(&name, &String::from_utf8_lossy(&target)))
            }
            _ => continue,
        };
        members.insert(name, member);
    }
    Ok(members)
}

/// `../abc/layer.tar` beside `def/layer.tar` is `abc/layer.tar`.
fn link_target(name: &str, target: &str) -> String {
    let mut parts: Vec<&str> = name.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            other => parts.push(other),
        }
    }
    parts.join("/")
}

fn load_layout(store: &Store, source: &mut Source) -> Result<Vec<Loaded>, ArchiveError> {
    let limits = *store.limits();
    let bytes = source.read_small("index.json", limits.manifest_bytes)?;
    let Document::Index(index) = Document::parse(&Digest::of(&bytes), &bytes)? else {
        return Err(DocumentError::Ambiguous { digest: Digest::of(&bytes) }.into());
    };
    let images: Vec<&Descriptor> =
        index.manifests.iter().filter(|entry| !entry.annotations.contains_key("vnd.docker.reference.type")).collect();
    if images.len() > limits.index_entries {
        return Err(ShapeError::IndexEntries { found: images.len(), limit: limits.index_entries }.into());
    }
    // Entries that differ only in platform are one image; entries with names are an image each.
    let named = images.iter().any(|entry| !names_of(entry).is_empty());
    let chosen: Vec<Descriptor> = if named || images.len() <= 1 {
        images.into_iter().cloned().collect()
    } else {
        vec![platform::choose(&index)?.clone()]
    };
    let mut loaded: Vec<Loaded> = Vec::new();
    for entry in chosen {
        let accepted = take_image(store, source, &entry, 0)?;
        loaded.push(Loaded { names: names_of(&entry), accepted });
    }
    Ok(loaded)
}

/// containerd's full name, else the layout's own, which may be a tag alone.
fn names_of(entry: &Descriptor) -> Vec<String> {
    let annotation = |key: &str| entry.annotations.get(key).cloned();
    annotation("io.containerd.image.name")
        .or_else(|| annotation("org.opencontainers.image.ref.name"))
        .into_iter()
        .collect()
}

/// Brings a manifest and all its blobs in; of an index, the platform's.
fn take_image(store: &Store, source: &mut Source, entry: &Descriptor, depth: usize) -> Result<Accepted, ArchiveError> {
    let limits = *store.limits();
    if depth > limits.index_depth {
        return Err(ShapeError::IndexDepth { limit: limits.index_depth }.into());
    }
    if entry.size > limits.manifest_bytes {
        return Err(ArchiveError::TooLarge { name: blob_name(&entry.digest), limit: limits.manifest_bytes });
    }
    source.take_blob(store, entry)?;
    let bytes = store.read_blob(&entry.digest, limits.manifest_bytes)?;
    match Document::parse(&entry.digest, &bytes)? {
        Document::Index(index) => {
            if index.manifests.len() > limits.index_entries {
                return Err(
                    ShapeError::IndexEntries { found: index.manifests.len(), limit: limits.index_entries }.into()
                );
            }
            let chosen = platform::choose(&index)?.clone();
            take_image(store, source, &chosen, depth + 1)
        }
        Document::Manifest(manifest) => {
            let accepted = Accepted::check(entry.digest.clone(), entry.size, manifest, &limits)?;
            source.take_blob(store, &accepted.manifest.config)?;
            // What this node cannot run is refused before its layers are copied.
            if let Err(super::complete::CompleteError::Shape(error)) = accepted.shape(store) {
                return Err(error.into());
            }
            for layer in accepted.layer_blobs() {
                source.take_blob(store, &layer)?;
            }
            Ok(accepted)
        }
    }
}

/// A descriptor without annotations.
#[must_use]
pub fn descriptor(media_type: &str, digest: Digest, size: u64) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest,
        size,
        annotations: std::collections::BTreeMap::new(),
        platform: None,
    }
}
