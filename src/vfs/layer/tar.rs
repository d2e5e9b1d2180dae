//! Reads a tar: ustar, GNU long names, pax headers. Headers only; the bytes of files stay where they are.
//!
//! In: hostile bytes by positioned reads. Out: one [`Member`] at a time, or [`LayerError`]. Memory is bounded by
//! [`MAX_EXTENSION`] whatever the tar says; time by its size, as data is skipped, not read.
//! A tar crate would have kept a long name of any size in memory, and knows no offsets' bounds.

use std::borrow::Cow;
use std::os::unix::fs::FileExt;

use super::LayerError;

const BLOCK: u64 = 512;
/// Bytes of a long name or of one pax header: far above any path, far below harm.
const MAX_EXTENSION: u64 = 1 << 20;
/// Headers are read this far ahead; small files make neighbours.
const WINDOW: usize = 64 * 1024;

/// Where the bytes are.
pub(crate) struct Source<'a> {
    file: &'a std::fs::File,
    len: u64,
    window: Vec<u8>,
    window_at: u64,
}

/// One member of the archive, as its headers say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) path: String,
    pub(crate) link: String,
    pub(crate) typeflag: u8,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: (i64, u32),
    pub(crate) rdev: (u32, u32),
    /// Where its bytes begin and how many there are.
    pub(crate) offset: u64,
    pub(crate) size: u64,
}

/// What pax and GNU headers said about the next member.
#[derive(Debug, Default, Clone)]
struct Overrides {
    path: Option<String>,
    link: Option<String>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<(i64, u32)>,
    sparse: bool,
}

/// Walks the members of one tar.
pub(crate) struct Reader<'a> {
    source: Source<'a>,
    at: u64,
}

impl<'a> Source<'a> {
    fn new(file: &'a std::fs::File) -> Result<Self, LayerError> {
        let len = file.metadata().map_err(read_error)?.len();
        Ok(Self { file, len, window: Vec::new(), window_at: 0 })
    }

    /// `len` bytes at `at`, from the window when it has them.
    fn bytes(&mut self, at: u64, len: usize) -> Result<Cow<'_, [u8]>, LayerError> {
        if at.checked_add(len as u64).is_none_or(|end| end > self.len) {
            return Err(LayerError::BadTar { offset: at, what: "cut off" });
        }
        if len > WINDOW {
            let mut bytes = vec![0; len];
            self.file.read_exact_at(&mut bytes, at).map_err(read_error)?;
            return Ok(Cow::Owned(bytes));
        }
        let inside = at >= self.window_at && at + len as u64 <= self.window_at + self.window.len() as u64;
        if !inside {
            let want = WINDOW.min((self.len - at) as usize);
            self.window.resize(want, 0);
            self.window_at = at;
            self.file.read_exact_at(&mut self.window, at).map_err(read_error)?;
        }
        let start = (at - self.window_at) as usize;
        Ok(Cow::Borrowed(&self.window[start..start + len]))
    }
}

fn read_error(source: std::io::Error) -> LayerError {
    LayerError::Read { path: "tar".into(), source }
}

impl<'a> Reader<'a> {
    pub(crate) fn new(file: &'a std::fs::File) -> Result<Self, LayerError> {
        Ok(Self { source: Source::new(file)?, at: 0 })
    }

    /// The next member; `None` at the end marker or at the exact end of the file.
    pub(crate) fn next(&mut self) -> Result<Option<Member>, LayerError> {
        let mut overrides = Overrides::default();
        loop {
            if self.at == self.source.len {
                return Ok(None);
            }
            let at = self.at;
            let bad = |what| LayerError::BadTar { offset: at, what };
            let mut header = [0u8; BLOCK as usize];
            header.copy_from_slice(&self.source.bytes(at, BLOCK as usize)?);
            if header.iter().all(|&b| b == 0) {
                return Ok(None);
            }
            if !checksum_holds(&header) {
                return Err(bad("bad header checksum"));
            }
            let size = number(&header[124..136]).ok_or_else(|| bad("bad size"))?;
            let data = at + BLOCK;
            let typeflag = header[156];
            if matches!(typeflag, b'L' | b'K' | b'x' | b'g') {
                let end = self.end_of(data, size).ok_or_else(|| bad("cut off"))?;
                if size > MAX_EXTENSION {
                    return Err(bad("an extension header is too long"));
                }
                let body = self.source.bytes(data, size as usize)?;
                match typeflag {
                    b'L' => overrides.path = Some(text(&body)),
                    b'K' => overrides.link = Some(text(&body)),
                    b'x' => pax(&body, &mut overrides).ok_or_else(|| bad("bad pax header"))?,
                    // Global headers carry comments in practice (git archive); nothing of them is ours.
                    _ => {}
                }
                self.at = end;
                continue;
            }
            let mut member = member(&header, data, size).ok_or_else(|| bad("bad number in header"))?;
            if typeflag == b'S' || overrides.sparse {
                return Err(bad("sparse members are not supported in image layers"));
            }
            apply(&mut member, overrides);
            // Only regular files have bytes; some writers leave a size on links and directories.
            let stored = if has_data(typeflag) { member.size } else { 0 };
            member.size = stored;
            self.at = self.end_of(data, stored).ok_or_else(|| bad("cut off"))?;
            return Ok(Some(member));
        }
    }

    /// The padded end of `size` bytes at `data`, when the bytes are there; the last padding may be missing.
    fn end_of(&self, data: u64, size: u64) -> Option<u64> {
        let end = data.checked_add(size).filter(|&end| end <= self.source.len)?;
        Some(end.checked_next_multiple_of(BLOCK)?.min(self.source.len))
    }
}

/// Types that Go's and GNU's readers take for a regular file.
pub(crate) fn has_data(typeflag: u8) -> bool {
    !matches!(typeflag, b'1'..=b'6')
}

fn member(header: &[u8; 512], offset: u64, size: u64) -> Option<Member> {
    let name = text(&header[0..100]);
    let is_ustar = &header[257..263] == b"ustar\0";
    let prefix = if is_ustar { text(&header[345..500]) } else { String::new() };
    let path = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
    Some(Member {
        path,
        link: text(&header[157..257]),
        typeflag: header[156],
        mode: number(&header[100..108])? as u32 & 0o7777,
        uid: number(&header[108..116])? as u32,
        gid: number(&header[116..124])? as u32,
        mtime: (number(&header[136..148])? as i64, 0),
        rdev: (number(&header[329..337]).unwrap_or(0) as u32, number(&header[337..345]).unwrap_or(0) as u32),
        offset,
        size,
    })
}

fn apply(member: &mut Member, overrides: Overrides) {
    if let Some(path) = overrides.path {
        member.path = path;
    }
    if let Some(link) = overrides.link {
        member.link = link;
    }
    member.size = overrides.size.unwrap_or(member.size);
    member.uid = overrides.uid.unwrap_or(member.uid);
    member.gid = overrides.gid.unwrap_or(member.gid);
    member.mtime = overrides.mtime.unwrap_or(member.mtime);
}

/// Up to the first NUL; bytes that are no UTF-8 become U+FFFD, as WASI names are text.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// Octal with blanks around it, or GNU's big-endian form with the top bit set.
fn number(field: &[u8]) -> Option<u64> {
    if field.first().is_some_and(|&b| b & 0x80 != 0) {
        if field[0] == 0xff {
            // Negative (a time before 1970): its two's complement.
            return Some(field.iter().fold(u64::MAX, |value, &b| value << 8 | u64::from(b)));
        }
        let (head, tail) = field.split_at(field.len().saturating_sub(8));
        let overflows = head.iter().enumerate().any(|(i, &b)| if i == 0 { b & 0x7f != 0 } else { b != 0 });
        let first = if head.is_empty() { tail[0] & 0x7f } else { tail[0] };
        let value = tail[1..].iter().fold(u64::from(first), |value, &b| value << 8 | u64::from(b));
        return (!overflows).then_some(value);
    }
    let digits = field.iter().copied().skip_while(|&b| b == b' ').take_while(|&b| b != 0 && b != b' ');
    let mut value = 0u64;
    for digit in digits {
        let digit = digit.checked_sub(b'0').filter(|&d| d < 8)?;
        value = value.checked_mul(8)?.checked_add(u64::from(digit))?;
    }
    Some(value)
}

fn checksum_holds(header: &[u8; 512]) -> bool {
    let Some(expected) = number(&header[148..156]) else { return false };
    let byte = |(i, &b): (usize, &u8)| if (148..156).contains(&i) { b' ' } else { b };
    let unsigned: u64 = header.iter().enumerate().map(|pair| u64::from(byte(pair))).sum();
    let signed: i64 = header.iter().enumerate().map(|pair| i64::from(byte(pair) as i8)).sum();
    expected == unsigned || i64::try_from(expected) == Ok(signed)
}

/// `LEN KEY=VALUE\n` records.
fn pax(mut body: &[u8], into: &mut Overrides) -> Option<()> {
    while !body.is_empty() {
        let space = body.iter().position(|&b| b == b' ')?;
        let len: usize = std::str::from_utf8(&body[..space]).ok()?.parse().ok()?;
        let record = body.get(space + 1..len)?;
        let record = record.strip_suffix(b"\n")?;
        let equals = record.iter().position(|&b| b == b'=')?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        let decimal = || std::str::from_utf8(value).ok()?.parse::<u64>().ok();
        match key {
            b"path" => into.path = Some(text(value)),
            b"linkpath" => into.link = Some(text(value)),
            b"size" => into.size = Some(decimal()?),
            b"uid" => into.uid = Some(u32::try_from(decimal()?).ok()?),
            b"gid" => into.gid = Some(u32::try_from(decimal()?).ok()?),
            b"mtime" => into.mtime = Some(pax_time(std::str::from_utf8(value).ok()?)?),
            _ if key.starts_with(b"GNU.sparse.") => into.sparse = true,
            _ => {}
        }
        body = &body[len..];
    }
    Some(())
}

fn pax_time(value: &str) -> Option<(i64, u32)> {
    let (whole, fraction) = value.split_once('.').unwrap_or((value, ""));
    let seconds: i64 = whole.parse().ok()?;
    let mut nanos = 0u32;
    for (i, digit) in fraction.bytes().take(9).enumerate() {
        nanos += u32::from(digit.checked_sub(b'0').filter(|&d| d < 10)?) * 10u32.pow(8 - i as u32);
    }
    if whole.starts_with('-') && nanos > 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos));
    }
    Some((seconds, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_binary_and_never_wrap() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0"), Some(0));
        assert_eq!(number(b"9"), None);
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]), Some(256));
        assert_eq!(number(&[0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0]), None);
        assert_eq!(number(&[0xff; 12]).map(|n| n as i64), Some(-1));
    }

    #[test]
    fn pax_records_are_taken_whole_or_refused() {
        let mut into = Overrides::default();
        assert!(pax(b"12 path=a/b\n20 mtime=1.000000005\n", &mut into).is_none(), "a wrong length");
        let mut into = Overrides::default();
        pax(b"12 path=a/b\n22 mtime=-1.500000000\n", &mut into).unwrap();
        assert_eq!((into.path.as_deref(), into.mtime), (Some("a/b"), Some((-2, 500_000_000))));
    }
}
