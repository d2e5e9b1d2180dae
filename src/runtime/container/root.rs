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
use crate::vfs::{Credentials, Devices, Follow, ManagedFile, Namespace, NamespaceBuilder, Upper, Volume};

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
    let layers = layers(spec).await?;
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
    make_working_dir(&namespace, &spec.working_dir).await?;
    Ok(namespace)
}

/// Identity of a container's processes.
pub(in super::super) fn credentials(user: &User) -> Credentials {
    Credentials { uid: user.uid, gid: user.gid, groups: user.groups.clone().into(), umask: 0o022 }
}

/// The images among the volumes of a container, each opened once however often it is mounted.
async fn image_volumes(spec: &ContainerSpec) -> Result<HashMap<String, Arc<Volume>>, StartError> {
    let wanted = spec.mounts.iter().filter_map(|mount| Some((mount.volume.clone(), mount.image.clone()?)));
    let wanted: HashMap<String, ImageSpec> = wanted.collect();
    if wanted.is_empty() {
        return Ok(HashMap::new());
    }
    let opened = tokio::task::spawn_blocking(move || {
        let open = |(name, image): (String, ImageSpec)| {
            if image.artifact.is_some() {
                return Err(StartError::NoFiles { volume: name, image: image.reference });
            }
            let layers = LayerStack::open(&image.layers);
            let layers = layers.map_err(|source| StartError::Layers { image: image.reference, source })?;
            Ok((name, Volume::image(&layers)))
        };
        wanted.into_iter().map(open).collect()
    });
    match opened.await {
        Ok(opened) => opened,
        Err(join) => std::panic::resume_unwind(join.into_panic()),
    }
}

/// The image's files. Only the first container of an image reads anything; the others need no other thread.
async fn layers(spec: &ContainerSpec) -> Result<Arc<LayerStack>, StartError> {
    let image = &spec.image;
    if let Some(open) = LayerStack::find(&image.layers) {
        return Ok(open);
    }
    let (layers, reference) = (image.layers.clone(), image.reference.clone());
    match tokio::task::spawn_blocking(move || LayerStack::open(&layers)).await {
        Ok(opened) => opened.map_err(|source| StartError::Layers { image: reference, source }),
        Err(join) => std::panic::resume_unwind(join.into_panic()),
    }
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
