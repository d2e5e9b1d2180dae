//! Bad input: each gets a clear error in the place a user looks, and disturbs nothing else.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{ContainerStateWaiting, Pod};

use super::standalone::sleeper;
use super::support::{Node, Place, container, eventually, guest, text};

/// A node with one healthy pod, which every test here must leave alone.
fn with_healthy_pod(images: &[&str]) -> Place {
    let place = Place::with_images(&["sleeper"]).loaded(images);
    place.write_manifest("healthy.yaml", &sleeper("healthy", "well"));
    place
}

fn assert_undisturbed(node: &Node<'_>) {
    let pod = node.wait_ready("healthy");
    assert_eq!(container(&pod, "main").restart_count, 0);
}

fn waiting(pod: &Pod, name: &str) -> ContainerStateWaiting {
    container(pod, name).state.as_ref().and_then(|state| state.waiting.clone()).unwrap_or_default()
}

fn one_container(name: &str, image: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  restartPolicy: Never\n  containers:\n  - name: main\n    image: {image}\n{more}"
    )
}

#[test]
fn a_manifest_that_cannot_be_read_is_named_with_its_place() {
    let place = with_healthy_pod(&[]);
    for (file, yaml, expected) in [
        ("tabs.yaml", "apiVersion: v1\nkind: Pod\nmetadata:\n\tname: x\n", "tabs.yaml"),
        ("cut.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: x\n", "cut.yaml"),
        (
            "unknown.yaml",
            "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec:\n  containers:\n  - {name: a, image: b, comand: [c]}\n",
            r#"unknown field "spec.containers[0].comand""#,
        ),
        (
            "mount.yaml",
            "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec:\n  containers:\n  - name: a\n    image: b\n    volumeMounts: [{name: data, mountPath: /data}]\n",
            r#"spec.containers[0].volumeMounts[0].name: Not found: "data""#,
        ),
        ("kind.yaml", "apiVersion: v1\nkind: Pods\nmetadata: {name: x}\n", "Pods"),
    ] {
        let path = place.path().join(file);
        std::fs::write(&path, yaml).expect("a manifest");
        // Both ways in: played, the command fails; in the directory, the node says so and goes on.
        let played = place.run(&["play", &path.to_string_lossy()]);
        assert!(!played.status.success(), "{file}");
        let said = text(&played.stderr);
        assert!(said.contains(expected), "{file}: {said}");
        place.write_manifest(file, yaml);
    }
    let node = place.start();
    assert_undisturbed(&node);
    eventually("the node names the bad files", || {
        let output = node.process.output();
        let missing: Vec<_> = ["tabs.yaml", "cut.yaml", "unknown.yaml", "mount.yaml", "kind.yaml"]
            .into_iter()
            .filter(|f| !output.contains(f))
            .collect();
        if missing.is_empty() { Ok(()) } else { Err(format!("{missing:?} not in\n{output}")) }
    });
    assert_eq!(node.pods().len(), 1);
}

#[test]
fn an_image_that_cannot_run_is_a_reason_in_the_status() {
    let place = with_healthy_pod(&[]);
    let truncated = place.path().join("truncated.wasm");
    let whole = std::fs::read(guest("sleeper")).expect("a guest");
    std::fs::write(&truncated, &whole[..whole.len() / 2]).expect("half a guest");
    let stranger = place.path().join("stranger.wasm");
    let module = wat::parse_str(
        r#"(module (import "env" "launch" (func)) (func (export "_start") (call 0)) (memory (export "memory") 1))"#,
    );
    std::fs::write(&stranger, module.expect("valid text")).expect("a module");
    place.load(&stranger, "test/stranger:v1");

    let load = place.run(&["image", "load", &truncated.to_string_lossy(), "test/truncated:v1"]);
    let load_said = text(&load.stderr);
    place.write_manifest("absent.yaml", &one_container("absent", "test/absent:v1", "    imagePullPolicy: Never\n"));
    place.write_manifest("stranger.yaml", &one_container("stranger", "test/stranger:v1", ""));
    place.write_manifest("badname.yaml", &one_container("badname", "\"Test/UPPER:v1\"", ""));
    let node = place.start();
    let absent = node
        .wait_for("absent", "is refused", |pod| waiting(pod, "main").reason.as_deref() == Some("ErrImageNeverPull"));
    assert!(waiting(&absent, "main").message.is_some_and(|m| m.contains("test/absent:v1")), "{absent:#?}");
    let stranger = node.wait_for("stranger", "is refused", |pod| {
        waiting(pod, "main").reason.as_deref() == Some("CreateContainerError")
    });
    let message = waiting(&stranger, "main").message.unwrap_or_default();
    assert!(message.contains("env") && message.contains("launch"), "the import is named: {message}");
    node.wait_for("badname", "is refused", |pod| waiting(pod, "main").reason.as_deref() == Some("InvalidImageName"));
    // A truncated file is refused when it is loaded, or, if it is well-formed so far, when it is to run.
    if load.status.success() {
        place.write_manifest("truncated.yaml", &one_container("truncated", "test/truncated:v1", ""));
        let pod = node.wait_for("truncated", "is refused", |pod| {
            waiting(pod, "main").reason.as_deref() == Some("CreateContainerError")
        });
        assert!(
            waiting(&pod, "main").message.is_some_and(|m| m.contains("truncated") || m.contains("unexpected end")),
            "{pod:#?}"
        );
    } else {
        assert!(load_said.contains("truncated.wasm"), "{load_said}");
    }
    assert_undisturbed(&node);
}

#[test]
fn a_linux_image_is_told_what_runs_here() {
    let place = with_healthy_pod(&[]);
    let dir = place.path().join("linux");
    std::fs::create_dir_all(dir.join("bin")).expect("a directory");
    std::fs::copy(env!("CARGO_BIN_EXE_wasilet"), dir.join("bin/nginx")).expect("an ELF file");
    let load = place.run(&["image", "load", &dir.to_string_lossy(), "test/linux:v1", "--entrypoint", "/bin/nginx"]);
    let mut said = text(&load.stderr);
    let node = place.start();
    if load.status.success() {
        place.write_manifest("linux.yaml", &one_container("linux", "test/linux:v1", ""));
        let pod = node.wait_for("linux", "is refused", |pod| {
            matches!(waiting(pod, "main").reason.as_deref(), Some("ErrImagePull" | "ImagePullBackOff"))
        });
        said = waiting(&pod, "main").message.unwrap_or_default();
    }
    assert!(said.contains("linux/amd64 executable; this node runs WASI modules"), "{said}");
    assert_undisturbed(&node);
}

#[test]
fn two_containers_on_one_port_show_the_second_ones_exit() {
    let place = with_healthy_pod(&["web"]);
    place.write_manifest(
        "clash.yaml",
        r#"
apiVersion: v1
kind: Pod
metadata: {name: clash}
spec:
  restartPolicy: Never
  containers:
  - {name: one, image: "test/web:v1", args: ["--port", "8080", "--root", "/"]}
  - {name: two, image: "test/web:v1", args: ["--port", "8080", "--root", "/"]}
"#,
    );
    let node = place.start();
    let pod = node.wait_for("clash", "has one loser", |pod| {
        ["one", "two"]
            .iter()
            .any(|name| container(pod, name).state.as_ref().is_some_and(|state| state.terminated.is_some()))
    });
    let loser =
        if container(&pod, "two").state.as_ref().is_some_and(|s| s.terminated.is_some()) { "two" } else { "one" };
    let end = container(&pod, loser).state.as_ref().and_then(|s| s.terminated.clone()).expect("terminated");
    assert_ne!(end.exit_code, 0);
    let log = node.wait_log("clash", loser, "ddress");
    assert!(log.to_lowercase().contains("address in use") || log.contains("EADDRINUSE"), "{log}");
    assert_undisturbed(&node);
}

#[test]
fn a_missing_config_map_holds_the_pod_until_it_comes() {
    let place = with_healthy_pod(&["hello"]);
    place.write_manifest(
        "needy.yaml",
        r#"
apiVersion: v1
kind: Pod
metadata: {name: needy}
spec:
  restartPolicy: Never
  containers:
  - {name: main, image: "test/hello:v1", envFrom: [{configMapRef: {name: late}}]}
"#,
    );
    let node = place.start();
    let pod = node
        .wait_for("needy", "waits", |pod| waiting(pod, "main").reason.as_deref() == Some("CreateContainerConfigError"));
    assert_eq!(waiting(&pod, "main").message.as_deref(), Some("configmap \"late\" not found"));
    place.write_manifest("late.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: late}\ndata: {A: b}\n");
    node.wait_phase("needy", "Succeeded");
    assert_undisturbed(&node);
}

#[test]
fn an_emptydir_over_its_limit_evicts_its_pod() {
    let place = with_healthy_pod(&["fill"]);
    place.write_manifest(
        "full.yaml",
        r#"
apiVersion: v1
kind: Pod
metadata: {name: full}
spec:
  volumes: [{name: data, emptyDir: {sizeLimit: 1Mi}}]
  containers:
  - {name: main, image: "test/fill:v1", args: ["/data/big", "8"], volumeMounts: [{name: data, mountPath: /data}]}
"#,
    );
    let node = place.start();
    let pod = node.wait_phase("full", "Failed");
    let status = pod.status.expect("a status");
    assert_eq!(status.reason.as_deref(), Some("Evicted"));
    assert_eq!(status.message.as_deref(), Some(r#"Usage of EmptyDir volume "data" exceeds the limit "1Mi". "#));
    assert_undisturbed(&node);
}

#[test]
fn a_full_memory_volume_is_enospc_to_the_guest() {
    let place = with_healthy_pod(&["fill"]);
    place.write_manifest(
        "full.yaml",
        r#"
apiVersion: v1
kind: Pod
metadata: {name: full}
spec:
  restartPolicy: Never
  volumes: [{name: data, emptyDir: {medium: Memory, sizeLimit: 1Mi}}]
  containers:
  - {name: main, image: "test/fill:v1", args: ["/data/big", "8"], volumeMounts: [{name: data, mountPath: /data}]}
"#,
    );
    let node = place.start();
    node.wait_phase("full", "Failed");
    let log = node.logs("full", "main");
    assert!(log.contains("No space left on device"), "{log}");
    assert_undisturbed(&node);
}

#[test]
fn a_config_file_is_read_strictly() {
    let place = Place::new();
    let config = place.path().join("config.yaml");
    let kubelet = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
    for (case, content, expected) in [
        ("an unknown field", format!("{kubelet}maxPodz: 3\n"), "maxPodz"),
        ("a wrong type", format!("{kubelet}maxPods: many\n"), "maxPods"),
        ("another kind", "apiVersion: v1\nkind: Pod\n".to_owned(), "Pod"),
        ("no YAML", "a: [b\n".to_owned(), "config.yaml"),
    ] {
        std::fs::write(&config, content).expect("a config file");
        let output = place.run(&["run", "--manifests", "/nowhere", "--config", &config.to_string_lossy()]);
        assert_eq!(output.status.code(), Some(1), "{case}");
        let said = text(&output.stderr);
        assert!(said.contains(expected) && said.contains("config.yaml"), "{case}: {said}");
    }
}

#[test]
fn a_pod_above_max_pods_is_refused_with_the_kubelets_words() {
    let place = Place::with_images(&["sleeper"]);
    let config = place.path().join("config.yaml");
    std::fs::write(&config, "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nmaxPods: 1\n")
        .expect("a config file");
    place.write_manifest("a.yaml", &sleeper("a", "x"));
    place.write_manifest("b.yaml", &sleeper("b", "x"));
    let node = place.start_with(&["--config", &config.to_string_lossy()]);
    // Which of the two comes first is not promised.
    eventually("one runs and one is refused", || {
        let phases: BTreeSet<_> = node
            .pods()
            .iter()
            .filter_map(|pod| pod.status.as_ref())
            .map(|status| (status.phase.clone().unwrap_or_default(), status.reason.clone().unwrap_or_default()))
            .collect();
        let wanted = [("Failed", "OutOfpods"), ("Running", "")].map(|(phase, why)| (phase.to_owned(), why.to_owned()));
        if phases == BTreeSet::from(wanted) { Ok(()) } else { Err(format!("{phases:?}")) }
    });
}

#[test]
fn a_full_disk_holds_new_pods_and_leaves_the_running_ones_alone() {
    let Some(place) = Place::with_disk_of(8) else { return };
    let place = place.loaded(&["sleeper", "hello"]);
    place.write_manifest("healthy.yaml", &sleeper("healthy", "well"));
    let node = place.start();
    assert_undisturbed(&node);
    let ballast = place.root().join("ballast");
    place.shell(&format!("head -c 64m /dev/zero > {}", ballast.display()));
    place.write_manifest("late.yaml", &one_container("late", "test/hello:v1", ""));
    // An attempt that is not on disk could run twice: it does not run at all, and the user reads why.
    let late = node.wait_for("late", "waits for the disk", |pod| {
        waiting(pod, "main").reason.is_some_and(|r| r.ends_with("Error"))
    });
    assert_eq!(waiting(&late, "main").reason.as_deref(), Some("CreateContainerError"), "{:?}", late.status);
    eventually("the node says what is full", || {
        let output = node.process.output();
        if output.contains("No space left on device") { Ok(()) } else { Err(output) }
    });
    assert_undisturbed(&node);
    assert_eq!(node.logs("healthy", "main"), "well\n");
    std::mem::drop(place.shell(&format!("rm {}", ballast.display())));
    node.wait_phase("late", "Succeeded");
    assert!(node.logs("late", "main").starts_with("Hello from WebAssembly!\n"));
    assert_undisturbed(&node);
    node.stop();
}
