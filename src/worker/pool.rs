//! All workers of the node, by pod UID.
//!
//! In: pods wanted and not wanted, exits of the runtime, changes of objects. Out: commands to workers.
//! Keeps no state of a pod beyond its name and what it refers to.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use parking_lot::Mutex;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::actor::{COMMANDS, Command, Eviction, PodWorker, Termination};
use super::config::{Services, WorkerConfig};
use super::runtime::ContainerRuntime;
use crate::events::{EventType, pod_reference};
use crate::ids::{PodRef, PodUid};
use crate::objects::Change;
use crate::pod::allocation::PendingResize;
use crate::pod::downward::NodeFacts;
use crate::pod::ephemeral;
use crate::pod::run::ContainerExit;
use crate::pod::static_pod::PodSource;
use crate::pod::status::{finish, rejected};
use crate::pod::volumes::References;
use crate::state::{PodPaths, PodRecord};
use crate::status::Stage;

/// What is left after the time a shutdown was given: two seconds of kill each, and writing records.
const DRAIN_MARGIN: Duration = Duration::from_secs(10);

/// The workers. Cheap to clone.
pub struct WorkerPool<R> {
    inner: Arc<Inner<R>>,
}

impl<R> Clone for WorkerPool<R> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

impl<R> std::fmt::Debug for WorkerPool<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkerPool").field("pods", &*self.inner.count.borrow()).finish()
    }
}

struct Inner<R> {
    services: Arc<Services<R>>,
    config: Mutex<Arc<WorkerConfig>>,
    pods: Mutex<Pods>,
    tracker: TaskTracker,
    /// Workers that live.
    count: watch::Sender<usize>,
    /// Ends the dispatcher when the pool is dropped.
    _dispatcher: DropGuard,
}

#[derive(Default)]
struct Pods {
    workers: HashMap<PodUid, Entry>,
    /// How many workers have a name: of ten thousand, not all are asked for each new one.
    names: HashMap<PodRef, usize>,
    /// Pods that replace one of the same name which has not ended yet.
    waiting: HashMap<PodRef, Replacement>,
    admission: Admission,
}

struct Entry {
    name: PodRef,
    source: PodSource,
    course: Course,
    references: References,
    commands: mpsc::Sender<Command>,
}

/// Whether a worker was told to end for good.
#[derive(PartialEq, Eq)]
enum Course {
    Running,
    Ending,
}

struct Replacement {
    uid: PodUid,
    pod: Arc<Pod>,
    manifest: Option<PathBuf>,
}

/// Whether new pods are taken.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Admission {
    #[default]
    Open,
    Closed,
}

/// What becomes of the pods when the agent stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShutdownMode {
    /// Guests are ended within this time (or the pod's own grace, if shorter), records stay, no pod fails:
    /// the next agent takes them over. An upgrade, `systemctl restart`.
    KeepPods(Duration),
    /// Every pod ends and is removed: `wasilet play`.
    EndPods(Termination),
}

/// How a shutdown went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Every worker ended.
    All,
    /// This many had not when the time was over.
    TimedOut(usize),
}

impl<R: ContainerRuntime> WorkerPool<R> {
    /// A pool without pods. `exits` is the runtime's channel.
    #[must_use]
    pub fn new(services: Services<R>, config: WorkerConfig, exits: mpsc::Receiver<ContainerExit>) -> Self {
        let stop = CancellationToken::new();
        let services = Arc::new(services);
        let changed = services.objects.changed();
        let inner = Arc::new(Inner {
            services,
            config: Mutex::new(Arc::new(config)),
            pods: Mutex::default(),
            tracker: TaskTracker::new(),
            count: watch::Sender::new(0),
            _dispatcher: stop.clone().drop_guard(),
        });
        let weak = Arc::downgrade(&inner);
        tokio::spawn(async move {
            let mut exits = exits;
            let mut changed = changed;
            loop {
                let event = tokio::select! {
                    () = stop.cancelled() => return,
                    // Cancel safe: an exit is received or stays in the queue.
                    exit = exits.recv() => match exit {
                        Some(exit) => Event::Exit(exit),
                        None => return,
                    },
                    // Cancel safe: a change is received or stays in the queue.
                    change = changed.recv() => match change {
                        Ok(change) => Event::Objects(Some(change)),
                        Err(RecvError::Lagged(_)) => Event::Objects(None),
                        Err(RecvError::Closed) => {
                            // No object can change any more; exits go on.
                            forward_exits(&weak, &mut exits, &stop).await;
                            return;
                        }
                    },
                };
                let Some(inner) = weak.upgrade() else { return };
                match event {
                    Event::Exit(exit) => inner.send(&exit.uid.clone(), Command::Exit(Box::new(exit))).await,
                    Event::Objects(change) => inner.objects_changed(change).await,
                }
            }
        });
        Self { inner }
    }

    /// Takes over the pods of the agent before this one. To be called before anything else.
    pub fn readopt(&self, records: Vec<PodRecord>) {
        for record in records {
            let name = PodRef::of(&record.pod);
            let references = references_of(&record.pod);
            let inner = &self.inner;
            inner.begin(record.uid.clone(), name, references, |commands| {
                PodWorker::readopt(inner.services.clone(), inner.config.lock().clone(), record, commands)
            });
        }
    }

    /// Wants a pod: a new one is started, a known one is changed. A pod whose name another one still has
    /// starts when that one is gone (`Self::terminate` ends it).
    pub async fn update(&self, uid: PodUid, pod: impl Into<Arc<Pod>>, manifest: Option<PathBuf>) {
        self.update_resized(uid, pod.into(), manifest, None).await;
    }

    /// [`Self::update`] of a pod whose resources are those it was given: what it asks for may wait.
    pub async fn update_resized(
        &self,
        uid: PodUid,
        pod: Arc<Pod>,
        manifest: Option<PathBuf>,
        pending: Option<PendingResize>,
    ) {
        let command = {
            let mut pods = self.inner.pods.lock();
            if pods.admission == Admission::Closed {
                return;
            }
            let name = PodRef::of(&pod);
            let taken = pods.names.contains_key(&name);
            // A manifest that comes back while its pod still ends has the same UID: it runs again after that.
            if let Some(entry) = pods.workers.get_mut(&uid).filter(|entry| entry.course == Course::Running) {
                entry.references = references_of(&pod);
                Some((entry.commands.clone(), Command::Update { pod, pending: pending.map(Box::new) }))
            } else if taken {
                tracing::info!(pod = %name, podUID = %uid, "Pod waits for the one it replaces");
                pods.waiting.insert(name, Replacement { uid, pod, manifest });
                None
            } else {
                drop(pods);
                self.inner.start(Replacement { uid, pod, manifest });
                None
            }
        };
        if let Some((commands, command)) = command {
            // An error means that it just ended.
            let _ = commands.send(command).await;
        }
    }

    /// Shows a pod this node refuses to run: `Failed`, with an Event. It has no worker; [`Self::terminate`]
    /// forgets it.
    pub fn reject(&self, uid: &PodUid, pod: Pod, reason: &str, message: &str) {
        let services = &self.inner.services;
        services.events.event(&pod_reference(&pod), EventType::Warning, reason, message);
        services.metrics.rejected(reason);
        let status = rejected(&pod, reason, message, services.clock.now());
        self.inner.show_finished(uid, pod, status);
    }

    /// A pod the API server wants to end within `grace`. It is known, and its status shown, until [`Self::terminate`].
    /// One that never ran here is shown as over at once.
    pub async fn leave(&self, uid: &PodUid, pod: Pod, grace: Duration) {
        if self.inner.take_back(uid) {
            self.inner.send(uid, Command::Leave { pod: Box::new(pod), grace }).await;
            return;
        }
        let known = self.inner.services.status.get(uid).map(|snapshot| (*snapshot.status).clone());
        let mut status = known.or_else(|| pod.status.clone()).unwrap_or_default();
        finish(&pod, &mut status);
        self.inner.show_finished(uid, pod, status);
    }

    /// A pod that is over by the word of the API server: it is not run, and what of it runs ends.
    pub async fn settle(&self, uid: &PodUid, pod: Pod) {
        if self.inner.take_back(uid) {
            self.inner.send(uid, Command::Settle(Box::new(pod))).await;
            return;
        }
        let status = pod.status.clone().unwrap_or_default();
        self.inner.show_finished(uid, pod, status);
    }

    /// Ends and removes a pod.
    pub async fn terminate(&self, uid: &PodUid, how: Termination) {
        if self.inner.take_back(uid) {
            if let Some(entry) = self.inner.pods.lock().workers.get_mut(uid) {
                entry.course = Course::Ending;
            }
            self.inner.send(uid, Command::Terminate(how)).await;
        } else {
            self.inner.services.status.remove(uid);
        }
    }

    /// Ends and removes every pod of one origin that is not in `wanted`.
    pub async fn retain(&self, of: PodSource, wanted: &HashSet<PodUid>) {
        let unwanted: Vec<PodUid> = {
            let pods = self.inner.pods.lock();
            let unwanted = pods.workers.iter().filter(|(uid, entry)| entry.source == of && !wanted.contains(*uid));
            unwanted.map(|(uid, _)| uid.clone()).collect()
        };
        for uid in unwanted {
            self.terminate(&uid, Termination::Graceful).await;
        }
    }

    /// Ends a pod as failed and keeps it: eviction, shutdown of the machine.
    pub async fn evict(&self, uid: &PodUid, eviction: Eviction) {
        self.inner.send(uid, Command::Evict(Box::new(eviction))).await;
    }

    /// Changes what the node tells its pods, its addresses above all; statuses show it at once, containers from their
    /// next start on.
    pub async fn set_node(&self, node: NodeFacts) {
        self.reconfigure(|config| config.node = node).await;
    }

    /// Changes settings of the node.
    pub async fn reconfigure(&self, change: impl FnOnce(&mut WorkerConfig)) {
        let config = {
            let mut current = self.inner.config.lock();
            let mut config = (**current).clone();
            change(&mut config);
            *current = Arc::new(config);
            current.clone()
        };
        for uid in self.pods() {
            self.inner.send(&uid, Command::Configure(config.clone())).await;
        }
    }

    /// Settings of the node as they are now.
    #[must_use]
    pub fn config(&self) -> Arc<WorkerConfig> {
        self.inner.config.lock().clone()
    }

    /// Whether a pod has a worker.
    #[must_use]
    pub fn has(&self, uid: &PodUid) -> bool {
        self.inner.pods.lock().workers.contains_key(uid)
    }

    /// UIDs of pods with a worker.
    #[must_use]
    pub fn pods(&self) -> Vec<PodUid> {
        self.inner.pods.lock().workers.keys().cloned().collect()
    }

    /// Where a pod's files are on the node's disk.
    #[must_use]
    pub fn paths(&self, uid: &PodUid) -> PodPaths {
        self.inner.services.state.paths(uid)
    }

    /// Waits until no pod has a worker.
    pub async fn emptied(&self) {
        // The sender is in `self`.
        let _ = self.inner.count.subscribe().wait_for(|count| *count == 0).await;
    }

    /// Ends all workers; no pod is taken any more.
    pub async fn shutdown(&self, mode: ShutdownMode) -> Drained {
        let uids: Vec<PodUid> = {
            let mut pods = self.inner.pods.lock();
            pods.admission = Admission::Closed;
            // They are wanted still; the manifests will say so to the next agent.
            pods.waiting.clear();
            pods.workers.keys().cloned().collect()
        };
        let within = match mode {
            ShutdownMode::KeepPods(within) => within,
            ShutdownMode::EndPods(Termination::Within(within)) => within,
            ShutdownMode::EndPods(Termination::Force) => Duration::ZERO,
            // The longest grace there can be is the caller's to bound.
            ShutdownMode::EndPods(Termination::Graceful) => Duration::from_secs(u64::from(u32::MAX)),
        };
        for uid in uids {
            let command = match mode {
                ShutdownMode::KeepPods(within) => Command::Shutdown(within),
                ShutdownMode::EndPods(how) => Command::Terminate(how),
            };
            self.inner.send(&uid, command).await;
        }
        self.inner.tracker.close();
        match tokio::time::timeout(within.saturating_add(DRAIN_MARGIN), self.inner.tracker.wait()).await {
            Ok(()) => Drained::All,
            Err(_) => Drained::TimedOut(*self.inner.count.borrow()),
        }
    }
}

enum Event {
    Exit(ContainerExit),
    Objects(Option<Change>),
}

async fn forward_exits<R: ContainerRuntime>(
    pool: &std::sync::Weak<Inner<R>>,
    exits: &mut mpsc::Receiver<ContainerExit>,
    stop: &CancellationToken,
) {
    while let Some(Some(exit)) = stop.run_until_cancelled(exits.recv()).await {
        let Some(inner) = pool.upgrade() else { return };
        inner.send(&exit.uid.clone(), Command::Exit(Box::new(exit))).await;
    }
}

impl<R: ContainerRuntime> Inner<R> {
    fn start(self: &Arc<Self>, replacement: Replacement) {
        let Replacement { uid, pod, manifest } = replacement;
        let (name, references) = (PodRef::of(&pod), references_of(&pod));
        let (services, config) = (self.services.clone(), self.config.lock().clone());
        self.begin(uid.clone(), name, references, |commands| {
            PodWorker::new(services, config, uid, pod, manifest, commands)
        });
    }

    /// Runs a worker and, when it is over, what waited for its name.
    fn begin(
        self: &Arc<Self>,
        uid: PodUid,
        name: PodRef,
        references: References,
        worker: impl FnOnce(mpsc::Receiver<Command>) -> PodWorker<R>,
    ) {
        let (commands, receiver) = mpsc::channel(COMMANDS);
        // Boxed: its future and those around it would each have room for all of it.
        let worker = Box::new(worker(receiver));
        {
            let mut pods = self.pods.lock();
            if pods.workers.contains_key(&uid) {
                return;
            }
            let source = PodSource::of(&worker.pod);
            *pods.names.entry(name.clone()).or_default() += 1;
            pods.workers.insert(
                uid.clone(),
                Entry { name: name.clone(), source, course: Course::Running, references, commands },
            );
        }
        self.count.send_modify(|count| *count += 1);
        let inner = self.clone();
        // Begun out here: a task that held the worker until it begins would keep that room for as long as it waits.
        let running = tokio::spawn(worker.run());
        self.tracker.spawn(async move {
            if let Err(error) = running.await {
                tracing::error!(pod = %name, podUID = %uid, err = %error, "Pod worker panicked");
                // Its record is on disk; what runs must not go on unwatched.
                inner.services.runtime.remove_sandbox(&uid).await;
            }
            inner.ended(&uid, &name);
        });
    }

    fn ended(self: &Arc<Self>, uid: &PodUid, name: &PodRef) {
        let next = {
            let mut pods = self.pods.lock();
            if pods.workers.remove(uid).is_some()
                && let Some(count) = pods.names.get_mut(name)
            {
                *count -= 1;
                if *count == 0 {
                    pods.names.remove(name);
                }
            }
            pods.waiting.remove(name)
        };
        if let Some(next) = next {
            self.start(next);
        }
        self.count.send_modify(|count| *count -= 1);
    }

    /// Whether a pod has a worker; one that waits for a name waits no more.
    fn take_back(&self, uid: &PodUid) -> bool {
        let mut pods = self.pods.lock();
        pods.waiting.retain(|_, replacement| replacement.uid != *uid);
        pods.workers.contains_key(uid)
    }

    /// Shows a pod of which nothing runs here.
    fn show_finished(&self, uid: &PodUid, pod: Pod, status: PodStatus) {
        if let Err(error) = self.services.status.report(uid, &Arc::new(pod), status, Stage::Finished) {
            tracing::error!(podUID = %uid, err = %error, "Status update on pod aborted");
        }
    }

    async fn send(&self, uid: &PodUid, command: Command) {
        let commands = self.pods.lock().workers.get(uid).map(|entry| entry.commands.clone());
        match commands {
            // An error means that it just ended.
            Some(commands) => drop(commands.send(command).await),
            None => tracing::debug!(podUID = %uid, ?command, "Dropped a command for a pod without worker"),
        }
    }

    async fn objects_changed(&self, change: Option<Change>) {
        let concerned: Vec<mpsc::Sender<Command>> = {
            let pods = self.pods.lock();
            let hears = |(uid, entry): &(&PodUid, &Entry)| match &change {
                None => true,
                Some(change) => change.concerns(uid, &entry.name.namespace, &entry.references),
            };
            pods.workers.iter().filter(hears).map(|(_, entry)| entry.commands.clone()).collect()
        };
        for commands in concerned {
            let _ = commands.send(Command::ObjectsChanged(change.clone().map(Box::new))).await;
        }
    }
}

fn references_of(pod: &Pod) -> References {
    let Some(spec) = &pod.spec else { return References::default() };
    let mut references = References::of_pod(spec);
    for container in ephemeral::containers(spec) {
        let of_env = References::of_env(&container);
        references.config_maps.extend(of_env.config_maps);
        references.secrets.extend(of_env.secrets);
    }
    references
}
