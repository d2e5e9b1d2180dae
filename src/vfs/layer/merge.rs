//! Merges layers into one tree, as container runtimes apply them one over the other.
//!
//! In: indexes, lowest first. Out: a `LowerTree`. The rules are containerd's (`archive.Apply`): parents that are
//! symbolic links are resolved inside the root, a directory over a directory keeps its children, anything else
//! replaces, `.wh.NAME` removes, an opaque directory hides what earlier layers put in it.

use std::collections::BTreeMap;

use super::LayerError;
use super::index::{Body, Entry, Index};
use crate::vfs::path::MAX_LINKS;
use crate::vfs::perm::Attr;
use crate::vfs::tree::{Builder, Draft, DraftBody, LowerId};
use crate::vfs::{FileType, Timestamp};

/// Bytes of all names and targets in one tree; its arrays count in 32 bits.
const MAX_TEXT: usize = 1 << 30;
/// Names one resolution may take, links' targets included: bounds the time of hostile link chains.
const MAX_STEPS: usize = 8192;
/// Nodes of one image over all its layers.
const MAX_NODES: usize = 4_000_000;

/// Applies one layer over what is there.
pub(crate) fn apply(tree: &mut Builder, layer: u32, index: &Index) -> Result<(), LayerError> {
    for entry in &index.entries {
        if tree.drafts.len() > MAX_NODES {
            return Err(LayerError::TooManyEntries { limit: MAX_NODES });
        }
        apply_entry(tree, layer, entry)?;
    }
    Ok(())
}

/// Whether the text of these indexes fits one tree.
pub(crate) fn check_text(indexes: &[&Index]) -> Result<(), LayerError> {
    let text = |entry: &Entry| {
        entry.path.len()
            + match &entry.body {
                Body::Symlink(s) | Body::HardLink(s) => s.len(),
                _ => 0,
            }
    };
    let total: usize = indexes.iter().flat_map(|index| &index.entries).map(text).sum();
    if total > MAX_TEXT { Err(LayerError::TooManyEntries { limit: MAX_NODES }) } else { Ok(()) }
}

fn apply_entry(tree: &mut Builder, layer: u32, entry: &Entry) -> Result<(), LayerError> {
    let attr = |kind| Attr { uid: entry.uid, gid: entry.gid, mode: entry.mode, kind };
    let mtime = Timestamp { seconds: entry.mtime.0, nanoseconds: entry.mtime.1 };
    let bad = || LayerError::BadEntry { path: entry.path.to_string() };
    match &entry.body {
        Body::Opaque => {
            if let Some(dir) = find_dir(tree, &entry.path) {
                hide_older(tree, dir, layer);
            }
            return Ok(());
        }
        Body::Whiteout => {
            let (parent, name) = split(&entry.path);
            if let Some(dir) = find_dir(tree, parent)
                && let DraftBody::Dir(children) = &mut tree.drafts[dir as usize].body
            {
                children.remove(name);
            }
            return Ok(());
        }
        _ => {}
    }
    if entry.path.is_empty() {
        let root = &mut tree.drafts[0];
        (root.attr, root.mtime) = (attr(FileType::Directory), mtime);
        return Ok(());
    }
    let (parent, name) = split(&entry.path);
    let dir = make_dirs(tree, parent, layer).ok_or_else(bad)?;
    let (kind, body) = match &entry.body {
        Body::HardLink(target) => {
            let (target_parent, target_name) = split(target);
            let node = find_dir(tree, target_parent).and_then(|dir| child(tree, dir, target_name)).ok_or_else(bad)?;
            if matches!(tree.drafts[node as usize].body, DraftBody::Dir(_)) {
                return Err(bad());
            }
            tree.drafts[node as usize].layer = layer;
            tree.link(dir, name, node);
            return Ok(());
        }
        Body::Directory => {
            if let Some(old) = child(tree, dir, name)
                && matches!(tree.drafts[old as usize].body, DraftBody::Dir(_))
            {
                let draft = &mut tree.drafts[old as usize];
                (draft.attr, draft.mtime, draft.layer) = (attr(FileType::Directory), mtime, layer);
                return Ok(());
            }
            (FileType::Directory, DraftBody::Dir(BTreeMap::new()))
        }
        Body::Regular { offset, size } => (FileType::Regular, DraftBody::File { layer, offset: *offset, size: *size }),
        Body::Symlink(target) => (FileType::Symlink, DraftBody::Link(target.clone())),
        Body::Char(_) => (FileType::CharDevice, DraftBody::Other),
        Body::Block(_) => (FileType::BlockDevice, DraftBody::Other),
        Body::Fifo => (FileType::Fifo, DraftBody::Other),
        Body::Whiteout | Body::Opaque => return Ok(()),
    };
    let mut attr = attr(kind);
    if kind == FileType::Symlink {
        attr.mode = 0o777;
    }
    tree.insert(dir, name, Draft { attr, mtime, parent: dir, body, layer });
    Ok(())
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

fn child(tree: &Builder, dir: LowerId, name: &str) -> Option<LowerId> {
    match &tree.drafts[dir as usize].body {
        DraftBody::Dir(children) => children.get(name).copied(),
        _ => None,
    }
}

/// Removes from a directory, and from what this layer added below it, everything of earlier layers.
fn hide_older(tree: &mut Builder, dir: LowerId, layer: u32) {
    let mut todo = vec![dir];
    while let Some(dir) = todo.pop() {
        let mut children = match &mut tree.drafts[dir as usize].body {
            DraftBody::Dir(children) => std::mem::take(children),
            _ => continue,
        };
        children.retain(|_, &mut id| tree.drafts[id as usize].layer == layer);
        todo.extend(children.values().filter(|&&id| matches!(tree.drafts[id as usize].body, DraftBody::Dir(_))));
        tree.drafts[dir as usize].body = DraftBody::Dir(children);
    }
}

fn find_dir(tree: &Builder, path: &str) -> Option<LowerId> {
    match resolve(tree, path)? {
        Resolved::Dir(id) => Some(id),
        Resolved::Missing { .. } => None,
    }
}

/// The directory at `path`, made where it is missing; the runtime's `MkdirAll(0755)`.
fn make_dirs(tree: &mut Builder, path: &str, layer: u32) -> Option<LowerId> {
    loop {
        match resolve(tree, path)? {
            Resolved::Dir(id) => return Some(id),
            Resolved::Missing { dir, name } => {
                let attr = Attr { uid: 0, gid: 0, mode: 0o755, kind: FileType::Directory };
                let body = DraftBody::Dir(BTreeMap::new());
                tree.insert(dir, &name, Draft { attr, mtime: Timestamp::default(), parent: dir, body, layer });
            }
        }
    }
}

enum Resolved {
    Dir(LowerId),
    /// The first name that is not there.
    Missing {
        dir: LowerId,
        name: Box<str>,
    },
}

/// Walks to a directory through symbolic links, never above the root. `None`: through a file, or a loop.
fn resolve(tree: &Builder, path: &str) -> Option<Resolved> {
    let mut rest: Vec<String> = path.rsplit('/').map(str::to_owned).collect();
    let (mut dir, mut links, mut steps) = (0, 0, 0);
    while let Some(name) = rest.pop() {
        steps += 1;
        if steps > MAX_STEPS {
            return None;
        }
        match name.as_str() {
            "" | "." => continue,
            ".." => {
                dir = tree.drafts[dir as usize].parent;
                continue;
            }
            _ => {}
        }
        if name.len() > crate::vfs::NAME_MAX {
            return None;
        }
        let Some(next) = child(tree, dir, &name) else {
            return Some(Resolved::Missing { dir, name: name.into() });
        };
        match &tree.drafts[next as usize].body {
            DraftBody::Dir(_) => dir = next,
            DraftBody::Link(target) => {
                links += 1;
                if links > MAX_LINKS {
                    return None;
                }
                if target.starts_with('/') {
                    dir = 0;
                }
                rest.extend(target.rsplit('/').map(str::to_owned));
            }
            _ => return None,
        }
    }
    Some(Resolved::Dir(dir))
}
