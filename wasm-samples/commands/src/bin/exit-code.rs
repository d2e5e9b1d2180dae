//! Ends with the exit code it is told: what restart policies and Jobs look at.
//!
//! Usage: `exit-code [0-255] [SECONDS]`, defaults 0 and 0: the seconds it runs before it ends.
//! This is the preview 1 form; `exit-code-p2` of the `components` crate says what 0.2 does differently.

use std::{process, thread, time::Duration};

use guest_support::args::Args;

fn main() {
    let mut args = Args::new("exit-code [0-255] [SECONDS]");
    let code: u8 = args.next_or("exit code", 0);
    let seconds: u64 = args.next_or("seconds", 0);
    thread::sleep(Duration::from_secs(seconds));
    println!("exiting with {code}");
    process::exit(i32::from(code));
}
