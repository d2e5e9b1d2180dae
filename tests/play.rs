//! `wasilet play`: a manifest in the foreground, as a person at a terminal sees it.

use std::process::Stdio;

use super::support::{Place, Process, eventually, text};

#[test]
fn play_prefixes_logs_by_container_shows_events_and_ends_on_ctrl_c() {
    let place = Place::with_images(&["updater", "sleeper"]);
    let manifest = place.path().join("pod.yaml");
    std::fs::write(
        &manifest,
        r#"
apiVersion: v1
kind: Pod
metadata: {name: two}
spec:
  containers:
  - {name: writer, image: "test/updater:v1", args: ["/tmp/page", "0.1"]}
  - {name: quiet, image: "test/sleeper:v1", args: ["hush"]}
"#,
    )
    .expect("a manifest");
    let mut process = Process::spawn(&mut place.command(&["play", &manifest.to_string_lossy()]));
    eventually("both containers are heard and events are shown", || {
        let output = process.output();
        let heard = output.lines().any(|line| line.contains("two/writer"))
            && output.lines().any(|line| line.contains("two/quiet") && line.contains("hush"));
        let events = ["Created", "Started"].iter().all(|reason| output.contains(reason));
        if heard && events { Ok(()) } else { Err(output) }
    });
    process.signal(rustix::process::Signal::INT);
    let status = process.wait();
    assert!(matches!(status.code(), Some(0 | 130)), "{status}\n{}", process.output());
    assert!(
        std::fs::read_dir(place.root().join("pods")).is_ok_and(|mut pods| pods.next().is_none()),
        "nothing is left of its pods"
    );
}

#[test]
fn play_ends_by_itself_when_all_pods_have_and_its_exit_code_says_how() {
    let place = Place::with_images(&["hello", "exit-code"]);
    for (name, image, args, expected) in [("good", "hello", "[\"hi\"]", 0), ("bad", "exit-code", "[\"7\"]", 1)] {
        let manifest = place.path().join(format!("{name}.yaml"));
        std::fs::write(
            &manifest,
            format!(
                "apiVersion: batch/v1\nkind: Job\nmetadata: {{name: {name}}}\nspec:\n  backoffLimit: 0\n  template:\n    spec:\n      restartPolicy: Never\n      containers: [{{name: main, image: \"test/{image}:v1\", args: {args}}}]\n"
            ),
        )
        .expect("a manifest");
        let output = place.run(&["play", &manifest.to_string_lossy()]);
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(expected), "{name}: {stdout}{stderr}");
        // Logs and events name the pod alike, and neither loses its end.
        assert!(expected != 0 || stdout.contains("good/main "), "{stdout}");
        assert!(stderr.contains(&format!("* Started    {name}/main: Container started")), "{stderr}");
    }
}

#[test]
fn exec_passes_stdin_and_returns_the_exit_code() {
    let place = Place::with_images(&["sleeper", "exit-code"]);
    place.write_manifest("pod.yaml", &super::standalone::sleeper("box", "x"));
    let node = place.start();
    node.wait_ready("box");
    let missing = node.exec("box", "main", &["/bin/absent"]);
    assert!(!missing.status.success());
    let said = text(&missing.stderr);
    assert!(said.contains("/bin/absent") && said.contains("no such file or directory"), "{said}");
    let unknown =
        place.command(&["exec", "nowhere-node", "--", "/app.wasm"]).stdin(Stdio::null()).output().expect("wasilet");
    assert!(text(&unknown.stderr).contains("nowhere-node"), "{}", text(&unknown.stderr));
}

#[test]
fn a_client_without_a_node_is_told_so() {
    let place = Place::new();
    let output = place.run(&["ps"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("no node answers on"), "{}", text(&output.stderr));
}

#[test]
fn bad_usage_is_exit_code_2() {
    let place = Place::new();
    assert_eq!(place.run(&["frobnicate"]).status.code(), Some(2));
}

#[test]
fn images_of_running_pods_are_neither_pruned_nor_removed() {
    let place = Place::with_images(&["sleeper", "hello"]);
    place.write_manifest("pod.yaml", &super::standalone::sleeper("box", "x"));
    let node = place.start();
    node.wait_ready("box");
    let pruned = place.run(&["image", "prune", "--all"]);
    assert!(pruned.status.success(), "{}", text(&pruned.stderr));
    let listed = text(&place.run(&["image", "ls"]).stdout);
    assert!(listed.contains("sleeper") && !listed.contains("hello"), "{listed}");
    assert!(!place.run(&["image", "rm", "test/sleeper:v1"]).status.success(), "it is in use");
}

#[test]
fn exec_with_a_terminal_ends_with_its_program_and_passes_ctrl_c() {
    let place = Place::with_images(&["sleeper"]);
    place.write_manifest("pod.yaml", &super::standalone::sleeper("box", "x"));
    let node = place.start();
    node.wait_ready("box");
    let (code, screen) = on_a_terminal(&place, &["/app.wasm", "--show", "/etc/hostname"], None);
    assert_eq!(code, Some(0), "{screen}");
    assert!(screen.contains("box-node\r\n"), "{screen:?}");
    let (code, screen) = on_a_terminal(&place, &["/app.wasm", "nonce-of-the-terminal"], Some("nonce-of-the-terminal"));
    assert_eq!(code, Some(130), "{screen}");
}

/// Runs `wasilet exec -it` on a terminal of its own; types ^C once `until` is on the screen.
fn on_a_terminal(place: &Place, argv: &[&str], until: Option<&str>) -> (Option<i32>, String) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use std::io::{Read, Write};
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("a terminal");
    grantpt(&master).expect("a terminal");
    unlockpt(&master).expect("a terminal");
    let name = ptsname(&master, Vec::new()).expect("a terminal has a name").into_string().expect("of ASCII");
    let side = || std::fs::File::options().read(true).write(true).open(&name).expect("the other side");
    let mut args = vec!["exec", "-it", "box-node", "--"];
    args.extend(argv);
    let mut command = place.command(&args);
    let mut child = command.stdin(side()).stdout(side()).stderr(side()).spawn().expect("wasilet starts");
    // The command has the other side open for itself; ours would keep the terminal from ending.
    drop(command);
    let mut master = std::fs::File::from(master);
    let mut screen = String::new();
    let mut bytes = [0; 4096];
    let mut typed = false;
    // Ends with EIO when the last process has closed the terminal.
    while let Ok(count @ 1..) = master.read(&mut bytes) {
        screen.push_str(&text(&bytes[..count]));
        if !typed && until.is_some_and(|until| screen.contains(until)) {
            master.write_all(b"\x03").expect("a key is typed");
            typed = true;
        }
    }
    (child.wait().expect("our own child").code(), screen)
}
