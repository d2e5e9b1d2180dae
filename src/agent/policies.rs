//! NetworkPolicies from the API server to the network, and what is to be said about them.
//!
//! In: news of policies. Out: a network that holds them, Events of the node about whether they are in force, and of a policy
//! about what this node does not understand of it, and the file `network-policies.json` of the root directory: a node that
//! starts while its API server is away holds what it knew, and one that was not let read them is not kept waiting. Decides
//! nothing.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::events::{EventType, Recorder, node_reference};
use crate::network::{NodeNetwork, Standing};
use crate::objects::PolicySink;
use crate::pod::policies::{PolicyNews, PolicySnapshot, PolicySpec};

/// How often what changed is stored. Policies change rarely and pods often; what is a moment old does after a crash.
const STORE_EVERY: Duration = Duration::from_secs(5);

fn file(root_dir: &Path) -> PathBuf {
    root_dir.join("network-policies.json")
}

/// What an earlier run left.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Stored {
    /// It was not let read policies.
    Refused,
    /// What it knew.
    Known(PolicySnapshot),
}

/// `None` when there was no earlier run, or the file is no good.
fn load(root_dir: &Path) -> Option<Stored> {
    let text = std::fs::read(file(root_dir)).ok()?;
    serde_json::from_slice(&text)
        .inspect_err(|error| tracing::warn!(err = %error, "Ignored the stored NetworkPolicies"))
        .ok()
}

/// Stores it, whole or not at all. Blocking.
fn store(root_dir: &Path, known: &Stored) -> io::Result<()> {
    let temporary = root_dir.join(".network-policies.tmp");
    std::fs::write(&temporary, serde_json::to_vec(known).map_err(io::Error::other)?)?;
    std::fs::rename(&temporary, file(root_dir))
}

/// Begins with what an earlier run knew. Blocking.
pub(super) fn begin(network: &NodeNetwork, root_dir: &Path) {
    network.policies().expect();
    match load(root_dir) {
        Some(Stored::Known(known)) => network.policies().restore(known),
        Some(Stored::Refused) => {
            network.policies().take(PolicyNews::Forbidden(String::new()));
        }
        None => {}
    }
}

/// Keeps the file true, until it is dropped.
pub(super) async fn keep(network: Arc<NodeNetwork>, root_dir: PathBuf) {
    let mut stored = network.policies().generation();
    loop {
        tokio::time::sleep(STORE_EVERY).await;
        let now = network.policies().generation();
        if now == stored || network.policies().standing() == Standing::Waiting {
            continue;
        }
        let known = network.policies().snapshot().map_or(Stored::Refused, Stored::Known);
        let root_dir = root_dir.clone();
        match tokio::task::spawn_blocking(move || store(&root_dir, &known)).await {
            Ok(Ok(())) => stored = now,
            Ok(Err(error)) => tracing::warn!(err = %error, "Could not store NetworkPolicies"),
            Err(_) => {}
        }
    }
}

/// Takes news to the network.
pub(super) fn sink(network: Arc<NodeNetwork>, events: Recorder, node: &str) -> PolicySink {
    let node = node_reference(node);
    // What the API server said last, so that it is told once and not with every try.
    let refused = Mutex::new(String::new());
    Arc::new(move |news| {
        match &news {
            PolicyNews::Policies(all) => all.iter().for_each(|policy| tell_problems(&events, policy)),
            PolicyNews::Policy(policy) => tell_problems(&events, policy),
            PolicyNews::Forbidden(why) => {
                let mut refused = refused.lock();
                let in_force = network.policies().standing() == Standing::InForce;
                if refused.is_empty() && in_force {
                    refused.clone_from(why);
                    let message = format!("NetworkPolicies stay as they were read last: {why}");
                    events.event(&node, EventType::Warning, "NetworkPolicyStale", message);
                } else if refused.is_empty() {
                    refused.clone_from(why);
                    let message = format!(
                        "NetworkPolicies are not enforced for pods of this node: {why}. Grant it with: wasilet rbac | kubectl apply -f -"
                    );
                    events.event(&node, EventType::Warning, "NetworkPolicyNotEnforced", message);
                }
            }
            _ => {}
        }
        if network.policies().take(news) == Some(Standing::InForce) {
            refused.lock().clear();
            events.event(
                &node,
                EventType::Normal,
                "NetworkPolicyEnforced",
                "NetworkPolicies are enforced for pods of this node",
            );
        }
    })
}

fn tell_problems(events: &Recorder, policy: &PolicySpec) {
    if policy.problems.is_empty() {
        return;
    }
    let reference = ObjectReference {
        api_version: Some("networking.k8s.io/v1".to_owned()),
        kind: Some("NetworkPolicy".to_owned()),
        namespace: Some(policy.namespace.clone()),
        name: Some(policy.name.clone()),
        ..ObjectReference::default()
    };
    events.event(&reference, EventType::Warning, "NetworkPolicyNotUnderstood", policy.problems.join("; "));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_stored_last_is_loaded_and_nonsense_is_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load(dir.path()), None);
        for known in [Stored::Known(PolicySnapshot::default()), Stored::Refused] {
            store(dir.path(), &known).unwrap();
            assert_eq!(load(dir.path()), Some(known));
        }
        std::fs::write(file(dir.path()), "{").unwrap();
        assert_eq!(load(dir.path()), None);
    }
}
