//! Whether calls on a hostPath may hang.
//!
//! In: a directory of the host. Out: yes, unless it lies on a filesystem of this machine's own disks or memory and
//! nothing else is mounted below it. A call that may hang goes to the mount's pool (some 20 us); one that does not
//! runs where it is, as on the node's own directories. A filesystem mounted below later is not noticed: kubelet's
//! containers would not see it either, their mounts being private.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// How long calls may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Calls {
    /// As long as this machine's disk.
    Bounded,
    /// As long as some server, or a program behind FUSE, likes.
    MayHang,
}

/// `f_type` of local filesystems: ext2-4, xfs, btrfs, tmpfs, ramfs, overlay, f2fs, zfs, bcachefs.
const LOCAL: [u32; 9] =
    [0xEF53, 0x5846_5342, 0x9123_683E, 0x0102_1994, 0x8584_58F6, 0x794C_7630, 0xF2F5_2010, 0x2FC1_2FC1, 0xCA45_1A4E];

/// The calls on a directory. What cannot be found out may hang.
pub(super) fn of_directory(path: &Path) -> Calls {
    let local = rustix::fs::statfs(path).is_ok_and(|disk| LOCAL.contains(&(disk.f_type as u32)));
    let lonely = || {
        let real = std::fs::canonicalize(path).ok()?;
        let table = std::fs::read("/proc/self/mountinfo").ok()?;
        Some(!has_mount_below(&table, real.as_os_str().as_bytes()))
    };
    if local && lonely() == Some(true) { Calls::Bounded } else { Calls::MayHang }
}

/// Whether `mountinfo` names a mount below `dir`. Pure.
fn has_mount_below(table: &[u8], dir: &[u8]) -> bool {
    let dir = dir.strip_suffix(b"/").unwrap_or(dir);
    table.split(|&b| b == b'\n').any(|line| {
        let point = line.split(|&b| b == b' ').nth(4).map(unescape);
        point.is_some_and(|point| point.strip_prefix(dir).is_some_and(|rest| rest.len() > 1 && rest[0] == b'/'))
    })
}

/// `\040` and its like, as the kernel writes blanks in mount points.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut at = 0;
    while at < field.len() {
        let octal = field.get(at + 1..at + 4).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()).filter(|_| field[at] == b'\\') {
            Some(byte) => {
                out.push(byte);
                at += 4;
            }
            None => {
                out.push(field[at]);
                at += 1;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_below_is_found_a_neighbour_is_not() {
        let table = b"1 0 8:1 / / rw - ext4 x\n2 1 0:5 / /srv/a\\040b/nfs rw - nfs x\n";
        for (dir, expected) in
            [("/srv/a b", true), ("/srv", true), ("/", true), ("/srv/a", false), ("/srv/a b/nfs", false)]
        {
            assert_eq!(has_mount_below(table, dir.as_bytes()), expected, "{dir}");
        }
    }

    #[test]
    fn proc_may_hang_and_a_temporary_directory_does_not() {
        assert_eq!(of_directory(Path::new("/proc/self")), Calls::MayHang);
        assert_eq!(of_directory(Path::new("/does/not/exist")), Calls::MayHang);
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        assert_eq!(of_directory(dir.path()), Calls::Bounded);
    }
}
