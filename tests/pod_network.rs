//! The pod's network: loopback shared by its containers, an address of its own, other pods and the host.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::support::{Place, eventually, pod_ip, text};

#[test]
fn net_check_passes_in_a_pod() {
    let place = Place::with_images(&["net-check"]);
    place.write_manifest(
        "pod.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: net}\nspec:\n  restartPolicy: Never\n  containers: [{name: main, image: \"test/net-check:v1\"}]\n",
    );
    let node = place.start();
    node.wait_for("net", "has ended", |pod| {
        matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Failed" | "Succeeded"))
    });
    let log = node.logs("net", "main");
    let verdict = log.lines().rev().find(|line| line.starts_with("net-check:")).unwrap_or_default();
    assert!(verdict.ends_with(", 0 failed"), "{log}");
}

#[test]
fn two_containers_meet_on_loopback_and_two_pods_by_address() {
    let place = Place::with_images(&["net-check"]);
    place.write_manifest(
        "server.yaml",
        r#"
apiVersion: v1
kind: Pod
metadata: {name: server}
spec:
  containers:
  - {name: server, image: "test/net-check:v1", args: ["serve", "7000"]}
  - {name: client, image: "test/net-check:v1", args: ["dial", "localhost", "7000"]}
"#,
    );
    let node = place.start();
    // Whichever of the two is first: a client that finds nobody yet is started again.
    node.wait_log("server", "client", ", 0 failed");
    let ip = eventually("the pod has an address", || {
        node.pod("server").map(|pod| pod_ip(&pod)).ok_or_else(|| "no pod".to_owned())
    });
    // From the host, through the kernel.
    let mut stream = TcpStream::connect(format!("{ip}:7000")).expect("the pod answers on its address");
    stream.write_all(b"ping\n").expect("it reads");
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).expect("it echoes");
    assert_eq!(&answer, b"ping\n");
    // From another pod, in process.
    place.write_manifest(
        "other.yaml",
        &format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: other}}\nspec:\n  restartPolicy: Never\n  containers: [{{name: main, image: \"test/net-check:v1\", args: [\"dial\", \"{ip}\", \"7000\"]}}]\n"
        ),
    );
    let log = node.wait_log("other", "main", "net-check: ");
    assert!(log.contains(", 0 failed"), "{log}");
}

#[test]
fn an_http_component_is_served_on_its_container_port() {
    let place = Place::with_images(&["http-component"]);
    place.write_manifest(
        "http.yaml",
        r#"
apiVersion: v1
kind: Pod
metadata: {name: http}
spec:
  containers:
  - name: main
    image: test/http-component:v1
    ports: [{containerPort: 8081}]
    env: [{name: COLOUR, value: teal}]
"#,
    );
    let node = place.start();
    let pod = node.wait_ready("http");
    let address = format!("{}:8081", pod_ip(&pod));
    let (code, body) =
        eventually("it answers", || super::support::http_get(&address, "/hello?x=1").map_err(|e| e.to_string()));
    assert_eq!(code, 200);
    assert!(body.contains("/hello"), "{body}");
    let (_, env) = super::support::http_get(&address, "/env").expect("it answers");
    assert!(env.contains("teal"), "{env}");
    node.stop();
}

#[test]
fn a_pipeline_of_two_programs_runs_in_one_container() {
    let place = Place::with_images(&["pipeline"]);
    place.write_manifest(
        "pod.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: pipeline}\nspec:\n  restartPolicy: Never\n  containers: [{name: main, image: \"test/pipeline:v1\"}]\n",
    );
    let node = place.start();
    node.wait_phase("pipeline", "Succeeded");
    let log = node.logs("pipeline", "main");
    assert!(!log.is_empty());
    let pid = text(&place.run(&["ps", "--containers"]).stdout);
    assert!(pid.contains("Completed"), "{pid}");
}

#[test]
fn a_preview_1_module_is_given_listeners_for_its_ports() {
    let place = Place::with_images(&["accept"]);
    place.write_manifest(
        "accept.yaml",
        r#"
apiVersion: v1
kind: Pod
metadata: {name: accept, annotations: {wasilet.dev/preopen-ports: "true"}}
spec:
  containers: [{name: main, image: "test/accept:v1", ports: [{containerPort: 7100}, {containerPort: 7101}]}]
"#,
    );
    let node = place.start();
    let log = node.wait_log("accept", "main", "accept: listening");
    assert!(log.contains("at fd 4 for port 7100"), "{log}");
    let ip = pod_ip(&node.wait_ready("accept"));
    for round in ["one", "two"] {
        let mut stream = TcpStream::connect(format!("{ip}:7100")).expect("it listens");
        stream.write_all(format!("{round}\n").as_bytes()).expect("it reads");
        stream.shutdown(std::net::Shutdown::Write).expect("it is told of the end");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        assert_eq!(answer, format!("7100 {round}\n"));
    }
    TcpStream::connect(format!("{ip}:7101")).expect("the second is open, too");
    // A port that another socket of the pod has is said where people look.
    place.write_manifest(
        "twice.yaml",
        r#"
apiVersion: v1
kind: Pod
metadata: {name: twice, annotations: {wasilet.dev/preopen-ports: "a,b"}}
spec:
  restartPolicy: Never
  containers:
  - {name: a, image: "test/accept:v1", ports: [{containerPort: 7100}]}
  - {name: b, image: "test/accept:v1", ports: [{containerPort: 7100}]}
"#,
    );
    let pod = node.wait_for("twice", "one of two has failed", |pod| {
        let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.clone()).unwrap_or_default();
        statuses.iter().any(|status| format!("{status:?}").contains("listening on port 7100"))
    });
    assert!(pod.status.is_some());
}
