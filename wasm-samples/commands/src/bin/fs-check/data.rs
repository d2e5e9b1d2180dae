//! Checks of a file's bytes: reads and writes at positions, seeks, lengths, syncs, and files without a name.

use std::fs::{self, File, OpenOptions};
use std::io::{IoSlice, Read, Seek, SeekFrom, Write};
use std::path::Path;

use guest_support::check::{Checks, Step, ensure, equal, fails_with};

use crate::open::contents;
use crate::sys::{self, errno};

const MIB: usize = 1024 * 1024;

pub fn run(checks: &mut Checks, dir: &Path) {
    let file = dir.join("file");
    let open = || OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&file).step("open");
    checks.check("four MiB written are the four MiB read", || {
        let pattern: Vec<u8> = (0..4 * MIB).map(|at| (at % 251) as u8).collect();
        fs::write(&file, &pattern).step("write")?;
        let read = fs::read(&file).step("read")?;
        ensure(read == pattern, || format!("{} bytes came back, not all the same", read.len()))
    });
    checks.check("vectored writes arrive in order", || {
        let mut handle = open()?;
        let count = handle.write_vectored(&[IoSlice::new(b"one"), IoSlice::new(b""), IoSlice::new(b"two")]);
        // A write may end early, and on 0.2 libc passes on the first part alone.
        let count = count.step("write")?;
        ensure((3..=6).contains(&count), || format!("{count} of 6 bytes written"))?;
        handle.write_all(&b"onetwo"[count..]).step("the rest")?;
        contents(&file, "onetwo")
    });
    checks.check("pread and pwrite leave the position alone", || {
        let mut handle = open()?;
        handle.write_all(b"0123456789").step("write")?;
        equal("pwrite", sys::pwrite(&handle, b"XY", 2).step("pwrite")?, 2)?;
        let mut buffer = [0; 4];
        equal("pread", sys::pread(&handle, &mut buffer, 1).step("pread")?, 4)?;
        equal("the bytes", &buffer, b"1XY4")?;
        equal("the position", handle.stream_position().step("tell")?, 10)
    });
    checks.check("reading at and behind the end gives nothing", || {
        let handle = File::open(&file).step("open")?;
        equal("at the end", sys::pread(&handle, &mut [0; 4], 10).step("pread")?, 0)?;
        equal("far behind it", sys::pread(&handle, &mut [0; 4], 1 << 40).step("pread")?, 0)?;
        equal("across it", sys::pread(&handle, &mut [0; 4], 8).step("pread")?, 2)
    });
    checks.check("seek goes by start, position and end, and refuses to go below 0", || {
        let mut handle = File::open(&file).step("open")?;
        equal("from the end", handle.seek(SeekFrom::End(-3)).step("seek")?, 7)?;
        equal("from here", handle.seek(SeekFrom::Current(1)).step("seek")?, 8)?;
        equal("behind the end", handle.seek(SeekFrom::Start(100)).step("seek")?, 100)?;
        fails_with("below 0", sys::lseek(&handle, -1, libc::SEEK_SET), errno::EINVAL)?;
        equal("the position after the refusal", handle.stream_position().step("tell")?, 100)
    });
    checks.check("a write behind the end leaves zeros in between", || {
        let mut handle = open()?;
        handle.seek(SeekFrom::Start(70_000)).step("seek")?;
        handle.write_all(b"end").step("write")?;
        let read = fs::read(&file).step("read")?;
        equal("the length", read.len(), 70_003)?;
        ensure(read[..70_000].iter().all(|&byte| byte == 0), || "the hole is not all zeros".into())?;
        equal("its end", &read[70_000..], b"end")
    });
    lengths(checks, dir);
    nameless(checks, dir);
}

fn lengths(checks: &mut Checks, dir: &Path) {
    let file = dir.join("length");
    checks.check("truncate shrinks and grows, new bytes are zero", || {
        fs::write(&file, "abcdef").step("write")?;
        let handle = OpenOptions::new().write(true).open(&file).step("open")?;
        handle.set_len(2).step("shrink")?;
        contents(&file, "ab")?;
        handle.set_len(4).step("grow")?;
        equal("the bytes", fs::read(&file).step("read")?.as_slice(), b"ab\0\0")?;
        equal("fstat's size", sys::fstat(&handle).step("fstat")?.size, 4)
    });
    checks.check("posix_fallocate grows and never shrinks", || {
        let handle = OpenOptions::new().read(true).write(true).open(&file).step("open")?;
        match sys::allocate(&handle, 8192) {
            Ok(()) => {
                sys::allocate(&handle, 10).step("allocate less")?;
                equal("the size", sys::fstat(&handle).step("fstat")?.size, 8192)
            }
            // WASI 0.2 has no such call, and libc says so.
            Err(error) if [libc::ENOTSUP, libc::ENOSYS].contains(&error.raw_os_error().unwrap_or(0)) => Ok(()),
            Err(error) => Err(format!("posix_fallocate: {error}")),
        }
    });
    checks.check("sync_all and sync_data succeed, on files and directories", || {
        let mut handle = OpenOptions::new().write(true).open(&file).step("open")?;
        handle.write_all(b"synced").step("write")?;
        handle.sync_data().step("sync_data")?;
        handle.sync_all().step("sync_all")?;
        let directory = sys::open(dir, libc::O_RDONLY | libc::O_DIRECTORY).step("open directory")?;
        directory.sync_all().step("sync_all of a directory")
    });
    checks.check("one file, two descriptors: each sees what the other writes", || {
        let mut writer = File::create(&file).step("create")?;
        let mut reader = File::open(&file).step("open")?;
        writer.write_all(b"first").step("write")?;
        let mut seen = String::new();
        reader.read_to_string(&mut seen).step("read")?;
        writer.write_all(b" second").step("write")?;
        reader.read_to_string(&mut seen).step("read on")?;
        equal("what the reader saw", seen.as_str(), "first second")
    });
    checks.check("copy copies", || {
        let copied = dir.join("copied");
        equal("bytes", fs::copy(&file, &copied).step("copy")?, 12)?;
        contents(&copied, "first second")
    });
}

fn nameless(checks: &mut Checks, dir: &Path) {
    let file = dir.join("nameless");
    checks.check("an unlinked file lives on while it is open", || {
        fs::write(&file, "alive").step("write")?;
        let mut handle = OpenOptions::new().read(true).write(true).open(&file).step("open")?;
        fs::remove_file(&file).step("unlink")?;
        fails_with("its name", sys::stat(&file), errno::ENOENT)?;
        handle.seek(SeekFrom::End(0)).step("seek")?;
        handle.write_all(b" still").step("write")?;
        handle.rewind().step("rewind")?;
        let mut text = String::new();
        handle.read_to_string(&mut text).step("read")?;
        equal("its content", text.as_str(), "alive still")?;
        equal("its link count", sys::fstat(&handle).step("fstat")?.links, 0)
    });
    checks.check("a new file under the old name is another file", || {
        fs::write(&file, "old").step("write")?;
        let mut old = File::open(&file).step("open")?;
        fs::remove_file(&file).step("unlink")?;
        fs::write(&file, "new").step("write anew")?;
        let mut text = String::new();
        old.read_to_string(&mut text).step("read")?;
        equal("the old descriptor's content", text.as_str(), "old")?;
        let (before, after) = (sys::fstat(&old).step("fstat")?, sys::stat(&file).step("stat")?);
        ensure(before.inode != after.inode, || format!("both have inode {}", before.inode))
    });
    checks.check("unlink refuses a directory and what is missing", || {
        let directory = dir.join("directory");
        fs::create_dir(&directory).step("mkdir")?;
        match fs::remove_file(&directory) {
            // EISDIR is Linux's word, EPERM is POSIX's.
            Err(error) if [libc::EISDIR, libc::EPERM].contains(&error.raw_os_error().unwrap_or(0)) => {}
            other => return Err(format!("unlink of a directory gave {other:?}")),
        }
        fails_with("unlink of nothing", fs::remove_file(dir.join("missing")), errno::ENOENT)
    });
}
