//! Records of whole images, and the table of names.
//!
//! In: a manifest whose parts are all here. Out: an [`ImageRecord`] by its digest, a [`RefEntry`] by name.
//! A record is written after everything it names; a name after the record it points at.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::ids::Digest;
use crate::pod::run::{ArtifactSpec, ImageSpec};

use super::super::reference::ImageRef;
use super::super::types::{Image, ImageConfigData, ImageKind};
use super::{Store, StoreError};

/// The version of both documents.
const VERSION: u32 = 1;

/// Names that are remembered; a node with more looks the others up each time.
const MAX_KNOWN: usize = 256;

/// Inode, size, and time of the last change.
type FileIdentity = (u64, u64, i64, i64);

/// Images that were looked up in one table of names.
#[derive(Debug)]
pub(super) struct Known {
    table: FileIdentity,
    images: HashMap<ImageRef, (Digest, ImageRecord)>,
}

/// A whole image on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    version: u32,
    /// Digest of the manifest.
    pub manifest: Digest,
    /// Digest of the configuration.
    pub image_id: Digest,
    /// Every blob with its size: manifest, configuration, layers.
    pub blobs: Vec<(Digest, u64)>,
    /// What to run.
    pub content: Content,
    /// The image's defaults.
    pub config: ImageConfigData,
    /// When it was complete.
    pub stored_at: SystemTime,
}

/// What a container's root is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Content {
    /// One wasm file: the blob.
    Artifact(Digest),
    /// Diff ids, lowest first.
    Layers(Vec<Digest>),
}

/// What a name points at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefEntry {
    /// The manifest this node runs.
    pub manifest: Digest,
    /// What the registry's tag points at: an index, or that manifest.
    pub repo_digest: Digest,
}

#[derive(Debug, Serialize, Deserialize)]
struct RefTable {
    version: u32,
    refs: BTreeMap<ImageRef, RefEntry>,
}

impl ImageRecord {
    /// A record of now.
    #[must_use]
    pub fn new(
        manifest: Digest,
        image_id: Digest,
        blobs: Vec<(Digest, u64)>,
        content: Content,
        config: ImageConfigData,
    ) -> Self {
        Self { version: VERSION, manifest, image_id, blobs, content, config, stored_at: SystemTime::now() }
    }

    /// Bytes as a registry has them.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.blobs.iter().map(|(_, size)| size).sum()
    }

    /// Which family it is of.
    #[must_use]
    pub fn kind(&self) -> ImageKind {
        match self.content {
            Content::Artifact(_) => ImageKind::Artifact,
            Content::Layers(_) => ImageKind::Image,
        }
    }
}

impl Store {
    fn record_path(&self, manifest: &Digest) -> PathBuf {
        self.root.join("records").join(format!("{}.json", manifest.hex()))
    }

    fn table_path(&self) -> PathBuf {
        self.root.join("refs.json")
    }

    /// Every name and what it points at.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Damaged`].
    pub fn names(&self) -> Result<BTreeMap<ImageRef, RefEntry>, StoreError> {
        let path = self.table_path();
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            Err(source) => return Err(StoreError::Io { step: "reading", path, source }),
        };
        let table: RefTable =
            serde_json::from_slice(&bytes).map_err(|source| StoreError::Damaged { path: path.clone(), source })?;
        self.check_version(table.version, path)?;
        Ok(table.refs)
    }

    /// Changes the table under its lock; nothing is written when `change` says nothing changed.
    pub(super) fn change_names(
        &self,
        change: impl FnOnce(&mut BTreeMap<ImageRef, RefEntry>) -> Change,
    ) -> Result<(), StoreError> {
        let _guard = self.rewriting()?;
        let mut refs = self.names()?;
        match change(&mut refs) {
            Change::None => Ok(()),
            Change::Some => {
                let table = RefTable { version: VERSION, refs };
                let bytes = serde_json::to_vec_pretty(&table).expect("names and digests are strings");
                self.write_whole(&self.table_path(), &bytes)
            }
        }
    }

    /// Lets `name` point at an image, whose record must exist.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Damaged`], [`StoreError::Busy`].
    pub fn set_name(&self, name: &ImageRef, entry: &RefEntry) -> Result<(), StoreError> {
        self.change_names(|refs| {
            if refs.insert(name.clone(), entry.clone()).as_ref() == Some(entry) { Change::None } else { Change::Some }
        })
    }

    /// Writes a record. Everything it names must be here.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn put_record(&self, record: &ImageRecord) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec_pretty(record).expect("a record has string keys only");
        self.write_whole(&self.record_path(&record.manifest), &bytes)
    }

    /// The record of a manifest, if the image and everything of it is here.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Damaged`].
    pub fn record(&self, manifest: &Digest) -> Result<Option<ImageRecord>, StoreError> {
        let path = self.record_path(manifest);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StoreError::Io { step: "reading", path, source }),
        };
        let record: ImageRecord =
            serde_json::from_slice(&bytes).map_err(|source| StoreError::Damaged { path: path.clone(), source })?;
        self.check_version(record.version, path)?;
        Ok(self.is_whole(&record).then_some(record))
    }

    /// Every whole image.
    ///
    /// # Errors
    /// [`StoreError::Io`]; a damaged record is reported in the log and left out.
    pub fn records(&self) -> Result<Vec<ImageRecord>, StoreError> {
        let dir = self.root.join("records");
        let io = |source| StoreError::Io { step: "listing", path: dir.clone(), source };
        let mut records = Vec::new();
        for entry in fs::read_dir(&dir).map_err(io)? {
            let name = entry.map_err(io)?.file_name();
            let hex = name.to_str().and_then(|name| name.strip_suffix(".json"));
            let Some(manifest) = hex.and_then(|hex| format!("sha256:{hex}").parse::<Digest>().ok()) else { continue };
            match self.record(&manifest) {
                Ok(Some(record)) => records.push(record),
                Ok(None) => {}
                Err(error) => tracing::warn!(image = %manifest, err = %error, "Ignored an image record"),
            }
        }
        records.sort_by(|a, b| a.stored_at.cmp(&b.stored_at).then_with(|| a.manifest.cmp(&b.manifest)));
        Ok(records)
    }

    /// An image by what its name points at.
    ///
    /// # Errors
    /// As [`Self::names`] and [`Self::record`].
    pub fn lookup(&self, name: &ImageRef) -> Result<Option<Image>, StoreError> {
        Ok(self.find(name)?.map(|(repo_digest, record)| self.image(name, &repo_digest, &record)))
    }

    fn find(&self, name: &ImageRef) -> Result<Option<(Digest, ImageRecord)>, StoreError> {
        let names = self.names()?;
        let entry = match names.get(name) {
            Some(entry) => entry.clone(),
            // `repository@digest` and `repository:tag@digest` are also what any name of the same repository
            // resolved to: the digest decides, the tag is decoration.
            None => match name.digest() {
                Some(digest) => match names.iter().find(|(known, entry)| {
                    known.name() == name.name() && (entry.repo_digest == *digest || entry.manifest == *digest)
                }) {
                    Some((_, entry)) => RefEntry { manifest: entry.manifest.clone(), repo_digest: digest.clone() },
                    None => return Ok(None),
                },
                None => return Ok(None),
            },
        };
        Ok(self.record(&entry.manifest)?.map(|record| (entry.repo_digest, record)))
    }

    /// [`Self::lookup`] by what was read before, when the table is still that file. Asks the disk for the table's and the
    /// blobs' metadata and reads nothing, so that a start need not go to another thread for it. `None`: look it up.
    #[must_use]
    pub fn lookup_known(&self, name: &ImageRef) -> Option<Image> {
        let table = self.table_identity()?;
        let known = self.known.lock();
        let known = known.as_ref().filter(|known| known.table == table)?;
        let (repo_digest, record) = known.images.get(name)?;
        // A record that another process has removed takes its name from the table; a blob may be gone for any reason.
        self.is_whole(record).then(|| self.image(name, repo_digest, record))
    }

    /// Looks an image up, and remembers it for [`Self::lookup_known`].
    ///
    /// # Errors
    /// As [`Self::lookup`].
    pub fn lookup_and_know(&self, name: &ImageRef) -> Result<Option<Image>, StoreError> {
        let table = self.table_identity();
        let Some((repo_digest, record)) = self.find(name)? else { return Ok(None) };
        let image = self.image(name, &repo_digest, &record);
        // The table that was read may be a newer one, whose identity then is not this one: known for nothing, and that
        // is all.
        if let Some(table) = table.filter(|table| self.table_identity() == Some(*table)) {
            let mut known = self.known.lock();
            let known = match &mut *known {
                Some(known) if known.table == table => known,
                other => other.insert(Known { table, images: HashMap::new() }),
            };
            if known.images.len() < MAX_KNOWN {
                known.images.insert(name.clone(), (repo_digest, record));
            }
        }
        Ok(Some(image))
    }

    /// The table is always replaced as a whole: another file is another table.
    fn table_identity(&self) -> Option<FileIdentity> {
        let metadata = fs::metadata(self.table_path()).ok()?;
        Some((metadata.ino(), metadata.size(), metadata.mtime(), metadata.mtime_nsec()))
    }

    /// What the other rooms see of a record.
    #[must_use]
    pub fn image(&self, name: &ImageRef, repo_digest: &Digest, record: &ImageRecord) -> Image {
        let (layers, artifact) = match &record.content {
            Content::Artifact(digest) => {
                (Vec::new(), Some(ArtifactSpec { digest: digest.clone(), path: self.blob_path(digest) }))
            }
            Content::Layers(diff_ids) => (diff_ids.iter().map(|id| self.layer_spec(id)).collect(), None),
        };
        Image {
            reference: name.clone(),
            manifest_digest: record.manifest.clone(),
            repo_digest: repo_digest.clone(),
            image_id: record.image_id.clone(),
            size: record.size(),
            spec: ImageSpec { reference: name.to_string(), manifest_digest: record.manifest.clone(), layers, artifact },
            config: record.config.clone(),
        }
    }

    /// Notes that an image was used just now: garbage collection takes the longest unused first.
    pub fn touch(&self, manifest: &Digest) {
        let now = fs::FileTimes::new().set_modified(SystemTime::now());
        // Only a hint to garbage collection.
        let _ = fs::File::open(self.record_path(manifest)).and_then(|file| file.set_times(now));
    }

    /// When [`Self::touch`] was last called.
    pub fn last_used(&self, record: &ImageRecord) -> SystemTime {
        fs::metadata(self.record_path(&record.manifest))
            .and_then(|metadata| metadata.modified())
            .unwrap_or(record.stored_at)
    }

    fn pin_path(&self, manifest: &Digest) -> PathBuf {
        self.record_path(manifest).with_extension("pin")
    }

    /// Keeps an image from every collection, until it is removed by name.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn pin(&self, manifest: &Digest) -> Result<(), StoreError> {
        self.write_whole(&self.pin_path(manifest), b"")
    }

    /// Whether [`Self::pin`] was said of it.
    #[must_use]
    pub fn is_pinned(&self, manifest: &Digest) -> bool {
        self.pin_path(manifest).exists()
    }

    pub(super) fn remove_record(&self, manifest: &Digest) -> Result<u64, StoreError> {
        self.remove_file(&self.pin_path(manifest))?;
        self.remove_file(&self.record_path(manifest))
    }

    /// Whether every file of the record is here with its size: somebody may have removed or cut one.
    fn is_whole(&self, record: &ImageRecord) -> bool {
        let layers_here = match &record.content {
            Content::Artifact(_) => true,
            Content::Layers(diff_ids) => diff_ids.iter().all(|diff_id| self.has_layer(diff_id)),
        };
        layers_here && record.blobs.iter().all(|(digest, size)| self.has_blob(digest, *size))
    }

    fn check_version(&self, version: u32, path: PathBuf) -> Result<(), StoreError> {
        if version == VERSION {
            return Ok(());
        }
        Err(StoreError::Format { path, found: version.to_string() })
    }
}

/// Whether the table has to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// It is as before.
    None,
    /// It differs.
    Some,
}
