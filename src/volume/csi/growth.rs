//! Whether a volume is to be expanded on this node, and what its claim says then: pure decisions.
//!
//! In: a claim, its PersistentVolume, what this node knows of the volume's size. Out: what to do, patches of the claim's
//! status. As the kubelet's `node_expander.go` and, for controllers that know no recovery, its legacy path.

use k8s_openapi::api::core::v1::{
    PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimCondition, PersistentVolumeClaimStatus,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use crate::pod::quantity::Quantity;

const STORAGE: &str = "storage";
const IN_PROGRESS: &str = "NodeResizeInProgress";
const INFEASIBLE: &str = "NodeResizeInfeasible";
const NODE_ERROR: &str = "NodeResizeError";
/// What the conditions about a resize are called.
const RESIZE_CONDITIONS: [&str; 4] = ["FileSystemResizePending", "Resizing", "ControllerResizeError", NODE_ERROR];
/// A driver's controller says by it that nodes have nothing to do.
const NOT_REQUIRED: &str = "volume.kubernetes.io/node-expansion-not-required";

/// What this node knows of one volume.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// Its size here, in bytes; 0 before a claim said one.
    pub(super) bytes: i64,
    /// The driver expands none that is in use.
    pub(super) not_in_use: bool,
    /// An expansion failed for good.
    pub(super) failed: bool,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Step {
    /// It has its size, or the controller's part is not done.
    Nothing,
    /// It counts as expanded: others did it all.
    Assume { size: ApiQuantity },
    /// The driver is to expand it.
    Expand(Expansion),
}

/// How.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Expansion {
    /// To what.
    pub(super) size: ApiQuantity,
    /// What the claim is told.
    pub(super) telling: Telling,
    /// A failure is the controller's to deal with: somebody asked for another size since.
    pub(super) infeasible_on_failure: bool,
}

/// What the claim's status is told of an expansion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Telling {
    /// Its beginning, its end, its failure.
    All,
    /// Its end: the controller is older than the rest.
    End,
    /// Nothing: it says so already, by another node's doing.
    Nothing,
}

/// Bytes of a size; 0 for none.
pub(super) fn bytes(size: Option<&ApiQuantity>) -> i64 {
    size.and_then(|size| Quantity::from_api(size).ok()).map_or(0, Quantity::value)
}

/// What the claim says its volume has.
pub(super) fn claimed(claim: &PersistentVolumeClaim) -> i64 {
    bytes(claim.status.as_ref().and_then(|status| status.capacity.as_ref()?.get(STORAGE)))
}

/// What is to be done about a volume that is mounted, or about to be.
pub(super) fn step(claim: &PersistentVolumeClaim, volume: &PersistentVolume, known: Known) -> Step {
    let capacity = volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref()?.get(STORAGE));
    let (Some(capacity), true) = (capacity, known.bytes > 0 && !known.not_in_use) else { return Step::Nothing };
    if bytes(Some(capacity)) <= known.bytes {
        return Step::Nothing;
    }
    let status = claim.status.as_ref();
    let phase = status.and_then(|status| status.allocated_resource_statuses.as_ref()?.get(STORAGE));
    let allocated = status.and_then(|status| status.allocated_resources.as_ref());
    let Some(size) = allocated.and_then(|all| all.get(STORAGE)) else {
        if phase.is_some() || allocated.is_some() {
            return Step::Nothing;
        }
        let telling = if claimed(claim) < bytes(Some(capacity)) { Telling::End } else { Telling::Nothing };
        return Step::Expand(Expansion { size: capacity.clone(), telling, infeasible_on_failure: false });
    };
    let expand = |telling| {
        let requested = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref()?.requests.as_ref()?.get(STORAGE));
        let infeasible_on_failure = known.failed && bytes(requested) != bytes(Some(size));
        Step::Expand(Expansion { size: size.clone(), telling, infeasible_on_failure })
    };
    match phase.map(String::as_str) {
        Some("NodeResizePending" | IN_PROGRESS) => expand(Telling::All),
        None if claimed(claim) >= bytes(Some(size)) => {
            let modes = claim.spec.as_ref().and_then(|spec| spec.access_modes.as_ref());
            let by_many = modes.is_some_and(|modes| modes.iter().any(|mode| mode == "ReadWriteMany"));
            let annotations = claim.metadata.annotations.as_ref();
            if by_many && annotations.is_none_or(|all| !all.contains_key(NOT_REQUIRED)) {
                expand(Telling::Nothing)
            } else {
                Step::Assume { size: size.clone() }
            }
        }
        _ => Step::Nothing,
    }
}

/// The patch that says an expansion began.
pub(super) fn began(claim: &PersistentVolumeClaim) -> Value {
    patch(claim, json!({"allocatedResourceStatuses": {STORAGE: IN_PROGRESS}}))
}

/// The patch that says it is done: the new size, and no word of a resize.
pub(super) fn finished(claim: &PersistentVolumeClaim, size: &ApiQuantity) -> Value {
    let rest = conditions(claim).filter(|condition| !RESIZE_CONDITIONS.contains(&condition.type_.as_str()));
    let rest: Vec<_> = rest.collect();
    let status = claim.status.as_ref();
    let mut change = json!({"capacity": {STORAGE: size}, "conditions": rest});
    if status.is_some_and(|status| status.allocated_resource_statuses.is_some()) {
        change["allocatedResourceStatuses"] = json!({STORAGE: null});
    }
    patch(claim, change)
}

/// The patch that says it failed; for good where the controller has to see to it.
pub(super) fn failed(claim: &PersistentVolumeClaim, reason: &str, infeasible: bool, now: jiff::Timestamp) -> Value {
    let mut all: Vec<_> = conditions(claim).cloned().collect();
    // One that is there already stays as it was, its time too.
    if !all.iter().any(|condition| condition.type_ == NODE_ERROR && condition.status == "True") {
        all.retain(|condition| condition.type_ != NODE_ERROR);
        all.push(PersistentVolumeClaimCondition {
            type_: NODE_ERROR.to_owned(),
            status: "True".to_owned(),
            last_transition_time: Some(Time(now)),
            message: Some(format!("failed to expand pvc with {reason}")),
            ..PersistentVolumeClaimCondition::default()
        });
    }
    let mut change = json!({"conditions": all});
    if infeasible {
        change["allocatedResourceStatuses"] = json!({STORAGE: INFEASIBLE});
    }
    patch(claim, change)
}

fn conditions(claim: &PersistentVolumeClaim) -> impl Iterator<Item = &PersistentVolumeClaimCondition> {
    let status: Option<&PersistentVolumeClaimStatus> = claim.status.as_ref();
    status.into_iter().flat_map(|status| status.conditions.iter().flatten())
}

/// Refused when the claim changed since it was read: then it is looked at anew.
fn patch(claim: &PersistentVolumeClaim, status: Value) -> Value {
    json!({"metadata": {"resourceVersion": claim.metadata.resource_version}, "status": status})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(more: Value) -> PersistentVolumeClaim {
        let mut claim = json!({
            "metadata": {"name": "c", "resourceVersion": "7"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}}},
            "status": {"capacity": {"storage": "1Gi"}},
        });
        merge(&mut claim, more);
        serde_json::from_value(claim).unwrap()
    }

    fn merge(into: &mut Value, more: Value) {
        match (into, more) {
            (Value::Object(into), Value::Object(more)) => {
                for (key, value) in more {
                    merge(into.entry(key).or_insert(Value::Null), value);
                }
            }
            (into, more) => *into = more,
        }
    }

    fn volume(capacity: &str) -> PersistentVolume {
        serde_json::from_value(json!({"metadata": {"name": "pv"}, "spec": {"capacity": {"storage": capacity}}}))
            .unwrap()
    }

    const GIB: i64 = 1 << 30;

    #[test]
    fn a_volume_is_expanded_when_the_controller_has_done_its_part_and_this_node_has_not() {
        let status = |phase: &str| json!({"status": {"allocatedResources": {"storage": "2Gi"}, "allocatedResourceStatuses": {"storage": phase}}});
        let done = || json!({"status": {"capacity": {"storage": "2Gi"}, "allocatedResources": {"storage": "2Gi"}}});
        let many = |more: Value| {
            let mut all = done();
            merge(&mut all, json!({"spec": {"accessModes": ["ReadWriteMany"]}}));
            merge(&mut all, more);
            all
        };
        let expand = |telling| {
            Step::Expand(Expansion { size: ApiQuantity("2Gi".to_owned()), telling, infeasible_on_failure: false })
        };
        let assume = Step::Assume { size: ApiQuantity("2Gi".to_owned()) };
        let here = Known { bytes: GIB, ..Known::default() };
        for (case, claimed, capacity, known, expected) in [
            ("of its size", json!({}), "1Gi", here, Step::Nothing),
            ("smaller than it is", json!({}), "512Mi", here, Step::Nothing),
            ("not known here", status("NodeResizePending"), "2Gi", Known::default(), Step::Nothing),
            ("pending", status("NodeResizePending"), "2Gi", here, expand(Telling::All)),
            ("begun before a restart", status(IN_PROGRESS), "2Gi", here, expand(Telling::All)),
            ("the controller is at it", status("ControllerResizeInProgress"), "2Gi", here, Step::Nothing),
            ("given up", status(INFEASIBLE), "2Gi", here, Step::Nothing),
            ("the controller did it all", done(), "2Gi", here, assume),
            ("another node did it", many(json!({})), "2Gi", here, expand(Telling::Nothing)),
            (
                "the driver needs no node",
                many(json!({"metadata": {"annotations": {NOT_REQUIRED: ""}}})),
                "2Gi",
                here,
                Step::Assume { size: ApiQuantity("2Gi".to_owned()) },
            ),
            ("an older controller", json!({}), "2Gi", here, expand(Telling::End)),
            (
                "the driver refuses while it is in use",
                status("NodeResizePending"),
                "2Gi",
                Known { not_in_use: true, ..here },
                Step::Nothing,
            ),
        ] {
            assert_eq!(step(&claim(claimed), &volume(capacity), known), expected, "{case}");
        }
        let smaller = json!({"spec": {"resources": {"requests": {"storage": "1500Mi"}}}});
        let mut wanted = status("NodeResizePending");
        merge(&mut wanted, smaller);
        let Step::Expand(expansion) = step(&claim(wanted), &volume("2Gi"), Known { failed: true, ..here }) else {
            panic!("it is tried once more")
        };
        assert!(expansion.infeasible_on_failure, "then the user's new wish is the controller's");
    }

    #[test]
    fn the_claim_is_told_the_beginning_the_end_and_why_not() {
        let pending = json!({"status": {
            "allocatedResources": {"storage": "2Gi"}, "allocatedResourceStatuses": {"storage": "NodeResizePending"},
            "conditions": [{"type": "FileSystemResizePending", "status": "True"}, {"type": "Mine", "status": "True"}]}});
        let claim = claim(pending);
        assert_eq!(
            began(&claim),
            json!({"metadata": {"resourceVersion": "7"}, "status": {"allocatedResourceStatuses": {"storage": "NodeResizeInProgress"}}})
        );
        assert_eq!(
            finished(&claim, &ApiQuantity("2Gi".to_owned()))["status"],
            json!({"capacity": {"storage": "2Gi"}, "conditions": [{"type": "Mine", "status": "True"}], "allocatedResourceStatuses": {"storage": null}})
        );
        let now = jiff::Timestamp::UNIX_EPOCH;
        let told = failed(&claim, "no room", true, now);
        assert_eq!(told["status"]["allocatedResourceStatuses"]["storage"], "NodeResizeInfeasible");
        assert_eq!(told["status"]["conditions"][2]["message"], "failed to expand pvc with no room");
        assert_eq!(failed(&claim, "no room", false, now)["status"].get("allocatedResourceStatuses"), None);
    }
}
