//! Plain data of images: what the other rooms see of one.
//!
//! In: what the store holds. Out: [`Image`] and its parts. No behaviour beyond small lookups.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::ids::Digest;
use crate::pod::run::ImageSpec;

use super::reference::ImageRef;

/// An image that is whole on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The name it was asked by.
    pub reference: ImageRef,
    /// Digest of the manifest the node runs (a platform's, when the name is an index).
    pub manifest_digest: Digest,
    /// Digest of what the registry's tag points at: the index, or the manifest itself. It makes
    /// `containerStatuses[].imageID` (`repository@digest`).
    pub repo_digest: Digest,
    /// Digest of the configuration: Docker's IMAGE ID.
    pub image_id: Digest,
    /// Bytes of its manifest, configuration and blobs as a registry holds them.
    pub size: u64,
    /// What the runtime needs.
    pub spec: ImageSpec,
    /// What the image asks for by default.
    pub config: ImageConfigData,
}

impl Image {
    /// `containerStatuses[].imageID`: the repository at the digest that was resolved.
    #[must_use]
    pub fn status_id(&self) -> String {
        self.reference.at_digest(self.repo_digest.clone()).to_string()
    }

    /// The program and arguments an image starts with when the pod has no `command` and `args`.
    #[must_use]
    pub fn default_argv(&self) -> Vec<String> {
        self.config.entrypoint.iter().chain(&self.config.cmd).cloned().collect()
    }
}

/// An image's defaults (the `config` object of its configuration).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfigData {
    /// `Entrypoint`; for a bare wasm artifact `/app.wasm`. A `path#func` entry is kept as written.
    pub entrypoint: Vec<String>,
    /// `Cmd`.
    pub cmd: Vec<String>,
    /// `Env`, in order; an entry without `=` has an empty value.
    pub env: Vec<(String, String)>,
    /// `WorkingDir`; empty means `/`.
    pub working_dir: String,
    /// `User` as written: `uid`, `uid:gid` or names.
    pub user: String,
    /// `StopSignal` as written, such as `SIGTERM` or `15`.
    pub stop_signal: Option<String>,
    /// `ExposedPorts`, such as `8080/tcp`, sorted.
    pub exposed_ports: Vec<String>,
    /// `Labels`, sorted.
    pub labels: Vec<(String, String)>,
    /// `os/architecture` as the configuration says.
    pub platform: String,
    /// When it was built, as written.
    pub created: Option<String>,
}

/// A row of `wasilet image ls`: an image and every name it has here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSummary {
    /// Names with a tag, and names by digest alone, sorted; empty when only its id is left.
    pub names: Vec<ImageRef>,
    /// See [`Image::manifest_digest`].
    pub manifest_digest: Digest,
    /// See [`Image::image_id`].
    pub image_id: Digest,
    /// See [`Image::size`].
    pub size: u64,
    /// `artifact` or `image`.
    pub kind: ImageKind,
    /// When it came to this node.
    pub stored_at: SystemTime,
    /// Whether no collection takes it.
    pub pinned: bool,
}

/// The two families of shapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageKind {
    /// One wasm file and no file system.
    Artifact,
    /// A root file system with a wasm entrypoint.
    Image,
}

/// What a removal freed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// Names that were taken away.
    pub untagged: Vec<ImageRef>,
    /// Images (by id) whose content is gone.
    pub deleted: Vec<Digest>,
    /// Bytes given back to the disk.
    pub freed_bytes: u64,
}

/// What images take on the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskUsage {
    /// Images on this node.
    pub images: u64,
    /// Bytes of all blobs, layers and records, a shared one counted once.
    pub bytes: u64,
    /// Bytes of the file system the store is on.
    pub capacity_bytes: u64,
    /// Bytes still free there.
    pub available_bytes: u64,
}

/// Steps of a pull, for Events, progress bars and plain lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PullProgress {
    /// The image is here and the policy is satisfied: `Container image "..." already present on machine`.
    AlreadyPresent,
    /// A registry is being asked: `Pulling image "..."`.
    Pulling,
    /// The manifest is known.
    Resolved {
        /// Digest of the manifest.
        manifest: Digest,
        /// Blobs that are not here yet.
        blobs: usize,
        /// Their bytes.
        bytes: u64,
    },
    /// More of a blob arrived.
    Downloading {
        /// The blob.
        digest: Digest,
        /// Bytes here.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// A transfer broke and goes on from where it was.
    Retrying {
        /// The blob.
        digest: Digest,
        /// Which try this will be, from 2.
        attempt: u32,
        /// Why the last one ended.
        error: String,
    },
    /// A layer is being decompressed and indexed.
    Unpacking {
        /// The blob.
        digest: Digest,
    },
    /// Done: `Successfully pulled image "..." in ... Image size: ... bytes.`
    Pulled {
        /// Time since `Pulling`.
        took: Duration,
        /// [`Image::size`].
        size: u64,
    },
}

/// A listener to a pull. Called from the pull itself: it must not block.
pub type Progress = Arc<dyn Fn(PullProgress) + Send + Sync>;

/// A listener that ignores everything.
#[must_use]
pub fn no_progress() -> Progress {
    Arc::new(|_| {})
}
