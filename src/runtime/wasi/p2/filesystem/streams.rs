//! Byte streams over an open file: what `read-via-stream`, `write-via-stream` and `append-via-stream` give.
//!
//! In: a `vfs` file and an offset. Out: [`FileInput`] and [`FileOutput`]. A node-local file answers in the
//! call itself; one that may hang (`hostPath`) answers later, and `ready` waits for exactly that answer,
//! so it never wakes the guest for nothing.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use wasmtime_wasi_io::async_trait;
use wasmtime_wasi_io::poll::Pollable;
use wasmtime_wasi_io::streams::{InputStream, OutputStream, StreamError, StreamResult};

use crate::errno::Errno;
use crate::vfs::File;

/// Bytes moved by one call: large enough that the call's own cost vanishes, small enough that a guest
/// cannot make the host allocate much or hold a thread for long.
pub const CHUNK: usize = 64 * 1024;

type Pending<T> = Pin<Box<dyn Future<Output = Result<T, Errno>> + Send>>;

/// Polls once without a waker; whoever waits later polls again with its own.
fn poll_once<T>(future: &mut Pending<T>) -> Poll<Result<T, Errno>> {
    future.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

fn failed(errno: Errno) -> StreamError {
    StreamError::LastOperationFailed(errno.into())
}

/// Reads a file from an offset on.
pub struct FileInput {
    file: File,
    position: u64,
    state: Reading,
}

enum Reading {
    Idle,
    Waiting(Pending<Bytes>),
    /// Read ahead of the guest; never empty.
    Buffered(Bytes),
    /// Reported to the guest once, then reading goes on: a file may grow.
    Ended(Option<Errno>),
}

async fn read_chunk(file: File, position: u64, size: usize) -> Result<Bytes, Errno> {
    let mut buffer = vec![0; size.min(CHUNK)];
    let read = file.read_at(&mut buffer, position).await?;
    buffer.truncate(read);
    Ok(buffer.into())
}

impl FileInput {
    /// A stream of `file` from `position`.
    #[must_use]
    pub fn new(file: File, position: u64) -> Self {
        Self { file, position, state: Reading::Idle }
    }

    fn finish(&mut self, result: Result<Bytes, Errno>) {
        self.state = match result {
            Ok(bytes) if bytes.is_empty() => Reading::Ended(None),
            Ok(bytes) => Reading::Buffered(bytes),
            Err(errno) => Reading::Ended(Some(errno)),
        };
    }

    /// Gives the guest what is there, an end included; `None` when that takes waiting.
    fn take(&mut self, size: usize) -> Option<StreamResult<Bytes>> {
        match &mut self.state {
            Reading::Idle | Reading::Waiting(_) => None,
            Reading::Buffered(bytes) => {
                let chunk = bytes.split_to(bytes.len().min(size));
                if bytes.is_empty() {
                    self.state = Reading::Idle;
                }
                self.position += chunk.len() as u64;
                Some(Ok(chunk))
            }
            Reading::Ended(reason) => {
                let reason = *reason;
                self.state = Reading::Idle;
                Some(Err(reason.map_or(StreamError::Closed, failed)))
            }
        }
    }
}

#[async_trait]
impl InputStream for FileInput {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        if size == 0 {
            return Ok(Bytes::new());
        }
        if matches!(self.state, Reading::Idle) {
            self.state = Reading::Waiting(Box::pin(read_chunk(self.file.clone(), self.position, size)));
        }
        if let Reading::Waiting(future) = &mut self.state
            && let Poll::Ready(result) = poll_once(future)
        {
            self.finish(result);
        }
        self.take(size).unwrap_or_else(|| Ok(Bytes::new()))
    }

    /// The usual path of a libc: no boxed read, no second call.
    async fn blocking_read(&mut self, size: usize) -> StreamResult<Bytes> {
        if size == 0 {
            return Ok(Bytes::new());
        }
        let result = match &mut self.state {
            Reading::Idle => {
                let mut buffer = vec![0; size.min(CHUNK)];
                self.file.read_at(&mut buffer, self.position).await.map(|read| {
                    buffer.truncate(read);
                    buffer.into()
                })
            }
            Reading::Waiting(future) => future.as_mut().await,
            Reading::Buffered(_) | Reading::Ended(_) => {
                return self.take(size).unwrap_or_else(|| Ok(Bytes::new()));
            }
        };
        self.finish(result);
        self.take(size).unwrap_or_else(|| Ok(Bytes::new()))
    }
}

#[async_trait]
impl Pollable for FileInput {
    /// A file is always readable unless a read of it is under way, as in poll(2).
    async fn ready(&mut self) {
        if let Reading::Waiting(future) = &mut self.state {
            let result = future.as_mut().await;
            self.finish(result);
        }
    }
}

/// Where a [`FileOutput`] writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// From an offset on.
    At(u64),
    /// At the end, wherever that is at each write.
    End,
}

/// What a write waits for besides the write itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Nothing: the page cache has it.
    Cached,
    /// `data-integrity-sync`: as after fdatasync.
    Data,
    /// `file-integrity-sync`: as after fsync.
    File,
}

/// Writes `bytes` whole and returns where the next write goes.
///
/// # Errors
/// The file's error; how much was written before it is not known, as with write(2) to a full disk.
pub async fn write_all(file: &File, mut bytes: &[u8], place: Place, durability: Durability) -> Result<Place, Errno> {
    let mut place = place;
    while !bytes.is_empty() {
        let chunk = &bytes[..bytes.len().min(CHUNK)];
        let written = match &mut place {
            Place::At(position) => {
                let written = file.write_at(chunk, *position).await?;
                *position += written as u64;
                written
            }
            Place::End => file.append(chunk).await?.0,
        };
        if written == 0 {
            return Err(Errno::Io);
        }
        bytes = &bytes[written..];
    }
    match durability {
        Durability::Cached => {}
        Durability::Data => file.datasync().await?,
        Durability::File => file.sync().await?,
    }
    Ok(place)
}

/// Writes a file from an offset on, or at its end.
pub struct FileOutput {
    file: File,
    place: Place,
    durability: Durability,
    state: Writing,
}

enum Writing {
    Ready,
    Waiting(Pending<Place>),
    Failed(Errno),
    Closed,
}

impl FileOutput {
    /// A stream into `file` at `place`.
    #[must_use]
    pub fn new(file: File, place: Place, durability: Durability) -> Self {
        Self { file, place, durability, state: Writing::Ready }
    }

    fn finish(&mut self, result: Result<Place, Errno>) {
        self.state = match result {
            Ok(place) => {
                self.place = place;
                Writing::Ready
            }
            Err(errno) => Writing::Failed(errno),
        };
    }

    fn progress(&mut self) {
        if let Writing::Waiting(future) = &mut self.state
            && let Poll::Ready(result) = poll_once(future)
        {
            self.finish(result);
        }
    }

    /// Reports a failure once; after it the stream is closed, as the interface says.
    fn check(&mut self) -> StreamResult<()> {
        match self.state {
            Writing::Ready | Writing::Waiting(_) => Ok(()),
            Writing::Failed(errno) => {
                self.state = Writing::Closed;
                Err(failed(errno))
            }
            Writing::Closed => Err(StreamError::Closed),
        }
    }
}

#[async_trait]
impl OutputStream for FileOutput {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.check()?;
        if !matches!(self.state, Writing::Ready) || bytes.len() > CHUNK {
            return Err(StreamError::trap("write of more bytes than check-write permitted"));
        }
        let (file, place, durability) = (self.file.clone(), self.place, self.durability);
        self.state = Writing::Waiting(Box::pin(async move { write_all(&file, &bytes, place, durability).await }));
        self.progress();
        // A failure shows now and not at the next call: a guest that writes once and exits must see it.
        self.check()
    }

    fn flush(&mut self) -> StreamResult<()> {
        self.check()
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        self.progress();
        self.check()?;
        Ok(if matches!(self.state, Writing::Ready) { CHUNK } else { 0 })
    }

    /// The usual path of a libc: one call, nothing boxed.
    async fn blocking_write_and_flush(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.ready().await;
        self.check()?;
        let result = write_all(&self.file, &bytes, self.place, self.durability).await;
        self.finish(result);
        self.check()
    }

    fn write_zeroes(&mut self, count: usize) -> StreamResult<()> {
        if count > self.check_write()? {
            return Err(StreamError::trap("write-zeroes of more bytes than check-write permitted"));
        }
        self.write(vec![0; count].into())
    }

    /// A write that was accepted is carried out even if the stream is dropped at once.
    async fn cancel(&mut self) {
        self.ready().await;
    }
}

#[async_trait]
impl Pollable for FileOutput {
    async fn ready(&mut self) {
        if let Writing::Waiting(future) = &mut self.state {
            let result = future.as_mut().await;
            self.finish(result);
        }
    }
}
