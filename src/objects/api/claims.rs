//! From a claim to the volume it is bound to, as the kubelet's `getPVCExtractPV` and `getPVSpec`.
//!
//! In: a PersistentVolumeClaim's name. Out: its PersistentVolume, or the kubelet's words why not. Asked each time: a node
//! may read the claims of its pods, but not watch them by name alone.

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use kube::Api;
use kube::api::{Patch, PatchParams};

use super::ApiObjects;
use super::errors::words;
use crate::pod::admission::affinity::any_term_selects;

/// A claim with this finalizer that is being deleted is still in use, rightly.
const PROTECTION: &str = "kubernetes.io/pvc-protection";

impl ApiObjects {
    /// A claim in the pod's namespace and its volume. `made_for` is the pod when the claim is that of an `ephemeral`
    /// volume and must be its own.
    ///
    /// # Errors
    /// The kubelet's words.
    pub async fn claimed_volume(
        &self,
        namespace: &str,
        claim: &str,
        made_for: Option<&Pod>,
    ) -> Result<(PersistentVolumeClaim, PersistentVolume), String> {
        let failed = |reason: String| format!("error processing PVC {namespace}/{claim}: {reason}");
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.inner.client.clone(), namespace);
        let found = claims.get(claim).await;
        let found = found.map_err(|error| failed(format!("failed to fetch PVC from API server: {}", words(&error))))?;
        let volume = bound_volume(&found).map_err(|reason| failed(reason.to_owned()))?;
        if let Some(pod) = made_for {
            check_owner(&found, pod)?;
        }
        let volumes: Api<PersistentVolume> = Api::all(self.inner.client.clone());
        let given = volumes.get(volume).await;
        let given =
            given.map_err(|error| failed(format!("failed to fetch PV {volume} from API server: {}", words(&error))))?;
        check_bound(&given, &found).map_err(failed)?;
        Ok((found, given))
    }

    /// Changes the status of a claim; gives it as it is then.
    ///
    /// # Errors
    /// The API server's words.
    pub async fn patch_claim_status(
        &self,
        namespace: &str,
        name: &str,
        patch: &serde_json::Value,
    ) -> Result<PersistentVolumeClaim, String> {
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.inner.client.clone(), namespace);
        let patched = claims.patch_status(name, &PatchParams::default(), &Patch::Merge(patch)).await;
        patched.map_err(|error| words(&error))
    }

    /// Whether a persistent volume may be used on this node by its `nodeAffinity`.
    ///
    /// # Errors
    /// The kubelet's words, or the API server's when it does not give the Node.
    pub async fn check_volume_affinity(&self, node: &str, volume: &PersistentVolume) -> Result<(), String> {
        let affinity = volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref());
        let Some(required) = affinity.and_then(|affinity| affinity.required.as_ref()) else { return Ok(()) };
        let nodes: Api<Node> = Api::all(self.inner.client.clone());
        let found = nodes.get(node).await.map_err(|error| words(&error))?;
        let labels = found.metadata.labels.unwrap_or_default();
        if any_term_selects(&required.node_selector_terms, node, &labels) {
            return Ok(());
        }
        Err("no matching NodeSelectorTerms".to_owned())
    }
}

/// The name of the volume a claim is bound to.
fn bound_volume(claim: &PersistentVolumeClaim) -> Result<&str, &'static str> {
    let protected = claim.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == PROTECTION);
    if claim.metadata.deletion_timestamp.is_some() && !protected {
        return Err("PVC is being deleted");
    }
    if claim.status.as_ref().and_then(|status| status.phase.as_deref()) != Some("Bound") {
        return Err("PVC is not bound");
    }
    let name = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default();
    if name.is_empty() { Err("PVC has empty pvc.Spec.VolumeName") } else { Ok(name) }
}

fn check_owner(claim: &PersistentVolumeClaim, pod: &Pod) -> Result<(), String> {
    let owners = claim.metadata.owner_references.iter().flatten();
    let mut controllers = owners.filter(|owner| owner.controller == Some(true));
    if controllers.any(|owner| Some(&owner.uid) == pod.metadata.uid.as_ref()) {
        return Ok(());
    }
    let name = |metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta| {
        let (namespace, name) = (metadata.namespace.as_deref(), metadata.name.as_deref());
        format!("{}/{}", namespace.unwrap_or_default(), name.unwrap_or_default())
    };
    let (claim, pod) = (name(&claim.metadata), name(&pod.metadata));
    Err(format!("PVC {claim} was not created for pod {pod} (pod is not owner)"))
}

fn check_bound(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Result<(), String> {
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    let Some(reference) = reference else {
        return Err(format!(
            "found PV object {name} but it has a nil pv.Spec.ClaimRef indicating it is not yet bound to the claim"
        ));
    };
    if reference.uid == claim.metadata.uid {
        return Ok(());
    }
    let text = |uid: &Option<String>| uid.clone().unwrap_or_default();
    Err(format!(
        "found PV object {name} but its pv.Spec.ClaimRef.UID {} does not point to claim.UID {}",
        text(&reference.uid),
        text(&claim.metadata.uid)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn claim(value: Value) -> PersistentVolumeClaim {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn only_a_bound_claim_has_a_volume() {
        let spec = json!({"volumeName": "pv-1"});
        for (case, value, expected) in [
            ("bound", json!({"metadata": {}, "spec": spec, "status": {"phase": "Bound"}}), Ok("pv-1")),
            ("pending", json!({"metadata": {}, "spec": spec, "status": {"phase": "Pending"}}), Err("PVC is not bound")),
            ("nothing yet", json!({"metadata": {}, "spec": {}}), Err("PVC is not bound")),
            (
                "bound to nothing",
                json!({"metadata": {}, "spec": {}, "status": {"phase": "Bound"}}),
                Err("PVC has empty pvc.Spec.VolumeName"),
            ),
            (
                "going",
                json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": spec, "status": {"phase": "Bound"}}),
                Err("PVC is being deleted"),
            ),
            (
                "going, but in use",
                json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [PROTECTION]},
                    "spec": spec, "status": {"phase": "Bound"}}),
                Ok("pv-1"),
            ),
        ] {
            assert_eq!(bound_volume(&claim(value)), expected, "{case}");
        }
    }

    #[test]
    fn a_claim_of_an_ephemeral_volume_belongs_to_its_pod() {
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "ns", "uid": "u"}})).unwrap();
        let owned = |uid: &str| {
            let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": "web", "uid": uid, "controller": true});
            claim(json!({"metadata": {"name": "web-v", "namespace": "ns", "ownerReferences": [owner]}}))
        };
        assert_eq!(check_owner(&owned("u"), &pod), Ok(()));
        let error = check_owner(&owned("other"), &pod).unwrap_err();
        assert_eq!(error, "PVC ns/web-v was not created for pod ns/web (pod is not owner)");
    }

    #[test]
    fn a_volume_must_point_back_to_the_claim() {
        let claim = claim(json!({"metadata": {"uid": "u"}}));
        let volume = |spec: Value| -> PersistentVolume {
            serde_json::from_value(json!({"metadata": {"name": "pv"}, "spec": spec})).unwrap()
        };
        assert_eq!(check_bound(&volume(json!({"claimRef": {"uid": "u"}})), &claim), Ok(()));
        let error = check_bound(&volume(json!({"claimRef": {"uid": "x"}})), &claim).unwrap_err();
        assert_eq!(error, "found PV object pv but its pv.Spec.ClaimRef.UID x does not point to claim.UID u");
        assert!(check_bound(&volume(json!({})), &claim).unwrap_err().contains("nil pv.Spec.ClaimRef"));
    }
}
