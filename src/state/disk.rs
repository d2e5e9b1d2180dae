//! Crash-safe writes and confined removal, by directory descriptors.
//!
//! In: a directory descriptor and names. Out: files that are whole or absent after any crash, trees that are gone.
//! Never follows a symlink, never recurses: a guest may have made a tree a million levels deep.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, Dir, Mode, OFlags, RenameFlags, ResolveFlags};
use rustix::io::Errno;

use super::{Faults, IoStep};

/// Ends the name of a file that is being written; such files are removed at the next start.
pub(super) const TEMPORARY: &str = ".tmp";

/// Begins the name of a tree that is being removed; such trees are removed at the next start.
pub(super) const REMOVING: &str = ".removing-";

/// Makes names of temporaries unique within this process; the directory lock keeps other processes out.
static UNIQUE: AtomicU64 = AtomicU64::new(0);

const DIR_FLAGS: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::RDONLY);

/// Opens a directory by path; only for roots that the node's owner configured.
pub(super) fn open_root(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY, Mode::empty())?)
}

/// Whether [`walk`] makes what is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    /// Make it, 0750 as the kubelet makes its directories.
    Make,
    /// `ENOENT`.
    Fail,
}

/// Opens a directory below `dir`, component by component, through no symlink.
pub(super) fn walk(dir: BorrowedFd<'_>, relative: &Path, missing: Missing) -> io::Result<OwnedFd> {
    let mut here = rustix::fs::openat(dir, c".", DIR_FLAGS, Mode::empty())?;
    for component in relative.components() {
        let Component::Normal(name) = component else { return Err(io::Error::from(io::ErrorKind::InvalidInput)) };
        here = match rustix::fs::openat(&here, name, DIR_FLAGS, Mode::empty()) {
            Ok(next) => next,
            Err(Errno::NOENT) if missing == Missing::Make => {
                match rustix::fs::mkdirat(&here, name, Mode::from_raw_mode(0o750)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
                rustix::fs::openat(&here, name, DIR_FLAGS, Mode::empty())?
            }
            Err(error) => return Err(error.into()),
        };
    }
    Ok(here)
}

/// Replaces `name` in `dir` by `bytes`: after a crash at any instant it's the old file or the new one.
pub(super) fn write_atomically(
    faults: &dyn Faults,
    dir: BorrowedFd<'_>,
    shown_dir: &Path,
    name: &str,
    bytes: &[u8],
) -> io::Result<()> {
    let temporary = format!(".{name}.{}{TEMPORARY}", UNIQUE.fetch_add(1, Ordering::Relaxed));
    let dir = rustix::io::fcntl_dupfd_cloexec(dir, 0)?;
    Staged::write(faults, dir, shown_dir, Names { temporary: &temporary, name, spare: None }, bytes)?.commit(faults)
}

/// What a file is called on its way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Names<'a> {
    /// While it is written.
    pub temporary: &'a str,
    /// In its place.
    pub name: &'a str,
    /// Where the file that was in that place before is kept, to be written the next time: a file system has to look for
    /// a free inode for a new one, past all those that were freed a moment ago. None removes it.
    pub spare: Option<&'a str>,
}

/// A file that is written under a name of its own and not in its place yet. This process may die now and the bytes are
/// there; the machine may not.
#[derive(Debug)]
pub(super) struct Staged {
    dir: OwnedFd,
    file: std::fs::File,
    temporary: String,
    name: String,
    spare: Option<String>,
    shown: PathBuf,
    committed: bool,
}

impl Staged {
    /// Writes `bytes` to the temporary in `dir`, in place of what a failure left there.
    pub(super) fn write(
        faults: &dyn Faults,
        dir: OwnedFd,
        shown_dir: &Path,
        names: Names<'_>,
        bytes: &[u8],
    ) -> io::Result<Self> {
        let Names { temporary, name, spare } = names;
        let shown = shown_dir.join(name);
        faults.before(IoStep::Create, &shown)?;
        let spared = spare.map(|spare| take_spare(dir.as_fd(), spare, temporary)).transpose()?.flatten();
        let file = match spared {
            Some(file) => file,
            None => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                rustix::fs::openat(&dir, temporary, flags, Mode::from_raw_mode(0o600))?
            }
        };
        let (temporary, name, spare) = (temporary.to_owned(), name.to_owned(), spare.map(str::to_owned));
        let mut staged = Self { dir, file: file.into(), temporary, name, spare, shown, committed: false };
        faults.before(IoStep::Write, &staged.shown)?;
        io::Write::write_all(&mut staged.file, bytes)?;
        Ok(staged)
    }

    /// Puts it in its place if that is empty, without waiting for the disk; gives it back if it is not.
    pub(super) fn place(mut self, faults: &dyn Faults) -> io::Result<Option<Self>> {
        faults.before(IoStep::Rename, &self.shown)?;
        match rustix::fs::renameat_with(&self.dir, &self.temporary, &self.dir, &self.name, RenameFlags::NOREPLACE) {
            Ok(()) => {
                self.committed = true;
                Ok(None)
            }
            // Taken; or a file system that does not know the flag.
            Err(Errno::EXIST | Errno::INVAL | Errno::NOSYS) => Ok(Some(self)),
            Err(error) => Err(error.into()),
        }
    }

    /// Puts it in its place, to stay there whatever happens to the machine. With a spare there is an instant in which the
    /// place is empty, and the whole file under its temporary name.
    pub(super) fn commit(mut self, faults: &dyn Faults) -> io::Result<()> {
        faults.before(IoStep::SyncFile, &self.shown)?;
        self.file.sync_all()?;
        faults.before(IoStep::Rename, &self.shown)?;
        if let Some(spare) = &self.spare {
            match rustix::fs::renameat(&self.dir, &self.name, &self.dir, spare) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if let Err(error) = rustix::fs::renameat(&self.dir, &self.temporary, &self.dir, &self.name) {
            if let Some(spare) = &self.spare {
                let _ = rustix::fs::renameat(&self.dir, spare, &self.dir, &self.name);
            }
            return Err(error.into());
        }
        self.committed = true;
        faults.before(IoStep::SyncDirectory, &self.shown)?;
        Ok(rustix::fs::fsync(&self.dir)?)
    }
}

/// The spare file under the temporary's name, if there is one. Emptied before it gets that name: what is whole under it
/// counts as newer than what is in place.
fn take_spare(dir: BorrowedFd<'_>, spare: &str, temporary: &str) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::WRONLY | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(dir, spare, flags, Mode::empty()) {
        Ok(file) => {
            rustix::fs::renameat(dir, spare, dir, temporary)?;
            Ok(Some(file))
        }
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.committed {
            // Best effort: the next start removes it too.
            let _ = rustix::fs::unlinkat(&self.dir, &self.temporary, AtFlags::empty());
        }
    }
}

/// The names in a directory, without `.` and `..`.
pub(super) fn names(dir: BorrowedFd<'_>) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

/// Takes `name` out of `from` at once and then destroys it in `yard`, a directory of the same file system.
/// Absence is fine.
pub(super) fn remove_tree(
    faults: &dyn Faults,
    from: BorrowedFd<'_>,
    name: &Path,
    yard: BorrowedFd<'_>,
    label: &str,
) -> io::Result<()> {
    faults.before(IoStep::Remove, name)?;
    let buried = format!("{REMOVING}{label}-{}", UNIQUE.fetch_add(1, Ordering::Relaxed));
    match rustix::fs::renameat(from, name, yard, &buried) {
        Ok(()) => {}
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    destroy(yard, &CString::new(buried).map_err(io::Error::other)?)
}

/// Removes the tree `name` of the directory `parent`, for directories that the node owns outside its root (memory
/// volumes). Never follows a symlink. Absence of either is fine.
///
/// # Errors
/// The file system refused, or `name` is more than a name.
pub fn remove_tree_in(parent: &Path, name: &str) -> io::Result<()> {
    if !matches!(Path::new(name).components().collect::<Vec<_>>().as_slice(), [Component::Normal(_)]) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    match rustix::fs::open(parent, DIR_FLAGS, Mode::empty()) {
        Ok(dir) => remove_tree(&super::NoFaults, dir.as_fd(), Path::new(name), dir.as_fd(), name),
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Removes `name` from `yard` with all below it, with two descriptors however deep it is: directories of the
/// third level are moved up to the second.
pub(super) fn destroy(yard: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    if unlink(yard, name)? == Unlinked::Yes {
        return Ok(());
    }
    let top = open_for_removal(yard, name)?;
    // Random, so that a guest cannot have made directories of the names used here.
    let tag: u64 = rand::random();
    loop {
        let entries = names(top.as_fd())?;
        if entries.is_empty() {
            break;
        }
        for entry in entries {
            if unlink(top.as_fd(), &entry)? == Unlinked::IsDirectory {
                flatten(top.as_fd(), &entry, tag)?;
            }
        }
    }
    Ok(rustix::fs::unlinkat(yard, name, AtFlags::REMOVEDIR)?)
}

/// Removes the directory `name` of `top`, its files with it; its directories become `top`'s.
fn flatten(top: BorrowedFd<'_>, name: &CStr, tag: u64) -> io::Result<()> {
    let dir = open_for_removal(top, name)?;
    for child in names(dir.as_fd())? {
        if unlink(dir.as_fd(), &child)? == Unlinked::IsDirectory {
            let moved = format!("{REMOVING}{tag:x}-{}", UNIQUE.fetch_add(1, Ordering::Relaxed));
            // Moving a directory writes its `..`, which wants its write permission.
            make_accessible(dir.as_fd(), &child);
            rustix::fs::renameat(&dir, &child, top, moved)?;
        }
    }
    Ok(rustix::fs::unlinkat(top, name, AtFlags::REMOVEDIR)?)
}

#[derive(PartialEq, Eq)]
enum Unlinked {
    Yes,
    IsDirectory,
}

fn unlink(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<Unlinked> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(Unlinked::Yes),
        Err(Errno::ISDIR | Errno::PERM) => Ok(Unlinked::IsDirectory),
        Err(error) => Err(error.into()),
    }
}

/// Opens what is to be emptied. A mount point is refused (`EXDEV`): what is mounted there is not the pod's to lose.
fn open_for_removal(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    make_accessible(dir, name);
    match rustix::fs::openat2(dir, name, DIR_FLAGS, Mode::empty(), ResolveFlags::NO_XDEV) {
        // A kernel or a container of before openat2.
        Err(Errno::NOSYS | Errno::PERM) => Ok(rustix::fs::openat(dir, name, DIR_FLAGS, Mode::empty())?),
        opened => Ok(opened?),
    }
}

/// A guest may have taken its directory's permissions away, which binds an agent without privileges.
/// Failing shows in the step that needed it.
fn make_accessible(dir: BorrowedFd<'_>, name: &CStr) {
    let pinned = rustix::fs::openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
    let Ok(pinned) = pinned else { return };
    let Ok(stat) = rustix::fs::fstat(&pinned) else { return };
    let is_dir = rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Directory;
    if is_dir && stat.st_mode & 0o700 != 0o700 {
        use std::os::fd::AsRawFd;
        // chmod has no O_PATH form before Linux 6.6; by way of /proc it hits exactly what was pinned.
        let by_descriptor = PathBuf::from(format!("/proc/self/fd/{}", pinned.as_raw_fd()));
        let _ = rustix::fs::chmod(by_descriptor, Mode::from_raw_mode(0o700));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::NoFaults;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn removal_takes_the_tree_and_leaves_what_its_symlinks_point_to() {
        let dir = tempfile::tempdir().unwrap();
        let (outside, yard) = (dir.path().join("outside"), dir.path().join("yard"));
        fs::create_dir_all(outside.join("keep")).unwrap();
        fs::write(outside.join("keep/file"), "x").unwrap();
        fs::create_dir_all(yard.join("victim/a/b")).unwrap();
        symlink(&outside, yard.join("victim/link")).unwrap();
        symlink(&outside, yard.join("victim/a/link")).unwrap();
        fs::write(yard.join("victim/a/b/file"), "x").unwrap();
        fs::set_permissions(yard.join("victim/a/b"), fs::Permissions::from_mode(0o0)).unwrap();
        let root = open_root(&yard).unwrap();
        remove_tree(&NoFaults, root.as_fd(), Path::new("victim"), root.as_fd(), "t").unwrap();
        assert_eq!(fs::read_dir(&yard).unwrap().count(), 0);
        assert!(outside.join("keep/file").exists());
        remove_tree(&NoFaults, root.as_fd(), Path::new("victim"), root.as_fd(), "t").unwrap();
    }

    #[test]
    fn a_tree_deeper_than_any_stack_or_path_goes_away() {
        let dir = tempfile::tempdir().unwrap();
        let root = open_root(dir.path()).unwrap();
        let mut here = walk(root.as_fd(), Path::new("deep"), Missing::Make).unwrap();
        for _ in 0..5_000 {
            here = walk(here.as_fd(), Path::new("d"), Missing::Make).unwrap();
        }
        drop(here);
        remove_tree(&NoFaults, root.as_fd(), Path::new("deep"), root.as_fd(), "t").unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_walk_goes_through_no_symlink_and_no_dots() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("real")).unwrap();
        symlink("real", dir.path().join("link")).unwrap();
        let root = open_root(dir.path()).unwrap();
        assert!(walk(root.as_fd(), Path::new("real"), Missing::Fail).is_ok());
        for bad in ["link", "../x", "real/..", "/tmp"] {
            assert!(walk(root.as_fd(), Path::new(bad), Missing::Make).is_err(), "{bad}");
        }
    }
}
