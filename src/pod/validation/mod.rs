//! What an API server would refuse in a pod, in its words.
//!
//! In: a pod with defaults applied. Out: what is wrong with it, field by field, as
//! `pkg/apis/core/validation` words it. Static pods never pass an API server, so the node checks them itself.
//! What is legal but not possible on this node is `admission`'s.

mod container;
mod spec;
#[cfg(test)]
mod tests;
mod volume;

use k8s_openapi::api::core::v1::Pod;

use super::field::{Errors, FieldError, Path};
use super::names;

/// Everything that is wrong with a pod; empty when nothing is.
#[must_use]
pub fn validate(pod: &Pod) -> Vec<FieldError> {
    let mut errors = Errors::default();
    metadata(pod, &mut errors);
    match &pod.spec {
        Some(spec) => spec::validate(spec, &Path::new("spec"), &mut errors),
        None => errors.required(Path::new("spec").child("containers")),
    }
    errors.into_vec()
}

fn metadata(pod: &Pod, errors: &mut Errors) {
    let path = Path::new("metadata");
    let meta = &pod.metadata;
    match meta.name.as_deref() {
        None | Some("") => errors.required(path.child("name")),
        Some(name) => check(names::dns_subdomain(name), &path.child("name"), name, errors),
    }
    if let Some(namespace) = meta.namespace.as_deref().filter(|namespace| !namespace.is_empty()) {
        check(names::dns_label(namespace), &path.child("namespace"), namespace, errors);
    }
    for (key, value) in meta.labels.iter().flatten() {
        let labels = path.child("labels");
        check(names::qualified_name(key), &labels, key, errors);
        check(names::label_value(value), &labels, value, errors);
    }
    for key in meta.annotations.iter().flatten().map(|(key, _)| key) {
        check(names::qualified_name(&key.to_lowercase()), &path.child("annotations"), key, errors);
    }
}

/// Reports what a name check found.
fn check(found: Option<String>, path: &Path, value: &str, errors: &mut Errors) {
    if let Some(detail) = found {
        errors.invalid(path.clone(), value, detail);
    }
}

/// A relative path without `..`.
fn descending_path(value: &str, path: &Path, errors: &mut Errors) {
    if value.starts_with('/') {
        errors.invalid(path.clone(), value, "must be a relative path");
    }
    no_backsteps(value, path, errors);
}

fn no_backsteps(value: &str, path: &Path, errors: &mut Errors) {
    if value.split('/').any(|part| part == "..") {
        errors.invalid(path.clone(), value, "must not contain '..'");
    }
}

fn one_of(value: &str, supported: &[&str], path: &Path, errors: &mut Errors) {
    if value.is_empty() {
        errors.required(path.clone());
    } else if !supported.contains(&value) {
        errors.not_supported(path.clone(), value, supported);
    }
}

fn in_range(value: i64, low: i64, high: i64, path: &Path, errors: &mut Errors) {
    if !(low..=high).contains(&value) {
        errors.invalid_number(path.clone(), value, format!("must be between {low} and {high}, inclusive"));
    }
}
