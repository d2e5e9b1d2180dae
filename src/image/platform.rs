//! Which image of an index this node takes.
//!
//! In: an index. Out: one descriptor. Prefers platforms that say wasm in any of the ways seen in the
//! wild, then those whose entrypoint may still turn out to be a wasm file. Pure.

use super::documents::{Descriptor, Index, Platform};
use super::shape::ShapeError;

/// Picks the best entry of `index`.
///
/// # Errors
/// [`ShapeError::NoPlatform`] naming what there is.
pub fn choose(index: &Index) -> Result<&Descriptor, ShapeError> {
    let images = || index.manifests.iter().filter(|entry| !is_attestation(entry));
    // The first of several equally good ones: an index is in its author's order.
    let best = images().filter_map(|entry| Some((rank(entry.platform.as_ref())?, entry))).min_by_key(|(rank, _)| *rank);
    best.map(|(_, entry)| entry).ok_or_else(|| {
        let mut found: Vec<String> = images().map(|entry| describe(entry.platform.as_ref())).collect();
        found.sort();
        found.dedup();
        found.truncate(16);
        ShapeError::NoPlatform { found: if found.is_empty() { "nothing".to_owned() } else { found.join(", ") } }
    })
}

/// BuildKit puts provenance beside images, as `unknown/unknown`.
fn is_attestation(entry: &Descriptor) -> bool {
    entry.annotations.contains_key("vnd.docker.reference.type")
        || entry.platform.as_ref().is_some_and(|platform| platform.os == "unknown")
}

/// Lower is better; `None` cannot run here at all.
fn rank(platform: Option<&Platform>) -> Option<u8> {
    let Some(Platform { os, architecture, .. }) = platform else {
        // An index of one image, made by hand, often has none.
        return Some(4);
    };
    let wasm_arch = matches!(architecture.as_str(), "wasm" | "wasm32" | "wasi" | "wasm64");
    match os.as_str() {
        "wasip2" => Some(0),
        "wasip1" => Some(1),
        "wasi" | "wasm" | "js" => Some(2),
        "linux" | "" if wasm_arch => Some(3),
        _ if wasm_arch => Some(3),
        "linux" if architecture == host_architecture() => Some(5),
        "linux" if architecture == "amd64" => Some(6),
        "linux" => Some(7),
        _ => None,
    }
}

/// This machine's architecture in Go's words.
fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn describe(platform: Option<&Platform>) -> String {
    platform.map_or_else(
        || "unknown".to_owned(),
        |platform| {
            // From a registry: bounded, and without control characters that would reach a terminal.
            let text = format!("{}/{}", platform.os, platform.architecture);
            text.chars().filter(|c| !c.is_control()).take(40).collect()
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Digest;

    fn index(platforms: &[&str]) -> Index {
        let manifests = platforms
            .iter()
            .map(|platform| Descriptor {
                media_type: String::new(),
                digest: Digest::of(platform.as_bytes()),
                size: 1,
                annotations: std::collections::BTreeMap::new(),
                platform: platform.split_once('/').map(|(os, architecture)| Platform {
                    os: os.to_owned(),
                    architecture: architecture.to_owned(),
                    variant: None,
                }),
            })
            .collect();
        Index { schema_version: 2, media_type: None, manifests }
    }

    #[test]
    fn wasm_platforms_win_in_every_spelling() {
        for (platforms, chosen) in [
            (&["linux/amd64", "wasi/wasm"][..], "wasi/wasm"),
            (&["linux/amd64", "wasip1/wasm", "wasip2/wasm"], "wasip2/wasm"),
            (&["linux/amd64", "linux/wasm"], "linux/wasm"),
            (&["windows/amd64", "linux/s390x"], "linux/s390x"),
            (&["linux/s390x", "linux/amd64"], "linux/amd64"),
            (&["unknown/unknown", "wasi/wasm32"], "wasi/wasm32"),
            (&[""], ""),
        ] {
            let index = index(platforms);
            assert_eq!(choose(&index).unwrap().digest, Digest::of(chosen.as_bytes()), "{platforms:?}");
        }
    }

    #[test]
    fn an_index_without_anything_for_us_says_what_it_has() {
        let error = choose(&index(&["windows/amd64", "unknown/unknown", "windows/amd64"])).unwrap_err();
        assert_eq!(error.to_string(), "no image for a WASI platform in the index, only windows/amd64");
        assert!(choose(&index(&[])).is_err());
    }
}
