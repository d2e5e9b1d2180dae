//! Exercises every file operation a guest can ask for and judges the answers by Linux's rules.
//!
//! Usage: `fs-check [--dir DIRECTORY] [--read-only DIRECTORY] [--no-devices]`. Works in a folder of its own under
//! DIRECTORY (default `/tmp`), which it removes. `--read-only` names a directory on a read-only mount, with at
//! least one file in it; `--no-devices` leaves out `/dev`. One line per check, then `fs-check: N passed, M failed`;
//! exit code 0 or 1.
//!
//! It is one source for preview 1 and WASI 0.2: what differs between the two must not be seen here.

mod attributes;
mod data;
mod devices;
mod directories;
mod links;
mod open;
mod read_only;
mod rename;
mod sys;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{fs, process};

use guest_support::args::Args;
use guest_support::check::{Checks, Step};

/// One file of checks, given the checks so far and a directory of its own.
type Group = fn(&mut Checks, &Path);

fn main() -> ExitCode {
    let mut args = Args::new("fs-check [--dir DIRECTORY] [--read-only DIRECTORY] [--no-devices]");
    let parent = args.option("--dir").unwrap_or_else(|| PathBuf::from("/tmp"));
    let read_only: Option<PathBuf> = args.option("--read-only");
    let devices = !args.flag("--no-devices");
    let root = parent.join("fs-check");
    let _ = fs::remove_dir_all(&root);
    let mut checks = Checks::new("fs-check");
    let groups: [(&str, Group); 6] = [
        ("open", open::run),
        ("data", data::run),
        ("attributes", attributes::run),
        ("rename", rename::run),
        ("links", links::run),
        ("directories", directories::run),
    ];
    for (name, run) in groups {
        let directory = root.join(name);
        if let Err(error) = fs::create_dir_all(&directory) {
            eprintln!("fs-check: {}: {error}", directory.display());
            process::exit(1);
        }
        run(&mut checks, &directory);
    }
    if devices {
        devices::run(&mut checks);
    }
    if let Some(directory) = read_only {
        read_only::run(&mut checks, &directory);
    }
    checks.check("the whole tree can be removed", || fs::remove_dir_all(&root).step("remove_dir_all"));
    checks.verdict()
}
