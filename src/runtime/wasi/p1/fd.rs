//! Calls on descriptors.
//!
//! In: descriptions and guest buffers. Out: bytes moved straight between the two. A call moves at most
//! [`MAX_TRANSFER`], so that no guest holds its thread for long; POSIX allows short counts, and every libc loops.

use wiggle::{GuestError, GuestPtr};

use super::{Memory, Result, convert, types};
use crate::errno::Errno;
use crate::runtime::process::{Access, DescriptionKind, FileDescription, Process};
use crate::vfs::{DirEntry, FileType, SetTimes};

/// Bytes of one call.
const MAX_TRANSFER: u32 = 1024 * 1024;
/// Bytes of one step, as `vfs` takes them.
const CHUNK: u32 = 64 * 1024;
/// Buffers of one call: Linux's `IOV_MAX`.
const MAX_BUFFERS: u32 = 1024;

/// Which of the two syncs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sync {
    /// `fdatasync`.
    Data,
    /// `fsync`.
    All,
}

/// `fd_sync`, `fd_datasync`.
pub(super) async fn sync(description: &FileDescription, what: Sync) -> Result<()> {
    match (description.kind(), what) {
        (DescriptionKind::File(open), Sync::Data) => open.file.datasync().await,
        (DescriptionKind::File(open), Sync::All) => open.file.sync().await,
        (DescriptionKind::Directory(open), _) => open.dir.sync().await,
        _ => Err(Errno::Inval),
    }
}

/// `fd_fdstat_get`.
pub(super) async fn fdstat(description: &FileDescription) -> Result<types::Fdstat> {
    let kind = match description.kind() {
        DescriptionKind::File(open) => open.file.stat().await?.kind,
        _ => description.file_type().unwrap_or(FileType::Regular),
    };
    let filetype = match description.kind() {
        DescriptionKind::Udp(_) => types::Filetype::SocketDgram,
        _ => convert::file_type(kind),
    };
    let mut rights = types::Rights::all();
    if !description.access().contains(Access::READ) {
        rights.remove(types::Rights::FD_READ);
    }
    if !description.access().contains(Access::WRITE) && kind != FileType::Directory {
        rights.remove(types::Rights::FD_WRITE);
    }
    // A character device without these is what libc's isatty() takes for a terminal.
    if !matches!(description.kind(), DescriptionKind::File(_)) {
        rights.remove(types::Rights::FD_SEEK | types::Rights::FD_TELL);
    }
    Ok(types::Fdstat {
        fs_filetype: filetype,
        fs_flags: convert::fdflags(description.status()),
        fs_rights_base: rights,
        fs_rights_inheriting: types::Rights::all(),
    })
}

/// `fd_filestat_get`.
pub(super) async fn filestat(description: &FileDescription) -> Result<types::Filestat> {
    match description.kind() {
        DescriptionKind::File(open) => Ok(convert::filestat(&open.file.stat().await?)),
        DescriptionKind::Directory(open) => Ok(convert::filestat(&open.dir.stat().await?)),
        _ => {
            let filetype = fdstat(description).await?.fs_filetype;
            Ok(types::Filestat { dev: 0, ino: 0, filetype, nlink: 1, size: 0, atim: 0, mtim: 0, ctim: 0 })
        }
    }
}

/// `fd_filestat_set_times`.
pub(super) async fn set_times(process: &Process, description: &FileDescription, times: SetTimes) -> Result<()> {
    let credentials = process.credentials();
    match description.kind() {
        DescriptionKind::File(open) => open.file.set_times(credentials, times).await,
        DescriptionKind::Directory(open) => open.dir.set_times(credentials, times).await,
        _ => Err(Errno::Inval),
    }
}

/// Walks over the buffers of a call in steps of [`CHUNK`], empty ones left out.
struct Steps {
    current: Option<(GuestPtr<u8>, u32)>,
    left: u32,
}

impl Steps {
    const fn new() -> Self {
        Self { current: None, left: MAX_TRANSFER }
    }

    /// The next step; `buffer` gives the call's next buffer.
    fn next(
        &mut self,
        mut buffer: impl FnMut() -> Option<Result<(GuestPtr<u8>, u32)>>,
    ) -> Result<Option<GuestPtr<[u8]>>> {
        loop {
            if self.left == 0 {
                return Ok(None);
            }
            match self.current {
                None | Some((_, 0)) => match buffer() {
                    None => return Ok(None),
                    Some(buffer) => self.current = Some(buffer?),
                },
                Some((start, length)) => {
                    let count = length.min(CHUNK).min(self.left);
                    self.left -= count;
                    self.current = Some((start.add(count)?, length - count));
                    return Ok(Some(start.as_array(count)));
                }
            }
        }
    }
}

/// The next of a call's buffers to read into.
fn next_iov(
    memory: &Memory<'_>,
    buffers: &mut impl Iterator<Item = std::result::Result<GuestPtr<types::Iovec>, GuestError>>,
) -> Option<Result<(GuestPtr<u8>, u32)>> {
    let buffer = buffers.next()?;
    Some(buffer.and_then(|buffer| memory.read(buffer)).map(|iov| (iov.buf, iov.buf_len)).map_err(Errno::from))
}

/// The next of a call's buffers to write from.
fn next_ciov(
    memory: &Memory<'_>,
    buffers: &mut impl Iterator<Item = std::result::Result<GuestPtr<types::Ciovec>, GuestError>>,
) -> Option<Result<(GuestPtr<u8>, u32)>> {
    let buffer = buffers.next()?;
    Some(buffer.and_then(|buffer| memory.read(buffer)).map(|iov| (iov.buf, iov.buf_len)).map_err(Errno::from))
}

pub(super) fn check_count(buffers: u32) -> Result<()> {
    if buffers > MAX_BUFFERS { Err(Errno::Inval) } else { Ok(()) }
}

/// `fd_write`, `sock_send`.
pub(super) async fn write(
    memory: &mut Memory<'_>,
    description: &FileDescription,
    iovs: types::CiovecArray,
) -> Result<u32> {
    check_count(iovs.len())?;
    let mut buffers = iovs.iter();
    let is_file = matches!(description.kind(), DescriptionKind::File(_));
    let mut total = 0_u32;
    let mut steps = Steps::new();
    while let Some(step) = steps.next(|| next_ciov(memory, &mut buffers))? {
        let bytes = memory.as_slice(step)?.ok_or(Errno::Fault)?;
        // The first bytes may wait; what follows goes only as far as it can without.
        let result = if total == 0 || is_file { description.write(bytes).await } else { description.try_write(bytes) };
        match result {
            Ok(count) => {
                total += count as u32;
                if count < bytes.len() {
                    break;
                }
            }
            Err(_) if total > 0 => break,
            Err(errno) => return Err(errno),
        }
    }
    if total == 0 && !description.access().contains(Access::WRITE) {
        return Err(Errno::BadF);
    }
    Ok(total)
}

/// `fd_read`.
pub(super) async fn read(
    memory: &mut Memory<'_>,
    description: &FileDescription,
    iovs: types::IovecArray,
) -> Result<u32> {
    check_count(iovs.len())?;
    let mut buffers = iovs.iter();
    let is_file = matches!(description.kind(), DescriptionKind::File(_));
    if !description.access().contains(Access::READ) {
        return Err(Errno::BadF);
    }
    if let DescriptionKind::Directory(_) = description.kind() {
        return Err(Errno::IsDir);
    }
    let mut total = 0_u32;
    let mut steps = Steps::new();
    while let Some(step) = steps.next(|| next_iov(memory, &mut buffers))? {
        let bytes = memory.as_slice_mut(step)?.ok_or(Errno::Fault)?;
        let result = if total == 0 || is_file { description.read(bytes).await } else { description.try_read(bytes) };
        match result {
            Ok(count) => {
                total += count as u32;
                if count < bytes.len() {
                    break;
                }
            }
            Err(_) if total > 0 => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(total)
}

/// `fd_pread`.
pub(super) async fn pread(
    memory: &mut Memory<'_>,
    description: &FileDescription,
    iovs: types::IovecArray,
    offset: u64,
) -> Result<u32> {
    let file = &description.as_file()?.file;
    check_count(iovs.len())?;
    let mut buffers = iovs.iter();
    let mut total = 0_u32;
    let mut steps = Steps::new();
    while let Some(step) = steps.next(|| next_iov(memory, &mut buffers))? {
        let bytes = memory.as_slice_mut(step)?.ok_or(Errno::Fault)?;
        let at = offset.checked_add(u64::from(total)).ok_or(Errno::Inval)?;
        match file.read_at(bytes, at).await {
            Ok(count) => {
                total += count as u32;
                if count < bytes.len() {
                    break;
                }
            }
            Err(_) if total > 0 => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(total)
}

/// `fd_pwrite`.
pub(super) async fn pwrite(
    memory: &mut Memory<'_>,
    description: &FileDescription,
    iovs: types::CiovecArray,
    offset: u64,
) -> Result<u32> {
    let file = &description.as_file()?.file;
    check_count(iovs.len())?;
    let mut buffers = iovs.iter();
    let mut total = 0_u32;
    let mut steps = Steps::new();
    while let Some(step) = steps.next(|| next_ciov(memory, &mut buffers))? {
        let bytes = memory.as_slice(step)?.ok_or(Errno::Fault)?;
        let at = offset.checked_add(u64::from(total)).ok_or(Errno::Inval)?;
        match file.write_at(bytes, at).await {
            Ok(count) => {
                total += count as u32;
                if count < bytes.len() {
                    break;
                }
            }
            Err(_) if total > 0 => break,
            Err(errno) => return Err(errno),
        }
    }
    description.sync_as_opened(file).await?;
    Ok(total)
}

/// `fd_prestat_get`. Anything else than a preopen is `EBADF`: libc's start code stops looking there.
pub(super) fn prestat(description: &FileDescription) -> Result<types::Prestat> {
    let name = preopen(description)?;
    Ok(types::Prestat::Dir(types::PrestatDir { pr_name_len: name.len() as u32 }))
}

/// `fd_prestat_dir_name`.
pub(super) fn prestat_name(
    memory: &mut Memory<'_>,
    description: &FileDescription,
    path: GuestPtr<u8>,
    length: u32,
) -> Result<()> {
    let name = preopen(description)?;
    if name.len() > length as usize {
        return Err(Errno::NameTooLong);
    }
    Ok(memory.copy_from_slice(name.as_bytes(), path.as_array(name.len() as u32))?)
}

fn preopen(description: &FileDescription) -> Result<&str> {
    match description.kind() {
        DescriptionKind::Directory(open) => open.preopen.as_deref().ok_or(Errno::BadF),
        _ => Err(Errno::BadF),
    }
}

/// `fd_readdir`. The last entry may be cut: that is how the guest learns that there is more.
pub(super) async fn readdir(
    memory: &mut Memory<'_>,
    description: &FileDescription,
    buffer: GuestPtr<[u8]>,
    cookie: u64,
) -> Result<u32> {
    let dir = description.as_dir()?;
    let (mut at, mut left) = (buffer.as_ptr(), buffer.len().min(MAX_TRANSFER));
    let size = left;
    let mut cookie = cookie;
    while left > 0 {
        let entries = dir.read_dir(cookie).await?;
        if entries.is_empty() {
            break;
        }
        for entry in &entries {
            cookie = entry.next;
            let head = dirent(entry);
            for part in [&head[..], entry.name.as_bytes()] {
                let count = (part.len() as u32).min(left);
                memory.copy_from_slice(&part[..count as usize], at.as_array(count))?;
                at = at.add(count)?;
                left -= count;
            }
            if left == 0 {
                break;
            }
        }
        tokio::task::consume_budget().await;
    }
    Ok(size - left)
}

/// The record before a name: next cookie, inode, length of the name, kind; little-endian, 24 bytes.
fn dirent(entry: &DirEntry) -> [u8; 24] {
    let mut record = [0; 24];
    record[..8].copy_from_slice(&entry.next.to_le_bytes());
    record[8..16].copy_from_slice(&entry.ino.to_le_bytes());
    record[16..20].copy_from_slice(&(entry.name.len() as u32).to_le_bytes());
    record[20] = convert::file_type(entry.kind).into();
    record
}

/// `fd_seek`, `fd_tell`.
pub(super) async fn seek(description: &FileDescription, delta: i64, whence: types::Whence) -> Result<u64> {
    let open = description.as_file()?;
    if !open.file.is_seekable() {
        return Err(Errno::SPipe);
    }
    let mut offset = open.offset.lock().await;
    let base = match whence {
        types::Whence::Set => 0,
        types::Whence::Cur => *offset,
        types::Whence::End => open.file.stat().await?.size,
    };
    let target = base.checked_add_signed(delta).filter(|&target| i64::try_from(target).is_ok()).ok_or(Errno::Inval)?;
    *offset = target;
    Ok(target)
}
