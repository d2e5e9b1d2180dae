//! In-place resize of a pod's running containers.
//!
//! In: resources that the node has given the pod, what its containers run under. Out: other limits of the guests and of all
//! of them together, containers that are stopped to start under theirs, `PodResizePending` and `PodResizeInProgress`. Whether
//! there is room was decided before (`agent`, `pod::admission`); what a container needs is `pod::allocation`'s.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use tokio::time::Instant;

use super::actor::PodWorker;
use super::model::Activity;
use super::runtime::ContainerRuntime;
use crate::events::EventType;
use crate::pod::allocation::{self, Numbers, PendingResize, PodShrink, ResizeInProgress, Shrink, Step, summary};
use crate::pod::plan::{Health, Phase, Sandbox};
use crate::pod::resources;

/// How soon limits that could not be set are tried again: what the guest uses may shrink any time.
const RETRY: Duration = Duration::from_secs(10);

/// Where a pod is on its way to other resources.
#[derive(Debug, Default)]
pub(super) struct Resize {
    /// It waits for room.
    pub pending: Option<PendingResize>,
    /// It has room; its guests may not run under it yet.
    pub in_progress: Option<ResizeInProgress>,
    /// When limits that could not be set are tried again.
    pub retry_at: Option<Instant>,
}

impl<R: ContainerRuntime> PodWorker<R> {
    /// A resize waits, or does not any more. A reason or a generation that is new is said.
    pub(super) fn note_pending_resize(&mut self, pending: Option<PendingResize>) {
        if let Some(pending) = &pending {
            let known = self.resize.pending.as_ref();
            if known.is_none_or(|old| (old.reason, old.generation) != (pending.reason, pending.generation)) {
                self.event(EventType::Warning, pending.reason.event(), pending.event.as_str());
            }
        }
        self.resize.pending = pending;
    }

    /// The node has given the pod what `after` says, which is not what it had.
    pub(super) fn note_allocation(&mut self, before: &Pod, after: &Pod) {
        let (Some(before), Some(spec)) = (&before.spec, &after.spec) else { return };
        if !allocation::differs(spec, before) {
            return;
        }
        let generation = after.metadata.generation.unwrap_or(0);
        self.resize.in_progress = Some(ResizeInProgress { generation, error: None });
        self.resize.retry_at = None;
        self.event(EventType::Normal, "ResizeStarted", summary("Pod resize started", spec, generation, None));
    }

    /// Brings running containers under what was given to them.
    pub(super) fn actuate_resize(&mut self) {
        if self.phase != Phase::Syncing {
            self.resize = Resize::default();
            return;
        }
        if self.resize.retry_at.is_some_and(|at| Instant::now() < at) {
            return;
        }
        self.resize.retry_at = None;
        let pod = self.pod.clone();
        let Some(spec) = &pod.spec else { return };
        let mut updates: Vec<(&Container, Numbers, Numbers)> = Vec::new();
        let mut under_way = false;
        for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
            let Some(live) = self.containers.get_mut(&container.name) else { continue };
            let Some(in_force) = live.in_force else { continue };
            let wanted = Numbers::of_container(container, spec);
            match (&live.activity, allocation::step(container, in_force, wanted)) {
                (_, Step::None) => {}
                // It is about to run under what it was prepared with, or to end.
                (Activity::Preparing { .. } | Activity::Launching { .. } | Activity::Stopping { .. }, _) => {
                    under_way = true;
                }
                (Activity::Running { .. }, Step::Restart) => {
                    under_way = true;
                    if live.health == Health::Healthy {
                        live.health = Health::ResizeRestart;
                    }
                }
                (Activity::Running { .. }, Step::Update) => updates.push((container, in_force, wanted)),
                (Activity::Idle | Activity::Ending { .. }, _) => {}
            }
        }
        match self.update_limits(spec, &updates) {
            Err(message) => self.resize_failed(spec, message),
            Ok(()) if under_way => {}
            Ok(()) => self.resize_completed(spec),
        }
    }

    /// All limits or none, so that a pod is not left half resized.
    fn update_limits(&mut self, spec: &PodSpec, updates: &[(&Container, Numbers, Numbers)]) -> Result<(), String> {
        let together = resources::pod_limits(spec);
        let of_pod = (self.sandbox == Sandbox::Ready && together != self.pod_limits).then(|| PodShrink {
            in_force: self.pod_limits.memory_bytes,
            wanted: together.memory_bytes,
            used: self.memory_in_use(),
        });
        if of_pod.is_none() && updates.is_empty() {
            return Ok(());
        }
        let shrinks: Vec<Shrink<'_>> = updates
            .iter()
            .map(|(container, in_force, wanted)| {
                let id = self.containers.get(&container.name).and_then(|live| live.id());
                let used = id.and_then(|id| self.services.runtime.usage(id)).map(|usage| usage.memory_bytes);
                Shrink { container: &container.name, in_force: *in_force, wanted: *wanted, used }
            })
            .collect();
        allocation::check_memory(of_pod, &shrinks)?;
        if of_pod.is_some() {
            self.services.runtime.update_sandbox(&self.uid, &together);
            self.pod_limits = together;
        }
        for (container, _, wanted) in updates {
            let limits = resources::limits(container, spec, self.config.node_limits);
            let Some(live) = self.containers.get_mut(&container.name) else { continue };
            if let Activity::Running { id } = &live.activity {
                self.services.runtime.update_container(id, &limits);
                live.in_force = Some(*wanted);
            }
        }
        Ok(())
    }

    /// Bytes that all its containers use.
    fn memory_in_use(&self) -> u64 {
        let running = self.containers.values().filter_map(|live| live.id());
        running.filter_map(|id| self.services.runtime.usage(id)).map(|usage| usage.memory_bytes).sum()
    }

    fn resize_failed(&mut self, spec: &PodSpec, message: String) {
        self.resize.retry_at = Some(Instant::now() + RETRY);
        let generation = self.pod.metadata.generation.unwrap_or(0);
        let fresh = ResizeInProgress { generation, error: None };
        let progress = self.resize.in_progress.get_or_insert(fresh);
        if progress.error.as_ref() == Some(&message) {
            return;
        }
        let generation = progress.generation;
        progress.error = Some(message.clone());
        let text = summary("Pod resize error", spec, generation, Some(&message));
        self.event(EventType::Warning, "ResizeError", text);
    }

    fn resize_completed(&mut self, spec: &PodSpec) {
        if let Some(ResizeInProgress { generation, .. }) = self.resize.in_progress.take() {
            let text = summary("Pod resize completed", spec, generation, None);
            self.event(EventType::Normal, "ResizeCompleted", text);
        }
    }
}
