//! Ends with the exit code it is told, as a WASI 0.2 component: what restart policies and Jobs look at.
//!
//! Usage: `exit-code-p2 [0-255] [SECONDS]`, defaults 0 and 0: the seconds it runs before it ends.
//!
//! `wasi:cli/exit.exit` knows success and failure only, and it is what `std::process::exit` calls: 7 would arrive
//! as 1. The exact code goes through `exit-with-code`, which WASI has since 0.2.12; a host that is older refuses this
//! component before it starts.

use std::{thread, time::Duration};

use guest_support::args::Args;
use wasip2::cli::exit::exit_with_code;

fn main() {
    let mut args = Args::new("exit-code-p2 [0-255] [SECONDS]");
    let code: u8 = args.next_or("exit code", 0);
    let seconds: u64 = args.next_or("seconds", 0);
    thread::sleep(Duration::from_secs(seconds));
    println!("exiting with {code}");
    exit_with_code(code);
}
