//! Owner and mode of files in directories that the node owns.
//!
//! Guests may be any user and choose any mode; the agent may be unprivileged and must always be able to open its
//! own files. So the real mode always lets the agent in, and what the guest asked for, when the real inode cannot
//! say it, is in the extended attribute `user.wasilet` (11 bytes). The real sticky bit, which means nothing on
//! files and nothing on directories of one owner, tells that there is one: nodes without it cost no extra call.
//! Files of the agent's own user read as user 0. Where extended attributes are not supported, a table in memory
//! serves for the agent's life.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::LazyLock;

use parking_lot::Mutex;
use rustix::fs::{Gid, Mode, Stat, Uid, XattrFlags};

use crate::errno::Errno;
use crate::vfs::FileType;
use crate::vfs::perm::Attr;

const NAME: &str = "user.wasilet";
const VERSION: u8 = 1;
const LEN: usize = 11;
/// The sticky bit of the real inode: there is an attribute.
const MARK: u32 = 0o1000;

/// The agent's own user and group.
static SELF: LazyLock<(u32, u32)> =
    LazyLock::new(|| (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()));

/// Attributes of nodes on filesystems without `user.` attributes, by inode number.
#[derive(Debug, Default)]
pub(crate) struct SideTable(Mutex<HashMap<u64, [u8; LEN]>>);

impl SideTable {
    pub(crate) fn forget(&self, ino: u64) {
        self.0.lock().remove(&ino);
    }
}

pub(crate) fn kind(stat: &Stat) -> FileType {
    match rustix::fs::FileType::from_raw_mode(stat.st_mode) {
        rustix::fs::FileType::Directory => FileType::Directory,
        rustix::fs::FileType::Symlink => FileType::Symlink,
        rustix::fs::FileType::CharacterDevice => FileType::CharDevice,
        rustix::fs::FileType::BlockDevice => FileType::BlockDevice,
        rustix::fs::FileType::Fifo => FileType::Fifo,
        rustix::fs::FileType::Socket => FileType::Socket,
        _ => FileType::Regular,
    }
}

/// The real attributes of a foreign node.
pub(crate) fn real(stat: &Stat) -> Attr {
    Attr { uid: stat.st_uid, gid: stat.st_gid, mode: stat.st_mode & 0o7777, kind: kind(stat) }
}

/// Whether the real inode does not say everything.
pub(crate) fn is_marked(stat: &Stat) -> bool {
    stat.st_mode & MARK != 0 && matches!(kind(stat), FileType::Regular | FileType::Directory)
}

/// What the real inode of one of our nodes says by itself.
pub(crate) fn plain(stat: &Stat) -> Attr {
    let (uid, gid) = *SELF;
    Attr {
        uid: if stat.st_uid == uid { 0 } else { stat.st_uid },
        gid: if stat.st_gid == gid { 0 } else { stat.st_gid },
        mode: if kind(stat) == FileType::Symlink { 0o777 } else { stat.st_mode & 0o6777 },
        kind: kind(stat),
    }
}

/// The attributes of one of our nodes, open for reading.
pub(crate) fn read(side: &SideTable, fd: impl AsFd, stat: &Stat) -> Attr {
    let plain = plain(stat);
    if !is_marked(stat) {
        return plain;
    }
    let mut bytes = [0u8; LEN];
    let stored = match rustix::fs::fgetxattr(fd, NAME, &mut bytes) {
        Ok(LEN) => Some(bytes),
        _ => side.0.lock().get(&stat.st_ino).copied(),
    };
    stored.and_then(|bytes| decode(&bytes, plain.kind)).unwrap_or(plain)
}

/// Gives one of our nodes, open for reading, these attributes.
pub(crate) fn write(side: &SideTable, fd: impl AsFd, stat: &Stat, attr: &Attr) -> Result<(), Errno> {
    let fd = fd.as_fd();
    let wanted = real_mode(attr, &plain(stat));
    if wanted & MARK != 0 {
        // The attribute first: after a crash between the two the old attributes hold.
        match rustix::fs::fsetxattr(fd, NAME, &encode(attr), XattrFlags::empty()) {
            Ok(()) => {}
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) => {
                side.0.lock().insert(stat.st_ino, encode(attr));
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    if stat.st_mode & 0o7777 != wanted {
        rustix::fs::fchmod(fd, Mode::from_raw_mode(wanted))?;
    }
    Ok(())
}

/// The mode of the real inode: the guest's when it can be, the mark when not. Pure.
fn real_mode(attr: &Attr, plain: &Attr) -> u32 {
    let access = if attr.kind == FileType::Directory { 0o700 } else { 0o600 };
    let says_all =
        attr.uid == plain.uid && attr.gid == plain.gid && attr.mode & 0o7000 == 0 && attr.mode & access == access;
    // A directory's setgid bit harms nobody, and still says something where attributes are lost.
    let kept = if attr.kind == FileType::Directory { 0o2777 } else { 0o777 };
    if says_all { attr.mode } else { attr.mode & kept | access | MARK }
}

/// The real mode to create a node with, before it is known what the inode looks like.
pub(crate) fn creation_mode(attr: &Attr) -> Mode {
    let access = if attr.kind == FileType::Directory { 0o700 } else { 0o600 };
    Mode::from_raw_mode(attr.mode & 0o777 | access)
}

fn encode(attr: &Attr) -> [u8; LEN] {
    let mut bytes = [0; LEN];
    bytes[0] = VERSION;
    bytes[1..5].copy_from_slice(&attr.uid.to_le_bytes());
    bytes[5..9].copy_from_slice(&attr.gid.to_le_bytes());
    bytes[9..11].copy_from_slice(&(attr.mode as u16).to_le_bytes());
    bytes
}

fn decode(bytes: &[u8; LEN], kind: FileType) -> Option<Attr> {
    let number = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let mode = u32::from(u16::from_le_bytes([bytes[9], bytes[10]]));
    (bytes[0] == VERSION).then_some(())?;
    Some(Attr { uid: number(1)?, gid: number(5)?, mode: mode & 0o7777, kind })
}

/// Real user and group for `fchown`; `None` keeps.
pub(crate) fn ids(uid: Option<u32>, gid: Option<u32>) -> (Option<Uid>, Option<Gid>) {
    (uid.map(Uid::from_raw), gid.map(Gid::from_raw))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_can_always_open_what_the_guest_closed() {
        let plain = Attr { uid: 0, gid: 0, mode: 0o644, kind: FileType::Regular };
        assert_eq!(real_mode(&Attr { mode: 0o640, ..plain }, &plain), 0o640);
        assert_eq!(real_mode(&Attr { mode: 0, ..plain }, &plain), 0o1600);
        assert_eq!(real_mode(&Attr { mode: 0o4755, ..plain }, &plain), 0o1755);
        assert_eq!(real_mode(&Attr { uid: 7, mode: 0o644, ..plain }, &plain), 0o1644);
        let dir = Attr { kind: FileType::Directory, mode: 0o1777, ..plain };
        assert_eq!(real_mode(&dir, &dir), 0o1777);
    }

    #[test]
    fn attributes_survive_their_encoding() {
        let attr = Attr { uid: 65_534, gid: u32::MAX, mode: 0o7777, kind: FileType::Directory };
        assert_eq!(decode(&encode(&attr), FileType::Directory), Some(attr));
        assert_eq!(decode(&[9; LEN], FileType::Regular), None);
    }
}
