//! Registers the Node and keeps its status: gathers facts, asks [`status`](super::status) what it should be, writes it.
//!
//! In: facts of the machine, words of the other rooms. Out: requests about `nodes/NAME`. Decides nothing itself; as the
//! kubelet's `syncNodeStatus`: computed every `nodeStatusUpdateFrequency` and when something happens, written when it changed
//! or `nodeStatusReportFrequency` has passed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, NodeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;

use super::api::{ApiError, BackOff, Outage, bounded};
use super::capacity::Capacity;
use super::conditions::Health;
use super::facts::{Facts, address};
use super::manager::{NodeParts, NodeSender, publish};
use super::registration;
use super::settings::NodeSettings;
use super::status::{self, StatusInput};
use super::version::kubelet_version;
use crate::events::{EventType, node_reference};

/// Writes the Node.
pub(super) struct StatusKeeper {
    client: Client,
    api: Api<Node>,
    settings: Arc<NodeSettings>,
    parts: NodeParts,
    node: NodeSender,
    version: Option<String>,
    /// When the status is written although nothing changed.
    next_report: Option<Instant>,
    /// UID of the Node whose labels were compared with the settings.
    reconciled: Option<String>,
    /// What this server does not store.
    refused: Refused,
    was_unschedulable: bool,
    /// What the last sync saw of the Node: a change since then, however soon, is seen by the next.
    seen: Option<Key>,
    /// What a person was told once.
    told: Told,
}

#[derive(Debug, Default)]
struct Told {
    waiting: bool,
    reboot: bool,
}

/// What a status is computed from.
struct Gathered {
    facts: Facts,
    health: Health,
    addresses: Vec<std::net::IpAddr>,
    images: Vec<crate::image::ImageSummary>,
    version: String,
}

impl StatusKeeper {
    pub(super) fn new(client: Client, settings: Arc<NodeSettings>, parts: NodeParts, node: NodeSender) -> Self {
        Self {
            api: Api::all(client.clone()),
            client,
            settings,
            parts,
            node,
            version: None,
            next_report: None,
            reconciled: None,
            refused: Refused::default(),
            was_unschedulable: false,
            seen: None,
            told: Told::default(),
        }
    }

    /// Keeps the Node for ever.
    pub(super) async fn run(mut self) {
        let forbidden = self.settings.labels().1;
        if !forbidden.is_empty() {
            tracing::warn!(labels = ?forbidden, "Left out nodeLabels that a node may not give itself");
        }
        self.event(EventType::Normal, "Starting", "Starting wasilet.".to_owned());
        let (mut back_off, mut outage) = (BackOff::default(), Outage::default());
        loop {
            let period = self.settings.registration.status_update_frequency;
            let wait = match self.sync().await {
                Ok(()) => {
                    back_off.reset();
                    outage.over("Updated the Node again");
                    period
                }
                Err(error) => {
                    outage.failed("Failed to update the Node, will retry", &error);
                    back_off.next().min(period)
                }
            };
            self.wait(wait).await;
        }
    }

    /// Waits, or less if something happens that the status must tell.
    async fn wait(&mut self, most: Duration) {
        let seen = &self.seen;
        let mut node = self.node.subscribe();
        tokio::select! {
            // All are cancel-safe: time passes, and a change that was not seen is seen by the next sync.
            () = tokio::time::sleep(most) => {}
            () = changed(&mut self.parts.network) => {}
            () = changed(&mut self.parts.pressure) => {}
            () = changed(&mut self.parts.shutdown) => {}
            () = changed(&mut self.parts.volumes_in_use) => {}
            // The sender is in `self`.
            _ = node.wait_for(|node| node.as_deref().map(key) != *seen) => {}
        }
    }

    async fn sync(&mut self) -> Result<(), ApiError> {
        let report_is_due = self.next_report.is_none_or(|at| Instant::now() >= at);
        let version = self.learn_version(report_is_due).await?;
        let gathered = self.gather(version).await;
        let known = self.node.borrow().clone();
        self.seen = known.as_deref().map(key);
        let Some(node) = (match known {
            Some(node) => Some(node),
            None => self.register(&gathered).await?,
        }) else {
            if !std::mem::replace(&mut self.told.waiting, true) {
                tracing::info!("Waiting for the Node object, since registerNode is false");
            }
            return Ok(());
        };
        self.seen = Some(key(&node));
        self.reconcile(&node).await?;
        self.tell_about(&node, &gathered);
        let before = node.status.clone().unwrap_or_default();
        let (after, events) = self.desired(&node, &before, &gathered);
        let after = self.refused.forgive(&before, after);
        let has_changed = status::differs(&before, &after);
        if !has_changed && !report_is_due {
            return Ok(());
        }
        let patch = Patch::Strategic(status::patch(&before, &after));
        let params = PatchParams::default();
        let request = self.api.patch_status(&self.settings.name, &params, &patch);
        let written = match bounded("writing the status of the Node", request).await {
            Ok(written) => written,
            Err(error) => {
                if error.code() == Some(404) {
                    // The watch will say so; the next sync registers.
                    self.node.send_replace(None);
                }
                return Err(error);
            }
        };
        self.refused.learn(&after, &written.status.clone().unwrap_or_default());
        publish(&self.node, written);
        self.tell(&events);
        self.schedule_report(has_changed);
        Ok(())
    }

    /// The next report: after a change at a random time around the period, so that nodes that changed together (a power cut)
    /// do not report together for ever.
    fn schedule_report(&mut self, has_changed: bool) {
        let period = self.settings.registration.status_report_frequency;
        let random = has_changed || self.next_report.is_none();
        let wait = if random { period.mul_f64(0.5 + rand::random::<f64>()) } else { period };
        self.next_report = Some(Instant::now() + wait);
    }

    /// The version to show. The server is asked at first and with each report: it may have been upgraded. One that does not
    /// tell (it is starting, or keeps its version to itself) does not keep the status from being written.
    async fn learn_version(&mut self, is_due: bool) -> Result<String, ApiError> {
        if let Some(version) = self.version.clone().filter(|_| !is_due) {
            return Ok(version);
        }
        let answer = bounded("asking the server for its version", self.client.apiserver_version()).await;
        let version = match (answer, self.version.clone()) {
            (Ok(info), _) => kubelet_version(&info.major, &info.minor),
            (Err(_), Some(known)) => known,
            (Err(error), None) if error.code() == Some(403) => {
                tracing::warn!(err = crate::image::chain(&error), "The server's version is not known, assumed ours");
                return Ok(kubelet_version("1", ""));
            }
            (Err(error), None) => return Err(error),
        };
        if self.version.as_ref() != Some(&version) {
            tracing::info!(kubelet_version = version, "Learnt the server's version");
            self.refused = Refused::default();
        }
        self.version = Some(version.clone());
        Ok(version)
    }

    async fn gather(&self, version: String) -> Gathered {
        let root_dir = self.settings.root_dir.clone();
        let facts = tokio::task::spawn_blocking(move || Facts::read(&root_dir));
        let images = async {
            let Some(images) = &self.parts.images else { return Vec::new() };
            images.list().await.unwrap_or_else(|error| {
                tracing::warn!(err = %error, "Could not list images for the Node's status");
                Vec::new()
            })
        };
        let (facts, images, address) =
            tokio::join!(facts, images, address::node_ips(&self.settings.registration.node_ips));
        let problems = address.as_ref().err().map(ToString::to_string).into_iter().collect();
        Gathered {
            facts: facts.expect("reading facts does not panic"),
            health: Health {
                network: self.parts.network.borrow().clone(),
                pressure: *self.parts.pressure.borrow(),
                shutdown: *self.parts.shutdown.borrow(),
                problems,
            },
            addresses: address.unwrap_or_default(),
            images,
            version,
        }
    }

    fn desired(&self, node: &Node, before: &NodeStatus, gathered: &Gathered) -> (NodeStatus, Vec<&'static str>) {
        let capacity = Capacity::of(&gathered.facts, &self.settings, &pod_cidrs(node));
        let volumes_in_use: Vec<String> = self.parts.volumes_in_use.borrow().iter().cloned().collect();
        let input = StatusInput {
            settings: &self.settings,
            machine: &gathered.facts.machine,
            capacity: &capacity,
            addresses: &gathered.addresses,
            kubelet_version: &gathered.version,
            images: &gathered.images,
            health: &gathered.health,
            volumes_in_use: &volumes_in_use,
            now: Time(self.parts.clock.now()),
        };
        status::desired(before, &input)
    }

    /// Makes the Node, or finds the one there is. `None` without a Node when the node does not register itself.
    async fn register(&mut self, gathered: &Gathered) -> Result<Option<Arc<Node>>, ApiError> {
        let name = self.settings.name.clone();
        if self.settings.registration.register {
            let (status, events) = self.desired(&Node::default(), &NodeStatus::default(), gathered);
            let node = registration::initial(&self.settings, status.clone());
            tracing::info!(node = name, "Attempting to register node");
            match bounded("registering the Node", self.api.create(&PostParams::default(), &node)).await {
                Ok(created) => {
                    tracing::info!(node = name, "Successfully registered node");
                    self.reconciled.clone_from(&created.metadata.uid);
                    self.refused.learn(&status, &created.status.clone().unwrap_or_default());
                    publish(&self.node, created);
                    self.tell(&events);
                    self.schedule_report(true);
                    return Ok(self.node.borrow().clone());
                }
                // It exists; or this node may not create Nodes, and somebody else did.
                Err(error) if matches!(error.code(), Some(409 | 403)) => {
                    let found = bounded("reading the Node", self.api.get_opt(&name)).await?;
                    let Some(found) = found else { return Err(error) };
                    publish(&self.node, found);
                    return Ok(self.node.borrow().clone());
                }
                Err(error) => return Err(error),
            }
        }
        let found = bounded("reading the Node", self.api.get_opt(&name)).await?;
        Ok(found.map(|found| {
            publish(&self.node, found.clone());
            Arc::new(found)
        }))
    }

    /// Sets right what the settings say of an existing Node, once; and what the node is, always.
    async fn reconcile(&mut self, node: &Node) -> Result<(), ApiError> {
        let params = PatchParams::default();
        let name = &self.settings.name;
        let patch = if self.reconciled.is_some() && self.reconciled == node.metadata.uid {
            registration::reconcile_platform(node, &self.settings)
        } else {
            tracing::info!(node = name, "Node was previously registered");
            let found = registration::reconcile(node, &self.settings);
            for warning in found.warnings {
                tracing::warn!(node = name, "{warning}");
            }
            if let Some(spec) = found.spec {
                bounded("setting providerID", self.api.patch(name, &params, &Patch::Merge(spec))).await?;
            }
            found.metadata
        };
        if let Some(patch) = patch {
            let patch = Patch::Strategic(patch);
            let request = self.api.patch_status(name, &params, &patch);
            publish(&self.node, bounded("setting the labels of the Node", request).await?);
        }
        self.reconciled.clone_from(&node.metadata.uid);
        Ok(())
    }

    fn tell_about(&mut self, node: &Node, gathered: &Gathered) {
        let is_unschedulable = node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false);
        if std::mem::replace(&mut self.was_unschedulable, is_unschedulable) != is_unschedulable {
            self.tell(&[if is_unschedulable { "NodeNotSchedulable" } else { "NodeSchedulable" }]);
        }
        let before =
            node.status.as_ref().and_then(|status| status.node_info.as_ref()).map(|info| info.boot_id.as_str());
        let now = gathered.facts.machine.boot_id.as_str();
        let rebooted = before.is_some_and(|before| !before.is_empty() && before != now);
        if rebooted && !std::mem::replace(&mut self.told.reboot, true) {
            let message = format!("Node {} has been rebooted, boot id: {now}", self.settings.name);
            self.event(EventType::Warning, "Rebooted", message);
        }
    }

    fn tell(&self, reasons: &[&'static str]) {
        for reason in reasons {
            let message = format!("Node {} status is now: {reason}", self.settings.name);
            self.event(EventType::Normal, reason, message);
        }
    }

    fn event(&self, kind: EventType, reason: &str, message: String) {
        self.parts.events.event(&node_reference(&self.settings.name), kind, reason, message);
    }
}

/// What of a Node a status depends on; its own heartbeats are none of it: UID, podCIDRs, `unschedulable`.
type Key = (Option<String>, Vec<String>, Option<bool>);

fn key(node: &Node) -> Key {
    let unschedulable = node.spec.as_ref().and_then(|spec| spec.unschedulable);
    (node.metadata.uid.clone(), pod_cidrs(node), unschedulable)
}

/// `spec.podCIDRs`; the older single field when a controller sets only that.
fn pod_cidrs(node: &Node) -> Vec<String> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let all = spec.pod_cidrs.clone().filter(|all| !all.is_empty());
    all.unwrap_or_else(|| spec.pod_cidr.iter().filter(|cidr| !cidr.is_empty()).cloned().collect())
}

/// Waits for a change; for ever when nobody tells any more.
async fn changed<T>(receiver: &mut watch::Receiver<T>) {
    if receiver.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Fields that this server does not store as they are written: it is older than they are, or a gate is off. Were they
/// compared, the status would differ for ever and be written each time.
#[derive(Debug, Default)]
struct Refused {
    fields: BTreeMap<String, Value>,
}

impl Refused {
    /// Remembers what was written and did not come back.
    fn learn(&mut self, written: &NodeStatus, stored: &NodeStatus) {
        let (written, stored) = (status::fields(written), status::fields(stored));
        self.fields = written
            .into_iter()
            .filter(|(name, value)| name != "conditions" && stored.get(name) != Some(value))
            .collect();
    }

    /// Takes what is stored for a field whose wanted value was refused before.
    fn forgive(&self, before: &NodeStatus, after: NodeStatus) -> NodeStatus {
        if self.fields.is_empty() {
            return after;
        }
        let (stored, mut wanted) = (status::fields(before), status::fields(&after));
        for (name, value) in &self.fields {
            if wanted.get(name) == Some(value) {
                match stored.get(name) {
                    Some(stored) => wanted.insert(name.clone(), stored.clone()),
                    None => wanted.remove(name),
                };
            }
        }
        serde_json::from_value(Value::Object(wanted)).unwrap_or(after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_a_server_does_not_store_is_written_once() {
        let status = |json: Value| -> NodeStatus { serde_json::from_value(json).unwrap() };
        let wanted = status(json!({"declaredFeatures": ["X"], "phase": "new"}));
        let stored = status(json!({"phase": "new"}));
        let mut refused = Refused::default();
        assert_eq!(refused.forgive(&stored, wanted.clone()), wanted);
        refused.learn(&wanted, &stored);
        assert!(!status::differs(&stored, &refused.forgive(&stored, wanted)));
        let other = status(json!({"declaredFeatures": ["Y"], "phase": "new"}));
        assert_eq!(refused.forgive(&stored, other.clone()), other, "another value is tried");
    }

    #[test]
    fn either_field_of_pod_ranges_counts() {
        let cidrs = |spec: Value| pod_cidrs(&serde_json::from_value(json!({"spec": spec})).unwrap());
        assert_eq!(cidrs(json!({"podCIDRs": ["10.0.0.0/24", "fd00::/64"], "podCIDR": "10.0.0.0/24"})).len(), 2);
        assert_eq!(cidrs(json!({"podCIDR": "10.0.0.0/24"})), ["10.0.0.0/24"]);
        assert!(cidrs(json!({"podCIDR": ""})).is_empty());
    }
}
