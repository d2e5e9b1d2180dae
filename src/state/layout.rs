//! Paths of one pod, in the kubelet's layout.
//!
//! In: names of volumes and containers. Out: absolute paths below `<root>/pods/<uid>`. Pure: makes no directory.

use std::path::{Path, PathBuf};

/// Where a pod's things are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodPaths {
    root: PathBuf,
}

impl PodPaths {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// `<root>/pods/<uid>`.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `volumes/kubernetes.io~empty-dir/NAME`.
    #[must_use]
    pub fn empty_dir(&self, volume: &str) -> PathBuf {
        self.root.join("volumes/kubernetes.io~empty-dir").join(one_component(volume))
    }

    /// `containers/NAME`.
    #[must_use]
    pub fn container_dir(&self, container: &str) -> PathBuf {
        self.root.join("containers").join(one_component(container))
    }

    /// `containers/NAME/<attempt>`, removed with the attempt.
    #[must_use]
    pub fn attempt_dir(&self, container: &str, attempt: u32) -> PathBuf {
        self.container_dir(container).join(attempt.to_string())
    }

    /// `containers/NAME/<attempt>/root`: the container's own writes (`ContainerSpec::writable_dir`).
    #[must_use]
    pub fn writable_dir(&self, container: &str, attempt: u32) -> PathBuf {
        self.attempt_dir(container, attempt).join("root")
    }

    /// `containers/NAME/<attempt>/termination-log` (`ContainerSpec::termination_message_file`).
    #[must_use]
    pub fn termination_message_file(&self, container: &str, attempt: u32) -> PathBuf {
        self.attempt_dir(container, attempt).join("termination-log")
    }

    /// `etc-hosts`.
    #[must_use]
    pub fn etc_hosts(&self) -> PathBuf {
        self.root.join("etc-hosts")
    }
}

/// A name as one harmless path component. Valid Kubernetes names come through unchanged.
fn one_component(name: &str) -> String {
    let safe: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || "-.".contains(c) { c } else { '_' }).collect();
    if safe.is_empty() || safe == "." || safe == ".." { "_".to_owned() } else { safe }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_the_kubelets_and_stay_below_the_pod() {
        let paths = PodPaths::new(PathBuf::from("/r/pods/u"));
        assert_eq!(paths.empty_dir("cache"), Path::new("/r/pods/u/volumes/kubernetes.io~empty-dir/cache"));
        assert_eq!(paths.writable_dir("app", 3), Path::new("/r/pods/u/containers/app/3/root"));
        assert_eq!(paths.termination_message_file("app", 0), Path::new("/r/pods/u/containers/app/0/termination-log"));
        for name in ["..", "a/../../b", "", "/etc"] {
            let path = paths.empty_dir(name);
            assert_eq!(path.components().count(), paths.empty_dir("x").components().count(), "{name:?}: {path:?}");
        }
    }
}
