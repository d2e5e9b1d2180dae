//! Changes of a tree's names: each a transaction under the tree's one lock.
//!
//! In: directory ids and names that the namespace resolved and allowed. Out: the change, or the error Linux gives
//! for its shape (EEXIST, ENOTEMPTY, EISDIR, ...). Never asks who is asking.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::{RwLock, RwLockWriteGuard};

use super::inode::DirBody;
use super::store::Reservation;
use super::{
    Body, Data, Found, Ino, Inode, MAX_HARD_LINKS, MAX_NODES, Meta, NODE_COST, Slot, State, TreeFs, fresh_meta,
    new_inode, revive,
};
use crate::errno::Errno;
use crate::vfs::perm::Attr;
use crate::vfs::{FileType, SetTime, SetTimes, Timestamp};

/// No lookup takes longer: it is a few steps in memory, however busy the machine.
const LOOKUP_SECONDS: i64 = 10;

/// What a new node holds.
#[derive(Debug, Clone, Copy)]
pub(crate) enum NewBody<'a> {
    File,
    Dir,
    Link(&'a str),
}

/// Changes under way; others see all of them when it is dropped.
pub(crate) struct Txn<'a> {
    pub(super) fs: &'a TreeFs,
    pub(super) state: RwLockWriteGuard<'a, State>,
}

impl Txn<'_> {
    /// The live node, made from its lower one if need be.
    pub(crate) fn inode(&mut self, ino: Ino) -> Result<Arc<Inode>, Errno> {
        match self.fs.find(&self.state, ino)? {
            Found::Inode(inode) => Ok(inode),
            Found::Lower(id) => {
                let inode = Arc::new(revive(&self.fs.lower, id));
                self.sweep();
                self.state.slots.insert(ino, Slot::Seen(Arc::downgrade(&inode)));
                Ok(inode)
            }
        }
    }

    /// Forgets nodes nobody holds, when they have doubled: constant cost per insertion.
    fn sweep(&mut self) {
        if self.state.slots.len() < self.state.sweep_at {
            return;
        }
        self.state.slots.retain(|_, slot| !matches!(slot, Slot::Seen(inode) if inode.strong_count() == 0));
        self.state.sweep_at = (self.state.slots.len() * 2).max(64);
    }

    /// Keeps a changed node, unless it is in no directory any more.
    pub(crate) fn keep(&mut self, inode: &Arc<Inode>) {
        if !inode.kept.swap(true, Ordering::AcqRel) && !inode.is_unlinked() {
            self.state.slots.insert(inode.ino, Slot::Kept(Arc::clone(inode)));
        }
    }

    /// Changes a node's metadata; nothing when it is gone.
    pub(crate) fn update(&mut self, ino: Ino, change: impl FnOnce(&mut Meta)) {
        if let Ok(inode) = self.inode(ino) {
            self.keep(&inode);
            let mut meta = inode.meta.lock();
            change(&mut meta);
            meta.ctime = Timestamp::now();
        }
    }

    pub(crate) fn lookup(&self, dir: Ino, name: &str) -> Result<Ino, Errno> {
        self.fs.lookup_in(&self.state, dir, name)
    }

    /// A directory that can take entries: `ENOENT` once removed.
    fn open_dir(&mut self, dir: Ino) -> Result<Arc<Inode>, Errno> {
        let inode = self.inode(dir)?;
        if inode.kind != FileType::Directory {
            return Err(Errno::NotDir);
        }
        if inode.is_unlinked() {
            return Err(Errno::NoEnt);
        }
        self.keep(&inode);
        Ok(inode)
    }

    /// Makes a node. `EEXIST` when the name is taken, `ENOSPC` at the tree's limits.
    pub(crate) fn create(&mut self, dir: Ino, name: &str, attr: &Attr, body: NewBody<'_>) -> Result<Arc<Inode>, Errno> {
        if self.lookup(dir, name).is_ok() {
            return Err(Errno::Exist);
        }
        let parent = self.open_dir(dir)?;
        if self.state.slots.len() >= MAX_NODES {
            self.state.sweep_at = 0;
            self.sweep();
            if self.state.slots.len() >= MAX_NODES {
                return Err(Errno::NoSpc);
            }
        }
        let cost = Reservation::take(&self.fs.nodes, NODE_COST)?;
        let ino = self.state.next;
        self.state.next += 1;
        let is_dir = matches!(body, NewBody::Dir);
        let body = match body {
            NewBody::File => Body::File(RwLock::new(Data::empty(&self.fs.store))),
            NewBody::Dir => Body::Dir(RwLock::new(DirBody::new(dir, None))),
            NewBody::Link(target) => Body::Link(target.into()),
        };
        let meta = fresh_meta(attr, if is_dir { 2 } else { 1 });
        let inode = Arc::new(new_inode(ino, attr.kind, meta, body, Some(cost)));
        inode.kept.store(true, Ordering::Release);
        self.state.slots.insert(ino, Slot::Kept(Arc::clone(&inode)));
        Self::attach(&parent, name, ino, attr.kind);
        Ok(inode)
    }

    fn attach(dir: &Inode, name: &str, ino: Ino, kind: FileType) {
        if let Some(body) = dir.dir() {
            body.write().insert(name, ino);
        }
        dir.mark_modified();
        dir.meta.lock().nlink += u32::from(kind == FileType::Directory);
    }

    fn detach(&self, dir: &Inode, name: &str, kind: FileType) {
        if let Some(body) = dir.dir() {
            body.write().remove(&self.fs.lower, name);
        }
        dir.mark_modified();
        let mut meta = dir.meta.lock();
        meta.nlink = meta.nlink.saturating_sub(u32::from(kind == FileType::Directory));
    }

    /// Takes one name from a node; the last one lets go of it.
    fn drop_link(&mut self, inode: &Arc<Inode>) {
        let gone = {
            let mut meta = inode.meta.lock();
            meta.nlink = if inode.kind == FileType::Directory { 0 } else { meta.nlink.saturating_sub(1) };
            meta.ctime = Timestamp::now();
            meta.nlink == 0
        };
        if !gone {
            self.keep(inode);
            return;
        }
        inode.kept.store(true, Ordering::Release);
        self.state.slots.insert(inode.ino, Slot::Seen(Arc::downgrade(inode)));
        if let Some(id) = inode.ino.checked_sub(1).and_then(|id| u32::try_from(id).ok()) {
            self.state.removed.insert(id);
        }
    }

    /// `unlink`: `EISDIR` for a directory.
    pub(crate) fn unlink(&mut self, dir: Ino, name: &str) -> Result<(), Errno> {
        let child = self.lookup(dir, name)?;
        let inode = self.inode(child)?;
        if inode.kind == FileType::Directory {
            return Err(Errno::IsDir);
        }
        let parent = self.open_dir(dir)?;
        self.detach(&parent, name, inode.kind);
        self.drop_link(&inode);
        Ok(())
    }

    /// `rmdir`: `ENOTDIR`, `ENOTEMPTY`.
    pub(crate) fn rmdir(&mut self, dir: Ino, name: &str) -> Result<(), Errno> {
        let child = self.lookup(dir, name)?;
        let inode = self.inode(child)?;
        self.check_empty(&inode)?;
        let parent = self.open_dir(dir)?;
        self.detach(&parent, name, inode.kind);
        self.drop_link(&inode);
        Ok(())
    }

    fn check_empty(&self, inode: &Inode) -> Result<(), Errno> {
        let body = inode.dir().ok_or(Errno::NotDir)?;
        if body.read().is_empty(&self.fs.lower) { Ok(()) } else { Err(Errno::NotEmpty) }
    }

    /// `rename`, replacing what is in the way when the kinds fit.
    pub(crate) fn rename(&mut self, from: (Ino, &str), to: (Ino, &str)) -> Result<(), Errno> {
        let moved = self.lookup(from.0, from.1)?;
        let target = self.lookup(to.0, to.1).ok();
        if target == Some(moved) {
            return Ok(());
        }
        let inode = self.inode(moved)?;
        let is_dir = inode.kind == FileType::Directory;
        if is_dir && self.is_below(to.0, moved) {
            return Err(Errno::Inval);
        }
        // A directory above the source is not empty, whatever the source is: Linux looks at that first.
        if target.is_some_and(|target| self.is_below(from.0, target)) {
            return Err(Errno::NotEmpty);
        }
        let target = target.map(|ino| self.inode(ino)).transpose()?;
        if let Some(target) = &target {
            match (is_dir, target.kind == FileType::Directory) {
                (true, false) => return Err(Errno::NotDir),
                (false, true) => return Err(Errno::IsDir),
                (true, true) => self.check_empty(target)?,
                (false, false) => {}
            }
        }
        let (old_dir, new_dir) = (self.open_dir(from.0)?, self.open_dir(to.0)?);
        if let Some(target) = &target {
            self.detach(&new_dir, to.1, target.kind);
            self.drop_link(target);
        }
        self.detach(&old_dir, from.1, inode.kind);
        Self::attach(&new_dir, to.1, moved, inode.kind);
        self.keep(&inode);
        if let Some(body) = inode.dir() {
            body.write().parent = to.0;
        }
        inode.meta.lock().ctime = Timestamp::now();
        Ok(())
    }

    fn is_below(&self, mut ino: Ino, top: Ino) -> bool {
        loop {
            if ino == top {
                return true;
            }
            match self.fs.parent_in(&self.state, ino) {
                Ok(parent) if parent != ino => ino = parent,
                _ => return false,
            }
        }
    }

    /// Another name for a node: `EPERM` for a directory, `EMLINK`, `EEXIST`.
    pub(crate) fn link(&mut self, ino: Ino, dir: Ino, name: &str) -> Result<(), Errno> {
        if self.lookup(dir, name).is_ok() {
            return Err(Errno::Exist);
        }
        let inode = self.inode(ino)?;
        if inode.kind == FileType::Directory {
            return Err(Errno::Perm);
        }
        let parent = self.open_dir(dir)?;
        {
            let mut meta = inode.meta.lock();
            if meta.nlink == 0 {
                return Err(Errno::NoEnt);
            }
            if meta.nlink >= MAX_HARD_LINKS {
                return Err(Errno::MLink);
            }
            meta.nlink += 1;
            meta.ctime = Timestamp::now();
        }
        self.keep(&inode);
        Self::attach(&parent, name, ino, inode.kind);
        Ok(())
    }

    /// Removes a node with all that is below it, if it is there.
    pub(crate) fn remove_all(&mut self, dir: Ino, name: &str) -> Result<(), Errno> {
        let Ok(top) = self.lookup(dir, name) else { return Ok(()) };
        let mut todo = vec![(dir, name.to_owned(), top)];
        while let Some((parent, name, ino)) = todo.pop() {
            let inode = self.inode(ino)?;
            let Some(body) = inode.dir() else {
                self.unlink(parent, &name)?;
                continue;
            };
            let mut children = Vec::new();
            body.read().visit(&self.fs.lower, 0, |child, child_ino, _| {
                children.push((ino, child.to_owned(), child_ino));
                true
            });
            if children.is_empty() {
                self.rmdir(parent, &name)?;
            } else {
                // Again once it is empty.
                todo.push((parent, name, ino));
                todo.extend(children);
            }
        }
        Ok(())
    }

    /// Takes a name from listings while lookups under way still find it; those retired long ago go for good.
    pub(crate) fn retire(&mut self, dir: Ino, name: &str) -> Result<(), Errno> {
        let Ok(ino) = self.lookup(dir, name) else { return Ok(()) };
        let parent = self.open_dir(dir)?;
        let now = Timestamp::now();
        let mut old = Vec::new();
        if let Some(body) = parent.dir() {
            body.write().ghosts.retain(|ghost, &mut (ghost_ino, since)| {
                let keep = now.seconds.saturating_sub(since.seconds) < LOOKUP_SECONDS;
                if !keep {
                    old.push((ghost.clone(), ghost_ino));
                }
                keep
            });
        }
        for (ghost, ghost_ino) in old {
            // Back to its name for as long as this transaction lasts, to be removed like any directory.
            Self::attach(&parent, &ghost, ghost_ino, FileType::Directory);
            self.remove_all(dir, &ghost)?;
        }
        self.detach(&parent, name, FileType::Directory);
        if let Some(body) = parent.dir() {
            body.write().ghosts.insert(name.into(), (ino, now));
        }
        Ok(())
    }
}

impl Txn<'_> {
    /// `utimensat`.
    pub(crate) fn set_times(&mut self, ino: Ino, times: SetTimes) {
        self.update(ino, |meta| apply_times(meta, times));
    }
}

/// Sets the times that are given.
pub(crate) fn apply_times(meta: &mut Meta, times: SetTimes) {
    let now = Timestamp::now();
    let value = |time, old| match time {
        SetTime::Omit => old,
        SetTime::Now => now,
        SetTime::At(at) => at,
    };
    meta.atime = value(times.accessed, meta.atime);
    meta.mtime = value(times.modified, meta.mtime);
}

/// What the node itself makes in a tree: projections.
impl Txn<'_> {
    /// Makes a regular file with content.
    pub(crate) fn create_with(&mut self, dir: Ino, name: &str, attr: &Attr, bytes: &[u8]) -> Result<(), Errno> {
        let inode = self.create(dir, name, attr, NewBody::File)?;
        let mut done = 0;
        while done < bytes.len()
            && let Some(data) = inode.data()
        {
            done += data.write().write_at(&self.fs.store, &bytes[done..], done as u64)?;
        }
        Ok(())
    }

    /// A link's target.
    pub(crate) fn link_target(&mut self, ino: Ino) -> Option<String> {
        match &self.inode(ino).ok()?.body {
            Body::Link(target) => Some(target.to_string()),
            _ => None,
        }
    }

    /// All names of a directory.
    pub(crate) fn names(&mut self, dir: Ino) -> Vec<Box<str>> {
        let mut names = Vec::new();
        if let Ok(inode) = self.inode(dir)
            && let Some(body) = inode.dir()
        {
            body.read().visit(&self.fs.lower, 0, |name, _, _| {
                names.push(name.into());
                true
            });
        }
        names
    }
}
