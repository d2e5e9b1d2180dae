//! What has to be written to the API server so that it says of a pod what this node knows.
//!
//! In: the object as the API server has it, the node's own status. Out: nothing, a strategic merge patch, or the deletion
//! of a pod that is over. Pure. The rules are those of the kubelet's `status_manager.go`: `mergePodStatus`,
//! `isPodStatusByKubeletEqual`, `canBeDeleted`.
//!
//! The patch is made against the watch's copy instead of one fetched for the purpose: one request where the kubelet makes
//! two. That is safe because the node is the only writer of the fields below, and conditions are merged by type.

use k8s_openapi::api::core::v1::{ContainerState, Pod, PodCondition, PodStatus};
use serde_json::{Map, Value, json};

use super::api::is_mirror;
use super::cache::{PodSnapshot, Stage};
use crate::pod::allocation::{RESIZE_IN_PROGRESS, RESIZE_PENDING};
use crate::pod::status::{DISRUPTION_TARGET, PodPhase, container_statuses, foreign, is_owned};

/// Fields of the status that the node writes, conditions apart.
const FIELDS: [&str; 15] = [
    "observedGeneration",
    "phase",
    "message",
    "reason",
    "hostIP",
    "hostIPs",
    "podIP",
    "podIPs",
    "startTime",
    "initContainerStatuses",
    "containerStatuses",
    "ephemeralContainerStatuses",
    "qosClass",
    "resources",
    "allocatedResources",
];
/// Conditions of the node's that go when they are over; all others stay once they are there.
const PASSING: [&str; 2] = [RESIZE_PENDING, RESIZE_IN_PROGRESS];
/// Lists that the API server merges by `ip`: their order counts, so that they are replaced as a whole.
const MERGED_BY_IP: [&str; 2] = ["hostIPs", "podIPs"];

/// One request.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Write {
    /// Patch `pods/status` with this strategic merge patch, which holds for one UID only.
    Patch(Value),
    /// Complete the pod's deletion.
    Delete,
}

/// How soon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Urgency {
    /// Somebody may wait for it.
    Now,
    /// More is about to follow: one request may do for both.
    Soon,
}

/// What an API server did not take over of a status it was told: a field that it does not know yet, or whose feature gate is
/// off (`status.observedGeneration` before 1.34). Told again it would not take it either.
#[derive(Debug, Clone)]
pub(super) struct Unkept {
    told: Map<String, Value>,
    answered: Map<String, Value>,
}

impl Unkept {
    /// Compares what was told with what the server answered; nothing when it took all of it.
    pub(super) fn of(told: Map<String, Value>, answer: &Pod) -> Option<Self> {
        let answered = to_json(answer.status.as_ref()?);
        (!means_the_same(&told, &answered)).then_some(Self { told, answered })
    }

    /// Whether the server still says what it answered then, and the node would only tell it the same again.
    fn covers(&self, before: &Map<String, Value>, after: &Map<String, Value>) -> bool {
        means_the_same(&self.answered, before) && means_the_same(&self.told, after)
    }
}

/// What the API server would say if it took over all that the node has to say now.
pub(super) fn told(api: &Pod, snapshot: &PodSnapshot) -> Map<String, Value> {
    let none = PodStatus::default();
    to_json(&merge(api.status.as_ref().unwrap_or(&none), snapshot))
}

/// What to write, if anything.
pub(super) fn decide(api: &Pod, snapshot: &PodSnapshot, unkept: Option<&Unkept>) -> Option<(Write, Urgency)> {
    let none = PodStatus::default();
    let old = api.status.as_ref().unwrap_or(&none);
    let new = merge(old, snapshot);
    let (before, after) = (to_json(old), to_json(&new));
    if !means_the_same(&before, &after) && !unkept.is_some_and(|unkept| unkept.covers(&before, &after)) {
        let mut patch = json!({"metadata": {"uid": api.metadata.uid}});
        patch["status"] = Value::Object(difference(&before, &after));
        return Some((Write::Patch(patch), urgency(api, old, &new, snapshot)));
    }
    let is_over = PodPhase::is_over(old);
    let deleted = api.metadata.deletion_timestamp.is_some() && !is_mirror(api);
    (deleted && is_over && snapshot.stage == Stage::Finished).then_some((Write::Delete, Urgency::Now))
}

/// The node's status with what others own in the API server's.
fn merge(old: &PodStatus, snapshot: &PodSnapshot) -> PodStatus {
    let mut new = (*snapshot.status).clone();
    let ends = !PodPhase::is_over(old) && PodPhase::is_over(&new);
    let held_back = ends && snapshot.stage == Stage::Alive;
    if held_back || PodPhase::is_over(old) {
        // Nothing is final while a container may run, and nothing follows what is.
        new.phase.clone_from(&old.phase);
        new.reason.clone_from(&old.reason);
        new.message.clone_from(&old.message);
    }
    let mut conditions = foreign(old.conditions.as_deref());
    for condition in new.conditions.take().unwrap_or_default() {
        let ours = is_owned(&condition.type_);
        if ours || (condition.type_ == DISRUPTION_TARGET && ends && !held_back) {
            conditions.retain(|other| other.type_ != condition.type_);
            conditions.push(condition);
        }
    }
    if PodPhase::is_over(&new) {
        let reason = if new.phase.as_deref() == Some("Succeeded") { "PodCompleted" } else { "PodFailed" };
        for condition in &mut conditions {
            not_ready(condition, reason);
        }
    }
    // What the node has no word about is left as it is.
    for kept in old.conditions.iter().flatten() {
        let passed = PASSING.contains(&kept.type_.as_str());
        if !passed && conditions.iter().all(|condition| condition.type_ != kept.type_) {
            conditions.push(kept.clone());
        }
    }
    new.conditions = Some(conditions);
    new.observed_generation = new.observed_generation.max(old.observed_generation);
    // Both may not change once they are there.
    new.qos_class = old.qos_class.clone().or(new.qos_class);
    new.start_time = old.start_time.clone().or(new.start_time);
    let PodStatus { host_ip, host_ips, container_statuses, init_container_statuses, .. } = old.clone();
    new.host_ip = new.host_ip.or(host_ip);
    new.host_ips = new.host_ips.or(host_ips);
    new.container_statuses = new.container_statuses.or(container_statuses);
    new.init_container_statuses = new.init_container_statuses.or(init_container_statuses);
    new
}

fn not_ready(condition: &mut PodCondition, reason: &str) {
    if matches!(condition.type_.as_str(), "Ready" | "ContainersReady") && condition.status == "True" {
        "False".clone_into(&mut condition.status);
        condition.reason = Some(reason.to_owned());
        condition.message = None;
    }
}

fn to_json(status: &PodStatus) -> Map<String, Value> {
    match serde_json::to_value(status) {
        Ok(Value::Object(map)) => map,
        // A status has only string keys.
        _ => Map::new(),
    }
}

/// Whether there is nothing to tell: times and generations of conditions alone are nothing.
fn means_the_same(before: &Map<String, Value>, after: &Map<String, Value>) -> bool {
    fn by_type(status: &Map<String, Value>) -> Vec<&Value> {
        let mut sorted: Vec<&Value> = conditions(status).iter().collect();
        sorted.sort_by_key(|condition| condition["type"].as_str());
        sorted
    }
    let verdict = |(old, new): (&&Value, &&Value)| {
        ["type", "status", "reason", "message"].iter().all(|key| is_same(old.get(key), new.get(key)))
    };
    if !FIELDS.iter().all(|field| is_same(before.get(*field), after.get(*field))) {
        return false;
    }
    let (before, after) = (by_type(before), by_type(after));
    before.len() == after.len() && before.iter().zip(&after).all(verdict)
}

fn conditions(status: &Map<String, Value>) -> &[Value] {
    status.get("conditions").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// Whether two values are equal but for what Go leaves out when it is empty.
fn is_same(one: Option<&Value>, other: Option<&Value>) -> bool {
    match (one, other) {
        (Some(Value::Array(one)), Some(Value::Array(other))) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| is_same(Some(one), Some(other)))
        }
        (Some(Value::Object(one)), Some(Value::Object(other))) => {
            one.iter().all(|(key, value)| is_same(Some(value), other.get(key)))
                && other.iter().all(|(key, value)| one.contains_key(key) || is_left_out(Some(value)))
        }
        (Some(one), Some(other)) if one == other => true,
        _ => is_left_out(one) && is_left_out(other),
    }
}

/// Whether Go leaves a value out, with all that is in it.
fn is_left_out(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(Value::Array(items)) => items.is_empty(),
        Some(Value::Object(map)) => map.values().all(|value| is_left_out(Some(value))),
        Some(_) => false,
    }
}

/// `status` of a strategic merge patch.
fn difference(before: &Map<String, Value>, after: &Map<String, Value>) -> Map<String, Value> {
    let mut patch = Map::new();
    for field in FIELDS {
        if is_same(before.get(field), after.get(field)) {
            continue;
        }
        let value = match after.get(field) {
            Some(Value::Array(items)) if MERGED_BY_IP.contains(&field) => {
                let replace = std::iter::once(json!({"$patch": "replace"}));
                Value::Array(replace.chain(items.iter().cloned()).collect())
            }
            value => value.cloned().unwrap_or_default(),
        };
        patch.insert(field.to_owned(), value);
    }
    let (before, after) = (conditions(before), conditions(after));
    let mut changed: Vec<Value> = after
        .iter()
        .filter_map(|condition| {
            let old = before.iter().find(|old| old["type"] == condition["type"]);
            condition_difference(old, condition)
        })
        .collect();
    let gone = before.iter().filter(|old| after.iter().all(|condition| condition["type"] != old["type"]));
    changed.extend(gone.map(|old| json!({"type": old["type"], "$patch": "delete"})));
    if !changed.is_empty() {
        patch.insert("conditions".to_owned(), Value::Array(changed));
    }
    patch
}

fn condition_difference(old: Option<&Value>, new: &Value) -> Option<Value> {
    let Some(old) = old else { return Some(new.clone()) };
    if is_same(Some(old), Some(new)) {
        return None;
    }
    let mut changed = json!({"type": new["type"]});
    for key in ["status", "reason", "message", "lastTransitionTime", "observedGeneration"] {
        if old.get(key) != new.get(key) {
            changed[key] = new.get(key).cloned().unwrap_or_default();
        }
    }
    Some(changed)
}

/// Whether it can wait a moment for what is sure to come.
fn urgency(api: &Pod, old: &PodStatus, new: &PodStatus, snapshot: &PodSnapshot) -> Urgency {
    if old.phase != new.phase {
        return Urgency::Now;
    }
    // Its final phase is held back until nothing runs, or its end has been asked for.
    let ends = PodPhase::is_over(&snapshot.status) || api.metadata.deletion_timestamp.is_some();
    if ends && snapshot.stage != Stage::Finished {
        return Urgency::Soon;
    }
    if ready(old) != ready(new) && ready(new).is_some_and(|status| status == "True") {
        return Urgency::Now;
    }
    let starts = |status: &PodStatus| {
        container_statuses(status).all(|container| {
            let reason = container.state.as_ref().and_then(|s| s.waiting.as_ref()).and_then(|w| w.reason.as_deref());
            matches!(reason, Some("ContainerCreating" | "PodInitializing"))
        })
    };
    if starts(new) {
        return Urgency::Soon;
    }
    if states(old) == states(new) { Urgency::Soon } else { Urgency::Now }
}

fn ready(status: &PodStatus) -> Option<&str> {
    status.conditions.iter().flatten().find(|condition| condition.type_ == "Ready").map(|c| c.status.as_str())
}

/// What each container does, in a word.
fn states(status: &PodStatus) -> Vec<(&str, String)> {
    let word = |state: Option<&ContainerState>| match state {
        Some(ContainerState { running: Some(_), .. }) => "running".to_owned(),
        Some(ContainerState { terminated: Some(_), .. }) => "terminated".to_owned(),
        Some(ContainerState { waiting: Some(waiting), .. }) => waiting.reason.clone().unwrap_or_default(),
        _ => String::new(),
    };
    container_statuses(status).map(|container| (container.name.as_str(), word(container.state.as_ref()))).collect()
}

#[cfg(test)]
pub(super) mod tests;
