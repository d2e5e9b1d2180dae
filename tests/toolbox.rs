//! A shell in every pod: the node's toolbox, in containers whose image is one wasm file or busybox.

use super::support::{Node, Place, container, eventually, text};

const BARE: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: bare}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: test/sleeper:v1
    resources: {limits: {memory: 512Mi}}
"#;

/// Runs a script in the container of the pod `bare`.
fn sh(node: &Node<'_>, script: &str) -> (String, String, Option<i32>) {
    let output = node.exec("bare", "main", &["sh", "-c", script]);
    (text(&output.stdout), text(&output.stderr), output.status.code())
}

#[test]
fn a_container_of_one_wasm_file_has_a_shell() {
    let place = Place::with_images(&["sleeper"]);
    place.write_manifest("bare.yaml", BARE);
    let node = place.start_with_toolbox();
    node.wait_ready("bare");
    let (stdout, stderr, code) =
        sh(&node, "ls -l / | grep etc; id; cat /etc/resolv.conf; (sleep 0.2; echo late) & wait; exit 3");
    assert_eq!(code, Some(3), "{stdout}{stderr}");
    let lines: Vec<&str> = stdout.lines().collect();
    assert!(lines[0].starts_with("dr") && lines[0].ends_with("etc"), "{stdout}");
    assert!(lines[1].starts_with("uid=0"), "{stdout}");
    assert_eq!(lines.last(), Some(&"late"), "{stdout}");

    for (case, script, wanted, wanted_code) in [
        ("pipelines of three", "printf 'b\\na\\nc\\n' | sort | head -n 2", "a\nb\n", 0),
        ("here-documents", "cat <<EOF\nhere $((1 + 1))\nEOF", "here 2\n", 0),
        ("traps of signals", "trap 'echo got; exit 7' TERM; kill -TERM $$; sleep 1; echo no", "got\n", 7),
        ("an untrapped signal", "kill -TERM $$; sleep 5", "", 143),
        ("jobs that are killed", "sleep 100 & kill $!; wait $!; echo $?", "143\n", 0),
        (
            "umask and modes",
            "umask 027; touch /tmp/f; mkdir /tmp/d; stat -c %a /tmp/f /tmp/d; umask",
            "640\n750\n0027\n",
            0,
        ),
        (
            "owners and times",
            "touch -d @1000000000 /tmp/t; chown 7:8 /tmp/t; stat -c '%u %g %Y' /tmp/t",
            "7 8 1000000000\n",
            0,
        ),
        ("programs that are not there", "nosuch 2>/dev/null; echo $?", "127\n", 0),
        ("the way of busybox", "busybox echo one; /bin/echo two; /usr/bin/env echo three", "one\ntwo\nthree\n", 0),
        (
            "tar keeps modes and times",
            "mkdir -p /tmp/a /tmp/b; echo x > /tmp/a/f; chmod 640 /tmp/a/f; touch -d @1000000000 /tmp/a/f; \
             tar -C /tmp -cf - a | tar -C /tmp/b -xf -; stat -c '%a %Y' /tmp/b/a/f",
            "640 1000000000\n",
            0,
        ),
        (
            "a script by its interpreter",
            "printf '#!/bin/sh\\necho \"$0 $1\"\\nexit 9\\n' > /tmp/s; chmod +x /tmp/s; /tmp/s x",
            "/tmp/s x\n",
            9,
        ),
        ("its processes", "sleep 50 & ps -o comm | grep -c sleep; kill $!", "1\n", 0),
    ] {
        let (stdout, stderr, code) = sh(&node, script);
        assert_eq!((stdout.as_str(), code), (wanted, Some(wanted_code)), "{case}: {stderr}");
    }

    let output = node.exec("bare", "main", &["ls", "/nosuch"]);
    assert_eq!(text(&output.stderr).lines().next(), Some("ls: /nosuch: No such file or directory"));
    let output = node.exec("bare", "main", &["/.wasilet/toolbox", "echo", "by its own path"]);
    assert_eq!(text(&output.stdout), "by its own path\n");
    node.stop();
}

#[test]
fn busybox_is_the_toolbox_as_an_image() {
    let place = Place::new();
    let pulled = place.run(&["image", "pull", "busybox"]);
    assert!(pulled.status.success(), "{}", text(&pulled.stderr));
    assert!(text(&pulled.stderr).contains("is the node's toolbox"), "{}", text(&pulled.stderr));
    place.write_manifest(
        "box.yaml",
        r#"
apiVersion: v1
kind: Pod
metadata: {name: box}
spec:
  restartPolicy: Never
  containers:
  - name: main
    image: busybox:1.36
    imagePullPolicy: Always
    command: [sh, -c, "ls -l /bin/sh | cut -c1-10; cat /bin/sh; grep root /etc/passwd; echo $PATH; whoami; exit 5"]
"#,
    );
    let node = place.start_with_toolbox();
    let pod = node.wait_phase("box", "Failed");
    let end =
        container(&pod, "main").state.as_ref().and_then(|state| state.terminated.as_ref()).map(|end| end.exit_code);
    let log = node.logs("box", "main");
    assert_eq!(end, Some(5), "{log}");
    let wanted = "-rwxr-xr-x\n#!/.wasilet/toolbox\nroot:x:0:0:root:/root:/bin/sh\n\
                  /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nroot\n";
    assert_eq!(log, wanted);
    node.stop();
}

#[test]
fn a_pod_opts_out_and_a_node_without_a_toolbox_says_so() {
    let place = Place::with_images(&["sleeper"]);
    let out = BARE.replace("name: bare}", "name: bare, annotations: {wasilet.dev/toolbox: \"false\"}}");
    place.write_manifest("bare.yaml", &out);
    let node = place.start_with_toolbox();
    node.wait_ready("bare");
    let (_, stderr, code) = sh(&node, "echo no");
    assert!(stderr.contains("exec: \"sh\": executable file not found in $PATH"), "{stderr}");
    assert!(!stderr.contains("toolbox") && code != Some(0), "{code:?} {stderr}");
    node.stop();

    let place = Place::with_images(&["sleeper"]);
    place.write_manifest("bare.yaml", BARE);
    let node = place.start();
    node.wait_ready("bare");
    eventually("the node says that it has no toolbox", || {
        let (_, stderr, _) = sh(&node, "echo no");
        let wanted =
            "exec: \"sh\": executable file not found in $PATH; the image has no sh and this node has no toolbox";
        if stderr.contains(wanted) { Ok(()) } else { Err(stderr) }
    });
    node.stop();
}
