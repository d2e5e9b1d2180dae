//! Components in Python and JavaScript, made by those languages' own tools: servers and commands.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use super::support::{Place, container, eventually_within, http_get, pod_ip, repository, text, toolbox_settings};

/// Runs the server and the command of a language, if its tools were there to build them (`scripts/script-guests.sh`).
fn runs(language: &str, name: &str) {
    let guests = ["server", "command"].map(|kind| repository().join(format!("target/guests/{language}-{kind}.wasm")));
    if !guests.iter().all(|guest| guest.exists()) {
        crate::support::skipped(&format!("no {language} guests: run scripts/script-guests.sh {language}"));
        return;
    }
    let place = Place::new();
    for (guest, kind) in guests.iter().zip(["server", "command"]) {
        place.load(guest, &format!("test/{kind}:v1"));
    }
    // An engine is in each of them: compiled once, for all runs of the tests.
    let config = place.path().join("node.yaml");
    let settings = toolbox_settings();
    fs::write(&config, format!("apiVersion: wasilet.dev/v1alpha1\nkind: NodeConfiguration\n{settings}")).unwrap();
    place.write_manifest(
        "pods.yaml",
        r#"
apiVersion: v1
kind: Pod
metadata: {name: command}
spec:
  restartPolicy: Never
  containers:
  - {name: main, image: "test/command:v1", args: [one, two], env: [{name: NAME, value: tester}]}
---
apiVersion: v1
kind: Pod
metadata: {name: server}
spec:
  containers:
  - {name: main, image: "test/server:v1", ports: [{containerPort: 8080}]}
"#,
    );
    let node = place.start_with(&["--config", &config.to_string_lossy()]);
    // Compiling an engine takes longer than anything else a test waits for.
    eventually_within(Duration::from_mins(5), &format!("the {language} guests start"), || {
        let begun = text(&place.run(&["ps"]).stdout).lines().all(|line| !line.contains("ContainerCreating"));
        if begun { Ok(()) } else { Err(node.process.output()) }
    });
    let pod = node.wait_phase("command", "Succeeded");
    assert_eq!(container(&pod, "main").restart_count, 0);
    let log = node.logs("command", "main");
    assert!(log.starts_with(&format!("hello tester, one two from {name}")), "{log}");

    let address = format!("{}:8080", pod_ip(&node.wait_ready("server")));
    // More than one: an instance that is used again must answer as well as a new one.
    for _ in 0..3 {
        let (code, body) = http_get(&address, "/").unwrap();
        assert!(code == 200 && body.contains(&format!("hello from {name}\n")), "{code} {body}");
    }
    assert_eq!(http_get(&address, "/nosuch").unwrap().0, 404);
    let mut stream = TcpStream::connect(&address).unwrap();
    let body = "shout ".repeat(2000);
    // No chunks in an answer to 1.0.
    write!(stream, "POST /echo HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains(" 200 OK\r\n"), "{answer}");
    assert_eq!(answer.matches("SHOUT").count(), 2000, "{answer}");
    node.stop();
}

#[test]
fn a_python_server_and_a_python_command_run_as_pods() {
    runs("python", "Python");
}

#[test]
fn a_javascript_server_and_a_javascript_command_run_as_pods() {
    runs("js", "JavaScript");
}
