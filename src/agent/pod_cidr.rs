//! The podCIDR the Node object had last: a node that starts while its API server is away gives its pods addresses all the same.
//!
//! In: a range. Out: the file `pod-cidr` of the root directory. One that cannot be read is as good as none: the Node says it
//! again.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use crate::network::IpRange;

fn file(root_dir: &Path) -> PathBuf {
    root_dir.join("pod-cidr")
}

/// What was stored last.
pub(super) fn load(root_dir: &Path) -> Option<IpRange> {
    let text = std::fs::read_to_string(file(root_dir)).ok()?;
    text.trim().parse().inspect_err(|error| tracing::warn!(err = %error, "Ignored the stored podCIDR")).ok()
}

/// Stores it, whole or not at all. Blocking.
pub(super) fn store(root_dir: &Path, range: IpRange) -> std::io::Result<()> {
    let temporary = root_dir.join(".pod-cidr.tmp");
    let mut written = std::fs::File::create(&temporary)?;
    writeln!(written, "{range}")?;
    written.sync_all()?;
    std::fs::rename(&temporary, file(root_dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_stored_last_is_loaded_and_nonsense_is_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load(dir.path()), None);
        for range in ["10.244.0.0/24", "10.1.0.0/16"] {
            store(dir.path(), range.parse().unwrap()).unwrap();
            assert_eq!(load(dir.path()).map(|range| range.to_string()).as_deref(), Some(range));
        }
        std::fs::write(file(dir.path()), "10.1").unwrap();
        assert_eq!(load(dir.path()), None);
    }
}
