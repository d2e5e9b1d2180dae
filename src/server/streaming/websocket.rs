//! A WebSocket whose messages belong to numbered channels, as byte streams (`wsstream` of `k8s.io/streaming`).
//!
//! In: an upgraded WebSocket and what each channel is for. Out: an `AsyncRead` and an `AsyncWrite` for each, and a
//! driver that must be polled. The driver ends when the client has gone, or when every writer was dropped and all they
//! wrote was sent. Does not know what channels are for.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::extract::ws::{self, CloseFrame, Utf8Bytes, WebSocket, close_code};
use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use parking_lot::Mutex;
use tokio::io::AsyncWrite;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::PollSender;

use super::super::channel::{Encoding, Message, Wire};
use super::super::inbox::{Inbox, InboxReader};

/// Messages waiting to be sent, of all channels: they wait in their programs instead.
const QUEUE: usize = 8;
/// Bytes of a message sent: what clients send, too.
const MESSAGE_BYTES: usize = 32 * 1024;
/// How often a client whose channel is stalled is asked whether it is still there; it cannot be read meanwhile.
const STALLED_PING: Duration = Duration::from_secs(15);
/// How long the client may take to close after everything was sent to it.
const LINGER: Duration = Duration::from_secs(5);

/// What a channel is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// Nobody asked for it: what comes is thrown away.
    Unused,
    /// From the client.
    In,
    /// To the client.
    Out,
    /// Both.
    Both,
}

/// The ends of a channel.
#[derive(Debug)]
pub(super) struct ChannelEnds {
    pub(super) reader: Option<InboxReader>,
    pub(super) writer: Option<ChannelWriter>,
}

/// What is sent to the client on a channel. There is no message for its end.
#[derive(Debug)]
pub(super) struct ChannelWriter {
    channel: u8,
    messages: PollSender<(u8, Bytes)>,
}

/// Serves a WebSocket. The future must be polled while the channels are used. `idle_timeout` zero is for ever.
pub(super) fn channels(
    socket: WebSocket,
    wire: Wire,
    directions: &[Direction],
    idle_timeout: Duration,
) -> (Vec<ChannelEnds>, impl Future<Output = ()> + Send + use<>) {
    let (sender, outgoing) = mpsc::channel(QUEUE);
    let mut inboxes = Vec::with_capacity(directions.len());
    let mut ends = Vec::with_capacity(directions.len());
    for (channel, direction) in directions.iter().enumerate() {
        let (inbox, reader) = match direction {
            Direction::In | Direction::Both => Some(Inbox::new()).unzip(),
            Direction::Unused | Direction::Out => (None, None),
        };
        let writer = matches!(direction, Direction::Out | Direction::Both)
            .then(|| ChannelWriter { channel: channel as u8, messages: PollSender::new(sender.clone()) });
        inboxes.push(inbox);
        ends.push(ChannelEnds { reader, writer });
    }
    drop(sender);
    let driver = async move {
        let (to_client, from_client) = socket.split();
        let activity = Mutex::new(Instant::now());
        let mut reader = Reader { from_client, inboxes, wire, activity: &activity };
        let mut writer = Writer { to_client, wire, activity: &activity };
        // Pings to a client that cannot be read; one is enough.
        let (pings, asked) = mpsc::channel(1);
        tokio::select! {
            // Each arm ends the connection: what a dropped one was doing is of no use any more.
            () = reader.run(pings) => {}
            sent = writer.run(outgoing, asked) => if sent.is_ok() {
                let _ = tokio::time::timeout(LINGER, reader.drain()).await;
            },
            () = idle(&activity, idle_timeout) => {}
        }
        for inbox in reader.inboxes.iter().flatten() {
            inbox.break_off();
        }
    };
    (ends, driver)
}

async fn idle(activity: &Mutex<Instant>, timeout: Duration) {
    if timeout.is_zero() {
        return std::future::pending().await;
    }
    loop {
        let deadline = *activity.lock() + timeout;
        if Instant::now() >= deadline {
            return;
        }
        tokio::time::sleep_until(deadline).await;
    }
}

struct Reader<'a> {
    from_client: SplitStream<WebSocket>,
    inboxes: Vec<Option<Arc<Inbox>>>,
    wire: Wire,
    activity: &'a Mutex<Instant>,
}

impl Reader<'_> {
    async fn run(&mut self, pings: mpsc::Sender<()>) {
        while let Some(Ok(message)) = self.from_client.next().await {
            let bytes = match message {
                ws::Message::Binary(bytes) => bytes,
                ws::Message::Text(text) => text.into(),
                ws::Message::Close(_) => return,
                // Answered by the implementation below us.
                ws::Message::Ping(_) | ws::Message::Pong(_) => continue,
            };
            *self.activity.lock() = Instant::now();
            match self.wire.decode(&bytes) {
                Ok(Message::Data(channel, data)) => {
                    // A channel that does not exist, or that nobody asked for, is no error to a kubelet either.
                    let Some(Some(inbox)) = self.inboxes.get(usize::from(channel)) else { continue };
                    inbox.push(&data);
                    while tokio::time::timeout(STALLED_PING, inbox.room()).await.is_err() {
                        // A client that has gone is noticed by writing to it.
                        let _ = pings.try_send(());
                    }
                }
                Ok(Message::Close(channel)) => match self.inboxes.get(usize::from(channel)) {
                    Some(Some(inbox)) => inbox.finish(),
                    Some(None) => {}
                    None => return tracing::debug!(channel, "Ended a WebSocket for a close of no channel"),
                },
                Ok(Message::Empty) => {}
                // The kubelet goes on after a message it cannot decode, but not after such a close.
                Err(error @ super::super::channel::FrameError::BadClose) => {
                    return tracing::debug!(err = %error, "Ended a WebSocket for a message outside the protocol");
                }
                Err(error) => tracing::debug!(err = %error, "Dropped a WebSocket message outside the protocol"),
            }
        }
    }

    async fn drain(&mut self) {
        while let Some(Ok(_)) = self.from_client.next().await {}
    }
}

struct Writer<'a> {
    to_client: SplitSink<WebSocket, ws::Message>,
    wire: Wire,
    activity: &'a Mutex<Instant>,
}

impl Writer<'_> {
    async fn run(
        &mut self,
        mut outgoing: mpsc::Receiver<(u8, Bytes)>,
        mut pings: mpsc::Receiver<()>,
    ) -> Result<(), axum::Error> {
        loop {
            let message = tokio::select! {
                // Cancel-safe, both: a message stays in its queue.
                message = outgoing.recv() => message,
                Some(()) = pings.recv() => {
                    self.to_client.send(ws::Message::Ping(Bytes::new())).await?;
                    continue;
                }
            };
            let Some((channel, data)) = message else { break };
            *self.activity.lock() = Instant::now();
            let encoded = self.wire.encode(channel, &data);
            let message = match self.wire.encoding {
                Encoding::Binary => ws::Message::Binary(encoded),
                Encoding::Base64 => {
                    ws::Message::Text(Utf8Bytes::try_from(encoded).expect("base64 and a character are text"))
                }
            };
            self.to_client.send(message).await?;
        }
        // kubectl takes any other code, and none, for a broken connection.
        let close = CloseFrame { code: close_code::NORMAL, reason: Utf8Bytes::default() };
        self.to_client.send(ws::Message::Close(Some(close))).await
    }
}

impl ChannelWriter {
    /// Sends a message without bytes, which tells the client that the connection is established.
    pub(super) async fn greet(&mut self) -> io::Result<()> {
        std::future::poll_fn(|cx| self.poll_send(cx, &[])).await.map(drop)
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let broken = || io::Error::from(io::ErrorKind::BrokenPipe);
        ready!(self.messages.poll_reserve(cx)).map_err(|_| broken())?;
        let count = bytes.len().min(MESSAGE_BYTES);
        let message = (self.channel, Bytes::copy_from_slice(&bytes[..count]));
        self.messages.send_item(message).map_err(|_| broken())?;
        Poll::Ready(Ok(count))
    }
}

impl AsyncWrite for ChannelWriter {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.poll_send(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.messages.close();
        Poll::Ready(Ok(()))
    }
}
