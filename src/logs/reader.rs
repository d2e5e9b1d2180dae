//! Reads one container's log as `kubectl logs` asks: follow, previous, tail, since, timestamps, limit, stream.
//!
//! In: a log and options. Out: chunks, pulled by their consumer, so nothing piles up. File work happens on the
//! blocking pool, 64 KiB a time; followers wait for word from the writer, not for the disk.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::cursor::{Batch, Cursor, Growth, Position};
use super::{LogError, Stream};

/// A follower looks again after this time even without word, as the kubelet's does.
const FORCED_CHECK: Duration = Duration::from_secs(1);

/// What to show, in the words of `v1.PodLogOptions`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// Go on when the end is reached, until the container ends.
    pub follow: bool,
    /// Only the last lines.
    pub tail_lines: Option<u64>,
    /// Only lines written at this time or later (`sinceSeconds` is the caller's subtraction).
    pub since: Option<Timestamp>,
    /// Begin every line with its time.
    pub timestamps: bool,
    /// Stop after this many bytes, in the middle of a line if need be.
    pub limit_bytes: Option<u64>,
    /// Which streams.
    pub streams: StreamSelection,
}

/// `stream` of `v1.PodLogOptions`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum StreamSelection {
    /// Both, in the order written.
    #[default]
    All,
    /// Standard output only.
    Stdout,
    /// Standard error only.
    Stderr,
}

/// A piece of output: lines of one stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogChunk {
    /// The stream the bytes belong to.
    pub stream: Stream,
    /// The bytes with their line feeds.
    pub bytes: Bytes,
}

/// A log being read.
#[derive(Debug)]
pub struct LogReader {
    state: State,
    /// What the last step gave: at most 64 KiB and a line.
    ready: VecDeque<LogChunk>,
    /// Word of the writer; `None` when there is none (any more).
    writer: Option<watch::Receiver<u64>>,
}

#[derive(Debug)]
enum State {
    /// Between steps.
    Idle { cursor: Box<Cursor>, at: Position },
    /// A step runs on the blocking pool and brings the cursor back.
    Reading(JoinHandle<(Box<Cursor>, Result<Batch, LogError>)>),
    /// Nothing more to come.
    Finished,
}

impl LogReader {
    pub(super) async fn open(
        path: PathBuf,
        options: LogOptions,
        writer: Option<watch::Receiver<u64>>,
    ) -> Result<Self, LogError> {
        let shutting_down = LogError::NotFound { path: path.clone() };
        let cursor = on_blocking_pool(tokio::task::spawn_blocking(|| Cursor::open(path, options))).await;
        let cursor = Box::new(cursor.ok_or(shutting_down)??);
        Ok(Self { state: State::Idle { cursor, at: Position::Middle }, ready: VecDeque::new(), writer })
    }

    /// The next piece, or `None` at the end. Cancel safe: a piece is returned or still to come.
    ///
    /// # Errors
    /// The file system refused; the reader is at its end then.
    pub async fn next(&mut self) -> Result<Option<LogChunk>, LogError> {
        loop {
            if let Some(chunk) = self.ready.pop_front() {
                return Ok(Some(chunk));
            }
            if matches!(self.state, State::Idle { at: Position::PresentEnd, .. }) {
                self.wait_for_more().await;
            }
            self.state = match std::mem::replace(&mut self.state, State::Finished) {
                State::Idle { cursor, .. } => self.start_step(cursor),
                other => other,
            };
            // The handle stays in `self` while it's awaited: a dropped future loses no output.
            let State::Reading(step) = &mut self.state else { return Ok(None) };
            let finished = on_blocking_pool(step).await;
            self.state = State::Finished;
            let Some((cursor, batch)) = finished else { return Ok(None) };
            let batch = batch?;
            self.ready.extend(batch.chunks);
            if batch.at != Position::Done {
                self.state = State::Idle { cursor, at: batch.at };
            }
        }
    }

    /// As a stream of bytes for an HTTP body, both streams merged.
    pub fn into_stream(self) -> impl futures::Stream<Item = Result<Bytes, LogError>> + Send {
        futures::stream::try_unfold(self, |mut reader| async move {
            Ok(reader.next().await?.map(|chunk| (chunk.bytes, reader)))
        })
    }

    fn start_step(&mut self, mut cursor: Box<Cursor>) -> State {
        let growth = match &mut self.writer {
            Some(writer) => {
                // Seen before the file is read: a write during the step wakes us afterwards.
                writer.borrow_and_update();
                Growth::Open
            }
            None => Growth::Ended,
        };
        State::Reading(tokio::task::spawn_blocking(move || {
            let batch = cursor.step(growth);
            (cursor, batch)
        }))
    }

    /// Waits until the log may have grown. Cancel safe: `changed` is.
    async fn wait_for_more(&mut self) {
        let Some(writer) = &mut self.writer else { return };
        if let Ok(Err(_closed)) = tokio::time::timeout(FORCED_CHECK, writer.changed()).await {
            self.writer = None;
        }
    }
}

/// The result of blocking work; `None` when the runtime is shutting down. A panic goes on in the caller.
async fn on_blocking_pool<T>(work: impl Future<Output = Result<T, tokio::task::JoinError>>) -> Option<T> {
    match work.await {
        Ok(value) => Some(value),
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_cancelled) => None,
    }
}
