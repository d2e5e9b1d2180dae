//! Starting a container: image, description, reservation, launch.
//!
//! In: `Action::Start`. Out: a running container, or a hold with the kubelet's reason and events.
//! Nothing of the guest runs before the attempt is written where the next agent finds it, nor, when it may run once
//! only, before it is on the disk.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::actor::{Done, PodWorker, Subject};
use super::apply::Retry;
use super::config::{Services, WorkerConfig};
use super::model::{Activity, Wanted};
use super::probing::Checks;
use super::pull_secret;
use super::runtime::{
    ContainerRuntime, DockerConfig, ImageFailure, ImageProgress, ImagePurpose, ImageRequest, Progress, ReadyImage,
    StartFailure, StartStep,
};
use super::sandbox::OBJECTS_PATIENCE;
use crate::events::{EventType, Recorder, container_reference};
use crate::ids::{ContainerId, PodRef, PodUid};
use crate::objects::{self, Missing, ObjectOrigin};
use crate::pod::allocation::Numbers;
use crate::pod::back_off::BackOff;
use crate::pod::container::{self, AttemptPaths, ConfigError, ContainerInput};
use crate::pod::dns;
use crate::pod::downward::Downward;
use crate::pod::env::{EnvFile, EnvSources, Objects};
use crate::pod::ephemeral;
use crate::pod::plan::Health;
use crate::pod::run::{ContainerSpec, ImageSpec, VolumeSource, VolumeSpec};
use crate::pod::service_env::Links;
use crate::pod::user::{self, ImageUser, UserError};
use crate::pod::volumes::{References, pull_secrets};
use crate::state::{RunRecord, StateError};
use crate::volume::read_env_file;

/// A container that can be launched.
#[derive(Debug)]
pub(super) struct Prepared {
    pub spec: ContainerSpec,
    pub image_id: String,
    pub stop_signal: u8,
    /// What it is going to run under.
    pub numbers: Numbers,
}

/// Why a container cannot be launched.
#[derive(Debug, thiserror::Error)]
pub(super) enum PrepareFailure {
    #[error("the start was given up")]
    Cancelled,
    #[error("{failure}")]
    Image { image: String, failure: ImageFailure },
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    User(#[from] UserError),
    #[error("{reason}")]
    Services { reason: &'static str },
    #[error("removing what an attempt left behind: {0}")]
    Directory(#[from] StateError),
}

/// Everything that preparing needs, owned.
struct Preparation<R> {
    services: Arc<Services<R>>,
    config: Arc<WorkerConfig>,
    pod: Arc<Pod>,
    container: Container,
    uid: PodUid,
    name: PodRef,
    origin: ObjectOrigin,
    ips: Vec<std::net::IpAddr>,
    volumes: Arc<Vec<VolumeSpec>>,
    attempt: u32,
}

impl<R: ContainerRuntime> PodWorker<R> {
    /// Begins a start.
    pub(super) fn prepare(&mut self, name: &str) {
        let Some(container) = find(&self.pod, name) else { return };
        let attempt = self.record.containers.get(name).map_or(0, |record| record.attempts);
        let Some(live) = self.containers.get_mut(name) else { return };
        let cancel = CancellationToken::new();
        live.activity = Activity::Preparing { cancel: cancel.clone() };
        live.health = Health::Healthy;
        live.checks = Checks::default();
        // An ephemeral container may have brought new references.
        self.register_objects();
        let preparation = Preparation {
            services: self.services.clone(),
            config: self.config.clone(),
            pod: self.pod.clone(),
            container,
            uid: self.uid.clone(),
            name: self.name.clone(),
            origin: self.origin(),
            ips: self.record.ips.clone(),
            volumes: self.volumes.clone(),
            attempt,
        };
        let name = name.to_owned();
        self.spawn(Subject::Container(name.clone()), async move {
            // Dropping the preparation gives up at its next await; a pull goes on for others who want it.
            let result = cancel.run_until_cancelled(preparation.run()).await;
            let result = result.unwrap_or(Err(PrepareFailure::Cancelled)).map(Box::new);
            Done::Prepared { container: name, result }
        });
    }

    pub(super) fn prepared(&mut self, name: &str, result: Result<Box<Prepared>, PrepareFailure>) {
        let given_up = match self.containers.get(name).map(|live| &live.activity) {
            Some(Activity::Preparing { cancel }) => cancel.is_cancelled(),
            _ => true,
        };
        match result {
            Ok(prepared) if !given_up => self.launch(name, *prepared),
            Ok(_) | Err(PrepareFailure::Cancelled) => {
                if let Some(live) = self.containers.get_mut(name) {
                    live.activity = Activity::Idle;
                }
            }
            Err(PrepareFailure::Image { image, failure }) => {
                self.count_failure(name, failure.reason);
                self.tell_image_failure(name, &image, &failure);
                self.hold(name, failure.reason, failure.message, Retry::After(failure.retry_after));
            }
            Err(failure) => {
                let message = failure.to_string();
                self.count_failure(name, "CreateContainerConfigError");
                if self.is_news(name, "CreateContainerConfigError", &message) {
                    self.container_event(name, EventType::Warning, "Failed", format!("Error: {message}"));
                }
                self.hold(name, "CreateContainerConfigError", message, Retry::Configuration);
            }
        }
    }

    fn count_failure(&self, name: &str, reason: &'static str) {
        if let Some(live) = self.containers.get(name) {
            self.services.metrics.container_failed(live.role, reason);
        }
    }

    /// Says why there is no image, as the kubelet does.
    fn tell_image_failure(&mut self, name: &str, image: &str, failure: &ImageFailure) {
        let (kind, reason, message) = match failure.reason {
            "ImagePullBackOff" => (EventType::Normal, "BackOff", format!("Back-off pulling image {image:?}")),
            "ErrImageNeverPull" => (EventType::Warning, "ErrImageNeverPull", failure.message.clone()),
            "InvalidImageName" | "ImageInspectError" => (EventType::Warning, "InspectFailed", failure.message.clone()),
            _ => (EventType::Warning, "Failed", format!("Failed to pull image {image:?}: {}", failure.message)),
        };
        // Pulls have a back-off of their own; the others are looked at again soon, for somebody may load the image.
        let hopeless = matches!(failure.reason, "ErrImageNeverPull" | "InvalidImageName" | "ImageInspectError");
        if hopeless && !self.is_news(name, failure.reason, &failure.message) {
            return;
        }
        self.container_event(name, kind, reason, message);
        self.container_event(name, EventType::Warning, "Failed", format!("Error: {}", failure.reason));
    }

    /// Whether a failed start is worth an Event: one that is the same as the last is told again after 10 s, 20 s ... 300 s,
    /// however often it is tried.
    fn is_news(&mut self, name: &str, reason: &str, message: &str) -> bool {
        let now = self.services.clock.now();
        let Some(live) = self.containers.get_mut(name) else { return false };
        let same = live
            .hold
            .as_ref()
            .is_some_and(|hold| hold.waiting.reason == reason && hold.waiting.message.as_deref() == Some(message));
        match live.told {
            Some(told) if same && !told.is_over(now) => false,
            told => {
                live.told = Some(BackOff::after_failure(told.filter(|_| same), now));
                true
            }
        }
    }

    /// Writes the attempt down, then starts it.
    fn launch(&mut self, name: &str, prepared: Prepared) {
        let Prepared { spec, image_id, stop_signal, numbers } = prepared;
        let id = spec.id.clone();
        let now = self.services.clock.now();
        let record = self.container_record(name);
        record.attempts = spec.attempt + 1;
        let anew = std::mem::take(&mut record.reset);
        let user = Some(spec.user.clone());
        record.running = Some(RunRecord { id: id.clone(), attempt: spec.attempt, image_id, user, started_at: now });
        if let Some(live) = self.containers.get_mut(name) {
            live.stop_signal = stop_signal;
            live.in_force = Some(numbers);
            live.revive |= anew;
            live.activity = Activity::Launching { id: id.clone(), exit: None, wanted: Wanted::Yes };
        }
        let (services, uid, container) = (self.services.clone(), self.uid.clone(), name.to_owned());
        let (version, stored, refusal) =
            (self.saves.wanted, self.saves.stored.subscribe(), self.saves.refusal.subscribe());
        let once = find(&self.pod, name).is_some_and(|container| runs_once(&self.pod, &container));
        // A killed agent forgets nothing that is staged. A machine that dies in the milliseconds until it is on the disk
        // forgets an attempt: one that is made again anyway, or the second run of a program that may run once.
        let mut written = if once { self.saves.done.subscribe() } else { self.saves.staged.subscribe() };
        // The disk is slow: the container's files are made while the record is on its way there.
        let permit = async move {
            // An error means that the worker is gone, and with it this task.
            let _ = written.wait_for(|written| *written >= version).await;
            let forgotten = once && *stored.borrow() < version;
            if forgotten {
                Err(format!("the attempt could not be written to disk: {}", *refusal.borrow()))
            } else {
                Ok(())
            }
        };
        self.spawn(Subject::Container(container.clone()), async move {
            let result = services.runtime.start_container(&uid, spec, permit).await;
            Done::Launched { container, id, result }
        });
    }

    pub(super) fn launched(&mut self, name: &str, id: &ContainerId, result: Result<(), StartFailure>) {
        let Some(live) = self.containers.get_mut(name) else { return };
        let Activity::Launching { id: current, exit, wanted } = &mut live.activity else { return };
        if current != id {
            return;
        }
        let (exit, wanted) = (exit.take(), *wanted);
        match result {
            Ok(()) => {
                live.activity = Activity::Running { id: id.clone() };
                live.hold = None;
                live.failures = None;
                live.revive = false;
                let now = self.services.clock.now();
                // An agent that finds the attempt without this takes it for one that ran, and rightly.
                self.dirty_later();
                let record = self.record.containers.entry(name.to_owned()).or_default();
                record.started = true;
                if let Some(run) = record.running.as_mut() {
                    run.started_at = now;
                    record.restart_count = run.attempt;
                }
                self.container_event(name, EventType::Normal, "Created", "Container created".to_owned());
                self.container_event(name, EventType::Normal, "Started", "Container started".to_owned());
                self.forget_old_attempts(name);
                if let Some(exit) = exit {
                    self.exited(exit);
                } else if wanted == Wanted::No {
                    self.services.runtime.kill_container(id);
                } else {
                    self.begin_checks(name);
                }
            }
            Err(failure) => {
                self.count_failure(name, failure.step.reason());
                self.container_event(name, EventType::Warning, "Failed", format!("Error: {}", failure.message));
                if let StartStep::Run { exit_code } = failure.step {
                    self.record_failed_run(name, exit_code, failure.message);
                    return;
                }
                let record = self.container_record(name);
                record.attempts = record.attempts.saturating_sub(1);
                record.running = None;
                self.hold(name, failure.step.reason(), failure.message, Retry::BackOff);
            }
        }
    }

    /// Keeps the logs of one dead attempt, as the kubelet does.
    fn forget_old_attempts(&mut self, name: &str) {
        let Some(attempt) = self.record.containers.get(name).and_then(|r| r.running.as_ref()).map(|run| run.attempt)
        else {
            return;
        };
        let Some(oldest_kept) = attempt.checked_sub(1).filter(|oldest| *oldest > 0) else { return };
        let (services, uid, pod, name) = (self.services.clone(), self.uid.clone(), self.name.clone(), name.to_owned());
        self.spawn_blocking(Subject::Side, move || {
            if let Err(error) = services.logs.remove_attempts_before(&pod, &uid, &name, oldest_kept) {
                tracing::warn!(containerName = name, err = %error, "Failed to remove old logs");
            }
            Done::Refreshed
        });
    }
}

/// Whether a second run of the container would be one too many.
fn runs_once(pod: &Pod, container: &Container) -> bool {
    let of_pod = pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref());
    [of_pod, container.restart_policy.as_deref()].contains(&Some("Never"))
}

/// Whether a second run of any container would be one too many.
pub(super) fn runs_any_once(pod: &Pod) -> bool {
    let Some(spec) = pod.spec.as_ref() else { return false };
    let mut all = spec.init_containers.iter().flatten().chain(&spec.containers);
    all.any(|container| runs_once(pod, container))
        || ephemeral::containers(spec).iter().any(|container| runs_once(pod, container))
}

/// A container of the pod, of whichever list.
pub(super) fn find(pod: &Pod, name: &str) -> Option<Container> {
    ephemeral::find(pod.spec.as_ref()?, name)
}

impl<R: ContainerRuntime> Preparation<R> {
    async fn run(self) -> Result<Prepared, PrepareFailure> {
        let image = self.image().await?;
        let image_volumes = self.image_volumes().await?;
        let image_user = ImageUser { user: &image.defaults.user, passwd: &image.passwd, group: &image.group };
        let mut user = user::resolve(&self.pod, &self.container, image_user)?;
        let of_volumes = self.volumes.iter().filter_map(|volume| volume.group);
        user.groups.extend(of_volumes.filter(|group| !user.groups.contains(group)).collect::<Vec<_>>());
        let paths = self.services.state.paths(&self.uid);
        let (name, attempt) = (&self.container.name, self.attempt);
        // A name that is too long has no sandbox to start a container in.
        let names = dns::names(&self.pod, &self.config.node.name, &self.config.dns.cluster_domain);
        let hostname = names.unwrap_or_default().hostname;
        let services = self.service_env().await?;
        let objects = self.objects().await;
        let spec = container::describe(ContainerInput {
            pod: &self.pod,
            container: &self.container,
            hostname: &hostname,
            id: ContainerId::random(),
            attempt,
            defaults: &image.defaults,
            user,
            env: EnvSources {
                container: &self.container,
                objects: &objects,
                downward: Downward { pod: &self.pod, pod_ips: &self.ips, node: &self.config.node },
                services: &services,
            },
            paths: AttemptPaths {
                writable_dir: paths.writable_dir(name, attempt),
                log: self.services.logs.path(&self.name, &self.uid, name, attempt),
                termination_message: paths.termination_message_file(name, attempt),
            },
            log_rotation: self.config.log_rotation,
            node_limits: self.config.node_limits,
            memory_capacity: self.config.memory_capacity,
            image: image.spec,
            volumes: &self.volumes,
            image_volumes: &image_volumes,
        })?;
        let directory = paths.attempt_dir(name, attempt);
        // Left over by an attempt of this number that never ran; the runtime makes it anew. Looked at right here: asking
        // another thread takes far longer than one stat of our own directory.
        if std::fs::symlink_metadata(&directory).is_ok() {
            let (state, uid) = (self.services.state.clone(), self.uid.clone());
            let removed = tokio::task::spawn_blocking(move || state.remove_tree(&uid, &directory));
            removed.await.unwrap_or(Ok(()))?;
        }
        let stop_signal = container::stop_signal(&self.container, &image.defaults);
        let default = PodSpec::default();
        let numbers = Numbers::of_container(&self.container, self.pod.spec.as_ref().unwrap_or(&default));
        Ok(Prepared { spec, image_id: image.status_id, stop_signal, numbers })
    }

    async fn image(&self) -> Result<ReadyImage, PrepareFailure> {
        let image = self.container.image.clone().unwrap_or_default();
        let policy = self.container.image_pull_policy.clone().unwrap_or_default();
        self.ensure_image(image, policy, ImagePurpose::Program).await
    }

    /// The images that the container mounts, by volume. As in the kubelet, each start asks for them anew, by their policy.
    async fn image_volumes(&self) -> Result<BTreeMap<String, ImageSpec>, PrepareFailure> {
        let mut ready = BTreeMap::new();
        for volume in self.pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
            let Some(source) = &volume.image else { continue };
            if !self.container.volume_mounts.iter().flatten().any(|mount| mount.name == volume.name) {
                continue;
            }
            let image = source.reference.clone().unwrap_or_default();
            let policy = source.pull_policy.clone().unwrap_or_default();
            let found = self.ensure_image(image, policy, ImagePurpose::Volume).await?;
            ready.insert(volume.name.clone(), found.spec);
        }
        Ok(ready)
    }

    async fn ensure_image(
        &self,
        image: String,
        policy: String,
        purpose: ImagePurpose,
    ) -> Result<ReadyImage, PrepareFailure> {
        let docker_configs = self.docker_configs().await;
        let request = ImageRequest { image: image.clone(), policy, docker_configs, purpose };
        let reporter = self.reporter(image.clone());
        let result = self.services.runtime.ensure_image(request, reporter).await;
        result.map_err(|failure| PrepareFailure::Image { image, failure })
    }

    /// Says what a pull does, in the kubelet's events.
    fn reporter(&self, image: String) -> Progress {
        let events: Recorder = self.services.events.clone();
        let reference = container_reference(&self.pod, &self.container.name);
        let began = Instant::now();
        let (starts, uid) = (self.services.starts.clone(), self.uid.clone());
        Arc::new(move |progress| {
            let (reason, message) = match progress {
                ImageProgress::AlreadyPresent => {
                    ("Pulled", format!("Container image {image:?} already present on machine"))
                }
                ImageProgress::Pulling => ("Pulling", format!("Pulling image {image:?}")),
                ImageProgress::Pulled { took, size } => {
                    starts.pulled(&uid, began, Instant::now());
                    let took = go_duration(took);
                    let waited = go_duration(began.elapsed());
                    let message = format!(
                        "Successfully pulled image {image:?} in {took} ({waited} including waiting). Image size: {size} bytes."
                    );
                    ("Pulled", message)
                }
            };
            events.event(&reference, EventType::Normal, reason, message);
        })
    }

    async fn service_env(&self) -> Result<BTreeMap<String, String>, PrepareFailure> {
        let linked = self.pod.spec.as_ref().and_then(|spec| spec.enable_service_links) != Some(false);
        let links = if linked { Links::Namespace } else { Links::ApiServerOnly };
        let store = &self.services.objects;
        let variables = store.service_env(self.origin, &self.name.namespace, links, self.deadline()).await;
        variables.map_err(|reason| PrepareFailure::Services { reason })
    }

    fn deadline(&self) -> Instant {
        Instant::now() + OBJECTS_PATIENCE
    }

    async fn objects(&self) -> Objects {
        let references = References::of_env(&self.container);
        let (namespace, store) = (&self.name.namespace, &self.services.objects);
        store.settle(self.origin, &objects::keys(namespace, &references), self.deadline()).await;
        let config_maps = references.config_maps.into_iter().filter_map(|name| {
            let found = said(store.config_map(self.origin, namespace, &name))?;
            Some((name, found))
        });
        let secrets = references.secrets.into_iter().filter_map(|name| {
            let found = said(store.secret(self.origin, namespace, &name))?;
            Some((name, found))
        });
        let (config_maps, secrets) = (config_maps.collect(), secrets.collect());
        Objects { config_maps, secrets, files: self.env_files().await }
    }

    /// The files that the container's env reads, from emptyDirs of the pod: init containers wrote them.
    async fn env_files(&self) -> HashMap<(String, String), EnvFile> {
        let references =
            self.container.env.iter().flatten().filter_map(|var| var.value_from.as_ref()?.file_key_ref.as_ref());
        let mut wanted: Vec<(String, String, PathBuf)> = Vec::new();
        for reference in references {
            let volume = self.volumes.iter().find(|volume| volume.name == reference.volume_name);
            if let Some(VolumeSource::NodeDirectory { path, .. }) = volume.map(|volume| &volume.source) {
                wanted.push((reference.volume_name.clone(), reference.path.clone(), path.clone()));
            }
        }
        if wanted.is_empty() {
            return HashMap::new();
        }
        let read = |(volume, path, root): (String, String, PathBuf)| {
            let text = read_env_file(&root, &path).map_err(|error| error.to_string());
            let file = EnvFile { path: root.join(path.trim_start_matches('/')).display().to_string(), text };
            ((volume, path), file)
        };
        tokio::task::spawn_blocking(move || wanted.into_iter().map(read).collect()).await.unwrap_or_default()
    }

    async fn docker_configs(&self) -> Vec<DockerConfig> {
        let names: Vec<&str> = self.pod.spec.iter().flat_map(pull_secrets).collect();
        let (namespace, store) = (&self.name.namespace, &self.services.objects);
        let secrets = names.iter().map(|name| (*name).to_owned()).collect();
        let references = References { secrets, ..References::default() };
        store.settle(self.origin, &objects::keys(namespace, &references), self.deadline()).await;
        let mut missing = Vec::new();
        let mut found = Vec::new();
        for name in names {
            match store.secret(self.origin, namespace, name) {
                // One that is no pull secret is none of the kubelet's worries either.
                Ok(secret) => found.extend(pull_secret::docker_config(name, &secret)),
                Err(error) => {
                    tracing::info!(secret = name, err = %error, "Unable to retrieve pull secret, the image pull may not succeed");
                    missing.push(name);
                }
            }
        }
        if !missing.is_empty() {
            let message = format!(
                "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                missing.join(", ")
            );
            let reference = crate::events::pod_reference(&self.pod);
            self.services.events.event(&reference, EventType::Warning, "FailedToRetrieveImagePullSecret", message);
        }
        found
    }
}

/// What env may know of an object: nothing when there is none.
fn said<T>(object: Result<Arc<T>, Missing>) -> Option<Result<Arc<T>, String>> {
    match object {
        Ok(object) => Some(Ok(object)),
        Err(Missing::NotFound { .. }) => None,
        Err(missing) => Some(Err(missing.to_string())),
    }
}

/// A duration as Go prints it, to the millisecond: `1.2s`, `1m20s`, `350ms`.
pub(super) fn go_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    if millis == 0 {
        return "0s".to_owned();
    }
    if millis < 1000 {
        return format!("{millis}ms");
    }
    let (seconds, millis) = (millis / 1000, millis % 1000);
    let fraction = format!(".{millis:03}");
    let fraction = fraction.trim_end_matches('0').trim_end_matches('.');
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}{fraction}s"),
        (0, _) => format!("{minutes}m{seconds}{fraction}s"),
        _ => format!("{hours}h{minutes}m{seconds}{fraction}s"),
    }
}
