//! What a worker says: statuses and Events.
//!
//! In: the worker's state. Out: the status cache and the recorder. Changes nothing else.

use std::collections::BTreeMap;

use super::actor::{Cleanup, Fate, PodWorker};
use super::runtime::ContainerRuntime;
use super::start::go_duration;
use crate::events::{EventType, container_reference, pod_reference};
use crate::pod::plan::{Phase, Sandbox};
use crate::pod::status::{self, ContainerFacts, SandboxReadiness, StatusInput, Waiting};
use crate::pod::user::format_pod;
use crate::state::ContainerRecord;
use crate::status::Stage;

impl<R: ContainerRuntime> PodWorker<R> {
    /// Makes the status, and tells it if it says something new.
    pub(super) fn publish(&mut self) {
        if self.cleanup == Cleanup::Removing {
            return;
        }
        // The agent stops: what is on disk must go on saying what ran.
        if self.fate == Fate::AgentStops {
            return;
        }
        let facts = self.facts();
        let mut status = status::generate(&StatusInput {
            pod: &self.pod,
            containers: &facts,
            sandbox: if self.sandbox == Sandbox::Ready { SandboxReadiness::Ready } else { SandboxReadiness::NotReady },
            pod_ips: &self.record.ips,
            host_ips: &self.config.node.host_ips,
            end: self.end.as_ref(),
            accepted_at: self.record.accepted_at,
            old: &self.record.status,
            now: self.services.clock.now(),
            restarting_all: self.record.restarting_all,
            resize_pending: self.resize.pending.as_ref(),
            resize_in_progress: self.resize.in_progress.as_ref(),
        });
        let stage = match (self.phase, self.cleanup) {
            (Phase::Terminated, Cleanup::TornDown) => Stage::Finished,
            (Phase::Terminated, _) => Stage::Stopped,
            _ => Stage::Alive,
        };
        if stage == Stage::Finished {
            status::finish(&self.pod, &mut status);
        }
        if let Err(error) = self.services.status.report(&self.uid, &self.pod, status.clone(), stage) {
            tracing::error!(err = %error, "Status update on pod aborted");
            return;
        }
        if status != self.record.status {
            self.record.status = status;
            self.dirty_later();
        }
    }

    fn facts(&self) -> BTreeMap<String, ContainerFacts> {
        let has_init =
            self.pod.spec.as_ref().and_then(|spec| spec.init_containers.as_ref()).is_some_and(|c| !c.is_empty());
        let default = if has_init { "PodInitializing" } else { "ContainerCreating" };
        let unknown = ContainerRecord::default();
        let facts = self.containers.iter().map(|(name, live)| {
            let record = self.record.containers.get(name).map_or(&unknown, |record| &**record);
            let backing_off = self.backing_off.get(name).map(|back_off| Waiting {
                reason: "CrashLoopBackOff".to_owned(),
                message: Some(format!(
                    "back-off {} restarting failed container={name} pod={}",
                    go_duration(back_off.delay),
                    format_pod(&self.pod)
                )),
            });
            (name.clone(), live.facts(record, backing_off, default))
        });
        facts.collect()
    }

    /// An Event about the pod.
    pub(super) fn event(&self, kind: EventType, reason: &str, message: impl Into<String>) {
        self.services.events.event(&pod_reference(&self.pod), kind, reason, message);
    }

    /// An Event about one of its containers.
    pub(super) fn container_event(&self, container: &str, kind: EventType, reason: &str, message: String) {
        self.services.events.event(&container_reference(&self.pod, container), kind, reason, message);
    }
}
