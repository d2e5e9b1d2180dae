//! Desired pods: what manifests say should run here.
//!
//! In: manifest files. Out: one stream of [`PodUpdate`]s, and the ConfigMaps and Secrets among the documents in the
//! object store before the pods that need them. Runs nothing, admits nothing (`worker`).

mod controllers;
pub mod file;
pub mod manifest;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use k8s_openapi::api::core::v1::Pod;

use crate::ids::{PodRef, PodUid};

/// A pod of a manifest as it is to be run.
#[derive(Debug, Clone, PartialEq)]
pub struct StaticPod {
    /// Its UID: the manifest's, or a hash of what was written.
    pub uid: PodUid,
    /// With defaults, static-pod naming and annotations; valid.
    pub pod: Pod,
    /// The file it's in.
    pub manifest: PathBuf,
}

impl StaticPod {
    /// Namespace and name.
    #[must_use]
    pub fn reference(&self) -> PodRef {
        PodRef {
            namespace: self.pod.metadata.namespace.clone().unwrap_or_default(),
            name: self.pod.metadata.name.clone().unwrap_or_default(),
        }
    }
}

/// A change of what should run.
#[derive(Debug, Clone, PartialEq)]
pub enum PodUpdate {
    /// A pod that was not there. One of the same name may still be ending: it goes first, as on the kubelet.
    Add(Box<StaticPod>),
    /// The same UID (written in the manifest) with other content.
    Update(Box<StaticPod>),
    /// Gone from the manifests.
    Remove {
        /// The pod.
        uid: PodUid,
        /// Its name.
        pod: PodRef,
    },
    /// A file, or a document of it, that cannot be used. Its last good pods stay desired; a pod taken over from a
    /// former run of the agent whose manifest this is should stay too.
    Problem {
        /// The file.
        manifest: PathBuf,
        /// What to tell, with file, line and column where there are.
        message: String,
    },
    /// Something in a file that is left out without harm.
    Warning {
        /// The file.
        manifest: PathBuf,
        /// What to tell.
        message: String,
    },
    /// Everything that is there has been read once: what was not added by now is not desired.
    Synced,
}
