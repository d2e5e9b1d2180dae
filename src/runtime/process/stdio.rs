//! Standard streams of containers and execs.
//!
//! In: bytes of attached clients, bytes of guests. Out: the same to the guest, to the CRI log and to every
//! attached client. A stream is a pipe, a log, or a terminal; the descriptions of fds 0, 1 and 2 hold one.

use std::sync::Arc;

use super::pipe::{ATOMIC_WRITE, PipeReader, PipeWriter};
use crate::errno::Errno;
use crate::runtime::output::ContainerOutput;
use crate::runtime::tty::Terminal;

/// Which of the two output streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Standard input.
#[derive(Clone)]
pub enum Input {
    /// End of file at once.
    Closed,
    /// Fed by attached clients.
    Pipe(PipeReader),
    /// The reading side of a terminal.
    Terminal(Arc<Terminal>),
}

impl Input {
    /// Whether `isatty` answers yes.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal(_))
    }

    /// Reads what is there; `Ok(0)` is end of file.
    ///
    /// # Errors
    /// `EAGAIN`.
    pub fn try_read(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        match self {
            Self::Closed => Ok(0),
            Self::Pipe(pipe) => pipe.try_read(buffer),
            Self::Terminal(terminal) => terminal.try_read(buffer),
        }
    }

    /// Resolves when a read would not wait. Cancel-safe.
    pub async fn readable(&self) {
        match self {
            Self::Closed => {}
            Self::Pipe(pipe) => pipe.readable().await,
            Self::Terminal(terminal) => terminal.readable().await,
        }
    }

    /// Bytes a read would give now, and whether end of file was reached.
    pub fn available(&self) -> (usize, bool) {
        match self {
            Self::Closed => (0, true),
            Self::Pipe(pipe) => pipe.available(),
            Self::Terminal(terminal) => terminal.available(),
        }
    }
}

/// Standard output or error.
#[derive(Clone)]
pub enum Output {
    /// A container's: to its log and to attached clients.
    Container(Arc<ContainerOutput>, OutputStream),
    /// An exec's: to its client.
    Pipe(PipeWriter),
    /// The writing side of a terminal.
    Terminal(Arc<Terminal>),
}

impl Output {
    /// Whether `isatty` answers yes.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal(_))
    }

    /// Writes what fits.
    ///
    /// # Errors
    /// `EAGAIN` when the log or the client is behind, `EPIPE` when an exec's client has gone.
    pub fn try_write(&self, bytes: &[u8]) -> Result<usize, Errno> {
        match self {
            Self::Container(output, stream) => output.try_write(*stream, bytes),
            Self::Pipe(pipe) => pipe.try_write(bytes),
            Self::Terminal(terminal) => terminal.try_write(bytes),
        }
    }

    /// Whether a write would make progress now.
    pub fn is_writable(&self) -> bool {
        match self {
            Self::Container(output, _) => output.is_writable(),
            // As much as a write of that size needs, which fits whole or not at all: less would spin its writer.
            Self::Pipe(pipe) => pipe.room().is_none_or(|room| room >= ATOMIC_WRITE),
            Self::Terminal(terminal) => terminal.is_writable(),
        }
    }

    /// Resolves when a write would make progress. Cancel-safe.
    pub async fn writable(&self) {
        match self {
            Self::Container(output, _) => output.writable().await,
            Self::Pipe(pipe) => pipe.writable(ATOMIC_WRITE).await,
            Self::Terminal(terminal) => terminal.writable().await,
        }
    }
}
