//! emptyDir: directories of the node, on its disk or on a tmpfs, that live as long as the pod.
//!
//! In: `emptyDir` of a volume. Out: a directory, 0777 as the kubelet's. Limits are enforced by who writes (`vfs`) and
//! who evicts (`worker`), not here.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::EmptyDirVolumeSource;

use crate::ids::PodUid;
use crate::pod::quantity::Quantity;
use crate::pod::run::{Medium, VolumeSource};
use crate::state::{StateStore, remove_tree_in};
use crate::vfs;

/// Memory file systems, from linux/magic.h.
const TMPFS_MAGIC: i64 = 0x0102_1994;
const RAMFS_MAGIC: i64 = 0x8584_58f6;

/// Everything needed to make one emptyDir.
pub(super) struct Request<'a> {
    pub(super) state: &'a StateStore,
    pub(super) memory_root: &'a Path,
    pub(super) uid: &'a PodUid,
    pub(super) volume: &'a str,
    pub(super) source: &'a EmptyDirVolumeSource,
    pub(super) fs_group: Option<i64>,
    /// Bytes that the pod's memory can hold: a volume in memory is never larger.
    pub(super) memory: u64,
}

pub(super) fn setup(request: Request<'_>) -> Result<VolumeSource, String> {
    let size_limit = match &request.source.size_limit {
        // The kubelet takes zero for none.
        Some(limit) => u64::try_from(Quantity::from_api(limit).map_err(|error| error.to_string())?.value())
            .ok()
            .filter(|bytes| *bytes > 0),
        None => None,
    };
    let (path, medium) = match request.source.medium.as_deref().unwrap_or("") {
        "" => (request.state.paths(request.uid).empty_dir(request.volume), Medium::Disk),
        "Memory" => (memory_dir(request.memory_root, request.uid, request.volume)?, Medium::Memory),
        other if other.starts_with("HugePages") => {
            return Err(format!("storage medium {other:?} is not supported by this node: it has no huge pages"));
        }
        other => return Err(format!("unknown storage medium {other:?}")),
    };
    let size_limit = match medium {
        Medium::Disk => size_limit,
        // The kubelet's calculateEmptyDirMemorySize.
        Medium::Memory => Some(size_limit.unwrap_or(u64::MAX).min(request.memory)),
    };
    // A directory that is there was given to guests: its permissions are theirs now.
    if !path.exists() {
        match medium {
            Medium::Disk => request.state.make_dir(request.uid, &path).map_err(|error| error.to_string())?,
            Medium::Memory => make_private(&path).map_err(|error| describe(&path, &error))?,
        }
        open_to_guests(&path, medium, request.fs_group)?;
    }
    Ok(VolumeSource::NodeDirectory { path, size_limit, medium })
}

/// 0777 on a disk, and what a tmpfs has in memory; with fsGroup that group and setgid, so that what is made in it
/// belongs to the group.
fn open_to_guests(path: &Path, medium: Medium, fs_group: Option<i64>) -> Result<(), String> {
    let mode = match medium {
        Medium::Disk => 0o777,
        Medium::Memory => 0o1777,
    };
    let group = fs_group.and_then(|group| u32::try_from(group).ok());
    let mode = if group.is_some() { mode | 0o2770 } else { mode };
    vfs::give_directory(path, mode, group).map_err(|error| error.to_string())
}

#[allow(clippy::useless_conversion, reason = "the field is narrower on other machines")]
/// `<memory_root>/<uid>/<volume>`, after checking that the root is memory and nobody else's.
fn memory_dir(root: &Path, uid: &PodUid, volume: &str) -> Result<PathBuf, String> {
    make_private(root).map_err(|error| describe(root, &error))?;
    // The parent (/dev/shm) is writable by everybody: someone may have been here before.
    let metadata = fs::symlink_metadata(root).map_err(|error| describe(root, &error))?;
    let ours = metadata.is_dir() && metadata.uid() == rustix::process::geteuid().as_raw();
    if !ours || metadata.mode() & 0o077 != 0 {
        return Err(format!("{} is not a directory of this node alone (owner and mode 0700)", root.display()));
    }
    let kind = rustix::fs::statfs(root).map_err(|error| describe(root, &error.into()))?.f_type;
    if ![TMPFS_MAGIC, RAMFS_MAGIC].contains(&i64::from(kind)) {
        return Err(format!("memory storage requested, but {} is not on a tmpfs", root.display()));
    }
    let pod = root.join(uid.as_str());
    make_private(&pod).map_err(|error| describe(&pod, &error))?;
    // Validation lets only DNS labels through; a path must not depend on that.
    let safe = !volume.is_empty() && volume.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    if safe { Ok(pod.join(volume)) } else { Err(format!("{volume:?} is not a volume name")) }
}

fn make_private(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

pub(super) fn remove_memory(root: &Path, uid: &PodUid) -> io::Result<()> {
    remove_tree_in(root, uid.as_str())
}

pub(super) fn memory_pods(root: &Path) -> Vec<PodUid> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    entries.filter_map(|entry| PodUid::new(entry.file_name().into_string().ok()?).ok()).collect()
}

fn describe(path: &Path, error: &io::Error) -> String {
    format!("{}: {error}", path.display())
}
