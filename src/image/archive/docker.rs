//! `docker save` archives: a `manifest.json` instead of manifests.
//!
//! In: a [`Source`] that has one. Out: blobs, and a manifest made for what the archive has.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::image::complete::Accepted;
use crate::image::documents::{Configuration, Manifest, media_type};
use crate::image::shape::ShapeError;
use crate::image::store::{Store, StoreError};

use super::{ArchiveError, Loaded, Source, descriptor};

/// One image of `docker save`'s `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Brings every image of the archive in.
pub(super) fn load(store: &Store, source: &mut Source) -> Result<Vec<Loaded>, ArchiveError> {
    const NAME: &str = "manifest.json";
    let limits = *store.limits();
    let bytes = source.read_small(NAME, limits.manifest_bytes)?;
    let images: Vec<DockerImage> =
        serde_json::from_slice(&bytes).map_err(|source| ArchiveError::Malformed { name: NAME.to_owned(), source })?;
    if images.len() > limits.index_entries {
        return Err(ShapeError::IndexEntries { found: images.len(), limit: limits.index_entries }.into());
    }
    images.into_iter().map(|image| take_docker_image(store, source, image)).collect()
}

/// Such an archive has no manifest; one is made for what it has.
fn take_docker_image(store: &Store, source: &mut Source, image: DockerImage) -> Result<Loaded, ArchiveError> {
    let limits = *store.limits();
    if image.layers.len() > limits.layers {
        return Err(ShapeError::TooManyLayers { found: image.layers.len(), limit: limits.layers }.into());
    }
    let config_bytes = source.read_small(&image.config, limits.config_bytes)?;
    let config_digest = store.put_blob(&config_bytes)?;
    let configuration = Configuration::parse(&config_digest, &config_bytes)?;
    let diff_ids = configuration.diff_ids();
    if diff_ids.len() != image.layers.len() {
        return Err(ShapeError::LayerCount { layers: image.layers.len(), diff_ids: diff_ids.len() }.into());
    }
    let mut layers = Vec::new();
    for (name, diff_id) in image.layers.iter().zip(diff_ids) {
        let (mut reader, size) = source.open_member(name)?;
        let mut ingest = store.ingest_unknown(limits.layer_bytes)?;
        ingest.copy(store, &mut *reader)?;
        if ingest.written() < size {
            let digest = diff_id.clone();
            return Err(StoreError::Truncated { digest, expected: size, actual: ingest.written() }.into());
        }
        let digest = ingest.commit(store)?;
        // Layers are plain tars here, unless a newer Docker kept them compressed; unpacking checks either.
        let media_type = if digest == *diff_id { media_type::LAYER } else { media_type::LAYER_GZIP };
        layers.push(descriptor(media_type, digest, size));
    }
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(media_type::MANIFEST.to_owned()),
        artifact_type: None,
        config: descriptor(media_type::CONFIG, config_digest, config_bytes.len() as u64),
        layers,
        annotations: BTreeMap::new(),
    };
    let bytes = serde_json::to_vec(&manifest).expect("a manifest has string keys only");
    let digest = store.put_blob(&bytes)?;
    let accepted = Accepted::check(digest.clone(), bytes.len() as u64, manifest, &limits)?;
    Ok(Loaded { names: image.repo_tags.unwrap_or_default(), accepted })
}
