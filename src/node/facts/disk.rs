//! The file system below a directory.
//!
//! In: statvfs, a walk. Out: bytes and inodes.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// A file system's size and what is left of it for this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Disk {
    /// Bytes in all.
    pub capacity_bytes: u64,
    /// Bytes left for others than root.
    pub available_bytes: u64,
    /// Inodes in all; 0 on file systems without a fixed number (btrfs).
    pub inodes: u64,
    /// Inodes left.
    pub inodes_free: u64,
}

impl Disk {
    /// Measures the file system `path` is on. One that cannot be measured is a gigabyte, half full.
    #[must_use]
    pub fn read(path: &Path) -> Self {
        match rustix::fs::statvfs(path) {
            Ok(disk) => Self {
                capacity_bytes: disk.f_blocks.saturating_mul(disk.f_frsize),
                available_bytes: disk.f_bavail.saturating_mul(disk.f_frsize),
                inodes: disk.f_files,
                inodes_free: disk.f_favail,
            },
            Err(error) => {
                tracing::warn!(path = %path.display(), err = %error, "Could not measure the disk, assumed 1 GiB");
                Self { capacity_bytes: 1 << 30, available_bytes: 1 << 29, inodes: 0, inodes_free: 0 }
            }
        }
    }
}

/// Inodes of a directory: itself and what is below it, a file of several names once; symlinks are not followed, what cannot
/// be read is nothing. Walks without recursion: a guest chooses how deep its tree is.
#[must_use]
pub fn inodes_of(root: &Path) -> u64 {
    let Ok(top) = std::fs::symlink_metadata(root) else { return 0 };
    let mut inodes = 1;
    let mut seen_links = HashSet::new();
    let mut pending = if top.is_dir() { vec![root.to_owned()] } else { Vec::new() };
    while let Some(directory) = pending.pop() {
        let Ok(entries) = std::fs::read_dir(&directory) else { continue };
        for entry in entries.flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                pending.push(entry.path());
            } else if metadata.nlink() > 1 && !seen_links.insert((metadata.dev(), metadata.ino())) {
                continue;
            }
            inodes += 1;
        }
    }
    inodes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_and_directory_is_one_inode_whatever_its_names() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        std::fs::create_dir_all(root.join("deep/er")).unwrap();
        std::fs::write(root.join("deep/er/file"), "x").unwrap();
        std::fs::hard_link(root.join("deep/er/file"), root.join("again")).unwrap();
        std::os::unix::fs::symlink("/", root.join("link")).unwrap();
        // The root, two directories, the file, the link.
        assert_eq!(inodes_of(root), 5);
        assert_eq!(inodes_of(&root.join("again")), 1);
        assert_eq!(inodes_of(&root.join("absent")), 0);
    }

    #[test]
    fn a_real_disk_has_room_and_a_missing_one_is_modest() {
        let disk = Disk::read(Path::new("/"));
        assert!(disk.capacity_bytes >= disk.available_bytes && disk.capacity_bytes > 0);
        assert_eq!(Disk::read(Path::new("/nonexistent/x")).capacity_bytes, 1 << 30);
    }
}
