//! A container that ended: its last words, its record, its back-off.
//!
//! In: `ContainerExit`. Out: the end in the record, the container's own files removed.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;

use super::actor::{Done, Fate, PodWorker, Subject};
use super::model::{Activity, from_record, push_end, to_record};
use super::runtime::ContainerRuntime;
use super::start::find;
use crate::logs::{LogError, LogOptions, LogStore};
use crate::pod::back_off::{BackOff, elapsed};
use crate::pod::run::ContainerExit;
use crate::pod::termination::{self, MAX_LOG_BYTES, MAX_LOG_LINES, MAX_MESSAGE_BYTES, MessagePolicy};
use crate::state::ExitRecord;

impl<R: ContainerRuntime> PodWorker<R> {
    /// The runtime says that a container ended.
    pub(super) fn exited(&mut self, exit: ContainerExit) {
        let found = self.containers.iter_mut().find(|(_, live)| live.id() == Some(&exit.id));
        let Some((name, live)) = found else {
            tracing::debug!(containerID = %exit.id, "Ignored the exit of an attempt that is no more");
            return;
        };
        let name = name.clone();
        match &mut live.activity {
            // Heard before its start: it is handled when the start is.
            Activity::Launching { exit: early, .. } => {
                *early = Some(exit);
                return;
            }
            Activity::Running { .. } | Activity::Stopping { .. } => {}
            Activity::Idle | Activity::Preparing { .. } | Activity::Ending { .. } => return,
        }
        live.checks.end();
        live.activity = Activity::Ending { id: exit.id.clone(), at: self.services.clock.now() };
        self.collect(name, exit);
    }

    /// Reads the termination message and removes what the attempt wrote.
    fn collect(&mut self, container: String, exit: ContainerExit) {
        let attempt = self.record.containers.get(&container).and_then(|r| r.running.as_ref()).map_or(0, |r| r.attempt);
        let policy = find(&self.pod, &container).and_then(|c| c.termination_message_policy);
        let policy = MessagePolicy::parse(policy.as_deref());
        let services = self.services.clone();
        let uid = self.uid.clone();
        let log = services.logs.path(&self.name, &self.uid, &container, attempt);
        self.spawn(Subject::Container(container.clone()), async move {
            let paths = services.state.paths(&uid);
            let file = paths.termination_message_file(&container, attempt);
            let directory = paths.attempt_dir(&container, attempt);
            let state = services.state.clone();
            let pod_uid = uid.clone();
            let read = tokio::task::spawn_blocking(move || {
                let written = read_tail(&file, MAX_MESSAGE_BYTES);
                // The container's own files go with it; volumes stay.
                if let Err(error) = state.remove_tree(&pod_uid, &directory) {
                    tracing::error!(err = %error, "Failed to remove a container's files");
                }
                written
            });
            let written = read.await.unwrap_or_default();
            let code = i32::from(exit.exit_code);
            let tail = if termination::wants_log(policy, code, &exit.cause, &written) {
                match log_tail(&services.logs, &log).await {
                    Ok(tail) => Some(tail),
                    Err(error) => Some(format!("Error on reading termination message from logs: {error}").into_bytes()),
                }
            } else {
                None
            };
            let message = termination::message(&exit.cause, &written, tail.as_deref());
            Done::ExitCollected { container, exit, message }
        });
    }

    /// Writes the end down.
    pub(super) fn record_exit(&mut self, name: &str, exit: &ContainerExit, message: Option<String>) {
        let Some(live) = self.containers.get_mut(name) else { return };
        if live.id() != Some(&exit.id) {
            return;
        }
        live.activity = Activity::Idle;
        if self.fate == Fate::AgentStops {
            // It ended because the agent does: the record goes on saying that it ran, and the next agent
            // treats it as the kubelet treats a container whose sandbox is gone.
            return;
        }
        let exit_code = i32::from(exit.exit_code);
        let started_at = timestamp(exit.started_at);
        let finished_at = timestamp(exit.finished_at).max(started_at);
        let reason = termination::reason(exit_code, &exit.cause).to_owned();
        let record = self.container_record(name);
        let Some(run) = record.running.take() else { return };
        let previous = record.back_off.map(from_record);
        let back_off = BackOff::after_exit(previous, elapsed(started_at, finished_at), finished_at);
        record.back_off = Some(to_record(back_off));
        push_end(
            record,
            ExitRecord {
                id: run.id,
                attempt: run.attempt,
                image_id: run.image_id,
                user: run.user,
                exit_code,
                reason,
                message,
                started_at,
                finished_at,
            },
        );
        self.mark_ended_here(name);
    }

    /// A container was made and could not be started: containerd's `StartError`, which counts as an end.
    pub(super) fn record_failed_run(&mut self, name: &str, exit_code: u8, message: String) {
        let now = self.services.clock.now();
        let record = self.container_record(name);
        let Some(run) = record.running.take() else { return };
        let previous = record.back_off.map(from_record);
        record.back_off = Some(to_record(BackOff::after_exit(previous, Duration::ZERO, now)));
        record.restart_count = run.attempt;
        push_end(
            record,
            ExitRecord {
                id: run.id,
                attempt: run.attempt,
                image_id: run.image_id,
                user: run.user,
                exit_code: i32::from(exit_code),
                reason: "StartError".to_owned(),
                message: Some(message),
                started_at: run.started_at,
                finished_at: now.max(run.started_at),
            },
        );
        if let Some(live) = self.containers.get_mut(name) {
            live.activity = Activity::Idle;
            live.revive = false;
        }
        self.mark_ended_here(name);
    }

    /// The end of a container could not be collected: it is recorded without last words.
    pub(super) fn forget_running(&mut self, name: &str) {
        let now = self.services.clock.now();
        super::model::record_lost(self.container_record(name), now);
        if let Some(live) = self.containers.get_mut(name) {
            live.activity = Activity::Idle;
            live.revive = false;
        }
        self.mark_ended_here(name);
    }
}

fn timestamp(at: std::time::SystemTime) -> Timestamp {
    Timestamp::try_from(at).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// The last bytes of a file; nothing when it is not there.
fn read_tail(path: &Path, most: usize) -> Vec<u8> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(most as u64)))?;
        let mut bytes = Vec::new();
        file.take(most as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => format!("Error on reading termination log {}: {error}", path.display()).into_bytes(),
    }
}

/// The end of a log without times: at most 80 lines and 2048 bytes.
async fn log_tail(logs: &LogStore, path: &Path) -> Result<Vec<u8>, LogError> {
    let options = LogOptions { tail_lines: Some(MAX_LOG_LINES), ..LogOptions::default() };
    let mut reader = logs.read(path, options).await?;
    let mut tail = Vec::new();
    while let Some(chunk) = reader.next().await? {
        tail.extend_from_slice(&chunk.bytes);
        // Bounded: 80 lines may be of any length.
        let excess = tail.len().saturating_sub(MAX_LOG_BYTES);
        tail.drain(..excess);
    }
    Ok(tail)
}
