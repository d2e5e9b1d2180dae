//! Sandbox and volumes: making, refreshing, removing.
//!
//! In: actions of the plan, changes of objects. Out: spawned work and its results, `FailedMount` and
//! `FailedCreatePodSandBox` events.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;

use super::actor::{Cleanup, Done, Fate, PodWorker, Removal, Subject};
use super::config::{Services, WorkerConfig};
use super::model::Activity;
use super::runtime::{ContainerRuntime, SandboxFailure};
use crate::events::{EventType, node_reference, pod_reference};
use crate::ids::PodUid;
use crate::network::host_dns_config;
use crate::objects::{self, Change, ObjectOrigin};
use crate::pod::back_off::later;
use crate::pod::dns::{self, FqdnTooLong, NodeDns, Notice};
use crate::pod::downward::Downward;
use crate::pod::plan::{Phase, Sandbox};
use crate::pod::resources;
use crate::pod::run::{SandboxSpec, VolumeSpec};
use crate::pod::sandbox;
use crate::pod::user::format_pod;
use crate::pod::volumes::References;
use crate::volume::{Fetched, Moment, VolumeContext, VolumeError, VolumeErrors, VolumeNotice};

/// The kubelet's volume manager begins with 500 ms and doubles up to 2 min 2 s.
pub(super) const FIRST_RETRY: Duration = Duration::from_millis(500);
pub(super) const LAST_RETRY: Duration = Duration::from_secs(122);
/// The first wait after a removal that failed.
const FIRST_REMOVAL: Duration = Duration::from_secs(2);
/// Removals that are tried, an hour's worth: what cannot go for so long does not go while this agent runs.
pub(super) const MOST_REMOVALS: u32 = 32;
/// The longest wait for a claim to be bound.
const CLAIM_RETRY: Duration = Duration::from_secs(4);

/// How long a start waits for the first answers of the API server about objects: the kubelet's one second, and time for
/// its authorizer to learn of a pod that just came. After it, what is missing is said, and its arrival starts again.
pub(super) const OBJECTS_PATIENCE: Duration = Duration::from_secs(2);

/// A sandbox that is there.
#[derive(Debug)]
pub(super) struct SandboxMade {
    pub ips: Vec<IpAddr>,
    pub volumes: Vec<VolumeSpec>,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub(super) enum SetupFailure {
    #[error(transparent)]
    Volume(#[from] VolumeErrors),
    #[error(transparent)]
    Names(#[from] FqdnTooLong),
    #[error(transparent)]
    Sandbox(#[from] SandboxFailure),
    /// The kubelet's words about the pod's RuntimeClass.
    #[error("{0}")]
    RuntimeClass(String),
    #[error("volume setup of pod {pod} panicked")]
    Panicked { pod: String },
}

/// What volumes are made from; owned, since they are made on another thread.
pub(super) struct VolumeInput {
    pub uid: PodUid,
    pub pod: Arc<Pod>,
    ips: Vec<IpAddr>,
    config: Arc<WorkerConfig>,
    origin: ObjectOrigin,
    manifest_dir: Option<PathBuf>,
    pending: Vec<String>,
}

impl VolumeInput {
    pub fn context(&self) -> VolumeContext<'_> {
        let downward = Downward { pod: &self.pod, pod_ips: &self.ips, node: &self.config.node };
        let (origin, manifest_dir) = (self.origin, self.manifest_dir.as_deref());
        VolumeContext { uid: &self.uid, origin, manifest_dir, pending: &self.pending, downward }
    }

    fn has_volumes(&self) -> bool {
        self.pod.spec.as_ref().is_some_and(|spec| spec.volumes.as_ref().is_some_and(|volumes| !volumes.is_empty()))
    }
}

impl<R: ContainerRuntime> PodWorker<R> {
    /// Whose objects the pod sees.
    pub(super) fn origin(&self) -> ObjectOrigin {
        if self.record.manifest.is_some() { ObjectOrigin::Manifest } else { ObjectOrigin::ApiServer }
    }

    /// Has what the pod refers to kept fresh, from now until [`Self::tear_down`].
    pub(super) fn register_objects(&self) {
        let references = self.pod.spec.as_ref().map(References::of_pod).unwrap_or_default();
        let keys = objects::keys(&self.name.namespace, &references);
        self.services.objects.register(self.origin(), &self.uid, keys);
    }

    pub(super) fn create_sandbox(&mut self) {
        self.sandbox = Sandbox::Creating;
        self.stale_volumes = false;
        self.register_objects();
        let services = self.services.clone();
        let input = self.volume_input();
        let names = match dns::names(&self.pod, &self.config.node.name, &self.config.dns.cluster_domain) {
            Ok(names) => names,
            Err(error) => {
                self.spawn(Subject::Sandbox, async move { Done::SandboxCreated(Err(error.into())) });
                return;
            }
        };
        let dns = dns::of_pod(&self.pod, &self.node_dns());
        self.say(dns.notices);
        let spec = SandboxSpec {
            pod: self.name.clone(),
            uid: self.uid.clone(),
            hostname: names.hostname.clone(),
            network: sandbox::network(&self.pod, dns.config, &names),
            volumes: Vec::new(),
            limits: self.pod.spec.as_ref().map(resources::pod_limits).unwrap_or_default(),
        };
        self.pod_limits = spec.limits;
        self.spawn(Subject::Sandbox, async move { Done::SandboxCreated(make(services, input, spec).await) });
    }

    /// The resolver settings of node and cluster; those of the node as its file has them now.
    fn node_dns(&self) -> NodeDns {
        let mut dns = self.config.dns.clone();
        if let Some(path) = &self.config.resolv_conf {
            match host_dns_config(path) {
                Ok(host) => dns.host = host,
                Err(error) => {
                    tracing::warn!(path = %path.display(), err = %error, "Could not read the node's resolver settings");
                }
            }
        }
        dns
    }

    fn say(&self, notices: Vec<Notice>) {
        for notice in notices {
            match notice {
                Notice::Forming(message) => self.event(EventType::Warning, "DNSConfigForming", message),
                Notice::MissingClusterDns(message) => {
                    let node = node_reference(&self.config.node.name);
                    self.services.events.event(&node, EventType::Warning, "MissingClusterDNS", message.clone());
                    let message = format!("pod: {:?}. {message}", format_pod(&self.pod));
                    self.event(EventType::Warning, "MissingClusterDNS", message);
                }
            }
        }
    }

    pub(super) fn volume_input(&self) -> VolumeInput {
        let manifest_dir = self.record.manifest.as_ref().and_then(|manifest| manifest.parent());
        VolumeInput {
            uid: self.uid.clone(),
            pod: self.pod.clone(),
            ips: self.record.ips.clone(),
            config: self.config.clone(),
            origin: self.origin(),
            manifest_dir: manifest_dir.map(Path::to_owned),
            pending: self.pending_volumes(),
        }
    }

    pub(super) fn sandbox_created(&mut self, result: Result<SandboxMade, SetupFailure>) {
        match result {
            Ok(made) => {
                self.sandbox = Sandbox::Ready;
                self.sandbox_failures = 0;
                self.sandbox_is_new();
                self.record.ips = made.ips;
                self.volumes = Arc::new(made.volumes);
                let (volumes, input) = (&self.services.volumes, self.volume_input());
                let again = volumes.has_driver_volumes(input.context()) || volumes.is_polled(input.context());
                self.next_remount = again.then(|| Instant::now() + self.config.sync_period);
                self.dirty();
                self.bring_deferred();
                if std::mem::take(&mut self.stale_volumes) {
                    self.refresh_volumes(None);
                }
            }
            Err(error) => {
                let doubled = FIRST_RETRY.saturating_mul(2u32.saturating_pow(self.sandbox_failures));
                self.sandbox_failures += 1;
                // The kubelet looks at claims again and again; only mounts that failed are backed off.
                let longest = match &error {
                    SetupFailure::Volume(errors) if errors.are_of_others() => CLAIM_RETRY,
                    _ => LAST_RETRY,
                };
                let retry_at = later(self.services.clock.now(), doubled.min(longest));
                self.sandbox = Sandbox::Failed { retry_at };
                match &error {
                    SetupFailure::Volume(errors) => {
                        for message in errors.messages() {
                            self.event(EventType::Warning, "FailedMount", message);
                        }
                    }
                    SetupFailure::Names(_)
                    | SetupFailure::Sandbox(_)
                    | SetupFailure::RuntimeClass(_)
                    | SetupFailure::Panicked { .. } => {
                        self.services.metrics.sandbox_failed();
                        let message = format!("Failed to create pod sandbox: {error}");
                        self.event(EventType::Warning, "FailedCreatePodSandBox", message);
                    }
                }
            }
        }
    }

    pub(super) fn remove_sandbox(&mut self) {
        self.sandbox = Sandbox::Removing;
        self.bringing = None;
        let (runtime, uid) = (self.services.runtime.clone(), self.uid.clone());
        self.spawn(Subject::Sandbox, async move {
            runtime.remove_sandbox(&uid).await;
            Done::SandboxRemoved
        });
    }

    /// What the pod is made from changed: volumes show it, and what failed for want of it is tried again.
    pub(super) fn objects_changed(&mut self, change: Option<Change>) {
        if self.phase != Phase::Syncing || change.as_ref().is_some_and(|change| change.origin() != self.origin()) {
            return;
        }
        if let Sandbox::Failed { .. } = self.sandbox {
            self.sandbox = Sandbox::Failed { retry_at: self.services.clock.now() };
        }
        for live in self.containers.values_mut() {
            let missing = |reason: &str| reason == "CreateContainerConfigError";
            if live.hold.as_ref().is_some_and(|hold| missing(&hold.waiting.reason))
                && let (Activity::Idle, Some(hold)) = (&live.activity, live.hold.as_mut())
            {
                hold.until = self.services.clock.now();
            }
        }
        self.refresh_volumes(change);
    }

    pub(super) fn refresh_volumes(&mut self, change: Option<Change>) {
        match self.sandbox {
            Sandbox::Ready => {}
            Sandbox::Creating => {
                self.stale_volumes = true;
                return;
            }
            _ => return,
        }
        let input = self.volume_input();
        if !input.has_volumes() {
            return;
        }
        let (services, refreshing) = (self.services.clone(), self.refreshing.clone());
        self.spawn(Subject::Side, async move {
            let _one_at_a_time = refreshing.lock().await;
            let fetched = services.volumes.fetch(input.context(), change.as_ref()).await;
            show(&services, input, change, fetched).await;
            Done::Refreshed
        });
    }

    /// Has drivers that want it publish their volumes again, with fresh tokens (`requiresRepublish`), and asks anew for what
    /// is not watched.
    pub(super) fn remount_if_due(&mut self) {
        let Some(due) = self.next_remount else { return };
        if self.phase != Phase::Syncing || self.sandbox != Sandbox::Ready {
            self.next_remount = None;
            return;
        }
        if Instant::now() < due {
            return;
        }
        self.next_remount = None;
        let (services, input, refreshing) = (self.services.clone(), self.volume_input(), self.refreshing.clone());
        self.spawn(Subject::Side, async move {
            let _one_at_a_time = refreshing.lock().await;
            let context = input.context();
            let mut fetched = services.volumes.fetch(context, None).await;
            let errors = services.volumes.republish(context, &fetched).await;
            let notices = services.volumes.expand(context, &mut fetched, Moment::Mounted).await;
            tell(&services, &input.pod, notices);
            if services.volumes.is_polled(context) {
                show(&services, input, None, fetched).await;
            }
            Done::Remounted(errors)
        });
    }

    /// What is mounted stays when a driver fails to publish it again.
    pub(super) fn remounted(&mut self, errors: Vec<VolumeError>) {
        if self.phase != Phase::Syncing || self.sandbox != Sandbox::Ready {
            return;
        }
        self.next_remount = Some(Instant::now() + self.config.sync_period);
        for message in VolumeErrors(errors).messages() {
            self.event(EventType::Warning, "FailedMount", message);
        }
    }

    /// Removes volumes and what containers wrote; the record and the logs stay.
    pub(super) fn tear_down(&mut self) {
        self.cleanup = Cleanup::TearingDown;
        self.services.objects.unregister(&self.uid);
        let (services, uid) = (self.services.clone(), self.uid.clone());
        self.spawn(Subject::Cleanup, async move {
            // Of a pod that this agent never ran there is its address.
            services.runtime.remove_sandbox(&uid).await;
            // The kubelet, too, lets a pod go only when nothing of it is mounted.
            services.volumes.unmount(&uid).await;
            let removed = tokio::task::spawn_blocking(move || remove_directories(&services, &uid));
            if let Err(error) = removed.await {
                tracing::error!(err = %error, "Removing the directories of a pod panicked");
            }
            Done::TornDown
        });
    }

    /// The pod was deleted and is over: nothing of it stays.
    pub(super) fn remove(&mut self) {
        debug_assert_eq!(self.fate, Fate::Deleted);
        self.cleanup = Cleanup::Removing;
        self.services.status.remove(&self.uid);
        let (services, uid, name) = (self.services.clone(), self.uid.clone(), self.name.clone());
        self.spawn_blocking(Subject::Cleanup, move || {
            let mut removal = Removal::Complete;
            if let Err(error) = services.volumes.teardown(&uid) {
                tracing::error!(podUID = %uid, err = %error, "Failed to tear down volumes");
                removal = Removal::Partial;
            }
            if let Err(error) = services.state.remove_pod(&uid) {
                tracing::error!(podUID = %uid, err = %error, "Failed to remove the pod's directory");
                removal = Removal::Partial;
            }
            if let Err(error) = services.logs.remove_pod(&name, &uid) {
                tracing::error!(podUID = %uid, err = %error, "Failed to remove the pod's logs");
                removal = Removal::Partial;
            }
            Done::Removed(removal)
        });
    }

    /// What is left of a deleted pod is removed in a while, or by the next agent: the kubelet's housekeeping, which looks
    /// every two seconds, does no other.
    pub(super) fn removed(&mut self, removal: Removal) {
        let stops = self.remove_again.is_some_and(|(_, failures)| failures >= MOST_REMOVALS);
        if removal == Removal::Complete || stops {
            return;
        }
        let failures = self.remove_again.map_or(0, |(_, failures)| failures);
        let delay = FIRST_REMOVAL.saturating_mul(2u32.saturating_pow(failures)).min(LAST_RETRY);
        self.remove_again = Some((Instant::now() + delay, failures + 1));
        self.cleanup = Cleanup::TornDown;
    }
}

/// Gives guests what their projections show now.
async fn show<R: ContainerRuntime>(
    services: &Services<R>,
    input: VolumeInput,
    change: Option<Change>,
    fetched: Fetched,
) {
    let (volumes, uid) = (services.volumes.clone(), input.uid.clone());
    let refresh = move || volumes.refresh(input.context(), change.as_ref(), &fetched);
    let refreshed = tokio::task::spawn_blocking(refresh);
    for (volume, projection) in refreshed.await.unwrap_or_default() {
        match projection {
            Ok(projection) => services.runtime.update_volume(&uid, &volume, projection).await,
            // An object that was deleted: what is mounted stays, as with the kubelet.
            Err(error) => tracing::warn!(err = %error, "Failed to refresh a volume"),
        }
    }
}

/// What a pod and its claims are told of volumes that grew.
fn tell<R>(services: &Services<R>, pod: &Pod, notices: Vec<VolumeNotice>) {
    for VolumeNotice { kind, reason, message, claim } in notices {
        if let Some(claim) = claim {
            services.events.event(&claim, kind, reason, message.clone());
        }
        services.events.event(&pod_reference(pod), kind, reason, message);
    }
}

fn remove_directories<R>(services: &Services<R>, uid: &PodUid) {
    if let Err(error) = services.volumes.teardown(uid) {
        tracing::error!(podUID = %uid, err = %error, "Failed to tear down volumes");
    }
    let root = services.state.paths(uid).root().to_owned();
    for directory in ["volumes", "containers"] {
        if let Err(error) = services.state.remove_tree(uid, &root.join(directory)) {
            tracing::error!(podUID = %uid, err = %error, "Failed to remove a directory of the pod");
        }
    }
}

async fn make<R: ContainerRuntime>(
    services: Arc<Services<R>>,
    input: VolumeInput,
    mut spec: SandboxSpec,
) -> Result<SandboxMade, SetupFailure> {
    let ips = input.ips.clone();
    if let Some(class) = input.pod.spec.as_ref().and_then(sandbox::runtime_class) {
        let deadline = Instant::now() + OBJECTS_PATIENCE;
        let handler = services.objects.runtime_handler(input.origin, class, deadline).await;
        handler.and_then(|handler| sandbox::check_handler(&handler)).map_err(SetupFailure::RuntimeClass)?;
    }
    if input.has_volumes() {
        let volumes = services.volumes.clone();
        let deadline = Instant::now() + OBJECTS_PATIENCE;
        let references = volumes.references(input.context());
        // Tokens of the pod's own volumes do not wait for the ConfigMaps.
        let settled = services.objects.settle(input.origin, &references, deadline);
        let ((), mut fetched) = tokio::join!(settled, volumes.fetch_first(input.context()));
        volumes.mount(input.context(), &mut fetched).await;
        let notices = volumes.expand(input.context(), &mut fetched, Moment::Mounting).await;
        tell(&services, &input.pod, notices);
        let setup = tokio::task::spawn_blocking(move || volumes.setup(input.context(), &fetched));
        spec.volumes = setup.await.map_err(|_| SetupFailure::Panicked { pod: spec.pod.to_string() })??;
    }
    let volumes = spec.volumes.clone();
    let ips = services.runtime.create_sandbox(spec, ips).await?;
    Ok(SandboxMade { ips, volumes })
}
