//! What the API server knows of the objects of registered pods, kept fresh by one watch an object.
//!
//! In: registrations (which pod refers to what). Out: the last answer for each object, and word of changes. A node may
//! list and watch single ConfigMaps and Secrets of its own pods only (Node authorizer), hence a watch for each name,
//! shared by all pods that refer to it, begun with the first and ended with the last, as the kubelet's
//! `WatchBasedManager`. While the API server is away, the last answer stays. The one ConfigMap that every pod refers to is
//! watched for a while longer: the next pod of its namespace would ask for it before the authorizer knows of that pod.

mod bundles;
mod claims;
mod endpoints;
mod errors;
mod policies;
mod runtime_classes;
mod services;
mod storage;
#[cfg(test)]
mod tests;
mod tokens;
mod watch;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Api;
use parking_lot::Mutex;
use tokio::sync::{broadcast, watch as latest};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::runtime_classes::ClassWatch;
use self::services::ServiceWatch;
use self::tokens::TokenCache;
use self::watch::Cell;
use super::store::{self, Object, ObjectStore};
use super::{Change, ObjectKey, ObjectKind, ObjectOrigin};
use crate::clock::Clock;
use crate::ids::PodUid;
use crate::pod::service_env::Links;
use crate::pod::services::{NodePlace, ServiceNews};

pub use self::policies::{PolicySink, watch_policies};
pub use self::tokens::{Token, TokenOwner};

/// Takes news of Services, in the order in which they were heard.
pub type ServiceSink = Arc<dyn Fn(ServiceNews) + Send + Sync>;

/// What the ServiceAccount admission of the API server has each pod mount (rootcacertpublisher makes it).
const ROOT_CA: &str = "kube-root-ca.crt";
/// How long that is watched for pods to come.
const LINGER: Duration = Duration::from_secs(30);

/// How often tokens are looked at; their refresh is due 20 % of at least ten minutes before they expire.
const TOKEN_ROUND: Duration = Duration::from_secs(10);

/// The API server's side of the objects. Cheap to clone.
///
/// Watches are tasks of its own, begun by [`ObjectStore::register`]; [`Self::run`] ends them all.
#[derive(Clone)]
pub struct ApiObjects {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for ApiObjects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiObjects").field("watched", &self.inner.registry.lock().watched.len()).finish_non_exhaustive()
    }
}

struct Inner {
    client: kube::Client,
    clock: Clock,
    changes: broadcast::Sender<Change>,
    registry: Mutex<Registry>,
    services: ServiceWatch,
    classes: ClassWatch,
    sink: Option<ServiceSink>,
    tokens: TokenCache,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// Who refers to what.
#[derive(Default)]
struct Registry {
    pods: HashMap<PodUid, BTreeSet<ObjectKey>>,
    watched: HashMap<ObjectKey, Watched>,
}

/// One object and the pods that refer to it.
struct Watched {
    users: HashSet<PodUid>,
    cell: Arc<Cell>,
    stop: CancellationToken,
    /// How often the last of them went.
    left: u64,
}

/// What is known of an object.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Known {
    /// The API server has not answered; if it refused, its words.
    NotYet {
        /// Why, if it said something.
        reason: Option<String>,
    },
    /// There is none.
    Absent,
    /// The newest.
    Present(Object),
}

impl Known {
    fn is_answer(&self) -> bool {
        !matches!(self, Self::NotYet { .. })
    }
}

impl ApiObjects {
    /// Asks with `client`, which is the node's own; asks nothing before a pod is registered.
    #[must_use]
    pub fn new(client: kube::Client, clock: Clock) -> Self {
        Self::telling(client, clock, None)
    }

    /// As [`Self::new`], and tells `sink` of Services once [`Self::watch_services`] was called.
    #[must_use]
    pub fn telling(client: kube::Client, clock: Clock, sink: Option<ServiceSink>) -> Self {
        let inner = Inner {
            client,
            clock,
            changes: store::changes(),
            registry: Mutex::default(),
            services: ServiceWatch::default(),
            classes: ClassWatch::default(),
            sink,
            tokens: TokenCache::default(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The node's one store: manifests' objects and these.
    #[must_use]
    pub fn store(&self) -> ObjectStore {
        ObjectStore::with_api(self.clone(), self.inner.changes.clone())
    }

    /// Tells pods whose tokens are due until `stop`, then ends every watch.
    pub async fn run(self, stop: CancellationToken) {
        let mut round = tokio::time::interval(TOKEN_ROUND);
        round.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                // Cancel safe: a timer.
                _ = round.tick() => self.tell_due_tokens(),
                () = stop.cancelled() => break,
            }
        }
        self.inner.stop.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }

    fn tell_due_tokens(&self) {
        for uid in self.inner.tokens.due(self.inner.clock.now()) {
            self.tell(Change::Tokens(uid));
        }
    }

    /// Begins to watch Services, EndpointSlices and podCIDRs for the network, until [`Self::run`] ends. Slices wait until it
    /// is known where the node is.
    pub fn watch_services(&self, place: latest::Receiver<Option<NodePlace>>) {
        services::begin(self);
        self.spawn(self.inner.stop.child_token(), endpoints::keep_slices(self.clone(), place));
        self.spawn(self.inner.stop.child_token(), endpoints::keep_ranges(self.clone()));
    }

    fn client(&self) -> kube::Client {
        self.inner.client.clone()
    }

    fn tell_services(&self, news: ServiceNews) {
        if let Some(sink) = &self.inner.sink {
            sink(news);
        }
    }

    fn tell(&self, change: Change) {
        // No subscriber is no error.
        let _ = self.inner.changes.send(change);
    }

    pub(super) fn register(&self, uid: &PodUid, keys: BTreeSet<ObjectKey>) {
        let mut registry = self.inner.registry.lock();
        if registry.pods.get(uid) == Some(&keys) {
            return;
        }
        let before = registry.pods.insert(uid.clone(), keys.clone()).unwrap_or_default();
        for key in keys.difference(&before) {
            let begin = || self.begin(key);
            registry.watched.entry(key.clone()).or_insert_with(begin).users.insert(uid.clone());
        }
        let left = before.difference(&keys).filter_map(|key| registry.release(key, uid)).collect();
        drop(registry);
        self.forget_later(left);
    }

    pub(super) fn unregister(&self, uid: &PodUid) {
        let left = {
            let mut registry = self.inner.registry.lock();
            let keys = registry.pods.remove(uid).unwrap_or_default();
            keys.iter().filter_map(|key| registry.release(key, uid)).collect()
        };
        self.forget_later(left);
        self.inner.tokens.forget(uid);
    }

    /// Ends these watches after [`LINGER`], unless a pod came meanwhile.
    fn forget_later(&self, left: Vec<Left>) {
        for left in left {
            let objects = self.clone();
            self.spawn(self.inner.stop.child_token(), async move {
                tokio::time::sleep(LINGER).await;
                objects.inner.registry.lock().forget_left(&left);
            });
        }
    }

    /// What is known; `None` for what nobody registered.
    pub(super) fn get(&self, key: &ObjectKey) -> Option<Known> {
        self.inner.registry.lock().watched.get(key).map(|watched| watched.cell.known())
    }

    pub(super) async fn settle(&self, keys: &BTreeSet<ObjectKey>, deadline: Instant) {
        let cells: Vec<Arc<Cell>> = {
            let registry = self.inner.registry.lock();
            keys.iter().filter_map(|key| registry.watched.get(key)).map(|watched| watched.cell.clone()).collect()
        };
        let answered = async {
            for cell in cells {
                cell.answered().await;
            }
        };
        // When the time is over, the lookup says what is not known.
        let _ = tokio::time::timeout_at(deadline, answered).await;
    }

    pub(super) async fn service_env(
        &self,
        origin: ObjectOrigin,
        namespace: &str,
        links: Links,
        deadline: Instant,
    ) -> Result<BTreeMap<String, String>, &'static str> {
        services::begin(self);
        let services = &self.inner.services;
        // As the kubelet: a static pod does not wait for the API server.
        if origin == ObjectOrigin::ApiServer && tokio::time::timeout_at(deadline, services.read()).await.is_err() {
            return Err("services have not yet been read at least once, cannot construct envvars");
        }
        Ok(services.variables(namespace, links))
    }

    fn begin(&self, key: &ObjectKey) -> Watched {
        let (cell, stop) = (Arc::new(Cell::default()), self.inner.stop.child_token());
        let ObjectKey { kind, namespace, name } = key;
        let changes = self.inner.changes.clone();
        let changed = key.clone();
        let tell = move || {
            let _ = changes.send(Change::Object(ObjectOrigin::ApiServer, changed.clone()));
        };
        let (client, name) = (self.inner.client.clone(), name.clone());
        match kind {
            ObjectKind::ConfigMap => {
                let api: Api<ConfigMap> = Api::namespaced(client, namespace);
                let watching = watch::watch_one(api, name, cell.clone(), |o| Object::ConfigMap(Arc::new(o)), tell);
                self.spawn(stop.clone(), watching);
            }
            ObjectKind::Secret => {
                let api: Api<Secret> = Api::namespaced(client, namespace);
                let watching = watch::watch_one(api, name, cell.clone(), |o| Object::Secret(Arc::new(o)), tell);
                self.spawn(stop.clone(), watching);
            }
        }
        Watched { users: HashSet::new(), cell, stop, left: 0 }
    }

    fn spawn(&self, stop: CancellationToken, work: impl Future<Output = ()> + Send + 'static) {
        self.inner.tasks.spawn(async move { stop.run_until_cancelled_owned(work).await });
    }
}

/// A watch that nobody needs, and for the how manieth time that is so.
struct Left {
    key: ObjectKey,
    times: u64,
}

impl Registry {
    /// A pod needs it no more. A watch that none needs ends, but for what the next pod will ask for.
    fn release(&mut self, key: &ObjectKey, uid: &PodUid) -> Option<Left> {
        let watched = self.watched.get_mut(key)?;
        watched.users.remove(uid);
        if !watched.users.is_empty() {
            return None;
        }
        let is_there = matches!(watched.cell.known(), Known::Present(_));
        if is_there && key.kind == ObjectKind::ConfigMap && key.name == ROOT_CA {
            watched.left += 1;
            return Some(Left { key: key.clone(), times: watched.left });
        }
        self.forget(key);
        None
    }

    fn forget_left(&mut self, Left { key, times }: &Left) {
        if self.watched.get(key).is_some_and(|watched| watched.users.is_empty() && watched.left == *times) {
            self.forget(key);
        }
    }

    fn forget(&mut self, key: &ObjectKey) {
        if let Some(watched) = self.watched.remove(key) {
            watched.stop.cancel();
        }
    }
}
