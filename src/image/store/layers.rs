//! Layers: compressed blobs to plain tars with an index beside them.
//!
//! In: a blob of the store and the diff id its configuration names. Out: a [`LayerSpec`]. The compression
//! is told by the bytes, since media types lie. One step of decompression, bounded in size and ratio;
//! nothing is extracted.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::ids::Digest;
use crate::pod::run::LayerSpec;
use crate::state::IoStep;
use crate::vfs::layer::{self, Index};

use super::super::limits::ImageLimits;
use super::{Store, StoreError};

const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
const CHUNK: usize = 256 << 10;
/// zstd windows above 128 MiB (its own command line's default limit) would let a blob choose our memory use.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

impl Store {
    /// The files of a layer, whether they exist or not.
    #[must_use]
    pub fn layer_spec(&self, diff_id: &Digest) -> LayerSpec {
        let dir = self.root.join("layers");
        LayerSpec {
            diff_id: diff_id.clone(),
            tar: dir.join(format!("{}.tar", diff_id.hex())),
            index: dir.join(format!("{}.index", diff_id.hex())),
        }
    }

    /// Whether a layer is unpacked: its index is written last.
    #[must_use]
    pub fn has_layer(&self, diff_id: &Digest) -> bool {
        let spec = self.layer_spec(diff_id);
        spec.index.is_file() && spec.tar.is_file()
    }

    /// Unpacks the blob `digest`, which must turn out to be the layer `diff_id`.
    ///
    /// # Errors
    /// [`StoreError::Decompress`], [`StoreError::Bomb`], [`StoreError::DiffId`], [`StoreError::Layer`],
    /// [`StoreError::Io`].
    pub fn unpack_layer(&self, digest: &Digest, diff_id: &Digest) -> Result<LayerSpec, StoreError> {
        let spec = self.layer_spec(diff_id);
        if self.has_layer(diff_id) {
            return Ok(spec);
        }
        let (tar_path, tar) = self.decompress(digest, diff_id)?;
        let result = self.index_and_publish(digest, &spec, &tar_path, &tar);
        if result.is_err() {
            let _ = fs::remove_file(&tar_path);
        }
        result.map(|()| spec)
    }

    /// The layer's tar as a temporary file.
    fn decompress(&self, digest: &Digest, diff_id: &Digest) -> Result<(PathBuf, File), StoreError> {
        let blob_path = self.blob_path(digest);
        let read_error = |source| StoreError::Io { step: "reading", path: blob_path.clone(), source };
        let mut blob = File::open(&blob_path).map_err(read_error)?;
        let compressed_size = blob.metadata().map_err(read_error)?.len();
        let mut magic = [0; 4];
        let got = read_up_to(&mut blob, &mut magic).map_err(read_error)?;
        blob.rewind().map_err(read_error)?;
        let magic = &magic[..got];
        if !magic.starts_with(GZIP) && !magic.starts_with(ZSTD) {
            return self.link_plain(digest, diff_id, &blob_path);
        }
        let limit = self.limits.layer_bytes.min(
            ImageLimits::RATIO_SLACK_BYTES.saturating_add(compressed_size.saturating_mul(self.limits.layer_ratio)),
        );
        let damaged = |source| StoreError::Decompress { digest: digest.clone(), source };
        let mut reader = decompressor(blob, magic).map_err(damaged)?;
        let (path, mut file) = self.temporary()?;
        let copied = self.copy_layer(digest, &mut *reader, &path, &mut file, limit).and_then(|actual| {
            if actual == *diff_id {
                Ok(())
            } else {
                Err(StoreError::DiffId { digest: digest.clone(), expected: diff_id.clone(), actual })
            }
        });
        match copied {
            Ok(()) => Ok((path, file)),
            Err(error) => {
                let _ = fs::remove_file(&path);
                Err(error)
            }
        }
    }

    /// An uncompressed blob is the layer already: another name for the same bytes.
    fn link_plain(&self, digest: &Digest, diff_id: &Digest, blob_path: &Path) -> Result<(PathBuf, File), StoreError> {
        if digest != diff_id {
            return Err(StoreError::DiffId {
                digest: digest.clone(),
                expected: diff_id.clone(),
                actual: digest.clone(),
            });
        }
        let (path, file) = self.temporary()?;
        drop(file);
        let io = |step, source| StoreError::Io { step, path: path.clone(), source };
        let linked = fs::remove_file(&path).and_then(|()| fs::hard_link(blob_path, &path)).or_else(|_| {
            // A file system without hard links.
            fs::copy(blob_path, &path).map(drop)
        });
        linked.map_err(|source| io("linking", source))?;
        let file = File::open(&path).map_err(|source| io("opening", source))?;
        Ok((path, file))
    }

    fn copy_layer(
        &self,
        digest: &Digest,
        reader: &mut dyn Read,
        path: &Path,
        file: &mut File,
        limit: u64,
    ) -> Result<Digest, StoreError> {
        use io::Write as _;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; CHUNK];
        let mut total: u64 = 0;
        loop {
            let read = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(StoreError::Decompress { digest: digest.clone(), source }),
            };
            total += read as u64;
            if total > limit {
                return Err(StoreError::Bomb { digest: digest.clone(), limit });
            }
            hasher.update(&buffer[..read]);
            self.step(IoStep::Write, "writing", path)?;
            file.write_all(&buffer[..read]).map_err(|source| StoreError::Io {
                step: "writing",
                path: path.to_owned(),
                source,
            })?;
        }
        Ok(Digest::from_sha256(hasher.finalize().into()))
    }

    fn index_and_publish(
        &self,
        digest: &Digest,
        spec: &LayerSpec,
        tar_path: &Path,
        tar: &File,
    ) -> Result<(), StoreError> {
        let damaged = |source| StoreError::Layer { digest: digest.clone(), source };
        let rewound = (&*tar).rewind();
        rewound.map_err(|source| StoreError::Io { step: "reading", path: tar_path.to_owned(), source })?;
        let index: Index = layer::build_index(tar).map_err(damaged)?;
        self.publish(tar_path, tar, &spec.tar)?;
        self.write_whole(&spec.index, &index.to_bytes())
    }
}

/// A reader of the plain tar.
fn decompressor(blob: File, magic: &[u8]) -> io::Result<Box<dyn Read>> {
    let buffered = BufReader::with_capacity(CHUNK, blob);
    if magic.starts_with(GZIP) {
        // Several members in a row are one layer: pigz and estargz write them so.
        return Ok(Box::new(flate2::bufread::MultiGzDecoder::new(buffered)));
    }
    let mut decoder = zstd::stream::read::Decoder::with_buffer(buffered)?;
    decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
    Ok(Box::new(decoder))
}

fn read_up_to(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
