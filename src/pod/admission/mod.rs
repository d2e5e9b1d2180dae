//! Whether a valid pod can be run on this node, and what of it has no meaning here.
//!
//! In: a pod as it will be run, what the node allows and has, the pods it runs. Out: warnings, or the refusal. What an API
//! server would refuse is `validation`'s.
//!
//! The rule for fields that mean nothing to WebAssembly: what asks for *less* isolation than a guest has anyway
//! (`privileged`, `hostPID`, `hostIPC`, capabilities, devices ...) is accepted and changes nothing; what asks for *more*
//! than this node gives (another sandbox by `runtimeClassName`, a custom seccomp or AppArmor profile, unsafe sysctls) is
//! refused, because the pod would be less isolated than it asked for.
//!
//! | part | decides |
//! |---|---|
//! | [`fit`], [`requests`] | room: resources, ports |
//! | [`affinity`] | whether the pod wants such a node, and tolerates it |
//! | [`preemption`] | who makes room for a critical pod |

pub mod affinity;
pub mod fit;
pub mod preemption;
pub mod requests;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use k8s_openapi::api::core::v1::{Container, Node, Pod, PodSpec, Taint};

use self::fit::{Allocatable, Insufficient, NodePorts, Resident};
use super::container::signal_number;
use super::qos::{self, QosClass};
use super::sandbox::{check_handler, runtime_class};
use super::static_pod::is_static;
use super::sysctl;
use super::volumes::{self, source_types};

#[cfg(test)]
pub use self::testing::{Admitted, Refusal, admit_static};

/// What this node allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodePolicy {
    /// Whether pods may use the node's own network.
    pub host_network: HostNetwork,
    /// Which ports of pods are the node's.
    pub node_ports: NodePorts,
}

impl Default for NodePolicy {
    /// Host networking as a node's admin expects of a kubelet.
    fn default() -> Self {
        Self { host_network: HostNetwork::Allowed, node_ports: NodePorts::HostPorts }
    }
}

/// Whether `hostNetwork: true` is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostNetwork {
    /// It is.
    Allowed,
    /// It is refused.
    Denied,
}

/// What a pod is admitted to.
#[derive(Debug, Clone, Copy)]
pub struct NodeView<'a> {
    /// The node's name.
    pub name: &'a str,
    /// What it allows.
    pub policy: &'a NodePolicy,
    /// The newest Node object: labels and taints. `None` before there is one, and on a node without a cluster: then
    /// nobody can have chosen by them.
    pub node: Option<&'a Node>,
    /// What pods can have of it.
    pub allocatable: &'a Allocatable,
    /// What it is short of.
    pub pressure: Pressure,
    /// Whether the machine is going down.
    pub is_shutting_down: bool,
}

/// What a node is short of; each is a condition of the Node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pressure {
    /// `MemoryPressure`.
    pub memory: bool,
    /// `DiskPressure`.
    pub disk: bool,
    /// `PIDPressure`.
    pub pid: bool,
}

impl Pressure {
    /// The conditions that are true.
    #[must_use]
    pub fn conditions(self) -> Vec<&'static str> {
        let all = [("MemoryPressure", self.memory), ("DiskPressure", self.disk), ("PIDPressure", self.pid)];
        all.into_iter().filter_map(|(name, is_true)| is_true.then_some(name)).collect()
    }
}

/// Why a pod will not be run: its phase is `Failed`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct Rejection {
    /// `status.reason`, a kubelet's word where it has one.
    pub reason: String,
    /// `status.message` is this behind `Pod was rejected: `.
    pub message: String,
    /// What there is too little of, when that is the only reason: a critical pod is run after its
    /// [`preemption::victims`] have ended.
    pub missing: Vec<Insufficient>,
}

impl Rejection {
    fn new(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self { reason: reason.into(), message: message.into(), missing: Vec::new() }
    }
}

/// Whether a pod with identity and defaults is run on this node: what of it is not done, for events and logs.
///
/// `others` are the pods that were admitted and have not ended (not Failed, not Succeeded, no longer than their workers
/// live), without this one. Checks are in the kubelet's order, the first that fails is the reason.
///
/// # Errors
/// [`Rejection`].
pub fn admit_pod(pod: &Pod, view: &NodeView<'_>, others: &[&Resident]) -> Result<Vec<String>, Rejection> {
    let Some(spec) = &pod.spec else { return Ok(Vec::new()) };
    if let Some(refusal) = refused_under_pressure(pod, spec, view.pressure) {
        return Err(refusal);
    }
    let source = if is_static(pod) { PodOrigin::Manifest } else { PodOrigin::ApiServer };
    if let Some((reason, message)) = rejection(spec, view.policy, source) {
        return Err(Rejection::new(reason, message));
    }
    if let Some(refusal) = refused_by_predicates(pod, spec, view, others) {
        return Err(refusal);
    }
    if view.is_shutting_down {
        return Err(Rejection::new("NodeShutdown", "Pod was rejected as the node is shutting down."));
    }
    Ok(warnings(spec))
}

/// What becomes of a new pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It runs.
    Admitted {
        /// What of it is not done on this node.
        warnings: Vec<String>,
    },
    /// It is critical, and runs when these have made room; they end as [`preemption::PREEMPTING`].
    AfterPreemption {
        /// UIDs of the pods that go.
        victims: Vec<String>,
    },
    /// It fails.
    Rejected(Rejection),
}

/// [`admit_pod`], and who makes room for a critical pod that there is no room for.
#[must_use]
pub fn decide(pod: &Pod, view: &NodeView<'_>, others: &[&Resident]) -> Decision {
    let rejection = match admit_pod(pod, view, others) {
        Ok(warnings) => return Decision::Admitted { warnings },
        Err(rejection) if rejection.missing.is_empty() || !preemption::is_critical(pod) => {
            return Decision::Rejected(rejection);
        }
        Err(rejection) => rejection,
    };
    let others: Vec<&Pod> = others.iter().map(|other| &*other.pod).collect();
    match preemption::victims(pod, &rejection.missing, &others) {
        Ok(victims) => {
            let uid = |pod: &&Pod| pod.metadata.uid.clone();
            Decision::AfterPreemption { victims: victims.iter().filter_map(uid).collect() }
        }
        Err(problem) => Decision::Rejected(Rejection::new(
            "UnexpectedAdmissionError",
            format!(
                "Unexpected error while attempting to recover from admission failure: preemption: error finding a set of \
                 pods to preempt: {problem}"
            ),
        )),
    }
}

/// The kubelet's eviction manager: under memory pressure alone, pods that ask for memory are welcome.
fn refused_under_pressure(pod: &Pod, spec: &PodSpec, pressure: Pressure) -> Option<Rejection> {
    let conditions = pressure.conditions();
    if conditions.is_empty() || preemption::is_critical(pod) {
        return None;
    }
    if conditions == ["MemoryPressure"] {
        let taint = Taint {
            key: "node.kubernetes.io/memory-pressure".to_owned(),
            effect: "NoSchedule".to_owned(),
            ..Taint::default()
        };
        if qos::class(spec) != QosClass::BestEffort || affinity::tolerates(spec, &taint) {
            return None;
        }
    }
    Some(Rejection::new("Evicted", format!("The node had condition: [{}]. ", conditions.join(" "))))
}

/// The kubelet's predicates (`lifecycle/predicate.go`).
fn refused_by_predicates(pod: &Pod, spec: &PodSpec, view: &NodeView<'_>, others: &[&Resident]) -> Option<Rejection> {
    const OS: &str = "kubernetes.io/os";
    let no_labels = affinity::Labels::new();
    let labels = view.node.and_then(|node| node.metadata.labels.as_ref()).unwrap_or(&no_labels);
    let asked = pod.metadata.labels.as_ref().and_then(|labels| labels.get(OS));
    if view.node.is_some() && asked.is_some() && asked != labels.get(OS) {
        let message = "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label";
        return Some(Rejection::new("PodOSSelectorNodeLabelDoesNotMatch", message));
    }
    let missing = fit::insufficient(spec, others, view.allocatable);
    let failed = |predicate: &str, why: &str| Rejection::new(predicate, format!("Predicate {predicate} failed: {why}"));
    let mut reasons = Vec::new();
    if view.node.is_some() && !affinity::selects(spec, view.name, labels) {
        reasons.push(failed("NodeAffinity", "node(s) didn't match Pod's node affinity/selector"));
    }
    if spec.node_name.as_ref().is_some_and(|name| !name.is_empty() && name != view.name) {
        reasons.push(failed("NodeName", "node(s) didn't match the requested node name"));
    }
    if !fit::ports_are_free(spec, others, view.policy.node_ports) {
        reasons.push(failed("NodePorts", "node(s) didn't have free ports for the requested pod ports"));
    }
    let taints = view.node.and_then(|node| node.spec.as_ref()?.taints.as_deref()).unwrap_or_default();
    if !is_static(pod) && !affinity::tolerates_no_execute(spec, taints) {
        reasons.push(failed("TaintToleration", "node(s) had taints that the pod didn't tolerate"));
    }
    // A critical pod is never refused for want of resources: what else there is counts, or nothing but them.
    if let Some(first) = missing.first().filter(|_| !preemption::is_critical(pod) || reasons.is_empty()) {
        let (reason, message) = (format!("OutOf{}", first.resource), first.to_string());
        let only = reasons.is_empty();
        return Some(Rejection { reason, message, missing: if only { missing } else { Vec::new() } });
    }
    reasons.into_iter().next()
}

/// Whether a pod with identity and defaults can be run here, whatever else runs: what of it is not done, for events and
/// logs. For pods of manifests; [`admit_pod`] looks at the whole node.
///
/// # Errors
/// `status.reason` and the message behind `Pod was rejected: `.
pub fn admit(spec: &PodSpec, policy: &NodePolicy) -> Result<Vec<String>, (&'static str, String)> {
    match rejection(spec, policy, PodOrigin::Manifest) {
        Some(refusal) => Err(refusal),
        None => Ok(warnings(spec)),
    }
}

/// Who wants a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PodOrigin {
    Manifest,
    ApiServer,
}

/// Why this node will not run the pod.
fn rejection(spec: &PodSpec, policy: &NodePolicy, origin: PodOrigin) -> Option<(&'static str, String)> {
    if spec.os.as_ref().is_some_and(|os| os.name == "windows") {
        return Some(("PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS".to_owned()));
    }
    // What a class of the API server stands for is looked up when the sandbox is made, as by a kubelet.
    if origin == PodOrigin::Manifest
        && let Some(Err(message)) = runtime_class(spec).map(check_handler)
    {
        return Some(("RuntimeClassNotSupported", message));
    }
    if spec.host_network == Some(true) && policy.host_network == HostNetwork::Denied {
        return Some(("HostNetworkNotAllowed", "this node's configuration does not allow hostNetwork".to_owned()));
    }
    for volume in spec.volumes.iter().flatten() {
        if let Some(found) = unsupported_volume(volume, origin) {
            return Some(("UnsupportedVolumeType", found));
        }
    }
    if spec.resource_claims.as_ref().is_some_and(|claims| !claims.is_empty()) {
        let message = match origin {
            PodOrigin::Manifest => "static pods may not use ResourceClaims",
            PodOrigin::ApiServer => "this node has no dynamic resources",
        };
        return Some(("ResourceClaimsNotSupported", message.to_owned()));
    }
    let context = spec.security_context.as_ref();
    if let Some(message) = sysctl::forbidden(spec) {
        return Some(("SysctlForbidden", message));
    }
    let pod_profiles = (
        "spec.securityContext".to_owned(),
        context.and_then(|c| c.seccomp_profile.as_ref()),
        context.and_then(|c| c.app_armor_profile.as_ref()),
    );
    let container_profiles = all_containers(spec).map(|(path, container)| {
        let context = container.security_context.as_ref();
        let profiles =
            (context.and_then(|c| c.seccomp_profile.as_ref()), context.and_then(|c| c.app_armor_profile.as_ref()));
        (format!("{path}.securityContext"), profiles.0, profiles.1)
    });
    for (path, seccomp, app_armor) in std::iter::once(pod_profiles).chain(container_profiles) {
        if seccomp.is_some_and(|profile| profile.type_ == "Localhost") {
            let message = format!("{path}.seccompProfile: a Localhost profile cannot be applied to WebAssembly guests");
            return Some(("SeccompNotSupported", message));
        }
        if app_armor.is_some_and(|profile| profile.type_ == "Localhost") {
            let message =
                format!("{path}.appArmorProfile: a Localhost profile cannot be applied to WebAssembly guests");
            return Some(("AppArmor", message));
        }
    }
    all_containers(spec).find_map(|(path, container)| {
        let device = container.volume_devices.iter().flatten().next()?;
        let claim = claim_name(spec, &device.name).map(|name| format!(" (PVC {name})")).unwrap_or_default();
        let message = format!(
            "{path}.volumeDevices: volume {:?}{claim} is asked for as a block device, which a WebAssembly guest cannot have; \
             use a claim of volumeMode Filesystem, in volumeMounts",
            device.name
        );
        Some(("BlockVolumesNotSupported", message))
    })
}

/// The claim behind a volume.
fn claim_name(spec: &PodSpec, volume: &str) -> Option<String> {
    let volume = spec.volumes.iter().flatten().find(|one| one.name == volume)?;
    volume.persistent_volume_claim.as_ref().map(|claim| claim.claim_name.clone())
}

fn unsupported_volume(volume: &k8s_openapi::api::core::v1::Volume, origin: PodOrigin) -> Option<String> {
    let name = &volume.name;
    let supported = volumes::SUPPORTED.join(", ");
    if let Some(kind) = source_types(volume).into_iter().find(|kind| !volumes::SUPPORTED.contains(kind)) {
        return Some(format!("volume {name:?} is of type {kind}; this node has {supported}"));
    }
    if origin == PodOrigin::ApiServer {
        return None;
    }
    if let Some(kind) = source_types(volume).into_iter().find(|kind| volumes::OF_API_SERVER.contains(kind)) {
        return Some(format!("volume {name:?} is of type {kind}, which needs an API server; a static pod has none"));
    }
    let sources = volume.projected.as_ref()?.sources.as_ref()?;
    let kind = sources.iter().find_map(|source| {
        let given = [
            ("serviceAccountToken", source.service_account_token.is_some()),
            ("clusterTrustBundle", source.cluster_trust_bundle.is_some()),
            ("podCertificate", source.pod_certificate.is_some()),
        ];
        given.into_iter().find_map(|(kind, given)| given.then_some(kind))
    })?;
    Some(format!("volume {name:?} projects a {kind}; a static pod has none"))
}

/// What the pod says that this node does not do.
fn warnings(spec: &PodSpec) -> Vec<String> {
    let mut warnings = Vec::new();
    for (path, container) in all_containers(spec) {
        let stop_signal = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.stop_signal.as_deref());
        if let Some(name) = stop_signal.filter(|name| signal_number(name).is_none()) {
            warnings.push(format!("{path}.lifecycle.stopSignal: {name:?} is no signal: the image's is sent"));
        }
    }
    warnings
}

/// Every container with its path.
fn all_containers(spec: &PodSpec) -> impl Iterator<Item = (String, &Container)> {
    let init = spec.init_containers.iter().flatten().enumerate();
    let init = init.map(|(index, container)| (format!("spec.initContainers[{index}]"), container));
    let main = spec.containers.iter().enumerate();
    init.chain(main.map(|(index, container)| (format!("spec.containers[{index}]"), container)))
}
