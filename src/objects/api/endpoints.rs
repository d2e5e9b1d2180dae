//! EndpointSlices and podCIDRs of the whole cluster, for the network's Services.
//!
//! In: the API server's lists and watches; where this node is. Out: [`ServiceNews`], objects cut to what the network needs
//! as they arrive, a small page at a time. The Node authorizer allows a node neither: `system:node-proxier`, bound to it by
//! an administrator, does. What is refused is told once, and asked for again until it is allowed.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{Config, Error, Event, watcher};
use tokio::sync::watch;

use super::ApiObjects;
use super::errors::{is_forbidden, watch_words};
use super::watch::Retry;
use crate::pod::services::{NodePlace, ServiceNews, SliceSpec};

/// Slices of up to 1000 endpoints are large.
const PAGE: u32 = 100;
/// An administrator who has just given the rights sees them work soon.
const LAST_RETRY: Duration = Duration::from_secs(10);
/// As kube-proxy: not those of headless Services, nor those that are another proxy's.
const NOT_OURS: &str = "!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless";

/// Says once that the API server refuses a resource, and once that it does not any more.
#[derive(Debug)]
struct Rights<'a> {
    api: &'a ApiObjects,
    resource: &'static str,
    /// `None` before anything was heard.
    allowed: Option<bool>,
}

impl<'a> Rights<'a> {
    fn new(api: &'a ApiObjects, resource: &'static str) -> Self {
        Self { api, resource, allowed: None }
    }

    fn granted(&mut self) {
        if self.allowed.replace(true) != Some(true) {
            self.api.tell_services(ServiceNews::Allowed { resource: self.resource });
        }
    }

    fn failed(&mut self, error: &Error) {
        let (resource, reason) = (self.resource, watch_words(error));
        tracing::debug!(resource, err = reason, "Could not watch for Services");
        if is_forbidden(error) && self.allowed.replace(false) != Some(false) {
            self.api.tell_services(ServiceNews::Forbidden { resource, reason });
        }
    }
}

/// Endless. What was read before is read again when the node's zone changes: hints are for zones.
pub(super) async fn keep_slices(api: ApiObjects, mut place: watch::Receiver<Option<NodePlace>>) {
    let mut rights = Rights::new(&api, "endpointslices");
    loop {
        let here = match place.wait_for(Option::is_some).await {
            Ok(here) => here.clone().unwrap_or_default(),
            Err(_) => return,
        };
        place.mark_unchanged();
        tokio::select! {
            // Cancel-safe: everything is listed again.
            () = watch_slices(&api, &here, &mut rights) => return,
            changed = place.changed() => if changed.is_err() { return },
        }
    }
}

async fn watch_slices(api: &ApiObjects, here: &NodePlace, rights: &mut Rights<'_>) {
    let all = kube::Api::<EndpointSlice>::all(api.client());
    let config = Config::default().labels(NOT_OURS).page_size(PAGE);
    let mut events = std::pin::pin!(watcher(all, config).backoff(Retry::up_to(LAST_RETRY)));
    let mut listed = Vec::new();
    // The stream never ends.
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => listed = Vec::new(),
            Ok(Event::InitApply(slice)) => listed.extend(SliceSpec::of(&slice, here)),
            Ok(Event::InitDone) => {
                api.tell_services(ServiceNews::Slices(std::mem::take(&mut listed)));
                rights.granted();
            }
            Ok(Event::Apply(slice)) => {
                let gone = || ServiceNews::SliceGone(SliceSpec::key_of(&slice));
                api.tell_services(SliceSpec::of(&slice, here).map_or_else(gone, ServiceNews::Slice));
            }
            Ok(Event::Delete(slice)) => api.tell_services(ServiceNews::SliceGone(SliceSpec::key_of(&slice))),
            Err(error) => rights.failed(&error),
        }
    }
}

/// Endless.
pub(super) async fn keep_ranges(api: ApiObjects) {
    let mut rights = Rights::new(&api, "nodes");
    let all = kube::Api::<Node>::all(api.client());
    let config = Config::default().page_size(PAGE);
    let mut events = std::pin::pin!(watcher(all, config).backoff(Retry::up_to(LAST_RETRY)));
    let mut listed = BTreeMap::new();
    let mut told = None;
    let mut complete = false;
    // The stream never ends.
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => {
                listed.clear();
                complete = false;
            }
            Ok(Event::InitApply(node) | Event::Apply(node)) => drop(listed.insert(name(&node), ranges(node))),
            Ok(Event::InitDone) => {
                complete = true;
                rights.granted();
            }
            Ok(Event::Delete(node)) => drop(listed.remove(&name(&node))),
            Err(error) => rights.failed(&error),
        }
        if !complete {
            continue;
        }
        let all: Vec<String> = listed.values().flatten().cloned().collect();
        if told.as_ref() != Some(&all) {
            told = Some(all.clone());
            api.tell_services(ServiceNews::PodRanges(all));
        }
    }
}

fn name(node: &Node) -> String {
    node.metadata.name.clone().unwrap_or_default()
}

fn ranges(node: Node) -> Vec<String> {
    let Some(spec) = node.spec else { return Vec::new() };
    spec.pod_cidrs.unwrap_or_else(|| spec.pod_cidr.into_iter().collect())
}
