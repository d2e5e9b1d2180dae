//! Kubeconfig files: read for their cluster and credentials, written after a bootstrap.
//!
//! In: a path, or the service account of this pod. Out: how to reach the API server ([`Login`]), with the client
//! certificate taken out, since it is replaced while the rest stays. Opens no connection.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Uri;
use kube::Config;
use kube::config::{AuthInfo, Cluster, Kubeconfig};
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};

use super::error::IdentityError;
use super::pair::Pair;

/// How the API server is reached.
#[derive(Debug, Clone)]
pub struct Login {
    /// Server, authorities, tokens; without a client certificate.
    pub config: Config,
    /// The client certificate, if the kubeconfig has one.
    pub certificate: Option<Certificate>,
    /// A proxy that takes CONNECT.
    pub proxy: Option<Uri>,
    /// The cluster as the kubeconfig has it; a service account has none.
    pub cluster: Option<Cluster>,
}

/// A client certificate and where it was found.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// The pair as it was when it was read.
    pub pair: Pair,
    /// Its files, when it is not in the kubeconfig itself: they may be replaced.
    pub files: Option<CertificateFiles>,
}

/// Files of a certificate and its key; both may be one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The chain.
    pub certificate: PathBuf,
    /// The key.
    pub key: PathBuf,
}

impl CertificateFiles {
    /// Reads them as they are now.
    ///
    /// # Errors
    /// [`IdentityError::File`] or [`IdentityError::Certificate`].
    pub fn read(&self) -> Result<Pair, IdentityError> {
        let read = |path: &Path| fs::read(path).map_err(IdentityError::file("reading", path));
        let (chain, key) = (read(&self.certificate)?, read(&self.key)?);
        Pair::from_pem(&chain, &key)
            .map_err(|source| IdentityError::Certificate { path: self.certificate.clone(), source })
    }
}

impl Login {
    /// The authorities of the cluster, empty when those of the machine are trusted.
    #[must_use]
    pub fn authorities(&self) -> Vec<CertificateDer<'static>> {
        self.config.root_cert.iter().flatten().map(|der| CertificateDer::from(der.clone())).collect()
    }
}

/// Whether the service account of a pod is there.
#[must_use]
pub fn is_in_cluster() -> bool {
    std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()
        && Path::new("/var/run/secrets/kubernetes.io/serviceaccount/token").exists()
}

/// The service account of this pod. Its token is read again as it is rotated, and so are the authorities.
///
/// # Errors
/// [`IdentityError::ServiceAccount`].
pub fn in_cluster() -> Result<Login, IdentityError> {
    let config = Config::incluster().map_err(|error| IdentityError::ServiceAccount {
        problem: format!("{error}; does the pod set automountServiceAccountToken: false?"),
    })?;
    Ok(Login { config, certificate: None, proxy: None, cluster: None })
}

/// Reads a kubeconfig's current context. Relative paths in it are relative to it.
///
/// # Errors
/// [`IdentityError`], naming the file.
pub fn load(path: &Path) -> Result<Login, IdentityError> {
    let problem = |problem: String| IdentityError::Kubeconfig { path: path.to_owned(), problem };
    if let Err(error) = fs::metadata(path)
        && error.kind() == io::ErrorKind::NotFound
    {
        return Err(IdentityError::NoKubeconfig { path: path.to_owned() });
    }
    let file = Kubeconfig::read_from(path).map_err(|error| problem(error.to_string()))?;
    from_file(path, file)
}

fn from_file(path: &Path, file: Kubeconfig) -> Result<Login, IdentityError> {
    let problem = |problem: String| IdentityError::Kubeconfig { path: path.to_owned(), problem };
    let Some(context) = file.current_context.clone().filter(|context| !context.is_empty()) else {
        return Err(problem(format!(
            "it has no current-context: set one with 'kubectl config use-context NAME --kubeconfig {}'",
            path.display()
        )));
    };
    let cluster_name = file.contexts.iter().find(|named| named.name == context).and_then(|named| named.context.clone());
    let Some(cluster_name) = cluster_name.map(|context| context.cluster) else {
        return Err(problem(format!("its current-context {context:?} is not among its contexts")));
    };
    let cluster = file.clusters.iter().find(|named| named.name == cluster_name).and_then(|named| named.cluster.clone());
    let Some(cluster) = cluster else {
        return Err(problem(format!(
            "its context {context:?} names the cluster {cluster_name:?}, which it does not have"
        )));
    };
    let proxy = match cluster.proxy_url.as_deref().filter(|url| !url.is_empty()) {
        Some(url) => match url.parse::<Uri>() {
            Ok(uri) if uri.scheme_str() == Some("http") => Some(uri),
            _ => return Err(IdentityError::Proxy { url: url.to_owned() }),
        },
        None => None,
    };
    let mut config = Config::try_from(file).map_err(|error| problem(error.to_string()))?;
    let certificate = take_certificate(path, &mut config.auth_info)?;
    Ok(Login { config, certificate, proxy, cluster: Some(cluster) })
}

/// Takes the client certificate out of the credentials.
fn take_certificate(path: &Path, auth: &mut AuthInfo) -> Result<Option<Certificate>, IdentityError> {
    let problem = |problem: String| IdentityError::Kubeconfig { path: path.to_owned(), problem };
    // The key is a secret type of a crate that is not ours; its serialised form is plain.
    let secret = serde_json::to_value(&*auth).map_err(|error| problem(error.to_string()))?;
    let key_data = secret.get("client-key-data").and_then(Value::as_str).filter(|data| !data.is_empty());
    let chain_data = auth.client_certificate_data.take().filter(|data| !data.is_empty());
    let chain_file = auth.client_certificate.take().filter(|file| !file.is_empty()).map(PathBuf::from);
    let key_file = auth.client_key.take().filter(|file| !file.is_empty()).map(PathBuf::from);
    auth.client_key_data = None;
    let decode = |field: &str, text: &str| {
        let compact: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        STANDARD.decode(compact).map_err(|error| problem(format!("its {field} is not base64: {error}")))
    };
    let read = |file: &Path| fs::read(file).map_err(IdentityError::file("reading", file));
    // As in client-go, data goes before files.
    let chain = match (&chain_data, &chain_file) {
        (Some(data), _) => Some(decode("client-certificate-data", data)?),
        (None, Some(file)) => Some(read(file)?),
        (None, None) => None,
    };
    let key = match (key_data, &key_file) {
        (Some(data), _) => Some(decode("client-key-data", data)?),
        (None, Some(file)) => Some(read(file)?),
        (None, None) => None,
    };
    let (chain, key) = match (chain, key) {
        (Some(chain), Some(key)) => (chain, key),
        (None, None) => return Ok(None),
        (Some(_), None) => return Err(problem("it has a client certificate but no client-key".to_owned())),
        (None, Some(_)) => return Err(problem("it has a client-key but no client-certificate".to_owned())),
    };
    let files = match (chain_data.is_none() && key_data.is_none(), chain_file, key_file) {
        (true, Some(certificate), Some(key)) => Some(CertificateFiles { certificate, key }),
        _ => None,
    };
    let place = files.as_ref().map_or_else(|| path.to_owned(), |files| files.certificate.clone());
    let pair = Pair::from_pem(&chain, &key).map_err(|source| IdentityError::Certificate { path: place, source })?;
    Ok(Some(Certificate { pair, files }))
}

/// Who a written kubeconfig is for.
#[derive(Debug, Clone, Copy)]
pub enum User<'a> {
    /// A bootstrap token.
    Token(&'a str),
    /// A file with certificate and key.
    CertificateFile(&'a Path),
    /// Credentials of another kubeconfig, as [`embedded_user`] makes them.
    Raw(&'a Value),
}

/// The credentials of a kubeconfig's current context with their files read in, so that they can stand elsewhere; `None`
/// when it has none.
///
/// # Errors
/// When a file it names cannot be read.
pub fn embedded_user(file: &Kubeconfig) -> Result<Option<Value>, IdentityError> {
    let context = file.contexts.iter().find(|context| Some(&context.name) == file.current_context.as_ref());
    let name = context.and_then(|context| context.context.as_ref()).and_then(|context| context.user.as_deref());
    let auth = name.and_then(|name| file.auth_infos.iter().find(|user| user.name == name));
    let Some(Ok(Value::Object(mut user))) = auth.and_then(|user| user.auth_info.as_ref()).map(serde_json::to_value)
    else {
        return Ok(None);
    };
    user.retain(|_, value| !value.is_null() && value.as_str() != Some(""));
    for (path_field, data_field) in
        [("client-certificate", "client-certificate-data"), ("client-key", "client-key-data"), ("tokenFile", "token")]
    {
        let Some(path) = user.shift_remove(path_field) else { continue };
        let path = PathBuf::from(path.as_str().unwrap_or_default());
        if !user.contains_key(data_field) {
            let bytes = fs::read(&path).map_err(IdentityError::file("reading", &path))?;
            let text = if data_field == "token" {
                String::from_utf8_lossy(&bytes).trim().to_owned()
            } else {
                STANDARD.encode(bytes)
            };
            user.insert(data_field.to_owned(), Value::from(text));
        }
    }
    Ok(Some(Value::Object(user)).filter(|user| user.as_object().is_some_and(|user| !user.is_empty())))
}

/// A kubeconfig with one cluster and one user, named as the kubelet and kubeadm name them.
#[must_use]
pub fn render(cluster: &Cluster, user: User<'_>) -> String {
    let (name, user) = match user {
        User::Token(token) => ("tls-bootstrap-token-user", json!({ "token": token })),
        User::CertificateFile(path) => (
            "default-auth",
            json!({ "client-certificate": path.to_string_lossy(), "client-key": path.to_string_lossy() }),
        ),
        User::Raw(user) => ("tls-bootstrap-user", user.clone()),
    };
    let cluster = serde_json::to_value(cluster).unwrap_or_default();
    to_yaml(&json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "default-cluster", "cluster": cluster }],
        "users": [{ "name": name, "user": user }],
        "contexts": [{ "name": "default-context", "context": { "cluster": "default-cluster", "user": name, "namespace": "default" } }],
        "current-context": "default-context",
    }))
}

/// The cluster of a kubeconfig to be written.
#[must_use]
pub fn cluster(server: &str, authority_pem: &[u8]) -> Cluster {
    Cluster {
        server: Some(server.to_owned()),
        certificate_authority_data: Some(STANDARD.encode(authority_pem)),
        ..Cluster::default()
    }
}

/// A value as YAML in block style: what an admin would write by hand.
#[must_use]
pub fn to_yaml(value: &Value) -> String {
    let mut text = String::new();
    emit(value, 0, &mut text);
    text
}

fn emit(value: &Value, indent: usize, into: &mut String) {
    let pad = "  ".repeat(indent);
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                into.push_str(&pad);
                into.push_str(&scalar(&Value::from(key.as_str())));
                into.push(':');
                emit_value(value, indent, into);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                if item.is_object() && !item.as_object().is_some_and(serde_json::Map::is_empty) {
                    // The first key stands behind the dash, the others below it.
                    let mut block = String::new();
                    emit(item, indent + 1, &mut block);
                    into.push_str(&pad);
                    into.push_str("- ");
                    into.push_str(block.trim_start());
                } else {
                    into.push_str(&pad);
                    into.push('-');
                    emit_value(item, indent, into);
                }
            }
        }
        other => {
            into.push_str(&pad);
            into.push_str(&scalar(other));
            into.push('\n');
        }
    }
}

fn emit_value(value: &Value, indent: usize, into: &mut String) {
    let nested = match value {
        Value::Object(map) => !map.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => false,
    };
    if nested {
        into.push('\n');
        emit(value, indent + 1, into);
    } else {
        into.push(' ');
        into.push_str(&scalar(value));
        into.push('\n');
    }
}

/// Plain where no reader of YAML could take it for anything but that text, else as JSON, which is YAML.
fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) if is_plain(text) => text.clone(),
        other => other.to_string(),
    }
}

fn is_plain(text: &str) -> bool {
    let first = text.chars().next().is_some_and(|c| c.is_ascii_alphabetic() || c == '/');
    let rest = text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./:+=@".contains(c));
    let word = matches!(
        text.to_ascii_lowercase().as_str(),
        "true" | "false" | "yes" | "no" | "on" | "off" | "null" | "y" | "n"
    );
    first && rest && !word && !text.ends_with(':')
}

#[cfg(test)]
mod tests;
