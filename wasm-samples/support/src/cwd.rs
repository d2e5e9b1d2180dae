//! The working directory. WASI hands none to a program, so its libc starts in `/`; the node says in `$PWD` which one the
//! container asked for, as it does for Go, whose runtime looks there by itself.

use std::{env, io};

/// Goes where `$PWD` says, so that relative paths mean what the container's `workingDir` says. Without `$PWD`, stays.
pub fn enter() -> io::Result<()> {
    match env::var_os("PWD") {
        Some(directory) => env::set_current_dir(directory),
        None => Ok(()),
    }
}
