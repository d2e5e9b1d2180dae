//! The node's host calls for processes, module `wasilet`: what preview 1 lacks of fork, exec, pipe and wait.
//!
//! In: std types. Out: std types, with the host's error number as `io::Error`. A process is another program of the same
//! container, with a memory of its own, its parent's standard streams, and of other descriptors only those it is given.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};

/// The raw calls. Lengths are in bytes, all pointers into this module's memory.
mod host {
    #[link(wasm_import_module = "wasilet")]
    unsafe extern "C" {
        pub fn pipe(read_fd_out: *mut u32, write_fd_out: *mut u32) -> u32;
        pub fn spawn(
            path: *const u8,
            path_len: usize,
            argv: *const u8,
            argv_len: usize,
            env: *const u8,
            env_len: usize,
            cwd: *const u8,
            cwd_len: usize,
            fds: *const FdPair,
            fds_count: usize,
            pid_out: *mut u32,
        ) -> u32;
        pub fn wait(pid: u32, flags: u32, status_out: *mut u32, pid_out: *mut u32) -> u32;
        pub fn kill(pid: u32, signal: u32) -> u32;
        pub fn getpid() -> u32;
        pub fn getppid() -> u32;
    }

    /// Gives the child our `parent` as its `child`.
    #[repr(C)]
    pub struct FdPair {
        pub child: u32,
        pub parent: u32,
    }

    /// As `env_len`: the child gets our environment.
    pub const INHERIT_ENV: usize = u32::MAX as usize;
    /// As `flags` of wait: do not wait.
    pub const NO_HANG: u32 = 1;
    /// As `pid` of wait: whichever ends first.
    pub const ANY_CHILD: u32 = 0;
}

/// Signal that ends a process whether it wants or not.
pub const SIGKILL: u32 = 9;

/// A process id; unique in its container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pid(pub u32);

/// How a child ended: its exit code, or 128 and the number of the signal that ended it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Which child.
    pub pid: Pid,
    /// 0 to 255.
    pub status: u32,
}

/// A new pipe: its reading end and its writing end.
pub fn pipe() -> io::Result<(File, File)> {
    let (mut read, mut write) = (0, 0);
    // SAFETY: both pointers are to a u32 of ours.
    check(unsafe { host::pipe(&raw mut read, &raw mut write) })?;
    // SAFETY: the host made both descriptors for us just now.
    Ok(unsafe { (File::from_raw_fd(read as RawFd), File::from_raw_fd(write as RawFd)) })
}

/// A program about to be started.
#[derive(Debug)]
pub struct Command {
    path: String,
    argv: Vec<u8>,
    env: Option<Vec<u8>>,
    cwd: String,
    fds: Vec<(u32, u32)>,
}

impl Command {
    /// The program at `path` of the container's filesystem, which is also its first argument. It gets our environment,
    /// our working directory and our standard streams.
    #[must_use]
    pub fn new(path: &str) -> Self {
        Self { path: path.to_owned(), argv: terminated(path), env: None, cwd: String::new(), fds: Vec::new() }
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, argument: &str) -> Self {
        self.argv.extend(terminated(argument));
        self
    }

    /// Exactly these variables, `NAME=VALUE` each, instead of ours.
    #[must_use]
    pub fn env(mut self, variables: &[&str]) -> Self {
        self.env = Some(variables.iter().copied().flat_map(terminated).collect());
        self
    }

    /// Another working directory.
    #[must_use]
    pub fn current_dir(mut self, directory: &str) -> Self {
        directory.clone_into(&mut self.cwd);
        self
    }

    /// Gives the child our descriptor `file` as its number `child`.
    #[must_use]
    pub fn fd(mut self, child: u32, file: &impl AsRawFd) -> Self {
        self.fds.push((child, file.as_raw_fd() as u32));
        self
    }

    /// Starts it.
    pub fn spawn(&self) -> io::Result<Pid> {
        let fds: Vec<_> = self.fds.iter().map(|&(child, parent)| host::FdPair { child, parent }).collect();
        let (env, env_len) = match &self.env {
            Some(env) => (env.as_ptr(), env.len()),
            None => (std::ptr::null(), host::INHERIT_ENV),
        };
        let mut pid = 0;
        // SAFETY: every pointer goes with the length of what it points to, and all of it outlives the call.
        check(unsafe {
            host::spawn(
                self.path.as_ptr(),
                self.path.len(),
                self.argv.as_ptr(),
                self.argv.len(),
                env,
                env_len,
                self.cwd.as_ptr(),
                self.cwd.len(),
                fds.as_ptr(),
                fds.len(),
                &raw mut pid,
            )
        })?;
        Ok(Pid(pid))
    }
}

/// Waits for this child to end.
pub fn wait(pid: Pid) -> io::Result<Ended> {
    wait_with(pid.0, 0)
}

/// Waits for whichever child ends first.
pub fn wait_any() -> io::Result<Ended> {
    wait_with(host::ANY_CHILD, 0)
}

/// This child, if it has ended.
pub fn try_wait(pid: Pid) -> io::Result<Option<Ended>> {
    let ended = wait_with(pid.0, host::NO_HANG)?;
    // As waitpid: no process id means nobody has ended yet.
    Ok((ended.pid != Pid(0)).then_some(ended))
}

fn wait_with(pid: u32, flags: u32) -> io::Result<Ended> {
    let (mut status, mut ended) = (0, 0);
    // SAFETY: both pointers are to a u32 of ours.
    check(unsafe { host::wait(pid, flags, &raw mut status, &raw mut ended) })?;
    Ok(Ended { pid: Pid(ended), status })
}

/// Sends a signal to a process of this container.
pub fn kill(pid: Pid, signal: u32) -> io::Result<()> {
    // SAFETY: plain numbers.
    check(unsafe { host::kill(pid.0, signal) })
}

/// This process's id and its parent's.
#[must_use]
pub fn ids() -> (Pid, Pid) {
    // SAFETY: they take nothing and return numbers.
    unsafe { (Pid(host::getpid()), Pid(host::getppid())) }
}

fn terminated(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

fn check(errno: u32) -> io::Result<()> {
    if errno == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(errno as i32)) }
}
