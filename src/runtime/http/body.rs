//! Bodies from the network, with a limit on how long a peer may be silent.
//!
//! In: hyper's incoming body. Out: the body type of wasmtime-wasi-http. The timer runs only while someone waits
//! for a frame, so a guest that reads slowly is not blamed on the peer.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};
use wasmtime_wasi_http::{Error, WasiBody};

struct Timed {
    incoming: Incoming,
    silence: Duration,
    timer: Option<Pin<Box<Sleep>>>,
}

/// `incoming` as a guest reads it; a peer silent for longer than `silence` is an error.
pub fn timed(incoming: Incoming, silence: Duration) -> WasiBody {
    Timed { incoming, silence, timer: None }.boxed_unsync()
}

/// A body of nothing.
pub fn empty() -> WasiBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

impl Body for Timed {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.incoming).poll_frame(cx) {
            self.timer = None;
            return Poll::Ready(frame.map(|frame| frame.map_err(Error::from)));
        }
        let deadline = Instant::now() + self.silence;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        timer.as_mut().poll(cx).map(|()| Some(Err(Error::ConnectionReadTimeout)))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
