//! Byte streams over what is not a file with offsets: connections, pipes, terminals, standard streams.
//!
//! In: a socket of `network` or an open file description of the process. Out: [`SourceInput`] and
//! [`SinkOutput`], the streams of `wasi:io`. Readiness is the object's own, which is never spurious, and no
//! stream holds more than [`CHUNK`] bytes of the guest's: beyond that it is not ready.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use wasmtime_wasi::runtime::{AbortOnDropJoinHandle, spawn};
use wasmtime_wasi_io::async_trait;
use wasmtime_wasi_io::poll::Pollable;
use wasmtime_wasi_io::streams::{InputStream, OutputStream, StreamError, StreamResult};

use super::filesystem::CHUNK;
use crate::errno::Errno;
use crate::network::{Shutdown, TcpSocket};
use crate::runtime::process::{DescriptionKind, FileDescription};

type Pending<T> = Pin<Box<dyn Future<Output = Result<T, Errno>> + Send>>;

fn failed(errno: Errno) -> StreamError {
    match errno {
        // The reader is gone: the interface's word for it is an end, not an error.
        Errno::Pipe => StreamError::Closed,
        errno => StreamError::LastOperationFailed(errno.into()),
    }
}

/// Where the bytes of an input stream come from.
#[derive(Clone)]
pub enum Source {
    /// A connection.
    Tcp(Arc<TcpSocket>),
    /// An open file description.
    Description(Arc<FileDescription>),
}

impl Source {
    fn try_read(&self, size: usize) -> Result<Bytes, Errno> {
        match self {
            Self::Tcp(socket) => socket.try_read_bytes(size),
            Self::Description(open) => {
                let mut buffer = vec![0; size];
                let read = open.try_read(&mut buffer)?;
                buffer.truncate(read);
                Ok(buffer.into())
            }
        }
    }

    async fn readable(&self) {
        match self {
            Self::Tcp(socket) => socket.readable().await,
            Self::Description(open) => open.readable().await,
        }
    }
}

/// An input stream of a [`Source`].
pub struct SourceInput {
    source: Source,
    /// A read of a file that did not finish at once; streams are asked again instead.
    pending: Option<Pending<Bytes>>,
}

impl SourceInput {
    /// A stream of `source`.
    #[must_use]
    pub fn new(source: Source) -> Self {
        Self { source, pending: None }
    }

    /// The file behind a description that is one: a redirected standard stream.
    fn file(&self) -> Option<&Arc<FileDescription>> {
        match &self.source {
            Source::Description(open) if matches!(open.kind(), DescriptionKind::File(_)) => Some(open),
            Source::Tcp(_) | Source::Description(_) => None,
        }
    }

    fn finish(&mut self, result: Result<Bytes, Errno>) -> StreamResult<Bytes> {
        self.pending = None;
        match result {
            Ok(bytes) if bytes.is_empty() => Err(StreamError::Closed),
            Ok(bytes) => Ok(bytes),
            Err(Errno::Again) => Ok(Bytes::new()),
            Err(errno) => Err(failed(errno)),
        }
    }
}

async fn read_file(open: Arc<FileDescription>, size: usize) -> Result<Bytes, Errno> {
    let mut buffer = vec![0; size];
    let read = open.read(&mut buffer).await?;
    buffer.truncate(read);
    Ok(buffer.into())
}

#[async_trait]
impl InputStream for SourceInput {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        if size == 0 {
            return Ok(Bytes::new());
        }
        let size = size.min(CHUNK);
        let result = match self.file().cloned() {
            None => self.source.try_read(size),
            Some(file) => {
                let future = self.pending.get_or_insert_with(|| Box::pin(read_file(file, size)));
                match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                    Poll::Ready(result) => result,
                    Poll::Pending => return Ok(Bytes::new()),
                }
            }
        };
        self.finish(result)
    }

    async fn blocking_read(&mut self, size: usize) -> StreamResult<Bytes> {
        if size == 0 {
            return Ok(Bytes::new());
        }
        let size = size.min(CHUNK);
        let result = match (self.file().cloned(), &mut self.pending) {
            (_, Some(pending)) => pending.as_mut().await,
            (Some(file), None) => read_file(file, size).await,
            (None, None) => loop {
                match self.source.try_read(size) {
                    Err(Errno::Again) => self.source.readable().await,
                    done => break done,
                }
            },
        };
        self.finish(result)
    }
}

#[async_trait]
impl Pollable for SourceInput {
    async fn ready(&mut self) {
        // A file's read is left to `read`: its bytes would be lost to others who share the description.
        if self.file().is_none() {
            self.source.readable().await;
        }
    }
}

/// Where the bytes of an output stream go.
#[derive(Clone)]
pub enum Sink {
    /// A connection; the end of the stream is the end of what the peer reads.
    Tcp(Arc<TcpSocket>),
    /// An open file description.
    Description(Arc<FileDescription>),
}

impl Sink {
    async fn write_all(&self, bytes: &mut Bytes) -> Result<(), Errno> {
        while !bytes.is_empty() {
            match self {
                Self::Tcp(socket) => match socket.try_write_bytes(bytes) {
                    Ok(_) => {}
                    Err(Errno::Again) => socket.writable().await,
                    Err(errno) => return Err(errno),
                },
                Self::Description(open) => {
                    let written = open.write(bytes).await?;
                    let _ = bytes.split_to(written);
                }
            }
        }
        Ok(())
    }
}

/// An output stream into a [`Sink`].
pub struct SinkOutput {
    sink: Sink,
    state: Writing,
}

enum Writing {
    Ready,
    /// What did not fit is on its way, whether or not the guest asks.
    Behind(AbortOnDropJoinHandle<Result<(), Errno>>),
    Failed(Errno),
    Closed,
}

impl SinkOutput {
    /// A stream into `sink`.
    #[must_use]
    pub fn new(sink: Sink) -> Self {
        Self { sink, state: Writing::Ready }
    }

    fn finish(&mut self, result: Result<(), Errno>) {
        self.state = match result {
            Ok(()) => Writing::Ready,
            Err(errno) => Writing::Failed(errno),
        };
    }

    fn progress(&mut self) {
        if let Writing::Behind(task) = &mut self.state
            && let Poll::Ready(result) = Pin::new(task).poll(&mut Context::from_waker(Waker::noop()))
        {
            self.finish(result);
        }
    }

    /// Reports a failure once; after it the stream is closed, as the interface says.
    fn check(&mut self) -> StreamResult<()> {
        match self.state {
            Writing::Ready | Writing::Behind(_) => Ok(()),
            Writing::Failed(errno) => {
                self.state = Writing::Closed;
                Err(failed(errno))
            }
            Writing::Closed => Err(StreamError::Closed),
        }
    }

    async fn caught_up(&mut self) {
        if let Writing::Behind(task) = &mut self.state {
            let result = task.await;
            self.finish(result);
        }
    }
}

#[async_trait]
impl OutputStream for SinkOutput {
    fn write(&mut self, mut bytes: Bytes) -> StreamResult<()> {
        self.check()?;
        if matches!(self.state, Writing::Behind(_)) || bytes.len() > CHUNK {
            return Err(StreamError::trap("write of more bytes than check-write permitted"));
        }
        if let Sink::Tcp(socket) = &self.sink {
            match socket.try_write_bytes(&mut bytes) {
                Ok(_) if bytes.is_empty() => return Ok(()),
                Ok(_) | Err(Errno::Again) => {}
                Err(errno) => {
                    self.finish(Err(errno));
                    return self.check();
                }
            }
        }
        let sink = self.sink.clone();
        let mut rest = Box::pin(async move { sink.write_all(&mut bytes).await });
        match rest.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => self.finish(result),
            // In a task of its own: a guest that now waits for the answer must not wait for its own question.
            Poll::Pending => self.state = Writing::Behind(spawn(rest)),
        }
        self.check()
    }

    fn flush(&mut self) -> StreamResult<()> {
        self.check()
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        self.progress();
        self.check()?;
        if matches!(self.state, Writing::Behind(_)) {
            return Ok(0);
        }
        let Sink::Tcp(socket) = &self.sink else { return Ok(CHUNK) };
        match socket.write_room() {
            Ok(room) => Ok(room.min(CHUNK)),
            Err(Errno::Again) => Ok(0),
            Err(errno) => {
                self.finish(Err(errno));
                self.check().map(|()| 0)
            }
        }
    }

    async fn blocking_write_and_flush(&mut self, mut bytes: Bytes) -> StreamResult<()> {
        self.caught_up().await;
        self.check()?;
        let result = self.sink.write_all(&mut bytes).await;
        self.finish(result);
        self.check()
    }

    fn write_zeroes(&mut self, count: usize) -> StreamResult<()> {
        if count > self.check_write()? {
            return Err(StreamError::trap("write-zeroes of more bytes than check-write permitted"));
        }
        self.write(vec![0; count].into())
    }

    /// What was accepted is delivered before the stream is gone.
    async fn cancel(&mut self) {
        self.caught_up().await;
    }
}

#[async_trait]
impl Pollable for SinkOutput {
    async fn ready(&mut self) {
        self.caught_up().await;
        if let (Writing::Ready, Sink::Tcp(socket)) = (&self.state, &self.sink) {
            socket.writable().await;
        }
    }
}

impl Drop for SinkOutput {
    fn drop(&mut self) {
        if let Sink::Tcp(socket) = &self.sink {
            // Not connected any more is the only failure, and then the peer knows already.
            let _ = socket.shutdown(Shutdown::Write);
        }
    }
}
