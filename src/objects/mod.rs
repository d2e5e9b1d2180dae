//! The ConfigMaps and Secrets that pods refer to.
//!
//! In: documents of manifests (later: API watches), per origin. Out: the newest of each, and word of changes.
//! Kept in memory only; never written, never logged. Does not know which pods use what.

mod store;

pub use store::ObjectStore;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};

/// Which kind of object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ObjectKind {
    /// `v1 ConfigMap`.
    ConfigMap,
    /// `v1 Secret`.
    Secret,
}

impl ObjectKind {
    /// The word in the kubelet's messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ConfigMap => "configmap",
            Self::Secret => "secret",
        }
    }
}

/// The name of one object.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: ObjectKind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl std::fmt::Display for ObjectKey {
    /// `configmap "ns/name"`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} \"{}/{}\"", self.kind.name(), self.namespace, self.name)
    }
}

/// The objects of one origin, replaced as one.
#[derive(Clone, Default, PartialEq)]
pub struct ObjectSet {
    /// ConfigMaps; one without namespace is in `default`.
    pub config_maps: Vec<ConfigMap>,
    /// Secrets, `stringData` already merged into `data`.
    pub secrets: Vec<Secret>,
}

impl std::fmt::Debug for ObjectSet {
    /// Names only: the rest may be secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let config_maps = self.config_maps.iter().map(|object| &object.metadata);
        let secrets = self.secrets.iter().map(|object| &object.metadata);
        f.debug_list().entries(config_maps.chain(secrets).map(|metadata| &metadata.name)).finish()
    }
}

/// A change that was not taken over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ObjectConflict {
    /// `immutable: true` and the content differs: the old content stays until the object is removed.
    #[error("{key} is immutable: its old content stays in use; remove the object and add it again to change it")]
    Immutable {
        /// The object.
        key: ObjectKey,
    },
    /// Two origins have it: the one whose name sorts first is used.
    #[error("{key} is already defined by {by}, which stays in use")]
    Duplicate {
        /// The object.
        key: ObjectKey,
        /// The origin whose object is used.
        by: String,
    },
}
