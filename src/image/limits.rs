//! Bounds on what a registry, an archive or a directory may make this node do.
//!
//! Everything here comes from outside and is hostile until proven otherwise; a number that is reached is an
//! error that names the blob.

/// Bounds on one image. The defaults fit what exists in the wild with room to spare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageLimits {
    /// Bytes of a manifest or index (registries refuse more than 4 MiB).
    pub manifest_bytes: u64,
    /// Bytes of a configuration.
    pub config_bytes: u64,
    /// Layers of an image (Docker's own limit is 127).
    pub layers: usize,
    /// Entries of an index.
    pub index_entries: usize,
    /// Indexes inside indexes.
    pub index_depth: usize,
    /// Bytes of one blob as transferred.
    pub blob_bytes: u64,
    /// Bytes of one layer when decompressed.
    pub layer_bytes: u64,
    /// Times a layer may grow when decompressed; gzip cannot do more than 1032.
    pub layer_ratio: u64,
    /// Bytes of one wasm file.
    pub wasm_bytes: u64,
    /// Members of an image archive.
    pub archive_entries: usize,
    /// Blobs downloaded at once, over all images.
    pub parallel_downloads: usize,
}

impl ImageLimits {
    /// Growth every layer is allowed whatever its ratio: a few kilobytes of zeros compress a thousandfold.
    pub const RATIO_SLACK_BYTES: u64 = 64 << 20;
}

impl Default for ImageLimits {
    fn default() -> Self {
        Self {
            manifest_bytes: 4 << 20,
            config_bytes: 4 << 20,
            layers: 127,
            index_entries: 1024,
            index_depth: 3,
            blob_bytes: 8 << 30,
            layer_bytes: 16 << 30,
            layer_ratio: 200,
            wasm_bytes: 1 << 30,
            archive_entries: 100_000,
            parallel_downloads: 6,
        }
    }
}
