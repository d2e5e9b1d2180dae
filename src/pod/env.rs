//! A container's environment, from everything that can put a variable into it.
//!
//! In: the container, the objects it refers to, the pod's own fields, the image's env. Out: the final list,
//! in order and without duplicates, or the kubelet's message for `CreateContainerConfigError`.
//! Fetches nothing: an object that is not in [`Objects`] does not exist; one that could not be read says why.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVarSource, FileKeySelector, Secret};

use super::downward::{Downward, DownwardError};
use super::env_file;
use super::expansion::expand;

/// The ConfigMaps and Secrets of the pod's namespace that its env refers to, by name; what could not be read, with
/// the words why. (A missing object is not in here: only then does `optional` help.)
#[derive(Debug, Clone, Default)]
pub struct Objects {
    /// ConfigMaps.
    pub config_maps: HashMap<String, Result<Arc<ConfigMap>, String>>,
    /// Secrets.
    pub secrets: HashMap<String, Result<Arc<Secret>, String>>,
    /// Files that `fileKeyRef` names, by volume and path; those of volumes that the pod does not mount are missing.
    pub files: HashMap<(String, String), EnvFile>,
}

/// A file of a volume that env reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvFile {
    /// Where it is on the node, for messages.
    pub path: String,
    /// Its text; `None` when it is not there; why it could not be read.
    pub text: Result<Option<String>, String>,
}

impl Objects {
    fn config_map(&self, name: &str) -> Result<Option<&ConfigMap>, EnvError> {
        find(&self.config_maps, name)
    }

    fn secret(&self, name: &str) -> Result<Option<&Secret>, EnvError> {
        find(&self.secrets, name)
    }
}

fn find<'a, T>(objects: &'a HashMap<String, Result<Arc<T>, String>>, name: &str) -> Result<Option<&'a T>, EnvError> {
    match objects.get(name) {
        None => Ok(None),
        Some(Ok(object)) => Ok(Some(object)),
        Some(Err(reason)) => Err(EnvError::Unreadable { reason: reason.clone() }),
    }
}

/// Why an environment cannot be made; the words are the kubelet's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvError {
    /// A ConfigMap that is not optional is not there.
    #[error("configmap {name:?} not found")]
    ConfigMapNotFound {
        /// Its name.
        name: String,
    },
    /// A Secret that is not optional is not there.
    #[error("secret {name:?} not found")]
    SecretNotFound {
        /// Its name.
        name: String,
    },
    /// An object is there or not: the node could not find out.
    #[error("{reason}")]
    Unreadable {
        /// Whose words these are depends on who refused.
        reason: String,
    },
    /// A ConfigMap has no such key.
    #[error("couldn't find key {key} in ConfigMap {namespace}/{name}")]
    ConfigMapKeyNotFound {
        /// The key.
        key: String,
        /// The pod's namespace.
        namespace: String,
        /// The ConfigMap.
        name: String,
    },
    /// A Secret has no such key.
    #[error("couldn't find key {key} in Secret {namespace}/{name}")]
    SecretKeyNotFound {
        /// The key.
        key: String,
        /// The pod's namespace.
        namespace: String,
        /// The Secret.
        name: String,
    },
    /// A volume of a `fileKeyRef` that the pod does not mount, or that is no emptyDir.
    #[error("cannot find the volume {volume:?} referenced by FileKeyRef")]
    FileVolumeNotFound {
        /// Its name.
        volume: String,
    },
    /// A file of variables that cannot be read. (The kubelet keeps the reason for its log.)
    #[error("couldn't parse env file: {path}: {reason}")]
    File {
        /// Where it is.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file of variables without the key, or with an empty value of it.
    #[error("environment variable key {key:?} not found in file {path:?}")]
    FileKeyNotFound {
        /// The key.
        key: String,
        /// Where the file is.
        path: String,
    },
    /// A `fieldRef` or `resourceFieldRef` cannot be shown.
    #[error(transparent)]
    Downward(#[from] DownwardError),
    /// A value that no environment can hold.
    #[error("environment variable {variable:?} contains a NUL byte or is not UTF-8")]
    NotText {
        /// Its name; never its value.
        variable: String,
    },
}

/// Everything an environment is made of.
#[derive(Debug, Clone, Copy)]
pub struct EnvSources<'a> {
    /// The container.
    pub container: &'a Container,
    /// What its references mean.
    pub objects: &'a Objects,
    /// The pod's fields.
    pub downward: Downward<'a>,
    /// Variables of Services (`KUBERNETES_SERVICE_HOST` ...), weaker than the container's own.
    pub services: &'a BTreeMap<String, String>,
}

/// Variables in order of their first appearance; a later value replaces an earlier one in its place.
#[derive(Debug, Default)]
struct Variables {
    list: Vec<(String, String)>,
    index: HashMap<String, usize>,
}

impl Variables {
    fn set(&mut self, name: &str, value: String) {
        if let Some(&at) = self.index.get(name) {
            self.list[at].1 = value;
        } else {
            self.index.insert(name.to_owned(), self.list.len());
            self.list.push((name.to_owned(), value));
        }
    }

    fn get(&self, name: &str) -> Option<&String> {
        self.index.get(name).map(|&at| &self.list[at].1)
    }
}

/// The variables the pod gives a container: envFrom, then env, then Services.
///
/// # Errors
/// [`EnvError`], whose text is the message of `CreateContainerConfigError`.
pub fn container_env(sources: EnvSources<'_>) -> Result<Vec<(String, String)>, EnvError> {
    let mut variables = Variables::default();
    add_env_from(sources, &mut variables)?;
    for var in sources.container.env.iter().flatten() {
        let value = match (var.value.as_deref().unwrap_or(""), &var.value_from) {
            ("", Some(from)) => match resolve(sources, from, &var.name)? {
                Some(value) => value,
                None => continue,
            },
            (value, _) => expand(value, |name| variables.get(name).or_else(|| sources.services.get(name)).cloned()),
        };
        variables.set(&var.name, value);
    }
    for (name, value) in sources.services {
        if variables.get(name).is_none() {
            variables.set(name, value.clone());
        }
    }
    if let Some((name, _)) = variables.list.iter().find(|(_, value)| value.contains('\0')) {
        return Err(EnvError::NotText { variable: name.clone() });
    }
    Ok(variables.list)
}

fn add_env_from(sources: EnvSources<'_>, variables: &mut Variables) -> Result<(), EnvError> {
    for from in sources.container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or("");
        if let Some(reference) = &from.config_map_ref {
            match sources.objects.config_map(&reference.name)? {
                None if reference.optional == Some(true) => {}
                None => return Err(EnvError::ConfigMapNotFound { name: reference.name.clone() }),
                Some(config_map) => {
                    for (key, value) in config_map.data.iter().flatten() {
                        variables.set(&format!("{prefix}{key}"), value.clone());
                    }
                }
            }
        } else if let Some(reference) = &from.secret_ref {
            match sources.objects.secret(&reference.name)? {
                None if reference.optional == Some(true) => {}
                None => return Err(EnvError::SecretNotFound { name: reference.name.clone() }),
                Some(secret) => {
                    for (key, value) in secret.data.iter().flatten() {
                        let name = format!("{prefix}{key}");
                        let value = text(&value.0, &name)?;
                        variables.set(&name, value);
                    }
                }
            }
        }
    }
    Ok(())
}

/// The value of a `valueFrom`; `None` when it is optional and not there.
fn resolve(sources: EnvSources<'_>, from: &EnvVarSource, variable: &str) -> Result<Option<String>, EnvError> {
    let namespace = || sources.downward.pod.metadata.namespace.clone().unwrap_or_default();
    if let Some(field) = &from.field_ref {
        return Ok(Some(sources.downward.field(field)?));
    }
    if let Some(resource) = &from.resource_field_ref {
        return Ok(Some(sources.downward.resource(resource, Some(sources.container))?));
    }
    if let Some(selector) = &from.config_map_key_ref {
        let optional = selector.optional == Some(true);
        let name = &selector.name;
        let Some(config_map) = sources.objects.config_map(name)? else {
            return if optional { Ok(None) } else { Err(EnvError::ConfigMapNotFound { name: name.clone() }) };
        };
        return match config_map.data.as_ref().and_then(|data| data.get(&selector.key)) {
            Some(value) => Ok(Some(value.clone())),
            None if optional => Ok(None),
            None => {
                let (key, name) = (selector.key.clone(), name.clone());
                Err(EnvError::ConfigMapKeyNotFound { key, namespace: namespace(), name })
            }
        };
    }
    if let Some(selector) = &from.secret_key_ref {
        let optional = selector.optional == Some(true);
        let name = &selector.name;
        let Some(secret) = sources.objects.secret(name)? else {
            return if optional { Ok(None) } else { Err(EnvError::SecretNotFound { name: name.clone() }) };
        };
        return match secret.data.as_ref().and_then(|data| data.get(&selector.key)) {
            Some(value) => Ok(Some(text(&value.0, variable)?)),
            None if optional => Ok(None),
            None => {
                let (key, name) = (selector.key.clone(), name.clone());
                Err(EnvError::SecretKeyNotFound { key, namespace: namespace(), name })
            }
        };
    }
    if let Some(selector) = &from.file_key_ref {
        return from_file(sources.objects, selector);
    }
    Ok(Some(String::new()))
}

/// A `fileKeyRef`. The API says of `optional` that it is for the file as for the key.
fn from_file(objects: &Objects, selector: &FileKeySelector) -> Result<Option<String>, EnvError> {
    let FileKeySelector { key, optional, path, volume_name } = selector;
    let optional = *optional == Some(true);
    let Some(EnvFile { path, text }) = objects.files.get(&(volume_name.clone(), path.clone())) else {
        return Err(EnvError::FileVolumeNotFound { volume: volume_name.clone() });
    };
    let unreadable = |reason: String| EnvError::File { path: path.clone(), reason };
    let value = match text {
        Ok(Some(text)) => env_file::parse(text, key).map_err(|error| unreadable(error.to_string()))?,
        Ok(None) if optional => return Ok(None),
        Ok(None) => return Err(unreadable("no such file or directory".to_owned())),
        Err(reason) => return Err(unreadable(reason.clone())),
    };
    if !value.is_empty() {
        return Ok(Some(value));
    }
    if optional { Ok(None) } else { Err(EnvError::FileKeyNotFound { key: key.clone(), path: path.clone() }) }
}

fn text(bytes: &[u8], variable: &str) -> Result<String, EnvError> {
    String::from_utf8(bytes.to_vec()).map_err(|_| EnvError::NotText { variable: variable.to_owned() })
}

/// What the runtime adds below a container's own variables, as containerd and runc do: the image's env,
/// `PATH`, `HOSTNAME`, `HOME`, and `TERM` on a terminal.
#[must_use]
pub fn with_image_env(
    image_env: &[(String, String)],
    env: Vec<(String, String)>,
    hostname: &str,
    tty: super::run::Tty,
) -> Vec<(String, String)> {
    let mut variables = Variables::default();
    variables.set("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
    variables.set("HOSTNAME", hostname.to_owned());
    if tty == super::run::Tty::Terminal {
        variables.set("TERM", "xterm".to_owned());
    }
    for (name, value) in image_env.iter().filter(|(name, _)| !name.is_empty()) {
        variables.set(name, value.clone());
    }
    for (name, value) in env {
        variables.set(&name, value);
    }
    if variables.get("HOME").is_none() {
        variables.set("HOME", "/".to_owned());
    }
    variables.list
}

#[cfg(test)]
mod tests {
    use super::super::downward::NodeFacts;
    use super::*;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    fn node() -> NodeFacts {
        NodeFacts {
            name: "node-1".into(),
            host_ips: vec![],
            allocatable_cpu_milli: 1000,
            allocatable_memory_bytes: 1 << 30,
            allocatable_ephemeral_storage_bytes: 0,
        }
    }

    fn objects() -> Objects {
        let config_map = serde_json::from_value(json!({"data": {"A": "1", "B": "2"}})).unwrap();
        let secret = serde_json::from_value(json!({"data": {"PW": "c2VjcmV0", "RAW": "/w=="}})).unwrap();
        Objects {
            config_maps: [
                ("conf".to_owned(), Ok(Arc::new(config_map))),
                ("unread".to_owned(), Err("failed to sync configmap cache: forbidden".to_owned())),
            ]
            .into(),
            secrets: [("cred".to_owned(), Ok(Arc::new(secret)))].into(),
            files: [
                ("vars", Ok(Some("A='one'\nEMPTY=''\n".to_owned()))),
                ("bad", Ok(Some("A=one".to_owned()))),
                ("none", Ok(None)),
                ("secret", Err("permission denied".to_owned())),
            ]
            .map(|(name, text)| (("v".to_owned(), name.to_owned()), EnvFile { path: format!("/v/{name}"), text }))
            .into(),
        }
    }

    fn env_of(container: serde_json::Value) -> Result<String, String> {
        let mut container = container;
        container["name"] = json!("c");
        let container: Container = serde_json::from_value(container).unwrap();
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "ns"}})).unwrap();
        let (node, objects) = (node(), objects());
        let services = [("SVC".to_owned(), "10.0.0.9".to_owned()), ("A".to_owned(), "svc".to_owned())].into();
        let downward = Downward { pod: &pod, pod_ips: &[], node: &node };
        let sources = EnvSources { container: &container, objects: &objects, downward, services: &services };
        let list = container_env(sources).map_err(|e| e.to_string())?;
        let words: Vec<_> = list.into_iter().filter(|(n, _)| n != "SVC").map(|(n, v)| format!("{n}={v}")).collect();
        Ok(words.join(" "))
    }

    #[test]
    fn variables_come_in_order_and_expand_what_came_before() {
        for (case, container, expected) in [
            ("services are weakest", json!({}), "A=svc"),
            ("plain", json!({"env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "$(X)2"}]}), "X=1 Y=12 A=svc"),
            (
                "not yet known",
                json!({"env": [{"name": "Y", "value": "$(X)"}, {"name": "X", "value": "1"}]}),
                "Y=$(X) X=1 A=svc",
            ),
            ("services can be named", json!({"env": [{"name": "Y", "value": "$(SVC):80"}]}), "Y=10.0.0.9:80 A=svc"),
            ("escaped", json!({"env": [{"name": "Y", "value": "$$(X)"}]}), "Y=$(X) A=svc"),
            ("envFrom", json!({"envFrom": [{"configMapRef": {"name": "conf"}}]}), "A=1 B=2"),
            (
                "envFrom with prefix",
                json!({"envFrom": [{"prefix": "P_", "configMapRef": {"name": "conf"}}]}),
                "P_A=1 P_B=2 A=svc",
            ),
            (
                "env wins over envFrom in its place",
                json!({"envFrom": [{"configMapRef": {"name": "conf"}}], "env": [{"name": "A", "value": "mine"}]}),
                "A=mine B=2",
            ),
            (
                "envFrom expands in env",
                json!({"envFrom": [{"configMapRef": {"name": "conf"}}], "env": [{"name": "C", "value": "$(A)$(B)"}]}),
                "A=1 B=2 C=12",
            ),
            (
                "a key of a ConfigMap",
                json!({"env": [{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "conf", "key": "B"}}}]}),
                "X=2 A=svc",
            ),
            (
                "a key of a Secret",
                json!({"env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "cred", "key": "PW"}}}]}),
                "X=secret A=svc",
            ),
            (
                "an optional key that is not there",
                json!({"env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "cred", "key": "no", "optional": true}}}]}),
                "A=svc",
            ),
            (
                "an optional object that is not there",
                json!({"envFrom": [{"secretRef": {"name": "no", "optional": true}}]}),
                "A=svc",
            ),
            (
                "a key of a file, before what uses it",
                json!({"env": [{"name": "X", "valueFrom": {"fileKeyRef": {"volumeName": "v", "path": "vars", "key": "A"}}},
                    {"name": "Y", "value": "$(X)!"}]}),
                "X=one Y=one! A=svc",
            ),
            (
                "an optional key that the file does not have, or has empty",
                json!({"env": [{"name": "X", "valueFrom": {"fileKeyRef": {"volumeName": "v", "path": "vars", "key": "B", "optional": true}}},
                    {"name": "Y", "valueFrom": {"fileKeyRef": {"volumeName": "v", "path": "vars", "key": "EMPTY", "optional": true}}}]}),
                "A=svc",
            ),
            (
                "an optional file that is not there",
                json!({"env": [{"name": "X", "valueFrom": {"fileKeyRef": {"volumeName": "v", "path": "none", "key": "B", "optional": true}}}]}),
                "A=svc",
            ),
            (
                "a field",
                json!({"env": [{"name": "X", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}),
                "X=web A=svc",
            ),
            (
                "a resource of its own container",
                json!({"resources": {"limits": {"cpu": "2"}}, "env": [{"name": "X", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}}]}),
                "X=2 A=svc",
            ),
        ] {
            assert_eq!(env_of(container).as_deref(), Ok(expected), "{case}");
        }
    }

    #[test]
    fn what_is_missing_is_named_in_the_kubelets_words() {
        let file = |volume: &str, path: &str, key: &str| {
            let reference = json!({"volumeName": volume, "path": path, "key": key});
            json!({"env": [{"name": "X", "valueFrom": {"fileKeyRef": reference}}]})
        };
        for (container, expected) in [
            (json!({"envFrom": [{"configMapRef": {"name": "no"}}]}), "configmap \"no\" not found"),
            (json!({"envFrom": [{"secretRef": {"name": "no"}}]}), "secret \"no\" not found"),
            (
                json!({"envFrom": [{"configMapRef": {"name": "unread", "optional": true}}]}),
                "failed to sync configmap cache: forbidden",
            ),
            (
                json!({"env": [{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "conf", "key": "z"}}}]}),
                "couldn't find key z in ConfigMap ns/conf",
            ),
            (
                json!({"env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "cred", "key": "z"}}}]}),
                "couldn't find key z in Secret ns/cred",
            ),
            (
                json!({"env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "cred", "key": "RAW"}}}]}),
                "environment variable \"X\" contains a NUL byte or is not UTF-8",
            ),
            (file("w", "vars", "A"), "cannot find the volume \"w\" referenced by FileKeyRef"),
            (file("v", "vars", "B"), "environment variable key \"B\" not found in file \"/v/vars\""),
            (file("v", "vars", "EMPTY"), "environment variable key \"EMPTY\" not found in file \"/v/vars\""),
            (file("v", "none", "A"), "couldn't parse env file: /v/none: no such file or directory"),
            (file("v", "secret", "A"), "couldn't parse env file: /v/secret: permission denied"),
            (
                file("v", "bad", "A"),
                "couldn't parse env file: /v/bad: invalid environment variable format at line 1: value must be enclosed \
                 in single quotes",
            ),
        ] {
            assert_eq!(env_of(container), Err(expected.to_owned()));
        }
    }

    #[test]
    fn the_image_and_the_runtime_give_what_the_pod_does_not() {
        let image = [("PATH", "/bin"), ("MODE", "image"), ("EMPTY", "")].map(|(n, v)| (n.to_owned(), v.to_owned()));
        let env = with_image_env(&image, vec![("MODE".into(), "pod".into())], "web", super::super::run::Tty::None);
        let expected = [("PATH", "/bin"), ("HOSTNAME", "web"), ("MODE", "pod"), ("EMPTY", ""), ("HOME", "/")];
        assert_eq!(env, expected.map(|(n, v)| (n.to_owned(), v.to_owned())));
    }
}
