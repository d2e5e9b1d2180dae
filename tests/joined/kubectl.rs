//! A node in a real cluster, as a person with kubectl sees it: apply, look, delete.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use kube::api::ListParams;

use crate::cluster::{Cluster, ControlPlane, NodeOptions, Space, Terminal, block_on};
use crate::support::{container, eventually, pod_ip};

/// Three servers whose page is their own name.
pub const DEPLOYMENT: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      nodeSelector: {wasilet.dev/test: SPACE}
      terminationGracePeriodSeconds: 5
      volumes: [{name: page, emptyDir: {}}]
      initContainers:
      - name: init
        image: test/init:v1
        args: ["/page/index.html", "$(NAME)"]
        env: [{name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
        volumeMounts: [{name: page, mountPath: /page}]
      containers:
      - name: web
        image: test/web:v1
        args: ["--port", "8080"]
        ports: [{name: http, containerPort: 8080}]
        readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1}
        resources: {requests: {cpu: 10m, memory: 16Mi}}
        volumeMounts: [{name: page, mountPath: /usr/share/nginx/html, readOnly: true}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http}]
"#;

/// A pod of one idle container that has every small program.
pub fn tools(name: &str, more: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  nodeSelector: {{wasilet.dev/test: SPACE}}
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: test/tools:v1
    args: ["--file", "/tmp/nonce", "{name}"]
{more}
"#
    )
}

/// The page at an address of the cluster, fetched from beside the API server.
pub fn fetch(space: &Space<'_>, url: &str) -> Result<String, String> {
    let done = space.host("curl", &["--silent", "--show-error", "--fail", "--max-time", "10", url]);
    if done.code == Some(0) { Ok(done.stdout) } else { Err(format!("{url}: {}", done.stderr)) }
}

fn reasons(space: &Space<'_>, pod: &str) -> HashSet<String> {
    space.events(pod).into_iter().filter_map(|event| event.reason).collect()
}

#[test]
fn an_applied_deployment_serves_and_goes_without_a_trace() {
    let space = Cluster::shared().space("apply");
    let node = space.node(NodeOptions { images: &["init", "web"], ..NodeOptions::default() });
    space.apply(DEPLOYMENT);
    space.ok(&["rollout", "status", "deployment/web", "--timeout=150s"]);
    let pods = space.wait_pods("app=web", "are three", |pods| pods.len() == 3);
    let addresses: HashSet<String> = pods.iter().map(pod_ip).collect();
    assert_eq!(addresses.len(), 3, "each has an address of its own: {addresses:?}");
    for pod in &pods {
        let name = pod.name_any();
        let url = format!("http://{}:8080/", pod_ip(pod));
        let page = eventually("a pod's page", || fetch(&space, &url));
        assert_eq!(page.trim(), name, "the pod asked is the one that answered");
        let proxied = format!("/api/v1/namespaces/{}/pods/{name}:8080/proxy/", space.name());
        assert_eq!(space.ok(&["get", "--raw", &proxied]).trim(), name, "through the API server's proxy");
        let expected = ["Scheduled", "Pulled", "Created", "Started"];
        let seen = reasons(&space, &name);
        assert!(expected.iter().all(|reason| seen.contains(*reason)), "{name}: {seen:?}");
        let status = pod.status.clone().unwrap_or_default();
        assert_eq!(status.host_ip.as_deref(), Some(node.address()), "{status:#?}");
        let spec = pod.spec.clone().unwrap_or_default();
        assert_eq!(spec.node_name.as_deref(), Some(node.name()));
        assert!(container(pod, "web").image_id.contains("sha256:"), "{status:#?}");
    }
    let slices = block_on(space.api::<EndpointSlice>().list(&ListParams::default())).expect("EndpointSlices");
    let ready = slices.iter().flat_map(|slice| slice.endpoints.iter().flatten());
    let ready = ready.filter(|endpoint| endpoint.conditions.as_ref().is_some_and(|c| c.ready == Some(true)));
    assert_eq!(ready.flat_map(|endpoint| &endpoint.addresses).collect::<HashSet<_>>().len(), 3);
    let through = format!("/api/v1/namespaces/{}/services/web:http/proxy/", space.name());
    assert!(space.ok(&["get", "--raw", &through]).starts_with("web-"), "through the API server's service proxy");

    space.ok(&["delete", "deployment,service", "web", "--timeout=120s"]);
    space.wait_pods("app=web", "are gone", <[Pod]>::is_empty);
    space.wait::<Service>("web", "is gone", |service| service.is_none());
    eventually("nothing of the pods is left on the node", || {
        let left = std::fs::read_dir(node.root().join("pods")).map_or(0, Iterator::count);
        if left == 0 { Ok(()) } else { Err(format!("{left} directories\n{}", node.tail())) }
    });
}

#[test]
fn logs_follow_tail_since_previous_and_timestamps_are_as_a_kubelet_gives_them() {
    let space = Cluster::shared().space("logs");
    let _node = space.node(NodeOptions { images: &["updater", "exit-code"], ..NodeOptions::default() });
    let pod = |name: &str, image: &str, args: &str, policy: &str| {
        format!(
            r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  nodeSelector: {{wasilet.dev/test: SPACE}}
  restartPolicy: {policy}
  terminationGracePeriodSeconds: 1
  containers: [{{name: main, image: "test/{image}:v1", args: {args}}}]
"#
        )
    };
    space.apply(&pod("writer", "updater", r#"["/tmp/page", "0.1", "100"]"#, "Never"));
    space.apply(&pod("again", "exit-code", r#"["3"]"#, "Always"));
    space.wait_ready("writer");
    // Followed to its end: one hundred lines, in order, none twice.
    let followed = space.ok(&["logs", "writer", "--follow"]);
    let numbers: Vec<_> = followed.lines().filter_map(|line| line.split(' ').nth(1)?.parse::<u32>().ok()).collect();
    assert_eq!(numbers, (1..=100).collect::<Vec<_>>());
    space.wait_phase("writer", "Succeeded");
    assert_eq!(space.ok(&["logs", "writer"]), followed);
    let last = space.ok(&["logs", "writer", "--tail=2"]);
    assert_eq!(last.lines().collect::<Vec<_>>(), followed.lines().skip(98).collect::<Vec<_>>());
    let stamped = space.ok(&["logs", "writer", "--tail=1", "--timestamps"]);
    let (stamp, line) = stamped.split_once(' ').expect("a time and a line");
    assert!(stamp.parse::<jiff::Timestamp>().is_ok() && followed.ends_with(line), "{stamped}");
    assert_eq!(space.ok(&["logs", "writer", "--limit-bytes=8"]), "update 1");
    let future = "2999-01-01T00:00:00Z";
    assert_eq!(space.ok(&["logs", "writer", "--since-time", future]), "");

    space.wait_pod("again", "has restarted", |pod| {
        pod.status.as_ref().is_some_and(|status| {
            status.container_statuses.iter().flatten().any(|container| container.restart_count > 0)
        })
    });
    assert_eq!(space.ok(&["logs", "again", "--previous"]).trim(), "exiting with 3");
    let none = space.kubectl(&["logs", "writer", "--previous"]);
    assert!(none.code != Some(0) && none.stderr.contains("previous terminated container"), "{none:?}");
    let unknown = space.kubectl(&["logs", "writer", "--container", "absent"]);
    assert!(unknown.code != Some(0) && unknown.stderr.contains("absent"), "{unknown:?}");
}

#[test]
fn describe_and_top_tell_what_a_person_asks_for() {
    let cluster = Cluster::shared();
    let space = cluster.space("describe");
    let node = space.node(NodeOptions { tools: &["sleeper", "cat"], ..NodeOptions::default() });
    space.apply(&tools("quiet", "    resources: {limits: {cpu: 100m, memory: 64Mi}}"));
    space.wait_ready("quiet");
    let told = space.ok(&["describe", "pod", "quiet"]);
    for wanted in ["Successfully assigned", "Created", "Started", "QoS Class:", "Guaranteed", "Container ID:"] {
        assert!(told.contains(wanted), "{wanted:?} in\n{told}");
    }
    let told = cluster.kubectl_ok(&["describe", "node", node.name()]);
    for wanted in ["KubeletReady", "MemoryPressure", "Allocatable:", "wasm32", "quiet", "InternalIP:"] {
        assert!(told.contains(wanted), "{wanted:?} in\n{told}");
    }
    let wide = cluster.kubectl_ok(&["get", "node", node.name(), "--output", "wide"]);
    assert!(wide.contains("+wasilet") && wide.contains(node.address()), "{wide}");

    if !cluster.has_metrics() {
        return;
    }
    let top = eventually_slowly("kubectl top knows the pod", || {
        let done = space.kubectl(&["top", "pod", "quiet", "--containers", "--no-headers"]);
        if done.code == Some(0) {
            Ok(done.stdout)
        } else {
            Err(done.stderr + &cluster.try_plane().map(ControlPlane::tails).unwrap_or_default())
        }
    });
    let fields: Vec<_> = top.split_whitespace().collect();
    assert_eq!(fields[..2], ["quiet", "main"], "{top}");
    assert!(fields[2].ends_with('m') && fields[3].ends_with("Mi"), "{top}");
    let memory: u64 = fields[3].trim_end_matches("Mi").parse().expect("a number");
    assert!(memory < 64, "within its limit: {top}");
    eventually_slowly("kubectl top knows the node", || {
        let done = cluster.kubectl(&["top", "node", node.name(), "--no-headers"]);
        if done.code == Some(0) { Ok(()) } else { Err(done.stderr) }
    });
}

/// For questions that cost a process each.
fn eventually_slowly<T>(what: &str, mut probe: impl FnMut() -> Result<T, String>) -> T {
    let deadline = std::time::Instant::now() + crate::cluster::LONG;
    loop {
        match probe() {
            Ok(value) => return value,
            Err(complaint) => {
                assert!(std::time::Instant::now() < deadline, "{what}: {complaint}");
                std::thread::sleep(std::time::Duration::from_secs(1));
            }
        }
    }
}

/// What streams over WebSocket from a client to the API server, streams over one or the other from there to the node.
fn streams(space: &Space<'_>, gate: bool) {
    let gates = format!("featureGates: {{ExtendWebSocketsToKubelet: {gate}}}");
    let images = &["net-check", "cat"];
    let _node = space.node(NodeOptions {
        images,
        tools: &["sleeper", "cat", "exit-code", "signal"],
        kubelet: &gates,
        ..NodeOptions::default()
    });
    space.apply(&tools("box", ""));
    space.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: echo}
spec:
  nodeSelector: {wasilet.dev/test: SPACE}
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: "test/net-check:v1", args: ["serve", "7"], ports: [{containerPort: 7}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: reader}
spec:
  nodeSelector: {wasilet.dev/test: SPACE}
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: "test/cat:v1", stdin: true, stdinOnce: true}]
---
apiVersion: v1
kind: Pod
metadata: {name: typist}
spec:
  nodeSelector: {wasilet.dev/test: SPACE}
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: "test/cat:v1", stdin: true, tty: true}]
"#,
    );
    for pod in ["box", "echo", "reader", "typist"] {
        space.wait_ready(pod);
    }
    exec(space);
    exec_at_a_terminal(space);
    attach(space);
    super::forward::port_forward(space, "echo", 7);
}

#[test]
fn exec_attach_and_port_forward_work_over_websocket() {
    streams(&Cluster::shared().space("websocket"), true);
}

#[test]
fn exec_attach_and_port_forward_work_over_spdy() {
    streams(&Cluster::shared().space("spdy"), false);
}

fn exec(space: &Space<'_>) {
    assert_eq!(space.ok(&["exec", "box", "--", "/bin/sleeper", "--show", "/tmp/nonce"]).trim(), "box");
    for code in [0, 1, 7, 255] {
        let done = space.kubectl(&["exec", "box", "--", "/bin/exit-code", &code.to_string()]);
        assert_eq!(done.code, Some(code), "{done:?}");
        assert_eq!(done.stdout.trim(), format!("exiting with {code}"));
        assert_eq!(done.stderr.contains(&format!("exit code {code}")), code != 0, "{done:?}");
    }
    let payload: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 251) as u8 & 0x7f).collect();
    let done = space.kubectl_with(&["exec", "--stdin", "box", "--", "/bin/cat"], &payload);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert!(done.stdout.as_bytes() == payload, "{} of {} bytes came back", done.stdout.len(), payload.len());
    assert!(done.stderr.contains("cat: 3000000 bytes"), "stderr is its own stream: {}", done.stderr);
    let done = space.kubectl(&["exec", "box", "--", "/bin/absent"]);
    assert!(done.code != Some(0) && done.stderr.contains("/bin/absent"), "{done:?}");
    let done = space.kubectl(&["exec", "box", "--container", "absent", "--", "/bin/cat"]);
    assert!(done.code != Some(0) && done.stderr.contains("absent"), "{done:?}");
}

fn exec_at_a_terminal(space: &Space<'_>) {
    let command = space.kubectl_command(&["exec", "-it", "box", "--", "/bin/cat"]);
    let mut terminal = Terminal::start(&command, 80, 24);
    terminal.wait_raw();
    terminal.press("typed\r");
    // Once as the terminal's echo, once as what the program wrote.
    eventually("the line is echoed and answered", || {
        let screen = terminal.screen();
        if screen.matches("typed").count() >= 2 { Ok(()) } else { Err(screen) }
    });
    terminal.press("\u{4}");
    assert_eq!(terminal.wait(), Some(0), "{}", terminal.screen());

    let command = space.kubectl_command(&["exec", "-it", "box", "--", "/bin/signal", "ignore"]);
    let mut terminal = Terminal::start(&command, 80, 24);
    terminal.wait_for("signal: waiting");
    terminal.resize(132, 43);
    terminal.wait_for("signal: got 28");
    terminal.press("\u{3}");
    terminal.wait_for("signal: got 2,");
    drop(terminal);
}

fn attach(space: &Space<'_>) {
    let done = space.kubectl_with(&["attach", "--stdin", "reader"], b"one\ntwo\n");
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert!(done.stdout.contains("one\ntwo\n"), "{done:?}");
    // stdinOnce: the end of the first client's input is the end of the program's.
    space.wait_phase("reader", "Succeeded");
    assert_eq!(space.ok(&["logs", "reader"]), "one\ntwo\ncat: 8 bytes\n");

    let command = space.kubectl_command(&["attach", "-it", "typist"]);
    let mut terminal = Terminal::start(&command, 80, 24);
    terminal.wait_raw();
    terminal.press("hello\r");
    eventually("the line is echoed and answered", || {
        let screen = terminal.screen();
        if screen.matches("hello").count() >= 2 { Ok(()) } else { Err(screen) }
    });
    drop(terminal);
    assert!(space.ok(&["logs", "typist"]).contains("hello"), "what a terminal shows is logged");
    let phase = space.wait_phase("typist", "Running");
    assert_eq!(container(&phase, "main").restart_count, 0, "a client that goes does not end it");
}
