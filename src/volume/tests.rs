//! Volumes of a pod, on real directories.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use serde_json::{Value, json};

use crate::objects::{ObjectKind, ObjectSet};
use crate::pod::downward::NodeFacts;
use crate::pod::run::Medium;
use crate::state::NoFaults;

use super::*;

struct Fixture {
    dir: tempfile::TempDir,
    memory: tempfile::TempDir,
    manager: VolumeManager,
    objects: ObjectStore,
    uid: PodUid,
    node: NodeFacts,
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    fs::create_dir(dir.path().join("manifests")).unwrap();
    let state = StateStore::open(dir.path().join("root"), Arc::new(NoFaults)).unwrap();
    let objects = ObjectStore::default();
    let config = VolumeConfig {
        memory_root: memory.path().join("wasilet"),
        host_path_allowed: vec![dir.path().join("allowed"), dir.path().join("mixed")],
        host_path_denied: vec![dir.path().join("mixed/secret")],
    };
    let manager = VolumeManager::new(config, state, objects.clone());
    let node = NodeFacts {
        name: "node".to_owned(),
        host_ips: Vec::new(),
        allocatable_cpu_milli: 2000,
        allocatable_memory_bytes: 1 << 30,
        allocatable_ephemeral_storage_bytes: 1 << 30,
    };
    Fixture { dir, memory, manager, objects, uid: PodUid::new("u").unwrap(), node }
}

impl Fixture {
    fn pod(volumes: &Value) -> Pod {
        let mount = |volume: &Value| json!({"name": volume["name"], "mountPath": format!("/{}", volume["name"])});
        let mounts: Vec<Value> = volumes.as_array().unwrap().iter().map(mount).collect();
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "ns", "labels": {"app": "web"}},
            "spec": {"containers": [{"name": "app", "resources": {"limits": {"memory": "64Mi"}}, "volumeMounts": mounts}], "volumes": volumes}}))
        .unwrap()
    }

    fn with<T>(&self, pod: &Pod, then: impl FnOnce(VolumeContext<'_>) -> T) -> T {
        let manifests = self.dir.path().join("manifests");
        let downward = Downward { pod, pod_ips: &[], node: &self.node };
        let origin = ObjectOrigin::Manifest;
        then(VolumeContext { uid: &self.uid, origin, manifest_dir: Some(&manifests), pending: &[], downward })
    }

    fn setup(&self, volume: &Value) -> Result<VolumeSource, String> {
        let mut volume = volume.clone();
        volume["name"] = json!("v");
        let pod = Self::pod(&json!([volume]));
        let result = self.with(&pod, |context| self.manager.setup(context, &Fetched::default()));
        result.map(|mut specs| specs.remove(0).source).map_err(|error| error.to_string())
    }

    fn files(&self, volume: &Value) -> Vec<(String, String, u32)> {
        let VolumeSource::Projection(projection) = self.setup(volume).unwrap() else { panic!("no projection") };
        let show = |(path, file): (String, crate::pod::run::ProjectedFile)| {
            (path, String::from_utf8_lossy(&file.data).into_owned(), file.mode)
        };
        projection.files.into_iter().map(show).collect()
    }

    fn give(&self, kind: ObjectKind, object: Value) {
        let mut set = ObjectSet::default();
        match kind {
            ObjectKind::ConfigMap => set.config_maps.push(serde_json::from_value(object).unwrap()),
            ObjectKind::Secret => set.secrets.push(serde_json::from_value(object).unwrap()),
        }
        assert!(self.objects.replace(&format!("{kind:?}"), set).is_empty());
    }

    fn give_both(&self) {
        let meta = |name: &str| json!({"name": name, "namespace": "ns"});
        self.give(
            ObjectKind::ConfigMap,
            json!({"metadata": meta("c"), "data": {"a": "1", "b": "2"}, "binaryData": {"bin": "AAE="}}),
        );
        self.give(ObjectKind::Secret, json!({"metadata": meta("s"), "data": {"password": "aHVudGVyMg=="}}));
    }
}

fn owned(rows: &[(&str, &str, u32)]) -> Vec<(String, String, u32)> {
    rows.iter().map(|(path, data, mode)| ((*path).to_owned(), (*data).to_owned(), *mode)).collect()
}

#[test]
fn an_empty_dir_is_open_to_all_survives_the_agent_and_keeps_what_guests_made_of_it() {
    let fixture = fixture();
    let source = fixture.setup(&json!({"emptyDir": {"sizeLimit": "1Mi"}})).unwrap();
    let VolumeSource::NodeDirectory { path, size_limit, medium } = source else { panic!() };
    assert!(path.ends_with("pods/u/volumes/kubernetes.io~empty-dir/v"));
    assert_eq!((size_limit, medium), (Some(1 << 20), Medium::Disk));
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o777);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(path.join("x"), "kept").unwrap();
    fixture.setup(&json!({"emptyDir": {}})).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
    assert!(path.join("x").exists());
}

#[test]
fn a_memory_empty_dir_is_on_a_tmpfs_and_goes_with_the_pod() {
    let fixture = fixture();
    let source = fixture.setup(&json!({"emptyDir": {"medium": "Memory"}})).unwrap();
    let VolumeSource::NodeDirectory { path, size_limit, medium } = source else { panic!() };
    assert!(path.starts_with(fixture.memory.path()));
    assert_eq!((size_limit, medium), (Some(64 << 20), Medium::Memory), "what the pod may use");
    assert_eq!(fixture.manager.pods_with_memory(), std::slice::from_ref(&fixture.uid));
    fs::create_dir(path.join("deep")).unwrap();
    fixture.manager.teardown(&fixture.uid).unwrap();
    fixture.manager.teardown(&fixture.uid).unwrap();
    assert!(fixture.manager.pods_with_memory().is_empty());
    let error = fixture.setup(&json!({"emptyDir": {"medium": "HugePages"}})).unwrap_err();
    assert!(
        error.ends_with("storage medium \"HugePages\" is not supported by this node: it has no huge pages"),
        "{error}"
    );
    let error = fixture.setup(&json!({"emptyDir": {"medium": "Tape"}})).unwrap_err();
    assert_eq!(error, "MountVolume.SetUp failed for volume \"v\" : unknown storage medium \"Tape\"");
}

#[test]
fn a_memory_root_that_someone_else_could_read_is_refused() {
    let fixture = fixture();
    let root = fixture.memory.path().join("wasilet");
    fs::create_dir(&root).unwrap();
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
    let error = fixture.setup(&json!({"emptyDir": {"medium": "Memory"}})).unwrap_err();
    assert!(error.contains("is not a directory of this node alone"), "{error}");
}

#[test]
fn config_maps_and_secrets_become_files_with_their_modes() {
    let fixture = fixture();
    fixture.give_both();
    assert_eq!(
        fixture.files(&json!({"configMap": {"name": "c"}})),
        owned(&[("a", "1", 0o644), ("b", "2", 0o644), ("bin", "\0\u{1}", 0o644)])
    );
    let items = json!([{"key": "a", "path": "x/./y", "mode": 0o600}, {"key": "b", "path": "z"}]);
    assert_eq!(
        fixture.files(&json!({"configMap": {"name": "c", "defaultMode": 0o440, "items": items}})),
        owned(&[("x/y", "1", 0o600), ("z", "2", 0o440)])
    );
    assert_eq!(
        fixture.files(&json!({"secret": {"secretName": "s", "defaultMode": 0o400}})),
        owned(&[("password", "hunter2", 0o400)])
    );
    let absent = json!({"configMap": {"name": "none", "optional": true}});
    assert_eq!(fixture.files(&absent), []);
}

#[test]
fn a_projected_volume_joins_its_sources_and_the_later_one_wins() {
    let fixture = fixture();
    fixture.give_both();
    let sources = json!([
        {"configMap": {"name": "c", "items": [{"key": "a", "path": "same"}, {"key": "b", "path": "cfg/b"}]}},
        {"secret": {"name": "s", "items": [{"key": "password", "path": "same", "mode": 0o400}]}},
        {"downwardAPI": {"items": [
            {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
            {"path": "mem", "resourceFieldRef": {"containerName": "app", "resource": "limits.memory", "divisor": "1Mi"}}]}}]);
    assert_eq!(
        fixture.files(&json!({"projected": {"sources": sources, "defaultMode": 0o640}})),
        owned(&[
            ("cfg/b", "2", 0o640),
            ("labels", "app=\"web\"", 0o640),
            ("mem", "64", 0o640),
            ("same", "hunter2", 0o400)
        ])
    );
}

#[test]
fn what_cannot_be_projected_is_said_in_the_kubelets_words() {
    let fixture = fixture();
    fixture.give_both();
    let prefix = "MountVolume.SetUp failed for volume \"v\" : ";
    let item = |key: &str, path: &str| json!({"configMap": {"name": "c", "items": [{"key": key, "path": path}]}});
    for (volume, expected) in [
        (json!({"configMap": {"name": "y"}}), "configmap \"y\" not found"),
        (json!({"secret": {"secretName": "y"}}), "secret \"y\" not found"),
        (item("nope", "x"), "configmap references non-existent config key: nope"),
        (
            json!({"secret": {"secretName": "s", "items": [{"key": "k", "path": "p"}]}}),
            "references non-existent secret key: k",
        ),
        (item("a", "/etc/x"), "invalid path: must be relative path: /etc/x"),
        (item("a", "x/../y"), "invalid path: must not contain '..': x/../y"),
        (item("a", "..data"), "invalid path: must not start with '..': ..data"),
        (
            json!({"projected": {"sources": [{"configMap": {"name": "x"}}, {"secret": {"name": "y"}}]}}),
            "[configmap \"x\" not found, secret \"y\" not found]",
        ),
        (
            json!({"projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}),
            "cannot setup projected volume v because kube client is not configured: serviceAccountToken comes from an API server",
        ),
        (
            json!({"downwardAPI": {"items": [{"path": "p", "fieldRef": {"fieldPath": "spec.foo"}}]}}),
            "unsupported fieldPath: spec.foo",
        ),
        (
            json!({"persistentVolumeClaim": {"claimName": "p"}}),
            "claims come from an API server, which this pod has none of",
        ),
        (json!({}), "no volume plugin matched: the volume has no source"),
    ] {
        assert_eq!(fixture.setup(&volume).unwrap_err(), format!("{prefix}{expected}"));
    }
    let both = json!({"configMap": {"name": "c", "items": [{"key": "a", "path": "d"}, {"key": "b", "path": "d/e"}]}});
    assert!(fixture.setup(&both).unwrap_err().contains("d is a file and cannot contain d/e"));
}

#[test]
fn a_changed_object_gives_the_new_content_of_the_volumes_it_is_in() {
    let fixture = fixture();
    fixture.give_both();
    let pod = Fixture::pod(&json!([
        {"name": "one", "configMap": {"name": "c"}}, {"name": "two", "secret": {"secretName": "s"}},
        {"name": "three", "projected": {"sources": [{"configMap": {"name": "c"}}]}}, {"name": "four", "emptyDir": {}}]));
    let key = |kind, name: &str| ObjectKey { kind, namespace: "ns".to_owned(), name: name.to_owned() };
    let config_map = key(ObjectKind::ConfigMap, "c");
    let change = |origin| Change::Object(origin, config_map.clone());
    let (changed, none) = (change(ObjectOrigin::Manifest), Fetched::default());
    let refresh =
        |changed: Option<&Change>| fixture.with(&pod, |context| fixture.manager.refresh(context, changed, &none));
    fixture.give(ObjectKind::ConfigMap, json!({"metadata": {"name": "c", "namespace": "ns"}, "data": {"a": "new"}}));
    let refreshed = refresh(Some(&changed));
    let names: Vec<&str> = refreshed.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["one", "three"]);
    assert_eq!(refreshed[0].1.as_ref().unwrap().files["a"].data, b"new");
    assert_eq!(refresh(None).len(), 3);
    assert_eq!(refresh(Some(&change(ObjectOrigin::ApiServer))).len(), 0, "another's object of the same name");
    let references = fixture.with(&pod, |context| fixture.manager.references(context));
    assert_eq!(references.into_iter().collect::<Vec<_>>(), [config_map.clone(), key(ObjectKind::Secret, "s")]);
    fixture.objects.replace("ConfigMap", ObjectSet::default());
    let gone = refresh(Some(&changed));
    assert!(gone[0].1.as_ref().unwrap_err().to_string().ends_with("configmap \"c\" not found"));
}

#[test]
fn a_host_path_is_what_its_type_says_and_where_the_node_allows() {
    let fixture = fixture();
    let dir = fixture.dir.path().canonicalize().unwrap();
    let allowed = dir.join("allowed");
    fs::create_dir(&allowed).unwrap();
    fs::create_dir_all(dir.join("mixed/secret")).unwrap();
    fs::write(allowed.join("file"), "").unwrap();
    symlink(&allowed, dir.join("manifests/inside")).unwrap();
    symlink("/etc", dir.join("manifests/outside")).unwrap();
    symlink("nowhere", dir.join("manifests/dangling")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(allowed.join("sock")).unwrap();
    let setup = |path: &str, kind: &str| {
        let path = if path.starts_with('/') { path.to_owned() } else { dir.join(path).display().to_string() };
        fixture.setup(&json!({"hostPath": {"path": path, "type": kind}}))
    };
    for (path, kind, expected) in [
        ("allowed", "", "allowed"),
        ("allowed", "Directory", "allowed"),
        ("allowed/file", "File", "allowed/file"),
        ("allowed/new/deep", "DirectoryOrCreate", "allowed/new/deep"),
        ("allowed/made", "FileOrCreate", "allowed/made"),
        ("allowed/untyped", "", "allowed/untyped"),
        ("manifests", "Directory", "manifests"),
        ("manifests/inside/file", "File", "allowed/file"),
    ] {
        let expected = VolumeSource::HostPath { path: dir.join(expected), hidden: Vec::new() };
        assert_eq!(setup(path, kind), Ok(expected), "{path} {kind}");
    }
    assert!(allowed.join("made").is_file() && allowed.join("new/deep").is_dir());
    // What belongs to the node is not shown with the rest.
    let expected = VolumeSource::HostPath { path: dir.join("mixed"), hidden: vec![dir.join("mixed/secret")] };
    assert_eq!(setup("mixed", "Directory"), Ok(expected));
    for (path, kind, part) in [
        ("allowed/file", "Directory", "hostPath type check failed: "),
        ("allowed/file", "Directory", "/allowed/file is not a directory"),
        ("allowed", "File", "is not a file"),
        ("allowed/none", "Directory", "is not a directory"),
        ("allowed/file", "Socket", "is not a socket file"),
        ("allowed/file", "CharDevice", "is not a character device"),
        ("allowed/file", "BlockDevice", "is not a block device"),
        ("allowed/file", "Wrong", "Wrong is an invalid volume type"),
        ("allowed/sock", "Socket", "is a socket of the host"),
        ("allowed/sock", "", "is a socket of the host"),
        ("allowed/../etc", "", "must not contain '..'"),
        ("mixed/secret/key", "", "belongs to the node"),
        ("mixed/secret", "", "belongs to the node"),
        ("root/pods", "", "belongs to the node"),
        ("/proc/1", "", "/proc belongs to the node"),
        ("/dev/null", "CharDevice", "/dev belongs to the node"),
        ("/", "", "not allowed on this node (allowed prefixes: "),
        ("/etc", "", "not allowed on this node (allowed prefixes: "),
        ("manifests/outside/passwd", "", "not allowed on this node"),
        ("manifests/dangling", "", "No such file"),
    ] {
        let error = setup(path, kind).unwrap_err();
        assert!(error.contains(part), "{path} {kind}: {error}");
    }
}

#[test]
fn volumes_that_no_container_mounts_and_images_are_left_alone() {
    let fixture = fixture();
    let mut pod = Fixture::pod(&json!([{"name": "used", "emptyDir": {}}]));
    let more = json!([{"name": "unused", "configMap": {"name": "none"}}, {"name": "img", "image": {"reference": "x"}}]);
    let more: Vec<Volume> = serde_json::from_value(more).unwrap();
    let spec = pod.spec.as_mut().unwrap();
    spec.volumes.as_mut().unwrap().extend(more);
    let mount = serde_json::from_value(json!({"name": "img", "mountPath": "/img"})).unwrap();
    spec.containers[0].volume_mounts.as_mut().unwrap().push(mount);
    let made = fixture.with(&pod, |context| fixture.manager.setup(context, &Fetched::default())).unwrap();
    assert_eq!(made.iter().map(|volume| volume.name.as_str()).collect::<Vec<_>>(), ["used"]);
}

#[test]
fn every_volume_that_fails_is_told_of() {
    let fixture = fixture();
    let pod = Fixture::pod(&json!([
        {"name": "a", "configMap": {"name": "x"}}, {"name": "b", "emptyDir": {}}, {"name": "c", "secret": {"secretName": "y"}}]));
    let failed = fixture.with(&pod, |context| fixture.manager.setup(context, &Fetched::default())).unwrap_err();
    assert_eq!(
        failed.messages(),
        [
            "MountVolume.SetUp failed for volume \"a\" : configmap \"x\" not found",
            "MountVolume.SetUp failed for volume \"c\" : secret \"y\" not found"
        ]
    );
}

fn persistent(name: &str, mut spec: Value) -> PersistentVolume {
    spec["claimRef"] = json!({"uid": "c"});
    serde_json::from_value(
        json!({"metadata": {"name": name, "annotations": {"pv.beta.kubernetes.io/gid": "77"}}, "spec": spec}),
    )
    .unwrap()
}

#[test]
fn a_persistent_volume_is_a_directory_for_one_pod_or_many() {
    let fixture = fixture();
    let allowed = fixture.dir.path().canonicalize().unwrap().join("allowed");
    fs::create_dir(&allowed).unwrap();
    let claim = json!({"name": "v", "persistentVolumeClaim": {"claimName": "c", "readOnly": true}});
    let pod = Fixture::pod(&json!([claim]));
    let volume: Volume = serde_json::from_value(claim).unwrap();
    let (first, second) = (PodUid::new("one").unwrap(), PodUid::new("two").unwrap());
    let mount = |uid: &PodUid, given: &PersistentVolume| {
        fixture.with(&pod, |context| fixture.manager.persistent(VolumeContext { uid, ..context }, &volume, given))
    };
    let mut spec = json!({"local": {"path": allowed}, "accessModes": ["ReadWriteOncePod"]});
    let alone = persistent("pv", spec.clone());
    let made = mount(&first, &alone).unwrap();
    assert_eq!((made.access, made.group), (Access::ReadOnly, Some(77)));
    assert_eq!(made.source, VolumeSource::HostPath { path: allowed, hidden: Vec::new() });
    assert_eq!(
        mount(&second, &alone).unwrap_err().to_string(),
        "MountVolume.SetUp failed for volume \"pv\" : volume uses the ReadWriteOncePod access mode and is already in use by another pod"
    );
    mount(&first, &alone).unwrap();
    fixture.manager.teardown(&first).unwrap();
    mount(&second, &alone).unwrap();
    spec["accessModes"] = json!(["ReadWriteOncePod", "ReadWriteMany"]);
    mount(&first, &persistent("pv", spec)).unwrap();
    for (case, spec, expected) in [
        (
            "a path that is not there",
            json!({"local": {"path": "/nonexistent/x"}}),
            "MountVolume.NewMounter initialization failed for volume \"pv\" : path \"/nonexistent/x\" does not exist",
        ),
        (
            "a kind this node cannot mount",
            json!({"nfs": {"server": "s", "path": "/"}}),
            "MountVolume.FindPluginBySpec failed for volume \"pv\" : volumes of type nfs are not supported by this node: \
             use a CSI driver, or a hostPath or local volume",
        ),
    ] {
        assert_eq!(mount(&first, &persistent("pv", spec)).unwrap_err().to_string(), expected, "{case}");
    }
    let block = persistent("pv", json!({"volumeMode": "Block", "local": {"path": "/dev/x"}}));
    assert!(mount(&first, &block).unwrap_err().to_string().contains("volume v has volumeMode Block"), "block");
}
