//! Artifacts on disk.
//!
//! In: finished artifacts of the compile subprocess. Out: the same, verified. A file is written beside its place,
//! synced and renamed, and never changed afterwards; its checksum is in a file of its own, written before it. What
//! fails a check is removed and made again.
//!
//! Names: `<wasm digest>-<engine hash>.cwasm` and `.sum` below a directory of mode 0700.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest as _, Sha256};

use crate::ids::Digest;

/// Compiled programs kept on disk: a hundred large ones, or thousands of the usual size.
const MAX_STORED_BYTES: u64 = 16 << 30;

/// The directory.
pub(super) struct ArtifactStore {
    directory: PathBuf,
    engine_hash: String,
    next_temporary: AtomicU64,
    max_bytes: u64,
}

impl ArtifactStore {
    /// Opens and makes the directory; removes what an interrupted write left.
    pub(super) fn open(directory: &Path, engine_hash: &str) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        fs::set_permissions(directory, fs::Permissions::from_mode(0o700))?;
        for entry in fs::read_dir(directory)?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(".new-") {
                fs::remove_file(entry.path())?;
            }
        }
        let (directory, engine_hash) = (directory.to_owned(), engine_hash.to_owned());
        Ok(Self { directory, engine_hash, next_temporary: AtomicU64::new(0), max_bytes: MAX_STORED_BYTES })
    }

    /// Whether there is one; it may still fail its check.
    pub(super) fn contains(&self, digest: &Digest) -> bool {
        self.path(digest, "cwasm").exists()
    }

    /// The artifact, if it is there and whole. Blocking: reads it once.
    pub(super) fn get(&self, digest: &Digest) -> Option<File> {
        let path = self.path(digest, "cwasm");
        let mut file = File::open(&path).ok()?;
        match self.verify(digest, &mut file) {
            Ok(true) => {
                // When it was last used decides what is evicted; a read-only descriptor may set it.
                let _ = file.set_modified(std::time::SystemTime::now());
                Some(file)
            }
            outcome => {
                let error = outcome.err().map(|error| error.to_string());
                tracing::warn!(path = %path.display(), err = error, "Compiled program failed its check and is made again");
                self.remove(digest);
                None
            }
        }
    }

    /// Stores an artifact. Blocking.
    pub(super) fn put(&self, digest: &Digest, mut artifact: File) -> io::Result<()> {
        artifact.seek(SeekFrom::Start(0))?;
        let number = self.next_temporary.fetch_add(1, Ordering::Relaxed);
        let temporary = self.directory.join(format!(".new-{number}"));
        let mut file = create(&temporary)?;
        let sum = copy_and_sum(&mut artifact, &mut file)?;
        file.sync_all()?;
        let temporary_sum = self.directory.join(format!(".new-{number}.sum"));
        let mut sum_file = create(&temporary_sum)?;
        sum_file.write_all(sum.as_bytes())?;
        sum_file.sync_all()?;
        fs::rename(&temporary_sum, self.path(digest, "sum"))?;
        fs::rename(&temporary, self.path(digest, "cwasm"))?;
        File::open(&self.directory)?.sync_all()?;
        self.evict()
    }

    /// Removes the artifacts that were used longest ago while all together are too many bytes: a guest can write a new
    /// program whenever it likes. Instances keep their mapping; a start that comes too late compiles again.
    fn evict(&self) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            // Gone meanwhile is fine.
            let Ok(metadata) = fs::metadata(&path) else { continue };
            if path.extension().is_some_and(|extension| extension == "cwasm") {
                files.push((metadata.modified()?, metadata.len(), path));
            }
        }
        files.sort();
        let mut total: u64 = files.iter().map(|(_, bytes, _)| bytes).sum();
        // The newest is the one that was just stored.
        files.pop();
        for (_, bytes, path) in files {
            if total <= self.max_bytes {
                break;
            }
            fs::remove_file(&path)?;
            let _ = fs::remove_file(path.with_extension("sum"));
            total -= bytes;
        }
        Ok(())
    }

    /// Forgets an artifact. Instances that run from it keep their mapping.
    pub(super) fn remove(&self, digest: &Digest) {
        for extension in ["cwasm", "sum"] {
            // Not there is as good as removed.
            let _ = fs::remove_file(self.path(digest, extension));
        }
    }

    fn path(&self, digest: &Digest, extension: &str) -> PathBuf {
        self.directory.join(format!("{}-{}.{extension}", digest.hex(), self.engine_hash))
    }

    /// Owner, mode and checksum.
    fn verify(&self, digest: &Digest, file: &mut File) -> io::Result<bool> {
        let metadata = file.metadata()?;
        let ours = metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o022 == 0;
        let expected = fs::read_to_string(self.path(digest, "sum"))?;
        let sum = copy_and_sum(file, &mut io::sink())?;
        file.seek(SeekFrom::Start(0))?;
        Ok(ours && metadata.is_file() && expected == sum)
    }
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

fn copy_and_sum(from: &mut File, to: &mut impl Write) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            return Ok(hex::encode(hasher.finalize()));
        }
        hasher.update(&buffer[..count]);
        to.write_all(&buffer[..count])?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_used_longest_ago_make_room_for_a_new_one() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = ArtifactStore::open(directory.path(), "engine").unwrap();
        store.max_bytes = 2500;
        let program = |name: &str| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&[name.as_bytes()[0]; 1000]).unwrap();
            (Digest::of(name.as_bytes()), file)
        };
        let [(a, a_file), (b, b_file), (c, c_file), (large, _)] = ["a", "b", "c", "large"].map(program);
        store.put(&a, a_file).unwrap();
        store.put(&b, b_file).unwrap();
        // Times of the file system are too coarse to tell the two apart.
        let long_ago = |digest: &Digest, seconds| {
            let file = File::open(store.path(digest, "cwasm")).unwrap();
            file.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(seconds)).unwrap();
        };
        long_ago(&a, 100);
        long_ago(&b, 50);
        assert!(store.get(&a).is_some(), "reading it is using it");
        store.put(&c, c_file).unwrap();
        let there = |store: &ArtifactStore| [&a, &b, &c].map(|digest| store.contains(digest));
        assert_eq!(there(&store), [true, false, true]);
        assert!(!store.path(&b, "sum").exists());
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[b'x'; 5000]).unwrap();
        store.put(&large, file).unwrap();
        assert_eq!(there(&store), [false; 3]);
        assert!(store.get(&large).is_some(), "the one that is wanted now stays, however large");
    }
}
