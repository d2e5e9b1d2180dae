//! The operations on names, synchronous: resolve, allow, do.
//!
//! In: a namespace, the caller, directory and path. Out: the result, or [`Fail`]. The order of errors is Linux's:
//! what is wrong with the path, then EEXIST/EBUSY/EXDEV, then EROFS, then EACCES/EPERM, then the backend's own.

use super::Namespace;
use super::walk::{Ctx, DirEnd, Fail, Last, Place, Walk};
use crate::errno::Errno;
use crate::pod::run::Access;
use crate::vfs::mount::{Backend, Mount, Node, Pos};
use crate::vfs::path;
use crate::vfs::perm::{self, Attr};
use crate::vfs::tree::NewBody;
use crate::vfs::{AccessMode, FileType, Follow, Metadata, SetTimes, fs_type};

#[allow(clippy::unused_self, reason = "the calls of a backend read alike, whether they need its state or not")]
impl Namespace {
    fn mount_of(&self, pos: &Pos) -> &Mount {
        &self.shared.table.mounts[pos.mount]
    }

    pub(super) fn stat_sync(&self, ctx: Ctx<'_>, at: &Pos, path: &str, follow: Follow) -> Result<Metadata, Fail> {
        let mut walk = Walk::start(self, ctx, at, path)?;
        loop {
            match walk.reach_last()? {
                Last::Dir(_) => return Ok(self.dir_stat(walk.mount(), &walk.pos.node)?),
                Last::Mount(mount) => {
                    let root = &self.shared.table.mounts[mount];
                    if root.top().is_some() {
                        walk.enter_mount(mount)?;
                        return Ok(self.dir_stat(walk.mount(), &walk.pos.node)?);
                    }
                    if walk.slash() {
                        return Err(Errno::NotDir.into());
                    }
                    return Ok(self.mount_file(root, ctx)?.stat_sync()?);
                }
                Last::Name => {
                    // One system call for the common case: the metadata tells whether it is a link.
                    let meta = self.stat_name(walk.mount(), &walk.pos.node, walk.name())?;
                    if meta.kind == FileType::Symlink && (follow == Follow::Yes || walk.slash()) {
                        let target = self.link_target(walk.mount(), &walk.pos.node, walk.name())?;
                        let slash = walk.slash();
                        walk.follow(target, slash)?;
                        continue;
                    }
                    if walk.slash() && meta.kind != FileType::Directory {
                        return Err(Errno::NotDir.into());
                    }
                    return Ok(meta);
                }
            }
        }
    }

    pub(super) fn access_sync(&self, ctx: Ctx<'_>, at: &Pos, path: &str, want: AccessMode) -> Result<(), Fail> {
        let mut walk = Walk::start(self, ctx, at, path)?;
        let (mount, attr) = match walk.locate(Follow::Yes)? {
            Place::Dir(pos) => (pos.mount, self.dir_attr(self.mount_of(&pos), &pos.node)?),
            Place::MountFile(mount) => (mount, self.mount_file(&self.shared.table.mounts[mount], ctx)?.attr_sync()?),
            Place::Name(attr) => (walk.pos.mount, attr),
        };
        perm::check(ctx.cred, &attr, want)?;
        let stored = matches!(attr.kind, FileType::Regular | FileType::Directory | FileType::Symlink);
        if want.contains(AccessMode::WRITE) && stored {
            self.shared.table.mounts[mount].check_writable()?;
        }
        Ok(())
    }

    /// Changes owner and mode of what a path leads to.
    fn change_attr(
        &self,
        ctx: Ctx<'_>,
        mut walk: Walk<'_, '_>,
        follow: Follow,
        change: impl Fn(&Attr) -> Result<Attr, Errno>,
    ) -> Result<(), Fail> {
        match walk.locate(follow)? {
            Place::Dir(pos) => {
                let mount = self.mount_of(&pos);
                ctx.check_writable(mount)?;
                let old = self.dir_attr(mount, &pos.node)?;
                let new = change(&old)?;
                self.set_dir_attr(mount, &pos.node, &old, &new)?;
            }
            Place::MountFile(mount) => {
                let mount = &self.shared.table.mounts[mount];
                ctx.check_writable(mount)?;
                let file = self.mount_file(mount, ctx)?;
                file.change_attr_sync(&change)?;
            }
            Place::Name(old) => {
                let mount = walk.mount();
                ctx.check_writable(mount)?;
                let new = change(&old)?;
                match (&mount.backend, &walk.pos.node) {
                    (Backend::Tree(fs), Node::Tree(dir)) => {
                        let mut txn = fs.txn();
                        let ino = txn.lookup(*dir, walk.name())?;
                        txn.update(ino, |meta| (meta.uid, meta.gid, meta.mode) = (new.uid, new.gid, new.mode));
                    }
                    (Backend::Host(fs), Node::Host(dir)) => fs.set_attr(dir, walk.name(), &old, &new)?,
                    _ => return Err(Errno::RoFs.into()),
                }
            }
        }
        Ok(())
    }

    pub(super) fn set_dir_attr(&self, mount: &Mount, node: &Node, old: &Attr, new: &Attr) -> Result<(), Errno> {
        match (&mount.backend, node) {
            (Backend::Tree(fs), Node::Tree(ino)) => {
                fs.txn().update(*ino, |meta| (meta.uid, meta.gid, meta.mode) = (new.uid, new.gid, new.mode));
                Ok(())
            }
            (Backend::Host(fs), Node::Host(dir)) => fs.set_dir_attr(dir, old, new),
            _ => Err(Errno::RoFs),
        }
    }

    pub(super) fn chmod_sync(&self, ctx: Ctx<'_>, at: &Pos, path: &str, mode: u32) -> Result<(), Fail> {
        let walk = Walk::start(self, ctx, at, path)?;
        self.change_attr(ctx, walk, Follow::Yes, |attr| perm::chmod(ctx.cred, attr, mode))
    }

    pub(super) fn chown_sync(
        &self,
        ctx: Ctx<'_>,
        at: &Pos,
        path: &str,
        follow: Follow,
        (uid, gid): (Option<u32>, Option<u32>),
    ) -> Result<(), Fail> {
        let walk = Walk::start(self, ctx, at, path)?;
        self.change_attr(ctx, walk, follow, |attr| perm::chown(ctx.cred, attr, uid, gid))
    }

    pub(super) fn set_times_sync(
        &self,
        ctx: Ctx<'_>,
        at: &Pos,
        path: &str,
        follow: Follow,
        times: SetTimes,
    ) -> Result<(), Fail> {
        let mut walk = Walk::start(self, ctx, at, path)?;
        match walk.locate(follow)? {
            Place::Dir(pos) => {
                let mount = self.mount_of(&pos);
                ctx.check_writable(mount)?;
                perm::set_times(ctx.cred, &self.dir_attr(mount, &pos.node)?, times)?;
                self.set_dir_times(mount, &pos.node, times)?;
            }
            Place::MountFile(mount) => {
                let mount = &self.shared.table.mounts[mount];
                ctx.check_writable(mount)?;
                self.mount_file(mount, ctx)?.set_times_sync(ctx.cred, times)?;
            }
            Place::Name(attr) => {
                let mount = walk.mount();
                ctx.check_writable(mount)?;
                perm::set_times(ctx.cred, &attr, times)?;
                match (&mount.backend, &walk.pos.node) {
                    (Backend::Tree(fs), Node::Tree(dir)) => {
                        let mut txn = fs.txn();
                        let ino = txn.lookup(*dir, walk.name())?;
                        txn.set_times(ino, times);
                    }
                    (Backend::Host(fs), Node::Host(dir)) => fs.set_times(dir, walk.name(), times)?,
                    _ => return Err(Errno::RoFs.into()),
                }
            }
        }
        Ok(())
    }

    pub(super) fn set_dir_times(&self, mount: &Mount, node: &Node, times: SetTimes) -> Result<(), Errno> {
        match (&mount.backend, node) {
            (Backend::Tree(fs), Node::Tree(ino)) => {
                fs.txn().set_times(*ino, times);
                Ok(())
            }
            (Backend::Host(fs), Node::Host(dir)) => fs.set_dir_times(dir, times),
            _ => Err(Errno::RoFs),
        }
    }

    pub(super) fn readlink_sync(&self, ctx: Ctx<'_>, at: &Pos, path: &str) -> Result<String, Fail> {
        let mut walk = Walk::start(self, ctx, at, path)?;
        match walk.locate(Follow::No)? {
            Place::Name(_) => Ok(self.read_link(walk.mount(), &walk.pos.node, walk.name())?),
            Place::Dir(_) | Place::MountFile(_) => Err(Errno::Inval.into()),
        }
    }

    /// Before a name is made: the new node's attributes.
    fn allow_new(&self, ctx: Ctx<'_>, walk: &Walk<'_, '_>, kind: FileType, mode: u32) -> Result<Attr, Errno> {
        let mount = walk.mount();
        let taken = || self.attr(mount, &walk.pos.node, walk.name()).is_ok();
        if let Err(refused) = ctx.check_writable(mount) {
            return Err(if taken() { Errno::Exist } else { refused });
        }
        let dir = self.dir_attr(mount, &walk.pos.node)?;
        if let Err(refused) = perm::may_add(ctx.cred, &dir) {
            return Err(if taken() { Errno::Exist } else { refused });
        }
        Ok(perm::created(ctx.cred, &dir, kind, mode))
    }

    pub(super) fn mkdir_sync(&self, ctx: Ctx<'_>, at: &Pos, path: &str, mode: u32) -> Result<(), Fail> {
        let mut walk = Walk::start(self, ctx, at, path)?;
        match walk.reach_last()? {
            Last::Dir(_) | Last::Mount(_) => Err(Errno::Exist.into()),
            Last::Name => {
                // Linux's mkdir takes the permission bits and the sticky bit only.
                let attr = self.allow_new(ctx, &walk, FileType::Directory, mode & 0o1777)?;
                Ok(make_dir(&walk, &attr)?)
            }
        }
    }

    pub(super) fn symlink_sync(&self, ctx: Ctx<'_>, target: &str, at: &Pos, path: &str) -> Result<(), Fail> {
        path::check(target)?;
        let mut walk = Walk::start(self, ctx, at, path)?;
        match walk.reach_last()? {
            Last::Dir(_) | Last::Mount(_) => Err(Errno::Exist.into()),
            Last::Name => {
                if walk.slash() {
                    let taken = self.attr(walk.mount(), &walk.pos.node, walk.name()).is_ok();
                    return Err(if taken { Errno::Exist } else { Errno::NoEnt }.into());
                }
                let attr = self.allow_new(ctx, &walk, FileType::Symlink, 0o777)?;
                match (&walk.mount().backend, &walk.pos.node) {
                    (Backend::Tree(fs), Node::Tree(dir)) => {
                        fs.txn().create(*dir, walk.name(), &attr, NewBody::Link(target))?;
                    }
                    (Backend::Host(fs), Node::Host(dir)) => fs.symlink(dir, walk.name(), target, &attr)?,
                    _ => return Err(Errno::RoFs.into()),
                }
                Ok(())
            }
        }
    }

    pub(super) fn link_sync(
        &self,
        ctx: Ctx<'_>,
        (old_at, old, follow): (&Pos, &str, Follow),
        (new_at, new): (&Pos, &str),
    ) -> Result<(), Fail> {
        let mut from = Walk::start(self, ctx, old_at, old)?;
        let place = from.locate(follow)?;
        let mut to = Walk::start(self, ctx, new_at, new)?;
        match to.reach_last()? {
            Last::Dir(_) | Last::Mount(_) => return Err(Errno::Exist.into()),
            Last::Name => {}
        }
        if self.attr(to.mount(), &to.pos.node, to.name()).is_ok() {
            return Err(Errno::Exist.into());
        }
        if to.slash() {
            return Err(Errno::NoEnt.into());
        }
        ctx.check_writable(to.mount())?;
        let (mount, attr) = match place {
            Place::Dir(pos) => (pos.mount, self.attr_pos(&pos)?),
            Place::MountFile(_) => return Err(Errno::XDev.into()),
            Place::Name(attr) => (from.pos.mount, attr),
        };
        if mount != to.pos.mount {
            return Err(Errno::XDev.into());
        }
        perm::may_add(ctx.cred, &self.attr_pos(&to.pos)?)?;
        if attr.kind == FileType::Directory {
            return Err(Errno::Perm.into());
        }
        match (&to.mount().backend, &from.pos.node, &to.pos.node) {
            (Backend::Tree(fs), Node::Tree(old_dir), Node::Tree(new_dir)) => {
                let mut txn = fs.txn();
                let ino = txn.lookup(*old_dir, from.name())?;
                txn.link(ino, *new_dir, to.name())?;
            }
            (Backend::Host(fs), Node::Host(old_dir), Node::Host(new_dir)) => {
                fs.link((old_dir, from.name()), (new_dir, to.name()))?;
            }
            _ => return Err(Errno::RoFs.into()),
        }
        Ok(())
    }

    /// Before a name goes: is the caller allowed?
    fn allow_removal(&self, ctx: Ctx<'_>, walk: &Walk<'_, '_>) -> Result<(), Errno> {
        if ctx.cred.uid == 0 {
            return Ok(());
        }
        let victim = self.attr(walk.mount(), &walk.pos.node, walk.name())?;
        perm::may_remove(ctx.cred, &self.dir_attr(walk.mount(), &walk.pos.node)?, &victim)
    }

    pub(super) fn unlink_sync(&self, ctx: Ctx<'_>, at: &Pos, path: &str) -> Result<(), Fail> {
        let mut walk = Walk::start(self, ctx, at, path)?;
        match walk.reach_last()? {
            Last::Dir(_) => return Err(Errno::IsDir.into()),
            Last::Mount(mount) => {
                ctx.check_writable(walk.mount())?;
                let is_dir = self.shared.table.mounts[mount].top().is_some();
                return Err(if is_dir { Errno::IsDir } else { Errno::Busy }.into());
            }
            Last::Name => {}
        }
        ctx.check_writable(walk.mount())?;
        if walk.slash() {
            let kind = self.attr(walk.mount(), &walk.pos.node, walk.name())?.kind;
            return Err(if kind == FileType::Directory { Errno::IsDir } else { Errno::NotDir }.into());
        }
        self.allow_removal(ctx, &walk)?;
        match (&walk.mount().backend, &walk.pos.node) {
            (Backend::Tree(fs), Node::Tree(dir)) => fs.txn().unlink(*dir, walk.name())?,
            (Backend::Host(fs), Node::Host(dir)) => fs.unlink(dir, walk.name())?,
            _ => return Err(Errno::RoFs.into()),
        }
        Ok(())
    }

    pub(super) fn rmdir_sync(&self, ctx: Ctx<'_>, at: &Pos, path: &str) -> Result<(), Fail> {
        let mut walk = Walk::start(self, ctx, at, path)?;
        match walk.reach_last()? {
            Last::Dir(DirEnd::Dot) => return Err(Errno::Inval.into()),
            Last::Dir(DirEnd::DotDot) => return Err(Errno::NotEmpty.into()),
            Last::Dir(DirEnd::Root) => return Err(Errno::Busy.into()),
            Last::Mount(mount) => {
                ctx.check_writable(walk.mount())?;
                let is_dir = self.shared.table.mounts[mount].top().is_some();
                return Err(if is_dir { Errno::Busy } else { Errno::NotDir }.into());
            }
            Last::Name => {}
        }
        ctx.check_writable(walk.mount())?;
        self.allow_removal(ctx, &walk)?;
        match (&walk.mount().backend, &walk.pos.node) {
            (Backend::Tree(fs), Node::Tree(dir)) => fs.txn().rmdir(*dir, walk.name())?,
            (Backend::Host(fs), Node::Host(dir)) => fs.rmdir(dir, walk.name())?,
            _ => return Err(Errno::RoFs.into()),
        }
        Ok(())
    }

    pub(super) fn rename_sync(
        &self,
        ctx: Ctx<'_>,
        (old_at, old): (&Pos, &str),
        (new_at, new): (&Pos, &str),
    ) -> Result<(), Fail> {
        let mut from = Walk::start(self, ctx, old_at, old)?;
        let old_end = from.reach_last()?;
        let mut to = Walk::start(self, ctx, new_at, new)?;
        let new_end = to.reach_last()?;
        if from.pos.mount != to.pos.mount {
            return Err(Errno::XDev.into());
        }
        if matches!(old_end, Last::Dir(_)) || matches!(new_end, Last::Dir(_)) {
            return Err(Errno::Busy.into());
        }
        let mount = from.mount();
        ctx.check_writable(mount)?;
        if matches!(old_end, Last::Mount(_)) || matches!(new_end, Last::Mount(_)) {
            return Err(Errno::Busy.into());
        }
        if ctx.cred.uid != 0 || from.slash() || to.slash() {
            let moved = self.attr(mount, &from.pos.node, from.name())?;
            if moved.kind != FileType::Directory && (from.slash() || to.slash()) {
                return Err(Errno::NotDir.into());
            }
            self.allow_rename(ctx, &from, &to, &moved)?;
        }
        match (&mount.backend, &from.pos.node, &to.pos.node) {
            (Backend::Tree(fs), Node::Tree(old_dir), Node::Tree(new_dir)) => {
                fs.txn().rename((*old_dir, from.name()), (*new_dir, to.name()))?;
            }
            (Backend::Host(fs), Node::Host(old_dir), Node::Host(new_dir)) => {
                fs.rename((old_dir, from.name()), (new_dir, to.name()))?;
            }
            _ => return Err(Errno::RoFs.into()),
        }
        Ok(())
    }

    fn allow_rename(&self, ctx: Ctx<'_>, from: &Walk<'_, '_>, to: &Walk<'_, '_>, moved: &Attr) -> Result<(), Errno> {
        let mount = from.mount();
        let old_dir = self.dir_attr(mount, &from.pos.node)?;
        let new_dir = self.dir_attr(mount, &to.pos.node)?;
        perm::may_remove(ctx.cred, &old_dir, moved)?;
        match self.attr(mount, &to.pos.node, to.name()) {
            Ok(victim) => perm::may_remove(ctx.cred, &new_dir, &victim)?,
            Err(Errno::NoEnt) => perm::may_add(ctx.cred, &new_dir)?,
            Err(errno) => return Err(errno),
        }
        // A directory that changes its parent has its `..` written.
        if moved.kind == FileType::Directory && !from.pos.node.is(&to.pos.node) {
            perm::check(ctx.cred, moved, AccessMode::WRITE)?;
        }
        Ok(())
    }

    /// What `statvfs` shows for a mount.
    pub(super) fn statfs_sync(&self, pos: &Pos) -> Result<crate::vfs::StatFs, Errno> {
        let mount = self.mount_of(pos);
        match &mount.backend {
            Backend::Tree(fs) => fs.statfs(mount.access),
            Backend::Host(fs) => fs.statfs(mount.access),
            Backend::Provided => Ok(crate::vfs::StatFs {
                fs_type: match &pos.node {
                    Node::Provided(path) if path.starts_with("/sys/") => fs_type::CGROUP2,
                    _ => fs_type::PROC,
                },
                block_size: 4096,
                blocks: 0,
                blocks_free: 0,
                blocks_available: 0,
                files: 0,
                files_free: 0,
                access: Access::ReadOnly,
            }),
        }
    }
}

/// Makes the directory the walk ended at.
pub(super) fn make_dir(walk: &Walk<'_, '_>, attr: &Attr) -> Result<(), Errno> {
    match (&walk.mount().backend, &walk.pos.node) {
        (Backend::Tree(fs), Node::Tree(dir)) => {
            fs.txn().create(*dir, walk.name(), attr, NewBody::Dir)?;
            Ok(())
        }
        (Backend::Host(fs), Node::Host(dir)) => fs.mkdir(dir, walk.name(), attr),
        _ => Err(Errno::RoFs),
    }
}
