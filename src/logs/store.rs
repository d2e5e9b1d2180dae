//! The directory of all container logs: its layout, who writes, what is removed.
//!
//! In: names of pods and containers. Out: paths, one writer per file, readers. Owns the compressor thread.

use std::collections::HashMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::clock::Clock;
use crate::ids::{PodRef, PodUid};
use crate::pod::run::LogRotation;

use super::rotate::{Compressor, ignore_absent};
use super::{LogOptions, LogReader, LogWriter};

/// All container logs of the node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct LogStore {
    root: PathBuf,
    shared: Arc<Shared>,
}

/// Why a log could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file system refused.
    #[error("cannot {step} log {path}: {source}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// To which file.
        path: PathBuf,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// Nothing was ever written there, or it was removed.
    #[error("there is no log at {path}")]
    NotFound {
        /// The file.
        path: PathBuf,
    },
    /// Two writers would tear each other's lines.
    #[error("log {path} already has a writer")]
    AlreadyOpen {
        /// The file.
        path: PathBuf,
    },
}

/// What writers and readers of one node have in common.
#[derive(Debug)]
pub(super) struct Shared {
    clock: Clock,
    compressor: Compressor,
    /// Logs being written, with word of each write for followers.
    writers: Mutex<HashMap<PathBuf, watch::Receiver<u64>>>,
}

impl Shared {
    pub(super) fn clock(&self) -> &Clock {
        &self.clock
    }

    pub(super) fn compressor(&self) -> &Compressor {
        &self.compressor
    }

    pub(super) fn forget(&self, path: &Path) {
        self.writers.lock().remove(path);
    }
}

impl LogStore {
    /// Opens (and makes) the directory; starts the one thread that compresses rotated files.
    ///
    /// # Errors
    /// The directory could not be made, or the thread not started.
    pub fn open(root: impl Into<PathBuf>, clock: Clock) -> Result<Self, LogError> {
        let root = root.into();
        let io = |step| {
            let path = root.clone();
            move |source| LogError::Io { step, path, source }
        };
        make_dir(&root).map_err(io("make the directory of"))?;
        let compressor = Compressor::start().map_err(io("start the compressor of"))?;
        let shared = Shared { clock, compressor, writers: Mutex::new(HashMap::new()) };
        Ok(Self { root, shared: Arc::new(shared) })
    }

    /// The directory of all logs.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `<root>/NS_NAME_UID/CONTAINER/N.log`.
    #[must_use]
    pub fn path(&self, pod: &PodRef, uid: &PodUid, container: &str, attempt: u32) -> PathBuf {
        self.container_dir(pod, uid, container).join(format!("{attempt}.log"))
    }

    /// Opens the log of one attempt for appending; makes its directories. One writer a file.
    ///
    /// # Errors
    /// [`LogError::AlreadyOpen`], or the file system refused.
    pub fn writer(&self, path: &Path, rotation: LogRotation) -> Result<LogWriter, LogError> {
        let (progress, heard) = watch::channel(0);
        {
            let mut writers = self.shared.writers.lock();
            if writers.contains_key(path) {
                return Err(LogError::AlreadyOpen { path: path.to_owned() });
            }
            writers.insert(path.to_owned(), heard);
        }
        let made = match path.parent() {
            Some(dir) => make_dir(dir).map_err(|source| LogError::Io {
                step: "make the directory of",
                path: path.to_owned(),
                source,
            }),
            None => Ok(()),
        };
        made.and_then(|()| LogWriter::open(self.shared.clone(), path, rotation, progress))
            .inspect_err(|_| self.shared.forget(path))
    }

    /// Opens the log of one attempt for reading; `path` is [`Self::path`]'s. Following ends when its writer is dropped,
    /// or at once when it has none.
    ///
    /// # Errors
    /// [`LogError::NotFound`], or the file system refused.
    pub async fn read(&self, path: &Path, options: LogOptions) -> Result<LogReader, LogError> {
        let writer = if options.follow { self.shared.writers.lock().get(path).cloned() } else { None };
        LogReader::open(path.to_owned(), options, writer).await
    }

    /// Which attempts of a container have a log, ascending.
    ///
    /// # Errors
    /// The file system refused; an absent directory is an empty list.
    pub fn attempts(&self, pod: &PodRef, uid: &PodUid, container: &str) -> Result<Vec<u32>, LogError> {
        let dir = self.container_dir(pod, uid, container);
        let mut attempts: Vec<u32> =
            file_names(&dir)?.iter().filter_map(|name| name.strip_suffix(".log")?.parse().ok()).collect();
        attempts.sort_unstable();
        Ok(attempts)
    }

    /// Removes the logs of attempts before `oldest_kept` (the kubelet keeps the running one and one dead container).
    ///
    /// # Errors
    /// The file system refused.
    pub fn remove_attempts_before(
        &self,
        pod: &PodRef,
        uid: &PodUid,
        container: &str,
        oldest_kept: u32,
    ) -> Result<(), LogError> {
        let dir = self.container_dir(pod, uid, container);
        for name in file_names(&dir)? {
            let attempt: Option<u32> = name.split_once(".log").and_then(|(attempt, _)| attempt.parse().ok());
            if attempt.is_some_and(|attempt| attempt < oldest_kept) {
                let path = dir.join(name);
                ignore_absent(fs::remove_file(&path)).map_err(|source| LogError::Io {
                    step: "remove",
                    path,
                    source,
                })?;
            }
        }
        Ok(())
    }

    /// Removes all logs of a pod.
    ///
    /// # Errors
    /// The file system refused; absence is fine.
    pub fn remove_pod(&self, pod: &PodRef, uid: &PodUid) -> Result<(), LogError> {
        let path = self.pod_dir(pod, uid);
        // std's removal doesn't follow symlinks, and only the node writes below this directory.
        ignore_absent(fs::remove_dir_all(&path)).map_err(|source| LogError::Io { step: "remove", path, source })
    }

    /// Bytes of all logs of a container, for ephemeral-storage accounting.
    ///
    /// # Errors
    /// The file system refused; an absent directory is zero.
    pub fn usage(&self, pod: &PodRef, uid: &PodUid, container: &str) -> Result<u64, LogError> {
        let dir = self.container_dir(pod, uid, container);
        // A file removed by rotation in between counts nothing.
        Ok(file_names(&dir)?.iter().filter_map(|name| fs::metadata(dir.join(name)).ok()).map(|m| m.len()).sum())
    }

    fn pod_dir(&self, pod: &PodRef, uid: &PodUid) -> PathBuf {
        self.root.join(format!("{}_{}_{uid}", one_component(&pod.namespace), one_component(&pod.name)))
    }

    fn container_dir(&self, pod: &PodRef, uid: &PodUid, container: &str) -> PathBuf {
        self.pod_dir(pod, uid).join(one_component(container))
    }
}

/// A name as one harmless path component. Valid Kubernetes names come through unchanged.
fn one_component(name: &str) -> String {
    let safe: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || "-.".contains(c) { c } else { '_' }).collect();
    if safe.is_empty() || safe == "." || safe == ".." { "_".to_owned() } else { safe }
}

fn make_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(dir)
}

fn file_names(dir: &Path) -> Result<Vec<String>, LogError> {
    let io = |source| LogError::Io { step: "list the directory of", path: dir.to_owned(), source };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.map_err(io)?.file_name().into_string().ok());
    }
    Ok(names)
}
