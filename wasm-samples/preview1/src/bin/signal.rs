//! Waits for a signal and says which: how a guest hears SIGTERM, which WASI has no word for.
//!
//! Usage: `signal [exit|ignore] [SECONDS]`. `exit` (the default) prints the first signal and exits 0; `ignore`
//! prints each and goes on, so that only a kill ends it. With SECONDS it gives up after so many without a signal
//! and exits 1.

use std::process::ExitCode;
use std::time::Duration;

use guest_support::args::Args;
use preview1::signal::Signals;

fn main() -> ExitCode {
    let mut args = Args::new("signal [exit|ignore] [SECONDS]");
    let ignore = match args.next_or("reaction", String::from("exit")).as_str() {
        "exit" => false,
        "ignore" => true,
        other => args.fail(format_args!("no reaction is called {other:?}")),
    };
    let limit = args.next("seconds").map_or(Duration::MAX, Duration::from_secs);
    let mut signals = match Signals::open() {
        Ok(signals) => signals,
        Err(error) => {
            eprintln!("signal: /dev/signal: {error}");
            return ExitCode::FAILURE;
        }
    };
    println!("signal: waiting");
    loop {
        match signals.wait(limit) {
            Ok(Some(number)) if ignore => println!("signal: got {number}, ignored"),
            Ok(Some(number)) => {
                println!("signal: got {number}");
                return ExitCode::SUCCESS;
            }
            Ok(None) => {
                println!("signal: none came");
                return ExitCode::FAILURE;
            }
            Err(error) => {
                eprintln!("signal: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
}
