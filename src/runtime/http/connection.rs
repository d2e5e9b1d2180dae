//! One connection of a client: HTTP/1.1 or HTTP/2 by its first bytes.
//!
//! In: an accepted stream. Out: its requests, to [`super::request`]. Bounded in time: a client that sends
//! nothing, or takes nothing, loses its connection.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::request;
use super::server::Shared;
use crate::network::TcpStream;

/// How long a client may take to send a request's head, the pause between two requests included.
const HEAD_TIMEOUT: Duration = Duration::from_mins(1);
/// How long a client may take none of what is sent to it.
const WRITE_STALL: Duration = Duration::from_mins(1);
/// HTTP/2 pings, which find peers that are gone.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Requests at once on one HTTP/2 connection; nginx's number.
const MAX_STREAMS: u32 = 128;

/// Starts hyper's tasks among those that end with the server.
#[derive(Clone)]
struct Executor(Arc<Shared>);

impl<F> hyper::rt::Executor<F> for Executor
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, future: F) {
        self.0.spawn(async move {
            future.await;
        });
    }
}

/// Serves `stream` until its client leaves or the server drains.
pub async fn serve(shared: Arc<Shared>, stream: TcpStream) {
    // Protocol detection has no timeout of its own.
    if tokio::time::timeout(HEAD_TIMEOUT, first_bytes(&shared, &stream)).await != Ok(true) {
        return;
    }
    let mut builder = auto::Builder::new(Executor(shared.clone()));
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_concurrent_streams(MAX_STREAMS);
    let service = {
        let shared = shared.clone();
        service_fn(move |request| {
            let shared = shared.clone();
            async move { Ok::<_, std::convert::Infallible>(request::answer(shared, request).await) }
        })
    };
    let mut connection = pin!(builder.serve_connection(TokioIo::new(Unstalled::new(stream)), service));
    let result = tokio::select! {
        result = connection.as_mut() => result,
        // Not lost: the connection lives on below.
        () = shared.drain.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(err = %error, "Connection of a client ended early");
    }
}

/// Whether the client sent something before the server began to drain.
async fn first_bytes(shared: &Shared, stream: &TcpStream) -> bool {
    tokio::select! {
        // First, because a request that is there is answered even while draining. Cancel-safe: it takes no bytes.
        biased;
        () = stream.socket().readable() => true,
        () = shared.drain.cancelled() => false,
    }
}

/// A stream whose writes fail when the peer takes nothing for [`WRITE_STALL`].
struct Unstalled {
    stream: TcpStream,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Unstalled {
    fn new(stream: TcpStream) -> Self {
        Self { stream, stalled: None }
    }

    /// Passes on an outcome; while there is none, the clock runs.
    fn watch<T>(&mut self, cx: &mut Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.stalled = None;
            return outcome;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(WRITE_STALL)));
        stalled.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Unstalled {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Unstalled {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.watch(cx, outcome)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_flush(cx);
        self.watch(cx, outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.watch(cx, outcome)
    }
}
