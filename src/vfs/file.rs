//! Open files: one type over all backends, without an offset.
//!
//! In: positioned reads and writes of guests, at most 64 KiB a call. Out: counts and errors as the kernel's. On the
//! node's own files nothing awaits and nothing is allocated; a foreign file is tried without waiting first and
//! then read on its mount's pool.

use std::sync::{Arc, LazyLock};

use super::host::{DataOnly, HostFile, Wait};
use super::perm::{self, Attr};
use super::pool::Pool;
use super::tree::{DeviceNode, Inode, TreeFs, apply_times};
use super::{Credentials, FileType, Metadata, OpenFlags, SetTimes, Timestamp};
use crate::descriptors::Slot;
use crate::errno::Errno;
use crate::pod::run::Access;

/// Bytes of one call: a kill or another guest waits no longer than one such copy.
const MAX_IO: usize = 64 * 1024;
/// A first write that has to copy more than this from the image leaves the guests' threads for it.
const COPY_INLINE: u64 = 4 << 20;
/// Threads for large copies out of images; they are the node's own disk and do end.
static COPIES: LazyLock<Pool> = LazyLock::new(Pool::new);

/// A `posix_fadvise` hint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "POSIX's names")]
pub enum Advice {
    Normal,
    Sequential,
    Random,
    WillNeed,
    DontNeed,
    NoReuse,
}

/// An open file without an offset. Cheap to clone; all clones are the same open file.
/// Calls the file was not opened for are `EBADF`.
#[derive(Debug, Clone)]
pub struct File(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    body: FileBody,
    flags: OpenFlags,
    /// Whether its mount takes changes of metadata.
    access: Access,
    /// Its place among the pod's open files.
    #[allow(dead_code, reason = "kept for what its end does")]
    slot: Option<Slot>,
}

#[derive(Debug)]
pub(crate) enum FileBody {
    Tree(TreeFile),
    Host(HostFile),
    /// Content taken from a provider at open.
    Provided(Box<[u8]>, Metadata),
    Device(DeviceNode, Metadata),
}

/// A tree's node, counted as open.
#[derive(Debug)]
pub(crate) struct TreeFile {
    fs: Arc<TreeFs>,
    inode: Arc<Inode>,
}

impl TreeFile {
    pub(crate) fn open(fs: &Arc<TreeFs>, inode: Arc<Inode>) -> Result<Self, Errno> {
        if let Some(data) = inode.data() {
            let mut data = data.write();
            data.opened()?;
            inode.opens.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
        Ok(Self { fs: Arc::clone(fs), inode })
    }

    /// Changes the bytes: the node is kept, its times move.
    fn change<T>(&self, act: impl FnOnce(&mut super::tree::Data) -> Result<T, Errno>) -> Result<T, Errno> {
        let data = self.inode.data().ok_or(Errno::Inval)?;
        self.fs.keep(&self.inode);
        let result = act(&mut data.write())?;
        self.inode.mark_modified();
        Ok(result)
    }
}

impl Drop for TreeFile {
    fn drop(&mut self) {
        if let Some(data) = self.inode.data() {
            let mut data = data.write();
            if self.inode.opens.fetch_sub(1, std::sync::atomic::Ordering::Relaxed) == 1 {
                data.closed();
            }
        }
    }
}

impl FileBody {
    pub(crate) fn device(device: DeviceNode, meta: Metadata) -> Self {
        Self::Device(device, meta)
    }
}

impl Inner {
    fn readable(&self) -> Result<(), Errno> {
        if self.flags.contains(OpenFlags::READ) { Ok(()) } else { Err(Errno::BadF) }
    }

    fn writable(&self) -> Result<(), Errno> {
        if self.flags.contains(OpenFlags::WRITE) { Ok(()) } else { Err(Errno::BadF) }
    }

    fn changeable(&self) -> Result<(), Errno> {
        match self.access {
            Access::ReadWrite => Ok(()),
            Access::ReadOnly => Err(Errno::RoFs),
        }
    }

    fn stat(&self) -> Result<Metadata, Errno> {
        match &self.body {
            FileBody::Tree(file) => Ok(file.fs.stat_inode(&file.inode)),
            FileBody::Host(file) => file.stat(),
            FileBody::Provided(_, meta) | FileBody::Device(_, meta) => Ok(*meta),
        }
    }

    fn attr(&self) -> Result<Attr, Errno> {
        match &self.body {
            FileBody::Tree(file) => Ok(file.inode.attr()),
            FileBody::Host(file) => file.attr(),
            FileBody::Provided(_, meta) | FileBody::Device(_, meta) => {
                Ok(Attr { uid: meta.uid, gid: meta.gid, mode: meta.mode, kind: meta.kind })
            }
        }
    }

    fn change_attr(&self, change: &impl Fn(&Attr) -> Result<Attr, Errno>) -> Result<(), Errno> {
        self.changeable()?;
        let old = self.attr()?;
        let new = change(&old)?;
        match &self.body {
            FileBody::Tree(file) => {
                file.fs.keep(&file.inode);
                let mut meta = file.inode.meta.lock();
                (meta.uid, meta.gid, meta.mode, meta.ctime) = (new.uid, new.gid, new.mode, Timestamp::now());
                Ok(())
            }
            FileBody::Host(file) => file.set_attr(&old, &new),
            FileBody::Provided(..) | FileBody::Device(..) => Err(Errno::Perm),
        }
    }

    fn set_times(&self, cred: &Credentials, times: SetTimes) -> Result<(), Errno> {
        self.changeable()?;
        perm::set_times(cred, &self.attr()?, times)?;
        match &self.body {
            FileBody::Tree(file) => {
                file.fs.keep(&file.inode);
                let mut meta = file.inode.meta.lock();
                apply_times(&mut meta, times);
                meta.ctime = Timestamp::now();
                Ok(())
            }
            FileBody::Host(file) => file.set_times(times),
            FileBody::Provided(..) | FileBody::Device(..) => Ok(()),
        }
    }

    fn set_len(&self, size: u64) -> Result<(), Errno> {
        // As ftruncate(2): not open for writing is EINVAL there, and not a regular file too.
        if !self.flags.contains(OpenFlags::WRITE) || i64::try_from(size).is_err() {
            return Err(Errno::Inval);
        }
        match &self.body {
            FileBody::Tree(file) => file.change(|data| data.set_len(file.fs.store(), size)),
            FileBody::Host(file) => file.set_len(size),
            FileBody::Provided(..) | FileBody::Device(..) => Err(Errno::Inval),
        }
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<(), Errno> {
        self.writable()?;
        if len == 0 || i64::try_from(offset).is_err() || i64::try_from(len).is_err() {
            return Err(Errno::Inval);
        }
        if offset.saturating_add(len) > i64::MAX as u64 {
            return Err(Errno::FBig);
        }
        match &self.body {
            FileBody::Tree(file) => file.change(|data| data.allocate(file.fs.store(), offset, len)),
            FileBody::Host(file) if file.kind == FileType::Fifo => Err(Errno::SPipe),
            FileBody::Host(file) => file.allocate(offset, len),
            FileBody::Provided(..) | FileBody::Device(..) => Err(Errno::NoDev),
        }
    }

    fn sync(&self, data_only: DataOnly) -> Result<(), Errno> {
        match &self.body {
            FileBody::Host(file) if file.kind == FileType::Regular => file.sync(data_only),
            // A tree's bytes end with the container's attempt: there is nothing to make durable.
            FileBody::Tree(_) => Ok(()),
            _ => Err(Errno::Inval),
        }
    }
}

impl File {
    pub(crate) fn new(body: FileBody, flags: OpenFlags, access: Access) -> Self {
        let kept = OpenFlags::READ | OpenFlags::WRITE | OpenFlags::APPEND;
        Self(Arc::new(Inner { body, flags: flags & kept, access, slot: None }))
    }

    /// Counted as open until its last clone is gone.
    pub(crate) fn holding(mut self, slot: Slot) -> Self {
        let inner = Arc::get_mut(&mut self.0).expect("it was opened just now and nobody else has it");
        inner.slot = Some(slot);
        self
    }

    pub(crate) fn stat_sync(&self) -> Result<Metadata, Errno> {
        self.0.stat()
    }

    pub(crate) fn attr_sync(&self) -> Result<Attr, Errno> {
        self.0.attr()
    }

    pub(crate) fn change_attr_sync(&self, change: &impl Fn(&Attr) -> Result<Attr, Errno>) -> Result<(), Errno> {
        self.0.change_attr(change)
    }

    pub(crate) fn set_times_sync(&self, cred: &Credentials, times: SetTimes) -> Result<(), Errno> {
        self.0.set_times(cred, times)
    }

    pub(crate) fn truncate_sync(&self) -> Result<(), Errno> {
        match &self.0.body {
            FileBody::Tree(file) => file.change(|data| data.set_len(file.fs.store(), 0)),
            FileBody::Host(file) if file.kind == FileType::Regular => file.set_len(0),
            _ => Ok(()),
        }
    }

    /// The pool of a file whose calls may hang.
    fn foreign_pool(&self) -> Option<Pool> {
        match &self.0.body {
            FileBody::Host(file) if file.may_hang() => Some(file.fs.pool.clone()),
            _ => None,
        }
    }

    /// Runs a call here, or on the mount's pool when it may hang.
    async fn hop<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Inner) -> Result<T, Errno> + Send + 'static,
    ) -> Result<T, Errno> {
        match self.foreign_pool() {
            None => call(&self.0),
            Some(pool) => {
                let inner = Arc::clone(&self.0);
                pool.run(move || call(&inner)).await?
            }
        }
    }
}

#[allow(clippy::missing_errors_doc, reason = "errors are those of the system call of the same name")]
impl File {
    /// The flags it was opened with: `READ`, `WRITE`, `APPEND`.
    pub fn access(&self) -> OpenFlags {
        self.0.flags
    }

    /// `fstat`.
    pub async fn stat(&self) -> Result<Metadata, Errno> {
        self.hop(Inner::stat).await
    }

    /// `pread`: 0 is the end of the file. At most 64 KiB a call. A FIFO without data is `EAGAIN`.
    pub async fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize, Errno> {
        self.0.readable()?;
        let len = buffer.len().min(MAX_IO);
        let buffer = &mut buffer[..len];
        match &self.0.body {
            FileBody::Tree(file) => file.inode.data().ok_or(Errno::Inval)?.read().read_at(buffer, offset),
            FileBody::Host(file) if !file.may_hang() => file.read_at(buffer, offset, Wait::Yes),
            FileBody::Host(file) => match file.read_at(buffer, offset, Wait::No) {
                Err(Errno::Again) if file.kind == FileType::Regular => self.read_pooled(buffer, offset).await,
                other => other,
            },
            FileBody::Provided(bytes, _) => {
                let rest = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..)).unwrap_or(&[]);
                let len = rest.len().min(buffer.len());
                buffer[..len].copy_from_slice(&rest[..len]);
                Ok(len)
            }
            FileBody::Device(device, _) => read_device(*device, buffer),
        }
    }

    /// The page was not in memory: the read itself goes to the pool, with bytes of its own.
    async fn read_pooled(&self, buffer: &mut [u8], offset: u64) -> Result<usize, Errno> {
        let len = buffer.len();
        let call = move |inner: &Inner| {
            let FileBody::Host(file) = &inner.body else { return Err(Errno::Io) };
            let mut bytes = vec![0; len];
            let count = file.read_at(&mut bytes, offset, Wait::Yes)?;
            bytes.truncate(count);
            Ok(bytes)
        };
        let bytes = self.hop(call).await?;
        buffer[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }

    /// `pwrite`. At most 64 KiB a call.
    pub async fn write_at(&self, bytes: &[u8], offset: u64) -> Result<usize, Errno> {
        self.0.writable()?;
        let bytes = &bytes[..bytes.len().min(MAX_IO)];
        match &self.0.body {
            FileBody::Tree(file) => {
                self.copy_up(file).await?;
                file.change(|data| data.write_at(file.fs.store(), bytes, offset))
            }
            FileBody::Host(file) if !file.may_hang() => file.write_at(bytes, offset, Wait::Yes),
            FileBody::Host(file) => match file.write_at(bytes, offset, Wait::No) {
                Err(Errno::Again) if file.kind == FileType::Regular => {
                    let bytes = bytes.to_vec();
                    self.hop(move |inner| match &inner.body {
                        FileBody::Host(file) => file.write_at(&bytes, offset, Wait::Yes),
                        _ => Err(Errno::Io),
                    })
                    .await
                }
                other => other,
            },
            FileBody::Provided(..) => Err(Errno::BadF),
            FileBody::Device(device, _) => write_device(*device, bytes),
        }
    }

    /// Writes at the end in one step; gives the count and the offset after it.
    pub async fn append(&self, bytes: &[u8]) -> Result<(usize, u64), Errno> {
        self.0.writable()?;
        let bytes = &bytes[..bytes.len().min(MAX_IO)];
        match &self.0.body {
            FileBody::Tree(file) => {
                self.copy_up(file).await?;
                file.change(|data| {
                    let end = data.size();
                    let done = data.write_at(file.fs.store(), bytes, end)?;
                    Ok((done, end + done as u64))
                })
            }
            FileBody::Host(file) if !file.may_hang() => file.append(bytes),
            FileBody::Host(_) => {
                let bytes = bytes.to_vec();
                self.hop(move |inner| match &inner.body {
                    FileBody::Host(file) => file.append(&bytes),
                    _ => Err(Errno::Io),
                })
                .await
            }
            FileBody::Provided(..) => Err(Errno::BadF),
            FileBody::Device(device, _) => Ok((write_device(*device, bytes)?, 0)),
        }
    }

    /// The first write to a large file of the image: its bytes are copied away from the guests' threads.
    async fn copy_up(&self, file: &TreeFile) -> Result<(), Errno> {
        let Some(data) = file.inode.data() else { return Ok(()) };
        if data.read().copy_up_bytes() <= COPY_INLINE {
            return Ok(());
        }
        let (fs, inode) = (Arc::clone(&file.fs), Arc::clone(&file.inode));
        let copy = move || inode.data().map_or(Ok(()), |data| data.write().own(fs.store(), u64::MAX));
        COPIES.run(copy).await?
    }

    /// `ftruncate`.
    pub async fn set_len(&self, size: u64) -> Result<(), Errno> {
        self.hop(move |inner| inner.set_len(size)).await
    }

    /// `futimens`.
    pub async fn set_times(&self, cred: &Credentials, times: SetTimes) -> Result<(), Errno> {
        let cred = cred.clone();
        self.hop(move |inner| inner.set_times(&cred, times)).await
    }

    /// `fchmod`.
    pub async fn chmod(&self, cred: &Credentials, mode: u32) -> Result<(), Errno> {
        let cred = cred.clone();
        self.hop(move |inner| inner.change_attr(&|attr| perm::chmod(&cred, attr, mode))).await
    }

    /// `fchown`; `None` keeps.
    pub async fn chown(&self, cred: &Credentials, uid: Option<u32>, gid: Option<u32>) -> Result<(), Errno> {
        let cred = cred.clone();
        self.hop(move |inner| inner.change_attr(&|attr| perm::chown(&cred, attr, uid, gid))).await
    }

    /// `fsync`. On a container's own root nothing is to be done: its bytes end with the container's attempt.
    pub async fn sync(&self) -> Result<(), Errno> {
        self.sync_kind(DataOnly::No).await
    }

    /// `fdatasync`.
    pub async fn datasync(&self) -> Result<(), Errno> {
        self.sync_kind(DataOnly::Yes).await
    }

    /// Always on a pool: a disk's flush takes tens of milliseconds, ours or not.
    async fn sync_kind(&self, data_only: DataOnly) -> Result<(), Errno> {
        let FileBody::Host(file) = &self.0.body else { return self.0.sync(data_only) };
        let inner = Arc::clone(&self.0);
        file.fs.pool.run(move || inner.sync(data_only)).await?
    }

    /// `posix_fallocate`: space for the range, growing the file.
    pub async fn allocate(&self, offset: u64, len: u64) -> Result<(), Errno> {
        self.hop(move |inner| inner.allocate(offset, len)).await
    }

    /// `posix_fadvise`: a hint; only errors of the arguments are reported.
    pub fn advise(&self, offset: u64, len: u64, advice: Advice) -> Result<(), Errno> {
        if i64::try_from(offset).is_err() || i64::try_from(len).is_err() {
            return Err(Errno::Inval);
        }
        match &self.0.body {
            FileBody::Host(file) if file.kind == FileType::Fifo => Err(Errno::SPipe),
            FileBody::Host(file) if !file.may_hang() => file.advise(offset, len, advice),
            _ => Ok(()),
        }
    }

    /// Whether reads and writes have an offset (regular files); a FIFO or a device has none (ESPIPE).
    pub fn is_seekable(&self) -> bool {
        match &self.0.body {
            FileBody::Tree(_) | FileBody::Provided(..) => true,
            FileBody::Host(file) => file.kind == FileType::Regular,
            FileBody::Device(..) => false,
        }
    }
}

fn read_device(device: DeviceNode, buffer: &mut [u8]) -> Result<usize, Errno> {
    match device {
        DeviceNode::Null => Ok(0),
        DeviceNode::Zero | DeviceNode::Full => {
            buffer.fill(0);
            Ok(buffer.len())
        }
        DeviceNode::Random => {
            rand::RngCore::fill_bytes(&mut rand::rng(), buffer);
            Ok(buffer.len())
        }
        DeviceNode::Process(_) => Err(Errno::NxIo),
    }
}

fn write_device(device: DeviceNode, bytes: &[u8]) -> Result<usize, Errno> {
    match device {
        DeviceNode::Full if !bytes.is_empty() => Err(Errno::NoSpc),
        DeviceNode::Process(_) => Err(Errno::NxIo),
        _ => Ok(bytes.len()),
    }
}
