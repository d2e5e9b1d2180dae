//! Writes events to the API server, as client-go's event broadcaster: a new one is created, a repeat patches its count.
//!
//! In: what the [`Recorder`] records. Out: requests, no faster than `eventRecordQPS`. Whoever reports is never held up;
//! what the API server does not take in time is lost, counted, and said in the agent's log. Decides nothing about
//! repeats (`correlate`).

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Event;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::Notify;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Recorder;
use super::queue::{Queue, Throttle};

/// client-go's `maxTriesPerEvent`.
const MAX_TRIES: u32 = 12;
/// The first wait after a failure; doubled up to [`LAST_RETRY`], client-go's `sleepDuration`.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(10);
/// A request that hangs must not hold all the others.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// How long events wait altogether while more important writes do, for how long there must be none until they wait anew, and
/// how often that is looked at.
const YIELD_PATIENCE: Duration = Duration::from_secs(10);
const YIELD_PAUSE: Duration = Duration::from_secs(1);
const YIELD_CHECK: Duration = Duration::from_millis(20);
/// What is said last (`Killing`, `Shutdown`) may still go out when the agent stops, if the API server is there.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// Writes the events of one node.
pub struct EventWriter {
    events: broadcast::Receiver<Arc<Event>>,
    sender: Sender,
}

struct Sender {
    sink: Sink,
    queue: Mutex<Queue>,
    filled: Notify,
    qps: Option<u32>,
    burst: u32,
    others_wait: OthersWait,
}

/// Events wait for more important writes.
struct Yielding {
    since: Instant,
    /// When such a write was seen to wait last.
    last: Instant,
}

/// Whether writes wait that matter more than events: when a thousand pods start at once, that they run is told before why.
pub type OthersWait = Box<dyn Fn() -> bool + Send + Sync>;

struct Sink(kube::Client);

impl std::fmt::Debug for EventWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventWriter").finish_non_exhaustive()
    }
}

/// How a try to write an event went.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    /// It's there.
    Written,
    /// It will never be: the server looked at it and refused.
    Refused(String),
    /// The server could not be asked.
    Away(String),
}

impl EventWriter {
    /// Writes what `recorder` records from now on. `qps` and `burst` are `eventRecordQPS` and `eventBurst`; `None` is no
    /// limit. While `others_wait` they wait too, for some seconds.
    #[must_use]
    pub fn new(
        client: kube::Client,
        recorder: &Recorder,
        (qps, burst): (Option<u32>, u32),
        others_wait: OthersWait,
    ) -> Self {
        let (sink, queue, filled) = (Sink(client), Mutex::default(), Notify::new());
        let sender = Sender { sink, queue, filled, qps, burst, others_wait };
        Self { events: recorder.subscribe(), sender }
    }

    /// Writes until `stop`, then for a moment what is left.
    pub async fn run(self, stop: CancellationToken) {
        let Self { mut events, sender } = self;
        {
            let take = sender.take(&mut events);
            let send = sender.send();
            // Both are endless and keep what they hold in `sender`.
            let _ = stop.run_until_cancelled(async { tokio::join!(take, send) }).await;
        }
        while let Ok(event) = events.try_recv() {
            sender.queue.lock().push(event);
        }
        if tokio::time::timeout(LAST_WORDS, sender.send_rest()).await.is_err() {
            tracing::warn!("Gave up writing the last events to the API server");
        }
    }
}

impl Sender {
    /// Moves events into the queue; never waits for the API server.
    async fn take(&self, events: &mut broadcast::Receiver<Arc<Event>>) {
        loop {
            match events.recv().await {
                Ok(event) => self.queue.lock().push(event),
                Err(RecvError::Lagged(count)) => self.queue.lock().lost(count),
                // The recorder is gone: the sender goes on with what there is.
                Err(RecvError::Closed) => return,
            }
            self.filled.notify_one();
        }
    }

    async fn send(&self) {
        let mut throttle = Throttle::new(self.qps, self.burst, Instant::now());
        let mut yielding = None;
        loop {
            let (event, dropped) = {
                let mut queue = self.queue.lock();
                (queue.pop(), queue.take_dropped())
            };
            if dropped > 0 {
                tracing::warn!(dropped, "Unable to write events to the API server: too many queued events");
            }
            let Some(event) = event else {
                self.filled.notified().await;
                continue;
            };
            self.yield_to_others(&mut yielding).await;
            tokio::time::sleep(throttle.take(Instant::now())).await;
            self.write(&event).await;
            self.queue.lock().done();
        }
    }

    /// Waits while more important writes do; when that has lasted, not again before there were none for a moment.
    async fn yield_to_others(&self, yielding: &mut Option<Yielding>) {
        while (self.others_wait)() {
            let now = Instant::now();
            let Yielding { since, last } = yielding.get_or_insert(Yielding { since: now, last: now });
            *last = now;
            if since.elapsed() >= YIELD_PATIENCE {
                return;
            }
            tokio::time::sleep(YIELD_CHECK).await;
        }
        if yielding.as_ref().is_some_and(|yielding| yielding.last.elapsed() >= YIELD_PAUSE) {
            *yielding = None;
        }
    }

    async fn send_rest(&self) {
        self.queue.lock().put_back();
        loop {
            let event = self.queue.lock().pop();
            let Some(event) = event else { return };
            if let Outcome::Away(_) = self.sink.record(&event).await {
                return;
            }
        }
    }

    /// Writes one event, with the patience of client-go.
    async fn write(&self, event: &Event) {
        let mut delay = FIRST_RETRY;
        for attempt in 1..=MAX_TRIES {
            let why = match self.sink.record(event).await {
                Outcome::Written => return,
                Outcome::Refused(why) => {
                    tracing::warn!(event = name(event), err = why, "Server rejected event (will not retry!)");
                    return;
                }
                Outcome::Away(why) => why,
            };
            tracing::debug!(
                event = name(event),
                err = why,
                attempt,
                "Unable to write event (may retry after sleeping)"
            );
            // Nodes that lost the API server together do not come back as one.
            tokio::time::sleep(delay.mul_f64(0.5 + rand::random::<f64>() / 2.0)).await;
            delay = delay.saturating_mul(2).min(LAST_RETRY);
        }
        tracing::warn!(event = name(event), "Unable to write event (retry limit exceeded!)");
    }
}

impl Sink {
    async fn record(&self, event: &Event) -> Outcome {
        let request = async {
            if event.count.unwrap_or(1) > 1 {
                match self.patch(event).await {
                    // It was removed, or its first form was never written.
                    Err(kube::Error::Api(status)) if status.code == 404 => {}
                    result => return result,
                }
            }
            self.create(event).await
        };
        match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
            Ok(result) => outcome(result),
            Err(_) => Outcome::Away("the API server did not answer in time".to_owned()),
        }
    }

    fn api(&self, event: &Event) -> Api<Event> {
        Api::namespaced(self.0.clone(), event.metadata.namespace.as_deref().unwrap_or("default"))
    }

    async fn create(&self, event: &Event) -> Result<(), kube::Error> {
        self.api(event).create(&PostParams::default(), event).await.map(drop)
    }

    async fn patch(&self, event: &Event) -> Result<(), kube::Error> {
        let patch = repeat(event);
        self.api(event).patch(name(event), &PatchParams::default(), &Patch::Strategic(patch)).await.map(drop)
    }
}

/// What a repeat changes of an event.
fn repeat(event: &Event) -> serde_json::Value {
    json!({"count": event.count, "lastTimestamp": event.last_timestamp, "message": event.message})
}

fn outcome(result: Result<(), kube::Error>) -> Outcome {
    match result {
        Ok(()) => Outcome::Written,
        // A try before this one arrived after all.
        Err(kube::Error::Api(status)) if status.code == 409 && status.reason == "AlreadyExists" => Outcome::Written,
        // It may be better in a moment; client-go gives up on the first two only because it never sees them: its client
        // retries them by itself.
        Err(kube::Error::Api(status)) if [429, 500, 502, 503, 504].contains(&status.code) => {
            Outcome::Away(status.message.clone())
        }
        Err(kube::Error::Api(status)) => Outcome::Refused(status.message.clone()),
        Err(kube::Error::SerdeError(error)) => Outcome::Refused(error.to_string()),
        Err(error) => Outcome::Away(error.to_string()),
    }
}

fn name(event: &Event) -> &str {
    event.metadata.name.as_deref().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;

    #[test]
    fn what_the_server_refused_is_not_tried_again_and_what_never_reached_it_is() {
        let api =
            |code: u16, reason: &str| Err(kube::Error::Api(Status::failure("words", reason).with_code(code).boxed()));
        for (case, result, expected) in [
            ("created", Ok(()), Outcome::Written),
            ("there already", api(409, "AlreadyExists"), Outcome::Written),
            ("a namespace that ends", api(403, "Forbidden"), Outcome::Refused("words".to_owned())),
            ("not valid", api(422, "Invalid"), Outcome::Refused("words".to_owned())),
            ("too busy", api(429, "TooManyRequests"), Outcome::Away("words".to_owned())),
            ("going down", api(503, "ServiceUnavailable"), Outcome::Away("words".to_owned())),
            (
                "not reachable",
                Err(kube::Error::Service("refused".into())),
                Outcome::Away("ServiceError: refused".to_owned()),
            ),
        ] {
            assert_eq!(outcome(result), expected, "{case}");
        }
    }

    #[test]
    fn a_repeat_changes_count_time_and_words() {
        let event: Event = serde_json::from_value(json!({"metadata": {"name": "web.1"}, "involvedObject": {},
            "count": 3, "lastTimestamp": "2026-01-02T03:04:05Z", "message": "again", "reason": "BackOff"}))
        .unwrap();
        assert_eq!(repeat(&event), json!({"count": 3, "lastTimestamp": "2026-01-02T03:04:05Z", "message": "again"}));
    }

    /// Answers with these codes, then never; writes down what it was asked.
    #[derive(Clone, Default)]
    struct Script {
        codes: Arc<Mutex<std::collections::VecDeque<u16>>>,
        heard: Arc<Mutex<Vec<String>>>,
    }

    impl tower_service::Service<http::Request<kube::client::Body>> for Script {
        type Response = http::Response<http_body_util::Full<bytes::Bytes>>;
        type Error = std::io::Error;
        type Future = futures::future::Either<
            std::future::Ready<Result<Self::Response, Self::Error>>,
            std::future::Pending<Result<Self::Response, Self::Error>>,
        >;

        fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
            std::task::Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: http::Request<kube::client::Body>) -> Self::Future {
            let name = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
            self.heard.lock().push(format!("{} {}", request.method(), name.split('.').next().unwrap_or_default()));
            let Some(code) = self.codes.lock().pop_front() else {
                return futures::future::Either::Right(std::future::pending());
            };
            let body = if code < 300 {
                json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "x"}, "involvedObject": {}})
            } else {
                json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": "no", "reason": "No"})
            };
            let body = http_body_util::Full::new(bytes::Bytes::from(body.to_string()));
            let response = http::Response::builder().status(code).body(body).expect("a valid response");
            futures::future::Either::Left(std::future::ready(Ok(response)))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_is_created_its_repeat_patched_and_what_is_gone_created_again() {
        use super::super::EventType;
        use crate::clock::{Clock, ManualClock};
        let hand = ManualClock::at("2026-01-02T03:04:05Z".parse().unwrap());
        let recorder = Recorder::new("node", Clock::from(hand));
        let script = Script::default();
        let client = kube::Client::new(script.clone(), "default");
        let writer = EventWriter::new(client, &recorder, (Some(50), 100), Box::new(|| false));
        let stop = CancellationToken::new();
        let running = tokio::spawn(writer.run(stop.clone()));
        let pod: k8s_openapi::api::core::v1::Pod =
            serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "ns", "uid": "u"}})).unwrap();
        let record = || recorder.event(&super::super::pod_reference(&pod), EventType::Warning, "BackOff", "again");
        let quiet = || tokio::time::sleep(Duration::from_secs(5));
        for (case, codes, expected) in [
            ("the API server is away, then there", vec![503, 201], vec!["POST events", "POST events"]),
            ("a repeat", vec![200], vec!["PATCH web"]),
            ("a repeat of what was removed", vec![404, 201], vec!["PATCH web", "POST events"]),
            ("refused for good", vec![422], vec!["PATCH web"]),
        ] {
            script.codes.lock().extend(codes);
            record();
            quiet().await;
            assert_eq!(std::mem::take(&mut *script.heard.lock()), expected, "{case}");
        }
        script.codes.lock().push_back(200);
        record();
        stop.cancel();
        running.await.unwrap();
        assert_eq!(*script.heard.lock(), ["PATCH web"], "last words");
    }

    #[tokio::test(start_paused = true)]
    async fn events_wait_for_what_matters_more_and_not_for_ever() {
        use super::super::EventType;
        use std::sync::atomic::{AtomicBool, Ordering};
        let recorder = Recorder::new("node", crate::clock::Clock::default());
        let (script, busy) = (Script::default(), Arc::new(AtomicBool::new(true)));
        script.codes.lock().extend([201; 9]);
        let client = kube::Client::new(script.clone(), "default");
        let others = busy.clone();
        let writer = EventWriter::new(client, &recorder, (None, 1), Box::new(move || others.load(Ordering::Relaxed)));
        tokio::spawn(writer.run(CancellationToken::new()));
        let record = |n: u32| {
            let node = super::super::node_reference("node");
            recorder.event(&node, EventType::Normal, &format!("Reason{n}"), "words");
        };
        let written = async |after: Duration| {
            tokio::time::sleep(after).await;
            script.heard.lock().len()
        };
        let second = Duration::from_secs(1);
        record(1);
        assert_eq!(written(second).await, 0);
        busy.store(false, Ordering::Relaxed);
        assert_eq!(written(second).await, 1);
        busy.store(true, Ordering::Relaxed);
        record(2);
        record(3);
        assert_eq!(written(YIELD_PATIENCE / 2).await, 1);
        assert_eq!(written(YIELD_PATIENCE).await, 3, "patience is for all of them together");
        record(4);
        assert_eq!(written(second / 10).await, 4, "and over until nothing waits");
        for (n, after, expected) in [(5, second / 2, 6), (7, second * 2, 7)] {
            busy.store(false, Ordering::Relaxed);
            tokio::time::sleep(after).await;
            record(n);
            written(second / 10).await;
            busy.store(true, Ordering::Relaxed);
            record(n + 1);
            assert_eq!(written(second / 10).await, expected, "a pause of {after:?}");
        }
    }
}
