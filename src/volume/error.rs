//! Why volumes are not there, in the words of the kubelet's events.
//!
//! In: what failed. Out: messages of `FailedMount`. Decides nothing.

/// Why one volume could not be set up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VolumeError {
    /// A step of mounting it failed.
    #[error("{step} for volume {name:?} : {reason}")]
    Mount {
        /// Which, as the kubelet's operation generator calls it.
        step: &'static str,
        /// `volumes[].name`, or the name of the PersistentVolume behind it.
        name: String,
        /// What is wrong, in the kubelet's words where it has some.
        reason: String,
    },
    /// It is not known what to mount: its claim is not there or not bound.
    #[error("error processing volume {name}: {reason}")]
    Unknown {
        /// `volumes[].name`.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// A controller has not attached it yet.
    #[error("volume {name} is not attached yet")]
    Attaching {
        /// `volumes[].name`.
        name: String,
    },
    /// No controller attached it in the time there is for that.
    #[error("volume {name} was not attached in time")]
    NotAttached {
        /// `volumes[].name`.
        name: String,
    },
}

impl VolumeError {
    /// A step of mounting failed.
    pub(super) fn mount(step: &'static str, name: &str, reason: impl Into<String>) -> Self {
        Self::Mount { step, name: name.to_owned(), reason: reason.into() }
    }

    /// Making the volume failed.
    pub(super) fn set_up(name: &str, reason: impl Into<String>) -> Self {
        Self::mount(SET_UP, name, reason)
    }
}

/// The step that most failures are of.
pub(super) const SET_UP: &str = "MountVolume.SetUp failed";

/// Why the volumes of a pod are not all there; never empty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.messages().join("; "))]
pub struct VolumeErrors(pub Vec<VolumeError>);

impl VolumeErrors {
    /// What the Events say: one for each mount that failed, one for all volumes that are not known.
    #[must_use]
    pub fn messages(&self) -> Vec<String> {
        let mut messages = Vec::new();
        let (mut names, mut reasons) = (Vec::new(), Vec::new());
        for error in &self.0 {
            match error {
                VolumeError::Mount { .. } => messages.push(error.to_string()),
                // The attach-detach controller tells what it does.
                VolumeError::Attaching { .. } => {}
                VolumeError::NotAttached { name } => messages.push(format!(
                    "Unable to attach or mount volumes: unmounted volumes=[{name}], unattached volumes=[{name}], failed \
                     to process volumes=[]: context deadline exceeded"
                )),
                VolumeError::Unknown { name, reason } => {
                    names.push(name.as_str());
                    reasons.push(reason.as_str());
                }
            }
        }
        if !names.is_empty() {
            names.sort_unstable();
            let names = names.join(" ");
            messages.push(format!(
                "Unable to attach or mount volumes: unmounted volumes=[{names}], unattached volumes=[], failed to \
                 process volumes=[{names}]: {}",
                reasons.join("; ")
            ));
        }
        messages
    }

    /// Whether all that is missing may be there at any moment, without this node's doing: claims that are not bound,
    /// volumes that are not attached.
    #[must_use]
    pub fn are_of_others(&self) -> bool {
        self.0.iter().all(|error| !matches!(error, VolumeError::Mount { .. }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_those_of_the_kubelets_events() {
        let unknown = |name: &str, reason: &str| VolumeError::Unknown { name: name.into(), reason: reason.into() };
        let errors = VolumeErrors(vec![
            unknown("data", "error processing PVC ns/data: PVC is not bound"),
            VolumeError::set_up("cfg", "configmap \"c\" not found"),
            unknown("a", "error processing PVC ns/a: PVC is being deleted"),
        ]);
        assert_eq!(
            errors.messages(),
            [
                "MountVolume.SetUp failed for volume \"cfg\" : configmap \"c\" not found",
                "Unable to attach or mount volumes: unmounted volumes=[a data], unattached volumes=[], failed to process \
                 volumes=[a data]: error processing PVC ns/data: PVC is not bound; error processing PVC ns/a: PVC is being deleted"
            ]
        );
        assert!(!errors.are_of_others());
        assert!(VolumeErrors(vec![unknown("a", "x")]).are_of_others());
    }
}
