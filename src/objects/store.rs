//! The objects themselves, by origin and by name.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use parking_lot::RwLock;
use tokio::sync::broadcast;

use super::{ObjectConflict, ObjectKey, ObjectKind, ObjectSet};

/// Changes a subscriber may be behind; after that it looks at everything again.
const SUBSCRIBER_QUEUE: usize = 256;

/// Newest known ConfigMaps and Secrets. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ObjectStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    objects: RwLock<Objects>,
    changes: broadcast::Sender<ObjectKey>,
}

#[derive(Debug, Default)]
struct Objects {
    /// What each origin gave.
    origins: BTreeMap<String, BTreeMap<ObjectKey, Object>>,
    /// What is in use, and whose.
    in_use: HashMap<ObjectKey, (String, Object)>,
}

#[derive(Clone, PartialEq)]
enum Object {
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
    fn is_immutable(&self) -> bool {
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
        let (changes, _) = broadcast::channel(SUBSCRIBER_QUEUE);
        Self { inner: Arc::new(Inner { objects: RwLock::default(), changes }) }
    }
}

impl ObjectStore {
    /// A ConfigMap, if there is one.
    #[must_use]
    pub fn get_config_map(&self, namespace: &str, name: &str) -> Option<Arc<ConfigMap>> {
        match self.get(ObjectKind::ConfigMap, namespace, name)? {
            Object::ConfigMap(object) => Some(object),
            Object::Secret(_) => None,
        }
    }

    /// A Secret, if there is one.
    #[must_use]
    pub fn get_secret(&self, namespace: &str, name: &str) -> Option<Arc<Secret>> {
        match self.get(ObjectKind::Secret, namespace, name)? {
            Object::Secret(object) => Some(object),
            Object::ConfigMap(_) => None,
        }
    }

    /// Word of each change (added, changed, gone). On `Lagged`, look at everything again.
    #[must_use]
    pub fn changed(&self) -> broadcast::Receiver<ObjectKey> {
        self.inner.changes.subscribe()
    }

    /// Replaces everything that `origin` (a manifest's path) gave before; an empty set forgets the origin.
    ///
    /// Returns what was not taken over, for the caller to tell; the rest is in use when this returns.
    pub fn replace(&self, origin: &str, set: ObjectSet) -> Vec<ObjectConflict> {
        let mut conflicts = Vec::new();
        let mut touched: BTreeSet<ObjectKey> = BTreeSet::new();
        let mut changed = Vec::new();
        {
            let mut objects = self.inner.objects.write();
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
            let _ = self.inner.changes.send(key);
        }
        conflicts
    }

    fn get(&self, kind: ObjectKind, namespace: &str, name: &str) -> Option<Object> {
        let key = ObjectKey { kind, namespace: namespace.to_owned(), name: name.to_owned() };
        self.inner.objects.read().in_use.get(&key).map(|(_, object)| object.clone())
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
        store.get_config_map("default", name).and_then(|object| object.data.clone()?.remove("k"))
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
        let keys: Vec<String> = std::iter::from_fn(|| heard.try_recv().ok()).map(|key| key.to_string()).collect();
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
        assert!(store.get_secret("default", "s").is_some() && store.get_secret("other", "s").is_none());
    }
}
