//! Go programs that know nothing of wasm: built with the overlay, they run as containers.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Stdio;
use std::thread;

use super::support::{Place, http_get, pod_ip, text};

#[test]
fn what_go_programs_for_unix_use_is_there() {
    let place = Place::with_images(&["go-check"]);
    place.write_manifest(
        "check.yaml",
        r#"
apiVersion: v1
kind: Pod
metadata: {name: check}
spec:
  restartPolicy: Never
  volumes: [{name: tmp, emptyDir: {}}]
  containers:
  - name: root
    image: test/go-check:v1
  - name: user
    image: test/go-check:v1
    securityContext: {runAsUser: 1000, runAsGroup: 3000}
    volumeMounts: [{name: tmp, mountPath: /tmp}]
"#,
    );
    let node = place.start();
    for (name, who) in [("root", "uid 0, gid 0"), ("user", "uid 1000, gid 3000")] {
        let log = node.wait_log("check", name, "go-check: ");
        let verdict = log.lines().find(|line| line.starts_with("go-check: ")).unwrap_or_default();
        assert!(verdict.ends_with(", 0 failed"), "{name}:\n{log}");
        assert!(log.contains(who), "{name}:\n{log}");
    }
    node.wait_phase("check", "Succeeded");
}

#[test]
fn an_unmodified_web_server_serves_and_stops_gracefully() {
    let place = Place::with_images(&["http-server-go"]);
    place.write_manifest(
        "web.yaml",
        r#"
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 60
  containers:
  - name: main
    image: test/http-server-go:v1
    readinessProbe: {httpGet: {path: /hello, port: 8080}, periodSeconds: 1}
"#,
    );
    let node = place.start();
    let address = format!("{}:8080", pod_ip(&node.wait_ready("web")));
    let (code, body) = http_get(&address, "/hello").expect("the pod answers on its address");
    assert_eq!(code, 200);
    assert!(body.starts_with("hello from web"), "{body}");
    let log = node.logs("web", "main");
    assert!(log.contains("asked itself: 200 OK"), "{log}");

    // One request is on its way when the pod is told to end: it is answered.
    let mut stream = TcpStream::connect(&address).expect("the pod answers");
    stream.write_all(b"GET /slow HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n").expect("it reads");
    let answer = thread::spawn(move || {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map(|_| answer)
    });
    node.wait_log("web", "main", "slow: begun");
    let mut follow = place.command(&["logs", "--follow", "web-node"]);
    let follow = follow.stdout(Stdio::piped()).spawn().expect("logs are followed");
    fs::remove_file(place.manifests().join("web.yaml")).expect("the manifest was there");
    let answer = answer.join().expect("no panic").expect("the answer is whole");
    assert!(answer.contains("slow, but there"), "{answer}");
    // Its log ends with what it says last, so nothing ended it before.
    let log = text(&follow.wait_with_output().expect("the log ends with the container").stdout);
    assert!(log.contains("told to stop: terminated signal received\nstopped\n"), "{log}");
    node.wait_gone("web");
}

#[test]
fn go_builds_for_wasip1_with_what_the_binary_carries() {
    let place = Place::new();
    let app = place.path().join("app");
    fs::create_dir(&app).expect("a directory");
    fs::write(app.join("go.mod"), "module example.com/app\n\ngo 1.24\n").expect("a file");
    let run = |args: &[&str], path: Option<&str>| {
        let mut command = place.command(args);
        command.current_dir(&app).env("WASILET_GO_CACHE", place.path().join("cache"));
        if let Some(path) = path {
            command.env("PATH", path);
        }
        command.output().expect("the binary runs")
    };
    let output = run(&["go", "version"], Some("/nonexistent"));
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("there is no go on PATH"), "{}", text(&output.stderr));

    fs::write(app.join("main.go"), "package main\n\nfunc main() { undefined() }\n").expect("a file");
    let output = run(&["go", "vet", "."], None);
    assert_eq!(output.status.code(), Some(1), "go's own code");
    assert!(text(&output.stderr).contains("undefined: undefined"), "{}", text(&output.stderr));

    // The library's own additions are seen: without them this does not compile for wasip1.
    let source = "package main\n\nimport \"syscall\"\n\nfunc main() { println(syscall.Statfs_t{}.Bsize) }\n";
    fs::write(app.join("main.go"), source).expect("a file");
    let output = run(&["go", "build", "-o", "app.wasm", "."], None);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let wasm = fs::read(app.join("app.wasm")).expect("it was built");
    assert_eq!(&wasm[..4], b"\0asm");
    let output = run(&["go", "build", "-overlay=x", "."], None);
    assert!(text(&output.stderr).contains("-overlay cannot be given"), "{}", text(&output.stderr));
}
