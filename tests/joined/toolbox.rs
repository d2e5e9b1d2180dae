//! What people do with a shell in a pod: `kubectl exec -it`, `cp` and `debug`, on images that have no shell.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::cluster::{Cluster, Node, NodeOptions, Space, Terminal};
use crate::support::toolbox_settings;

const BARE: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: bare}
spec:
  nodeSelector: {wasilet.dev/test: SPACE}
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: test/sleeper:v1
    livenessProbe: {exec: {command: [sh, -c, "test -d /tmp"]}, periodSeconds: 1}
    lifecycle: {postStart: {exec: {command: [sh, -c, "echo started > /tmp/started"]}}}
"#;

#[test]
fn kubectl_exec_cp_and_debug_need_no_shell_in_the_image() {
    let space = Cluster::shared().space("toolbox");
    let settings = format!("{}hostPathAllowedPrefixes: [/]\n", toolbox_settings());
    let node = space.node(NodeOptions { images: &["sleeper"], node: &settings, ..NodeOptions::default() });
    space.apply(BARE);
    space.wait_ready("bare");
    assert_eq!(space.ok(&["exec", "bare", "--", "cat", "/tmp/started"]), "started\n");

    let command = space.kubectl_command(&["exec", "-it", "bare", "--", "sh"]);
    let mut terminal = Terminal::start(&command, 80, 24);
    terminal.wait_for("/ # ");
    terminal.press("echo $((6 * 7))\r");
    terminal.wait_for("42");
    terminal.press("sleep 1000\r");
    terminal.wait_for("sleep 1000");
    terminal.press("\u{3}");
    terminal.press("echo status $?\r");
    terminal.wait_for("status 130");
    terminal.press("exit 3\r");
    assert_eq!(terminal.wait(), Some(3), "{}", terminal.screen());

    copy_both_ways(&space);

    let command = space.kubectl_command(&["debug", "-it", "bare", "--image=busybox", "--target=main", "--", "sh"]);
    let mut terminal = Terminal::start(&command, 80, 24);
    // The shell began before kubectl listened: its first prompt is in the log.
    terminal.wait_for("try pressing enter");
    terminal.press("\r");
    terminal.wait_for("/ # ");
    terminal.press("echo in $(hostname)\r");
    terminal.wait_for("in bare");
    terminal.press("exit\r");
    terminal.wait();

    debug_node(&space, &node);
}

/// `kubectl debug node/`: the machine's files, but for the node's own and the kernel's.
fn debug_node(space: &Space<'_>, node: &Node<'_>) {
    let script = format!(
        "test -d /host/usr && echo usr; ls /host/proc >/dev/null 2>&1 || echo no proc; \
         ls /host{} >/dev/null 2>&1 || echo no root; hostname",
        node.root().display()
    );
    let name = format!("node/{}", node.name());
    let said = space.ok(&["debug", &name, "--image=busybox", "--", "sh", "-c", &script]);
    let pod = said.split_whitespace().find(|word| word.starts_with("node-debugger-")).expect("a pod");
    space.wait_phase(pod, "Succeeded");
    let log = space.ok(&["logs", pod]);
    assert!(log.starts_with("usr\nno proc\nno root\n"), "{log}");
}

/// kubectl gives its tar `-m`, and keeps neither modes nor times of what it fetches: modes of what it sends are all it keeps.
fn copy_both_ways(space: &Space<'_>) {
    let dir = tempfile::tempdir().expect("a directory");
    let from = dir.path().join("from");
    fs::create_dir_all(from.join("sub")).expect("a directory");
    let files = [("sub/plain", 0o640), ("program", 0o755)];
    for (name, mode) in files {
        let path = from.join(name);
        fs::write(&path, format!("content of {name}\n")).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("our own");
    }
    space.ok(&["cp", &from.to_string_lossy(), "bare:/tmp/there"]);
    let seen = space.ok(&["exec", "bare", "--", "stat", "-c", "%a", "/tmp/there/sub/plain", "/tmp/there/program"]);
    assert_eq!(seen, "640\n755\n");

    let back = dir.path().join("back");
    space.ok(&["cp", "bare:/tmp/there", &back.to_string_lossy()]);
    for (name, _) in files {
        assert_eq!(fs::read_to_string(back.join(name)).expect("a file"), format!("content of {name}\n"));
    }
}
