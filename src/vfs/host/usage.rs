//! Walks of a whole volume of ours: `du`, and handing it to a group.
//!
//! In: the volume. Out: bytes, or ENOENT/EIO of the walk. Blocking; runs on the volume's pool. Iterative, by
//! descriptors: a guest that nests a million directories costs queue entries, not stack.

use std::collections::HashSet;
use std::sync::Arc;

use rustix::fs::{AtFlags, Stat};

use super::{HostDir, HostFs, HostStep, attr};
use crate::errno::Errno;
use crate::pod::run::Access;
use crate::vfs::perm::{Attr, SETGID};
use crate::vfs::{FileType, GroupChange};

/// What counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Count {
    /// Everything, as `du`.
    All,
    /// Regular files: what a ledger goes on counting.
    Files,
}

/// Bytes stored below the root, each file once.
pub(crate) fn stored_bytes(fs: &HostFs, count: Count) -> Result<u64, Errno> {
    let mut seen: HashSet<(u64, u64)> = HashSet::new();
    let mut total = 0u64;
    walk(fs, |_, _, stat| {
        let kind = attr::kind(stat);
        if count == Count::Files && kind != FileType::Regular {
            return;
        }
        let has_names = stat.st_nlink > 1 && kind != FileType::Directory;
        if !has_names || seen.insert((stat.st_dev, stat.st_ino)) {
            total = total.saturating_add(stat.st_blocks as u64 * 512);
        }
    })?;
    Ok(total)
}

/// The kubelet's `fsGroup`, over everything; the top last.
pub(crate) fn set_group(fs: &HostFs, gid: u32, access: Access, change: GroupChange) -> Result<(), Errno> {
    let root = fs.dir_attr(&fs.root)?;
    if change == GroupChange::OnRootMismatch && root == regroup(&root, gid, access) {
        return Ok(());
    }
    walk(fs, |dir, name, _| {
        // A name that went meanwhile is nobody's loss.
        if let Ok(old) = fs.attr(dir, name) {
            let new = regroup(&old, gid, access);
            if fs.set_attr(dir, name, &old, &new).is_err() {
                // The kubelet tries both whatever becomes of the first.
                let _ = fs.set_attr(dir, name, &old, &Attr { gid: old.gid, ..new });
            }
        }
    })?;
    fs.set_dir_attr(&fs.root, &root, &regroup(&root, gid, access))
}

/// The attributes of a node that the group has. A link keeps its mode.
fn regroup(attr: &Attr, gid: u32, access: Access) -> Attr {
    let bits = match access {
        Access::ReadWrite => 0o660,
        Access::ReadOnly => 0o440,
    };
    let bits = match attr.kind {
        FileType::Directory => bits | 0o110 | SETGID,
        FileType::Symlink => 0,
        _ => bits,
    };
    Attr { gid, mode: attr.mode | bits, ..*attr }
}

fn walk(fs: &HostFs, mut each: impl FnMut(&HostDir, &str, &Stat)) -> Result<(), Errno> {
    // Handles in a chain of deep directories are opened one by one and dropped once listed.
    let mut todo: Vec<(Arc<HostDir>, String)> = Vec::new();
    visit(fs, &fs.root, &mut each, &mut todo)?;
    while let Some((parent, name)) = todo.pop() {
        match fs.enter(&parent, &name) {
            Ok(HostStep::Dir(dir)) => visit(fs, &dir, &mut each, &mut todo)?,
            Ok(HostStep::Link(_)) | Err(Errno::NoEnt | Errno::NotDir) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn visit(
    fs: &HostFs,
    dir: &Arc<HostDir>,
    each: &mut impl FnMut(&HostDir, &str, &Stat),
    todo: &mut Vec<(Arc<HostDir>, String)>,
) -> Result<(), Errno> {
    let mut cookie = 0;
    loop {
        let entries = fs.list(dir, cookie)?;
        let Some(last) = entries.last() else { return Ok(()) };
        cookie = last.next;
        for entry in &entries {
            if matches!(&*entry.name, "." | "..") {
                continue;
            }
            let Ok(stat) = rustix::fs::statat(dir.fd(), &*entry.name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            each(dir, &entry.name, &stat);
            if attr::kind(&stat) == FileType::Directory {
                todo.push((Arc::clone(dir), entry.name.to_string()));
            }
        }
    }
}
