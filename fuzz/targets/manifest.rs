//! Manifests: any bytes are a manifest or an error, never a panic, and an error shows no value of a Secret.

use std::path::Path;

#[test]
fn manifest() {
    bolero::check!().for_each(|bytes: &[u8]| {
        let secret = b"apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData:\n  k: ";
        let with_secret = [secret, bytes].concat();
        for text in [bytes, &with_secret] {
            match wasilet::source::manifest::parse(Path::new("fuzz.yaml"), text) {
                Ok(manifest) => assert!(manifest.pods.len() <= wasilet::source::manifest::MAX_PODS),
                Err(error) => assert!(error.to_string().starts_with("fuzz.yaml:")),
            }
        }
    });
}
