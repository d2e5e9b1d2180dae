//! Whether a valid pod can be run on this node, and what of it has no meaning here.
//!
//! In: a pod as written and what the node allows. Out: the pod as it will be run, with its warnings, or the
//! refusal. What an API server would refuse is `validation`'s.
//!
//! The rule for fields that mean nothing to WebAssembly: what asks for *less* isolation than a guest has anyway
//! (`privileged`, `hostPID`, `hostIPC`, capabilities, `shareProcessNamespace`, devices ...) is accepted and
//! changes nothing; what asks for *more* than this node gives (another sandbox by `runtimeClassName`, a custom
//! seccomp or AppArmor profile, sysctls) is refused, because the pod would be less isolated than it asked for.

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use super::field::{self, FieldError};
use super::static_pod::{self, Origin};
use super::volumes::{self, source_types};
use super::{defaults, validation};
use crate::ids::{InvalidId, PodRef, PodUid};

/// What this node allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodePolicy {
    /// RuntimeClass names this node serves; a pod may also name none.
    pub runtime_classes: Vec<String>,
    /// Whether pods may use the node's own network.
    pub host_network: HostNetwork,
}

impl Default for NodePolicy {
    /// The class `wasi`, and host networking as a node's admin expects of a kubelet.
    fn default() -> Self {
        Self { runtime_classes: vec!["wasi".to_owned()], host_network: HostNetwork::Allowed }
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
    if let Some((reason, message)) = pod.spec.as_ref().and_then(|spec| rejection(spec, policy)) {
        return Err(Refusal::Rejected { pod: Box::new(pod), reason, message });
    }
    let name = PodRef {
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        name: pod.metadata.name.clone().unwrap_or_default(),
    };
    let warnings = pod.spec.as_ref().map(warnings).unwrap_or_default();
    Ok(Admitted { pod, uid, name, warnings })
}

/// Whether a pod with identity and defaults can be run here: what of it is not done, for events and logs.
///
/// # Errors
/// `status.reason` and the message behind `Pod was rejected: `.
pub fn admit(spec: &PodSpec, policy: &NodePolicy) -> Result<Vec<String>, (&'static str, String)> {
    match rejection(spec, policy) {
        Some(refusal) => Err(refusal),
        None => Ok(warnings(spec)),
    }
}

/// Why this node will not run the pod.
fn rejection(spec: &PodSpec, policy: &NodePolicy) -> Option<(&'static str, String)> {
    if spec.os.as_ref().is_some_and(|os| os.name == "windows") {
        return Some(("PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS".to_owned()));
    }
    if let Some(class) = spec.runtime_class_name.as_ref().filter(|class| !class.is_empty())
        && !policy.runtime_classes.contains(class)
    {
        let message = format!("no runtime for {class:?} is configured: this node runs {:?}", policy.runtime_classes);
        return Some(("RuntimeClassNotSupported", message));
    }
    if spec.host_network == Some(true) && policy.host_network == HostNetwork::Denied {
        return Some(("HostNetworkNotAllowed", "this node's configuration does not allow hostNetwork".to_owned()));
    }
    for volume in spec.volumes.iter().flatten() {
        if let Some(found) = unsupported_volume(volume) {
            return Some(("UnsupportedVolumeType", found));
        }
    }
    if spec.resource_claims.as_ref().is_some_and(|claims| !claims.is_empty()) {
        return Some(("ResourceClaimsNotSupported", "static pods may not use ResourceClaims".to_owned()));
    }
    let context = spec.security_context.as_ref();
    if let Some(sysctl) = context.and_then(|context| context.sysctls.as_ref()).and_then(|sysctls| sysctls.first()) {
        return Some(("SysctlForbidden", format!("forbidden sysctl: {:?} not allowlisted", sysctl.name)));
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
        let devices = container.volume_devices.as_ref().is_some_and(|devices| !devices.is_empty());
        if devices {
            return Some(("BlockVolumesNotSupported", format!("{path}.volumeDevices: this node has no block volumes")));
        }
        let index = container
            .env
            .iter()
            .flatten()
            .position(|env| env.value_from.as_ref().is_some_and(|from| from.file_key_ref.is_some()))?;
        let message = format!("{path}.env[{index}].valueFrom.fileKeyRef: this node does not read env from files");
        Some(("EnvFilesNotSupported", message))
    })
}

fn unsupported_volume(volume: &k8s_openapi::api::core::v1::Volume) -> Option<String> {
    let name = &volume.name;
    let supported = volumes::SUPPORTED.join(", ");
    if let Some(kind) = source_types(volume).into_iter().find(|kind| !volumes::SUPPORTED.contains(kind)) {
        return Some(format!("volume {name:?} is of type {kind}; this node has {supported}"));
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
        for (field, given) in [
            ("livenessProbe", container.liveness_probe.is_some()),
            ("readinessProbe", container.readiness_probe.is_some()),
            ("startupProbe", container.startup_probe.is_some()),
            ("lifecycle", container.lifecycle.is_some()),
        ] {
            if given {
                warnings.push(format!("{path}.{field} is not run by this version: the container counts as well"));
            }
        }
        for (index, port) in container.ports.iter().flatten().enumerate() {
            if spec.host_network != Some(true) && port.host_port.unwrap_or(0) != 0 {
                warnings.push(format!("{path}.ports[{index}].hostPort is not forwarded by this version"));
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn admit(spec: Value) -> Result<Admitted, Refusal> {
        let mut spec = spec;
        if spec.get("containers").is_none() {
            spec["containers"] = json!([{"name": "c", "image": "x"}]);
        }
        let pod = serde_json::from_value(json!({"metadata": {"name": "web"}, "spec": spec})).unwrap();
        let origin = Origin { node: "node-1", path: "/m/web.yaml", seen: jiff::Timestamp::UNIX_EPOCH };
        admit_static(pod, origin, &NodePolicy::default())
    }

    #[test]
    fn an_admitted_pod_has_identity_and_defaults() {
        let admitted = admit(json!({})).unwrap();
        assert_eq!(admitted.name.to_string(), "default/web-node-1");
        assert_eq!(admitted.pod.metadata.uid.as_deref(), Some(admitted.uid.as_str()));
        assert_eq!(admitted.pod.spec.unwrap().restart_policy.as_deref(), Some("Always"));
        assert!(admitted.warnings.is_empty());
    }

    #[test]
    fn what_asks_for_less_isolation_changes_nothing_and_is_accepted() {
        let spec = json!({"hostPID": true, "hostIPC": true, "shareProcessNamespace": true, "os": {"name": "linux"},
            "runtimeClassName": "wasi", "hostUsers": false, "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "c", "image": "x", "securityContext": {"privileged": true, "capabilities": {"add": ["SYS_ADMIN"]}}}]});
        assert!(admit(spec).is_ok());
    }

    #[test]
    fn what_this_node_cannot_do_is_refused_by_name() {
        for (spec, expected_reason, expected) in [
            (
                json!({"os": {"name": "windows"}}),
                "PodOSNotSupported",
                "Failed to admit pod as the OS field doesn't match node OS",
            ),
            (
                json!({"runtimeClassName": "kata"}),
                "RuntimeClassNotSupported",
                "no runtime for \"kata\" is configured: this node runs [\"wasi\"]",
            ),
            (
                json!({"volumes": [{"name": "data", "nfs": {"server": "s", "path": "/"}}]}),
                "UnsupportedVolumeType",
                "volume \"data\" is of type nfs; this node has configMap, downwardAPI, emptyDir, hostPath, projected, secret",
            ),
            (
                json!({"volumes": [{"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}]}),
                "UnsupportedVolumeType",
                "volume \"t\" projects a serviceAccountToken; a static pod has none",
            ),
            (
                json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}}),
                "SysctlForbidden",
                "forbidden sysctl: \"kernel.msgmax\" not allowlisted",
            ),
            (
                json!({"securityContext": {"seccompProfile": {"type": "Localhost", "localhostProfile": "p.json"}}}),
                "SeccompNotSupported",
                "spec.securityContext.seccompProfile: a Localhost profile cannot be applied to WebAssembly guests",
            ),
        ] {
            match admit(spec) {
                Err(Refusal::Rejected { reason, message, .. }) => {
                    assert_eq!((reason, message.as_str()), (expected_reason, expected));
                }
                other => panic!("{expected_reason}: {other:?}"),
            }
        }
    }

    #[test]
    fn an_invalid_pod_is_refused_in_the_words_of_the_api() {
        let spec =
            json!({"containers": [{"name": "c", "image": "x", "volumeMounts": [{"name": "x", "mountPath": "/x"}]}]});
        let refusal = admit(spec).unwrap_err();
        assert_eq!(refusal.to_string(), "invalid pod: spec.containers[0].volumeMounts[0].name: Not found: \"x\"");
        let origin = Origin { node: "n", path: "p", seen: jiff::Timestamp::UNIX_EPOCH };
        let unnamed = admit_static(Pod::default(), origin, &NodePolicy::default()).unwrap_err();
        assert_eq!(unnamed.to_string(), "invalid pod: metadata.name: Required value");
    }

    #[test]
    fn what_is_not_done_is_said() {
        let spec = json!({"containers": [{"name": "c", "image": "x", "readinessProbe": {"httpGet": {"port": 80}},
            "ports": [{"containerPort": 80, "hostPort": 8080}]}]});
        let warnings = admit(spec).unwrap().warnings;
        assert_eq!(warnings.len(), 2);
        assert!(warnings[0].starts_with("spec.containers[0].readinessProbe is not run"), "{warnings:?}");
    }
}
