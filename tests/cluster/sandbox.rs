//! Namespaces for one cluster: network, processes and mounts of its own, gone without a trace when this process is.
//!
//! In: commands. Out: the same commands, to be run inside. Works as root, and without root in a user namespace. Its
//! first process reads a pipe whose other end only this process holds: however this process ends, the pipe closes, and
//! with its first process the kernel ends every other one of the namespace.
//!
//! The network is a bridge `lan` (198.51.100.0/24 and, where the kernel has IPv6, fd00:198:51:100::/64), on which the sandbox
//! itself is 198.51.100.1, and further network namespaces plugged into it, as machines into a switch.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use super::super::support::{PATIENCE, text};

/// Where the control plane is.
pub const HOST: &str = "198.51.100.1";

/// The first process of the sandbox. `/run` and `/dev/shm` are empty: no test sees the machine's own services there, or
/// leaves anything behind. The directory named by `$1` goes last, when nobody is left to write to it.
const SETUP: &str = r#"
set -e
read -r pid rest </proc/self/stat
mount -t proc proc /proc
mount -t tmpfs -o mode=755 run /run
mount -t tmpfs shm /dev/shm
if [ "$2" = own ]; then
    ip link set lo up
    ip link add lan type bridge
    ip addr add 198.51.100.1/24 dev lan
    if [ -e /proc/net/if_inet6 ]; then
        echo 0 >/proc/sys/net/ipv6/conf/all/disable_ipv6
        ip addr add fd00:198:51:100::1/64 dev lan nodad
        echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
    fi
    ip link set lan up
    echo 1 >/proc/sys/net/ipv4/ip_forward
fi
echo "ready $pid"
set +e
cat >/dev/null
kill -KILL -1
rm -rf -- "$1"
"#;

/// Plugs a machine called `$1` with the address `$2` into the bridge.
const MACHINE: &str = r#"
set -e
ip netns add "$1"
ip link add "v-$1" type veth peer name eth0 netns "$1"
ip link set "v-$1" master lan up
ip -n "$1" link set lo up
ip -n "$1" addr add "$2/24" dev eth0
ip -n "$1" link set eth0 up
ip -n "$1" route add default via 198.51.100.1
if [ "$3" ]; then
    ip -n "$1" addr add "$3/64" dev eth0 nodad
    ip -n "$1" route add default via fd00:198:51:100::1
fi
ip netns exec "$1" sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward'
"#;

/// The namespaces.
pub struct Sandbox {
    first: Child,
    pid: String,
    in_user_namespace: bool,
    network: Network,
    next_address: AtomicU8,
}

/// Whose network its processes see.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// A network of its own, where nothing collides.
    Own,
    /// That of the machine, for a cluster that is elsewhere.
    OfTheMachine,
}

/// Where a command runs.
#[derive(Clone, Copy)]
pub enum At<'a> {
    /// Beside the control plane.
    Host,
    /// On a machine of the bridge.
    Machine(&'a str),
}

impl Sandbox {
    /// Makes the namespaces. `dir` is removed with them.
    pub fn new(dir: &Path, network: Network) -> Self {
        let in_user_namespace = !rustix::process::geteuid().is_root();
        let mut command = Command::new("unshare");
        if in_user_namespace {
            command.args(["--user", "--map-root-user"]);
        }
        if network == Network::Own {
            command.arg("--net");
        }
        command.args(["--pid", "--mount", "--propagation", "private", "--fork", "--kill-child"]);
        command.args(["sh", "-c", SETUP, "sandbox"]).arg(dir);
        command
            .arg(if network == Network::Own { "own" } else { "shared" })
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        // Ctrl-C at the terminal ends the tests; the closed pipe then ends this.
        let mut first = command.process_group(0).spawn().expect("unshare (util-linux) starts");
        let mut line = String::new();
        let stdout = first.stdout.take().expect("it is piped");
        BufReader::new(stdout).read_line(&mut line).expect("the sandbox speaks");
        let Some(pid) = line.trim().strip_prefix("ready ") else {
            panic!("no namespaces: the cluster tests need root or user namespaces, unshare, nsenter, setpriv and ip")
        };
        Self { pid: pid.to_owned(), first, in_user_namespace, network, next_address: AtomicU8::new(10) }
    }

    /// A command that runs inside. Killing it kills what it runs: `nsenter` is its parent, and says so to the kernel.
    pub fn command(&self, at: At<'_>, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.pid, "--pid", "--mount"]);
        if self.network == Network::Own {
            command.arg("--net");
        }
        if self.in_user_namespace {
            command.args(["--user", "--preserve-credentials"]);
        }
        command.arg("--");
        if let At::Machine(name) = at {
            command.args(["ip", "netns", "exec", name]);
        }
        command.args(["setpriv", "--pdeathsig", "KILL"]).arg(program).stdin(Stdio::null());
        for variable in ["http_proxy", "https_proxy", "all_proxy"] {
            command.env_remove(variable).env_remove(variable.to_uppercase());
        }
        command
    }

    /// Runs a piece of shell inside; its output.
    pub fn shell(&self, at: At<'_>, script: &str, args: &[&str]) -> String {
        let output = self.command(at, "sh").args(["-c", script, "sh"]).args(args).output().expect("nsenter starts");
        assert!(output.status.success(), "{script} {args:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Whether machines have addresses of both families.
    pub fn is_dual_stack(&self) -> bool {
        self.network == Network::Own && Path::new("/proc/net/if_inet6").exists()
    }

    /// Where Services and where pods get their addresses from.
    pub fn ranges(&self) -> (&'static str, &'static str) {
        if self.is_dual_stack() {
            ("10.96.0.0/16,fd00:10:96::/112", "10.244.0.0/16,fd00:10:244::/48")
        } else {
            ("10.96.0.0/16", "10.244.0.0/16")
        }
    }

    /// The IPv6 address of a machine of the bridge.
    pub fn v6(address: &str) -> String {
        format!("fd00:198:51:100::{}", address.rsplit('.').next().unwrap_or_default())
    }

    /// A new machine on the bridge; its address. The name is at most 13 bytes long, so that its interface may have it.
    pub fn add_machine(&self, name: &str) -> String {
        let last = self.next_address.fetch_add(1, Ordering::Relaxed);
        assert!(last < 250, "the bridge has no address left");
        let address = format!("198.51.100.{last}");
        let v6 = if self.is_dual_stack() { Self::v6(&address) } else { String::new() };
        self.shell(At::Host, MACHINE, &[name, &address, &v6]);
        address
    }

    /// Sends a range of addresses to a machine, as a cloud's routes or a CNI plugin of the host-gw kind do.
    pub fn add_route(&self, range: &str, machine_address: &str) {
        self.shell(At::Host, r#"ip route replace "$1" via "$2""#, &[range, machine_address]);
    }

    /// Starts a process that runs until it is told to stop, its output in a file of its own.
    pub fn daemon(&self, at: At<'_>, log: &Path, program: &Path, args: &[String], env: &[(&str, &str)]) -> Daemon {
        let pid_file = log.with_extension("pid");
        let _ = std::fs::remove_file(&pid_file);
        let file = std::fs::File::options().create(true).append(true).open(log).expect("a log file");
        let mut command = self.command(at, "sh");
        command
            .args(["-c", r#"echo "$$" >"$0.new"; mv "$0.new" "$0"; exec "$@""#])
            .arg(&pid_file)
            .arg(program)
            .args(args);
        for (name, value) in env {
            command.env(name, value);
        }
        command.stdout(file.try_clone().expect("a file")).stderr(file);
        let child = command.spawn().expect("nsenter starts");
        Daemon { child, pid_file, log: log.to_owned(), sandbox: self.pid.clone(), user: self.in_user_namespace }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        drop(self.first.stdin.take());
        let _ = self.first.wait();
    }
}

/// A process that runs inside until it is stopped; killed when dropped.
pub struct Daemon {
    child: Child,
    pid_file: PathBuf,
    log: PathBuf,
    sandbox: String,
    user: bool,
}

impl Daemon {
    /// Its id inside the sandbox.
    pub fn pid(&self) -> String {
        let deadline = Instant::now() + PATIENCE;
        // The file is renamed into place as the first thing the process does.
        loop {
            match std::fs::read_to_string(&self.pid_file) {
                Ok(pid) => return pid.trim().to_owned(),
                Err(error) => assert!(Instant::now() < deadline, "{}: {error}", self.pid_file.display()),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends it a signal by its name, `TERM`.
    pub fn signal(&self, signal: &str) {
        let pid = self.pid();
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.sandbox, "--pid", "--mount"]);
        if self.user {
            command.args(["--user", "--preserve-credentials"]);
        }
        // One that has ended by itself hears nothing, which is well.
        let _ = command.args(["--", "kill", "-s", signal, &pid]).stderr(Stdio::null()).status();
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> std::process::ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("our own child") {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end:\n{}", self.tail());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends it at once and waits until it has.
    pub fn kill(&mut self) {
        self.signal("KILL");
        self.wait();
    }

    /// The end of its output.
    pub fn tail(&self) -> String {
        tail(&self.log)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The last lines of a file.
pub fn tail(path: &Path) -> String {
    const LINES: usize = 60;
    let all = std::fs::read(path).map(|bytes| text(&bytes)).unwrap_or_default();
    let lines: Vec<&str> = all.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}
