//! Image names as Docker and the kubelet read them.
//!
//! In: `web`, `ghcr.io/me/web:1`, `localhost:5000/web@sha256:...`. Out: a normalised [`ImageRef`], or an
//! [`InvalidImageName`] that says which part is wrong. Follows github.com/distribution/reference; digests
//! other than SHA-256 are refused. Knows no registry endpoint or mirror (`registry::hosts` does).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ids::Digest;

/// The registry a name without one is on.
const DEFAULT_REGISTRY: &str = "docker.io";
/// The tag a name without tag and digest has.
const DEFAULT_TAG: &str = "latest";
/// distribution's bound on the repository path (registry not counted).
const MAX_REPOSITORY_BYTES: usize = 255;
/// distribution's bound on a tag.
const MAX_TAG_BYTES: usize = 128;
/// DNS name plus port, generously; hostile input stops here before anything scans it.
const MAX_REFERENCE_BYTES: usize = 1024;

/// A normalised image name: registry, repository and tag or digest (or both: the digest decides).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageRef {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl ImageRef {
    /// The registry as written, `docker.io` when none was: a host name or address, with a port or not.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The path on the registry, with Docker Hub's `library/` added.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `None` only for a name by digest alone.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, when the name has one.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// What follows `/manifests/` in the registry's API: the digest, else the tag.
    #[must_use]
    pub fn manifest_selector(&self) -> &str {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.as_str(),
            (None, Some(tag)) => tag,
            (None, None) => DEFAULT_TAG,
        }
    }

    /// The same repository at a digest: `registry/repository@sha256:...`.
    #[must_use]
    pub fn at_digest(&self, digest: Digest) -> Self {
        Self { registry: self.registry.clone(), repository: self.repository.clone(), tag: None, digest: Some(digest) }
    }

    /// Registry and repository without tag and digest, as the IMAGE column shows it.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The name as Docker prints it: without `docker.io/` and `library/`.
    #[must_use]
    pub fn familiar(&self) -> String {
        let full = self.to_string();
        match full.strip_prefix("docker.io/") {
            Some(rest) => rest.strip_prefix("library/").unwrap_or(rest).to_owned(),
            None => full,
        }
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for ImageRef {
    type Err = InvalidImageName;

    fn from_str(written: &str) -> Result<Self, InvalidImageName> {
        parse(written).map_err(|problem| InvalidImageName { name: shorten(written), problem })
    }
}

impl TryFrom<String> for ImageRef {
    type Error = InvalidImageName;

    fn try_from(written: String) -> Result<Self, InvalidImageName> {
        written.parse()
    }
}

impl From<ImageRef> for String {
    fn from(reference: ImageRef) -> Self {
        reference.to_string()
    }
}

/// An image name nothing can be pulled by (`InvalidImageName`).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("couldn't parse image name {name:?}: {problem}")]
pub struct InvalidImageName {
    /// The name as written, shortened when absurdly long.
    pub name: String,
    /// Which rule it breaks.
    pub problem: NameProblem,
}

/// Which rule of image names is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameProblem {
    /// Nothing was given.
    #[error("it is empty")]
    Empty,
    /// Longer than any registry accepts.
    #[error("it is longer than {MAX_REFERENCE_BYTES} characters, or its repository than {MAX_REPOSITORY_BYTES}")]
    TooLong,
    /// A URL was given.
    #[error("it has a scheme; write the registry without https://")]
    Scheme,
    /// The registry part is no host name, address or port.
    #[error("its registry must be a host name or address, with an optional :port")]
    Registry,
    /// The repository has upper-case letters.
    #[error("its repository must be lowercase")]
    Uppercase,
    /// The repository has other characters or empty components.
    #[error("its repository may have lowercase letters and digits, separated by one of / . _ __ or dashes")]
    Repository,
    /// The tag has other characters or a bad length.
    #[error(
        "its tag may have up to {MAX_TAG_BYTES} letters, digits, underscores, dots and dashes, and not start with a dot or dash"
    )]
    Tag,
    /// The digest is not SHA-256 in hex.
    #[error("its digest must be sha256: and 64 lowercase hex digits")]
    Digest,
    /// Docker refuses a repository that looks like an image id.
    #[error("a name of 64 hex digits is reserved for image ids")]
    LooksLikeId,
}

fn parse(written: &str) -> Result<ImageRef, NameProblem> {
    if written.is_empty() {
        return Err(NameProblem::Empty);
    }
    if written.len() > MAX_REFERENCE_BYTES {
        return Err(NameProblem::TooLong);
    }
    if written.contains("://") {
        return Err(NameProblem::Scheme);
    }
    let (rest, digest) = match written.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest.parse::<Digest>().map_err(|_| NameProblem::Digest)?)),
        None => (written, None),
    };
    let (registry, remainder) = split_registry(rest);
    // A colon in what is left can only start the tag: the registry's port went with the registry.
    let (path, tag) = match remainder.split_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (remainder, None),
    };
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err(NameProblem::Tag);
    }
    let registry = match registry {
        None | Some("index.docker.io") => DEFAULT_REGISTRY,
        Some(registry) if is_registry(registry) => registry,
        Some(_) => return Err(NameProblem::Registry),
    };
    check_repository(path)?;
    if is_image_id(path) && registry == DEFAULT_REGISTRY {
        return Err(NameProblem::LooksLikeId);
    }
    let repository =
        if registry == DEFAULT_REGISTRY && !path.contains('/') { format!("library/{path}") } else { path.to_owned() };
    if repository.len() > MAX_REPOSITORY_BYTES {
        return Err(NameProblem::TooLong);
    }
    let tag = match (tag, &digest) {
        (Some(tag), _) => Some(tag.to_owned()),
        (None, Some(_)) => None,
        (None, None) => Some(DEFAULT_TAG.to_owned()),
    };
    Ok(ImageRef { registry: registry.to_owned(), repository, tag, digest })
}

/// The first component is a registry when it has a dot or a colon, is `localhost`, or has upper-case
/// letters (which no repository may have): distribution's rule.
fn split_registry(name: &str) -> (Option<&str>, &str) {
    match name.split_once('/') {
        Some((first, rest))
            if first == "localhost"
                || first.contains(['.', ':', '['])
                || first.chars().any(|c| c.is_ascii_uppercase()) =>
        {
            (Some(first), rest)
        }
        _ => (None, name),
    }
}

fn is_registry(registry: &str) -> bool {
    let (host, port) = if let Some(rest) = registry.strip_prefix('[') {
        let Some((address, after)) = rest.split_once(']') else { return false };
        if address.parse::<std::net::Ipv6Addr>().is_err() {
            return false;
        }
        match after.strip_prefix(':') {
            Some(port) => (None, Some(port)),
            None if after.is_empty() => (None, None),
            None => return false,
        }
    } else {
        match registry.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(registry), None),
        }
    };
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    host.is_none_or(|host| host.split('.').all(label)) && port.is_none_or(is_port)
}

fn is_port(port: &str) -> bool {
    port.bytes().all(|c| c.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
}

fn is_tag(tag: &str) -> bool {
    let word = |c: u8| c.is_ascii_alphanumeric() || c == b'_';
    (1..=MAX_TAG_BYTES).contains(&tag.len())
        && tag.bytes().all(|c| word(c) || matches!(c, b'.' | b'-'))
        && tag.bytes().next().is_some_and(word)
}

fn is_image_id(path: &str) -> bool {
    path.len() == 64 && path.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c))
}

fn check_repository(path: &str) -> Result<(), NameProblem> {
    if path.bytes().any(|c| c.is_ascii_uppercase()) {
        return Err(NameProblem::Uppercase);
    }
    if path.split('/').all(is_component) { Ok(()) } else { Err(NameProblem::Repository) }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(component: &str) -> bool {
    let alphanumeric = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    if !alphanumeric(*first) || !alphanumeric(*last) {
        return false;
    }
    bytes
        .split(|c| alphanumeric(*c))
        .all(|separator| matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|c| *c == b'-'))
}

fn shorten(written: &str) -> String {
    const SHOWN: usize = 128;
    match written.char_indices().nth(SHOWN) {
        Some((cut, _)) => format!("{}...", &written[..cut]),
        None => written.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn names_are_completed_as_docker_completes_them() {
        let at = |name: &str| format!("{name}@sha256:{HEX}");
        for (written, full) in [
            ("web".to_owned(), "docker.io/library/web:latest".to_owned()),
            ("web:1.2".to_owned(), "docker.io/library/web:1.2".to_owned()),
            ("me/web".to_owned(), "docker.io/me/web:latest".to_owned()),
            ("docker.io/web".to_owned(), "docker.io/library/web:latest".to_owned()),
            ("index.docker.io/web".to_owned(), "docker.io/library/web:latest".to_owned()),
            ("ghcr.io/me/web".to_owned(), "ghcr.io/me/web:latest".to_owned()),
            ("localhost/web".to_owned(), "localhost/web:latest".to_owned()),
            ("localhost:5000/a/b:c".to_owned(), "localhost:5000/a/b:c".to_owned()),
            ("[::1]:5000/web".to_owned(), "[::1]:5000/web:latest".to_owned()),
            ("127.0.0.1:5000/web".to_owned(), "127.0.0.1:5000/web:latest".to_owned()),
            ("Registry/web".to_owned(), "Registry/web:latest".to_owned()),
            (at("web"), at("docker.io/library/web")),
            (at("web:1"), at("docker.io/library/web:1")),
            ("a--b/c__d/e.f_g".to_owned(), "docker.io/a--b/c__d/e.f_g:latest".to_owned()),
        ] {
            let parsed: ImageRef = written.parse().unwrap();
            assert_eq!(parsed.to_string(), full, "{written}");
            assert_eq!(full.parse::<ImageRef>().unwrap(), parsed, "{written} is stable");
        }
    }

    #[test]
    fn a_bad_name_says_which_part_is_wrong() {
        use NameProblem as P;
        for (written, problem) in [
            (String::new(), P::Empty),
            ("https://ghcr.io/web".to_owned(), P::Scheme),
            ("Web".to_owned(), P::Uppercase),
            ("a/B".to_owned(), P::Uppercase),
            ("web:".to_owned(), P::Tag),
            ("web:.x".to_owned(), P::Tag),
            (format!("web:{}", "x".repeat(129)), P::Tag),
            ("web@sha256:12".to_owned(), P::Digest),
            (format!("web@sha512:{HEX}{HEX}"), P::Digest),
            ("a//b".to_owned(), P::Repository),
            ("a/../b".to_owned(), P::Repository),
            ("/a".to_owned(), P::Repository),
            ("-a".to_owned(), P::Repository),
            ("a___b".to_owned(), P::Repository),
            ("we b".to_owned(), P::Repository),
            ("a\u{e9}".to_owned(), P::Repository),
            ("a.b:99999/web".to_owned(), P::Registry),
            ("-a.b/web".to_owned(), P::Registry),
            ("[::1/web".to_owned(), P::Registry),
            (HEX.to_owned(), P::LooksLikeId),
            ("x".repeat(256), P::TooLong),
            ("x".repeat(5000), P::TooLong),
        ] {
            assert_eq!(written.parse::<ImageRef>().unwrap_err().problem, problem, "{written}");
        }
    }

    #[test]
    fn a_familiar_name_hides_what_docker_hides() {
        for (written, familiar) in
            [("web", "web:latest"), ("me/web:1", "me/web:1"), ("ghcr.io/me/web", "ghcr.io/me/web:latest")]
        {
            assert_eq!(written.parse::<ImageRef>().unwrap().familiar(), familiar);
        }
    }

    #[test]
    fn the_message_of_a_long_name_is_short() {
        let error = "x".repeat(100_000).parse::<ImageRef>().unwrap_err();
        assert!(error.to_string().len() < 400);
    }
}
