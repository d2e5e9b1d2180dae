//! One actor per pod: asks `pod::plan` what to do, does it, reports.
//!
//! In: pods that are wanted or not wanted any more, exits of containers, changes of ConfigMaps and Secrets.
//! Out: running containers, statuses, Events, records on disk. Decides nothing that `pod` can decide.
//!
//! ```text
//!  source ──update/terminate──▶ WorkerPool ──Command──▶ PodWorker (one task per pod UID)
//!  runtime ──ContainerExit────────▲                      │  plan ▸ apply ▸ publish ▸ save ▸ wait
//!  objects ──Change───────────────▲                      │
//!                                                        ├─spawn─▶ sandbox, image, start, exit, usage, save
//!                                                        ◀─Done───┘  (a JoinSet: no task outlives its worker)
//! ```
//!
//! Invariants:
//! - The worker's task is the only writer of its pod's state. Slow work is spawned and comes back as [`Done`].
//! - A container's attempt is on disk before its guest runs, so that no crash makes it run twice.
//! - A pod that replaces another of the same name starts when that one is gone.

mod actor;
mod apply;
mod config;
mod deferred;
mod exit;
mod metrics;
mod model;
mod node;
mod pool;
mod probing;
mod publish;
mod pull_secret;
mod resize;
mod runtime;
mod sandbox;
mod start;
mod usage;

#[cfg(test)]
mod simulator;
#[cfg(test)]
mod tests;

pub use actor::{Eviction, Termination};
pub use config::{Services, WorkerConfig};
pub use metrics::WorkerMetrics;
pub use node::NodeRuntime;
pub use pool::{Drained, ShutdownMode, WorkerPool};
pub use runtime::{
    ContainerRuntime, DockerConfig, ImageFailure, ImageProgress, ImageRequest, Progress, ReadyImage, SandboxFailure,
    StartFailure, StartStep,
};
