//! Puts a container's tree together.
//!
//! In: layers, volumes, files, places. Out: a finished [`Namespace`], or a [`MountError`] that names the mount.
//! Mount points are made where they are missing, as container runtimes do, in the container's own tree; links on
//! the way are resolved inside the container. Shallow mounts come first, so that a volume at `/data/sub` lands in
//! the volume at `/data` whatever their order in the pod.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::devices::{self, Devices};
use super::walk::{Authority, Ctx, Fail, Last, MayHang, Place, Walk};
use super::{Namespace, Shared, ops};
use crate::descriptors::PodDescriptors;
use crate::errno::Errno;
use crate::pod::run::Access;
use crate::vfs::host::{HostFs, HostOpen};
use crate::vfs::layer::LayerStack;
use crate::vfs::mount::{Absent, Backend, Mount, MountError, MountRoot, Node, Pos};
use crate::vfs::path::strict_components;
use crate::vfs::perm::Attr;
use crate::vfs::pool::Pool;
use crate::vfs::tree::{Budget, DiskStore, NewBody, ROOT, Store, TreeFs};
use crate::vfs::volume::VolumeBody;
use crate::vfs::{Charge, Credentials, FileType, Follow, ManagedFile, OpenFlags, Provider, Volume};

/// How long a container that is being made waits for content that is on its way; it is tried again.
pub(crate) const DEFERRED_PATIENCE: Duration = Duration::from_secs(10);

/// Where a container's own writes go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upper {
    /// Bytes in files of this directory of the node, which is made at the first write, with its parents.
    Directory(PathBuf),
    /// Bytes in memory, charged; at most so many.
    Memory {
        /// Bytes after which writes get ENOSPC.
        limit: u64,
    },
}

/// Puts a [`Namespace`] together.
#[derive(Debug)]
pub struct NamespaceBuilder {
    layers: Arc<LayerStack>,
    upper: Upper,
    access: Access,
    charge: Option<Arc<dyn Charge>>,
    provider: Option<Arc<dyn Provider>>,
    descriptors: Option<Arc<PodDescriptors>>,
    mounts: Vec<(String, Source, Access)>,
}

/// What goes to a place.
#[derive(Debug)]
enum Source {
    Volume(Arc<Volume>, String),
    Managed(ManagedFile),
    NodeFile(PathBuf, Absent),
    Tmpfs(u64),
    Devices(Devices),
    Provided,
}

impl NamespaceBuilder {
    /// A root of these layers with writes to `upper`; with [`Access::ReadOnly`] its own files refuse writes (EROFS).
    #[must_use]
    pub fn new(layers: Arc<LayerStack>, upper: Upper, access: Access) -> Self {
        Self { layers, upper, access, charge: None, provider: None, descriptors: None, mounts: Vec::new() }
    }

    /// Who pays for bytes in memory: new nodes, memory volumes, tmpfs mounts, a memory upper.
    #[must_use]
    pub fn charge(mut self, charge: Arc<dyn Charge>) -> Self {
        self.charge = Some(charge);
        self
    }

    /// What files and directories that are opened count against; without it they are not counted.
    #[must_use]
    pub fn descriptors(mut self, descriptors: Arc<PodDescriptors>) -> Self {
        self.descriptors = Some(descriptors);
        self
    }

    /// A volume (or its `sub_path`, empty for the whole) at an absolute path.
    #[must_use]
    pub fn mount(self, path: &str, volume: Arc<Volume>, sub_path: &str, access: Access) -> Self {
        let access = match &volume.body {
            VolumeBody::Projection(_) | VolumeBody::Image(_) => Access::ReadOnly,
            VolumeBody::Dir(_) | VolumeBody::File(..) => access,
        };
        self.add(path, Source::Volume(volume, sub_path.to_owned()), access)
    }

    /// A file of the node's content at a path; as writable as the root.
    #[must_use]
    pub fn managed_file(self, path: &str, file: &ManagedFile) -> Self {
        let access = self.access;
        self.add(path, Source::Managed(file.clone()), access)
    }

    /// A file of the node at a path, such as the artifact. Opened only when the guest opens it.
    #[must_use]
    pub fn node_file(self, path: &str, source: PathBuf, access: Access) -> Self {
        self.add(path, Source::NodeFile(source, Absent::Refused), access)
    }

    /// A file that the guest writes for the node, such as the termination message: made, writable for everybody, when the
    /// guest first looks at it.
    #[must_use]
    pub fn message_file(self, path: &str, source: PathBuf) -> Self {
        self.add(path, Source::NodeFile(source, Absent::Made), Access::ReadWrite)
    }

    /// A memory filesystem of the container's own, mode 0o1777.
    #[must_use]
    pub fn tmpfs(self, path: &str, limit: u64) -> Self {
        self.add(path, Source::Tmpfs(limit), Access::ReadWrite)
    }

    /// `/dev`.
    #[must_use]
    pub fn devices(self, devices: Devices) -> Self {
        self.add("/dev", Source::Devices(devices), Access::ReadWrite)
    }

    /// A directory whose files the provider makes, such as `/proc`.
    #[must_use]
    pub fn provided(self, path: &str) -> Self {
        self.add(path, Source::Provided, Access::ReadOnly)
    }

    /// The provider of processes that have none of their own.
    #[must_use]
    pub fn provider(mut self, provider: Arc<dyn Provider>) -> Self {
        self.provider = Some(provider);
        self
    }

    fn add(mut self, path: &str, source: Source, access: Access) -> Self {
        self.mounts.push((path.to_owned(), source, access));
        self
    }

    /// Opens everything, makes mount points, and gives the finished tree.
    ///
    /// # Errors
    /// [`MountError`] naming the mount.
    pub async fn build(self) -> Result<Namespace, MountError> {
        for (path, source, _) in &self.mounts {
            // What a part of a volume is can be seen only when the volume is there.
            if let Source::Volume(volume, sub_path) = source
                && let Some(deferred) = volume.pending().filter(|_| !sub_path.is_empty())
            {
                let there = tokio::time::timeout(DEFERRED_PATIENCE, deferred.wait()).await;
                there.map_err(|_| MountError::SubPath {
                    path: path.clone(),
                    sub_path: sub_path.clone(),
                    errno: Errno::TimedOut,
                })?;
            }
        }
        let hangs = self.mounts.iter().find_map(|(path, source, _)| match source {
            Source::Volume(volume, _) => volume_pool(volume).map(|pool| (path.clone(), pool)),
            _ => None,
        });
        match hangs {
            None => self.build_sync(),
            Some((path, pool)) => {
                pool.run(move || self.build_sync()).await.map_err(|errno| MountError::Place { path, errno })?
            }
        }
    }

    fn build_sync(mut self) -> Result<Namespace, MountError> {
        let lower = Arc::clone(&self.layers.tree);
        let root = match self.upper {
            Upper::Directory(path) => {
                let nodes = Budget::new(u64::MAX, self.charge.clone());
                TreeFs::new(lower, Store::Disk(DiskStore::new(path)), nodes)
            }
            Upper::Memory { limit } => {
                let budget = Budget::new(limit, self.charge.clone());
                TreeFs::new(lower, Store::Memory(Arc::clone(&budget)), budget)
            }
        };
        let mut shared = Shared::new(tree_mount(root, self.access), self.provider.take());
        shared.descriptors = self.descriptors.take();
        self.mounts.sort_by_key(|(path, _, _)| path.split('/').filter(|name| !name.is_empty()).count());
        for (path, source, access) in self.mounts {
            let mut mount = open(&path, source, access, self.charge.as_ref())?;
            let ns = Namespace { shared: Arc::new(shared), provider: None };
            let placed = place(&ns, &path, &mount.root);
            shared = Arc::into_inner(ns.shared).expect("no handle was made from the unfinished tree");
            mount.at = Some(placed.map_err(|fail| MountError::Place { path, errno: fail.errno() })?);
            shared.table.mounts.push(mount);
        }
        Ok(Namespace { shared: Arc::new(shared), provider: None })
    }
}

/// The pool of a volume whose calls may hang.
fn volume_pool(volume: &Volume) -> Option<Pool> {
    match &volume.body {
        VolumeBody::Dir(fs) | VolumeBody::File(fs, _) if fs.calls == crate::vfs::host::Calls::MayHang => {
            Some(fs.pool.clone())
        }
        _ => None,
    }
}

/// A whole tree, mounted nowhere yet.
fn tree_mount(fs: Arc<TreeFs>, access: Access) -> Mount {
    let root = MountRoot::Dir { node: Node::Tree(ROOT), _pin: None };
    Mount { backend: Backend::Tree(fs), root, access, payer: None, deferred: None, at: None }
}

/// A whole directory of the host, mounted nowhere yet.
fn host_mount(fs: &Arc<HostFs>, access: Access) -> Mount {
    let root = MountRoot::Dir { node: Node::Host(Arc::clone(&fs.root)), _pin: None };
    Mount { backend: Backend::Host(Arc::clone(fs)), root, access, payer: None, deferred: None, at: None }
}

fn open(path: &str, source: Source, access: Access, charge: Option<&Arc<dyn Charge>>) -> Result<Mount, MountError> {
    let at_place = |errno| MountError::Place { path: path.to_owned(), errno };
    Ok(match source {
        Source::Volume(volume, sub_path) => {
            let mut mount = open_volume(path, &volume, &sub_path, access)?;
            mount.payer = charge.cloned();
            mount
        }
        Source::Managed(file) => {
            let mount = tree_mount(file.fs, access);
            Mount { root: MountRoot::TreeFile(file.inode), ..mount }
        }
        Source::NodeFile(source_path, absent) => {
            if absent == Absent::Refused
                && let Err(source) = std::fs::symlink_metadata(&source_path)
            {
                return Err(MountError::NodeFile { path: path.to_owned(), source_path, source });
            }
            let node = HostFs::node().map_err(at_place)?;
            Mount { root: MountRoot::NodeFile(source_path, absent), ..host_mount(node, access) }
        }
        Source::Tmpfs(limit) => tree_mount(TreeFs::memory(limit, charge.cloned(), 0o1777), access),
        Source::Devices(devices) => tree_mount(devices::filesystem(devices, charge.cloned()), access),
        Source::Provided => {
            let node = Node::Provided(format!("/{}", path.trim_matches('/')).into());
            let root = MountRoot::Dir { node, _pin: None };
            Mount { backend: Backend::Provided, root, access, payer: None, deferred: None, at: None }
        }
    })
}

fn open_volume(path: &str, volume: &Volume, sub_path: &str, access: Access) -> Result<Mount, MountError> {
    let whole = match &volume.body {
        VolumeBody::Dir(fs) => host_mount(fs, access),
        VolumeBody::Projection(fs) | VolumeBody::Image(fs) => {
            Mount { deferred: volume.pending().cloned(), ..tree_mount(Arc::clone(fs), access) }
        }
        VolumeBody::File(fs, file) => {
            let mount = host_mount(fs, access);
            Mount { root: MountRoot::HostFile(Arc::clone(file)), ..mount }
        }
    };
    if sub_path.is_empty() {
        return Ok(whole);
    }
    let is_image = matches!(volume.body, VolumeBody::Image(_));
    let refused = |errno| {
        let (path, sub_path) = (path.to_owned(), sub_path.to_owned());
        if is_image {
            MountError::ImageSubPath { path, sub_path, errno }
        } else {
            MountError::SubPath { path, sub_path, errno }
        }
    };
    // "." and trailing slashes are what the API server lets through.
    let clean: Vec<&str> = sub_path.split('/').filter(|name| !matches!(*name, "" | ".")).collect();
    let clean = clean.join("/");
    if clean.is_empty() {
        return Ok(whole);
    }
    if sub_path.starts_with('/') || strict_components(&clean).is_none() {
        return Err(refused(Errno::Inval));
    }
    let missing = if is_image { Missing::Fail } else { Missing::Make };
    descend(whole, &clean, missing).map_err(|fail| refused(fail.errno()))
}

/// What becomes of a subPath that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missing {
    Make,
    Fail,
}

/// The mount of what a subPath leads to, resolved with the volume itself as the root, so that no link in it leads
/// out. A missing directory is made with the volume's own mode, as the kubelet's `SafeMakeDir` is told to.
fn descend(whole: Mount, sub_path: &str, missing: Missing) -> Result<Mount, Fail> {
    let (backend, access) = (whole.backend.clone(), whole.access);
    let ns = Namespace { shared: Arc::new(Shared::new(whole, None)), provider: None };
    let cred = Credentials { umask: 0, ..Credentials::root() };
    let ctx = Ctx { cred: &cred, may_hang: MayHang::Yes, authority: Authority::Node };
    let root = ns.root_pos();
    let top = ns.attr_pos(&root)?;
    let mut walk = Walk::start(&ns, ctx, &root, sub_path)?;
    let place = match walk.locate(Follow::Yes) {
        Err(Fail::Errno(Errno::NoEnt)) if missing == Missing::Make && !walk.name().is_empty() => {
            ops::make_dir(&walk, &Attr { mode: top.mode, ..top })?;
            Place::Name(top)
        }
        other => other?,
    };
    let pos = walk.pos.clone();
    let root = match (place, &backend, &pos.node) {
        (Place::Dir(pos), ..) => MountRoot::Dir { node: pos.node, _pin: None },
        (Place::Name(_), Backend::Tree(fs), Node::Tree(dir)) => {
            let inode = fs.inode(fs.lookup(*dir, walk.name())?)?;
            match inode.kind {
                FileType::Directory => MountRoot::Dir { node: Node::Tree(inode.ino), _pin: Some(inode) },
                FileType::Regular => MountRoot::TreeFile(inode),
                _ => return Err(Errno::Inval.into()),
            }
        }
        (Place::Name(_), Backend::Host(fs), Node::Host(dir)) => {
            match fs.open_existing(dir, walk.name(), OpenFlags::empty())? {
                HostOpen::Dir(dir) => MountRoot::Dir { node: Node::Host(dir), _pin: None },
                HostOpen::File(file, _) => MountRoot::HostFile(Arc::new(file)),
                // Swapped for a link since it was looked at: a race somebody made.
                HostOpen::Link(_) => return Err(Errno::Loop.into()),
            }
        }
        _ => return Err(Errno::Inval.into()),
    };
    Ok(Mount { backend, root, access, payer: None, deferred: None, at: None })
}

/// Finds or makes the place of a mount: the directory and the name that it covers.
fn place(ns: &Namespace, path: &str, root: &MountRoot) -> Result<(Pos, Box<str>), Fail> {
    if !path.starts_with('/') {
        return Err(Errno::Inval.into());
    }
    let wanted = match root {
        MountRoot::Dir { .. } => FileType::Directory,
        _ => FileType::Regular,
    };
    let cred = Credentials { umask: 0, ..Credentials::root() };
    let ctx = Ctx { cred: &cred, may_hang: MayHang::Yes, authority: Authority::Node };
    let mut walk = Walk::start(ns, ctx, &ns.root_pos(), path)?;
    loop {
        match walk.reach_last()? {
            // Over the whole root, or a path that ends in a dot: nothing there can be covered.
            Last::Dir(_) => return Err(Errno::Inval.into()),
            Last::Mount(mount) => {
                let covered = ns.shared.table.mounts[mount].top().map_or(FileType::Regular, |_| FileType::Directory);
                check_kind(covered, wanted)?;
                return Ok((walk.pos.clone(), walk.name().into()));
            }
            Last::Name => {}
        }
        match ns.attr(walk.mount(), &walk.pos.node, walk.name()) {
            Ok(attr) if attr.kind == FileType::Symlink => {
                let target = ns.link_target(walk.mount(), &walk.pos.node, walk.name())?;
                walk.follow(target, false)?;
                continue;
            }
            Ok(attr) => check_kind(attr.kind, wanted)?,
            Err(Errno::NoEnt) => make_point(&walk, wanted)?,
            Err(errno) => return Err(errno.into()),
        }
        return Ok((walk.pos.clone(), walk.name().into()));
    }
}

/// A directory covers a directory, a file covers a file.
fn check_kind(covered: FileType, wanted: FileType) -> Result<(), Errno> {
    match (covered == FileType::Directory, wanted == FileType::Directory) {
        (true, false) => Err(Errno::IsDir),
        (false, true) => Err(Errno::NotDir),
        _ => Ok(()),
    }
}

fn make_point(walk: &Walk<'_, '_>, wanted: FileType) -> Result<(), Errno> {
    let attr = Attr { uid: 0, gid: 0, mode: 0o755, kind: FileType::Directory };
    if wanted == FileType::Directory {
        return ops::make_dir(walk, &attr);
    }
    let attr = Attr { mode: 0o644, kind: FileType::Regular, ..attr };
    match (&walk.mount().backend, &walk.pos.node) {
        (Backend::Tree(fs), Node::Tree(dir)) => {
            fs.txn().create(*dir, walk.name(), &attr, NewBody::File)?;
            Ok(())
        }
        (Backend::Host(fs), Node::Host(dir)) => {
            fs.create(dir, walk.name(), &attr)?;
            Ok(())
        }
        _ => Err(Errno::RoFs),
    }
}
