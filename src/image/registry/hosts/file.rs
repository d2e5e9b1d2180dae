//! The file itself: `hosts.toml` to endpoints.
//!
//! In: TOML and the registry it is for. Out: [`Endpoint`]s in the order written, the registry itself last.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use url::Url;

use super::{Capabilities, DIAL_TIMEOUT, Endpoint, HostsError, Role, Tls, default_endpoint, default_scheme};

#[derive(Debug, Deserialize)]
struct HostsFile {
    server: Option<String>,
    #[serde(default)]
    host: toml::Table,
    #[serde(flatten)]
    settings: HostSettings,
}

#[derive(Debug, Default, Deserialize)]
struct HostSettings {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMany>,
    client: Option<ClientFiles>,
    #[serde(default)]
    skip_verify: bool,
    #[serde(default)]
    override_path: bool,
    #[serde(default)]
    header: BTreeMap<String, OneOrMany>,
    dial_timeout: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

/// `"both.pem"`, `["both.pem"]` or `[["cert.pem", "key.pem"]]`.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum ClientFiles {
    Simple(OneOrMany),
    Pairs(Vec<OneOrMany>),
}

/// Reads a `hosts.toml`; `path` is for messages and for the files it names.
///
/// # Errors
/// [`HostsError`].
pub fn parse(path: &Path, text: &str, registry: &str) -> Result<Vec<Endpoint>, HostsError> {
    let toml_error = |source| HostsError::Toml { path: path.to_owned(), source: Box::new(source) };
    let file: HostsFile = toml::from_str(text).map_err(toml_error)?;
    let mut endpoints = Vec::new();
    // In the order written: toml keeps it.
    for (host, value) in file.host {
        let settings: HostSettings = value.try_into().map_err(toml_error)?;
        endpoints.push(endpoint(path, &host, settings, registry, Role::Mirror)?);
    }
    let origin = match file.server.filter(|server| !server.is_empty()) {
        Some(server) => endpoint(path, &server, file.settings, registry, Role::Origin)?,
        None => {
            let default = default_endpoint(registry);
            let url = default.base.as_str().trim_end_matches("/v2").to_owned();
            endpoint(path, &url, file.settings, registry, Role::Origin)?
        }
    };
    // A mirror that is the registry itself, with settings of its own, is not asked twice.
    for mirror in &mut endpoints {
        if same_host(&mirror.base, &origin.base) {
            mirror.role = Role::Origin;
        }
    }
    if !endpoints.iter().any(|known| known.base == origin.base) {
        endpoints.push(origin);
    }
    Ok(endpoints)
}

fn same_host(a: &Url, b: &Url) -> bool {
    a.host() == b.host() && a.port_or_known_default() == b.port_or_known_default()
}

fn endpoint(
    path: &Path,
    host: &str,
    settings: HostSettings,
    registry: &str,
    role: Role,
) -> Result<Endpoint, HostsError> {
    let invalid = || HostsError::Host { path: path.to_owned(), host: host.to_owned() };
    let written = if host.contains("://") { host.to_owned() } else { format!("{}://{host}", default_scheme(host)) };
    let mut base = Url::parse(&written).map_err(|_| invalid())?;
    if !matches!(base.scheme(), "http" | "https") || base.host().is_none() || !base.username().is_empty() {
        return Err(invalid());
    }
    base.set_query(None);
    base.set_fragment(None);
    let trimmed = base.path().trim_end_matches('/').to_owned();
    let path_in_force =
        if settings.override_path || trimmed.ends_with("/v2") { trimmed } else { format!("{trimmed}/v2") };
    base.set_path(&path_in_force);
    let capabilities = match settings.capabilities {
        None => Capabilities::ALL,
        Some(words) => capabilities(path, host, &words)?,
    };
    let dial_timeout = match settings.dial_timeout {
        None => DIAL_TIMEOUT,
        Some(value) => parse_duration(&value).ok_or_else(|| HostsError::DialTimeout {
            path: path.to_owned(),
            host: host.to_owned(),
            value: value.clone(),
        })?,
    };
    let beside = |file: &str| path.parent().unwrap_or(Path::new("/")).join(file);
    let client = client_files(path, host, settings.client)?;
    Ok(Endpoint {
        base,
        registry: registry.to_owned(),
        role,
        capabilities,
        tls: Tls {
            ca: settings.ca.map(OneOrMany::into_vec).unwrap_or_default().iter().map(|file| beside(file)).collect(),
            client: client.map(|(cert, key)| (beside(&cert), key.map(|key| beside(&key)))),
            skip_verify: settings.skip_verify,
        },
        headers: settings
            .header
            .into_iter()
            .flat_map(|(name, values)| values.into_vec().into_iter().map(move |value| (name.clone(), value)))
            .collect(),
        dial_timeout,
    })
}

fn capabilities(path: &Path, host: &str, words: &[String]) -> Result<Capabilities, HostsError> {
    let mut found = Capabilities { pull: false, resolve: false, push: false };
    for word in words {
        match word.to_ascii_lowercase().as_str() {
            "pull" => found.pull = true,
            "resolve" => found.resolve = true,
            "push" => found.push = true,
            _ => {
                return Err(HostsError::Capability {
                    path: path.to_owned(),
                    host: host.to_owned(),
                    capability: word.clone(),
                });
            }
        }
    }
    Ok(found)
}

fn client_files(
    path: &Path,
    host: &str,
    files: Option<ClientFiles>,
) -> Result<Option<(String, Option<String>)>, HostsError> {
    let pairs: Vec<Vec<String>> = match files {
        None => return Ok(None),
        Some(ClientFiles::Simple(files)) => files.into_vec().into_iter().map(|file| vec![file]).collect(),
        Some(ClientFiles::Pairs(pairs)) => pairs.into_iter().map(OneOrMany::into_vec).collect(),
    };
    let [pair] = pairs.as_slice() else {
        return Err(HostsError::Clients { path: path.to_owned(), host: host.to_owned() });
    };
    match pair.as_slice() {
        [both] => Ok(Some((both.clone(), None))),
        [cert, key] if key.is_empty() => Ok(Some((cert.clone(), None))),
        [cert, key] => Ok(Some((cert.clone(), Some(key.clone())))),
        _ => Err(HostsError::Clients { path: path.to_owned(), host: host.to_owned() }),
    }
}

/// Go's durations as far as anybody writes them for a timeout: `3s`, `500ms`, `1.5s`, `1m`.
fn parse_duration(text: &str) -> Option<Duration> {
    let unit_at = text.find(|c: char| c.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at(unit_at);
    let number: f64 = number.parse().ok().filter(|number: &f64| *number >= 0.0)?;
    let factor = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(number * factor).ok()
}
