//! The conversation with an API server, played from a script: no socket, paused time.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::StreamExt;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::*;
use crate::clock::ManualClock;
use crate::objects::keys;
use crate::pod::volumes::References;

type Body = UnsyncBoxBody<Bytes, std::convert::Infallible>;

/// Answers in the order given; after the last, nothing is answered.
#[derive(Clone, Default)]
struct Script {
    inner: Arc<Mutex<Played>>,
}

#[derive(Default)]
struct Played {
    answers: std::collections::VecDeque<Answer>,
    heard: Vec<String>,
    /// Watches stay open as long as they are here.
    open: Vec<mpsc::UnboundedSender<Bytes>>,
}

enum Answer {
    Json(u16, Value),
    Watch(Vec<Value>),
}

impl Script {
    fn answer(&self, code: u16, body: Value) -> &Self {
        self.inner.lock().answers.push_back(Answer::Json(code, body));
        self
    }

    fn refuse(&self, code: u16, reason: &str, message: &str) -> &Self {
        let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
            "reason": reason, "code": code});
        self.answer(code, status)
    }

    /// A watch that tells these events and stays open.
    fn watch(&self, events: &[Value]) -> &Self {
        self.inner.lock().answers.push_back(Answer::Watch(events.to_vec()));
        self
    }

    /// Tells an event in the last open watch.
    async fn tell(&self, event: &Value) {
        moment().await;
        let line = Bytes::from(format!("{event}\n"));
        self.inner.lock().open.last().unwrap().send(line).unwrap();
    }

    /// Ends all watches.
    async fn hang_up(&self) {
        moment().await;
        self.inner.lock().open.clear();
    }

    fn heard(&self) -> Vec<String> {
        std::mem::take(&mut self.inner.lock().heard)
    }

    fn client(&self) -> kube::Client {
        kube::Client::new(self.clone(), "default")
    }
}

impl tower_service::Service<http::Request<kube::client::Body>> for Script {
    type Response = http::Response<Body>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<kube::client::Body>) -> Self::Future {
        let mut played = self.inner.lock();
        let path = request.uri().path();
        let asks = |what: &str| request.uri().query().is_some_and(|query| query.split('&').any(|part| part == what));
        let how = if asks("watch=true") {
            "WATCH "
        } else if asks("resourceVersion=0") {
            "CACHE "
        } else {
            ""
        };
        played.heard.push(format!("{how}{path}"));
        let Some(answer) = played.answers.pop_front() else { return Box::pin(std::future::pending()) };
        let (sender, receiver) = mpsc::unbounded_channel();
        let code = match answer {
            Answer::Json(code, body) => {
                let _ = sender.send(Bytes::from(body.to_string()));
                code
            }
            Answer::Watch(events) => {
                for event in events {
                    let _ = sender.send(Bytes::from(format!("{event}\n")));
                }
                played.open.push(sender);
                200
            }
        };
        let frames = tokio_stream(receiver).map(|bytes| Ok(Frame::data(bytes)));
        let body = StreamBody::new(frames).boxed_unsync();
        let response = http::Response::builder().status(code).body(body).unwrap();
        Box::pin(std::future::ready(Ok(response)))
    }
}

/// Lets everybody do what they can do now.
async fn moment() {
    tokio::time::sleep(Duration::from_millis(10)).await;
}

fn tokio_stream(receiver: mpsc::UnboundedReceiver<Bytes>) -> impl futures::Stream<Item = Bytes> + Send {
    futures::stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) })
}

fn map(value: &str, version: u32, immutable: bool) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "immutable": immutable, "data": {"k": value},
        "metadata": {"name": "c", "namespace": "ns", "resourceVersion": version.to_string()}})
}

fn list(items: &[Value], version: u32) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMapList", "items": items,
        "metadata": {"resourceVersion": version.to_string()}})
}

fn uid(name: &str) -> PodUid {
    PodUid::new(name).unwrap()
}

struct World {
    script: Script,
    api: ApiObjects,
    store: ObjectStore,
    hand: ManualClock,
    keys: BTreeSet<ObjectKey>,
    changes: broadcast::Receiver<Change>,
}

fn world() -> World {
    let (script, hand) = (Script::default(), ManualClock::at("2026-01-01T00:00:00Z".parse().unwrap()));
    let api = ApiObjects::new(script.client(), Clock::from(hand.clone()));
    let store = api.store();
    let references = References { config_maps: ["c".to_owned()].into(), ..References::default() };
    let changes = store.changed();
    World { script, api, store, hand, keys: keys("ns", &references), changes }
}

impl World {
    fn register(&self, pod: &str) {
        self.store.register(ObjectOrigin::ApiServer, &uid(pod), self.keys.clone());
    }

    async fn settle(&self, within: u64) {
        let deadline = Instant::now() + Duration::from_secs(within);
        self.store.settle(ObjectOrigin::ApiServer, &self.keys, deadline).await;
    }

    fn value(&self) -> Result<String, String> {
        let object = self.store.config_map(ObjectOrigin::ApiServer, "ns", "c").map_err(|error| error.to_string())?;
        Ok(object.data.clone().unwrap().remove("k").unwrap())
    }
}

#[tokio::test(start_paused = true)]
async fn an_object_is_known_once_the_server_answers_and_then_kept_fresh() {
    let mut world = world();
    world.script.refuse(403, "Forbidden", "configmaps \"c\" is forbidden: no relationship found");
    world.register("u");
    // Less than until the first retry.
    tokio::time::sleep(Duration::from_millis(2)).await;
    assert_eq!(
        world.value(),
        Err("failed to sync configmap cache: configmaps \"c\" is forbidden: no relationship found".to_owned())
    );
    world.script.answer(200, list(&[], 5)).refuse(404, "NotFound", "configmaps \"c\" not found").watch(&[]);
    world.settle(2).await;
    assert_eq!(world.value(), Err("configmap \"c\" not found".to_owned()));
    world.changes.recv().await.unwrap();
    world.script.tell(&json!({"type": "ADDED", "object": map("1", 6, false)})).await;
    assert_eq!(
        world.changes.recv().await.unwrap(),
        Change::Object(ObjectOrigin::ApiServer, world.keys.first().unwrap().clone())
    );
    assert_eq!(world.value().as_deref(), Ok("1"));
    world.script.tell(&json!({"type": "DELETED", "object": map("1", 7, false)})).await;
    world.changes.recv().await.unwrap();
    assert_eq!(world.value(), Err("configmap \"c\" not found".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn an_object_that_the_servers_cache_does_not_have_yet_is_read() {
    let world = world();
    world.script.answer(200, list(&[], 5)).answer(200, map("1", 6, false)).watch(&[]);
    world.register("u");
    world.settle(2).await;
    assert_eq!(world.value().as_deref(), Ok("1"));
    let heard = world.script.heard();
    assert_eq!(heard[..2], ["CACHE /api/v1/namespaces/ns/configmaps", "/api/v1/namespaces/ns/configmaps/c"]);
}

#[tokio::test(start_paused = true)]
async fn what_was_known_stays_while_the_server_is_away_and_is_listed_anew_after() {
    let mut world = world();
    world.script.answer(200, list(&[map("1", 5, false)], 5)).watch(&[]);
    world.register("u");
    world.settle(2).await;
    world.changes.recv().await.unwrap();
    let gone = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 410,
        "reason": "Expired", "message": "too old resource version"});
    world.script.refuse(503, "ServiceUnavailable", "away").watch(&[json!({"type": "ERROR", "object": gone})]);
    world.script.answer(200, list(&[map("2", 9, false)], 9)).watch(&[]);
    world.script.hang_up().await;
    assert_eq!(world.value().as_deref(), Ok("1"));
    world.changes.recv().await.unwrap();
    assert_eq!(world.value().as_deref(), Ok("2"));
    let heard = world.script.heard();
    let lists = heard.iter().filter(|request| !request.starts_with("WATCH")).count();
    assert_eq!(lists, 2, "{heard:?}");
}

#[tokio::test(start_paused = true)]
async fn whatever_the_server_answers_first_an_object_is_known_in_the_end() {
    for code in [409, 410, 429, 500, 502, 503, 504] {
        let unlisted = world();
        unlisted.script.refuse(code, "Whatever", "not now").answer(200, list(&[map("1", 5, false)], 5)).watch(&[]);
        unlisted.register("u");
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(unlisted.value().as_deref(), Ok("1"), "{code} to a list");

        let unwatched = world();
        unwatched.script.answer(200, list(&[map("1", 5, false)], 5)).refuse(code, "Whatever", "not now");
        // (Of a version that is too old a server tells in the watch itself: see above.)
        unwatched.script.watch(&[json!({"type": "MODIFIED", "object": map("2", 9, false)})]);
        unwatched.register("u");
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(unwatched.value().as_deref(), Ok("2"), "{code} to a watch: {:?}", unwatched.script.heard());
    }
}

#[tokio::test(start_paused = true)]
async fn the_servers_root_certificates_are_known_to_the_next_pod_at_once() {
    let mut world = world();
    let root = References { config_maps: ["kube-root-ca.crt".to_owned()].into(), ..References::default() };
    world.keys = keys("ns", &root);
    let key = world.keys.first().unwrap().clone();
    let watched = |world: &World| world.api.inner.registry.lock().watched.contains_key(&key);
    world.script.answer(200, list(&[map("1", 5, false)], 5)).watch(&[]);
    world.register("u");
    world.settle(2).await;
    world.script.heard();
    world.store.unregister(&uid("u"));
    tokio::time::sleep(LINGER / 2).await;
    world.register("v");
    world.settle(0).await;
    assert!(matches!(world.api.get(&key), Some(Known::Present(_))));
    tokio::time::sleep(LINGER * 2).await;
    assert!(watched(&world), "the time of the first pod is over, not that of the second");
    assert_eq!(world.script.heard(), Vec::<String>::new(), "nothing was asked again");
    world.store.unregister(&uid("v"));
    tokio::time::sleep(LINGER / 2).await;
    assert!(watched(&world));
    tokio::time::sleep(LINGER).await;
    assert!(!watched(&world));
    // One that is not there is asked for anew: it may have been made since.
    world.script.answer(200, list(&[], 5)).refuse(404, "NotFound", "not found").watch(&[]);
    world.register("w");
    world.settle(2).await;
    world.store.unregister(&uid("w"));
    assert!(!watched(&world));
}

#[tokio::test(start_paused = true)]
async fn one_watch_serves_all_pods_and_ends_with_the_last() {
    let world = world();
    world.script.answer(200, list(&[map("1", 5, false)], 5)).watch(&[]);
    world.register("u");
    world.register("v");
    world.register("v");
    world.settle(2).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let path = "/api/v1/namespaces/ns/configmaps";
    assert_eq!(world.script.heard(), [format!("CACHE {path}"), format!("WATCH {path}")]);
    world.store.unregister(&uid("u"));
    assert_eq!(world.value().as_deref(), Ok("1"));
    world.store.unregister(&uid("v"));
    assert_eq!(world.value(), Err("object \"ns\"/\"c\" not registered".to_owned()));
    // Nothing is left to wait for.
    world.api.inner.tasks.close();
    world.api.inner.tasks.wait().await;
}

#[tokio::test(start_paused = true)]
async fn an_immutable_object_is_not_watched_any_longer() {
    let world = world();
    world.script.answer(200, list(&[map("1", 5, true)], 5));
    world.register("u");
    world.settle(2).await;
    world.api.inner.tasks.close();
    world.api.inner.tasks.wait().await;
    assert_eq!(world.value().as_deref(), Ok("1"));
    assert_eq!(world.script.heard().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_says_nothing_holds_nobody_for_long() {
    let world = world();
    world.register("u");
    world.settle(2).await;
    let words = "failed to sync configmap cache: timed out waiting for the condition";
    assert_eq!(world.value(), Err(words.to_owned()));
    let deadline = Instant::now() + Duration::from_secs(2);
    let variables = world.store.service_env(ObjectOrigin::ApiServer, "ns", Links::Namespace, deadline).await;
    assert_eq!(variables, Err("services have not yet been read at least once, cannot construct envvars"));
    let of_manifest = world.store.service_env(ObjectOrigin::Manifest, "ns", Links::Namespace, deadline).await;
    assert_eq!(of_manifest, Ok(BTreeMap::new()));
    let stop = CancellationToken::new();
    stop.cancel();
    world.api.run(stop).await;
}

#[tokio::test(start_paused = true)]
async fn a_token_is_kept_while_young_refreshed_when_due_and_used_to_its_end() {
    let world = world();
    let owner = TokenOwner {
        uid: uid("u"),
        name: "web".to_owned(),
        namespace: "ns".to_owned(),
        service_account: "default".to_owned(),
    };
    let given = |token: &str, expires: &str| {
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {"audiences": ["a"], "expirationSeconds": 3600},
            "status": {"token": token, "expirationTimestamp": expires}})
    };
    let token = || async {
        let token = world.api.token(&owner, "", Some(3600)).await;
        token.map(|token| String::from_utf8(token.as_bytes().to_vec()).unwrap())
    };
    let refused = "serviceaccounts \"default\" not found";
    world.script.refuse(404, "NotFound", refused);
    assert_eq!(token().await, Err(format!("failed to fetch token: {refused}")));
    // A server that has not heard of the pod yet is asked again.
    let unheard = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "NotFound",
        "message": "pod \"web\" not found", "details": {"name": "web", "kind": "pods"}, "code": 404});
    world.script.answer(404, unheard.clone()).answer(404, unheard);
    world.script.answer(201, given("one", "2026-01-01T01:00:00Z"));
    assert_eq!(token().await.as_deref(), Ok("one"));
    world.hand.advance(Duration::from_secs(47 * 60));
    assert_eq!(token().await.as_deref(), Ok("one"), "young enough: nothing is asked");
    world.hand.advance(Duration::from_secs(2 * 60));
    world.script.refuse(500, "InternalError", "broken");
    assert_eq!(token().await.as_deref(), Ok("one"), "due, but what there is is good");
    world.script.answer(201, given("two", "2026-01-01T01:49:00Z"));
    assert_eq!(token().await.as_deref(), Ok("two"));
    world.hand.advance(Duration::from_secs(61 * 60));
    world.script.refuse(500, "InternalError", "broken");
    let error = token().await.unwrap_err();
    assert_eq!(error, "token \"default\"/\"ns\" expired and refresh failed: broken");
    assert_eq!(world.script.heard().len(), 7);
}
