//! Preview 1 and `wasilet` calls with any arguments: errors, exits, kills, never a fault of the host.
//!
//! A guest makes the calls that it reads from its standard input, over memory full of plausible structures.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::mpsc;
use wasilet::clock::Clock;
use wasilet::ids::{ContainerId, Digest, PodRef, PodUid};
use wasilet::logs::LogStore;
use wasilet::network::{NodeNetwork, NodeNetworkConfig};
use wasilet::pod::run::{
    Access, ArtifactSpec, ContainerExit, ContainerSpec, DnsConfig, ExecSpec, ImageSpec, Limits, LogRotation,
    NetworkMode, PodLimits, ProcessNamespace, SandboxNetwork, SandboxSpec, Stdin, StdioSpec, TerminationStyle, Tty,
    User,
};
use wasilet::runtime::{Runtime, RuntimeConfig};

/// Every import by name and parameters: `i` is 32 bits wide, `l` 64.
const CALLS: &[(&str, &str, &str)] = &[
    ("wasi_snapshot_preview1", "args_get", "ii"),
    ("wasi_snapshot_preview1", "args_sizes_get", "ii"),
    ("wasi_snapshot_preview1", "environ_get", "ii"),
    ("wasi_snapshot_preview1", "fd_advise", "illi"),
    ("wasi_snapshot_preview1", "fd_allocate", "ill"),
    ("wasi_snapshot_preview1", "fd_close", "i"),
    ("wasi_snapshot_preview1", "fd_fdstat_get", "ii"),
    ("wasi_snapshot_preview1", "fd_filestat_get", "ii"),
    ("wasi_snapshot_preview1", "fd_filestat_set_size", "il"),
    ("wasi_snapshot_preview1", "fd_pread", "iiili"),
    ("wasi_snapshot_preview1", "fd_prestat_dir_name", "iii"),
    ("wasi_snapshot_preview1", "fd_pwrite", "iiili"),
    ("wasi_snapshot_preview1", "fd_read", "iiii"),
    ("wasi_snapshot_preview1", "fd_readdir", "iiili"),
    ("wasi_snapshot_preview1", "fd_renumber", "ii"),
    ("wasi_snapshot_preview1", "fd_seek", "ilii"),
    ("wasi_snapshot_preview1", "fd_write", "iiii"),
    ("wasi_snapshot_preview1", "path_create_directory", "iii"),
    ("wasi_snapshot_preview1", "path_filestat_get", "iiiii"),
    ("wasi_snapshot_preview1", "path_open", "iiiiillii"),
    ("wasi_snapshot_preview1", "path_readlink", "iiiiii"),
    ("wasi_snapshot_preview1", "path_rename", "iiiiii"),
    ("wasi_snapshot_preview1", "path_symlink", "iiiii"),
    ("wasi_snapshot_preview1", "path_unlink_file", "iii"),
    ("wasi_snapshot_preview1", "poll_oneoff", "iiii"),
    ("wasi_snapshot_preview1", "random_get", "ii"),
    ("wasi_snapshot_preview1", "sock_accept", "iii"),
    ("wasi_snapshot_preview1", "sock_recv", "iiiiii"),
    ("wasi_snapshot_preview1", "sock_send", "iiiii"),
    ("wasi_snapshot_preview1", "sock_shutdown", "ii"),
    ("wasilet", "pipe", "ii"),
    ("wasilet", "spawn", "iiiiiiiiiii"),
    ("wasilet", "wait", "iiii"),
    ("wasilet", "kill", "ii"),
];
/// One record of the input: the number of a call and eleven arguments.
const RECORD: usize = 48;
const HOST_FAULT: u8 = 128;
const CASES: usize = 300;
const PATIENCE: Duration = Duration::from_millis(100);

/// The guest: reads records at 1024 and makes their calls.
fn driver() -> Vec<u8> {
    let mut imports = String::new();
    let mut blocks = "(block $end ".to_owned();
    for (index, (module, name, params)) in CALLS.iter().enumerate() {
        let types: Vec<&str> = params.chars().map(|kind| if kind == 'l' { "i64" } else { "i32" }).collect();
        let _ = writeln!(
            imports,
            "(import \"{module}\" \"{name}\" (func $call{index} (param {}) (result i32)))",
            types.join(" ")
        );
        let _ = write!(blocks, "(block $case{index} ");
    }
    let cases: Vec<String> = (0..CALLS.len()).map(|index| format!("$case{index}")).collect();
    // The innermost block is the last case.
    let _ = write!(blocks, "(br_table {} $end (i32.load (i32.const 1024)))", cases.join(" "));
    for (index, (_, _, params)) in CALLS.iter().enumerate().rev() {
        let arguments = params.chars().enumerate().map(|(place, kind)| {
            let load = if kind == 'l' { "i64.load32_s" } else { "i32.load" };
            format!("({load} (i32.const {}))", 1028 + 4 * place)
        });
        let arguments: Vec<String> = arguments.collect();
        let _ = write!(blocks, ") (drop (call $call{index} {})) (br $end)", arguments.join(" "));
    }
    blocks.push(')');
    let text = format!(
        r#"(module {imports}
        (import "wasi_snapshot_preview1" "fd_read" (func $input (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 2)
        (data (i32.const 64) "/app.wasm\00tmp\00a\00proc/self/status\00dev/signal\00..\00")
        (data (i32.const 256) "\40\00\00\00\09\00\00\00\00\10\00\00\00\10\00\00\00\00\02\00\ff\ff\ff\ff")
        (func (export "_start")
            (loop $next
                (i32.store (i32.const 1008) (i32.const 1024))
                (i32.store (i32.const 1012) (i32.const {RECORD}))
                (br_if 1 (call $input (i32.const 0) (i32.const 1008) (i32.const 1) (i32.const 1016)))
                (br_if 1 (i32.ne (i32.load (i32.const 1016)) (i32.const {RECORD})))
                {blocks}
                (br $next))))"#
    );
    wat::parse_str(&text).expect("the driver's text")
}

struct Node {
    runtime: Arc<Runtime>,
    exits: mpsc::Receiver<ContainerExit>,
    container: Option<ContainerId>,
    uid: PodUid,
    directory: TempDir,
}

impl Node {
    async fn start() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let logs = LogStore::open(directory.path().join("logs"), Clock::System).expect("a log directory");
        let mut config = RuntimeConfig::new(directory.path().join("root"), logs);
        config.compiler.executable = env!("CARGO_BIN_EXE_wasilet").into();
        let network = NodeNetwork::new(NodeNetworkConfig::default()).expect("a network");
        let (runtime, exits) = Runtime::new(config, network).expect("a runtime");
        let uid = PodUid::new("fuzz").expect("a UID");
        let sandbox = SandboxSpec {
            pod: PodRef { namespace: "default".into(), name: "fuzz".into() },
            uid: uid.clone(),
            hostname: "fuzz".into(),
            network: SandboxNetwork {
                names: Vec::new(),
                mode: NetworkMode::Pod,
                dns: DnsConfig::default(),
                host_aliases: Vec::new(),
                host_ports: Vec::new(),
            },
            volumes: Vec::new(),
            limits: PodLimits::default(),
        };
        runtime.create_sandbox(sandbox, Vec::new()).await.expect("a sandbox");
        std::fs::write(directory.path().join("driver.wasm"), driver()).expect("the driver");
        Self { runtime, exits, container: None, uid, directory }
    }

    /// A container whose first process waits for input that never comes.
    async fn container(&mut self) -> ContainerId {
        if let Some(id) = &self.container {
            return id.clone();
        }
        let id = ContainerId::random();
        let spec = spec(self.directory.path(), id.clone());
        self.runtime.start_container(&self.uid, spec, std::future::ready(Ok(()))).await.expect("a container");
        self.container = Some(id.clone());
        id
    }

    async fn replace(&mut self) {
        if let Some(id) = self.container.take() {
            self.runtime.kill_container(&id);
            let exit = self.exits.recv().await.expect("an exit");
            assert_ne!(exit.exit_code, HOST_FAULT, "{:?}", exit.cause);
        }
    }

    async fn case(&mut self, input: &[u8]) {
        let id = self.container().await;
        let stdio = StdioSpec { stdin: Stdin::Once, tty: Tty::None };
        let exec = ExecSpec { argv: vec!["/app.wasm".into()], stdio };
        let Ok(mut session) = self.runtime.exec(&id, exec).await else {
            // The case before killed the container, or left it full.
            return self.replace().await;
        };
        let mut stdin = session.stdin.take().expect("stdin was asked for");
        // A guest that has closed its input, or ended, does not read all of it.
        let _ = stdin.write_all(input).await;
        drop(stdin);
        match tokio::time::timeout(PATIENCE, session.wait()).await {
            Ok(code) => assert_ne!(code, HOST_FAULT),
            Err(_) => self.replace().await, // It waits for something, as it asked to.
        }
    }
}

fn spec(directory: &Path, id: ContainerId) -> ContainerSpec {
    let path = directory.join("driver.wasm");
    let digest = Digest::of(&driver());
    let files = directory.join(id.as_str());
    ContainerSpec {
        name: "fuzz".into(),
        attempt: 0,
        image: ImageSpec {
            reference: "fuzz".into(),
            manifest_digest: digest.clone(),
            layers: Vec::new(),
            artifact: Some(ArtifactSpec { digest, path }),
        },
        argv: vec!["/app.wasm".into()],
        env: Vec::new(),
        working_dir: "/".into(),
        mounts: Vec::new(),
        user: User::default(),
        root: Access::ReadWrite,
        writable_dir: files.join("upper"),
        sysctls: std::collections::BTreeMap::new(),
        oom_score_adj: 0,
        limits: Limits {
            memory_bytes: Some(16 << 20),
            cpu_milli: None,
            cpu_shares: 2,
            ephemeral_storage_bytes: None,
            processes: 8,
            open_files: 64,
        },
        stdio: StdioSpec { stdin: Stdin::Open, tty: Tty::None },
        log_path: directory.join(format!("logs/default_fuzz_fuzz/{}/0.log", id.as_str())),
        log_rotation: LogRotation { max_size_bytes: 1 << 20, max_files: 2 },
        termination_message_path: String::new(),
        termination_message_file: files.join("termination-message"),
        termination: TerminationStyle::Auto,
        container_ports: Vec::new(),
        toolbox: wasilet::pod::toolbox::ToolboxUse::Offered,
        preopened_ports: Vec::new(),
        processes: ProcessNamespace::Container,
        id,
    }
}

/// Numbers that matter more often than chance has them: descriptors, places in memory, the ends of ranges.
fn argument(byte: u8) -> u32 {
    match byte {
        0..=15 => u32::from(byte),
        16..=79 => u32::from(byte - 16) * 8,
        80..=99 => 64 + u32::from(byte - 80),
        100..=199 => u32::from(byte) * 650,
        200..=219 => 131_072 - u32::from(byte - 200),
        220..=229 => u32::MAX - u32::from(byte - 220),
        _ => 1 << (byte - 230),
    }
}

fn records(bytes: &[u8]) -> Vec<u8> {
    let mut input = Vec::new();
    for record in bytes.chunks_exact(RECORD / 4) {
        input.extend((u32::from(record[0]) % CALLS.len() as u32).to_le_bytes());
        input.extend(record[1..].iter().flat_map(|&byte| argument(byte).to_le_bytes()));
    }
    input
}

#[test]
fn preview1() {
    let tokio = tokio::runtime::Runtime::new().expect("a runtime");
    let node = tokio.block_on(async { tokio::sync::Mutex::new(Node::start().await) });
    let node = std::panic::AssertUnwindSafe(node);
    bolero::check!().with_iterations(CASES).for_each(|bytes: &[u8]| {
        let input = records(bytes);
        tokio.block_on(async { node.lock().await.case(&input).await });
    });
    tokio.block_on(async { node.lock().await.runtime.shutdown().await });
}
