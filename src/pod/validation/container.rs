//! One container: `validateContainerCommon`.
//!
//! In: a container and the names of its pod's volumes. Out: what is wrong with it.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Container, ContainerPort, EnvVar, EnvVarSource, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use super::{check, descending_path, in_range, one_of};
use crate::pod::downward::split_subscript;
use crate::pod::field::{Errors, Path};
use crate::pod::names;
use crate::pod::quantity::Quantity;

/// Fields a container's env may ask for (`validEnvDownwardAPIFieldPathExpressions`).
const ENV_FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
pub(super) const RESOURCE_FIELDS: [&str; 6] = [
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

pub(super) fn validate(
    container: &Container,
    spec: &PodSpec,
    volumes: &BTreeSet<&str>,
    path: &Path,
    errors: &mut Errors,
) {
    let name = path.child("name");
    if container.name.is_empty() {
        errors.required(name);
    } else {
        check(names::dns_label(&container.name), &name, &container.name, errors);
    }
    if container.image.as_deref().unwrap_or("").is_empty() {
        errors.required(path.child("image"));
    }
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let message_policies = ["File", "FallbackToLogsOnError"];
    let policy = text(&container.termination_message_policy);
    one_of(&policy, &message_policies, &path.child("terminationMessagePolicy"), errors);
    let host_network = spec.host_network == Some(true);
    ports(container.ports.as_deref().unwrap_or(&[]), host_network, &path.child("ports"), errors);
    for (index, var) in container.env.iter().flatten().enumerate() {
        env(var, &path.child("env").index(index), errors);
    }
    env_from(container, &path.child("envFrom"), errors);
    volume_mounts(container, volumes, &path.child("volumeMounts"), errors);
    for (index, device) in container.volume_devices.iter().flatten().enumerate() {
        if !volumes.contains(device.name.as_str()) {
            errors.not_found(path.child("volumeDevices").index(index).child("name"), &device.name);
        }
    }
    let policies = ["Always", "IfNotPresent", "Never"];
    one_of(&text(&container.image_pull_policy), &policies, &path.child("imagePullPolicy"), errors);
    if let Some(resources) = &container.resources {
        self::resources(resources, &path.child("resources"), errors);
    }
    security_context(container, &path.child("securityContext"), errors);
}

fn ports(ports: &[ContainerPort], host_network: bool, path: &Path, errors: &mut Errors) {
    let mut names = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let at = path.index(index);
        if let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            let found = names::port_name(name);
            for detail in &found {
                errors.invalid(at.child("name"), name, *detail);
            }
            if found.is_empty() && !names.insert(name) {
                errors.duplicate(at.child("name"), name);
            }
        }
        if port.container_port == 0 {
            errors.required(at.child("containerPort"));
        } else {
            in_range(port.container_port.into(), 1, 65535, &at.child("containerPort"), errors);
        }
        let host_port = port.host_port.unwrap_or(0);
        if host_port != 0 {
            in_range(host_port.into(), 1, 65535, &at.child("hostPort"), errors);
        }
        if host_network && host_port != port.container_port {
            let detail = "must match `containerPort` when `hostNetwork` is true";
            errors.invalid_number(at.child("hostPort"), host_port, detail);
        }
        let protocol = port.protocol.as_deref().unwrap_or("");
        one_of(protocol, &["SCTP", "TCP", "UDP"], &at.child("protocol"), errors);
    }
}

fn env(var: &EnvVar, path: &Path, errors: &mut Errors) {
    if var.name.is_empty() {
        errors.required(path.child("name"));
    } else {
        check(names::env_name(&var.name), &path.child("name"), &var.name, errors);
    }
    let Some(from) = &var.value_from else { return };
    let path = path.child("valueFrom");
    let sources = [
        from.field_ref.is_some(),
        from.resource_field_ref.is_some(),
        from.config_map_key_ref.is_some(),
        from.secret_key_ref.is_some(),
        from.file_key_ref.is_some(),
    ];
    value_from(from, &path, errors);
    let detail = match sources.iter().filter(|given| **given).count() {
        0 => "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
        _ if var.value.as_deref().is_some_and(|value| !value.is_empty()) => {
            "may not be specified when `value` is not empty"
        }
        1 => return,
        _ => "may not have more than one field specified at a time",
    };
    errors.invalid(path, "", detail);
}

fn value_from(from: &EnvVarSource, path: &Path, errors: &mut Errors) {
    if let Some(field) = &from.field_ref {
        field_path(&field.field_path, &ENV_FIELDS, &path.child("fieldRef"), errors);
    }
    if let Some(resource) = &from.resource_field_ref {
        let at = path.child("resourceFieldRef").child("resource");
        resource_field(&resource.resource, &at, errors);
    }
    if let Some(file) = &from.file_key_ref {
        let at = path.child("fileKeyRef");
        if file.key.is_empty() {
            errors.required(at.child("key"));
        } else {
            check(names::env_name(&file.key), &at.child("key"), &file.key, errors);
        }
        if file.volume_name.is_empty() {
            errors.required(at.child("volumeName"));
        } else {
            check(names::dns_label(&file.volume_name), &at.child("volumeName"), &file.volume_name, errors);
        }
        if file.path.is_empty() {
            errors.required(at.child("path"));
        } else if file.path.split('/').any(|part| part == "..") {
            errors.invalid(at.child("path"), &file.path, "must not contain '..'");
        }
    }
    for (at, name, key) in [
        ("configMapKeyRef", from.config_map_key_ref.as_ref().map(|r| (&r.name, &r.key))),
        ("secretKeyRef", from.secret_key_ref.as_ref().map(|r| (&r.name, &r.key))),
    ]
    .into_iter()
    .filter_map(|(at, reference)| reference.map(|(name, key)| (path.child(at), name, key)))
    {
        check(names::dns_subdomain(name), &at.child("name"), name, errors);
        if key.is_empty() {
            errors.required(at.child("key"));
        } else {
            check(names::config_key(key), &at.child("key"), key, errors);
        }
    }
}

/// A `fieldRef` in env or in a file.
pub(super) fn field_path(value: &str, supported: &[&str], path: &Path, errors: &mut Errors) {
    if value.is_empty() {
        errors.required(path.child("fieldPath"));
        return;
    }
    match split_subscript(value) {
        Some(("metadata.annotations", key)) => check(names::qualified_name(&key.to_lowercase()), path, key, errors),
        Some(("metadata.labels", key)) => check(names::qualified_name(key), path, key, errors),
        Some(_) => {
            let detail = format!("error converting fieldPath: field label does not support subscript: {value}");
            errors.invalid(path.child("fieldPath"), value, detail);
        }
        None if supported.contains(&value) || value == "spec.host" => {}
        None if ENV_FIELDS.contains(&value) || matches!(value, "metadata.labels" | "metadata.annotations") => {
            errors.not_supported(path.child("fieldPath"), value, supported);
        }
        None => {
            let detail = format!("error converting fieldPath: field label not supported: {value}");
            errors.invalid(path.child("fieldPath"), value, detail);
        }
    }
}

/// A `resourceFieldRef`.
pub(super) fn resource_field(value: &str, path: &Path, errors: &mut Errors) {
    let huge_pages = value.starts_with("limits.hugepages-") || value.starts_with("requests.hugepages-");
    if value.is_empty() {
        errors.required(path.clone());
    } else if !RESOURCE_FIELDS.contains(&value) && !huge_pages {
        errors.not_supported(path.clone(), value, &RESOURCE_FIELDS);
    }
}

fn env_from(container: &Container, path: &Path, errors: &mut Errors) {
    for (index, from) in container.env_from.iter().flatten().enumerate() {
        let at = path.index(index);
        if let Some(prefix) = from.prefix.as_deref().filter(|prefix| !prefix.is_empty()) {
            check(names::env_name(prefix), &at.child("prefix"), prefix, errors);
        }
        let references = [
            from.config_map_ref.as_ref().map(|r| ("configMapRef", r.name.as_str())),
            from.secret_ref.as_ref().map(|r| ("secretRef", r.name.as_str())),
        ];
        for (kind, name) in references.iter().flatten() {
            if name.is_empty() {
                errors.required(at.child(kind).child("name"));
            } else {
                check(names::dns_subdomain(name), &at.child(kind).child("name"), name, errors);
            }
        }
        match references.iter().flatten().count() {
            0 => errors.invalid(path.clone(), "", "must specify one of: `configMapRef` or `secretRef`"),
            1 => {}
            _ => errors.invalid(path.clone(), "", "may not have more than one field specified at a time"),
        }
    }
}

fn volume_mounts(container: &Container, volumes: &BTreeSet<&str>, path: &Path, errors: &mut Errors) {
    let mut places = BTreeSet::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let at = path.index(index);
        if mount.name.is_empty() {
            errors.required(at.child("name"));
        } else if !volumes.contains(mount.name.as_str()) {
            errors.not_found(at.child("name"), &mount.name);
        }
        if mount.mount_path.is_empty() {
            errors.required(at.child("mountPath"));
        }
        if !places.insert(mount.mount_path.as_str()) {
            errors.invalid(at.child("mountPath"), &mount.mount_path, "must be unique");
        }
        // The API's own paths for these two leave the index out.
        let sub_path = mount.sub_path.as_deref().unwrap_or("");
        if !sub_path.is_empty() {
            descending_path(sub_path, &path.child("subPath"), errors);
        }
        if let Some(expression) = mount.sub_path_expr.as_deref().filter(|e| !e.is_empty()) {
            if !sub_path.is_empty() {
                let detail = "subPathExpr and subPath are mutually exclusive";
                errors.invalid(at.child("subPathExpr"), expression, detail);
            }
            descending_path(expression, &path.child("subPathExpr"), errors);
        }
        if let Some(propagation) = &mount.mount_propagation {
            let modes = ["Bidirectional", "HostToContainer", "None"];
            one_of(propagation, &modes, &path.child("mountPropagation"), errors);
        }
    }
}

fn resources(resources: &ResourceRequirements, path: &Path, errors: &mut Errors) {
    let empty = BTreeMap::new();
    let limits = quantities(resources.limits.as_ref().unwrap_or(&empty), &path.child("limits"), errors);
    let requests = quantities(resources.requests.as_ref().unwrap_or(&empty), &path.child("requests"), errors);
    for (name, request) in requests {
        let Some(limit) = limits.get(name) else { continue };
        if request.compare(*limit).is_gt() {
            let detail = format!("must be less than or equal to {name} limit of {limit}");
            errors.invalid(path.child("requests"), &request.to_string(), detail);
        }
    }
}

fn quantities<'a>(
    list: &'a BTreeMap<String, ApiQuantity>,
    path: &Path,
    errors: &mut Errors,
) -> BTreeMap<&'a str, Quantity> {
    let mut read = BTreeMap::new();
    for (name, quantity) in list {
        let at = path.key(name);
        match Quantity::from_api(quantity) {
            Err(error) => errors.invalid(at, &quantity.0, error.to_string()),
            Ok(value) if value.is_negative() => {
                errors.invalid(at, &value.to_string(), "must be greater than or equal to 0");
            }
            Ok(value) => {
                if let Some(detail) = resource_name(name) {
                    errors.invalid(at, name, detail);
                }
                read.insert(name.as_str(), value);
            }
        }
    }
    read
}

fn resource_name(name: &str) -> Option<String> {
    if let Some(detail) = names::qualified_name(name) {
        return Some(detail);
    }
    let standard = matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
    (!standard && !name.contains('/')).then(|| "must be a standard resource for containers".to_owned())
}

fn security_context(container: &Container, path: &Path, errors: &mut Errors) {
    let Some(context) = &container.security_context else { return };
    for (name, id) in [("runAsUser", context.run_as_user), ("runAsGroup", context.run_as_group)] {
        if let Some(id) = id {
            in_range(id, 0, i64::from(i32::MAX), &path.child(name), errors);
        }
    }
    if context.allow_privilege_escalation == Some(false) && context.privileged == Some(true) {
        let value = serde_json::to_string(context).unwrap_or_default();
        let detail = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
        errors.invalid_number(path.clone(), value, detail);
    }
}
