//! A client of the API server for the tests themselves, through `kubectl proxy` on a Unix socket: the tests need not be
//! in the cluster's network, and asking costs no process.
//!
//! In: the socket. Out: a `kube::Client`, and calls that block.

use std::fmt::Debug;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::OnceLock;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Uri};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo};
use kube::Api;
use kube::client::Body;
use kube::runtime::wait::await_condition;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tower_service::Service;

/// Where every call of the tests runs.
pub fn runtime() -> &'static tokio::runtime::Runtime {
    static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(1).enable_all().build().expect("a runtime")
    })
}

/// Waits for a future from outside the runtime.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    runtime().block_on(future)
}

struct Io(TokioIo<UnixStream>);

impl Connection for Io {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Io {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl Write for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[derive(Clone)]
struct Connector(PathBuf);

impl Service<Uri> for Connector {
    type Response = Io;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Io>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let path = self.0.clone();
        Box::pin(async move { Ok(Io(TokioIo::new(UnixStream::connect(path).await?))) })
    }
}

type Http = hyper_util::client::legacy::Client<Connector, Body>;

/// Gives each request the host that `kubectl proxy` takes.
#[derive(Clone)]
struct ToProxy(Http);

impl Service<Request<Body>> for ToProxy {
    type Response = <Http as Service<Request<Body>>>::Response;
    type Error = <Http as Service<Request<Body>>>::Error;
    type Future = <Http as Service<Request<Body>>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Service::<Request<Body>>::poll_ready(&mut self.0, cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        *request.uri_mut() = format!("http://localhost{path}").parse().expect("a path");
        Service::call(&mut self.0, request)
    }
}

/// A client through the proxy on that socket.
pub fn client(socket: &Path) -> kube::Client {
    let _inside = runtime().enter();
    let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(Connector(socket.to_owned()));
    kube::Client::new(ToProxy(http), "default")
}

/// Waits until the object, or its absence, is as `wanted` says; the API server pushes every change. `Err` is what was
/// seen last.
pub fn wait<K>(
    api: &Api<K>,
    name: &str,
    patience: Duration,
    wanted: impl Fn(Option<&K>) -> bool,
) -> Result<Option<K>, String>
where
    K: Clone + Debug + Send + DeserializeOwned + kube::Resource + 'static,
{
    block_on(async {
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            let waiting = await_condition(api.clone(), name, |object: Option<&K>| wanted(object));
            match tokio::time::timeout_at(deadline, waiting).await {
                Ok(Ok(object)) => return Ok(object),
                Err(_) => {
                    let last = api.get_opt(name).await.map_err(|error| error.to_string())?;
                    return Err(last.map_or_else(|| "there is none".to_owned(), |last| format!("{last:#?}")));
                }
                // The server is on its way down or up: nothing tells when it is back.
                Ok(Err(_)) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    })
}
