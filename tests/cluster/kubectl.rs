//! kubectl as a person runs it: to its end, in the background, or at a terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::Winsize;

use super::super::support::text;
use super::control_plane::binaries;
use super::sandbox::At;
use super::{Cluster, LONG};

/// What a command ended with.
#[derive(Debug)]
pub struct Done {
    /// Its exit code.
    pub code: Option<i32>,
    /// What it wrote.
    pub stdout: String,
    /// What it complained.
    pub stderr: String,
}

/// Runs a command to its end and gives it `stdin`; one that does not end is killed after a long time.
pub fn run(mut command: Command, stdin: &[u8]) -> Done {
    let mut bounded = Command::new("timeout");
    bounded.args(["--foreground", "--signal=KILL", &LONG.as_secs().to_string()]).arg(command.get_program());
    bounded.args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => bounded.env(name, value),
            None => bounded.env_remove(name),
        };
    }
    command = bounded;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("timeout (coreutils) starts");
    let mut pipe = child.stdin.take().expect("it is piped");
    let stdin = stdin.to_vec();
    // One that ends without reading everything says so by its exit code.
    let writer = std::thread::spawn(move || drop(pipe.write_all(&stdin)));
    let output = child.wait_with_output().expect("our own child");
    let _ = writer.join();
    Done { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
}

impl Cluster {
    /// kubectl with these arguments, not started.
    pub fn kubectl_command(&self, args: &[&str]) -> Command {
        let mut command = self.sandbox().command(At::Host, binaries().join("kubectl"));
        command.arg("--kubeconfig").arg(self.kubeconfig());
        command.arg("--cache-dir").arg(self.dir().join("kubectl-cache")).args(args);
        command
    }

    /// kubectl to its end.
    pub fn kubectl(&self, args: &[&str]) -> Done {
        run(self.kubectl_command(args), b"")
    }

    /// kubectl to a good end; what it wrote.
    pub fn kubectl_ok(&self, args: &[&str]) -> String {
        self.kubectl_with(args, "")
    }

    /// The same with something to read.
    pub fn kubectl_with(&self, args: &[&str], stdin: &str) -> String {
        let done = run(self.kubectl_command(args), stdin.as_bytes());
        assert_eq!(done.code, Some(0), "kubectl {args:?}: {}{}\n{stdin}", done.stdout, done.stderr);
        done.stdout
    }
}

/// A command at a terminal of its own, as in a window; killed when dropped.
pub struct Terminal {
    child: Child,
    keyboard: File,
    screen: Arc<Mutex<String>>,
}

impl Terminal {
    /// Starts it in a window of that size.
    pub fn start(command: &Command, columns: u16, rows: u16) -> Self {
        let window = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pseudo-terminal");
        grantpt(&window).expect("our own");
        unlockpt(&window).expect("our own");
        let name = ptsname(&window, Vec::new()).expect("its name").into_string().expect("a path");
        let mut options = File::options();
        options.read(true).write(true).custom_flags(libc::O_NOCTTY);
        let inner = options.open(name).expect("its other side");
        resize(&window, columns, rows);
        // The window's changes are told to the session that has it as its terminal.
        let mut session = Command::new("setsid");
        session.args(["--ctty", "--wait"]).arg(command.get_program()).args(command.get_args()).env("TERM", "xterm");
        session.stdin(inner.try_clone().expect("a file")).stdout(inner.try_clone().expect("a file")).stderr(inner);
        let child = session.spawn().expect("setsid (util-linux) starts");
        let keyboard = File::from(window);
        let screen = Arc::<Mutex<String>>::default();
        let (mut reader, seen) = (keyboard.try_clone().expect("a file"), Arc::clone(&screen));
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // The last of the other side to close it ends this with an error.
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                seen.lock().push_str(&text(&buffer[..count]));
            }
        });
        Self { child, keyboard, screen }
    }

    /// Presses keys.
    pub fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("the terminal is open");
    }

    /// Waits until the program takes each key as it is pressed: kubectl does when it shows a far terminal.
    pub fn wait_raw(&self) {
        let deadline = Instant::now() + LONG;
        loop {
            let modes = rustix::termios::tcgetattr(&self.keyboard).expect("a terminal has modes").local_modes;
            if !modes.contains(rustix::termios::LocalModes::ICANON) {
                return;
            }
            assert!(Instant::now() < deadline, "the terminal is still cooked; it shows\n{}", self.screen());
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    /// Changes the size of the window.
    pub fn resize(&self, columns: u16, rows: u16) {
        resize(&self.keyboard, columns, rows);
    }

    /// Everything that was shown.
    pub fn screen(&self) -> String {
        self.screen.lock().clone()
    }

    /// Waits until a text has been shown.
    pub fn wait_for(&self, wanted: &str) -> String {
        let deadline = Instant::now() + LONG;
        loop {
            let screen = self.screen();
            if screen.contains(wanted) {
                return screen;
            }
            assert!(Instant::now() < deadline, "{wanted:?} is not shown; the screen shows\n{screen}");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    /// Waits for its end; the exit code.
    pub fn wait(&mut self) -> Option<i32> {
        let deadline = Instant::now() + LONG;
        loop {
            if let Some(status) = self.child.try_wait().expect("our own child") {
                return status.code();
            }
            assert!(Instant::now() < deadline, "it does not end; the screen shows\n{}", self.screen());
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn resize(window: &impl std::os::fd::AsFd, columns: u16, rows: u16) {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(window, size).expect("a terminal has a size");
}
