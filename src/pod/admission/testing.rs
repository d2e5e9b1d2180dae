//! A pod of a manifest made ready to run in one step, for tests.
//!
//! In: a pod as written. Out: the pod as it will be run, or the refusal. The node itself does these steps in `source` and
//! in the agent.

use k8s_openapi::api::core::v1::Pod;

use super::{NodePolicy, PodOrigin, rejection, warnings};
use crate::ids::{InvalidId, PodRef, PodUid};
use crate::pod::field::{self, FieldError};
use crate::pod::static_pod::{self, Origin};
use crate::pod::{defaults, validation};

/// A pod this node will run.
#[derive(Debug, Clone, PartialEq)]
pub struct Admitted {
    /// With identity and defaults.
    pub pod: Pod,
    /// Its UID.
    pub uid: PodUid,
    /// Its namespace and name.
    pub name: PodRef,
    /// What of it is not done on this node; for events and logs.
    pub warnings: Vec<String>,
}

/// A pod this node will not run.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// An API server would not have taken it: there is no pod.
    #[error("invalid pod: {}", field::join(.errors))]
    Invalid {
        /// Everything that is wrong.
        errors: Vec<FieldError>,
    },
    /// `metadata.uid` cannot be one.
    #[error("invalid pod: metadata.uid: {0}")]
    Uid(#[from] InvalidId),
    /// It is a pod, but not one for this node: its phase is `Failed` with this reason.
    #[error("{reason}: {message}")]
    Rejected {
        /// The pod, with identity and defaults.
        pod: Box<Pod>,
        /// `status.reason`, a kubelet's word where it has one.
        reason: &'static str,
        /// `status.message` is this behind `Pod was rejected: `.
        message: String,
    },
}

/// Prepares a pod of a manifest: identity, defaults, validation, and what this node can do.
///
/// # Errors
/// [`Refusal`] when it will not be run.
pub fn admit_static(mut pod: Pod, origin: Origin<'_>, policy: &NodePolicy) -> Result<Admitted, Refusal> {
    if pod.metadata.name.as_deref().unwrap_or("").is_empty() {
        // The kubelet asks for it before anything else: without a name there is no identity.
        let errors =
            vec![FieldError::Required { path: field::Path::new("metadata").child("name"), detail: String::new() }];
        return Err(Refusal::Invalid { errors });
    }
    let uid = static_pod::identify(&mut pod, origin)?;
    defaults::apply(&mut pod);
    let errors = validation::validate(&pod);
    if !errors.is_empty() {
        return Err(Refusal::Invalid { errors });
    }
    if let Some((reason, message)) = pod.spec.as_ref().and_then(|spec| rejection(spec, policy, PodOrigin::Manifest)) {
        return Err(Refusal::Rejected { pod: Box::new(pod), reason, message });
    }
    let name = PodRef::of(&pod);
    let warnings = pod.spec.as_ref().map(warnings).unwrap_or_default();
    Ok(Admitted { pod, uid, name, warnings })
}
