//! Builds every part of the node, and owns the order in which they start and drain.
//!
//! In: settings. Out: a running [`Node`], and a stream of updates fed to its workers. Holds no policy: what is admitted is
//! decided in `pod`, what runs in `worker`.
//!
//! Start: state (the root directory's lock), logs, images, network, runtime, workers (which take over the pods of the last
//! run), local API, what a cluster needs besides ([`cluster`]), sources. Drain: sources first, so that nothing new comes;
//! then workers; then what reports to the API server; then what answers requests.

mod cluster;
mod desired;
mod facts;
mod limits;
mod node;
mod pod_cidr;
mod policies;
mod services;
mod toolbox;

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;

pub use self::desired::{Admit, Adopted, Desired, DesiredSettings, Sources, Verdict, admit_by_number};
pub use self::node::{Node, NodeOptions};

use crate::config::ToolboxConfig;
use crate::image::{ImageConfig, ImageService, ToolboxImages};

/// The image store below a root directory, for commands that need no node. Names that mean a node's toolbox unless its
/// configuration says otherwise mean it here.
///
/// # Errors
/// When it cannot be opened or made.
pub fn open_images(root_dir: &Path) -> anyhow::Result<Arc<ImageService>> {
    let mut config = ImageConfig::new(root_dir);
    config.toolbox = ToolboxImages::new(&ToolboxConfig::default().images);
    ImageService::open(config).with_context(|| format!("opening the image store below {}", root_dir.display()))
}
