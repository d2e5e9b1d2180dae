//! Container images: names, registries, the store on disk, and every shape a wasm program is shipped in.
//!
//! In: image names with a pull policy and credentials, files to load, directories to build from.
//! Out: [`Image`]: verified, unpacked, with the plain [`ImageSpec`](crate::pod::run::ImageSpec) the runtime
//! takes. Never runs or compiles what it pulls, never writes outside its directory, and never extracts a
//! layer to host paths: layers stay tars with an index beside them (`vfs::layer`).
//!
//! Invariant: everything under `blobs/` and `layers/` was digest-checked before it got its name; a
//! crash at any instant leaves whole files or leftovers that the next open removes.
//!
//! ```text
//!   name ─► reference ─► service ─► registry (hosts, auth, transfer) ─┐
//!   path ──────────────► service ─► archive, layout, builder ─────────┴─► store ─► shape ─► Image
//! ```

mod archive;
mod backoff;
mod builder;
mod busybox;
mod complete;
mod credential;
mod documents;
mod error;
mod flight;
mod limits;
mod magic;
mod platform;
mod policy;
mod pull;
mod reference;
pub mod registry;
mod service;
mod shape;
pub mod store;
mod transfer;
pub mod types;

pub use archive::ArchiveError;
pub use backoff::PullBackoff;
pub use builder::{BuildError, BuildOptions};
pub use busybox::ToolboxImages;
pub use credential::{Credential, CredentialError};
pub use error::{ImageError, PullError, chain};
pub use limits::ImageLimits;
pub use magic::{WasmKind, wasm_kind};
pub use policy::{PullPolicy, UnknownPullPolicy};
pub use reference::{ImageRef, InvalidImageName};
pub use service::{ImageConfig, ImageService, PruneScope};
pub use shape::ShapeError;
pub use store::{GcPolicy, StoreError};
pub use transfer::{PushReport, Spooled};
pub use types::{
    DiskUsage, Image, ImageConfigData, ImageKind, ImageSummary, Progress, PullProgress, Removed, no_progress,
};
