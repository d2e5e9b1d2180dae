//! The CRI line format: `2026-01-02T03:04:05.000000000Z stdout F line`.
//!
//! In: a time, a stream, bytes. Out: one line of a log file, and back. Pure; allocates nothing.

use jiff::Timestamp;

/// Bytes of one guest line after which it's cut with a `P` tag; containerd's `max_container_log_line_size`.
pub(super) const MAX_CONTENT: usize = 16 * 1024;

/// Bytes before the content: 30 of time, a space, 6 of stream, a space, the tag, a space.
pub(super) const HEADER: usize = STAMP + 1 + 6 + 1 + 1 + 1;

/// Bytes of `2026-01-02T03:04:05.000000000Z`.
const STAMP: usize = 30;

/// Which standard stream a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// The word of the log file.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// The tag of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Tag {
    /// The guest's line ends here.
    Full,
    /// The guest's line goes on in the next one of its stream.
    Partial,
}

/// One parsed line of a log file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line<'a> {
    /// When it was written.
    pub time: Timestamp,
    /// The same as the file has it.
    pub stamp: &'a [u8],
    /// Where it was written.
    pub stream: Stream,
    /// Whether the guest's line ends here (`F`) or goes on (`P`).
    pub complete: bool,
    /// Content without its line feed.
    pub content: &'a [u8],
}

/// Parses one line, with or without its line feed; `None` when it isn't in the CRI format.
///
/// As the kubelet: only the first of the `:`-separated tags counts, so that later ones may come.
#[must_use]
pub fn parse_line(line: &[u8]) -> Option<Line<'_>> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let (stamp, rest) = split_at_space(line)?;
    let time = std::str::from_utf8(stamp).ok()?.parse().ok()?;
    let (stream, rest) = split_at_space(rest)?;
    let stream = match stream {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    let (tags, content) = split_at_space(rest)?;
    let complete = tags.split(|&b| b == b':').next() != Some(b"P");
    Some(Line { time, stamp, stream, complete, content })
}

fn split_at_space(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = memchr::memchr(b' ', bytes)?;
    Some((&bytes[..space], &bytes[space + 1..]))
}

/// Writes headers; keeps the last second's text, since most lines share it.
#[derive(Debug)]
pub(super) struct HeaderWriter {
    second: i64,
    stamp: [u8; STAMP],
}

impl HeaderWriter {
    pub(super) fn new() -> Self {
        Self { second: i64::MIN, stamp: *b"1970-01-01T00:00:00.000000000Z" }
    }

    /// Appends `time stream tag ` to `out`.
    pub(super) fn append(&mut self, out: &mut Vec<u8>, time: Timestamp, stream: Stream, tag: Tag) {
        let (second, mut nanosecond) = (time.as_second(), time.subsec_nanosecond());
        if second != self.second {
            self.set_second(time, second);
        }
        for digit in self.stamp[20..29].iter_mut().rev() {
            *digit = b'0' + u8::try_from(nanosecond.unsigned_abs() % 10).unwrap_or(0);
            nanosecond /= 10;
        }
        out.extend_from_slice(&self.stamp);
        out.push(b' ');
        out.extend_from_slice(stream.name().as_bytes());
        out.extend_from_slice(match tag {
            Tag::Full => b" F ",
            Tag::Partial => b" P ",
        });
    }

    fn set_second(&mut self, time: Timestamp, second: i64) {
        let utc = time.to_zoned(jiff::tz::TimeZone::UTC).datetime();
        let year = u32::from(utc.year().unsigned_abs());
        let fields = [
            (0, 4, year),
            (5, 2, u32::from(utc.month().unsigned_abs())),
            (8, 2, u32::from(utc.day().unsigned_abs())),
            (11, 2, u32::from(utc.hour().unsigned_abs())),
            (14, 2, u32::from(utc.minute().unsigned_abs())),
            (17, 2, u32::from(utc.second().unsigned_abs())),
        ];
        for (start, digits, mut value) in fields {
            for digit in self.stamp[start..start + digits].iter_mut().rev() {
                *digit = b'0' + u8::try_from(value % 10).unwrap_or(0);
                value /= 10;
            }
        }
        self.second = second;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(time: &str, stream: Stream, tag: Tag) -> String {
        let mut out = Vec::new();
        HeaderWriter::new().append(&mut out, time.parse().unwrap(), stream, tag);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_header_is_what_containerd_writes() {
        assert_eq!(
            header("2026-01-02T03:04:05.00000067Z", Stream::Stderr, Tag::Partial),
            "2026-01-02T03:04:05.000000670Z stderr P "
        );
        assert_eq!(header("2026-12-31T23:59:59Z", Stream::Stdout, Tag::Full).len(), HEADER);
    }

    #[test]
    fn lines_of_other_writers_parse_as_the_kubelet_parses_them() {
        let line = parse_line(b"2016-10-06T00:17:09.669794203Z stderr P:later a b\n").unwrap();
        assert_eq!((line.stream, line.complete, line.content), (Stream::Stderr, false, &b"a b"[..]));
        let offset = parse_line(b"2016-10-06T02:17:09.5+02:00 stdout F \n").unwrap();
        assert_eq!(offset.time.to_string(), "2016-10-06T00:17:09.5Z");
        assert_eq!(offset.content, b"");
        for bad in ["", "x", "2016-10-06T00:17:09Z stdin F x", "2016-10-06T00:17:09Z stdout F", "now stdout F x"] {
            assert_eq!(parse_line(bad.as_bytes()), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn every_line_written_is_read_back(
            times in proptest::collection::vec((0i64..4_000_000_000, 0i32..1_000_000_000), 1..5),
            content in "[^\n]{0,40}",
        ) {
            let mut headers = HeaderWriter::new();
            for (second, nanosecond) in times {
                let time = Timestamp::new(second, nanosecond).unwrap();
                let mut out = Vec::new();
                headers.append(&mut out, time, Stream::Stdout, Tag::Full);
                out.extend_from_slice(content.as_bytes());
                out.push(b'\n');
                let line = parse_line(&out).unwrap();
                prop_assert_eq!((line.time, line.complete, line.content), (time, true, content.as_bytes()));
            }
        }
    }
}
