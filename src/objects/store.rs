//! One handle on all objects: those of manifests are kept here, those of the API server by `api`.
//!
//! In: what each manifest holds; lookups, each for an origin. Out: objects, and word of changes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use parking_lot::RwLock;
use tokio::sync::broadcast;
use tokio::time::Instant;

use super::api::{ApiObjects, Known};
use super::{Change, Missing, ObjectConflict, ObjectKey, ObjectKind, ObjectOrigin, ObjectSet};
use crate::ids::PodUid;
use crate::pod::service_env::Links;

/// Changes a subscriber may be behind; after that it looks at everything again.
const SUBSCRIBER_QUEUE: usize = 256;

/// Newest known ConfigMaps and Secrets. Cheap to clone.
///
/// The default one belongs to a node without a cluster; [`ApiObjects::store`] makes that of a node in one.
#[derive(Debug, Clone)]
pub struct ObjectStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    manifests: RwLock<Objects>,
    changes: broadcast::Sender<Change>,
    api: Option<ApiObjects>,
}

/// A channel for changes.
pub(super) fn changes() -> broadcast::Sender<Change> {
    broadcast::channel(SUBSCRIBER_QUEUE).0
}

#[derive(Debug, Default)]
struct Objects {
    /// What each origin gave.
    origins: BTreeMap<String, BTreeMap<ObjectKey, Object>>,
    /// What is in use, and whose.
    in_use: HashMap<ObjectKey, (String, Object)>,
}

/// A ConfigMap or a Secret.
#[derive(Clone, PartialEq)]
pub(super) enum Object {
    ConfigMap(Arc<ConfigMap>),
    Secret(Arc<Secret>),
}

impl std::fmt::Debug for Object {
    /// Never the content: it may be a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::ConfigMap(_) => "ConfigMap",
            Self::Secret(_) => "Secret",
        })
    }
}

impl Object {
    pub(super) fn is_immutable(&self) -> bool {
        match self {
            Self::ConfigMap(object) => object.immutable == Some(true),
            Self::Secret(object) => object.immutable == Some(true),
        }
    }

    fn has_content_of(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::ConfigMap(a), Self::ConfigMap(b)) => a.data == b.data && a.binary_data == b.binary_data,
            (Self::Secret(a), Self::Secret(b)) => a.data == b.data,
            _ => false,
        }
    }
}

impl Default for ObjectStore {
    fn default() -> Self {
        Self { inner: Arc::new(Inner { manifests: RwLock::default(), changes: changes(), api: None }) }
    }
}

impl ObjectStore {
    /// A store whose pods of the API server see what `api` knows.
    pub(super) fn with_api(api: ApiObjects, changes: broadcast::Sender<Change>) -> Self {
        Self { inner: Arc::new(Inner { manifests: RwLock::default(), changes, api: Some(api) }) }
    }

    /// The API server's side; `None` on a node without a cluster.
    #[must_use]
    pub fn api(&self) -> Option<&ApiObjects> {
        self.inner.api.as_ref()
    }

    /// A ConfigMap as a pod of `origin` sees it.
    ///
    /// # Errors
    /// Why there is none.
    pub fn config_map(&self, origin: ObjectOrigin, namespace: &str, name: &str) -> Result<Arc<ConfigMap>, Missing> {
        match self.get(origin, ObjectKind::ConfigMap, namespace, name)? {
            Object::ConfigMap(object) => Ok(object),
            Object::Secret(_) => Err(Missing::NotFound { kind: ObjectKind::ConfigMap, name: name.to_owned() }),
        }
    }

    /// A Secret as a pod of `origin` sees it.
    ///
    /// # Errors
    /// Why there is none.
    pub fn secret(&self, origin: ObjectOrigin, namespace: &str, name: &str) -> Result<Arc<Secret>, Missing> {
        match self.get(origin, ObjectKind::Secret, namespace, name)? {
            Object::Secret(object) => Ok(object),
            Object::ConfigMap(_) => Err(Missing::NotFound { kind: ObjectKind::Secret, name: name.to_owned() }),
        }
    }

    /// Word of each change. On `Lagged`, look at everything again.
    #[must_use]
    pub fn changed(&self) -> broadcast::Receiver<Change> {
        self.inner.changes.subscribe()
    }

    /// Says what a pod refers to, so that it is kept fresh; replaces what was said before. To be called in a runtime.
    ///
    /// Objects of manifests are all here anyway: for their pods this does nothing.
    pub fn register(&self, origin: ObjectOrigin, uid: &PodUid, keys: BTreeSet<ObjectKey>) {
        if let (ObjectOrigin::ApiServer, Some(api)) = (origin, &self.inner.api) {
            api.register(uid, keys);
        }
    }

    /// Ends what [`Self::register`] began, and forgets the pod's tokens. A pod that was not registered is fine.
    pub fn unregister(&self, uid: &PodUid) {
        if let Some(api) = &self.inner.api {
            api.unregister(uid);
        }
    }

    /// Waits until the API server has said of each key whether there is such an object, at most until `deadline`.
    pub async fn settle(&self, origin: ObjectOrigin, keys: &BTreeSet<ObjectKey>, deadline: Instant) {
        if let (ObjectOrigin::ApiServer, Some(api)) = (origin, &self.inner.api) {
            api.settle(keys, deadline).await;
        }
    }

    /// The handler that the RuntimeClass of a pod names. Manifests have no classes: theirs are the handlers themselves.
    ///
    /// # Errors
    /// The kubelet's words when there is no such class, or when the API server does not say by `deadline`.
    pub async fn runtime_handler(
        &self,
        origin: ObjectOrigin,
        class: &str,
        deadline: Instant,
    ) -> Result<String, String> {
        match (origin, &self.inner.api) {
            (ObjectOrigin::ApiServer, Some(api)) => api.runtime_handler(class, deadline).await,
            _ => Ok(class.to_owned()),
        }
    }

    /// The variables of Services for a pod of `namespace`; none on a node without a cluster.
    ///
    /// # Errors
    /// The kubelet's words when the Services were not read yet and the pod is one of the API server.
    pub async fn service_env(
        &self,
        origin: ObjectOrigin,
        namespace: &str,
        links: Links,
        deadline: Instant,
    ) -> Result<BTreeMap<String, String>, &'static str> {
        match &self.inner.api {
            Some(api) => api.service_env(origin, namespace, links, deadline).await,
            None => Ok(BTreeMap::new()),
        }
    }

    /// Replaces everything that `origin` (a manifest's path) gave before; an empty set forgets the manifest.
    ///
    /// Returns what was not taken over, for the caller to tell; the rest is in use when this returns.
    pub fn replace(&self, origin: &str, set: ObjectSet) -> Vec<ObjectConflict> {
        let mut conflicts = Vec::new();
        let mut touched: BTreeSet<ObjectKey> = BTreeSet::new();
        let mut changed = Vec::new();
        {
            let mut objects = self.inner.manifests.write();
            let before = objects.origins.remove(origin).unwrap_or_default();
            let mut now = BTreeMap::new();
            for (key, object) in keyed(set) {
                let kept = before.get(&key).filter(|old| old.is_immutable() && !old.has_content_of(&object));
                if kept.is_some() {
                    conflicts.push(ObjectConflict::Immutable { key: key.clone() });
                }
                let object = kept.cloned().unwrap_or(object);
                now.insert(key, object);
            }
            touched.extend(before.into_keys().chain(now.keys().cloned()));
            if !now.is_empty() {
                objects.origins.insert(origin.to_owned(), now);
            }
            for key in touched {
                changed.extend(objects.choose(&key).then(|| key.clone()));
                let user = objects.in_use.get(&key).map(|(by, _)| by.clone());
                let gives = objects.origins.get(origin).is_some_and(|given| given.contains_key(&key));
                if let Some(by) = user.filter(|by| gives && by != origin) {
                    conflicts.push(ObjectConflict::Duplicate { key, by });
                }
            }
        }
        for key in changed {
            // No subscriber is no error.
            let _ = self.inner.changes.send(Change::Object(ObjectOrigin::Manifest, key));
        }
        conflicts
    }

    fn get(&self, origin: ObjectOrigin, kind: ObjectKind, namespace: &str, name: &str) -> Result<Object, Missing> {
        let key = ObjectKey { kind, namespace: namespace.to_owned(), name: name.to_owned() };
        let known = match (origin, &self.inner.api) {
            (ObjectOrigin::Manifest, _) => {
                let objects = self.inner.manifests.read();
                objects.in_use.get(&key).map_or(Some(Known::Absent), |(_, object)| Some(Known::Present(object.clone())))
            }
            (ObjectOrigin::ApiServer, Some(api)) => api.get(&key),
            (ObjectOrigin::ApiServer, None) => None,
        };
        let ObjectKey { namespace, name, .. } = key;
        match known {
            Some(Known::Present(object)) => Ok(object),
            Some(Known::Absent) => Err(Missing::NotFound { kind, name }),
            Some(Known::NotYet { reason }) => {
                let reason = reason.unwrap_or_else(|| "timed out waiting for the condition".to_owned());
                Err(Missing::NotKnown { kind, reason })
            }
            None => Err(Missing::NotRegistered { namespace, name }),
        }
    }
}

impl Objects {
    /// Picks the object in use under `key`; returns whether that changed.
    fn choose(&mut self, key: &ObjectKey) -> bool {
        let chosen = self.origins.iter().find_map(|(origin, given)| Some((origin.clone(), given.get(key)?.clone())));
        let before = match chosen {
            Some(chosen) => {
                let now = chosen.1.clone();
                return self.in_use.insert(key.clone(), chosen).is_none_or(|(_, before)| before != now);
            }
            None => self.in_use.remove(key),
        };
        before.is_some()
    }
}

fn keyed(set: ObjectSet) -> impl Iterator<Item = (ObjectKey, Object)> {
    let key = |kind, metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta| ObjectKey {
        kind,
        namespace: metadata.namespace.clone().filter(|n| !n.is_empty()).unwrap_or_else(|| "default".to_owned()),
        name: metadata.name.clone().unwrap_or_default(),
    };
    let config_maps = set
        .config_maps
        .into_iter()
        .map(move |object| (key(ObjectKind::ConfigMap, &object.metadata), Object::ConfigMap(Arc::new(object))));
    let secrets = set
        .secrets
        .into_iter()
        .map(move |object| (key(ObjectKind::Secret, &object.metadata), Object::Secret(Arc::new(object))));
    config_maps.chain(secrets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn set(name: &str, value: &str, immutable: Option<bool>) -> ObjectSet {
        let object = json!({"metadata": {"name": name}, "data": {"k": value}, "immutable": immutable});
        ObjectSet { config_maps: vec![serde_json::from_value(object).unwrap()], secrets: Vec::new() }
    }

    fn value(store: &ObjectStore, name: &str) -> Option<String> {
        store
            .config_map(ObjectOrigin::Manifest, "default", name)
            .ok()
            .and_then(|object| object.data.clone()?.remove("k"))
    }

    #[test]
    fn changes_are_told_once_and_only_when_something_changed() {
        let store = ObjectStore::default();
        let mut heard = store.changed();
        assert!(store.replace("a.yaml", set("c", "1", None)).is_empty());
        assert_eq!(value(&store, "c").as_deref(), Some("1"));
        store.replace("a.yaml", set("c", "1", None));
        store.replace("a.yaml", set("c", "2", None));
        store.replace("a.yaml", ObjectSet::default());
        let shown = |change| match change {
            Change::Object(ObjectOrigin::Manifest, key) => key.to_string(),
            other => panic!("{other:?}"),
        };
        let keys: Vec<String> = std::iter::from_fn(|| heard.try_recv().ok()).map(shown).collect();
        assert_eq!(keys, vec!["configmap \"default/c\""; 3], "added, changed, gone");
        assert_eq!(value(&store, "c"), None);
    }

    #[test]
    fn an_immutable_object_keeps_its_content_until_it_is_removed() {
        let store = ObjectStore::default();
        store.replace("a.yaml", set("c", "1", Some(true)));
        let conflicts = store.replace("a.yaml", set("c", "2", Some(true)));
        assert!(conflicts[0].to_string().starts_with("configmap \"default/c\" is immutable"), "{conflicts:?}");
        assert_eq!(value(&store, "c").as_deref(), Some("1"));
        store.replace("a.yaml", ObjectSet::default());
        assert!(store.replace("a.yaml", set("c", "2", Some(true))).is_empty());
        assert_eq!(value(&store, "c").as_deref(), Some("2"));
    }

    #[test]
    fn of_two_origins_the_first_by_name_is_used_and_the_other_takes_over_when_it_goes() {
        let store = ObjectStore::default();
        store.replace("b.yaml", set("c", "b", None));
        assert!(store.replace("a.yaml", set("c", "a", None)).is_empty());
        assert_eq!(value(&store, "c").as_deref(), Some("a"));
        let conflicts = store.replace("b.yaml", set("c", "b2", None));
        assert_eq!(
            conflicts[0].to_string(),
            "configmap \"default/c\" is already defined by a.yaml, which stays in use"
        );
        store.replace("a.yaml", ObjectSet::default());
        assert_eq!(value(&store, "c").as_deref(), Some("b2"));
    }

    #[test]
    fn a_secret_shows_nothing_of_itself_in_debug_output() {
        let secret = json!({"metadata": {"name": "s"}, "data": {"k": "aHVudGVyMg=="}});
        let set = ObjectSet { config_maps: Vec::new(), secrets: vec![serde_json::from_value(secret).unwrap()] };
        let shown = format!("{set:?}");
        let store = ObjectStore::default();
        store.replace("a", set);
        let shown = shown + &format!("{store:?}");
        assert!(!shown.contains("hunter2") && !shown.contains("104, 117"), "{shown}");
        let secret = |namespace| store.secret(ObjectOrigin::Manifest, namespace, "s").map(|_| ());
        assert_eq!(secret("default"), Ok(()));
        assert_eq!(secret("other").unwrap_err().to_string(), "secret \"s\" not found");
    }

    #[test]
    fn a_pod_of_the_api_server_never_sees_what_a_manifest_gave() {
        let store = ObjectStore::default();
        store.replace("a.yaml", set("c", "1", None));
        let error = store.config_map(ObjectOrigin::ApiServer, "default", "c").unwrap_err();
        assert_eq!(error.to_string(), "object \"default\"/\"c\" not registered");
    }
}
