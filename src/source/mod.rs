//! Desired pods: what manifests and the API server say should run here.
//!
//! In: manifest files, the watch of the pods bound to this node. Out: one stream of [`PodUpdate`]s, the ConfigMaps and
//! Secrets among the documents in the object store before the pods that need them, and mirrors of static pods in the API.
//! Runs nothing, admits nothing (`worker`).

pub mod apiserver;
mod controllers;
pub mod file;
pub mod manifest;
pub mod mirror;
#[cfg(test)]
mod tests;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use crate::ids::{PodRef, PodUid};

pub use crate::pod::static_pod::PodSource;

/// A pod that somebody wants.
#[derive(Debug, Clone, PartialEq)]
pub struct DesiredPod {
    /// Its UID.
    pub uid: PodUid,
    /// With defaults; valid. One of the API server has its status there. Shared by all who know it: it is most of what
    /// an idle pod costs.
    pub pod: Arc<Pod>,
    /// Who wants it.
    pub origin: Origin,
}

/// Where a pod comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// This manifest.
    Manifest(PathBuf),
    /// The API server.
    ApiServer,
}

impl From<&StaticPod> for DesiredPod {
    fn from(pod: &StaticPod) -> Self {
        Self { uid: pod.uid.clone(), pod: pod.pod.clone(), origin: Origin::Manifest(pod.manifest.clone()) }
    }
}

impl DesiredPod {
    /// Namespace and name.
    #[must_use]
    pub fn reference(&self) -> PodRef {
        PodRef::of(&self.pod)
    }
}

/// A pod of a manifest as it is to be run.
#[derive(Debug, Clone, PartialEq)]
pub struct StaticPod {
    /// Its UID: the manifest's, or a hash of what was written.
    pub uid: PodUid,
    /// With defaults, static-pod naming and annotations; valid.
    pub pod: Arc<Pod>,
    /// The file it's in.
    pub manifest: PathBuf,
}

impl StaticPod {
    /// Namespace and name.
    #[must_use]
    pub fn reference(&self) -> PodRef {
        PodRef::of(&self.pod)
    }
}

/// A change of what should run.
#[derive(Debug, Clone, PartialEq)]
pub enum PodUpdate {
    /// A pod that was not there. One of the same name may still be ending: it goes first, as on the kubelet.
    Add(Box<DesiredPod>),
    /// The same UID with other content: written in the manifest, or changed in the API server. There, a deletion is a
    /// change too, to a pod with a `deletionTimestamp`.
    Update(Box<DesiredPod>),
    /// Gone from the manifests, or from the API server.
    Remove {
        /// The pod.
        uid: PodUid,
        /// Its name.
        pod: PodRef,
        /// Where it was.
        source: PodSource,
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
    /// Everything that is there has been read once: what was not added by now is not desired by this source.
    Synced(PodSource),
}
