//! The kubelet API on port 10250: nobody gets anything without a name, a right, and the right one.

use crate::cluster::{Cluster, Node, NodeOptions, Space};

/// Every endpoint, with the subresources of `nodes` that open it (kubelet `server/auth.go`).
const ENDPOINTS: &[(&str, &str, &[&str])] = &[
    ("GET", "/healthz", &["healthz", "proxy"]),
    ("GET", "/configz", &["configz", "proxy"]),
    ("GET", "/pods", &["pods", "proxy"]),
    ("GET", "/runningpods/", &["pods", "proxy"]),
    ("GET", "/stats/summary", &["stats"]),
    ("GET", "/metrics", &["metrics"]),
    ("GET", "/metrics/cadvisor", &["metrics"]),
    ("GET", "/metrics/resource", &["metrics"]),
    ("GET", "/metrics/probes", &["metrics"]),
    ("GET", "/logs/", &["log"]),
    ("POST", "/checkpoint/SPACE/box/main", &["checkpoint"]),
    ("GET", "/containerLogs/SPACE/box/main", &["proxy"]),
    ("POST", "/run/SPACE/box/main?cmd=/bin/cat", &["proxy"]),
    ("POST", "/exec/SPACE/box/main?command=/bin/cat&output=1", &["proxy"]),
    ("POST", "/attach/SPACE/box/main?output=1", &["proxy"]),
    ("POST", "/portForward/SPACE/box", &["proxy"]),
    ("GET", "/debug/pprof/", &["proxy"]),
    ("GET", "/no/such/path", &["proxy"]),
];

/// Asks each endpoint and prints its status codes, a line each. One process for all: there are many.
const ASK: &str = r#"
base=$1; shift
while [ $# -gt 0 ]; do
    curl --silent --insecure --output /dev/null --max-time 20 --write-out '%{http_code}\n' -H "Authorization: $3" -X "$1" "$base$2"
    shift 3
done
"#;

fn ask(space: &Space<'_>, node: &Node<'_>, authorization: &str) -> Vec<u16> {
    let base = format!("https://{}:{}", node.address(), node.port());
    let paths: Vec<String> = ENDPOINTS.iter().map(|(_, path, _)| path.replace("SPACE", space.name())).collect();
    let mut args = vec!["-c", ASK, "sh", &base];
    for ((method, _, _), path) in ENDPOINTS.iter().zip(&paths) {
        args.extend([method, path.as_str(), authorization]);
    }
    let done = space.host("sh", &args);
    let codes: Vec<u16> = done.stdout.lines().filter_map(|line| line.parse().ok()).collect();
    assert_eq!(codes.len(), ENDPOINTS.len(), "{done:?}");
    codes
}

fn account(space: &Space<'_>, name: &str, subresource: Option<&str>) -> String {
    let full = format!("{}:{name}", space.name());
    space.ok(&["create", "serviceaccount", name]);
    if let Some(subresource) = subresource {
        let role = format!("{}-{name}", space.name());
        let resource = format!("--resource=nodes/{subresource}");
        space.ok(&["create", "clusterrole", &role, "--verb=get,create", &resource]);
        let to = format!("--serviceaccount={full}");
        space.ok(&["create", "clusterrolebinding", &role, &format!("--clusterrole={role}"), &to]);
    }
    format!("Bearer {}", space.ok(&["create", "token", name]).trim())
}

#[test]
fn every_endpoint_asks_who_it_is_and_what_they_may() {
    let cluster = Cluster::shared();
    let space = cluster.space("auth");
    let node = space.node(NodeOptions { tools: &["sleeper", "cat"], ..NodeOptions::default() });
    space.apply(&super::kubectl::tools("box", ""));
    space.wait_ready("box");
    for (case, authorization) in
        [("no credentials", String::new()), ("an unknown token", "Bearer abcdef.0123456789abcdef".to_owned())]
    {
        for ((method, path, _), code) in ENDPOINTS.iter().zip(ask(&space, &node, &authorization)) {
            assert_eq!(code, 401, "{method} {path} with {case}");
        }
    }
    let nobody = account(&space, "nobody", None);
    for ((method, path, _), code) in ENDPOINTS.iter().zip(ask(&space, &node, &nobody)) {
        assert_eq!(code, 403, "{method} {path} without any right");
    }
    for right in ["stats", "metrics", "log", "pods", "healthz", "configz", "checkpoint", "proxy"] {
        let some = account(&space, right, Some(right));
        for ((method, path, opened_by), code) in ENDPOINTS.iter().zip(ask(&space, &node, &some)) {
            let opened = opened_by.contains(&right);
            assert_ne!(code, 401, "{method} {path} with the right to nodes/{right}");
            assert_eq!(code != 403, opened, "{method} {path} with the right to nodes/{right}: {code}");
        }
    }
}
