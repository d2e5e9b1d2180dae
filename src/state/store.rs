//! The directory of all state: its lock, its format, the records.
//!
//! In: records and paths of pods. Out: the same records after any crash. All calls block on the disk; callers
//! use the blocking pool. Does not know what records mean.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{AtFlags, FlockOperation, RenameFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::ids::PodUid;

use super::disk::{self, Missing, Names, Staged};
use super::{Faults, IoStep, PodPaths, PodRecord};

/// The format this program writes. A change that an older program would misread raises it.
const FORMAT_VERSION: u32 = 1;

const LOCK_FILE: &str = "agent.lock";
const FORMAT_FILE: &str = "format.json";
const RECORD_FILE: &str = "record.json";
/// A record on its way: whole if it can be read, and then newer than the one in place. To a program that does not know it,
/// a temporary.
const STAGED_FILE: &str = ".record.json.staged.tmp";
/// The record before the one in place, whose file is written the next time.
const SPARE_FILE: &str = ".record.json.spare.tmp";
/// A record's names.
const RECORD: Names<'_> = Names { temporary: STAGED_FILE, name: RECORD_FILE, spare: Some(SPARE_FILE) };

/// A pod is at most about 1.5 MiB in etcd; a record holds it, a status and little more.
const MAX_RECORD_BYTES: u64 = 16 << 20;

/// The node's state on disk. Cheap to clone; the directory stays locked while a clone lives.
#[derive(Debug, Clone)]
pub struct StateStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    pods: PathBuf,
    /// The `pods` directory.
    pods_dir: OwnedFd,
    faults: Arc<dyn Faults>,
    /// What was last written for each pod, so that an unchanged record costs no fsync.
    written: Mutex<HashMap<PodUid, [u8; 32]>>,
    /// Holds the lock.
    _lock: File,
}

/// Why state could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file system refused.
    #[error("cannot {step} {path}: {source}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// To what.
        path: PathBuf,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// Another agent runs on this directory.
    #[error(
        "root directory {root} is in use by another wasilet agent (pid {pid}); stop it, or give this one a --root-dir of its own"
    )]
    Locked {
        /// The directory.
        root: PathBuf,
        /// The other agent's process id, as it wrote it; `unknown` when it could not be read.
        pid: String,
    },
    /// A newer program wrote it.
    #[error(
        "root directory {root} has state format {found}, this version of wasilet knows formats up to {FORMAT_VERSION}; \
         run the newer version, or give this one a --root-dir of its own"
    )]
    NewerFormat {
        /// The directory.
        root: PathBuf,
        /// What it has.
        found: u32,
    },
    /// The format file is none.
    #[error("{path} does not say which state format the directory has: {reason}")]
    UnknownFormat {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A caller's path is not below the pod's directory.
    #[error("{path} is not inside the directory of pod {uid}")]
    OutsidePod {
        /// The pod.
        uid: PodUid,
        /// The path.
        path: PathBuf,
    },
    /// A record that JSON cannot hold.
    #[error("the record of pod {uid} cannot be written as JSON: {source}")]
    Encode {
        /// The pod.
        uid: PodUid,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// What a start finds.
#[derive(Debug, Default)]
pub struct LoadedState {
    /// Records that could be read, by UID.
    pub pods: Vec<PodRecord>,
    /// Those that could not. Their directories stay, for the pod to be started anew from its manifest.
    pub quarantined: Vec<QuarantinedRecord>,
    /// Directories without a record: a crash while the pod was made or removed. To be removed.
    pub orphans: Vec<PodUid>,
}

/// A record that could not be read and was put aside.
#[derive(Debug)]
pub struct QuarantinedRecord {
    /// The pod.
    pub uid: PodUid,
    /// Where the bytes are now.
    pub moved_to: PathBuf,
    /// Why.
    pub reason: String,
}

#[derive(Serialize, Deserialize)]
struct Format {
    version: u32,
}

impl StateStore {
    /// Opens (and makes, 0700) the root directory, takes its lock, checks its format.
    ///
    /// # Errors
    /// [`StateError::Locked`], [`StateError::NewerFormat`], [`StateError::UnknownFormat`], or the file system refused.
    pub fn open(root: impl Into<PathBuf>, faults: Arc<dyn Faults>) -> Result<Self, StateError> {
        let root = root.into();
        let io = |step| {
            let path = root.clone();
            move |source| StateError::Io { step, path, source }
        };
        DirBuilder::new().recursive(true).mode(0o700).create(&root).map_err(io("make root directory"))?;
        let root = root.canonicalize().map_err(io("resolve root directory"))?;
        let lock = lock(&root)?;
        let root_dir = disk::open_root(&root).map_err(io("open root directory"))?;
        check_format(&root, &root_dir, &*faults)?;
        let pods = root.join("pods");
        let pods_dir =
            disk::walk(root_dir.as_fd(), Path::new("pods"), Missing::Make).map_err(io("make the pods directory of"))?;
        let inner = Inner { root, pods, pods_dir, faults, written: Mutex::default(), _lock: lock };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The root directory, without symlinks.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    /// Paths of one pod.
    #[must_use]
    pub fn paths(&self, uid: &PodUid) -> PodPaths {
        PodPaths::new(self.inner.pods.join(uid.as_str()))
    }

    /// All records. Finishes removals that a crash interrupted and puts damaged records aside.
    ///
    /// # Errors
    /// The pods directory cannot be listed; a single bad pod is no error.
    pub fn load(&self) -> Result<LoadedState, StateError> {
        let io = |source| StateError::Io { step: "list", path: self.inner.pods.clone(), source };
        let mut loaded = LoadedState::default();
        let mut names = disk::names(self.inner.pods_dir.as_fd()).map_err(io)?;
        names.sort_unstable();
        for name in names {
            let text = name.to_string_lossy();
            if text.starts_with(disk::REMOVING) {
                if let Err(error) = disk::destroy(self.inner.pods_dir.as_fd(), &name) {
                    tracing::warn!(path = %text, err = %error, "Failed to finish a removal");
                }
            } else if let Ok(uid) = PodUid::new(text.as_ref()) {
                self.load_one(&uid, &mut loaded);
            } else {
                tracing::warn!(path = %text, "Ignored a file that is no pod's directory");
            }
        }
        Ok(loaded)
    }

    fn load_one(&self, uid: &PodUid, loaded: &mut LoadedState) {
        let path = self.paths(uid).root().join(RECORD_FILE);
        self.take_staged(uid);
        self.take_spare(uid, &path);
        self.remove_temporaries(uid);
        let reason = match self.read_record(uid, &path) {
            Ok(Some(record)) => return loaded.pods.push(record),
            Ok(None) => return loaded.orphans.push(uid.clone()),
            Err(reason) => reason,
        };
        match self.put_aside(uid, &path) {
            Ok(moved_to) => {
                tracing::error!(podUID = %uid, movedTo = %moved_to.display(), err = %reason, "Put a damaged pod record aside");
                loaded.quarantined.push(QuarantinedRecord { uid: uid.clone(), moved_to, reason });
            }
            Err(error) => {
                tracing::error!(podUID = %uid, err = %reason, cause = %error, "Failed to put a damaged pod record aside");
                loaded.quarantined.push(QuarantinedRecord { uid: uid.clone(), moved_to: path, reason });
            }
        }
    }

    fn read_record(&self, uid: &PodUid, path: &Path) -> Result<Option<PodRecord>, String> {
        self.inner.faults.before(IoStep::Read, path).map_err(|error| error.to_string())?;
        let mut bytes = Vec::new();
        match File::options().read(true).custom_flags(libc::O_NOFOLLOW).open(path) {
            Ok(file) => file.take(MAX_RECORD_BYTES + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.to_string()),
        };
        // What a machine that died leaves of a record that was placed and not on the disk yet.
        if bytes.is_empty() {
            return Ok(None);
        }
        if bytes.len() as u64 > MAX_RECORD_BYTES {
            return Err(format!("larger than {MAX_RECORD_BYTES} bytes"));
        }
        let record: PodRecord = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
        if record.uid != *uid {
            return Err(format!("it is the record of pod {}", record.uid));
        }
        self.inner.written.lock().insert(uid.clone(), Sha256::digest(&bytes).into());
        Ok(Some(record))
    }

    fn put_aside(&self, uid: &PodUid, path: &Path) -> io::Result<PathBuf> {
        let dir = self.inner.root.join("quarantine");
        DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        // Bounded by what an admin would ever let pile up; the last one is reused then.
        for number in 0..1000 {
            let moved_to = dir.join(format!("{uid}-{number}.json"));
            let (here, flags) = (rustix::fs::CWD, RenameFlags::NOREPLACE);
            match rustix::fs::renameat_with(here, path, here, &moved_to, flags) {
                Ok(()) => return Ok(moved_to),
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let last = dir.join(format!("{uid}-last.json"));
        fs::rename(path, &last)?;
        Ok(last)
    }

    /// What the last agent had written and not put in its place. Half of it, after a crash of the machine, is no record.
    fn take_staged(&self, uid: &PodUid) {
        let root = self.paths(uid).root().to_owned();
        let staged = root.join(STAGED_FILE);
        if !matches!(self.read_record(uid, &staged), Ok(Some(_))) {
            return;
        }
        self.inner.written.lock().remove(uid);
        let taken = File::open(&staged)
            .and_then(|file| file.sync_all())
            .and_then(|()| fs::rename(&staged, root.join(RECORD_FILE)))
            .and_then(|()| File::open(&root)?.sync_all());
        if let Err(error) = taken {
            tracing::error!(podUID = %uid, err = %error, "Failed to take over the newest record of a pod");
        }
    }

    /// A machine that died between the two renames of a save, and kept only the first.
    fn take_spare(&self, uid: &PodUid, path: &Path) {
        let spare = self.paths(uid).root().join(SPARE_FILE);
        if path.exists() || !matches!(self.read_record(uid, &spare), Ok(Some(_))) {
            return;
        }
        if let Err(error) = fs::rename(&spare, path) {
            tracing::error!(podUID = %uid, err = %error, "Failed to take over the last record of a pod");
        }
    }

    fn remove_temporaries(&self, uid: &PodUid) {
        let Ok(dir) = disk::walk(self.inner.pods_dir.as_fd(), Path::new(uid.as_str()), Missing::Fail) else { return };
        for name in disk::names(dir.as_fd()).unwrap_or_default() {
            let text = name.to_string_lossy();
            if text.starts_with('.') && text.ends_with(disk::TEMPORARY) {
                let _ = rustix::fs::unlinkat(&dir, &name, AtFlags::empty());
            }
        }
    }

    /// Writes one record: whole or not at all, and on the disk when this returns. Unchanged bytes cost nothing.
    ///
    /// # Errors
    /// The file system refused; the record before this one is still there.
    pub fn save(&self, record: &PodRecord) -> Result<(), StateError> {
        self.stage(record)?.commit()
    }

    /// The first half of [`Self::save`], without its waiting for the disk: from here on the record outlives this agent,
    /// and [`StagedRecord::commit`] makes it outlive the machine. One save of a pod at a time.
    ///
    /// # Errors
    /// The file system refused; the record before this one is still there.
    pub fn stage(&self, record: &PodRecord) -> Result<StagedRecord, StateError> {
        let uid = &record.uid;
        let bytes = serde_json::to_vec(record).map_err(|source| StateError::Encode { uid: uid.clone(), source })?;
        let sum: [u8; 32] = Sha256::digest(&bytes).into();
        let mut staged = StagedRecord { store: self.clone(), uid: uid.clone(), sum, file: None };
        if self.inner.written.lock().get(uid) == Some(&sum) {
            return Ok(staged);
        }
        self.inner.written.lock().remove(uid);
        let (faults, shown) = (&*self.inner.faults, self.paths(uid));
        let dir = disk::walk(self.inner.pods_dir.as_fd(), Path::new(uid.as_str()), Missing::Make);
        let file = dir.and_then(|dir| Staged::write(faults, dir, shown.root(), RECORD, &bytes));
        staged.file = Some(file.map_err(|source| staged.error(source))?);
        Ok(staged)
    }

    /// Makes a directory below the pod's ([`PodPaths::writable_dir`]...), with parents.
    ///
    /// # Errors
    /// [`StateError::OutsidePod`], or the file system refused.
    pub fn make_dir(&self, uid: &PodUid, path: &Path) -> Result<(), StateError> {
        let relative = self.relative(uid, path)?;
        let below = Path::new(uid.as_str()).join(relative);
        let made = self.inner.faults.before(IoStep::MakeDirectory, path);
        let made = made.and_then(|()| disk::walk(self.inner.pods_dir.as_fd(), &below, Missing::Make).map(drop));
        made.map_err(|source| StateError::Io { step: "make directory", path: path.to_owned(), source })
    }

    /// Writes a small file below the pod's directory ([`PodPaths::etc_hosts`]), atomically.
    ///
    /// # Errors
    /// [`StateError::OutsidePod`], or the file system refused.
    pub fn write_file(&self, uid: &PodUid, path: &Path, bytes: &[u8]) -> Result<(), StateError> {
        let relative = self.relative(uid, path)?.to_owned();
        self.write_below(uid, &relative, bytes)
    }

    /// Removes a tree below the pod's directory; never follows a symlink out of it. Absence is fine.
    ///
    /// # Errors
    /// [`StateError::OutsidePod`], or the file system refused.
    pub fn remove_tree(&self, uid: &PodUid, path: &Path) -> Result<(), StateError> {
        let relative = Path::new(uid.as_str()).join(self.relative(uid, path)?);
        let io = |source| StateError::Io { step: "remove", path: path.to_owned(), source };
        let (Some(parent), Some(name)) = (relative.parent(), relative.file_name()) else {
            return Err(StateError::OutsidePod { uid: uid.clone(), path: path.to_owned() });
        };
        let yard = self.inner.pods_dir.as_fd();
        match disk::walk(yard, parent, Missing::Fail) {
            Ok(dir) => {
                disk::remove_tree(&*self.inner.faults, dir.as_fd(), Path::new(name), yard, uid.as_str()).map_err(io)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(io(error)),
        }
    }

    /// Removes the pod's record, then everything of it. Absence is fine. After a crash in between, the rest is
    /// found again as an orphan or half-removed tree.
    ///
    /// # Errors
    /// The file system refused.
    pub fn remove_pod(&self, uid: &PodUid) -> Result<(), StateError> {
        let root = self.paths(uid).root().to_owned();
        let io = |source| StateError::Io { step: "remove", path: root.clone(), source };
        let (faults, yard) = (&*self.inner.faults, self.inner.pods_dir.as_fd());
        self.inner.written.lock().remove(uid);
        // One rename takes the record and all else out of sight at once.
        disk::remove_tree(faults, yard, Path::new(uid.as_str()), yard, uid.as_str()).map_err(io)?;
        faults.before(IoStep::SyncDirectory, &root).map_err(io)?;
        rustix::fs::fsync(yard).map_err(|error| io(error.into()))
    }

    fn write_below(&self, uid: &PodUid, relative: &Path, bytes: &[u8]) -> Result<(), StateError> {
        let path = self.paths(uid).root().join(relative);
        let io = |source| StateError::Io { step: "write", path: path.clone(), source };
        let below = Path::new(uid.as_str()).join(relative);
        let (parent, name) = below.parent().zip(below.file_name().and_then(|n| n.to_str())).unzip();
        let (Some(parent), Some(name)) = (parent, name) else {
            return Err(StateError::OutsidePod { uid: uid.clone(), path });
        };
        let dir = disk::walk(self.inner.pods_dir.as_fd(), parent, Missing::Make).map_err(io)?;
        disk::write_atomically(&*self.inner.faults, dir.as_fd(), &self.inner.pods.join(parent), name, bytes).map_err(io)
    }

    fn relative<'a>(&self, uid: &PodUid, path: &'a Path) -> Result<&'a Path, StateError> {
        let outside = || StateError::OutsidePod { uid: uid.clone(), path: path.to_owned() };
        let relative = path.strip_prefix(self.paths(uid).root()).map_err(|_| outside())?;
        let is_plain = relative.components().all(|c| matches!(c, std::path::Component::Normal(_)));
        if relative.as_os_str().is_empty() || !is_plain { Err(outside()) } else { Ok(relative) }
    }
}

/// Whose end a record is sure to outlive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outlives {
    /// This program's, however it ends.
    Agent,
    /// The machine's: it is on the disk.
    Machine,
}

/// A record that outlives the agent and not yet the machine.
#[derive(Debug)]
#[must_use = "without its commit the record is the one before"]
pub struct StagedRecord {
    store: StateStore,
    uid: PodUid,
    sum: [u8; 32],
    /// None when the bytes are on the disk as they are.
    file: Option<Staged>,
}

impl StagedRecord {
    /// Waits for the disk.
    ///
    /// # Errors
    /// The file system refused; the record before this one is still there.
    pub fn commit(mut self) -> Result<(), StateError> {
        let Some(file) = self.file.take() else { return Ok(()) };
        file.commit(&*self.store.inner.faults).map_err(|source| self.error(source))?;
        self.store.inner.written.lock().insert(self.uid, self.sum);
        Ok(())
    }

    /// Waits for the disk only if it replaces a record: a pod's first one outlives this agent and not yet the machine,
    /// which would lose no more than that the pod was begun.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub fn place(mut self) -> Result<Outlives, StateError> {
        let Some(file) = self.file.take() else { return Ok(Outlives::Machine) };
        self.file = file.place(&*self.store.inner.faults).map_err(|source| self.error(source))?;
        if self.file.is_none() {
            // Not noted as written: the next record goes to the disk even if it is the same.
            return Ok(Outlives::Agent);
        }
        self.commit().map(|()| Outlives::Machine)
    }

    fn error(&self, source: io::Error) -> StateError {
        StateError::Io { step: "write", path: self.store.paths(&self.uid).root().join(RECORD_FILE), source }
    }
}

fn lock(root: &Path) -> Result<File, StateError> {
    let path = root.join(LOCK_FILE);
    let io = |step| {
        let path = path.clone();
        move |source| StateError::Io { step, path, source }
    };
    let open = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    let mut file = open.map_err(io("open lock"))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            let mut pid = String::new();
            let _ = Read::by_ref(&mut file).take(20).read_to_string(&mut pid);
            let pid = if pid.trim().is_empty() { "unknown" } else { pid.trim() }.to_owned();
            return Err(StateError::Locked { root: root.to_owned(), pid });
        }
        Err(error) => return Err(io("lock")(error.into())),
    }
    file.set_len(0).and_then(|()| file.rewind()).map_err(io("write lock"))?;
    writeln!(file, "{}", std::process::id()).map_err(io("write lock"))?;
    Ok(file)
}

fn check_format(root: &Path, root_dir: &OwnedFd, faults: &dyn Faults) -> Result<(), StateError> {
    let path = root.join(FORMAT_FILE);
    match fs::read(&path) {
        Ok(bytes) => {
            let format: Format = serde_json::from_slice(&bytes)
                .map_err(|error| StateError::UnknownFormat { path: path.clone(), reason: error.to_string() })?;
            match format.version {
                FORMAT_VERSION => Ok(()),
                found if found > FORMAT_VERSION => Err(StateError::NewerFormat { root: root.to_owned(), found }),
                found => Err(StateError::UnknownFormat { path, reason: format!("there is no version {found}") }),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let text = format!("{{\"version\":{FORMAT_VERSION}}}\n");
            disk::write_atomically(faults, root_dir.as_fd(), root, FORMAT_FILE, text.as_bytes())
                .map_err(|source| StateError::Io { step: "write", path, source })
        }
        Err(source) => Err(StateError::Io { step: "read", path, source }),
    }
}
