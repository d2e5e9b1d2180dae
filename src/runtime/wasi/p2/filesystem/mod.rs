//! `wasi:filesystem` over the container's file tree.
//!
//! In: a process's [`crate::vfs::Namespace`] and credentials. Out: `Host` traits on [`View`] and the
//! resources behind `descriptor` and `directory-entry-stream`. Offsets are the guest's business in 0.2, so a
//! descriptor is an open file and what may be done with it. Mounts, permissions and symlinks are decided in
//! `vfs`; only the rules of descriptors are kept here.

mod convert;
mod descriptor;
mod device;
mod directory;
mod host;
mod streams;

pub use descriptor::Descriptor;
pub use directory::DirectoryEntryStream;
pub use streams::CHUNK;

use super::View;
