//! Containers that see each other's processes, and those that do not.

use std::collections::HashMap;

use super::super::testing::{Node, guest, sleeper};
use crate::ids::ContainerId;
use crate::pod::run::{ContainerSpec, ProcessNamespace, User};

/// Preview 1's numbers.
const NO_ENTRY: u8 = 44;
const NOT_PERMITTED: u8 = 63;
const NO_PROCESS: u8 = 71;

fn of(node: &Node, name: &str, wasm: &[u8], processes: ProcessNamespace) -> ContainerSpec {
    ContainerSpec { name: name.into(), processes, working_dir: format!("/of-{name}"), ..node.spec(wasm) }
}

fn target(name: &str) -> ProcessNamespace {
    ProcessNamespace::Target(name.into())
}

/// Exits with its own pid.
fn pid_teller() -> Vec<u8> {
    guest("", "", "(call $exit (call $getpid))")
}

/// Sends SIGTERM, and exits with the error.
fn killer(pid: u32) -> Vec<u8> {
    guest("", "", &format!("(call $exit (call $kill (i32.const {pid}) (i32.const 15)))"))
}

/// Opens a path, and exits with the error.
fn opener(path: &str) -> Vec<u8> {
    let start = format!("(drop (call $open (i32.const 1024) (i32.const {}))) (call $exit (i32.const 0))", path.len());
    guest(path, "", &start)
}

/// The exit codes of so many containers.
async fn exits(node: &Node, count: usize) -> HashMap<ContainerId, u8> {
    let mut codes = HashMap::new();
    while codes.len() < count {
        let exit = node.exit().await;
        codes.insert(exit.id, exit.exit_code);
    }
    codes
}

async fn code(node: &Node, spec: &ContainerSpec) -> u8 {
    node.run(spec).await.0.exit_code
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_alone_unless_it_is_said_otherwise() {
    let node = Node::start().await;
    let main = of(&node, "a", &sleeper(), ProcessNamespace::Container);
    node.start_container(&main).await.unwrap();
    let own = ProcessNamespace::Container;
    assert_eq!(code(&node, &of(&node, "b", &pid_teller(), own.clone())).await, 1);
    assert_eq!(code(&node, &of(&node, "b", &killer(2), own.clone())).await, NO_PROCESS);
    assert_eq!(code(&node, &of(&node, "b", &opener("proc/1/root/of-b"), own.clone())).await, 0, "its own");
    assert_eq!(code(&node, &of(&node, "b", &opener("proc/1/root/of-a"), own)).await, NO_ENTRY);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_debug_container_reaches_its_targets_processes_and_files() {
    let node = Node::start().await;
    let main = of(&node, "a", &sleeper(), ProcessNamespace::Container);
    node.start_container(&main).await.unwrap();
    assert_eq!(code(&node, &of(&node, "debug", &pid_teller(), target("a"))).await, 2);
    assert_eq!(code(&node, &of(&node, "debug", &opener("proc/1/root/of-a"), target("a"))).await, 0);
    assert_eq!(code(&node, &of(&node, "debug", &opener("proc/1/root/of-debug"), target("a"))).await, NO_ENTRY);
    let user = User { uid: 1000, gid: 1000, ..User::default() };
    let mut stranger = of(&node, "debug", &opener("proc/1/root/of-a"), target("a"));
    stranger.user = user.clone();
    assert_eq!(code(&node, &stranger).await, NO_ENTRY, "the files of another user's process");
    stranger = ContainerSpec { user, ..of(&node, "debug", &killer(1), target("a")) };
    assert_eq!(code(&node, &stranger).await, NOT_PERMITTED);

    let debug = of(&node, "debug", &killer(1), target("a"));
    node.start_container(&debug).await.unwrap();
    let codes = exits(&node, 2).await;
    assert_eq!((codes[&main.id], codes[&debug.id]), (143, 0), "each ends for itself");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_debug_container_stays_with_the_next_attempt_of_its_target() {
    let node = Node::start().await;
    // It is there first, and yet not the target's process 1.
    let debug = of(&node, "debug", &sleeper(), target("a"));
    node.start_container(&debug).await.unwrap();
    for _ in 0..2 {
        assert_eq!(code(&node, &of(&node, "a", &pid_teller(), ProcessNamespace::Container)).await, 1);
    }
    let more = of(&node, "more", &opener("proc/2/root/of-debug"), target("debug"));
    assert_eq!(code(&node, &more).await, 0, "a debug container's own is its target's");
    let main = of(&node, "a", &killer(2), ProcessNamespace::Container);
    node.start_container(&main).await.unwrap();
    let codes = exits(&node, 2).await;
    assert_eq!((codes[&main.id], codes[&debug.id]), (0, 143), "the target sees the debug container, too");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_containers_of_a_sharing_pod_see_each_other() {
    let node = Node::start().await;
    let main = of(&node, "a", &sleeper(), ProcessNamespace::Pod);
    node.start_container(&main).await.unwrap();
    assert_eq!(
        code(&node, &of(&node, "b", &pid_teller(), ProcessNamespace::Pod)).await,
        3,
        "1 is the pause container's"
    );
    assert_eq!(code(&node, &of(&node, "b", &opener("proc/2/root/of-a"), ProcessNamespace::Pod)).await, 0);
    assert_eq!(code(&node, &of(&node, "b", &killer(1), ProcessNamespace::Pod)).await, NO_PROCESS);
    let killer = of(&node, "b", &killer(2), ProcessNamespace::Pod);
    node.start_container(&killer).await.unwrap();
    let codes = exits(&node, 2).await;
    assert_eq!((codes[&main.id], codes[&killer.id]), (143, 0));
}
