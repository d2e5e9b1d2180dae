//! A client on the other side, reusing the codec.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::{RawQuery, Request};
use axum::response::IntoResponse;
use axum::routing::any;
use bytes::{Buf, Bytes, BytesMut};
use http_body_util::{BodyExt, Empty};
use hyper::upgrade::Upgraded;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::channel::{Outcome, TerminalSize};
use super::super::query::RemoteOptions;
use super::super::remote::RemoteStreams;
use super::super::spdy::frame::{Decoder, Encoder, Frame, reset};
use super::super::spdy::headers::Headers;
use super::*;

/// A program for tests: copies stdin to stdout after `bytes=N` of its own, says there how its terminal was resized, and
/// exits with `exit=N`.
fn cat(options: &RemoteOptions) -> RemoteStreams {
    let command = options.command.clone();
    let word = |prefix: &str| command.iter().find_map(|word| word.strip_prefix(prefix).map(str::to_owned));
    let code: u8 = word("exit=").map_or(0, |code| code.parse().unwrap());
    if let Some(message) = word("fail=") {
        let outcome = Box::pin(std::future::ready(Outcome::Failed(message)));
        return RemoteStreams { stdin: None, stdout: None, stderr: None, resize: None, outcome };
    }
    let (mut program_in, stdin) = tokio::io::duplex(64 * 1024);
    let (stdout, mut program_out) = tokio::io::duplex(64 * 1024);
    let (sent, mut sizes) = tokio::sync::mpsc::unbounded_channel::<TerminalSize>();
    let bytes = word("bytes=").map_or(0, |count| count.parse::<u64>().unwrap());
    let has_stdin = options.stdin;
    let outcome = async move {
        let _ = tokio::io::copy(&mut tokio::io::repeat(7).take(bytes), &mut program_out).await;
        let mut buffer = vec![0; 32 * 1024];
        let mut open = has_stdin;
        while open {
            let text = tokio::select! {
                count = program_in.read(&mut buffer) => match count {
                    Ok(0) | Err(_) => Vec::new(),
                    Ok(count) => buffer[..count].to_vec(),
                },
                Some(size) = sizes.recv() => format!("{}x{}\n", size.width, size.height).into_bytes(),
            };
            open = !text.is_empty() && program_out.write_all(&text).await.is_ok();
        }
        Outcome::Exited(code)
    };
    RemoteStreams {
        stdin: Some(Box::new(stdin)),
        stdout: options.stdout.then(|| Box::new(stdout) as _),
        stderr: options.stderr.then(|| Box::new(tokio::io::empty()) as _),
        resize: Some(Box::new(move |size| {
            let _ = sent.send(size);
        })),
        outcome: Box::pin(outcome),
    }
}

/// Port 7 echoes, port 19 sends 10 MB and closes, every other one refuses.
fn ports() -> Dial {
    Arc::new(|port| {
        Box::pin(async move {
            let (ours, theirs) = tokio::io::duplex(64 * 1024);
            match port {
                7 => tokio::spawn(async move {
                    let (mut read, mut write) = tokio::io::split(theirs);
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                    let _ = write.shutdown().await;
                }),
                19 => tokio::spawn(async move {
                    let mut theirs = theirs;
                    let mut bytes = tokio::io::repeat(b'x').take(10_000_000);
                    let _ = tokio::io::copy(&mut bytes, &mut theirs).await;
                }),
                // Takes connections and nothing else.
                9 => tokio::spawn(async move {
                    let _kept = theirs;
                    std::future::pending::<()>().await;
                }),
                _ => return Err(format!("error forwarding port {port} to pod web, uid 1: connection refused")),
            };
            Ok(Box::new(ours) as BoxDuplex)
        })
    })
}

fn router(settings: StreamingSettings) -> Router {
    let exec = async move |RawQuery(query): RawQuery, request: Request| {
        let options = match RemoteOptions::parse(query.as_deref()) {
            Ok(options) => options,
            Err(error) => return StreamingError::from(error).into_response(),
        };
        let asked = options.clone();
        let answer = remote_command(request, options, settings, async move || cat(&asked)).await;
        answer.into_response()
    };
    let forward = async move |request: Request| port_forward(request, settings, ports()).await.into_response();
    Router::new().route("/exec", any(exec)).route("/portForward", any(forward))
}

/// Serves the router on a port of this machine.
async fn serve(settings: StreamingSettings) -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router(settings)).await });
    addr
}

/// A small SPDY client.
struct Client {
    io: TokioIo<Upgraded>,
    encoder: Encoder,
    decoder: Decoder,
    input: BytesMut,
    next: u32,
    /// Bytes of streams that came while something else was waited for, and whether they have ended.
    received: HashMap<u32, (Vec<u8>, Option<End>)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Finished,
    Reset(u32),
}

async fn request(
    addr: std::net::SocketAddr,
    path: &str,
    headers: &[(&str, &str)],
) -> http::Response<hyper::body::Incoming> {
    let stream = tokio::net::TcpStream::connect(addr).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    let mut request = http::Request::post(path).header("host", "node");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    sender.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap()
}

impl Client {
    async fn connect(addr: std::net::SocketAddr, path: &str, versions: &str) -> (Self, String) {
        let headers = [("connection", "Upgrade"), ("upgrade", "SPDY/3.1"), ("x-stream-protocol-version", versions)];
        let response = request(addr, path, &headers).await;
        assert_eq!(response.status(), 101);
        let version = response.headers()["x-stream-protocol-version"].to_str().unwrap().to_owned();
        (Self::new(TokioIo::new(hyper::upgrade::on(response).await.unwrap())), version)
    }

    fn new(io: TokioIo<Upgraded>) -> Self {
        Self {
            io,
            encoder: Encoder::new(),
            decoder: Decoder::new(),
            input: BytesMut::new(),
            next: 1,
            received: HashMap::new(),
        }
    }

    async fn send(&mut self, frame: Frame) {
        let mut out = BytesMut::new();
        self.encoder.encode(&frame, &mut out);
        self.io.write_all_buf(&mut out).await.unwrap();
    }

    async fn open(&mut self, headers: &[(&str, &str)]) -> u32 {
        let stream = self.next;
        self.next += 2;
        let headers = headers.iter().fold(Headers::new(), |headers, (name, value)| headers.with(name, value));
        let (associated, priority, fin, unidirectional) = (0, 0, false, false);
        self.send(Frame::SynStream { stream, associated, priority, fin, unidirectional, headers }).await;
        stream
    }

    async fn write(&mut self, stream: u32, data: &[u8], fin: bool) {
        self.send(Frame::Data { stream, fin, data: Bytes::copy_from_slice(data) }).await;
    }

    /// The next frame; `None` at the end of the connection.
    async fn frame(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.decode(&mut self.input).unwrap() {
                match &frame {
                    Frame::Data { stream, fin, data } => {
                        let entry = self.received.entry(*stream).or_default();
                        entry.0.extend_from_slice(data);
                        if *fin {
                            entry.1 = Some(End::Finished);
                        }
                    }
                    Frame::RstStream { stream, status } => {
                        let end = &mut self.received.entry(*stream).or_default().1;
                        end.get_or_insert(End::Reset(*status));
                    }
                    _ => {}
                }
                return Some(frame);
            }
            if self.io.read_buf(&mut self.input).await.unwrap() == 0 {
                return None;
            }
        }
    }

    /// All of a stream, and how it ended.
    async fn read(&mut self, stream: u32) -> (Vec<u8>, End) {
        loop {
            if let Some((bytes, Some(end))) = self.received.get_mut(&stream) {
                return (std::mem::take(bytes), *end);
            }
            self.frame().await.expect("the connection is open until its streams have ended");
        }
    }

    async fn until_closed(&mut self) -> bool {
        let mut goodbye = false;
        while let Some(frame) = self.frame().await {
            goodbye |= matches!(frame, Frame::GoAway { .. });
        }
        goodbye
    }
}

const VERSIONS: &str = "v5.channel.k8s.io,v4.channel.k8s.io,v3.channel.k8s.io,v2.channel.k8s.io,channel.k8s.io";

#[tokio::test]
async fn a_command_over_spdy_gets_its_streams_and_its_exit_code() {
    let addr = serve(StreamingSettings::default()).await;
    let (mut client, version) =
        Client::connect(addr, "/exec?command=exit%3D3&input=1&output=1&error=1", VERSIONS).await;
    assert_eq!(version, "v4.channel.k8s.io");
    let error = client.open(&[("streamType", "error")]).await;
    let stdin = client.open(&[("streamType", "stdin")]).await;
    let stdout = client.open(&[("streamType", "stdout")]).await;
    let stderr = client.open(&[("streamType", "stderr")]).await;
    client.write(stdin, b"hello ", false).await;
    client.write(stdin, b"world", true).await;
    assert_eq!(client.read(stdout).await, (b"hello world".to_vec(), End::Finished));
    assert_eq!(client.read(stderr).await, (Vec::new(), End::Finished));
    let (status, _) = client.read(error).await;
    assert_eq!(Outcome::from_status(&status).unwrap(), Outcome::Exited(3));
    assert!(client.until_closed().await, "the connection ends with a goodbye");
}

#[tokio::test]
async fn an_old_client_gets_its_error_as_text() {
    let addr = serve(StreamingSettings::default()).await;
    for (case, query, expected) in [
        ("an exit code", "command=exit%3D3", "command terminated with non-zero exit code: exit status 3"),
        ("a success is nothing", "command=true", ""),
        ("a failure", "command=fail%3Dno%20such%20program", "no such program"),
    ] {
        let path = format!("/exec?{query}&output=1");
        let (mut client, version) = Client::connect(addr, &path, "v2.channel.k8s.io").await;
        assert_eq!(version, "v2.channel.k8s.io", "{case}");
        let error = client.open(&[("streamType", "error")]).await;
        client.open(&[("streamType", "stdout")]).await;
        assert_eq!(String::from_utf8(client.read(error).await.0).unwrap(), expected, "{case}");
    }
}

#[tokio::test]
async fn a_terminal_is_resized() {
    let addr = serve(StreamingSettings::default()).await;
    let path = "/exec?command=x&input=1&output=1&error=1&tty=1";
    let (mut client, _) = Client::connect(addr, path, "v3.channel.k8s.io").await;
    client.open(&[("streamType", "error")]).await;
    let stdin = client.open(&[("streamType", "stdin")]).await;
    let stdout = client.open(&[("streamType", "stdout")]).await;
    let resize = client.open(&[("streamType", "resize")]).await;
    client.write(resize, br#"{"Width":80,"#, false).await;
    client.write(resize, br#""Height":24}"#, false).await;
    while client.received.get(&stdout).is_none_or(|(bytes, _)| bytes.is_empty()) {
        client.frame().await.unwrap();
    }
    client.write(stdin, b"", true).await;
    assert_eq!(client.read(stdout).await.0, b"80x24\n");
}

#[tokio::test]
async fn a_ping_is_answered_and_a_stream_of_no_kind_is_reset() {
    let addr = serve(StreamingSettings::default()).await;
    let (mut client, _) = Client::connect(addr, "/exec?command=x&input=1", VERSIONS).await;
    client.send(Frame::Ping(1)).await;
    assert_eq!(client.frame().await, Some(Frame::Ping(1)));
    let odd = client.open(&[("streamType", "teapot")]).await;
    assert_eq!(client.read(odd).await.1, End::Reset(reset::CANCEL));
    // Ids only grow.
    client.next = 1;
    let again = client.open(&[("streamType", "error")]).await;
    assert_eq!(client.frame().await, Some(Frame::RstStream { stream: again, status: reset::PROTOCOL_ERROR }));
}

#[tokio::test]
async fn a_client_that_is_no_spdy_is_told_so_and_closed() {
    let addr = serve(StreamingSettings::default()).await;
    let (mut client, _) = Client::connect(addr, "/exec?command=x&output=1", VERSIONS).await;
    client.io.write_all(&[0x80, 2, 0, 1, 0, 0, 0, 0]).await.unwrap();
    assert_eq!(client.frame().await, Some(Frame::GoAway { last_stream: 0, status: 1 }));
    assert_eq!(client.frame().await, None);
}

#[tokio::test(start_paused = true)]
async fn a_connection_on_which_nothing_is_said_is_closed() {
    let (client, server) = tokio::io::duplex(4096);
    let settings = super::super::spdy::ConnectionSettings {
        idle_timeout: Duration::from_secs(60),
        stalled: super::super::spdy::Stalled::Wait,
        admit: |_| Ok(()),
    };
    let (acceptor, driver) = super::super::spdy::connection(server, settings);
    let (started, mut client) = (tokio::time::Instant::now(), client);
    tokio::time::timeout(Duration::from_secs(3600), driver).await.unwrap();
    assert_eq!(started.elapsed(), Duration::from_secs(60));
    let mut goodbye = Vec::new();
    client.read_to_end(&mut goodbye).await.unwrap();
    assert_eq!(goodbye[..4], [0x80, 3, 0, 7]);
    drop(acceptor);
}

/// One side of a connection to a driver, without HTTP.
fn raw(stalled: super::super::spdy::Stalled) -> (tokio::io::DuplexStream, super::super::spdy::Acceptor) {
    let (client, server) = tokio::io::duplex(64 * 1024);
    let settings = super::super::spdy::ConnectionSettings { idle_timeout: Duration::ZERO, stalled, admit: |_| Ok(()) };
    let (acceptor, driver) = super::super::spdy::connection(server, settings);
    tokio::spawn(driver);
    (client, acceptor)
}

fn syn(stream: u32) -> Frame {
    let (associated, priority, fin, unidirectional) = (0, 0, false, false);
    Frame::SynStream { stream, associated, priority, fin, unidirectional, headers: Headers::new() }
}

#[tokio::test(start_paused = true)]
async fn a_stalled_stream_holds_up_its_client_and_buffers_no_more_than_its_share() {
    use super::super::spdy::Stalled;
    let (mut client, mut acceptor) = raw(Stalled::Wait);
    let (mut encoder, mut out) = (Encoder::new(), BytesMut::new());
    encoder.encode(&syn(1), &mut out);
    client.write_all_buf(&mut out).await.unwrap();
    let mut stream = acceptor.accept().await.unwrap();
    // More than inbox, read buffer and pipe together.
    encoder.encode(&Frame::Data { stream: 1, fin: true, data: vec![1; 1 << 20].into() }, &mut out);
    let total = out.len();
    let writing = tokio::time::timeout(Duration::from_secs(100), client.write_all_buf(&mut out)).await;
    assert!(writing.is_err(), "the client waits");
    assert!(total - out.len() <= 400 * 1024, "{} bytes were taken", total - out.len());
    // It was asked whether it is there, and not more often than that.
    let mut pings = BytesMut::new();
    while let Ok(read) = tokio::time::timeout(Duration::from_millis(1), client.read_buf(&mut pings)).await {
        assert!(read.unwrap() > 0);
    }
    assert!(pings.len() <= 12 * 10 + 64, "{} bytes", pings.len());
    // Once it is read, everything arrives.
    let read = async {
        let mut bytes = Vec::new();
        stream.reader.read_to_end(&mut bytes).await.unwrap();
        bytes.len()
    };
    let (written, count) = tokio::join!(client.write_all_buf(&mut out), read);
    written.unwrap();
    assert_eq!(count, 1 << 20);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_nobody_reads_does_not_hold_up_its_neighbours_for_ever() {
    use super::super::spdy::Stalled;
    let (mut client, mut acceptor) = raw(Stalled::ResetAfter(Duration::from_secs(60)));
    let (mut encoder, mut out) = (Encoder::new(), BytesMut::new());
    encoder.encode(&syn(1), &mut out);
    encoder.encode(&syn(3), &mut out);
    encoder.encode(&Frame::Data { stream: 1, fin: false, data: vec![1; 300_000].into() }, &mut out);
    encoder.encode(&Frame::Data { stream: 3, fin: true, data: Bytes::from_static(b"here") }, &mut out);
    let write = tokio::spawn(async move {
        client.write_all_buf(&mut out).await.unwrap();
        client
    });
    let mut stalled = acceptor.accept().await.unwrap();
    let mut other = acceptor.accept().await.unwrap();
    let mut text = String::new();
    other.reader.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "here");
    assert!(stalled.reader.read(&mut [0; 10]).await.is_err(), "it was reset");
    drop(write.await.unwrap());
}

#[tokio::test]
async fn a_reader_that_goes_away_lets_the_rest_of_its_stream_pass() {
    use super::super::spdy::Stalled;
    let (mut client, mut acceptor) = raw(Stalled::Wait);
    let (mut encoder, mut out) = (Encoder::new(), BytesMut::new());
    encoder.encode(&syn(1), &mut out);
    client.write_all_buf(&mut out).await.unwrap();
    let stream = acceptor.accept().await.unwrap();
    drop(stream.reader);
    encoder.encode(&Frame::Data { stream: 1, fin: false, data: vec![1; 1 << 20].into() }, &mut out);
    encoder.encode(&syn(3), &mut out);
    client.write_all_buf(&mut out).await.unwrap();
    assert_eq!(acceptor.accept().await.unwrap().id, 3);
}

async fn open_pair(client: &mut Client, port: &str, id: &str) -> (u32, u32) {
    let error = client.open(&[("streamType", "error"), ("port", port), ("requestID", id)]).await;
    client.write(error, b"", true).await;
    let data = client.open(&[("streamType", "data"), ("port", port), ("requestID", id)]).await;
    (data, error)
}

#[tokio::test]
async fn forwarded_connections_are_apart_and_close_one_side_at_a_time() {
    let addr = serve(StreamingSettings::default()).await;
    let (mut client, version) = Client::connect(addr, "/portForward", "portforward.k8s.io").await;
    assert_eq!(version, "portforward.k8s.io");
    let (echo, echo_error) = open_pair(&mut client, "7", "0").await;
    let (refused, refused_error) = open_pair(&mut client, "81", "1").await;
    let (source, source_error) = open_pair(&mut client, "19", "2").await;
    client.write(echo, b"before ", false).await;
    let (message, end) = client.read(refused_error).await;
    let expected = "error forwarding port 81 to pod web, uid 1: connection refused";
    assert_eq!((String::from_utf8(message).unwrap().as_str(), end), (expected, End::Finished));
    assert_eq!(client.read(refused).await.1, End::Reset(reset::CANCEL));
    let (bytes, end) = client.read(source).await;
    assert_eq!((bytes.len(), end), (10_000_000, End::Finished));
    client.write(source, b"", true).await;
    assert_eq!(client.read(source_error).await, (Vec::new(), End::Finished));
    // The end of what the client sends is not the end of what it reads.
    client.write(echo, b"and after", true).await;
    assert_eq!(client.read(echo).await, (b"before and after".to_vec(), End::Finished));
    assert_eq!(client.read(echo_error).await, (Vec::new(), End::Finished));
}

#[tokio::test]
async fn a_client_without_request_ids_gets_pairs_by_stream_number() {
    let addr = serve(StreamingSettings::default()).await;
    let (mut client, _) = Client::connect(addr, "/portForward", "portforward.k8s.io").await;
    client.open(&[("streamType", "error"), ("port", "7")]).await;
    let data = client.open(&[("streamType", "data"), ("port", "7")]).await;
    client.write(data, b"hi", true).await;
    assert_eq!(client.read(data).await, (b"hi".to_vec(), End::Finished));
}

#[tokio::test]
async fn a_request_that_cannot_be_upgraded_says_why() {
    let addr = serve(StreamingSettings::default()).await;
    let upgrade = [("connection", "Upgrade"), ("upgrade", "SPDY/3.1")];
    let with = |version| [&upgrade[..], &[("x-stream-protocol-version", version)]].concat();
    for (case, path, headers, status, text) in [
        ("no streams", "/exec?command=x", with("v4.channel.k8s.io"), 400, "you must specify at least 1 of"),
        ("no upgrade", "/exec?output=1", vec![], 500, "Upgrade request required"),
        ("no version", "/exec?output=1", upgrade.to_vec(), 400, "X-Stream-Protocol-Version does not exist"),
        ("no known version", "/portForward", with("v4.channel.k8s.io"), 403, "unable to negotiate protocol"),
    ] {
        let response = request(addr, path, &headers).await;
        assert_eq!(response.status(), status, "{case}");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let body = String::from_utf8_lossy(body.chunk()).into_owned();
        assert!(body.contains(text), "{case}: {body}");
    }
}

mod over_websocket {
    use futures::{SinkExt, StreamExt};
    use tokio_tungstenite::WebSocketStream;
    use tokio_tungstenite::tungstenite::Message;
    use tokio_tungstenite::tungstenite::client::IntoClientRequest;

    use super::*;

    type Socket = WebSocketStream<tokio::net::TcpStream>;

    async fn connect(addr: std::net::SocketAddr, path: &str, protocol: &str) -> Result<Socket, u16> {
        let mut request = format!("ws://{addr}{path}").into_client_request().unwrap();
        if !protocol.is_empty() {
            request.headers_mut().insert("sec-websocket-protocol", protocol.parse().unwrap());
        }
        let stream = tokio::net::TcpStream::connect(addr).await.unwrap();
        match tokio_tungstenite::client_async(request, stream).await {
            Ok((socket, response)) => {
                let chosen = response.headers().get("sec-websocket-protocol");
                assert_eq!(chosen.map_or("", |chosen| chosen.to_str().unwrap()), protocol);
                Ok(socket)
            }
            Err(tokio_tungstenite::tungstenite::Error::Http(response)) => Err(response.status().as_u16()),
            Err(error) => panic!("{error}"),
        }
    }

    /// Everything until the server closes, which it must do in the one way that kubectl takes for an end.
    async fn read(socket: &mut Socket) -> Vec<Bytes> {
        let mut messages = Vec::new();
        while let Some(message) = socket.next().await {
            match message.unwrap() {
                Message::Binary(bytes) => messages.push(bytes),
                Message::Text(text) => messages.push(text.into()),
                Message::Close(frame) => assert_eq!(u16::from(frame.unwrap().code), 1000),
                _ => {}
            }
        }
        messages
    }

    #[tokio::test]
    async fn v5_ends_stdin_by_a_message() {
        let addr = serve(StreamingSettings::default()).await;
        let path = "/exec?command=exit%3D3&input=1&output=1&error=1";
        let mut socket = connect(addr, path, "v5.channel.k8s.io").await.unwrap();
        for message in [&b"\x00hello"[..], b"", b"\x01not mine", b"\x63nor this", b"\xff\x00"] {
            socket.send(Message::binary(message.to_vec())).await.unwrap();
        }
        let messages = read(&mut socket).await;
        assert_eq!(messages[0], b"\x01"[..], "the connection is established");
        assert_eq!(messages[1], b"\x01hello"[..]);
        assert_eq!(messages[2][0], 3);
        assert_eq!(Outcome::from_status(&messages[2][1..]).unwrap(), Outcome::Exited(3));
    }

    #[tokio::test]
    async fn old_protocols_are_spoken_as_they_were() {
        let addr = serve(StreamingSettings::default()).await;
        let text = "command terminated with non-zero exit code: exit status 3";
        let status = Outcome::Exited(3).to_status();
        let base64 = |channel: char, text: &str| {
            use base64::Engine;
            format!("{channel}{}", base64::engine::general_purpose::STANDARD.encode(text))
        };
        let binary = |channel: u8, text: &str| [&[channel], text.as_bytes()].concat();
        for (protocol, expected) in [
            ("", [binary(1, ""), binary(1, "\x07"), binary(3, text)]),
            ("channel.k8s.io", [binary(1, ""), binary(1, "\x07"), binary(3, text)]),
            ("v4.channel.k8s.io", [binary(1, ""), binary(1, "\x07"), binary(3, &status)]),
            ("base64.channel.k8s.io", [base64('1', ""), base64('1', "\x07"), base64('3', text)].map(String::into)),
            (
                "v4.base64.channel.k8s.io",
                [base64('1', ""), base64('1', "\x07"), base64('3', &status)].map(String::into),
            ),
        ] {
            let path = "/exec?command=exit%3D3&command=bytes%3D1&output=1";
            let mut socket = connect(addr, path, protocol).await.unwrap();
            assert_eq!(read(&mut socket).await, expected, "{protocol}");
        }
    }

    #[tokio::test]
    async fn without_the_feature_v5_and_the_tunnel_are_unknown() {
        let settings = StreamingSettings { extended_websockets: false, ..StreamingSettings::default() };
        let addr = serve(settings).await;
        assert_eq!(connect(addr, "/exec?command=x&output=1", "v5.channel.k8s.io").await.err(), Some(403));
        // To a kubelet without it, it is a port-forward over channels that names no ports.
        assert_eq!(connect(addr, "/portForward", "SPDY/3.1+portforward.k8s.io").await.err(), Some(400));
        assert!(connect(addr, "/exec?command=x&output=1", "v4.channel.k8s.io").await.is_ok());
    }

    #[tokio::test]
    async fn a_port_has_two_channels_that_begin_with_its_number() {
        let addr = serve(StreamingSettings::default()).await;
        let mut socket = connect(addr, "/portForward?port=19,81", "v4.channel.k8s.io").await.unwrap();
        let mut channels = vec![Vec::new(); 4];
        for message in read(&mut socket).await {
            channels[usize::from(message[0])].extend_from_slice(&message[1..]);
        }
        assert_eq!(channels[0].len(), 2 + 10_000_000);
        assert_eq!(channels[0][..2], [19, 0]);
        assert_eq!(channels[1], [19, 0]);
        assert_eq!(channels[2], [81, 0]);
        let refused = "error forwarding port 81 to pod web, uid 1: connection refused";
        assert_eq!(channels[3], [&[81, 0], refused.as_bytes()].concat());
    }

    #[tokio::test]
    async fn a_tunnel_carries_spdy_whatever_its_messages_are() {
        let addr = serve(StreamingSettings::default()).await;
        let mut socket = connect(addr, "/portForward", "SPDY/3.1+portforward.k8s.io").await.unwrap();
        let (mut encoder, mut out) = (Encoder::new(), BytesMut::new());
        for (stream, kind) in [(1, "error"), (3, "data")] {
            let headers = Headers::new().with("streamType", kind).with("port", "7").with("requestID", "0");
            let (associated, priority, fin, unidirectional) = (0, 0, false, false);
            encoder.encode(&Frame::SynStream { stream, associated, priority, fin, unidirectional, headers }, &mut out);
        }
        encoder.encode(&Frame::Data { stream: 3, fin: true, data: Bytes::from_static(b"through") }, &mut out);
        for piece in out.chunks(7) {
            socket.send(Message::binary(piece.to_vec())).await.unwrap();
        }
        let (mut decoder, mut input, mut echoed) = (Decoder::new(), BytesMut::new(), Vec::new());
        'read: loop {
            let message = socket.next().await.unwrap().unwrap();
            input.extend_from_slice(&message.into_data());
            while let Some(frame) = decoder.decode(&mut input).unwrap() {
                if let Frame::Data { stream: 3, fin, data } = frame {
                    echoed.extend_from_slice(&data);
                    if fin {
                        break 'read;
                    }
                }
            }
        }
        assert_eq!(echoed, b"through");
    }

    #[tokio::test]
    async fn a_client_that_stops_reading_holds_up_the_program_only() {
        let addr = serve(StreamingSettings::default()).await;
        let path = "/exec?command=bytes%3D30000000&output=1";
        let mut socket = connect(addr, path, "v4.channel.k8s.io").await.unwrap();
        // Another client is served meanwhile.
        let mut other = connect(addr, "/exec?command=bytes%3D1&output=1", "v4.channel.k8s.io").await.unwrap();
        assert_eq!(read(&mut other).await.len(), 3);
        let bytes: usize = read(&mut socket).await.iter().filter(|message| message[0] == 1).map(|m| m.len() - 1).sum();
        assert_eq!(bytes, 30_000_000);
    }
}

/// Serves the router for programs of other languages: `WASILET_STREAMING_PORT=8080 cargo test interop_server`.
#[tokio::test]
async fn interop_server() {
    let Some(port) = std::env::var("WASILET_STREAMING_PORT").ok().and_then(|port| port.parse::<u16>().ok()) else {
        eprintln!("skipped: WASILET_STREAMING_PORT is not set");
        return;
    };
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    axum::serve(listener, router(StreamingSettings::default())).await.unwrap();
}
