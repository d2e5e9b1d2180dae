//! One call for all backends: looks at a node or at a name in a directory.
//!
//! In: a mount, a directory node, a name. Out: what the backend says. No permission, no mount, no link is looked at
//! here. A node always comes from its own mount's backend; the arm for a mismatch cannot be reached and says EIO.

use std::sync::Arc;

use super::Namespace;
use crate::errno::Errno;
use crate::vfs::host::HostStep;
use crate::vfs::mount::{Backend, Mount, Node};
use crate::vfs::perm::Attr;
use crate::vfs::{FileType, Metadata, Provided, Timestamp};

/// What a name leads to.
pub(super) enum Step {
    Dir(Node),
    Link(Link),
}

/// Where a link leads.
pub(super) enum Link {
    /// A path of this container.
    Path(String),
    /// One of another.
    Into { tree: Namespace, target: String },
}

impl Link {
    /// What `readlink` shows.
    fn text(self) -> String {
        match self {
            Self::Path(target) | Self::Into { target, .. } => target,
        }
    }
}

/// The absolute path of a name in a provided directory.
pub(super) fn join(dir: &str, name: &str) -> Arc<str> {
    if dir == "/" { format!("/{name}").into() } else { format!("{dir}/{name}").into() }
}

/// How a dynamic file shows; its inode id is its path's.
pub(super) fn provided_stat(path: &str, provided: &Provided) -> Metadata {
    let (kind, mode, size) = match provided {
        // As in /proc: the size is not known before it is read.
        Provided::File(_) => (FileType::Regular, 0o444, 0),
        Provided::Directory(_) => (FileType::Directory, 0o555, 0),
        Provided::Symlink(target) | Provided::Into { target, .. } => (FileType::Symlink, 0o777, target.len() as u64),
        Provided::Device(_) => (FileType::CharDevice, 0o666, 0),
    };
    let now = Timestamp::now();
    Metadata {
        dev: 0,
        ino: path_ino(path),
        kind,
        mode,
        uid: 0,
        gid: 0,
        nlink: if kind == FileType::Directory { 2 } else { 1 },
        size,
        rdev: 0,
        blocks: 0,
        atime: now,
        mtime: now,
        ctime: now,
    }
}

/// FNV-1a: stable for a path, no two of the few hundred dynamic files meet.
pub(crate) fn path_ino(path: &str) -> u64 {
    path.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

fn provided_attr(path: &str, provided: &Provided) -> Attr {
    let meta = provided_stat(path, provided);
    Attr { uid: 0, gid: 0, mode: meta.mode, kind: meta.kind }
}

#[allow(clippy::unused_self, reason = "the calls of a backend read alike, whether they need its state or not")]
impl Namespace {
    /// What the process's provider has at a path.
    pub(super) fn provide(&self, path: &str) -> Result<Provided, Errno> {
        let provider = self.provider.as_ref().or(self.shared.provider.as_ref()).ok_or(Errno::NoEnt)?;
        provider.get(path).ok_or(Errno::NoEnt)
    }

    /// Attributes of a directory.
    pub(super) fn dir_attr(&self, mount: &Mount, node: &Node) -> Result<Attr, Errno> {
        match (&mount.backend, node) {
            (Backend::Tree(fs), Node::Tree(ino)) => fs.attr(*ino),
            (Backend::Host(fs), Node::Host(dir)) => fs.dir_attr(dir),
            (Backend::Provided, Node::Provided(path)) => Ok(provided_attr(path, &self.provide(path)?)),
            _ => Err(Errno::Io),
        }
    }

    /// `stat` of a directory.
    pub(super) fn dir_stat(&self, mount: &Mount, node: &Node) -> Result<Metadata, Errno> {
        match (&mount.backend, node) {
            (Backend::Tree(fs), Node::Tree(ino)) => fs.stat(*ino),
            (Backend::Host(fs), Node::Host(dir)) => fs.dir_stat(dir),
            (Backend::Provided, Node::Provided(path)) => Ok(provided_stat(path, &self.provide(path)?)),
            _ => Err(Errno::Io),
        }
    }

    /// The directory or link of a name; `ENOTDIR` for anything else.
    pub(super) fn enter(&self, mount: &Mount, node: &Node, name: &str) -> Result<Step, Errno> {
        match (&mount.backend, node) {
            (Backend::Tree(fs), Node::Tree(dir)) => fs.with_child(*dir, name, |child| match fs.attr(child)?.kind {
                FileType::Directory => Ok(Step::Dir(Node::Tree(child))),
                FileType::Symlink => Ok(Step::Link(Link::Path(fs.readlink(child)?))),
                _ => Err(Errno::NotDir),
            }),
            (Backend::Host(fs), Node::Host(dir)) => Ok(match fs.enter(dir, name)? {
                HostStep::Dir(dir) => Step::Dir(Node::Host(dir)),
                HostStep::Link(target) => Step::Link(Link::Path(target)),
            }),
            (Backend::Provided, Node::Provided(dir)) => {
                let path = join(dir, name);
                match self.provide(&path)? {
                    Provided::Directory(_) => Ok(Step::Dir(Node::Provided(path))),
                    Provided::Symlink(target) => Ok(Step::Link(Link::Path(target))),
                    Provided::Into { tree, target } => Ok(Step::Link(Link::Into { tree, target })),
                    Provided::File(_) | Provided::Device(_) => Err(Errno::NotDir),
                }
            }
            _ => Err(Errno::Io),
        }
    }

    /// The directory above one that is not its mount's top.
    pub(super) fn parent(&self, mount: &Mount, node: &Node) -> Result<Node, Errno> {
        match (&mount.backend, node, mount.top()) {
            (Backend::Tree(fs), Node::Tree(ino), Some(Node::Tree(top))) => {
                let parent = fs.parent(*ino)?;
                // Moved out of the mount by somebody who sees more of the filesystem: as Linux's path_connected.
                if fs.is_within(parent, *top) { Ok(Node::Tree(parent)) } else { Err(Errno::NoEnt) }
            }
            (Backend::Host(fs), Node::Host(dir), Some(Node::Host(top))) => Ok(Node::Host(fs.parent(dir, top)?)),
            (Backend::Provided, Node::Provided(path), _) => {
                let parent = path.rsplit_once('/').map_or("/", |(parent, _)| parent);
                Ok(Node::Provided(if parent.is_empty() { "/".into() } else { parent.into() }))
            }
            _ => Err(Errno::Io),
        }
    }

    /// Attributes of a name, a link's own.
    pub(super) fn attr(&self, mount: &Mount, node: &Node, name: &str) -> Result<Attr, Errno> {
        match (&mount.backend, node) {
            (Backend::Tree(fs), Node::Tree(dir)) => fs.with_child(*dir, name, |child| fs.attr(child)),
            (Backend::Host(fs), Node::Host(dir)) => fs.attr(dir, name),
            (Backend::Provided, Node::Provided(dir)) => {
                let path = join(dir, name);
                Ok(provided_attr(&path, &self.provide(&path)?))
            }
            _ => Err(Errno::Io),
        }
    }

    /// `lstat` of a name.
    pub(super) fn stat_name(&self, mount: &Mount, node: &Node, name: &str) -> Result<Metadata, Errno> {
        match (&mount.backend, node) {
            (Backend::Tree(fs), Node::Tree(dir)) => fs.with_child(*dir, name, |child| fs.stat(child)),
            (Backend::Host(fs), Node::Host(dir)) => fs.stat(dir, name),
            (Backend::Provided, Node::Provided(dir)) => {
                let path = join(dir, name);
                Ok(provided_stat(&path, &self.provide(&path)?))
            }
            _ => Err(Errno::Io),
        }
    }

    /// A link's target as text.
    pub(super) fn read_link(&self, mount: &Mount, node: &Node, name: &str) -> Result<String, Errno> {
        self.link_target(mount, node, name).map(Link::text)
    }

    /// Where a link leads.
    pub(super) fn link_target(&self, mount: &Mount, node: &Node, name: &str) -> Result<Link, Errno> {
        let target = match (&mount.backend, node) {
            (Backend::Tree(fs), Node::Tree(dir)) => fs.with_child(*dir, name, |child| fs.readlink(child)),
            (Backend::Host(fs), Node::Host(dir)) => fs.readlink(dir, name),
            (Backend::Provided, Node::Provided(dir)) => match self.provide(&join(dir, name))? {
                Provided::Symlink(target) => Ok(target),
                Provided::Into { tree, target } => return Ok(Link::Into { tree, target }),
                _ => Err(Errno::Inval),
            },
            _ => Err(Errno::Io),
        };
        target.map(Link::Path)
    }
}
