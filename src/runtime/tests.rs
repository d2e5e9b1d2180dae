//! Containers that really run: ends, limits, signals, streams, pipelines, fairness.

mod processes;

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::testing::{Node, cat, guest, hello, log, sleeper, spinner};
use super::{ExecError, Session};
use crate::pod::run::{ContainerSpec, ExecSpec, ExitCause, Stdin, StdioSpec, StopRequest, TerminationStyle, Tty};

const NO_STREAMS: StdioSpec = StdioSpec { stdin: Stdin::Closed, tty: Tty::None };

fn exec(argv: &[&str]) -> ExecSpec {
    ExecSpec { argv: argv.iter().map(ToString::to_string).collect(), stdio: NO_STREAMS }
}

fn stop(grace: Duration) -> StopRequest {
    StopRequest { signal: 15, grace }
}

async fn output(session: &mut Session) -> String {
    let mut text = String::new();
    session.stdout.read_to_string(&mut text).await.unwrap();
    text
}

/// Puts a program where containers have `/shared/<name>`.
fn install(node: &Node, name: &str, wasm: &[u8]) {
    std::fs::write(node.volume().join(name), wasm).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_are_kept_exactly_and_output_is_logged() {
    let node = Node::start().await;
    for code in [0, 1, 7, 127, 128, 137, 255] {
        let (exit, log) = node.run(&node.spec(&hello(code))).await;
        assert_eq!((exit.exit_code, exit.cause), (code, ExitCause::Exited));
        assert_eq!(log, "hello\n");
        assert!(exit.started_at <= exit.finished_at);
    }
    let (exit, _) = node.run(&node.spec(&guest("", "", "(nop)"))).await;
    assert_eq!(exit.exit_code, 0, "returning is success");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trap_is_134_with_its_message_and_backtrace() {
    let node = Node::start().await;
    let wasm = guest("", "(func $deep (unreachable))", "(call $deep)");
    let (exit, log) = node.run(&node.spec(&wasm)).await;
    assert_eq!(exit.exit_code, 134);
    let ExitCause::Trapped { message } = exit.cause else { panic!("{:?}", exit.cause) };
    assert!(message.starts_with("wasm trap: wasm `unreachable` instruction executed\n"), "{message}");
    assert!(message.contains("deep") && message.len() <= 4096, "{message}");
    assert!(log.contains("wasm trap"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_section_that_traps_is_a_start_that_failed_and_counts() {
    let node = Node::start().await;
    let wasm = guest("", "(func $first (unreachable)) (start $first)", "(nop)");
    let spec = node.spec(&wasm);
    let error = node.start_container(&spec).await.unwrap_err();
    assert_eq!((error.reason(), error.exit_code()), ("RunContainerError", 128), "{error}");
    assert!(error.to_string().contains("wasm `unreachable` instruction executed"), "{error}");
    assert!(node.runtime.usage(&spec.id).is_none(), "nothing of it is left");
    // A log of its own, as the worker gives it: the writer of the first may be gone a moment after its container.
    let log_path = spec.log_path.with_file_name("1.log");
    let error = node.start_container(&ContainerSpec { attempt: 1, log_path, ..spec }).await.unwrap_err();
    assert_eq!(error.reason(), "RunContainerError", "the next attempt fails alike: {error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_container_runs_before_its_permit() {
    let node = Node::start().await;
    let spec = node.spec(&hello(0));
    let refused = std::future::ready(Err("the attempt could not be written to disk".to_owned()));
    let error = node.runtime.start_container(&node.uid, spec.clone(), refused).await.unwrap_err();
    assert_eq!(
        (error.reason(), error.to_string().as_str()),
        ("CreateContainerError", "the attempt could not be written to disk")
    );
    assert_eq!(log(&spec.log_path), "");
    assert!(node.runtime.usage(&spec.id).is_none(), "nothing of it is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_at_a_datagram_moves_no_more_than_a_call_may() {
    let node = Node::start().await;
    // A datagram of 9000 bytes to itself; then peeks with 8 buffers of 32 KiB each, which is four times what a call
    // moves: the whole datagram, twice, and with a buffer outside of memory EFAULT (21).
    let text = r#"(module
        (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (import "wasi_snapshot_preview1" "sock_open" (func $sock_open (param i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "sock_bind" (func $sock_bind (param i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "sock_send_to" (func $send_to (param i32 i32 i32 i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "sock_recv_from" (func $recv_from (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 5)
        (data (i32.const 512) "\7f\00\00\01")
        (func $must (param $result i32) (param $expected i32) (param $code i32)
            (if (i32.ne (local.get $result) (local.get $expected)) (then (call $exit (local.get $code)))))
        (func (export "_start") (local $i i32)
            (i32.store (i32.const 528) (i32.const 512)) (i32.store (i32.const 532) (i32.const 4))
            (call $must (call $sock_open (i32.const 1) (i32.const 1) (i32.const 0)) (i32.const 0) (i32.const 1))
            (call $must (call $sock_bind (i32.load (i32.const 0)) (i32.const 528) (i32.const 5353)) (i32.const 0) (i32.const 2))
            (i32.store (i32.const 8) (i32.const 65536)) (i32.store (i32.const 12) (i32.const 9000))
            (call $must (call $send_to (i32.load (i32.const 0)) (i32.const 8) (i32.const 1) (i32.const 528) (i32.const 5353)
                (i32.const 0) (i32.const 16)) (i32.const 0) (i32.const 3))
            (loop $again
                (i32.store (i32.add (i32.const 64) (i32.mul (local.get $i) (i32.const 8))) (i32.const 65536))
                (i32.store (i32.add (i32.const 68) (i32.mul (local.get $i) (i32.const 8))) (i32.const 32768))
                (br_if $again (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 8))))
            (local.set $i (i32.const 0))
            (loop $again
                (call $must (call $recv_from (i32.load (i32.const 0)) (i32.const 64) (i32.const 8) (i32.const 528) (i32.const 1)
                    (i32.const 24) (i32.const 28) (i32.const 32)) (i32.const 0) (i32.const 4))
                (call $must (i32.load (i32.const 28)) (i32.const 9000) (i32.const 5))
                (br_if $again (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 2))))
            (i32.store (i32.const 68) (i32.const -1))
            (call $must (call $recv_from (i32.load (i32.const 0)) (i32.const 64) (i32.const 8) (i32.const 528) (i32.const 1)
                (i32.const 24) (i32.const 28) (i32.const 32)) (i32.const 21) (i32.const 6))))"#;
    let mut spec = node.spec(&wat::parse_str(text).unwrap());
    spec.limits.memory_bytes = Some(8 << 20);
    let (exit, log) = node.run(&spec).await;
    assert_eq!((exit.exit_code, log.as_str()), (0, ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn endless_recursion_is_a_trap_and_nothing_more() {
    let node = Node::start().await;
    let wasm = guest("", "(func $again (call $again) (call $again))", "(call $again)");
    let (exit, _) = node.run(&node.spec(&wasm)).await;
    assert_eq!(exit.exit_code, 134);
    assert!(matches!(&exit.cause, ExitCause::Trapped { message } if message.contains("stack")), "{:?}", exit.cause);
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_over_the_limit_kills_the_container_with_137() {
    let node = Node::start().await;
    let mut spec = node.spec(&guest("", "", "(loop $again (drop (memory.grow (i32.const 16))) (br $again))"));
    spec.limits.memory_bytes = Some(16 << 20);
    let (exit, _) = node.run(&spec).await;
    assert_eq!((exit.exit_code, exit.cause), (137, ExitCause::OutOfMemory));
    let mut spec = node.spec(&sleeper());
    spec.limits.memory_bytes = Some(60_000);
    let error = node.start_container(&spec).await.unwrap_err();
    assert_eq!((error.reason(), error.exit_code()), ("RunContainerError", 137), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spinning_guest_is_killed_within_milliseconds() {
    let node = Node::start().await;
    let spec = node.spec(&spinner());
    node.start_container(&spec).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let asked = Instant::now();
    node.runtime.kill_container(&spec.id);
    let exit = node.exit().await;
    assert_eq!((exit.exit_code, exit.cause), (137, ExitCause::Killed));
    assert!(asked.elapsed() < Duration::from_millis(500), "{:?}", asked.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_a_guest_without_sockets_at_once_with_143() {
    let node = Node::start().await;
    for wasm in [sleeper(), spinner()] {
        let spec = node.spec(&wasm);
        node.start_container(&spec).await.unwrap();
        let asked = Instant::now();
        node.runtime.stop_container(&spec.id, stop(Duration::from_secs(30)));
        let exit = node.exit().await;
        assert_eq!((exit.exit_code, exit.cause), (143, ExitCause::Stopped));
        assert!(asked.elapsed() < Duration::from_secs(2));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_asks_for_its_grace_has_all_of_it() {
    let node = Node::start().await;
    let mut spec = node.spec(&sleeper());
    spec.termination = TerminationStyle::Wait;
    node.start_container(&spec).await.unwrap();
    let asked = Instant::now();
    node.runtime.stop_container(&spec.id, stop(Duration::from_millis(700)));
    let exit = node.exit().await;
    assert_eq!((exit.exit_code, exit.cause), (137, ExitCause::Killed));
    assert!(asked.elapsed() >= Duration::from_millis(690));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_of_the_signal_device_is_told_and_chooses_its_code() {
    let node = Node::start().await;
    // Says that it listens, then exits with 40 and the signal's number.
    let start = "(local $fd i32)
        (local.set $fd (call $open (i32.const 1024) (i32.const 10)))
        (call $write (i32.const 1) (i32.const 1034) (i32.const 6))
        (drop (call $read (local.get $fd) (i32.const 2048) (i32.const 1)))
        (call $exit (i32.add (i32.const 40) (i32.load8_u (i32.const 2048))))";
    let spec = node.spec(&guest("dev/signalready\\n", "", start));
    node.start_container(&spec).await.unwrap();
    wait_for_log(&spec, "ready\n").await;
    node.runtime.stop_container(&spec.id, stop(Duration::from_secs(30)));
    let exit = node.exit().await;
    assert_eq!((exit.exit_code, exit.cause), (55, ExitCause::Stopped));
}

async fn wait_for_log(spec: &ContainerSpec, expected: &str) {
    for _ in 0..500 {
        if log(&spec.log_path) == expected {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("log is {:?}", log(&spec.log_path));
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_programs_are_refused_before_anything_runs() {
    let node = Node::start().await;
    let import = wat::parse_str(r#"(module (import "env" "foo" (func)) (func (export "_start")))"#).unwrap();
    let library = wat::parse_str(r#"(module (func (export "add")))"#).unwrap();
    let whole = hello(0);
    for (wasm, reason, expected) in [
        (&import[..], "CreateContainerError", "\"example.com/guest:1\" imports \"env::foo\" which this node does not"),
        (&library, "CreateContainerError", "exports no \"_start\" function"),
        (&whole[..whole.len() - 20], "CreateContainerError", "truncated WebAssembly file"),
        (b"\x7fELF\x02\x01\x01", "CreateContainerError", "this node runs WASI modules and components"),
    ] {
        let error = node.start_container(&node.spec(wasm)).await.unwrap_err();
        assert_eq!(error.reason(), reason);
        assert!(error.to_string().contains(expected), "{error}");
    }
    let (exit, _) = node.run(&node.spec(&whole)).await;
    assert_eq!(exit.exit_code, 0, "and nothing else is disturbed");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_programs_make_a_pipeline() {
    let node = Node::start().await;
    install(&node, "child.wasm", &hello(9));
    // pipe; spawn the child with the writing end as its stdout; read to the end; exit with the child's status.
    let start = "(local $n i32)
        (drop (call $pipe (i32.const 200) (i32.const 204)))
        (i32.store (i32.const 208) (i32.const 1))
        (i32.store (i32.const 212) (i32.load (i32.const 204)))
        (drop (call $spawn (i32.const 1024) (i32.const 18) (i32.const 1042) (i32.const 6)
            (i32.const 0) (i32.const -1) (i32.const 0) (i32.const 0) (i32.const 208) (i32.const 1) (i32.const 220)))
        (drop (call $fd_close (i32.load (i32.const 204))))
        (loop $again
            (local.set $n (call $read (i32.load (i32.const 200)) (i32.const 4096) (i32.const 100)))
            (if (i32.gt_s (local.get $n) (i32.const 0)) (then
                (call $write (i32.const 1) (i32.const 4096) (local.get $n))
                (br $again))))
        (drop (call $wait (i32.load (i32.const 220)) (i32.const 0) (i32.const 224) (i32.const 228)))
        (call $exit (i32.load (i32.const 224)))";
    let (exit, log) = node.run(&node.spec(&guest("/shared/child.wasmchild\\00", "", start))).await;
    assert_eq!((exit.exit_code, log.as_str()), (9, "hello\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn children_end_with_the_first_process_and_count_against_the_limit() {
    let node = Node::start().await;
    install(&node, "child.wasm", &sleeper());
    // Spawns until it fails; exits with the error (6 is EAGAIN).
    let start = "(local $errno i32)
        (loop $again
            (local.set $errno (call $spawn (i32.const 1024) (i32.const 18) (i32.const 0) (i32.const 0)
                (i32.const 0) (i32.const -1) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 220)))
            (br_if $again (i32.eqz (local.get $errno))))
        (call $exit (local.get $errno))";
    let mut spec = node.spec(&guest("/shared/child.wasm", "", start));
    spec.limits.processes = 5;
    let (exit, _) = node.run(&spec).await;
    assert_eq!(exit.exit_code, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_runs_another_program_and_says_what_runc_says() {
    let node = Node::start().await;
    install(&node, "hi.wasm", &hello(3));
    install(&node, "cat.wasm", &cat());
    let spec = node.spec(&sleeper());
    node.start_container(&spec).await.unwrap();
    for argv in ["/shared/hi.wasm", "/shared/hi"] {
        let mut session = node.runtime.exec(&spec.id, exec(&[argv])).await.unwrap();
        assert_eq!(output(&mut session).await, "hello\n");
        assert_eq!(session.wait().await, 3);
    }
    let error = node.runtime.exec(&spec.id, exec(&["foo"])).await.err().unwrap();
    assert_eq!(error.to_string(), "exec: \"foo\": executable file not found in $PATH");
    let mut request = exec(&["/shared/cat"]);
    request.stdio.stdin = Stdin::Once;
    let mut session = node.runtime.exec(&spec.id, request).await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(b"round trip").await.unwrap();
    stdin.shutdown().await.unwrap();
    assert_eq!(output(&mut session).await, "round trip");
    assert_eq!(session.wait().await, 0);
    node.runtime.kill_container(&spec.id);
    node.exit().await;
    let error = node.runtime.exec(&spec.id, exec(&["/shared/hi"])).await.err().unwrap();
    assert!(matches!(error, ExecError::NotRunning { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_containers_and_execs_had_is_given_back() {
    let node = Node::start().await;
    install(&node, "cat.wasm", &cat());
    let before = node.runtime.census();
    assert_eq!((before.sandboxes, before.addresses), (1, 1));
    for _ in 0..3 {
        let spec = node.spec(&sleeper());
        node.start_container(&spec).await.unwrap();
        let mut request = exec(&["/shared/cat"]);
        request.stdio.stdin = Stdin::Once;
        // Whoever asked for it is gone: it ends with its container.
        drop(node.runtime.exec(&spec.id, request).await.unwrap());
        assert!(node.runtime.census().guest_tasks > before.guest_tasks);
        node.runtime.kill_container(&spec.id);
        node.exit().await;
    }
    let deadline = Instant::now() + Duration::from_secs(30);
    while node.runtime.census() != before {
        assert!(Instant::now() < deadline, "{:?} were {before:?}", node.runtime.census());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    node.runtime.remove_sandbox(&node.uid).await;
    let after = node.runtime.census();
    assert_eq!((after.sandboxes, after.addresses), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_echoes_edits_and_interrupts() {
    let node = Node::start().await;
    install(&node, "cat.wasm", &cat());
    let spec = node.spec(&sleeper());
    node.start_container(&spec).await.unwrap();
    let mut request = exec(&["/shared/cat"]);
    request.stdio = StdioSpec { stdin: Stdin::Once, tty: Tty::Terminal };
    let mut session = node.runtime.exec(&spec.id, request).await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(b"helo\x7flo\r").await.unwrap();
    let expected = b"helo\x08 \x08lo\r\nhello\r\n";
    let mut screen = vec![0; expected.len()];
    session.stdout.read_exact(&mut screen).await.unwrap();
    assert_eq!(screen, expected);
    stdin.write_all(b"\x03").await.unwrap();
    assert_eq!(session.wait().await, 130);
}

#[tokio::test(flavor = "multi_thread")]
async fn attach_sees_output_and_feeds_input_once() {
    let node = Node::start().await;
    let mut spec = node.spec(&cat());
    spec.stdio.stdin = Stdin::Once;
    node.start_container(&spec).await.unwrap();
    let mut session = node.runtime.attach(&spec.id).await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(b"to everybody\n").await.unwrap();
    drop(stdin);
    assert_eq!(output(&mut session).await, "to everybody\n");
    assert_eq!(session.wait().await, 0);
    assert_eq!(node.exit().await.exit_code, 0);
    assert_eq!(log(&spec.log_path), "to everybody\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_holds_on_average() {
    let node = Node::start().await;
    let mut spec = node.spec(&spinner());
    spec.limits.cpu_milli = Some(200);
    node.start_container(&spec).await.unwrap();
    let before = (Instant::now(), node.runtime.usage(&spec.id).unwrap().cpu);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let used = node.runtime.usage(&spec.id).unwrap().cpu.checked_sub(before.1).unwrap();
    let share = used.as_secs_f64() / before.0.elapsed().as_secs_f64();
    // Other tests run beside it: it may get less than it asked, never much more.
    assert!((0.05..0.24).contains(&share), "{share}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_among_two_hundred_spinning_guests_answers_within_two_seconds() {
    let node = Node::start().await;
    install(&node, "hi.wasm", &hello(0));
    let specs: Vec<_> = (0..200).map(|_| node.spec(&spinner())).collect();
    for spec in &specs {
        node.start_container(spec).await.unwrap();
    }
    // Into a spinning container itself, which is the worst place.
    let asked = Instant::now();
    let mut session = node.runtime.exec(&specs[100].id, exec(&["/shared/hi"])).await.unwrap();
    assert_eq!(output(&mut session).await, "hello\n");
    assert_eq!(session.wait().await, 0);
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    let asked = Instant::now();
    node.runtime.remove_sandbox(&node.uid).await;
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_floods_its_log_waits_for_the_disk() {
    let node = Node::start().await;
    let start = "(loop $again (call $write (i32.const 1) (i32.const 1024) (i32.const 6)) (br $again))";
    let spec = node.spec(&guest("hello\\n", "", start));
    node.start_container(&spec).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    node.runtime.kill_container(&spec.id);
    assert_eq!(node.exit().await.exit_code, 137);
    assert!(log(&spec.log_path).lines().all(|line| line == "hello"));
}

#[tokio::test(flavor = "multi_thread")]
async fn random_bytes_and_hostile_pointers_do_no_harm() {
    let node = Node::start().await;
    // 64 KiB at 0 are fine; one byte more leaves the memory: EFAULT is 21.
    let start = "(if (call $random_get (i32.const 0) (i32.const 65536)) (then (call $exit (i32.const 1))))
        (if (i32.ne (call $random_get (i32.const 1) (i32.const 65536)) (i32.const 21)) (then (call $exit (i32.const 2))))
        (if (i32.ne (call $fd_write (i32.const 1) (i32.const -8) (i32.const 1) (i32.const 0)) (i32.const 21))
            (then (call $exit (i32.const 3))))
        (if (i32.ne (call $poll_oneoff (i32.const 0) (i32.const 0) (i32.const 100000000) (i32.const 0)) (i32.const 28))
            (then (call $exit (i32.const 4))))
        (if (i32.ne (call $spawn (i32.const 0) (i32.const 4) (i32.const 0) (i32.const -1) (i32.const 0) (i32.const -1)
            (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)) (i32.const 25)) (then))";
    let (exit, _) = node.run(&node.spec(&guest("", "", start))).await;
    assert_eq!(exit.exit_code, 0);
}
