//! Probes and lifecycle hooks of running containers.
//!
//! In: attempts that begin and end, what handlers came to. Out: `started`, `ready` and health of containers, the Events
//! of probes and hooks, stops after their preStop hook. What a row of answers means is `pod::probe`'s.
//!
//! ```text
//!  launched ─▶ postStart ─▶ startup probe ─▶ liveness and readiness probes ─▶ (the attempt ends)
//!  stop ─▶ preStop ─▶ signal
//! ```
//! One task per probe, none for a container without. The tasks belong to the attempt and end with it; they wake the
//! worker only with news.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler, ObjectReference};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::actor::{Done, PodWorker, Subject};
use super::config::Services;
use super::model::{Activity, Hold};
use super::runtime::ContainerRuntime;
use super::start::find;
use crate::events::{EventType, container_reference};
use crate::ids::ContainerId;
use crate::pod::back_off::{elapsed, later};
use crate::pod::plan::{Health, MINIMUM_GRACE, Phase, Role, Startup, StopCause};
use crate::pod::probe::{Counter, Handler, Onward, Outcome, ProbeKind, Schedule, Verdict, hook_failure};
use crate::pod::run::StopRequest;
use crate::pod::status::{Readiness, Waiting};
use crate::pod::user::format_pod;
use crate::probe::{ProbeSeries, Purpose, Target};

/// Verdicts that wait for the worker: three probes of a few containers; a task that finds it full waits.
const REPORTS: usize = 8;
/// A question that could not be asked is asked again at once, as often as the kubelet does.
const MAX_PROBE_RETRIES: u32 = 3;

/// What probes and hooks say of one attempt.
#[derive(Debug)]
pub(super) struct Checks {
    /// The startup probe's word; without one it is started.
    pub startup: Startup,
    /// The readiness probe's word; without one it is ready.
    pub ready: bool,
    pub post_start: HookState,
    pub pre_stop: HookState,
    tasks: Option<Box<Tasks>>,
}

/// How far a hook is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HookState {
    /// It does not run: there is none, it is not its time, or it is done.
    Quiet,
    Running,
    Failed,
}

/// The lifecycle hooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hook {
    PostStart,
    PreStop,
}

impl Hook {
    fn of(self, container: &Container) -> Option<&LifecycleHandler> {
        let lifecycle = container.lifecycle.as_ref()?;
        match self {
            Self::PostStart => lifecycle.post_start.as_ref(),
            Self::PreStop => lifecycle.pre_stop.as_ref(),
        }
    }
}

/// News of a probe.
#[derive(Debug)]
pub(super) struct Report {
    container: String,
    id: ContainerId,
    kind: ProbeKind,
    verdict: Verdict,
}

/// Way of the news to the worker; a pod without probes has none.
pub(super) type Reports = Option<(mpsc::Sender<Report>, mpsc::Receiver<Report>)>;

/// The next news; never without probes. Cancel-safe.
pub(super) async fn next(reports: &mut Reports) -> Report {
    if let Some((_, receiver)) = reports
        && let Some(report) = receiver.recv().await
    {
        return report;
    }
    std::future::pending().await
}

/// What runs for an attempt; ends when dropped.
#[derive(Debug, Default)]
struct Tasks {
    /// Probes whose failure would end the container: over when it is told to end.
    fatal: JoinSet<()>,
    readiness: JoinSet<()>,
    /// Cancelled to give up the hook that runs.
    hook: Option<CancellationToken>,
}

impl Drop for Tasks {
    fn drop(&mut self) {
        if let Some(hook) = &self.hook {
            hook.cancel();
        }
    }
}

impl Default for Checks {
    /// Of a container without probes and hooks.
    fn default() -> Self {
        Self {
            startup: Startup::Started,
            ready: true,
            post_start: HookState::Quiet,
            pre_stop: HookState::Quiet,
            tasks: None,
        }
    }
}

impl Checks {
    fn of(container: &Container) -> Self {
        let startup = if container.startup_probe.is_some() { Startup::Pending } else { Startup::Started };
        Self { startup, ready: container.readiness_probe.is_none(), ..Self::default() }
    }

    /// Whether the container counts as started: those after it wait for that.
    pub fn started(&self) -> Startup {
        if self.post_start == HookState::Quiet { self.startup } else { Startup::Pending }
    }

    pub fn readiness(&self) -> Readiness {
        match (self.started(), self.ready) {
            (Startup::Pending, _) => Readiness::Starting,
            (Startup::Started, false) => Readiness::Started,
            (Startup::Started, true) => Readiness::Ready,
        }
    }

    /// Whether the container runs and is not shown to: its postStart hook is not done.
    pub fn is_hidden(&self) -> bool {
        self.post_start != HookState::Quiet
    }

    /// The attempt is over.
    pub fn end(&mut self) {
        self.tasks = None;
        self.pre_stop = HookState::Quiet;
        if self.post_start == HookState::Running {
            self.post_start = HookState::Quiet;
        }
    }

    /// The container is told to end: nothing must end it again.
    pub fn spare(&mut self) {
        if let Some(tasks) = &mut self.tasks {
            tasks.fatal.abort_all();
        }
    }

    fn tasks(&mut self) -> &mut Tasks {
        self.tasks.get_or_insert_default()
    }
}

impl<R: ContainerRuntime> PodWorker<R> {
    /// An attempt runs: its postStart hook, then its probes.
    pub(super) fn begin_checks(&mut self, name: &str) {
        let Some(container) = find(&self.pod, name) else { return };
        let Some(live) = self.containers.get_mut(name) else { return };
        if !matches!(live.role, Role::Main | Role::Sidecar) {
            return;
        }
        live.checks = Checks::of(&container);
        if Hook::PostStart.of(&container).is_none() {
            self.begin_probes(name);
            return;
        }
        live.checks.post_start = HookState::Running;
        self.run_hook(name, &container, Hook::PostStart, None);
    }

    /// The first probes of an attempt: the startup probe, else the others.
    fn begin_probes(&mut self, name: &str) {
        if self.phase != Phase::Syncing {
            return;
        }
        let started = self.containers.get(name).map(|live| live.checks.startup);
        match started {
            Some(Startup::Pending) => self.probe(name, ProbeKind::Startup),
            Some(Startup::Started) => {
                self.probe(name, ProbeKind::Liveness);
                self.probe(name, ProbeKind::Readiness);
            }
            None => {}
        }
    }

    fn probe(&mut self, name: &str, kind: ProbeKind) {
        let Some(container) = find(&self.pod, name) else { return };
        let Some(probe) = kind.of(&container) else { return };
        let schedule = Schedule::of(probe);
        let ip = self.record.ips.first().copied();
        let handler = Handler::of_probe(probe, &container, ip);
        let since = self.record.containers.get(name).and_then(|record| record.running.as_ref());
        let age = since.map_or(Duration::ZERO, |run| elapsed(run.started_at, self.services.clock.now()));
        let mut first = schedule.initial_delay.saturating_sub(age);
        if self.adopted_at.is_some_and(|at| at.elapsed() < schedule.period) {
            // All containers of the node start again with the agent: their probes must not come all at once.
            first = first.max(schedule.period.mul_f64(rand::random::<f64>()));
        }
        let Some(live) = self.containers.get_mut(name) else { return };
        let Some(id) = live.id().cloned() else { return };
        let (reports, _) = self.reports.get_or_insert_with(|| mpsc::channel(REPORTS));
        let probing = Probing {
            services: self.services.clone(),
            reference: container_reference(&self.pod, name),
            target: Target { uid: self.uid.clone(), id, purpose: Purpose::Probe },
            container: name.to_owned(),
            handler,
            kind,
            schedule,
            reports: reports.clone(),
            series: self.services.probes.series(&self.name, &self.uid, name, kind),
        };
        let tasks = live.checks.tasks();
        let set = if kind == ProbeKind::Readiness { &mut tasks.readiness } else { &mut tasks.fatal };
        set.spawn(tracing::Instrument::instrument(probing.run(first), tracing::Span::current()));
    }

    /// Takes news of a probe in.
    pub(super) fn judge(&mut self, report: Report) {
        let Report { container, id, kind, verdict } = report;
        let Some(live) = self.containers.get_mut(&container) else { return };
        if live.id() != Some(&id) {
            return;
        }
        let runs = matches!(live.activity, Activity::Running { .. });
        match (kind, verdict) {
            (ProbeKind::Readiness, verdict) => live.checks.ready = verdict == Verdict::Success,
            (ProbeKind::Startup, Verdict::Success) => {
                live.checks.startup = Startup::Started;
                if runs {
                    self.begin_probes(&container);
                }
            }
            (ProbeKind::Startup, Verdict::Failure) if live.health == Health::Healthy => {
                live.health = Health::FailedStartup;
            }
            (ProbeKind::Liveness, Verdict::Failure) if live.health == Health::Healthy => {
                live.health = Health::FailedLiveness;
            }
            (ProbeKind::Startup | ProbeKind::Liveness, _) => {}
        }
    }

    /// `terminationGracePeriodSeconds` of the probe that ends a container; a deletion's wins.
    pub(super) fn grace_of_probe(&self, name: &str, cause: StopCause) -> Option<Duration> {
        if self.pod.metadata.deletion_grace_period_seconds.is_some() {
            return None;
        }
        let container = find(&self.pod, name)?;
        let probe = match cause {
            StopCause::FailedLiveness(_) => container.liveness_probe?,
            StopCause::FailedStartup(_) => container.startup_probe?,
            _ => return None,
        };
        let seconds = u64::try_from(probe.termination_grace_period_seconds?).ok()?;
        Some(Duration::from_secs(seconds).max(MINIMUM_GRACE))
    }

    /// The preStop hook of a container, unless it has none; the signal follows it.
    pub(super) fn begin_pre_stop(&mut self, name: &str, grace: Duration) -> bool {
        let Some(container) = find(&self.pod, name) else { return false };
        let Some(live) = self.containers.get_mut(name) else { return false };
        if Hook::PreStop.of(&container).is_none() || !matches!(live.role, Role::Main | Role::Sidecar) {
            return false;
        }
        live.checks.pre_stop = HookState::Running;
        self.run_hook(name, &container, Hook::PreStop, Some(grace));
        true
    }

    /// A preStop hook that runs has only this much left.
    pub(super) fn shorten_pre_stop(&mut self, name: &str, grace: Duration) {
        let Some(live) = self.containers.get(name) else { return };
        let over = live.checks.tasks.as_ref().and_then(|tasks| tasks.hook.clone());
        let (Some(id), Some(over)) = (live.id().cloned(), over) else { return };
        let container = name.to_owned();
        self.spawn(Subject::Side, async move {
            // Whichever is first: the hook's own end says the same.
            let _ = over.run_until_cancelled(tokio::time::sleep(grace)).await;
            Done::Hooked { container, id, hook: Hook::PreStop, result: None }
        });
    }

    fn run_hook(&mut self, name: &str, container: &Container, hook: Hook, limit: Option<Duration>) {
        let Some(handler) = hook.of(container).cloned() else { return };
        let ip: Option<IpAddr> = self.record.ips.first().copied();
        let resolved = Handler::of_hook(&handler, container, ip);
        let Some(live) = self.containers.get_mut(name) else { return };
        let Some(id) = live.id().cloned() else { return };
        let over = CancellationToken::new();
        if let Some(before) = live.checks.tasks().hook.replace(over.clone()) {
            before.cancel();
        }
        let (services, pod, container) = (self.services.clone(), format_pod(&self.pod), name.to_owned());
        let target = Target { uid: self.uid.clone(), id: id.clone(), purpose: Purpose::Hook };
        self.spawn(Subject::Hook(container.clone()), async move {
            let work = async {
                let outcome = match resolved {
                    Ok(resolved) => services.runtime.ask(&target, &resolved, None).await,
                    Err(error) => Outcome::Errored(error),
                };
                match outcome {
                    Outcome::Success | Outcome::Warning(_) => Ok(()),
                    Outcome::Failure(error) | Outcome::Errored(error) => {
                        Err(hook_failure(&handler, &container, &pod, &error))
                    }
                }
            };
            // Without a limit: the kubelet's postStart may take as long as it likes.
            let limited = async {
                match limit {
                    Some(limit) => tokio::time::timeout(limit, work).await.ok(),
                    None => Some(work.await),
                }
            };
            let result = over.run_until_cancelled(limited).await.flatten();
            Done::Hooked { container, id, hook, result }
        });
    }

    /// A hook came to its end; `result` is `None` when it was cut off.
    pub(super) fn hooked(&mut self, name: &str, id: &ContainerId, hook: Hook, result: Option<Result<(), String>>) {
        let Some(live) = self.containers.get_mut(name) else { return };
        if live.id() != Some(id) {
            return;
        }
        match hook {
            Hook::PostStart if live.checks.post_start == HookState::Running => match result {
                Some(Ok(())) => {
                    live.checks.post_start = HookState::Quiet;
                    if matches!(live.activity, Activity::Running { .. }) {
                        self.begin_probes(name);
                    }
                }
                Some(Err(message)) => self.post_start_failed(name, message),
                // It was given up because the container ends.
                None => {}
            },
            Hook::PreStop if live.checks.pre_stop == HookState::Running => {
                live.checks.pre_stop = HookState::Quiet;
                if let Some(hook) = live.checks.tasks().hook.take() {
                    hook.cancel();
                }
                if let Some(Err(message)) = result {
                    tracing::error!(containerName = name, err = message, "PreStop hook failed");
                    // Not the message: it may hold secrets of the server.
                    let text = "PreStopHook failed".to_owned();
                    self.container_event(name, EventType::Warning, "FailedPreStopHook", text);
                }
                self.signal(name);
            }
            Hook::PostStart | Hook::PreStop => {}
        }
    }

    fn post_start_failed(&mut self, name: &str, message: String) {
        tracing::error!(containerName = name, err = message, "Failed to execute PostStartHook");
        let now = self.services.clock.now();
        let Some(live) = self.containers.get_mut(name) else { return };
        live.checks.post_start = HookState::Failed;
        if !matches!(live.activity, Activity::Running { .. }) {
            return;
        }
        // Shown until the next attempt, or until it waits for that in a crash loop.
        let waiting = Waiting { reason: "PostStartHookError".to_owned(), message: Some(message) };
        live.hold = Some(Hold { until: now, waiting });
        let text = "PostStartHook failed".to_owned();
        self.container_event(name, EventType::Warning, "FailedPostStartHook", text);
        self.stop(name, None, StopCause::FailedPostStartHook);
    }

    /// Sends the stop signal with what is left of the grace.
    fn signal(&mut self, name: &str) {
        let now = self.services.clock.now();
        let Some(live) = self.containers.get_mut(name) else { return };
        let Activity::Stopping { id, kill_at } = &mut live.activity else { return };
        let grace = elapsed(now, *kill_at).max(MINIMUM_GRACE);
        *kill_at = later(now, grace);
        self.services.runtime.stop_container(id, StopRequest { signal: live.stop_signal, grace });
    }

    /// A hook's task panicked: as if it had been cut off.
    pub(super) fn recover_hook(&mut self, name: &str) {
        let Some(live) = self.containers.get(name) else { return };
        let Some(id) = live.id().cloned() else { return };
        let failed = || Some(Err("internal error while running the hook".to_owned()));
        self.hooked(name, &id, Hook::PostStart, failed());
        self.hooked(name, &id, Hook::PreStop, failed());
    }
}

/// One probe of one attempt.
struct Probing<R> {
    services: Arc<Services<R>>,
    reference: ObjectReference,
    target: Target,
    container: String,
    /// What is asked, or why it cannot be.
    handler: Result<Handler, String>,
    kind: ProbeKind,
    schedule: Schedule,
    reports: mpsc::Sender<Report>,
    series: ProbeSeries,
}

impl<R: ContainerRuntime> Probing<R> {
    async fn run(self, first: Duration) {
        let mut counter = Counter::new(self.kind, self.schedule);
        let mut ticks = tokio::time::interval_at(Instant::now() + first, self.schedule.period);
        // As Go's ticker: a slow answer does not make later questions come faster.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            ticks.tick().await;
            let asked = Instant::now();
            let outcome = self.ask().await;
            self.series.observe(&outcome, asked.elapsed());
            self.tell(&outcome);
            let (news, onward) = counter.observe(&outcome);
            if let Some(verdict) = news {
                let (container, id) = (self.container.clone(), self.target.id.clone());
                let report = Report { container, id, kind: self.kind, verdict };
                if self.reports.send(report).await.is_err() {
                    return;
                }
            }
            if onward == Onward::Rest {
                return;
            }
        }
    }

    async fn ask(&self) -> Outcome {
        let handler = match &self.handler {
            Ok(handler) => handler,
            Err(error) => return Outcome::Errored(error.clone()),
        };
        let mut tries = 0;
        loop {
            let outcome = self.services.runtime.ask(&self.target, handler, Some(self.schedule.timeout)).await;
            tries += 1;
            if !matches!(outcome, Outcome::Errored(_)) || tries >= MAX_PROBE_RETRIES {
                return outcome;
            }
        }
    }

    /// The Events of the kubelet.
    fn tell(&self, outcome: &Outcome) {
        let name = self.kind.name();
        let (reason, message) = match outcome {
            Outcome::Success => return,
            Outcome::Warning(output) => ("ProbeWarning", format!("{name} probe warning: {output}")),
            Outcome::Failure(output) => ("Unhealthy", format!("{name} probe failed: {output}")),
            Outcome::Errored(error) => {
                ("Unhealthy", format!("{name} probe errored and resulted in unknown state: {error}"))
            }
        };
        self.services.events.event(&self.reference, EventType::Warning, reason, message);
    }
}
