//! Which handler a RuntimeClass names, as the kubelet's `runtimeclass.Manager`.
//!
//! In: the API server's list and watch of all classes, begun with the first pod that names one. Out: handlers. Whether the
//! node has the handler is the worker's.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::StreamExt;
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::Api;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{Config, Event, watcher};
use tokio::sync::watch;
use tokio::time::Instant;

use super::ApiObjects;
use super::errors::{is_not_found, watch_words, words};
use super::watch::Retry;

/// Handlers by the name of their class.
type Handlers = BTreeMap<String, String>;

/// The newest classes; nothing before they were read.
#[derive(Debug)]
pub(super) struct ClassWatch {
    begun: AtomicBool,
    known: watch::Sender<Option<Handlers>>,
}

impl Default for ClassWatch {
    fn default() -> Self {
        Self { begun: AtomicBool::new(false), known: watch::Sender::new(None) }
    }
}

impl ClassWatch {
    /// The handler of a class as the watch has it, once it has read them all.
    async fn handler(&self, class: &str) -> Option<String> {
        let mut known = self.known.subscribe();
        // The sender is in `self`: it cannot be closed.
        let handlers = known.wait_for(Option::is_some).await.ok()?;
        handlers.as_ref()?.get(class).cloned()
    }

    fn change(&self, change: impl FnOnce(&mut Handlers)) {
        self.known.send_modify(|known| {
            if let Some(handlers) = known {
                change(handlers);
            }
        });
    }
}

impl ApiObjects {
    /// The handler that a RuntimeClass names.
    ///
    /// # Errors
    /// The kubelet's words: there is no such class, or the API server does not say by `deadline`.
    pub async fn runtime_handler(&self, class: &str, deadline: Instant) -> Result<String, String> {
        let watch = &self.inner.classes;
        if !watch.begun.swap(true, Ordering::SeqCst) {
            let keeper = self.clone();
            self.spawn(self.inner.stop.child_token(), async move { keep(&keeper).await });
        }
        let late = |_| format!("failed to lookup RuntimeClass {class}: the API server did not answer in time");
        if let Some(handler) = tokio::time::timeout_at(deadline, watch.handler(class)).await.map_err(late)? {
            return Ok(handler);
        }
        // Made a moment ago, with the pod that names it, it may be on its way.
        let classes: Api<RuntimeClass> = Api::all(self.client());
        let asked = tokio::time::timeout_at(deadline, classes.get(class)).await.map_err(late)?;
        asked.map(|found| found.handler).map_err(|error| {
            if is_not_found(&error) {
                format!("runtimeclass.node.k8s.io {class:?} not found")
            } else {
                format!("failed to lookup RuntimeClass {class}: {}", words(&error))
            }
        })
    }
}

async fn keep(api: &ApiObjects) {
    let watch = &api.inner.classes;
    let all: Api<RuntimeClass> = Api::all(api.client());
    let mut events = std::pin::pin!(watcher(all, Config::default()).backoff(Retry::default()));
    let mut listed = Handlers::new();
    let entry = |class: RuntimeClass| class.metadata.name.map(|name| (name, class.handler));
    // The stream never ends.
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(class)) => listed.extend(entry(class)),
            Ok(Event::InitDone) => drop(watch.known.send_replace(Some(std::mem::take(&mut listed)))),
            Ok(Event::Apply(class)) => watch.change(|handlers| handlers.extend(entry(class))),
            Ok(Event::Delete(class)) => watch.change(|handlers| {
                class.metadata.name.and_then(|name| handlers.remove(&name));
            }),
            Err(error) => tracing::debug!(err = watch_words(&error), "Could not watch runtime classes"),
        }
    }
}
