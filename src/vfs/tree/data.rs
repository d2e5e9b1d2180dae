//! The bytes of one regular file of a tree.
//!
//! In: positioned reads and writes. Out: counts, ENOSPC, EFBIG. Bytes are still in the layer, or owned: in
//! memory chunks or in a file of the disk store. The first write to layer bytes copies them (copy-up).

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::store::{Budget, DiskStore, Store};
use crate::errno::Errno;

/// Bytes of one memory chunk: holes are free at this grain.
const CHUNK: usize = 64 * 1024;
/// Largest file, as the kernel's `s_maxbytes` of 64-bit filesystems.
const MAX_FILE: u64 = i64::MAX as u64;

/// The bytes.
#[derive(Debug)]
pub(crate) enum Data {
    Lower { tar: Arc<File>, offset: u64, size: u64 },
    Memory(MemoryData),
    Disk(DiskData),
}

/// Chunks by number; what is not there is zero.
#[derive(Debug)]
pub(crate) struct MemoryData {
    budget: Arc<Budget>,
    chunks: BTreeMap<u64, Vec<u8>>,
    /// Capacity of all chunks: what the budget gave.
    stored: u64,
    size: u64,
}

/// A file of the disk store, made at the first write.
#[derive(Debug)]
pub(crate) struct DiskData {
    store: Arc<DiskStore>,
    id: Option<u64>,
    /// Open while the guest has the node open.
    fd: Option<OwnedFd>,
    size: u64,
}

/// Checks the end of a write; cuts it at the largest file.
fn bounded(offset: u64, len: usize) -> Result<usize, Errno> {
    if len == 0 {
        return Ok(0);
    }
    let room = MAX_FILE.checked_sub(offset).ok_or(Errno::Inval)?;
    if room == 0 {
        return Err(Errno::FBig);
    }
    Ok(len.min(usize::try_from(room).unwrap_or(usize::MAX)))
}

impl Data {
    /// No bytes, to be kept in `store`.
    pub(crate) fn empty(store: &Store) -> Self {
        match store {
            Store::Memory(budget) => {
                Self::Memory(MemoryData { budget: Arc::clone(budget), chunks: BTreeMap::new(), stored: 0, size: 0 })
            }
            Store::Disk(store) => Self::Disk(DiskData { store: Arc::clone(store), id: None, fd: None, size: 0 }),
        }
    }

    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::Lower { size, .. } => *size,
            Self::Memory(data) => data.size,
            Self::Disk(data) => data.size,
        }
    }

    /// Bytes that exist because of this container; layer bytes are the image's.
    pub(crate) fn own_bytes(&self) -> u64 {
        match self {
            Self::Lower { .. } => 0,
            Self::Memory(data) => data.stored,
            Self::Disk(data) => data.stored_bytes(),
        }
    }

    /// For `st_blocks`.
    pub(crate) fn stored_bytes(&self) -> u64 {
        match self {
            Self::Lower { size, .. } => *size,
            _ => self.own_bytes(),
        }
    }

    /// Whether writing has to copy first, and how much.
    pub(crate) fn copy_up_bytes(&self) -> u64 {
        match self {
            Self::Lower { size, .. } => *size,
            _ => 0,
        }
    }

    pub(crate) fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize, Errno> {
        let left = self.size().saturating_sub(offset);
        let len = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let buffer = &mut buffer[..len];
        if len == 0 {
            return Ok(0);
        }
        match self {
            Self::Lower { tar, offset: start, .. } => Ok(tar.read_at(buffer, start + offset)?),
            Self::Memory(data) => {
                data.read(buffer, offset);
                Ok(len)
            }
            Self::Disk(data) => {
                if let Some(fd) = &data.fd {
                    return Ok(rustix::io::pread(fd, buffer, offset)?);
                }
                // Sized but never written.
                buffer.fill(0);
                Ok(len)
            }
        }
    }

    pub(crate) fn write_at(&mut self, store: &Store, bytes: &[u8], offset: u64) -> Result<usize, Errno> {
        let len = bounded(offset, bytes.len())?;
        if len == 0 {
            return Ok(0);
        }
        self.own(store, u64::MAX)?;
        match self {
            Self::Memory(data) => data.write(&bytes[..len], offset),
            Self::Disk(data) => data.write(&bytes[..len], offset),
            Self::Lower { .. } => Err(Errno::Io),
        }
    }

    pub(crate) fn set_len(&mut self, store: &Store, size: u64) -> Result<(), Errno> {
        if size > MAX_FILE {
            return Err(Errno::FBig);
        }
        self.own(store, size)?;
        match self {
            Self::Memory(data) => data.set_len(size),
            Self::Disk(data) => data.set_len(size)?,
            Self::Lower { .. } => return Err(Errno::Io),
        }
        Ok(())
    }

    /// `fallocate`: room for the range now, so that later writes to it cannot fail for space.
    pub(crate) fn allocate(&mut self, store: &Store, offset: u64, len: u64) -> Result<(), Errno> {
        let end = offset.checked_add(len).filter(|&end| end <= MAX_FILE).ok_or(Errno::FBig)?;
        self.own(store, u64::MAX)?;
        match self {
            Self::Memory(data) => data.allocate(offset, end),
            Self::Disk(data) => {
                rustix::fs::fallocate(data.file()?, rustix::fs::FallocateFlags::empty(), offset, len)?;
                data.size = data.size.max(end);
                Ok(())
            }
            Self::Lower { .. } => Err(Errno::Io),
        }
    }

    /// Copies layer bytes (at most `keep` of them) to where they can be written.
    pub(crate) fn own(&mut self, store: &Store, keep: u64) -> Result<(), Errno> {
        let Self::Lower { tar, offset, size } = self else { return Ok(()) };
        let (tar, offset, keep) = (Arc::clone(tar), *offset, keep.min(*size));
        let mut copy = Self::empty(store);
        if let Self::Disk(data) = &mut copy
            && keep > 0
        {
            data.copy_from(&tar, offset, keep)?;
        } else {
            let mut buffer = vec![0; CHUNK.min(keep as usize)];
            let mut done = 0;
            while done < keep {
                let want = (keep - done).min(CHUNK as u64) as usize;
                tar.read_exact_at(&mut buffer[..want], offset + done)?;
                copy.write_at(store, &buffer[..want], done)?;
                done += want as u64;
            }
        }
        *self = copy;
        Ok(())
    }

    /// The guest opened the node: its disk file is opened with it.
    pub(crate) fn opened(&mut self) -> Result<(), Errno> {
        if let Self::Disk(data) = self
            && data.fd.is_none()
            && let Some(id) = data.id
        {
            data.fd = Some(data.store.open(id)?);
        }
        Ok(())
    }

    /// The guest closed it for the last time: descriptors are for open files only.
    pub(crate) fn closed(&mut self) {
        if let Self::Disk(data) = self {
            data.fd = None;
        }
    }
}

impl MemoryData {
    fn give(&mut self, bytes: u64) {
        self.stored -= bytes;
        self.budget.give(bytes);
    }

    fn read(&self, mut buffer: &mut [u8], mut offset: u64) {
        while !buffer.is_empty() {
            let start = (offset % CHUNK as u64) as usize;
            let (part, rest) = buffer.split_at_mut(buffer.len().min(CHUNK - start));
            let chunk = self.chunks.get(&(offset / CHUNK as u64)).map_or(&[][..], Vec::as_slice);
            let have = chunk.get(start..).unwrap_or(&[]);
            let copied = have.len().min(part.len());
            part[..copied].copy_from_slice(&have[..copied]);
            part[copied..].fill(0);
            offset += part.len() as u64;
            buffer = rest;
        }
    }

    /// Writes what there is room for; only a write that got nowhere is an error.
    fn write(&mut self, bytes: &[u8], offset: u64) -> Result<usize, Errno> {
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let start = (at % CHUNK as u64) as usize;
            let part = &bytes[done..bytes.len().min(done + CHUNK - start)];
            if let Err(refused) = self.reserve(at / CHUNK as u64, start + part.len()) {
                if done == 0 {
                    return Err(refused);
                }
                break;
            }
            let chunk = self.chunks.entry(at / CHUNK as u64).or_default();
            if chunk.len() < start {
                chunk.resize(start, 0);
            }
            let over = part.len().min(chunk.len() - start);
            chunk[start..start + over].copy_from_slice(&part[..over]);
            chunk.extend_from_slice(&part[over..]);
            done += part.len();
            self.size = self.size.max(at + part.len() as u64);
        }
        Ok(done)
    }

    /// Makes a chunk's capacity at least `len`, paying for the growth.
    fn reserve(&mut self, number: u64, len: usize) -> Result<(), Errno> {
        let have = self.chunks.get(&number).map_or(0, Vec::capacity);
        if have >= len {
            return Ok(());
        }
        // Doubling keeps small appends cheap; the budget's last bytes are still given exactly.
        let roomy = len.next_power_of_two().clamp(256, CHUNK);
        let capacity = if self.budget.take((roomy - have) as u64).is_ok() {
            roomy
        } else {
            self.budget.take((len - have) as u64)?;
            len
        };
        let chunk = self.chunks.entry(number).or_default();
        // Exact: what the budget gave is what is held, or the sums would drift. (`Vec` keeps the capacity that its
        // global allocator was asked for; only zero-sized types get more.)
        chunk.reserve_exact(capacity - chunk.len());
        debug_assert_eq!(chunk.capacity(), capacity);
        self.stored += (capacity - have) as u64;
        Ok(())
    }

    fn set_len(&mut self, size: u64) {
        if size < self.size {
            let (last, keep) = (size / CHUNK as u64, (size % CHUNK as u64) as usize);
            let gone = self.chunks.split_off(&last.saturating_add(u64::from(keep > 0)));
            self.give(gone.values().map(|chunk| chunk.capacity() as u64).sum());
            if keep > 0
                && let Some(chunk) = self.chunks.get_mut(&last)
            {
                let before = chunk.capacity();
                chunk.truncate(keep);
                chunk.shrink_to(keep);
                let less = (before - chunk.capacity()) as u64;
                self.give(less);
            }
        }
        self.size = size;
    }

    fn allocate(&mut self, offset: u64, end: u64) -> Result<(), Errno> {
        let mut at = offset;
        while at < end {
            let number = at / CHUNK as u64;
            let until = ((number + 1) * CHUNK as u64).min(end);
            self.reserve(number, (until - number * CHUNK as u64) as usize)?;
            at = until;
        }
        self.size = self.size.max(end);
        Ok(())
    }
}

impl Drop for MemoryData {
    fn drop(&mut self) {
        self.budget.give(self.stored);
    }
}

impl DiskData {
    /// Bytes on the disk; asked of the open file where there is one.
    fn stored_bytes(&self) -> u64 {
        match (&self.fd, self.id) {
            (Some(fd), _) => rustix::fs::fstat(fd).map_or(0, |stat| stat.st_blocks as u64 * 512),
            (None, Some(id)) => self.store.stored_bytes(id),
            (None, None) => 0,
        }
    }

    /// The open file, made now if there is none.
    fn file(&mut self) -> Result<&OwnedFd, Errno> {
        if self.fd.is_none() {
            let fd = if let Some(id) = self.id {
                self.store.open(id)?
            } else {
                let (id, fd) = self.store.create()?;
                if self.size > 0 {
                    rustix::fs::ftruncate(&fd, self.size).inspect_err(|_| self.store.remove(id))?;
                }
                self.id = Some(id);
                fd
            };
            self.fd = Some(fd);
        }
        self.fd.as_ref().ok_or(Errno::Io)
    }

    fn write(&mut self, bytes: &[u8], offset: u64) -> Result<usize, Errno> {
        let done = rustix::io::pwrite(self.file()?, bytes, offset)?;
        self.size = self.size.max(offset + done as u64);
        Ok(done)
    }

    fn set_len(&mut self, size: u64) -> Result<(), Errno> {
        if self.id.is_some() {
            rustix::fs::ftruncate(self.file()?, size)?;
        }
        self.size = size;
        Ok(())
    }

    /// In the kernel, tar to file; no byte passes through us where the filesystem can share or splice.
    fn copy_from(&mut self, tar: &File, offset: u64, len: u64) -> Result<(), Errno> {
        let (mut from, mut to) = (offset, 0);
        let fd = self.file()?;
        while to < len {
            let left = (len - to) as usize;
            match rustix::fs::copy_file_range(tar, Some(&mut from), fd, Some(&mut to), left) {
                Ok(0) => return Err(Errno::Io),
                Ok(_) => {}
                Err(rustix::io::Errno::XDEV | rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => {
                    copy_by_hand(tar, fd, from, to, len)?;
                    break;
                }
                Err(errno) => return Err(errno.into()),
            }
        }
        self.size = len;
        Ok(())
    }
}

fn copy_by_hand(tar: &File, fd: &OwnedFd, mut from: u64, mut to: u64, len: u64) -> Result<(), Errno> {
    let mut buffer = vec![0; CHUNK];
    while to < len {
        let want = (len - to).min(CHUNK as u64) as usize;
        tar.read_exact_at(&mut buffer[..want], from)?;
        let done = rustix::io::pwrite(fd, &buffer[..want], to)?;
        (from, to) = (from + done as u64, to + done as u64);
    }
    Ok(())
}

impl Drop for DiskData {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.store.remove(id);
        }
    }
}
