//! Where a tree's new bytes go, and who pays.
//!
//! In: demands for bytes. Out: leave or ENOSPC/ENOMEM, and for disk trees one nameless file per node in a flat
//! directory of the node. That directory is made at the first write: a container that writes nothing costs none.

use std::fs::DirBuilder;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::fs::{AtFlags, Mode, OFlags};

use crate::errno::Errno;
use crate::vfs::Charge;

/// Bytes with a limit of their own and, maybe, somebody to charge.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: u64,
    used: AtomicU64,
    charge: Option<Arc<dyn Charge>>,
}

impl Budget {
    pub(crate) fn new(limit: u64, charge: Option<Arc<dyn Charge>>) -> Arc<Self> {
        Arc::new(Self { limit, used: AtomicU64::new(0), charge })
    }

    /// Takes bytes: `ENOSPC` at the limit, the charge's own error at its.
    pub(crate) fn take(&self, bytes: u64) -> Result<(), Errno> {
        let grown = |used: u64| used.checked_add(bytes).filter(|&sum| sum <= self.limit);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grown).map_err(|_| Errno::NoSpc)?;
        if let Some(charge) = &self.charge
            && let Err(refused) = charge.charge(bytes)
        {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
            return Err(refused);
        }
        Ok(())
    }

    pub(crate) fn give(&self, bytes: u64) {
        if bytes > 0 {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
            if let Some(charge) = &self.charge {
                charge.release(bytes);
            }
        }
    }

    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }
}

/// Bytes taken for as long as this lives.
#[derive(Debug)]
pub(crate) struct Reservation {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Reservation {
    pub(crate) fn take(budget: &Arc<Budget>, bytes: u64) -> Result<Self, Errno> {
        budget.take(bytes)?;
        Ok(Self { budget: Arc::clone(budget), bytes })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.give(self.bytes);
    }
}

/// A flat directory of data files named by number.
#[derive(Debug)]
pub(crate) struct DiskStore {
    path: PathBuf,
    dir: OnceLock<OwnedFd>,
    next: AtomicU64,
    /// The tree is gone and its directory with it soon: files need not be removed one by one.
    abandoned: AtomicBool,
}

impl DiskStore {
    pub(crate) fn new(path: PathBuf) -> Arc<Self> {
        Arc::new(Self { path, dir: OnceLock::new(), next: AtomicU64::new(1), abandoned: AtomicBool::new(false) })
    }

    pub(crate) fn abandon(&self) {
        self.abandoned.store(true, Ordering::Relaxed);
    }

    /// The directory, made when it is not there.
    fn dir(&self) -> Result<&OwnedFd, Errno> {
        if let Some(dir) = self.dir.get() {
            return Ok(dir);
        }
        make_parents(&self.path)?;
        match rustix::fs::mkdir(&self.path, Mode::RWXU) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::open(&self.path, flags, Mode::empty())?;
        Ok(self.dir.get_or_init(|| dir))
    }

    /// A new empty file.
    pub(crate) fn create(&self) -> Result<(u64, OwnedFd), Errno> {
        let dir = self.dir()?;
        loop {
            let id = self.next.fetch_add(1, Ordering::Relaxed);
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match rustix::fs::openat(dir, name(id).as_str(), flags, Mode::RUSR | Mode::WUSR) {
                Ok(fd) => return Ok((id, fd)),
                // Left by an attempt before: numbers go on above it.
                Err(rustix::io::Errno::EXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    pub(crate) fn open(&self, id: u64) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(self.dir()?, name(id).as_str(), flags, Mode::empty())?)
    }

    pub(crate) fn remove(&self, id: u64) {
        if self.abandoned.load(Ordering::Relaxed) {
            return;
        }
        if let Some(dir) = self.dir.get() {
            // Nobody is left to tell; the worker removes the whole directory in the end.
            let _ = rustix::fs::unlinkat(dir, name(id).as_str(), AtFlags::empty());
        }
    }

    /// Bytes the file takes on the disk.
    pub(crate) fn stored_bytes(&self, id: u64) -> u64 {
        let Some(dir) = self.dir.get() else { return 0 };
        rustix::fs::statat(dir, name(id).as_str(), AtFlags::SYMLINK_NOFOLLOW)
            .map_or(0, |stat| stat.st_blocks as u64 * 512)
    }

    /// The disk's own figures, from the directory or from where it will be.
    pub(crate) fn statvfs(&self) -> Result<rustix::fs::StatVfs, Errno> {
        if let Some(dir) = self.dir.get() {
            return Ok(rustix::fs::fstatvfs(dir)?);
        }
        for there in self.path.ancestors().skip(1) {
            match rustix::fs::statvfs(there) {
                Err(rustix::io::Errno::NOENT) => {}
                found => return Ok(found?),
            }
        }
        Err(Errno::NoEnt)
    }
}

/// The directories above a file of the node, 0750 as the kubelet makes its own.
pub(crate) fn make_parents(path: &Path) -> Result<(), Errno> {
    let Some(parent) = path.parent() else { return Ok(()) };
    let made = DirBuilder::new().recursive(true).mode(0o750).create(parent);
    Ok(made?)
}

fn name(id: u64) -> String {
    format!("{id:x}")
}

/// Where a tree's new bytes go.
#[derive(Debug, Clone)]
pub(crate) enum Store {
    Memory(Arc<Budget>),
    Disk(Arc<DiskStore>),
}
