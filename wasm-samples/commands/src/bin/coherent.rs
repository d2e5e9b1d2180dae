//! Reads the files of a volume that is updated as a whole, without a pause, and judges what it sees.
//!
//! Usage: `coherent DIR LAST FILE...`. Each FILE of DIR holds the same number on every line; an update gives all of them
//! another. Until all have LAST it reads them in three ways: by their names, through a directory that `..data` was opened
//! as, and through the name `..data` had. Prints each number it met and how often it read; exits 1 with a line `FAIL ...`
//! when files of two updates are seen together, one of them in halves, missing by its name, or older than before.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use guest_support::args::Args;
use guest_support::cwd;

fn main() -> ExitCode {
    let mut args = Args::new("coherent DIR LAST FILE...");
    let (Some(dir), Some(last)) = (args.next::<PathBuf>("dir"), args.next("last")) else {
        args.fail("DIR or LAST is missing")
    };
    let reader = Reader { dir, files: args.rest() };
    match cwd::enter().map_err(|error| error.to_string()).and_then(|()| reader.run(last)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            println!("FAIL {reason}");
            ExitCode::FAILURE
        }
    }
}

struct Reader {
    dir: PathBuf,
    files: Vec<String>,
}

impl Reader {
    fn run(&self, last: u64) -> Result<(), String> {
        let (mut reads, mut gone) = (0u64, 0u64);
        let mut newest = vec![0; self.files.len()];
        let mut met = 0;
        loop {
            for (file, newest) in self.files.iter().zip(&mut newest) {
                let seen = number(file, &fs::read(self.dir.join(file)).map_err(|error| format!("{file}: {error}"))?)?;
                if seen < *newest {
                    return Err(format!("{file} went back from {newest} to {seen}"));
                }
                *newest = seen;
            }
            // An opened directory, or a name of one, may be that of an update before: then it is gone, never mixed.
            let together = [self.by_directory(), self.by_name()];
            for seen in together {
                match seen {
                    Ok(files) => {
                        let seen = self.one_update(&files)?;
                        if seen > met {
                            println!("{seen}");
                            met = seen;
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::NotFound => gone += 1,
                    Err(error) => return Err(error.to_string()),
                }
            }
            reads += 1;
            if met == last && newest.iter().all(|newest| *newest == last) {
                println!("coherent: {reads} rounds, {gone} looks at an update that was over");
                return Ok(());
            }
        }
    }

    /// All files through the directory that `..data` leads to at this moment.
    fn by_directory(&self) -> io::Result<Vec<Vec<u8>>> {
        let dir = File::open(self.dir.join("..data"))?;
        self.files.iter().map(|file| read_at(&dir, file)).collect()
    }

    /// All files by what `..data` says at this moment.
    fn by_name(&self) -> io::Result<Vec<Vec<u8>>> {
        let dir = self.dir.join(fs::read_link(self.dir.join("..data"))?);
        self.files.iter().map(|file| fs::read(dir.join(file))).collect()
    }

    fn one_update(&self, contents: &[Vec<u8>]) -> Result<u64, String> {
        let mut first = None;
        for (file, content) in self.files.iter().zip(contents) {
            let seen = number(file, content)?;
            if *first.get_or_insert(seen) != seen {
                return Err(format!("{file} is of update {seen}, {} of another", self.files[0]));
            }
        }
        first.ok_or_else(|| "there are no files".to_owned())
    }
}

fn read_at(dir: &File, name: &str) -> io::Result<Vec<u8>> {
    let name = CString::new(Path::new(name).as_os_str().as_encoded_bytes()).map_err(io::Error::other)?;
    // SAFETY: both the descriptor and the string live over the call.
    let fd = unsafe { libc::openat(dir.as_raw_fd(), name.as_ptr(), libc::O_RDONLY) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was just opened and nobody else has it.
    let mut file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    let mut content = Vec::new();
    file.read_to_end(&mut content)?;
    Ok(content)
}

/// The number that every line of a file has.
fn number(file: &str, content: &[u8]) -> Result<u64, String> {
    let text = std::str::from_utf8(content).map_err(|error| format!("{file}: {error}"))?;
    let mut lines = text.lines();
    let first = lines.next().ok_or_else(|| format!("{file} is empty"))?;
    match lines.find(|line| *line != first) {
        Some(other) => Err(format!("{file} has {first} and {other}")),
        None => first.parse().map_err(|error| format!("{file}: {first}: {error}")),
    }
}
