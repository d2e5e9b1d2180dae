//! Finds where the last N lines of a log begin.
//!
//! In: a log's files, oldest first. Out: the same files without those that lie before, the first one at its place.
//! Plain files are searched from their end; compressed ones must be read through.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use flate2::read::MultiGzDecoder;

use super::StreamSelection;
use super::cursor::{Source, seek_plain};
use super::format::parse_line;

/// Bytes looked at at once.
const BLOCK: usize = 64 * 1024;

/// Drops the files before the last `lines` lines, and seeks in the first that is left.
///
/// Lines are lines of the file, as the kubelet counts: a cut line counts once for each part. Returns how many
/// lines of the first file are to be left out (when it could not be sought in).
pub(super) fn seek(sources: &mut VecDeque<Source>, lines: u64, streams: StreamSelection) -> io::Result<u64> {
    let mut wanted = lines;
    for index in (0..sources.len()).rev() {
        let found = match &mut sources[index] {
            Source::Plain { file, remaining } if streams == StreamSelection::All => {
                let end = file.metadata()?.len().min(*remaining);
                match search_backwards(file, end, wanted)? {
                    Search::Begins(offset) => {
                        seek_plain(file, remaining, offset)?;
                        Some(0)
                    }
                    Search::TooFew(found) => {
                        wanted -= found;
                        None
                    }
                }
            }
            Source::Plain { file, remaining } => {
                let end = file.metadata()?.len().min(*remaining);
                let found = count_lines(Read::by_ref(file).take(end), streams)?;
                file.seek(SeekFrom::Start(0))?;
                enough(&mut wanted, found)
            }
            Source::Gzip(decoder) => {
                let found = count_lines(&mut **decoder, streams)?;
                let mut file = decoder.get_ref().try_clone()?;
                file.seek(SeekFrom::Start(0))?;
                **decoder = MultiGzDecoder::new(file);
                enough(&mut wanted, found)
            }
        };
        if let Some(skip) = found {
            sources.drain(..index);
            return Ok(skip);
        }
    }
    Ok(0)
}

/// With `found` lines in a file and `wanted` still to show: how many of its first to leave out.
fn enough(wanted: &mut u64, found: u64) -> Option<u64> {
    if found >= *wanted {
        return Some(found - *wanted);
    }
    *wanted -= found;
    None
}

enum Search {
    /// The wanted lines begin here.
    Begins(u64),
    /// The whole file has only so many.
    TooFew(u64),
}

fn search_backwards(file: &File, end: u64, wanted: u64) -> io::Result<Search> {
    if wanted == 0 {
        return Ok(Search::Begins(end));
    }
    let mut block = vec![0; BLOCK];
    let mut feeds: u64 = 0;
    let mut position = end;
    // The last line's own feed ends it; without one the line still counts.
    let mut lines_open = u64::from(end > 0 && !ends_with_feed(file, end)?);
    while position > 0 {
        let size = position.min(BLOCK as u64);
        position -= size;
        let block = &mut block[..usize::try_from(size).unwrap_or(BLOCK)];
        file.read_exact_at(block, position)?;
        for feed in memchr::memrchr_iter(b'\n', block) {
            if feeds + lines_open == wanted {
                return Ok(Search::Begins(position + feed as u64 + 1));
            }
            feeds += 1;
        }
    }
    lines_open += feeds;
    Ok(if lines_open >= wanted { Search::Begins(0) } else { Search::TooFew(lines_open) })
}

fn ends_with_feed(file: &File, end: u64) -> io::Result<bool> {
    let mut last = [0];
    file.read_exact_at(&mut last, end - 1)?;
    Ok(last == *b"\n")
}

fn count_lines(mut input: impl Read, streams: StreamSelection) -> io::Result<u64> {
    let mut buffer: Vec<u8> = Vec::new();
    let mut count = 0;
    loop {
        let held = buffer.len();
        buffer.resize(held + BLOCK, 0);
        let read = input.read(&mut buffer[held..])?;
        buffer.truncate(held + read);
        let whole = match memchr::memrchr(b'\n', &buffer) {
            Some(feed) if read > 0 => feed + 1,
            // The end, or a line so long that it's none of ours.
            _ if read == 0 || buffer.len() > 16 * BLOCK => buffer.len(),
            _ => continue,
        };
        let lines = buffer[..whole].split_inclusive(|&byte| byte == b'\n');
        count += lines.filter(|line| parse_line(line).is_some_and(|line| streams.includes(line.stream))).count() as u64;
        buffer.drain(..whole);
        if read == 0 {
            return Ok(count);
        }
    }
}
