//! Dynamic read-only files: `/proc/self`, `/sys/fs/cgroup`.
//!
//! In: the runtime's [`Provider`], one per process. Out: nodes the namespace walks like any other.
//! Keeps nothing: the provider is asked at every lookup, content is taken once at open.

use super::{Device, FileType, Namespace};

/// What a [`Provider`] has at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Provided {
    /// A regular file, mode 0o444, with this content now.
    File(Vec<u8>),
    /// A directory, mode 0o555, with these entries.
    Directory(Vec<(String, FileType)>),
    /// A symbolic link to a path of the container.
    Symlink(String),
    /// A symbolic link to a path of another container: `/proc/PID/root`. It reads as that path, and leads there.
    Into {
        /// The container's.
        tree: Namespace,
        /// Absolute.
        target: String,
    },
    /// Opening gives one of the process's own streams.
    Device(Device),
}

/// The maker of dynamic files of one process.
pub trait Provider: Send + Sync {
    /// What is at `path`, absolute and normal (such as `/proc/self/status`). The mounted directory itself is
    /// asked for too and should be a [`Provided::Directory`]. Must not block.
    fn get(&self, path: &str) -> Option<Provided>;
}

impl std::fmt::Debug for dyn Provider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Provider")
    }
}
