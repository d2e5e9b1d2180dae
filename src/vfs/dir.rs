//! Directory handles: where relative paths begin, and listings.
//!
//! In: cookies and changes of metadata. Out: entries in pieces. Holds its node: a removed directory stays empty and
//! `ENOENT` to new names. Does not resolve names: `Namespace` does.

use std::sync::Arc;

use super::mount::{Backend, Mount, Node, Pos};
use super::namespace::path_ino;
use super::perm::{self, Attr};
use super::tree::Inode;
use super::{Credentials, FileType, Metadata, Namespace, Provided, SetTimes};
use crate::descriptors::Slot;
use crate::errno::Errno;

/// One entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// Where a listing goes on after this entry.
    pub next: u64,
    /// The inode id, as `stat` of it tells.
    pub ino: u64,
    /// What it is.
    pub kind: FileType,
    /// Its name; bytes of the host that are no UTF-8 are shown as U+FFFD.
    pub name: Box<str>,
}

/// Whether a handle was opened for listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Listing {
    Allowed,
    Denied,
}

/// A directory handle. Cheap to clone. Stays on its directory when that is renamed or removed.
#[derive(Debug, Clone)]
pub struct Dir(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    ns: Namespace,
    pos: Pos,
    listing: Listing,
    /// Keeps a removed node of a tree.
    _pin: Option<Arc<Inode>>,
    /// Its place among the pod's open files.
    #[allow(dead_code, reason = "kept for what its end does")]
    slot: Option<Slot>,
}

impl Inner {
    fn mount(&self) -> &Mount {
        &self.ns.table().mounts[self.pos.mount]
    }

    fn list(&self, cookie: u64) -> Result<Vec<DirEntry>, Errno> {
        let mut entries = match (&self.mount().backend, &self.pos.node) {
            (Backend::Tree(fs), Node::Tree(ino)) => fs.list(*ino, cookie)?,
            (Backend::Host(fs), Node::Host(dir)) => fs.list(dir, cookie)?,
            (Backend::Provided, Node::Provided(path)) => self.list_provided(path, cookie)?,
            _ => return Err(Errno::Io),
        };
        // The directory above a mount's top is in another filesystem.
        let at_top = self.mount().top().is_some_and(|top| top.is(&self.pos.node));
        if at_top && let Some(parent) = entries.iter_mut().take(2).find(|entry| &*entry.name == "..") {
            parent.ino = match &self.mount().at {
                Some((pos, _)) => self.ns.stat_pos(pos)?.ino,
                None => self.ns.stat_pos(&self.pos)?.ino,
            };
        }
        Ok(entries)
    }

    fn list_provided(&self, path: &str, cookie: u64) -> Result<Vec<DirEntry>, Errno> {
        let Provided::Directory(names) = self.ns.provided_at(path)? else { return Err(Errno::NotDir) };
        let parent = path.rsplit_once('/').map_or("/", |(parent, _)| parent);
        let dots = [(".".to_owned(), path_ino(path)), ("..".to_owned(), path_ino(parent))];
        let dots = dots.into_iter().map(|(name, ino)| (name, ino, FileType::Directory));
        let names = names.into_iter().map(|(name, kind)| {
            let ino = path_ino(&format!("{}/{name}", path.trim_end_matches('/')));
            (name, ino, kind)
        });
        let skip = usize::try_from(cookie).unwrap_or(usize::MAX);
        Ok(dots
            .chain(names)
            .enumerate()
            .skip(skip)
            .map(|(i, (name, ino, kind))| DirEntry { next: i as u64 + 1, ino, kind, name: name.into() })
            .collect())
    }

    fn change_attr(&self, change: impl Fn(&Attr) -> Result<Attr, Errno>) -> Result<(), Errno> {
        self.mount().check_writable()?;
        let old = self.ns.attr_pos(&self.pos)?;
        let new = change(&old)?;
        self.ns.set_attr_pos(&self.pos, &old, &new)
    }
}

impl Dir {
    pub(crate) fn new(ns: Namespace, pos: Pos, listing: Listing) -> Result<Self, Errno> {
        let pin = match (&ns.table().mounts[pos.mount].backend, &pos.node) {
            (Backend::Tree(fs), Node::Tree(ino)) => Some(fs.inode(*ino)?),
            _ => None,
        };
        Ok(Self(Arc::new(Inner { ns, pos, listing, _pin: pin, slot: None })))
    }

    /// Counted as open until its last clone is gone.
    pub(crate) fn holding(mut self, slot: Slot) -> Self {
        let inner = Arc::get_mut(&mut self.0).expect("it was opened just now and nobody else has it");
        inner.slot = Some(slot);
        self
    }

    /// The tree that it is in, and where: the process's own, with the dynamic files of that process, or another
    /// container's, where only the path of a link to its root can have led.
    pub(crate) fn place<'a>(&'a self, ns: &'a Namespace) -> (&'a Namespace, &'a Pos) {
        (if ns.is_same_tree(&self.0.ns) { ns } else { &self.0.ns }, &self.0.pos)
    }

    /// Runs a call here, or on the mount's pool when it may hang.
    async fn hop<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Inner) -> Result<T, Errno> + Send + 'static,
    ) -> Result<T, Errno> {
        match self.0.mount().hanging() {
            None => call(&self.0),
            Some(fs) => {
                let inner = Arc::clone(&self.0);
                fs.pool.run(move || call(&inner)).await?
            }
        }
    }
}

#[allow(clippy::missing_errors_doc, reason = "errors are those of the system call of the same name")]
impl Dir {
    /// `fstat`.
    pub async fn stat(&self) -> Result<Metadata, Errno> {
        self.hop(|inner| inner.ns.stat_pos(&inner.pos)).await
    }

    /// Entries from `cookie` on (0 is the start, else a [`DirEntry::next`]), `.` and `..` first; some at a time
    /// (at most about 700); none at the end. Needs a handle opened with `READ`, or the root.
    pub async fn read_dir(&self, cookie: u64) -> Result<Vec<DirEntry>, Errno> {
        if self.0.listing == Listing::Denied {
            return Err(Errno::BadF);
        }
        self.hop(move |inner| inner.list(cookie)).await
    }

    /// `futimens`.
    pub async fn set_times(&self, cred: &Credentials, times: SetTimes) -> Result<(), Errno> {
        let cred = cred.clone();
        self.hop(move |inner| {
            inner.mount().check_writable()?;
            perm::set_times(&cred, &inner.ns.attr_pos(&inner.pos)?, times)?;
            inner.ns.set_times_pos(&inner.pos, times)
        })
        .await
    }

    /// `fchmod`.
    pub async fn chmod(&self, cred: &Credentials, mode: u32) -> Result<(), Errno> {
        let cred = cred.clone();
        self.hop(move |inner| inner.change_attr(|attr| perm::chmod(&cred, attr, mode))).await
    }

    /// `fchown`; `None` keeps.
    pub async fn chown(&self, cred: &Credentials, uid: Option<u32>, gid: Option<u32>) -> Result<(), Errno> {
        let cred = cred.clone();
        self.hop(move |inner| inner.change_attr(|attr| perm::chown(&cred, attr, uid, gid))).await
    }

    /// `fsync`: always on a pool where there is a disk.
    pub async fn sync(&self) -> Result<(), Errno> {
        let Backend::Host(fs) = &self.0.mount().backend else { return Ok(()) };
        let (fs, inner) = (Arc::clone(fs), Arc::clone(&self.0));
        let pool = fs.pool.clone();
        pool.run(move || match &inner.pos.node {
            Node::Host(dir) => fs.sync_dir(dir),
            _ => Ok(()),
        })
        .await?
    }
}
