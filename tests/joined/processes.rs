//! Containers that see each other's processes: a debug container with a target, and a pod that shares its own.

use crate::cluster::{Cluster, NodeOptions, Space, Terminal};
use crate::support::{container, eventually, toolbox_settings};

const TARGET: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: target}
spec:
  nodeSelector: {wasilet.dev/test: SPACE}
  terminationGracePeriodSeconds: 1
  volumes: [{name: notes, emptyDir: {}}]
  containers:
  - name: main
    image: test/sleeper:v1
    args: [--file, /notes/nonce, the-targets]
    volumeMounts: [{name: notes, mountPath: /notes}]
  - name: other
    image: test/sleeper:v1
"#;

/// The pod of Kubernetes' task "Share Process Namespace between Containers in a Pod", with a server of ours.
const SHARING: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: nginx}
spec:
  nodeSelector: {wasilet.dev/test: SPACE}
  terminationGracePeriodSeconds: 1
  shareProcessNamespace: true
  containers:
  - name: nginx
    image: test/signal:v1
    args: [ignore]
  - name: shell
    image: busybox:1.28
    command: ["sleep", "3600"]
    securityContext: {capabilities: {add: [SYS_PTRACE]}}
    stdin: true
    tty: true
"#;

/// What a command in a container says, once it says it.
fn says(space: &Space<'_>, pod: &str, container: &str, script: &str, wanted: &str) {
    eventually(script, || {
        let said = space.ok(&["exec", pod, "-c", container, "--", "sh", "-c", script]);
        if said == wanted { Ok(()) } else { Err(format!("{said:?}, not {wanted:?}")) }
    });
}

#[test]
fn a_debug_container_joins_its_targets_processes() {
    let space = Cluster::shared().space("target");
    let _node = space.node(NodeOptions { images: &["sleeper"], node: &toolbox_settings(), ..NodeOptions::default() });
    space.apply(TARGET);
    space.wait_ready("target");
    let command = space.kubectl_command(&["debug", "-it", "target", "--image=busybox", "--target=main", "--", "sh"]);
    let mut terminal = Terminal::start(&command, 120, 24);
    // The shell began before kubectl listened: its first prompt is in the log.
    terminal.wait_for("try pressing enter");
    terminal.press("\r");
    terminal.wait_for("/ # ");
    terminal.press("ps -o pid,args\r");
    terminal.wait_for("    1 /app.wasm --file /notes/nonce the-targets");
    terminal.press("echo sleepers: $(pidof app.wasm), shell: $(($$ > 1))\r");
    terminal.wait_for("sleepers: 1, shell: 1");
    terminal.press("test -e /notes || echo nonce: $(cat /proc/1/root/notes/nonce)\r");
    terminal.wait_for("nonce: the-targets");
    terminal.press("kill 1; echo killed: $?\r");
    terminal.wait_for("killed: 0");
    let pod = space.wait_pod("target", "has restarted the target", |pod| {
        let main = container(pod, "main");
        main.restart_count == 1 && main.state.as_ref().is_some_and(|state| state.running.is_some())
    });
    let ended = container(&pod, "main").last_state.clone().and_then(|state| state.terminated).expect("an end");
    assert_eq!((ended.exit_code, ended.reason.as_deref()), (143, Some("Error")));
    assert_eq!(container(&pod, "other").restart_count, 0);
    // The next attempt is where the first one was.
    terminal.press("ps -o pid,args | sed 's/the-targets/again/'\r");
    terminal.wait_for("    1 /app.wasm --file /notes/nonce again");
    says(&space, "target", "main", "ps -o args= | grep -c '^sh$' || true", "1\n");
    says(&space, "target", "other", "ps -o args= | grep -c '^sh$' || true", "0\n");
    terminal.press("exit 4\r");
    terminal.wait();
    let pod = space.wait_pod("target", "has ended its debug container", |pod| {
        let statuses = pod.status.as_ref().and_then(|status| status.ephemeral_container_statuses.as_ref());
        statuses.is_some_and(|all| all[0].state.as_ref().is_some_and(|state| state.terminated.is_some()))
    });
    assert_eq!(container(&pod, "main").restart_count, 1, "the debug container's end is its own");
}

#[test]
fn the_containers_of_a_pod_share_their_processes_when_it_says_so() {
    let space = Cluster::shared().space("sharing");
    let _node = space.node(NodeOptions { images: &["signal"], node: &toolbox_settings(), ..NodeOptions::default() });
    space.apply(SHARING);
    space.wait_ready("nginx");
    let sh = |container: &str, script: &str| space.ok(&["exec", "nginx", "-c", container, "--", "sh", "-c", script]);
    // One numbering for both, and nobody is 1: elsewhere that is the pause container's.
    let script = "pidof app.wasm; pidof sleep; test -e /proc/1 || echo none";
    let seen = sh("shell", script);
    assert_eq!(seen, sh("nginx", script));
    let pids: Vec<&str> = seen.lines().collect();
    assert!(pids.len() == 3 && pids[0] != pids[1] && pids[2] == "none", "{seen}");
    assert_eq!(sh("shell", "kill -HUP $(pidof app.wasm)"), "");
    eventually("the server is told", || {
        let log = space.ok(&["logs", "nginx", "-c", "nginx"]);
        if log.contains("signal: got 1, ignored") { Ok(()) } else { Err(log) }
    });
    // Files: the server's module is in its container alone.
    let script = "test -e /app.wasm || head -c 4 /proc/$(pidof app.wasm)/root/app.wasm | tail -c 3";
    assert_eq!(sh("shell", script), "asm");
    // The end of one's program is the end of that container alone.
    sh("shell", "kill -9 $(pidof app.wasm)");
    let pod = space.wait_pod("nginx", "has restarted the server", |pod| container(pod, "nginx").restart_count == 1);
    assert_eq!(container(&pod, "shell").restart_count, 0);
}
