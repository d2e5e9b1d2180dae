//! Copies what it reads to what it writes: what `exec -i`, `attach` and a terminal are tested with.
//!
//! Usage: `cat [FILE...]`. Without files it copies stdin until its end; then it says on stderr how many bytes those were.

use std::fs::File;
use std::io::{self, Write};
use std::process::ExitCode;

use guest_support::args::Args;

fn main() -> ExitCode {
    let mut args = Args::new("cat [FILE...]");
    let mut files = 0;
    while let Some(file) = args.next::<String>("file") {
        files += 1;
        if let Err(error) = File::open(&file).and_then(|file| copy(file)) {
            eprintln!("cat: {file}: {error}");
            return ExitCode::FAILURE;
        }
    }
    if files > 0 {
        return ExitCode::SUCCESS;
    }
    match copy(io::stdin().lock()) {
        Ok(bytes) => {
            eprintln!("cat: {bytes} bytes");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("cat: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What is there is passed on before more is waited for: a person may be typing.
fn copy(mut from: impl io::Read) -> io::Result<u64> {
    let mut to = io::stdout().lock();
    let mut buffer = vec![0; 64 * 1024];
    let mut total = 0;
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            return Ok(total);
        }
        to.write_all(&buffer[..count])?;
        to.flush()?;
        total += count as u64;
    }
}
