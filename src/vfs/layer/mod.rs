//! Image layers: read-only, never extracted.
//!
//! In: a layer's uncompressed tar and its index, both on the node. Out: a [`LayerStack`], the merged tree of an
//! image, which every container of the image shares. Bytes are read from the tar where they lie.
//! Does not download, decompress or verify: the image store did.

mod index;
mod merge;
mod tar;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Weak};

use parking_lot::Mutex;

pub use index::{Index, build_index};

use super::tree::{Builder, LowerTree};
use crate::ids::Digest;
use crate::pod::run::LayerSpec;

/// Layers of one image; overlayfs stops at 500, Docker at 127.
const MAX_LAYERS: usize = 500;

/// Why a layer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// Reading or writing the tar or the index failed.
    #[error("reading layer file {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The tar is not one, is cut off, or cannot be a layer.
    #[error("layer tar is damaged at byte {offset}: {what}")]
    BadTar {
        /// Where.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// An entry cannot be applied over the layers below: through a file, a link loop, or a hard link to nothing.
    #[error("layer entry {path:?} cannot be applied to the image")]
    BadEntry {
        /// The entry.
        path: String,
    },
    /// More entries than a layer or an image may have.
    #[error("layer has more than {limit} entries")]
    TooManyEntries {
        /// The bound.
        limit: usize,
    },
    /// The index on disk is of another version or damaged; build it again.
    #[error("layer index is damaged or of another version")]
    BadIndex,
    /// More layers than an image may have.
    #[error("image has more than {limit} layers")]
    TooManyLayers {
        /// The bound.
        limit: usize,
    },
}

/// The merged layers of one image, shared by every container of it.
#[derive(Debug)]
pub struct LayerStack {
    pub(crate) tree: Arc<LowerTree>,
}

/// Merged trees in use, by their diff ids. Weak: the last container of an image frees its tree.
static STACKS: LazyLock<Mutex<HashMap<Vec<Digest>, Weak<LayerStack>>>> = LazyLock::new(Mutex::default);

fn key(layers: &[LayerSpec]) -> Vec<Digest> {
    layers.iter().map(|layer| layer.diff_id.clone()).collect()
}

impl LayerStack {
    /// [`Self::open`] for tasks. Only the first container of an image reads anything; the others need no other thread.
    ///
    /// # Errors
    /// [`LayerError`].
    pub async fn load(layers: &[LayerSpec]) -> Result<Arc<Self>, LayerError> {
        if let Some(stack) = Self::find(layers) {
            return Ok(stack);
        }
        let layers = layers.to_vec();
        match tokio::task::spawn_blocking(move || Self::open(&layers)).await {
            Ok(opened) => opened,
            Err(join) => std::panic::resume_unwind(join.into_panic()),
        }
    }

    /// A list that is open already, or that is empty. Does not block.
    fn find(layers: &[LayerSpec]) -> Option<Arc<Self>> {
        if layers.is_empty() {
            return Some(Self::empty());
        }
        STACKS.lock().get(&key(layers)).and_then(Weak::upgrade)
    }

    /// Opens and merges layers, lowest first; a list that is already open is shared. Blocking.
    ///
    /// # Errors
    /// [`LayerError`].
    pub fn open(layers: &[LayerSpec]) -> Result<Arc<Self>, LayerError> {
        if let Some(stack) = Self::find(layers) {
            return Ok(stack);
        }
        let key = key(layers);
        // Merged outside the lock: two first containers may both do it, the second result is dropped.
        let parts = layers.iter().map(open_layer).collect::<Result<Vec<_>, _>>()?;
        let stack = Self::from_parts(parts)?;
        let mut stacks = STACKS.lock();
        if let Some(other) = stacks.get(&key).and_then(Weak::upgrade) {
            return Ok(other);
        }
        stacks.retain(|_, stack| stack.strong_count() > 0);
        stacks.insert(key, Arc::downgrade(&stack));
        Ok(stack)
    }

    /// Merges opened layers, lowest first, without the process-wide cache.
    ///
    /// # Errors
    /// [`LayerError`].
    pub fn from_parts(layers: Vec<(File, Index)>) -> Result<Arc<Self>, LayerError> {
        if layers.len() > MAX_LAYERS {
            return Err(LayerError::TooManyLayers { limit: MAX_LAYERS });
        }
        merge::check_text(&layers.iter().map(|(_, index)| index).collect::<Vec<_>>())?;
        let mut builder = Builder::new();
        for (number, (_, index)) in layers.iter().enumerate() {
            // Layer 0 is what the builder itself made: the root.
            merge::apply(&mut builder, number as u32, index)?;
        }
        let tars = layers.into_iter().map(|(tar, _)| Arc::new(tar)).collect();
        Ok(Arc::new(Self { tree: Arc::new(builder.finish(tars)) }))
    }

    /// A root directory with nothing in it (bare wasm artifacts).
    #[must_use]
    pub fn empty() -> Arc<Self> {
        Arc::new(Self { tree: LowerTree::empty() })
    }

    /// How many nodes the image has, its root included.
    #[must_use]
    pub fn node_count(&self) -> usize {
        self.tree.len()
    }
}

fn open_layer(layer: &LayerSpec) -> Result<(File, Index), LayerError> {
    let tar = File::open(&layer.tar).map_err(|source| LayerError::Read { path: layer.tar.clone(), source })?;
    Ok((tar, Index::read(&layer.index)?))
}
