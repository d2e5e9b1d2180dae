//! Events that wait for the API server, and how fast they may go.
//!
//! In: events as they are recorded. Out: the oldest, each in its newest form. Bounded: while the API server is away, an
//! event that repeats waits once, and the oldest go first when there are too many. Reads no clock, sends nothing.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Event;
use tokio::time::Instant;

/// Events that wait; as many as the [`super::Recorder`] keeps anyway. client-go's `maxQueuedEvents` is 1,000, which is what
/// a few hundred pods say when they start together.
const CAPACITY: usize = super::KEPT;

type Name = (String, String);

/// Waiting events, by namespace and name.
#[derive(Debug, Default)]
pub(super) struct Queue {
    order: VecDeque<Name>,
    newest: HashMap<Name, Arc<Event>>,
    /// Handed out, not known to be there.
    current: Option<Arc<Event>>,
    dropped: u64,
}

impl Queue {
    /// Adds an event, or replaces the form of it that waits.
    pub(super) fn push(&mut self, event: Arc<Event>) {
        let name = name_of(&event);
        if self.newest.insert(name.clone(), event).is_some() {
            return;
        }
        if self.order.len() == CAPACITY
            && let Some(oldest) = self.order.pop_front()
        {
            self.newest.remove(&oldest);
            self.dropped += 1;
        }
        self.order.push_back(name);
    }

    /// The next to send; [`Self::done`] when it was.
    pub(super) fn pop(&mut self) -> Option<Arc<Event>> {
        let name = self.order.pop_front()?;
        self.current = self.newest.remove(&name);
        self.current.clone()
    }

    pub(super) fn done(&mut self) {
        self.current = None;
    }

    /// Puts what was handed out and is not done back to the front.
    pub(super) fn put_back(&mut self) {
        let Some(event) = self.current.take() else { return };
        let name = name_of(&event);
        // A newer form that waits goes for it.
        if let std::collections::hash_map::Entry::Vacant(place) = self.newest.entry(name.clone()) {
            place.insert(event);
            self.order.push_front(name);
        }
    }

    /// Counts events lost elsewhere.
    pub(super) fn lost(&mut self, count: u64) {
        self.dropped += count;
    }

    /// Events lost since the last call.
    pub(super) fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }
}

fn name_of(event: &Event) -> Name {
    (event.metadata.namespace.clone().unwrap_or_default(), event.metadata.name.clone().unwrap_or_default())
}

/// A token bucket: `burst` at once, then `rate` a second.
#[derive(Debug)]
pub(super) struct Throttle {
    /// `None`: no limit.
    rate: Option<f64>,
    burst: f64,
    tokens: f64,
    filled_at: Instant,
}

impl Throttle {
    pub(super) fn new(rate: Option<u32>, burst: u32, now: Instant) -> Self {
        let burst = f64::from(burst.max(1));
        Self { rate: rate.filter(|rate| *rate > 0).map(f64::from), burst, tokens: burst, filled_at: now }
    }

    /// Takes a token; how long to wait before using it.
    pub(super) fn take(&mut self, now: Instant) -> Duration {
        let Some(rate) = self.rate else { return Duration::ZERO };
        let passed = now.saturating_duration_since(self.filled_at).as_secs_f64();
        self.tokens = (self.tokens + passed * rate).min(self.burst) - 1.0;
        self.filled_at = now;
        // Below zero it is a debt: as long as it takes to fill up again.
        Duration::from_secs_f64((-self.tokens / rate).max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str, count: i32) -> Arc<Event> {
        let mut event = Event { count: Some(count), ..Event::default() };
        event.metadata.name = Some(name.to_owned());
        event.metadata.namespace = Some("ns".to_owned());
        Arc::new(event)
    }

    fn shown(event: Option<Arc<Event>>) -> Option<(String, i32)> {
        event.map(|event| (event.metadata.name.clone().unwrap(), event.count.unwrap()))
    }

    #[test]
    fn an_event_that_repeats_waits_once_in_its_place_and_newest_form() {
        let mut queue = Queue::default();
        queue.push(event("a", 1));
        queue.push(event("b", 1));
        queue.push(event("a", 2));
        assert_eq!(shown(queue.pop()), Some(("a".to_owned(), 2)));
        queue.push(event("a", 3));
        assert_eq!(shown(queue.pop()), Some(("b".to_owned(), 1)));
        assert_eq!(shown(queue.pop()), Some(("a".to_owned(), 3)));
        queue.put_back();
        assert_eq!(shown(queue.pop()), Some(("a".to_owned(), 3)), "it was not done");
        queue.done();
        queue.put_back();
        assert_eq!(shown(queue.pop()), None);
        assert_eq!(queue.take_dropped(), 0);
    }

    #[test]
    fn the_oldest_go_when_there_are_too_many_and_are_counted() {
        let mut queue = Queue::default();
        for n in 0..CAPACITY + 3 {
            queue.push(event(&n.to_string(), 1));
        }
        queue.lost(2);
        assert_eq!((queue.take_dropped(), queue.take_dropped()), (5, 0));
        assert_eq!(shown(queue.pop()), Some(("3".to_owned(), 1)));
        assert_eq!(queue.newest.len(), queue.order.len());
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_goes_at_once_and_then_at_the_rate() {
        let now = Instant::now();
        let mut throttle = Throttle::new(Some(2), 3, now);
        let waits: Vec<u64> = (0..5).map(|_| throttle.take(now).as_millis() as u64).collect();
        assert_eq!(waits, [0, 0, 0, 500, 1000]);
        let later = now + Duration::from_secs(60);
        let waits: Vec<u64> = (0..4).map(|_| throttle.take(later).as_millis() as u64).collect();
        assert_eq!(waits, [0, 0, 0, 500]);
        let mut free = Throttle::new(None, 1, now);
        assert!((0..100).all(|_| free.take(now).is_zero()));
    }
}
