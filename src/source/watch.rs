//! Word of changed manifests, from inotify.
//!
//! In: events of one directory. Out: what to look at, and when. Reads no file and knows no manifest.
//!
//! A rename, a removal or the end of writing is a finished change: it is looked at without delay. A file that is being
//! written is looked at when it is closed, or after [`SETTLE`] when nobody closes it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, ModifyKind, RenameMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use parking_lot::Mutex;
use tokio::sync::Notify;

/// How long an unfinished change may take before it is looked at all the same.
const SETTLE: Duration = Duration::from_millis(100);

/// Names kept before it is cheaper to look at the whole directory.
const MAX_NAMES: usize = 1024;

/// What to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Extent {
    /// These files.
    Files(BTreeSet<PathBuf>),
    /// The whole directory.
    Everything,
}

/// Changes nobody has looked at yet.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pending: Mutex<Pending>,
    finished: Notify,
    begun: Notify,
}

#[derive(Debug, Default)]
struct Pending {
    names: BTreeSet<PathBuf>,
    /// Too many names, or an event that lost some.
    everything: bool,
}

/// What an event says of its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    /// Nothing changed.
    Nothing,
    /// Somebody is at work on it.
    Begun,
    /// It is as its author wants it.
    Finished,
}

impl Changes {
    /// Waits for a change. Cancel-safe: what is not returned stays pending.
    pub(super) async fn next(&self) -> Extent {
        tokio::select! {
            biased;
            () = self.finished.notified() => {}
            () = self.begun.notified() => {
                // The first to come of the end of the writing and of our patience.
                let _ = tokio::time::timeout(SETTLE, self.finished.notified()).await;
            }
        }
        let Pending { names, everything } = std::mem::take(&mut *self.pending.lock());
        if everything { Extent::Everything } else { Extent::Files(names) }
    }

    fn add(&self, event: notify::Result<Event>) {
        let meaning = {
            let mut pending = self.pending.lock();
            match event {
                Ok(event) => {
                    let meaning = meaning(event.kind);
                    if meaning == Meaning::Nothing {
                        return;
                    }
                    pending.everything |= event.need_rescan() || event.paths.is_empty();
                    pending.names.extend(event.paths);
                    if pending.names.len() > MAX_NAMES {
                        pending.names.clear();
                        pending.everything = true;
                    }
                    meaning
                }
                Err(_) => {
                    pending.everything = true;
                    Meaning::Begun
                }
            }
        };
        match meaning {
            Meaning::Finished => self.finished.notify_one(),
            Meaning::Begun => self.begun.notify_one(),
            Meaning::Nothing => {}
        }
    }
}

/// Reading a file is an event too: it must not make us read it again.
fn meaning(kind: EventKind) -> Meaning {
    match kind {
        // Its new name follows, unless it left the directory: a renamed manifest must not end its pod in between.
        EventKind::Modify(ModifyKind::Name(RenameMode::From)) => Meaning::Begun,
        EventKind::Access(AccessKind::Close(AccessMode::Write))
        | EventKind::Modify(ModifyKind::Name(_))
        | EventKind::Remove(_) => Meaning::Finished,
        EventKind::Access(_) => Meaning::Nothing,
        _ => Meaning::Begun,
    }
}

/// Watches the directory (of the file). Without inotify the period alone finds changes.
pub(super) fn watch(path: &Path, changes: Arc<Changes>) -> Option<RecommendedWatcher> {
    let directory = if path.is_dir() { path } else { path.parent().filter(|_| path.exists())? };
    let watcher = notify::recommended_watcher(move |event| changes.add(event)).and_then(|mut watcher| {
        watcher.watch(directory, RecursiveMode::NonRecursive)?;
        Ok(watcher)
    });
    watcher
        .inspect_err(|error| tracing::warn!(path = %path.display(), err = %error, "Failed to watch manifests; they are read periodically"))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use notify::event::{CreateKind, DataChange};

    fn event(kind: EventKind, path: &str) -> notify::Result<Event> {
        Ok(Event::new(kind).add_path(path.into()))
    }

    fn files(paths: &[&str]) -> Extent {
        Extent::Files(paths.iter().map(PathBuf::from).collect())
    }

    const CREATED: EventKind = EventKind::Create(CreateKind::File);
    const WRITTEN: EventKind = EventKind::Modify(ModifyKind::Data(DataChange::Any));
    const CLOSED: EventKind = EventKind::Access(AccessKind::Close(AccessMode::Write));
    const RENAMED: EventKind = EventKind::Modify(ModifyKind::Name(RenameMode::To));

    #[tokio::test(start_paused = true)]
    async fn a_finished_change_is_told_at_once_and_an_unfinished_one_after_a_while() {
        for (case, kinds, delay) in [
            ("a rename", &[RENAMED][..], Duration::ZERO),
            ("written and closed", &[CREATED, WRITTEN, CLOSED], Duration::ZERO),
            ("moved away", &[EventKind::Modify(ModifyKind::Name(RenameMode::From))], SETTLE),
            ("written and left open", &[CREATED, WRITTEN], SETTLE),
        ] {
            let changes = Changes::default();
            let begin = tokio::time::Instant::now();
            for kind in kinds {
                changes.add(event(*kind, "/m/a.yaml"));
            }
            assert_eq!(changes.next().await, files(&["/m/a.yaml"]), "{case}");
            assert_eq!(begin.elapsed(), delay, "{case}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn reading_is_no_change_and_losing_events_means_everything() {
        let changes = Changes::default();
        changes.add(event(EventKind::Access(AccessKind::Read), "/m/a.yaml"));
        assert!(tokio::time::timeout(SETTLE * 10, changes.next()).await.is_err());
        changes.add(Err(notify::Error::generic("queue overflow")));
        assert_eq!(changes.next().await, Extent::Everything);
        for n in 0..=MAX_NAMES {
            changes.add(event(RENAMED, &format!("/m/{n}.yaml")));
        }
        assert_eq!(changes.next().await, Extent::Everything);
    }
}
