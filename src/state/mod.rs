//! What must survive a restart of the agent: one directory, versioned, crash-safe.
//!
//! In: records of pods. Out: the same records after any crash, and the paths of the kubelet's layout
//! (`pods/<uid>/volumes/kubernetes.io~empty-dir/NAME`, `pods/<uid>/containers/NAME/...`).
//! Holds no secret bytes. Decides nothing.

mod disk;
mod faults;
mod layout;
mod record;
mod store;

pub use disk::remove_tree_in;
pub use faults::{Faults, IoStep, NoFaults};
pub use layout::PodPaths;
pub use record::{BackOffRecord, ContainerRecord, ExitRecord, PodRecord, RunRecord, TerminationRecord};
pub use store::{LoadedState, Outlives, QuarantinedRecord, StagedRecord, StateError, StateStore};

#[cfg(test)]
mod tests;
