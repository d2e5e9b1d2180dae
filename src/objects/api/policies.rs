//! NetworkPolicies, namespaces and pods of the cluster, for the network.
//!
//! In: the API server's lists and watches. Out: [`PolicyNews`] in the order in which they are heard. Keeps nothing but the
//! list under way. The Node authorizer lets a node read none of these: without further rights each news is
//! [`PolicyNews::Forbidden`], until the rights come.

use std::fmt::Debug;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Config, Event, watcher};
use kube::{Api, Client};
use serde::de::DeserializeOwned;

use super::errors::watch_words;
use super::watch::Retry;
use crate::pod::policies::{Labels, PolicyNews, PolicyPod, PolicySpec};

/// Takes news of policies.
pub type PolicySink = Arc<dyn Fn(PolicyNews) + Send + Sync>;

/// Watches all three until it is dropped.
pub async fn watch_policies(client: Client, sink: PolicySink) {
    let policies = keep(
        Api::<NetworkPolicy>::all(client.clone()),
        &sink,
        |all| PolicyNews::Policies(all.iter().map(PolicySpec::of).collect()),
        |policy| PolicyNews::Policy(PolicySpec::of(policy)),
        |policy| {
            let spec = PolicySpec::of(policy);
            PolicyNews::PolicyGone(spec.namespace, spec.name)
        },
    );
    let namespaces = keep(
        Api::<Namespace>::all(client.clone()),
        &sink,
        |all| PolicyNews::Namespaces(all.iter().map(labels_of).collect()),
        |namespace| {
            let (name, labels) = labels_of(namespace);
            PolicyNews::Namespace(name, labels)
        },
        |namespace| PolicyNews::NamespaceGone(labels_of(namespace).0),
    );
    let pods = keep(
        Api::<Pod>::all(client),
        &sink,
        |all| PolicyNews::Pods(all.iter().filter_map(PolicyPod::of).collect()),
        |pod| PolicyPod::of(pod).map_or_else(|| PolicyNews::PodGone(PolicyPod::key_of(pod)), PolicyNews::Pod),
        |pod| PolicyNews::PodGone(PolicyPod::key_of(pod)),
    );
    tokio::join!(policies, namespaces, pods);
}

fn labels_of(namespace: &Namespace) -> (String, Labels) {
    let metadata = &namespace.metadata;
    (metadata.name.clone().unwrap_or_default(), metadata.labels.clone().unwrap_or_default())
}

async fn keep<K>(
    api: Api<K>,
    sink: &PolicySink,
    all: impl Fn(&[K]) -> PolicyNews,
    one: impl Fn(&K) -> PolicyNews,
    gone: impl Fn(&K) -> PolicyNews,
) where
    K: kube::Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut events = std::pin::pin!(watcher(api, Config::default()).backoff(Retry::default()));
    let mut listed = Vec::new();
    // The stream never ends.
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(object)) => listed.push(object),
            Ok(Event::InitDone) => sink(all(&std::mem::take(&mut listed))),
            Ok(Event::Apply(object)) => sink(one(&object)),
            Ok(Event::Delete(object)) => sink(gone(&object)),
            Err(error) => {
                tracing::debug!(err = watch_words(&error), "Could not watch what policies are about");
                if refuses(&error) {
                    sink(PolicyNews::Forbidden(watch_words(&error)));
                }
            }
        }
    }
}

/// Whether the server says that this node may not.
fn refuses(error: &watcher::Error) -> bool {
    use watcher::Error::{InitialListFailed, WatchError, WatchFailed, WatchStartFailed};
    match error {
        InitialListFailed(kube::Error::Api(status))
        | WatchStartFailed(kube::Error::Api(status))
        | WatchFailed(kube::Error::Api(status))
        | WatchError(status) => status.code == 403,
        _ => false,
    }
}
