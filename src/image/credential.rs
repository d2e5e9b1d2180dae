//! Who to be towards a registry: imagePullSecrets and Docker's configuration files.
//!
//! In: `config.json` / `.dockerconfigjson` / `.dockercfg` bytes. Out: [`Credential`]s, best match first for
//! an image. Runs no credential helper: a node's helper binaries are configured elsewhere.

use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use serde::Deserialize;

use super::reference::ImageRef;

/// A user of a registry, or of a path on it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Credential {
    /// The key of Docker's `auths`, normalised: host, optional port, optional path; `*` matches one label
    /// part, as the kubelet has it.
    server: String,
    secret: Secret,
}

/// What is sent.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) enum Secret {
    /// To the registry (Basic) or its token service.
    Basic { username: String, password: String },
    /// OAuth2 refresh token (`identitytoken`) for the token service.
    Identity(String),
    /// A ready bearer token (`registrytoken`).
    Bearer(String),
}

impl fmt::Debug for Credential {
    /// Never the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").field("server", &self.server).finish_non_exhaustive()
    }
}

/// A Docker configuration that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The file cannot be read.
    #[error("reading {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is larger than any configuration.
    #[error("{name} is larger than {limit} bytes")]
    TooLarge {
        /// The file or secret.
        name: String,
        /// The limit.
        limit: usize,
    },
    /// It is not Docker's JSON.
    #[error("parsing {name}")]
    Json {
        /// The file or secret.
        name: String,
        /// Where.
        #[source]
        source: serde_json::Error,
    },
    /// An `auth` field is not base64 of `user:password`.
    #[error("{name}: auth of {server:?} is not the base64 of user:password")]
    Auth {
        /// The file or secret.
        name: String,
        /// Which entry.
        server: String,
    },
}

/// Secrets are at most 1 MiB; so are files.
const MAX_CONFIG_BYTES: usize = 1 << 20;

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: std::collections::BTreeMap<String, AuthEntry>,
}

#[derive(Deserialize, Default)]
struct AuthEntry {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    identitytoken: String,
    #[serde(default)]
    registrytoken: String,
}

impl Credential {
    /// A user and password for `server` (`ghcr.io`, `localhost:5000`, `ghcr.io/team`).
    #[must_use]
    pub fn basic(server: &str, username: impl Into<String>, password: impl Into<String>) -> Self {
        let secret = Secret::Basic { username: username.into(), password: password.into() };
        Self { server: normalise(server), secret }
    }

    /// The server or path it is for.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.server
    }

    pub(super) fn secret(&self) -> &Secret {
        &self.secret
    }

    /// Reads a Secret of type `kubernetes.io/dockerconfigjson` (or a `config.json`); `name` is for errors.
    ///
    /// # Errors
    /// [`CredentialError`] naming the entry that cannot be read.
    pub fn from_docker_config(name: &str, json: &[u8]) -> Result<Vec<Self>, CredentialError> {
        check_size(name, json)?;
        let config: DockerConfig =
            serde_json::from_slice(json).map_err(|source| CredentialError::Json { name: name.to_owned(), source })?;
        from_entries(name, config.auths)
    }

    /// Reads a Secret of type `kubernetes.io/dockercfg`: the older form without `auths`.
    ///
    /// # Errors
    /// [`CredentialError`] naming the entry that cannot be read.
    pub fn from_dockercfg(name: &str, json: &[u8]) -> Result<Vec<Self>, CredentialError> {
        check_size(name, json)?;
        let entries =
            serde_json::from_slice(json).map_err(|source| CredentialError::Json { name: name.to_owned(), source })?;
        from_entries(name, entries)
    }

    /// Reads one configuration file, or the `config.json` of a directory. A path that does not exist has no
    /// credentials.
    ///
    /// # Errors
    /// [`CredentialError`] naming the file.
    pub fn from_path(path: &Path) -> Result<Vec<Self>, CredentialError> {
        let file = if path.is_dir() { path.join("config.json") } else { path.to_owned() };
        let json = match std::fs::read(&file) {
            Ok(json) => json,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(CredentialError::Read { path: file, source }),
        };
        Self::from_docker_config(&file.display().to_string(), &json)
    }

    /// The ones of `all` that are for `image`, the most specific first, in the kubelet's matching.
    #[must_use]
    pub fn matching<'a>(all: &'a [Self], image: &ImageRef) -> Vec<&'a Self> {
        let name = image.name();
        let mut found: Vec<&Self> = all.iter().filter(|credential| matches_name(&credential.server, &name)).collect();
        // Stable: of two equally specific ones the first given wins.
        found.sort_by_key(|credential| std::cmp::Reverse(credential.server.len()));
        found
    }
}

fn check_size(name: &str, json: &[u8]) -> Result<(), CredentialError> {
    if json.len() > MAX_CONFIG_BYTES {
        return Err(CredentialError::TooLarge { name: name.to_owned(), limit: MAX_CONFIG_BYTES });
    }
    Ok(())
}

fn from_entries(
    name: &str,
    entries: std::collections::BTreeMap<String, AuthEntry>,
) -> Result<Vec<Credential>, CredentialError> {
    let mut credentials = Vec::with_capacity(entries.len());
    for (server, entry) in entries {
        let invalid = || CredentialError::Auth { name: name.to_owned(), server: server.clone() };
        let secret = if !entry.identitytoken.is_empty() {
            Secret::Identity(entry.identitytoken)
        } else if !entry.registrytoken.is_empty() {
            Secret::Bearer(entry.registrytoken)
        } else if !entry.auth.is_empty() {
            decode_auth(&entry.auth).ok_or_else(invalid)?
        } else if !entry.username.is_empty() {
            Secret::Basic { username: entry.username, password: entry.password }
        } else {
            // `docker login` with a helper leaves `{}` behind.
            continue;
        };
        credentials.push(Credential { server: normalise(&server), secret });
    }
    Ok(credentials)
}

fn decode_auth(auth: &str) -> Option<Secret> {
    let trimmed = auth.trim().trim_end_matches('=');
    let bytes = base64::engine::general_purpose::STANDARD_NO_PAD.decode(trimmed).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (username, password) = text.split_once(':')?;
    // Docker's own files end in NULs when a password was shorter than an older one.
    let password = password.trim_end_matches('\0');
    Some(Secret::Basic { username: username.to_owned(), password: password.to_owned() })
}

/// `https://index.docker.io/v1/` and its like to the `docker.io` that image names carry.
fn normalise(server: &str) -> String {
    let bare = server.strip_prefix("https://").or_else(|| server.strip_prefix("http://")).unwrap_or(server);
    let bare = bare.trim_end_matches('/');
    let bare = bare.strip_suffix("/v1").or_else(|| bare.strip_suffix("/v2")).unwrap_or(bare);
    match bare.split_once('/') {
        Some(("index.docker.io" | "registry-1.docker.io", path)) => format!("docker.io/{path}"),
        None if matches!(bare, "index.docker.io" | "registry-1.docker.io") => "docker.io".to_owned(),
        _ => bare.to_owned(),
    }
}

/// The kubelet's `URLsMatch`: same number of host labels with globs in them, same port, path a prefix.
fn matches_name(pattern: &str, name: &str) -> bool {
    let (pattern_host, pattern_path) = pattern.split_once('/').unwrap_or((pattern, ""));
    let (host, path) = name.split_once('/').unwrap_or((name, ""));
    let (pattern_host, pattern_port) = split_port(pattern_host);
    let (host, port) = split_port(host);
    if pattern_port != port {
        return false;
    }
    let mut pattern_labels = pattern_host.split('.');
    let mut labels = host.split('.');
    loop {
        match (pattern_labels.next(), labels.next()) {
            (None, None) => break,
            (Some(pattern), Some(label)) if glob(pattern.as_bytes(), label.as_bytes()) => {}
            _ => return false,
        }
    }
    path.strip_prefix(pattern_path)
        .is_some_and(|rest| pattern_path.is_empty() || rest.is_empty() || rest.starts_with('/'))
}

fn split_port(host: &str) -> (&str, &str) {
    // `[::1]:5000`: the port's colon is the one after the bracket.
    match host.rfind(':') {
        Some(colon) if !host[colon..].contains(']') => (&host[..colon], &host[colon + 1..]),
        _ => (host, ""),
    }
}

/// `*` is any run, `?` any one byte. Iterative: patterns come from Secrets.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == b'?' || c.eq_ignore_ascii_case(&text[t]) => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    p = at + 1;
                    t = from + 1;
                    star = Some((at, from + 1));
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(json: &str) -> Vec<Credential> {
        Credential::from_docker_config("test", json.as_bytes()).unwrap()
    }

    #[test]
    fn every_form_of_docker_configuration_is_read() {
        let all = servers(
            r#"{"auths": {
                "https://index.docker.io/v1/": {"auth": "bWU6cGE6c3M="},
                "ghcr.io": {"username": "u", "password": "p"},
                "quay.io": {"identitytoken": "t"},
                "helper.io": {}
            }, "credsStore": "desktop"}"#,
        );
        let names: Vec<&str> = all.iter().map(Credential::server).collect();
        assert_eq!(names, ["ghcr.io", "docker.io", "quay.io"]);
        let expected = Secret::Basic { username: "me".to_owned(), password: "pa:ss".to_owned() };
        assert!(all[1].secret == expected, "a password may have colons");
        let old = Credential::from_dockercfg("test", br#"{"a.io": {"auth": "bWU6cA"}}"#).unwrap();
        assert_eq!(old.len(), 1, "base64 without padding, older form");
    }

    #[test]
    fn a_bad_entry_is_named() {
        let error = Credential::from_docker_config("default/regcred", br#"{"auths":{"a.io":{"auth":"!"}}}"#);
        assert_eq!(
            error.unwrap_err().to_string(),
            "default/regcred: auth of \"a.io\" is not the base64 of user:password"
        );
        assert!(Credential::from_docker_config("x", b"7").is_err());
    }

    #[test]
    fn the_most_specific_credential_comes_first() {
        let all = [
            Credential::basic("ghcr.io", "a", ""),
            Credential::basic("*.io", "b", ""),
            Credential::basic("ghcr.io/team", "c", ""),
            Credential::basic("ghcr.io/teammate", "d", ""),
            Credential::basic("ghcr.io:443", "e", ""),
        ];
        let image: ImageRef = "ghcr.io/team/web".parse().unwrap();
        let found: Vec<&str> = Credential::matching(&all, &image).into_iter().map(Credential::server).collect();
        assert_eq!(found, ["ghcr.io/team", "ghcr.io", "*.io"]);
    }

    #[test]
    fn a_glob_stays_in_its_label() {
        for (pattern, name, expected) in [
            ("*.azurecr.io", "me.azurecr.io/x", true),
            ("*.azurecr.io", "a.me.azurecr.io/x", false),
            ("*", "localhost/x", true),
            ("localhost:5000", "localhost:5000/x", true),
            ("localhost:5000", "localhost:5001/x", false),
            ("[::1]:5000", "[::1]:5000/x", true),
            ("a*b?.io", "axxbc.io/x", true),
        ] {
            assert_eq!(matches_name(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn debug_output_has_no_secret() {
        let text = format!("{:?}", Credential::basic("a.io", "me", "hunter2"));
        assert!(!text.contains("hunter2") && text.contains("a.io"));
    }
}
