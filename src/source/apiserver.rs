//! Pods the API server bound to this node.
//!
//! In: a watch of the pods whose `spec.nodeName` is this node. Out: [`PodUpdate`]s, and the same objects in [`ApiPods`]
//! for those who write statuses. Mirrors of static pods are kept there and never told: they are run already.
//!
//! The watch resumes after a loss of the connection, lists again when its version is too old (410), and waits longer and
//! longer while the API server is away. Until then nothing is removed: an absence of hours changes nothing. Only a whole
//! list says which pods are gone.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{DesiredPod, Origin, PodSource, PodUpdate};
use crate::clock::Clock;
use crate::ids::{PodRef, PodUid};
use crate::pod::static_pod::{SEEN_ANNOTATION, SOURCE_ANNOTATION};
use crate::pod::status::PodPhase;
use crate::status::{ApiPods, is_mirror};

/// Pods of one answer of a list: a node with more asks again.
const PAGE: u32 = 500;

/// The watch.
pub struct ApiSource {
    client: kube::Client,
    node: String,
    known: Known,
}

impl std::fmt::Debug for ApiSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiSource").field("node", &self.node).finish_non_exhaustive()
    }
}

impl ApiSource {
    /// A watch of the pods of `node`, which keeps `pods` up to date.
    #[must_use]
    pub fn new(client: kube::Client, node: &str, pods: ApiPods, clock: Clock) -> Self {
        Self { client, node: node.to_owned(), known: Known::new(pods, clock) }
    }

    /// Watches until `stop`, or until nobody listens.
    pub async fn run(mut self, updates: mpsc::Sender<PodUpdate>, stop: CancellationToken) {
        let pods: Api<Pod> = Api::all(self.client.clone());
        let config = watcher::Config::default().fields(&format!("spec.nodeName={}", self.node)).page_size(PAGE);
        let mut events = std::pin::pin!(watcher(pods, config).default_backoff());
        let mut reachable = true;
        loop {
            // Cancel safe: the stream is not used any more.
            let Some(event) = stop.run_until_cancelled(events.next()).await else { return };
            let told = match event {
                Some(Ok(event)) => {
                    if !std::mem::replace(&mut reachable, true) {
                        tracing::info!("The API server answers again");
                    }
                    self.known.take(event)
                }
                Some(Err(error)) => {
                    // Said once: it is tried again for as long as it takes.
                    if std::mem::replace(&mut reachable, false) {
                        tracing::warn!(err = %error, "Failed to watch pods, pods go on as they are");
                    }
                    continue;
                }
                // The watcher never ends by itself.
                None => return,
            };
            for update in told {
                if updates.send(update).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// What was told so far.
struct Known {
    pods: ApiPods,
    clock: Clock,
    told: BTreeMap<PodUid, Told>,
    /// Of those that were told, the last of each name.
    by_name: HashMap<PodRef, PodUid>,
    /// A list that is being read.
    listed: BTreeSet<PodUid>,
    listing: Vec<Pod>,
    synced: Synced,
}

struct Told {
    name: PodRef,
    seen: Timestamp,
}

#[derive(PartialEq, Eq)]
enum Synced {
    NotYet,
    Yes,
}

impl Known {
    fn new(pods: ApiPods, clock: Clock) -> Self {
        let (told, by_name, listed) = (BTreeMap::new(), HashMap::new(), BTreeSet::new());
        Self { pods, clock, told, by_name, listed, listing: Vec::new(), synced: Synced::NotYet }
    }

    /// What an event means.
    fn take(&mut self, event: Event<Pod>) -> Vec<PodUpdate> {
        let mut updates = Vec::new();
        match event {
            Event::Init => {
                self.listed.clear();
                self.listing.clear();
            }
            Event::InitApply(pod) => {
                self.listed.extend(uid_of(&pod));
                self.listing.push(pod);
            }
            Event::InitDone => {
                // Those that are gone first: a successor may have the name.
                let listed = std::mem::take(&mut self.listed);
                let mut gone = self.pods.uids();
                gone.retain(|uid| !listed.contains(uid));
                gone.sort();
                for uid in gone {
                    self.gone(&uid, &mut updates);
                }
                for pod in std::mem::take(&mut self.listing) {
                    self.pods.replace(pod.clone());
                    self.apply(pod, &mut updates);
                }
                if self.synced == Synced::NotYet {
                    self.synced = Synced::Yes;
                    updates.push(PodUpdate::Synced(PodSource::ApiServer));
                }
            }
            Event::Apply(pod) if self.is_echo(&pod) => {}
            Event::Apply(pod) => self.apply(pod, &mut updates),
            Event::Delete(pod) => {
                if let Some(uid) = uid_of(&pod) {
                    self.gone(&uid, &mut updates);
                }
            }
        }
        updates
    }

    /// Whether a change is a status that this node wrote: what others wrote before it was told on its own. Its end and its
    /// deletion are told however they are heard of.
    fn is_echo(&self, pod: &Pod) -> bool {
        let goes_on = pod.metadata.deletion_timestamp.is_none() && !pod.status.as_ref().is_some_and(PodPhase::is_over);
        let uid = uid_of(pod).filter(|uid| goes_on && self.told.contains_key(uid));
        uid.is_some_and(|uid| self.pods.knows(&uid, pod))
    }

    fn apply(&mut self, mut pod: Pod, updates: &mut Vec<PodUpdate>) {
        let Some(uid) = uid_of(&pod) else {
            tracing::error!(pod = %PodRef::of(&pod), "Ignored a pod whose UID cannot be one");
            return;
        };
        // Nobody here reads them, and they are as big as the rest.
        pod.metadata.managed_fields = None;
        self.pods.put(pod.clone());
        if is_mirror(&pod) {
            return;
        }
        let name = PodRef::of(&pod);
        let is_new = !self.told.contains_key(&uid);
        if is_new {
            // A watch that lost an event in between: one name is one pod.
            if let Some(before) = self.by_name.insert(name.clone(), uid.clone()) {
                self.gone(&before, updates);
            }
        }
        let now = self.clock.now();
        let seen = self.told.entry(uid.clone()).or_insert(Told { name, seen: now }).seen;
        // The kubelet's own annotations, which pods see by the downward API. They also keep a pod of the API server from
        // passing itself off as a static one.
        let annotations = pod.metadata.annotations.get_or_insert_default();
        annotations.insert(SOURCE_ANNOTATION.to_owned(), "api".to_owned());
        annotations.insert(SEEN_ANNOTATION.to_owned(), seen.to_string());
        let desired = Box::new(DesiredPod { uid, pod: Arc::new(pod), origin: Origin::ApiServer });
        updates.push(if is_new { PodUpdate::Add(desired) } else { PodUpdate::Update(desired) });
    }

    fn gone(&mut self, uid: &PodUid, updates: &mut Vec<PodUpdate>) {
        self.pods.remove(uid);
        if let Some(told) = self.told.remove(uid) {
            if self.by_name.get(&told.name) == Some(uid) {
                self.by_name.remove(&told.name);
            }
            updates.push(PodUpdate::Remove { uid: uid.clone(), pod: told.name, source: PodSource::ApiServer });
        }
    }
}

fn uid_of(pod: &Pod) -> Option<PodUid> {
    PodUid::new(pod.metadata.uid.clone()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use crate::status::HASH_OF_MIRROR;
    use serde_json::json;

    fn pod(name: &str, uid: &str) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "ns", "uid": uid,
            "resourceVersion": "1", "managedFields": [{"manager": "x"}]}}))
        .unwrap()
    }

    fn mirror(name: &str, uid: &str) -> Pod {
        let mut pod = pod(name, uid);
        pod.metadata.annotations = Some([(HASH_OF_MIRROR.to_owned(), "h".to_owned())].into());
        pod
    }

    fn shown(updates: &[PodUpdate]) -> Vec<String> {
        let show = |update: &PodUpdate| match update {
            PodUpdate::Add(pod) => format!("+{}", pod.uid),
            PodUpdate::Update(pod) => format!("~{}", pod.uid),
            PodUpdate::Remove { uid, .. } => format!("-{uid}"),
            PodUpdate::Synced(_) => "synced".to_owned(),
            other => format!("{other:?}"),
        };
        updates.iter().map(show).collect()
    }

    fn known() -> (Known, ApiPods, ManualClock) {
        let pods = ApiPods::default();
        let hand = ManualClock::at("2026-01-01T00:00:00Z".parse().unwrap());
        (Known::new(pods.clone(), Clock::from(hand.clone())), pods, hand)
    }

    #[test]
    fn a_list_says_who_is_there_and_who_is_gone_once_it_is_whole() {
        let (mut known, pods, _) = known();
        let mut take = |event| shown(&known.take(event));
        assert!(take(Event::Init).is_empty());
        assert!(take(Event::InitApply(pod("a", "1"))).is_empty());
        assert!(take(Event::InitApply(mirror("m", "9"))).is_empty());
        assert_eq!(take(Event::InitDone), ["+1", "synced"]);
        assert_eq!(take(Event::Apply(pod("b", "2"))), ["+2"]);
        assert!(take(Event::Init).is_empty(), "a list that begins removes nothing");
        assert!(take(Event::InitApply(pod("b", "2"))).is_empty());
        assert!(take(Event::Init).is_empty(), "nor does one that was broken off");
        assert!(take(Event::InitApply(pod("a", "3"))).is_empty());
        assert_eq!(take(Event::InitDone), ["-1", "-2", "+3"], "what is gone makes room first");
        assert_eq!(pods.uids().len(), 1);
    }

    #[test]
    fn changes_keep_the_time_a_pod_was_first_seen_and_a_name_is_one_pod() {
        let (mut known, _, hand) = known();
        known.take(Event::InitDone);
        let unversioned = || {
            let mut pod = pod("a", "1");
            pod.metadata.resource_version = None;
            pod
        };
        let first = known.take(Event::Apply(unversioned()));
        hand.advance(std::time::Duration::from_secs(60));
        let second = known.take(Event::Apply(unversioned()));
        let pod_of = |updates: &[PodUpdate]| match &updates[0] {
            PodUpdate::Add(pod) | PodUpdate::Update(pod) => pod.pod.clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!(pod_of(&first), pod_of(&second));
        assert!(pod_of(&first).metadata.managed_fields.is_none());
        assert_eq!(PodSource::of(&pod_of(&first)), PodSource::ApiServer);
        assert_eq!(shown(&known.take(Event::Apply(pod("a", "2")))), ["-1", "+2"]);
        assert!(shown(&known.take(Event::Delete(pod("a", "1")))).is_empty(), "that one was told");
        assert_eq!(shown(&known.take(Event::Delete(pod("a", "2")))), ["-2"]);
    }

    #[test]
    fn the_watch_tells_nothing_of_what_this_node_wrote_unless_the_pod_ends_by_it() {
        let (mut known, pods, _) = known();
        let at = |version: &str, phase: &str| {
            let mut pod = pod("a", "1");
            pod.metadata.resource_version = Some(version.to_owned());
            pod.status.get_or_insert_default().phase = Some(phase.to_owned());
            pod
        };
        assert_eq!(shown(&known.take(Event::Apply(at("5", "Pending")))), ["+1"]);
        pods.answered(at("7", "Running"));
        assert_eq!(shown(&known.take(Event::Apply(at("6", "Pending")))), ["~1"], "somebody else's, before it");
        assert!(known.take(Event::Apply(at("7", "Running"))).is_empty());
        assert_eq!(shown(&known.take(Event::Apply(at("8", "Running")))), ["~1"]);
        pods.answered(at("9", "Succeeded"));
        assert_eq!(shown(&known.take(Event::Apply(at("9", "Succeeded")))), ["~1"]);
        assert_eq!(shown(&known.take(Event::Delete(at("9", "Succeeded")))), ["-1"]);
        assert!(known.by_name.is_empty());
    }

    #[test]
    fn mirrors_are_known_and_never_wanted_and_nobody_poses_as_a_static_pod() {
        let (mut known, pods, _) = known();
        assert!(known.take(Event::Apply(mirror("m", "1"))).is_empty());
        assert_eq!(pods.mirrors().len(), 1);
        assert!(known.take(Event::Delete(mirror("m", "1"))).is_empty());
        assert!(pods.mirrors().is_empty());
        let mut liar = pod("l", "2");
        liar.metadata.annotations = Some([(SOURCE_ANNOTATION.to_owned(), "file".to_owned())].into());
        let updates = known.take(Event::Apply(liar));
        assert!(matches!(&updates[0], PodUpdate::Add(pod) if PodSource::of(&pod.pod) == PodSource::ApiServer));
    }
}
