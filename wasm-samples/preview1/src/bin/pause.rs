//! Does nothing until it is told to end, as `registry.k8s.io/pause` does: SIGTERM and SIGINT end it with success.
//!
//! Usage: `pause [-v]`; `-v` says its name.

use std::process::ExitCode;
use std::time::Duration;

use preview1::signal::Signals;

const SIGINT: u8 = 2;
const SIGTERM: u8 = 15;

fn main() -> ExitCode {
    if std::env::args().any(|argument| argument == "-v") {
        println!("pause (wasm)");
        return ExitCode::SUCCESS;
    }
    let mut signals = match Signals::open() {
        Ok(signals) => signals,
        Err(error) => {
            eprintln!("pause: /dev/signal: {error}");
            return ExitCode::FAILURE;
        }
    };
    loop {
        match signals.wait(Duration::MAX) {
            Ok(Some(SIGINT | SIGTERM)) => {
                println!("Shutting down, got signal");
                return ExitCode::SUCCESS;
            }
            Ok(_) => {}
            Err(error) => {
                eprintln!("pause: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
}
