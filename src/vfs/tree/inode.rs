//! One node of a tree that is in use or was changed.
//!
//! In: changes by `TreeFs`. Out: metadata, a directory's entries. Locks: a directory's body is taken inside the
//! tree's own lock; a file's bytes and the metadata are taken alone.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32};

use parking_lot::{Mutex, RwLock};

use super::data::Data;
use super::lower::{LowerId, LowerTree};
use super::store::Reservation;
use super::{DeviceNode, Ino};
use crate::vfs::perm::Attr;
use crate::vfs::{FileType, Timestamp};

/// A node.
#[derive(Debug)]
pub(crate) struct Inode {
    pub(crate) ino: Ino,
    pub(crate) kind: FileType,
    pub(crate) meta: Mutex<Meta>,
    pub(crate) body: Body,
    /// Differs from the lower tree, so the table must keep it.
    pub(crate) kept: AtomicBool,
    /// Open files on it.
    pub(crate) opens: AtomicU32,
    /// What the node itself costs the container.
    pub(crate) _cost: Option<Reservation>,
}

/// What `stat` tells, sizes apart.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Meta {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mode: u32,
    /// 0 once it is in no directory.
    pub(crate) nlink: u32,
    pub(crate) atime: Timestamp,
    pub(crate) mtime: Timestamp,
    pub(crate) ctime: Timestamp,
}

/// What it holds.
#[derive(Debug)]
pub(crate) enum Body {
    File(RwLock<Data>),
    Dir(RwLock<DirBody>),
    Link(Box<str>),
    Device(DeviceNode),
    Other,
}

impl Inode {
    pub(crate) fn attr(&self) -> Attr {
        let meta = self.meta.lock();
        Attr { uid: meta.uid, gid: meta.gid, mode: meta.mode, kind: self.kind }
    }

    pub(crate) fn dir(&self) -> Option<&RwLock<DirBody>> {
        match &self.body {
            Body::Dir(body) => Some(body),
            _ => None,
        }
    }

    pub(crate) fn data(&self) -> Option<&RwLock<Data>> {
        match &self.body {
            Body::File(data) => Some(data),
            _ => None,
        }
    }

    pub(crate) fn is_unlinked(&self) -> bool {
        self.meta.lock().nlink == 0
    }

    /// The content changed.
    pub(crate) fn mark_modified(&self) {
        let now = Timestamp::now();
        let mut meta = self.meta.lock();
        (meta.mtime, meta.ctime) = (now, now);
    }
}

/// A directory's difference from its lower one, if it has one.
#[derive(Debug)]
pub(crate) struct DirBody {
    pub(crate) parent: Ino,
    pub(crate) lower: Option<LowerId>,
    /// Places of lower children that were removed or replaced.
    hidden: HashSet<u32>,
    added: HashMap<Arc<str>, Added>,
    /// The same in order of arrival, which is the order of a listing.
    order: BTreeMap<u64, Arc<str>>,
    next_seq: u64,
    /// Removed names that lookups under way may still use, and when they were removed: a projection's contents
    /// before its swaps.
    pub(crate) ghosts: BTreeMap<Box<str>, (Ino, Timestamp)>,
}

#[derive(Debug, Clone, Copy)]
struct Added {
    ino: Ino,
    seq: u64,
}

/// Cookies from here on are of added entries; below are places in the lower directory. Small enough that a cookie
/// fits wasi-libc's `telldir`, whose `long` has 32 bits.
const ADDED: u64 = 1 << 30;
/// Cookies 0 and 1 are `.` and `..`.
const FIRST: u64 = 2;

impl DirBody {
    pub(crate) fn new(parent: Ino, lower: Option<LowerId>) -> Self {
        Self {
            parent,
            lower,
            hidden: HashSet::new(),
            added: HashMap::new(),
            order: BTreeMap::new(),
            next_seq: 0,
            ghosts: BTreeMap::new(),
        }
    }

    pub(crate) fn get(&self, tree: &LowerTree, name: &str) -> Option<Ino> {
        if let Some(added) = self.added.get(name) {
            return Some(added.ino);
        }
        if let Some((place, id)) = self.lower.and_then(|dir| tree.child(dir, name)) {
            return (!self.hidden.contains(&place)).then_some(Ino::from(id) + 1);
        }
        self.ghosts.get(name).map(|&(ino, _)| ino)
    }

    /// The name must be free.
    pub(crate) fn insert(&mut self, name: &str, ino: Ino) {
        let name: Arc<str> = name.into();
        let seq = self.next_seq;
        self.next_seq += 1;
        self.order.insert(seq, Arc::clone(&name));
        self.added.insert(name, Added { ino, seq });
    }

    pub(crate) fn remove(&mut self, tree: &LowerTree, name: &str) {
        if let Some(added) = self.added.remove(name) {
            self.order.remove(&added.seq);
        } else if let Some((place, _)) = self.lower.and_then(|dir| tree.child(dir, name)) {
            self.hidden.insert(place);
        }
    }

    pub(crate) fn is_empty(&self, tree: &LowerTree) -> bool {
        let lower = self.lower.map_or(0, |dir| tree.child_count(dir)) as usize;
        self.added.is_empty() && lower == self.hidden.len()
    }

    /// Visits entries from a cookie on, `.` and `..` apart, until the visitor returns false.
    pub(crate) fn visit(&self, tree: &LowerTree, cookie: u64, mut each: impl FnMut(&str, Ino, u64) -> bool) {
        let seq = cookie.checked_sub(ADDED);
        if let (None, Some(dir)) = (seq, self.lower) {
            let first = cookie.saturating_sub(FIRST) as u32;
            let shown = |name: &str, place, id| {
                self.hidden.contains(&place) || each(name, Ino::from(id) + 1, FIRST + u64::from(place) + 1)
            };
            if !visit_lower(tree, dir, first, shown) {
                return;
            }
        }
        let seq = seq.unwrap_or(0);
        for (&seq, name) in self.order.range(seq..) {
            let Some(added) = self.added.get(name) else { continue };
            if !each(name, added.ino, ADDED + seq + 1) {
                return;
            }
        }
    }
}

/// Visits a lower directory; false when the visitor stopped.
pub(crate) fn visit_lower(
    tree: &LowerTree,
    dir: LowerId,
    first: u32,
    mut each: impl FnMut(&str, u32, LowerId) -> bool,
) -> bool {
    let mut place = first;
    while let Some((name, id)) = tree.child_at(dir, place) {
        if !each(name, place, id) {
            return false;
        }
        place += 1;
    }
    true
}

/// The cookie of the first entry after `..`, for a lower directory's own listing.
pub(crate) const fn lower_cookie(place: u32) -> u64 {
    FIRST + place as u64
}

/// The place a cookie means in a directory that has no added entries; `None` past its end.
pub(crate) fn lower_place(cookie: u64) -> Option<u32> {
    u32::try_from(cookie.saturating_sub(FIRST)).ok().filter(|_| cookie < ADDED)
}
