//! What a person at a terminal sees of a played manifest.
//!
//! In: statuses (which containers run), log files, events. Out: prefixed lines on stdout, events on stderr. One task follows
//! each attempt of each container; a line is written whole.

use std::collections::HashSet;
use std::io::{IsTerminal, Write};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ContainerStatus, Event, PodStatus};
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::agent::Node;
use crate::ids::{PodRef, PodUid};
use crate::logs::{LogOptions, LogStore};
use crate::status::{PodSnapshot, StatusCache, StatusChange};

/// Colours of prefixes, told apart on dark and light terminals alike.
const COLOURS: [u8; 6] = [36, 33, 32, 35, 34, 31];

/// Prints until it is finished.
pub(super) struct Printer {
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Printer {
    /// Begins to print what the node's pods do.
    pub(super) fn start(node: &Node, quiet: bool) -> Self {
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let suffix = format!("-{}", node.name());
        if !quiet {
            let mut events = node.events().subscribe();
            let (stop, suffix) = (stop.clone(), suffix.clone());
            tasks.spawn(async move {
                loop {
                    tokio::select! {
                        // Events that were there before the end are shown.
                        biased;
                        // Cancel-safe: an event is received or stays in the channel.
                        event = events.recv() => match event {
                            Ok(event) => print_event(&event, &suffix),
                            Err(RecvError::Lagged(missed)) => eprintln!("({missed} events not shown)"),
                            Err(RecvError::Closed) => return,
                        },
                        () = stop.cancelled() => return,
                    }
                }
            });
        }
        let follower = Follower {
            logs: node.logs().clone(),
            suffix,
            tasks: tasks.clone(),
            seen: HashSet::new(),
            colours: std::io::stdout().is_terminal(),
        };
        tasks.spawn(follower.run(node.status().clone(), stop.clone()));
        Self { stop, tasks }
    }

    /// Prints what is still to come of containers that have ended, and ends.
    pub(super) async fn finish(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        let _ = std::io::stdout().flush();
    }
}

fn print_event(event: &Event, suffix: &str) {
    let object = &event.involved_object;
    let (kind, reason) = (event.type_.as_deref().unwrap_or("Normal"), event.reason.as_deref().unwrap_or_default());
    let mark = if kind == "Warning" { "!" } else { "*" };
    let name = object.name.as_deref().unwrap_or_default();
    // As the lines of logs are named; an event of the node has the node's name.
    let pod = name.strip_suffix(suffix).unwrap_or(name);
    // `spec.containers{web}` names the container.
    let container = object.field_path.as_deref().and_then(|path| path.split_once('{')?.1.strip_suffix('}'));
    let name = container.map_or_else(|| pod.to_owned(), |container| format!("{pod}/{container}"));
    let message = event.message.as_deref().unwrap_or_default();
    // One write: eprintln! writes piece by piece, and guests' lines come between.
    let line = format!("{mark} {reason:<10} {name}: {message}\n");
    let _ = std::io::stderr().lock().write_all(line.as_bytes());
}

/// Starts a task for each attempt that begins.
struct Follower {
    logs: LogStore,
    /// `-NODE`, which every static pod's name ends with and nobody needs to read on every line.
    suffix: String,
    tasks: TaskTracker,
    /// Attempts that have a task, by pod, container and number.
    seen: HashSet<(PodUid, String, u32)>,
    colours: bool,
}

impl Follower {
    async fn run(mut self, status: StatusCache, stop: CancellationToken) {
        let mut changes = status.subscribe();
        self.look_at_all(&status);
        loop {
            tokio::select! {
                // Cancel-safe: a change is received or stays in the channel.
                change = changes.recv() => match change {
                    Ok(StatusChange::Changed(uid, snapshot)) => self.look(&uid, &snapshot),
                    Ok(StatusChange::Removed(..)) => {}
                    Err(RecvError::Lagged(_)) => self.look_at_all(&status),
                    Err(RecvError::Closed) => return,
                },
                () = stop.cancelled() => {
                    self.look_at_all(&status);
                    return;
                }
            }
        }
    }

    fn look_at_all(&mut self, status: &StatusCache) {
        for snapshot in status.list() {
            if let Some(uid) = snapshot.pod.metadata.uid.clone().and_then(|uid| PodUid::new(uid).ok()) {
                self.look(&uid, &snapshot);
            }
        }
    }

    fn look(&mut self, uid: &PodUid, snapshot: &PodSnapshot) {
        let meta = &snapshot.pod.metadata;
        let pod = PodRef {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
        };
        for container in all(&snapshot.status).filter(|container| has_run(container)) {
            let Ok(attempts) = self.logs.attempts(&pod, uid, &container.name) else { continue };
            for attempt in attempts {
                if self.seen.insert((uid.clone(), container.name.clone(), attempt)) {
                    self.follow(&pod, uid, &container.name, attempt);
                }
            }
        }
    }

    fn follow(&self, pod: &PodRef, uid: &PodUid, container: &str, attempt: u32) {
        let path = self.logs.path(pod, uid, container, attempt);
        let short = pod.name.strip_suffix(&self.suffix).unwrap_or(&pod.name);
        let prefix = prefix(&format!("{short}/{container}"), self.colours);
        let logs = self.logs.clone();
        self.tasks.spawn(async move {
            let options = LogOptions { follow: true, ..LogOptions::default() };
            let mut reader = match logs.read(&path, options).await {
                Ok(reader) => reader,
                Err(error) => return eprintln!("! {}: {error}", prefix.trim_end()),
            };
            // Ends when the container's writer has closed the file and all of it was read.
            loop {
                match reader.next().await {
                    Ok(Some(chunk)) => print_lines(&prefix, &chunk.bytes),
                    Ok(None) => return,
                    Err(error) => return eprintln!("! {}: {error}", prefix.trim_end()),
                }
            }
        });
    }
}

fn prefix(name: &str, colours: bool) -> Arc<str> {
    if !colours {
        return format!("{name:<16} ").into();
    }
    let sum: usize = name.bytes().map(usize::from).sum();
    format!("\x1b[{}m{name:<16}\x1b[0m ", COLOURS[sum % COLOURS.len()]).into()
}

fn print_lines(prefix: &str, bytes: &[u8]) {
    let mut text = Vec::with_capacity(bytes.len() + prefix.len());
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        text.extend_from_slice(prefix.as_bytes());
        text.extend_from_slice(line);
        if !line.ends_with(b"\n") {
            text.push(b'\n');
        }
    }
    // A reader that has gone (`| head`) wants no more; the pods go on until they are stopped.
    let _ = std::io::stdout().lock().write_all(&text);
}

fn all(status: &PodStatus) -> impl Iterator<Item = &ContainerStatus> {
    let inits = status.init_container_statuses.iter().flatten();
    inits.chain(status.container_statuses.iter().flatten())
}

fn has_run(container: &ContainerStatus) -> bool {
    let state = container.state.as_ref();
    let ended_before = container.last_state.as_ref().is_some_and(|state| state.terminated.is_some());
    ended_before || state.is_some_and(|state| state.running.is_some() || state.terminated.is_some())
}
