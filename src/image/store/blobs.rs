//! Blobs: bytes by their SHA-256.
//!
//! In: chunks in order. Out: a file whose name is its digest. An [`Ingest`] that is dropped before its
//! commit leaves nothing.

use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::ids::Digest;
use crate::state::IoStep;

use super::{Store, StoreError};

/// Reads and writes go in pieces of this size.
const CHUNK: usize = 256 << 10;

/// A blob on its way in.
#[derive(Debug)]
pub struct Ingest {
    path: PathBuf,
    file: File,
    hasher: Sha256,
    written: u64,
    expected: Expected,
    published: bool,
}

#[derive(Debug, Clone)]
enum Expected {
    /// A descriptor announced digest and size.
    Blob { digest: Digest, size: u64 },
    /// Nobody knows it yet; only its size is bounded.
    Unknown { limit: u64 },
}

impl Store {
    /// Where a blob is, if it is there.
    #[must_use]
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    /// Whether the blob is here, whole as far as its size tells (content was checked when it was written).
    #[must_use]
    pub fn has_blob(&self, digest: &Digest, size: u64) -> bool {
        fs::metadata(self.blob_path(digest)).is_ok_and(|metadata| metadata.is_file() && metadata.len() == size)
    }

    /// Starts to take in a blob that a descriptor announced.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`] before anything is transferred, [`StoreError::Io`].
    pub fn ingest(&self, digest: &Digest, size: u64) -> Result<Ingest, StoreError> {
        if size > self.limits.blob_bytes {
            return Err(StoreError::TooLarge { digest: digest.clone(), limit: self.limits.blob_bytes });
        }
        self.new_ingest(Expected::Blob { digest: digest.clone(), size })
    }

    /// Starts to take in bytes whose digest is not known yet, at most `limit` of them.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn ingest_unknown(&self, limit: u64) -> Result<Ingest, StoreError> {
        self.new_ingest(Expected::Unknown { limit })
    }

    fn new_ingest(&self, expected: Expected) -> Result<Ingest, StoreError> {
        let (path, file) = self.temporary()?;
        Ok(Ingest { path, file, hasher: Sha256::new(), written: 0, expected, published: false })
    }

    /// Keeps a small blob, such as a manifest.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn put_blob(&self, bytes: &[u8]) -> Result<Digest, StoreError> {
        let digest = Digest::of(bytes);
        if self.has_blob(&digest, bytes.len() as u64) {
            self.renew(&digest);
            return Ok(digest);
        }
        let mut ingest = self.ingest(&digest, bytes.len() as u64)?;
        ingest.write(self, bytes)?;
        ingest.commit(self)
    }

    /// Keeps everything `reader` has, checked against its descriptor.
    ///
    /// # Errors
    /// [`StoreError::DigestMismatch`], [`StoreError::Truncated`], [`StoreError::TooLarge`], [`StoreError::Io`].
    pub fn put_reader(&self, reader: &mut dyn Read, digest: &Digest, size: u64) -> Result<(), StoreError> {
        if self.has_blob(digest, size) {
            self.renew(digest);
            return Ok(());
        }
        let mut ingest = self.ingest(digest, size)?;
        ingest.copy(self, reader)?;
        ingest.commit(self).map(drop)
    }

    /// Reads a blob of at most `limit` bytes and checks it again: it is small, and the disk is not the network.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::TooLarge`], [`StoreError::DigestMismatch`].
    pub fn read_blob(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, StoreError> {
        let path = self.blob_path(digest);
        let io = |source| StoreError::Io { step: "reading", path: path.clone(), source };
        let file = File::open(&path).map_err(io)?;
        let mut bytes = Vec::new();
        file.take(limit + 1).read_to_end(&mut bytes).map_err(io)?;
        if bytes.len() as u64 > limit {
            return Err(StoreError::TooLarge { digest: digest.clone(), limit });
        }
        let actual = Digest::of(&bytes);
        if actual != *digest {
            return Err(StoreError::DigestMismatch { expected: digest.clone(), actual });
        }
        Ok(bytes)
    }

    /// Reads a blob through and compares it with its name.
    ///
    /// # Errors
    /// [`StoreError::DigestMismatch`], [`StoreError::Io`].
    pub fn verify_blob(&self, digest: &Digest) -> Result<(), StoreError> {
        let path = self.blob_path(digest);
        let io = |source| StoreError::Io { step: "reading", path: path.clone(), source };
        let mut file = File::open(&path).map_err(io)?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; CHUNK];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => hasher.update(&buffer[..read]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(io(source)),
            }
        }
        let actual = Digest::from_sha256(hasher.finalize().into());
        if actual == *digest { Ok(()) } else { Err(StoreError::DigestMismatch { expected: digest.clone(), actual }) }
    }

    /// Marks a blob that no record names yet as wanted now, so that it is not taken for an old leftover.
    pub(super) fn renew(&self, digest: &Digest) {
        let now = fs::FileTimes::new().set_modified(std::time::SystemTime::now());
        // Only a hint: a file system that cannot do it costs at most another download.
        let _ = File::open(self.blob_path(digest)).and_then(|file| file.set_times(now));
    }
}

impl Ingest {
    /// Where the bytes are until they have a name.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes so far: where a broken transfer goes on.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`] once more came than announced, [`StoreError::Io`] such as a full disk.
    pub fn write(&mut self, store: &Store, bytes: &[u8]) -> Result<(), StoreError> {
        let limit = match &self.expected {
            Expected::Blob { size, .. } => *size,
            Expected::Unknown { limit } => *limit,
        };
        if bytes.len() as u64 > limit - self.written {
            return Err(StoreError::TooLarge { digest: self.digest_so_far(), limit });
        }
        store.step(IoStep::Write, "writing", &self.path)?;
        self.file.write_all(bytes).map_err(|source| StoreError::Io {
            step: "writing",
            path: self.path.clone(),
            source,
        })?;
        self.hasher.update(bytes);
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Takes everything a reader has.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn copy(&mut self, store: &Store, reader: &mut dyn Read) -> Result<(), StoreError> {
        let mut buffer = vec![0; CHUNK];
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(read) => self.write(store, &buffer[..read])?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(StoreError::Io { step: "copying to", path: self.path.clone(), source }),
            }
        }
    }

    /// Forgets the bytes so far: a server that cannot resume starts again.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn restart(&mut self) -> Result<(), StoreError> {
        use io::Seek as _;
        let reset = self.file.set_len(0).and_then(|()| self.file.rewind());
        reset.map_err(|source| StoreError::Io { step: "truncating", path: self.path.clone(), source })?;
        self.hasher = Sha256::new();
        self.written = 0;
        Ok(())
    }

    /// Checks size and digest, and gives the blob its name.
    ///
    /// # Errors
    /// [`StoreError::Truncated`], [`StoreError::DigestMismatch`], [`StoreError::Io`].
    pub fn commit(mut self, store: &Store) -> Result<Digest, StoreError> {
        let actual = self.digest_so_far_exact();
        if let Expected::Blob { digest, size } = &self.expected {
            if self.written < *size {
                return Err(StoreError::Truncated { digest: digest.clone(), expected: *size, actual: self.written });
            }
            if actual != *digest {
                return Err(StoreError::DigestMismatch { expected: digest.clone(), actual });
            }
        }
        store.publish(&self.path, &self.file, &store.blob_path(&actual))?;
        self.published = true;
        Ok(actual)
    }

    /// Gives the bytes as a file without a name, which goes when it is closed.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn into_unnamed_file(self) -> Result<File, StoreError> {
        // Dropping `self` removes the name.
        self.file.try_clone().map_err(|source| StoreError::Io { step: "reopening", path: self.path.clone(), source })
    }

    fn digest_so_far(&self) -> Digest {
        match &self.expected {
            Expected::Blob { digest, .. } => digest.clone(),
            Expected::Unknown { .. } => self.digest_so_far_exact(),
        }
    }

    fn digest_so_far_exact(&self) -> Digest {
        Digest::from_sha256(self.hasher.clone().finalize().into())
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        if !self.published {
            // A failure leaves a file that the next open sweeps.
            let _ = fs::remove_file(&self.path);
        }
    }
}
