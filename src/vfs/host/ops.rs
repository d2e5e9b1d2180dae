//! Changes in a host directory, and opening its files.
//!
//! In: a directory handle and one name, already allowed by the namespace. Out: the kernel's own answer. Foreign
//! files are opened in two steps (a look, then the same inode for real), so that a device node swapped in between
//! is never opened.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, Stat, Timestamps};

use super::{HostDir, HostFile, HostFs, Owner, attr};
use crate::errno::Errno;
use crate::vfs::mount::Absent;
use crate::vfs::perm::{Attr, SETGID, SETUID};
use crate::vfs::tree::make_parents;
use crate::vfs::{FileType, OpenFlags, SetTime, SetTimes, Timestamp};

/// What opening a name found.
#[derive(Debug)]
pub(crate) enum HostOpen {
    File(HostFile, Attr),
    Dir(Arc<HostDir>),
    Link(String),
}

fn access_flags(flags: OpenFlags) -> OFlags {
    let access = match (flags.contains(OpenFlags::READ), flags.contains(OpenFlags::WRITE)) {
        (true, true) => OFlags::RDWR,
        (false, true) => OFlags::WRONLY,
        _ => OFlags::RDONLY,
    };
    // A FIFO without a partner must not hold the thread; regular files do not care.
    access | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY
}

/// The descriptor's own inode, opened anew with other flags.
fn reopen(fd: &OwnedFd, flags: OFlags) -> Result<OwnedFd, Errno> {
    Ok(rustix::fs::open(format!("/proc/self/fd/{}", fd.as_raw_fd()), flags, Mode::empty())?)
}

/// Access of the real descriptor: one of ours is readable in any case, as its attributes are read through it.
fn real_flags(owner: Owner, flags: OpenFlags) -> OFlags {
    let real = access_flags(flags);
    if owner == Owner::Ours && flags.contains(OpenFlags::WRITE) {
        return real.difference(OFlags::WRONLY) | OFlags::RDWR;
    }
    real
}

/// Makes an empty file of the node, writable for everybody whatever our umask is: the process may be any user.
fn make_node_file(path: &Path) -> Result<(), Errno> {
    make_parents(path)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?;
    Ok(rustix::fs::fchmod(fd, Mode::from_raw_mode(0o666))?)
}

/// Files of the node itself, each named by the agent's own path.
static NODE: OnceLock<Arc<HostFs>> = OnceLock::new();

#[allow(clippy::unused_self, reason = "the calls of a backend read alike, whether they need its state or not")]
impl HostFs {
    /// The filesystem of the node's own single files.
    pub(crate) fn node() -> Result<&'static Arc<Self>, Errno> {
        if let Some(fs) = NODE.get() {
            return Ok(fs);
        }
        let fs = Self::open(Path::new("/"), Owner::Ours, None)?;
        Ok(NODE.get_or_init(|| fs))
    }

    /// Opens a regular file of the node by the agent's own path.
    pub(crate) fn open_node_file(path: &Path, absent: Absent, flags: OpenFlags) -> Result<HostFile, Errno> {
        let fs = Self::node()?;
        let open = || rustix::fs::open(path, real_flags(Owner::Ours, flags) | OFlags::NOFOLLOW, Mode::empty());
        let fd = match open() {
            Err(rustix::io::Errno::NOENT) if absent == Absent::Made => {
                make_node_file(path)?;
                open()?
            }
            opened => opened?,
        };
        let stat = rustix::fs::fstat(&fd)?;
        if attr::kind(&stat) != FileType::Regular {
            return Err(Errno::Inval);
        }
        Ok(HostFile::new(fs, fd, &stat))
    }

    /// The descriptor's inode again, with the access a guest asked for.
    pub(super) fn reopen(&self, fd: &OwnedFd, flags: OpenFlags) -> Result<OwnedFd, Errno> {
        reopen(fd, real_flags(self.owner, flags))
    }

    /// Opens what is there. A directory for writing is `EISDIR`; devices of the host are `EACCES`.
    pub(crate) fn open_existing(
        self: &Arc<Self>,
        dir: &HostDir,
        name: &str,
        flags: OpenFlags,
    ) -> Result<HostOpen, Errno> {
        match self.owner {
            Owner::Ours => self.open_ours(dir, name, flags),
            Owner::Foreign => self.open_foreign(dir, name, flags),
        }
    }

    fn open_ours(self: &Arc<Self>, dir: &HostDir, name: &str, flags: OpenFlags) -> Result<HostOpen, Errno> {
        let real = real_flags(self.owner, flags);
        let fd = match rustix::fs::openat(&dir.fd, name, real | OFlags::NOFOLLOW, Mode::empty()) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::LOOP) => return Ok(HostOpen::Link(self.readlink(dir, name)?)),
            Err(errno) => return Err(errno.into()),
        };
        let stat = rustix::fs::fstat(&fd)?;
        match attr::kind(&stat) {
            FileType::Directory => Ok(HostOpen::Dir(Arc::new(HostDir { fd, id: (stat.st_dev, stat.st_ino) }))),
            FileType::Regular | FileType::Fifo => {
                let attr = self.attr_of(&fd, &stat);
                Ok(HostOpen::File(HostFile::new(self, fd, &stat), attr))
            }
            _ => Err(Errno::Acces),
        }
    }

    fn open_foreign(self: &Arc<Self>, dir: &HostDir, name: &str, flags: OpenFlags) -> Result<HostOpen, Errno> {
        let look = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&dir.fd, name, look, Mode::empty())?;
        let stat = rustix::fs::fstat(&fd)?;
        self.check_hidden((stat.st_dev, stat.st_ino))?;
        match attr::kind(&stat) {
            FileType::Directory if flags.contains(OpenFlags::WRITE) => Err(Errno::IsDir),
            FileType::Directory => Ok(HostOpen::Dir(Arc::new(HostDir { fd, id: (stat.st_dev, stat.st_ino) }))),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&fd, "", Vec::new())?;
                Ok(HostOpen::Link(target.into_string().map_err(|_| Errno::IlSeq)?))
            }
            FileType::Regular | FileType::Fifo => {
                let looked_at_only = !flags.intersects(OpenFlags::READ | OpenFlags::WRITE);
                let fd = if looked_at_only { fd } else { reopen(&fd, access_flags(flags))? };
                Ok(HostOpen::File(HostFile::new(self, fd, &stat), attr::real(&stat)))
            }
            FileType::Socket => Err(Errno::NxIo),
            // As on a mount with `nodev`.
            FileType::CharDevice | FileType::BlockDevice => Err(Errno::Acces),
        }
    }

    /// Makes a regular file. `EEXIST` when the name is taken, by whatever.
    pub(crate) fn create(self: &Arc<Self>, dir: &HostDir, name: &str, attr: &Attr) -> Result<HostFile, Errno> {
        let real = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = rustix::fs::openat(&dir.fd, name, real, attr::creation_mode(attr))?;
        let stat = rustix::fs::fstat(&fd)?;
        self.adopt(&fd, &stat, attr)?;
        Ok(HostFile::new(self, fd, &stat))
    }

    /// Gives a node just made its owner and mode.
    fn adopt(&self, fd: &OwnedFd, stat: &Stat, attr: &Attr) -> Result<(), Errno> {
        match self.owner {
            Owner::Ours => attr::write(&self.side, fd, stat, attr),
            Owner::Foreign => {
                // Without privileges the files are the agent's; that is what hostPath then means.
                let inherited = stat.st_gid == attr.gid;
                let (uid, gid) = attr::ids(Some(attr.uid), (!inherited).then_some(attr.gid));
                let _ = rustix::fs::fchown(fd, uid, gid);
                let mode = attr.mode & !SETUID;
                Ok(rustix::fs::fchmod(fd, Mode::from_raw_mode(mode))?)
            }
        }
    }

    pub(crate) fn mkdir(&self, dir: &HostDir, name: &str, attr: &Attr) -> Result<(), Errno> {
        rustix::fs::mkdirat(&dir.fd, name, attr::creation_mode(attr))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&dir.fd, name, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&fd)?;
        self.adopt(&fd, &stat, attr)
    }

    pub(crate) fn symlink(&self, dir: &HostDir, name: &str, target: &str, attr: &Attr) -> Result<(), Errno> {
        rustix::fs::symlinkat(target, &dir.fd, name)?;
        if attr.uid != 0 || attr.gid != 0 {
            // Links hold no `user.` attribute: real ownership where we may, else the agent's.
            let (uid, gid) = attr::ids(Some(attr.uid), Some(attr.gid));
            let _ = rustix::fs::chownat(&dir.fd, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW);
        }
        Ok(())
    }

    /// Before a name goes: what the accounts need to know of its node.
    fn victim(&self, dir: &HostDir, name: &str) -> Option<Stat> {
        if self.owner == Owner::Foreign {
            return None;
        }
        rustix::fs::statat(&dir.fd, name, AtFlags::SYMLINK_NOFOLLOW).ok()
    }

    /// After the name went.
    fn bury(&self, victim: Option<Stat>) {
        let Some(stat) = victim else { return };
        let last = stat.st_nlink <= 1 || attr::kind(&stat) == FileType::Directory;
        if last {
            if attr::is_marked(&stat) {
                self.side.forget(stat.st_ino);
            }
            if let Some(ledger) = &self.ledger
                && attr::kind(&stat) == FileType::Regular
            {
                ledger.unlinked(stat.st_ino, stat.st_blocks as u64 * 512);
            }
        }
    }

    pub(crate) fn unlink(&self, dir: &HostDir, name: &str) -> Result<(), Errno> {
        self.check_pinned(dir, name)?;
        let victim = self.victim(dir, name);
        match rustix::fs::unlinkat(&dir.fd, name, AtFlags::empty()) {
            Ok(()) => {}
            Err(rustix::io::Errno::ISDIR) => return Err(Errno::IsDir),
            Err(errno) => return Err(errno.into()),
        }
        self.bury(victim);
        Ok(())
    }

    pub(crate) fn rmdir(&self, dir: &HostDir, name: &str) -> Result<(), Errno> {
        self.check_pinned(dir, name)?;
        let victim = self.victim(dir, name);
        rustix::fs::unlinkat(&dir.fd, name, AtFlags::REMOVEDIR)?;
        self.renamed(dir, name);
        self.bury(victim);
        Ok(())
    }

    pub(crate) fn rename(&self, from: (&HostDir, &str), to: (&HostDir, &str)) -> Result<(), Errno> {
        self.check_pinned(from.0, from.1)?;
        self.check_pinned(to.0, to.1)?;
        let victim = self.victim(to.0, to.1);
        let moved = victim.as_ref().and_then(|_| self.victim(from.0, from.1));
        rustix::fs::renameat_with(&from.0.fd, from.1, &to.0.fd, to.1, RenameFlags::empty())?;
        self.renamed(from.0, from.1);
        self.renamed(to.0, to.1);
        // Two names of one file: nothing happened, nothing went.
        let same = matches!((&victim, &moved), (Some(a), Some(b)) if a.st_ino == b.st_ino);
        self.bury(victim.filter(|_| !same));
        Ok(())
    }

    pub(crate) fn link(&self, from: (&HostDir, &str), to: (&HostDir, &str)) -> Result<(), Errno> {
        self.check_pinned(from.0, from.1)?;
        Ok(rustix::fs::linkat(&from.0.fd, from.1, &to.0.fd, to.1, AtFlags::empty())?)
    }

    /// Gives a named node these attributes.
    pub(crate) fn set_attr(&self, dir: &HostDir, name: &str, old: &Attr, new: &Attr) -> Result<(), Errno> {
        if old.kind == FileType::Symlink || self.owner == Owner::Foreign {
            self.check_pinned(dir, name)?;
            if (old.uid, old.gid) != (new.uid, new.gid) {
                let (uid, gid) = attr::ids(Some(new.uid), Some(new.gid));
                let result = rustix::fs::chownat(&dir.fd, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW);
                if self.owner == Owner::Foreign {
                    result?;
                }
            }
            if old.mode == new.mode || old.kind == FileType::Symlink {
                return Ok(());
            }
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = rustix::fs::openat(&dir.fd, name, flags, Mode::empty())?;
            return chmod_foreign(&fd, new);
        }
        let fd = self.open_for_attr(dir, name)?;
        let stat = rustix::fs::fstat(&fd)?;
        attr::write(&self.side, &fd, &stat, new)
    }

    /// The same for an open directory.
    pub(crate) fn set_dir_attr(&self, dir: &HostDir, old: &Attr, new: &Attr) -> Result<(), Errno> {
        self.set_fd_attr(&dir.fd, old, new)
    }

    pub(super) fn set_fd_attr(&self, fd: &OwnedFd, old: &Attr, new: &Attr) -> Result<(), Errno> {
        match self.owner {
            Owner::Ours => {
                let stat = rustix::fs::fstat(fd)?;
                attr::write(&self.side, fd, &stat, new)
            }
            Owner::Foreign => {
                if (old.uid, old.gid) != (new.uid, new.gid) {
                    let (uid, gid) = attr::ids(Some(new.uid), Some(new.gid));
                    rustix::fs::chownat(fd, "", uid, gid, AtFlags::EMPTY_PATH)?;
                }
                if old.mode == new.mode { Ok(()) } else { chmod_foreign(fd, new) }
            }
        }
    }

    pub(crate) fn set_times(&self, dir: &HostDir, name: &str, times: SetTimes) -> Result<(), Errno> {
        Ok(rustix::fs::utimensat(&dir.fd, name, &real_times(times), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    pub(crate) fn set_dir_times(&self, dir: &HostDir, times: SetTimes) -> Result<(), Errno> {
        Ok(rustix::fs::utimensat(&dir.fd, ".", &real_times(times), AtFlags::empty())?)
    }

    pub(crate) fn sync_dir(&self, dir: &HostDir) -> Result<(), Errno> {
        let fd = rustix::fs::openat(&dir.fd, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(rustix::fs::fsync(&fd)?)
    }
}

/// Real `chmod` of a descriptor, `O_PATH` ones included. The host gets no setuid or setgid programs from a guest.
fn chmod_foreign(fd: &OwnedFd, new: &Attr) -> Result<(), Errno> {
    if new.mode & SETUID != 0 || (new.mode & SETGID != 0 && new.kind != FileType::Directory) {
        return Err(Errno::Perm);
    }
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    Ok(rustix::fs::chmod(path, Mode::from_raw_mode(new.mode))?)
}

/// `UTIME_NOW` and `UTIME_OMIT` in the kernel's form.
pub(super) fn real_times(times: SetTimes) -> Timestamps {
    let real = |time: SetTime| match time {
        SetTime::Omit => rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        SetTime::Now => rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
        SetTime::At(Timestamp { seconds, nanoseconds }) => {
            rustix::fs::Timespec { tv_sec: seconds, tv_nsec: i64::from(nanoseconds) }
        }
    };
    Timestamps { last_access: real(times.accessed), last_modification: real(times.modified) }
}
