//! Volumes of claims that grew: who is asked, when.
//!
//! In: a pod whose volumes are mounted, its claims as the API server has them now. Out: notices, and a mount that failed
//! for it. Only drivers expand anything: a directory of the node has no size of its own.

use super::csi::{Source, VolumeNotice};
use super::error::VolumeError;
use super::{Fetched, VolumeContext, VolumeManager, driver_source, persistent, volumes};
use crate::events::EventType;
use crate::objects::ObjectOrigin;

/// When a volume is expanded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// With its mount, which fails with it.
    Mounting,
    /// While a pod has it.
    Mounted,
}

impl VolumeManager {
    /// Has drivers expand the volumes whose PersistentVolumes are larger than what is mounted. To come after
    /// [`Self::mount`], and again now and then.
    pub async fn expand(&self, context: VolumeContext<'_>, fetched: &mut Fetched, moment: Moment) -> Vec<VolumeNotice> {
        let (ObjectOrigin::ApiServer, Some(api)) = (context.origin, self.inner.objects.api()) else {
            return Vec::new();
        };
        let (mut notices, mut failed) = (Vec::new(), Vec::new());
        for volume in volumes(context.downward.pod) {
            let source = driver_source(volume, fetched);
            let (Some(source @ Source::Persistent { volume: given, .. }), Some(claim)) =
                (source, fetched.claim_of(&volume.name))
            else {
                continue;
            };
            let is_mounted = moment == Moment::Mounted || matches!(fetched.mounted.get(&volume.name), Some(Ok(_)));
            if !is_mounted {
                continue;
            }
            let wanted = self.wanted(context, volume, source);
            let name = persistent::name(given);
            match (self.inner.csi.expand(api, &wanted, claim).await, moment) {
                // What a pod only reads is not looked at again and again.
                (Ok(Some(notice)), Moment::Mounted) if notice.kind == EventType::Warning => {}
                (Ok(notice), _) => notices.extend(notice),
                (Err(reason), Moment::Mounting) => {
                    let step = "MountVolume.Setup failed while expanding volume";
                    failed.push((volume.name.clone(), VolumeError::mount(step, name, reason)));
                }
                (Err(reason), Moment::Mounted) => notices.push(VolumeNotice {
                    kind: EventType::Warning,
                    reason: "VolumeResizeFailed",
                    message: format!("NodeExpandVolume.NodeExpandVolume failed for volume {name:?} : {reason}"),
                    claim: None,
                }),
            }
        }
        for (name, error) in failed {
            fetched.mounted.insert(name, Err(error));
        }
        notices
    }
}
