//! The writer against a server that fails, forgets and refuses, in paused time. (What a real one answers is tested
//! against a real one.)

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use k8s_openapi::api::core::v1::PodStatus;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::super::cache::Stage;
use super::super::patch::tests::patched;
use super::*;

/// One pod and a list of requests.
#[derive(Default)]
struct State {
    pod: Option<Pod>,
    /// Answers 500 this often.
    failures: u32,
    requests: Vec<String>,
    /// Phases that were written.
    written: Vec<String>,
    /// What happens to the request of this number instead.
    fault: Option<(usize, Fault)>,
    version: u64,
}

/// What a server can do instead of its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// It refuses.
    Refuse(u16),
    /// It never answers.
    Hang,
    /// It does what was asked, and something on the way loses the answer.
    Lose,
}

#[derive(Clone, Default)]
struct Server(Arc<Mutex<State>>);

impl Server {
    fn answer(&self, method: &Method, body: &Value) -> (StatusCode, Value) {
        let mut state = self.0.lock();
        let phase = body["status"]["phase"].as_str().unwrap_or_default();
        state.requests.push(format!("{method} {phase}").trim().to_owned());
        let status = |code: StatusCode| (code, json!({"kind": "Status", "status": "Failure", "code": code.as_u16()}));
        if state.failures > 0 {
            state.failures -= 1;
            return status(StatusCode::INTERNAL_SERVER_ERROR);
        }
        let Some(pod) = state.pod.clone() else { return status(StatusCode::NOT_FOUND) };
        let uid = if *method == Method::DELETE { &body["preconditions"]["uid"] } else { &body["metadata"]["uid"] };
        if *uid != json!(pod.metadata.uid) {
            return status(StatusCode::CONFLICT);
        }
        if *method == Method::DELETE {
            assert_eq!(body["gracePeriodSeconds"], 0);
            state.pod = None;
            return (StatusCode::OK, json!({"kind": "Status", "status": "Success"}));
        }
        let mut pod = patched(&pod, body);
        state.version += 1;
        state.written.push(phase.to_owned());
        pod.metadata.resource_version = Some(state.version.to_string());
        state.pod = Some(pod.clone());
        (StatusCode::OK, serde_json::to_value(pod).unwrap())
    }

    /// What happens to the next request, if something does.
    fn fault(&self) -> Option<Fault> {
        let state = self.0.lock();
        state.fault.filter(|(at, _)| *at == state.requests.len()).map(|(_, fault)| fault)
    }

    fn requests(&self) -> Vec<String> {
        self.0.lock().requests.clone()
    }
}

/// What a client of a test is answered by.
trait Respond: Clone + Send + 'static {
    fn respond(self, request: Request<Body>) -> impl Future<Output = (StatusCode, Value)> + Send;
}

#[derive(Clone)]
struct Served<S>(S);

impl<S: Respond> tower_service::Service<Request<Body>> for Served<S> {
    type Response = Response<Full<bytes::Bytes>>;
    type Error = std::convert::Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let server = self.0.clone();
        Box::pin(async move {
            let (code, answer) = server.respond(request).await;
            let answer = Full::new(bytes::Bytes::from(serde_json::to_vec(&answer).unwrap()));
            Ok(Response::builder().status(code).body(answer).unwrap())
        })
    }
}

impl Respond for Server {
    async fn respond(self, request: Request<Body>) -> (StatusCode, Value) {
        let (parts, body) = request.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        assert!(parts.uri.path().starts_with("/api/v1/namespaces/ns/pods/web"), "{}", parts.uri);
        let body = serde_json::from_slice(&bytes).unwrap_or_default();
        let refusal = |code: u16| {
            let answer = json!({"kind": "Status", "status": "Failure", "code": code});
            (StatusCode::from_u16(code).unwrap(), answer)
        };
        match self.fault() {
            None => self.answer(&parts.method, &body),
            Some(Fault::Lose) => {
                self.answer(&parts.method, &body);
                refusal(504)
            }
            Some(fault) => {
                self.0.lock().requests.push(format!("{fault:?}"));
                match fault {
                    Fault::Refuse(code) => refusal(code),
                    _ => std::future::pending().await,
                }
            }
        }
    }
}

fn pod(uid: &str) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "ns", "uid": uid, "resourceVersion": "0"},
        "spec": {"containers": []}, "status": {"phase": "Pending"}}))
    .unwrap()
}

fn phase(phase: &str) -> PodStatus {
    PodStatus { phase: Some(phase.to_owned()), ..PodStatus::default() }
}

struct World {
    server: Server,
    cache: StatusCache,
    api: ApiPods,
    stop: CancellationToken,
    writer: tokio::task::JoinHandle<()>,
    uid: PodUid,
    pod: Arc<Pod>,
}

impl World {
    fn new() -> Self {
        let (server, cache, api) = (Server::default(), StatusCache::default(), ApiPods::default());
        server.0.lock().pod = Some(pod("u"));
        api.put(pod("u"));
        let client = kube::Client::new(Served(server.clone()), "default");
        let stop = CancellationToken::new();
        let writer = tokio::spawn(
            StatusWriter::new(client, cache.clone(), api.clone(), StatusMetrics::default()).run(stop.clone()),
        );
        let (uid, pod) = (PodUid::new("u").unwrap(), Arc::new(pod("u")));
        Self { server, cache, api, stop, writer, uid, pod }
    }

    fn say(&self, status: &str, stage: Stage) {
        self.cache.report(&self.uid, &self.pod, phase(status), stage).unwrap();
    }
}

async fn seconds(count: u64) {
    tokio::time::sleep(Duration::from_secs(count)).await;
}

#[tokio::test(start_paused = true)]
async fn what_fails_is_said_again_and_only_the_newest() {
    let world = World::new();
    world.server.0.lock().failures = 3;
    world.say("Running", Stage::Alive);
    seconds(2).await;
    world.say("Succeeded", Stage::Stopped);
    seconds(60).await;
    let requests = world.server.requests();
    assert_eq!(requests.last().map(String::as_str), Some("PATCH Succeeded"));
    assert_eq!(requests.len(), 4, "{requests:?}");
    seconds(600).await;
    assert_eq!(world.server.requests().len(), 4, "what is up to date costs nothing");
}

#[tokio::test(start_paused = true)]
async fn an_outage_costs_few_requests_and_ends_with_the_truth() {
    let world = World::new();
    world.server.0.lock().failures = u32::MAX;
    world.say("Running", Stage::Alive);
    seconds(3600).await;
    assert!(world.server.requests().len() < 400, "{}", world.server.requests().len());
    world.server.0.lock().failures = 0;
    seconds(11).await;
    assert_eq!(world.server.requests().last().map(String::as_str), Some("PATCH Running"));
    assert_eq!(world.api.get(&world.uid).unwrap().status.as_ref().unwrap().phase.as_deref(), Some("Running"));
}

#[tokio::test(start_paused = true)]
async fn a_deletion_is_completed_once_and_a_stranger_is_left_alone() {
    let world = World::new();
    let mut deleted = pod("u");
    deleted.metadata.resource_version = Some("1".to_owned());
    deleted.metadata.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH));
    world.server.0.lock().version = 1;
    world.server.0.lock().pod = Some(deleted.clone());
    world.api.put(deleted);
    world.say("Failed", Stage::Finished);
    seconds(60).await;
    assert_eq!(world.server.requests(), ["PATCH Failed", "DELETE"], "not again while the watch is silent");

    let world = World::new();
    world.server.0.lock().pod = Some(pod("another"));
    world.say("Running", Stage::Alive);
    seconds(60).await;
    let refused = world.server.requests().len();
    assert!((1..=7).contains(&refused), "{refused}");
    assert_eq!(world.server.0.lock().pod, Some(pod("another")));
}

#[tokio::test(start_paused = true)]
async fn whatever_goes_wrong_with_a_request_the_last_word_is_said_and_a_deletion_completed() {
    let codes = [409, 429, 500, 502, 503, 504].map(Fault::Refuse);
    for fault in codes.into_iter().chain([Fault::Hang, Fault::Lose]) {
        for at in 0..3 {
            let case = format!("{fault:?} of request {at}");
            let world = World::new();
            world.server.0.lock().fault = Some((at, fault));
            world.say("Running", Stage::Alive);
            seconds(2).await;
            let deleted = {
                let mut state = world.server.0.lock();
                state.version += 1;
                let version = state.version.to_string();
                let pod = state.pod.as_mut().unwrap();
                pod.metadata.resource_version = Some(version);
                pod.metadata.deletion_timestamp =
                    Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH));
                pod.clone()
            };
            world.api.put(deleted);
            world.say("Failed", Stage::Finished);
            seconds(120).await;
            let state = world.server.0.lock();
            assert_eq!(state.pod, None, "{case}: {:?}", state.requests);
            let mut written = state.written.clone();
            written.dedup();
            let right = written == ["Failed"] || written == ["Running", "Failed"];
            assert!(right, "{case}: {:?}", state.requests);
            assert!(state.requests.len() < 30, "{case}: {:?}", state.requests);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn last_words_are_said_when_the_agent_stops() {
    let world = World::new();
    seconds(1).await;
    world.say("Running", Stage::Alive);
    world.stop.cancel();
    world.writer.await.unwrap();
    assert_eq!(world.server.requests(), ["PATCH Running"]);
}

/// Takes over what it is told of pods of any name, and keeps the words.
#[derive(Clone, Default)]
struct Crowd(Arc<Mutex<Vec<String>>>);

impl Respond for Crowd {
    async fn respond(self, request: Request<Body>) -> (StatusCode, Value) {
        let name = request.uri().path().split('/').nth(6).unwrap_or_default().to_owned();
        let body: Value = serde_json::from_slice(&request.into_body().collect().await.unwrap().to_bytes()).unwrap();
        let phase = body["status"]["phase"].as_str().unwrap_or("creating");
        self.0.lock().push(format!("{name} {phase}"));
        let mut pod = patched(&named(&name), &body);
        pod.metadata.resource_version = Some("2".to_owned());
        (StatusCode::OK, serde_json::to_value(&pod).unwrap())
    }
}

fn named(name: &str) -> Pod {
    let mut pod = pod(name);
    pod.metadata.name = Some(name.to_owned());
    pod.metadata.resource_version = Some("1".to_owned());
    pod
}

#[tokio::test(start_paused = true)]
async fn in_a_crowd_that_starts_only_what_takes_long_is_told_before_it_runs() {
    let creating = || -> PodStatus {
        serde_json::from_value(json!({"phase": "Pending", "containerStatuses": [{"name": "a", "image": "i",
            "imageID": "", "ready": false, "restartCount": 0, "state": {"waiting": {"reason": "ContainerCreating"}}}]}))
        .unwrap()
    };
    for (pods, told_early) in [(1, 1), (20, 0)] {
        let (crowd, cache, api) = (Crowd::default(), StatusCache::default(), ApiPods::default());
        let client = kube::Client::new(Served(crowd.clone()), "default");
        let writer = StatusWriter::new(client, cache.clone(), api.clone(), StatusMetrics::default());
        let backlog = cache.backlog();
        tokio::spawn(writer.run(CancellationToken::new()));
        let pods: Vec<_> = (0..pods).map(|n| named(&format!("p{n}"))).collect();
        let say = |pod: &Pod, status| {
            let uid = PodUid::new(pod.metadata.uid.clone().unwrap()).unwrap();
            cache.report(&uid, &Arc::new(pod.clone()), status, Stage::Alive).unwrap();
        };
        for pod in &pods {
            api.put(pod.clone());
            say(pod, creating());
        }
        seconds(1).await;
        assert_eq!((crowd.0.lock().len(), backlog.is_long()), (told_early, pods.len() > 1));
        let (first, rest) = pods.split_first().unwrap();
        for pod in rest {
            say(pod, phase("Running"));
        }
        seconds(1).await;
        assert_eq!(crowd.0.lock().iter().filter(|word| word.ends_with("Running")).count(), rest.len());
        seconds(5).await;
        assert!(crowd.0.lock().contains(&"p0 creating".to_owned()), "it takes long: {first:?}");
        assert_eq!((crowd.0.lock().len(), backlog.is_long()), (pods.len(), false));
    }
}
