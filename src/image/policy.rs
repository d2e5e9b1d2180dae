//! When to ask a registry: the kubelet's pull policies.
//!
//! In: `imagePullPolicy` and whether the image is here. Out: a [`Decision`]. Pure.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::reference::ImageRef;

/// `imagePullPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PullPolicy {
    /// Ask the registry each time; what is already here is not transferred again.
    Always,
    /// Only when the image is not on this node.
    IfNotPresent,
    /// Never ask a registry.
    Never,
}

/// What [`PullPolicy::decide`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Use what is on the node.
    UseLocal,
    /// Ask the registry.
    Pull,
    /// Fail with `ErrImageNeverPull`.
    Refuse,
}

impl PullPolicy {
    /// The API server's default for a container without `imagePullPolicy`: `Always` for the tag
    /// `latest` (written or implied), `IfNotPresent` for another tag or a digest.
    #[must_use]
    pub fn default_for(image: &ImageRef) -> Self {
        if image.digest().is_none() && image.tag() == Some("latest") { Self::Always } else { Self::IfNotPresent }
    }

    /// Decides from presence.
    #[must_use]
    pub fn decide(self, presence: Presence) -> Decision {
        match (self, presence) {
            (Self::Always, _) | (Self::IfNotPresent, Presence::Absent) => Decision::Pull,
            (Self::IfNotPresent | Self::Never, Presence::Present) => Decision::UseLocal,
            (Self::Never, Presence::Absent) => Decision::Refuse,
        }
    }
}

/// Whether the image is whole on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// It is.
    Present,
    /// It is not, or only in part.
    Absent,
}

impl fmt::Display for PullPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        })
    }
}

impl FromStr for PullPolicy {
    type Err = UnknownPullPolicy;

    fn from_str(s: &str) -> Result<Self, UnknownPullPolicy> {
        match s {
            "Always" => Ok(Self::Always),
            "IfNotPresent" => Ok(Self::IfNotPresent),
            "Never" => Ok(Self::Never),
            other => Err(UnknownPullPolicy { value: other.to_owned() }),
        }
    }
}

/// A value `imagePullPolicy` does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unsupported imagePullPolicy {value:?}: supported values are Always, IfNotPresent, Never")]
pub struct UnknownPullPolicy {
    /// What was written.
    pub value: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_decides_as_the_kubelet_does() {
        use Decision::{Pull, Refuse, UseLocal};
        for (policy, here, absent) in [
            (PullPolicy::Always, Pull, Pull),
            (PullPolicy::IfNotPresent, UseLocal, Pull),
            (PullPolicy::Never, UseLocal, Refuse),
        ] {
            assert_eq!(policy.decide(Presence::Present), here, "{policy}, present");
            assert_eq!(policy.decide(Presence::Absent), absent, "{policy}, absent");
        }
    }

    #[test]
    fn latest_is_always_pulled_by_default() {
        let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        for (name, policy) in [
            ("web".to_owned(), PullPolicy::Always),
            ("web:latest".to_owned(), PullPolicy::Always),
            ("web:1".to_owned(), PullPolicy::IfNotPresent),
            (format!("web@{digest}"), PullPolicy::IfNotPresent),
            (format!("web:latest@{digest}"), PullPolicy::IfNotPresent),
        ] {
            assert_eq!(PullPolicy::default_for(&name.parse().unwrap()), policy, "{name}");
        }
    }
}
