//! Volumes made of files: configMap, secret, downwardAPI and projected, as the kubelet's `MakePayload` and
//! `collectData`.
//!
//! In: a volume, its objects, what was fetched for it, the pod's downward values. Out: one [`Projection`], or the kubelet's words why not.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    ConfigMap, ConfigMapVolumeSource, DownwardAPIVolumeFile, KeyToPath, ProjectedVolumeSource, Secret,
    SecretVolumeSource, Volume, VolumeProjection,
};

use crate::objects::{Missing, ObjectKey, ObjectKind, ObjectOrigin, ObjectStore};
use crate::pod::run::{ProjectedFile, Projection};
use crate::pod::volumes::common_user;

use super::VolumeContext;
use super::fetched::Fetched;

type Files = BTreeMap<String, ProjectedFile>;

/// `defaultMode` when the pod's defaults were not applied.
const DEFAULT_MODE: i32 = 0o644;

/// The AtomicWriter's limits.
const MAX_PATH: usize = 4096;
const MAX_FILE_NAME: usize = 255;

/// Whether a volume is made of files that can be refreshed.
pub(super) fn is_projection(volume: &Volume) -> bool {
    volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.projected.is_some()
        || volume.downward_api.is_some()
}

/// The objects a volume refers to.
pub(super) fn references(volume: &Volume, namespace: &str) -> BTreeSet<ObjectKey> {
    let key = |kind, name: &str| ObjectKey { kind, namespace: namespace.to_owned(), name: name.to_owned() };
    let mut keys = BTreeSet::new();
    keys.extend(volume.config_map.iter().map(|source| key(ObjectKind::ConfigMap, &source.name)));
    keys.extend(volume.secret.iter().map(|s| key(ObjectKind::Secret, s.secret_name.as_deref().unwrap_or_default())));
    for source in volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten()) {
        keys.extend(source.config_map.iter().map(|source| key(ObjectKind::ConfigMap, &source.name)));
        keys.extend(source.secret.iter().map(|source| key(ObjectKind::Secret, &source.name)));
    }
    keys
}

/// The whole content of a volume.
pub(super) fn projection(
    context: VolumeContext<'_>,
    volume: &Volume,
    objects: &ObjectStore,
    fetched: &Fetched,
) -> Result<Projection, String> {
    let collector = Collector { context, objects, fetched };
    let files = if let Some(source) = &volume.config_map {
        collector.config_map(source)?
    } else if let Some(source) = &volume.secret {
        collector.secret(source)?
    } else if let Some(source) = &volume.downward_api {
        collector.downward(source.items.as_deref().unwrap_or_default(), source.default_mode)?
    } else if let Some(source) = &volume.projected {
        collector.projected(&volume.name, source)?
    } else {
        return Err("the volume is not made of files".to_owned());
    };
    finish(files, context.fs_group())
}

struct Collector<'a> {
    context: VolumeContext<'a>,
    objects: &'a ObjectStore,
    fetched: &'a Fetched,
}

impl Collector<'_> {
    fn config_map(&self, source: &ConfigMapVolumeSource) -> Result<Files, String> {
        let optional = source.optional == Some(true);
        match self.objects.config_map(self.context.origin, self.context.namespace(), &source.name) {
            Ok(object) => from_config_map(&object, source.items.as_deref(), source.default_mode, optional),
            Err(Missing::NotFound { .. }) if optional => Ok(Files::new()),
            Err(missing) => Err(missing.to_string()),
        }
    }

    fn secret(&self, source: &SecretVolumeSource) -> Result<Files, String> {
        let optional = source.optional == Some(true);
        let name = source.secret_name.as_deref().unwrap_or_default();
        match self.objects.secret(self.context.origin, self.context.namespace(), name) {
            Ok(object) => from_secret(&object, source.items.as_deref(), source.default_mode, optional),
            Err(Missing::NotFound { .. }) if optional => Ok(Files::new()),
            Err(missing) => Err(missing.to_string()),
        }
    }

    fn downward(&self, items: &[DownwardAPIVolumeFile], default_mode: Option<i32>) -> Result<Files, String> {
        let (mut files, mut errors) = (Files::new(), Vec::new());
        for item in items {
            let downward = &self.context.downward;
            let value = match (&item.field_ref, &item.resource_field_ref) {
                (Some(selector), _) => downward.field(selector),
                (None, Some(selector)) => downward.resource(selector, None),
                (None, None) => Ok(String::new()),
            };
            match value {
                Ok(value) => {
                    files.insert(item.path.clone(), file(value.into_bytes(), item.mode, default_mode));
                }
                Err(error) => errors.push(error.to_string()),
            }
        }
        aggregate(errors).map_or(Ok(files), Err)
    }

    /// Later sources win over earlier ones; all errors are told at once.
    fn projected(&self, volume: &str, source: &ProjectedVolumeSource) -> Result<Files, String> {
        let (mut files, mut errors) = (Files::new(), Vec::new());
        for (index, part) in source.sources.iter().flatten().enumerate() {
            match self.projected_part((volume, index), part, source.default_mode) {
                Ok(more) => files.extend(more),
                Err(error) => errors.push(error),
            }
        }
        aggregate(errors).map_or(Ok(files), Err)
    }

    fn projected_part(
        &self,
        (volume, index): (&str, usize),
        part: &VolumeProjection,
        default_mode: Option<i32>,
    ) -> Result<Files, String> {
        if let Some(source) = &part.config_map {
            let (name, items, optional) = (source.name.clone(), source.items.clone(), source.optional);
            self.config_map(&ConfigMapVolumeSource { name, items, optional, default_mode })
        } else if let Some(source) = &part.secret {
            let (secret_name, items, optional) = (Some(source.name.clone()), source.items.clone(), source.optional);
            self.secret(&SecretVolumeSource { secret_name, items, optional, default_mode })
        } else if let Some(source) = &part.downward_api {
            self.downward(source.items.as_deref().unwrap_or_default(), default_mode)
        } else {
            let (kind, path) = if let Some(source) = &part.service_account_token {
                ("serviceAccountToken", &source.path)
            } else if let Some(source) = &part.cluster_trust_bundle {
                ("clusterTrustBundle", &source.path)
            } else if part.pod_certificate.is_some() {
                return Err(match self.cluster() {
                    true => "podCertificate projections are not supported by this node".to_owned(),
                    false => no_cluster(volume, "podCertificate"),
                });
            } else {
                return Err(format!("unknown source for projected volume {volume:?}"));
            };
            let data = match self.fetched.part(volume, index) {
                Some(data) => data?,
                None => return Err(no_cluster(volume, kind)),
            };
            Ok(Files::from([(path.clone(), self.private(data, default_mode))]))
        }
    }

    fn cluster(&self) -> bool {
        self.context.origin == ObjectOrigin::ApiServer && self.objects.api().is_some()
    }

    /// A file that is the pod's alone: 0600 once it is known whose, by one user or by fsGroup (`finish` lets the group
    /// read).
    fn private(&self, data: Vec<u8>, default_mode: Option<i32>) -> ProjectedFile {
        let user = self.context.pod().spec.as_ref().and_then(common_user);
        let mode = if user.is_some() || self.context.fs_group().is_some() { Some(0o600) } else { None };
        ProjectedFile { uid: user.unwrap_or(0), ..file(data, mode, default_mode) }
    }
}

fn no_cluster(volume: &str, kind: &str) -> String {
    format!(
        "cannot setup projected volume {volume} because kube client is not configured: {kind} comes from an API server"
    )
}

fn from_config_map(
    object: &ConfigMap,
    items: Option<&[KeyToPath]>,
    default_mode: Option<i32>,
    optional: bool,
) -> Result<Files, String> {
    let text = |key: &str| object.data.as_ref()?.get(key).map(|text| text.as_bytes().to_vec());
    let binary = |key: &str| object.binary_data.as_ref()?.get(key).map(|bytes| bytes.0.clone());
    let keys: Vec<&String> =
        object.data.iter().flat_map(BTreeMap::keys).chain(object.binary_data.iter().flat_map(BTreeMap::keys)).collect();
    pick(
        &keys,
        items,
        default_mode,
        |key| text(key).or_else(|| binary(key)),
        |key| {
            if optional { None } else { Some(format!("configmap references non-existent config key: {key}")) }
        },
    )
}

fn from_secret(
    object: &Secret,
    items: Option<&[KeyToPath]>,
    default_mode: Option<i32>,
    optional: bool,
) -> Result<Files, String> {
    let keys: Vec<&String> = object.data.iter().flat_map(BTreeMap::keys).collect();
    let get = |key: &str| object.data.as_ref()?.get(key).map(|bytes| bytes.0.clone());
    pick(&keys, items, default_mode, get, |key| {
        if optional { None } else { Some(format!("references non-existent secret key: {key}")) }
    })
}

/// All keys, or those of `items` at their paths.
fn pick(
    keys: &[&String],
    items: Option<&[KeyToPath]>,
    default_mode: Option<i32>,
    get: impl Fn(&str) -> Option<Vec<u8>>,
    missing: impl Fn(&str) -> Option<String>,
) -> Result<Files, String> {
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        let all = keys.iter().filter_map(|key| Some(((*key).clone(), file(get(key)?, None, default_mode))));
        return Ok(all.collect());
    };
    let mut files = Files::new();
    for item in items {
        match get(&item.key) {
            Some(data) => {
                files.insert(item.path.clone(), file(data, item.mode, default_mode));
            }
            None => missing(&item.key).map_or(Ok(()), Err)?,
        }
    }
    Ok(files)
}

fn file(data: Vec<u8>, mode: Option<i32>, default_mode: Option<i32>) -> ProjectedFile {
    let mode = mode.or(default_mode).unwrap_or(DEFAULT_MODE);
    ProjectedFile { data, mode: u32::try_from(mode).unwrap_or(0) & 0o777, uid: 0 }
}

/// The checks of the kubelet's AtomicWriter, and what fsGroup does to read-only files.
fn finish(files: Files, fs_group: Option<i64>) -> Result<Projection, String> {
    let mut clean = Files::new();
    for (path, mut file) in files {
        check_path(&path)?;
        let parts = path.split('/').filter(|part| !part.is_empty() && *part != ".");
        let path = parts.collect::<Vec<_>>().join("/");
        if fs_group.is_some() {
            file.mode |= 0o440;
        }
        clean.insert(path, file);
    }
    for path in clean.keys() {
        let parents = path.match_indices('/').map(|(index, _)| &path[..index]);
        if let Some(parent) = parents.into_iter().find(|parent| clean.contains_key(*parent)) {
            return Err(format!("invalid path: {parent} is a file and cannot contain {path}"));
        }
    }
    Ok(Projection { files: clean, fs_group: fs_group.and_then(|group| u32::try_from(group).ok()) })
}

fn check_path(path: &str) -> Result<(), String> {
    if path.split('/').all(|part| part.is_empty() || part == ".") {
        return Err(format!("invalid path: must not be empty: {path:?}"));
    }
    if path.starts_with('/') {
        return Err(format!("invalid path: must be relative path: {path}"));
    }
    if path.len() > MAX_PATH {
        return Err(format!("invalid path: must be less than or equal to {MAX_PATH} characters"));
    }
    for part in path.split('/') {
        if part == ".." {
            return Err(format!("invalid path: must not contain '..': {path}"));
        }
        if part.len() > MAX_FILE_NAME {
            return Err(format!("invalid path: filenames must be less than or equal to {MAX_FILE_NAME} characters"));
        }
    }
    if path.starts_with("..") {
        return Err(format!("invalid path: must not start with '..': {path}"));
    }
    if path.contains('\0') {
        return Err("invalid path: must not contain a null character".to_owned());
    }
    Ok(())
}

/// Several errors as apimachinery's `NewAggregate` shows them: each once.
fn aggregate(errors: Vec<String>) -> Option<String> {
    let mut seen = BTreeSet::new();
    let errors: Vec<String> = errors.into_iter().filter(|error| seen.insert(error.clone())).collect();
    match errors.as_slice() {
        [] => None,
        [one] => Some(one.clone()),
        several => Some(format!("[{}]", several.join(", "))),
    }
}
