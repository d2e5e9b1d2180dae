//! The file system below a directory.
//!
//! In: statvfs. Out: bytes and inodes.

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_real_disk_has_room_and_a_missing_one_is_modest() {
        let disk = Disk::read(Path::new("/"));
        assert!(disk.capacity_bytes >= disk.available_bytes && disk.capacity_bytes > 0);
        assert_eq!(Disk::read(Path::new("/nonexistent/x")).capacity_bytes, 1 << 30);
    }
}
