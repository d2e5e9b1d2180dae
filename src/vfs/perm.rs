//! Who may do what: Linux's rules as pure decisions over owner, group and mode.
//!
//! In: credentials and a node's attributes. Out: leave, or EACCES/EPERM as Linux chooses between them.
//! User 0 has the default capabilities of a container's root; no other capability exists here.

use super::{AccessMode, Credentials, FileType, SetTime, SetTimes};
use crate::errno::Errno;

/// `S_ISUID`.
pub(crate) const SETUID: u32 = 0o4000;
/// `S_ISGID`.
pub(crate) const SETGID: u32 = 0o2000;
/// `S_ISVTX`.
pub(crate) const STICKY: u32 = 0o1000;

/// Owner, group, permission bits and kind of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attr {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mode: u32,
    pub(crate) kind: FileType,
}

/// Whether `want` is allowed (`inode_permission`).
pub(crate) fn check(cred: &Credentials, attr: &Attr, want: AccessMode) -> Result<(), Errno> {
    let allowed = if cred.uid == 0 {
        // CAP_DAC_OVERRIDE: everything, but a file nobody may execute stays so.
        !want.contains(AccessMode::EXECUTE) || attr.kind == FileType::Directory || attr.mode & 0o111 != 0
    } else {
        let shift = if cred.uid == attr.uid {
            6
        } else if cred.in_group(attr.gid) {
            3
        } else {
            0
        };
        (attr.mode >> shift) & 7 & u32::from(want.bits()) == u32::from(want.bits())
    };
    if allowed { Ok(()) } else { Err(Errno::Acces) }
}

/// Whether entries of directory `dir` may be added.
pub(crate) fn may_add(cred: &Credentials, dir: &Attr) -> Result<(), Errno> {
    check(cred, dir, AccessMode::WRITE | AccessMode::EXECUTE)
}

/// Whether the entry of `victim` may be taken from `dir` (`may_delete`): EACCES for lack of write permission,
/// EPERM for the sticky bit.
pub(crate) fn may_remove(cred: &Credentials, dir: &Attr, victim: &Attr) -> Result<(), Errno> {
    may_add(cred, dir)?;
    let kept = dir.mode & STICKY != 0 && cred.uid != 0 && cred.uid != victim.uid && cred.uid != dir.uid;
    if kept { Err(Errno::Perm) } else { Ok(()) }
}

/// The attributes of a new node in `dir`: the umask, and BSD groups in setgid directories.
pub(crate) fn created(cred: &Credentials, dir: &Attr, kind: FileType, mode: u32) -> Attr {
    let inherits = dir.mode & SETGID != 0;
    let gid = if inherits { dir.gid } else { cred.gid };
    let mut mode = mode & 0o7777 & !(cred.umask & 0o777);
    match kind {
        FileType::Symlink => mode = 0o777,
        FileType::Directory if inherits => mode |= SETGID,
        FileType::Directory => {}
        // A file must not get a group's setgid from somebody outside that group.
        _ if mode & (SETGID | 0o010) == SETGID | 0o010 && cred.uid != 0 && !cred.in_group(gid) => mode &= !SETGID,
        _ => {}
    }
    Attr { uid: cred.uid, gid, mode, kind }
}

/// The attributes after `chmod`.
pub(crate) fn chmod(cred: &Credentials, attr: &Attr, mode: u32) -> Result<Attr, Errno> {
    if cred.uid != 0 && cred.uid != attr.uid {
        return Err(Errno::Perm);
    }
    let mut mode = mode & 0o7777;
    if cred.uid != 0 && !cred.in_group(attr.gid) {
        mode &= !SETGID;
    }
    Ok(Attr { mode, ..*attr })
}

/// The attributes after `chown`; it takes setuid and setgid from executables, as Linux does for everyone.
pub(crate) fn chown(cred: &Credentials, attr: &Attr, uid: Option<u32>, gid: Option<u32>) -> Result<Attr, Errno> {
    if cred.uid != 0 {
        let owner = cred.uid == attr.uid;
        let uid_kept = uid.is_none_or(|uid| uid == attr.uid && owner);
        let gid_kept = gid.is_none_or(|gid| owner && (gid == attr.gid || cred.in_group(gid)));
        if !uid_kept || !gid_kept {
            return Err(Errno::Perm);
        }
    }
    let mut mode = attr.mode;
    if attr.kind == FileType::Regular && (uid.is_some() || gid.is_some()) {
        mode &= !SETUID;
        if mode & 0o010 != 0 {
            mode &= !SETGID;
        }
    }
    Ok(Attr { uid: uid.unwrap_or(attr.uid), gid: gid.unwrap_or(attr.gid), mode, kind: attr.kind })
}

/// Whether `utimensat` is allowed: the present time to whoever may write, any other to the owner.
pub(crate) fn set_times(cred: &Credentials, attr: &Attr, times: SetTimes) -> Result<(), Errno> {
    let valid = |time: SetTime| !matches!(time, SetTime::At(at) if at.nanoseconds >= 1_000_000_000);
    if !valid(times.accessed) || !valid(times.modified) {
        return Err(Errno::Inval);
    }
    if cred.uid == 0 || cred.uid == attr.uid {
        return Ok(());
    }
    match (times.accessed, times.modified) {
        (SetTime::Omit, SetTime::Omit) => Ok(()),
        (SetTime::Now, SetTime::Now) => check(cred, attr, AccessMode::WRITE),
        _ => Err(Errno::Perm),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::vfs::Timestamp;

    fn user(uid: u32, gid: u32, groups: &[u32]) -> Credentials {
        Credentials { uid, gid, groups: Arc::from(groups), umask: 0o022 }
    }

    fn file(uid: u32, gid: u32, mode: u32) -> Attr {
        Attr { uid, gid, mode, kind: FileType::Regular }
    }

    #[test]
    fn the_first_class_that_matches_decides_even_against_its_user() {
        let (r, w, x) = (AccessMode::READ, AccessMode::WRITE, AccessMode::EXECUTE);
        for (case, cred, attr, want, ok) in [
            ("owner by owner bits", user(5, 5, &[]), file(5, 9, 0o400), r, true),
            ("owner not by other bits", user(5, 5, &[]), file(5, 9, 0o077), r, false),
            ("supplementary group", user(5, 5, &[9]), file(1, 9, 0o060), r | w, true),
            ("group not by other bits", user(5, 9, &[]), file(1, 9, 0o707), r, false),
            ("other", user(5, 5, &[]), file(1, 9, 0o004), r, true),
            ("root reads what nobody may", user(0, 0, &[]), file(1, 9, 0), r | w, true),
            ("root executes nothing unexecutable", user(0, 0, &[]), file(1, 9, 0o666), x, false),
            ("existence needs nothing", user(5, 5, &[]), file(1, 9, 0), AccessMode::empty(), true),
        ] {
            assert_eq!(check(&cred, &attr, want).is_ok(), ok, "{case}");
        }
    }

    #[test]
    fn a_sticky_directory_keeps_the_files_of_others() {
        let tmp = Attr { uid: 0, gid: 0, mode: 0o1777, kind: FileType::Directory };
        assert_eq!(may_remove(&user(5, 5, &[]), &tmp, &file(6, 6, 0o777)), Err(Errno::Perm));
        assert_eq!(may_remove(&user(5, 5, &[]), &tmp, &file(5, 5, 0)), Ok(()));
        let closed = Attr { mode: 0o1755, ..tmp };
        assert_eq!(may_remove(&user(5, 5, &[]), &closed, &file(6, 6, 0)), Err(Errno::Acces));
        assert_eq!(may_remove(&user(0, 0, &[]), &tmp, &file(6, 6, 0)), Ok(()));
    }

    #[test]
    fn setgid_directories_hand_down_their_group() {
        let dir = Attr { uid: 0, gid: 42, mode: 0o2775, kind: FileType::Directory };
        let made = created(&user(5, 5, &[]), &dir, FileType::Regular, 0o666);
        assert_eq!((made.uid, made.gid, made.mode), (5, 42, 0o644));
        assert_eq!(created(&user(5, 5, &[]), &dir, FileType::Directory, 0o777).mode, 0o2755);
    }

    #[test]
    fn ownership_changes_follow_posix() {
        let own = file(5, 5, 0o4755);
        assert_eq!(chown(&user(5, 5, &[]), &own, Some(6), None), Err(Errno::Perm));
        assert_eq!(chown(&user(5, 5, &[7]), &own, None, Some(7)).unwrap().mode, 0o755);
        assert_eq!(chown(&user(5, 5, &[7]), &own, None, Some(8)), Err(Errno::Perm));
        assert_eq!(chmod(&user(6, 6, &[]), &own, 0o777), Err(Errno::Perm));
        assert_eq!(chmod(&user(5, 6, &[]), &own, 0o2755).unwrap().mode, 0o755);
    }

    #[test]
    fn only_the_owner_sets_a_chosen_time() {
        let now = SetTimes { accessed: SetTime::Now, modified: SetTime::Now };
        let then = SetTimes { accessed: SetTime::Omit, modified: SetTime::At(Timestamp::default()) };
        assert_eq!(set_times(&user(5, 5, &[]), &file(1, 1, 0o666), now), Ok(()));
        assert_eq!(set_times(&user(5, 5, &[]), &file(1, 1, 0o644), now), Err(Errno::Acces));
        assert_eq!(set_times(&user(5, 5, &[]), &file(1, 1, 0o666), then), Err(Errno::Perm));
        let bad = SetTimes { accessed: SetTime::At(Timestamp { seconds: 0, nanoseconds: 1_000_000_000 }), ..now };
        assert_eq!(set_times(&user(0, 0, &[]), &file(1, 1, 0), bad), Err(Errno::Inval));
    }
}
