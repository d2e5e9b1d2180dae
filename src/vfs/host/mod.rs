//! A directory of the node as a filesystem: emptyDir (ours) and hostPath (foreign).
//!
//! In: directory handles and single names, never a path. Out: handles, metadata, files. A name is one component,
//! opened without following links, so nothing here can be led out of the tree; `..` is checked against the
//! mount's top. Ours: guest ownership as in `attr`, a small cache of open directories (no one else renames there).
//! Foreign: the real ownership, no cache, no device nodes, no setuid; where its calls may hang (`latency`) they run
//! on the mount's pool.

mod attr;
mod file;
mod latency;
mod ledger;
mod ops;
mod usage;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{AtFlags, Mode, OFlags, Stat};

pub(crate) use file::{DataOnly, HostFile, Wait};
pub(crate) use latency::Calls;
pub(crate) use ledger::Ledger;
pub(crate) use ops::HostOpen;
pub(crate) use usage::{Count, set_group, stored_bytes};

use super::perm::Attr;
use super::pool::Pool;
use super::{DirEntry, FileType, Metadata, StatFs, Timestamp};
use crate::errno::Errno;
use crate::pod::run::Access;
use attr::SideTable;

/// Open directories kept by one volume of ours: a working set, not a mirror.
const CACHED_DIRS: usize = 16;
/// Bytes of one `getdents`.
const LIST_BYTES: usize = 16 * 1024;
/// Steps up that are tried before a place counts as outside: deeper trees cannot be named by any path.
const MAX_DEPTH: usize = 4096;

/// Whose files they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    /// The node made the directory and nobody else changes it.
    Ours,
    /// The host's; it changes under us and may hang.
    Foreign,
}

/// One volume's directory.
#[derive(Debug)]
pub(crate) struct HostFs {
    dev: u64,
    pub(crate) owner: Owner,
    pub(crate) calls: Calls,
    pub(crate) root: Arc<HostDir>,
    pub(crate) pool: Pool,
    side: SideTable,
    cache: Mutex<DirCache>,
    pub(crate) ledger: Option<Ledger>,
    /// Devices and inodes that no guest gets at, whatever their name and way.
    hidden: Vec<(u64, u64)>,
}

/// An open directory.
#[derive(Debug)]
pub(crate) struct HostDir {
    fd: OwnedFd,
    /// The real device and inode.
    pub(crate) id: (u64, u64),
}

/// What a name leads to on the way to a deeper one.
#[derive(Debug)]
pub(crate) enum HostStep {
    Dir(Arc<HostDir>),
    Link(String),
}

/// Directories by parent inode and name. A change of names raises the generation, so that a lookup which began
/// before it leaves nothing behind.
#[derive(Debug, Default)]
struct DirCache {
    entries: Vec<(u64, Box<str>, Arc<HostDir>)>,
    generation: u64,
    next: usize,
}

impl DirCache {
    fn get(&self, parent: u64, name: &str) -> Option<Arc<HostDir>> {
        self.entries.iter().find(|(p, n, _)| *p == parent && **n == *name).map(|(_, _, dir)| Arc::clone(dir))
    }

    fn put(&mut self, generation: u64, parent: u64, name: &str, dir: &Arc<HostDir>) {
        if generation != self.generation || self.get(parent, name).is_some() {
            return;
        }
        let entry = (parent, name.into(), Arc::clone(dir));
        if self.entries.len() < CACHED_DIRS {
            self.entries.push(entry);
        } else {
            self.next = (self.next + 1) % CACHED_DIRS;
            self.entries[self.next] = entry;
        }
    }

    fn forget(&mut self, parent: u64, name: &str) {
        self.generation += 1;
        self.entries.retain(|(p, n, _)| *p != parent || **n != *name);
    }
}

impl HostDir {
    pub(super) fn from_fd(fd: OwnedFd) -> Result<Arc<Self>, Errno> {
        let stat = rustix::fs::fstat(&fd)?;
        if attr::kind(&stat) != FileType::Directory {
            return Err(Errno::NotDir);
        }
        Ok(Arc::new(Self { fd, id: (stat.st_dev, stat.st_ino) }))
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// How directories are opened: ours for reading, as their attributes are read through the descriptor.
fn dir_flags(owner: Owner) -> OFlags {
    let access = match owner {
        Owner::Ours => OFlags::RDONLY,
        Owner::Foreign => OFlags::PATH,
    };
    access | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

#[allow(clippy::unused_self, reason = "the calls of a backend read alike, whether they need its state or not")]
impl HostFs {
    /// Opens a directory of the node. The path is the admin's or the agent's own and may pass through links.
    /// Foreign ones may hang on a server; call it where that harms nobody.
    pub(crate) fn open(path: &Path, owner: Owner, ledger: Option<Ledger>) -> Result<Arc<Self>, Errno> {
        let calls = match owner {
            Owner::Ours => Calls::Bounded,
            Owner::Foreign => latency::of_directory(path),
        };
        Self::open_as(path, owner, calls, ledger)
    }

    /// Opens a directory of the host's owner without what is hidden in it. What is not there now cannot be shown later by
    /// its name alone: only what is there has an inode to know it by.
    pub(crate) fn open_hiding(path: &Path, hidden: &[PathBuf]) -> Result<Arc<Self>, Errno> {
        let id = |path: &PathBuf| rustix::fs::stat(path).ok().map(|stat| (stat.st_dev, stat.st_ino));
        let hidden = hidden.iter().filter_map(id).collect();
        Self::make(path, Owner::Foreign, latency::of_directory(path), None, hidden)
    }

    /// The same, knowing whether its calls may hang.
    pub(crate) fn open_as(path: &Path, owner: Owner, calls: Calls, ledger: Option<Ledger>) -> Result<Arc<Self>, Errno> {
        Self::make(path, owner, calls, ledger, Vec::new())
    }

    fn make(
        path: &Path,
        owner: Owner,
        calls: Calls,
        ledger: Option<Ledger>,
        hidden: Vec<(u64, u64)>,
    ) -> Result<Arc<Self>, Errno> {
        let flags = dir_flags(owner).difference(OFlags::NOFOLLOW);
        let root = HostDir::from_fd(rustix::fs::open(path, flags, Mode::empty())?)?;
        Ok(Arc::new(Self {
            dev: super::tree::next_dev(),
            owner,
            calls,
            root,
            pool: Pool::new(),
            side: SideTable::default(),
            cache: Mutex::default(),
            ledger,
            hidden,
        }))
    }

    /// EACCES for what is hidden.
    fn check_hidden(&self, id: (u64, u64)) -> Result<(), Errno> {
        if self.hidden.contains(&id) { Err(Errno::Acces) } else { Ok(()) }
    }

    /// EBUSY, as of a mount point, for a name of what is hidden: it stays where it is and as it is.
    fn check_pinned(&self, dir: &HostDir, name: &str) -> Result<(), Errno> {
        if self.hidden.is_empty() {
            return Ok(());
        }
        match rustix::fs::statat(&dir.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if self.hidden.contains(&(stat.st_dev, stat.st_ino)) => Err(Errno::Busy),
            // Whoever asked hears of the rest from the call itself.
            _ => Ok(()),
        }
    }

    /// The directory of this name, or the link that stands there.
    pub(crate) fn enter(&self, dir: &HostDir, name: &str) -> Result<HostStep, Errno> {
        let generation = match self.owner {
            Owner::Ours => {
                let cache = self.cache.lock();
                if let Some(hit) = cache.get(dir.id.1, name) {
                    return Ok(HostStep::Dir(hit));
                }
                Some(cache.generation)
            }
            Owner::Foreign => None,
        };
        match rustix::fs::openat(&dir.fd, name, dir_flags(self.owner), Mode::empty()) {
            Ok(fd) => {
                let child = HostDir::from_fd(fd)?;
                self.check_hidden(child.id)?;
                if let Some(generation) = generation {
                    self.cache.lock().put(generation, dir.id.1, name, &child);
                }
                Ok(HostStep::Dir(child))
            }
            Err(rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => match self.readlink(dir, name) {
                Ok(target) => Ok(HostStep::Link(target)),
                Err(Errno::Inval) => Err(Errno::NotDir),
                Err(errno) => Err(errno),
            },
            Err(errno) => Err(errno.into()),
        }
    }

    /// The directory above, when `dir` is still below `top`; `ENOENT` once it was moved out.
    pub(crate) fn parent(&self, dir: &HostDir, top: &HostDir) -> Result<Arc<HostDir>, Errno> {
        let up = |from: &HostDir| -> Result<Arc<HostDir>, Errno> {
            HostDir::from_fd(rustix::fs::openat(&from.fd, "..", dir_flags(self.owner), Mode::empty())?)
        };
        let parent = up(dir)?;
        let mut at = Arc::clone(&parent);
        for _ in 0..MAX_DEPTH {
            if at.id == top.id {
                return Ok(parent);
            }
            let above = up(&at)?;
            if above.id == at.id {
                break;
            }
            at = above;
        }
        Err(Errno::NoEnt)
    }

    /// Names of the directory change: nothing cached under this one holds any more.
    fn renamed(&self, dir: &HostDir, name: &str) {
        if self.owner == Owner::Ours {
            self.cache.lock().forget(dir.id.1, name);
        }
    }

    /// A link's target. `EINVAL` when it is none, `EILSEQ` when the target is no text.
    pub(crate) fn readlink(&self, dir: &HostDir, name: &str) -> Result<String, Errno> {
        let target = rustix::fs::readlinkat(&dir.fd, name, Vec::new())?;
        target.into_string().map_err(|_| Errno::IlSeq)
    }

    /// `lstat` of a name.
    pub(crate) fn stat(&self, dir: &HostDir, name: &str) -> Result<Metadata, Errno> {
        let stat = rustix::fs::statat(&dir.fd, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let attr = self.attr_at(dir, name, &stat)?;
        Ok(self.metadata(&stat, &attr))
    }

    /// Attributes of a name.
    pub(crate) fn attr(&self, dir: &HostDir, name: &str) -> Result<Attr, Errno> {
        let stat = rustix::fs::statat(&dir.fd, name, AtFlags::SYMLINK_NOFOLLOW)?;
        self.attr_at(dir, name, &stat)
    }

    fn attr_at(&self, dir: &HostDir, name: &str, stat: &Stat) -> Result<Attr, Errno> {
        if self.owner == Owner::Foreign {
            return Ok(attr::real(stat));
        }
        if !attr::is_marked(stat) {
            return Ok(attr::plain(stat));
        }
        let fd = self.open_for_attr(dir, name)?;
        Ok(attr::read(&self.side, &fd, stat))
    }

    /// One of our nodes, opened to read or change its attribute; a link has none and gives ELOOP.
    fn open_for_attr(&self, dir: &HostDir, name: &str) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&dir.fd, name, flags, Mode::empty())?)
    }

    pub(crate) fn dir_attr(&self, dir: &HostDir) -> Result<Attr, Errno> {
        let stat = rustix::fs::fstat(&dir.fd)?;
        Ok(self.attr_of(&dir.fd, &stat))
    }

    pub(crate) fn dir_stat(&self, dir: &HostDir) -> Result<Metadata, Errno> {
        let stat = rustix::fs::fstat(&dir.fd)?;
        Ok(self.metadata(&stat, &self.attr_of(&dir.fd, &stat)))
    }

    fn attr_of(&self, fd: impl AsFd, stat: &Stat) -> Attr {
        match self.owner {
            Owner::Foreign => attr::real(stat),
            Owner::Ours => attr::read(&self.side, fd, stat),
        }
    }

    fn metadata(&self, stat: &Stat, attr: &Attr) -> Metadata {
        let time = |seconds: i64, nanoseconds: u64| Timestamp { seconds, nanoseconds: nanoseconds as u32 };
        // A filesystem mounted inside a hostPath counts its inodes anew.
        let inner = if stat.st_dev == self.root.id.0 { 0 } else { stat.st_dev << 32 };
        Metadata {
            dev: self.dev | inner,
            ino: stat.st_ino,
            kind: attr.kind,
            mode: attr.mode,
            uid: attr.uid,
            gid: attr.gid,
            nlink: stat.st_nlink,
            size: stat.st_size as u64,
            rdev: stat.st_rdev,
            blocks: stat.st_blocks as u64,
            atime: time(stat.st_atime, stat.st_atime_nsec),
            mtime: time(stat.st_mtime, stat.st_mtime_nsec),
            ctime: time(stat.st_ctime, stat.st_ctime_nsec),
        }
    }

    /// Some entries from the kernel's cookie on. `..` shows the real parent's inode; a mount's top is corrected by
    /// the caller.
    pub(crate) fn list(&self, dir: &HostDir, cookie: u64) -> Result<Vec<DirEntry>, Errno> {
        // A descriptor of its own: its offset is nobody else's, so no lock is held over the call.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&dir.fd, ".", flags, Mode::empty())?;
        if cookie != 0 {
            rustix::fs::seek(&fd, rustix::fs::SeekFrom::Start(cookie))?;
        }
        let mut buffer = [std::mem::MaybeUninit::uninit(); LIST_BYTES];
        let mut raw = rustix::fs::RawDir::new(&fd, &mut buffer);
        let mut out = Vec::new();
        while let Some(entry) = raw.next() {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy();
            let kind = match entry.file_type() {
                rustix::fs::FileType::Directory => FileType::Directory,
                rustix::fs::FileType::RegularFile => FileType::Regular,
                rustix::fs::FileType::Symlink => FileType::Symlink,
                rustix::fs::FileType::CharacterDevice => FileType::CharDevice,
                rustix::fs::FileType::BlockDevice => FileType::BlockDevice,
                rustix::fs::FileType::Fifo => FileType::Fifo,
                rustix::fs::FileType::Socket => FileType::Socket,
                // Some filesystems do not tell in a listing.
                rustix::fs::FileType::Unknown => {
                    rustix::fs::statat(&dir.fd, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)
                        .map_or(FileType::Regular, |stat| attr::kind(&stat))
                }
            };
            out.push(DirEntry { next: entry.next_entry_cookie(), ino: entry.ino(), kind, name: name.into() });
            if raw.is_buffer_empty() {
                break;
            }
        }
        Ok(out)
    }

    pub(crate) fn statfs(&self, access: Access) -> Result<StatFs, Errno> {
        let disk = rustix::fs::fstatvfs(&self.root.fd)?;
        let mut out = StatFs {
            fs_type: rustix::fs::fstatfs(&self.root.fd)?.f_type as u32,
            block_size: disk.f_frsize,
            blocks: disk.f_blocks,
            blocks_free: disk.f_bfree,
            blocks_available: disk.f_bavail,
            files: disk.f_files,
            files_free: disk.f_ffree,
            access,
        };
        if let Some(ledger) = self.ledger.as_ref().filter(|ledger| ledger.limit() != u64::MAX) {
            let unit = out.block_size.max(1);
            let free = ledger.limit().saturating_sub(ledger.used()) / unit;
            out.blocks = ledger.limit() / unit;
            out.blocks_free = free.min(out.blocks_free);
            out.blocks_available = free.min(out.blocks_available);
        }
        Ok(out)
    }
}
