//! Checks of open: its flags, and the error each wrong path gets.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;

use guest_support::check::{Checks, Outcome, Step, equal, fails_with};

use crate::sys::{self, errno};

pub fn run(checks: &mut Checks, dir: &Path) {
    let file = dir.join("file");
    checks.check("O_CREAT makes a file, empty and regular", || {
        File::create(&file).step("create")?;
        let stat = sys::stat(&file).step("stat")?;
        equal("(is_file, size)", (stat.is_file(), stat.size), (true, 0))
    });
    checks.check("O_CREAT opens what is already there and keeps it", || {
        fs::write(&file, "kept").step("write")?;
        drop(OpenOptions::new().write(true).create(true).truncate(false).open(&file).step("open")?);
        contents(&file, "kept")
    });
    checks.check("O_EXCL refuses what is already there", || {
        let exclusive = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
        fails_with("O_EXCL on a file", sys::open(&file, exclusive), errno::EEXIST)?;
        fails_with("O_EXCL on a directory", sys::open(dir, exclusive), errno::EEXIST)?;
        sys::open(&dir.join("exclusive"), exclusive).step("O_EXCL on nothing").map(drop)
    });
    checks.check("O_EXCL does not follow a dangling link", || {
        let link = dir.join("dangling-exclusive");
        sys::symlink("nothing", &link).step("symlink")?;
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
        fails_with("O_EXCL on a dangling link", sys::open(&link, flags), errno::EEXIST)
    });
    checks.check("O_TRUNC empties", || {
        drop(sys::open(&file, libc::O_WRONLY | libc::O_TRUNC).step("open")?);
        contents(&file, "")
    });
    checks.check("O_APPEND writes at the end, from two descriptors in turn", || {
        fs::write(&file, "a").step("write")?;
        let append = || OpenOptions::new().append(true).open(&file).step("open");
        let (mut one, mut two) = (append()?, append()?);
        one.write_all(b"b").step("first write")?;
        two.write_all(b"c").step("second write")?;
        one.write_all(b"d").step("third write")?;
        contents(&file, "abcd")
    });
    checks.check("O_RDWR reads what it writes", || {
        let mut both = OpenOptions::new().read(true).write(true).open(&file).step("open")?;
        both.write_all(b"xy").step("write")?;
        let mut rest = String::new();
        both.read_to_string(&mut rest).step("read")?;
        equal("what follows the write", rest.as_str(), "cd")
    });
    checks.check("a descriptor open for one direction refuses the other", || {
        let mut reader = File::open(&file).step("open for reading")?;
        refused_direction("write", reader.write(b"x"))?;
        let mut writer = sys::open(&file, libc::O_WRONLY).step("open for writing")?;
        refused_direction("read", writer.read(&mut [0; 1]))
    });
    wrong_paths(checks, dir, &file);
}

fn wrong_paths(checks: &mut Checks, dir: &Path, file: &Path) {
    let reading = |path: &Path| sys::open(path, libc::O_RDONLY);
    checks.check("what is missing is ENOENT", || {
        fails_with("a missing file", reading(&dir.join("missing")), errno::ENOENT)?;
        fails_with("a missing directory on the way", reading(&dir.join("missing/file")), errno::ENOENT)?;
        let creating = sys::open(&dir.join("missing/new"), libc::O_WRONLY | libc::O_CREAT);
        fails_with("creating in a missing directory", creating, errno::ENOENT)
    });
    checks.check("a file on the way is ENOTDIR", || {
        fails_with("below a file", reading(&file.join("below")), errno::ENOTDIR)?;
        fails_with("a file with a slash behind it", reading(&dir.join("file/")), errno::ENOTDIR)?;
        fails_with("`..` of a file", reading(&file.join("../file")), errno::ENOTDIR)?;
        fails_with("O_DIRECTORY on a file", sys::open(file, libc::O_RDONLY | libc::O_DIRECTORY), errno::ENOTDIR)
    });
    checks.check("a directory open for writing is EISDIR", || {
        fails_with("O_WRONLY", sys::open(dir, libc::O_WRONLY), errno::EISDIR)?;
        fails_with("O_CREAT", sys::open(dir, libc::O_WRONLY | libc::O_CREAT), errno::EISDIR)
    });
    checks.check("a directory opens for reading, and reading it is EISDIR", || {
        let mut directory = sys::open(dir, libc::O_RDONLY | libc::O_DIRECTORY).step("open")?;
        equal("is_dir", sys::fstat(&directory).step("fstat")?.is_dir(), true)?;
        match directory.read(&mut [0; 1]) {
            // Preview 1 and libc of 0.2 may both refuse the descriptor before its kind is looked at.
            Err(error) if [libc::EISDIR, libc::EBADF, libc::EINVAL].contains(&error.raw_os_error().unwrap_or(0)) => {
                Ok(())
            }
            other => Err(format!("read gave {other:?}")),
        }
    });
    checks.check("a name of 255 bytes works, 256 are ENAMETOOLONG", || {
        let longest = dir.join("n".repeat(255));
        fs::write(&longest, "x").step("255 bytes")?;
        fails_with("256 bytes", fs::write(dir.join("n".repeat(256)), "x"), errno::ENAMETOOLONG)
    });
    checks.check("names are bytes: blanks, quotes, UTF-8, a leading dash", || {
        for name in ["a b", "\"quoted\"", "h\u{e9}\u{4e2d}\u{1f980}", "-dash", "...", "back\\slash", "new\nline"] {
            fs::write(dir.join(name), name).step(name)?;
            contents(&dir.join(name), name)?;
        }
        Ok(())
    });
}

/// Linux says EBADF; a host that goes by WASI's rights may say ENOTCAPABLE, and libc makes EIO of any error that a
/// stream of 0.2 reports late.
fn refused_direction(what: &str, result: std::io::Result<usize>) -> Outcome {
    const ENOTCAPABLE: i32 = 76;
    match result {
        Err(error) if [libc::EBADF, libc::EIO, ENOTCAPABLE].contains(&error.raw_os_error().unwrap_or(0)) => Ok(()),
        other => Err(format!("{what} gave {other:?}, expected {}", errno::EBADF.1)),
    }
}

pub fn contents(path: &Path, expected: &str) -> Outcome {
    equal("the content", fs::read_to_string(path).step("read")?.as_str(), expected)
}
