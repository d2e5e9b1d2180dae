//! All Services of the cluster, for the variables of pods and for the network.
//!
//! In: the API server's list and watch, begun with the first who asks. Out: variables for a namespace, and [`ServiceNews`].
//! Endpoints are `endpoints`', the way to them is the network's.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Service;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{Config, Event, watcher};
use parking_lot::RwLock;
use tokio::sync::watch;

use super::errors::watch_words;
use super::watch::Retry;
use super::{ApiObjects, Change};
use crate::pod::service_env::{self, Links, ServiceLink};
use crate::pod::services::{ServiceNews, ServiceSpec};

type ByName = HashMap<(String, String), ServiceLink>;

/// The newest Services that have an address.
#[derive(Debug)]
pub(super) struct ServiceWatch {
    begun: AtomicBool,
    services: RwLock<ByName>,
    read: watch::Sender<bool>,
}

impl Default for ServiceWatch {
    fn default() -> Self {
        Self { begun: AtomicBool::new(false), services: RwLock::default(), read: watch::Sender::new(false) }
    }
}

impl ServiceWatch {
    /// Waits until they were read once.
    pub(super) async fn read(&self) {
        // The sender is in `self`: it cannot be closed.
        let _ = self.read.subscribe().wait_for(|read| *read).await;
    }

    pub(super) fn variables(&self, namespace: &str, links: Links) -> BTreeMap<String, String> {
        service_env::variables(self.services.read().values(), namespace, links)
    }

    fn replace(&self, all: ByName) -> bool {
        *self.services.write() = all;
        !self.read.send_replace(true)
    }

    fn put(&self, service: &Service) {
        let mut services = self.services.write();
        match ServiceLink::of(service) {
            Some(link) => drop(services.insert(key(service), link)),
            None => drop(services.remove(&key(service))),
        }
    }

    fn remove(&self, service: &Service) {
        self.services.write().remove(&key(service));
    }
}

fn key(service: &Service) -> (String, String) {
    (service.metadata.namespace.clone().unwrap_or_default(), service.metadata.name.clone().unwrap_or_default())
}

/// Begins the watch, once.
pub(super) fn begin(api: &ApiObjects) {
    if api.inner.services.begun.swap(true, Ordering::SeqCst) {
        return;
    }
    let stop = api.inner.stop.child_token();
    let keeper = api.clone();
    api.spawn(stop, async move { keep(&keeper).await });
}

async fn keep(api: &ApiObjects) {
    let services = &api.inner.services;
    let all = kube::Api::<Service>::all(api.inner.client.clone());
    let mut events = std::pin::pin!(watcher(all, Config::default()).backoff(Retry::default()));
    let (mut listed, mut specs) = (ByName::new(), Vec::new());
    // The stream never ends.
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => (listed, specs) = (ByName::new(), Vec::new()),
            Ok(Event::InitApply(service)) => {
                listed.extend(ServiceLink::of(&service).map(|link| (key(&service), link)));
                specs.extend(ServiceSpec::of(&service));
            }
            Ok(Event::InitDone) => {
                if services.replace(std::mem::take(&mut listed)) {
                    api.tell(Change::Services);
                }
                api.tell_services(ServiceNews::Services(std::mem::take(&mut specs)));
            }
            Ok(Event::Apply(service)) => {
                services.put(&service);
                let gone = || ServiceNews::ServiceGone(ServiceSpec::key_of(&service));
                api.tell_services(ServiceSpec::of(&service).map_or_else(gone, ServiceNews::Service));
            }
            Ok(Event::Delete(service)) => {
                services.remove(&service);
                api.tell_services(ServiceNews::ServiceGone(ServiceSpec::key_of(&service)));
            }
            Err(error) => tracing::debug!(err = watch_words(&error), "Could not watch services"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service(name: &str, ip: &str) -> Service {
        let service = json!({"metadata": {"name": name, "namespace": "ns"},
                             "spec": {"clusterIP": ip, "ports": [{"port": 80}]}});
        serde_json::from_value(service).unwrap()
    }

    #[test]
    fn the_newest_services_are_told_and_the_first_read_is_said_once() {
        let watch = ServiceWatch::default();
        let all = |service: &Service| -> ByName {
            ServiceLink::of(service).map(|link| (key(service), link)).into_iter().collect()
        };
        assert!(watch.replace(all(&service("a", "10.0.0.1"))));
        assert!(!watch.replace(all(&service("a", "10.0.0.2"))));
        watch.put(&service("b", "10.0.0.3"));
        let host = |name: &str| watch.variables("ns", Links::Namespace).remove(&format!("{name}_SERVICE_HOST"));
        assert_eq!((host("A").as_deref(), host("B").as_deref()), (Some("10.0.0.2"), Some("10.0.0.3")));
        watch.put(&service("a", "None"));
        watch.remove(&service("b", "10.0.0.3"));
        assert_eq!((host("A"), host("B")), (None, None));
    }
}
