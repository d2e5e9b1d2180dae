//! Byte pipes between processes, and between processes and attached clients.
//!
//! In: bytes of writers. Out: the same bytes to readers, in order, with back-pressure at the capacity. The end of
//! the last writer is end of file, the end of the last reader is EPIPE. Buffered bytes are charged to the
//! container that made the pipe.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::errno::Errno;
use crate::runtime::limits::MemoryCharge;

/// Linux's default capacity; what programs that print a full screen at once expect to fit.
pub const CAPACITY: usize = 64 * 1024;
/// POSIX `PIPE_BUF`: writes up to it are not interleaved with others.
pub const ATOMIC_WRITE: usize = 4096;

struct State {
    bytes: VecDeque<u8>,
    charged: usize,
    readers: usize,
    writers: usize,
}

struct Shared {
    state: Mutex<State>,
    charge: Option<Arc<MemoryCharge>>,
    readable: Notify,
    writable: Notify,
}

/// The reading end; clones are further readers.
pub struct PipeReader(Arc<Shared>);

/// The writing end; clones are further writers.
pub struct PipeWriter(Arc<Shared>);

/// A pipe whose buffer counts as memory of the container behind `charge`.
pub fn pipe(charge: Option<Arc<MemoryCharge>>) -> (PipeReader, PipeWriter) {
    let state = State { bytes: VecDeque::new(), charged: 0, readers: 1, writers: 1 };
    let shared =
        Arc::new(Shared { state: Mutex::new(state), charge, readable: Notify::new(), writable: Notify::new() });
    (PipeReader(shared.clone()), PipeWriter(shared))
}

impl Shared {
    /// Makes room for `more` bytes in the buffer, charged in whole doublings so that most writes cost nothing.
    fn reserve(&self, state: &mut State, more: usize) -> Result<(), Errno> {
        let needed = state.bytes.len() + more;
        if needed > state.charged {
            let target = needed.next_power_of_two().clamp(1024, CAPACITY);
            if let Some(charge) = &self.charge {
                charge.charge_host((target - state.charged) as u64)?;
            }
            state.charged = target;
            state.bytes.reserve_exact(target - state.bytes.len());
        }
        Ok(())
    }

    /// Gives an emptied buffer back: an idle pipe costs no memory.
    fn release(&self, state: &mut State) {
        if let Some(charge) = &self.charge {
            charge.release(state.charged as u64);
        }
        state.charged = 0;
        state.bytes = VecDeque::new();
    }
}

impl PipeReader {
    /// Reads what is there.
    ///
    /// # Errors
    /// `EAGAIN` when the pipe is empty and has writers; without writers `Ok(0)` is end of file.
    pub fn try_read(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        let mut state = self.0.state.lock();
        if state.bytes.is_empty() {
            return if state.writers == 0 || buffer.is_empty() { Ok(0) } else { Err(Errno::Again) };
        }
        let count = buffer.len().min(state.bytes.len());
        let (front, back) = state.bytes.as_slices();
        let from_front = count.min(front.len());
        buffer[..from_front].copy_from_slice(&front[..from_front]);
        buffer[from_front..count].copy_from_slice(&back[..count - from_front]);
        state.bytes.drain(..count);
        if state.bytes.is_empty() {
            self.0.release(&mut state);
        }
        drop(state);
        self.0.writable.notify_waiters();
        Ok(count)
    }

    /// Reads at least a byte, waiting for one. `Ok(0)` is end of file. Cancel-safe: a cancelled call took nothing.
    ///
    /// # Errors
    /// None today; the type is that of every read.
    pub async fn read(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        loop {
            match self.try_read(buffer) {
                Err(Errno::Again) => self.readable().await,
                done => return done,
            }
        }
    }

    /// Bytes that a read would give now, and whether end of file was reached.
    pub fn available(&self) -> (usize, bool) {
        let state = self.0.state.lock();
        (state.bytes.len(), state.writers == 0)
    }

    /// Resolves when a read would not wait. Cancel-safe.
    pub async fn readable(&self) {
        loop {
            let changed = self.0.readable.notified();
            let (bytes, ended) = self.available();
            if bytes > 0 || ended {
                return;
            }
            changed.await;
        }
    }
}

impl PipeWriter {
    /// Writes what fits; up to [`ATOMIC_WRITE`] bytes all or nothing.
    ///
    /// # Errors
    /// `EAGAIN` when full, `EPIPE` without readers, `ENOMEM` at the container's memory limit.
    pub fn try_write(&self, bytes: &[u8]) -> Result<usize, Errno> {
        let mut state = self.0.state.lock();
        if state.readers == 0 {
            return Err(Errno::Pipe);
        }
        if bytes.is_empty() {
            return Ok(0);
        }
        let free = CAPACITY - state.bytes.len();
        if free == 0 || (bytes.len() <= ATOMIC_WRITE && free < bytes.len()) {
            return Err(Errno::Again);
        }
        let count = free.min(bytes.len());
        self.0.reserve(&mut state, count)?;
        state.bytes.extend(&bytes[..count]);
        drop(state);
        self.0.readable.notify_waiters();
        Ok(count)
    }

    /// Writes some bytes, waiting for room.
    ///
    /// # Errors
    /// As [`Self::try_write`], without `EAGAIN`.
    pub async fn write(&self, bytes: &[u8]) -> Result<usize, Errno> {
        loop {
            match self.try_write(bytes) {
                Err(Errno::Again) => self.writable(bytes.len()).await,
                done => return done,
            }
        }
    }

    /// Writes all of `bytes`.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub async fn write_all(&self, mut bytes: &[u8]) -> Result<(), Errno> {
        while !bytes.is_empty() {
            let written = self.write(bytes).await?;
            bytes = &bytes[written..];
        }
        Ok(())
    }

    /// Bytes that fit now; `None` without readers.
    pub fn room(&self) -> Option<usize> {
        let state = self.0.state.lock();
        (state.readers > 0).then(|| CAPACITY - state.bytes.len())
    }

    /// Resolves when writing `wanted` bytes would make progress or fail. Cancel-safe.
    pub async fn writable(&self, wanted: usize) {
        let enough = if wanted <= ATOMIC_WRITE { wanted.max(1) } else { 1 };
        loop {
            let changed = self.0.writable.notified();
            if self.room().is_none_or(|room| room >= enough) {
                return;
            }
            changed.await;
        }
    }

    /// Resolves when the last reader is gone. Cancel-safe.
    pub async fn closed(&self) {
        loop {
            let changed = self.0.writable.notified();
            if self.room().is_none() {
                return;
            }
            changed.await;
        }
    }
}

impl Clone for PipeReader {
    fn clone(&self) -> Self {
        self.0.state.lock().readers += 1;
        Self(self.0.clone())
    }
}

impl Clone for PipeWriter {
    fn clone(&self) -> Self {
        self.0.state.lock().writers += 1;
        Self(self.0.clone())
    }
}

impl Drop for PipeReader {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.readers -= 1;
        if state.readers == 0 {
            self.0.release(&mut state);
            drop(state);
            self.0.writable.notify_waiters();
        }
    }
}

impl Drop for PipeWriter {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.writers -= 1;
        if state.writers == 0 {
            drop(state);
            self.0.readable.notify_waiters();
        }
    }
}

impl std::fmt::Debug for PipeReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PipeReader")
    }
}

impl std::fmt::Debug for PipeWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PipeWriter")
    }
}
