//! Port-forward: pairs of streams joined to connections of a pod, over SPDY, WebSocket channels, and SPDY in a tunnel.
//!
//! In: an upgrade request and how to reach a port. Out: the answer; then bytes both ways, each pair by itself.
//! `k8s.io/cri-streaming`, `pkg/streaming/portforward/{httpstream,websocket}.go`.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::response::Response;
use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::super::query;
use super::super::spdy::headers::Headers;
use super::super::spdy::{self, Acceptor, ConnectionSettings, Stalled, Stream};
use super::negotiate::{self, Channels};
use super::remote_command::accept_websocket;
use super::tunnel::Tunnel;
use super::websocket::{self, ChannelEnds, Direction};
use super::{STREAM_CREATION_TIMEOUT, StreamingError, StreamingSettings, run_beside, upgrade_to_spdy};

/// Bytes copied at once in each direction.
const COPY_BYTES: usize = 32 * 1024;
/// How long one connection may take nothing while it holds up the others beside it.
const STALL_PATIENCE: Duration = Duration::from_secs(60);
/// Channels have one byte for their number, and each port has two.
const MAX_CHANNEL_PORTS: usize = 127;

/// A connection.
pub(in super::super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}
/// A connection, whatever it is made of.
pub(in super::super) type BoxDuplex = Box<dyn Duplex>;

/// Connects to a port of the pod, or says why it cannot be, in the words of the error stream.
pub(in super::super) type Dial = Arc<dyn Fn(u16) -> BoxFuture<'static, Result<BoxDuplex, String>> + Send + Sync>;

/// Upgrades a request for port-forward.
///
/// # Errors
/// [`StreamingError`] when client and server have no protocol in common, or the ports make no sense.
pub(in super::super) async fn port_forward(
    request: Request,
    settings: StreamingSettings,
    dial: Dial,
) -> Result<Response, StreamingError> {
    let headers = request.headers();
    if settings.extended_websockets && negotiate::wants_tunnel(headers) {
        let protocol = negotiate::tunnel(headers)?;
        let upgrade = accept_websocket(request, protocol).await?;
        return Ok(upgrade.on_upgrade(async move |socket| over_spdy(Tunnel::new(socket), settings, dial).await));
    }
    if negotiate::is_websocket(headers) {
        let ports = channel_ports(request.uri().query())?;
        let channels = negotiate::websocket_port_forward(headers)?;
        let upgrade = accept_websocket(request, channels.protocol).await?;
        return Ok(upgrade.on_upgrade(async move |socket| over_channels(socket, channels, ports, settings, dial).await));
    }
    let version = negotiate::spdy_port_forward(headers)?;
    upgrade_to_spdy(request, version, async move |connection| over_spdy(connection, settings, dial).await)
}

/// Checks the options of a port-forward before its pod is looked up, as a kubelet does.
///
/// # Errors
/// [`StreamingError::Ports`].
pub(in super::super) fn check_ports(request: &Request, settings: StreamingSettings) -> Result<(), StreamingError> {
    let headers = request.headers();
    let tunnel = settings.extended_websockets && negotiate::wants_tunnel(headers);
    if !tunnel && negotiate::is_websocket(headers) {
        channel_ports(request.uri().query())?;
    }
    Ok(())
}

/// The ports of a WebSocket, from its query (`NewV4Options`).
fn channel_ports(query: Option<&str>) -> Result<Vec<u16>, StreamingError> {
    let mut ports = Vec::new();
    let values: Vec<String> =
        query::pairs(query).into_iter().filter(|(name, _)| name == "port").map(|(_, value)| value).collect();
    if values.is_empty() {
        return Err(StreamingError::Ports(r#"query parameter "port" is required"#.to_owned()));
    }
    for value in &values {
        if value.is_empty() {
            return Err(StreamingError::Ports(r#"query parameter "port" cannot be empty"#.to_owned()));
        }
        for port in value.split(',') {
            ports.push(parse_port(port).map_err(StreamingError::Ports)?);
        }
    }
    if ports.len() > MAX_CHANNEL_PORTS {
        return Err(StreamingError::Ports(format!("at most {MAX_CHANNEL_PORTS} ports can share a connection")));
    }
    Ok(ports)
}

fn parse_port(port: &str) -> Result<u16, String> {
    // A sign is no digit to the kubelet.
    let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    match port.parse::<u16>().ok().filter(|_| digits) {
        Some(0) => Err(format!("port {port:?} must be > 0")),
        Some(port) => Ok(port),
        None => Err(format!("unable to parse {port:?} as a port")),
    }
}

/// When a forwarded connection is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Until {
    /// Both sides have said their last.
    BothEnd,
    /// The pod has said its last: the client has no way to say so.
    PodEnds,
}

/// Joins two directions to a connection of the pod. What goes wrong on the way ends this pair and is not reported:
/// kubectl gives up all of its forwards for one report.
async fn forward<T, E>(port: u16, data: T, mut error: E, dial: Dial, until: Until)
where
    T: AsyncRead + AsyncWrite + Unpin,
    E: AsyncWrite + Unpin,
{
    match dial(port).await {
        Ok(pod) => {
            if let Err(error) = copy(data, pod, until).await {
                tracing::debug!(port, err = %error, "Forwarded connection broke");
            }
        }
        Err(reason) => {
            let _ = error.write_all(reason.as_bytes()).await;
        }
    }
    let _ = error.shutdown().await;
}

async fn copy<T: AsyncRead + AsyncWrite + Unpin>(mut data: T, mut pod: BoxDuplex, until: Until) -> io::Result<()> {
    if until == Until::BothEnd {
        tokio::io::copy_bidirectional_with_sizes(&mut data, &mut pod, COPY_BYTES, COPY_BYTES).await?;
        return Ok(());
    }
    let (mut from_client, mut to_client) = tokio::io::split(data);
    let (mut from_pod, mut to_pod) = tokio::io::split(pod);
    let sent = async {
        tokio::io::copy(&mut from_client, &mut to_pod).await?;
        to_pod.shutdown().await?;
        std::future::pending().await
    };
    tokio::select! {
        // Each arm ends the connection.
        received = tokio::io::copy(&mut from_pod, &mut to_client) => received.map(drop),
        broken = sent => broken,
    }
}

async fn over_channels(
    socket: axum::extract::ws::WebSocket,
    channels: Channels,
    ports: Vec<u16>,
    settings: StreamingSettings,
    dial: Dial,
) {
    let directions: Vec<Direction> = ports.iter().flat_map(|_| [Direction::Both, Direction::Out]).collect();
    let (ends, driver) = websocket::channels(socket, channels.wire, &directions, settings.idle_timeout);
    let session = async move {
        let mut ends = ends.into_iter();
        let pairs = ports.into_iter().filter_map(|port| {
            let ChannelEnds { reader, writer } = ends.next()?;
            Some((port, tokio::io::join(reader?, writer?), ends.next()?.writer?))
        });
        let forwards = pairs.map(|(port, mut data, mut error)| {
            let dial = dial.clone();
            async move {
                // Each stream begins with its port.
                let name = port.to_le_bytes();
                if data.write_all(&name).await.is_ok() && error.write_all(&name).await.is_ok() {
                    forward(port, data, error, dial, Until::PodEnds).await;
                }
            }
        });
        futures::future::join_all(forwards).await;
    };
    run_beside(driver, session).await;
}

async fn over_spdy<T>(connection: T, settings: StreamingSettings, dial: Dial)
where
    T: AsyncRead + AsyncWrite + Send + 'static,
{
    let connection_settings = ConnectionSettings {
        idle_timeout: settings.idle_timeout,
        stalled: Stalled::ResetAfter(STALL_PATIENCE),
        admit: is_forward,
    };
    let (acceptor, driver) = spdy::connection(connection, connection_settings);
    run_beside(driver, Pairs { acceptor, waiting: HashMap::new(), forwards: JoinSet::new(), dial }.run()).await;
}

fn is_forward(headers: &Headers) -> Result<(), String> {
    parse_port(headers.get("port").ok_or(r#""port" header is required"#)?)?;
    match headers.get("streamtype") {
        Some("data" | "error") => Ok(()),
        Some(other) => Err(format!("invalid stream type {other:?}")),
        None => Err(r#""streamType" header is required"#.to_owned()),
    }
}

/// Matches streams to pairs.
struct Pairs {
    acceptor: Acceptor,
    waiting: HashMap<String, Half>,
    /// Ended with the connection.
    forwards: JoinSet<()>,
    dial: Dial,
}

/// A stream whose other one has not come yet.
struct Half {
    stream: Stream,
    since: Instant,
}

impl Pairs {
    async fn run(mut self) {
        loop {
            let oldest = self.waiting.iter().min_by_key(|(_, half)| half.since);
            let oldest = oldest.map(|(id, half)| (id.clone(), half.since + STREAM_CREATION_TIMEOUT));
            let expired = async {
                match oldest {
                    Some((id, deadline)) => {
                        tokio::time::sleep_until(deadline).await;
                        id
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // Cancel-safe: a stream stays in its queue.
                stream = self.acceptor.accept() => match stream {
                    Some(stream) => self.add(stream),
                    None => return,
                },
                id = expired => if let Some(half) = self.waiting.remove(&id) {
                    let message = format!("(request={id}) timed out waiting for streams");
                    self.forwards.spawn(refuse(half.stream, message));
                },
                // Cancel-safe, and only there to forget those that have ended.
                Some(_) = self.forwards.join_next() => {}
            }
        }
    }

    fn add(&mut self, stream: Stream) {
        let id = request_id(&stream);
        let Some(half) = self.waiting.remove(&id) else {
            self.waiting.insert(id, Half { stream, since: Instant::now() });
            return;
        };
        let (data, error) = match (is_data(&half.stream), is_data(&stream)) {
            (true, false) => (half.stream, stream),
            (false, true) => (stream, half.stream),
            (kind, _) => {
                let kind = if kind { "data" } else { "error" };
                let message = format!("error processing stream for request {id}: {kind} stream already assigned");
                self.waiting.insert(id, half);
                self.forwards.spawn(refuse(stream, message));
                return;
            }
        };
        // The data stream's counts, and both were checked when they were admitted.
        let Some(port) = data.headers.get("port").and_then(|port| port.parse().ok()) else { return };
        let (dial, duplex) = (self.dial.clone(), tokio::io::join(data.reader, data.writer));
        self.forwards.spawn(async move { forward(port, duplex, error.writer, dial, Until::BothEnd).await });
    }
}

/// Ends a stream; if it is one for errors, with an error.
async fn refuse(mut stream: Stream, message: String) {
    tracing::debug!(message, "Refused a port-forward stream");
    if !is_data(&stream) {
        let _ = stream.writer.write_all(message.as_bytes()).await;
        let _ = stream.writer.shutdown().await;
    }
}

fn is_data(stream: &Stream) -> bool {
    stream.headers.get("streamtype") == Some("data")
}

/// Which pair a stream belongs to. Clients that name none open the error stream, then the data stream.
fn request_id(stream: &Stream) -> String {
    match stream.headers.get("requestid") {
        Some(id) => id.to_owned(),
        None if is_data(stream) => stream.id.wrapping_sub(2).to_string(),
        None => stream.id.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_a_websocket_are_checked_as_the_kubelet_does() {
        for (case, query, expected) in [
            ("several ways", Some("port=80&port=443,8080"), Ok(vec![80, 443, 8080])),
            ("none", None, Err(r#"query parameter "port" is required"#)),
            ("empty", Some("port="), Err(r#"query parameter "port" cannot be empty"#)),
            ("zero", Some("port=0"), Err(r#"port "0" must be > 0"#)),
            ("too high", Some("port=65536"), Err(r#"unable to parse "65536" as a port"#)),
            ("a sign", Some("port=%2B80"), Err(r#"unable to parse "+80" as a port"#)),
        ] {
            let ports = channel_ports(query).map_err(|error| error.to_string());
            assert_eq!(ports, expected.map_err(str::to_owned), "{case}");
        }
    }

    #[test]
    fn a_stream_of_port_forward_names_its_port_and_kind() {
        let headers = |port, kind| Headers::new().with("port", port).with("streamType", kind);
        for (case, headers, admitted) in [
            ("data", headers("80", "data"), true),
            ("error", headers("80", "error"), true),
            ("another kind", headers("80", "stdin"), false),
            ("no port", headers("", "data"), false),
            ("port 0", headers("0", "data"), false),
        ] {
            assert_eq!(is_forward(&headers).is_ok(), admitted, "{case}");
        }
    }
}
