//! Why an image could not be made ready, in the kubelet's words.
//!
//! In: what each step failed with. Out: [`PullError`], whose [`reason`](PullError::reason) is a container's
//! waiting reason and whose [`message`](PullError::message) names the image and, where there is one, the fix.

use std::path::PathBuf;
use std::time::Duration;

use super::archive::ArchiveError;
use super::builder::BuildError;
use super::reference::{ImageRef, InvalidImageName};
use super::registry::RegistryError;
use super::shape::ShapeError;
use super::store::StoreError;

/// Why an image could not be made ready to run.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The name cannot be parsed.
    #[error(transparent)]
    InvalidName(#[from] InvalidImageName),
    /// `imagePullPolicy: Never` and the image is not on this node.
    #[error("container image {image:?} is not present with pull policy of Never; load it with `wasilet image load`")]
    NeverPull {
        /// The image.
        image: String,
    },
    /// The last pull failed and its wait is not over.
    #[error("back-off pulling image {image:?}: {last_failure}")]
    BackOff {
        /// The image.
        image: String,
        /// Time until the next try.
        remaining: Duration,
        /// `Reason: message` of the last try.
        last_failure: String,
    },
    /// What the node knows about the image cannot be read.
    #[error("failed to inspect image {image:?}")]
    Inspect {
        /// The image.
        image: String,
        /// What failed.
        #[source]
        source: StoreError,
    },
    /// No endpoint of the registry answered.
    #[error("pulling image {image:?}: registry {registry} is not available")]
    RegistryUnavailable {
        /// The image.
        image: String,
        /// The registry.
        registry: String,
        /// The last endpoint's failure.
        #[source]
        source: RegistryError,
    },
    /// The registry answered, and the answer is no.
    #[error("pulling image {image:?}")]
    Registry {
        /// The image.
        image: String,
        /// The answer.
        #[source]
        source: RegistryError,
    },
    /// The image is not one this node can run.
    #[error("{image}")]
    Shape {
        /// The image.
        image: String,
        /// Why.
        #[source]
        source: ShapeError,
    },
    /// The image of the toolbox could not be made.
    #[error("making image {image:?} of the node's toolbox")]
    Toolbox {
        /// The image.
        image: String,
        /// What failed.
        #[source]
        source: Box<ImageError>,
    },
    /// The bytes could not be kept.
    #[error("storing image {image:?}")]
    Store {
        /// The image.
        image: String,
        /// What failed.
        #[source]
        source: StoreError,
    },
}

impl PullError {
    /// The waiting reason the kubelet shows: `ErrImagePull`, `ImagePullBackOff`, `ErrImageNeverPull`,
    /// `InvalidImageName`, `ImageInspectError` or `RegistryUnavailable`.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::InvalidName(_) => "InvalidImageName",
            Self::NeverPull { .. } => "ErrImageNeverPull",
            Self::BackOff { .. } => "ImagePullBackOff",
            Self::Inspect { .. } => "ImageInspectError",
            Self::RegistryUnavailable { .. } => "RegistryUnavailable",
            Self::Registry { .. } | Self::Shape { .. } | Self::Toolbox { .. } | Self::Store { .. } => "ErrImagePull",
        }
    }

    /// The whole chain in one line, as a container status and an Event show it.
    #[must_use]
    pub fn message(&self) -> String {
        chain(self)
    }
}

/// `error: its source: that one's source`, leaving out a source that only repeats its parent.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut last = text.clone();
    let mut source = error.source();
    // Bounded: a chain is as long as its enums are nested.
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if cause_text != last {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        last = cause_text;
        source = cause.source();
    }
    text
}

/// Why a command on images failed.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The name cannot be parsed.
    #[error(transparent)]
    InvalidName(#[from] InvalidImageName),
    /// Nothing by that name or id is on this node.
    #[error("image {image:?} is not on this node")]
    NotFound {
        /// As asked.
        image: String,
    },
    /// More than one image has an id that starts so.
    #[error("image id {prefix:?} is ambiguous; write more digits")]
    Ambiguous {
        /// As asked.
        prefix: String,
    },
    /// A pod uses it.
    #[error("image {image:?} is in use; delete its pods first")]
    InUse {
        /// As asked.
        image: String,
    },
    /// The file or directory to load is none of the shapes that can be.
    #[error("loading {}", path.display())]
    Archive {
        /// What was loaded.
        path: PathBuf,
        /// Why not.
        #[source]
        source: ArchiveError,
    },
    /// Which name the image should have.
    #[error("loading {}: {found}; give exactly one image and a NAME", path.display())]
    NameNeeded {
        /// What was loaded.
        path: PathBuf,
        /// What there is.
        found: String,
    },
    /// The image could not be built.
    #[error("building an image from {}", path.display())]
    Build {
        /// The directory or file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: BuildError,
    },
    /// Loaded or pulled, but not an image this node can run.
    #[error("{image}")]
    Shape {
        /// The image.
        image: String,
        /// Why.
        #[source]
        source: ShapeError,
    },
    /// The registry refused or failed.
    #[error("pushing {image}")]
    Push {
        /// The image.
        image: ImageRef,
        /// Why.
        #[source]
        source: RegistryError,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}
