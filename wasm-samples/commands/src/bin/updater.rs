//! Rewrites a file again and again, each time as a whole: the sidecar that keeps a web page fresh.
//!
//! Usage: `updater [FILE] [SECONDS] [COUNT]`, defaults `/usr/share/nginx/html/index.html`, 1 (fractions allowed)
//! and no end. A reader sees the old page or the new one, never half of one: the text goes to a temporary file
//! beside FILE, which a rename puts in its place. A write that fails (say, on a read-only mount) ends it with 1.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use std::{fs, io, thread};

use guest_support::args::Args;
use guest_support::cwd;
use guest_support::utc::Utc;

fn main() -> ExitCode {
    let mut args = Args::new("updater [FILE] [SECONDS] [COUNT]");
    let path = args.next_or("file", PathBuf::from("/usr/share/nginx/html/index.html"));
    let seconds: f64 = args.next_or("seconds", 1.0);
    let count: u64 = args.next_or("count", u64::MAX);
    let Ok(interval) = Duration::try_from_secs_f64(seconds) else { args.fail("SECONDS must be 0 or more") };
    if let Err(error) = cwd::enter() {
        eprintln!("updater: working directory: {error}");
        return ExitCode::FAILURE;
    }
    for number in 1..=count {
        let now = Utc::now().plain();
        let page =
            format!("<!DOCTYPE html>\n<title>Wasilet</title>\n<h1>Update {number}</h1>\n<p>Written at {now}.</p>\n");
        if let Err(error) = replace(&path, &page) {
            eprintln!("updater: {}: {error}", path.display());
            return ExitCode::FAILURE;
        }
        println!("update {number} at {now}");
        thread::sleep(interval);
    }
    ExitCode::SUCCESS
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    let mut temporary = OsString::from(path);
    temporary.push(".new");
    fs::write(&temporary, text)?;
    fs::rename(&temporary, path)
}
