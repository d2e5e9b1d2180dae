//! Images: every shape from a real registry, from files and from a directory; what cannot run says why; and
//! hostile registries get nothing.
//!
//! The registry is CNCF distribution's own server, built by `scripts/registry.sh`. Only what a real one never does
//! (breaking off, lying, redirecting elsewhere) is played by a small server.

mod commands;
mod files;
mod hostile;
pub mod registry;

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use wasilet::image::{
    BuildOptions, Credential, GcPolicy, Image, ImageConfig, ImageRef, ImageService, PruneScope, PullError, PullPolicy,
    PullProgress, no_progress,
};

use registry::{Auth, Registry, Tls};

/// A module and a component as far as their first bytes; nothing here runs them.
pub const MODULE: &[u8] = b"\0asm\x01\0\0\0";
pub const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";

/// A service on an empty store that knows no credentials and no hosts but those of the test.
pub fn service(root: &Path) -> Arc<ImageService> {
    service_with(root, |_| {})
}

pub fn service_with(root: &Path, change: impl FnOnce(&mut ImageConfig)) -> Arc<ImageService> {
    let mut config = ImageConfig::new(root);
    config.hosts_dirs = vec![root.join("certs.d")];
    config.docker_configs = vec![root.join("config.json")];
    change(&mut config);
    ImageService::open(config).expect("the store opens")
}

fn name(text: &str) -> ImageRef {
    text.parse().expect("it is a valid name")
}

async fn pull(service: &ImageService, image: &str) -> Result<Image, Arc<PullError>> {
    service.pull(&name(image), &[], no_progress()).await
}

async fn refusal(service: &ImageService, image: &str) -> String {
    let error = pull(service, image).await.expect_err("it cannot be pulled");
    format!("{}: {}", error.reason(), error.message())
}

/// A wasm file as an artifact on the registry; gives its name.
async fn push_artifact(registry: &Registry, repository: &str, wasm: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("app.wasm");
    fs::write(&file, wasm).unwrap();
    let service = service(dir.path());
    let image = registry.name(repository);
    service.load(&file, Some(&name(&image)), None).await.expect("it loads");
    service.push(&image, &name(&image), &registry.credentials()).await.expect("it is pushed");
    image
}

#[tokio::test]
async fn a_wasm_file_goes_to_a_registry_and_comes_back_as_an_artifact() {
    let registry = Registry::start(Auth::None, Tls::None);
    let wasm = [MODULE, &[7; 3_000_000]].concat();
    let image = push_artifact(&registry, "team/app:1", &wasm).await;
    let root = tempfile::tempdir().unwrap();
    let steps: Arc<Mutex<Vec<PullProgress>>> = Arc::default();
    let seen = Arc::clone(&steps);
    let service = service(root.path());
    let pulled = service
        .pull(&name(&image), &[], Arc::new(move |step| seen.lock().unwrap().push(step)))
        .await
        .expect("it is pulled");
    let artifact = pulled.spec.artifact.as_ref().expect("it is an artifact");
    assert_eq!(fs::read(&artifact.path).unwrap(), wasm);
    assert!(pulled.spec.layers.is_empty());
    assert_eq!(pulled.default_argv(), ["/app.wasm"]);
    assert_eq!(pulled.config.platform, "wasip1/wasm");
    assert!(pulled.status_id().starts_with(&format!("{}/team/app@sha256:", registry.host())));
    let steps = steps.lock().unwrap().clone();
    assert_eq!(steps.first(), Some(&PullProgress::Pulling));
    assert!(matches!(steps.last(), Some(PullProgress::Pulled { .. })));
    let arrived = |step: &PullProgress| matches!(step, PullProgress::Downloading { done, total, .. } if done == total);
    assert!(steps.iter().filter(|step| arrived(step)).count() >= 2, "configuration and layer: {steps:?}");
    service.verify(&pulled).await.expect("every blob is what it should be");
}

#[tokio::test]
async fn a_directory_becomes_an_image_and_keeps_its_defaults_through_a_registry() {
    let registry = Registry::start(Auth::None, Tls::None);
    let dir = tempfile::tempdir().unwrap();
    let files = dir.path().join("files");
    fs::create_dir_all(files.join("bin")).unwrap();
    fs::write(files.join("bin/web.wasm"), COMPONENT).unwrap();
    fs::write(files.join("index.html"), "hello").unwrap();
    std::os::unix::fs::symlink("web.wasm", files.join("bin/web")).unwrap();
    let options = BuildOptions {
        entrypoint: vec!["/bin/web#serve".to_owned()],
        cmd: vec!["--port".to_owned(), "80".to_owned()],
        env: vec!["MODE=fast".to_owned()],
        working_dir: "/bin".to_owned(),
        user: "1000:1000".to_owned(),
        exposed_ports: vec!["80".to_owned()],
        labels: vec!["a=b".to_owned()],
        stop_signal: "SIGINT".to_owned(),
    };
    let image = registry.name("web:1");
    let service_a = service(&dir.path().join("a"));
    let loaded = service_a.load(&files, Some(&name(&image)), Some(&options)).await.expect("it is built");
    let again = service_a.load(&files, Some(&name("other")), Some(&options)).await.expect("it is built again");
    assert_eq!(loaded[0].manifest_digest, again[0].manifest_digest, "the same files are the same image");
    service_a.push(&image, &name(&image), &[]).await.expect("it is pushed");
    let report = service_a.push(&image, &name(&image), &[]).await.expect("it is pushed again");
    assert_eq!((report.sent, report.already_there), (0, 2));
    let pulled = pull(&service(&dir.path().join("b")), &image).await.expect("it is pulled");
    assert_eq!(pulled.config, loaded[0].config);
    assert_eq!(pulled.default_argv(), ["/bin/web#serve", "--port", "80"]);
    assert_eq!(pulled.config.env, [("MODE".to_owned(), "fast".to_owned())]);
    assert_eq!(pulled.config.exposed_ports, ["80/tcp"]);
    assert_eq!(pulled.config.platform, "wasip2/wasm");
    assert_eq!(pulled.config.stop_signal.as_deref(), Some("SIGINT"));
    let layer = &pulled.spec.layers[0];
    assert!(layer.tar.is_file() && layer.index.is_file());
}

#[tokio::test]
async fn the_pull_policy_decides_when_the_registry_is_asked() {
    let registry = Registry::start(Auth::None, Tls::None);
    let image = push_artifact(&registry, "app:1", &[MODULE, b"one"].concat()).await;
    let root = tempfile::tempdir().unwrap();
    let service = service(root.path());
    let ensure = async |policy| service.ensure(&image, policy, &[], no_progress()).await;
    let never = ensure(PullPolicy::Never).await.unwrap_err();
    assert_eq!(never.reason(), "ErrImageNeverPull");
    assert!(never.message().contains(&image), "{}", never.message());
    let first = ensure(PullPolicy::IfNotPresent).await.expect("it is pulled");
    push_artifact(&registry, "app:1", &[MODULE, b"two"].concat()).await;
    assert_eq!(ensure(PullPolicy::IfNotPresent).await.unwrap().manifest_digest, first.manifest_digest);
    assert_eq!(ensure(PullPolicy::Never).await.unwrap().manifest_digest, first.manifest_digest);
    let second = ensure(PullPolicy::Always).await.expect("it is pulled again");
    assert_ne!(second.manifest_digest, first.manifest_digest);
    let by_digest = first.status_id();
    assert_eq!(pull(&service, &by_digest).await.unwrap().manifest_digest, first.manifest_digest);
    drop(registry);
    assert_eq!(ensure(PullPolicy::IfNotPresent).await.unwrap().manifest_digest, second.manifest_digest);
    let gone = ensure(PullPolicy::Always).await.unwrap_err();
    assert_eq!(gone.reason(), "RegistryUnavailable", "{}", gone.message());
    let waiting = ensure(PullPolicy::Always).await.unwrap_err();
    assert_eq!(waiting.reason(), "ImagePullBackOff");
    assert!(waiting.message().contains("RegistryUnavailable"), "{}", waiting.message());
}

#[tokio::test]
async fn a_private_registry_wants_the_right_credentials() {
    let registry = Registry::start(Auth::Htpasswd, Tls::None);
    let image = push_artifact(&registry, "private/app:1", MODULE).await;
    let root = tempfile::tempdir().unwrap();
    let service = service(root.path());
    let anonymous = refusal(&service, &image).await;
    assert!(anonymous.starts_with("ErrImagePull: ") && anonymous.contains("imagePullSecret"), "{anonymous}");
    let wrong = [Credential::basic(&registry.host(), "wasilet", "wrong")];
    let error = service.pull(&name(&image), &wrong, no_progress()).await.unwrap_err();
    assert!(error.message().contains("check the user and password"), "{}", error.message());
    let both = [wrong[0].clone(), registry.credentials()[0].clone()];
    service.pull(&name(&image), &both, no_progress()).await.expect("the second credential is right");
    // The node's own Docker configuration serves pods without a secret.
    service.remove(&image, &HashSet::new()).await.unwrap();
    let json = format!(r#"{{"auths":{{"http://{}":{{"auth":"d2FzaWxldDpzZWNyZXQ="}}}}}}"#, registry.host());
    fs::write(root.path().join("config.json"), json).unwrap();
    pull(&service, &image).await.expect("config.json has the credentials");
}

#[tokio::test]
async fn a_registry_over_tls_is_trusted_by_its_authority_only() {
    let registry = Registry::start(Auth::Htpasswd, Tls::SelfSigned);
    let root = tempfile::tempdir().unwrap();
    let hosts = root.path().join("certs.d").join(registry.host());
    fs::create_dir_all(&hosts).unwrap();
    fs::write(hosts.join("ca.pem"), registry.authority()).unwrap();
    let with = |settings: &str| {
        let text = format!("server = \"https://{}\"\n{settings}\n", registry.host());
        fs::write(hosts.join("hosts.toml"), text).unwrap();
    };
    let service = service(root.path());
    let image = registry.name("app:1");
    let file = root.path().join("app.wasm");
    fs::write(&file, MODULE).unwrap();
    service.load(&file, Some(&name(&image)), None).await.unwrap();
    with("ca = \"ca.pem\"");
    service.push(&image, &name(&image), &registry.credentials()).await.expect("the authority vouches");
    service.pull(&name(&image), &registry.credentials(), no_progress()).await.expect("the authority vouches");
    with("");
    let error = service.pull(&name(&image), &registry.credentials(), no_progress()).await.unwrap_err();
    assert!(error.message().contains("certificate"), "{}", error.message());
    with("skip_verify = true");
    service.pull(&name(&image), &registry.credentials(), no_progress()).await.expect("anybody is trusted");
}

#[tokio::test]
async fn a_mirror_serves_what_the_registry_itself_cannot() {
    let registry = Registry::start(Auth::None, Tls::None);
    push_artifact(&registry, "team/app:1", MODULE).await;
    let root = tempfile::tempdir().unwrap();
    let hosts = root.path().join("certs.d/_default");
    fs::create_dir_all(&hosts).unwrap();
    // The first mirror is gone, the second has it, and the registry of the name does not exist.
    let text = format!(
        "server = \"http://127.0.0.1:9\"\n[host.\"http://127.0.0.1:10\"]\n[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
        registry.host()
    );
    fs::write(hosts.join("hosts.toml"), text).unwrap();
    let service = service(root.path());
    pull(&service, "registry.example/team/app:1").await.expect("the mirror has it");
    let missing = refusal(&service, "registry.example/team/other:1").await;
    assert!(missing.starts_with("RegistryUnavailable: "), "the registry itself decides: {missing}");
}

#[tokio::test]
async fn what_this_node_cannot_run_is_refused_in_plain_words() {
    let registry = Registry::start(Auth::None, Tls::None);
    let root = tempfile::tempdir().unwrap();
    let service = service(root.path());
    let mut elf = vec![0; 64];
    elf[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1]);
    elf[18] = 62;
    registry.push_rootfs("linux:1", &["/bin/nginx"], &[("bin/nginx", &elf)]).await;
    registry.push_rootfs("script:1", &["/run.sh"], &[("run.sh", b"#!/usr/bin/perl\n")]).await;
    registry.push_rootfs("hole:1", &["/app.wasm"], &[("other.wasm", MODULE)]).await;
    registry.push_layers("two:1", &[("application/wasm", MODULE), ("application/wasm", COMPONENT)]).await;
    registry.push_layers("odd:1", &[("application/x-odd", b"?")]).await;
    registry.push_layers("text:1", &[("application/wasm", b"(module)")]).await;
    for (image, expected) in [
        ("linux:1", "/bin/nginx is a linux/amd64 executable; this node runs WASI modules"),
        ("script:1", "/run.sh is a script for /usr/bin/perl; this node runs WASI modules"),
        ("hole:1", "its entrypoint /app.wasm is not in the image"),
        ("two:1", "exactly one application/wasm layer"),
        ("odd:1", "unsupported media type \"application/x-odd\""),
        ("text:1", "/app.wasm is not WebAssembly"),
        ("absent:1", "not found at"),
    ] {
        let image = registry.name(image);
        let message = refusal(&service, &image).await;
        assert!(message.starts_with("ErrImagePull: ") && message.contains(&image), "{message}");
        assert!(message.contains(expected), "{message}");
    }
    for bad in ["me/UPPER", "a b", "https://x/y"] {
        let error = service.ensure(bad, PullPolicy::Always, &[], no_progress()).await.unwrap_err();
        assert_eq!(error.reason(), "InvalidImageName", "{bad}");
    }
    assert!(service.list().await.unwrap().is_empty(), "nothing half-made is listed");
}

#[tokio::test]
async fn an_index_gives_the_wasm_platform_whatever_label_it_has() {
    let registry = Registry::start(Auth::None, Tls::None);
    registry.push_rootfs("one:wasm", &["/a.wasm"], &[("a.wasm", MODULE)]).await;
    registry.push_rootfs("one:linux", &["/bin/sh"], &[("bin/sh", b"\x7fELF")]).await;
    for platform in ["wasi/wasm", "wasip1/wasm", "linux/wasm"] {
        registry.push_index("one:multi", &[("linux/amd64", "linux"), (platform, "wasm")]).await;
        let root = tempfile::tempdir().unwrap();
        let pulled = pull(&service(root.path()), &registry.name("one:multi")).await.expect(platform);
        assert_eq!(pulled.default_argv(), ["/a.wasm"], "{platform}");
        assert_ne!(pulled.repo_digest, pulled.manifest_digest, "the name points at the index");
    }
    // Labelled linux/amd64, and its entrypoint is wasm all the same.
    let root = tempfile::tempdir().unwrap();
    registry.push_index("one:linux-only", &[("linux/amd64", "wasm")]).await;
    pull(&service(root.path()), &registry.name("one:linux-only")).await.expect("the entrypoint decides");
}

#[tokio::test]
async fn two_processes_share_a_store_and_pull_the_same_image_at_once() {
    let registry = Registry::start(Auth::None, Tls::None);
    let image = push_artifact(&registry, "app:1", &[MODULE, &[1; 500_000]].concat()).await;
    let root = tempfile::tempdir().unwrap();
    let services = [service(root.path()), service(root.path())];
    let pulls = (0..20).map(|n| pull(&services[n % 2], &image));
    let results = futures::future::join_all(pulls).await;
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    assert_eq!(services[0].list().await.unwrap().len(), 1);
    assert_eq!(fs::read_dir(root.path().join("images/tmp")).unwrap().count(), 0, "nothing is left behind");
}

/// `app0` to `app2`, each another module.
async fn load_three(service: &ImageService, root: &Path) -> Vec<Image> {
    let file = root.join("app.wasm");
    let mut images = Vec::new();
    for n in 0..3u8 {
        fs::write(&file, [MODULE, &[n]].concat()).unwrap();
        images.extend(service.load(&file, Some(&name(&format!("app{n}"))), None).await.unwrap());
    }
    images
}

#[tokio::test]
async fn images_in_use_are_neither_removed_nor_pruned() {
    let root = tempfile::tempdir().unwrap();
    let service = service(root.path());
    let images = load_three(&service, root.path()).await;
    let in_use = HashSet::from([images[0].manifest_digest.clone()]);
    let error = service.remove("app0", &in_use).await.unwrap_err().to_string();
    assert!(error.contains("in use"), "{error}");
    let removed = service.remove(&images[1].image_id.hex()[..12], &in_use).await.expect("by id");
    assert_eq!(removed.deleted, [images[1].image_id.clone()]);
    assert!(removed.freed_bytes > 0);
    let removed = service.prune(PruneScope::Unused, &in_use, SystemTime::now()).await.unwrap();
    assert_eq!(removed.untagged, [images[2].reference.clone()]);
    let left = service.list().await.unwrap();
    assert_eq!(left.iter().map(|image| &image.manifest_digest).collect::<Vec<_>>(), [&images[0].manifest_digest]);
    service.verify(&images[0]).await.expect("what is used is whole");
    assert!(service.inspect("app2").await.is_err());
}

#[tokio::test]
async fn what_is_pinned_or_was_used_meanwhile_is_not_collected() {
    let root = tempfile::tempdir().unwrap();
    let service = service(root.path());
    let images = load_three(&service, root.path()).await;
    service.pin(&images[0]).await.unwrap();
    let pinned = service.list().await.unwrap();
    assert_eq!(pinned.iter().filter(|image| image.pinned).count(), 1);
    // Nobody used it when it was asked; a container is being started from it now.
    let as_of = SystemTime::now();
    service.ensure("app1", PullPolicy::Never, &[], no_progress()).await.unwrap();
    let full = GcPolicy { high_percent: 0, low_percent: 0, min_age: std::time::Duration::ZERO, max_age: None };
    let collected = service.collect_garbage(full, &HashSet::new(), as_of).await.unwrap();
    assert_eq!(collected.deleted, [images[2].image_id.clone()]);
    assert!(service.prune(PruneScope::Unused, &HashSet::new(), as_of).await.unwrap().deleted.is_empty());
    let later = SystemTime::now();
    let pruned = service.prune(PruneScope::Unused, &HashSet::new(), later).await.unwrap();
    assert_eq!(pruned.deleted, [images[1].image_id.clone()]);
    // Only by its name.
    let removed = service.remove("app0", &HashSet::new()).await.unwrap();
    assert_eq!(removed.deleted, [images[0].image_id.clone()]);
    assert!(service.list().await.unwrap().is_empty());
    service.load(&root.path().join("app.wasm"), Some(&name("app0")), None).await.unwrap();
    assert!(!service.list().await.unwrap()[0].pinned, "a pin goes with its image");
}

#[tokio::test]
async fn a_damaged_file_of_the_store_is_pulled_again() {
    let registry = Registry::start(Auth::None, Tls::None);
    let image = push_artifact(&registry, "app:1", &[MODULE, b"content"].concat()).await;
    let root = tempfile::tempdir().unwrap();
    let service = service(root.path());
    let pulled = pull(&service, &image).await.unwrap();
    let path = pulled.spec.artifact.unwrap().path;
    fs::write(&path, MODULE).unwrap();
    let again = service.ensure(&image, PullPolicy::IfNotPresent, &[], no_progress()).await.expect("it is repaired");
    assert_eq!(fs::read(again.spec.artifact.unwrap().path).unwrap(), [MODULE, b"content"].concat());
}
