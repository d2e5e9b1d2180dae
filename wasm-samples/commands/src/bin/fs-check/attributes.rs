//! Checks of what stat tells: kinds, sizes, inodes, link counts, times.

use std::fs::{self, File, FileTimes, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use guest_support::check::{Checks, Outcome, Step, ensure, equal};

use crate::sys;

pub fn run(checks: &mut Checks, dir: &Path) {
    let file = dir.join("file");
    checks.check("stat, lstat and fstat agree on a file", || {
        fs::write(&file, "twelve bytes").step("write")?;
        let handle = File::open(&file).step("open")?;
        let stat = sys::stat(&file).step("stat")?;
        equal("lstat", sys::lstat(&file).step("lstat")?, stat)?;
        equal("fstat", sys::fstat(&handle).step("fstat")?, stat)?;
        equal("(is_file, size, links)", (stat.is_file(), stat.size, stat.links), (true, 12, 1))
    });
    checks.check("a directory is one, by path and by descriptor", || {
        let handle = sys::open(dir, libc::O_RDONLY | libc::O_DIRECTORY).step("open")?;
        let (by_path, opened) = (sys::stat(dir).step("stat")?, sys::fstat(&handle).step("fstat")?);
        equal("is_dir", (by_path.is_dir(), opened.is_dir()), (true, true))?;
        equal("inode", opened.inode, by_path.inode)
    });
    inodes(checks, dir, &file);
    times(checks, dir, &file);
}

fn inodes(checks: &mut Checks, dir: &Path, file: &Path) {
    let inode = |path: &Path| sys::stat(path).step("stat").map(|stat| (stat.device, stat.inode));
    checks.check("an inode number stays: over writes, renames, and a new look", || {
        let before = inode(file)?;
        fs::write(file, "something else").step("write")?;
        equal("after a write", inode(file)?, before)?;
        let moved = dir.join("moved");
        fs::rename(file, &moved).step("rename")?;
        equal("after a rename", inode(&moved)?, before)?;
        fs::rename(&moved, file).step("rename back")?;
        equal("after both", inode(file)?, before)
    });
    checks.check("no two things share an inode number", || {
        let other = dir.join("other");
        fs::write(&other, "x").step("write")?;
        let all = [inode(dir)?, inode(file)?, inode(&other)?];
        ensure(all[0] != all[1] && all[1] != all[2] && all[0] != all[2], || format!("they are {all:?}"))?;
        ensure(all.iter().all(|&(_, inode)| inode != 0), || "one of them is 0".into())
    });
    checks.check("`.` and `..` are the directories they name", || {
        fs::create_dir(dir.join("sub")).step("mkdir")?;
        equal("sub/..", inode(&dir.join("sub/.."))?, inode(dir)?)?;
        equal("sub/.", inode(&dir.join("sub/."))?, inode(&dir.join("sub"))?)
    });
    checks.check("the root's `..` is the root", || equal("/..", inode(Path::new("/../.."))?, inode(Path::new("/"))?));
}

fn times(checks: &mut Checks, dir: &Path, file: &Path) {
    let modified = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).step("mtime");
    checks.check("a new file's times are now", || {
        let fresh = dir.join("fresh");
        let before = SystemTime::now();
        fs::write(&fresh, "x").step("write")?;
        let (time, after) = (modified(&fresh)?, SystemTime::now());
        // A filesystem may keep its time in steps of its kernel's tick.
        let slack = Duration::from_millis(50);
        ensure(time >= before - slack && time <= after + slack, || format!("{before:?} <= {time:?} <= {after:?} fails"))
    });
    checks.check("a write moves mtime, a read does not", || {
        let before = modified(file)?;
        thread::sleep(Duration::from_millis(60));
        fs::read(file).step("read")?;
        equal("after a read", modified(file)?, before)?;
        OpenOptions::new().append(true).open(file).and_then(|mut file| file.write_all(b"+")).step("write")?;
        let after = modified(file)?;
        ensure(after > before, || format!("{after:?} is not after {before:?}"))
    });
    checks.check("changes in a directory move its mtime", || {
        let before = modified(dir)?;
        thread::sleep(Duration::from_millis(60));
        fs::write(dir.join("one-more"), "").step("write")?;
        let after = modified(dir)?;
        ensure(after > before, || format!("{after:?} is not after {before:?}"))
    });
    checks.check("set times are kept to the nanosecond", || {
        let (accessed, modified) = (at(1_000_000_000, 123_456_789), at(2_000_000_000, 987_654_321));
        let handle = OpenOptions::new().write(true).open(file).step("open")?;
        handle.set_times(FileTimes::new().set_accessed(accessed).set_modified(modified)).step("set both")?;
        times_are(file, accessed, modified)?;
        let later = at(3_000_000_000, 1);
        handle.set_times(FileTimes::new().set_modified(later)).step("set one")?;
        times_are(file, accessed, later)
    });
}

fn at(seconds: u64, nanoseconds: u32) -> SystemTime {
    UNIX_EPOCH + Duration::new(seconds, nanoseconds)
}

fn times_are(path: &Path, accessed: SystemTime, modified: SystemTime) -> Outcome {
    let metadata = fs::metadata(path).step("stat")?;
    equal("atime", metadata.accessed().step("atime")?, accessed)?;
    equal("mtime", metadata.modified().step("mtime")?, modified)
}
