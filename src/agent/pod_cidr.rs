//! The podCIDRs the Node object had last: a node that starts while its API server is away gives its pods addresses all the same.
//!
//! In: ranges. Out: the file `pod-cidr` of the root directory, a line each. One that cannot be read is as good as none: the Node says it
//! again.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use crate::network::IpRange;

fn file(root_dir: &Path) -> PathBuf {
    root_dir.join("pod-cidr")
}

/// What was stored last.
pub(super) fn load(root_dir: &Path) -> Vec<IpRange> {
    let text = std::fs::read_to_string(file(root_dir)).unwrap_or_default();
    let ranges = text.lines().map(|line| line.trim().parse());
    let ranges: Result<Vec<IpRange>, _> = ranges.collect();
    ranges.inspect_err(|error| tracing::warn!(err = %error, "Ignored the stored podCIDRs")).unwrap_or_default()
}

/// Stores it, whole or not at all. Blocking.
pub(super) fn store(root_dir: &Path, ranges: &[IpRange]) -> std::io::Result<()> {
    let temporary = root_dir.join(".pod-cidr.tmp");
    let mut written = std::fs::File::create(&temporary)?;
    for range in ranges {
        writeln!(written, "{range}")?;
    }
    written.sync_all()?;
    std::fs::rename(&temporary, file(root_dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_stored_last_is_loaded_and_nonsense_is_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert!(load(dir.path()).is_empty());
        for ranges in [vec!["10.244.0.0/24"], vec!["10.1.0.0/16", "fd00:1::/64"]] {
            let ranges: Vec<IpRange> = ranges.into_iter().map(|range| range.parse().unwrap()).collect();
            store(dir.path(), &ranges).unwrap();
            assert_eq!(load(dir.path()), ranges);
        }
        std::fs::write(file(dir.path()), "10.1").unwrap();
        assert!(load(dir.path()).is_empty());
    }
}
