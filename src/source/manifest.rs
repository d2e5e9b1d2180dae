//! One manifest: documents to pods and objects, as strictly as `kubectl apply --validate=strict`.
//!
//! In: the bytes of a file. Out: its pods with defaults applied and validated, its ConfigMaps and Secrets, warnings;
//! or the first mistake with file, line and column. Pure: reads no file and no clock, names no node (`file` does).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use serde::de::DeserializeOwned;

use crate::objects::ObjectSet;
use crate::pod::{defaults, field, validation};
use crate::yaml::{self, Node, Place, UnknownField, Value, YamlError};

use super::controllers;

/// Bytes of a manifest, as the kubelet's `maxConfigLength`.
pub const MAX_BYTES: usize = 10 << 20;

/// Pods of one manifest: a mistyped `replicas` must not eat the node.
pub const MAX_PODS: usize = 10_000;

/// What a manifest says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Manifest {
    /// Its pods, valid, under the names written (a node's name is not appended yet).
    pub pods: Vec<Pod>,
    /// Its ConfigMaps and Secrets.
    pub objects: ObjectSet,
    /// Documents and settings that are left out without harm, each told in a sentence.
    pub warnings: Vec<String>,
}

/// Why a manifest is not used. Displayed with `file:line:column`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Too big.
    #[error("{}: manifest is larger than {MAX_BYTES} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// Not text.
    #[error("{}: manifest is not UTF-8 (byte {offset})", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// The first byte that is none.
        offset: usize,
    },
    /// No YAML, or a value of the wrong type.
    #[error("{}:{}: {source}", path.display(), source.place)]
    Yaml {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: YamlError,
    },
    /// Fields nobody knows.
    #[error("{}:{place}: {object}: strict decoding error: {}", path.display(), join(unknown))]
    UnknownFields {
        /// The file.
        path: PathBuf,
        /// The first one's place.
        place: Place,
        /// `Pod "web"`.
        object: String,
        /// All of them.
        unknown: Vec<UnknownField>,
    },
    /// A document that this node has no use for.
    #[error("{}:{place}: {problem}", path.display())]
    Document {
        /// The file.
        path: PathBuf,
        /// The document.
        place: Place,
        /// What is wrong with it.
        problem: String,
    },
    /// A pod that an API server would refuse, in its words.
    #[error("{}:{place}: {object} is invalid: {problems}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The document.
        place: Place,
        /// `The Pod "web"`.
        object: String,
        /// All that is wrong with it.
        problems: String,
    },
}

fn join(unknown: &[UnknownField]) -> String {
    unknown.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Reads a manifest; `path` is for messages.
///
/// # Errors
/// The first mistake. A manifest is used as a whole or not at all.
pub fn parse(path: &Path, bytes: &[u8]) -> Result<Manifest, ManifestError> {
    if bytes.len() > MAX_BYTES {
        return Err(ManifestError::TooLarge { path: path.to_owned() });
    }
    let text = std::str::from_utf8(bytes)
        .map_err(|error| ManifestError::NotText { path: path.to_owned(), offset: error.valid_up_to() })?;
    let documents = yaml::parse(text).map_err(|source| ManifestError::Yaml { path: path.to_owned(), source })?;
    let mut reader = Reader { path, manifest: Manifest::default() };
    for document in &documents {
        reader.document(document)?;
    }
    Ok(reader.manifest)
}

/// Reads the documents of one file.
pub(super) struct Reader<'a> {
    path: &'a Path,
    manifest: Manifest,
}

impl Reader<'_> {
    fn document(&mut self, node: &Node) -> Result<(), ManifestError> {
        let word = |name| node.get(name).and_then(Node::as_str).unwrap_or_default();
        let (version, kind) = (word("apiVersion"), word("kind"));
        match (version, kind) {
            (_, "") => Err(self.refuse(node, "kind not set")),
            ("", _) => Err(self.refuse(node, "apiVersion not set")),
            ("v1", "Pod") => {
                let pod: Pod = self.decode(node)?;
                self.add_pod(node, "Pod", pod)
            }
            ("v1", "ConfigMap") => self.config_map(node),
            ("v1", "Secret") => self.secret(node),
            ("v1", "List" | "PodList" | "ConfigMapList" | "SecretList") => self.list(node),
            ("apps/v1", "Deployment") => controllers::deployment(self, node),
            ("apps/v1", "ReplicaSet") => controllers::replica_set(self, node),
            ("apps/v1", "StatefulSet") => controllers::stateful_set(self, node),
            ("apps/v1", "DaemonSet") => controllers::daemon_set(self, node),
            ("batch/v1", "Job") => controllers::job(self, node),
            ("v1", "Service" | "Namespace" | "ServiceAccount") => {
                let object = object_name(node);
                self.warn(node, &format!("{object} is left out: it has no meaning on a node without a cluster"));
                Ok(())
            }
            _ => {
                let kinds = "Pod, ConfigMap, Secret, Deployment, ReplicaSet, StatefulSet, DaemonSet, Job and List";
                let problem = format!("{kind} ({version}) cannot be run without a cluster: this node runs {kinds}");
                Err(self.refuse(node, &problem))
            }
        }
    }

    /// Decodes a document; every field must be known.
    pub(super) fn decode<T: DeserializeOwned>(&self, node: &Node) -> Result<T, ManifestError> {
        let decoded =
            yaml::decode::<T>(node).map_err(|source| ManifestError::Yaml { path: self.path.to_owned(), source })?;
        match decoded.unknown.first() {
            None => Ok(decoded.value),
            Some(first) => Err(ManifestError::UnknownFields {
                path: self.path.to_owned(),
                place: first.place,
                object: object_name(node),
                unknown: decoded.unknown,
            }),
        }
    }

    /// Fills in defaults, validates, and takes the pod; `node` is the document it comes from.
    pub(super) fn add_pod(&mut self, node: &Node, kind: &str, mut pod: Pod) -> Result<(), ManifestError> {
        if self.manifest.pods.len() >= MAX_PODS {
            return Err(self.refuse(node, &format!("a manifest may have at most {MAX_PODS} pods")));
        }
        // What a cluster would set and a copied manifest may carry.
        pod.status = None;
        defaults::apply(&mut pod);
        let problems = validation::validate(&pod);
        if !problems.is_empty() {
            return Err(self.invalid(node, kind, &field::join(&problems)));
        }
        self.manifest.pods.push(pod);
        Ok(())
    }

    pub(super) fn warn(&mut self, node: &Node, text: &str) {
        self.manifest.warnings.push(format!("{}:{}: {text}", self.path.display(), node.place));
    }

    pub(super) fn refuse(&self, node: &Node, problem: &str) -> ManifestError {
        ManifestError::Document { path: self.path.to_owned(), place: node.place, problem: problem.to_owned() }
    }

    /// In the API server's words: `The KIND "NAME" is invalid: ...`.
    pub(super) fn invalid(&self, node: &Node, kind: &str, problems: &str) -> ManifestError {
        let name = node.get("metadata").and_then(|metadata| metadata.get("name")).and_then(Node::as_str);
        ManifestError::Invalid {
            path: self.path.to_owned(),
            place: node.place,
            object: format!("The {kind} {:?}", name.unwrap_or_default()),
            problems: problems.to_owned(),
        }
    }

    fn list(&mut self, node: &Node) -> Result<(), ManifestError> {
        let items = match node.get("items").map(|items| &items.value) {
            Some(Value::Sequence(items)) => items,
            None | Some(Value::Null) => return Ok(()),
            Some(_) => return Err(self.refuse(node, "items: expected a list")),
        };
        // Lists in lists are bounded by the depth of the document.
        items.iter().try_for_each(|item| self.document(item))
    }

    fn config_map(&mut self, node: &Node) -> Result<(), ManifestError> {
        let object: ConfigMap = self.decode(node)?;
        self.check_name(node, "ConfigMap", object.metadata.name.as_deref())?;
        let text = object.data.iter().flat_map(BTreeMap::keys);
        let keys = text.chain(object.binary_data.iter().flat_map(BTreeMap::keys));
        self.check_keys(node, "ConfigMap", keys)?;
        self.manifest.objects.config_maps.push(object);
        Ok(())
    }

    fn secret(&mut self, node: &Node) -> Result<(), ManifestError> {
        let mut object: Secret = self.decode(node)?;
        self.check_name(node, "Secret", object.metadata.name.as_deref())?;
        if let Some(text) = object.string_data.take() {
            // As the API server: stringData wins over data.
            let text = text.into_iter().map(|(key, value)| (key, ByteString(value.into_bytes())));
            object.data.get_or_insert_default().extend(text);
        }
        self.check_keys(node, "Secret", object.data.iter().flat_map(BTreeMap::keys))?;
        self.manifest.objects.secrets.push(object);
        Ok(())
    }

    fn check_name(&self, node: &Node, kind: &str, name: Option<&str>) -> Result<(), ManifestError> {
        match name.filter(|name| !name.is_empty()) {
            Some(_) => Ok(()),
            None => Err(self.invalid(node, kind, "metadata.name: Required value: name or generateName is required")),
        }
    }

    fn check_keys<'k>(
        &self,
        node: &Node,
        kind: &str,
        mut keys: impl Iterator<Item = &'k String>,
    ) -> Result<(), ManifestError> {
        let bad = keys.find_map(|key| Some((key, crate::pod::names::config_key(key)?)));
        bad.map_or(Ok(()), |(key, detail)| {
            Err(self.invalid(node, kind, &format!("data[{key}]: Invalid value: {key:?}: {detail}")))
        })
    }
}

/// `Pod "web"`.
pub(super) fn object_name(node: &Node) -> String {
    let kind = node.get("kind").and_then(Node::as_str).unwrap_or("object");
    let name = node.get("metadata").and_then(|metadata| metadata.get("name")).and_then(Node::as_str);
    format!("{kind} {:?}", name.unwrap_or_default())
}
