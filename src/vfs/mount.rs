//! The mount table of one container.
//!
//! In: what the builder mounted. Out: which mount covers a name, and where `..` leads from a mount's top. Mounts are
//! keyed by (directory node, name), as Linux keys them by dentry: renaming a directory above moves its mounts with
//! it, and no path string is compared.

use std::path::PathBuf;
use std::sync::Arc;

use super::Charge;
use super::deferred::Deferred;
use super::host::{Calls, HostDir, HostFile, HostFs};
use super::tree::{Ino, Inode, TreeFs};
use crate::errno::Errno;
use crate::pod::run::Access;

/// Why a container's tree could not be put together. Worded for the container's status.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The place in the container could not be reached or made.
    #[error("cannot mount at {path} in the container: {errno}")]
    Place {
        /// Where it should have gone.
        path: String,
        /// Why not.
        #[source]
        errno: Errno,
    },
    /// The `subPath` could not be reached or made inside its volume.
    #[error("failed to prepare subPath {sub_path:?} for the volume mounted at {path}: {errno}")]
    SubPath {
        /// Where it should have gone.
        path: String,
        /// The subPath.
        sub_path: String,
        /// Why not.
        #[source]
        errno: Errno,
    },
    /// The `subPath` is not in the image that is mounted; nothing is made there.
    #[error("failed to mount subPath {sub_path:?} of the image volume at {path}: {errno}")]
    ImageSubPath {
        /// Where it should have gone.
        path: String,
        /// The subPath.
        sub_path: String,
        /// Why not.
        #[source]
        errno: Errno,
    },
    /// A file of the node is not there.
    #[error("cannot use {} for the mount at {path}", source_path.display())]
    NodeFile {
        /// Where it should have gone.
        path: String,
        /// The node's file.
        source_path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

/// A directory of one backend.
#[derive(Debug, Clone)]
pub(crate) enum Node {
    Tree(Ino),
    Host(Arc<HostDir>),
    /// The absolute path the provider is asked for.
    Provided(Arc<str>),
}

impl Node {
    pub(crate) fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Tree(a), Self::Tree(b)) => a == b,
            (Self::Host(a), Self::Host(b)) => a.id == b.id,
            (Self::Provided(a), Self::Provided(b)) => a == b,
            _ => false,
        }
    }
}

/// A directory of the container.
#[derive(Debug, Clone)]
pub(crate) struct Pos {
    pub(crate) mount: usize,
    pub(crate) node: Node,
}

/// What serves a mount.
#[derive(Debug, Clone)]
pub(crate) enum Backend {
    Tree(Arc<TreeFs>),
    Host(Arc<HostFs>),
    Provided,
}

/// What is mounted.
#[derive(Debug)]
pub(crate) enum MountRoot {
    /// The node is held, so that a subPath outlives the removal of its name.
    Dir {
        node: Node,
        _pin: Option<Arc<Inode>>,
    },
    TreeFile(Arc<Inode>),
    HostFile(Arc<HostFile>),
    /// A file of the node by the agent's own path, opened when the guest opens it: an idle container holds none.
    NodeFile(PathBuf, Absent),
}

/// What becomes of a node's file that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Absent {
    /// The mount is refused.
    Refused,
    /// It is made when somebody looks at it, 0666, with its directories: most containers never do, and each inode that
    /// is made and removed is a part of a start's cost.
    Made,
}

/// One mount.
#[derive(Debug)]
pub(crate) struct Mount {
    pub(crate) backend: Backend,
    pub(crate) root: MountRoot,
    pub(crate) access: Access,
    /// Who pays for growth of memory volumes through this mount.
    pub(crate) payer: Option<Arc<dyn Charge>>,
    /// What a guest that comes here waits for.
    pub(crate) deferred: Option<Arc<Deferred>>,
    /// The directory and the name it covers; none for the root.
    pub(crate) at: Option<(Pos, Box<str>)>,
}

impl Mount {
    /// The top directory, if it is one.
    pub(crate) fn top(&self) -> Option<&Node> {
        match &self.root {
            MountRoot::Dir { node, .. } => Some(node),
            _ => None,
        }
    }

    /// The filesystem whose calls may hang, if it is such.
    pub(crate) fn hanging(&self) -> Option<&Arc<HostFs>> {
        match &self.backend {
            Backend::Host(fs) if fs.calls == Calls::MayHang => Some(fs),
            _ => None,
        }
    }

    /// `EROFS` on a read-only mount.
    pub(crate) fn check_writable(&self) -> Result<(), Errno> {
        match self.access {
            Access::ReadWrite => Ok(()),
            Access::ReadOnly => Err(Errno::RoFs),
        }
    }
}

/// All mounts, the root first.
#[derive(Debug)]
pub(crate) struct MountTable {
    pub(crate) mounts: Vec<Mount>,
}

impl MountTable {
    /// The mount that covers a name in a directory; the latest one.
    pub(crate) fn over(&self, dir: &Pos, name: &str) -> Option<usize> {
        let covers = |mount: &Mount| {
            mount.at.as_ref().is_some_and(|(pos, at)| pos.mount == dir.mount && **at == *name && pos.node.is(&dir.node))
        };
        // A container has some ten mounts: a scan of integers beats a map.
        self.mounts.iter().rposition(covers)
    }
}
