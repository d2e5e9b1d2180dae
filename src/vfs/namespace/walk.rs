//! Path resolution.
//!
//! In: a start directory and a path. Out: the directory of the last component and its name, or the directory or
//! mount that the path ends at. One step at a time over handles; links push text in front of what is left; nothing
//! recurses. Absolute paths and links begin at the container's root, `..` ends there.

use std::sync::Arc;

use super::Namespace;
use super::backend::{Link, Step};
use crate::errno::Errno;
use crate::vfs::deferred::Deferred;
use crate::vfs::mount::{Mount, Pos};
use crate::vfs::path::{Component, Pending};
use crate::vfs::perm::{self, Attr};
use crate::vfs::pool::Pool;
use crate::vfs::{AccessMode, Credentials, FileType, Follow};

/// Why a synchronous operation did not finish.
#[derive(Debug)]
pub(super) enum Fail {
    /// For good.
    Errno(Errno),
    /// It came to a filesystem that may hang; nothing has changed yet: again, on that pool.
    Hang(Pool),
    /// It came to a mount whose content is on its way; nothing has changed yet: again, when it is there.
    Deferred(Arc<Deferred>),
    /// It came to a link into another container's tree; nothing has changed yet: on from there.
    Elsewhere(Elsewhere),
}

/// Where a resolution goes on.
#[derive(Debug)]
pub(super) struct Elsewhere {
    /// The tree.
    pub(super) ns: Namespace,
    /// The link's target there and what is left of the path: absolute.
    pub(super) path: String,
}

impl From<Errno> for Fail {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

impl Fail {
    /// Of what is not tried again.
    pub(super) fn errno(self) -> Errno {
        match self {
            Self::Errno(errno) => errno,
            Self::Hang(_) | Self::Deferred(_) => Errno::Io,
            // Calls with two paths do not go there: they would be across filesystems.
            Self::Elsewhere(_) => Errno::XDev,
        }
    }
}

/// Whether the thread may be held by a hung filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MayHang {
    /// It is the mount's pool's.
    Yes,
    /// It runs guests.
    No,
}

/// On whose behalf mounts are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Authority {
    /// A program of the container.
    Guest,
    /// The node, making mount points: read-only mounts take them, missing directories are made.
    Node,
}

/// What every operation needs to know of its caller.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ctx<'a> {
    pub(super) cred: &'a Credentials,
    pub(super) may_hang: MayHang,
    pub(super) authority: Authority,
}

impl<'a> Ctx<'a> {
    pub(super) fn guest(cred: &'a Credentials, may_hang: MayHang) -> Self {
        Self { cred, may_hang, authority: Authority::Guest }
    }

    /// `EROFS`, unless the node itself asks.
    pub(super) fn check_writable(&self, mount: &Mount) -> Result<(), Errno> {
        if self.authority == Authority::Node { Ok(()) } else { mount.check_writable() }
    }
}

/// Where a path ends.
#[derive(Debug)]
pub(super) enum Last {
    /// At a directory without a name of its own here: the root, `.`, `..`.
    Dir(DirEnd),
    /// At a name in [`Walk::pos`], there or not.
    Name,
    /// At a name in [`Walk::pos`] that this mount covers.
    Mount(usize),
}

/// How a path ends that ends at no name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DirEnd {
    Root,
    Dot,
    DotDot,
}

/// An existing node that a path leads to.
#[derive(Debug)]
pub(super) enum Place {
    Dir(Pos),
    MountFile(usize),
    /// The name is [`Walk::name`] in [`Walk::pos`].
    Name(Attr),
}

/// A resolution under way.
#[derive(Debug)]
pub(super) struct Walk<'n, 'p> {
    ns: &'n Namespace,
    ctx: Ctx<'n>,
    pending: Pending<'p>,
    pub(super) pos: Pos,
    last: Option<Component>,
}

impl<'n, 'p> Walk<'n, 'p> {
    pub(super) fn start(ns: &'n Namespace, ctx: Ctx<'n>, at: &Pos, path: &'p str) -> Result<Self, Fail> {
        let pending = Pending::new(path)?;
        let pos = if pending.is_absolute() { ns.root_pos() } else { at.clone() };
        let walk = Self { ns, ctx, pending, pos, last: None };
        walk.arrive()?;
        Ok(walk)
    }

    /// The mount of the directory reached.
    pub(super) fn mount(&self) -> &'n Mount {
        &self.ns.shared.table.mounts[self.pos.mount]
    }

    /// The last component's text; empty when the path ended without one.
    pub(super) fn name(&self) -> &str {
        self.last.as_ref().map_or("", |last| self.pending.name(last))
    }

    /// Whether the path demands a directory by its trailing slash.
    pub(super) fn slash(&self) -> bool {
        self.last.as_ref().is_some_and(|last| last.slash)
    }

    /// Before the first call into a mount: is this the right thread, is there something to see?
    fn arrive(&self) -> Result<(), Fail> {
        let mount = self.mount();
        match (mount.hanging(), &mount.deferred) {
            (Some(fs), _) if self.ctx.may_hang == MayHang::No => Err(Fail::Hang(fs.pool.clone())),
            (_, Some(deferred)) if self.ctx.authority == Authority::Guest && !deferred.is_there() => {
                Err(Fail::Deferred(Arc::clone(deferred)))
            }
            _ => Ok(()),
        }
    }

    /// Walks up to the last component.
    pub(super) fn reach_last(&mut self) -> Result<Last, Fail> {
        loop {
            let Some(component) = self.pending.next()? else {
                self.last = None;
                return Ok(Last::Dir(DirEnd::Root));
            };
            self.search()?;
            match self.pending.name(&component) {
                "." if component.last => return Ok(Last::Dir(DirEnd::Dot)),
                "." => continue,
                ".." => {
                    self.up()?;
                    if component.last {
                        return Ok(Last::Dir(DirEnd::DotDot));
                    }
                    continue;
                }
                _ => {}
            }
            let covered = self.ns.shared.table.over(&self.pos, self.pending.name(&component));
            let last = component.last;
            self.last = Some(component);
            if last {
                return Ok(covered.map_or(Last::Name, Last::Mount));
            }
            match covered {
                Some(mount) => self.enter_mount(mount)?,
                None => self.step()?,
            }
        }
    }

    /// Through an intermediate name.
    fn step(&mut self) -> Result<(), Fail> {
        let entered = match self.ns.enter(self.mount(), &self.pos.node, self.name()) {
            Err(Errno::NoEnt) if self.ctx.authority == Authority::Node => {
                super::ops::make_dir(self, &NEW_DIR)?;
                self.ns.enter(self.mount(), &self.pos.node, self.name())
            }
            other => other,
        };
        match entered? {
            Step::Dir(node) => self.pos.node = node,
            Step::Link(target) => self.follow(target, true)?,
        }
        Ok(())
    }

    /// Whether the directory reached may be searched. User 0 always may.
    fn search(&self) -> Result<(), Errno> {
        if self.ctx.cred.uid == 0 {
            return Ok(());
        }
        perm::check(self.ctx.cred, &self.ns.dir_attr(self.mount(), &self.pos.node)?, AccessMode::EXECUTE)
    }

    /// Onto the top of a mount; `ENOTDIR` when a file is mounted.
    pub(super) fn enter_mount(&mut self, mount: usize) -> Result<(), Fail> {
        let node = self.ns.shared.table.mounts[mount].top().ok_or(Errno::NotDir)?.clone();
        self.pos = Pos { mount, node };
        self.arrive()
    }

    /// `..`: from a mount's top to the directory it is mounted in, from the root nowhere.
    fn up(&mut self) -> Result<(), Fail> {
        let mount = self.mount();
        if mount.top().is_some_and(|top| top.is(&self.pos.node)) {
            if let Some((pos, _)) = &mount.at {
                self.pos = pos.clone();
                self.arrive()?;
            }
            return Ok(());
        }
        self.pos.node = self.ns.parent(mount, &self.pos.node)?;
        Ok(())
    }

    /// Goes on at a link's target.
    pub(super) fn follow(&mut self, target: Link, slash: bool) -> Result<(), Fail> {
        let target = match target {
            Link::Path(target) => target,
            Link::Into { tree, target } => {
                // A slash too many means nothing, one at the end that a directory is wanted.
                let rest = self.pending.rest();
                let path = if rest.is_empty() && !slash { target } else { format!("{target}/{rest}") };
                return Err(Fail::Elsewhere(Elsewhere { ns: tree, path }));
            }
        };
        self.pending.follow(&target, slash)?;
        self.last = None;
        if self.pending.is_absolute() {
            self.pos = self.ns.root_pos();
            self.arrive()?;
        }
        Ok(())
    }

    /// Walks to something that exists.
    pub(super) fn locate(&mut self, follow: Follow) -> Result<Place, Fail> {
        loop {
            match self.reach_last()? {
                Last::Dir(_) => return Ok(Place::Dir(self.pos.clone())),
                Last::Mount(mount) => {
                    if self.ns.shared.table.mounts[mount].top().is_some() {
                        self.enter_mount(mount)?;
                        return Ok(Place::Dir(self.pos.clone()));
                    }
                    if self.slash() {
                        return Err(Errno::NotDir.into());
                    }
                    return Ok(Place::MountFile(mount));
                }
                Last::Name => {
                    let attr = self.ns.attr(self.mount(), &self.pos.node, self.name())?;
                    if attr.kind == FileType::Symlink && (follow == Follow::Yes || self.slash()) {
                        let target = self.ns.link_target(self.mount(), &self.pos.node, self.name())?;
                        let slash = self.slash();
                        self.follow(target, slash)?;
                        continue;
                    }
                    if self.slash() && attr.kind != FileType::Directory {
                        return Err(Errno::NotDir.into());
                    }
                    return Ok(Place::Name(attr));
                }
            }
        }
    }
}

/// Directories that the node makes on the way to a mount point.
const NEW_DIR: Attr = Attr { uid: 0, gid: 0, mode: 0o755, kind: FileType::Directory };
