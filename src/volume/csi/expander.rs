//! Expanding a driver's volume that grew: asked of the driver, told to the claim.
//!
//! In: a volume that is mounted for a pod, its claim. Out: what users are told, or why it failed, in the kubelet's words
//! (`volume/csi/expander.go`, `operationexecutor`).

use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolumeClaim};
use tonic::Code;

use super::growth::{self, Expansion, Known, Step, Telling};
use super::mounter::{Parts, Source, Wanted};
use super::record;
use super::request::Can;
use super::wire::{CapacityRange, ExpandRequest};
use super::{Csi, told};
use crate::events::{EventType, claim_reference};
use crate::objects::ApiObjects;

/// What a pod, and its claim, are told of a volume.
#[derive(Debug, Clone, PartialEq)]
pub struct VolumeNotice {
    /// How it went.
    pub kind: EventType,
    /// `FileSystemResizeSuccessful`...
    pub reason: &'static str,
    /// The words.
    pub message: String,
    /// The claim, when it is told as well.
    pub claim: Option<ObjectReference>,
}

/// Why a volume was not expanded.
struct Failure {
    reason: String,
    class: Class,
}

/// What follows from a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// It may have happened, or will when it is tried again.
    Open,
    /// The driver will not.
    Final,
    /// And no node's will: the size is wrong.
    Infeasible,
    /// The driver cannot.
    Unsupported,
    /// Not while a pod has it.
    InUse,
}

impl Csi {
    /// Expands a mounted volume whose PersistentVolume is larger than it is known to be here.
    ///
    /// # Errors
    /// The kubelet's words.
    pub(in crate::volume) async fn expand(
        &self,
        api: &ApiObjects,
        wanted: &Wanted<'_>,
        claim: &PersistentVolumeClaim,
    ) -> Result<Option<VolumeNotice>, String> {
        let Source::Persistent { volume, .. } = wanted.source else { return Ok(None) };
        let parts = wanted.parts();
        let unique = parts.unique_name();
        let lock = self.lock_of(&unique);
        let _alone = lock.lock().await;
        let known = {
            let mut sizes = self.inner.sizes.lock();
            let known = sizes.entry(unique.clone()).or_default();
            if known.bytes == 0 {
                known.bytes = growth::claimed(claim);
            }
            *known
        };
        let note = |known: Known| {
            self.inner.sizes.lock().insert(unique.clone(), known);
        };
        let expansion = match growth::step(claim, volume, known) {
            Step::Nothing => return Ok(None),
            Step::Assume { size } => {
                note(Known { bytes: growth::bytes(Some(&size)), ..known });
                return Ok(None);
            }
            Step::Expand(expansion) => expansion,
        };
        if parts.read_only {
            let message = format!(
                "MountVolume.NodeExpandVolume failed for volume {:?} requested read-only file system",
                parts.name
            );
            let claim = Some(claim_reference(claim));
            return Ok(Some(VolumeNotice {
                kind: EventType::Warning,
                reason: "FileSystemResizeFailed",
                message,
                claim,
            }));
        }
        let mut claim = claim.clone();
        if expansion.telling == Telling::All {
            claim = tell(api, &claim, &growth::began(&claim)).await?;
        }
        if let Err(failure) = self.ask(api, wanted, &parts, &expansion).await {
            return match failure.class {
                Class::Unsupported if expansion.telling != Telling::All => {
                    note(Known { bytes: growth::bytes(Some(&expansion.size)), ..known });
                    Ok(None)
                }
                class => {
                    let now = Known { not_in_use: class == Class::InUse, failed: class != Class::Open, ..known };
                    note(now);
                    if class != Class::Open && expansion.telling == Telling::All {
                        let infeasible = class == Class::Infeasible || expansion.infeasible_on_failure;
                        let patch = growth::failed(&claim, &failure.reason, infeasible, jiff::Timestamp::now());
                        // The failure itself is what is told.
                        if let Err(error) = tell(api, &claim, &patch).await {
                            tracing::warn!(volume = unique, err = error, "Failed to tell a claim of its volume");
                        }
                    }
                    if class == Class::InUse { Ok(None) } else { Err(failure.reason) }
                }
            };
        }
        note(Known { bytes: growth::bytes(Some(&expansion.size)), not_in_use: false, failed: false });
        if expansion.telling != Telling::Nothing {
            let patch = growth::finished(&claim, &expansion.size);
            let told = tell(api, &claim, &patch).await;
            if let Err(error) = told {
                // It is done again, which costs nothing, until the claim could be told.
                note(known);
                return Err(format!("mountVolume.NodeExpandVolume update pvc status failed: {error}"));
            }
        }
        let message = format!("MountVolume.NodeExpandVolume succeeded for volume {:?} {}", parts.name, wanted.node);
        let claim = Some(claim_reference(&claim));
        Ok(Some(VolumeNotice { kind: EventType::Normal, reason: "FileSystemResizeSuccessful", message, claim }))
    }

    /// Has the driver expand it.
    async fn ask(
        &self,
        api: &ApiObjects,
        wanted: &Wanted<'_>,
        parts: &Parts<'_>,
        expansion: &Expansion,
    ) -> Result<(), Failure> {
        let fail = |class, reason: String| Failure { reason, class };
        let open = |reason: String| fail(Class::Open, reason);
        let socket = self.inner.drivers.socket(parts.driver).map_err(open)?;
        let can = socket.capabilities().await;
        let can = can.map_err(|error| {
            open(format!("Expander.NodeExpand failed to check if node supports expansion : {error}"))
        })?;
        let can = Can(can);
        if !can.expand() {
            let reason = format!("NodeExpand is not supported by the CSI driver {}", parts.driver);
            return Err(fail(Class::Unsupported, reason));
        }
        let reference = match wanted.source {
            Source::Persistent { csi, .. } => csi.node_expand_secret_ref.as_ref(),
            Source::Inline(_) => None,
        };
        let secrets = match reference {
            Some(reference) => {
                let namespace = reference.namespace.as_deref().unwrap_or_default();
                let name = reference.name.as_deref().unwrap_or_default();
                let found = api.volume_secret(namespace, name).await;
                found.map_err(|error| {
                    let what = "expander.NodeExpand failed to get NodeExpandSecretRef";
                    fail(Class::Final, format!("{what} {namespace}/{name}: {error}"))
                })?
            }
            None => std::collections::HashMap::new(),
        };
        let request = ExpandRequest {
            volume_id: parts.handle.clone(),
            volume_path: record::pod_dir(&wanted.pod_root, &parts.name).join("mount").display().to_string(),
            capacity_range: Some(CapacityRange { required_bytes: growth::bytes(Some(&expansion.size)) }),
            staging_target_path: record::global_dir(&self.inner.root, parts.driver, &parts.handle)
                .join("globalmount")
                .display()
                .to_string(),
            volume_capability: Some(can.capability(parts.mode(), parts.fs_type, parts.options, None)),
            secrets,
        };
        let Err(error) = socket.expand(request).await else { return Ok(()) };
        let (class, what) = match error.code {
            Code::FailedPrecondition => (Class::InUse, "Expander.NodeExpand failed to expand the volume :"),
            Code::InvalidArgument | Code::OutOfRange | Code::NotFound => {
                (Class::Infeasible, "Expander.NodeExpand failed to expand the volume")
            }
            _ if error.is_final() => (Class::Final, "Expander.NodeExpand failed to expand the volume :"),
            _ => (Class::Open, "Expander.NodeExpand failed to expand the volume :"),
        };
        Err(fail(class, format!("{what} {error}")))
    }
}

async fn tell(
    api: &ApiObjects,
    claim: &PersistentVolumeClaim,
    patch: &serde_json::Value,
) -> Result<PersistentVolumeClaim, String> {
    let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
    let name = claim.metadata.name.as_deref().unwrap_or_default();
    let told_it = api.patch_claim_status(namespace, name, patch).await;
    told_it.map_err(|error| told("failed to patch the claim", &format!("PVC {name:?}: {error}")))
}
