//! Which types of volume there are, which this node has, and which objects a pod refers to.
//!
//! In: volumes and env sources of a spec. Out: their types and names. Makes nothing (`volume`).

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{
    Container, EnvFromSource, EnvVar, PodSpec, ResourceRequirements, SecurityContext, Volume,
};

use super::quantity::Quantity;

/// The types this node mounts.
pub const SUPPORTED: [&str; 10] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "hostPath",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

/// Those of them that only a pod of an API server can have.
pub const OF_API_SERVER: [&str; 3] = ["csi", "ephemeral", "persistentVolumeClaim"];

/// Names of the volumes that some container of the pod mounts. The kubelet leaves the others alone.
#[must_use]
pub fn mounted(spec: &PodSpec) -> BTreeSet<&str> {
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let mounts = containers.flat_map(|container| container.volume_mounts.iter().flatten());
    let ephemeral = spec.ephemeral_containers.iter().flatten();
    let mounts = mounts.chain(ephemeral.flat_map(|container| container.volume_mounts.iter().flatten()));
    mounts.map(|mount| mount.name.as_str()).collect()
}

/// The API names of the sources a volume gives; a valid one gives exactly one.
#[must_use]
pub fn source_types(volume: &Volume) -> Vec<&'static str> {
    let given = [
        ("emptyDir", volume.empty_dir.is_some()),
        ("hostPath", volume.host_path.is_some()),
        ("configMap", volume.config_map.is_some()),
        ("secret", volume.secret.is_some()),
        ("downwardAPI", volume.downward_api.is_some()),
        ("projected", volume.projected.is_some()),
        ("persistentVolumeClaim", volume.persistent_volume_claim.is_some()),
        ("ephemeral", volume.ephemeral.is_some()),
        ("csi", volume.csi.is_some()),
        ("image", volume.image.is_some()),
        ("nfs", volume.nfs.is_some()),
        ("iscsi", volume.iscsi.is_some()),
        ("fc", volume.fc.is_some()),
        ("gitRepo", volume.git_repo.is_some()),
        ("gcePersistentDisk", volume.gce_persistent_disk.is_some()),
        ("awsElasticBlockStore", volume.aws_elastic_block_store.is_some()),
        ("azureDisk", volume.azure_disk.is_some()),
        ("azureFile", volume.azure_file.is_some()),
        ("cephfs", volume.cephfs.is_some()),
        ("cinder", volume.cinder.is_some()),
        ("flexVolume", volume.flex_volume.is_some()),
        ("flocker", volume.flocker.is_some()),
        ("glusterfs", volume.glusterfs.is_some()),
        ("photonPersistentDisk", volume.photon_persistent_disk.is_some()),
        ("portworxVolume", volume.portworx_volume.is_some()),
        ("quobyte", volume.quobyte.is_some()),
        ("rbd", volume.rbd.is_some()),
        ("scaleIO", volume.scale_io.is_some()),
        ("storageos", volume.storageos.is_some()),
        ("vsphereVolume", volume.vsphere_volume.is_some()),
    ];
    given.into_iter().filter_map(|(name, given)| given.then_some(name)).collect()
}

/// Whether a volume may be one that a driver mounts on the node.
#[must_use]
pub fn is_of_driver(volume: &Volume) -> bool {
    volume.csi.is_some() || volume.ephemeral.is_some() || volume.persistent_volume_claim.is_some()
}

/// Bytes of memory that the pod as a whole may use: its own limit, else the sum of its containers' when each has one
/// (init containers count one at a time). What a volume in memory is at most as large as.
#[must_use]
pub fn memory_limit(spec: &PodSpec) -> Option<u64> {
    let of = |resources: Option<&ResourceRequirements>| {
        let limit = resources?.limits.as_ref()?.get("memory")?;
        Quantity::from_api(limit).ok().and_then(|limit| u64::try_from(limit.value()).ok()).filter(|bytes| *bytes > 0)
    };
    if let Some(own) = of(spec.resources.as_ref()) {
        return Some(own);
    }
    let (mut total, mut sidecars, mut highest_init) = (0u64, 0u64, 0u64);
    for container in spec.init_containers.iter().flatten() {
        let bytes = of(container.resources.as_ref())?;
        if super::restart::is_sidecar(container) {
            sidecars = sidecars.saturating_add(bytes);
        }
        let beside = if super::restart::is_sidecar(container) { 0 } else { bytes };
        highest_init = highest_init.max(sidecars.saturating_add(beside));
    }
    for container in &spec.containers {
        total = total.saturating_add(of(container.resources.as_ref())?);
    }
    Some(total.saturating_add(sidecars).max(highest_init))
}

/// Names of the ConfigMaps and Secrets in the pod's namespace that it refers to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct References {
    /// ConfigMaps of env, envFrom and volumes.
    pub config_maps: BTreeSet<String>,
    /// Secrets of env, envFrom, volumes and imagePullSecrets.
    pub secrets: BTreeSet<String>,
}

impl References {
    /// What the env of one container refers to.
    #[must_use]
    pub fn of_env(container: &Container) -> Self {
        let mut found = Self::default();
        found.add_env(container);
        found
    }

    /// What a whole pod refers to.
    #[must_use]
    pub fn of_pod(spec: &PodSpec) -> Self {
        let mut found = Self::default();
        for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
            found.add_env(container);
        }
        for container in spec.ephemeral_containers.iter().flatten() {
            found.add_env_of(container.env_from.as_deref(), container.env.as_deref());
        }
        for volume in spec.volumes.iter().flatten() {
            found.config_maps.extend(volume.config_map.iter().map(|source| source.name.clone()));
            found.secrets.extend(volume.secret.iter().filter_map(|source| source.secret_name.clone()));
            for source in volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten()) {
                found.config_maps.extend(source.config_map.iter().map(|source| source.name.clone()));
                found.secrets.extend(source.secret.iter().map(|source| source.name.clone()));
            }
        }
        found.secrets.extend(pull_secrets(spec).map(str::to_owned));
        found
    }

    fn add_env(&mut self, container: &Container) {
        self.add_env_of(container.env_from.as_deref(), container.env.as_deref());
    }

    fn add_env_of(&mut self, env_from: Option<&[EnvFromSource]>, env: Option<&[EnvVar]>) {
        for from in env_from.into_iter().flatten() {
            self.config_maps.extend(from.config_map_ref.iter().map(|source| source.name.clone()));
            self.secrets.extend(from.secret_ref.iter().map(|source| source.name.clone()));
        }
        for source in env.into_iter().flatten().filter_map(|env| env.value_from.as_ref()) {
            self.config_maps.extend(source.config_map_key_ref.iter().map(|key| key.name.clone()));
            self.secrets.extend(source.secret_key_ref.iter().map(|key| key.name.clone()));
        }
    }
}

/// The Secrets that images are pulled with. (Older API servers let empty names through: the kubelet skips them.)
pub fn pull_secrets(spec: &PodSpec) -> impl Iterator<Item = &str> {
    spec.image_pull_secrets.iter().flatten().map(|secret| secret.name.as_str()).filter(|name| !name.is_empty())
}

/// The one user that all containers of the pod run as, who then owns its tokens; `None` when one of them does not say
/// or two differ (the kubelet's `FsUserFrom`).
#[must_use]
pub fn common_user(spec: &PodSpec) -> Option<u32> {
    let of_pod = spec.security_context.as_ref().and_then(|context| context.run_as_user);
    let of = |context: Option<&SecurityContext>| context.and_then(|context| context.run_as_user).or(of_pod);
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|container| of(container.security_context.as_ref()));
    let mut users = containers.map(|container| of(container.security_context.as_ref())).chain(ephemeral);
    let first = users.next()??;
    if users.all(|user| user == Some(first)) { u32::try_from(first).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_of_a_pod_is_found() {
        let spec: PodSpec = serde_json::from_value(serde_json::json!({
            "initContainers": [{"name": "i", "envFrom": [{"secretRef": {"name": "s1"}}]}],
            "containers": [{"name": "c", "envFrom": [{"configMapRef": {"name": "c1"}}],
                "env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "c2", "key": "k"}}}]}],
            "volumes": [{"name": "v", "projected": {"sources": [{"secret": {"name": "s2"}}]}},
                        {"name": "w", "configMap": {"name": "c3"}}],
            "ephemeralContainers": [{"name": "e", "envFrom": [{"configMapRef": {"name": "c4"}}]}],
            "imagePullSecrets": [{"name": "s3"}, {"name": ""}]}))
        .unwrap();
        let found = References::of_pod(&spec);
        assert_eq!(found.config_maps.into_iter().collect::<Vec<_>>(), ["c1", "c2", "c3", "c4"]);
        assert_eq!(found.secrets.into_iter().collect::<Vec<_>>(), ["s1", "s2", "s3"]);
    }

    #[test]
    fn a_volume_in_memory_is_bounded_by_what_the_pod_may_use() {
        let limited = |bytes: &str| serde_json::json!({"limits": {"memory": bytes}});
        for (case, spec, expected) in [
            (
                "one has no limit",
                serde_json::json!({"containers": [{"name": "a", "resources": limited("1")}, {"name": "b"}]}),
                None,
            ),
            (
                "the sum",
                serde_json::json!({"containers": [{"name": "a", "resources": limited("1")}, {"name": "b", "resources": limited("2")}]}),
                Some(3),
            ),
            (
                "a large init container",
                serde_json::json!({"initContainers": [{"name": "i", "resources": limited("9")}], "containers": [{"name": "a", "resources": limited("1")}]}),
                Some(9),
            ),
            (
                "a sidecar runs beside the rest",
                serde_json::json!({"initContainers": [{"name": "s", "restartPolicy": "Always", "resources": limited("4")}], "containers": [{"name": "a", "resources": limited("3")}]}),
                Some(7),
            ),
            ("the pod's own", serde_json::json!({"resources": limited("5"), "containers": [{"name": "a"}]}), Some(5)),
        ] {
            let spec: PodSpec = serde_json::from_value(spec).unwrap();
            assert_eq!(memory_limit(&spec), expected, "{case}");
        }
    }

    #[test]
    fn only_volumes_that_a_container_mounts_are_wanted() {
        let mount = |name: &str| serde_json::json!([{"name": name, "mountPath": "/x"}]);
        let spec: PodSpec = serde_json::from_value(serde_json::json!({
            "initContainers": [{"name": "i", "volumeMounts": mount("a")}],
            "containers": [{"name": "c", "volumeMounts": mount("b")}],
            "ephemeralContainers": [{"name": "e", "volumeMounts": mount("c")}],
            "volumes": [{"name": "unused", "emptyDir": {}}]}))
        .unwrap();
        assert_eq!(mounted(&spec).into_iter().collect::<Vec<_>>(), ["a", "b", "c"]);
    }

    #[test]
    fn a_user_owns_the_tokens_only_when_all_containers_run_as_that_user() {
        for (case, spec, expected) in [
            ("nobody says", serde_json::json!({"containers": [{"name": "a"}]}), None),
            (
                "the pod says",
                serde_json::json!({"securityContext": {"runAsUser": 7}, "containers": [{"name": "a"}, {"name": "b"}]}),
                Some(7),
            ),
            (
                "one differs",
                serde_json::json!({"securityContext": {"runAsUser": 7},
                    "containers": [{"name": "a"}, {"name": "b", "securityContext": {"runAsUser": 8}}]}),
                None,
            ),
            (
                "one does not say",
                serde_json::json!({"initContainers": [{"name": "i"}],
                    "containers": [{"name": "a", "securityContext": {"runAsUser": 8}}]}),
                None,
            ),
        ] {
            let spec: PodSpec = serde_json::from_value(spec).unwrap();
            assert_eq!(common_user(&spec), expected, "{case}");
        }
    }
}
