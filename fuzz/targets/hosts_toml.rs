//! A `hosts.toml` of any bytes: endpoints or a named error, and every endpoint is an http(s) URL below a host.

use std::path::Path;

use wasilet::image::registry::hosts;

#[test]
fn hosts_toml() {
    bolero::check!().for_each(|bytes: &[u8]| {
        let Ok(text) = std::str::from_utf8(bytes) else { return };
        if let Ok(endpoints) = hosts::parse(Path::new("/certs.d/r/hosts.toml"), text, "registry.example:5000") {
            assert!(!endpoints.is_empty());
            for endpoint in endpoints {
                assert!(matches!(endpoint.base.scheme(), "http" | "https"));
                assert!(endpoint.base.host().is_some() && endpoint.base.username().is_empty());
                assert!(!endpoint.base.path().ends_with('/') || endpoint.base.path() == "/");
            }
        }
    });
}
