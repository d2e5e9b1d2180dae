//! Writes one container's log.
//!
//! In: bytes as guests write them, in any cut. Out: CRI lines in the file when `write` returns, and word
//! to followers. Holds at most one unfinished line per stream; allocates nothing per line.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::pod::run::LogRotation;

use super::LogError;
use super::format::{HEADER, HeaderWriter, MAX_CONTENT, Stream, Tag, parse_line};
use super::rotate;
use super::store::Shared;

/// Bytes gathered before a write(2): a guest's largest single write gives few of them.
const BATCH: usize = 64 * 1024;

/// Bytes of buffer that stay allocated between writes.
const BATCH_KEPT: usize = 4 * 1024;

/// The log of one running container attempt. Shared by all its processes behind an `Arc`.
///
/// When dropped, unfinished lines are written and followers reach their end.
#[derive(Debug)]
pub struct LogWriter {
    inner: Mutex<Inner>,
    progress: watch::Sender<u64>,
    path: PathBuf,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Inner {
    file: File,
    path: PathBuf,
    rotation: LogRotation,
    /// Bytes in the file, all of them whole lines.
    written: u64,
    headers: HeaderWriter,
    /// Whole lines on their way to the file.
    batch: Vec<u8>,
    lines_in_batch: u64,
    /// The unfinished line of each stream, up to [`MAX_CONTENT`] bytes.
    unfinished: [Vec<u8>; 2],
    lost_lines: u64,
}

impl LogWriter {
    pub(super) fn open(
        shared: Arc<Shared>,
        path: &Path,
        rotation: LogRotation,
        progress: watch::Sender<u64>,
    ) -> Result<Self, LogError> {
        let io = |step| move |source| LogError::Io { step, path: path.to_owned(), source };
        rotate::remove_leftovers(path)?;
        let mut file = open_file(path).map_err(io("open"))?;
        let written = mend(&mut file).map_err(io("mend"))?;
        let inner = Inner {
            file,
            path: path.to_owned(),
            rotation,
            written,
            headers: HeaderWriter::new(),
            batch: Vec::new(),
            lines_in_batch: 0,
            unfinished: [Vec::new(), Vec::new()],
            lost_lines: 0,
        };
        Ok(Self { inner: Mutex::new(inner), progress, path: path.to_owned(), shared })
    }

    /// Appends what the guest wrote. Whole lines reach the file before this returns; an unfinished one
    /// waits for its end, for 16 KiB, or for [`Self::finish`]. Never waits for anything but write(2).
    ///
    /// # Errors
    /// The file system refused (disk full): these lines are lost, the file stays well formed, and later
    /// writes may succeed. The guest's own write should succeed, as it does behind containerd's pipe.
    pub fn write(&self, stream: Stream, bytes: &[u8]) -> Result<(), LogError> {
        let result = self.inner.lock().write(stream, bytes, self.shared.clock().now(), &self.shared);
        self.notify();
        result
    }

    /// Writes unfinished lines: the container has ended.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn finish(&self) -> Result<(), LogError> {
        let result = self.inner.lock().finish(self.shared.clock().now(), &self.shared);
        self.notify();
        result
    }

    /// Lines lost to a failing disk so far.
    #[must_use]
    pub fn lost_lines(&self) -> u64 {
        self.inner.lock().lost_lines
    }

    /// The current file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn notify(&self) {
        if self.progress.receiver_count() > 1 {
            self.progress.send_modify(|generation| *generation = generation.wrapping_add(1));
        }
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        if let Err(error) = self.finish() {
            tracing::warn!(log = %self.path.display(), err = %error, "Failed to write the end of a log");
        }
        self.shared.forget(&self.path);
    }
}

impl Inner {
    fn write(&mut self, stream: Stream, mut bytes: &[u8], now: Timestamp, shared: &Shared) -> Result<(), LogError> {
        let mut result = Ok(());
        while !bytes.is_empty() {
            let room = MAX_CONTENT - self.unfinished[stream as usize].len();
            let window = &bytes[..bytes.len().min(room + 1)];
            let rest = match memchr::memchr(b'\n', window) {
                Some(end) => {
                    self.take_line(stream, &bytes[..end], Tag::Full, now);
                    &bytes[end + 1..]
                }
                None if bytes.len() > room => {
                    self.take_line(stream, &bytes[..room], Tag::Partial, now);
                    &bytes[room..]
                }
                None => {
                    self.unfinished[stream as usize].extend_from_slice(bytes);
                    &[]
                }
            };
            bytes = rest;
            if self.batch.len() >= BATCH {
                result = result.and(self.flush(now, shared));
            }
        }
        result.and(self.flush(now, shared))
    }

    fn finish(&mut self, now: Timestamp, shared: &Shared) -> Result<(), LogError> {
        for stream in [Stream::Stdout, Stream::Stderr] {
            if !self.unfinished[stream as usize].is_empty() {
                // As containerd at end of file: without its newline the rest is a part of a line.
                self.take_line(stream, &[], Tag::Partial, now);
            }
        }
        self.flush(now, shared)
    }

    /// Moves the unfinished part and `end` as one line to the batch.
    fn take_line(&mut self, stream: Stream, end: &[u8], tag: Tag, now: Timestamp) {
        self.headers.append(&mut self.batch, now, stream, tag);
        let unfinished = &mut self.unfinished[stream as usize];
        self.batch.extend_from_slice(unfinished);
        self.batch.extend_from_slice(end);
        self.batch.push(b'\n');
        self.lines_in_batch += 1;
        unfinished.clear();
    }

    fn flush(&mut self, now: Timestamp, shared: &Shared) -> Result<(), LogError> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let limit = self.rotation.max_size_bytes;
        let full = limit > 0 && self.written > 0 && self.written + self.batch.len() as u64 > limit;
        let result = if full { self.rotate(now, shared) } else { Ok(()) };
        // A log that cannot be rotated is still written: too much on disk is better than nothing.
        let result = result.and(self.write_batch());
        self.batch.clear();
        // A thousand quiet containers must not keep a thousand big buffers.
        self.batch.shrink_to(BATCH_KEPT);
        self.lines_in_batch = 0;
        result
    }

    fn write_batch(&mut self) -> Result<(), LogError> {
        match self.file.write_all(&self.batch) {
            Ok(()) => {
                self.written += self.batch.len() as u64;
                Ok(())
            }
            Err(source) => {
                self.lost_lines += self.lines_in_batch;
                // Take back the part that fitted, so that the next line doesn't continue half a one.
                if let Err(error) = self.file.set_len(self.written) {
                    tracing::debug!(log = %self.path.display(), err = %error, "Failed to take back half a line");
                }
                Err(LogError::Io { step: "write", path: self.path.clone(), source })
            }
        }
    }

    fn rotate(&mut self, now: Timestamp, shared: &Shared) -> Result<(), LogError> {
        let io = |step| {
            let path = self.path.clone();
            move |source| LogError::Io { step, path, source }
        };
        let files = rotate::list(&self.path).map_err(io("list rotated files"))?;
        let rotated = rotate::rotated_path(&self.path, now, files.last());
        // The current file and the one about to be rotated count among the files kept, as in the kubelet.
        let keep = (self.rotation.max_files.max(2) - 2) as usize;
        rotate::remove_excess(files, keep).map_err(io("remove old rotated files"))?;
        fs::rename(&self.path, &rotated).map_err(io("rotate"))?;
        match open_file(&self.path) {
            Ok(file) => self.file = file,
            Err(source) => {
                // Back again: the open file goes on under its old name.
                fs::rename(&rotated, &self.path).map_err(io("take back rotation"))?;
                return Err(io("make a new file")(source));
            }
        }
        self.written = 0;
        shared.compressor().request(&self.path);
        Ok(())
    }
}

fn open_file(path: &Path) -> io::Result<File> {
    File::options().read(true).append(true).create(true).mode(rotate::LOG_MODE).open(path)
}

/// Completes or takes back a last line that a crash cut; returns the file's length.
fn mend(file: &mut File) -> io::Result<u64> {
    let length = file.seek(SeekFrom::End(0))?;
    // The longest line there can be.
    let window = length.min((HEADER + MAX_CONTENT + 1) as u64);
    let mut end = vec![0; usize::try_from(window).unwrap_or(0)];
    file.seek(SeekFrom::Start(length - window))?;
    file.read_exact(&mut end)?;
    let line_start = memchr::memrchr(b'\n', &end).map_or(0, |feed| feed + 1);
    let last = &end[line_start..];
    if last.is_empty() {
        return Ok(length);
    }
    if parse_line(last).is_some() {
        file.write_all(b"\n")?;
        return Ok(length + 1);
    }
    let kept = length - last.len() as u64;
    file.set_len(kept)?;
    Ok(kept)
}
