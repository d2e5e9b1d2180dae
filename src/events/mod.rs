//! Events about pods and the node, as the kubelet records them.
//!
//! In: reasons and messages. Out: typed `v1.Event` objects with repeats counted and floods cut, for `wasilet`
//! to show and, by the [`EventWriter`], for the API server. Keeps a bounded ring in memory; never blocks the one who
//! reports, never writes to disk.

mod correlate;
mod queue;
mod recent;
mod writer;

use std::collections::VecDeque;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use parking_lot::Mutex;
use tokio::sync::broadcast;

use crate::clock::Clock;
use crate::ids::{PodRef, PodUid};

use correlate::Correlator;

pub use writer::{EventWriter, OthersWait};

/// `source.component` and `reportingComponent` of every event of this node: the kubelet's, since people and programs
/// select a node's events by it (`kubectl get events --field-selector source=kubelet`).
pub const COMPONENT: &str = "kubelet";

/// Events kept for `wasilet` to show. A thousand pods of one container have about four each.
const KEPT: usize = 8192;

/// Events a subscriber may be behind before it loses the oldest.
const SUBSCRIBER_QUEUE: usize = 1024;

/// Bytes of a message; a wasm backtrace may come along.
const MAX_MESSAGE: usize = 4096;

/// `Event.type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventType {
    /// `Normal`.
    Normal,
    /// `Warning`.
    Warning,
}

impl EventType {
    /// The word of the API.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// Records events. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Recorder {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    host: String,
    clock: Clock,
    subscribers: broadcast::Sender<Arc<Event>>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    correlator: Correlator,
    /// By last occurrence, oldest first; one entry per event name.
    ring: VecDeque<Arc<Event>>,
    /// The last name given, so that two events of one nanosecond get two names.
    last_name: i128,
}

impl Recorder {
    /// `host` is the node's name, shown as the source's host.
    #[must_use]
    pub fn new(host: &str, clock: Clock) -> Self {
        let state = State { correlator: Correlator::default(), ring: VecDeque::new(), last_name: 0 };
        let (subscribers, _) = broadcast::channel(SUBSCRIBER_QUEUE);
        Self { inner: Arc::new(Inner { host: host.to_owned(), clock, subscribers, state: Mutex::new(state) }) }
    }

    /// Records that something happened to `object`. `reason` is CamelCase (`Started`, `FailedMount`).
    ///
    /// As client-go's correlator: the same event again counts up; the tenth of a reason that differs only in its
    /// message is combined; more than 25 about one object are left out, at a rate of one in five minutes.
    pub fn event(&self, object: &ObjectReference, kind: EventType, reason: &str, message: impl Into<String>) {
        let mut message = message.into();
        truncate(&mut message, MAX_MESSAGE);
        tracing::info!(
            object = %ObjectName(object), fieldPath = object.field_path.as_deref().unwrap_or(""),
            r#type = kind.name(), reason, message, "Event occurred"
        );
        let now = self.inner.clock.now();
        let mut state = self.inner.state.lock();
        state.last_name = now.as_nanosecond().max(state.last_name + 1);
        let event = self.make(object, kind, reason, message, state.last_name, Time(now));
        if let Some(event) = state.correlator.correlate(event, now) {
            let event = Arc::new(event);
            state.keep(event.clone());
            // No subscriber is no error.
            let _ = self.inner.subscribers.send(event);
        }
    }

    /// Each event as it is recorded or counted up; slow readers lose the oldest (`RecvError::Lagged`).
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Event>> {
        self.inner.subscribers.subscribe()
    }

    /// The events kept, by last occurrence, oldest first.
    #[must_use]
    pub fn recent(&self) -> Vec<Arc<Event>> {
        self.inner.state.lock().ring.iter().cloned().collect()
    }

    fn make(
        &self,
        object: &ObjectReference,
        kind: EventType,
        reason: &str,
        message: String,
        name: i128,
        now: Time,
    ) -> Event {
        // Events of objects without a namespace (nodes) are in `default`, as client-go puts them.
        let namespace = object.namespace.clone().filter(|n| !n.is_empty()).unwrap_or_else(|| "default".to_owned());
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{}.{name:x}", object.name.as_deref().unwrap_or_default())),
                namespace: Some(namespace),
                ..ObjectMeta::default()
            },
            involved_object: object.clone(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            type_: Some(kind.name().to_owned()),
            count: Some(1),
            first_timestamp: Some(now.clone()),
            last_timestamp: Some(now),
            source: Some(EventSource { component: Some(COMPONENT.to_owned()), host: Some(self.inner.host.clone()) }),
            reporting_component: Some(COMPONENT.to_owned()),
            reporting_instance: Some(self.inner.host.clone()),
            ..Event::default()
        }
    }
}

impl State {
    fn keep(&mut self, event: Arc<Event>) {
        if event.count.unwrap_or(1) > 1 {
            // Newest first: what repeats was mostly seen lately.
            if let Some(index) = self.ring.iter().rposition(|kept| kept.metadata.name == event.metadata.name) {
                self.ring.remove(index);
            }
        }
        if self.ring.len() == KEPT {
            self.ring.pop_front();
        }
        self.ring.push_back(event);
    }
}

/// The reference to a pod in an event.
#[must_use]
pub fn pod_reference(pod: &Pod) -> ObjectReference {
    reference("Pod", &pod.metadata)
}

/// The reference to a pod of which only this is known.
#[must_use]
pub fn named_pod_reference(pod: &PodRef, uid: &PodUid) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(pod.namespace.clone()),
        name: Some(pod.name.clone()),
        uid: Some(uid.to_string()),
        ..ObjectReference::default()
    }
}

/// The reference to a claim.
#[must_use]
pub fn claim_reference(claim: &PersistentVolumeClaim) -> ObjectReference {
    reference("PersistentVolumeClaim", &claim.metadata)
}

fn reference(kind: &str, metadata: &ObjectMeta) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some(kind.to_owned()),
        namespace: metadata.namespace.clone(),
        name: metadata.name.clone(),
        uid: metadata.uid.clone(),
        resource_version: metadata.resource_version.clone(),
        field_path: None,
    }
}

/// The reference to a container of a pod: `fieldPath` is `spec.containers{NAME}`, `spec.initContainers{NAME}` or
/// `spec.ephemeralContainers{NAME}`, none when the pod has no such container.
#[must_use]
pub fn container_reference(pod: &Pod, container: &str) -> ObjectReference {
    let spec = pod.spec.as_ref();
    let is_init = spec.is_some_and(|s| s.init_containers.iter().flatten().any(|c| c.name == container));
    let is_regular = spec.is_some_and(|s| s.containers.iter().any(|c| c.name == container));
    let is_ephemeral = spec.is_some_and(|s| s.ephemeral_containers.iter().flatten().any(|c| c.name == container));
    let list = match (is_regular, is_init, is_ephemeral) {
        (true, _, _) => Some("containers"),
        (_, true, _) => Some("initContainers"),
        (_, _, true) => Some("ephemeralContainers"),
        _ => None,
    };
    ObjectReference { field_path: list.map(|list| format!("spec.{list}{{{container}}}")), ..pod_reference(pod) }
}

/// The reference to the node itself; the kubelet uses the node's name as its UID.
#[must_use]
pub fn node_reference(name: &str) -> ObjectReference {
    ObjectReference {
        kind: Some("Node".to_owned()),
        name: Some(name.to_owned()),
        uid: Some(name.to_owned()),
        ..ObjectReference::default()
    }
}

fn truncate(text: &mut String, most: usize) {
    if text.len() > most {
        let end = (0..=most - 3).rev().find(|&index| text.is_char_boundary(index)).unwrap_or(0);
        text.truncate(end);
        text.push_str("...");
    }
}

/// `ns/name` of an object for the agent's own log.
struct ObjectName<'a>(&'a ObjectReference);

impl std::fmt::Display for ObjectName<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(namespace) = &self.0.namespace {
            write!(f, "{namespace}/")?;
        }
        f.write_str(self.0.name.as_deref().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use std::time::Duration;

    fn fixture() -> (Recorder, ManualClock, ObjectReference) {
        let hand = ManualClock::at("2026-01-02T03:04:05Z".parse().unwrap());
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "web-node", "namespace": "default", "uid": "u1"},
            "spec": {"containers": [{"name": "app"}], "initContainers": [{"name": "setup"}]}}))
        .unwrap();
        (Recorder::new("node", Clock::from(hand.clone())), hand, container_reference(&pod, "app"))
    }

    fn shown(recorder: &Recorder) -> Vec<(String, i32)> {
        let show = |e: &Arc<Event>| (e.message.clone().unwrap(), e.count.unwrap());
        recorder.recent().iter().map(show).collect()
    }

    #[test]
    fn an_event_is_what_the_kubelet_would_record() {
        let (recorder, _, object) = fixture();
        recorder.event(&object, EventType::Normal, "Started", "Started container app");
        let event = serde_json::to_value(&*recorder.recent()[0]).unwrap();
        assert_eq!(event["involvedObject"]["fieldPath"], "spec.containers{app}");
        assert_eq!(event["involvedObject"]["uid"], "u1");
        assert_eq!(event["source"], serde_json::json!({"component": "kubelet", "host": "node"}));
        assert_eq!(event["firstTimestamp"], "2026-01-02T03:04:05Z");
        assert_eq!(event["metadata"]["namespace"], "default");
        assert!(event["metadata"]["name"].as_str().unwrap().starts_with("web-node."));
    }

    #[tokio::test]
    async fn the_same_event_again_counts_up_and_moves_to_the_end() {
        let (recorder, hand, object) = fixture();
        let mut heard = recorder.subscribe();
        recorder.event(&object, EventType::Warning, "BackOff", "Back-off restarting failed container");
        recorder.event(&object, EventType::Normal, "Pulled", "x");
        hand.advance(Duration::from_secs(10));
        recorder.event(&object, EventType::Warning, "BackOff", "Back-off restarting failed container");
        assert_eq!(shown(&recorder), [("x".to_owned(), 1), ("Back-off restarting failed container".to_owned(), 2)]);
        let last = &recorder.recent()[1];
        assert_eq!(last.first_timestamp.as_ref().unwrap().0.to_string(), "2026-01-02T03:04:05Z");
        assert_eq!(last.last_timestamp.as_ref().unwrap().0.to_string(), "2026-01-02T03:04:15Z");
        let counts = [heard.recv().await, heard.recv().await, heard.recv().await].map(|e| e.unwrap().count.unwrap());
        assert_eq!(counts, [1, 1, 2]);
    }

    #[test]
    fn the_tenth_event_that_differs_only_in_its_message_is_combined() {
        let (recorder, hand, object) = fixture();
        for n in 1..=12 {
            recorder.event(&object, EventType::Warning, "Failed", format!("try {n}"));
            hand.advance(Duration::from_secs(1));
        }
        let shown = shown(&recorder);
        assert_eq!(shown.len(), 10);
        assert_eq!(shown[8], ("try 9".to_owned(), 1));
        assert_eq!(shown[9], ("(combined from similar events): try 12".to_owned(), 3));
    }

    #[test]
    fn a_flood_about_one_object_is_cut_and_refills_slowly() {
        let (recorder, hand, object) = fixture();
        for n in 0..100 {
            recorder.event(&object, EventType::Warning, &format!("Reason{n}"), "x");
        }
        assert_eq!(recorder.recent().len(), 25);
        recorder.event(&node_reference("node"), EventType::Normal, "Starting", "another object is heard");
        recorder.event(&object, EventType::Normal, "Killing", "another type is heard");
        assert_eq!(recorder.recent().len(), 27);
        hand.advance(Duration::from_secs(301));
        recorder.event(&object, EventType::Warning, "Later", "x");
        recorder.event(&object, EventType::Warning, "TooSoon", "x");
        assert_eq!(recorder.recent().len(), 28);
    }

    #[test]
    fn the_ring_and_the_messages_are_bounded() {
        let (recorder, _, _) = fixture();
        for n in 0..KEPT + 10 {
            let object = node_reference(&format!("n{n}"));
            recorder.event(&object, EventType::Normal, "Starting", "ä".repeat(5000));
        }
        let recent = recorder.recent();
        assert_eq!(recent.len(), KEPT);
        assert_eq!(recent[0].involved_object.name.as_deref(), Some("n10"));
        let message = recent[0].message.as_ref().unwrap();
        assert!(message.len() <= MAX_MESSAGE && message.ends_with("..."));
    }
}
