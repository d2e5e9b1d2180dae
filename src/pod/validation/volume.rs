//! Volumes: `ValidateVolumes`, for the types this node has.
//!
//! In: the volumes of a spec. Out: what is wrong with them, and the names mounts may use.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath, Volume, VolumeProjection};

use super::{check, container, descending_path, no_backsteps};
use crate::pod::field::{Errors, Path};
use crate::pod::names;
use crate::pod::quantity::Quantity;
use crate::pod::volumes::source_types;

/// Fields a downward API file may show.
const FILE_FIELDS: [&str; 5] =
    ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
const HOST_PATH_TYPES: [&str; 8] =
    ["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
const MODE_DETAIL: &str = "must be a number between 0 and 0777 (octal), both inclusive";

/// Checks all volumes; returns the names of those without fault, which alone a mount may name.
pub(super) fn validate_all<'a>(volumes: &'a [Volume], path: &Path, errors: &mut Errors) -> BTreeSet<&'a str> {
    let mut names = BTreeSet::new();
    for (index, volume) in volumes.iter().enumerate() {
        let at = path.index(index);
        let before = errors.len();
        source(volume, &at, errors);
        if volume.name.is_empty() {
            errors.required(at.child("name"));
        } else {
            check(names::dns_label(&volume.name), &at.child("name"), &volume.name, errors);
        }
        if names.contains(volume.name.as_str()) {
            errors.duplicate(at.child("name"), &volume.name);
        }
        if errors.len() == before {
            names.insert(volume.name.as_str());
        }
    }
    names
}

fn source(volume: &Volume, path: &Path, errors: &mut Errors) {
    let types = source_types(volume);
    for extra in types.iter().skip(1) {
        errors.forbidden(path.child(extra), "may not specify more than 1 volume type");
    }
    if types.is_empty() {
        errors.required(path.clone());
        return;
    }
    if let Some(limit) = volume.empty_dir.as_ref().and_then(|source| source.size_limit.as_ref()) {
        let at = path.child("emptyDir").child("sizeLimit");
        match Quantity::from_api(limit) {
            Err(error) => errors.invalid(at, &limit.0, error.to_string()),
            Ok(limit) if limit.is_negative() => {
                errors.forbidden(at, "SizeLimit field must be a valid resource quantity");
            }
            Ok(_) => {}
        }
    }
    if let Some(host_path) = &volume.host_path {
        let at = path.child("hostPath");
        if host_path.path.is_empty() {
            errors.required(at.child("path"));
        } else {
            no_backsteps(&host_path.path, &at.child("path"), errors);
            let kind = host_path.type_.as_deref().unwrap_or("");
            if !HOST_PATH_TYPES.contains(&kind) {
                errors.not_supported(at.child("type"), kind, &HOST_PATH_TYPES);
            }
        }
    }
    if let Some(config_map) = &volume.config_map {
        let at = path.child("configMap");
        if config_map.name.is_empty() {
            errors.required(at.child("name"));
        }
        files(config_map.default_mode, config_map.items.as_deref(), &at, errors);
    }
    if let Some(secret) = &volume.secret {
        let at = path.child("secret");
        if secret.secret_name.as_deref().unwrap_or("").is_empty() {
            errors.required(at.child("secretName"));
        }
        files(secret.default_mode, secret.items.as_deref(), &at, errors);
    }
    if let Some(downward) = &volume.downward_api {
        let at = path.child("downwardAPI");
        mode(downward.default_mode, &at.child("defaultMode"), errors);
        for file in downward.items.iter().flatten() {
            downward_file(file, &at, errors);
        }
    }
    if let Some(projected) = &volume.projected {
        let at = path.child("projected");
        mode(projected.default_mode, &at.child("defaultMode"), errors);
        let mut paths = BTreeSet::new();
        for (index, source) in projected.sources.iter().flatten().enumerate() {
            projection(source, &at.child("sources").index(index), &mut paths, errors);
        }
    }
}

fn projection<'a>(source: &'a VolumeProjection, path: &Path, paths: &mut BTreeSet<&'a str>, errors: &mut Errors) {
    let mut targets: Vec<&'a str> = Vec::new();
    if let Some(secret) = &source.secret {
        let at = path.child("secret");
        if secret.name.is_empty() {
            errors.required(at.child("name"));
        }
        files(None, secret.items.as_deref(), &at, errors);
        targets.extend(secret.items.iter().flatten().map(|item| item.path.as_str()));
    }
    if let Some(config_map) = &source.config_map {
        let at = path.child("configMap");
        if config_map.name.is_empty() {
            errors.required(at.child("name"));
        }
        files(None, config_map.items.as_deref(), &at, errors);
        targets.extend(config_map.items.iter().flatten().map(|item| item.path.as_str()));
    }
    for file in source.downward_api.iter().flat_map(|downward| downward.items.iter().flatten()) {
        downward_file(file, &path.child("downwardAPI"), errors);
        targets.push(file.path.as_str());
    }
    if let Some(token) = &source.service_account_token {
        if token.path.is_empty() {
            errors.required(path.child("serviceAccountToken").child("path"));
        }
        targets.push(token.path.as_str());
    }
    for target in targets.into_iter().filter(|target| !target.is_empty()) {
        if !paths.insert(target) {
            errors.invalid(path.child("path"), target, "conflicting duplicate paths");
        }
    }
}

fn files(default_mode: Option<i32>, items: Option<&[KeyToPath]>, path: &Path, errors: &mut Errors) {
    mode(default_mode, &path.child("defaultMode"), errors);
    for (index, item) in items.unwrap_or(&[]).iter().enumerate() {
        let at = path.child("items").index(index);
        if item.key.is_empty() {
            errors.required(at.child("key"));
        }
        file_path(&item.path, &at.child("path"), errors);
        mode(item.mode, &at.child("mode"), errors);
    }
}

fn downward_file(file: &DownwardAPIVolumeFile, path: &Path, errors: &mut Errors) {
    file_path(&file.path, &path.child("path"), errors);
    match (&file.field_ref, &file.resource_field_ref) {
        (Some(field), other) => {
            container::field_path(&field.field_path, &FILE_FIELDS, &path.child("fieldRef"), errors);
            if other.is_some() {
                errors.invalid(
                    path.clone(),
                    "resource",
                    "fieldRef and resourceFieldRef can not be specified simultaneously",
                );
            }
        }
        (None, Some(resource)) => {
            let at = path.child("resourceFieldRef");
            if resource.container_name.as_deref().unwrap_or("").is_empty() {
                errors.required(at.child("containerName"));
            }
            container::resource_field(&resource.resource, &at.child("resource"), errors);
        }
        (None, None) => errors.required(path.child("fieldRef")),
    }
    mode(file.mode, &path.child("mode"), errors);
}

/// A file of a projected volume; `..data` and its like are the node's.
fn file_path(value: &str, path: &Path, errors: &mut Errors) {
    if value.is_empty() {
        errors.required(path.clone());
        return;
    }
    descending_path(value, path, errors);
    if value.starts_with("..") && !value.starts_with("../") && value != ".." {
        errors.invalid(path.clone(), value, "must not start with '..'");
    }
}

fn mode(value: Option<i32>, path: &Path, errors: &mut Errors) {
    if let Some(value) = value.filter(|value| !(0..=0o777).contains(value)) {
        errors.invalid_number(path.clone(), value, MODE_DETAIL);
    }
}
