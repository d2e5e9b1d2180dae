//! An open file of a host directory.
//!
//! In: positioned reads and writes. Out: the kernel's counts. Ours go straight to the kernel; foreign ones try
//! without waiting and leave the rest to the caller, who has the mount's pool.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::Stat;
use rustix::io::ReadWriteFlags;

use super::ops::real_times;
use super::{Calls, HostFs, attr};
use crate::errno::Errno;
use crate::vfs::perm::Attr;
use crate::vfs::{Advice, Charge, FileType, Metadata, OpenFlags, SetTimes};

/// The open file.
#[derive(Debug)]
pub(crate) struct HostFile {
    pub(crate) fs: Arc<HostFs>,
    fd: OwnedFd,
    ino: u64,
    pub(crate) kind: FileType,
    /// Who pays for growth on a memory medium.
    pub(crate) payer: Option<Arc<dyn Charge>>,
}

/// Whether a call may wait for the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// It is on a thread that may.
    Yes,
    /// `EAGAIN` rather than waiting, where the kernel can tell.
    No,
}

impl HostFile {
    pub(super) fn new(fs: &Arc<HostFs>, fd: OwnedFd, stat: &Stat) -> Self {
        if let Some(ledger) = &fs.ledger {
            ledger.opened(stat.st_ino);
        }
        Self { fs: Arc::clone(fs), fd, ino: stat.st_ino, kind: attr::kind(stat), payer: None }
    }

    /// The same inode, opened anew: a mounted file, whatever its name holds by now.
    pub(crate) fn reopen(&self, flags: OpenFlags) -> Result<Self, Errno> {
        let fd = self.fs.reopen(&self.fd, flags)?;
        let stat = rustix::fs::fstat(&fd)?;
        Ok(Self::new(&self.fs, fd, &stat))
    }

    pub(crate) fn may_hang(&self) -> bool {
        self.fs.calls == Calls::MayHang
    }

    pub(crate) fn attr(&self) -> Result<Attr, Errno> {
        let stat = rustix::fs::fstat(&self.fd)?;
        Ok(self.fs.attr_of(&self.fd, &stat))
    }

    pub(crate) fn stat(&self) -> Result<Metadata, Errno> {
        let stat = rustix::fs::fstat(&self.fd)?;
        Ok(self.fs.metadata(&stat, &self.fs.attr_of(&self.fd, &stat)))
    }

    pub(crate) fn read_at(&self, buffer: &mut [u8], offset: u64, wait: Wait) -> Result<usize, Errno> {
        if i64::try_from(offset).is_err() {
            return Err(Errno::Inval);
        }
        if self.kind == FileType::Fifo {
            return Ok(rustix::io::read(&self.fd, buffer)?);
        }
        match wait {
            Wait::Yes => Ok(rustix::io::pread(&self.fd, buffer, offset)?),
            Wait::No => {
                let flags = ReadWriteFlags::NOWAIT;
                match rustix::io::preadv2(&self.fd, &mut [IoSliceMut::new(buffer)], offset, flags) {
                    Err(rustix::io::Errno::OPNOTSUPP) => Err(Errno::Again),
                    other => Ok(other?),
                }
            }
        }
    }

    pub(crate) fn write_at(&self, bytes: &[u8], offset: u64, wait: Wait) -> Result<usize, Errno> {
        if i64::try_from(offset).is_err() {
            return Err(Errno::Inval);
        }
        if self.kind == FileType::Fifo {
            return Ok(rustix::io::write(&self.fd, bytes)?);
        }
        match wait {
            Wait::Yes => self.grow(offset, bytes.len(), |len| Ok(rustix::io::pwrite(&self.fd, &bytes[..len], offset)?)),
            Wait::No => {
                let flags = ReadWriteFlags::NOWAIT;
                match rustix::io::pwritev2(&self.fd, &[IoSlice::new(bytes)], offset, flags) {
                    Err(rustix::io::Errno::OPNOTSUPP) => Err(Errno::Again),
                    other => Ok(other?),
                }
            }
        }
    }

    /// Writes at the end in one step of the kernel; gives the count and the offset after it.
    pub(crate) fn append(&self, bytes: &[u8]) -> Result<(usize, u64), Errno> {
        if self.kind == FileType::Fifo {
            return Ok((rustix::io::write(&self.fd, bytes)?, 0));
        }
        let size = if self.fs.ledger.is_some() { rustix::fs::fstat(&self.fd)?.st_size as u64 } else { 0 };
        self.grow(size, bytes.len(), |len| {
            // Offset -1 uses and moves the descriptor's own offset, which tells where the bytes went.
            let part = [IoSlice::new(&bytes[..len])];
            let done = rustix::io::pwritev2(&self.fd, &part, u64::MAX, ReadWriteFlags::APPEND)?;
            Ok((done, rustix::fs::tell(&self.fd)?))
        })
    }

    /// Runs a write of `len` bytes, or of as many as the memory volume has room for.
    fn grow<T>(&self, offset: u64, len: usize, act: impl Fn(usize) -> Result<T, Errno>) -> Result<T, Errno> {
        let Some(ledger) = &self.fs.ledger else { return act(len) };
        let payer = self.payer.as_ref();
        let attempt = |len: usize| {
            let end = offset.saturating_add(len as u64);
            ledger.change(self.ino, self.fd.as_fd(), payer, offset..end, || act(len))
        };
        match attempt(len) {
            Err(Errno::NoSpc) => {
                // As tmpfs: the pages that still fit are written.
                let room = ledger.limit().saturating_sub(ledger.used()) / 4096 * 4096;
                let fits = room.saturating_sub(offset % 4096).min(len as u64) as usize;
                if fits == 0 { Err(Errno::NoSpc) } else { attempt(fits) }
            }
            other => other,
        }
    }

    pub(crate) fn set_len(&self, size: u64) -> Result<(), Errno> {
        let act = || Ok(rustix::fs::ftruncate(&self.fd, size)?);
        match &self.fs.ledger {
            // Growing makes a hole; shrinking is measured.
            Some(ledger) => ledger.change(self.ino, self.fd.as_fd(), self.payer.as_ref(), 0..0, act),
            None => act(),
        }
    }

    pub(crate) fn allocate(&self, offset: u64, len: u64) -> Result<(), Errno> {
        let act = || Ok(rustix::fs::fallocate(&self.fd, rustix::fs::FallocateFlags::empty(), offset, len)?);
        let end = offset.checked_add(len).ok_or(Errno::FBig)?;
        match &self.fs.ledger {
            Some(ledger) => ledger.change(self.ino, self.fd.as_fd(), self.payer.as_ref(), offset..end, act),
            None => act(),
        }
    }

    pub(crate) fn set_attr(&self, old: &Attr, new: &Attr) -> Result<(), Errno> {
        self.fs.set_fd_attr(&self.fd, old, new)
    }

    pub(crate) fn set_times(&self, times: SetTimes) -> Result<(), Errno> {
        Ok(rustix::fs::futimens(&self.fd, &real_times(times))?)
    }

    pub(crate) fn sync(&self, data_only: DataOnly) -> Result<(), Errno> {
        match data_only {
            DataOnly::Yes => Ok(rustix::fs::fdatasync(&self.fd)?),
            DataOnly::No => Ok(rustix::fs::fsync(&self.fd)?),
        }
    }

    pub(crate) fn advise(&self, offset: u64, len: u64, advice: Advice) -> Result<(), Errno> {
        let advice = match advice {
            Advice::Normal => rustix::fs::Advice::Normal,
            Advice::Sequential => rustix::fs::Advice::Sequential,
            Advice::Random => rustix::fs::Advice::Random,
            Advice::WillNeed => rustix::fs::Advice::WillNeed,
            Advice::DontNeed => rustix::fs::Advice::DontNeed,
            Advice::NoReuse => rustix::fs::Advice::NoReuse,
        };
        Ok(rustix::fs::fadvise(&self.fd, offset, std::num::NonZeroU64::new(len), advice)?)
    }
}

/// Whether a sync leaves out times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DataOnly {
    Yes,
    No,
}

impl Drop for HostFile {
    fn drop(&mut self) {
        if let Some(ledger) = &self.fs.ledger {
            ledger.closed(self.ino, &self.fd);
        }
    }
}
