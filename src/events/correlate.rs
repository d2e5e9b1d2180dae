//! Counts, combines and cuts events, with the numbers and in the order of client-go's `EventCorrelator`.
//!
//! In: a new event. Out: the event to record (new, counted up, or combined), or nothing. Reads no clock.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::recent::Recent;

/// Entries of each cache (`maxLruCacheEntries`).
const CACHE: usize = 4096;

/// Different messages of one reason within [`AGGREGATE_SECONDS`] before they're combined.
const AGGREGATE_AFTER: usize = 10;
const AGGREGATE_SECONDS: i64 = 600;

/// Events about one object before they're cut, and seconds until one more is let through.
const SPAM_BURST: f64 = 25.0;
const SPAM_REFILL_SECONDS: f64 = 300.0;

/// What an event is about and says; equal keys are the same event.
type Key = Vec<String>;

/// Remembers what was recorded lately.
#[derive(Debug)]
pub(super) struct Correlator {
    similar: Recent<Key, Similar>,
    observed: Recent<Key, Observed>,
    buckets: Recent<Key, Bucket>,
}

/// The different messages of one reason.
#[derive(Debug)]
struct Similar {
    messages: BTreeSet<String>,
    last: Timestamp,
}

/// An event that was recorded.
#[derive(Debug, Default)]
struct Observed {
    count: i32,
    name: Option<String>,
    first_timestamp: Option<Time>,
}

/// A token bucket.
#[derive(Debug)]
struct Bucket {
    tokens: f64,
    filled_at: Timestamp,
}

impl Default for Correlator {
    fn default() -> Self {
        Self { similar: Recent::new(CACHE), observed: Recent::new(CACHE), buckets: Recent::new(CACHE) }
    }
}

impl Correlator {
    /// The event as it should be recorded; `None` when there were too many about its object.
    pub(super) fn correlate(&mut self, event: Event, now: Timestamp) -> Option<Event> {
        let spam_key = object_key(&event);
        let (event, key) = self.aggregate(event, now);
        let event = self.observe(event, &key);
        self.take_token(&spam_key, now).then_some(event)
    }

    fn aggregate(&mut self, mut event: Event, now: Timestamp) -> (Event, Key) {
        let mut aggregate_key = object_key(&event);
        aggregate_key.push(event.reason.clone().unwrap_or_default());
        let message = event.message.clone().unwrap_or_default();
        let similar =
            self.similar.get_or_insert_with(&aggregate_key, || Similar { messages: BTreeSet::new(), last: now });
        if now.as_second() - similar.last.as_second() > AGGREGATE_SECONDS {
            similar.messages.clear();
        }
        similar.messages.insert(message.clone());
        similar.last = now;
        if similar.messages.len() < AGGREGATE_AFTER {
            let mut key = aggregate_key;
            key.push(event.involved_object.field_path.clone().unwrap_or_default());
            key.push(message);
            return (event, key);
        }
        // The set need not grow beyond what decides.
        similar.messages.pop_first();
        event.message = Some(format!("(combined from similar events): {message}"));
        (event, aggregate_key)
    }

    fn observe(&mut self, mut event: Event, key: &Key) -> Event {
        let observed = self.observed.get_or_insert_with(key, Observed::default);
        if observed.count > 0 {
            event.metadata.name.clone_from(&observed.name);
            event.first_timestamp.clone_from(&observed.first_timestamp);
            event.count = Some(observed.count.saturating_add(1));
        }
        observed.count = event.count.unwrap_or(1);
        observed.name.clone_from(&event.metadata.name);
        observed.first_timestamp.clone_from(&event.first_timestamp);
        event
    }

    fn take_token(&mut self, key: &Key, now: Timestamp) -> bool {
        let bucket = self.buckets.get_or_insert_with(key, || Bucket { tokens: SPAM_BURST, filled_at: now });
        // A clock set back refills nothing.
        let passed = now.duration_since(bucket.filled_at).as_secs_f64().max(0.0);
        bucket.tokens = (bucket.tokens + passed / SPAM_REFILL_SECONDS).min(SPAM_BURST);
        bucket.filled_at = now;
        let taken = bucket.tokens >= 1.0;
        if taken {
            bucket.tokens -= 1.0;
        }
        taken
    }
}

/// The object and the type (`getSpamKey`); the source is always this node.
fn object_key(event: &Event) -> Key {
    let object = &event.involved_object;
    [&object.kind, &object.namespace, &object.name, &object.uid, &object.api_version, &event.type_]
        .map(|part| part.clone().unwrap_or_default())
        .to_vec()
}
