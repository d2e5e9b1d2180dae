//! Opens thousands of files and keeps them open: what the limit on open files is tested with.
//!
//! Usage: `open-files [COUNT] [DIRECTORY]`, defaults 10000 and `/tmp`. Prints how many it got; exits 0 when that
//! was all of them, 1 with the error's name when the host refused earlier. The files are removed either way.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::ExitCode;

use guest_support::args::Args;

fn main() -> ExitCode {
    let mut args = Args::new("open-files [COUNT] [DIRECTORY]");
    let count: usize = args.next_or("count", 10_000);
    let directory = args.next_or("directory", PathBuf::from("/tmp"));
    let name = |number: usize| directory.join(format!("open-files.{number}"));
    let mut open = Vec::with_capacity(count);
    let mut refusal = None;
    for number in 0..count {
        match File::create(name(number)) {
            Ok(file) => open.push(file),
            Err(error) => {
                refusal = Some(error);
                break;
            }
        }
    }
    let opened = open.len();
    let alive = open.iter().filter(|file| file.metadata().is_ok()).count();
    drop(open);
    for number in 0..opened {
        let _ = fs::remove_file(name(number));
    }
    println!("open-files: {opened} of {count} open, {alive} answered");
    match refusal {
        Some(error) => {
            println!("open-files: refused: {error}");
            ExitCode::FAILURE
        }
        None if alive == opened => ExitCode::SUCCESS,
        None => ExitCode::FAILURE,
    }
}
