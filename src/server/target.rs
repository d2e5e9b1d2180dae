//! Finds the container a request means.
//!
//! In: the names of a path. Out: the pod and the container's status. The container `-` is the first of the pod, which
//! is what kubectl takes when none is named (after its `kubectl.kubernetes.io/default-container` annotation).

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};

use super::error::ApiError;
use crate::ids::{PodRef, PodUid};
use crate::status::{PodSnapshot, StatusCache};

/// The path segment for "the pod's default container".
pub const DEFAULT_CONTAINER: &str = "-";

/// A container that exists in a pod's spec.
pub struct Target {
    /// The pod.
    pub snapshot: PodSnapshot,
    /// `ns/name` of the pod.
    pub pod: PodRef,
    /// The container's name.
    pub container: String,
    /// Its status, once there is one.
    pub status: Option<ContainerStatus>,
}

impl Target {
    /// Finds a container by the names of a request's path.
    ///
    /// # Errors
    /// [`ApiError::NoPod`] or [`ApiError::NoContainer`].
    pub fn find(cache: &StatusCache, namespace: &str, pod: &str, container: &str) -> Result<Self, ApiError> {
        let no_pod = || ApiError::NoPod { namespace: namespace.to_owned(), pod: pod.to_owned() };
        let snapshot = cache.find(namespace, pod).ok_or_else(no_pod)?;
        let names = container_names(&snapshot.pod);
        let name = if container == DEFAULT_CONTAINER { default_container(&snapshot.pod) } else { Some(container) };
        let known = name.filter(|name| names.iter().any(|known| known == name)).map(str::to_owned);
        let container = known.ok_or_else(|| ApiError::NoContainer {
            container: container.to_owned(),
            pod: pod.to_owned(),
            available: names,
        })?;
        let status = find_status(&snapshot.status, &container).cloned();
        let pod = PodRef { namespace: namespace.to_owned(), name: pod.to_owned() };
        Ok(Self { snapshot, pod, container, status })
    }

    /// The pod's UID, if it has a well-formed one (every pod the node runs has).
    pub fn uid(&self) -> Result<PodUid, ApiError> {
        let uid = self.snapshot.pod.metadata.uid.clone().unwrap_or_default();
        PodUid::new(uid)
            .map_err(|_| ApiError::NoPod { namespace: self.pod.namespace.clone(), pod: self.pod.name.clone() })
    }
}

fn container_names(pod: &Pod) -> Vec<String> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let inits = spec.init_containers.iter().flatten();
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|container| container.name.clone());
    spec.containers.iter().chain(inits).map(|container| container.name.clone()).chain(ephemeral).collect()
}

fn default_container(pod: &Pod) -> Option<&str> {
    let annotations = pod.metadata.annotations.as_ref();
    let annotated = annotations.and_then(|map| map.get("kubectl.kubernetes.io/default-container"));
    let first = || pod.spec.as_ref().and_then(|spec| spec.containers.first()).map(|container| container.name.as_str());
    annotated.map(String::as_str).or_else(first)
}

fn find_status<'a>(status: &'a PodStatus, container: &str) -> Option<&'a ContainerStatus> {
    let inits = status.init_container_statuses.iter().flatten();
    let ephemeral = status.ephemeral_container_statuses.iter().flatten();
    let mut all = status.container_statuses.iter().flatten().chain(inits).chain(ephemeral);
    all.find(|status| status.name == container)
}
