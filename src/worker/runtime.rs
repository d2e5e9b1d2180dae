//! What a worker needs of the rooms that run containers, as one trait with two implementations.
//!
//! [`NodeRuntime`](super::NodeRuntime) is the real one, over `image` and `runtime`. The other is the simulator
//! of the worker's tests, which plays exits, failures and slow pulls in paused time. The shape is that of CRI:
//! images, sandboxes, containers; exits come back as events, never as results.

use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::ids::{ContainerId, PodUid};
use crate::pod::container::ImageDefaults;
use crate::pod::probe::{Handler, Outcome};
use crate::pod::run::{
    ContainerSpec, ContainerUsage, ImageSpec, Limits, PodLimits, Projection, SandboxSpec, StopRequest,
};
use crate::probe::Target;

/// An image a container needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRequest {
    /// As the pod wrote it.
    pub image: String,
    /// `imagePullPolicy`, with its default applied.
    pub policy: String,
    /// `.dockerconfigjson` of the pod's pull secrets, in their order.
    pub docker_configs: Vec<DockerConfig>,
    /// What it is wanted for.
    pub purpose: ImagePurpose,
}

/// What an image is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImagePurpose {
    /// Its program is going to run.
    Program,
    /// Its files are mounted (`volumes[].image`).
    Volume,
}

/// A pull secret; its bytes are never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct DockerConfig {
    /// The Secret's name.
    pub secret: String,
    /// JSON with `auths`.
    pub json: Vec<u8>,
}

impl std::fmt::Debug for DockerConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DockerConfig").field("secret", &self.secret).finish_non_exhaustive()
    }
}

/// A step of making an image ready that users are told about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageProgress {
    /// It is on the node and the policy is satisfied.
    AlreadyPresent,
    /// A registry is being asked.
    Pulling,
    /// It was pulled.
    Pulled {
        /// Time since [`Self::Pulling`].
        took: Duration,
        /// Bytes.
        size: u64,
    },
}

/// A listener to a pull; it must not block.
pub type Progress = Arc<dyn Fn(ImageProgress) + Send + Sync>;

/// An image that is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadyImage {
    /// What the runtime needs.
    pub spec: ImageSpec,
    /// `containerStatuses[].imageID`.
    pub status_id: String,
    /// What the image says about running it.
    pub defaults: ImageDefaults,
    /// /etc/passwd of the image, when its user is a name.
    pub passwd: String,
    /// /etc/group of the image, when its user is a name.
    pub group: String,
}

/// An image that is not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct ImageFailure {
    /// The waiting reason: `ErrImagePull`, `ImagePullBackOff`, `ErrImageNeverPull`, `InvalidImageName` ...
    pub reason: &'static str,
    /// What is wrong.
    pub message: String,
    /// When to ask again.
    pub retry_after: Duration,
}

/// A sandbox that could not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SandboxFailure {
    /// What is wrong.
    pub message: String,
}

/// A container that could not be started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct StartFailure {
    /// How far it came.
    pub step: StartStep,
    /// What is wrong.
    pub message: String,
}

/// How far a start came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartStep {
    /// It cannot be described: a mount that is not there. `CreateContainerConfigError`.
    Configure,
    /// It cannot be made: not wasm, an import nobody has. `CreateContainerError`.
    Create,
    /// It was made and could not be started: the program is not there, its port is taken. The attempt counts,
    /// as behind containerd, and has this exit code. `RunContainerError`.
    Run {
        /// 126, 127, 128 or 137.
        exit_code: u8,
    },
}

impl StartStep {
    /// The waiting reason.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Configure => "CreateContainerConfigError",
            Self::Create => "CreateContainerError",
            Self::Run { .. } => "RunContainerError",
        }
    }
}

/// Whether a container that is ready may run; if not, why.
pub type Permit = Result<(), String>;

/// Images, sandboxes and containers.
pub trait ContainerRuntime: Send + Sync + 'static {
    /// Makes an image ready by its pull policy; says what it does through `progress`.
    fn ensure_image(
        &self,
        request: ImageRequest,
        progress: Progress,
    ) -> impl Future<Output = Result<ReadyImage, ImageFailure>> + Send;

    /// Makes network and mounts of a pod; returns its addresses. `ips` are those it had before the agent was
    /// restarted, to be given back to it; else empty.
    fn create_sandbox(
        &self,
        spec: SandboxSpec,
        ips: Vec<IpAddr>,
    ) -> impl Future<Output = Result<Vec<IpAddr>, SandboxFailure>> + Send;

    /// Replaces the files of a projected volume.
    fn update_volume(&self, uid: &PodUid, volume: &str, projection: Projection) -> impl Future<Output = ()> + Send;

    /// Until a guest has looked at a volume whose content is still to come ([`VolumeSource::Deferred`]).
    ///
    /// [`VolumeSource::Deferred`]: crate::pod::run::VolumeSource::Deferred
    fn volume_wanted(&self, uid: &PodUid, volume: &str) -> impl Future<Output = ()> + Send;

    /// Whether a volume's content is still to come.
    fn is_volume_pending(&self, uid: &PodUid, volume: &str) -> bool;

    /// Gives network and mounts back, and kills what still runs in them. Absent is fine.
    fn remove_sandbox(&self, uid: &PodUid) -> impl Future<Output = ()> + Send;

    /// Starts a container; its end arrives as an event. Its files are made at once, nothing of it runs before `permit`
    /// says so.
    fn start_container(
        &self,
        uid: &PodUid,
        spec: ContainerSpec,
        permit: impl Future<Output = Permit> + Send,
    ) -> impl Future<Output = Result<(), StartFailure>> + Send;

    /// Asks a container to end and kills it after the grace. Absent is fine.
    fn stop_container(&self, id: &ContainerId, request: StopRequest);

    /// Kills a container. Absent is fine.
    fn kill_container(&self, id: &ContainerId);

    /// Puts a running container under other limits of memory and CPU. Absent is fine.
    fn update_container(&self, id: &ContainerId, limits: &Limits);

    /// Puts all containers of a pod together under other limits. Absent is fine.
    fn update_sandbox(&self, uid: &PodUid, limits: &PodLimits);

    /// Asks a container, or does something with it, for at most `timeout`.
    fn ask(
        &self,
        target: &Target,
        handler: &Handler,
        timeout: Option<Duration>,
    ) -> impl Future<Output = Outcome> + Send;

    /// What it uses now.
    fn usage(&self, id: &ContainerId) -> Option<ContainerUsage>;
}
