//! Probes as fields of the API ask for them: another host, HTTPS that nobody verifies, headers.

use super::kubectl::tools;
use crate::cluster::{Cluster, HOST, NodeOptions, is_ready};

#[test]
fn a_probe_asks_another_host_over_https_without_verification_and_with_its_headers() {
    let space = Cluster::shared().space("probes");
    if space.cluster().try_plane().is_none() {
        crate::support::skipped("the API server must be at an address that the test knows");
        return;
    }
    let _node = space.node(NodeOptions { tools: &["sleeper"], ..NodeOptions::default() });
    // The API server: its certificate is of an authority that probes are not told of, it answers anybody who asks for its
    // health, and refuses who comes with a token that it does not know.
    let pod = |name: &str, scheme: &str, headers: &str| {
        let get = format!("{{scheme: {scheme}, host: {HOST}, port: 6443, path: /readyz, httpHeaders: [{headers}]}}");
        let period = "periodSeconds: 1, timeoutSeconds: 30, failureThreshold: 1";
        space.apply(&tools(name, &format!("    readinessProbe: {{httpGet: {get}, {period}}}")));
    };
    pod("anybody", "HTTPS", "");
    pod("stranger", "HTTPS", "{name: Authorization, value: Bearer nobody}");
    pod("plain", "HTTP", "");
    space.wait_ready("anybody");
    for (name, code) in [("stranger", 401), ("plain", 400)] {
        let words = format!("Readiness probe failed: HTTP probe failed with statuscode: {code}");
        space.wait_event(name, "Unhealthy", &[&words]);
        assert!(!is_ready(&space.wait_phase(name, "Running")), "{name}");
    }
}
