//! The node's configuration after a join: the cluster's `kubelet-config`, made fit for this node. Pure.
//!
//! In: the `KubeletConfiguration` that kubeadm keeps for all nodes. Out: the text of `config.yaml`, and what was left out
//! and why. Reads and writes no file: whether a path exists is asked of the caller.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::config::{self, ConfigError, NOT_HONOURED};
use crate::identity::kubeconfig::to_yaml;
use crate::yaml;

/// Where things of the joined node are.
#[derive(Debug, Clone)]
pub struct Paths {
    /// The root directory.
    pub root_dir: PathBuf,
}

impl Paths {
    /// The configuration that join writes.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.root_dir.join("config.yaml")
    }

    /// The kubeconfig that the bootstrap writes.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.root_dir.join("kubeconfig")
    }

    /// Removed once the node has a certificate.
    #[must_use]
    pub fn bootstrap_kubeconfig(&self) -> PathBuf {
        self.root_dir.join("bootstrap-kubeconfig")
    }

    /// Certificates.
    #[must_use]
    pub fn pki(&self) -> PathBuf {
        self.root_dir.join("pki")
    }

    /// The authority of the cluster.
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        self.pki().join("ca.crt")
    }

    /// Static pods.
    #[must_use]
    pub fn manifests(&self) -> PathBuf {
        self.root_dir.join("manifests")
    }
}

/// A configuration, and what is to be said about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adapted {
    /// The text of `config.yaml`.
    pub text: String,
    /// One sentence for each change that an admin may wonder about.
    pub notes: Vec<String>,
}

/// Why the cluster's configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AdaptError {
    /// It is no YAML.
    #[error("the kubelet-config ConfigMap of kube-system is not YAML: {0}")]
    Yaml(String),
    /// It is no `KubeletConfiguration` of a version we read.
    #[error("the kubelet-config ConfigMap of kube-system has no KubeletConfiguration of v1beta1")]
    Kind,
    /// A value makes no sense to us.
    #[error("the kubelet-config ConfigMap of kube-system cannot be used")]
    Invalid(#[source] ConfigError),
}

/// Makes the cluster's configuration fit for this node; `None` when the cluster keeps none.
///
/// # Errors
/// [`AdaptError`].
pub fn adapt(
    cluster: Option<&str>,
    paths: &Paths,
    node_name: &str,
    exists: impl Fn(&Path) -> bool,
) -> Result<Adapted, AdaptError> {
    let mut notes = Vec::new();
    let mut kubelet = match cluster {
        Some(text) => read(text)?,
        None => {
            notes.push(format!(
                "the cluster keeps no kubelet-config: set clusterDNS and clusterDomain in {} if pods shall find Services by name",
                paths.config().display()
            ));
            let mut own = Map::new();
            own.insert("apiVersion".to_owned(), json!("kubelet.config.k8s.io/v1beta1"));
            own.insert("kind".to_owned(), json!("KubeletConfiguration"));
            own
        }
    };
    prune(&mut kubelet);
    let left_out: Vec<&str> =
        NOT_HONOURED.iter().copied().filter(|field| kubelet.shift_remove(*field).is_some()).collect();
    if !left_out.is_empty() {
        notes.push(format!("left out, since they have no meaning on this node: {}", left_out.join(", ")));
    }
    replace_paths(&mut kubelet, paths, exists, &mut notes);
    let own = json!({
        "apiVersion": "wasilet.dev/v1alpha1",
        "kind": "NodeConfiguration",
        "rootDir": paths.root_dir.to_string_lossy(),
        "nodeName": node_name,
        "kubeconfig": paths.kubeconfig().to_string_lossy(),
    });
    loop {
        let text = format!(
            "# Written by 'wasilet join'. The first document is the cluster's kubelet-config, made fit for this node.\n{}---\n{}",
            to_yaml(&Value::Object(kubelet.clone())),
            to_yaml(&own)
        );
        match config::parse(&paths.config(), &text) {
            Ok(_) => return Ok(Adapted { text, notes }),
            // A newer cluster has newer fields: none of them may keep the node out.
            Err(ConfigError::UnknownFields { unknown, path, place }) => {
                let names: Vec<String> = unknown.iter().map(|field| top(&field.path).to_owned()).collect();
                let mut removed = false;
                for name in &names {
                    removed |= kubelet.shift_remove(name.as_str()).is_some();
                }
                if !removed {
                    return Err(AdaptError::Invalid(ConfigError::UnknownFields { path, place, unknown }));
                }
                notes.push(format!("left out, since this version does not know them: {}", names.join(", ")));
            }
            Err(error) => return Err(AdaptError::Invalid(error)),
        }
    }
}

fn top(path: &str) -> &str {
    path.split(['.', '[']).next().unwrap_or(path)
}

fn read(text: &str) -> Result<Map<String, Value>, AdaptError> {
    let documents = yaml::parse(text).map_err(|error| AdaptError::Yaml(error.to_string()))?;
    for document in &documents {
        let decoded = yaml::decode::<Value>(document).map_err(|error| AdaptError::Yaml(error.to_string()))?;
        if let Value::Object(map) = decoded.value
            && map.get("kind").and_then(Value::as_str) == Some("KubeletConfiguration")
            && map.get("apiVersion").and_then(Value::as_str) == Some("kubelet.config.k8s.io/v1beta1")
        {
            return Ok(map);
        }
    }
    Err(AdaptError::Kind)
}

/// Removes what only says "the default": kubeadm writes out the whole type, with empty strings and zero durations.
fn prune(map: &mut Map<String, Value>) {
    map.retain(|_, value| match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty() && text != "0s",
        Value::Object(inner) => {
            let was_empty = inner.is_empty();
            prune(inner);
            !was_empty && !inner.is_empty()
        }
        _ => true,
    });
}

/// Paths of the kubelet's world become ours: a kubelet may live on the same machine, and its static pods and files are
/// none of this node's business.
fn replace_paths(
    kubelet: &mut Map<String, Value>,
    paths: &Paths,
    exists: impl Fn(&Path) -> bool,
    notes: &mut Vec<String>,
) {
    if kubelet.contains_key("staticPodPath") {
        let ours = paths.manifests();
        kubelet.insert("staticPodPath".to_owned(), json!(ours.to_string_lossy()));
        notes.push(format!("static pods are read from {}", ours.display()));
    }
    let x509 = kubelet.get_mut("authentication").and_then(|authentication| authentication.get_mut("x509"));
    if let Some(file) = x509.and_then(|x509| x509.get_mut("clientCAFile")) {
        *file = json!(paths.authority().to_string_lossy());
    }
    let missing = |kubelet: &Map<String, Value>, field: &str| {
        kubelet.get(field).and_then(Value::as_str).map(PathBuf::from).filter(|path| !exists(path))
    };
    // That of the machine kubeadm ran on; another's resolver may be elsewhere.
    if missing(kubelet, "resolvConf").is_some() {
        kubelet.shift_remove("resolvConf");
    }
    if let Some(path) = missing(kubelet, "tlsCertFile").or_else(|| missing(kubelet, "tlsPrivateKeyFile")) {
        kubelet.shift_remove("tlsCertFile");
        kubelet.shift_remove("tlsPrivateKeyFile");
        notes.push(format!("tlsCertFile and tlsPrivateKeyFile were left out: {} does not exist here", path.display()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As kubeadm 1.36 writes it.
    const KUBEADM: &str = "\
apiVersion: kubelet.config.k8s.io/v1beta1
authentication:
  anonymous:
    enabled: false
  webhook:
    cacheTTL: 0s
    enabled: true
  x509:
    clientCAFile: /etc/kubernetes/pki/ca.crt
authorization:
  mode: Webhook
  webhook:
    cacheAuthorizedTTL: 0s
    cacheUnauthorizedTTL: 0s
cgroupDriver: systemd
clusterDNS:
- 10.96.0.10
clusterDomain: cluster.local
containerRuntimeEndpoint: \"\"
cpuManagerReconcilePeriod: 0s
crashLoopBackOff: {}
evictionPressureTransitionPeriod: 0s
fileCheckFrequency: 0s
healthzBindAddress: 127.0.0.1
healthzPort: 10248
httpCheckFrequency: 0s
imageMaximumGCAge: 0s
imageMinimumGCAge: 0s
kind: KubeletConfiguration
logging:
  flushFrequency: 0
  options:
    json:
      infoBufferSize: \"0\"
    text:
      infoBufferSize: \"0\"
  verbosity: 0
memorySwap: {}
nodeStatusReportFrequency: 0s
nodeStatusUpdateFrequency: 0s
resolvConf: /run/systemd/resolve/resolv.conf
rotateCertificates: true
runtimeRequestTimeout: 0s
shutdownGracePeriod: 0s
shutdownGracePeriodCriticalPods: 0s
staticPodPath: /etc/kubernetes/manifests
streamingConnectionIdleTimeout: 0s
syncFrequency: 0s
volumeStatsAggPeriod: 0s
";

    fn paths() -> Paths {
        Paths { root_dir: PathBuf::from("/var/lib/wasilet") }
    }

    #[test]
    fn kubeadms_configuration_becomes_ours_without_a_warning_at_each_start() {
        let adapted = adapt(Some(KUBEADM), &paths(), "edge-1", |_| true).unwrap();
        let loaded = config::parse(Path::new("c"), &adapted.text).unwrap();
        assert_eq!(loaded.warnings, Vec::<String>::new());
        let config = loaded.config;
        assert_eq!(config.cluster_dns, ["10.96.0.10".parse::<std::net::IpAddr>().unwrap()]);
        assert_eq!(config.cluster_domain.as_deref(), Some("cluster.local"));
        assert_eq!(config.node_name.as_deref(), Some("edge-1"));
        assert_eq!(config.root_dir.as_deref(), Some(Path::new("/var/lib/wasilet")));
        assert_eq!(config.client.kubeconfig.as_deref(), Some(Path::new("/var/lib/wasilet/kubeconfig")));
        assert_eq!(config.static_pod_path.as_deref(), Some(Path::new("/var/lib/wasilet/manifests")));
        let authentication = config.server.authentication;
        assert_eq!(authentication.client_ca_file.as_deref(), Some(Path::new("/var/lib/wasilet/pki/ca.crt")));
        assert!(authentication.webhook && !authentication.anonymous && config.client.rotate_certificates);
        assert_eq!(adapted.notes.len(), 2, "{:?}", adapted.notes);
        assert!(adapted.notes[0].contains("cgroupDriver, logging"), "{:?}", adapted.notes);
    }

    #[test]
    fn what_cannot_be_used_is_left_out_or_named() {
        let base = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
        let tls = format!("{base}tlsCertFile: /a\ntlsPrivateKeyFile: /b\n");
        let gone = adapt(Some(&tls), &paths(), "n", |_| false).unwrap();
        assert!(!gone.text.contains("tlsCertFile") && gone.notes[0].contains("/a"), "{gone:?}");
        assert!(adapt(Some(&tls), &paths(), "n", |_| true).unwrap().text.contains("tlsCertFile"));

        let newer = adapt(Some(&format!("{base}fieldOf2030: {{ a: 1 }}\n")), &paths(), "n", |_| true).unwrap();
        assert!(newer.notes[0].contains("fieldOf2030"), "{:?}", newer.notes);

        let none = adapt(None, &paths(), "n", |_| true).unwrap();
        assert!(none.notes[0].contains("clusterDNS"));
        for (case, text) in [
            ("no YAML", "{".to_owned()),
            ("another kind", "apiVersion: v1\nkind: ConfigMap\n".to_owned()),
            ("a value that makes no sense", format!("{base}clusterDNS: [x]\n")),
        ] {
            assert!(adapt(Some(&text), &paths(), "n", |_| true).is_err(), "{case}");
        }
    }

    #[test]
    fn an_empty_list_is_not_a_default() {
        let text = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nregisterWithTaints: []\n";
        let adapted = adapt(Some(text), &paths(), "n", |_| true).unwrap();
        let config = config::parse(Path::new("c"), &adapted.text).unwrap().config;
        assert_eq!(config.registration.taints, Some(Vec::new()));
    }
}
