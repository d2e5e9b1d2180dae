//! A filesystem whose names and metadata are in memory, over an immutable lower tree.
//!
//! In: operations by inode id. Out: inode ids, metadata, data handles. It serves as a container's root over its
//! image (new bytes in files of a node directory), as tmpfs, `/dev`, managed files and projections (new bytes in
//! memory). Only nodes that are open or changed cost anything; the rest is read from the shared lower tree.
//!
//! Permissions, mounts, symbolic links and read-only-ness are the namespace's business, not decided here.
//!
//! ```text
//!   lower node --open, lookup of a handle--> seen (weak) --change--> kept --last name removed--> seen --drop--> gone
//! ```

mod data;
mod inode;
mod lower;
mod ops;
mod store;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock};

pub(crate) use data::Data;
pub(crate) use inode::{Body, Inode, Meta};
pub(crate) use lower::{Builder, Draft, DraftBody, LowerId, LowerTree, LowerView};
pub(crate) use ops::{NewBody, Txn, apply_times};
pub(crate) use store::{Budget, DiskStore, Store, make_parents};

use super::perm::Attr;
use super::{Device, DirEntry, FileType, Metadata, StatFs, Timestamp, fs_type};
use crate::errno::Errno;
use crate::pod::run::Access;
use inode::DirBody;
use store::Reservation;

/// An inode id: a lower node's number plus one, or from [`FIRST_NEW`] on.
pub(crate) type Ino = u64;
/// The root of every tree.
pub(crate) const ROOT: Ino = 1;
const FIRST_NEW: Ino = 1 << 32;
/// Nodes one tree may add; with [`NODE_COST`] a second bound for containers without a memory limit.
const MAX_NODES: usize = 1 << 20;
/// Bytes of the agent's memory that a new node is charged for: itself, its name twice, its place in the tables.
const NODE_COST: u64 = 512;
/// Hard links of one file, as ext4.
const MAX_HARD_LINKS: u32 = 65_000;
/// Entries of one listing call: bounds the time the tree's lock is held.
const LIST_CHUNK: usize = 256;

/// A device a tree can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeviceNode {
    Null,
    Zero,
    Full,
    Random,
    Process(Device),
}

impl DeviceNode {
    /// Linux's numbers for it.
    pub(crate) fn rdev(self) -> u64 {
        let (major, minor) = match self {
            Self::Null => (1, 3),
            Self::Zero => (1, 5),
            Self::Full => (1, 7),
            Self::Random => (1, 9),
            Self::Process(Device::Tty) => (5, 0),
            Self::Process(_) => (5, 1),
        };
        rustix::fs::makedev(major, minor)
    }
}

/// The filesystem.
#[derive(Debug)]
pub(crate) struct TreeFs {
    pub(crate) dev: u64,
    lower: Arc<LowerTree>,
    state: RwLock<State>,
    store: Store,
    /// Pays for nodes.
    nodes: Arc<Budget>,
}

#[derive(Debug)]
struct State {
    slots: HashMap<Ino, Slot>,
    /// Lower nodes that are in no directory any more.
    removed: HashSet<LowerId>,
    next: Ino,
    sweep_at: usize,
}

#[derive(Debug)]
enum Slot {
    Kept(Arc<Inode>),
    Seen(Weak<Inode>),
}

/// A node as a lookup finds it.
enum Found {
    Inode(Arc<Inode>),
    Lower(LowerId),
}

/// A number for a new filesystem, shown as `st_dev`.
pub(crate) fn next_dev() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Lookups of one name that is replaced again and again; above it the reader is told that it is not there.
const MAX_LOOKUPS: usize = 64;

impl TreeFs {
    /// Over `lower`, keeping new bytes in `store`. For a disk store `nodes` pays for nodes; a memory store pays
    /// for both.
    pub(crate) fn new(lower: Arc<LowerTree>, store: Store, nodes: Arc<Budget>) -> Arc<Self> {
        let state = State { slots: HashMap::new(), removed: HashSet::new(), next: FIRST_NEW, sweep_at: 64 };
        Arc::new(Self { dev: next_dev(), lower, state: RwLock::new(state), store, nodes })
    }

    /// In memory, with nothing in it.
    pub(crate) fn memory(limit: u64, charge: Option<Arc<dyn super::Charge>>, root_mode: u32) -> Arc<Self> {
        let budget = Budget::new(limit, charge);
        let tree = Self::new(LowerTree::empty(), Store::Memory(Arc::clone(&budget)), budget);
        tree.txn().update(ROOT, |meta| meta.mode = root_mode);
        tree
    }

    /// Begins changes that others see as one.
    pub(crate) fn txn(&self) -> Txn<'_> {
        Txn { fs: self, state: self.state.write() }
    }

    fn find(&self, state: &State, ino: Ino) -> Result<Found, Errno> {
        match state.slots.get(&ino) {
            Some(Slot::Kept(inode)) => return Ok(Found::Inode(Arc::clone(inode))),
            Some(Slot::Seen(inode)) => {
                if let Some(inode) = inode.upgrade() {
                    return Ok(Found::Inode(inode));
                }
            }
            None => {}
        }
        let id = ino.checked_sub(1).and_then(|id| LowerId::try_from(id).ok());
        match id {
            Some(id) if (id as usize) < self.lower.len() && !state.removed.contains(&id) => Ok(Found::Lower(id)),
            _ => Err(Errno::NoEnt),
        }
    }

    /// The child of a directory. `ENOENT`, or `ENOTDIR` when it is none.
    pub(crate) fn lookup(&self, dir: Ino, name: &str) -> Result<Ino, Errno> {
        let state = self.state.read();
        self.lookup_in(&state, dir, name)
    }

    fn lookup_in(&self, state: &State, dir: Ino, name: &str) -> Result<Ino, Errno> {
        match self.find(state, dir)? {
            Found::Inode(inode) => {
                let body = inode.dir().ok_or(Errno::NotDir)?;
                body.read().get(&self.lower, name).ok_or(Errno::NoEnt)
            }
            Found::Lower(id) => {
                if self.lower.attr(id).kind != FileType::Directory {
                    return Err(Errno::NotDir);
                }
                self.lower.child(id, name).map(|(_, child)| Ino::from(child) + 1).ok_or(Errno::NoEnt)
            }
        }
    }

    /// Looks a name up and uses the node it means. A node that was replaced meanwhile (a `rename` over it, the swap of a
    /// projection) is gone, but its name is not: it is looked up again, since no reader on Linux sees that gap either.
    pub(crate) fn with_child<T>(
        &self,
        dir: Ino,
        name: &str,
        use_it: impl Fn(Ino) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        // A round is lost only to somebody else's progress.
        for _ in 0..MAX_LOOKUPS {
            let ino = self.lookup(dir, name)?;
            match use_it(ino) {
                Err(Errno::NoEnt) if self.lookup(dir, name) != Ok(ino) => {}
                other => return other,
            }
        }
        Err(Errno::NoEnt)
    }

    /// Owner, group, mode and kind.
    pub(crate) fn attr(&self, ino: Ino) -> Result<Attr, Errno> {
        Ok(match self.find(&self.state.read(), ino)? {
            Found::Inode(inode) => inode.attr(),
            Found::Lower(id) => self.lower.attr(id),
        })
    }

    /// The directory a directory is in; the root is in itself.
    pub(crate) fn parent(&self, ino: Ino) -> Result<Ino, Errno> {
        self.parent_in(&self.state.read(), ino)
    }

    fn parent_in(&self, state: &State, ino: Ino) -> Result<Ino, Errno> {
        Ok(match self.find(state, ino)? {
            Found::Inode(inode) => inode.dir().ok_or(Errno::NotDir)?.read().parent,
            Found::Lower(id) => Ino::from(self.lower.parent(id)) + 1,
        })
    }

    /// Whether directory `ino` is `top` or below it.
    pub(crate) fn is_within(&self, mut ino: Ino, top: Ino) -> bool {
        let state = self.state.read();
        while ino != top {
            match self.parent_in(&state, ino) {
                Ok(parent) if parent != ino => ino = parent,
                _ => return false,
            }
        }
        true
    }

    /// A symbolic link's target.
    pub(crate) fn readlink(&self, ino: Ino) -> Result<String, Errno> {
        match self.find(&self.state.read(), ino)? {
            Found::Inode(inode) => match &inode.body {
                Body::Link(target) => Ok(target.to_string()),
                _ => Err(Errno::Inval),
            },
            Found::Lower(id) => match self.lower.view(id) {
                LowerView::Link(target) => Ok(target.to_owned()),
                _ => Err(Errno::Inval),
            },
        }
    }

    /// What `stat` tells.
    pub(crate) fn stat(&self, ino: Ino) -> Result<Metadata, Errno> {
        let found = self.find(&self.state.read(), ino)?;
        Ok(match found {
            Found::Inode(inode) => self.stat_inode(&inode),
            Found::Lower(id) => self.stat_lower(id),
        })
    }

    pub(crate) fn stat_inode(&self, inode: &Inode) -> Metadata {
        let (size, stored, rdev) = match &inode.body {
            Body::File(data) => {
                let data = data.read();
                (data.size(), data.stored_bytes(), 0)
            }
            Body::Link(target) => (target.len() as u64, 0, 0),
            Body::Device(device) => (0, 0, device.rdev()),
            Body::Dir(_) => (4096, 0, 0),
            Body::Other => (0, 0, 0),
        };
        let meta = *inode.meta.lock();
        Metadata {
            dev: self.dev,
            ino: inode.ino,
            kind: inode.kind,
            mode: meta.mode,
            uid: meta.uid,
            gid: meta.gid,
            nlink: u64::from(meta.nlink),
            size,
            rdev,
            blocks: stored.div_ceil(512),
            atime: meta.atime,
            mtime: meta.mtime,
            ctime: meta.ctime,
        }
    }

    fn stat_lower(&self, id: LowerId) -> Metadata {
        let attr = self.lower.attr(id);
        let mtime = self.lower.mtime(id);
        let (size, rdev) = match self.lower.view(id) {
            LowerView::File { size, .. } => (size, 0),
            LowerView::Link(target) => (target.len() as u64, 0),
            LowerView::Dir => (4096, 0),
            LowerView::Device(device) => (0, device.rdev()),
            LowerView::Other => (0, 0),
        };
        Metadata {
            dev: self.dev,
            ino: Ino::from(id) + 1,
            kind: attr.kind,
            mode: attr.mode,
            uid: attr.uid,
            gid: attr.gid,
            nlink: u64::from(self.lower.nlink(id)),
            size,
            rdev,
            blocks: if attr.kind == FileType::Regular { size.div_ceil(512) } else { 0 },
            atime: mtime,
            mtime,
            ctime: mtime,
        }
    }

    /// The node itself, to hold on to.
    pub(crate) fn inode(&self, ino: Ino) -> Result<Arc<Inode>, Errno> {
        if let Found::Inode(inode) = self.find(&self.state.read(), ino)? {
            return Ok(inode);
        }
        self.txn().inode(ino)
    }

    /// Keeps a changed node in the table. Cheap when it is there.
    pub(crate) fn keep(&self, inode: &Arc<Inode>) {
        if !inode.kept.load(Ordering::Acquire) {
            self.txn().keep(inode);
        }
    }

    /// Entries from a cookie on, `.` and `..` first.
    pub(crate) fn list(&self, ino: Ino, cookie: u64) -> Result<Vec<DirEntry>, Errno> {
        let state = self.state.read();
        let found = self.find(&state, ino)?;
        let mut out = Vec::new();
        let mut add = |name: &str, ino, kind, next| {
            out.push(DirEntry { next, ino, kind, name: name.into() });
            out.len() < LIST_CHUNK
        };
        if cookie == 0 {
            add(".", ino, FileType::Directory, 1);
        }
        if cookie <= 1 {
            // A removed directory may have outlived its parent.
            let parent = self.parent_in(&state, ino).unwrap_or(ino);
            add("..", parent, FileType::Directory, 2);
        }
        match found {
            Found::Inode(inode) => {
                let body = inode.dir().ok_or(Errno::NotDir)?.read();
                body.visit(&self.lower, cookie, |name, child, next| {
                    let kind = self.kind_in(&state, child);
                    kind.is_none_or(|kind| add(name, child, kind, next))
                });
            }
            Found::Lower(id) => {
                if let Some(first) = inode::lower_place(cookie) {
                    inode::visit_lower(&self.lower, id, first, |name, place, child| {
                        let ino = Ino::from(child) + 1;
                        let kind = self.kind_in(&state, ino);
                        kind.is_none_or(|kind| add(name, ino, kind, inode::lower_cookie(place + 1)))
                    });
                }
            }
        }
        Ok(out)
    }

    fn kind_in(&self, state: &State, ino: Ino) -> Option<FileType> {
        match self.find(state, ino) {
            Ok(Found::Inode(inode)) => Some(inode.kind),
            Ok(Found::Lower(id)) => Some(self.lower.attr(id).kind),
            Err(_) => None,
        }
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// Bytes this tree added over its lower one, open removed files included.
    pub(crate) fn own_bytes(&self) -> u64 {
        if let Store::Memory(budget) = &self.store {
            return budget.used();
        }
        let live: Vec<Arc<Inode>> = self
            .state
            .read()
            .slots
            .values()
            .filter_map(|slot| match slot {
                Slot::Kept(inode) => Some(Arc::clone(inode)),
                Slot::Seen(inode) => inode.upgrade(),
            })
            .collect();
        live.iter().filter_map(|inode| inode.data()).map(|data| data.read().own_bytes()).sum()
    }

    pub(crate) fn statfs(&self, access: Access) -> Result<StatFs, Errno> {
        let used_nodes = self.state.read().slots.len() as u64 + self.lower.len() as u64;
        let files = MAX_NODES as u64 + self.lower.len() as u64;
        let files_free = files.saturating_sub(used_nodes);
        match &self.store {
            Store::Memory(budget) => {
                let blocks = budget.limit() / 4096;
                let free = budget.limit().saturating_sub(budget.used()) / 4096;
                Ok(StatFs {
                    // What lies over an image is its root, or an image volume.
                    fs_type: if self.lower.is_image() { fs_type::OVERLAY } else { fs_type::TMPFS },
                    block_size: 4096,
                    blocks,
                    blocks_free: free,
                    blocks_available: free,
                    files,
                    files_free,
                    access,
                })
            }
            Store::Disk(store) => {
                let disk = store.statvfs()?;
                Ok(StatFs {
                    fs_type: fs_type::OVERLAY,
                    block_size: disk.f_frsize,
                    blocks: disk.f_blocks,
                    blocks_free: disk.f_bfree,
                    blocks_available: disk.f_bavail,
                    files,
                    files_free,
                    access,
                })
            }
        }
    }
}

impl Drop for TreeFs {
    fn drop(&mut self) {
        if let Store::Disk(store) = &self.store {
            store.abandon();
        }
    }
}

/// A lower node brought to life.
fn revive(tree: &LowerTree, id: LowerId) -> Inode {
    let (attr, mtime) = (tree.attr(id), tree.mtime(id));
    let body = match tree.view(id) {
        LowerView::File { tar, offset, size } => {
            Body::File(RwLock::new(Data::Lower { tar: Arc::clone(tar), offset, size }))
        }
        LowerView::Dir => Body::Dir(RwLock::new(DirBody::new(Ino::from(tree.parent(id)) + 1, Some(id)))),
        LowerView::Link(target) => Body::Link(target.into()),
        LowerView::Device(device) => Body::Device(device),
        LowerView::Other => Body::Other,
    };
    let meta = Meta {
        uid: attr.uid,
        gid: attr.gid,
        mode: attr.mode,
        nlink: tree.nlink(id),
        atime: mtime,
        mtime,
        ctime: mtime,
    };
    new_inode(Ino::from(id) + 1, attr.kind, meta, body, None)
}

fn new_inode(ino: Ino, kind: FileType, meta: Meta, body: Body, cost: Option<Reservation>) -> Inode {
    Inode {
        ino,
        kind,
        meta: Mutex::new(meta),
        body,
        kept: AtomicBool::new(false),
        opens: AtomicU32::new(0),
        _cost: cost,
    }
}

/// The attributes of a fresh node.
fn fresh_meta(attr: &Attr, nlink: u32) -> Meta {
    let now = Timestamp::now();
    Meta { uid: attr.uid, gid: attr.gid, mode: attr.mode, nlink, atime: now, mtime: now, ctime: now }
}
