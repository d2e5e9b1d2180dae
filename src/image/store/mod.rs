//! The content-addressed store of images on disk.
//!
//! In: bytes with the digest they should have. Out: files named by digest, records of whole images, and a
//! table of names. Every file is written to `tmp/`, synced, checked, then renamed: what has its final name
//! is whole. All functions block; callers are on the blocking pool.
//!
//! ```text
//! <root>/images/
//!   format               the layout's version
//!   refs.json            names -> manifests               (under refs.lock)
//!   blobs/sha256/<hex>   manifests, configurations, layers as a registry has them, wasm files
//!   layers/<hex>.tar     a layer decompressed, by diff id; <hex>.index beside it makes it complete
//!   records/<hex>.json   a whole image, by manifest digest; written last
//!   tmp/                 files on their way, each locked by its writer
//! ```
//!
//! Two processes share a store: `gc.lock` is held shared while content is being added and exclusively
//! while content is removed, `refs.lock` exclusively while the table is rewritten.

mod blobs;
mod gc;
mod layers;
mod lock;
mod records;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::ids::Digest;
use crate::state::{Faults, IoStep};
use crate::vfs::layer::LayerError;

use super::limits::ImageLimits;

pub use blobs::Ingest;
pub use gc::{GcPlan, GcPolicy, plan_collection};
pub use lock::Guard;
pub use records::{Content, ImageRecord, RefEntry};

/// The layout this code reads and writes.
const FORMAT: &str = "1";

/// Why the store could not do its part.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system refused.
    #[error("{step} {}", path.display())]
    Io {
        /// What was being done.
        step: &'static str,
        /// To what.
        path: PathBuf,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// The bytes are not the ones their digest names.
    #[error("blob {expected} is corrupt: its content has digest {actual}")]
    DigestMismatch {
        /// What was asked for.
        expected: Digest,
        /// What came.
        actual: Digest,
    },
    /// Fewer bytes came than the manifest says.
    #[error("blob {digest} is truncated: {actual} of {expected} bytes")]
    Truncated {
        /// The blob.
        digest: Digest,
        /// Bytes the manifest says.
        expected: u64,
        /// Bytes there were.
        actual: u64,
    },
    /// More bytes came than allowed or announced.
    #[error("blob {digest} is larger than {limit} bytes")]
    TooLarge {
        /// The blob.
        digest: Digest,
        /// The bound.
        limit: u64,
    },
    /// A layer grows more than any honest one when decompressed.
    #[error("layer {digest} decompresses to more than {limit} bytes")]
    Bomb {
        /// The compressed blob.
        digest: Digest,
        /// The bound that was reached.
        limit: u64,
    },
    /// A layer's compressed stream is damaged.
    #[error("decompressing layer {digest}")]
    Decompress {
        /// The compressed blob.
        digest: Digest,
        /// Where it broke.
        #[source]
        source: io::Error,
    },
    /// A decompressed layer is not the one the configuration names.
    #[error("layer {digest} does not match its configuration: diff id is {actual}, configuration says {expected}")]
    DiffId {
        /// The compressed blob.
        digest: Digest,
        /// `rootfs.diff_ids`.
        expected: Digest,
        /// What it is.
        actual: Digest,
    },
    /// A layer's tar cannot be used.
    #[error("layer {digest}")]
    Layer {
        /// The compressed blob.
        digest: Digest,
        /// Why.
        #[source]
        source: LayerError,
    },
    /// A file of the store is not what this code wrote.
    #[error("{} is damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        #[source]
        source: serde_json::Error,
    },
    /// The store was written by another version.
    #[error("{} has layout {found:?}, this wasilet reads {FORMAT:?}; use the wasilet that wrote it or move it away", path.display())]
    Format {
        /// The store.
        path: PathBuf,
        /// What its `format` file says.
        found: String,
    },
    /// Another process is adding (or removing) content.
    #[error("the image store {} is busy: another pull, load or prune is running", path.display())]
    Busy {
        /// The store.
        path: PathBuf,
    },
}

/// The store. Cheap to share; holds no lock by itself.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    limits: ImageLimits,
    faults: Arc<dyn Faults>,
    known: Mutex<Option<records::Known>>,
}

impl Store {
    /// Opens the store at `root`, makes it if it is not there, and removes what crashed writers left.
    ///
    /// # Errors
    /// [`StoreError::Io`], or [`StoreError::Format`] for a layout this code does not know.
    pub fn open(root: PathBuf, limits: ImageLimits, faults: Arc<dyn Faults>) -> Result<Self, StoreError> {
        for dir in ["blobs/sha256", "layers", "records", "tmp"] {
            let path = root.join(dir);
            fs::create_dir_all(&path).map_err(|source| StoreError::Io { step: "creating", path, source })?;
        }
        let store = Self { root, limits, faults, known: Mutex::default() };
        store.check_format()?;
        store.sweep_temporary();
        Ok(store)
    }

    /// The store's directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The bounds in force.
    #[must_use]
    pub fn limits(&self) -> &ImageLimits {
        &self.limits
    }

    fn check_format(&self) -> Result<(), StoreError> {
        let path = self.root.join("format");
        match fs::read_to_string(&path) {
            Ok(text) if text.trim() == FORMAT => Ok(()),
            Ok(text) => {
                let found = text.trim().chars().take(32).collect();
                Err(StoreError::Format { path: self.root.clone(), found })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.write_whole(&path, format!("{FORMAT}\n").as_bytes())
            }
            Err(source) => Err(StoreError::Io { step: "reading", path, source }),
        }
    }

    /// Removes files of `tmp/` whose writer is gone: it held a lock on them.
    fn sweep_temporary(&self) {
        let Ok(entries) = fs::read_dir(self.root.join("tmp")) else { return };
        for entry in entries.flatten() {
            let path = entry.path();
            // A file that cannot be opened or is locked belongs to somebody.
            let Ok(file) = File::open(&path) else { continue };
            if lock::try_exclusive(&file)
                && let Err(error) = fs::remove_file(&path)
            {
                tracing::warn!(path = %path.display(), err = %error, "Left a temporary file behind");
            }
        }
    }

    /// A new file in `tmp/`, locked so that nobody sweeps it away.
    fn temporary(&self) -> Result<(PathBuf, File), StoreError> {
        // A sweep may take the file between its making and its locking; another name then.
        for _ in 0..16 {
            let path = self.root.join("tmp").join(uuid::Uuid::new_v4().to_string());
            self.step(IoStep::Create, "creating", &path)?;
            let file = File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&path)
                .map_err(|source| StoreError::Io { step: "creating", path: path.clone(), source })?;
            if lock::try_exclusive(&file) && path.exists() {
                return Ok((path, file));
            }
        }
        Err(StoreError::Busy { path: self.root.clone() })
    }

    /// Syncs a temporary file and gives it its final name.
    fn publish(&self, temporary: &Path, file: &File, target: &Path) -> Result<(), StoreError> {
        self.step(IoStep::SyncFile, "syncing", temporary)?;
        file.sync_all().map_err(|source| StoreError::Io { step: "syncing", path: temporary.to_owned(), source })?;
        self.step(IoStep::Rename, "naming", target)?;
        fs::rename(temporary, target).map_err(|source| StoreError::Io {
            step: "naming",
            path: target.to_owned(),
            source,
        })?;
        self.sync_directory(target)
    }

    fn sync_directory(&self, file: &Path) -> Result<(), StoreError> {
        let dir = file.parent().expect("every file of the store has a directory");
        self.step(IoStep::SyncDirectory, "syncing", dir)?;
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(|source| StoreError::Io {
            step: "syncing",
            path: dir.to_owned(),
            source,
        })
    }

    /// Replaces a small file as a whole.
    fn write_whole(&self, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        use io::Write as _;
        let (temporary, mut file) = self.temporary()?;
        let written = self.step(IoStep::Write, "writing", path).and_then(|()| {
            file.write_all(bytes).map_err(|source| StoreError::Io { step: "writing", path: path.to_owned(), source })
        });
        let result = written.and_then(|()| self.publish(&temporary, &file, path));
        if result.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        result
    }

    /// Removes a file; one that is not there is removed already. Gives the bytes freed.
    fn remove_file(&self, path: &Path) -> Result<u64, StoreError> {
        let size = fs::symlink_metadata(path).map_or(0, |metadata| disk_bytes(&metadata));
        self.step(IoStep::Remove, "removing", path)?;
        match fs::remove_file(path) {
            Ok(()) => Ok(size),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(source) => Err(StoreError::Io { step: "removing", path: path.to_owned(), source }),
        }
    }

    fn step(&self, step: IoStep, name: &'static str, path: &Path) -> Result<(), StoreError> {
        self.faults.before(step, path).map_err(|source| StoreError::Io { step: name, path: path.to_owned(), source })
    }
}

/// Bytes a file takes; one with several names (an uncompressed layer is also its blob) is shared between them.
fn disk_bytes(metadata: &fs::Metadata) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    metadata.blocks() * 512 / metadata.nlink().max(1)
}
