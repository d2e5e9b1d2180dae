//! Volumes: what the containers of a pod share.
//!
//! In: a directory of the node, a path of the host, or projected content. Out: an `Arc<Volume>` that each container
//! of the pod mounts. Made once per pod: identity, accounts and caches are the volume's. Does not create or remove
//! the directories behind it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::deferred::Deferred;
use super::host::{self, HostFile, HostFs, HostOpen, Ledger, Owner};
use super::pool::Pool;
use super::projection::{self, ProjectionError};
use super::tree::TreeFs;
use super::{OpenFlags, layer::LayerStack};
use crate::errno::Errno;
use crate::pod::run::{Access, Medium, Projection};

/// Why a volume cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The directory behind it could not be opened.
    #[error("cannot open volume directory {}: {errno}", path.display())]
    Open {
        /// The node's path.
        path: PathBuf,
        /// Why not.
        #[source]
        errno: Errno,
    },
    /// Its use could not be measured, or its files not handed to a group.
    #[error("cannot walk volume {}: {errno}", path.display())]
    Walk {
        /// The node's path.
        path: PathBuf,
        /// Why not.
        #[source]
        errno: Errno,
    },
    /// A projected path is absolute, empty, has `..`, begins with `..`, or passes through a file.
    #[error("{path:?} is not a valid path in a projected volume")]
    BadPath {
        /// The path.
        path: String,
    },
    /// An update was sent to a volume that is no projection.
    #[error("only a projected volume can be updated")]
    NotProjection,
}

impl From<ProjectionError> for VolumeError {
    fn from(ProjectionError::BadPath(path): ProjectionError) -> Self {
        Self::BadPath { path }
    }
}

/// One volume of a pod, made once and mounted into its containers.
#[derive(Debug)]
pub struct Volume {
    pub(crate) body: VolumeBody,
    path: PathBuf,
    size_limit: Option<u64>,
    /// Of a projection whose content comes when a guest looks at it.
    deferred: Option<Arc<Deferred>>,
}

/// What serves it.
#[derive(Debug)]
pub(crate) enum VolumeBody {
    Dir(Arc<HostFs>),
    /// A hostPath that is a file, and the filesystem of the directory it is in.
    File(Arc<HostFs>, Arc<HostFile>),
    Projection(Arc<TreeFs>),
    Image(Arc<TreeFs>),
}

impl Volume {
    /// A directory that the node made and owns (emptyDir). Must exist. A memory medium is a tmpfs, whose growth is
    /// charged to the container that writes and refused with ENOSPC at the limit; a disk is only measured.
    ///
    /// # Errors
    /// [`VolumeError::Open`]; [`VolumeError::Walk`] when what is there already cannot be counted.
    pub async fn node_directory(
        path: &Path,
        medium: Medium,
        size_limit: Option<u64>,
    ) -> Result<Arc<Self>, VolumeError> {
        let open = |errno| VolumeError::Open { path: path.to_owned(), errno };
        let fs = HostFs::open(path, Owner::Ours, None).map_err(open)?;
        let mut volume = Self { size_limit, ..Self::of(VolumeBody::Dir(Arc::clone(&fs)), path) };
        if medium == Medium::Memory {
            // Bytes from before a restart of the agent count against the limit; nobody is left to charge.
            let used = volume.walk(&fs, |fs| host::stored_bytes(fs, host::Count::Files)).await?;
            let ledger = Ledger::new(size_limit, used);
            volume.body = VolumeBody::Dir(HostFs::open(path, Owner::Ours, Some(ledger)).map_err(open)?);
        }
        Ok(Arc::new(volume))
    }

    /// A directory or a file of the host's owner (hostPath), without the directories and files `hidden` below it.
    ///
    /// # Errors
    /// [`VolumeError::Open`].
    pub async fn host_path(path: &Path, hidden: &[PathBuf]) -> Result<Arc<Self>, VolumeError> {
        let (owned, hidden, pool) = (path.to_owned(), hidden.to_vec(), Pool::new());
        let opened = pool.run(move || open_host_path(&owned, &hidden)).await.and_then(|body| body);
        let body = opened.map_err(|errno| VolumeError::Open { path: path.to_owned(), errno })?;
        Ok(Arc::new(Self::of(body, path)))
    }

    /// A hostPath treated as one whose calls may hang, whatever it lies on.
    #[cfg(test)]
    pub(crate) fn hanging_host_path(path: &Path) -> Arc<Self> {
        let fs = HostFs::open_as(path, Owner::Foreign, host::Calls::MayHang, None).unwrap();
        Arc::new(Self::of(VolumeBody::Dir(fs), path))
    }

    /// Files whose bytes the agent holds. Containers always see it read-only, as the kubelet mounts it.
    ///
    /// # Errors
    /// [`VolumeError::BadPath`].
    pub fn projection(content: &Projection) -> Result<Arc<Self>, VolumeError> {
        let body = VolumeBody::Projection(projection::create(content)?);
        Ok(Arc::new(Self::of(body, Path::new(""))))
    }

    /// A projection whose content is the first [`Self::update`]: a guest that comes to it waits until then.
    #[must_use]
    pub fn deferred() -> Arc<Self> {
        let body = VolumeBody::Projection(projection::empty());
        Arc::new(Self { deferred: Some(Arc::default()), ..Self::of(body, Path::new("")) })
    }

    fn of(body: VolumeBody, path: &Path) -> Self {
        Self { body, path: path.to_owned(), size_limit: None, deferred: None }
    }

    /// The files of an image, read-only (`volumes[].image`).
    #[must_use]
    pub fn image(layers: &LayerStack) -> Arc<Self> {
        let budget = super::tree::Budget::new(0, None);
        let store = super::tree::Store::Memory(Arc::clone(&budget));
        let tree = TreeFs::new(Arc::clone(&layers.tree), store, budget);
        Arc::new(Self::of(VolumeBody::Image(tree), Path::new("")))
    }

    /// Replaces all content of a projection in one step; open files keep what they had.
    ///
    /// # Errors
    /// [`VolumeError::BadPath`], [`VolumeError::NotProjection`]; nothing changes then.
    pub fn update(&self, content: &Projection) -> Result<(), VolumeError> {
        match &self.body {
            VolumeBody::Projection(tree) => projection::update(tree, content)?,
            _ => return Err(VolumeError::NotProjection),
        }
        if let Some(deferred) = &self.deferred {
            deferred.brought();
        }
        Ok(())
    }

    /// Until a guest has come to it, of a volume whose content waits for that; at once when it is there.
    pub async fn wanted(&self) {
        if let Some(deferred) = &self.deferred {
            deferred.wanted().await;
        }
    }

    /// Whether its content is still to come.
    pub fn is_pending(&self) -> bool {
        self.pending().is_some()
    }

    /// What those who come to it wait for; none when the content is there.
    pub(crate) fn pending(&self) -> Option<&Arc<Deferred>> {
        self.deferred.as_ref().filter(|deferred| !deferred.is_there())
    }

    /// Bytes in use, as `du`: measured for a disk, counted for memory, 0 for hostPath, projections and images.
    ///
    /// # Errors
    /// [`VolumeError::Walk`].
    pub async fn used_bytes(&self) -> Result<u64, VolumeError> {
        let VolumeBody::Dir(fs) = &self.body else { return Ok(0) };
        if fs.owner == Owner::Foreign {
            return Ok(0);
        }
        if let Some(ledger) = &fs.ledger {
            return Ok(ledger.used());
        }
        self.walk(fs, |fs| host::stored_bytes(fs, host::Count::All)).await
    }

    /// The `sizeLimit` it was made with.
    #[must_use]
    pub fn size_limit(&self) -> Option<u64> {
        self.size_limit
    }

    async fn walk<T: Send + 'static>(
        &self,
        fs: &Arc<HostFs>,
        walk: impl FnOnce(&HostFs) -> Result<T, Errno> + Send + 'static,
    ) -> Result<T, VolumeError> {
        let pool = fs.pool.clone();
        let fs = Arc::clone(fs);
        let result = pool.run(move || walk(&fs)).await.and_then(|result| result);
        result.map_err(|errno| VolumeError::Walk { path: self.path.clone(), errno })
    }
}

/// Gives a directory that the node made for guests its mode and, for `fsGroup`, its group. Blocking.
///
/// # Errors
/// [`VolumeError::Open`].
pub fn give_directory(path: &Path, mode: u32, group: Option<u32>) -> Result<(), VolumeError> {
    let given = HostFs::open(path, Owner::Ours, None).and_then(|fs| {
        let old = fs.dir_attr(&fs.root)?;
        let new = super::perm::Attr { gid: group.unwrap_or(old.gid), mode, ..old };
        fs.set_dir_attr(&fs.root, &old, &new)
    });
    given.map_err(|errno| VolumeError::Open { path: path.to_owned(), errno })
}

/// Whether a volume that has its group already is gone through again (`fsGroupChangePolicy`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupChange {
    /// Every time.
    Always,
    /// Only when the top of it does not show the group and its rights.
    OnRootMismatch,
}

/// Gives the real files of a directory of the host to a group, as the kubelet's `fsGroup`: the group, g+rw (g+r for a
/// read-only volume), and on directories g+x and setgid. The top goes last, so that it tells of the rest. Blocking.
///
/// # Errors
/// [`VolumeError::Open`], [`VolumeError::Walk`]. A single file that refuses is passed over, as by the kubelet.
pub fn give_to_group(path: &Path, gid: u32, access: Access, change: GroupChange) -> Result<(), VolumeError> {
    let open = |errno| VolumeError::Open { path: path.to_owned(), errno };
    let fs = HostFs::open(path, Owner::Foreign, None).map_err(open)?;
    host::set_group(&fs, gid, access, change).map_err(|errno| VolumeError::Walk { path: path.to_owned(), errno })
}

fn open_host_path(path: &Path, hidden: &[PathBuf]) -> Result<VolumeBody, Errno> {
    match HostFs::open_hiding(path, hidden) {
        Ok(fs) => return Ok(VolumeBody::Dir(fs)),
        Err(Errno::NotDir) => {}
        Err(errno) => return Err(errno),
    }
    // The admin's own path may end in a link; what it leads to is what is mounted.
    let path = std::fs::canonicalize(path)?;
    let (Some(parent), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Err(Errno::Inval);
    };
    let fs = HostFs::open(parent, Owner::Foreign, None)?;
    match fs.open_existing(&fs.root, name, OpenFlags::empty())? {
        HostOpen::File(file, _) => Ok(VolumeBody::File(fs, Arc::new(file))),
        HostOpen::Dir(_) | HostOpen::Link(_) => Err(Errno::Again),
    }
}
