//! Controllers' documents as the pods they would make, for a node without a cluster.
//!
//! In: a Deployment, ReplicaSet, StatefulSet, DaemonSet or Job. Out: its pods, all at once: nothing scales, rolls or
//! counts retries here. Names are stable, so that a changed replica count leaves the others alone:
//!
//! | document | pods |
//! |---|---|
//! | Deployment, ReplicaSet, StatefulSet `web` with 2 replicas | `web-0`, `web-1` |
//! | DaemonSet `web` | `web` |
//! | Job `load` | `load`; with 3 completions `load-0`, `load-1`, `load-2` |
//!
//! (The node's name is appended to all of them, as to every static pod.)

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{EnvVar, Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};

use crate::yaml::Node;

use super::manifest::{ManifestError, Reader, object_name};

/// What all controllers have in common.
struct Controller<'a> {
    kind: &'static str,
    metadata: &'a ObjectMeta,
    node: &'a Node,
}

impl Controller<'_> {
    fn check(
        &self,
        reader: &Reader<'_>,
        selector: &LabelSelector,
        template: &PodTemplateSpec,
    ) -> Result<(), ManifestError> {
        self.check_name(reader)?;
        let none = BTreeMap::new();
        let labels = template.metadata.as_ref().and_then(|metadata| metadata.labels.as_ref()).unwrap_or(&none);
        let wanted = selector.match_labels.as_ref().unwrap_or(&none);
        if wanted.is_empty() && selector.match_expressions.as_ref().is_none_or(Vec::is_empty) {
            return Err(reader.invalid(self.node, self.kind, "spec.selector: Required value"));
        }
        if wanted.iter().any(|(key, value)| labels.get(key) != Some(value)) {
            let problem = "spec.template.metadata.labels: Invalid value: `selector` does not match template `labels`";
            return Err(reader.invalid(self.node, self.kind, problem));
        }
        let policy = template.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()).unwrap_or("Always");
        if policy != "Always" {
            let problem = format!(
                "spec.template.spec.restartPolicy: Unsupported value: {policy:?}: supported values: \"Always\""
            );
            return Err(reader.invalid(self.node, self.kind, &problem));
        }
        Ok(())
    }

    fn check_name(&self, reader: &Reader<'_>) -> Result<(), ManifestError> {
        match self.metadata.name.as_deref().unwrap_or_default() {
            "" => Err(reader.invalid(
                self.node,
                self.kind,
                "metadata.name: Required value: name or generateName is required",
            )),
            _ => Ok(()),
        }
    }

    /// A pod of the template, in the controller's namespace.
    fn pod(&self, template: &PodTemplateSpec, suffix: Option<i64>) -> Pod {
        let name = self.metadata.name.clone().unwrap_or_default();
        let mut metadata = template.metadata.clone().unwrap_or_default();
        metadata.name = Some(suffix.map_or_else(|| name.clone(), |number| format!("{name}-{number}")));
        metadata.namespace.clone_from(&self.metadata.namespace);
        metadata.generate_name = None;
        metadata.uid = None;
        Pod { metadata, spec: template.spec.clone(), status: None }
    }

    /// How many pods to make: the default is one.
    fn count(&self, reader: &Reader<'_>, field: &str, value: Option<i32>) -> Result<i64, ManifestError> {
        let count = i64::from(value.unwrap_or(1));
        if count < 0 {
            let problem = format!("spec.{field}: Invalid value: {count}: must be greater than or equal to 0");
            return Err(reader.invalid(self.node, self.kind, &problem));
        }
        Ok(count)
    }
}

pub(super) fn deployment(reader: &mut Reader<'_>, node: &Node) -> Result<(), ManifestError> {
    let object: Deployment = reader.decode(node)?;
    let spec = object.spec.unwrap_or_default();
    let controller = Controller { kind: "Deployment", metadata: &object.metadata, node };
    controller.check(reader, &spec.selector, &spec.template)?;
    for number in 0..controller.count(reader, "replicas", spec.replicas)? {
        reader.add_pod(node, "Deployment", controller.pod(&spec.template, Some(number)))?;
    }
    Ok(())
}

pub(super) fn replica_set(reader: &mut Reader<'_>, node: &Node) -> Result<(), ManifestError> {
    let object: ReplicaSet = reader.decode(node)?;
    let spec = object.spec.unwrap_or_default();
    let controller = Controller { kind: "ReplicaSet", metadata: &object.metadata, node };
    let template = spec.template.unwrap_or_default();
    controller.check(reader, &spec.selector, &template)?;
    for number in 0..controller.count(reader, "replicas", spec.replicas)? {
        reader.add_pod(node, "ReplicaSet", controller.pod(&template, Some(number)))?;
    }
    Ok(())
}

pub(super) fn stateful_set(reader: &mut Reader<'_>, node: &Node) -> Result<(), ManifestError> {
    let object: StatefulSet = reader.decode(node)?;
    let spec = object.spec.unwrap_or_default();
    let controller = Controller { kind: "StatefulSet", metadata: &object.metadata, node };
    controller.check(reader, &spec.selector, &spec.template)?;
    if spec.volume_claim_templates.as_ref().is_some_and(|templates| !templates.is_empty()) {
        let problem =
            format!("{}: volumeClaimTemplates need a cluster; use a hostPath or emptyDir volume", object_name(node));
        return Err(reader.refuse(node, &problem));
    }
    let start = i64::from(spec.ordinals.as_ref().and_then(|ordinals| ordinals.start).unwrap_or(0));
    for number in 0..controller.count(reader, "replicas", spec.replicas)? {
        let mut pod = controller.pod(&spec.template, Some(start + number));
        let name = pod.metadata.name.clone().unwrap_or_default();
        let labels = pod.metadata.labels.get_or_insert_default();
        labels.insert("statefulset.kubernetes.io/pod-name".to_owned(), name.clone());
        labels.insert("apps.kubernetes.io/pod-index".to_owned(), (start + number).to_string());
        if let Some(pod_spec) = pod.spec.as_mut() {
            pod_spec.hostname = Some(name);
            pod_spec.subdomain = spec.service_name.clone().filter(|service| !service.is_empty());
        }
        reader.add_pod(node, "StatefulSet", pod)?;
    }
    Ok(())
}

pub(super) fn daemon_set(reader: &mut Reader<'_>, node: &Node) -> Result<(), ManifestError> {
    let object: DaemonSet = reader.decode(node)?;
    let spec = object.spec.unwrap_or_default();
    let controller = Controller { kind: "DaemonSet", metadata: &object.metadata, node };
    controller.check(reader, &spec.selector, &spec.template)?;
    reader.add_pod(node, "DaemonSet", controller.pod(&spec.template, None))
}

pub(super) fn job(reader: &mut Reader<'_>, node: &Node) -> Result<(), ManifestError> {
    let object: Job = reader.decode(node)?;
    let spec = object.spec.unwrap_or_default();
    let controller = Controller { kind: "Job", metadata: &object.metadata, node };
    controller.check_name(reader)?;
    let policy = spec.template.spec.as_ref().and_then(|pod| pod.restart_policy.as_deref()).unwrap_or_default();
    if !matches!(policy, "OnFailure" | "Never") {
        let problem = "spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\"";
        return Err(reader.invalid(node, "Job", problem));
    }
    if spec.suspend == Some(true) {
        reader.warn(node, &format!("{} is suspended: no pod is made of it", object_name(node)));
        return Ok(());
    }
    let parallelism = controller.count(reader, "parallelism", spec.parallelism)?;
    // Without completions a Job is a work queue: as many pods as may run at once.
    let completions = controller.count(reader, "completions", spec.completions.or(spec.parallelism))?;
    if completions > parallelism {
        let text =
            format!("{}: all {completions} completions run at once, not {parallelism} at a time", object_name(node));
        reader.warn(node, &text);
    }
    if spec.backoff_limit.is_some() {
        reader.warn(node, &format!("{}: backoffLimit is left out: restartPolicy decides alone", object_name(node)));
    }
    let name = object.metadata.name.clone().unwrap_or_default();
    let indexed = spec.completion_mode.as_deref() == Some("Indexed");
    for number in 0..completions {
        let suffix = (completions > 1 || indexed).then_some(number);
        let mut pod = controller.pod(&spec.template, suffix);
        let labels = pod.metadata.labels.get_or_insert_default();
        labels.insert("job-name".to_owned(), name.clone());
        labels.insert("batch.kubernetes.io/job-name".to_owned(), name.clone());
        if indexed {
            set_index(&mut pod, number);
        }
        if let Some(pod_spec) = pod.spec.as_mut() {
            pod_spec.active_deadline_seconds = pod_spec.active_deadline_seconds.or(spec.active_deadline_seconds);
        }
        reader.add_pod(node, "Job", pod)?;
    }
    Ok(())
}

/// What an Indexed Job gives its pods.
fn set_index(pod: &mut Pod, number: i64) {
    const INDEX: &str = "batch.kubernetes.io/job-completion-index";
    pod.metadata.annotations.get_or_insert_default().insert(INDEX.to_owned(), number.to_string());
    pod.metadata.labels.get_or_insert_default().insert(INDEX.to_owned(), number.to_string());
    let name = "JOB_COMPLETION_INDEX".to_owned();
    let Some(spec) = pod.spec.as_mut() else { return };
    for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        let env = container.env.get_or_insert_default();
        if env.iter().all(|variable| variable.name != name) {
            env.push(EnvVar { name: name.clone(), value: Some(number.to_string()), value_from: None });
        }
    }
}
