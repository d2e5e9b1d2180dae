//! The threads that run guests, apart from the agent's own.
//!
//! In: how many. Out: a tokio runtime of that many threads, a little lower in priority than the agent: a node full of
//! spinning guests still answers.

use std::num::NonZeroUsize;

use tokio::runtime::{Builder, Handle, Runtime};

/// Below the agent, even with the compiler: a start is waited for.
const NICE: i32 = 5;
/// Polls between looks at timers and sockets. tokio's 61 is for polls of microseconds; ours last up to 10 ms, and
/// 61 of them would make every timer late by half a second.
const EVENT_INTERVAL: u32 = 2;
/// Polls between looks at tasks that other threads woke, for the same reason.
const GLOBAL_QUEUE_INTERVAL: u32 = 2;

/// The threads; they end when this is dropped.
pub(super) struct GuestThreads(Option<Runtime>);

impl GuestThreads {
    /// Starts `count` threads.
    pub(super) fn start(count: NonZeroUsize) -> std::io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(count.get())
            .thread_name("guest")
            .event_interval(EVENT_INTERVAL)
            .global_queue_interval(GLOBAL_QUEUE_INTERVAL)
            .on_thread_start(lower_priority)
            .enable_all()
            .build()?;
        Ok(Self(Some(runtime)))
    }

    /// Where to spawn.
    pub(super) fn handle(&self) -> Handle {
        self.0.as_ref().expect("taken only by drop").handle().clone()
    }
}

impl Drop for GuestThreads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // A blocking call of a guest may hang on a dead mount; the agent's end does not wait for it.
            runtime.shutdown_background();
        }
    }
}

/// On Linux the nice value is the thread's own.
fn lower_priority() {
    let thread = rustix::thread::gettid();
    if let Err(error) = rustix::process::setpriority_process(Some(thread), NICE) {
        tracing::debug!(err = %error, "Guest thread kept the agent's priority");
    }
}
