//! One request: from hyper to an instance and back.
//!
//! In: a request of a connection. Out: the guest's response, or a plain one that says what failed. The handler
//! runs in a task of its own, because it goes on writing the body after its response was sent.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, RETRY_AFTER};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body as _, Incoming};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use wasmtime_wasi_http::p2::body::HyperOutgoingBody;

use super::errors::Failure;
use super::pool::Answer;
use super::server::Shared;
use super::{body, errors};

/// How long a request waits for an instance when all are busy.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a handler may take to its response's head; the body has no limit, it may be a stream of events.
const RESPONSE_TIMEOUT: Duration = Duration::from_mins(5);
/// How long a client may pause in the middle of its body.
const BODY_SILENCE: Duration = Duration::from_mins(1);

/// For the container's log.
const SERVES_ONCE: &str = "wasilet: an instance that had served a request gave no response to the next one; \
                           from now on each request gets an instance of its own";

type Reply = Result<Response<HyperOutgoingBody>, Failure>;

/// Whoever comes first, answer or failure, sends; the rest is for the log.
#[derive(Clone)]
struct ReplyOnce(Arc<Mutex<Option<oneshot::Sender<Reply>>>>);

impl ReplyOnce {
    /// Whether nobody has sent yet.
    fn is_open(&self) -> bool {
        self.0.lock().is_some()
    }

    fn send(&self, reply: Reply) {
        if let Some(sender) = self.0.lock().take() {
            // The client may be gone; there is nobody to tell then.
            let _ = sender.send(reply);
        }
    }
}

/// A request as the log names it. Most requests never are: nothing is copied or written before.
struct Line(Method, Uri);

impl Line {
    fn of<B>(request: &Request<B>) -> Self {
        Self(request.method().clone(), request.uri().clone())
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.0, self.1.path())
    }
}

/// Answers one request.
pub async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Response<HyperOutgoingBody> {
    let line = Line::of(&request);
    match dispatch(&shared, request).await {
        Ok(response) => response,
        Err(failure) => {
            shared.report(&format!("wasilet: {line}: {failure}")).await;
            plain(&failure)
        }
    }
}

async fn dispatch(shared: &Arc<Shared>, request: Request<Incoming>) -> Reply {
    let permit = tokio::time::timeout(QUEUE_TIMEOUT, shared.in_flight.clone().acquire_owned()).await;
    let permit = permit.map_err(|_| Failure::Overloaded)?.map_err(|_| Failure::Dropped)?;
    let (sender, reply) = oneshot::channel();
    let once = ReplyOnce(Arc::new(Mutex::new(Some(sender))));
    let handler = run_handler(shared.clone(), request, once, permit);
    let task = shared.spawn(handler);
    let Ok(reply) = tokio::time::timeout(RESPONSE_TIMEOUT, reply).await else {
        task.abort();
        return Err(Failure::TimedOut);
    };
    reply.unwrap_or(Err(Failure::Dropped))
}

/// Runs the handler to its end; `_permit` is its place among the requests at once.
async fn run_handler(
    shared: Arc<Shared>,
    mut request: Request<Incoming>,
    reply: ReplyOnce,
    _permit: OwnedSemaphorePermit,
) {
    let line = Line::of(&request);
    // An HTTP/1.0 request may name no host, and the interface has no word for that.
    if request.uri().authority().is_none() && !request.headers().contains_key(HOST) {
        request.headers_mut().insert(HOST, shared.authority.clone());
    }
    let (head, body) = request.into_parts();
    // What has no body can be asked again; of a component that serves again nothing has to be.
    let may_ask_again = body.is_end_stream() && !shared.pool.is_known_to_serve_again();
    let again = may_ask_again.then(|| same_head(&head));
    let request = Request::from_parts(head, body::timed(body, BODY_SILENCE));
    let mut instance = match shared.pool.take().await {
        Ok(instance) => instance,
        Err(error) => return reply.send(Err(Failure::NotInstantiated(errors::trap_message(&error)))),
    };
    let mut result = instance.handle(request, answer_with(&reply)).await;
    if result.is_ok() && reply.is_open() && instance.is_reused() {
        // It answered a request before and has nothing to say to this one: such a component serves once.
        drop(instance);
        if shared.pool.use_once() {
            shared.report(SERVES_ONCE).await;
        }
        let Some(head) = again else { return reply.send(Err(Failure::NoResponse)) };
        instance = match shared.pool.take().await {
            Ok(instance) => instance,
            Err(error) => return reply.send(Err(Failure::NotInstantiated(errors::trap_message(&error)))),
        };
        result = instance.handle(Request::from_parts(head, body::empty()), answer_with(&reply)).await;
    }
    match result {
        Ok(()) => {
            shared.pool.give_back(instance);
            reply.send(Err(Failure::NoResponse));
        }
        Err(error) => {
            drop(instance);
            let failure = Failure::from(error);
            let sender = reply.0.lock().take();
            match sender {
                Some(sender) => drop(sender.send(Err(failure))),
                // The head is on its way, the body ends early, and only the log can say why.
                None => shared.report(&format!("wasilet: {line}: after the response began, {failure}")).await,
            }
        }
    }
}

/// Hands the guest's answer to whoever waits.
fn answer_with(reply: &ReplyOnce) -> Answer {
    let once = reply.clone();
    Box::new(move |result: Result<_, _>| once.send(result.map_err(Failure::Guest)))
}

/// A request's head once more; what the connection attached to it stays with the first.
fn same_head(head: &Parts) -> Parts {
    let mut request = Request::new(());
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = head.uri.clone();
    *request.version_mut() = head.version;
    *request.headers_mut() = head.headers.clone();
    request.into_parts().0
}

/// A response of the node's own, without details: those are in the container's log.
fn plain(failure: &Failure) -> Response<HyperOutgoingBody> {
    let status = failure.status();
    let text = format!("{status}\n");
    let body = Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    if matches!(failure, Failure::Overloaded | Failure::NotInstantiated(_)) {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}
