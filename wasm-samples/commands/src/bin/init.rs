//! Writes a file once and ends: an init container that prepares a volume for the others.
//!
//! Usage: `init FILE [WORD...]`. Writes the words and a line feed to FILE (missing directories are made), prints
//! what it did, exits 0; on an error says which and exits 1.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{fs, io};

use guest_support::args::Args;
use guest_support::cwd;

fn main() -> ExitCode {
    let mut args = Args::new("init FILE [WORD...]");
    let Some(path) = args.next::<PathBuf>("file") else { args.fail("FILE is missing") };
    let text = args.rest().join(" ") + "\n";
    match cwd::enter().and_then(|()| write(&path, &text)) {
        Ok(()) => {
            println!("init: wrote {} bytes to {}", text.len(), path.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("init: {}: {error}", path.display());
            ExitCode::FAILURE
        }
    }
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, text)
}
