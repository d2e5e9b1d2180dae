//! The filesystem core: what a container's programs see as files.
//!
//! In: image layers, volumes, managed files and a provider of dynamic files. Out: a [`Namespace`], one
//! container's tree of mounts, with plain-data results and [`Errno`](crate::errno::Errno) as Linux gives it.
//!
//! Three backends carry everything:
//! - `tree`: names and metadata in memory over an immutable lower tree (an image's merged layers, or nothing).
//!   A container's root, tmpfs, `/dev`, managed files and projections are trees; they differ only in where
//!   new bytes go (memory, or files of a node directory). A container's own writes end with its attempt, so
//!   nothing of a tree is read back from disk.
//! - `host`: a directory of the node by descriptors, never by path: emptyDir (ours) and hostPath (foreign).
//! - `provided`: read-only files whose content the runtime makes (`/proc/self`, `/sys/fs/cgroup`), per process.
//!
//! Does not know WASI, wasmtime, file offsets, or pods; a file offset belongs to the runtime's open file.

mod charge;
mod deferred;
mod dir;
mod file;
mod host;
pub mod layer;
mod managed;
mod mount;
mod namespace;
mod path;
mod perm;
mod pool;
mod projection;
mod provider;
#[cfg(test)]
mod testkit;
mod tree;
mod types;
mod volume;

pub use charge::Charge;
pub use dir::{Dir, DirEntry};
pub use file::{Advice, File};
pub use managed::ManagedFile;
pub use mount::MountError;
pub(crate) use namespace::DEFERRED_PATIENCE;
pub use namespace::{Devices, Namespace, NamespaceBuilder, Upper};
pub use provider::{Provided, Provider};
pub use types::fs_type;
pub use types::{
    AccessMode, Credentials, Device, FileType, Follow, Metadata, NAME_MAX, OpenFlags, OpenOptions, Opened, PATH_MAX,
    SetTime, SetTimes, StatFs, Timestamp,
};
pub use volume::{GroupChange, Volume, VolumeError, give_directory, give_to_group};
