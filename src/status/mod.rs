//! The newest status of every pod of this node, as typed API objects.
//!
//! In: statuses as the workers make them. Out: the same to everyone who asks, with a version that grows, and
//! word of each change (for `wasilet ps`, later for patches to an API server). Drops what says nothing new and
//! refuses what no status may say. Makes no status (`pod::status`).

mod cache;
mod transition;

pub use cache::{PodSnapshot, StatusCache, StatusChange};
pub use transition::IllegalTransition;
