//! The JSON documents of images: manifests, indexes, configurations.
//!
//! In: bytes from a registry or an archive. Out: the fields this node reads, checked as far as their types
//! go. Unknown fields are ignored, as the image specification demands; documents are written with the same
//! types. Decides nothing (`shape` and `platform` do).

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use crate::ids::Digest;

/// Media types by name.
pub mod media_type {
    /// OCI image manifest.
    pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// OCI image index.
    pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// Docker's manifest.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// Docker's index.
    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// OCI image configuration.
    pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// Docker's configuration.
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
    /// Configuration of the CNCF wasm artifact.
    pub const WASM_CONFIG: &str = "application/vnd.wasm.config.v0+json";
    /// The one layer of the CNCF wasm artifact.
    pub const WASM: &str = "application/wasm";
    /// A gzipped layer.
    pub const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    /// A plain layer.
    pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
}

/// What a manifest says of a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Its media type; absent in some hand-made indexes.
    #[serde(default)]
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
    /// Free text, such as the name in an OCI layout.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// In an index: what it runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

/// What an image runs on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`, `wasip1`, ...
    #[serde(default)]
    pub os: String,
    /// `amd64`, `wasm`, ...
    #[serde(default)]
    pub architecture: String,
    /// `v8`, ...
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// A manifest or an index, told apart by what they hold: media types are often absent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// Several, by platform.
    Index(Index),
}

/// One image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// 2.
    pub schema_version: u32,
    /// Its own media type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// What kind of artifact it is, when it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The configuration.
    pub config: Descriptor,
    /// The layers, lowest first.
    #[serde(default, deserialize_with = "null_is_default")]
    pub layers: Vec<Descriptor>,
    /// Free text.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// Several images, by platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// 2.
    pub schema_version: u32,
    /// Its own media type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The images.
    #[serde(default, deserialize_with = "null_is_default")]
    pub manifests: Vec<Descriptor>,
}

/// Why bytes are no manifest.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// Not JSON, or not of the right types.
    #[error("{what} {digest} is malformed")]
    Malformed {
        /// `manifest`, `index` or `configuration`.
        what: &'static str,
        /// Which.
        digest: Digest,
        /// Where.
        #[source]
        source: serde_json::Error,
    },
    /// Schema 1, which Docker itself no longer reads, or a version to come.
    #[error(
        "manifest {digest} has schema version {version}; only 2 is supported: push the image again with a current tool"
    )]
    SchemaVersion {
        /// Which.
        digest: Digest,
        /// Its version.
        version: u32,
    },
    /// Neither layers nor manifests, or both (which lets two readers see two images).
    #[error("document {digest} is neither an image manifest nor an image index")]
    Ambiguous {
        /// Which.
        digest: Digest,
    },
}

impl Document {
    /// Reads the document whose digest is `digest`.
    ///
    /// # Errors
    /// [`DocumentError`].
    pub fn parse(digest: &Digest, bytes: &[u8]) -> Result<Self, DocumentError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Probe {
            #[serde(default)]
            schema_version: u32,
            layers: Option<serde::de::IgnoredAny>,
            config: Option<serde::de::IgnoredAny>,
            manifests: Option<serde::de::IgnoredAny>,
        }
        let malformed = |what| move |source| DocumentError::Malformed { what, digest: digest.clone(), source };
        let probe: Probe = serde_json::from_slice(bytes).map_err(malformed("manifest"))?;
        if probe.schema_version != 2 {
            return Err(DocumentError::SchemaVersion { digest: digest.clone(), version: probe.schema_version });
        }
        match (probe.config.is_some() || probe.layers.is_some(), probe.manifests.is_some()) {
            (true, false) => serde_json::from_slice(bytes).map(Self::Manifest).map_err(malformed("manifest")),
            (false, true) => serde_json::from_slice(bytes).map(Self::Index).map_err(malformed("index")),
            _ => Err(DocumentError::Ambiguous { digest: digest.clone() }),
        }
    }
}

/// An image's configuration: OCI's, Docker's, or the wasm artifact's, which share what they have in common.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configuration {
    /// When it was built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// `amd64`, `wasm`, ...
    #[serde(default, deserialize_with = "null_is_default")]
    pub architecture: String,
    /// `linux`, `wasip1`, ...
    #[serde(default, deserialize_with = "null_is_default")]
    pub os: String,
    /// The defaults of a container.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "ContainerDefaults::is_empty")]
    pub config: ContainerDefaults,
    /// The layers' diff ids.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rootfs: Option<RootFs>,
    /// The wasm artifact's layers.
    #[serde(
        default,
        rename = "layerDigests",
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub layer_digests: Vec<Digest>,
    /// What the wasm artifact's component imports and exports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub component: Option<serde_json::Value>,
}

/// `rootfs` of a configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    /// `layers`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Digests of the uncompressed tars, lowest first.
    #[serde(default, deserialize_with = "null_is_default")]
    pub diff_ids: Vec<Digest>,
}

/// `config` of a configuration. Docker writes `null` for what is not set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
#[allow(missing_docs, reason = "Docker's own names, described by the image specification")]
pub struct ContainerDefaults {
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub user: String,
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub exposed_ports: BTreeMap<String, serde_json::Value>,
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
}

impl ContainerDefaults {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Configuration {
    /// Reads the configuration whose digest is `digest`.
    ///
    /// # Errors
    /// [`DocumentError::Malformed`].
    pub fn parse(digest: &Digest, bytes: &[u8]) -> Result<Self, DocumentError> {
        serde_json::from_slice(bytes).map_err(|source| DocumentError::Malformed {
            what: "configuration",
            digest: digest.clone(),
            source,
        })
    }

    /// The diff ids, none for an artifact.
    #[must_use]
    pub fn diff_ids(&self) -> &[Digest] {
        self.rootfs.as_ref().map_or(&[], |rootfs| rootfs.diff_ids.as_slice())
    }
}

fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn parse(json: &str) -> Result<Document, DocumentError> {
        Document::parse(&Digest::of(json.as_bytes()), json.as_bytes())
    }

    #[test]
    fn a_manifest_and_an_index_are_told_apart_without_media_types() {
        let manifest = format!(r#"{{"schemaVersion":2,"config":{{"digest":"{D}","size":2}},"layers":null}}"#);
        assert!(matches!(parse(&manifest).unwrap(), Document::Manifest(_)));
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{{"digest":"{D}","size":2}}]}}"#);
        assert!(matches!(parse(&index).unwrap(), Document::Index(_)));
    }

    #[test]
    fn a_document_two_readers_could_read_differently_is_refused() {
        let both = format!(r#"{{"schemaVersion":2,"manifests":[],"config":{{"digest":"{D}","size":2}},"layers":[]}}"#);
        assert!(matches!(parse(&both).unwrap_err(), DocumentError::Ambiguous { .. }));
        assert!(matches!(
            parse(r#"{"schemaVersion":1}"#).unwrap_err(),
            DocumentError::SchemaVersion { version: 1, .. }
        ));
        assert!(matches!(parse("<html>").unwrap_err(), DocumentError::Malformed { .. }));
    }

    #[test]
    fn dockers_nulls_are_absences() {
        let json = br#"{"os":"linux","architecture":"amd64","config":{"Env":null,"Cmd":null,"Entrypoint":["/a"],
            "ExposedPorts":{"80/tcp":{}},"Volumes":null,"Labels":null,"OnBuild":null,"WorkingDir":""},"rootfs":{"type":"layers","diff_ids":null}}"#;
        let configuration = Configuration::parse(&Digest::of(json), json).unwrap();
        assert_eq!(configuration.config.entrypoint, ["/a"]);
        assert!(configuration.diff_ids().is_empty());
    }
}
