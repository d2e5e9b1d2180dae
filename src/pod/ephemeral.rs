//! Ephemeral containers (`kubectl debug`) as ordinary ones.
//!
//! In: `spec.ephemeralContainers`. Out: the same as `Container`s, since what is different about them (never restarted,
//! never counted) is decided elsewhere; and whose processes they see, which for a container of whichever kind is the
//! pod's word or theirs.

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, PodSpec};

use super::run::ProcessNamespace;

/// One of them as a container.
#[must_use]
pub fn as_container(ephemeral: &EphemeralContainer) -> Container {
    let EphemeralContainer {
        args,
        command,
        env,
        env_from,
        image,
        image_pull_policy,
        lifecycle,
        liveness_probe,
        name,
        ports,
        readiness_probe,
        resize_policy,
        resources,
        restart_policy: _,
        restart_policy_rules: _,
        security_context,
        startup_probe,
        stdin,
        stdin_once,
        target_container_name: _,
        termination_message_path,
        termination_message_policy,
        tty,
        volume_devices,
        volume_mounts,
        working_dir,
    } = ephemeral.clone();
    Container {
        args,
        command,
        env,
        env_from,
        image,
        image_pull_policy,
        lifecycle,
        liveness_probe,
        name,
        ports,
        readiness_probe,
        resize_policy,
        resources,
        // It runs once, whatever the pod's policy is.
        restart_policy: Some("Never".to_owned()),
        restart_policy_rules: None,
        security_context,
        startup_probe,
        stdin,
        stdin_once,
        termination_message_path,
        termination_message_policy,
        tty,
        volume_devices,
        volume_mounts,
        working_dir,
    }
}

/// All of a pod's.
#[must_use]
pub fn containers(spec: &PodSpec) -> Vec<Container> {
    spec.ephemeral_containers.iter().flatten().map(as_container).collect()
}

/// A container of the pod by name, of whichever list.
#[must_use]
pub fn find(spec: &PodSpec, name: &str) -> Option<Container> {
    let ordinary = spec.init_containers.iter().flatten().chain(&spec.containers);
    ordinary.into_iter().find(|container| container.name == name).cloned().or_else(|| {
        spec.ephemeral_containers.iter().flatten().find(|container| container.name == name).map(as_container)
    })
}

/// Whose processes a container sees. In a pod that shares its own a target changes nothing, as in the kubelet's
/// `generateLinuxContainerConfig`.
#[must_use]
pub fn processes(spec: &PodSpec, name: &str) -> ProcessNamespace {
    if spec.share_process_namespace == Some(true) {
        return ProcessNamespace::Pod;
    }
    let ephemeral = spec.ephemeral_containers.iter().flatten().find(|container| container.name == name);
    let target = ephemeral.and_then(|container| container.target_container_name.clone());
    target.filter(|target| !target.is_empty()).map_or(ProcessNamespace::Container, ProcessNamespace::Target)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_debug_container_is_found_and_never_restarts() {
        let spec: PodSpec = serde_json::from_value(json!({"restartPolicy": "Always", "containers": [{"name": "a"}],
            "ephemeralContainers": [{"name": "debug", "image": "busybox", "stdin": true, "tty": true,
                "targetContainerName": "a"}]}))
        .unwrap();
        let debug = find(&spec, "debug").unwrap();
        assert_eq!((debug.image.as_deref(), debug.stdin, debug.tty), (Some("busybox"), Some(true), Some(true)));
        assert_eq!(debug.restart_policy.as_deref(), Some("Never"));
        assert!(find(&spec, "a").is_some() && find(&spec, "b").is_none());
        assert_eq!(containers(&spec).len(), 1);
    }

    #[test]
    fn processes_are_shared_where_the_pod_or_the_target_says() {
        let spec = |share: Option<bool>| -> PodSpec {
            serde_json::from_value(json!({"shareProcessNamespace": share, "containers": [{"name": "a"}],
                "ephemeralContainers": [{"name": "with", "targetContainerName": "a"}, {"name": "without"},
                    {"name": "empty", "targetContainerName": ""}]}))
            .unwrap()
        };
        let target = ProcessNamespace::Target("a".into());
        for (case, share, name, expected) in [
            ("a container of its own", None, "a", ProcessNamespace::Container),
            ("said to be its own", Some(false), "a", ProcessNamespace::Container),
            ("the pod's", Some(true), "a", ProcessNamespace::Pod),
            ("a debug container with a target", None, "with", target),
            ("one without", None, "without", ProcessNamespace::Container),
            ("one with an empty name for a target", None, "empty", ProcessNamespace::Container),
            ("a target in a pod that shares already", Some(true), "with", ProcessNamespace::Pod),
        ] {
            assert_eq!(processes(&spec(share), name), expected, "{case}");
        }
    }
}
