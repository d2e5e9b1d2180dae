//! The connections to the API server: replaced as a whole when the client certificate is.
//!
//! In: requests of a [`kube::Client`], and from time to time a new certificate. Out: answers. HTTP/2 with pings, so that a
//! dead connection is found within a minute; watches are spread over connections of their own, so that many of them
//! neither exhaust the streams of a connection nor stand in the way of a Lease.
//! After a replacement old connections take no request; watches on them end (their watchers resume on new ones) and other
//! answers are read to their end. Knows no credentials besides certificates: tokens are a layer above.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, Uri};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use kube::client::Body;
use parking_lot::{Mutex, RwLock};
use pin_project_lite::pin_project;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::pki_types::ServerName;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio::net::TcpStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tower_service::Service;

use super::limit::Bucket;
use super::metrics::ClientMetrics;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Time for a TCP connection, and for TLS on it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// client-go's: a ping after this silence, and the connection is dead when it is not answered for that long.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(15);
/// Watches a connection: servers and balancers allow at least 100 streams (RFC 9113 recommends no less).
const WATCHES_PER_CONNECTION: usize = 90;

/// client-go's bound of retries, and ours of the pause before one.
const MAX_RETRIES: u32 = 10;
const LONGEST_RETRY_PAUSE: Duration = Duration::from_secs(30);

type HttpClient = legacy::Client<Connector, Body>;

/// What the connections are made with.
#[derive(Debug, Clone)]
pub struct TransportOptions {
    /// TLS without a client certificate.
    pub tls: rustls::ClientConfig,
    /// The name the server's certificate must have, when it is not the host of the URL (`tls-server-name`).
    pub server_name: Option<ServerName<'static>>,
    /// A proxy that takes CONNECT.
    pub proxy: Option<Uri>,
}

/// The connections. Clones share them.
#[derive(Clone)]
pub struct Transport {
    shared: Arc<Shared>,
    limit: Option<Arc<Bucket>>,
}

struct Shared {
    options: TransportOptions,
    current: RwLock<Arc<Generation>>,
    metrics: ClientMetrics,
}

/// All connections made with one certificate.
struct Generation {
    connector: Connector,
    requests: HttpClient,
    watches: Mutex<Vec<(HttpClient, Arc<AtomicUsize>)>>,
    retired: CancellationToken,
}

impl Transport {
    /// Makes no connection yet. Without a certificate `options.tls` decides what is shown.
    #[must_use]
    pub fn new(options: TransportOptions, certificate: Option<Arc<CertifiedKey>>) -> Self {
        let generation = Generation::new(&options, certificate);
        let shared = Shared { options, current: RwLock::new(Arc::new(generation)), metrics: ClientMetrics::default() };
        Self { shared: Arc::new(shared), limit: None }
    }

    /// The same connections, with requests bounded.
    #[must_use]
    pub fn limited(&self, limit: Option<Arc<Bucket>>) -> Self {
        Self { shared: self.shared.clone(), limit }
    }

    /// What was asked over them, with whatever certificate.
    #[must_use]
    pub fn metrics(&self) -> &ClientMetrics {
        &self.shared.metrics
    }

    /// Shows another certificate from now on; the old connections end.
    pub fn replace(&self, certificate: Arc<CertifiedKey>) {
        let new = Arc::new(Generation::new(&self.shared.options, Some(certificate)));
        let old = std::mem::replace(&mut *self.shared.current.write(), new);
        old.retired.cancel();
    }
}

impl Generation {
    fn new(options: &TransportOptions, certificate: Option<Arc<CertifiedKey>>) -> Self {
        let mut tls = options.tls.clone();
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // A resumed session would go on under the old certificate.
        tls.resumption = Resumption::in_memory_sessions(16);
        if let Some(certificate) = certificate {
            tls.client_auth_cert_resolver = Arc::new(ClientCertificate(SingleCertAndKey::from(certificate)));
        }
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_connect_timeout(Some(CONNECT_TIMEOUT));
        http.set_keepalive(Some(PING_INTERVAL));
        http.set_nodelay(true);
        let connector = Connector {
            http,
            proxy: options.proxy.clone(),
            tls: Arc::new(tls),
            server_name: options.server_name.clone(),
        };
        let requests = connector.client();
        Self { connector, requests, watches: Mutex::default(), retired: CancellationToken::new() }
    }

    /// A connection with room for one more watch, counted until the guard is dropped.
    fn watch(&self) -> (HttpClient, WatchGuard) {
        let mut watches = self.watches.lock();
        let free = watches.iter().find(|(_, count)| count.load(Ordering::Relaxed) < WATCHES_PER_CONNECTION);
        let (client, count) = match free {
            Some(found) => found.clone(),
            None => {
                let new = (self.connector.client(), Arc::new(AtomicUsize::new(0)));
                watches.push(new.clone());
                new
            }
        };
        count.fetch_add(1, Ordering::Relaxed);
        (client, WatchGuard(count))
    }
}

#[derive(Debug)]
struct WatchGuard(Arc<AtomicUsize>);

impl Drop for WatchGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct ClientCertificate(SingleCertAndKey);

impl ResolvesClientCert for ClientCertificate {
    fn resolve(&self, hints: &[&[u8]], schemes: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        ResolvesClientCert::resolve(&self.0, hints, schemes)
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn is_watch(uri: &Uri) -> bool {
    uri.query().is_some_and(|query| query.split('&').any(|pair| pair == "watch=true" || pair == "watch=1"))
}

impl Service<Request<Body>> for Transport {
    type Response = Response<Answer>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Answer>, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Self { shared, limit } = self.clone();
        Box::pin(async move {
            let mut request = request;
            let mut retries = 0;
            loop {
                if let Some(limit) = &limit {
                    limit.wait().await;
                }
                let again = copy(&request);
                let answer = shared.send(request).await?;
                match (again, retry_after(answer.status(), answer.headers())) {
                    (Some(next), Some(wait)) if retries < MAX_RETRIES => {
                        retries += 1;
                        request = next;
                        drop(answer);
                        tokio::time::sleep(wait).await;
                    }
                    _ => return Ok(answer),
                }
            }
        })
    }
}

impl Shared {
    async fn send(&self, request: Request<Body>) -> Result<Response<Answer>, BoxError> {
        let sent = ClientMetrics::sent(request.method(), request.uri());
        let answer = self.ask(request).await;
        self.metrics.answered(sent, answer.as_ref().ok().map(Response::status));
        answer
    }

    async fn ask(&self, request: Request<Body>) -> Result<Response<Answer>, BoxError> {
        let generation = self.current.read().clone();
        if is_watch(request.uri()) {
            let (client, guard) = generation.watch();
            let answer = client.request(request).await?;
            let retired = generation.retired.clone().cancelled_owned();
            Ok(answer.map(|body| Answer { body, watch: Some(Watch { retired, _guard: guard }) }))
        } else {
            let answer = generation.requests.request(request).await?;
            Ok(answer.map(|body| Answer { body, watch: None }))
        }
    }
}

/// The same request once more, if its body can be had again.
fn copy(request: &Request<Body>) -> Option<Request<Body>> {
    let mut copy = Request::new(request.body().try_clone()?);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}

/// How long an overloaded server wants to be left alone: only what it says itself is heard, as in client-go.
fn retry_after(status: StatusCode, headers: &HeaderMap) -> Option<Duration> {
    if status != StatusCode::TOO_MANY_REQUESTS && !status.is_server_error() {
        return None;
    }
    let seconds: u64 = headers.get(http::header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST_RETRY_PAUSE))
}

pin_project! {
    /// The body of an answer. A watch's ends when its connection is retired.
    pub struct Answer {
        #[pin]
        body: Incoming,
        #[pin]
        watch: Option<Watch>,
    }
}

pin_project! {
    struct Watch {
        #[pin]
        retired: WaitForCancellationFutureOwned,
        _guard: WatchGuard,
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.project();
        if let Some(watch) = this.watch.as_pin_mut()
            && watch.project().retired.poll(cx).is_ready()
        {
            return Poll::Ready(None);
        }
        this.body.poll_frame(cx).map_err(Into::into)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Opens TCP connections, directly or through a proxy, with TLS for `https`.
#[derive(Clone)]
struct Connector {
    http: HttpConnector,
    proxy: Option<Uri>,
    tls: Arc<rustls::ClientConfig>,
    server_name: Option<ServerName<'static>>,
}

impl Connector {
    fn client(&self) -> HttpClient {
        legacy::Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .http2_keep_alive_interval(PING_INTERVAL)
            .http2_keep_alive_timeout(PING_TIMEOUT)
            .build(self.clone())
    }
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.http.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let this = self.clone();
        Box::pin(async move { this.connect(uri).await })
    }
}

impl Connector {
    async fn connect(mut self, uri: Uri) -> Result<Stream, BoxError> {
        let tcp: TcpStream = match self.proxy.take() {
            Some(proxy) => Tunnel::new(proxy, self.http).call(uri.clone()).await?.into_inner(),
            None => self.http.call(uri.clone()).await?.into_inner(),
        };
        if uri.scheme_str() != Some("https") {
            return Ok(Stream { io: TokioIo::new(Box::new(tcp)), h2: false });
        }
        let name = match self.server_name {
            Some(name) => name,
            None => {
                let host = uri.host().unwrap_or_default();
                ServerName::try_from(host.trim_matches(['[', ']']).to_owned())?
            }
        };
        let handshake = tokio_rustls::TlsConnector::from(self.tls).connect(name, tcp);
        let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake)
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "TLS handshake timeout"))??;
        let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        Ok(Stream { io: TokioIo::new(Box::new(stream)), h2 })
    }
}

trait Io: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Io for T {}

/// A connection, with TLS or without.
struct Stream {
    io: TokioIo<Box<dyn Io>>,
    h2: bool,
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        let connected = Connected::new();
        if self.h2 { connected.negotiated_h2() } else { connected }
    }
}

impl Read for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, into)
    }
}

impl Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, bytes))?;
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
