//! Artifacts on disk.
//!
//! In: finished artifacts of the compile subprocess. Out: the same, verified. A file is written beside its place and
//! renamed, and never changed afterwards; its checksum is in a file of its own, written before it. What fails a check,
//! such as a file that a machine wrote half when it died, is removed and made again: nothing waits for the disk.
//!
//! Names: `<wasm digest>-<engine hash>.cwasm` and `.sum` below a directory of mode 0700.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest as _, Sha256};

use crate::ids::Digest;

/// Compiled programs kept on disk: a hundred large ones, or thousands of the usual size.
const MAX_STORED_BYTES: u64 = 16 << 30;

/// Which artifact: of which wasm, for which engine.
#[derive(Debug, Clone, Copy)]
pub(super) struct Key<'a> {
    /// Digest of the wasm.
    pub(super) digest: &'a Digest,
    /// Hash of the engine's version and settings.
    pub(super) engine: &'a str,
}

/// The directory.
pub(super) struct ArtifactStore {
    directory: PathBuf,
    next_temporary: AtomicU64,
    max_bytes: u64,
}

impl ArtifactStore {
    /// Opens and makes the directory; removes what an interrupted write left.
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        fs::set_permissions(directory, fs::Permissions::from_mode(0o700))?;
        for entry in fs::read_dir(directory)?.flatten() {
            let path = entry.path();
            // Whoever writes one holds its lock: another agent may be at it, with the same directory.
            let left = |path: &Path| File::open(path).is_ok_and(|file| file.try_lock().is_ok());
            if entry.file_name().to_string_lossy().starts_with(".new-") && left(&path) {
                fs::remove_file(&path)?;
            }
        }
        let directory = directory.to_owned();
        Ok(Self { directory, next_temporary: AtomicU64::new(0), max_bytes: MAX_STORED_BYTES })
    }

    /// Whether there is one; it may still fail its check.
    pub(super) fn contains(&self, key: Key<'_>) -> bool {
        self.path(key, "cwasm").exists()
    }

    /// The artifact, if it is there and whole. Blocking: reads it once.
    pub(super) fn get(&self, key: Key<'_>) -> Option<File> {
        let path = self.path(key, "cwasm");
        let mut file = File::open(&path).ok()?;
        match self.verify(key, &mut file) {
            Ok(true) => {
                // When it was last used decides what is evicted; a read-only descriptor may set it.
                let _ = file.set_modified(std::time::SystemTime::now());
                Some(file)
            }
            outcome => {
                let error = outcome.err().map(|error| error.to_string());
                tracing::warn!(path = %path.display(), err = error, "Compiled program failed its check and is made again");
                self.remove(key);
                None
            }
        }
    }

    /// Stores an artifact; what was stored, opened. Blocking.
    pub(super) fn put(&self, key: Key<'_>, mut artifact: File) -> io::Result<File> {
        artifact.seek(SeekFrom::Start(0))?;
        let number = self.next_temporary.fetch_add(1, Ordering::Relaxed);
        let name = format!(".new-{}-{number}", std::process::id());
        let temporary = self.directory.join(&name);
        let mut file = create(&temporary)?;
        file.lock()?;
        let stored = File::open(&temporary)?;
        let sum = copy_and_sum(&mut artifact, &mut file)?;
        let temporary_sum = self.directory.join(format!("{name}.sum"));
        create(&temporary_sum)?.write_all(sum.as_bytes())?;
        fs::rename(&temporary_sum, self.path(key, "sum"))?;
        fs::rename(&temporary, self.path(key, "cwasm"))?;
        self.evict()?;
        Ok(stored)
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
    pub(super) fn remove(&self, key: Key<'_>) {
        for extension in ["cwasm", "sum"] {
            // Not there is as good as removed.
            let _ = fs::remove_file(self.path(key, extension));
        }
    }

    /// Whoever holds it is the one that makes this artifact, of all agents that share the directory; `None` when another is
    /// at it. Blocking.
    pub(super) fn claim(&self, key: Key<'_>) -> io::Result<Option<File>> {
        let file =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(self.path(key, "lock"))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Gives a claim up. Another that opened the file just before holds one that says nothing; it looks again before it
    /// compiles, and at the worst does so for nothing.
    pub(super) fn release(&self, key: Key<'_>, claim: File) {
        let _ = fs::remove_file(self.path(key, "lock"));
        drop(claim);
    }

    fn path(&self, key: Key<'_>, extension: &str) -> PathBuf {
        self.directory.join(format!("{}-{}.{extension}", key.digest.hex(), key.engine))
    }

    /// Owner, mode and checksum.
    fn verify(&self, key: Key<'_>, file: &mut File) -> io::Result<bool> {
        let metadata = file.metadata()?;
        let ours = metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o022 == 0;
        let expected = fs::read_to_string(self.path(key, "sum"))?;
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

    fn key(digest: &Digest) -> Key<'_> {
        Key { digest, engine: "engine" }
    }

    #[test]
    fn the_programs_used_longest_ago_make_room_for_a_new_one() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = ArtifactStore::open(directory.path()).unwrap();
        store.max_bytes = 2500;
        let program = |name: &str| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&[name.as_bytes()[0]; 1000]).unwrap();
            (Digest::of(name.as_bytes()), file)
        };
        let [(a, a_file), (b, b_file), (c, c_file), (large, _)] = ["a", "b", "c", "large"].map(program);
        store.put(key(&a), a_file).unwrap();
        store.put(key(&b), b_file).unwrap();
        // Times of the file system are too coarse to tell the two apart.
        let long_ago = |digest: &Digest, seconds| {
            let file = File::open(store.path(key(digest), "cwasm")).unwrap();
            file.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(seconds)).unwrap();
        };
        long_ago(&a, 100);
        long_ago(&b, 50);
        assert!(store.get(key(&a)).is_some(), "reading it is using it");
        store.put(key(&c), c_file).unwrap();
        let there = |store: &ArtifactStore| [&a, &b, &c].map(|digest| store.contains(key(digest)));
        assert_eq!(there(&store), [true, false, true]);
        assert!(!store.path(key(&b), "sum").exists());
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[b'x'; 5000]).unwrap();
        store.put(key(&large), file).unwrap();
        assert_eq!(there(&store), [false; 3]);
        assert!(store.get(key(&large)).is_some(), "the one that is wanted now stays, however large");
    }
}
