//! What a request to the kubelet API is to the authorizer: a verb on a subresource of this node.
//!
//! In: method and path. Out: the attributes to ask about, in the order to ask. The table is the kubelet's
//! (`pkg/kubelet/server/auth.go`, with `KubeletFineGrainedAuthz`). Pure.
//!
//! The path is taken as it was sent, as the router takes it: what is escaped in it matches neither here nor there.

use http::Method;

/// What the API server is asked about one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestAttributes {
    /// The verb of the API: empty for a method that has none, which no rule but `*` allows.
    pub verb: &'static str,
    /// Subresources of `nodes`; one that is allowed is enough.
    pub subresources: Vec<&'static str>,
    /// The path.
    pub path: String,
}

/// The attributes of a request.
#[must_use]
pub fn request_attributes(method: &Method, path: &str) -> RequestAttributes {
    let verb = match *method {
        Method::POST => "create",
        Method::GET => "get",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "",
    };
    let below = |root| is_subpath(path, root);
    let mut subresources = Vec::new();
    // The fine-grained ones first; without them `nodes/proxy`, which allows everything, still does.
    if below("/pods") || below("/runningpods") {
        subresources.push("pods");
    } else if below("/healthz") {
        subresources.push("healthz");
    } else if below("/configz") {
        subresources.push("configz");
    }
    subresources.push(if below("/stats") {
        "stats"
    } else if below("/metrics") {
        "metrics"
    } else if below("/logs") {
        // As `pods/log`.
        "log"
    } else if below("/checkpoint") {
        "checkpoint"
    } else if below("/statusz") {
        "statusz"
    } else if below("/flagz") {
        "configz"
    } else {
        "proxy"
    });
    RequestAttributes { verb, subresources, path: path.to_owned() }
}

fn is_subpath(path: &str, root: &str) -> bool {
    path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_has_the_kubelets_attributes() {
        for (method, path, verb, subresources) in [
            ("GET", "/pods", "get", &["pods", "proxy"][..]),
            ("GET", "/pods/", "get", &["pods", "proxy"]),
            ("GET", "/podsandmore", "get", &["proxy"]),
            ("GET", "/runningpods/", "get", &["pods", "proxy"]),
            ("GET", "/runningpods", "get", &["pods", "proxy"]),
            ("GET", "/healthz", "get", &["healthz", "proxy"]),
            ("GET", "/healthz/syncloop", "get", &["healthz", "proxy"]),
            ("GET", "/configz", "get", &["configz", "proxy"]),
            ("GET", "/flagz", "get", &["configz"]),
            ("GET", "/statusz", "get", &["statusz"]),
            ("GET", "/stats/summary", "get", &["stats"]),
            ("POST", "/stats/summary", "create", &["stats"]),
            ("GET", "/statsy", "get", &["proxy"]),
            ("GET", "/metrics", "get", &["metrics"]),
            ("GET", "/metrics/cadvisor", "get", &["metrics"]),
            ("GET", "/metrics/resource", "get", &["metrics"]),
            ("GET", "/metrics/probes", "get", &["metrics"]),
            ("GET", "/logs/", "get", &["log"]),
            ("GET", "/logs/messages", "get", &["log"]),
            ("POST", "/checkpoint/ns/pod/c", "create", &["checkpoint"]),
            ("GET", "/containerLogs/ns/pod/c", "get", &["proxy"]),
            ("POST", "/exec/ns/pod/c", "create", &["proxy"]),
            ("GET", "/exec/ns/pod/c", "get", &["proxy"]),
            ("POST", "/attach/ns/pod/c", "create", &["proxy"]),
            ("POST", "/portForward/ns/pod", "create", &["proxy"]),
            ("POST", "/run/ns/pod/c", "create", &["proxy"]),
            ("GET", "/debug/pprof/heap", "get", &["proxy"]),
            ("PUT", "/debug/flags/v", "update", &["proxy"]),
            ("PATCH", "/", "patch", &["proxy"]),
            ("DELETE", "/unknown", "delete", &["proxy"]),
            ("HEAD", "/pods", "", &["pods", "proxy"]),
            ("OPTIONS", "/pods", "", &["pods", "proxy"]),
            ("GET", "/%70ods", "get", &["proxy"]),
            ("GET", "/metrics/../exec/ns/pod/c", "get", &["metrics"]),
            ("GET", "*", "get", &["proxy"]),
        ] {
            let attributes = request_attributes(&method.parse().unwrap(), path);
            assert_eq!((attributes.verb, attributes.subresources.as_slice()), (verb, subresources), "{method} {path}");
        }
    }
}
