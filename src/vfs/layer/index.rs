//! The index of one layer: what its tar holds, and the form that is kept beside it on disk.
//!
//! In: the members of a tar. Out: entries in tar order with normal paths, whiteouts kept as such.
//! Does not merge layers (`merge`), does not verify digests (the image store did).

use std::fs::File;
use std::path::Path;

use super::LayerError;
use super::tar::{Member, Reader, has_data};
use crate::vfs::NAME_MAX;

/// Entries of one layer; a distribution's full userland has some 200,000.
pub(crate) const MAX_ENTRIES: usize = 1_000_000;
/// Bytes of names and link targets of one layer.
const MAX_TEXT: usize = 256 << 20;
/// First bytes of an index file; the digits are the version.
const MAGIC: &[u8; 8] = b"WSLIDX02";

/// One entry of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Relative, normal, without `.` or `..`; empty for the root itself.
    pub(crate) path: Box<str>,
    pub(crate) body: Body,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: (i64, u32),
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Body {
    /// Bytes of the tar.
    Regular {
        offset: u64,
        size: u64,
    },
    Directory,
    Symlink(Box<str>),
    /// Another name of a path of the image so far (normal form).
    HardLink(Box<str>),
    Char(u64),
    Block(u64),
    Fifo,
    /// The path is removed from the layers below.
    Whiteout,
    /// The directory at the path hides what the layers below have in it.
    Opaque,
}

/// What one layer holds: entries in the order of its tar, whiteouts included.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Index {
    pub(crate) entries: Vec<Entry>,
}

/// Reads a tar (uncompressed) and lists it. Blocking; bounded in time and memory by the tar's size.
///
/// # Errors
/// [`LayerError::BadTar`] for what is no tar, is cut off, or cannot be an image layer;
/// [`LayerError::TooManyEntries`]; [`LayerError::Read`].
pub fn build_index(tar: &File) -> Result<Index, LayerError> {
    let mut reader = Reader::new(tar)?;
    let mut entries = Vec::new();
    let mut text = 0usize;
    while let Some(member) = reader.next()? {
        text = text.saturating_add(member.path.len() + member.link.len());
        if entries.len() >= MAX_ENTRIES || text > MAX_TEXT {
            return Err(LayerError::TooManyEntries { limit: MAX_ENTRIES });
        }
        entries.extend(entry(member)?);
    }
    entries.shrink_to_fit();
    Ok(Index { entries })
}

/// `None` for members that mean nothing in an image.
fn entry(member: Member) -> Result<Option<Entry>, LayerError> {
    let Member { path, link, typeflag, mode, uid, gid, mtime, rdev, offset, size } = member;
    let bad = |what| LayerError::BadTar { offset, what };
    let path = normal(&path).ok_or_else(|| bad("a path is too long"))?;
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", &path));
    let at = |path: &str, body| Some(Entry { path: path.into(), body, mode, uid, gid, mtime });
    if let Some(hidden) = name.strip_prefix(".wh.") {
        return Ok(match hidden {
            ".wh..opq" => at(parent, Body::Opaque),
            // Other AUFS markers (.wh..wh.plnk, .wh..wh.aufs) are its own bookkeeping.
            _ if hidden.starts_with(".wh.") => None,
            "" | "." | ".." => return Err(bad("a whiteout hides no name")),
            _ => {
                let hidden = if parent.is_empty() { hidden.to_owned() } else { format!("{parent}/{hidden}") };
                at(&hidden, Body::Whiteout)
            }
        });
    }
    let device = || rustix::fs::makedev(rdev.0, rdev.1);
    let body = match typeflag {
        b'1' => Body::HardLink(normal(&link).ok_or_else(|| bad("a link's path is too long"))?.into()),
        b'2' if link.is_empty() => return Err(bad("a symbolic link without target")),
        b'2' if link.len() >= crate::vfs::PATH_MAX => return Err(bad("a link's target is too long")),
        b'2' => Body::Symlink(link.into()),
        b'3' => Body::Char(device()),
        b'4' => Body::Block(device()),
        b'5' => Body::Directory,
        b'6' => Body::Fifo,
        // Old tars mark directories by a trailing slash only.
        b'0' | 0 if member_is_old_directory(&path, size, typeflag) => Body::Directory,
        _ if has_data(typeflag) => Body::Regular { offset, size },
        _ => return Ok(None),
    };
    if path.is_empty() && body != Body::Directory {
        return Err(bad("the root is not a directory"));
    }
    Ok(at(&path, body))
}

/// The root itself written as a file (`./` with type 0) by very old writers.
fn member_is_old_directory(path: &str, size: u64, typeflag: u8) -> bool {
    typeflag == 0 && size == 0 && path.is_empty()
}

/// `Clean("/" + path)` without the slash: `..` stops at the top, as container runtimes unpack.
pub(crate) fn normal(path: &str) -> Option<String> {
    let mut names: Vec<&str> = Vec::new();
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." => {
                names.pop();
            }
            _ if name.len() > NAME_MAX => return None,
            _ => names.push(name),
        }
    }
    let path = names.join("/");
    (path.len() < crate::vfs::PATH_MAX).then_some(path)
}

impl Index {
    /// How many entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The bytes for disk: magic, count, entries, and a checksum that tells a torn write.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.entries.len() * 96);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&(self.entries.len() as u64).to_le_bytes());
        for entry in &self.entries {
            put_entry(&mut out, entry);
        }
        let sum = <sha2::Sha256 as sha2::Digest>::digest(&out);
        out.extend_from_slice(&sum);
        out
    }

    /// From the bytes of [`Self::to_bytes`].
    ///
    /// # Errors
    /// [`LayerError::BadIndex`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, LayerError> {
        Self::parse(bytes).ok_or(LayerError::BadIndex)
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let (body, sum) = bytes.split_at_checked(bytes.len().checked_sub(32)?)?;
        if <sha2::Sha256 as sha2::Digest>::digest(body).as_slice() != sum {
            return None;
        }
        let mut input = body.strip_prefix(MAGIC)?;
        let count = take_u64(&mut input)?;
        // Every entry takes at least 26 bytes: a count that cannot be true allocates nothing.
        if count as usize > MAX_ENTRIES || count > input.len() as u64 / 26 {
            return None;
        }
        let entries = (0..count).map(|_| take_entry(&mut input)).collect::<Option<Vec<_>>>()?;
        input.is_empty().then_some(Self { entries })
    }

    /// Writes it to a file (plain write; atomicity is the store's).
    ///
    /// # Errors
    /// [`LayerError::Read`] naming the file.
    pub fn write(&self, path: &Path) -> Result<(), LayerError> {
        std::fs::write(path, self.to_bytes()).map_err(|source| LayerError::Read { path: path.into(), source })
    }

    /// Reads it from a file.
    ///
    /// # Errors
    /// [`LayerError::Read`], [`LayerError::BadIndex`].
    pub fn read(path: &Path) -> Result<Self, LayerError> {
        let bytes = std::fs::read(path).map_err(|source| LayerError::Read { path: path.into(), source })?;
        Self::from_bytes(&bytes)
    }
}

fn put_entry(out: &mut Vec<u8>, entry: &Entry) {
    let (tag, a, b, text): (u8, u64, u64, &str) = match &entry.body {
        Body::Regular { offset, size } => (0, *offset, *size, ""),
        Body::Directory => (1, 0, 0, ""),
        Body::Symlink(target) => (2, 0, 0, target),
        Body::HardLink(path) => (3, 0, 0, path),
        Body::Char(device) => (4, *device, 0, ""),
        Body::Block(device) => (5, *device, 0, ""),
        Body::Fifo => (6, 0, 0, ""),
        Body::Whiteout => (7, 0, 0, ""),
        Body::Opaque => (8, 0, 0, ""),
    };
    out.push(tag);
    out.extend_from_slice(&(entry.mode as u16).to_le_bytes());
    out.extend_from_slice(&entry.uid.to_le_bytes());
    out.extend_from_slice(&entry.gid.to_le_bytes());
    out.extend_from_slice(&entry.mtime.0.to_le_bytes());
    out.extend_from_slice(&entry.mtime.1.to_le_bytes());
    put_text(out, &entry.path);
    match tag {
        0 => {
            out.extend_from_slice(&a.to_le_bytes());
            out.extend_from_slice(&b.to_le_bytes());
        }
        2 | 3 => put_text(out, text),
        4 | 5 => out.extend_from_slice(&a.to_le_bytes()),
        _ => {}
    }
}

fn take_entry(input: &mut &[u8]) -> Option<Entry> {
    let tag = *take(input, 1)?.first()?;
    let mode = u32::from(u16::from_le_bytes(take(input, 2)?.try_into().ok()?));
    let uid = take_u32(input)?;
    let gid = take_u32(input)?;
    let mtime = (take_u64(input)? as i64, take_u32(input)?);
    let path = take_text(input)?;
    let body = match tag {
        0 => Body::Regular { offset: take_u64(input)?, size: take_u64(input)? },
        1 => Body::Directory,
        2 => Body::Symlink(take_text(input)?),
        3 => Body::HardLink(take_text(input)?),
        4 => Body::Char(take_u64(input)?),
        5 => Body::Block(take_u64(input)?),
        6 => Body::Fifo,
        7 => Body::Whiteout,
        8 => Body::Opaque,
        _ => return None,
    };
    Some(Entry { path, body, mode, uid, gid, mtime })
}

/// Paths and targets are shorter than 64 KiB: PATH_MAX was checked.
fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u16).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn take_text(input: &mut &[u8]) -> Option<Box<str>> {
    let len = u16::from_le_bytes(take(input, 2)?.try_into().ok()?);
    Some(std::str::from_utf8(take(input, usize::from(len))?).ok()?.into())
}

fn take<'a>(input: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (head, tail) = input.split_at_checked(len)?;
    *input = tail;
    Some(head)
}

fn take_u64(input: &mut &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(take(input, 8)?.try_into().ok()?))
}

fn take_u32(input: &mut &[u8]) -> Option<u32> {
    Some(u32::from_le_bytes(take(input, 4)?.try_into().ok()?))
}
