//! Names of things: newtypes for every id that crosses a module's border.
//!
//! In: strings from manifests, files and sockets. Out: checked values; a raw `String` id stops here.
//! Does not know what the ids refer to.

use std::fmt;
use std::str::FromStr;

use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};

/// A pod's UID: a UUID from the API server, or the kubelet's 32-digit hash for a static pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PodUid(String);

impl PodUid {
    /// Accepts the characters a UID can have; anything else could climb out of the pods directory.
    ///
    /// # Errors
    /// [`InvalidId`] when empty, longer than 63 bytes, or with a character other than `[A-Za-z0-9-]`.
    pub fn new(uid: impl Into<String>) -> Result<Self, InvalidId> {
        let uid = uid.into();
        let legal = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if uid.is_empty() || uid.len() > 63 || !uid.chars().all(legal) {
            return Err(InvalidId { kind: "pod UID", value: uid });
        }
        Ok(Self(uid))
    }

    /// The UID as it is written in paths and API objects.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A pod's namespace and name, displayed as Kubernetes logs do: `ns/name`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PodRef {
    /// Namespace; static pods without one are in `default`.
    pub namespace: String,
    /// `metadata.name`; for a static pod with the node's name appended.
    pub name: String,
}

impl PodRef {
    /// A pod's, as its metadata has it.
    #[must_use]
    pub fn of(pod: &Pod) -> Self {
        Self {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
        }
    }

    /// Whether it is this pod's.
    #[must_use]
    pub fn is_of(&self, pod: &Pod) -> bool {
        let (namespace, name) = (pod.metadata.namespace.as_deref(), pod.metadata.name.as_deref());
        namespace.unwrap_or_default() == self.namespace && name.unwrap_or_default() == self.name
    }
}

impl fmt::Display for PodRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// One attempt of one container: 64 hex digits, shown in statuses as `wasilet://<id>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ContainerId(String);

impl ContainerId {
    /// A new random id.
    #[must_use]
    pub fn random() -> Self {
        let bytes: [u8; 32] = rand::random();
        Self(hex::encode(bytes))
    }

    /// The 64 digits without the scheme.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The form of `containerStatuses[].containerID`.
    #[must_use]
    pub fn to_status(&self) -> String {
        format!("wasilet://{}", self.0)
    }
}

impl FromStr for ContainerId {
    type Err = InvalidId;

    fn from_str(s: &str) -> Result<Self, InvalidId> {
        let digits = s.strip_prefix("wasilet://").unwrap_or(s);
        let legal = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        if digits.len() != 64 || !digits.chars().all(legal) {
            return Err(InvalidId { kind: "container id", value: s.to_owned() });
        }
        Ok(Self(digits.to_owned()))
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A content digest, `sha256:<64 hex digits>`; no other algorithm is accepted.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    /// The digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        use sha2::Digest as _;
        Self::from_sha256(sha2::Sha256::digest(bytes).into())
    }

    /// Wraps a finished SHA-256.
    #[must_use]
    pub fn from_sha256(sum: [u8; 32]) -> Self {
        Self(format!("sha256:{}", hex::encode(sum)))
    }

    /// With its algorithm: `sha256:...`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The 64 hex digits alone, as used for file names.
    #[must_use]
    pub fn hex(&self) -> &str {
        &self.0["sha256:".len()..]
    }
}

impl FromStr for Digest {
    type Err = InvalidId;

    fn from_str(s: &str) -> Result<Self, InvalidId> {
        let legal = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        match s.strip_prefix("sha256:") {
            Some(hex) if hex.len() == 64 && hex.chars().all(legal) => Ok(Self(s.to_owned())),
            _ => Err(InvalidId { kind: "digest (sha256:<64 hex digits>)", value: s.to_owned() }),
        }
    }
}

impl TryFrom<String> for Digest {
    type Error = InvalidId;

    fn try_from(s: String) -> Result<Self, InvalidId> {
        s.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A string that is not a valid id of its kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not a valid {kind}")]
pub struct InvalidId {
    /// What it should have been.
    pub kind: &'static str,
    /// What it was.
    pub value: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_uid_cannot_be_a_path() {
        for bad in ["", "..", "a/b", "a\0b", &"x".repeat(64)] {
            assert!(PodUid::new(bad).is_err(), "{bad:?}");
        }
        assert!(PodUid::new("6f1c9a9e-6c3c-4a4e-8d0a-0d7d1c7f9b5a").is_ok());
    }

    #[test]
    fn a_container_id_parses_with_and_without_its_scheme() {
        let id = ContainerId::random();
        assert_eq!(id.to_status().parse::<ContainerId>().as_ref(), Ok(&id));
        assert_eq!(id.as_str().parse::<ContainerId>(), Ok(id));
        assert!("wasilet://12".parse::<ContainerId>().is_err());
    }

    #[test]
    fn a_digest_is_sha256_in_lower_case_hex() {
        let digest = Digest::of(b"");
        assert_eq!(digest.hex(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert!("sha512:00".parse::<Digest>().is_err());
        assert!(digest.as_str().to_uppercase().parse::<Digest>().is_err());
    }
}
