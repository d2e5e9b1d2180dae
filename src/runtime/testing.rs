//! A whole runtime in a temporary directory, for the tests of this module and of its front-ends.
//!
//! In: guests as WebAssembly text. Out: containers that really run, their exits and their logs. The compile subprocess
//! is the test binary itself; see `compile::tests`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::{Mutex, mpsc};

use super::config::CompilerCommand;
use super::{Runtime, RuntimeConfig, StartError};
use crate::clock::Clock;
use crate::ids::{ContainerId, Digest, PodRef, PodUid};
use crate::logs::LogStore;
use crate::network::{NodeNetwork, NodeNetworkConfig};
use crate::pod::run::{
    Access, ArtifactSpec, ContainerExit, ContainerSpec, DnsConfig, ImageSpec, Limits, LogRotation, Medium, MountSpec,
    NetworkMode, PodLimits, ProcessNamespace, SandboxNetwork, SandboxSpec, Stdin, StdioSpec, TerminationStyle, Tty,
    User, VolumeSource, VolumeSpec,
};

/// The variable that makes the test binary a compiler.
pub(crate) const COMPILE_VARIABLE: &str = "WASILET_TEST_COMPILE";
const COMPILE_TEST: &str = "runtime::compile::tests::the_test_binary_is_the_compiler_when_asked";

/// One runtime with one pod, whose volume `shared` is the directory [`Node::volume`].
pub(crate) struct Node {
    pub(crate) runtime: Arc<Runtime>,
    pub(crate) uid: PodUid,
    exits: Mutex<mpsc::Receiver<ContainerExit>>,
    directory: TempDir,
}

pub(crate) fn compiler() -> CompilerCommand {
    CompilerCommand {
        executable: std::env::current_exe().expect("a test binary has a path"),
        arguments: [COMPILE_TEST, "--exact", "--nocapture"].map(Into::into).to_vec(),
        environment: vec![(COMPILE_VARIABLE.into(), "1".into())],
    }
}

impl Node {
    pub(crate) async fn start() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let logs = LogStore::open(directory.path().join("logs"), Clock::System).expect("a log directory");
        let mut config = RuntimeConfig::new(directory.path().join("root"), logs);
        config.compiler = compiler();
        let network = NodeNetwork::new(NodeNetworkConfig::default()).expect("a network");
        let (runtime, exits) = Runtime::new(config, network).expect("a runtime");
        let uid = PodUid::new("0f1c9a9e-6c3c-4a4e-8d0a-0d7d1c7f9b5a").expect("a UID");
        let node = Self { runtime, uid, exits: Mutex::new(exits), directory };
        std::fs::create_dir_all(node.volume()).expect("a volume");
        node.runtime.create_sandbox(node.sandbox(), Vec::new()).await.expect("a sandbox");
        node
    }

    fn sandbox(&self) -> SandboxSpec {
        let source = VolumeSource::NodeDirectory { path: self.volume(), size_limit: None, medium: Medium::Disk };
        SandboxSpec {
            pod: PodRef { namespace: "default".into(), name: "test".into() },
            uid: self.uid.clone(),
            hostname: "test".into(),
            network: SandboxNetwork {
                names: vec!["test".into()],
                mode: NetworkMode::Pod,
                dns: DnsConfig::default(),
                host_aliases: Vec::new(),
                host_ports: Vec::new(),
            },
            volumes: vec![VolumeSpec { name: "shared".into(), source, access: Access::ReadWrite, group: None }],
            limits: PodLimits::default(),
        }
    }

    /// The node's directory behind the volume `shared`, mounted at `/shared`.
    pub(crate) fn volume(&self) -> PathBuf {
        self.path("volume")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A container of a bare artifact with these bytes.
    pub(crate) fn spec(&self, wasm: &[u8]) -> ContainerSpec {
        let digest = Digest::of(wasm);
        let path = self.path(&format!("{}.wasm", digest.hex()));
        std::fs::write(&path, wasm).expect("an artifact");
        let id = ContainerId::random();
        let files = self.path(id.as_str());
        ContainerSpec {
            name: "main".into(),
            attempt: 0,
            image: ImageSpec {
                reference: "example.com/guest:1".into(),
                manifest_digest: digest.clone(),
                layers: Vec::new(),
                artifact: Some(ArtifactSpec { digest, path }),
            },
            argv: vec!["/app.wasm".into()],
            env: vec![("GREETING".into(), "hello".into())],
            working_dir: "/".into(),
            mounts: vec![MountSpec {
                volume: "shared".into(),
                mount_path: "/shared".into(),
                sub_path: String::new(),
                access: Access::ReadWrite,
                image: None,
            }],
            user: User::default(),
            root: Access::ReadWrite,
            writable_dir: files.join("upper"),
            limits: Limits {
                memory_bytes: None,
                cpu_milli: None,
                cpu_shares: 2,
                ephemeral_storage_bytes: None,
                processes: 32,
                open_files: 1024,
            },
            stdio: StdioSpec { stdin: Stdin::Closed, tty: Tty::None },
            log_path: self.path(&format!("logs/default_test_{}/{}/0.log", self.uid, id.as_str())),
            log_rotation: LogRotation { max_size_bytes: 10 << 20, max_files: 5 },
            termination_message_path: "/dev/termination-log".into(),
            termination_message_file: files.join("termination-message"),
            sysctls: std::collections::BTreeMap::new(),
            oom_score_adj: 0,
            termination: TerminationStyle::Auto,
            container_ports: Vec::new(),
            toolbox: crate::pod::toolbox::ToolboxUse::Offered,
            preopened_ports: Vec::new(),
            processes: ProcessNamespace::Container,
            id,
        }
    }

    pub(crate) async fn start_container(&self, spec: &ContainerSpec) -> Result<(), StartError> {
        self.runtime.start_container(&self.uid, spec.clone(), std::future::ready(Ok(()))).await
    }

    /// The next exit of any container.
    pub(crate) async fn exit(&self) -> ContainerExit {
        let mut exits = self.exits.lock().await;
        tokio::time::timeout(Duration::from_secs(60), exits.recv()).await.expect("an exit in time").expect("an exit")
    }

    /// Starts a guest and gives its exit and what it wrote.
    pub(crate) async fn run(&self, spec: &ContainerSpec) -> (ContainerExit, String) {
        self.start_container(spec).await.expect("the guest starts");
        let exit = self.exit().await;
        assert_eq!(exit.id, spec.id);
        (exit, log(&spec.log_path))
    }
}

/// The content of a CRI log, both streams, without times and tags.
pub(crate) fn log(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| line.splitn(4, ' ').nth(3).unwrap_or("").to_owned() + "\n").collect()
}

/// A module with the usual imports, a page of memory, `print`, `sleep` and `exit`, and this body of `_start`.
pub(crate) fn guest(data: &str, functions: &str, start: &str) -> Vec<u8> {
    let text = format!(
        r#"(module
        (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "fd_close" (func $fd_close (param i32) (result i32)))
        (import "wasi_snapshot_preview1" "path_open"
            (func $path_open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll_oneoff (param i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "random_get" (func $random_get (param i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (import "wasilet" "pipe" (func $pipe (param i32 i32) (result i32)))
        (import "wasilet" "spawn"
            (func $spawn (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
        (import "wasilet" "wait" (func $wait (param i32 i32 i32 i32) (result i32)))
        (import "wasilet" "kill" (func $kill (param i32 i32) (result i32)))
        (import "wasilet" "getpid" (func $getpid (result i32)))
        (memory (export "memory") 1)
        (data (i32.const 1024) "{data}")
        ;; Writes bytes to a descriptor; uses memory below 64.
        (func $write (param $fd i32) (param $from i32) (param $length i32)
            (i32.store (i32.const 0) (local.get $from))
            (i32.store (i32.const 4) (local.get $length))
            (drop (call $fd_write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8))))
        ;; Reads into a place; gives the count or minus the error.
        (func $read (param $fd i32) (param $to i32) (param $length i32) (result i32)
            (local $errno i32)
            (i32.store (i32.const 0) (local.get $to))
            (i32.store (i32.const 4) (local.get $length))
            (local.set $errno (call $fd_read (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8)))
            (if (result i32) (local.get $errno)
                (then (i32.sub (i32.const 0) (local.get $errno)))
                (else (i32.load (i32.const 8)))))
        ;; Opens a path of $length bytes at $path for reading; gives the descriptor, or exits with the error.
        (func $open (param $path i32) (param $length i32) (result i32)
            (local $errno i32)
            (local.set $errno (call $path_open (i32.const 3) (i32.const 1) (local.get $path) (local.get $length)
                (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 16)))
            (if (local.get $errno) (then (call $exit (local.get $errno))))
            (i32.load (i32.const 16)))
        ;; Sleeps so many milliseconds; uses memory from 64 to 192.
        (func $sleep (param $ms i64)
            (i64.store (i32.const 64) (i64.const 42))
            (i32.store8 (i32.const 72) (i32.const 0))
            (i32.store (i32.const 80) (i32.const 1))
            (i64.store (i32.const 88) (i64.mul (local.get $ms) (i64.const 1000000)))
            (i64.store (i32.const 96) (i64.const 0))
            (i32.store16 (i32.const 104) (i32.const 0))
            (drop (call $poll_oneoff (i32.const 64) (i32.const 128) (i32.const 1) (i32.const 176))))
        {functions}
        (func (export "_start") {start}))"#
    );
    wat::parse_str(&text).expect("a guest's text")
}

/// Spins for ever.
pub(crate) fn spinner() -> Vec<u8> {
    guest("", "", "(loop $again (br $again))")
}

/// Sleeps for an hour.
pub(crate) fn sleeper() -> Vec<u8> {
    guest("", "", "(call $sleep (i64.const 3600000))")
}

/// Writes a line and exits with this code.
pub(crate) fn hello(code: u8) -> Vec<u8> {
    let start = format!("(call $write (i32.const 1) (i32.const 1024) (i32.const 6)) (call $exit (i32.const {code}))");
    guest("hello\\n", "", &start)
}

/// Copies its input to its output until the end.
pub(crate) fn cat() -> Vec<u8> {
    let start = "(local $n i32)
        (loop $again
            (local.set $n (call $read (i32.const 0) (i32.const 4096) (i32.const 1000)))
            (if (i32.gt_s (local.get $n) (i32.const 0)) (then
                (call $write (i32.const 1) (i32.const 4096) (local.get $n))
                (br $again))))";
    guest("", "", start)
}
