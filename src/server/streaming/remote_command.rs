//! The streams of exec and attach, over SPDY (v1 to v4) and over WebSocket (v1, v4, v5).
//!
//! In: an upgrade request and what starts the program. Out: the answer; then the client's streams joined to the
//! program's. `k8s.io/cri-streaming`, `pkg/streaming/remotecommand/{httpstream,websocket}.go`.

use axum::extract::ws::{WebSocket, WebSocketUpgrade};
use axum::extract::{FromRequestParts, Request};
use axum::http::HeaderValue;
use axum::response::Response;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::super::channel::MAX_MESSAGE_BYTES;
use super::super::query::RemoteOptions;
use super::super::remote::{self, BoxRead, BoxWrite, ClientStreams, RemoteStreams};
use super::super::spdy::headers::Headers;
use super::super::spdy::{self, Acceptor, ConnectionSettings, Stalled, Stream};
use super::negotiate::{self, Channels, SpdyRemote};
use super::websocket::{self, ChannelEnds, Direction};
use super::{STREAM_CREATION_TIMEOUT, StreamingError, StreamingSettings, run_beside, upgrade_to_spdy};

/// Upgrades a request for a remote command. `start` is called when the client's streams are there.
///
/// # Errors
/// [`StreamingError`] when client and server have no protocol in common.
pub(in super::super) async fn remote_command<S, F>(
    request: Request,
    options: RemoteOptions,
    settings: StreamingSettings,
    start: S,
) -> Result<Response, StreamingError>
where
    S: FnOnce() -> F + Send + 'static,
    F: Future<Output = RemoteStreams> + Send + 'static,
{
    if !negotiate::is_websocket(request.headers()) {
        let protocol = negotiate::spdy_remote(request.headers())?;
        let serve = async move |connection| over_spdy(connection, protocol, &options, settings, start).await;
        return upgrade_to_spdy(request, protocol.version, serve);
    }
    let channels = negotiate::websocket_remote(request.headers(), settings.extended_websockets)?;
    let upgrade = accept_websocket(request, channels.protocol).await?;
    Ok(upgrade.on_upgrade(async move |socket| over_websocket(socket, channels, &options, settings, start).await))
}

/// Answers a WebSocket handshake with a subprotocol, or with none.
pub(super) async fn accept_websocket(
    request: Request,
    protocol: &'static str,
) -> Result<WebSocketUpgrade, StreamingError> {
    let (mut parts, _) = request.into_parts();
    let mut upgrade = WebSocketUpgrade::from_request_parts(&mut parts, &()).await?;
    if !protocol.is_empty() {
        upgrade.set_selected_protocol(HeaderValue::from_static(protocol));
    }
    Ok(upgrade.max_message_size(MAX_MESSAGE_BYTES).max_frame_size(MAX_MESSAGE_BYTES))
}

async fn over_websocket<S, F>(
    socket: WebSocket,
    channels: Channels,
    options: &RemoteOptions,
    settings: StreamingSettings,
    start: S,
) where
    S: FnOnce() -> F,
    F: Future<Output = RemoteStreams>,
{
    let wanted = |wanted: bool, direction| if wanted { direction } else { Direction::Unused };
    // By number: see `channel::Channel`.
    let directions = [
        wanted(options.stdin, Direction::In),
        wanted(options.stdout, Direction::Out),
        wanted(options.stderr, Direction::Out),
        Direction::Out,
        Direction::In,
    ];
    let (ends, driver) = websocket::channels(socket, channels.wire, &directions, settings.idle_timeout);
    let [stdin, mut stdout, mut stderr, mut error, resize]: [ChannelEnds; 5] =
        ends.try_into().expect("a channel has its ends");
    let session = async move {
        // Tells the client that the connection is established, on the lowest channel it reads.
        let first = [&mut stdout, &mut stderr, &mut error].into_iter().find_map(|ends| ends.writer.as_mut());
        if let Some(writer) = first {
            let _ = writer.greet().await;
        }
        let read = |ends: ChannelEnds| ends.reader.map(|reader| Box::new(reader) as BoxRead);
        let write = |ends: ChannelEnds| ends.writer.map(|writer| Box::new(writer) as BoxWrite);
        let client = ClientStreams {
            stdin: read(stdin),
            stdout: write(stdout),
            stderr: write(stderr),
            resize: read(resize),
            error: write(error).expect("the error channel is always written"),
            report: channels.report,
            unused: Vec::new(),
        };
        remote::join(client, start().await).await;
    };
    run_beside(driver, session).await;
}

async fn over_spdy<T, S, F>(
    connection: T,
    protocol: SpdyRemote,
    options: &RemoteOptions,
    settings: StreamingSettings,
    start: S,
) where
    T: AsyncRead + AsyncWrite + Send + 'static,
    S: FnOnce() -> F,
    F: Future<Output = RemoteStreams>,
{
    let connection_settings =
        ConnectionSettings { idle_timeout: settings.idle_timeout, stalled: Stalled::Wait, admit: is_remote };
    let (acceptor, driver) = spdy::connection(connection, connection_settings);
    let session = async move {
        match collect(acceptor, protocol, options).await {
            Some((client, acceptor)) => {
                remote::join(client, start().await).await;
                // Streams opened meanwhile wait unanswered, as with a kubelet; the connection ends with this.
                drop(acceptor);
            }
            None => tracing::debug!("Closed a connection whose client did not open its streams"),
        }
    };
    run_beside(driver, session).await;
}

fn is_remote(headers: &Headers) -> Result<(), String> {
    match headers.get("streamtype") {
        Some("error" | "stdin" | "stdout" | "stderr" | "resize") => Ok(()),
        other => Err(format!("unexpected stream type: {other:?}")),
    }
}

/// Waits for the streams that the request announced.
async fn collect(
    mut acceptor: Acceptor,
    protocol: SpdyRemote,
    options: &RemoteOptions,
) -> Option<(ClientStreams, Acceptor)> {
    let resizes = options.tty && protocol.resizes;
    let wanted = [options.stdin, options.stdout, options.stderr, resizes];
    let expected = 1 + wanted.into_iter().filter(|wanted| *wanted).count();
    let deadline = Instant::now() + STREAM_CREATION_TIMEOUT;
    let (mut error, mut stdin, mut stdout, mut stderr, mut resize) = (None, None, None, None, None);
    let mut received = 0;
    while received < expected {
        let stream = tokio::time::timeout_at(deadline, acceptor.accept()).await.ok()??;
        let place = match stream.headers.get("streamtype") {
            Some("error") => &mut error,
            Some("stdin") => &mut stdin,
            Some("stdout") => &mut stdout,
            Some("stderr") => &mut stderr,
            Some("resize") if protocol.resizes => &mut resize,
            _ => continue,
        };
        // A second stream of a kind takes the place of the first, but is no further one.
        received += usize::from(place.is_none());
        *place = Some(stream);
    }
    let mut unused = Vec::new();
    let mut read = |stream: Option<Stream>| {
        let stream = stream?;
        unused.push(Box::new(stream.writer) as BoxWrite);
        Some(Box::new(stream.reader) as BoxRead)
    };
    let (stdin, resize) = (read(stdin), read(resize));
    // What a client sends on these is nobody's; it closes them, or they end with the connection.
    let write = |stream: Option<Stream>| stream.map(|stream| Box::new(stream.writer) as BoxWrite);
    let client = ClientStreams {
        stdin,
        stdout: write(stdout),
        stderr: write(stderr),
        resize,
        error: write(error)?,
        report: protocol.report,
        unused,
    };
    Some((client, acceptor))
}
