//! The node that is soaked: the built binary, its places, and the ways to it.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::Value;

/// How long the node may take for anything that is waited for; the machine may be busy with other things.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// A node, and its directory, which outlives its processes.
pub struct Node {
    place: tempfile::TempDir,
    binary: PathBuf,
    child: Option<Child>,
}

/// A pod as the node shows it.
pub struct Shown {
    /// Its name, the node's at its end.
    pub name: String,
    /// Its address, once it has one.
    pub ip: Option<String>,
}

impl Node {
    /// A place with the images that the pods are of. `$WASILET_BIN` names another binary.
    pub fn new(guests: &Path) -> Self {
        let binary = std::env::var_os("WASILET_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_wasilet").into());
        let place = tempfile::Builder::new().prefix("wasilet-soak-").tempdir().expect("a temporary directory");
        let node = Self { place, binary: binary.into(), child: None };
        fs::create_dir_all(node.manifests()).expect("a directory");
        let tools = node.place.path().join("tools");
        fs::create_dir_all(tools.join("bin")).expect("a directory");
        for name in ["sleeper", "cat", "init"] {
            let from = guests.join(format!("{name}.wasm"));
            fs::copy(&from, tools.join("bin").join(name)).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
        }
        node.load(&tools, "soak/tools:v1", &["--entrypoint", "/bin/sleeper"]);
        for name in ["sleeper-p2", "web", "updater", "init", "exit-code", "flood", "grow", "trap", "signal", "fill"] {
            node.load(&guests.join(format!("{name}.wasm")), &format!("soak/{name}:v1"), &[]);
        }
        // Logs that rotate while a pod lives; the toolbox, compiled where the tests keep it.
        let target = guests.parent().unwrap_or(guests);
        let config = format!(
            "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\ncontainerLogMaxSize: 256Ki\n\
             containerLogMaxFiles: 3\n---\napiVersion: wasilet.dev/v1alpha1\nkind: NodeConfiguration\n\
             artifactDir: {}\nbaselineCompiler: never\ntoolbox: {{path: {}}}\n",
            target.join("toolbox-artifacts").display(),
            guests.join("toolbox.wasm").display()
        );
        fs::write(node.config(), config).expect("a config file");
        node
    }

    fn load(&self, what: &Path, name: &str, more: &[&str]) {
        let output = self.wasilet().args(["image", "load"]).arg(what).arg(name).args(more).output();
        let output = output.expect("the node's binary starts");
        assert!(output.status.success(), "loading {name}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// A command of the binary for this node.
    pub fn wasilet(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("--root-dir").arg(self.root()).stdin(Stdio::null());
        // As a service has it: a node that captures and resolves the host's backtraces keeps its own debug info in memory.
        for variable in ["WASILET_TOOLBOX", "WASILET_LOG", "RUST_BACKTRACE", "RUST_LIB_BACKTRACE"] {
            command.env_remove(variable);
        }
        command
    }

    /// Its root directory.
    pub fn root(&self) -> PathBuf {
        self.place.path().join("root")
    }

    /// Its directory of manifests.
    pub fn manifests(&self) -> PathBuf {
        self.place.path().join("manifests")
    }

    fn config(&self) -> PathBuf {
        self.place.path().join("config.yaml")
    }

    fn log(&self) -> PathBuf {
        self.place.path().join("agent.log")
    }

    /// Starts the agent and waits until it answers; says how long that took.
    pub fn start(&mut self) -> Duration {
        let begin = Instant::now();
        let log = File::options().create(true).append(true).open(self.log()).expect("the agent's log");
        let mut run = self.wasilet();
        run.args(["run", "--node-name", "node", "--manifests"]).arg(self.manifests());
        run.arg("--config").arg(self.config());
        run.env("WASILET_LOG", "warn").stdout(Stdio::null()).stderr(log);
        self.child = Some(run.spawn().expect("the agent starts"));
        while !matches!(self.get("/healthz"), Ok((200, _))) {
            assert!(begin.elapsed() < PATIENCE, "the agent does not answer:\n{}", self.last_words());
            std::thread::sleep(Duration::from_millis(20));
        }
        begin.elapsed()
    }

    /// The agent's process.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the agent runs").id()
    }

    /// Whether its process is still there.
    pub fn lives(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Ends the agent with a signal; says whether it ended well.
    pub fn end(&mut self, signal: Signal) -> bool {
        let Some(mut child) = self.child.take() else { return false };
        let pid = Pid::from_raw(child.id().cast_signed()).expect("a pid is positive");
        rustix::process::kill_process(pid, signal).expect("our own child");
        child.wait().expect("our own child").success()
    }

    /// `GET path` on the local API: status and body.
    pub fn get(&self, path: &str) -> io::Result<(u16, String)> {
        let mut stream = self.ask(path)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        Ok((status, body.to_owned()))
    }

    /// Sends `GET path`, and leaves the answer to be read.
    pub fn ask(&self, path: &str) -> io::Result<UnixStream> {
        let mut stream = UnixStream::connect(self.root().join("wasilet.sock"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        // 1.0: the answer ends with the connection, in one piece.
        write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
        Ok(stream)
    }

    /// Its pods; `None` when it does not answer.
    pub fn pods(&self) -> Option<Vec<Shown>> {
        let (_, body) = self.get("/pods").ok().filter(|(status, _)| *status == 200)?;
        let list: Value = serde_json::from_str(&body).ok()?;
        let shown = |pod: &Value| Shown {
            name: pod["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
            ip: pod["status"]["podIP"].as_str().map(str::to_owned),
        };
        Some(list["items"].as_array().map_or_else(Vec::new, |items| items.iter().map(shown).collect()))
    }

    /// Puts a manifest in place whole, by rename.
    pub fn write(&self, file: &str, text: &str) {
        let temporary = self.place.path().join("new.yaml");
        fs::write(&temporary, text).expect("a manifest");
        fs::rename(&temporary, self.manifests().join(file)).expect("a manifest");
    }

    /// Takes a manifest away.
    pub fn remove(&self, file: &str) {
        fs::remove_file(self.manifests().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
    }

    /// Entries of a directory below the root.
    pub fn entries(&self, directory: &str) -> usize {
        fs::read_dir(self.root().join(directory)).map_or(0, Iterator::count)
    }

    /// Where its memory volumes are (the node derives it from user and root directory).
    pub fn memory_root(&self) -> PathBuf {
        let root = self.root().canonicalize().expect("the root directory");
        let name = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_URL, root.as_os_str().as_encoded_bytes());
        let user = rustix::process::geteuid().as_raw();
        PathBuf::from(format!("/dev/shm/wasilet-{user}-{}", name.simple()))
    }

    /// Lines of the agents' logs that tell of a panic.
    pub fn panics(&self) -> Vec<String> {
        let log = fs::read(self.log()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        log.lines().filter(|line| line.contains("panicked at")).map(str::to_owned).collect()
    }

    /// The end of the agents' logs.
    pub fn last_words(&self) -> String {
        let log = fs::read(self.log()).unwrap_or_default();
        String::from_utf8_lossy(&log[log.len().saturating_sub(4000)..]).into_owned()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(self.memory_root());
    }
}
