//! The newest status of every pod of this node, as typed API objects.
//!
//! In: statuses as the workers make them, and what the API server says of the same pods. Out: the first to everyone who
//! asks, with a version that grows, and word of each change; and, in a cluster, patches that make the API server say the
//! same. Drops what says nothing new and refuses what no status may say. Makes no status (`pod::status`).
//!
//! ```text
//!  workers ─▶ StatusCache ──▶ StatusWriter ─patch, delete─▶ API server
//!                                ▲   what it says already       │
//!                             ApiPods ◀───────── watch ─────────┘
//! ```

mod api;
mod backlog;
mod cache;
mod due;
mod metrics;
mod patch;
mod transition;
mod writer;

pub use api::{ApiChange, ApiPods, HASH_OF_MIRROR, is_mirror};
pub use backlog::Backlog;
pub use cache::{PodSnapshot, Stage, StatusCache, StatusChange};
pub use metrics::StatusMetrics;
pub use transition::IllegalTransition;
pub use writer::StatusWriter;
