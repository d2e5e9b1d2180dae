//! Opening: what `openat` does with a resolved name.
//!
//! In: the walk's end and the flags. Out: a file, a directory, or one of the process's own streams.

use std::sync::Arc;

use super::Namespace;
use super::backend::{Link, join, provided_stat};
use super::walk::{Ctx, Fail, Last, Walk};
use crate::errno::Errno;
use crate::vfs::dir::Listing;
use crate::vfs::file::{FileBody, TreeFile};
use crate::vfs::host::{HostFile, HostFs, HostOpen};
use crate::vfs::mount::{Backend, Mount, MountRoot, Node, Pos};
use crate::vfs::perm::{self, Attr};
use crate::vfs::tree::{Body, DeviceNode, Ino, NewBody, TreeFs};
use crate::vfs::{AccessMode, Dir, File, FileType, Follow, OpenFlags, OpenOptions, Opened, Provided};

/// Times a creation is tried again when the name appears and disappears under it.
const RACES: usize = 16;

/// What a name turned out to be.
enum Found {
    Opened(Opened),
    Link(Link),
}

impl From<File> for Found {
    fn from(file: File) -> Self {
        Self::Opened(Opened::File(file))
    }
}

/// What `open` needs of the node's permissions.
fn wanted(flags: OpenFlags) -> AccessMode {
    let mut want = AccessMode::empty();
    want.set(AccessMode::READ, flags.contains(OpenFlags::READ));
    want.set(AccessMode::WRITE, flags.intersects(OpenFlags::WRITE | OpenFlags::TRUNCATE));
    want
}

fn is_exclusive(flags: OpenFlags) -> bool {
    flags.contains(OpenFlags::CREATE | OpenFlags::EXCLUSIVE)
}

/// May an existing regular file be opened so?
fn allow_file(ctx: Ctx<'_>, mount: &Mount, attr: &Attr, flags: OpenFlags) -> Result<(), Errno> {
    if flags.contains(OpenFlags::DIRECTORY) {
        return Err(Errno::NotDir);
    }
    perm::check(ctx.cred, attr, wanted(flags))?;
    let stored = attr.kind == FileType::Regular;
    if stored && flags.intersects(OpenFlags::WRITE | OpenFlags::TRUNCATE) {
        ctx.check_writable(mount)?;
    }
    Ok(())
}

#[allow(clippy::unused_self, reason = "the calls of a backend read alike, whether they need its state or not")]
impl Namespace {
    pub(super) fn open_sync(&self, ctx: Ctx<'_>, at: &Pos, path: &str, options: OpenOptions) -> Result<Opened, Fail> {
        let mut walk = Walk::start(self, ctx, at, path)?;
        let flags = options.flags;
        loop {
            match walk.reach_last()? {
                Last::Dir(_) => return Ok(self.open_dir(ctx, walk.pos.clone(), flags)?),
                Last::Mount(mount) => {
                    let root = &self.shared.table.mounts[mount];
                    if root.top().is_some() {
                        walk.enter_mount(mount)?;
                        return Ok(self.open_dir(ctx, walk.pos.clone(), flags)?);
                    }
                    if walk.slash() {
                        return Err(Errno::NotDir.into());
                    }
                    return self.open_mount_file(ctx, root, flags);
                }
                Last::Name => {}
            }
            if walk.slash() && flags.contains(OpenFlags::CREATE) {
                return Err(Errno::IsDir.into());
            }
            let flags = if walk.slash() { flags | OpenFlags::DIRECTORY } else { flags };
            match self.open_name(ctx, &walk, OpenOptions { flags, ..options })? {
                Found::Opened(opened) => return Ok(opened),
                Found::Link(_) if is_exclusive(flags) => return Err(Errno::Exist.into()),
                Found::Link(_) if options.follow == Follow::No && !walk.slash() => {
                    // Linux asks for the directory before it looks at the link.
                    let is_dir = flags.contains(OpenFlags::DIRECTORY);
                    return Err(if is_dir { Errno::NotDir } else { Errno::Loop }.into());
                }
                Found::Link(target) => {
                    let slash = walk.slash();
                    walk.follow(target, slash)?;
                }
            }
        }
    }

    fn open_dir(&self, ctx: Ctx<'_>, pos: Pos, flags: OpenFlags) -> Result<Opened, Errno> {
        if is_exclusive(flags) {
            return Err(Errno::Exist);
        }
        if flags.intersects(OpenFlags::CREATE | OpenFlags::WRITE | OpenFlags::TRUNCATE) {
            return Err(Errno::IsDir);
        }
        let listing = if flags.contains(OpenFlags::READ) { Listing::Allowed } else { Listing::Denied };
        if listing == Listing::Allowed && ctx.cred.uid != 0 {
            perm::check(ctx.cred, &self.attr_pos(&pos)?, AccessMode::READ)?;
        }
        Ok(Opened::Dir(Dir::new(self.clone(), pos, listing)?))
    }

    fn open_name(&self, ctx: Ctx<'_>, walk: &Walk<'_, '_>, options: OpenOptions) -> Result<Found, Errno> {
        let mount = walk.mount();
        for _ in 0..RACES {
            let found = match (&mount.backend, &walk.pos.node) {
                (Backend::Tree(fs), Node::Tree(dir)) => self.open_tree(ctx, walk, fs, *dir, options.flags),
                (Backend::Host(fs), Node::Host(dir)) => match fs.open_existing(dir, walk.name(), options.flags) {
                    Ok(HostOpen::Dir(dir)) => {
                        let pos = Pos { mount: walk.pos.mount, node: Node::Host(dir) };
                        self.open_dir(ctx, pos, options.flags).map(Found::Opened)
                    }
                    Ok(HostOpen::Link(target)) => Ok(Found::Link(Link::Path(target))),
                    Ok(HostOpen::File(file, attr)) => self.finish_host(ctx, mount, file, &attr, options.flags),
                    Err(Errno::IsDir) if is_exclusive(options.flags) => Err(Errno::Exist),
                    Err(errno) => Err(errno),
                },
                (Backend::Provided, Node::Provided(dir)) => self.open_provided(ctx, walk, dir, options.flags),
                _ => Err(Errno::Io),
            };
            match found {
                Err(Errno::NoEnt) if options.flags.contains(OpenFlags::CREATE) => {}
                other => return other,
            }
            if options.flags.contains(OpenFlags::DIRECTORY) {
                return Err(Errno::Inval);
            }
            match self.create(ctx, walk, options) {
                Err(Errno::Exist) if !is_exclusive(options.flags) => {}
                other => return other.map(Found::from),
            }
        }
        Err(Errno::Again)
    }

    fn open_tree(
        &self,
        ctx: Ctx<'_>,
        walk: &Walk<'_, '_>,
        fs: &Arc<TreeFs>,
        dir: Ino,
        flags: OpenFlags,
    ) -> Result<Found, Errno> {
        fs.with_child(dir, walk.name(), |ino| self.open_node(ctx, walk, fs, ino, flags))
    }

    fn open_node(
        &self,
        ctx: Ctx<'_>,
        walk: &Walk<'_, '_>,
        fs: &Arc<TreeFs>,
        ino: Ino,
        flags: OpenFlags,
    ) -> Result<Found, Errno> {
        let attr = fs.attr(ino)?;
        match attr.kind {
            FileType::Directory => {
                let pos = Pos { mount: walk.pos.mount, node: Node::Tree(ino) };
                return self.open_dir(ctx, pos, flags).map(Found::Opened);
            }
            FileType::Symlink => return Ok(Found::Link(Link::Path(fs.readlink(ino)?))),
            _ if is_exclusive(flags) => return Err(Errno::Exist),
            _ => {}
        }
        let mount = walk.mount();
        allow_file(ctx, mount, &attr, flags)?;
        let inode = fs.inode(ino)?;
        match &inode.body {
            Body::Device(DeviceNode::Process(device)) => Ok(Found::Opened(Opened::Device(*device))),
            Body::Device(device) => {
                let body = FileBody::device(*device, fs.stat_inode(&inode));
                Ok(File::new(body, flags, mount.access).into())
            }
            Body::File(_) => {
                let file = File::new(FileBody::Tree(TreeFile::open(fs, inode)?), flags, mount.access);
                if flags.contains(OpenFlags::TRUNCATE) {
                    file.truncate_sync()?;
                }
                Ok(file.into())
            }
            // Pipes, sockets and disks of an image have nothing behind them here.
            _ => Err(Errno::NxIo),
        }
    }

    fn finish_host(
        &self,
        ctx: Ctx<'_>,
        mount: &Mount,
        mut file: HostFile,
        attr: &Attr,
        flags: OpenFlags,
    ) -> Result<Found, Errno> {
        if is_exclusive(flags) {
            return Err(Errno::Exist);
        }
        allow_file(ctx, mount, attr, flags)?;
        file.payer.clone_from(&mount.payer);
        let file = File::new(FileBody::Host(file), flags, mount.access);
        if flags.contains(OpenFlags::TRUNCATE) {
            file.truncate_sync()?;
        }
        Ok(file.into())
    }

    fn open_provided(&self, ctx: Ctx<'_>, walk: &Walk<'_, '_>, dir: &str, flags: OpenFlags) -> Result<Found, Errno> {
        let path = join(dir, walk.name());
        let provided = self.provide(&path)?;
        let meta = provided_stat(&path, &provided);
        let attr = Attr { uid: 0, gid: 0, mode: meta.mode, kind: meta.kind };
        match provided {
            Provided::Directory(_) => {
                let pos = Pos { mount: walk.pos.mount, node: Node::Provided(path) };
                self.open_dir(ctx, pos, flags).map(Found::Opened)
            }
            Provided::Symlink(target) => Ok(Found::Link(Link::Path(target))),
            Provided::Into { tree, target } => Ok(Found::Link(Link::Into { tree, target })),
            _ if is_exclusive(flags) => Err(Errno::Exist),
            Provided::Device(device) => {
                allow_file(ctx, walk.mount(), &attr, flags)?;
                Ok(Found::Opened(Opened::Device(device)))
            }
            Provided::File(bytes) => {
                allow_file(ctx, walk.mount(), &attr, flags)?;
                Ok(File::new(FileBody::Provided(bytes.into(), meta), flags, walk.mount().access).into())
            }
        }
    }

    /// Makes a regular file and opens it; its mode does not restrain this first open.
    fn create(&self, ctx: Ctx<'_>, walk: &Walk<'_, '_>, options: OpenOptions) -> Result<File, Errno> {
        let mount = walk.mount();
        ctx.check_writable(mount)?;
        let dir_attr = self.dir_attr(mount, &walk.pos.node)?;
        perm::may_add(ctx.cred, &dir_attr)?;
        let attr = perm::created(ctx.cred, &dir_attr, FileType::Regular, options.mode);
        let body = match (&mount.backend, &walk.pos.node) {
            (Backend::Tree(fs), Node::Tree(dir)) => {
                let inode = fs.txn().create(*dir, walk.name(), &attr, NewBody::File)?;
                FileBody::Tree(TreeFile::open(fs, inode)?)
            }
            (Backend::Host(fs), Node::Host(dir)) => {
                let mut file = fs.create(dir, walk.name(), &attr)?;
                file.payer.clone_from(&mount.payer);
                FileBody::Host(file)
            }
            _ => return Err(Errno::RoFs),
        };
        Ok(File::new(body, options.flags, mount.access))
    }

    /// A mounted file.
    fn open_mount_file(&self, ctx: Ctx<'_>, mount: &Mount, flags: OpenFlags) -> Result<Opened, Fail> {
        if is_exclusive(flags) {
            return Err(Errno::Exist.into());
        }
        let file = self.mount_file_with(mount, ctx, flags)?;
        allow_file(ctx, mount, &file.attr_sync()?, flags)?;
        if flags.contains(OpenFlags::TRUNCATE) {
            file.truncate_sync()?;
        }
        Ok(Opened::File(file))
    }

    /// A mounted file, to look at.
    pub(super) fn mount_file(&self, mount: &Mount, ctx: Ctx<'_>) -> Result<File, Fail> {
        self.mount_file_with(mount, ctx, OpenFlags::empty())
    }

    fn mount_file_with(&self, mount: &Mount, ctx: Ctx<'_>, flags: OpenFlags) -> Result<File, Fail> {
        if let Some(fs) = mount.hanging()
            && ctx.may_hang == super::walk::MayHang::No
        {
            return Err(Fail::Hang(fs.pool.clone()));
        }
        // Refused before it is opened for writing: the kernel might refuse with another word.
        if flags.intersects(OpenFlags::WRITE | OpenFlags::TRUNCATE) {
            ctx.check_writable(mount)?;
        }
        let body = match (&mount.backend, &mount.root) {
            (Backend::Tree(fs), MountRoot::TreeFile(inode)) => FileBody::Tree(TreeFile::open(fs, Arc::clone(inode))?),
            (Backend::Host(_), MountRoot::HostFile(file)) => {
                let mut file = file.reopen(flags)?;
                file.payer.clone_from(&mount.payer);
                FileBody::Host(file)
            }
            (Backend::Host(_), MountRoot::NodeFile(path, absent)) => {
                FileBody::Host(HostFs::open_node_file(path, *absent, flags)?)
            }
            _ => return Err(Errno::Io.into()),
        };
        Ok(File::new(body, flags, mount.access))
    }
}
