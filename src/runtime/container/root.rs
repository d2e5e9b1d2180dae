//! The root filesystem of a container, from its spec.
//!
//! In: image layers or an artifact, volumes, managed files. Out: a `Namespace`. What is where in a container is decided
//! here and nowhere else: `/app.wasm`, `/etc/{hosts,resolv.conf,hostname}`, `/dev`, `/proc`, `/sys/fs/cgroup`, the
//! termination message, the volumes at their places, `/tmp` and the working directory.

use std::collections::HashMap;
use std::sync::Arc;

use super::super::error::StartError;
use super::super::limits::MemoryCharge;
use super::Container;
use crate::descriptors::PodDescriptors;
use crate::errno::Errno;
use crate::pod::run::{Access, ContainerSpec, ImageSpec, Tty, User};
use crate::vfs::layer::LayerStack;
use crate::vfs::{
    Credentials, DEFERRED_PATIENCE, Devices, Follow, ManagedFile, Namespace, NamespaceBuilder, Upper, Volume,
};

/// What the containers of a pod share.
#[derive(Clone)]
pub(in super::super) struct PodFiles {
    /// Volumes by name.
    pub(in super::super) volumes: HashMap<String, Arc<Volume>>,
    /// `/etc/hosts`.
    pub(in super::super) hosts: ManagedFile,
    /// `/etc/resolv.conf`.
    pub(in super::super) resolv_conf: ManagedFile,
    /// `/etc/hostname`.
    pub(in super::super) hostname: ManagedFile,
    /// What they may hold open.
    pub(in super::super) descriptors: Arc<PodDescriptors>,
}

/// Puts the tree together.
pub(in super::super) async fn build(
    spec: &ContainerSpec,
    pod: &PodFiles,
    charge: Arc<MemoryCharge>,
) -> Result<Namespace, StartError> {
    let layers = layers(&spec.image).await?;
    let images = image_volumes(spec).await?;
    let mut builder = NamespaceBuilder::new(layers, Upper::Directory(spec.writable_dir.clone()), spec.root)
        .charge(charge)
        .descriptors(pod.descriptors.clone())
        .devices(Devices { tty: spec.stdio.tty })
        .provided("/proc")
        .provided("/sys/fs/cgroup")
        .managed_file("/etc/hosts", &pod.hosts)
        .managed_file("/etc/resolv.conf", &pod.resolv_conf)
        .managed_file("/etc/hostname", &pod.hostname);
    if let Some(artifact) = &spec.image.artifact {
        builder = builder.node_file(ImageSpec::ARTIFACT_PATH, artifact.path.clone(), Access::ReadOnly);
    }
    for mount in &spec.mounts {
        let volume = images.get(&mount.volume).or_else(|| pod.volumes.get(&mount.volume));
        let volume = volume.ok_or_else(|| StartError::NoSuchVolume {
            volume: mount.volume.clone(),
            mount_path: mount.mount_path.clone(),
        })?;
        builder = builder.mount(&mount.mount_path, volume.clone(), &mount.sub_path, mount.access);
    }
    if !spec.termination_message_path.is_empty() {
        let file = spec.termination_message_file.clone();
        builder = builder.message_file(&spec.termination_message_path, file);
    }
    let namespace =
        builder.build().await.map_err(|source| StartError::Mount { container: spec.name.clone(), source })?;
    if spec.root == Access::ReadWrite {
        make_tmp(&namespace).await;
    }
    // It may be in a volume whose content is on its way.
    let made = tokio::time::timeout(DEFERRED_PATIENCE, make_working_dir(&namespace, &spec.working_dir)).await;
    made.unwrap_or_else(|_| Err(StartError::WorkingDir { path: spec.working_dir.clone(), errno: Errno::TimedOut }))?;
    Ok(namespace)
}

/// Identity of a container's processes.
pub(in super::super) fn credentials(user: &User) -> Credentials {
    Credentials { uid: user.uid, gid: user.gid, groups: user.groups.clone().into(), umask: 0o022 }
}

/// The images among the volumes of a container, each opened once however often it is mounted.
async fn image_volumes(spec: &ContainerSpec) -> Result<HashMap<String, Arc<Volume>>, StartError> {
    let mut volumes = HashMap::new();
    for mount in &spec.mounts {
        let Some(image) = mount.image.as_ref().filter(|_| !volumes.contains_key(&mount.volume)) else { continue };
        if image.artifact.is_some() {
            return Err(StartError::NoFiles { volume: mount.volume.clone(), image: image.reference.clone() });
        }
        let layers = layers(image).await?;
        volumes.insert(mount.volume.clone(), Volume::image(&layers));
    }
    Ok(volumes)
}

async fn layers(image: &ImageSpec) -> Result<Arc<LayerStack>, StartError> {
    let loaded = LayerStack::load(&image.layers).await;
    loaded.map_err(|source| StartError::Layers { image: image.reference.clone(), source })
}

/// `/tmp`, which bare artifacts lack and every libc expects. An image that refuses it does not want it.
async fn make_tmp(namespace: &Namespace) {
    let root = Credentials { umask: 0, ..Credentials::root() };
    let _ = namespace.mkdir(&root, &namespace.root(), "/tmp", 0o1777).await;
}

/// Makes a missing `workingDir`, as runc does.
async fn make_working_dir(namespace: &Namespace, path: &str) -> Result<(), StartError> {
    let (root, top) = (Credentials::root(), namespace.root());
    let failed = |errno| StartError::WorkingDir { path: path.to_owned(), errno };
    match namespace.stat(&root, &top, path, Follow::Yes).await {
        Ok(metadata) if metadata.kind == crate::vfs::FileType::Directory => return Ok(()),
        Ok(_) => return Err(failed(Errno::NotDir)),
        Err(Errno::NoEnt) => {}
        Err(errno) => return Err(failed(errno)),
    }
    let ends = path.match_indices('/').map(|(at, _)| at).skip(1).chain([path.len()]);
    for end in ends {
        match namespace.mkdir(&root, &top, &path[..end], 0o755).await {
            Ok(()) | Err(Errno::Exist) => {}
            Err(errno) => return Err(failed(errno)),
        }
    }
    Ok(())
}

impl Container {
    /// Whether the container has a terminal.
    pub(super) fn has_terminal(&self) -> bool {
        self.spec.stdio.tty == Tty::Terminal
    }
}
