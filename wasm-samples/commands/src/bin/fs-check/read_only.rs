//! Checks of a read-only mount: everything can be looked at, nothing changed, and the word for it is EROFS.

use std::fs::{self, File, FileTimes, OpenOptions};
use std::path::Path;
use std::time::SystemTime;

use guest_support::check::{Checks, Step, fails_with};

use crate::sys::{self, errno};

pub fn run(checks: &mut Checks, dir: &Path) {
    let first = fs::read_dir(dir).ok().and_then(|entries| {
        entries.flatten().map(|entry| entry.path()).find(|path| sys::stat(path).is_ok_and(|stat| stat.is_file()))
    });
    let Some(file) = first else {
        checks.check("read-only: there is a file to look at", || Err(format!("none in {}", dir.display())));
        return;
    };
    checks.check("read-only: reading works", || {
        fs::read(&file).step("read")?;
        sys::open(dir, libc::O_RDONLY | libc::O_DIRECTORY).step("open directory").map(drop)
    });
    checks.check("read-only: no file can be made or opened for writing", || {
        fails_with("create", File::create(dir.join("new")), errno::EROFS)?;
        fails_with("open for writing", sys::open(&file, libc::O_WRONLY), errno::EROFS)?;
        fails_with("open for both", sys::open(&file, libc::O_RDWR), errno::EROFS)?;
        fails_with("append", OpenOptions::new().append(true).open(&file), errno::EROFS)?;
        fails_with("truncate", sys::open(&file, libc::O_WRONLY | libc::O_TRUNC), errno::EROFS)
    });
    checks.check("read-only: what is there is EEXIST before it is EROFS", || {
        fails_with("mkdir", fs::create_dir(&file), errno::EEXIST)?;
        sys::open(&file, libc::O_RDONLY | libc::O_CREAT).step("O_CREAT for reading only").map(drop)
    });
    checks.check("read-only: no name can be made, changed or removed", || {
        let new = dir.join("new");
        fails_with("mkdir", fs::create_dir(&new), errno::EROFS)?;
        fails_with("unlink", fs::remove_file(&file), errno::EROFS)?;
        fails_with("rename", fs::rename(&file, &new), errno::EROFS)?;
        fails_with("symlink", sys::symlink("x", &new), errno::EROFS)?;
        fails_with("link", fs::hard_link(&file, &new), errno::EROFS)
    });
    checks.check("read-only: no time can be set", || {
        let handle = File::open(&file).step("open")?;
        fails_with("set_times", handle.set_times(FileTimes::new().set_modified(SystemTime::now())), errno::EROFS)
    });
}
