//! Probes and lifecycle hooks: what a container says of itself decides whether it is ready, and whether it goes on.

use super::support::{Place, container, text};

/// Asked of files: they are there, or an exec says so.
const READY_BY_EXEC: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: probed}
spec:
  terminationGracePeriodSeconds: 1
  volumes: [{name: data, emptyDir: {}}]
  containers:
  - name: main
    image: test/tools:v1
    args: ["x"]
    volumeMounts: [{name: data, mountPath: /data}]
    readinessProbe:
      exec: {command: ["/bin/sleeper", "--show", "/data/ready"]}
      periodSeconds: 1
      timeoutSeconds: 30
      failureThreshold: 1
"#;

#[test]
fn an_exec_probe_makes_a_container_ready_when_its_program_succeeds() {
    let place = Place::new();
    place.load_tools(&["sleeper", "init"]);
    place.write_manifest("pod.yaml", READY_BY_EXEC);
    let node = place.start();
    node.wait_for("probed", "runs and is not ready", |pod| {
        pod.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Running"))
            && !container(pod, "main").ready
            && container(pod, "main").started == Some(true)
    });
    let made = node.exec("probed", "main", &["/bin/init", "/data/ready", "yes"]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let pod = node.wait_ready("probed");
    assert_eq!(container(&pod, "main").restart_count, 0);
    node.stop();
}

const WEB: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  terminationGracePeriodSeconds: 1
  volumes: [{name: page, emptyDir: {}}]
  initContainers:
  - name: init
    image: test/init:v1
    args: ["/pod-data/index.html", "well"]
    volumeMounts: [{name: page, mountPath: /pod-data}]
  containers:
  - name: web
    image: test/web:v1
    args: ["--port", "8080"]
    ports: [{name: http, containerPort: 8080}]
    volumeMounts: [{name: page, mountPath: /usr/share/nginx/html}]
    startupProbe: {tcpSocket: {port: http}, periodSeconds: 1, timeoutSeconds: 30, failureThreshold: 60}
    readinessProbe: {httpGet: {port: http, path: /index.html}, periodSeconds: 1, timeoutSeconds: 30}
    livenessProbe:
      httpGet: {port: 8080, path: /not-there}
      periodSeconds: 1
      timeoutSeconds: 30
      failureThreshold: 3
"#;

#[test]
fn a_server_is_asked_over_the_pods_own_network_and_restarted_when_it_fails() {
    let place = Place::with_images(&["init", "web"]);
    place.write_manifest("web.yaml", WEB);
    let node = place.start();
    node.wait_log("web", "web", "GET /index.html HTTP/1.1");
    node.wait_log("web", "web", "GET /not-there HTTP/1.1");
    node.wait_for("web", "was restarted for its liveness probe", |pod| container(pod, "web").restart_count >= 1);
    node.stop();
}

const HOOKS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: hooked}
spec:
  terminationGracePeriodSeconds: 60
  volumes: [{name: data, hostPath: {path: DATA}}]
  containers:
  - name: main
    image: test/tools:v1
    args: ["x"]
    volumeMounts: [{name: data, mountPath: /data}]
    lifecycle:
      postStart: {exec: {command: ["/bin/init", "/data/started", "hello"]}}
      preStop: {exec: {command: ["/bin/init", "/data/stopped", "bye"]}}
"#;

#[test]
fn hooks_run_after_the_start_and_before_the_end() {
    let place = Place::new();
    place.load_tools(&["sleeper", "init"]);
    // Below the manifests: a static pod may mount what is there.
    let data = place.manifests().join("data");
    std::fs::create_dir_all(&data).unwrap();
    place.write_manifest("pod.yaml", &HOOKS.replace("DATA", &data.to_string_lossy()));
    let node = place.start();
    node.wait_ready("hooked");
    assert_eq!(std::fs::read_to_string(data.join("started")).unwrap(), "hello\n");
    assert!(!data.join("stopped").exists());
    std::fs::remove_file(place.manifests().join("pod.yaml")).unwrap();
    node.wait_gone("hooked");
    assert_eq!(std::fs::read_to_string(data.join("stopped")).unwrap(), "bye\n");
    node.stop();
}
