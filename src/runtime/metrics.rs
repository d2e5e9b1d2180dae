//! Counters of the runtime: operations as the kubelet counts those of its container runtime, and compilations.
//!
//! In: operations as they begin and end. Out: metrics that somebody registers. Counts, and decides nothing.

use std::time::Instant;

use super::engine::Tier;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OperationLabel {
    operation_type: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CompilationLabel {
    compiler: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CompilerLabel {
    compiler: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SourceLabel {
    source: &'static str,
}

/// Counters of one runtime; clones share them.
#[derive(Debug, Clone)]
pub struct RuntimeMetrics {
    operations: Family<OperationLabel, Counter>,
    errors: Family<OperationLabel, Counter>,
    durations: Family<OperationLabel, Histogram, fn() -> Histogram>,
    programs: ProgramMetrics,
}

/// Counters of programs made ready; clones share them.
#[derive(Debug, Clone)]
pub struct ProgramMetrics {
    loads: Family<SourceLabel, Counter>,
    compilations: Family<CompilationLabel, Counter>,
    compile_durations: Family<CompilerLabel, Histogram, fn() -> Histogram>,
}

/// An operation under way; one that is dropped before [`Self::succeeded`] was an error.
#[derive(Debug)]
pub(super) struct Operation {
    metrics: RuntimeMetrics,
    label: OperationLabel,
    began: Instant,
    failed: bool,
}

impl Default for RuntimeMetrics {
    fn default() -> Self {
        Self::new(ProgramMetrics::default())
    }
}

impl Default for ProgramMetrics {
    fn default() -> Self {
        Self {
            loads: Family::default(),
            compilations: Family::default(),
            // 10 ms, 40 ms, ... 10 min.
            compile_durations: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.01, 4.0, 9))),
        }
    }
}

impl RuntimeMetrics {
    pub(super) fn new(programs: ProgramMetrics) -> Self {
        Self {
            operations: Family::default(),
            errors: Family::default(),
            // The kubelet's buckets.
            durations: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.005, 2.5, 14))),
            programs,
        }
    }

    /// An operation begins; `operation_type` is CRI's word for it.
    pub(super) fn begin(&self, operation_type: &'static str) -> Operation {
        let label = OperationLabel { operation_type };
        self.operations.get_or_create(&label).inc();
        Operation { metrics: self.clone(), label, began: Instant::now(), failed: true }
    }

    /// Shows all of it in `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "kubelet_runtime_operations",
            "Cumulative number of runtime operations by operation type",
            self.operations.clone(),
        );
        registry.register(
            "kubelet_runtime_operations_errors",
            "Cumulative number of runtime operation errors by operation type",
            self.errors.clone(),
        );
        registry.register(
            "kubelet_runtime_operations_duration_seconds",
            "Duration in seconds of runtime operations. Broken down by operation type",
            self.durations.clone(),
        );
        let programs = &self.programs;
        registry.register(
            "wasilet_program_loads",
            "Programs made ready, by where they were: memory, disk, or compiled",
            programs.loads.clone(),
        );
        registry.register(
            "wasilet_compilations",
            "Compilations of WebAssembly programs by outcome",
            programs.compilations.clone(),
        );
        registry.register(
            "wasilet_compile_duration_seconds",
            "Duration in seconds of successful compilations of WebAssembly programs",
            programs.compile_durations.clone(),
        );
    }
}

impl ProgramMetrics {
    /// A program was made ready, from `memory` or `disk`.
    pub(super) fn loaded(&self, source: &'static str) {
        self.loads.get_or_create(&SourceLabel { source }).inc();
    }

    /// A compilation ended.
    pub(super) fn compiled<T, E>(&self, tier: Tier, result: &Result<T, E>, began: Instant) {
        let outcome = if result.is_ok() { "success" } else { "failure" };
        let compiler = tier.name();
        self.compilations.get_or_create(&CompilationLabel { compiler, outcome }).inc();
        if result.is_ok() {
            self.loaded("compiled");
            self.compile_durations.get_or_create(&CompilerLabel { compiler }).observe(began.elapsed().as_secs_f64());
        }
    }
}

impl Operation {
    /// It went well.
    pub(super) fn succeeded(mut self) {
        self.failed = false;
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        if self.failed {
            self.metrics.errors.get_or_create(&self.label).inc();
        }
        let duration = self.metrics.durations.get_or_create(&self.label);
        duration.observe(self.began.elapsed().as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_counted_with_their_errors() {
        let metrics = RuntimeMetrics::default();
        metrics.begin("exec").succeeded();
        drop(metrics.begin("exec"));
        metrics.programs.compiled(Tier::Baseline, &Ok::<(), ()>(()), Instant::now());
        metrics.programs.compiled(Tier::Optimised, &Err::<(), ()>(()), Instant::now());
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "kubelet_runtime_operations_total{operation_type=\"exec\"} 2",
            "kubelet_runtime_operations_errors_total{operation_type=\"exec\"} 1",
            "kubelet_runtime_operations_duration_seconds_count{operation_type=\"exec\"} 2",
            "wasilet_program_loads_total{source=\"compiled\"} 1",
            "wasilet_compilations_total{compiler=\"optimised\",outcome=\"failure\"} 1",
            "wasilet_compile_duration_seconds_count{compiler=\"baseline\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
