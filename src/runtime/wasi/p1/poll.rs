//! `poll_oneoff`: waits for clocks, files, pipes, sockets, standard streams and signals.
//!
//! In: subscriptions. Out: the events that are there, at least one. Nothing is polled in a loop: what is not ready is
//! awaited, all of it at once. The number of subscriptions is bounded, and looking at many gives others a turn.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::future::select_all;
use tokio::time::Instant;
use wiggle::GuestPtr;

use super::{Memory, Result, description, system, types};
use crate::errno::Errno;
use crate::network::Readiness;
use crate::runtime::process::pipe::ATOMIC_WRITE;
use crate::runtime::process::{DescriptionKind, FileDescription, Process};

/// More than any program has descriptors by default.
const MAX_SUBSCRIPTIONS: u32 = 4096;
/// Subscriptions looked at before others may run.
const BATCH: usize = 256;
/// Longer waits are as good as for ever, and fit the timer.
const LONGEST_WAIT: Duration = Duration::from_secs(365 * 24 * 3600);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Read,
    Write,
}

enum Wait {
    Until(Instant),
    Fd(Arc<FileDescription>, Direction),
    Failed(types::Eventtype, Errno),
}

struct Subscribed {
    userdata: types::Userdata,
    wait: Wait,
}

/// What a ready descriptor tells.
#[derive(Default)]
struct Ready {
    bytes: u64,
    hangup: bool,
}

/// The call.
pub(super) async fn oneoff(
    process: &Process,
    memory: &mut Memory<'_>,
    subscriptions: GuestPtr<[types::Subscription]>,
    events: GuestPtr<[types::Event]>,
) -> Result<u32> {
    let count = subscriptions.len();
    if count == 0 || count > MAX_SUBSCRIPTIONS {
        return Err(Errno::Inval);
    }
    let mut subscribed = Vec::with_capacity(count as usize);
    for subscription in subscriptions.iter() {
        subscribed.push(subscribe(process, &memory.read(subscription?)?)?);
    }
    let mut first = true;
    loop {
        let ready = ready_events(&subscribed).await;
        if !ready.is_empty() {
            if first {
                // A guest that asks again and again without waiting must not keep the thread.
                tokio::task::consume_budget().await;
            }
            for (slot, event) in events.iter().zip(&ready) {
                memory.write(slot?, event.clone())?;
            }
            return Ok(ready.len() as u32);
        }
        first = false;
        wait(&subscribed).await;
    }
}

fn subscribe(process: &Process, subscription: &types::Subscription) -> Result<Subscribed> {
    let wait = match &subscription.u {
        types::SubscriptionU::Clock(clock) => match deadline(process, clock) {
            Ok(deadline) => Wait::Until(deadline),
            Err(errno) => Wait::Failed(types::Eventtype::Clock, errno),
        },
        types::SubscriptionU::FdRead(fd) => match description(process, fd.file_descriptor) {
            Ok(description) => Wait::Fd(description, Direction::Read),
            Err(errno) => Wait::Failed(types::Eventtype::FdRead, errno),
        },
        types::SubscriptionU::FdWrite(fd) => match description(process, fd.file_descriptor) {
            Ok(description) => Wait::Fd(description, Direction::Write),
            Err(errno) => Wait::Failed(types::Eventtype::FdWrite, errno),
        },
    };
    Ok(Subscribed { userdata: subscription.userdata, wait })
}

fn deadline(process: &Process, clock: &types::SubscriptionClock) -> Result<Instant> {
    if matches!(clock.id, types::Clockid::ProcessCputimeId | types::Clockid::ThreadCputimeId) {
        return Err(Errno::NotSup);
    }
    let absolute = clock.flags.contains(types::Subclockflags::SUBSCRIPTION_CLOCK_ABSTIME);
    let now = if absolute { system::clock_time(process, clock.id) } else { 0 };
    let wait = Duration::from_nanos(clock.timeout.saturating_sub(now));
    Ok(Instant::now() + wait.min(LONGEST_WAIT))
}

async fn ready_events(subscribed: &[Subscribed]) -> Vec<types::Event> {
    let mut events = Vec::new();
    let now = Instant::now();
    for (index, subscription) in subscribed.iter().enumerate() {
        if index % BATCH == BATCH - 1 {
            tokio::task::yield_now().await;
        }
        let (kind, outcome) = match &subscription.wait {
            Wait::Until(deadline) if *deadline <= now => (types::Eventtype::Clock, Ok(Ready::default())),
            Wait::Until(_) => continue,
            Wait::Failed(kind, errno) => (*kind, Err(*errno)),
            Wait::Fd(description, direction) => {
                let kind = match direction {
                    Direction::Read => types::Eventtype::FdRead,
                    Direction::Write => types::Eventtype::FdWrite,
                };
                match ready_now(description, *direction).await {
                    Ok(Some(ready)) => (kind, Ok(ready)),
                    Ok(None) => continue,
                    Err(errno) => (kind, Err(errno)),
                }
            }
        };
        events.push(event(subscription.userdata, kind, outcome));
    }
    events
}

fn event(userdata: types::Userdata, type_: types::Eventtype, outcome: Result<Ready>) -> types::Event {
    let (error, ready) = match outcome {
        Ok(ready) => (types::Errno::Success, ready),
        Err(errno) => (super::convert::errno(errno), Ready::default()),
    };
    let flags = if ready.hangup { types::Eventrwflags::FD_READWRITE_HANGUP } else { types::Eventrwflags::empty() };
    types::Event { userdata, error, type_, fd_readwrite: types::EventFdReadwrite { nbytes: ready.bytes, flags } }
}

/// Whether a descriptor is ready, without waiting for it.
async fn ready_now(description: &FileDescription, direction: Direction) -> Result<Option<Ready>> {
    let of_stream = |(bytes, ended): (usize, bool)| {
        (bytes > 0 || ended).then_some(Ready { bytes: bytes as u64, hangup: ended && bytes == 0 })
    };
    let of_socket = |readiness: Readiness| match direction {
        Direction::Read => {
            readiness.readable.then_some(Ready { bytes: readiness.read_bytes, hangup: readiness.hangup })
        }
        Direction::Write => readiness.writable.then_some(Ready { bytes: 0, hangup: readiness.hangup }),
    };
    Ok(match (description.kind(), direction) {
        (DescriptionKind::File(open), Direction::Read) => {
            let size = open.file.stat().await?.size;
            let offset = *open.offset.lock().await;
            Some(Ready { bytes: size.saturating_sub(offset), hangup: false })
        }
        (DescriptionKind::File(_) | DescriptionKind::Directory(_), _) => Some(Ready::default()),
        (DescriptionKind::PipeReader(pipe), Direction::Read) => of_stream(pipe.available()),
        (DescriptionKind::PipeWriter(pipe), Direction::Write) => match pipe.room() {
            None => Some(Ready { bytes: 0, hangup: true }),
            Some(room) => (room >= ATOMIC_WRITE).then_some(Ready { bytes: room as u64, hangup: false }),
        },
        (DescriptionKind::Tcp(socket), _) => of_socket(socket.readiness()),
        (DescriptionKind::Udp(socket), _) => of_socket(socket.readiness()),
        (DescriptionKind::Input(input) | DescriptionKind::Terminal(input, _), Direction::Read) => {
            of_stream(input.available())
        }
        (DescriptionKind::Output(output) | DescriptionKind::Terminal(_, output), Direction::Write) => {
            output.is_writable().then_some(Ready { bytes: ATOMIC_WRITE as u64, hangup: false })
        }
        (DescriptionKind::ProcessEnd(process), Direction::Read) => of_stream((0, process.is_over())),
        (DescriptionKind::Signals(signals), Direction::Read) => {
            let pending = signals.pending();
            (pending > 0).then_some(Ready { bytes: u64::from(pending), hangup: false })
        }
        _ => return Err(Errno::BadF),
    })
}

/// Waits until any subscription may be ready.
async fn wait(subscribed: &[Subscribed]) {
    let deadline = subscribed.iter().filter_map(|subscription| match subscription.wait {
        Wait::Until(deadline) => Some(deadline),
        _ => None,
    });
    let deadline = deadline.min();
    let mut descriptors: Vec<Pin<Box<dyn Future<Output = ()> + Send + '_>>> = Vec::new();
    for subscription in subscribed {
        if let Wait::Fd(description, direction) = &subscription.wait {
            descriptors.push(match direction {
                Direction::Read => Box::pin(description.readable()),
                Direction::Write => Box::pin(description.writable(ATOMIC_WRITE)),
            });
        }
    }
    match (deadline, descriptors.is_empty()) {
        (Some(deadline), true) => tokio::time::sleep_until(deadline).await,
        (None, true) => {}
        (None, false) => drop(select_all(descriptors).await),
        (Some(deadline), false) => {
            // The timeout is the outcome that is looked at next, so it is no error.
            let _ = tokio::time::timeout_at(deadline, select_all(descriptors)).await;
        }
    }
}
