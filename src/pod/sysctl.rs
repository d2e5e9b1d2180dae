//! `securityContext.sysctls`: which are safe to ask for, and what they are called.
//!
//! In: a pod's sysctls. Out: the first that this node refuses, and the rest as `/proc/sys` shows them. The kubelet's
//! `pkg/kubelet/sysctl`; a guest has no kernel of its own, so that the safe ones can be read and change nothing else.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::PodSpec;

/// The kubelet's safe ones, on a kernel that has all of them.
const SAFE: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// What `/proc/sys` shows of a pod that asks for nothing.
const DEFAULTS: [(&str, &str); 2] = [("kernel.shm_rmid_forced", "0"), ("net.ipv4.ip_unprivileged_port_start", "0")];

/// The dotted name: both separators are allowed, and the first one says which it is.
#[must_use]
pub fn normalize(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(first) if name.as_bytes()[first] == b'/' => {
            let swap = |c| match c {
                '.' => '/',
                '/' => '.',
                other => other,
            };
            name.chars().map(swap).collect()
        }
        _ => name.to_owned(),
    }
}

/// Why a pod cannot have its sysctls: the message of `SysctlForbidden`.
#[must_use]
pub fn forbidden(spec: &PodSpec) -> Option<String> {
    let sysctls = spec.security_context.as_ref().and_then(|context| context.sysctls.as_ref());
    sysctls.into_iter().flatten().find_map(|sysctl| {
        let name = normalize(&sysctl.name);
        let host =
            |namespace: &str| Some(format!("forbidden sysctl: {name:?} not allowed with host {namespace} enabled"));
        if !SAFE.contains(&name.as_str()) {
            Some(format!("forbidden sysctl: {name:?} not allowlisted"))
        } else if name.starts_with("net.") && spec.host_network == Some(true) {
            host("net")
        } else if name.starts_with("kernel.shm") && spec.host_ipc == Some(true) {
            host("ipc")
        } else {
            None
        }
    })
}

/// What `/proc/sys` shows, by dotted name.
#[must_use]
pub fn values(spec: &PodSpec) -> BTreeMap<String, String> {
    let asked = spec.security_context.iter().flat_map(|context| context.sysctls.iter().flatten());
    let asked = asked.map(|sysctl| (normalize(&sysctl.name), sysctl.value.clone()));
    DEFAULTS.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).chain(asked).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(names: &[&str], more: serde_json::Value) -> PodSpec {
        let sysctls: Vec<_> = names.iter().map(|name| json!({"name": name, "value": "1"})).collect();
        let mut spec = more;
        spec["containers"] = json!([]);
        spec["securityContext"] = json!({"sysctls": sysctls});
        serde_json::from_value(spec).unwrap()
    }

    #[test]
    fn only_safe_sysctls_of_the_pods_own_namespaces_are_allowed() {
        for (case, names, more, expected) in [
            ("none", vec![], json!({}), None),
            ("safe", vec!["kernel.shm_rmid_forced", "net.ipv4.tcp_syncookies"], json!({}), None),
            ("with slashes", vec!["kernel/shm_rmid_forced"], json!({}), None),
            ("unsafe", vec!["kernel.msgmax"], json!({}), Some("forbidden sysctl: \"kernel.msgmax\" not allowlisted")),
            (
                "the first that is not",
                vec!["kernel.shm_rmid_forced", "net/core/somaxconn"],
                json!({}),
                Some("forbidden sysctl: \"net.core.somaxconn\" not allowlisted"),
            ),
            (
                "of the node's network",
                vec!["net.ipv4.tcp_rmem"],
                json!({"hostNetwork": true}),
                Some("forbidden sysctl: \"net.ipv4.tcp_rmem\" not allowed with host net enabled"),
            ),
            (
                "of the node's IPC",
                vec!["kernel.shm_rmid_forced"],
                json!({"hostIPC": true}),
                Some("forbidden sysctl: \"kernel.shm_rmid_forced\" not allowed with host ipc enabled"),
            ),
        ] {
            assert_eq!(forbidden(&spec(&names, more)).as_deref(), expected, "{case}");
        }
    }

    #[test]
    fn names_have_either_separator() {
        for (given, expected) in [
            ("", ""),
            ("kernel.shm", "kernel.shm"),
            ("kernel/shm", "kernel.shm"),
            ("net.ipv4.conf.eth0/100.arp", "net.ipv4.conf.eth0/100.arp"),
            ("net/ipv4/conf/eth0.100/arp", "net.ipv4.conf.eth0/100.arp"),
        ] {
            assert_eq!(normalize(given), expected);
        }
        let shown = values(&spec(&["kernel/shm_rmid_forced"], json!({})));
        assert_eq!(shown["kernel.shm_rmid_forced"], "1");
        assert_eq!(shown["net.ipv4.ip_unprivileged_port_start"], "0");
    }
}
