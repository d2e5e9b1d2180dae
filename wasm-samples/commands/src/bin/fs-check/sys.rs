//! The calls of wasi-libc that std has no stable door to on WASI: descriptors opened by raw flags, stat with inode and
//! link count, positioned reads and writes, symbolic links. In: std types. Out: std types, with errno as `io::Error`.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::Path;

/// Names of the error numbers that checks expect.
pub mod errno {
    /// An error number with its name.
    pub type Errno = (i32, &'static str);

    pub const EBADF: Errno = (libc::EBADF, "EBADF");
    pub const EEXIST: Errno = (libc::EEXIST, "EEXIST");
    pub const EINVAL: Errno = (libc::EINVAL, "EINVAL");
    pub const EISDIR: Errno = (libc::EISDIR, "EISDIR");
    pub const ELOOP: Errno = (libc::ELOOP, "ELOOP");
    pub const ENAMETOOLONG: Errno = (libc::ENAMETOOLONG, "ENAMETOOLONG");
    pub const ENOENT: Errno = (libc::ENOENT, "ENOENT");
    pub const ENOSPC: Errno = (libc::ENOSPC, "ENOSPC");
    pub const ENOTDIR: Errno = (libc::ENOTDIR, "ENOTDIR");
    pub const ENOTEMPTY: Errno = (libc::ENOTEMPTY, "ENOTEMPTY");
    pub const EPERM: Errno = (libc::EPERM, "EPERM");
    pub const EROFS: Errno = (libc::EROFS, "EROFS");
}

/// What stat tells, as far as the checks look at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    pub device: u64,
    pub inode: u64,
    pub links: u64,
    pub size: i64,
    kind: libc::mode_t,
}

impl Stat {
    pub fn is_file(&self) -> bool {
        self.kind == libc::S_IFREG
    }

    pub fn is_dir(&self) -> bool {
        self.kind == libc::S_IFDIR
    }

    pub fn is_symlink(&self) -> bool {
        self.kind == libc::S_IFLNK
    }

    pub fn is_char_device(&self) -> bool {
        self.kind == libc::S_IFCHR
    }
}

impl From<libc::stat> for Stat {
    fn from(raw: libc::stat) -> Self {
        Self {
            device: raw.st_dev,
            inode: raw.st_ino,
            links: raw.st_nlink,
            size: raw.st_size,
            kind: raw.st_mode & libc::S_IFMT,
        }
    }
}

/// `stat(path)`.
pub fn stat(path: &Path) -> io::Result<Stat> {
    let path = c_string(path)?;
    // SAFETY: `path` is NUL-terminated and the buffer is a stat.
    stat_into(|buffer| unsafe { libc::stat(path.as_ptr(), buffer) })
}

/// `lstat(path)`.
pub fn lstat(path: &Path) -> io::Result<Stat> {
    let path = c_string(path)?;
    // SAFETY: as above.
    stat_into(|buffer| unsafe { libc::lstat(path.as_ptr(), buffer) })
}

/// `fstat(file)`.
pub fn fstat(file: &File) -> io::Result<Stat> {
    // SAFETY: the descriptor is open as long as `file` is.
    stat_into(|buffer| unsafe { libc::fstat(file.as_raw_fd(), buffer) })
}

fn stat_into(call: impl FnOnce(*mut libc::stat) -> i32) -> io::Result<Stat> {
    let mut buffer = MaybeUninit::uninit();
    check(call(buffer.as_mut_ptr()) as isize)?;
    // SAFETY: the call succeeded, so it filled the buffer.
    Ok(unsafe { buffer.assume_init() }.into())
}

/// `open(path, flags)` with raw `O_*` flags; files are created with mode 0666.
pub fn open(path: &Path, flags: i32) -> io::Result<File> {
    let path = c_string(path)?;
    // SAFETY: `path` is NUL-terminated; the third argument is the mode that O_CREAT reads.
    let descriptor = check(unsafe { libc::open(path.as_ptr(), flags, 0o666) } as isize)?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { File::from_raw_fd(descriptor as i32) })
}

/// `pread(file, buffer, offset)`.
pub fn pread(file: &File, buffer: &mut [u8], offset: i64) -> io::Result<usize> {
    // SAFETY: pointer and length are of one slice.
    check(unsafe { libc::pread(file.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), offset) })
}

/// `pwrite(file, bytes, offset)`.
pub fn pwrite(file: &File, bytes: &[u8], offset: i64) -> io::Result<usize> {
    // SAFETY: as above.
    check(unsafe { libc::pwrite(file.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), offset) })
}

/// `lseek(file, offset, whence)`, which unlike std's takes what makes no sense.
pub fn lseek(file: &File, offset: i64, whence: i32) -> io::Result<i64> {
    // SAFETY: plain numbers.
    let position = unsafe { libc::lseek(file.as_raw_fd(), offset, whence) };
    if position < 0 { Err(io::Error::last_os_error()) } else { Ok(position) }
}

/// `symlink(target, path)`.
pub fn symlink(target: impl AsRef<Path>, path: &Path) -> io::Result<()> {
    let (target, path) = (c_string(target.as_ref())?, c_string(path)?);
    // SAFETY: both are NUL-terminated.
    check(unsafe { libc::symlink(target.as_ptr(), path.as_ptr()) } as isize).map(drop)
}

/// `posix_fallocate(file, 0, length)`.
pub fn allocate(file: &File, length: i64) -> io::Result<()> {
    // SAFETY: plain numbers. It returns the error instead of setting errno.
    match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, length) } {
        0 => Ok(()),
        number => Err(io::Error::from_raw_os_error(number)),
    }
}

fn c_string(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_encoded_bytes())?)
}

fn check(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
