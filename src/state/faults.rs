//! Where tests make the disk fail.
//!
//! In: a step about to be done. Out: leave to do it, or the error it shall have. The real node uses [`NoFaults`].

use std::io;
use std::path::Path;

/// A step of a crash-safe write or removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IoStep {
    /// Making a directory.
    MakeDirectory,
    /// Making the temporary file.
    Create,
    /// Writing its bytes.
    Write,
    /// fsync of the file.
    SyncFile,
    /// Renaming it into place.
    Rename,
    /// fsync of the directory.
    SyncDirectory,
    /// Removing a file or directory.
    Remove,
    /// Reading a file.
    Read,
}

/// Decides whether a step fails. Called before the step is done.
pub trait Faults: Send + Sync + std::fmt::Debug {
    /// # Errors
    /// The error the step shall have.
    fn before(&self, step: IoStep, path: &Path) -> io::Result<()>;
}

/// The real disk: only its own faults.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoFaults;

impl Faults for NoFaults {
    fn before(&self, _step: IoStep, _path: &Path) -> io::Result<()> {
        Ok(())
    }
}
