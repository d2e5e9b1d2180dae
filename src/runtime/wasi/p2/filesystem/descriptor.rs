//! The resource behind `wasi:filesystem/types.descriptor`.
//!
//! In: what `vfs` opened. Out: [`Descriptor`], which knows what the guest may do with it. Holds no offset.

use std::sync::Arc;

use super::super::bindings::filesystem::types::{DescriptorFlags, ErrorCode};
use super::super::errors::{FsError, FsResult};
use crate::runtime::process::FileDescription;
use crate::vfs::{Dir, File, Metadata};

/// An open file, directory or device of a guest.
#[derive(Clone)]
pub enum Descriptor {
    /// A file with bytes, `/dev/null` and its kind included.
    File {
        /// The open file.
        file: File,
        /// What it was opened for.
        flags: DescriptorFlags,
    },
    /// A directory.
    Directory {
        /// The open directory.
        dir: Dir,
        /// Whether entries may be changed through it.
        flags: DescriptorFlags,
    },
    /// A device that is one of the process's own streams.
    Device(OpenDevice),
}

/// A device file whose bytes come from the process and not from `vfs`: a standard stream, a terminal, signals.
#[derive(Clone)]
pub struct OpenDevice {
    /// What it is in the process.
    pub description: Arc<FileDescription>,
    /// What `stat` said when it was opened; devices do not change.
    pub metadata: Metadata,
    /// What it was opened for.
    pub flags: DescriptorFlags,
}

impl Descriptor {
    /// What it was opened for.
    pub fn flags(&self) -> DescriptorFlags {
        match self {
            Self::File { flags, .. } | Self::Directory { flags, .. } => *flags,
            Self::Device(device) => device.flags,
        }
    }

    /// The directory, for the functions whose names end in `-at`.
    ///
    /// # Errors
    /// `not-directory`.
    pub fn directory(&self) -> FsResult<&Dir> {
        match self {
            Self::Directory { dir, .. } => Ok(dir),
            Self::File { .. } | Self::Device(_) => Err(ErrorCode::NotDirectory.into()),
        }
    }

    /// The directory, to change its entries.
    ///
    /// # Errors
    /// `not-directory`, or `read-only` when it was opened without `mutate-directory`.
    pub fn mutable_directory(&self) -> FsResult<&Dir> {
        let dir = self.directory()?;
        if self.flags().contains(DescriptorFlags::MUTATE_DIRECTORY) { Ok(dir) } else { Err(ErrorCode::ReadOnly.into()) }
    }

    /// Refuses what the descriptor was not opened for.
    ///
    /// # Errors
    /// As read(2) and write(2): `bad-descriptor` for a missing flag, `is-directory` for reading a directory.
    pub fn check(&self, needed: DescriptorFlags) -> FsResult<()> {
        match self {
            Self::Directory { .. } if needed == DescriptorFlags::READ => Err(ErrorCode::IsDirectory.into()),
            Self::Directory { .. } => Err(ErrorCode::BadDescriptor.into()),
            _ if self.flags().contains(needed) => Ok(()),
            _ => Err(ErrorCode::BadDescriptor.into()),
        }
    }

    /// The file behind a descriptor that was opened for `needed`.
    ///
    /// # Errors
    /// As [`Self::check`]; `invalid-seek` for a device, which has no offsets.
    pub fn file(&self, needed: DescriptorFlags) -> FsResult<&File> {
        self.check(needed)?;
        match self {
            Self::File { file, .. } => Ok(file),
            Self::Directory { .. } | Self::Device(_) => Err(FsError::Code(ErrorCode::InvalidSeek)),
        }
    }

    /// Type, times, size and identity.
    ///
    /// # Errors
    /// What `vfs` says.
    pub async fn stat(&self) -> FsResult<Metadata> {
        Ok(match self {
            Self::File { file, .. } => file.stat().await?,
            Self::Directory { dir, .. } => dir.stat().await?,
            Self::Device(device) => device.metadata,
        })
    }
}
