//! A container's file tree: mounts over backends, and the calls that programs make on it.
//!
//! In: credentials, a directory handle, a path. Out: what the system call of the same name gives. The work is in
//! `ops` and `open`, synchronous; here is only the choice of thread: on the node's own files a call runs where it
//! is and awaits nothing, one that reaches a foreign mount is run again, from its start, on that mount's pool.
//! (Nothing changes before the walk has reached the last component, so running it again is safe.) One that comes to a link
//! into another container's tree goes on there, in the same way; one that comes to a mount whose content is on its way
//! waits for it.

mod backend;
mod builder;
#[cfg(test)]
mod deferred;
mod devices;
#[cfg(test)]
mod model;
mod open;
mod ops;
#[cfg(test)]
mod roots;
#[cfg(test)]
mod tests;
mod walk;

use std::sync::Arc;

pub(crate) use backend::path_ino;
pub(crate) use builder::DEFERRED_PATIENCE;
pub use builder::{NamespaceBuilder, Upper};
pub use devices::Devices;

use self::walk::{Ctx, Elsewhere, Fail, MayHang};
use super::dir::Listing;
use super::mount::{Backend, Mount, MountTable, Node, Pos};
use super::path::MAX_LINKS;
use super::perm::Attr;
use super::{
    AccessMode, Credentials, Dir, Follow, Metadata, OpenFlags, OpenOptions, Opened, Provided, Provider, SetTimes,
    StatFs,
};
use crate::descriptors::PodDescriptors;
use crate::errno::Errno;

/// A container's file tree: mounts over backends. Cheap to clone.
///
/// Paths are absolute (from the container's root) or relative to the directory handle; `..` stops at the root. One way
/// leads into another container's tree, where a [`Provider`] has a link to it. From there on its root is the one that
/// absolute links and `..` know.
#[derive(Debug, Clone)]
pub struct Namespace {
    shared: Arc<Shared>,
    /// This process's dynamic files, else the container's.
    provider: Option<Arc<dyn Provider>>,
}

impl PartialEq for Namespace {
    /// Whether it is the same container's.
    fn eq(&self, other: &Self) -> bool {
        self.is_same_tree(other)
    }
}

impl Eq for Namespace {}

/// What all processes of the container share.
#[derive(Debug)]
struct Shared {
    table: MountTable,
    provider: Option<Arc<dyn Provider>>,
    descriptors: Option<Arc<PodDescriptors>>,
}

impl Shared {
    fn new(root: Mount, provider: Option<Arc<dyn Provider>>) -> Self {
        Self { table: MountTable { mounts: vec![root] }, provider, descriptors: None }
    }
}

/// Runs a synchronous operation on a path here; when it came to a foreign mount, once more on that mount's pool with the
/// arguments copied; when it came to a link into another tree, on from there.
macro_rules! dispatch {
    ($self:ident, $cred:ident, $at:ident, $path:ident, own { $($name:ident = $copy:expr),* }, |$ns:ident, $ctx:ident| $call:expr) => {{
        let mut elsewhere: Option<(Elsewhere, Pos)> = None;
        let mut roots = 0;
        loop {
            let ($ns, $at, $path) = match &elsewhere {
                None => {
                    let (ns, at) = $at.place($self);
                    (ns, at, $path)
                }
                Some((elsewhere, root)) => (&elsewhere.ns, root, elsewhere.path.as_str()),
            };
            let here = {
                let $ctx = Ctx::guest($cred, MayHang::No);
                $call
            };
            let done = match here {
                Err(Fail::Hang(pool)) => {
                    let (ns, at, path, cred) = ($ns.clone(), $at.clone(), $path.to_owned(), $cred.clone());
                    $(let $name = $copy;)*
                    let call = move || {
                        let ($ns, $at, $path, $ctx) = (&ns, &at, path.as_str(), Ctx::guest(&cred, MayHang::Yes));
                        $(let $name = &$name;)*
                        $call
                    };
                    pool.run(call).await?
                }
                done => done,
            };
            match done {
                Err(Fail::Deferred(deferred)) => deferred.wait().await,
                // Each tree bounds its own links; these lead from tree to tree.
                Err(Fail::Elsewhere(_)) if roots == MAX_LINKS => break Err(Errno::Loop),
                Err(Fail::Elsewhere(next)) => {
                    roots += 1;
                    let root = next.ns.root_pos();
                    elsewhere = Some((next, root));
                }
                done => break done.map_err(Fail::errno),
            }
        }
    }};
}

/// The same for an operation on two paths, which do not leave the tree.
macro_rules! dispatch_pair {
    ($self:ident, $cred:ident, own { $($name:ident = $copy:expr),* }, |$ns:ident, $ctx:ident| $call:expr) => {{
        loop {
            let here = {
                let ($ns, $ctx) = ($self, Ctx::guest($cred, MayHang::No));
                $call
            };
            let done = match here {
                Err(Fail::Hang(pool)) => {
                    let (ns, cred) = ($self.clone(), $cred.clone());
                    $(let $name = $copy;)*
                    let call = move || {
                        let ($ns, $ctx) = (&ns, Ctx::guest(&cred, MayHang::Yes));
                        $(let $name = &$name;)*
                        $call
                    };
                    pool.run(call).await?
                }
                done => done,
            };
            match done {
                Err(Fail::Deferred(deferred)) => deferred.wait().await,
                done => break done.map_err(Fail::errno),
            }
        }
    }};
}

impl Namespace {
    pub(crate) fn table(&self) -> &MountTable {
        &self.shared.table
    }

    pub(crate) fn is_same_tree(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    fn root_pos(&self) -> Pos {
        let node = self.shared.table.mounts[0].top().cloned().unwrap_or(Node::Tree(super::tree::ROOT));
        Pos { mount: 0, node }
    }

    pub(crate) fn attr_pos(&self, pos: &Pos) -> Result<Attr, Errno> {
        self.dir_attr(&self.shared.table.mounts[pos.mount], &pos.node)
    }

    pub(crate) fn stat_pos(&self, pos: &Pos) -> Result<Metadata, Errno> {
        self.dir_stat(&self.shared.table.mounts[pos.mount], &pos.node)
    }

    pub(crate) fn set_attr_pos(&self, pos: &Pos, old: &Attr, new: &Attr) -> Result<(), Errno> {
        self.set_dir_attr(&self.shared.table.mounts[pos.mount], &pos.node, old, new)
    }

    pub(crate) fn set_times_pos(&self, pos: &Pos, times: SetTimes) -> Result<(), Errno> {
        self.set_dir_times(&self.shared.table.mounts[pos.mount], &pos.node, times)
    }

    pub(crate) fn provided_at(&self, path: &str) -> Result<Provided, Errno> {
        self.provide(path)
    }

    /// The same tree with this process's dynamic files. Costs two reference counts.
    #[must_use]
    pub fn for_process(&self, provider: Arc<dyn Provider>) -> Self {
        Self { shared: Arc::clone(&self.shared), provider: Some(provider) }
    }

    /// The container's root directory, open for listing.
    pub fn root(&self) -> Dir {
        Dir::new(self.clone(), self.root_pos(), Listing::Allowed).expect("a tree's root is never removed")
    }

    /// Bytes of the container's own writes to its root, for `ephemeral-storage` and statistics.
    pub fn writable_bytes(&self) -> u64 {
        match &self.shared.table.mounts[0].backend {
            Backend::Tree(fs) => fs.own_bytes(),
            Backend::Host(_) | Backend::Provided => 0,
        }
    }
}

#[allow(clippy::missing_errors_doc, reason = "errors are those of the system call of the same name")]
impl Namespace {
    /// `openat`.
    pub async fn open(&self, cred: &Credentials, at: &Dir, path: &str, options: OpenOptions) -> Result<Opened, Errno> {
        // Before anything is opened or created, as by the kernel.
        let slot = self.shared.descriptors.as_ref().map(PodDescriptors::take).transpose()?;
        let opened = dispatch!(self, cred, at, path, own {}, |ns, ctx| ns.open_sync(ctx, at, path, options));
        opened.map(|opened| match slot {
            Some(slot) => opened.holding(slot),
            None => opened,
        })
    }

    /// `fstatat`.
    pub async fn stat(&self, cred: &Credentials, at: &Dir, path: &str, follow: Follow) -> Result<Metadata, Errno> {
        dispatch!(self, cred, at, path, own {}, |ns, ctx| ns.stat_sync(ctx, at, path, follow))
    }

    /// `faccessat` with the effective ids.
    pub async fn access(&self, cred: &Credentials, at: &Dir, path: &str, mode: AccessMode) -> Result<(), Errno> {
        dispatch!(self, cred, at, path, own {}, |ns, ctx| ns.access_sync(ctx, at, path, mode))
    }

    /// `utimensat`.
    pub async fn set_times(
        &self,
        cred: &Credentials,
        at: &Dir,
        path: &str,
        follow: Follow,
        times: SetTimes,
    ) -> Result<(), Errno> {
        dispatch!(self, cred, at, path, own {}, |ns, ctx| ns.set_times_sync(ctx, at, path, follow, times))
    }

    /// `fchmodat`; always follows.
    pub async fn chmod(&self, cred: &Credentials, at: &Dir, path: &str, mode: u32) -> Result<(), Errno> {
        dispatch!(self, cred, at, path, own {}, |ns, ctx| ns.chmod_sync(ctx, at, path, mode))
    }

    /// `fchownat` to (user, group); `None` keeps.
    pub async fn chown(
        &self,
        cred: &Credentials,
        at: &Dir,
        path: &str,
        follow: Follow,
        owner: (Option<u32>, Option<u32>),
    ) -> Result<(), Errno> {
        dispatch!(self, cred, at, path, own {}, |ns, ctx| ns.chown_sync(ctx, at, path, follow, owner))
    }

    /// `mkdirat`; the umask is taken off.
    pub async fn mkdir(&self, cred: &Credentials, at: &Dir, path: &str, mode: u32) -> Result<(), Errno> {
        dispatch!(self, cred, at, path, own {}, |ns, ctx| ns.mkdir_sync(ctx, at, path, mode))
    }

    /// `unlinkat` with `AT_REMOVEDIR`.
    pub async fn rmdir(&self, cred: &Credentials, at: &Dir, path: &str) -> Result<(), Errno> {
        dispatch!(self, cred, at, path, own {}, |ns, ctx| ns.rmdir_sync(ctx, at, path))
    }

    /// `unlinkat`; a directory is EISDIR.
    pub async fn unlink(&self, cred: &Credentials, at: &Dir, path: &str) -> Result<(), Errno> {
        dispatch!(self, cred, at, path, own {}, |ns, ctx| ns.unlink_sync(ctx, at, path))
    }

    /// `renameat`.
    pub async fn rename(
        &self,
        cred: &Credentials,
        old_at: &Dir,
        old: &str,
        new_at: &Dir,
        new: &str,
    ) -> Result<(), Errno> {
        let (tree, old_at) = old_at.place(self);
        let (other, new_at) = new_at.place(self);
        if !tree.is_same_tree(other) {
            return Err(Errno::XDev);
        }
        dispatch_pair!(tree, cred, own {
            old_at = old_at.clone(), old = old.to_owned(), new_at = new_at.clone(), new = new.to_owned()
        }, |ns, ctx| ns.rename_sync(ctx, (old_at, old), (new_at, new)))
    }

    /// `linkat`; `follow` says whether a link at the end of `old` is followed.
    pub async fn link(&self, cred: &Credentials, old: (&Dir, &str, Follow), new: (&Dir, &str)) -> Result<(), Errno> {
        let ((tree, old_at), old, follow) = (old.0.place(self), old.1, old.2);
        let ((other, new_at), new) = (new.0.place(self), new.1);
        if !tree.is_same_tree(other) {
            return Err(Errno::XDev);
        }
        dispatch_pair!(tree, cred, own {
            old_at = old_at.clone(), old = old.to_owned(), new_at = new_at.clone(), new = new.to_owned()
        }, |ns, ctx| ns.link_sync(ctx, (old_at, old, follow), (new_at, new)))
    }

    /// `symlinkat`: makes a link at `path` to `target`, which is not looked at.
    pub async fn symlink(&self, cred: &Credentials, target: &str, at: &Dir, path: &str) -> Result<(), Errno> {
        dispatch!(self, cred, at, path, own { target = target.to_owned() }, |ns, ctx| ns.symlink_sync(ctx, target, at, path))
    }

    /// `readlinkat`.
    pub async fn readlink(&self, cred: &Credentials, at: &Dir, path: &str) -> Result<String, Errno> {
        dispatch!(self, cred, at, path, own {}, |ns, ctx| ns.readlink_sync(ctx, at, path))
    }

    /// `statvfs` of the filesystem a directory is on.
    pub async fn statfs(&self, at: &Dir) -> Result<StatFs, Errno> {
        let (tree, pos) = at.place(self);
        match tree.shared.table.mounts[pos.mount].hanging() {
            None => tree.statfs_sync(pos),
            Some(fs) => {
                let (pool, ns, pos) = (fs.pool.clone(), tree.clone(), pos.clone());
                pool.run(move || ns.statfs_sync(&pos)).await?
            }
        }
    }

    /// Reads a whole regular file of at most `limit` bytes (else EFBIG); a directory is EISDIR.
    pub async fn read(&self, cred: &Credentials, at: &Dir, path: &str, limit: u64) -> Result<Vec<u8>, Errno> {
        let file = match self.open(cred, at, path, OpenOptions::new(OpenFlags::READ)).await? {
            Opened::File(file) if file.is_seekable() => file,
            Opened::Dir(_) => return Err(Errno::IsDir),
            Opened::File(_) | Opened::Device(_) => return Err(Errno::Inval),
        };
        let mut bytes = Vec::with_capacity(file.stat().await?.size.min(limit) as usize);
        let mut chunk = vec![0; 64 * 1024];
        loop {
            // A file of the node's own answers at once, every time: the thread is others' too.
            tokio::task::consume_budget().await;
            let count = file.read_at(&mut chunk, bytes.len() as u64).await?;
            if count == 0 {
                return Ok(bytes);
            }
            if bytes.len() as u64 + count as u64 > limit {
                return Err(Errno::FBig);
            }
            bytes.extend_from_slice(&chunk[..count]);
        }
    }
}
