//! Joins a WebSocket to the streams of a program: `exec` and `attach`.
//!
//! In: an upgraded socket and a program's streams. Out: bytes both ways, then one `Status` on the error channel.
//! Does not start programs (`runtime`) and does not know which pod this is (`exec`, `attach`).

use std::time::Duration;

use axum::extract::ws::{Message, WebSocket};
use bytes::Bytes;
use futures::stream::SplitSink;
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::channel::{Channel, Frame, Outcome, TerminalSize};

/// Bytes read from a program before they are sent: one frame.
const CHUNK_BYTES: usize = 32 * 1024;

/// Messages of stdin waiting for a program that does not read: then the client waits too.
const STDIN_QUEUE: usize = 4;

/// How long a full queue may stay full before the client is taken for gone.
const STDIN_PATIENCE: Duration = Duration::from_secs(600);

/// A program's streams; what a client did not ask for is `None`.
pub struct RemoteStreams {
    /// To the program; dropping it is end of file.
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// From the program.
    pub stdout: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// From the program.
    pub stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Takes the client's terminal sizes.
    pub resize: Option<Box<dyn Fn(TerminalSize) + Send + Sync>>,
    /// Resolves when the program has ended and its output was written.
    pub outcome: futures::future::BoxFuture<'static, Outcome>,
}

/// Copies until the program has ended and all of its output is sent, or the client has gone.
pub async fn serve(socket: WebSocket, streams: RemoteStreams) {
    let (to_client, from_client) = socket.split();
    // One frame in flight a stream and one outcome: the socket is the queue.
    let (frames, outgoing) = mpsc::channel::<Frame>(2);
    let RemoteStreams { stdin, stdout, stderr, resize, outcome } = streams;
    let outputs = {
        let frames = frames.clone();
        async move {
            let (out, err) = (frames.clone(), frames);
            tokio::join!(copy_output(stdout, Channel::Stdout, out), copy_output(stderr, Channel::Stderr, err));
        }
    };
    let program = async move {
        // Output first: kubectl stops reading when the Status comes.
        let ((), outcome) = tokio::join!(outputs, outcome);
        // A client that has gone needs no status.
        let _ = frames.send(Frame::Data(Channel::Error, Bytes::from(outcome.to_status()))).await;
    };
    tokio::select! {
        // The sender ends when the program's half has dropped its queue: everything was sent.
        ((), ()) = async { tokio::join!(program, send_frames(to_client, outgoing)) } => {}
        // The client has gone: an exec it started is not kept waiting for it.
        () = read_client(from_client, stdin, resize) => {}
    }
}

async fn copy_output(stream: Option<Box<dyn AsyncRead + Send + Unpin>>, channel: Channel, frames: mpsc::Sender<Frame>) {
    let Some(mut stream) = stream else { return };
    let mut buffer = vec![0; CHUNK_BYTES];
    while let Ok(n @ 1..) = stream.read(&mut buffer).await {
        if frames.send(Frame::Data(channel, Bytes::copy_from_slice(&buffer[..n]))).await.is_err() {
            return;
        }
    }
}

async fn send_frames(mut to_client: SplitSink<WebSocket, Message>, mut outgoing: mpsc::Receiver<Frame>) {
    while let Some(frame) = outgoing.recv().await {
        if to_client.send(Message::Binary(frame.encode())).await.is_err() {
            return;
        }
    }
    let _ = to_client.close().await;
}

/// Reads the client until it closes the connection. A slow stdin holds up neither resizes nor the close.
async fn read_client(
    mut from_client: futures::stream::SplitStream<WebSocket>,
    stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    resize: Option<Box<dyn Fn(TerminalSize) + Send + Sync>>,
) {
    let (to_stdin, mut queue) = mpsc::channel::<Bytes>(STDIN_QUEUE);
    let write = async move {
        let Some(mut stdin) = stdin else { return };
        while let Some(data) = queue.recv().await {
            if stdin.write_all(&data).await.is_err() {
                return;
            }
        }
        let _ = stdin.shutdown().await;
    };
    let read = async move {
        let mut to_stdin = Some(to_stdin);
        while let Some(Ok(message)) = from_client.next().await {
            let Message::Binary(message) = message else { continue };
            match Frame::decode(&message) {
                Ok(Frame::Data(Channel::Stdin, data)) => {
                    if let Some(queue) = &to_stdin {
                        // The program closed its stdin: what follows is nobody's, as with a pipe. One that never
                        // reads must not hide for ever that its client has gone.
                        if tokio::time::timeout(STDIN_PATIENCE, queue.send(data)).await.is_err() {
                            return;
                        }
                    }
                }
                Ok(Frame::Close(Channel::Stdin)) => to_stdin = None,
                Ok(Frame::Data(Channel::Resize, data)) => {
                    if let (Some(resize), Ok(size)) = (&resize, serde_json::from_slice(&data)) {
                        resize(size);
                    }
                }
                Ok(Frame::Data(..) | Frame::Close(_)) => {}
                Err(error) => {
                    tracing::debug!(err = %error, "Ended a remote command for a message outside the protocol");
                    return;
                }
            }
        }
    };
    tokio::pin!(write, read);
    tokio::select! {
        () = &mut read => {}
        () = &mut write => read.await,
    }
}
