//! Ephemeral containers (`kubectl debug`) as ordinary ones.
//!
//! In: `spec.ephemeralContainers`. Out: the same as `Container`s, since what is different about them (never restarted,
//! never counted) is decided elsewhere. `targetContainerName` has no meaning here: containers of WebAssembly share no
//! process namespace, so a debug container sees the pod's network and volumes, as one without a target does.

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, PodSpec};

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
}
