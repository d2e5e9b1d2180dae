//! What this machine is and has, one file a kind of fact.
//!
//! In: /proc, /sys, /etc, statvfs, the kernel's addresses. Out: plain data. Decides nothing; a fact that cannot be read is the
//! most modest one or absent, with a warning where it matters.

pub mod address;
pub mod disk;
pub mod machine;
pub mod memory;

use std::path::Path;

pub use self::disk::Disk;
pub use self::machine::{Machine, Processes};
pub use self::memory::Memory;

/// Everything a status is made of that the machine alone knows. Reading it takes a millisecond of blocking calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Names and versions.
    pub machine: Machine,
    /// Memory.
    pub memory: Memory,
    /// The file system of the root directory.
    pub disk: Disk,
    /// Processes and threads.
    pub processes: Processes,
}

impl Facts {
    /// Reads everything. Blocking.
    #[must_use]
    pub fn read(root_dir: &Path) -> Self {
        Self {
            machine: Machine::read(),
            memory: Memory::read(),
            disk: Disk::read(root_dir),
            processes: Processes::read(),
        }
    }
}
