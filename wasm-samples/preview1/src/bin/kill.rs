//! Sends a signal to a process of its container: run by an exec, it ends the container's own program (pid 1).
//!
//! Usage: `kill PID [SIGNAL]`, default 9.

use std::process::ExitCode;

use guest_support::args::Args;
use preview1::process::{Pid, SIGKILL, kill};

fn main() -> ExitCode {
    let mut args = Args::new("kill PID [SIGNAL]");
    let Some(pid) = args.next("pid") else { args.fail("PID is missing") };
    let signal = args.next_or("signal", SIGKILL);
    match kill(Pid(pid), signal) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kill: {pid}: {error}");
            ExitCode::FAILURE
        }
    }
}
