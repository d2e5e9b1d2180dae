//! What has arrived for one stream of a multiplexed connection and was not read yet.
//!
//! In: bytes, pushed by the connection's one reading task. Out: an `AsyncRead`. Above [`LIMIT`] the connection is asked
//! to wait, which is the only back-pressure there is: neither SPDY as Kubernetes speaks it nor its WebSocket channels
//! have windows that a client honours. Knows no protocol.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::Notify;

/// Bytes of one stream above which its connection is not read further: enough to keep a link busy that is waited for.
pub(super) const LIMIT: usize = 128 * 1024;

/// The connection's side.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    state: Mutex<State>,
    room: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Copied into rather than a queue of pieces: a million frames of one byte must not keep a million read buffers.
    buffer: BytesMut,
    end: Option<End>,
    waker: Option<Waker>,
    /// Nobody will read any more.
    abandoned: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The peer has said all it wanted.
    Finished,
    /// The stream or its connection broke.
    Broken,
}

/// The reader's side. Dropped, what still arrives is thrown away.
#[derive(Debug)]
pub(super) struct InboxReader(Arc<Inbox>);

impl Inbox {
    /// An empty inbox and its reader.
    pub(super) fn new() -> (Arc<Self>, InboxReader) {
        let inbox = Arc::new(Self::default());
        (inbox.clone(), InboxReader(inbox))
    }

    /// Adds bytes; the caller then waits for [`Inbox::room`].
    pub(super) fn push(&self, bytes: &[u8]) {
        let mut state = self.state.lock();
        if state.abandoned || state.end.is_some() {
            return;
        }
        state.buffer.extend_from_slice(bytes);
        state.wake();
    }

    /// No more will come.
    pub(super) fn finish(&self) {
        self.end(End::Finished);
    }

    /// No more will come, and what came may not be all.
    pub(super) fn break_off(&self) {
        self.end(End::Broken);
    }

    fn end(&self, end: End) {
        let mut state = self.state.lock();
        state.end.get_or_insert(end);
        state.wake();
    }

    /// Waits until less than [`LIMIT`] is unread, or nobody reads. One waiter at a time. Cancel-safe.
    pub(super) async fn room(&self) {
        while self.is_full() {
            // A permit left over from an earlier read costs one more look.
            self.room.notified().await;
        }
    }

    pub(super) fn is_full(&self) -> bool {
        let state = self.state.lock();
        state.buffer.len() >= LIMIT && state.end != Some(End::Broken)
    }
}

impl State {
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl AsyncRead for InboxReader {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.state.lock();
        if state.end == Some(End::Broken) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if state.buffer.is_empty() {
            if state.end.is_some() {
                return Poll::Ready(Ok(()));
            }
            state.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let count = into.remaining().min(state.buffer.len());
        into.put_slice(&state.buffer[..count]);
        state.buffer.advance(count);
        if state.buffer.is_empty() {
            // What a burst has grown is given back.
            state.buffer = BytesMut::new();
        }
        drop(state);
        self.0.room.notify_one();
        Poll::Ready(Ok(()))
    }
}

impl Drop for InboxReader {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.abandoned = true;
        state.buffer = BytesMut::new();
        drop(state);
        self.0.room.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn what_was_pushed_is_read_and_then_the_end() {
        let (inbox, mut reader) = Inbox::new();
        inbox.push(b"one ");
        inbox.push(b"two");
        inbox.finish();
        inbox.push(b"too late");
        let mut text = String::new();
        reader.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "one two");
    }

    #[tokio::test]
    async fn a_broken_stream_is_an_error_and_not_an_end() {
        let (inbox, mut reader) = Inbox::new();
        inbox.push(b"half");
        inbox.break_off();
        inbox.finish();
        let error = reader.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn a_full_inbox_has_room_when_it_is_read_or_abandoned() {
        let (inbox, mut reader) = Inbox::new();
        inbox.push(&vec![0; LIMIT]);
        assert!(inbox.is_full());
        reader.read_exact(&mut [0; 1]).await.unwrap();
        inbox.room().await;
        inbox.push(&vec![0; LIMIT]);
        assert!(inbox.is_full());
        drop(reader);
        inbox.room().await;
        inbox.push(&vec![0; LIMIT]);
        assert!(!inbox.is_full(), "nobody reads: nothing is kept");
    }
}
