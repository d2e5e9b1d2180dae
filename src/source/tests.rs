//! Manifests as users write them, well and badly, and directories of them that change.

use std::fs;
use std::path::Path;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::objects::{ObjectOrigin, ObjectStore};

use super::file::{FileSource, FileSourceConfig};
use super::manifest::parse;
use super::*;

const WEB: &str =
    "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  containers:\n  - name: app\n    image: web:1\n";

fn names(text: &str) -> Vec<String> {
    let manifest = parse(Path::new("m.yaml"), text.as_bytes()).unwrap_or_else(|error| panic!("{error}"));
    manifest.pods.into_iter().map(|pod| pod.metadata.name.unwrap()).collect()
}

fn error(text: &str) -> String {
    match parse(Path::new("m.yaml"), text.as_bytes()) {
        Ok(_) => panic!("accepted: {text}"),
        Err(error) => error.to_string(),
    }
}

fn controller(version: &str, kind: &str, spec: &str, policy: &str) -> String {
    format!(
        "apiVersion: {version}\nkind: {kind}\nmetadata: {{name: web, namespace: shop}}\nspec:\n  {spec}\n  selector: {{matchLabels: {{app: web}}}}\n  \
         template:\n    metadata: {{labels: {{app: web}}}}\n    spec:\n      restartPolicy: {policy}\n      containers: [{{name: app, image: \"web:1\"}}]\n"
    )
}

#[test]
fn documents_become_pods_and_objects() {
    let text = format!(
        "# demo\n---\n{WEB}---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: c}}\ndata: {{k: v}}\n---\napiVersion: v1\nkind: Secret\n\
         metadata: {{name: s}}\ndata: {{a: aGk=, b: aGk=}}\nstringData: {{b: there}}\n---\napiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {{anything: 1}}\n"
    );
    let manifest = parse(Path::new("m.yaml"), text.as_bytes()).unwrap();
    assert_eq!(manifest.pods.len(), 1);
    assert_eq!(
        manifest.pods[0].spec.as_ref().unwrap().restart_policy.as_deref(),
        Some("Always"),
        "defaults are applied"
    );
    let secret = &manifest.objects.secrets[0];
    let data = secret.data.as_ref().unwrap();
    assert_eq!((&data["a"].0[..], &data["b"].0[..], &secret.string_data), (&b"hi"[..], &b"there"[..], &None));
    assert_eq!(manifest.objects.config_maps.len(), 1);
    assert_eq!(
        manifest.warnings,
        ["m.yaml:22:1: Service \"web\" is left out: it has no meaning on a node without a cluster"]
    );
    let list = format!("apiVersion: v1\nkind: List\nitems:\n- {}\n", WEB.trim_end().replace('\n', "\n  "));
    assert_eq!(names(&list), ["web"]);
    assert!(names("").is_empty());
    let json = serde_json::json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "j"}, "spec": {"containers": [{"name": "a", "image": "i"}]}});
    assert_eq!(names(&json.to_string()), ["j"]);
}

#[test]
fn controllers_become_their_pods_under_stable_names() {
    let pods = |version: &str, kind: &str, spec: &str| names(&controller(version, kind, spec, "Always"));
    assert_eq!(pods("apps/v1", "Deployment", "replicas: 2"), ["web-0", "web-1"]);
    assert_eq!(pods("apps/v1", "Deployment", "paused: false"), ["web-0"]);
    assert_eq!(pods("apps/v1", "Deployment", "replicas: 0"), Vec::<String>::new());
    assert_eq!(pods("apps/v1", "ReplicaSet", "replicas: 1"), ["web-0"]);
    assert_eq!(pods("apps/v1", "DaemonSet", "minReadySeconds: 1"), ["web"]);
    let text = controller("apps/v1", "StatefulSet", "replicas: 2\n  serviceName: db\n  ordinals: {start: 3}", "Always");
    let pods = parse(Path::new("m.yaml"), text.as_bytes()).unwrap().pods;
    assert_eq!(pods[1].metadata.name.as_deref(), Some("web-4"));
    assert_eq!(pods[1].metadata.namespace.as_deref(), Some("shop"));
    let spec = pods[1].spec.as_ref().unwrap();
    assert_eq!((spec.hostname.as_deref(), spec.subdomain.as_deref()), (Some("web-4"), Some("db")));
}

#[test]
fn a_job_is_one_pod_or_one_for_each_completion() {
    let job = |spec: &str| {
        let text = controller("batch/v1", "Job", spec, "Never").replace("  selector: {matchLabels: {app: web}}\n", "");
        parse(Path::new("m.yaml"), text.as_bytes()).unwrap()
    };
    let names = |manifest: &manifest::Manifest| -> Vec<String> {
        manifest.pods.iter().map(|pod| pod.metadata.name.clone().unwrap()).collect()
    };
    assert_eq!(names(&job("ttlSecondsAfterFinished: 5")), ["web"]);
    assert_eq!(names(&job("parallelism: 2")), ["web-0", "web-1"]);
    let indexed = job("completions: 2\n  completionMode: Indexed\n  activeDeadlineSeconds: 9");
    assert_eq!(names(&indexed), ["web-0", "web-1"]);
    let spec = indexed.pods[1].spec.as_ref().unwrap();
    assert_eq!(spec.active_deadline_seconds, Some(9));
    let env = spec.containers[0].env.as_ref().unwrap();
    assert_eq!((env[0].name.as_str(), env[0].value.as_deref()), ("JOB_COMPLETION_INDEX", Some("1")));
    assert!(indexed.warnings[0].contains("all 2 completions run at once"), "{:?}", indexed.warnings);
    assert!(job("suspend: true").pods.is_empty());
    assert!(error(&controller("batch/v1", "Job", "backoffLimit: 1", "Always")).contains(
        "The Job \"web\" is invalid: spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\""
    ));
}

#[test]
fn mistakes_are_told_as_kubectl_tells_them_with_their_place() {
    for (text, expected) in [
        (
            format!("{WEB}    foo: 1\n  bar: 2\n"),
            "m.yaml:8:5: Pod \"web\": strict decoding error: unknown field \"spec.containers[0].foo\", unknown field \"spec.bar\"",
        ),
        (format!("{WEB}    image: x\n"), "m.yaml:8:5: strict decoding error: key \"image\" already set in map"),
        (
            format!("{WEB}    ports: [{{containerPort: http}}]\n"),
            "m.yaml:8:29: spec.containers[0].ports[0].containerPort: expected a whole number (32 bits), found a string",
        ),
        (
            format!("{WEB}    env: [{{name: A, value: 8080}}]\n"),
            "m.yaml:8:28: spec.containers[0].env[0].value: expected a string, found a whole number (put it in quotes)",
        ),
        (format!("{WEB}   bad indent\n"), "m.yaml:"),
        ("metadata: {name: x}\n".to_owned(), "m.yaml:1:1: kind not set"),
        ("kind: Pod\n".to_owned(), "m.yaml:1:1: apiVersion not set"),
        (
            "apiVersion: batch/v1\nkind: CronJob\n".to_owned(),
            "m.yaml:1:1: CronJob (batch/v1) cannot be run without a cluster",
        ),
        (
            WEB.replace("metadata: {name: web}", "metadata: {}"),
            "m.yaml:1:1: The Pod \"\" is invalid: metadata.name: Required value",
        ),
        ("- 1\n".to_owned(), "m.yaml:1:1: kind not set"),
        (
            controller("apps/v1", "Deployment", "replicas: -1", "Always"),
            "m.yaml:1:1: The Deployment \"web\" is invalid: spec.replicas: Invalid value: -1",
        ),
        (
            controller("apps/v1", "Deployment", "replicas: 1", "Never"),
            "m.yaml:1:1: The Deployment \"web\" is invalid: spec.template.spec.restartPolicy: Unsupported value: \"Never\"",
        ),
        (
            controller("apps/v1", "Deployment", "replicas: 1", "Always")
                .replace("labels: {app: web}}\n    spec", "labels: {app: other}}\n    spec"),
            "m.yaml:1:1: The Deployment \"web\" is invalid: spec.template.metadata.labels: Invalid value: `selector` does not match",
        ),
        (
            controller("apps/v1", "Deployment", "replicas: 2000000000", "Always"),
            "m.yaml:1:1: a manifest may have at most 10000 pods",
        ),
        (
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {../x: z}\n".to_owned(),
            "m.yaml:1:1: The ConfigMap \"c\" is invalid: data[../x]: Invalid value",
        ),
    ] {
        let found = error(&text);
        assert!(found.starts_with(expected), "{text}\n{found}");
    }
    assert_eq!(parse(Path::new("b"), b"a: \xff").unwrap_err().to_string(), "b: manifest is not UTF-8 (byte 3)");
    assert!(parse(Path::new("b"), &vec![b' '; manifest::MAX_BYTES + 1]).is_err());
}

#[test]
fn a_secret_never_shows_in_an_error() {
    let text = "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {password: 12345}\n";
    assert!(!error(text).contains("12345"));
    let text = "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: {password: 'not base64: hunter2'}\n";
    assert!(!error(text).contains("hunter2"), "{}", error(text));
}

fn source(dir: &Path, objects: &ObjectStore) -> FileSource {
    let period = Duration::from_secs(20);
    let config = FileSourceConfig { path: dir.to_owned(), node_name: "node".to_owned(), period };
    FileSource::new(config, Clock::System, objects.clone())
}

/// `+name`, `-name`, `~name` for updates, `!` for problems, `?` for warnings.
fn shown(changes: &[PodUpdate]) -> Vec<String> {
    let show = |change: &PodUpdate| match change {
        PodUpdate::Add(pod) => format!("+{}", pod.reference()),
        PodUpdate::Update(pod) => format!("~{}", pod.reference()),
        PodUpdate::Remove { pod, .. } => format!("-{pod}"),
        PodUpdate::Problem { message, .. } => format!("!{}", message.rsplit('/').next().unwrap_or_default()),
        PodUpdate::Warning { message, .. } => format!("?{}", message.rsplit('/').next().unwrap_or_default()),
        PodUpdate::Synced(_) => "synced".to_owned(),
    };
    changes.iter().map(show).collect()
}

#[test]
fn a_directory_is_followed_through_its_changes() {
    let dir = tempfile::tempdir().unwrap();
    let objects = ObjectStore::default();
    let mut source = source(&dir.path().join("manifests"), &objects);
    assert!(source.scan().is_empty(), "an absent directory is an empty one");
    let dir = dir.path().join("manifests");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("web.yaml"), WEB).unwrap();
    for (name, text) in [(".hidden.yaml", WEB), ("note.txt", "x"), ("web.yaml~", WEB)] {
        fs::write(dir.join(name), text).unwrap();
    }
    fs::create_dir(dir.join("sub.yaml")).unwrap();
    assert_eq!(shown(&source.scan()), ["+default/web-node"]);
    assert!(source.scan().is_empty());
    fs::write(dir.join("web.yaml"), WEB.replace("web:1", "web:2")).unwrap();
    assert_eq!(shown(&source.scan()), ["-default/web-node", "+default/web-node"], "a changed pod is another pod");
    fs::write(dir.join("web.yaml"), format!("# only a comment\n{}", WEB.replace("web:1", "web:2"))).unwrap();
    assert!(source.scan().is_empty());
    fs::remove_file(dir.join("web.yaml")).unwrap();
    assert_eq!(shown(&source.scan()), ["-default/web-node"]);
}

#[test]
fn a_bad_file_keeps_its_last_good_pods_and_disturbs_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let mut source = source(dir.path(), &ObjectStore::default());
    fs::write(dir.path().join("a.yaml"), WEB).unwrap();
    fs::write(dir.path().join("b.yaml"), WEB.replace("name: web", "name: other")).unwrap();
    fs::write(dir.path().join("c.yaml"), "{").unwrap();
    let first = shown(&source.scan());
    assert!(first[0].starts_with("!c.yaml:") && first.len() == 3, "{first:?}");
    fs::write(dir.path().join("a.yaml"), "kind: Pod").unwrap();
    assert_eq!(shown(&source.scan()), ["!a.yaml:1:1: apiVersion not set"]);
    assert!(source.scan().is_empty(), "told once");
    fs::write(dir.path().join("a.yaml"), WEB).unwrap();
    assert!(source.scan().is_empty(), "right again, and the pod never went");
    fs::write(dir.path().join("a.yaml"), "kind: Pod").unwrap();
    source.scan();
    fs::remove_file(dir.path().join("a.yaml")).unwrap();
    assert_eq!(shown(&source.scan()), ["-default/web-node"]);
}

#[test]
fn of_two_pods_with_one_name_the_first_files_runs_until_it_goes() {
    let dir = tempfile::tempdir().unwrap();
    let mut source = source(dir.path(), &ObjectStore::default());
    fs::write(dir.path().join("b.yaml"), WEB).unwrap();
    source.scan();
    fs::write(dir.path().join("c.yaml"), WEB.replace("web:1", "web:2")).unwrap();
    let told = source.scan();
    assert_eq!(told.len(), 1);
    let PodUpdate::Warning { message, .. } = &told[0] else { panic!("{told:?}") };
    assert!(message.contains("c.yaml: pod default/web-node is already defined by") && message.ends_with("b.yaml"));
    assert!(source.scan().is_empty(), "told once");
    fs::remove_file(dir.path().join("b.yaml")).unwrap();
    assert_eq!(shown(&source.scan()), ["-default/web-node", "+default/web-node"]);
}

#[test]
fn a_uid_of_ones_own_makes_a_change_an_update() {
    let dir = tempfile::tempdir().unwrap();
    let mut source = source(dir.path(), &ObjectStore::default());
    let text = WEB.replace("{name: web}", "{name: web, uid: mine}");
    fs::write(dir.path().join("a.yaml"), &text).unwrap();
    assert_eq!(shown(&source.scan()), ["+default/web-node"]);
    fs::write(dir.path().join("a.yaml"), text.replace("web:1", "web:2")).unwrap();
    assert_eq!(shown(&source.scan()), ["~default/web-node"]);
    fs::write(dir.path().join("a.yaml"), format!("{}\n\n", text.replace("web:1", "web:2"))).unwrap();
    assert!(source.scan().is_empty(), "the time it was first seen stays");
}

#[test]
fn a_named_file_alone_is_read_and_what_follows_from_it_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let mut source = source(dir.path(), &ObjectStore::default());
    fs::write(file("b.yaml"), WEB).unwrap();
    source.scan();
    fs::write(file("b.yaml"), WEB.replace("web:1", "web:2")).unwrap();
    fs::write(file("c.yaml"), WEB.replace("web:1", "web:3")).unwrap();
    fs::write(file("note.txt"), "x").unwrap();
    let mut named = |names: &[&str]| source.scan_files(names.iter().map(|name| dir.path().join(name)).collect());
    assert!(named(&["note.txt", ".b.yaml.swp", "gone.yaml"]).is_empty());
    assert_eq!(named(&["c.yaml"]).len(), 1, "b.yaml was not named: its pod stays as it is, and c.yaml's is the second");
    assert_eq!(shown(&named(&["b.yaml"])), ["-default/web-node", "+default/web-node"]);
    fs::remove_file(file("b.yaml")).unwrap();
    assert_eq!(
        shown(&named(&["b.yaml"])),
        ["-default/web-node", "+default/web-node"],
        "c.yaml's pod is the only one now"
    );
    fs::remove_file(file("c.yaml")).unwrap();
    assert_eq!(shown(&named(&["..data"])), ["-default/web-node"], "a directory swapped as a whole is read as a whole");
}

#[test]
fn what_is_told_of_named_files_adds_up_to_what_a_new_look_at_all_would_tell() {
    let dir = tempfile::tempdir().unwrap();
    let mut followed = source(dir.path(), &ObjectStore::default());
    let (mut running, mut seed) = (std::collections::BTreeMap::new(), 7_u64);
    for step in 0..400 {
        // Any numbers do, as long as files come, change, swap pods and go.
        let mut next = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        let mut changed = std::collections::BTreeSet::new();
        for _ in 0..=next(3) {
            let path = dir.path().join(format!("f{}.yaml", next(4)));
            let pod = |name: u64, image: u64| {
                let uid = if name < 2 { format!(", uid: u{name}") } else { String::new() };
                WEB.replace("{name: web}", &format!("{{name: p{name}{uid}}}")).replace("web:1", &format!("web:{image}"))
            };
            match next(4) {
                0 => drop(fs::remove_file(&path)),
                1 => fs::write(&path, format!("{}---\n{}", pod(next(3), next(2)), pod(3 + next(3), next(2)))).unwrap(),
                _ => fs::write(&path, pod(next(6), next(2))).unwrap(),
            }
            changed.insert(path);
        }
        for update in followed.scan_files(changed) {
            match update {
                PodUpdate::Add(pod) => {
                    assert!(running.insert(pod.uid.clone(), pod.pod).is_none(), "step {step}: {} is there", pod.uid);
                }
                PodUpdate::Update(pod) => {
                    assert!(
                        running.insert(pod.uid.clone(), pod.pod).is_some(),
                        "step {step}: {} is not there",
                        pod.uid
                    );
                }
                PodUpdate::Remove { uid, .. } => assert!(running.remove(&uid).is_some(), "step {step}: {uid} is gone"),
                _ => {}
            }
        }
        let image = |pod: &Pod| pod.spec.as_ref().unwrap().containers[0].image.clone();
        let told: Vec<_> = running.iter().map(|(uid, pod)| (uid.clone(), image(pod))).collect();
        let mut anew: Vec<_> = source(dir.path(), &ObjectStore::default())
            .scan()
            .into_iter()
            .filter_map(|update| match update {
                PodUpdate::Add(pod) => Some((pod.uid.clone(), image(&pod.pod))),
                _ => None,
            })
            .collect();
        anew.sort();
        assert_eq!(told, anew, "step {step}");
    }
}

#[test]
fn objects_are_there_before_their_pods_and_go_with_their_file() {
    let dir = tempfile::tempdir().unwrap();
    let objects = ObjectStore::default();
    let mut source = source(dir.path(), &objects);
    fs::write(dir.path().join("a.yaml"), format!("{WEB}---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: c}}\n"))
        .unwrap();
    source.scan();
    assert!(objects.config_map(ObjectOrigin::Manifest, "default", "c").is_ok());
    fs::remove_file(dir.path().join("a.yaml")).unwrap();
    source.scan();
    assert!(objects.config_map(ObjectOrigin::Manifest, "default", "c").is_err());
}

#[tokio::test]
async fn a_running_source_hears_of_changes_at_once() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.yaml"), WEB).unwrap();
    let (updates, mut told) = mpsc::channel(16);
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(source(dir.path(), &ObjectStore::default()).run(updates, shutdown.clone()));
    let mut next = async || {
        let change = tokio::time::timeout(Duration::from_secs(10), told.recv()).await;
        shown(&[change.expect("well before the 20 s of the period").unwrap()]).remove(0)
    };
    assert_eq!(next().await, "+default/web-node");
    assert_eq!(next().await, "synced");
    // As editors and `kubectl cp` do it: a new file renamed over the old one.
    fs::write(dir.path().join(".a.yaml.swp"), WEB.replace("name: web", "name: new")).unwrap();
    fs::rename(dir.path().join(".a.yaml.swp"), dir.path().join("a.yaml")).unwrap();
    assert_eq!(next().await, "-default/web-node");
    assert_eq!(next().await, "+default/new-node");
    shutdown.cancel();
    running.await.unwrap();
}
