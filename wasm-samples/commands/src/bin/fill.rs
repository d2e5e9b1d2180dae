//! Fills a file and stays: what volume limits and full disks are tested with.
//!
//! Usage: `fill FILE [MIB]`, default 8. Writes MIB mebibytes to FILE, then sleeps for good; a write that the host refuses
//! is reported with its error and ends it with 1.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use guest_support::args::Args;

/// One write.
const PIECE: usize = 64 * 1024;

fn main() -> ExitCode {
    let mut args = Args::new("fill FILE [MIB]");
    let file: PathBuf = args.next_or("file", PathBuf::from("/tmp/fill"));
    let mebibytes: usize = args.next_or("mib", 8);
    match fill(&file, mebibytes) {
        Ok(()) => {
            println!("fill: {mebibytes} MiB in {}", file.display());
            loop {
                thread::sleep(Duration::from_secs(86_400));
            }
        }
        Err((written, error)) => {
            eprintln!("fill: {} after {written} bytes: {error}", file.display());
            ExitCode::FAILURE
        }
    }
}

fn fill(path: &PathBuf, mebibytes: usize) -> Result<(), (usize, io::Error)> {
    let mut file = File::create(path).map_err(|error| (0, error))?;
    let piece = vec![b'.'; PIECE];
    let mut written = 0;
    while written < mebibytes << 20 {
        file.write_all(&piece).map_err(|error| (written, error))?;
        written += PIECE;
    }
    Ok(())
}
