//! What goes wrong in a cluster is told in a kubelet's own words, and heals when its cause goes.

use std::fs;
use std::path::Path;

use k8s_openapi::api::core::v1::{Pod, Secret};
use serde_json::json;

use crate::cluster::{At, Cluster, Daemon, HOST, NodeOptions, Space, block_on};
use crate::images::registry::{Auth, Registry, Tls, binary};

pub(super) fn pod(name: &str, image: &str, spec: &str, container: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  nodeSelector: {{wasilet.dev/test: SPACE}}
  terminationGracePeriodSeconds: 1
{spec}
  containers:
  - name: main
    image: {image}
    imagePullPolicy: IfNotPresent
{container}
"#
    )
}

/// Why the container waits.
fn waiting(pod: &Pod) -> Option<(&str, &str)> {
    let waiting = pod.status.as_ref()?.container_statuses.as_ref()?.first()?.state.as_ref()?.waiting.as_ref()?;
    Some((waiting.reason.as_deref()?, waiting.message.as_deref().unwrap_or_default()))
}

fn wait_reason(space: &Space<'_>, name: &str, reasons: &[&str], words: &[&str]) {
    space.wait_pod(name, &format!("waits with {reasons:?} and says {words:?}"), |pod| {
        waiting(pod).is_some_and(|(reason, message)| {
            reasons.contains(&reason) && words.iter().all(|word| message.contains(word))
        })
    });
}

#[test]
fn a_missing_configmap_or_key_is_told_and_heals_when_it_comes() {
    let space = Cluster::shared().space("missing");
    let _node = space.node(NodeOptions { images: &["hello", "sleeper"], ..NodeOptions::default() });
    space.ok(&["create", "secret", "generic", "half", "--from-literal=there=1"]);
    let sleeper = "test/sleeper:v1";
    space.apply(&pod(
        "no-map",
        sleeper,
        "",
        "    env: [{name: A, valueFrom: {configMapKeyRef: {name: absent, key: a}}}]",
    ));
    space.apply(&pod(
        "no-key",
        sleeper,
        "",
        "    env: [{name: A, valueFrom: {secretKeyRef: {name: half, key: absent}}}]",
    ));
    space.apply(&pod("no-env", sleeper, "", "    envFrom: [{configMapRef: {name: absent}}]"));
    space.apply(&pod(
        "no-volume",
        sleeper,
        "  volumes: [{name: config, configMap: {name: absent}}]",
        "    volumeMounts: [{name: config, mountPath: /config}]",
    ));
    let config_error = &["CreateContainerConfigError"][..];
    wait_reason(&space, "no-map", config_error, &["configmap \"absent\" not found"]);
    let key = format!("couldn't find key absent in Secret {}/half", space.name());
    wait_reason(&space, "no-key", config_error, &[&key]);
    wait_reason(&space, "no-env", config_error, &["configmap \"absent\" not found"]);
    space.wait_event("no-map", "Failed", &["Error: configmap \"absent\" not found"]);
    space.wait_event(
        "no-volume",
        "FailedMount",
        &["MountVolume.SetUp failed for volume \"config\" : configmap \"absent\" not found"],
    );
    wait_reason(&space, "no-volume", &["ContainerCreating", "PodInitializing"], &[]);

    space.ok(&["create", "configmap", "absent", "--from-literal=a=1"]);
    space.ok(&["patch", "secret", "half", "--patch", r#"{"stringData": {"absent": "1"}}"#]);
    for name in ["no-map", "no-key", "no-env", "no-volume"] {
        space.wait_ready(name);
    }
}

/// A registry on the cluster's network that has what the one of the image tests was given.
struct ClusterRegistry {
    _process: Daemon,
    host: String,
}

impl ClusterRegistry {
    fn start(space: &Space<'_>, registry: &Registry, port: u16, auth: Auth) -> Self {
        let cluster = space.cluster();
        let host = format!("{HOST}:{port}");
        let mut config = json!({
            "version": "0.1",
            "storage": { "filesystem": { "rootdirectory": registry.data() } },
            "http": { "addr": host },
        });
        if auth == Auth::Htpasswd {
            config["auth"] = json!({ "htpasswd": { "realm": "test", "path": registry.htpasswd() } });
        }
        let file = cluster.dir().join(format!("registry-{port}.yml"));
        fs::write(&file, config.to_string()).expect("a file");
        let args = ["serve".to_owned(), file.to_string_lossy().into_owned()];
        let log = cluster.logs().join(format!("registry-{port}.log"));
        let process = cluster.sandbox().daemon(At::Host, &log, binary(), &args, &[("OTEL_TRACES_EXPORTER", "none")]);
        Self { _process: process, host }
    }

    /// Lets a node speak plain HTTP to it.
    fn allow(&self, hosts_dir: &Path) {
        let dir = hosts_dir.join(&self.host);
        fs::create_dir_all(&dir).expect("a directory");
        fs::write(dir.join("hosts.toml"), format!("server = \"http://{}\"\n", self.host)).expect("a file");
    }
}

#[test]
fn an_image_that_cannot_be_had_or_run_says_why() {
    let cluster = Cluster::shared();
    if cluster.try_plane().is_none() {
        crate::support::skipped("a registry that the cluster's nodes reach is needed");
        return;
    }
    let space = cluster.space("images");
    let registry = Registry::start(Auth::None, Tls::None);
    // The head of an executable for x86-64: its machine is 62.
    let elf = [b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0".as_slice(), &[0; 4096]].concat();
    block_on(async {
        registry.push_rootfs("team/linux:1", &["/bin/app"], &[("bin/app", &elf)]).await;
        let sleeper = fs::read(crate::support::guest("sleeper")).expect("a guest");
        registry.push_layers("team/wasm:1", &[("application/wasm", &sleeper)]).await;
    });
    let open = ClusterRegistry::start(&space, &registry, 5000, Auth::None);
    let closed = ClusterRegistry::start(&space, &registry, 5001, Auth::Htpasswd);
    let hosts_dir = cluster.dir().join("certs.d");
    open.allow(&hosts_dir);
    closed.allow(&hosts_dir);
    let settings = format!("registryHostsDir: {}", hosts_dir.display());
    let _node = space.node(NodeOptions { node: &settings, ..NodeOptions::default() });

    let linux = format!("{}/team/linux:1", open.host);
    let secret = format!("{}/team/wasm:1", closed.host);
    let absent = format!("{}/team/absent:1", open.host);
    space.apply(&pod("linux", &linux, "", ""));
    space.apply(&pod("secret", &secret, "", ""));
    space.apply(&pod("absent", &absent, "", ""));
    space.apply(&pod("never", "test/never:v1", "", "").replace("IfNotPresent", "Never"));
    space.apply(&pod("unnamed", "team/UPPER", "", ""));
    let pull = &["ErrImagePull", "ImagePullBackOff"][..];
    wait_reason(&space, "linux", pull, &["linux/amd64", "WASI"]);
    wait_reason(&space, "secret", pull, &[&closed.host]);
    wait_reason(&space, "absent", pull, &["not found"]);
    wait_reason(&space, "never", &["ErrImageNeverPull"], &["is not present with pull policy of Never"]);
    wait_reason(&space, "unnamed", &["InvalidImageName"], &[]);
    for name in ["linux", "secret", "absent"] {
        space.wait_event(name, "Pulling", &["Pulling image"]);
        space.wait_event(name, "Failed", &["Failed to pull image"]);
        space.wait_event(name, "Failed", &["Error: ErrImagePull"]);
        space.wait_event(name, "BackOff", &["Back-off pulling image"]);
    }

    space.ok(&[
        "create",
        "secret",
        "docker-registry",
        "login",
        &format!("--docker-server={}", closed.host),
        "--docker-username=wasilet",
        "--docker-password=secret",
    ]);
    space.wait::<Secret>("login", "is there", |secret| secret.is_some());
    space.apply(&pod("let-in", &secret, "  imagePullSecrets: [{name: login}]", ""));
    let pod = space.wait_ready("let-in");
    assert!(crate::support::container(&pod, "main").image_id.contains("sha256:"));
    space.wait_event("let-in", "Pulled", &["Successfully pulled image"]);
}

#[test]
fn a_token_that_the_cluster_does_not_know_is_refused_with_a_word() {
    let cluster = Cluster::shared();
    let dir = cluster.dir().join("stranger");
    fs::create_dir_all(&dir).expect("a directory");
    let server = cluster.kubectl_ok(&[
        "config",
        "view",
        "--raw",
        "--minify",
        "--output",
        "jsonpath={.clusters[0].cluster.server}",
    ]);
    let authority = cluster.kubectl_ok(&[
        "config",
        "view",
        "--raw",
        "--minify",
        "--flatten",
        "--output",
        "jsonpath={.clusters[0].cluster.certificate-authority-data}",
    ]);
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "c", "cluster": { "server": server, "certificate-authority-data": authority } }],
        "users": [{ "name": "u", "user": { "token": "abcdef.0123456789abcdef" } }],
        "contexts": [{ "name": "x", "context": { "cluster": "c", "user": "u" } }],
        "current-context": "x",
    });
    let bootstrap = dir.join("bootstrap-kubeconfig");
    fs::write(&bootstrap, config.to_string()).expect("a file");
    let mut command = cluster.command(env!("CARGO_BIN_EXE_wasilet"));
    command.arg("--root-dir").arg(dir.join("root")).args(["run", "--node-name", "stranger"]);
    command.arg("--kubeconfig").arg(dir.join("kubeconfig")).arg("--bootstrap-kubeconfig").arg(&bootstrap);
    let done = Cluster::run(command);
    assert!(done.code.is_some_and(|code| code != 0), "{done:?}");
    let said = done.stdout + &done.stderr;
    assert!(said.contains("Unauthorized"), "{said}");
    assert!(!dir.join("kubeconfig").exists(), "nothing is written that says otherwise");
}
