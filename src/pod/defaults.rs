//! What the API server fills in that a manifest leaves out.
//!
//! In: a pod as written. Out: the same pod with the defaults of `pkg/apis/core/v1/defaults.go`. Idempotent.
//! Does not check anything (`validation`).

use k8s_openapi::api::core::v1::{
    Container, ContainerPort, EmptyDirVolumeSource, ObjectFieldSelector, Pod, PodSecurityContext, Probe, Volume,
};

/// `terminationGracePeriodSeconds` when it is not given.
pub const TERMINATION_GRACE_PERIOD_SECONDS: i64 = 30;
/// `terminationMessagePath` when it is not given.
pub const TERMINATION_MESSAGE_PATH: &str = "/dev/termination-log";
/// `defaultMode` of volumes made of files.
const DEFAULT_MODE: i32 = 0o644;

/// Fills in everything that is not given.
pub fn apply(pod: &mut Pod) {
    let Some(spec) = pod.spec.as_mut() else { return };
    spec.dns_policy.get_or_insert_with(|| "ClusterFirst".to_owned());
    spec.restart_policy.get_or_insert_with(|| "Always".to_owned());
    spec.security_context.get_or_insert_with(PodSecurityContext::default);
    spec.termination_grace_period_seconds.get_or_insert(TERMINATION_GRACE_PERIOD_SECONDS);
    spec.scheduler_name.get_or_insert_with(|| "default-scheduler".to_owned());
    spec.enable_service_links.get_or_insert(true);
    let host_network = spec.host_network == Some(true);
    for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        apply_container(container);
        if host_network {
            for port in container.ports.iter_mut().flatten() {
                port.host_port.get_or_insert(port.container_port);
            }
        }
    }
    for volume in spec.volumes.iter_mut().flatten() {
        apply_volume(volume);
    }
}

fn apply_container(container: &mut Container) {
    let image = container.image.clone().unwrap_or_default();
    container.image_pull_policy.get_or_insert_with(|| default_pull_policy(&image).to_owned());
    container.termination_message_path.get_or_insert_with(|| TERMINATION_MESSAGE_PATH.to_owned());
    container.termination_message_policy.get_or_insert_with(|| "File".to_owned());
    for port in container.ports.iter_mut().flatten() {
        apply_port(port);
    }
    if let Some(resources) = container.resources.as_mut() {
        // A limit without a request is a request of the same size.
        if let Some(limits) = &resources.limits {
            let requests = resources.requests.get_or_insert_default();
            for (name, quantity) in limits {
                requests.entry(name.clone()).or_insert_with(|| quantity.clone());
            }
        }
    }
    for env in container.env.iter_mut().flatten() {
        if let Some(field) = env.value_from.as_mut().and_then(|source| source.field_ref.as_mut()) {
            apply_field(field);
        }
    }
    let probes = [&mut container.liveness_probe, &mut container.readiness_probe, &mut container.startup_probe];
    for probe in probes.into_iter().flatten() {
        apply_probe(probe);
    }
}

fn apply_port(port: &mut ContainerPort) {
    port.protocol.get_or_insert_with(|| "TCP".to_owned());
}

fn apply_field(field: &mut ObjectFieldSelector) {
    field.api_version.get_or_insert_with(|| "v1".to_owned());
}

fn apply_probe(probe: &mut Probe) {
    for (value, default) in [
        (&mut probe.timeout_seconds, 1),
        (&mut probe.period_seconds, 10),
        (&mut probe.success_threshold, 1),
        (&mut probe.failure_threshold, 3),
    ] {
        if value.unwrap_or(0) == 0 {
            *value = Some(default);
        }
    }
}

fn apply_volume(volume: &mut Volume) {
    if super::volumes::source_types(volume).is_empty() {
        volume.empty_dir = Some(EmptyDirVolumeSource::default());
    }
    if let Some(secret) = volume.secret.as_mut() {
        secret.default_mode.get_or_insert(DEFAULT_MODE);
    }
    if let Some(config_map) = volume.config_map.as_mut() {
        config_map.default_mode.get_or_insert(DEFAULT_MODE);
    }
    if let Some(host_path) = volume.host_path.as_mut() {
        host_path.type_.get_or_insert_default();
    }
    if let Some(downward) = volume.downward_api.as_mut() {
        downward.default_mode.get_or_insert(DEFAULT_MODE);
        for item in downward.items.iter_mut().flatten() {
            item.field_ref.as_mut().map(apply_field);
        }
    }
    if let Some(projected) = volume.projected.as_mut() {
        projected.default_mode.get_or_insert(DEFAULT_MODE);
        for source in projected.sources.iter_mut().flatten() {
            for item in source.downward_api.iter_mut().flat_map(|d| d.items.iter_mut().flatten()) {
                item.field_ref.as_mut().map(apply_field);
            }
        }
    }
}

/// `Always` for the tag `latest` (also when it is not written), else `IfNotPresent`.
#[must_use]
pub fn default_pull_policy(image: &str) -> &'static str {
    if image.contains('@') {
        return "IfNotPresent";
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    match last.split_once(':') {
        None | Some((_, "latest")) => "Always",
        Some(_) => "IfNotPresent",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

    fn pod(json: serde_json::Value) -> Pod {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_bare_pod_gets_the_defaults_of_the_api() {
        let mut pod = pod(serde_json::json!({"spec": {
            "containers": [{"name": "a", "image": "x:1", "ports": [{"containerPort": 80}],
                "resources": {"limits": {"memory": "1Gi", "cpu": "1"}, "requests": {"cpu": "100m"}},
                "livenessProbe": {"periodSeconds": 5},
                "env": [{"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}],
            "volumes": [{"name": "v"}, {"name": "c", "configMap": {"name": "c"}}]}}));
        apply(&mut pod);
        let spec = pod.spec.clone().unwrap();
        assert_eq!(spec.restart_policy.as_deref(), Some("Always"));
        assert_eq!(spec.dns_policy.as_deref(), Some("ClusterFirst"));
        assert_eq!(spec.termination_grace_period_seconds, Some(30));
        assert_eq!(spec.enable_service_links, Some(true));
        let container = &spec.containers[0];
        assert_eq!(container.image_pull_policy.as_deref(), Some("IfNotPresent"));
        assert_eq!(container.termination_message_path.as_deref(), Some("/dev/termination-log"));
        assert_eq!(container.termination_message_policy.as_deref(), Some("File"));
        assert_eq!(container.ports.as_ref().unwrap()[0].protocol.as_deref(), Some("TCP"));
        let requests = container.resources.as_ref().unwrap().requests.as_ref().unwrap();
        assert_eq!(requests["memory"], Quantity("1Gi".into()), "a limit is also a request");
        assert_eq!(requests["cpu"], Quantity("100m".into()), "a request that was given stays");
        let probe = container.liveness_probe.as_ref().unwrap();
        assert_eq!((probe.period_seconds, probe.failure_threshold), (Some(5), Some(3)));
        let volumes = spec.volumes.unwrap();
        assert!(volumes[0].empty_dir.is_some());
        assert_eq!(volumes[1].config_map.as_ref().unwrap().default_mode, Some(0o644));
        let mut again = pod.clone();
        apply(&mut again);
        assert_eq!(again, pod, "a second time changes nothing");
    }

    #[test]
    fn host_network_pods_listen_on_the_ports_they_name() {
        let mut pod = pod(serde_json::json!({"spec": {"hostNetwork": true,
            "containers": [{"name": "a", "image": "x", "ports": [{"containerPort": 80}]}]}}));
        apply(&mut pod);
        assert_eq!(pod.spec.unwrap().containers[0].ports.as_ref().unwrap()[0].host_port, Some(80));
    }

    #[test]
    fn the_pull_policy_follows_the_tag() {
        for (image, policy) in [
            ("web", "Always"),
            ("web:latest", "Always"),
            ("web:1.2", "IfNotPresent"),
            ("localhost:5000/web", "Always"),
            ("localhost:5000/web:1", "IfNotPresent"),
            ("web@sha256:0000000000000000000000000000000000000000000000000000000000000000", "IfNotPresent"),
        ] {
            assert_eq!(default_pull_policy(image), policy, "{image}");
        }
    }
}
