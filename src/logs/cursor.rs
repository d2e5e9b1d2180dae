//! Walks the files of one log, oldest to newest, and turns lines into output. Synchronous.
//!
//! In: a log's path and what to show. Out: batches of output, and word of having reached the present end.
//! Every read is bounded; the caller runs each [`Cursor::step`] on the blocking pool.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use flate2::read::MultiGzDecoder;

use super::format::{Line, Stream, parse_line};
use super::rotate::{self, RotatedFile};
use super::{LogChunk, LogError, LogOptions, StreamSelection, tail};

/// Bytes of output per step, and of one read.
const STEP: usize = 64 * 1024;

/// A longer line is none of ours; it's taken in pieces rather than held.
const LONGEST_LINE: usize = 1024 * 1024;

/// Tries to open a log whose current file is just being replaced.
const OPEN_TRIES: u32 = 5;

/// What one step gave.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) chunks: Vec<LogChunk>,
    pub(super) at: Position,
}

/// Where a cursor stands after a step.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Position {
    /// More can be read at once.
    #[default]
    Middle,
    /// All that is there now has been read.
    PresentEnd,
    /// Nothing more will come.
    Done,
}

/// Whether the log can still grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Growth {
    /// Its writer is open.
    Open,
    /// It was complete before this step began.
    Ended,
}

/// One file being read.
#[derive(Debug)]
pub(super) enum Source {
    /// The current file, or a rotated one that isn't compressed yet; with the bytes to read at most.
    Plain { file: File, remaining: u64 },
    /// A compressed one.
    Gzip(Box<MultiGzDecoder<File>>),
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain { file, remaining } => {
                let most = usize::try_from(*remaining).unwrap_or(usize::MAX).min(buffer.len());
                let count = file.read(&mut buffer[..most])?;
                *remaining -= count as u64;
                Ok(count)
            }
            Self::Gzip(decoder) => decoder.read(buffer),
        }
    }
}

/// A place in a log.
#[derive(Debug)]
pub(super) struct Cursor {
    path: PathBuf,
    options: LogOptions,
    source: Source,
    /// Files after `source`, oldest first.
    later: VecDeque<Source>,
    /// Bytes read and not yet taken: a line's beginning, at most.
    buffer: BytesMut,
    /// The current file was replaced; `source` is read to its last byte once more before going on.
    rotation_seen: bool,
    /// Lines of the selected streams still to leave out, for `tail_lines`.
    skip_lines: u64,
    bytes_left: u64,
    /// By stream: whether the next content begins a line.
    at_line_start: [bool; 2],
}

impl Cursor {
    /// Opens all files of the log and finds where to begin. May read much (tail of compressed files).
    pub(super) fn open(path: PathBuf, options: LogOptions) -> Result<Self, LogError> {
        let (current, mut rotated) = open_parts(&path)?;
        if let Some(since) = options.since {
            // A file rotated before that second holds nothing newer.
            let second = since.strftime("%Y%m%d-%H%M%S").to_string();
            rotated.retain(|file| file.stamp.as_str() >= second.as_str());
        }
        let mut sources: VecDeque<Source> = rotated
            .iter()
            .map(|file| open_rotated(&path, file))
            .filter_map(Result::transpose)
            .collect::<Result<_, _>>()?;
        sources.push_back(Source::Plain { remaining: bytes_to_read(&path, &current, &options)?, file: current });
        let skip_lines = match options.tail_lines {
            Some(lines) => {
                tail::seek(&mut sources, lines, options.streams).map_err(io_error(&path, "find the tail of"))?
            }
            None => 0,
        };
        let source = sources.pop_front().ok_or_else(|| LogError::NotFound { path: path.clone() })?;
        Ok(Self {
            path,
            source,
            later: sources,
            buffer: BytesMut::new(),
            rotation_seen: false,
            skip_lines,
            bytes_left: options.limit_bytes.unwrap_or(u64::MAX),
            at_line_start: [true; 2],
            options,
        })
    }

    /// Reads on: up to 64 KiB of output, or to the present end.
    pub(super) fn step(&mut self, growth: Growth) -> Result<Batch, LogError> {
        let mut output = Output::default();
        while output.bytes < STEP {
            if self.bytes_left == 0 {
                return Ok(output.finish(Position::Done));
            }
            if let Some(line) = self.take_line() {
                self.show(&line, &mut output);
                continue;
            }
            if self.fill().map_err(io_error(&self.path, "read"))? > 0 {
                continue;
            }
            match self.advance(growth)? {
                Position::Middle => {}
                Position::PresentEnd => return Ok(output.finish(Position::PresentEnd)),
                Position::Done => {
                    let rest = self.buffer.split().freeze();
                    self.show(&rest, &mut output);
                    return Ok(output.finish(Position::Done));
                }
            }
        }
        Ok(output.finish(Position::Middle))
    }

    /// The next whole line of the buffer.
    fn take_line(&mut self) -> Option<Bytes> {
        match memchr::memchr(b'\n', &self.buffer) {
            Some(feed) => Some(self.buffer.split_to(feed + 1).freeze()),
            None if self.buffer.len() >= LONGEST_LINE => Some(self.buffer.split().freeze()),
            None => None,
        }
    }

    fn fill(&mut self) -> io::Result<usize> {
        let held = self.buffer.len();
        self.buffer.resize(held + STEP, 0);
        let result = self.source.read(&mut self.buffer[held..]);
        self.buffer.truncate(held + result.as_ref().copied().unwrap_or(0));
        result
    }

    /// At the end of a file: what next.
    fn advance(&mut self, growth: Growth) -> Result<Position, LogError> {
        if let Some(next) = self.later.pop_front() {
            self.source = next;
            self.rotation_seen = false;
            return Ok(Position::Middle);
        }
        if !self.options.follow {
            return Ok(Position::Done);
        }
        if self.rotation_seen {
            self.later = self.files_after_source()?;
            self.rotation_seen = false;
            return Ok(if self.later.is_empty() { Position::PresentEnd } else { Position::Middle });
        }
        if self.is_rotated() {
            self.rotation_seen = true;
            return Ok(Position::Middle);
        }
        Ok(match growth {
            Growth::Open => Position::PresentEnd,
            Growth::Ended => Position::Done,
        })
    }

    fn is_rotated(&self) -> bool {
        let Source::Plain { file, .. } = &self.source else { return false };
        // Absent for the moment between rename and create: looked at again with the next write.
        let Ok(now) = fs::metadata(&self.path) else { return false };
        file.metadata().is_ok_and(|held| held.ino() != now.ino() || held.dev() != now.dev())
    }

    /// Everything written after the file that was current until now. It may have been rotated many times since.
    fn files_after_source(&self) -> Result<VecDeque<Source>, LogError> {
        let Source::Plain { file, .. } = &self.source else { return Ok(VecDeque::new()) };
        let held = file.metadata().map_err(io_error(&self.path, "look at"))?;
        let (current, rotated) = open_parts(&self.path)?;
        let is_held = |rotated: &RotatedFile| {
            fs::metadata(&rotated.path).is_ok_and(|found| {
                if !rotated.compressed {
                    return found.ino() == held.ino();
                }
                // Compression keeps the time of the last write, and nothing is written after rotation.
                same_time(found.modified(), held.modified())
                    && rotate::compressed_inode(&rotated.path) == Some(held.ino())
            })
        };
        // Not found means it was removed as too old, so all that are left are newer.
        let first_later = rotated.iter().rposition(is_held).map_or(0, |index| index + 1);
        let mut files: VecDeque<Source> = rotated[first_later..]
            .iter()
            .map(|file| open_rotated(&self.path, file))
            .filter_map(Result::transpose)
            .collect::<Result<_, _>>()?;
        let is_same = current.metadata().is_ok_and(|now| now.ino() == held.ino());
        if !is_same {
            files.push_back(Source::Plain { file: current, remaining: u64::MAX });
        }
        Ok(files)
    }

    fn show(&mut self, raw: &[u8], output: &mut Output) {
        if raw.is_empty() {
            return;
        }
        let Some(line) = parse_line(raw) else {
            tracing::debug!(log = %self.path.display(), "Skipped a line that is not in the CRI format");
            return;
        };
        if !self.options.streams.includes(line.stream) {
            return;
        }
        if self.skip_lines > 0 {
            self.skip_lines -= 1;
            return;
        }
        if self.options.since.is_some_and(|since| line.time < since) {
            return;
        }
        self.append(&line, output);
    }

    fn append(&mut self, line: &Line<'_>, output: &mut Output) {
        let at_line_start = &mut self.at_line_start[line.stream as usize];
        let prefix: [&[u8]; 2] =
            if self.options.timestamps && *at_line_start { [line.stamp, b" "] } else { [b"", b""] };
        *at_line_start = line.complete;
        let feed: &[u8] = if line.complete { b"\n" } else { b"" };
        for piece in [prefix[0], prefix[1], line.content, feed] {
            let count = piece.len().min(usize::try_from(self.bytes_left).unwrap_or(usize::MAX));
            output.stream(line.stream).extend_from_slice(&piece[..count]);
            self.bytes_left -= count as u64;
            output.bytes += count;
        }
    }
}

impl StreamSelection {
    pub(super) fn includes(self, stream: Stream) -> bool {
        match self {
            Self::All => true,
            Self::Stdout => stream == Stream::Stdout,
            Self::Stderr => stream == Stream::Stderr,
        }
    }
}

/// Output being gathered: neighbouring lines of one stream make one chunk.
#[derive(Default)]
struct Output {
    chunks: Vec<(Stream, BytesMut)>,
    bytes: usize,
}

impl Output {
    fn stream(&mut self, stream: Stream) -> &mut BytesMut {
        if self.chunks.last().is_none_or(|(last, _)| *last != stream) {
            self.chunks.push((stream, BytesMut::new()));
        }
        let last = self.chunks.len() - 1;
        &mut self.chunks[last].1
    }

    fn finish(self, at: Position) -> Batch {
        let chunks = self.chunks.into_iter().map(|(stream, bytes)| LogChunk { stream, bytes: bytes.freeze() });
        Batch { chunks: chunks.filter(|chunk| !chunk.bytes.is_empty()).collect(), at }
    }
}

fn io_error(path: &Path, step: &'static str) -> impl Fn(io::Error) -> LogError {
    let path = path.to_owned();
    move |source| LogError::Io { step, path: path.clone(), source }
}

fn same_time(a: io::Result<SystemTime>, b: io::Result<SystemTime>) -> bool {
    matches!((a, b), (Ok(a), Ok(b)) if a == b)
}

/// Who does not follow reads what was there when it came.
fn bytes_to_read(path: &Path, current: &File, options: &LogOptions) -> Result<u64, LogError> {
    if options.follow {
        return Ok(u64::MAX);
    }
    current.metadata().map(|metadata| metadata.len()).map_err(io_error(path, "look at"))
}

/// The current file, and the rotated ones that are older than it.
fn open_parts(path: &Path) -> Result<(File, Vec<RotatedFile>), LogError> {
    for _ in 0..OPEN_TRIES {
        // The current file first: if it is rotated before the listing, it is found there by its inode.
        match File::open(path) {
            Ok(current) => {
                let inode = current.metadata().map_err(io_error(path, "look at"))?.ino();
                let mut rotated = rotate::list(path).map_err(io_error(path, "list rotated files of"))?;
                let is_current = |file: &RotatedFile| fs::metadata(&file.path).is_ok_and(|m| m.ino() == inode);
                if let Some(index) = rotated.iter().position(is_current) {
                    rotated.truncate(index);
                }
                return Ok((current, rotated));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let being_replaced = rotate::list(path).is_ok_and(|files| !files.is_empty());
                if !being_replaced {
                    break;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(error) => return Err(io_error(path, "open")(error)),
        }
    }
    Err(LogError::NotFound { path: path.to_owned() })
}

/// Opens a rotated file; `None` when it was removed meanwhile.
fn open_rotated(log: &Path, file: &RotatedFile) -> Result<Option<Source>, LogError> {
    let mut compressed_path = file.path.clone().into_os_string();
    compressed_path.push(".gz");
    // It may be compressed between listing and opening.
    let candidates = [(file.path.clone(), file.compressed), (PathBuf::from(compressed_path), true)];
    for (path, compressed) in candidates {
        match File::open(&path) {
            Ok(file) if compressed => return Ok(Some(Source::Gzip(Box::new(MultiGzDecoder::new(file))))),
            Ok(file) => return Ok(Some(Source::Plain { file, remaining: u64::MAX })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io_error(log, "open a rotated file of")(error)),
        }
    }
    Ok(None)
}

/// Puts a plain file's position at `offset`, whose distance from the end of what is to be read stays right.
pub(super) fn seek_plain(file: &mut File, remaining: &mut u64, offset: u64) -> io::Result<()> {
    file.seek(SeekFrom::Start(offset))?;
    *remaining = remaining.saturating_sub(offset);
    Ok(())
}
