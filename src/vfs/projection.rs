//! ConfigMaps, Secrets and their like as files, replaced as one.
//!
//! In: a [`Projection`]. Out: a tree in memory with the layout of the kubelet's `AtomicWriter`: a hidden directory
//! named by the time holds the files, `..data` is a link to it, and each visible name is a link through `..data`.
//! An update changes the one link, so a reader sees all of the old content or all of the new. Lookups that were
//! under way at that moment still find the directory before; open files keep what they had.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::perm::{Attr, SETGID};
use super::tree::{Ino, NewBody, ROOT, TreeFs, Txn};
use super::{FileType, Timestamp, path};
use crate::errno::Errno;
use crate::pod::run::Projection;

/// A tmpfs, which is what the kubelet writes into.
const ROOT_MODE: u32 = 0o1777;

/// The link that is swapped.
const DATA: &str = "..data";

/// Why a projection could not be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ProjectionError {
    BadPath(String),
}

/// A tree for the content that is to come.
pub(crate) fn empty() -> Arc<TreeFs> {
    // Bounded by what an API object may hold; the bytes are the node's, no container is charged.
    TreeFs::memory(u64::MAX, None, ROOT_MODE)
}

/// The tree of a projection's first content.
pub(crate) fn create(content: &Projection) -> Result<Arc<TreeFs>, ProjectionError> {
    let tree = empty();
    update(&tree, content)?;
    Ok(tree)
}

/// Checks every path: relative, strict, not hidden as the writer's own names, and no file is also a directory.
fn check(content: &Projection) -> Result<(), ProjectionError> {
    let mut dirs = BTreeSet::new();
    for path in content.files.keys() {
        let bad = || ProjectionError::BadPath(path.clone());
        let mut names = path::strict_components(path).ok_or_else(bad)?;
        if names.next().is_none_or(|first| first.starts_with("..")) {
            return Err(bad());
        }
        let parents = path.match_indices('/').map(|(at, _)| &path[..at]);
        dirs.extend(parents);
    }
    match content.files.keys().find(|path| dirs.contains(path.as_str())) {
        Some(path) => Err(ProjectionError::BadPath(path.clone())),
        None => Ok(()),
    }
}

/// Replaces the content. Nothing changes on error.
pub(crate) fn update(tree: &TreeFs, content: &Projection) -> Result<(), ProjectionError> {
    check(content)?;
    let mut txn = tree.txn();
    let old = txn.lookup(ROOT, DATA).ok().and_then(|ino| txn.link_target(ino));
    let name = directory_name(&txn);
    let shown = swap(&mut txn, &name, old.as_deref(), content);
    debug_assert_eq!(shown, Ok(()), "the paths were checked and the tree has no limit");
    Ok(())
}

fn swap(txn: &mut Txn<'_>, name: &str, old: Option<&str>, content: &Projection) -> Result<(), Errno> {
    let group = content.fs_group;
    let gid = group.unwrap_or(0);
    let for_group = |kind, mode| if group.is_some() { shared(kind, mode) } else { mode };
    txn.update(ROOT, |meta| (meta.gid, meta.mode) = (gid, for_group(FileType::Directory, ROOT_MODE)));
    let dir_attr = Attr { uid: 0, gid, mode: for_group(FileType::Directory, 0o755), kind: FileType::Directory };
    let link_attr = Attr { uid: 0, gid, mode: 0o777, kind: FileType::Symlink };
    let top = txn.create(ROOT, name, &dir_attr, NewBody::Dir)?.ino;
    for (path, file) in &content.files {
        let (parents, leaf) = path.rsplit_once('/').unwrap_or(("", path));
        let mut dir = top;
        for parent in parents.split('/').filter(|parent| !parent.is_empty()) {
            dir = subdirectory(txn, dir, parent, &dir_attr)?;
        }
        let mode = for_group(FileType::Regular, file.mode & 0o777);
        let attr = Attr { uid: file.uid, gid, mode, kind: FileType::Regular };
        txn.create_with(dir, leaf, &attr, &file.data)?;
    }
    if old.is_some() {
        txn.unlink(ROOT, DATA)?;
    }
    txn.create(ROOT, DATA, &link_attr, NewBody::Link(name))?;
    let wanted: BTreeSet<&str> = content.files.keys().filter_map(|path| path.split('/').next()).collect();
    for gone in txn.names(ROOT) {
        // What is no link is a place for another mount, which the node made for a container.
        if is_link(txn, &gone) && !gone.starts_with("..") && !wanted.contains(&*gone) {
            txn.unlink(ROOT, &gone)?;
        }
    }
    for visible in wanted {
        if !is_link(txn, visible) {
            // The place of a mount of one container, made when there was nothing here, hides no file from the others. (A mount
            // is found by its name.)
            let _ = txn.unlink(ROOT, visible);
        }
        if txn.lookup(ROOT, visible).is_err() {
            txn.create(ROOT, visible, &link_attr, NewBody::Link(&format!("{DATA}/{visible}")))?;
        }
    }
    if let Some(old) = old {
        txn.retire(ROOT, old)?;
    }
    Ok(())
}

fn is_link(txn: &mut Txn<'_>, name: &str) -> bool {
    txn.lookup(ROOT, name).is_ok_and(|ino| txn.link_target(ino).is_some())
}

fn subdirectory(txn: &mut Txn<'_>, dir: Ino, name: &str, attr: &Attr) -> Result<Ino, Errno> {
    match txn.lookup(dir, name) {
        Ok(ino) => Ok(ino),
        Err(_) => Ok(txn.create(dir, name, attr, NewBody::Dir)?.ino),
    }
}

/// `..2026_01_02_03_04_05.123456789`, as the AtomicWriter names them; later when that is taken.
fn directory_name(txn: &Txn<'_>) -> String {
    let now = Timestamp::now();
    let mut nanos = now.nanoseconds;
    loop {
        let time = jiff::Timestamp::from_second(now.seconds).unwrap_or_default();
        let name = format!("..{}.{nanos:09}", time.strftime("%Y_%m_%d_%H_%M_%S"));
        if txn.lookup(ROOT, &name).is_err() {
            return name;
        }
        nanos = nanos.wrapping_add(1);
    }
}

/// What `fsGroup` does to a volume that is mounted read-only: the group reads and searches, directories hand it down.
fn shared(kind: FileType, mode: u32) -> u32 {
    if kind == FileType::Directory { mode | 0o550 | SETGID } else { mode | 0o440 }
}
