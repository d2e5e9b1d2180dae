//! The ConfigMaps and Secrets that pods refer to, and what else of a cluster they are made of.
//!
//! In: documents of manifests, per file; the references of registered pods, and the API server's answers to them. Out:
//! the newest of each object, why there is none, and word of changes; service account tokens, claims, trust bundles,
//! variables of Services. Kept in memory only; never written, never logged. Runs nothing (`worker`), mounts nothing
//! (`volume`).
//!
//! A pod of a manifest sees the objects of manifests alone, a pod of the API server those of the API server alone:
//! every lookup says for whom ([`ObjectOrigin`]).

mod api;
mod store;

pub use api::{ApiObjects, PolicySink, ServiceSink, Token, TokenOwner, watch_policies};
pub use store::ObjectStore;

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};

use crate::ids::PodUid;
use crate::pod::volumes::References;

/// Where a pod comes from, and with it every object it may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ObjectOrigin {
    /// Manifest files.
    Manifest,
    /// The API server.
    ApiServer,
}

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

/// Something that pods were made from is not as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// An object came, changed, went, or became known.
    Object(ObjectOrigin, ObjectKey),
    /// Tokens of this pod are due to be asked for anew.
    Tokens(PodUid),
    /// The Services were read for the first time.
    Services,
}

impl Change {
    /// Whether a pod in `namespace` should hear of it; whose objects it sees is for the pod to compare.
    #[must_use]
    pub fn concerns(&self, uid: &PodUid, namespace: &str, references: &References) -> bool {
        match self {
            Self::Object(_, key) => {
                key.namespace == namespace
                    && match key.kind {
                        ObjectKind::ConfigMap => references.config_maps.contains(&key.name),
                        ObjectKind::Secret => references.secrets.contains(&key.name),
                    }
            }
            Self::Tokens(of) => of == uid,
            Self::Services => true,
        }
    }

    /// The pods that see it.
    #[must_use]
    pub const fn origin(&self) -> ObjectOrigin {
        match self {
            Self::Object(origin, _) => *origin,
            Self::Tokens(_) | Self::Services => ObjectOrigin::ApiServer,
        }
    }
}

/// The keys of what a pod in `namespace` refers to.
#[must_use]
pub fn keys(namespace: &str, references: &References) -> BTreeSet<ObjectKey> {
    let key = |kind, name: &String| ObjectKey { kind, namespace: namespace.to_owned(), name: name.clone() };
    let config_maps = references.config_maps.iter().map(|name| key(ObjectKind::ConfigMap, name));
    config_maps.chain(references.secrets.iter().map(|name| key(ObjectKind::Secret, name))).collect()
}

/// Why an object cannot be had; the words are the kubelet's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// There is none: only this is what `optional` forgives.
    #[error("{} {name:?} not found", kind.name())]
    NotFound {
        /// Its kind.
        kind: ObjectKind,
        /// Its name.
        name: String,
    },
    /// The API server has not said yet whether there is one.
    #[error("failed to sync {} cache: {reason}", kind.name())]
    NotKnown {
        /// Its kind.
        kind: ObjectKind,
        /// What it said instead, or that it said nothing.
        reason: String,
    },
    /// Nobody asked for it.
    #[error("object {namespace:?}/{name:?} not registered")]
    NotRegistered {
        /// The namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_heard_by_the_pods_it_is_about() {
        let uid = |name: &str| PodUid::new(name).unwrap();
        let references = References { config_maps: ["c".to_owned()].into(), secrets: ["s".to_owned()].into() };
        let object = |kind, namespace: &str, name: &str| {
            let key = ObjectKey { kind, namespace: namespace.to_owned(), name: name.to_owned() };
            Change::Object(ObjectOrigin::ApiServer, key)
        };
        for (case, change, expected) in [
            ("its ConfigMap", object(ObjectKind::ConfigMap, "ns", "c"), true),
            ("a Secret of that name", object(ObjectKind::Secret, "ns", "c"), false),
            ("its Secret", object(ObjectKind::Secret, "ns", "s"), true),
            ("another namespace's", object(ObjectKind::ConfigMap, "other", "c"), false),
            ("its tokens", Change::Tokens(uid("u")), true),
            ("another's tokens", Change::Tokens(uid("v")), false),
            ("Services", Change::Services, true),
        ] {
            assert_eq!(change.concerns(&uid("u"), "ns", &references), expected, "{case}");
        }
    }

    #[test]
    fn what_is_missing_is_said_in_the_kubelets_words() {
        let (kind, name) = (ObjectKind::Secret, "s".to_owned());
        assert_eq!(Missing::NotFound { kind, name: name.clone() }.to_string(), "secret \"s\" not found");
        let reason = "timed out waiting for the condition".to_owned();
        let words = Missing::NotKnown { kind, reason }.to_string();
        assert_eq!(words, "failed to sync secret cache: timed out waiting for the condition");
    }
}
