//! What workers do and fail at, under the kubelet's names.
//!
//! In: turns of workers, starts that failed, pods refused and evicted. Out: metrics that somebody registers. Counts, and
//! decides nothing. Labels are of fixed sets.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tokio::time::Instant;

use crate::pod::plan::Role;

/// Prometheus' default buckets, which the kubelet takes for its workers.
const BUCKETS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Reasons of refused pods that have a series of their own, of the kubelet's list those that this node has.
const REJECTIONS: [&str; 12] = [
    "AppArmor",
    "Evicted",
    "InvalidNodeInfo",
    "NodeShutdown",
    "OutOfcpu",
    "OutOfephemeral-storage",
    "OutOfmemory",
    "OutOfpods",
    "PodFeatureUnsupported",
    "PodOSNotSupported",
    "SysctlForbidden",
    "UnexpectedAdmissionError",
];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OperationLabel {
    operation_type: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ErrorLabels {
    code: &'static str,
    container_type: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SignalLabel {
    eviction_signal: &'static str,
}

/// Figures of all workers of the node. Cheap to clone; all clones are the same figures.
#[derive(Debug, Clone)]
pub struct WorkerMetrics {
    passes: Family<OperationLabel, Histogram, fn() -> Histogram>,
    sandbox_errors: Counter,
    container_errors: Family<ErrorLabels, Counter>,
    rejections: Family<ReasonLabel, Counter>,
    evictions: Family<SignalLabel, Counter>,
}

impl Default for WorkerMetrics {
    fn default() -> Self {
        Self {
            passes: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            sandbox_errors: Counter::default(),
            container_errors: Family::default(),
            rejections: Family::default(),
            evictions: Family::default(),
        }
    }
}

impl WorkerMetrics {
    /// Names its figures in a registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "kubelet_pod_worker_duration_seconds",
            "Duration in seconds to sync a single pod. Broken down by operation type: create, update, or sync",
            self.passes.clone(),
        );
        registry.register(
            "kubelet_started_pods_errors",
            "Cumulative number of errors when starting pods",
            self.sandbox_errors.clone(),
        );
        registry.register(
            "kubelet_started_containers_errors",
            "Cumulative number of errors when starting containers",
            self.container_errors.clone(),
        );
        registry.register(
            "kubelet_admission_rejections",
            "Cumulative number pod admission rejections by the Kubelet",
            self.rejections.clone(),
        );
        registry.register(
            "kubelet_evictions",
            "Cumulative number of pod evictions by eviction signal",
            self.evictions.clone(),
        );
    }

    /// A pod is evicted for this signal, in the kubelet's words: `memory.available`, `emptydirfs.limit`.
    pub fn evicted(&self, eviction_signal: &'static str) {
        self.evictions.get_or_create(&SignalLabel { eviction_signal }).inc();
    }

    /// A pod was refused.
    pub(super) fn rejected(&self, reason: &str) {
        let reason = match REJECTIONS.into_iter().find(|known| *known == reason) {
            Some(known) => known,
            None if reason.starts_with("OutOf") => "OutOfExtendedResources",
            None => "Other",
        };
        self.rejections.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// A sandbox could not be made.
    pub(super) fn sandbox_failed(&self) {
        self.sandbox_errors.inc();
    }

    /// A container could not be started, for a reason in the kubelet's words.
    pub(super) fn container_failed(&self, role: Role, code: &'static str) {
        let container_type = match role {
            Role::Init | Role::Sidecar => "init_container",
            Role::Main => "container",
            Role::Ephemeral => "ephemeral_container",
        };
        self.container_errors.get_or_create(&ErrorLabels { code, container_type }).inc();
    }

    fn passed(&self, operation_type: &'static str, took: Duration) {
        self.passes.get_or_create(&OperationLabel { operation_type }).observe(took.as_secs_f64());
    }
}

/// How far a pod is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Syncing,
    Terminating,
    Terminated,
    /// Nothing is left to do.
    Over,
}

/// Whether work that was begun for a pod is still under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    UnderWay,
    Done,
}

/// The passes of one worker. The kubelet's worker stands still in a pass until the images are pulled, the containers
/// started; ours makes turns meanwhile. So a pass lasts here from the turn that begins some work to the one that finds none
/// under way any more, and that which ends a pod until it has ended.
#[derive(Debug)]
pub(super) struct Passes {
    /// What the next pass of a pod that runs is for.
    next: &'static str,
    current: Option<Pass>,
}

#[derive(Debug)]
struct Pass {
    step: Step,
    operation: &'static str,
    began: Instant,
}

impl Default for Passes {
    fn default() -> Self {
        Self { next: "create", current: None }
    }
}

impl Passes {
    /// The pod was changed. What is new to the node stays new.
    pub(super) fn updated(&mut self) {
        if self.next == "sync" {
            self.next = "update";
        }
    }

    /// A turn has ended, which began then.
    pub(super) fn turned(&mut self, metrics: &WorkerMetrics, began: Instant, step: Step, work: Work) {
        let now = Instant::now();
        if let Some(pass) = self.current.take_if(|pass| pass.step != step) {
            metrics.passed(pass.operation, now.saturating_duration_since(pass.began));
        }
        if step == Step::Over {
            return;
        }
        let next = &mut self.next;
        let pass = self.current.get_or_insert_with(|| {
            let operation = match step {
                Step::Syncing => std::mem::replace(next, "sync"),
                Step::Terminating => "kill",
                Step::Terminated | Step::Over => "terminated",
            };
            Pass { step, operation, began }
        });
        if step == Step::Syncing && work == Work::Done {
            metrics.passed(pass.operation, now.saturating_duration_since(pass.began));
            self.current = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(metrics: &WorkerMetrics) -> String {
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }

    #[tokio::test(start_paused = true)]
    async fn a_pass_lasts_as_long_as_its_work() {
        let (metrics, mut passes) = (WorkerMetrics::default(), Passes::default());
        let mut turn = |updated: bool, step, work| {
            if updated {
                passes.updated();
            }
            passes.turned(&metrics, Instant::now(), step, work);
        };
        let wait = |seconds| tokio::time::sleep(Duration::from_secs(seconds));
        // An image is pulled for three seconds, with a change meanwhile.
        turn(false, Step::Syncing, Work::UnderWay);
        wait(1).await;
        turn(true, Step::Syncing, Work::UnderWay);
        wait(2).await;
        turn(false, Step::Syncing, Work::Done);
        wait(100).await;
        turn(true, Step::Syncing, Work::UnderWay);
        wait(4).await;
        turn(false, Step::Syncing, Work::Done);
        turn(false, Step::Syncing, Work::Done);
        // Deleted in the middle of a pass: the grace takes 30 s, the volumes 5 s, and what follows is no pass.
        wait(100).await;
        turn(false, Step::Syncing, Work::UnderWay);
        turn(false, Step::Terminating, Work::UnderWay);
        wait(30).await;
        turn(false, Step::Terminated, Work::UnderWay);
        wait(5).await;
        turn(false, Step::Over, Work::UnderWay);
        wait(9).await;
        turn(false, Step::Over, Work::Done);
        let text = text(&metrics);
        for (operation, sum, count) in [
            ("create", "3.0", 1),
            ("update", "4.0", 1),
            ("sync", "0.0", 2),
            ("kill", "30.0", 1),
            ("terminated", "5.0", 1),
        ] {
            for (what, value) in [("sum", sum), ("count", &count.to_string())] {
                let line =
                    format!("kubelet_pod_worker_duration_seconds_{what}{{operation_type=\"{operation}\"}} {value}");
                assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
            }
        }
    }

    #[test]
    fn failures_are_counted_in_the_kubelets_words() {
        let metrics = WorkerMetrics::default();
        metrics.sandbox_failed();
        metrics.container_failed(Role::Sidecar, "ErrImagePull");
        for reason in ["OutOfpods", "OutOfexample.com/gpu", "OutOfexample.com/fpga", "SomethingElse"] {
            metrics.rejected(reason);
        }
        metrics.evicted("memory.available");
        let text = text(&metrics);
        for line in [
            "kubelet_started_pods_errors_total 1",
            "kubelet_started_containers_errors_total{code=\"ErrImagePull\",container_type=\"init_container\"} 1",
            "kubelet_admission_rejections_total{reason=\"OutOfpods\"} 1",
            "kubelet_admission_rejections_total{reason=\"OutOfExtendedResources\"} 2",
            "kubelet_admission_rejections_total{reason=\"Other\"} 1",
            "kubelet_evictions_total{eviction_signal=\"memory.available\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
