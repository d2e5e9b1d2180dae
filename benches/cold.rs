//! A first start of a large program: pull, check, compile, run.
//!
//! The image is a hundred megabytes of WebAssembly (CoreDNS or agnhost, whichever is built) on the distribution's own
//! registry on loopback. The time runs from the rename that puts the pod's manifest in place to the time stamp of the
//! program's first line. The peer is Cranelift alone on the same bytes in memory, as wasmtime is set by default, in a process
//! that does nothing else. Each does its work in an empty directory.

#![allow(clippy::unwrap_used, reason = "a benchmark that meets an error it did not expect has failed")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use wasmtime::{Config, Engine};

#[path = "../tests/images/registry.rs"]
#[allow(dead_code, reason = "the registry of the tests; a benchmark needs a part of it")]
mod registry;
#[path = "common/report.rs"]
#[allow(dead_code, reason = "shared by the benchmarks")]
mod report;
#[allow(dead_code, reason = "the harness of the tests; a benchmark needs a part of it")]
#[path = "../tests/support/mod.rs"]
mod support;

use registry::{Auth, Registry, Tls};

/// Programs large enough, and what makes each say a line and end.
const PROGRAMS: [(&str, &str); 2] = [("coredns", "-version"), ("agnhost", "--help")];
const PATIENCE: Duration = Duration::from_secs(900);

fn main() {
    let guests = support::repository().join("target/conformance/guests");
    let built = PROGRAMS.into_iter().map(|(name, argument)| (guests.join(format!("{name}.wasm")), argument));
    let Some((wasm, argument)) = built.into_iter().find(|(wasm, _)| wasm.exists()) else {
        return println!(
            "cold image: not measured, there is no large program (scripts/conformance-images.sh builds one)"
        );
    };
    let bytes = std::fs::read(&wasm).expect("the program");
    let registry = Registry::start(Auth::None, Tls::None);
    let image = format!("{}:v1", registry.name("bench/large"));
    push(&wasm, &image);
    let baseline = Node::start("auto").first_line(&image, argument);
    let optimised = Node::start("never").first_line(&image, argument);
    let begin = Instant::now();
    let engine = Engine::new(&Config::new()).expect("an engine");
    drop(engine.precompile_module(&bytes).expect("it compiles"));
    let peer = begin.elapsed();
    let ratio = baseline.as_secs_f64() / peer.as_secs_f64();
    report::target(
        &format!("cold image of {} MB: pull, check, compile, first line", bytes.len() / 1_000_000),
        "<= 0.3x of Cranelift's compilation",
        &format!(
            "{:.1} s (waiting for Cranelift: {:.1} s); Cranelift alone {:.1} s; {ratio:.2}x",
            baseline.as_secs_f64(),
            optimised.as_secs_f64(),
            peer.as_secs_f64()
        ),
        ratio <= 0.3,
    );
}

fn wasilet(root: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wasilet"));
    command.arg("--root-dir").arg(root).env("WASILET_TOOLBOX", "");
    command
}

fn push(wasm: &Path, image: &str) {
    let place = tempfile::tempdir().expect("a temporary directory");
    for arguments in [["image", "load"], ["image", "push"]] {
        let mut command = wasilet(place.path());
        command.args(arguments);
        if arguments[1] == "load" {
            command.arg(wasm);
        }
        let output = command.arg(image).output().expect("wasilet starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

struct Node {
    process: Child,
    place: tempfile::TempDir,
}

impl Node {
    fn start(baseline_compiler: &str) -> Self {
        let place = tempfile::tempdir().expect("a temporary directory");
        let config = place.path().join("config.yaml");
        let text = format!(
            "apiVersion: wasilet.dev/v1alpha1\nkind: NodeConfiguration\nbaselineCompiler: {baseline_compiler}\n"
        );
        std::fs::write(&config, text).expect("a configuration");
        std::fs::create_dir_all(place.path().join("manifests")).expect("a directory");
        let mut run = wasilet(&place.path().join("root"));
        run.args(["run", "--node-name", "node", "--config"]).arg(config).arg("--manifests");
        run.arg(place.path().join("manifests")).env("WASILET_LOG", "warn");
        let process = run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("wasilet starts");
        let node = Self { process, place };
        let deadline = Instant::now() + PATIENCE;
        while !node.command("ps").output().is_ok_and(|output| output.status.success()) {
            assert!(Instant::now() < deadline, "the node does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        node
    }

    fn command(&self, name: &str) -> Command {
        let mut command = wasilet(&self.place.path().join("root"));
        command.arg(name);
        command
    }

    /// From the manifest to the first line of the program.
    fn first_line(&self, image: &str, argument: &str) -> Duration {
        let pod = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: cold}}\nspec:\n  restartPolicy: Never\n  containers:\n  \
             - {{name: main, image: \"{image}\", args: [\"{argument}\"]}}\n"
        );
        let temporary: PathBuf = self.place.path().join("new.yaml");
        std::fs::write(&temporary, pod).expect("a manifest");
        let begin = SystemTime::now();
        std::fs::rename(&temporary, self.place.path().join("manifests/cold.yaml")).expect("a manifest");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let output = self.command("logs").args(["--timestamps", "cold-node"]).output().expect("wasilet starts");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let stamp = text.split_whitespace().next().and_then(|stamp| stamp.parse::<jiff::Timestamp>().ok());
            if let Some(stamp) = stamp {
                return SystemTime::from(stamp).duration_since(begin).unwrap_or_default();
            }
            assert!(Instant::now() < deadline, "no line: {}", String::from_utf8_lossy(&output.stderr));
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Not killed at once: what it still compiles would go on without it, beside what is measured next.
        let pid = self.process.id().to_string();
        let _ = Command::new("kill").args(["-TERM", &pid]).status();
        let _ = self.process.wait();
    }
}
