//! A real node for a test: the built binary, a root directory and manifests of its own, stopped by process id.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use k8s_openapi::List;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Long enough for a first compile on a busy two-core machine; a test that needs it all has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The binary under test.
pub fn wasilet() -> Command {
    Command::new(env!("CARGO_BIN_EXE_wasilet"))
}

/// The repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A built guest; builds all of them when they are missing.
pub fn guest(name: &str) -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let dir = BUILT.get_or_init(|| {
        let dir = std::env::var_os("WASILET_GUESTS").map_or_else(|| repository().join("target/guests"), PathBuf::from);
        if !dir.join("hello.wasm").exists() {
            let status = Command::new(repository().join("scripts/build-guests.sh")).status();
            assert!(status.is_ok_and(|status| status.success()), "scripts/build-guests.sh failed");
        }
        dir
    });
    let path = dir.join(format!("{name}.wasm"));
    assert!(path.exists(), "no guest {}", path.display());
    path
}

/// Lines of a `NodeConfiguration` for a node with the toolbox.
pub fn toolbox_settings() -> String {
    let artifacts = repository().join("target/toolbox-artifacts");
    format!(
        "artifactDir: {}\nbaselineCompiler: never\ntoolbox: {{path: {}}}\n",
        artifacts.display(),
        guest("toolbox").display()
    )
}

/// Says that a test is not made here, and why. Straight to stderr, for the harness shows nothing of a test that passes.
pub fn skipped(why: &str) {
    let thread = std::thread::current();
    let _ = writeln!(std::io::stderr(), "SKIPPED {}: {why}", thread.name().unwrap_or_default());
}

/// Asks `probe` until it answers, or fails with `what` and its last complaint.
pub fn eventually<T>(what: &str, probe: impl FnMut() -> Result<T, String>) -> T {
    eventually_within(PATIENCE, what, probe)
}

/// [`eventually`] for what comes by a period of its own.
pub fn eventually_within<T>(patience: Duration, what: &str, mut probe: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        match probe() {
            Ok(value) => return value,
            Err(complaint) if Instant::now() > deadline => panic!("{what}: {complaint}"),
            // Polling a process from outside: there is nothing to be told by.
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// The machine: tests share it, but for those that load it so much that others would wait too long.
static MACHINE: RwLock<()> = RwLock::new(());

enum Turn {
    Shared { _guard: RwLockReadGuard<'static, ()> },
    Alone { _guard: RwLockWriteGuard<'static, ()> },
}

/// A directory for one test, with a root directory and a manifest directory, and what is loaded into it.
pub struct Place {
    // Holds the mount namespace in which the root directory is a disk of its own.
    disk: Option<Process>,
    dir: tempfile::TempDir,
    // Dropped after the directory: the next test finds nothing of this one.
    _turn: Turn,
}

impl Place {
    /// An empty place.
    pub fn new() -> Self {
        Self::taking(Turn::Shared { _guard: MACHINE.read_recursive() })
    }

    /// An empty place for a test that loads the whole machine: no other runs beside it.
    pub fn alone() -> Self {
        Self::taking(Turn::Alone { _guard: MACHINE.write() })
    }

    fn taking(turn: Turn) -> Self {
        let dir = tempfile::Builder::new().prefix("wasilet-test-").tempdir().expect("a temporary directory");
        fs::create_dir_all(dir.path().join("manifests")).expect("a manifest directory");
        Self { disk: None, dir, _turn: turn }
    }

    /// A place whose root directory is a file system of `mebibytes`, seen by the commands of this place alone. `None`, with a
    /// word on stderr, where this user may not mount one.
    pub fn with_disk_of(mebibytes: u32) -> Option<Self> {
        let mut place = Self::new();
        fs::create_dir_all(place.root()).expect("a root directory");
        let script = format!("mount -t tmpfs -o size={mebibytes}m tmpfs \"$0\" && echo mounted && exec sleep infinity");
        let mut unshare = Command::new("unshare");
        // A child of this process in a namespace that ends with it: nothing stays mounted.
        unshare.args(["--mount", "--propagation", "private", "sh", "-c", &script]).arg(place.root());
        let disk = Process::spawn(&mut unshare);
        let mounted = eventually("the disk is mounted or refused", || match disk.output() {
            output if output.contains("mounted\n") => Ok(true),
            output if !output.is_empty() => Ok(false),
            _ => Err("no word yet".to_owned()),
        });
        if !mounted {
            skipped(&format!("a file system cannot be mounted here: {}", disk.output()));
            return None;
        }
        place.disk = Some(disk);
        Some(place)
    }

    /// Runs a shell command that sees this place's files as its node does.
    pub fn shell(&self, script: &str) -> Output {
        let mut command = self.inside(Path::new("sh"));
        command.args(["-c", script]).stdin(Stdio::null()).output().expect("a shell")
    }

    /// A command in the place's mount namespace.
    fn inside(&self, program: &Path) -> Command {
        let Some(disk) = &self.disk else { return Command::new(program) };
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--target", &disk.child.id().to_string(), "--"]).arg(program);
        command
    }

    /// A place that has these guests as images `test/NAME:v1`.
    pub fn with_images(guests: &[&str]) -> Self {
        Self::new().loaded(guests)
    }

    /// Adds these guests as images `test/NAME:v1`.
    pub fn loaded(self, guests: &[&str]) -> Self {
        for name in guests {
            self.load(&guest(name), &format!("test/{name}:v1"));
        }
        self
    }

    /// Loads a wasm file or an image archive under a name.
    pub fn load(&self, file: &Path, name: &str) {
        let output = self.run(&["image", "load", &file.to_string_lossy(), name]);
        assert!(output.status.success(), "loading {name}: {}", text(&output.stderr));
    }

    /// Loads an image `test/tools:v1` with these guests as programs `/bin/NAME`; the first is its entrypoint.
    pub fn load_tools(&self, guests: &[&str]) {
        let dir = self.path().join("tools");
        fs::create_dir_all(dir.join("bin")).expect("a directory");
        for name in guests {
            fs::copy(guest(name), dir.join("bin").join(name)).expect("a guest is copied");
        }
        let entrypoint = format!("/bin/{}", guests[0]);
        let output = self.run(&["image", "load", &dir.to_string_lossy(), "test/tools:v1", "--entrypoint", &entrypoint]);
        assert!(output.status.success(), "loading the tools: {}", text(&output.stderr));
    }

    /// The temporary directory itself.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// `--root-dir`.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// `--manifests`.
    pub fn manifests(&self) -> PathBuf {
        self.dir.path().join("manifests")
    }

    /// Writes a manifest as an editor does: whole, by rename.
    pub fn write_manifest(&self, name: &str, yaml: &str) {
        let temporary = self.dir.path().join(format!(".{name}.tmp"));
        fs::write(&temporary, yaml).expect("a manifest is written");
        fs::rename(&temporary, self.manifests().join(name)).expect("a manifest is renamed");
    }

    /// Runs a command of the binary to its end.
    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).stdin(Stdio::null()).output().expect("wasilet starts")
    }

    /// A command of the binary in this place.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.inside(Path::new(wasilet().get_program()));
        command.arg("--root-dir").arg(self.root()).args(args);
        command.env_remove("WASILET_LOG");
        // Most tests need none, and each node would compile it.
        command.env("WASILET_TOOLBOX", "");
        command
    }

    /// Starts a node with the toolbox, which it compiles where all tests keep what they compiled.
    pub fn start_with_toolbox(&self) -> Node<'_> {
        // The first one compiles it, for longer than any test waits for anything else; the others find it done.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let config = self.path().join("toolbox.yaml");
        fs::write(
            &config,
            format!("apiVersion: wasilet.dev/v1alpha1\nkind: NodeConfiguration\n{}", toolbox_settings()),
        )
        .expect("a file");
        let (config, toolbox) =
            (config.to_string_lossy().into_owned(), guest("toolbox").to_string_lossy().into_owned());
        let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let node = self.start_with(&["--config", &config, "--toolbox", &toolbox]);
        let deadline = Instant::now() + 5 * PATIENCE;
        while !node.process.output().contains("Prepared the toolbox") {
            assert!(Instant::now() < deadline, "the toolbox is not ready: {}", node.process.output());
            std::thread::sleep(Duration::from_millis(20));
        }
        node
    }

    /// Starts the node on the manifest directory.
    pub fn start(&self) -> Node<'_> {
        self.start_with(&[])
    }

    /// Starts the node with more arguments.
    pub fn start_with(&self, more: &[&str]) -> Node<'_> {
        let manifests = self.manifests();
        let mut args = vec!["run", "--node-name", "node", "--manifests"];
        let manifests = manifests.to_string_lossy();
        args.push(&manifests);
        args.extend(more);
        let process = Process::spawn(&mut self.command(&args));
        let node = Node { place: self, process };
        eventually("the node answers", || {
            let output = self.run(&["ps"]);
            if output.status.success() { Ok(()) } else { Err(text(&output.stderr) + &node.process.output()) }
        });
        node
    }
}

impl Drop for Place {
    /// Memory volumes outlive an agent that was killed: a test leaves none behind.
    fn drop(&mut self) {
        if let Ok(root) = self.root().canonicalize() {
            let name = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_URL, root.as_os_str().as_encoded_bytes());
            let user = rustix::process::geteuid().as_raw();
            let _ = fs::remove_dir_all(format!("/dev/shm/wasilet-{user}-{}", name.simple()));
        }
    }
}

/// A child process whose output is kept; killed when dropped.
pub struct Process {
    child: Child,
    output: Arc<Mutex<String>>,
}

impl Process {
    /// Starts it with both outputs read in the background.
    pub fn spawn(command: &mut Command) -> Self {
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        let output = Arc::new(Mutex::new(String::new()));
        let stdout: Box<dyn Read + Send> = Box::new(child.stdout.take().expect("piped"));
        let stderr: Box<dyn Read + Send> = Box::new(child.stderr.take().expect("piped"));
        for stream in [stdout, stderr] {
            let output = Arc::clone(&output);
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    let mut output = output.lock().expect("no reader panics");
                    output.push_str(&line);
                    output.push('\n');
                }
            });
        }
        Self { child, output }
    }

    /// What it wrote so far, both streams.
    pub fn output(&self) -> String {
        self.output.lock().expect("no reader panics").clone()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.child.id() as i32).expect("a pid is positive");
        rustix::process::kill_process(pid, signal).expect("our own child");
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("our own child") {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end; it said:\n{}", self.output());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A running node.
pub struct Node<'a> {
    place: &'a Place,
    /// Its process.
    pub process: Process,
}

impl Node<'_> {
    /// Every pod as the node's API shows it.
    pub fn pods(&self) -> Vec<Pod> {
        let output = self.place.run(&["ps", "--output", "json"]);
        assert!(output.status.success(), "ps: {}\n{}", text(&output.stderr), self.process.output());
        serde_json::from_slice::<List<Pod>>(&output.stdout).expect("a PodList").items
    }

    /// The static pod of that manifest name: the node appends its own.
    pub fn pod(&self, name: &str) -> Option<Pod> {
        let full = format!("{name}-node");
        self.pods().into_iter().find(|pod| pod.metadata.name.as_deref() == Some(&full))
    }

    /// Waits until the pod is as `wanted` says.
    pub fn wait_for(&self, name: &str, what: &str, wanted: impl Fn(&Pod) -> bool) -> Pod {
        eventually(&format!("pod {name} {what}"), || match self.pod(name) {
            Some(pod) if wanted(&pod) => Ok(pod),
            Some(pod) => Err(format!("{:#?}\n{}", pod.status, self.process.output())),
            None => Err(format!("there is no such pod\n{}", self.process.output())),
        })
    }

    /// Waits for a phase.
    pub fn wait_phase(&self, name: &str, phase: &str) -> Pod {
        self.wait_for(name, &format!("is {phase}"), |pod| {
            pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some(phase)
        })
    }

    /// Waits until every container is ready.
    pub fn wait_ready(&self, name: &str) -> Pod {
        self.wait_for(name, "is ready", |pod| {
            let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
            conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
        })
    }

    /// Waits until there is no such pod.
    pub fn wait_gone(&self, name: &str) {
        eventually(&format!("pod {name} is gone"), || match self.pod(name) {
            None => Ok(()),
            Some(pod) => Err(format!("{:#?}", pod.status)),
        });
    }

    /// The log of a container so far.
    pub fn logs(&self, pod: &str, container: &str) -> String {
        let output = self.place.run(&["logs", &format!("{pod}-node"), "--container", container]);
        text(&output.stdout)
    }

    /// Waits for a piece of text in a container's log and returns the log.
    pub fn wait_log(&self, pod: &str, container: &str, wanted: &str) -> String {
        eventually(&format!("{pod}/{container} logs {wanted:?}"), || {
            let log = self.logs(pod, container);
            if log.contains(wanted) { Ok(log) } else { Err(format!("{log}\n{}", self.process.output())) }
        })
    }

    /// Runs a program in a container.
    pub fn exec(&self, pod: &str, container: &str, argv: &[&str]) -> Output {
        let full = format!("{pod}-node");
        let mut args = vec!["exec", &full, "--container", container, "--"];
        args.extend(argv);
        self.place.run(&args)
    }

    /// Stops the node as systemd does, and expects it to end well.
    pub fn stop(mut self) {
        self.process.signal(rustix::process::Signal::TERM);
        let status = self.process.wait();
        assert!(status.success(), "the node ended with {status}:\n{}", self.process.output());
    }
}

/// The status of a container of any kind.
pub fn container<'a>(pod: &'a Pod, name: &str) -> &'a ContainerStatus {
    let status = pod.status.as_ref().expect("a status");
    let all = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    all.into_iter().find(|container| container.name == name).expect("a status of that container")
}

/// The pod's address.
pub fn pod_ip(pod: &Pod) -> String {
    pod.status.as_ref().and_then(|status| status.pod_ip.clone()).expect("a pod IP")
}

/// Output as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Fetches `http://ADDRESS/path` and returns status code and body.
pub fn http_get(address: &str, path: &str) -> std::io::Result<(u16, String)> {
    use std::io::Write;
    let mut stream = std::net::TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = text(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    Ok((code, body.to_owned()))
}
