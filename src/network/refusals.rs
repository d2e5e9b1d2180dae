//! What a pod was refused because it has as much as a pod may, told to people and not too often.
//!
//! In: every refusal, from wherever a limit holds. Out: a line in the agent's log and a [`LimitHit`] for whoever listens, at
//! most one a minute for each limit of a pod, so that a guest which tries again and again fills no log. Refuses nothing itself.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::ids::{PodRef, PodUid};

/// How long a limit of a pod is not named again.
const QUIET: Duration = Duration::from_secs(60);

/// What a pod was refused, and the limit that it hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// A socket, made or accepted.
    Socket {
        /// As many as a pod may have.
        limit: usize,
    },
    /// A socket, for want of open files of the pod's part.
    PodFiles,
    /// A socket, for want of open files of all pods together.
    NodeFiles,
    /// A connection a place in the queue of a listener.
    Connection {
        /// Where it wanted to.
        listener: SocketAddr,
        /// As many as may wait there.
        backlog: usize,
    },
    /// A whole window, or a place for a datagram.
    Buffer {
        /// Bytes of a pod after which windows shrink.
        limit: u64,
    },
    /// Memory of the container for what its sockets were to queue.
    Memory,
}

/// How many there are.
const KINDS: usize = 6;

impl Refusal {
    fn kind(self) -> usize {
        match self {
            Self::Socket { .. } => 0,
            Self::PodFiles => 1,
            Self::NodeFiles => 2,
            Self::Connection { .. } => 3,
            Self::Buffer { .. } => 4,
            Self::Memory => 5,
        }
    }

    /// The reason of its Event.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Socket { .. } => "SocketLimitReached",
            Self::PodFiles | Self::NodeFiles => "OpenFileLimitReached",
            Self::Connection { .. } => "BacklogFull",
            Self::Buffer { .. } => "SocketBufferLimitReached",
            Self::Memory => "SocketBufferMemoryExceeded",
        }
    }
}

/// The limit and what was refused, as people read it.
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket { limit } => {
                write!(f, "another socket was refused with EMFILE: the pod has {limit}, as many as a pod may")
            }
            Self::PodFiles => f.write_str(
                "another socket was refused with EMFILE: the pod has its part of the open files of the node; raise the \
                 agent's LimitNOFILE if it needs more",
            ),
            Self::NodeFiles => f.write_str(
                "another socket was refused with ENFILE: the pods of the node have all the open files there are; raise the \
                 agent's LimitNOFILE if they need more",
            ),
            Self::Connection { listener, backlog } => write!(
                f,
                "a connection to {listener} waits for room: {backlog} are in the listener's backlog, as many as it takes, \
                 and none is accepted"
            ),
            Self::Buffer { limit } => write!(
                f,
                "the pod's sockets hold {} KiB that nobody has read, as much as a pod's may: windows are 4 KiB and \
                 datagrams are dropped until some is",
                limit / 1024
            ),
            Self::Memory => f.write_str(
                "bytes of a socket were refused: what it has queued would not fit into the container's memory limit",
            ),
        }
    }
}

/// A limit that a pod hit.
#[derive(Debug, Clone)]
pub struct LimitHit<'a> {
    /// The pod's name.
    pub pod: &'a PodRef,
    /// Its UID.
    pub uid: &'a PodUid,
    /// The limit and what was refused.
    pub refusal: Refusal,
}

/// Who is told. It must not block, nor ask the network: locks of sockets may be held.
pub type LimitSink = Box<dyn Fn(&LimitHit<'_>) + Send + Sync>;

/// The refusals of one pod.
pub(super) struct Refusals {
    pod: PodRef,
    uid: PodUid,
    sink: Arc<OnceLock<LimitSink>>,
    /// Made with the first: most pods never see one.
    seen: Mutex<Option<Box<[Seen; KINDS]>>>,
}

/// Of one limit.
#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    told: Option<Instant>,
    untold: u64,
}

impl Seen {
    /// How many there were since it was told last, if it is told now.
    fn another(&mut self, now: Instant) -> Option<u64> {
        self.untold += 1;
        if self.told.is_some_and(|told| now.duration_since(told) < QUIET) {
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.untold))
    }
}

impl Refusals {
    pub(super) fn new(pod: PodRef, uid: PodUid, sink: Arc<OnceLock<LimitSink>>) -> Self {
        Self { pod, uid, sink, seen: Mutex::default() }
    }

    /// Takes note of one.
    pub(super) fn note(&self, refusal: Refusal) {
        let news = self.seen.lock().get_or_insert_default()[refusal.kind()].another(Instant::now());
        let Some(times) = news else { return };
        tracing::warn!(
            pod = %self.pod, podUID = %self.uid, reason = refusal.reason(), times, err = %refusal,
            "Pod hit a limit of its network"
        );
        if let Some(sink) = self.sink.get() {
            sink(&LimitHit { pod: &self.pod, uid: &self.uid, refusal });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_named_at_once_and_then_once_a_minute_with_what_was_refused_meanwhile() {
        let begin = Instant::now();
        let mut seen = Seen::default();
        for (case, after, expected) in [
            ("the first", 0, Some(1)),
            ("the next", 0, None),
            ("a while later", 59, None),
            ("after the minute, with those before", 60, Some(3)),
            ("a minute counts from what was told", 119, None),
            ("again", 121, Some(2)),
        ] {
            assert_eq!(seen.another(begin + Duration::from_secs(after)), expected, "{case}");
        }
    }

    #[test]
    fn every_limit_has_its_own_minute_and_its_own_words() {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let sink: Arc<OnceLock<LimitSink>> = Arc::default();
        let telling = heard.clone();
        assert!(sink.set(Box::new(move |hit| telling.lock().push((hit.pod.to_string(), hit.refusal)))).is_ok());
        let pod = PodRef { namespace: "default".to_owned(), name: "web".to_owned() };
        let refusals = Refusals::new(pod, PodUid::new("u1").expect("a UID"), sink);
        let all = [
            Refusal::Socket { limit: 4096 },
            Refusal::PodFiles,
            Refusal::NodeFiles,
            Refusal::Connection { listener: SocketAddr::from(([127, 0, 0, 1], 80)), backlog: 128 },
            Refusal::Buffer { limit: 64 << 20 },
            Refusal::Memory,
        ];
        assert_eq!(all.len(), KINDS);
        for refusal in all.into_iter().chain(all) {
            refusals.note(refusal);
        }
        assert_eq!(*heard.lock(), all.map(|refusal| ("default/web".to_owned(), refusal)));
        let words: Vec<String> = all.iter().map(ToString::to_string).collect();
        assert!(words[0].contains("4096") && words[0].contains("EMFILE"), "{}", words[0]);
        assert!(words[3].contains("127.0.0.1:80") && words[3].contains("128"), "{}", words[3]);
        assert!(words[4].contains("65536 KiB"), "{}", words[4]);
    }
}
