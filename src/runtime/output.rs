//! What a container writes to its standard streams: to its CRI log and to attached clients.
//!
//! In: bytes of guests. Out: the log, by one writer thread for the whole node, and copies to clients. Every buffer is
//! bounded: a guest that floods its log waits for the disk, and never the agent. A client that does not read for
//! [`CLIENT_PATIENCE`] is let go, for the guest must not hang on a forgotten terminal.

use std::collections::VecDeque;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::process::pipe::{ATOMIC_WRITE, PipeWriter};
use super::process::stdio::OutputStream;
use crate::errno::Errno;
use crate::logs::{LogWriter, Stream};

/// Bytes a container may be ahead of its log: what a pipe holds.
const LOG_BUFFER: usize = 64 * 1024;
/// When one write to a log comes so soon after another, the writer lets more come together: a server that writes a line for each
/// of ten thousand requests a second would wake it as often.
const LOG_PAUSE: Duration = Duration::from_micros(500);
/// How long a client that reads nothing holds its container up.
const CLIENT_PATIENCE: Duration = Duration::from_secs(10);
/// Clients at once; more are refused by [`ContainerOutput::attach`].
const MAX_CLIENTS: usize = 32;

impl From<OutputStream> for Stream {
    fn from(stream: OutputStream) -> Self {
        match stream {
            OutputStream::Stdout => Self::Stdout,
            OutputStream::Stderr => Self::Stderr,
        }
    }
}

#[derive(Default)]
struct Pending {
    chunks: VecDeque<(OutputStream, Vec<u8>)>,
    bytes: usize,
    /// Handed to the writer thread and not finished there.
    queued: bool,
}

struct Client {
    stdout: Option<PipeWriter>,
    stderr: Option<PipeWriter>,
}

impl Client {
    fn pipes(&self) -> impl Iterator<Item = &PipeWriter> {
        [&self.stdout, &self.stderr].into_iter().flatten()
    }

    fn pipe(&self, stream: OutputStream) -> Option<&PipeWriter> {
        match stream {
            OutputStream::Stdout => self.stdout.as_ref(),
            OutputStream::Stderr => self.stderr.as_ref(),
        }
    }
}

/// The output side of one container attempt.
pub struct ContainerOutput {
    log: LogWriter,
    pump: LogPump,
    pending: Mutex<Pending>,
    drained: Notify,
    clients: Mutex<Vec<Client>>,
}

impl ContainerOutput {
    /// Output to `log` through `pump`.
    pub fn new(log: LogWriter, pump: LogPump) -> Arc<Self> {
        Arc::new(Self { log, pump, pending: Mutex::default(), drained: Notify::new(), clients: Mutex::default() })
    }

    /// Takes what fits.
    ///
    /// # Errors
    /// `EAGAIN` while the log or a client is behind.
    pub fn try_write(self: &Arc<Self>, stream: OutputStream, bytes: &[u8]) -> Result<usize, Errno> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let mut clients = self.clients.lock();
        let mut pending = self.pending.lock();
        clients.retain(|client| client.pipes().all(|pipe| pipe.room().is_some()));
        let rooms = clients.iter().filter_map(|client| client.pipe(stream)?.room());
        let room = rooms.min().unwrap_or(usize::MAX).min(LOG_BUFFER - pending.bytes);
        // As a pipe: short writes as a whole or not at all, so that lines of several processes stay lines.
        if room < bytes.len().min(ATOMIC_WRITE) {
            return Err(Errno::Again);
        }
        let count = bytes.len().min(room);
        let bytes = &bytes[..count];
        for pipe in clients.iter().filter_map(|client| client.pipe(stream)) {
            // Fits, or the client has just gone and is removed at the next write.
            let mut rest = bytes;
            while let Ok(written @ 1..) = pipe.try_write(rest) {
                rest = &rest[written..];
            }
        }
        match pending.chunks.back_mut() {
            Some((last, chunk)) if *last == stream => chunk.extend_from_slice(bytes),
            _ => pending.chunks.push_back((stream, bytes.to_vec())),
        }
        pending.bytes += count;
        let first = !std::mem::replace(&mut pending.queued, true);
        drop(pending);
        if first {
            self.pump.queue(self.clone());
        }
        Ok(count)
    }

    /// Whether a write would make progress now.
    pub fn is_writable(&self) -> bool {
        let clients = self.clients.lock();
        let mut pipes = clients.iter().flat_map(Client::pipes);
        pipes.all(|pipe| pipe.room().is_none_or(|room| room >= ATOMIC_WRITE)) && self.log_has_room()
    }

    fn log_has_room(&self) -> bool {
        self.pending.lock().bytes <= LOG_BUFFER - ATOMIC_WRITE
    }

    /// Resolves when a write would make progress. Cancel-safe.
    pub async fn writable(&self) {
        loop {
            let drained = self.drained.notified();
            if self.log_has_room() {
                break;
            }
            drained.await;
        }
        let pipes: Vec<PipeWriter> = self.clients.lock().iter().flat_map(Client::pipes).cloned().collect();
        for pipe in pipes {
            if tokio::time::timeout(CLIENT_PATIENCE, pipe.writable(ATOMIC_WRITE)).await.is_err() {
                let reads = |pipe: &PipeWriter| pipe.room().is_some_and(|room| room >= ATOMIC_WRITE);
                self.clients.lock().retain(|client| client.pipes().all(reads));
                tracing::warn!("Detached a client that did not read");
            }
        }
    }

    /// Copies everything written from now on to a client.
    ///
    /// # Errors
    /// `EMFILE` when too many are attached.
    pub fn attach(&self, stdout: Option<PipeWriter>, stderr: Option<PipeWriter>) -> Result<(), Errno> {
        let mut clients = self.clients.lock();
        if clients.len() >= MAX_CLIENTS {
            return Err(Errno::MFile);
        }
        clients.push(Client { stdout, stderr });
        Ok(())
    }

    /// Waits until everything is in the log, finishes it, and ends the clients' streams.
    pub async fn close(&self) {
        loop {
            let drained = self.drained.notified();
            if !self.pending.lock().queued {
                break;
            }
            drained.await;
        }
        self.clients.lock().clear();
        if let Err(error) = self.log.finish() {
            tracing::warn!(err = %error, "Finishing a container log failed");
        }
    }

    /// One round of the writer thread: what is there now. What came meanwhile waits behind the other containers, so
    /// that one that floods its log holds up nobody's. Blocking.
    fn write_out(self: &Arc<Self>) {
        let chunks = self.take();
        let mut written = 0;
        for (stream, chunk) in chunks {
            if let Err(error) = self.log.write(stream.into(), &chunk) {
                tracing::debug!(err = %error, "Lines of a container log were lost");
            }
            written += chunk.len();
        }
        self.wrote(written);
    }

    fn take(&self) -> VecDeque<(OutputStream, Vec<u8>)> {
        std::mem::take(&mut self.pending.lock().chunks)
    }

    fn wrote(self: &Arc<Self>, written: usize) {
        let has_more = {
            let mut pending = self.pending.lock();
            pending.bytes -= written;
            pending.queued = !pending.chunks.is_empty();
            pending.queued
        };
        self.drained.notify_waiters();
        if has_more {
            self.pump.queue(self.clone());
        }
    }
}

/// The writer thread's queue. Each container is in it at most once, which bounds it by the number of containers.
#[derive(Clone)]
pub struct LogPump(mpsc::Sender<Arc<ContainerOutput>>);

impl LogPump {
    /// Starts the thread; it ends when the last handle is gone.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start() -> std::io::Result<Self> {
        let (sender, receiver) = mpsc::channel::<Arc<ContainerOutput>>();
        std::thread::Builder::new().name("container-logs".to_owned()).spawn(move || {
            let mut wrote_at: Option<Instant> = None;
            while let Ok(output) = next(&receiver, wrote_at) {
                output.write_out();
                wrote_at = Some(Instant::now());
            }
        })?;
        Ok(Self(sender))
    }

    fn queue(&self, output: Arc<ContainerOutput>) {
        // The thread lives as long as any sender, and we are one.
        let _ = self.0.send(output);
    }
}

/// The next container with something to write. When nobody waits but somebody did a moment ago, more is let come together:
/// whoever writes meanwhile finds a thread that needs no waking.
fn next(
    queue: &mpsc::Receiver<Arc<ContainerOutput>>,
    wrote_at: Option<Instant>,
) -> Result<Arc<ContainerOutput>, mpsc::RecvError> {
    match queue.try_recv() {
        Ok(output) => return Ok(output),
        Err(mpsc::TryRecvError::Disconnected) => return Err(mpsc::RecvError),
        Err(mpsc::TryRecvError::Empty) => {}
    }
    let output = queue.recv()?;
    // Not one that floods its log: it would stand still.
    if wrote_at.is_some_and(|at| at.elapsed() < LOG_PAUSE) && output.pending.lock().bytes < ATOMIC_WRITE {
        std::thread::sleep(LOG_PAUSE);
    }
    Ok(output)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::logs::LogStore;
    use crate::pod::run::LogRotation;

    #[test]
    fn a_container_that_floods_its_log_waits_behind_the_others() {
        let directory = tempfile::tempdir().unwrap();
        let logs = LogStore::open(directory.path().join("logs"), Clock::System).unwrap();
        let (sender, queue) = mpsc::channel();
        let output = |name: &str| {
            let path = directory.path().join("logs/pods/p").join(name).join("0.log");
            let log = logs.writer(&path, LogRotation { max_size_bytes: 0, max_files: 2 }).unwrap();
            ContainerOutput::new(log, LogPump(sender.clone()))
        };
        let (flood, quiet) = (output("flood"), output("quiet"));
        let line = [b'x'; ATOMIC_WRITE];
        let fill = || while flood.try_write(OutputStream::Stdout, &line).is_ok() {};
        let next = || queue.try_recv().ok();
        fill();
        assert_eq!(flood.try_write(OutputStream::Stdout, &line), Err(Errno::Again), "it is as far ahead as it may be");
        let turn = next().expect("the flood is to be written");
        assert!(next().is_none(), "once, however many writes it made");
        let taken: usize = turn.take().iter().map(|(_, chunk)| chunk.len()).sum();
        // While that is on its way to the disk, the other one writes a line; then there is room to flood again.
        quiet.try_write(OutputStream::Stdout, b"hello\n").unwrap();
        assert!(!flood.is_writable(), "what is not written yet still counts");
        turn.wrote(taken);
        fill();
        assert!(Arc::ptr_eq(&next().unwrap(), &quiet), "the other is next");
        assert!(Arc::ptr_eq(&next().unwrap(), &flood));
    }
}
