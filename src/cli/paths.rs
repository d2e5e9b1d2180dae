//! Where things are when nobody says: root directory and socket.
//!
//! Reads the environment and the effective user, touches no file.

use std::path::{Path, PathBuf};

/// `/var/lib/wasilet` for root, else `$XDG_DATA_HOME/wasilet` (`~/.local/share/wasilet`).
#[must_use]
pub fn default_root_dir() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/var/lib/wasilet");
    }
    let data_home = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share"));
    data_home.or_else(home).unwrap_or_else(|| PathBuf::from("/tmp")).join("wasilet")
}

/// The node's local API: one socket a root directory, so that `--root-dir` is all a client needs.
#[must_use]
pub fn socket(root_dir: &Path) -> PathBuf {
    root_dir.join("wasilet.sock")
}
