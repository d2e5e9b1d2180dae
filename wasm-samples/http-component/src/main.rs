//! An HTTP component (`wasi:http/incoming-handler`): the node listens, this only answers.
//!
//! | path | answer |
//! |---|---|
//! | `/` and any other | the request as text: method, path, query, headers |
//! | `/echo` | the request's body, streamed back as it comes |
//! | `/stream?chunks=N&pause_ms=M` | N numbered lines (default 10), M ms (default 100) apart, each sent at once |
//! | `/env` | the environment |
//! | `/fetch?url=URL` | what a GET of URL gives, status and body, through the pod's network |
//! | `/status/CODE` | that status |
//! | `/count` | how many requests this instance has answered: 1 each time if the node takes a fresh one |
//! | `/trap` | none: the instance traps |

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_lite::stream;
use wstd::http::body::{Body, Bytes};
use wstd::http::{Client, Error, Request, Response, StatusCode};

static ANSWERED: AtomicU64 = AtomicU64::new(0);

#[wstd::http_server]
async fn main(request: Request<Body>) -> Result<Response<Body>, Error> {
    let count = ANSWERED.fetch_add(1, Ordering::Relaxed) + 1;
    let path = request.uri().path().to_owned();
    let query: HashMap<String, String> =
        form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes()).into_owned().collect();
    println!("{} {path}", request.method());
    match path.as_str() {
        "/echo" => Ok(echo(request)),
        "/stream" => Ok(lines(number(&query, "chunks", 10), Duration::from_millis(number(&query, "pause_ms", 100)))),
        "/env" => Ok(text(StatusCode::OK, environment())),
        "/count" => Ok(text(StatusCode::OK, format!("{count}\n"))),
        "/fetch" => Ok(fetch(query.get("url").map(String::as_str)).await),
        #[cfg(target_arch = "wasm32")]
        "/trap" => core::arch::wasm32::unreachable(),
        _ => match path.strip_prefix("/status/").map(str::parse::<StatusCode>) {
            Some(Ok(status)) => Ok(text(status, format!("{status}\n"))),
            Some(Err(_)) => Ok(text(StatusCode::BAD_REQUEST, "no such status\n".to_owned())),
            None => Ok(text(StatusCode::OK, describe(&request))),
        },
    }
}

fn describe(request: &Request<Body>) -> String {
    let uri = request.uri();
    let mut page =
        format!("method: {}\npath: {}\nquery: {}\n", request.method(), uri.path(), uri.query().unwrap_or("-"));
    for (name, value) in request.headers() {
        let _ = writeln!(page, "{name}: {}", value.to_str().unwrap_or("(not text)"));
    }
    page
}

fn environment() -> String {
    let mut variables: Vec<_> = std::env::vars().collect();
    variables.sort();
    variables.into_iter().fold(String::new(), |page, (name, value)| page + &name + "=" + &value + "\n")
}

fn echo(request: Request<Body>) -> Response<Body> {
    let kind = request.headers().get("content-type").cloned();
    let mut response = Response::new(request.into_body());
    if let Some(kind) = kind {
        response.headers_mut().insert("content-type", kind);
    }
    response
}

/// A body that is made while it is sent.
fn lines(count: u64, pause: Duration) -> Response<Body> {
    let lines = stream::unfold(0, move |sent| async move {
        if sent == count {
            return None;
        }
        if sent > 0 {
            wstd::task::sleep(pause.into()).await;
        }
        Some((Bytes::from(format!("line {}\n", sent + 1)), sent + 1))
    });
    let mut response = Response::new(Body::from_stream(lines));
    response.headers_mut().insert("content-type", TEXT);
    response
}

async fn fetch(url: Option<&str>) -> Response<Body> {
    let Some(url) = url else { return text(StatusCode::BAD_REQUEST, "url= is missing\n".to_owned()) };
    let request = match Request::get(url).body(Body::empty()) {
        Ok(request) => request,
        Err(error) => return text(StatusCode::BAD_REQUEST, format!("{url}: {error}\n")),
    };
    match Client::new().send(request).await {
        Ok(answer) => {
            let mut response = Response::new(());
            *response.status_mut() = answer.status();
            if let Some(kind) = answer.headers().get("content-type") {
                response.headers_mut().insert("content-type", kind.clone());
            }
            response.map(|()| answer.into_body())
        }
        Err(error) => text(StatusCode::BAD_GATEWAY, format!("{url}: {error}\n")),
    }
}

const TEXT: wstd::http::HeaderValue = wstd::http::HeaderValue::from_static("text/plain; charset=utf-8");

fn text(status: StatusCode, page: String) -> Response<Body> {
    let mut response = Response::new(Body::from(page));
    *response.status_mut() = status;
    response.headers_mut().insert("content-type", TEXT);
    response
}

fn number(query: &HashMap<String, String>, name: &str, default: u64) -> u64 {
    query.get(name).and_then(|value| value.parse().ok()).unwrap_or(default)
}
