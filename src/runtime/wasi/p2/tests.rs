//! Components of the sample guests, run whole: what the interfaces promise is what a libc on top of them sees.

use std::path::PathBuf;

use crate::pod::run::{Access, ExitCause};
use crate::runtime::testing::Node;

/// The bytes of a sample guest (`scripts/build-guests.sh`), from `WASILET_GUESTS` or `target/guests`.
pub(crate) fn sample(name: &str) -> Option<Vec<u8>> {
    let fallback = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/guests");
    let directory = std::env::var_os("WASILET_GUESTS").map_or(fallback, PathBuf::from);
    let path = directory.join(format!("{name}.wasm"));
    match std::fs::read(&path) {
        Ok(bytes) => Some(bytes),
        Err(error) => {
            eprintln!("SKIPPED: {}: {error}; build the guests or set WASILET_GUESTS", path.display());
            None
        }
    }
}

fn argv(rest: &[&str]) -> Vec<String> {
    std::iter::once("/app.wasm").chain(rest.iter().copied()).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_component_says_hello_and_exits_with_success() {
    let Some(wasm) = sample("hello-p2") else { return };
    let node = Node::start().await;
    let (exit, log) = node.run(&node.spec(&wasm)).await;
    assert_eq!((exit.exit_code, exit.cause), (0, ExitCause::Exited), "{log}");
    assert!(log.to_lowercase().contains("hello"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_result_is_exit_code_one() {
    let Some(wasm) = sample("exit-code-p2") else { return };
    let node = Node::start().await;
    for (asked, code) in [("0", 0), ("7", 1)] {
        let mut spec = node.spec(&wasm);
        spec.argv = argv(&[asked]);
        let (exit, log) = node.run(&spec).await;
        // The toolchain of the guest may know `exit-with-code`, and then 7 is 7.
        assert!(exit.exit_code == code || exit.exit_code.to_string() == asked, "asked {asked}, got {exit:?}\n{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trap_of_a_component_names_itself_and_its_frames() {
    let Some(wasm) = sample("trap-p2") else { return };
    let node = Node::start().await;
    let (exit, log) = node.run(&node.spec(&wasm)).await;
    assert_eq!(exit.exit_code, 134, "{log}");
    assert!(matches!(exit.cause, ExitCause::Trapped { ref message } if message.contains("wasm")), "{exit:?}");
}

/// Checks that fail in wasi-libc for 0.2 itself, whatever the host does.
const LIBC_FAILURES: [&str; 2] = [
    // fstatat asks for the identity without following: `(flag | AT_SYMLINK_NOFOLLOW) ? 0 : FOLLOW`.
    "FAIL a symbolic link leads to its target",
    // write never asks `filesystem-error-code` why a stream failed, and says EIO.
    "FAIL /dev/full is full",
];

fn failures(log: &str) -> Vec<&str> {
    let failed = log.lines().filter(|line| line.starts_with("FAIL"));
    failed.filter(|line| !LIBC_FAILURES.iter().any(|known| line.starts_with(known))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_file_operation_of_a_libc_works_through_the_interfaces() {
    let Some(wasm) = sample("fs-check-p2") else { return };
    let node = Node::start().await;
    // On the container's own layers, and on a volume.
    for directory in ["/tmp", "/shared"] {
        let mut spec = node.spec(&wasm);
        spec.argv = argv(&["--dir", directory]);
        let (_, log) = node.run(&spec).await;
        assert!(log.contains("passed,"), "{log}");
        assert_eq!(failures(&log), Vec::<&str>::new(), "in {directory}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_mount_refuses_every_write() {
    let Some(wasm) = sample("fs-check-p2") else { return };
    let node = Node::start().await;
    std::fs::write(node.volume().join("file"), "content").unwrap();
    let mut spec = node.spec(&wasm);
    spec.mounts[0].access = Access::ReadOnly;
    spec.argv = argv(&["--read-only", "/shared"]);
    let (_, log) = node.run(&spec).await;
    assert!(log.contains("passed,"), "{log}");
    assert_eq!(failures(&log), Vec::<&str>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_keep_the_promises_of_posix() {
    let Some(wasm) = sample("net-check") else { return };
    let node = Node::start().await;
    let (exit, log) = node.run(&node.spec(&wasm)).await;
    assert_eq!(exit.exit_code, 0, "{log}");
}
