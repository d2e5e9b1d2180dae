//! Open file descriptions: what a descriptor number refers to, with the state that duplicates share.
//!
//! In: opened objects of `vfs`, sockets of `network`, pipes, standard streams. Out: blocking and non-blocking
//! reads and writes with one meaning for every front-end. The offset and the status flags are here, because two
//! descriptors (and two processes) that share a description share them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::sync::Mutex;

use super::pipe::{PipeReader, PipeWriter};
use super::stdio::{Input, Output};
use super::{ProcessEnd, SignalListener};
use crate::errno::Errno;
use crate::network::{TcpSocket, UdpSocket};
use crate::runtime::tty::Terminal;
use crate::vfs::{Dir, File, FileType};

bitflags::bitflags! {
    /// `O_APPEND` and friends: the part of `open` that `fcntl` can change later.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct StatusFlags: u8 {
        /// Writes go to the end.
        const APPEND = 1;
        /// `EAGAIN` instead of waiting.
        const NONBLOCK = 2;
        /// Data is on the disk when a write returns.
        const DSYNC = 4;
        /// Data and metadata are.
        const SYNC = 8;
        /// Reads wait for pending writes too.
        const RSYNC = 16;
    }

    /// Which directions a description was opened for.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Access: u8 {
        /// `read`, `pread`, `readdir`.
        const READ = 1;
        /// `write`, `pwrite`, `ftruncate`.
        const WRITE = 2;
    }
}

/// An open regular file or device served by `vfs`.
pub struct OpenFile {
    /// The file.
    pub file: File,
    /// Where the next read or write starts. Held over the operation, so that writers sharing it do not overlap.
    pub offset: Mutex<u64>,
}

/// An open directory.
pub struct OpenDirectory {
    /// The directory.
    pub dir: Dir,
    /// Its name as a preopen, for the front-ends that list them.
    pub preopen: Option<Arc<str>>,
}

/// What is open.
pub enum DescriptionKind {
    /// A file.
    File(OpenFile),
    /// A directory.
    Directory(OpenDirectory),
    /// A pipe's reading end.
    PipeReader(PipeReader),
    /// A pipe's writing end.
    PipeWriter(PipeWriter),
    /// A stream socket.
    Tcp(Arc<TcpSocket>),
    /// A datagram socket.
    Udp(Arc<UdpSocket>),
    /// Standard input of a container or an exec.
    Input(Input),
    /// Standard output or error of a container or an exec.
    Output(Output),
    /// `/dev/tty` or a standard stream of a container with a terminal: both directions.
    Terminal(Input, Output),
    /// `/dev/signal`.
    Signals(SignalListener),
    /// The end of a process.
    ProcessEnd(ProcessEnd),
}

/// One open file description.
pub struct FileDescription {
    kind: DescriptionKind,
    access: Access,
    status: AtomicU8,
}

impl FileDescription {
    /// A new description.
    pub fn new(kind: DescriptionKind, access: Access, status: StatusFlags) -> Arc<Self> {
        Arc::new(Self { kind, access, status: AtomicU8::new(status.bits()) })
    }

    /// A regular file at offset 0.
    pub fn file(file: File, access: Access, status: StatusFlags) -> Arc<Self> {
        Self::new(DescriptionKind::File(OpenFile { file, offset: Mutex::new(0) }), access, status)
    }

    /// A directory that is no preopen.
    pub fn directory(dir: Dir) -> Arc<Self> {
        Self::new(DescriptionKind::Directory(OpenDirectory { dir, preopen: None }), Access::READ, StatusFlags::empty())
    }

    /// What a child gets of it: streams with status flags of their own, for many a program makes its own not wait,
    /// and few expect that of what they are given; everything that has an offset is shared.
    #[must_use]
    pub fn for_child(self: &Arc<Self>) -> Arc<Self> {
        let kind = match &self.kind {
            DescriptionKind::PipeReader(pipe) => DescriptionKind::PipeReader(pipe.clone()),
            DescriptionKind::PipeWriter(pipe) => DescriptionKind::PipeWriter(pipe.clone()),
            DescriptionKind::Input(input) => DescriptionKind::Input(input.clone()),
            DescriptionKind::Output(output) => DescriptionKind::Output(output.clone()),
            DescriptionKind::Terminal(input, output) => DescriptionKind::Terminal(input.clone(), output.clone()),
            DescriptionKind::Tcp(socket) => DescriptionKind::Tcp(socket.clone()),
            DescriptionKind::Udp(socket) => DescriptionKind::Udp(socket.clone()),
            DescriptionKind::File(_)
            | DescriptionKind::Directory(_)
            | DescriptionKind::Signals(_)
            | DescriptionKind::ProcessEnd(_) => return self.clone(),
        };
        Self::new(kind, self.access, self.status() - StatusFlags::NONBLOCK)
    }

    /// What it is.
    pub fn kind(&self) -> &DescriptionKind {
        &self.kind
    }

    /// The directions it was opened for.
    pub fn access(&self) -> Access {
        self.access
    }

    /// Current status flags.
    pub fn status(&self) -> StatusFlags {
        StatusFlags::from_bits_truncate(self.status.load(Ordering::Relaxed))
    }

    /// Replaces the status flags.
    pub fn set_status(&self, status: StatusFlags) {
        self.status.store(status.bits(), Ordering::Relaxed);
    }

    /// The directory behind it.
    ///
    /// # Errors
    /// `ENOTDIR`.
    pub fn as_dir(&self) -> Result<&Dir, Errno> {
        match &self.kind {
            DescriptionKind::Directory(open) => Ok(&open.dir),
            _ => Err(Errno::NotDir),
        }
    }

    /// The regular file behind it.
    ///
    /// # Errors
    /// `EISDIR` for a directory, `ESPIPE` for everything that has no offset.
    pub fn as_file(&self) -> Result<&OpenFile, Errno> {
        match &self.kind {
            DescriptionKind::File(open) => Ok(open),
            DescriptionKind::Directory(_) => Err(Errno::IsDir),
            _ => Err(Errno::SPipe),
        }
    }

    /// The stream socket behind it.
    ///
    /// # Errors
    /// `ENOTSOCK`.
    pub fn as_tcp(&self) -> Result<&Arc<TcpSocket>, Errno> {
        match &self.kind {
            DescriptionKind::Tcp(socket) => Ok(socket),
            _ => Err(Errno::NotSock),
        }
    }

    /// Whether it is a socket.
    pub fn is_socket(&self) -> bool {
        matches!(self.kind, DescriptionKind::Tcp(_) | DescriptionKind::Udp(_))
    }

    /// Whether `isatty` answers yes.
    pub fn is_terminal(&self) -> bool {
        match &self.kind {
            DescriptionKind::Input(input) | DescriptionKind::Terminal(input, _) => input.is_terminal(),
            DescriptionKind::Output(output) => output.is_terminal(),
            _ => false,
        }
    }

    /// The terminal behind it.
    pub fn terminal(&self) -> Option<&Arc<Terminal>> {
        match &self.kind {
            DescriptionKind::Input(Input::Terminal(terminal))
            | DescriptionKind::Terminal(Input::Terminal(terminal), _)
            | DescriptionKind::Output(Output::Terminal(terminal)) => Some(terminal),
            _ => None,
        }
    }

    /// The kind of file that `fstat` shows, where no metadata has to be asked for.
    pub fn file_type(&self) -> Option<FileType> {
        match &self.kind {
            DescriptionKind::File(_) => None,
            DescriptionKind::Directory(_) => Some(FileType::Directory),
            DescriptionKind::PipeReader(_) | DescriptionKind::PipeWriter(_) | DescriptionKind::ProcessEnd(_) => {
                Some(FileType::Fifo)
            }
            DescriptionKind::Tcp(_) | DescriptionKind::Udp(_) => Some(FileType::Socket),
            DescriptionKind::Signals(_) | DescriptionKind::Terminal(..) => Some(FileType::CharDevice),
            DescriptionKind::Input(_) | DescriptionKind::Output(_) if self.is_terminal() => Some(FileType::CharDevice),
            DescriptionKind::Input(_) | DescriptionKind::Output(_) => Some(FileType::Fifo),
        }
    }

    /// Reads at the shared offset, or what a stream has; waits unless non-blocking. `Ok(0)` is end of file.
    ///
    /// # Errors
    /// `EBADF` when not open for reading, `EAGAIN` when non-blocking and nothing is there, else the object's own.
    pub async fn read(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        if !self.access.contains(Access::READ) {
            return Err(Errno::BadF);
        }
        if let DescriptionKind::File(open) = &self.kind {
            let mut offset = open.offset.lock().await;
            let count = open.file.read_at(buffer, *offset).await?;
            *offset += count as u64;
            return Ok(count);
        }
        loop {
            match self.try_read(buffer) {
                Err(Errno::Again) if !self.status().contains(StatusFlags::NONBLOCK) => self.readable().await,
                done => return done,
            }
        }
    }

    /// Writes at the shared offset or the end, or to a stream; waits unless non-blocking.
    ///
    /// # Errors
    /// `EBADF` when not open for writing, `EAGAIN` when non-blocking and full, else the object's own.
    pub async fn write(&self, bytes: &[u8]) -> Result<usize, Errno> {
        if !self.access.contains(Access::WRITE) {
            return Err(Errno::BadF);
        }
        if let DescriptionKind::File(open) = &self.kind {
            return self.write_file(open, bytes).await;
        }
        loop {
            match self.try_write(bytes) {
                Err(Errno::Again) if !self.status().contains(StatusFlags::NONBLOCK) => {
                    self.writable(bytes.len()).await;
                }
                done => return done,
            }
        }
    }

    async fn write_file(&self, open: &OpenFile, bytes: &[u8]) -> Result<usize, Errno> {
        let status = self.status();
        let mut offset = open.offset.lock().await;
        let count = if status.contains(StatusFlags::APPEND) {
            let (count, end) = open.file.append(bytes).await?;
            *offset = end;
            count
        } else {
            let count = open.file.write_at(bytes, *offset).await?;
            *offset += count as u64;
            count
        };
        drop(offset);
        self.sync_as_opened(&open.file).await?;
        Ok(count)
    }

    /// Keeps the promise of `O_DSYNC` and `O_SYNC` after a write.
    ///
    /// # Errors
    /// The file's own.
    pub async fn sync_as_opened(&self, file: &File) -> Result<(), Errno> {
        let status = self.status();
        if status.contains(StatusFlags::SYNC) {
            file.sync().await?;
        } else if status.contains(StatusFlags::DSYNC) {
            file.datasync().await?;
        }
        Ok(())
    }

    /// Reads a stream without waiting. Files have an offset and are read by [`Self::read`].
    ///
    /// # Errors
    /// `EAGAIN` when nothing is there; `EISDIR`, `EBADF`, or the object's own.
    pub fn try_read(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        match &self.kind {
            DescriptionKind::PipeReader(pipe) => pipe.try_read(buffer),
            DescriptionKind::Tcp(socket) => socket.try_read(buffer),
            DescriptionKind::Udp(socket) => socket.try_recv_from(buffer).map(|received| received.len),
            DescriptionKind::Input(input) | DescriptionKind::Terminal(input, _) => input.try_read(buffer),
            DescriptionKind::Signals(signals) => signals.try_read(buffer),
            DescriptionKind::ProcessEnd(process) if process.is_over() => Ok(0),
            DescriptionKind::ProcessEnd(_) => Err(Errno::Again),
            DescriptionKind::Directory(_) => Err(Errno::IsDir),
            DescriptionKind::PipeWriter(_) | DescriptionKind::Output(_) | DescriptionKind::File(_) => Err(Errno::BadF),
        }
    }

    /// Writes to a stream without waiting.
    ///
    /// # Errors
    /// `EAGAIN` when full; `EBADF`, or the object's own.
    pub fn try_write(&self, bytes: &[u8]) -> Result<usize, Errno> {
        match &self.kind {
            DescriptionKind::PipeWriter(pipe) => pipe.try_write(bytes),
            DescriptionKind::Tcp(socket) => socket.try_write(bytes),
            DescriptionKind::Udp(socket) => socket.try_send_to(bytes, None),
            DescriptionKind::Output(output) | DescriptionKind::Terminal(_, output) => output.try_write(bytes),
            _ => Err(Errno::BadF),
        }
    }

    /// Resolves when a read would not wait (data, end of file, a connection, or an error). Cancel-safe.
    pub async fn readable(&self) {
        match &self.kind {
            DescriptionKind::PipeReader(pipe) => pipe.readable().await,
            DescriptionKind::Tcp(socket) => socket.readable().await,
            DescriptionKind::Udp(socket) => socket.readable().await,
            DescriptionKind::Input(input) | DescriptionKind::Terminal(input, _) => input.readable().await,
            DescriptionKind::Signals(signals) => signals.readable().await,
            DescriptionKind::ProcessEnd(process) => process.over().await,
            _ => {}
        }
    }

    /// Resolves when a write of `wanted` bytes would not wait. Cancel-safe.
    pub async fn writable(&self, wanted: usize) {
        match &self.kind {
            DescriptionKind::PipeWriter(pipe) => pipe.writable(wanted).await,
            DescriptionKind::Tcp(socket) => socket.writable().await,
            DescriptionKind::Udp(socket) => socket.writable().await,
            DescriptionKind::Output(output) | DescriptionKind::Terminal(_, output) => output.writable().await,
            _ => {}
        }
    }
}
