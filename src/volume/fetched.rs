//! What of a pod's volumes only the API server has: tokens, trust anchors, claims.
//!
//! In: a pod's volumes and a handle to the API server. Out: an answer for each, good or bad. Asked before a volume is made,
//! since making is blocking work. A node without a cluster, and a pod of a manifest, get none.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Volume};

use super::error::VolumeError;
use super::{VolumeContext, automatic, persistent};
use crate::objects::{ApiObjects, Change, TokenOwner};
use crate::pod::run::VolumeSpec;

/// Which tokens are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tokens {
    /// All of them.
    Now,
    /// Those that somebody wrote into the pod.
    MayWait,
}

/// Answers of the API server, by volume. Holds secrets: shows none.
#[derive(Default)]
pub struct Fetched {
    /// By volume and index of its source.
    parts: BTreeMap<(String, usize), Result<Vec<u8>, String>>,
    /// Volumes whose tokens nobody asked for yet.
    deferred: BTreeSet<String>,
    claims: BTreeMap<String, Result<Box<(PersistentVolumeClaim, PersistentVolume)>, VolumeError>>,
    /// What drivers mounted.
    pub(super) mounted: BTreeMap<String, Result<VolumeSpec, VolumeError>>,
}

impl std::fmt::Debug for Fetched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.parts.keys()).entries(self.claims.keys()).finish()
    }
}

impl Fetched {
    /// The content of one source of a projected volume.
    pub(super) fn part(&self, volume: &str, index: usize) -> Option<Result<Vec<u8>, String>> {
        self.parts.get(&(volume.to_owned(), index)).cloned()
    }

    /// Whether a volume is to be shown later: what `parts` has for it is empty.
    pub(super) fn is_deferred(&self, volume: &str) -> bool {
        self.deferred.contains(volume)
    }

    /// What a claim is bound to.
    pub(super) fn claim(&self, volume: &str) -> Option<Result<&PersistentVolume, VolumeError>> {
        self.claims.get(volume).map(|claim| claim.as_deref().map(|(_, volume)| volume).map_err(Clone::clone))
    }

    /// The claim itself.
    pub(super) fn claim_of(&self, volume: &str) -> Option<&PersistentVolumeClaim> {
        self.claims.get(volume)?.as_deref().ok().map(|(claim, _)| claim)
    }

    pub(super) async fn fetch_parts(
        &mut self,
        api: &ApiObjects,
        context: VolumeContext<'_>,
        (volume, tokens): (&Volume, Tokens),
    ) {
        let Some(projected) = &volume.projected else { return };
        let is_deferred = tokens == Tokens::MayWait && automatic::is_automatic(volume);
        if is_deferred {
            self.deferred.insert(volume.name.clone());
        }
        for (index, part) in projected.sources.iter().flatten().enumerate() {
            let answer = if part.service_account_token.is_some() && is_deferred {
                Ok(Vec::new())
            } else if let Some(source) = &part.service_account_token {
                let audience = source.audience.as_deref().unwrap_or_default();
                let token = api.token(&owner(context), audience, source.expiration_seconds).await;
                token.map(|token| token.as_bytes().to_vec())
            } else if let Some(source) = &part.cluster_trust_bundle {
                api.trust_anchors(source).await
            } else {
                continue;
            };
            self.parts.insert((volume.name.clone(), index), answer);
        }
    }

    pub(super) async fn fetch_claim(&mut self, api: &ApiObjects, context: VolumeContext<'_>, volume: &Volume) {
        let (claim, made_for) = if let Some(source) = &volume.persistent_volume_claim {
            (source.claim_name.clone(), None)
        } else if volume.ephemeral.is_some() {
            let pod = context.pod().metadata.name.as_deref().unwrap_or_default();
            (format!("{pod}-{}", volume.name), Some(context.pod()))
        } else {
            return;
        };
        let answer = claimed_volume(api, context, volume, &claim, made_for).await;
        self.claims.insert(volume.name.clone(), answer.map(Box::new));
    }
}

async fn claimed_volume(
    api: &ApiObjects,
    context: VolumeContext<'_>,
    volume: &Volume,
    claim: &str,
    made_for: Option<&Pod>,
) -> Result<(PersistentVolumeClaim, PersistentVolume), VolumeError> {
    let found = api.claimed_volume(context.namespace(), claim, made_for).await;
    let found = found.map_err(|reason| VolumeError::Unknown { name: volume.name.clone(), reason })?;
    let checked = api.check_volume_affinity(&context.downward.node.name, &found.1).await;
    let step = "MountVolume.NodeAffinity check failed";
    checked.map_err(|reason| VolumeError::mount(step, persistent::name(&found.1), reason))?;
    Ok(found)
}

/// Whether a change is one of what is fetched for this volume.
pub(super) fn is_concerned(volume: &Volume, change: &Change) -> bool {
    let sources = || volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
    matches!(change, Change::Tokens(_)) && sources().any(|part| part.service_account_token.is_some())
}

/// Whether nobody tells of changes of what it shows, so that it is asked for again and again.
pub(super) fn is_polled(volume: &Volume) -> bool {
    let mut sources = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
    sources.any(|part| part.cluster_trust_bundle.is_some())
}

pub(super) fn owner(context: VolumeContext<'_>) -> TokenOwner {
    let pod = context.pod();
    let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
    TokenOwner {
        uid: context.uid.clone(),
        name: pod.metadata.name.clone().unwrap_or_default(),
        namespace: context.namespace().to_owned(),
        service_account: account.filter(|name| !name.is_empty()).unwrap_or_else(|| "default".to_owned()),
    }
}
