//! `wasilet rbac`: the rights that a node needs besides those of every node, for an administrator to apply.
//!
//! In: names of nodes, or none for all. Out: YAML on stdout. Talks to no cluster.

use std::fmt::Write as _;
use std::process::ExitCode;

/// Arguments of `wasilet rbac`.
#[derive(Debug, clap::Args)]
pub struct RbacArguments {
    /// Only for this node, by its user system:node:NAME; may be given more than once [default: the group of all nodes]
    #[arg(long, value_name = "NAME")]
    node: Vec<String>,
}

/// Prints them.
///
/// # Errors
/// A name that is no node's.
pub fn rbac(args: &RbacArguments) -> anyhow::Result<ExitCode> {
    for name in &args.node {
        let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        if name.is_empty() || !name.chars().all(legal) {
            anyhow::bail!("--node {name:?} is not the name of a node: lower case letters, digits, '-' and '.'");
        }
    }
    print!("{}", manifest(&args.node));
    Ok(ExitCode::SUCCESS)
}

/// The role of ours: what NetworkPolicies and the pods they select are read with.
const ROLE: &str = "\
# What a Wasilet node reads besides what every node may: apply it with 'kubectl apply -f -'.
# NetworkPolicies, and the namespaces and pods that they select.
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: wasilet:policy-reader
rules:
  - apiGroups: [networking.k8s.io]
    resources: [networkpolicies]
    verbs: [get, list, watch]
  - apiGroups: ['']
    resources: [namespaces, pods]
    verbs: [get, list, watch]
";

fn manifest(nodes: &[String]) -> String {
    let mut text = ROLE.to_owned();
    let whom: Vec<(String, [&str; 2], String)> = if nodes.is_empty() {
        vec![(String::new(), ["Group", "all nodes"], "system:nodes".to_owned())]
    } else {
        nodes.iter().map(|node| (format!(":{node}"), ["User", "one node"], format!("system:node:{node}"))).collect()
    };
    for (suffix, [kind, meant], name) in whom {
        for (binding, role, why) in [
            (
                "wasilet:service-reader",
                "system:node-proxier",
                "Services, EndpointSlices and Nodes, as kube-proxy reads them",
            ),
            ("wasilet:policy-reader", "wasilet:policy-reader", "NetworkPolicies"),
        ] {
            let _ = write!(
                text,
                "---
# {why}: {meant}.
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: {binding}{suffix}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: {role}
subjects:
  - apiGroup: rbac.authorization.k8s.io
    kind: {kind}
    name: {name}
"
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};

    #[test]
    fn the_rights_are_what_the_api_server_takes() {
        for (nodes, bindings) in [(vec![], 2), (vec!["edge-1".to_owned(), "edge-2".to_owned()], 4)] {
            let text = manifest(&nodes);
            let documents = crate::yaml::parse(&text).unwrap();
            assert_eq!(documents.len(), 1 + bindings, "{text}");
            let role = crate::yaml::decode::<ClusterRole>(&documents[0]).unwrap();
            assert!(role.unknown.is_empty(), "{:?}", role.unknown);
            let mut names = std::collections::BTreeSet::new();
            for document in &documents[1..] {
                let binding = crate::yaml::decode::<ClusterRoleBinding>(document).unwrap();
                assert!(binding.unknown.is_empty(), "{:?}", binding.unknown);
                let subject = &binding.value.subjects.unwrap()[0];
                assert_eq!(subject.kind == "Group", nodes.is_empty());
                assert!(names.insert(binding.value.metadata.name), "each has a name of its own");
            }
        }
    }
}
