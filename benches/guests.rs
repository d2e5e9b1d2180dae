//! What a guest gets here, as a ratio to stock wasmtime-wasi: files on a volume, sockets on loopback.
//!
//! The same component (`wasm-samples/commands/src/bin/throughput.rs`) runs as a pod of the built node and under
//! wasmtime-wasi's own host, in turn, with a host directory and the kernel's loopback. Above 1 we are faster (for
//! round trips the ratio is inverted, so that the same holds). A round moves [`MIB`] each way and takes a second or two;
//! one that takes [`PATIENCE`] ends the bench with its name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use wasmtime::component::{Component, Linker, ResourceTable};
use wasmtime::{Config, Engine, Store};
use wasmtime_wasi::p2::pipe::MemoryOutputPipe;
use wasmtime_wasi::{FsPerms, WasiCtx, WasiCtxView, WasiView};

#[path = "common/report.rs"]
#[allow(dead_code, reason = "shared by the benchmarks")]
mod report;

const ROUNDS: usize = 5;

/// Mebibytes that a round moves: long against the calls around it, short against patience.
const MIB: &str = "64";

/// A round that takes this long hangs.
const PATIENCE: Duration = Duration::from_secs(60);

type Figures = BTreeMap<String, f64>;

fn main() {
    let guest = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/guests/throughput-p2.wasm");
    assert!(guest.exists(), "{} is missing: run scripts/build-guests.sh", guest.display());
    let place = tempfile::tempdir().expect("a temporary directory");
    let stock = Stock::new(&guest);
    let node = Node::new(place.path(), &guest);
    let volume = place.path().join("stock");
    std::fs::create_dir_all(&volume).expect("a directory for the peer");

    let mut ratios: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let mut last: BTreeMap<String, (f64, f64)> = BTreeMap::new();
    for _ in 0..ROUNDS {
        for arguments in [&["files", "/data", MIB][..], &["loopback", MIB]] {
            let peer = within_patience("wasmtime", arguments, || stock.run(arguments, &volume));
            let ours = within_patience("wasilet", arguments, || node.run(arguments));
            for (name, ours) in ours {
                let peer = peer[&name];
                let ratio = if name.ends_with("round-trip") { peer / ours } else { ours / peer };
                ratios.entry(name.clone()).or_default().push(ratio);
                last.insert(name, (ours, peer));
            }
        }
    }
    for (name, mut ratios) in ratios {
        ratios.sort_by(f64::total_cmp);
        let (ours, peer) = last[&name];
        let ratio = ratios[ratios.len() / 2];
        let what = format!("a guest's {name} (of its own figures; a round trip's ratio is inverted)");
        let figure = format!("{ours:.1}; stock wasmtime-wasi {peer:.1}; {ratio:.2}x (median of {ROUNDS} pairs)");
        // Sockets of a pod are in process, the peer's are the kernel's.
        let least = if name.starts_with("loopback") { 2.0 } else { 1.0 };
        report::target(&what, &format!(">= {least:.0}x"), &figure, ratio >= least);
    }
}

/// A guest that spins cannot be cancelled, so the whole bench ends, and says where.
fn within_patience<T>(host: &str, arguments: &[&str], round: impl FnOnce() -> T) -> T {
    let (done, waits) = mpsc::channel::<()>();
    let what = format!("{host}: throughput {}", arguments.join(" "));
    std::thread::spawn(move || {
        if waits.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
            eprintln!("{what} takes longer than {PATIENCE:?}");
            std::process::exit(1);
        }
    });
    let result = round();
    drop(done);
    result
}

fn parse(output: &str) -> Figures {
    let known = ["write-64k", "read-64k", "write-100", "read-100", "stat", "loopback-round-trip", "loopback"];
    let mut figures = Figures::new();
    for line in output.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [.., name, value, _unit] = words.as_slice()
            && known.contains(name)
            && let Ok(value) = value.parse()
        {
            figures.insert((*name).to_owned(), value);
        }
    }
    assert!(!figures.is_empty(), "no figures in:\n{output}");
    figures
}

/// The component as a pod: `wasilet play`.
struct Node {
    place: PathBuf,
}

impl Node {
    fn new(place: &Path, guest: &Path) -> Self {
        let node = Self { place: place.to_owned() };
        let loaded = node.wasilet().args(["image", "load"]).arg(guest).arg("bench/throughput:v1").output();
        assert!(loaded.is_ok_and(|output| output.status.success()), "the guest cannot be loaded");
        node
    }

    fn wasilet(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wasilet"));
        command.arg("--root-dir").arg(self.place.join("root"));
        command
    }

    fn run(&self, arguments: &[&str]) -> Figures {
        let manifest = self.place.join("pod.yaml");
        let pod = format!(
            r#"
apiVersion: v1
kind: Pod
metadata: {{name: bench}}
spec:
  restartPolicy: Never
  volumes: [{{name: data, emptyDir: {{}}}}]
  containers:
  - name: main
    image: bench/throughput:v1
    args: {arguments:?}
    volumeMounts: [{{name: data, mountPath: /data}}]
"#
        );
        std::fs::write(&manifest, pod).expect("a manifest");
        let output = self.wasilet().arg("play").arg(&manifest).output().expect("wasilet starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        parse(&String::from_utf8_lossy(&output.stdout))
    }
}

struct Host {
    wasi: WasiCtx,
    table: ResourceTable,
}

impl WasiView for Host {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

/// The component under wasmtime-wasi's own host.
struct Stock {
    engine: Engine,
    component: Component,
    runtime: tokio::runtime::Runtime,
}

impl Stock {
    fn new(guest: &Path) -> Self {
        let engine = Engine::new(&Config::new()).expect("an engine");
        let component = Component::from_file(&engine, guest).expect("the guest compiles");
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
        Self { engine, component, runtime }
    }

    fn run(&self, arguments: &[&str], volume: &Path) -> Figures {
        let stdout = MemoryOutputPipe::new(1 << 16);
        let mut wasi = WasiCtx::builder();
        wasi.arg("throughput").args(arguments).stdout(stdout.clone()).inherit_stderr().inherit_network();
        wasi.allow_tcp(true).allow_udp(true).allow_ip_name_lookup(true);
        wasi.preopened_dir(volume, "/data", FsPerms::ReadWrite).expect("a preopen");
        let mut linker = Linker::new(&self.engine);
        wasmtime_wasi::p2::add_to_linker_async(&mut linker).expect("a linker");
        let mut store = Store::new(&self.engine, Host { wasi: wasi.build(), table: ResourceTable::new() });
        self.runtime.block_on(async {
            let command =
                wasmtime_wasi::p2::bindings::Command::instantiate_async(&mut store, &self.component, &linker).await;
            let command = command.expect("it instantiates");
            command
                .wasi_cli_run()
                .call_run(&mut store)
                .await
                .expect("it runs")
                .unwrap_or_else(|()| panic!("{arguments:?} fails"));
        });
        parse(&String::from_utf8_lossy(&stdout.contents()))
    }
}
