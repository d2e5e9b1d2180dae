//! The Node object of this node, what it can give to pods, and what happens when that runs out or the machine goes down.
//!
//! In: settings, facts of the machine, the pods' demands. Out: registration, Lease, CSINode, status; evictions; an orderly
//! end before the machine's. Runs no pod and admits none ([`pod::admission`](crate::pod::admission) does, by what is told
//! here).
//!
//! | part | needs the API | owns |
//! |---|---|---|
//! | [`NodeManager`] | yes | Node, Lease, CSINode; the newest Node for others |
//! | [`PressureManager`] | no | memory, disk, processes; image garbage collection; eviction |
//! | [`ShutdownManager`] | no | logind's inhibitor; ending pods by priority |
//! | [`facts`] | no | what the machine is and has |
//!
//! Decided in pure files: [`registration`], [`status`], [`conditions`], [`capacity`], [`version`],
//! [`pressure::thresholds`], [`pressure::rank`], [`shutdown::plan`].

mod api;
pub mod capacity;
pub mod conditions;
mod csi;
pub mod facts;
mod keeper;
mod lease;
mod manager;
pub mod pods;
pub mod pressure;
pub mod registration;
pub mod settings;
pub mod shutdown;
pub mod status;
pub mod version;

pub use api::ApiError;
pub use capacity::Capacity;
pub use conditions::{NetworkState, ShutdownState};
pub use manager::{NodeManager, NodeParts};
pub use pods::{DiskUse, NodePods, Readers, WorkerPods};
pub use pressure::images::ImageCollector;
pub use pressure::{PressureManager, PressureParts};
pub use settings::{NodeSettings, PodAddresses};
pub use shutdown::{ShutdownGrace, ShutdownManager};
