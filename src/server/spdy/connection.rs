//! One SPDY connection: its streams, and the task that reads and writes them all.
//!
//! In: an upgraded connection. Out: an [`Acceptor`] of the streams the client opens, and a driver that must be polled.
//! The driver ends when the client has gone, or when acceptor and streams were dropped and all they wrote was sent.
//! Does not know what streams are for.
//!
//! ```text
//!  client ==> read_frames --> Inbox of each stream --> StreamReader
//!         <== write_frames <-- control (replies, resets, pings), data (bounded) <-- StreamWriter
//! ```

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::PollSender;

use super::super::inbox::{Inbox, InboxReader};
use super::SpdyError;
use super::frame::{Decoder, Encoder, Frame, goaway, reset};
use super::headers::Headers;

/// Streams open at once. A browser behind `kubectl port-forward` has a few dozen; each may hold an inbox full of bytes.
const MAX_STREAMS: usize = 1024;
/// Answers waiting to be written. A client that makes us owe it more does not read what it asks for.
const MAX_CONTROL: usize = 4 * MAX_STREAMS;
/// Data frames waiting to be written, of all streams: they wait in their programs instead.
const DATA_QUEUE: usize = 8;
/// Bytes of a data frame sent: what clients send, too.
const DATA_BYTES: usize = 32 * 1024;
/// Bytes read, and bytes written, at once.
const IO_BYTES: usize = 64 * 1024;
/// How often a client whose stream is stalled is asked whether it is still there; it cannot be read meanwhile.
const STALLED_PING: Duration = Duration::from_secs(15);
/// How long the client may take to close after everything was sent to it. Closing first would throw away, as TCP has
/// it, what it has not read.
const LINGER: Duration = Duration::from_secs(5);

/// How a connection is kept.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct ConnectionSettings {
    /// How long neither side may say anything; zero is for ever.
    pub(in super::super) idle_timeout: Duration,
    /// What becomes of a stream whose bytes nobody takes.
    pub(in super::super) stalled: Stalled,
    /// Says why a stream is not taken.
    pub(in super::super) admit: fn(&Headers) -> Result<(), String>,
}

/// What becomes of a stream whose bytes nobody takes while the connection is held up by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Stalled {
    /// The connection waits: its streams belong to one program.
    Wait,
    /// After this long it is reset, so that other streams go on.
    ResetAfter(Duration),
}

/// A stream that the client opened and that was accepted.
#[derive(Debug)]
pub(in super::super) struct Stream {
    pub(in super::super) id: u32,
    pub(in super::super) headers: Headers,
    pub(in super::super) reader: StreamReader,
    pub(in super::super) writer: StreamWriter,
}

/// Takes the streams of a connection, and keeps it open.
#[derive(Debug)]
pub(in super::super) struct Acceptor {
    streams: mpsc::Receiver<Stream>,
    _open: mpsc::Sender<Data>,
}

impl Acceptor {
    /// The next stream; `None` when the connection takes no more. Cancel-safe.
    pub(in super::super) async fn accept(&mut self) -> Option<Stream> {
        self.streams.recv().await
    }
}

/// What the client sends on a stream. Dropped, the rest is thrown away.
#[derive(Debug)]
pub(in super::super) struct StreamReader {
    inbox: InboxReader,
    half: Half,
}

/// What is sent to the client on a stream. Shut down, the client reads its end; dropped before, a reset.
#[derive(Debug)]
pub(in super::super) struct StreamWriter {
    data: PollSender<Data>,
    finished: bool,
    half: Half,
}

#[derive(Debug)]
struct Half {
    stream: u32,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Data {
    stream: u32,
    bytes: Bytes,
    fin: bool,
}

/// What driver and streams share.
#[derive(Debug)]
struct Shared {
    streams: Mutex<HashMap<u32, Entry>>,
    control: mpsc::Sender<Frame>,
    activity: Mutex<Instant>,
    /// The highest one the client has opened.
    last_stream: AtomicU32,
}

/// A stream that is not over in both directions.
#[derive(Debug)]
struct Entry {
    inbox: Arc<Inbox>,
    /// The client may still send.
    remote_open: bool,
    /// We may still send.
    local_open: bool,
    reader_gone: bool,
}

impl Shared {
    fn active(&self) {
        *self.activity.lock() = Instant::now();
    }

    /// Changes an entry, and forgets it when it is over.
    fn change<T>(&self, stream: u32, change: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        let mut streams = self.streams.lock();
        let entry = streams.get_mut(&stream)?;
        let result = change(entry);
        if !entry.remote_open && !entry.local_open {
            streams.remove(&stream);
        }
        Some(result)
    }

    /// Ends a stream in both directions; whether there was one.
    fn remove(&self, stream: u32) -> bool {
        let removed = self.streams.lock().remove(&stream);
        if let Some(entry) = &removed {
            entry.inbox.break_off();
        }
        removed.is_some()
    }

    fn may_send(&self, stream: u32) -> bool {
        self.streams.lock().get(&stream).is_some_and(|entry| entry.local_open)
    }

    /// Queues an answer. Fails when the client does not read its answers.
    fn answer(&self, frame: Frame) -> Result<(), Gone> {
        self.control.try_send(frame).map_err(|_| Gone::Flooded)
    }
}

/// Why reading the client ended.
#[derive(Debug, thiserror::Error)]
enum Gone {
    #[error("the client closed the connection")]
    Closed,
    #[error("the connection broke")]
    Io(#[source] io::Error),
    #[error("the client broke the protocol")]
    Protocol(#[from] SpdyError),
    #[error("the client does not read its answers")]
    Flooded,
}

/// Serves a connection. The future must be polled while the acceptor and its streams are used.
pub(in super::super) fn connection<T>(
    io: T,
    settings: ConnectionSettings,
) -> (Acceptor, impl Future<Output = ()> + Send)
where
    T: AsyncRead + AsyncWrite + Send + 'static,
{
    let (control, answers) = mpsc::channel(MAX_CONTROL);
    let (data, outgoing) = mpsc::channel(DATA_QUEUE);
    let (accepted, streams) = mpsc::channel(MAX_STREAMS);
    let activity = Mutex::new(Instant::now());
    let last_stream = AtomicU32::new(0);
    let shared = Arc::new(Shared { streams: Mutex::default(), control, activity, last_stream });
    let weak = data.downgrade();
    let driver = async move {
        let (mut read, write) = tokio::io::split(io);
        let reader = Reader { settings, shared: shared.clone(), accepted, data: weak, closing: false };
        let mut writer = Writer::new(write, shared.clone());
        let end = reader.run_beside(&mut read, &mut writer, answers, outgoing).await;
        for (_, entry) in shared.streams.lock().drain() {
            entry.inbox.break_off();
        }
        match end {
            Ended::Done => linger(&mut read).await,
            Ended::Idle => writer.close(goaway::OK).await,
            Ended::Gone(Gone::Protocol(error)) => {
                tracing::debug!(err = %error, "Closed a SPDY connection");
                writer.close(goaway::PROTOCOL_ERROR).await;
            }
            Ended::Gone(error) => tracing::trace!(err = %error, "SPDY connection ended"),
        }
    };
    (Acceptor { streams, _open: data }, driver)
}

enum Ended {
    /// Everything was sent, and the client was told that it is all.
    Done,
    Idle,
    Gone(Gone),
}

/// Reads until the client closes, for as long as is decent.
async fn linger<R: AsyncRead + Unpin>(read: &mut R) {
    let mut rest = vec![0; IO_BYTES];
    let drained = async { while matches!(read.read(&mut rest).await, Ok(1..)) {} };
    let _ = tokio::time::timeout(LINGER, drained).await;
}

async fn idle(shared: &Shared, timeout: Duration) {
    if timeout.is_zero() {
        return std::future::pending().await;
    }
    loop {
        let deadline = *shared.activity.lock() + timeout;
        if Instant::now() >= deadline {
            return;
        }
        tokio::time::sleep_until(deadline).await;
    }
}

struct Reader {
    settings: ConnectionSettings,
    shared: Arc<Shared>,
    accepted: mpsc::Sender<Stream>,
    data: mpsc::WeakSender<Data>,
    /// The client opens no more streams.
    closing: bool,
}

impl Reader {
    async fn run_beside<T: AsyncRead + AsyncWrite + Send>(
        mut self,
        read: &mut ReadHalf<T>,
        writer: &mut Writer<WriteHalf<T>>,
        answers: mpsc::Receiver<Frame>,
        outgoing: mpsc::Receiver<Data>,
    ) -> Ended {
        let (shared, idle_timeout) = (self.shared.clone(), self.settings.idle_timeout);
        tokio::select! {
            // Each arm ends the connection: what a dropped one was doing is of no use any more.
            gone = self.read_frames(read) => Ended::Gone(gone),
            result = writer.write_frames(answers, outgoing) => match result {
                Ok(()) => Ended::Done,
                Err(error) => Ended::Gone(Gone::Io(error)),
            },
            () = idle(&shared, idle_timeout) => Ended::Idle,
        }
    }

    async fn read_frames<R: AsyncRead + Unpin>(&mut self, read: &mut R) -> Gone {
        let mut decoder = Decoder::new();
        let mut input = BytesMut::new();
        loop {
            match decoder.decode(&mut input) {
                Ok(Some(frame)) => {
                    self.shared.active();
                    if let Err(gone) = self.take(frame).await {
                        return gone;
                    }
                    continue;
                }
                Ok(None) => {}
                Err(error) => return error.into(),
            }
            input.reserve(IO_BYTES);
            match read.read_buf(&mut input).await {
                Ok(0) => return Gone::Closed,
                Ok(_) => {}
                Err(error) => return Gone::Io(error),
            }
        }
    }

    async fn take(&mut self, frame: Frame) -> Result<(), Gone> {
        match frame {
            Frame::SynStream { stream, fin, unidirectional, headers, .. } => {
                self.open(stream, fin, unidirectional, headers)?;
            }
            Frame::Data { stream, fin, data } => self.data(stream, fin, &data).await?,
            Frame::RstStream { stream, .. } => {
                self.shared.remove(stream);
            }
            Frame::Headers { stream, fin: true, .. } => self.finish(stream),
            // Ours are even: an answer of the client's.
            Frame::Ping(id) if id % 2 == 1 => self.shared.answer(Frame::Ping(id))?,
            Frame::GoAway { .. } => self.closing = true,
            // Nothing is pushed, so nothing is replied to; windows are not kept (the module says why).
            Frame::Ping(_)
            | Frame::SynReply { .. }
            | Frame::Headers { .. }
            | Frame::Settings(_)
            | Frame::WindowUpdate { .. } => {}
        }
        Ok(())
    }

    fn open(&mut self, stream: u32, fin: bool, unidirectional: bool, headers: Headers) -> Result<(), Gone> {
        let refuse = |status| self.shared.answer(Frame::RstStream { stream, status });
        if self.closing {
            return Ok(());
        }
        if stream % 2 == 0 || stream <= self.shared.last_stream.load(Ordering::Relaxed) {
            return refuse(reset::PROTOCOL_ERROR);
        }
        self.shared.last_stream.store(stream, Ordering::Relaxed);
        if let Err(reason) = (self.settings.admit)(&headers) {
            tracing::debug!(stream, reason, "Refused a stream");
            return refuse(reset::CANCEL);
        }
        // Without one, the session is over and its last bytes are being written.
        let Some(data) = self.data.upgrade() else { return refuse(reset::REFUSED_STREAM) };
        let Ok(slot) = self.accepted.try_reserve() else { return refuse(reset::REFUSED_STREAM) };
        let (inbox, reader) = Inbox::new();
        if fin {
            inbox.finish();
        }
        {
            let mut streams = self.shared.streams.lock();
            if streams.len() >= MAX_STREAMS {
                drop(streams);
                return refuse(reset::REFUSED_STREAM);
            }
            let entry = Entry { inbox, remote_open: !fin, local_open: !unidirectional, reader_gone: false };
            streams.insert(stream, entry);
        }
        self.shared.answer(Frame::SynReply { stream, fin: unidirectional, headers: Headers::new() })?;
        let half = || Half { stream, shared: self.shared.clone() };
        let reader = StreamReader { inbox: reader, half: half() };
        let writer = StreamWriter { data: PollSender::new(data), finished: unidirectional, half: half() };
        slot.send(Stream { id: stream, headers, reader, writer });
        Ok(())
    }

    async fn data(&self, stream: u32, fin: bool, bytes: &[u8]) -> Result<(), Gone> {
        let open = |entry: &mut Entry| entry.remote_open.then(|| entry.inbox.clone());
        // Of a stream that is over, or was refused: the client did not know yet.
        let Some(inbox) = self.shared.change(stream, open).flatten() else { return Ok(()) };
        inbox.push(bytes);
        if fin {
            self.finish(stream);
        }
        let since = Instant::now();
        let mut ping = 2;
        while inbox.is_full() {
            if tokio::time::timeout(STALLED_PING, inbox.room()).await.is_ok() {
                break;
            }
            match self.settings.stalled {
                Stalled::ResetAfter(patience) if since.elapsed() >= patience => {
                    tracing::debug!(stream, "Reset a stream that nobody reads");
                    if self.shared.remove(stream) {
                        self.shared.answer(Frame::RstStream { stream, status: reset::FLOW_CONTROL_ERROR })?;
                    }
                    inbox.break_off();
                    break;
                }
                // A client that has gone is noticed by writing to it.
                _ => self.shared.answer(Frame::Ping(ping))?,
            }
            ping += 2;
        }
        Ok(())
    }

    fn finish(&self, stream: u32) {
        self.shared.change(stream, |entry| {
            entry.inbox.finish();
            entry.remote_open = false;
        });
    }
}

struct Writer<W> {
    io: W,
    shared: Arc<Shared>,
    encoder: Encoder,
    /// Bytes of whole frames; outlives a write that is given up, so that what follows begins at a frame.
    out: BytesMut,
}

impl<W: AsyncWrite + Unpin> Writer<W> {
    fn new(io: W, shared: Arc<Shared>) -> Self {
        Self { io, shared, encoder: Encoder::new(), out: BytesMut::new() }
    }

    /// Writes until nobody can send data any more, and says goodbye.
    async fn write_frames(
        &mut self,
        mut answers: mpsc::Receiver<Frame>,
        mut outgoing: mpsc::Receiver<Data>,
    ) -> io::Result<()> {
        loop {
            let open = tokio::select! {
                // A stream is replied to before its data. Cancel-safe, both: a message stays in its queue.
                biased;
                Some(frame) = answers.recv() => {
                    self.encoder.encode(&frame, &mut self.out);
                    true
                }
                data = outgoing.recv() => match data {
                    Some(data) => {
                        self.data(data);
                        true
                    }
                    None => false,
                },
            };
            while self.out.len() < IO_BYTES {
                if let Ok(frame) = answers.try_recv() {
                    self.encoder.encode(&frame, &mut self.out);
                } else if let Ok(data) = outgoing.try_recv() {
                    self.data(data);
                } else {
                    break;
                }
            }
            if !open {
                self.reset_all();
                self.goodbye(goaway::OK);
            }
            self.io.write_all_buf(&mut self.out).await?;
            self.io.flush().await?;
            if !open {
                return self.io.shutdown().await;
            }
        }
    }

    fn data(&mut self, data: Data) {
        let Data { stream, bytes, fin } = data;
        // The client, or a drop, has reset it since.
        if !self.shared.may_send(stream) {
            return;
        }
        self.shared.active();
        self.encoder.encode(&Frame::Data { stream, fin, data: bytes }, &mut self.out);
        if fin {
            let unread = self.shared.change(stream, |entry| {
                entry.local_open = false;
                entry.remote_open && entry.reader_gone
            });
            if unread == Some(true) {
                self.reset(stream);
            }
        }
    }

    /// Tells the client that nobody reads what it still sends.
    fn reset(&mut self, stream: u32) {
        self.shared.remove(stream);
        self.encoder.encode(&Frame::RstStream { stream, status: reset::CANCEL }, &mut self.out);
    }

    fn reset_all(&mut self) {
        let open: Vec<u32> = self.shared.streams.lock().keys().copied().collect();
        for stream in open {
            self.reset(stream);
        }
    }

    fn goodbye(&mut self, status: u32) {
        let last_stream = self.shared.last_stream.load(Ordering::Relaxed);
        self.encoder.encode(&Frame::GoAway { last_stream, status }, &mut self.out);
    }

    /// Ends the connection for a reason, if the client takes it.
    async fn close(&mut self, status: u32) {
        self.goodbye(status);
        let write = async {
            self.io.write_all_buf(&mut self.out).await?;
            self.io.shutdown().await
        };
        let _ = tokio::time::timeout(Duration::from_secs(1), write).await;
    }
}

impl AsyncRead for StreamReader {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inbox).poll_read(cx, into)
    }
}

impl Drop for StreamReader {
    fn drop(&mut self) {
        let Half { stream, shared } = &self.half;
        let over = shared.change(*stream, |entry| {
            entry.reader_gone = true;
            entry.remote_open && !entry.local_open
        });
        if over == Some(true) && shared.remove(*stream) {
            let _ = shared.answer(Frame::RstStream { stream: *stream, status: reset::CANCEL });
        }
    }
}

impl StreamWriter {
    fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[u8], fin: bool) -> Poll<io::Result<usize>> {
        let broken = || io::Error::from(io::ErrorKind::BrokenPipe);
        if self.finished || !self.half.shared.may_send(self.half.stream) {
            return Poll::Ready(Err(broken()));
        }
        ready!(self.data.poll_reserve(cx)).map_err(|_| broken())?;
        let count = bytes.len().min(DATA_BYTES);
        let bytes = Bytes::copy_from_slice(&bytes[..count]);
        let data = Data { stream: self.half.stream, bytes, fin };
        self.data.send_item(data).map_err(|_| broken())?;
        Poll::Ready(Ok(count))
    }
}

impl AsyncWrite for StreamWriter {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.poll_send(cx, bytes, false)
    }

    /// What was written is on its way: the driver writes as soon as it can.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.finished {
            return Poll::Ready(Ok(()));
        }
        let result = ready!(self.poll_send(cx, &[], true));
        self.finished = true;
        Poll::Ready(result.map(drop))
    }
}

impl Drop for StreamWriter {
    fn drop(&mut self) {
        let Half { stream, shared } = &self.half;
        if !self.finished && shared.may_send(*stream) && shared.remove(*stream) {
            let _ = shared.answer(Frame::RstStream { stream: *stream, status: reset::CANCEL });
        }
    }
}
