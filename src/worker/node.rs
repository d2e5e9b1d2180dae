//! The real [`ContainerRuntime`]: `image` and `runtime` behind one handle.
//!
//! In: the worker's calls. Out: calls of the rooms below, their errors in the worker's words. Keeps no state.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::runtime::{
    ContainerRuntime, ImageFailure, ImageProgress, ImagePurpose, ImageRequest, Permit, Progress, ReadyImage,
    SandboxFailure, StartFailure, StartStep,
};
use crate::errno::Errno;
use crate::ids::{ContainerId, PodUid};
use crate::image::{Credential, Image, ImageService, PullError, PullPolicy, PullProgress, chain};
use crate::pod::container::ImageDefaults;
use crate::pod::probe::{Handler, Outcome};
use crate::pod::run::{
    Access, ContainerSpec, ContainerUsage, ImageSpec, Limits, PodLimits, Projection, SandboxSpec, StopRequest,
};
use crate::pod::user;
use crate::probe::{self, Target};
use crate::runtime::{Runtime, StartError};
use crate::vfs::layer::LayerStack;
use crate::vfs::{Credentials, NamespaceBuilder, Upper};

/// Wait between a failed pull and the first look at its back-off, which then says how long the wait really is.
const PULL_RETRY: Duration = Duration::from_secs(1);
/// Wait after what will not heal by itself: a bad name, an image that may not be pulled.
const HOPELESS_RETRY: Duration = Duration::from_secs(10);
/// /etc/passwd and /etc/group of an image: far more than any has, far less than would hurt.
const MAX_USER_FILE: u64 = 1 << 20;

/// Images and containers of this node.
#[derive(Clone)]
pub struct NodeRuntime {
    images: Arc<ImageService>,
    runtime: Arc<Runtime>,
}

impl std::fmt::Debug for NodeRuntime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeRuntime").finish_non_exhaustive()
    }
}

impl NodeRuntime {
    /// Over the node's image service and runtime.
    #[must_use]
    pub fn new(images: Arc<ImageService>, runtime: Arc<Runtime>) -> Self {
        Self { images, runtime }
    }
}

impl ContainerRuntime for NodeRuntime {
    async fn ensure_image(&self, request: ImageRequest, progress: Progress) -> Result<ReadyImage, ImageFailure> {
        let policy: PullPolicy = request.policy.parse().unwrap_or(PullPolicy::IfNotPresent);
        let mut credentials = Vec::new();
        for config in &request.docker_configs {
            match Credential::from_docker_config(&config.secret, &config.json) {
                Ok(found) => credentials.extend(found),
                // As the kubelet: a bad secret is no reason not to try without it.
                Err(error) => tracing::warn!(secret = config.secret, err = %error, "Ignored an image pull secret"),
            }
        }
        let listener = Arc::new(move |step: PullProgress| match step {
            PullProgress::AlreadyPresent => progress(ImageProgress::AlreadyPresent),
            PullProgress::Pulling => progress(ImageProgress::Pulling),
            PullProgress::Pulled { took, size } => progress(ImageProgress::Pulled { took, size }),
            _ => {}
        });
        let image = self.images.ensure(&request.image, policy, &credentials, listener).await;
        match image {
            Ok(image) => {
                let ready = ready(image).await?;
                if request.purpose == ImagePurpose::Volume {
                    return Ok(ready);
                }
                // Compiled before the attempt begins, so that a long compilation can be given up like a pull. What
                // cannot be compiled is said when it is started, in the words of that step.
                if let Err(error) = self.runtime.prepare(&ready.spec, &|_| {}).await {
                    tracing::debug!(image = request.image, err = %error, "Failed to compile an image ahead of its start");
                }
                Ok(ready)
            }
            Err(error) => Err(image_failure(&request.image, &error)),
        }
    }

    async fn create_sandbox(&self, spec: SandboxSpec, ips: Vec<IpAddr>) -> Result<Vec<IpAddr>, SandboxFailure> {
        match self.runtime.create_sandbox(spec, ips).await {
            Ok(info) => Ok(info.ips),
            Err(error) => Err(SandboxFailure { message: chain(&error) }),
        }
    }

    async fn update_volume(&self, uid: &PodUid, volume: &str, projection: Projection) {
        if let Err(error) = self.runtime.update_volume(uid, volume, &projection) {
            tracing::warn!(podUID = %uid, volume, err = chain(&error), "Failed to update a volume");
        }
    }

    async fn volume_wanted(&self, uid: &PodUid, volume: &str) {
        self.runtime.volume_wanted(uid, volume).await;
    }

    fn is_volume_pending(&self, uid: &PodUid, volume: &str) -> bool {
        self.runtime.is_volume_pending(uid, volume)
    }

    async fn remove_sandbox(&self, uid: &PodUid) {
        self.runtime.remove_sandbox(uid).await;
    }

    async fn start_container(
        &self,
        uid: &PodUid,
        spec: ContainerSpec,
        permit: impl Future<Output = Permit> + Send,
    ) -> Result<(), StartFailure> {
        self.runtime.start_container(uid, spec, permit).await.map_err(|error| start_failure(&error))
    }

    fn stop_container(&self, id: &ContainerId, request: StopRequest) {
        self.runtime.stop_container(id, request);
    }

    fn kill_container(&self, id: &ContainerId) {
        self.runtime.kill_container(id);
    }

    fn update_container(&self, id: &ContainerId, limits: &Limits) {
        self.runtime.update_container(id, limits);
    }

    fn update_sandbox(&self, uid: &PodUid, limits: &PodLimits) {
        self.runtime.update_sandbox(uid, limits);
    }

    async fn ask(&self, target: &Target, handler: &Handler, timeout: Option<Duration>) -> Outcome {
        probe::ask(&self.runtime, target, handler, timeout).await
    }

    fn usage(&self, id: &ContainerId) -> Option<ContainerUsage> {
        self.runtime.usage(id)
    }
}

fn image_failure(image: &str, error: &PullError) -> ImageFailure {
    let message = match error {
        PullError::NeverPull { .. } => {
            format!("Container image {image:?} is not present with pull policy of Never")
        }
        PullError::BackOff { last_failure, .. } => format!("Back-off pulling image {image:?}: {last_failure}"),
        other => other.message(),
    };
    let retry_after = match error {
        PullError::BackOff { remaining, .. } => *remaining,
        PullError::InvalidName(_) | PullError::NeverPull { .. } | PullError::Inspect { .. } => HOPELESS_RETRY,
        _ => PULL_RETRY,
    };
    ImageFailure { reason: error.reason(), message, retry_after }
}

async fn ready(image: Image) -> Result<ReadyImage, ImageFailure> {
    let status_id = image.status_id();
    let config = image.config;
    let (passwd, group) =
        if user::needs_files(&config.user) { user_files(&image.spec).await? } else { Default::default() };
    Ok(ReadyImage {
        spec: image.spec,
        status_id,
        defaults: ImageDefaults {
            entrypoint: config.entrypoint,
            cmd: config.cmd,
            env: config.env,
            working_dir: config.working_dir,
            user: config.user,
            stop_signal: config.stop_signal.unwrap_or_default(),
        },
        passwd,
        group,
    })
}

/// /etc/passwd and /etc/group as a container of the image would see them; empty when they are not there.
async fn user_files(image: &ImageSpec) -> Result<(String, String), ImageFailure> {
    let failed = |what: String| ImageFailure {
        reason: "ImageInspectError",
        message: format!("Failed to inspect image {:?}: {what}", image.reference),
        retry_after: HOPELESS_RETRY,
    };
    let layers = LayerStack::load(&image.layers).await.map_err(|error| failed(chain(&error)))?;
    let namespace = NamespaceBuilder::new(layers, Upper::Memory { limit: 0 }, Access::ReadOnly).build().await;
    let namespace = namespace.map_err(|error| failed(chain(&error)))?;
    let root = Credentials::root();
    let mut texts = Vec::new();
    for path in ["/etc/passwd", "/etc/group"] {
        match namespace.read(&root, &namespace.root(), path, MAX_USER_FILE).await {
            Ok(bytes) => texts.push(String::from_utf8_lossy(&bytes).into_owned()),
            Err(Errno::NoEnt | Errno::NotDir) => texts.push(String::new()),
            Err(errno) => return Err(failed(format!("reading {path}: {errno}"))),
        }
    }
    let group = texts.pop().unwrap_or_default();
    Ok((texts.pop().unwrap_or_default(), group))
}

fn start_failure(error: &StartError) -> StartFailure {
    let step = match error.reason() {
        "CreateContainerConfigError" => StartStep::Configure,
        "RunContainerError" => StartStep::Run { exit_code: error.exit_code() },
        _ => StartStep::Create,
    };
    StartFailure { step, message: chain(error) }
}
