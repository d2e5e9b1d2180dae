//! The hook by which bytes held in memory for a guest are charged to it.
//!
//! In: byte counts. Out: leave or refusal. Does not know limits: the runtime does.

use std::fmt;

use crate::errno::Errno;

/// An account of memory. Calls come from any thread, are short, and must not call back into the filesystem.
pub trait Charge: Send + Sync {
    /// Takes `bytes`.
    ///
    /// # Errors
    /// What the writing guest gets, such as `ENOMEM` or `ENOSPC`; nothing is taken then.
    fn charge(&self, bytes: u64) -> Result<(), Errno>;

    /// Gives back `bytes` taken before.
    fn release(&self, bytes: u64);
}

impl fmt::Debug for dyn Charge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Charge")
    }
}
