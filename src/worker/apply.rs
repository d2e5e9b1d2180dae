//! Carries out what was planned, and takes in commands and results.
//!
//! In: actions, commands, [`Done`]. Out: changed state and spawned work. Every transition of a worker is here.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodSpec};
use tokio::time::Instant;

use super::actor::{Cleanup, Command, Done, Eviction, Fate, PodWorker, Subject, Termination, cause};
use super::model::{Activity, Hold, Live, Wanted};
use super::probing::HookState;
use super::runtime::ContainerRuntime;
use super::sandbox::MOST_REMOVALS;
use crate::events::EventType;
use crate::pod::back_off::{BackOff, later};
use crate::pod::ephemeral;
use crate::pod::plan::{self, Action, EndCause, Health, MINIMUM_GRACE, Phase, RanIn, Role, Sandbox, StopCause};
use crate::pod::restart::RestartRules;
use crate::pod::run::StopRequest;
use crate::pod::static_pod;
use crate::pod::status::{DISRUPTION_TARGET, PodEnd, PodPhase, Waiting, disruption, foreign, is_owned};
use crate::pod::user::format_pod;
use crate::state::TerminationRecord;

/// Wait after a configuration that could not be resolved, as the kubelet's `backOffPeriod`.
const CONFIG_RETRY: Duration = Duration::from_secs(10);

impl<R: ContainerRuntime> PodWorker<R> {
    pub(super) fn apply(&mut self, action: Action) {
        match action {
            Action::CreateSandbox => self.create_sandbox(),
            Action::Start { container } => self.prepare(&container),
            Action::Stop { container, grace, cause } => self.stop(&container, grace, cause),
            Action::CancelStart { container } => self.cancel_start(&container),
            Action::KillOverdue { container } => {
                if let Some(Activity::Stopping { id, .. }) = self.containers.get(&container).map(|c| &c.activity) {
                    self.services.runtime.kill_container(id);
                }
            }
            Action::BeginRestartAll => {
                self.record.restarting_all = true;
                self.dirty();
            }
            Action::ResetContainers => self.reset_containers(),
            Action::Terminate(cause) => self.terminate_for(cause),
            Action::RemoveSandbox => self.remove_sandbox(),
            Action::Finish => self.phase = Phase::Terminated,
        }
    }

    pub(super) fn handle(&mut self, command: Command) {
        match command {
            Command::Update { pod, pending } => {
                self.note_pending_resize(pending.map(|pending| *pending));
                self.update(Pod::clone(&pod));
            }
            Command::Terminate(how) => self.delete(how),
            Command::Leave { pod, grace } => {
                self.update(*pod);
                self.leave(grace);
            }
            Command::Settle(pod) => self.settle(*pod),
            Command::Evict(eviction) => self.evict(*eviction),
            // Addresses of the node are part of the status, which every turn ends with.
            Command::Configure(config) => self.config = config,
            Command::Exit(exit) => self.exited(*exit),
            Command::ObjectsChanged(change) => self.objects_changed(change.map(|change| *change)),
            Command::Shutdown(within) => self.shut_down(within),
        }
    }

    pub(super) fn done(&mut self, done: Done) {
        match done {
            Done::SandboxCreated(result) => self.sandbox_created(result),
            Done::SandboxRemoved => {
                // The address stays in the status of a pod that is over, as with the kubelet.
                self.sandbox = Sandbox::Absent;
            }
            Done::Prepared { container, result } => self.prepared(&container, result),
            Done::Launched { container, id, result } => self.launched(&container, &id, result),
            Done::Hooked { container, id, hook, result } => self.hooked(&container, &id, hook, result),
            Done::ExitCollected { container, exit, message } => self.record_exit(&container, &exit, message),
            Done::Saved { result } => {
                if let Err(error) = result {
                    tracing::error!(err = %error, cause = cause(&error), "Failed to save the pod's record");
                }
                self.saves.writing = None;
            }
            Done::Measured(excess) => self.measured(excess),
            Done::Refreshed => {}
            Done::Remounted(errors) => self.remounted(errors),
            Done::TornDown => self.cleanup = Cleanup::TornDown,
            Done::Removed(removal) => self.removed(removal),
        }
    }

    /// Grace of the pod itself.
    fn own_grace(&self) -> Duration {
        let of_spec = self.pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
        // What a deletion asks for wins; zero means that it did not ask, as in the kubelet.
        let asked = self.pod.metadata.deletion_grace_period_seconds.filter(|seconds| *seconds > 0);
        Duration::from_secs(asked.or(of_spec).and_then(|s| u64::try_from(s).ok()).unwrap_or(30))
    }

    pub(super) fn stop(&mut self, container: &str, grace: Option<Duration>, cause: StopCause) {
        let now = self.services.clock.now();
        let grace = grace.or_else(|| self.grace_of_probe(container, cause));
        let grace = grace.unwrap_or_else(|| self.own_grace().max(MINIMUM_GRACE));
        let Some(live) = self.containers.get_mut(container) else { return };
        let (id, told) = match &live.activity {
            Activity::Running { id } => (id.clone(), false),
            Activity::Stopping { id, .. } => (id.clone(), true),
            _ => return,
        };
        live.activity = Activity::Stopping { id: id.clone(), kill_at: later(now, grace) };
        live.checks.spare();
        live.revive = matches!(cause, StopCause::DefinitionChanged | StopCause::ResizeRestart);
        let (signal, role) = (live.stop_signal, live.role);
        let pre_stop = live.checks.pre_stop;
        if !told {
            self.container_event(container, EventType::Normal, "Killing", cause.message(container, role));
        }
        if grace.is_zero() {
            self.services.runtime.kill_container(&id);
        } else if pre_stop == HookState::Running {
            self.shorten_pre_stop(container, grace);
        } else if told || !self.begin_pre_stop(container, grace) {
            self.services.runtime.stop_container(&id, StopRequest { signal, grace });
        }
    }

    /// All containers run again, from the first init container on, in the sandbox and with the volumes they have.
    fn reset_containers(&mut self) {
        self.record.restarting_all = false;
        let ephemeral: Vec<String> = self.pod.spec.iter().flat_map(ephemeral::containers).map(|c| c.name).collect();
        for (name, record) in &mut self.record.containers {
            if !ephemeral.contains(name) {
                super::model::reset(record);
            }
        }
        for live in self.containers.values_mut().filter(|live| live.role != Role::Ephemeral) {
            live.hold = None;
            live.failures = None;
        }
        self.dirty();
    }

    fn cancel_start(&mut self, container: &str) {
        match self.containers.get_mut(container).map(|live| &mut live.activity) {
            Some(Activity::Preparing { cancel }) => cancel.cancel(),
            Some(Activity::Launching { wanted, .. }) => *wanted = Wanted::No,
            _ => {}
        }
    }

    fn terminate_for(&mut self, cause: EndCause) {
        let grace = self.own_grace();
        match cause {
            EndCause::Completed => {
                self.end = Some(PodEnd::Completed);
                self.begin_termination(grace);
            }
            EndCause::Failed => {
                self.end = Some(PodEnd::Failed { reason: None, message: None });
                self.begin_termination(grace);
            }
            EndCause::DeadlineExceeded => {
                const MESSAGE: &str = "Pod was active on the node longer than the specified deadline";
                self.event(EventType::Normal, "DeadlineExceeded", MESSAGE);
                self.fail(Some("DeadlineExceeded".to_owned()), Some(MESSAGE.to_owned()), grace);
            }
        }
    }

    /// Ends the pod as failed, whatever its containers say. A pod that ends already keeps its end.
    pub(super) fn fail(&mut self, reason: Option<String>, message: Option<String>, grace: Duration) {
        if self.phase != Phase::Syncing {
            return;
        }
        let requested_at = self.services.clock.now();
        let record = TerminationRecord { requested_at, grace, reason: reason.clone(), message: message.clone() };
        self.record.termination = Some(record);
        self.dirty();
        self.end = Some(PodEnd::Failed { reason, message });
        self.begin_termination(grace);
    }

    fn begin_termination(&mut self, grace: Duration) {
        self.phase = Phase::Terminating(plan::Termination { since: self.services.clock.now(), grace });
        self.backing_off = BTreeMap::new();
        for live in self.containers.values_mut() {
            live.checks.spare();
        }
    }

    fn delete(&mut self, how: Termination) {
        let now = self.services.clock.now();
        let grace = match how {
            Termination::Graceful => self.own_grace(),
            Termination::Within(grace) => grace.min(self.own_grace()),
            Termination::Force => Duration::ZERO,
        };
        if self.fate != Fate::AgentStops {
            self.fate = Fate::Deleted;
        }
        let wanted = plan::Termination { since: now, grace };
        match self.phase {
            Phase::Syncing => {
                self.end = Some(PodEnd::Deleted);
                self.begin_termination(grace);
            }
            // A grace only gets shorter.
            Phase::Terminating(current) if wanted.deadline() < current.deadline() => {
                self.phase = Phase::Terminating(wanted);
            }
            Phase::Terminating(_) | Phase::Terminated => {}
        }
        // Without a reason: the next agent goes on deleting it.
        self.record.termination = Some(TerminationRecord { requested_at: now, grace, reason: None, message: None });
        self.dirty();
    }

    /// The pod was deleted in the API server: it ends, and says so until it is gone there.
    fn leave(&mut self, grace: Duration) {
        if self.fate == Fate::Kept {
            self.fate = Fate::Leaving;
        }
        let now = self.services.clock.now();
        // As the kubelet: a deletion that asks for no time still leaves a second.
        let grace = grace.max(Duration::from_secs(1));
        let wanted = plan::Termination { since: now, grace };
        match self.phase {
            Phase::Syncing => {
                self.end = Some(PodEnd::Deleted);
                let record = TerminationRecord { requested_at: now, grace, reason: None, message: None };
                self.record.termination = Some(record);
                self.dirty();
                self.begin_termination(grace);
            }
            // Each change of a pod that ends says its grace again: only a shorter one is news.
            Phase::Terminating(current) if grace < current.grace && wanted.deadline() < current.deadline() => {
                if let Some(record) = self.record.termination.as_mut() {
                    (record.requested_at, record.grace) = (now, grace);
                }
                self.dirty();
                self.phase = Phase::Terminating(wanted);
            }
            Phase::Terminating(_) | Phase::Terminated => {}
        }
    }

    /// Somebody gave the pod a final phase: taint eviction, garbage collection. Its containers end.
    fn settle(&mut self, pod: Pod) {
        let status = pod.status.clone().unwrap_or_default();
        self.update(pod);
        let grace = self.own_grace();
        match PodPhase::parse(status.phase.as_deref()) {
            Some(PodPhase::Failed) => self.fail(Some(status.reason.unwrap_or_default()), status.message, grace),
            Some(PodPhase::Succeeded) if self.phase == Phase::Syncing => self.terminate_for(EndCause::Completed),
            _ => {}
        }
    }

    fn evict(&mut self, eviction: Eviction) {
        let Eviction { reason, message, disruption: why, grace } = eviction;
        if self.phase != Phase::Syncing {
            return;
        }
        self.event(EventType::Warning, &reason, message.as_str());
        if let Some(why) = why {
            let condition = disruption(&self.pod, &why, self.services.clock.now());
            let conditions = self.record.status.conditions.get_or_insert_default();
            conditions.retain(|other| other.type_ != DISRUPTION_TARGET);
            conditions.push(condition);
        }
        let grace = grace.min(self.own_grace());
        self.fail(Some(reason), Some(message), grace);
    }

    /// Conditions that others say of the pod: its readiness gates are among them.
    fn take_over_conditions(&mut self, pod: &Pod) {
        if static_pod::is_static(pod) {
            return;
        }
        let mut conditions = foreign(pod.status.as_ref().and_then(|status| status.conditions.as_deref()));
        for own in self.record.status.conditions.iter().flatten() {
            let is_new_disruption =
                own.type_ == DISRUPTION_TARGET && conditions.iter().all(|other| other.type_ != DISRUPTION_TARGET);
            if is_owned(&own.type_) || is_new_disruption {
                conditions.push(own.clone());
            }
        }
        self.record.status.conditions = Some(conditions);
    }

    /// The agent stops: guests end, the record says they ran, so that the next agent knows.
    fn shut_down(&mut self, within: Duration) {
        if self.fate == Fate::Deleted && self.phase == Phase::Terminated {
            // What could not be removed is left to the next agent; what was not tried yet is tried once.
            let waits = self.remove_again.is_some() && self.cleanup == Cleanup::TornDown;
            self.remove_again = Some((Instant::now(), MOST_REMOVALS));
            if waits {
                self.cleanup = Cleanup::Removing;
            }
            return;
        }
        self.fate = Fate::AgentStops;
        let since = self.services.clock.now();
        let wanted = plan::Termination { since, grace: self.own_grace().min(within) };
        match self.phase {
            Phase::Syncing => self.begin_termination(wanted.grace),
            Phase::Terminating(current) if wanted.deadline() < current.deadline() => {
                self.phase = Phase::Terminating(wanted);
            }
            Phase::Terminating(_) | Phase::Terminated => {}
        }
    }

    fn update(&mut self, pod: Pod) {
        self.unconfirmed_until = None;
        self.take_over_conditions(&pod);
        let pod = Pod { status: None, ..pod };
        let mut same = pod.clone();
        // Each of our own status patches makes a new version of the pod.
        same.metadata.resource_version.clone_from(&self.pod.metadata.resource_version);
        if *self.pod == same {
            return;
        }
        self.passes.updated();
        let default = PodSpec::default();
        let images = |pod: &Pod| -> BTreeMap<String, Option<String>> {
            let spec = pod.spec.as_ref().unwrap_or(&default);
            let all = spec.init_containers.iter().flatten().chain(&spec.containers);
            all.map(|container| (container.name.clone(), container.image.clone())).collect()
        };
        self.note_allocation(&self.pod.clone(), &pod);
        let (before, after) = (images(&self.pod), images(&pod));
        let spec = pod.spec.clone().unwrap_or_default();
        for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
            let Some(live) = self.containers.get_mut(&container.name) else { continue };
            live.restart = RestartRules::of(container, &spec);
            let changed = before.get(&container.name) != after.get(&container.name);
            if changed && matches!(live.activity, Activity::Running { .. }) {
                live.health = Health::DefinitionChanged;
            }
            if changed && let Some(record) = self.record.containers.get_mut(&container.name) {
                // The back-off is one of the container as it is defined: another image begins anew.
                record.back_off = None;
                live.failures = None;
            }
            live.hold = None;
        }
        for container in ephemeral::containers(&spec) {
            let restart = RestartRules::of(&container, &spec);
            self.containers.entry(container.name).or_insert_with(|| Box::new(Live::new(Role::Ephemeral, restart)));
        }
        self.pod = std::sync::Arc::new(pod);
        self.record.pod = self.pod.clone();
        self.dirty();
        self.refresh_volumes(None);
    }

    /// Remembers who is in a crash loop, and says so when it begins.
    pub(super) fn note_back_off(&mut self, backing_off: BTreeMap<String, BackOff>) {
        let new: Vec<String> =
            backing_off.keys().filter(|name| !self.backing_off.contains_key(*name)).cloned().collect();
        self.backing_off = backing_off;
        for container in new {
            let message = format!("Back-off restarting failed container {container} in pod {}", format_pod(&self.pod));
            self.container_event(&container, EventType::Warning, "BackOff", message);
        }
    }

    /// A start failed: wait, and show why.
    pub(super) fn hold(&mut self, container: &str, reason: &str, message: String, retry: Retry) {
        let now = self.services.clock.now();
        let Some(live) = self.containers.get_mut(container) else { return };
        live.activity = Activity::Idle;
        let until = match retry {
            Retry::After(delay) => later(now, delay),
            Retry::Configuration => later(now, CONFIG_RETRY),
            Retry::BackOff => {
                let back_off = BackOff::after_failure(live.failures, now);
                live.failures = Some(back_off);
                back_off.until
            }
        };
        live.hold = Some(Hold { until, waiting: Waiting { reason: reason.to_owned(), message: Some(message) } });
    }

    /// What follows when nothing of the pod runs any more.
    pub(super) fn after_end(&mut self) {
        if self.phase != Phase::Terminated || self.fate == Fate::AgentStops {
            return;
        }
        match (self.cleanup, self.fate) {
            (Cleanup::NotYet, _) => self.tear_down(),
            (Cleanup::TornDown, Fate::Deleted)
                if self.saves.writing.is_none() && self.remove_again.is_none_or(|(at, _)| Instant::now() >= at) =>
            {
                self.remove();
            }
            _ => {}
        }
    }

    /// Work panicked: forget that it was under way, so that the plan begins it again.
    pub(super) fn recover_from_panic(&mut self, subject: Subject) {
        match subject {
            Subject::Sandbox if self.sandbox == Sandbox::Creating => {
                self.sandbox = Sandbox::Failed { retry_at: later(self.services.clock.now(), CONFIG_RETRY) };
            }
            Subject::Sandbox => self.sandbox = Sandbox::Absent,
            Subject::Container(name) => match self.containers.get(&name).map(|live| &live.activity) {
                Some(Activity::Preparing { .. }) => {
                    let message = "internal error while preparing the container".to_owned();
                    self.hold(&name, "CreateContainerError", message, Retry::BackOff);
                }
                Some(Activity::Launching { id, .. }) => {
                    // It may run all the same.
                    self.services.runtime.kill_container(id);
                    self.forget_running(&name);
                }
                _ => self.forget_running(&name),
            },
            Subject::Hook(name) => self.recover_hook(&name),
            Subject::Record => {
                let version = self.saves.writing.take().unwrap_or_default();
                self.saves.staged.send_replace(version);
                self.saves.done.send_replace(version);
            }
            Subject::Cleanup => {
                if self.cleanup == Cleanup::TearingDown {
                    self.cleanup = Cleanup::TornDown;
                }
            }
            Subject::Usage => self.measured(None),
            Subject::Side => {}
        }
    }

    /// The newest end happened in an earlier sandbox.
    pub(super) fn sandbox_is_new(&mut self) {
        for live in self.containers.values_mut() {
            live.ended_in = RanIn::Earlier;
        }
    }
}

/// When a failed start is tried again.
#[derive(Debug, Clone, Copy)]
pub(super) enum Retry {
    /// After this.
    After(Duration),
    /// Soon: what is missing may appear any time.
    Configuration,
    /// After 10 s, 20 s ... 300 s: it will most likely fail again.
    BackOff,
}
