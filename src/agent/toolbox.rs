//! The toolbox of a node: found at start, made ready in the background.
//!
//! In: settings, this executable's place. Out: the wasm file, if there is one, and log lines that say so. What a node
//! without one says to those who want a shell is the runtime's.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::bail;
use tokio_util::sync::CancellationToken;

use crate::config::{NodeConfig, ToolboxFile};
use crate::runtime::{CompileProgress, Runtime};

/// The toolbox's file.
///
/// # Errors
/// When it was named and is not there.
pub(super) fn find_toolbox(config: &NodeConfig) -> anyhow::Result<Option<PathBuf>> {
    let executable = std::env::current_exe().unwrap_or_default();
    match config.toolbox.file.find(&executable) {
        Ok(Some(path)) => {
            tracing::debug!(path = %path.display(), "Found the toolbox");
            Ok(Some(path))
        }
        Ok(None) => {
            if config.toolbox.file == ToolboxFile::Usual {
                tracing::warn!(
                    "Found no toolbox.wasm beside the binary: containers have no shell but their image's; \
                     set toolbox.path, or to \"\" if that is meant"
                );
            }
            Ok(None)
        }
        Err(path) => bail!("the toolbox {} is not there; name another with toolbox.path or --toolbox", path.display()),
    }
}

/// Compiles it ahead of the first exec, unless the node stops before that is done.
pub(super) async fn prepare_toolbox(runtime: Arc<Runtime>, stop: CancellationToken) {
    let say = |progress| match progress {
        CompileProgress::Compiling { wasm_bytes } => tracing::info!(wasm_bytes, "Compiling the toolbox"),
        CompileProgress::Ready { elapsed } => tracing::info!(?elapsed, "Prepared the toolbox"),
    };
    tokio::select! {
        // Cancel-safe: a compilation that nobody waits for is given up.
        result = runtime.prepare_toolbox(&say) => if let Err(error) = result {
            tracing::error!(err = %error, "Could not prepare the toolbox");
        },
        () = stop.cancelled() => {}
    }
}
