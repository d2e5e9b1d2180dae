//! The host module `wasilet`, second part: users, file modes and what else POSIX has and preview 1 left out.
//!
//! ```text
//! open(fd, path, path_len, flags, mode, fd_out)        mkdir(fd, path, path_len, mode)
//! stat(fd, path, path_len, flags, out)                 access(fd, path, path_len, mode)
//! chmod(fd, path, path_len, mode)                      chown(fd, path, path_len, flags, uid, gid)
//! statfs(fd, path, path_len, out)
//! umask(mask) -> old mask      getuid() -> uid      getgid() -> gid      getgroups(list, max, count_out)
//! gethostname(buffer, size, length_out)                getcwd(buffer, size, length_out)
//! dup(fd, fd_out)              pidfd_open(pid, fd_out)                   winsize(fd, rows_out, columns_out)
//! ```
//!
//! `fd` is a directory that `path` is looked up from; an empty path is the open file itself. Flag 1 of `stat` and `chown`
//! follows a link at the end; a uid or gid of 2^32-1 is kept. Flags of `open`, from bit 0: read, write, append, create,
//! exclusive, truncate, directory, no-follow, sync, non-blocking. All but the four that give a value return preview 1's errno; numbers are
//! little-endian u32.
//!
//! `stat` writes 96 bytes: preview 1's `filestat`, then mode with the kind of file as `st_mode` u64 at 64, uid u32, gid u32,
//! device number u64, blocks of 512 bytes u64. `statfs` writes ten u64: type (`f_type`), block size, blocks, free, available,
//! nodes, free nodes, flags (1 read-only), longest name, fragment size. The descriptor of `pidfd_open` is at its end, and
//! readable, once the process has ended.
//!
//! Only translates: who may do what is decided in `vfs`.

use wasmtime::{Caller, Linker};

use super::process::{bytes, code, memory, put, text};
use super::{Result, convert, description_of, path};
use crate::errno::Errno;
use crate::runtime::process::{Access, DescriptionKind, FileDescription, Pid, ProcessEnd, StatusFlags};
use crate::runtime::store::Guest;
use crate::vfs::{
    AccessMode, Credentials, Dir, FileType, Follow, Metadata, NAME_MAX, OpenFlags, OpenOptions, Opened, StatFs,
    Timestamp,
};

const MODULE: &str = "wasilet";
const FOLLOW: u32 = 1;
/// A user or group that `chown` keeps.
const KEEP: u32 = u32::MAX;
const READ_ONLY: u64 = 1;
const STAT_SIZE: u32 = 96;
const STATFS_SIZE: u32 = 80;

/// Defines the second part of the module.
pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    add_files(linker)?;
    linker.func_wrap(MODULE, "umask", |caller: Caller<'_, Guest>, mask: u32| caller.data().process.set_umask(mask))?;
    linker.func_wrap(MODULE, "getuid", |caller: Caller<'_, Guest>| caller.data().process.credentials().uid)?;
    linker.func_wrap(MODULE, "getgid", |caller: Caller<'_, Guest>| caller.data().process.credentials().gid)?;
    linker.func_wrap(MODULE, "getgroups", |mut caller: Caller<'_, Guest>, list: u32, max: u32, count: u32| {
        let groups = caller.data().process.credentials().groups.clone();
        code(memory(&mut caller).and_then(|memory| put_groups(memory, &groups, (list, max), count)))
    })?;
    linker.func_wrap(MODULE, "gethostname", |mut caller: Caller<'_, Guest>, buffer: u32, size: u32, length: u32| {
        let process = caller.data().process.clone();
        let name = process.container().hostname();
        code(memory(&mut caller).and_then(|memory| put_text(memory, name, (buffer, size), length)))
    })?;
    linker.func_wrap(MODULE, "getcwd", |mut caller: Caller<'_, Guest>, buffer: u32, size: u32, length: u32| {
        let process = caller.data().process.clone();
        code(memory(&mut caller).and_then(|memory| put_text(memory, process.cwd(), (buffer, size), length)))
    })?;
    linker.func_wrap(MODULE, "dup", |mut caller: Caller<'_, Guest>, fd: u32, out: u32| {
        code(description_of(&caller, fd).and_then(|description| insert(&mut caller, description, out)))
    })?;
    linker.func_wrap(MODULE, "pidfd_open", |mut caller: Caller<'_, Guest>, pid: u32, out: u32| {
        code(pidfd(&mut caller, pid, out))
    })?;
    linker.func_wrap(MODULE, "winsize", |mut caller: Caller<'_, Guest>, fd: u32, rows: u32, columns: u32| {
        code(window_size(&mut caller, fd, (rows, columns)))
    })?;
    Ok(())
}

/// The calls that reach files, and so may wait.
fn add_files(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    type Four = (u32, u32, u32, u32);
    type Five = (u32, u32, u32, u32, u32);
    type Six = (u32, u32, u32, u32, u32, u32);
    linker.func_wrap_async(MODULE, "open", |mut caller: Caller<'_, Guest>, args: Six| {
        let (fd, path, length, flags, mode, out) = args;
        Box::new(async move { code(open(&mut caller, At { fd, path, length }, (flags, mode), out).await) })
    })?;
    linker.func_wrap_async(MODULE, "mkdir", |mut caller: Caller<'_, Guest>, (fd, path, length, mode): Four| {
        Box::new(async move { code(mkdir(&mut caller, At { fd, path, length }, mode).await) })
    })?;
    linker.func_wrap_async(MODULE, "stat", |mut caller: Caller<'_, Guest>, (fd, path, length, flags, out): Five| {
        Box::new(async move { code(stat(&mut caller, At { fd, path, length }, flags, out).await) })
    })?;
    linker.func_wrap_async(MODULE, "access", |mut caller: Caller<'_, Guest>, (fd, path, length, mode): Four| {
        Box::new(async move { code(access(&mut caller, At { fd, path, length }, mode).await) })
    })?;
    linker.func_wrap_async(MODULE, "chmod", |mut caller: Caller<'_, Guest>, (fd, path, length, mode): Four| {
        Box::new(async move { code(chmod(&mut caller, At { fd, path, length }, mode).await) })
    })?;
    linker.func_wrap_async(MODULE, "chown", |mut caller: Caller<'_, Guest>, args: Six| {
        let (fd, path, length, flags, uid, gid) = args;
        Box::new(async move { code(chown(&mut caller, At { fd, path, length }, flags, (uid, gid)).await) })
    })?;
    linker.func_wrap_async(MODULE, "statfs", |mut caller: Caller<'_, Guest>, (fd, path, length, out): Four| {
        Box::new(async move { code(statfs(&mut caller, At { fd, path, length }, out).await) })
    })?;
    Ok(())
}

/// A path as the guest gives it.
#[derive(Clone, Copy)]
struct At {
    fd: u32,
    path: u32,
    length: u32,
}

impl At {
    /// The path, `None` for the open file itself.
    fn path(self, memory: &[u8]) -> Result<Option<String>> {
        if self.length == 0 { Ok(None) } else { text(memory, self.path, self.length).map(Some) }
    }
}

fn follow(flags: u32) -> Result<Follow> {
    match flags {
        0 => Ok(Follow::No),
        FOLLOW => Ok(Follow::Yes),
        _ => Err(Errno::Inval),
    }
}

fn put_bytes(memory: &mut [u8], at: u32, value: &[u8]) -> Result<()> {
    let place = memory.get_mut(at as usize..).and_then(|rest| rest.get_mut(..value.len())).ok_or(Errno::Fault)?;
    place.copy_from_slice(value);
    Ok(())
}

/// As many groups as there is room for, and how many there are.
fn put_groups(memory: &mut [u8], groups: &[u32], (list, max): (u32, u32), count: u32) -> Result<()> {
    let all: Vec<u8> = groups.iter().take(max as usize).flat_map(|group| group.to_le_bytes()).collect();
    put_bytes(memory, list, &all)?;
    put(memory, count, groups.len() as u32)
}

fn put_text(memory: &mut [u8], text: &str, (buffer, size): (u32, u32), length: u32) -> Result<()> {
    if text.len() > size as usize {
        return Err(Errno::Range);
    }
    put_bytes(memory, buffer, text.as_bytes())?;
    put(memory, length, text.len() as u32)
}

/// Gives `description` a number.
fn insert(caller: &mut Caller<'_, Guest>, description: std::sync::Arc<FileDescription>, out: u32) -> Result<()> {
    bytes(memory(caller)?, out, 4)?;
    let fd = caller.data().process.fds().insert(description)?;
    put(memory(caller)?, out, fd)
}

fn pidfd(caller: &mut Caller<'_, Guest>, pid: Pid, out: u32) -> Result<()> {
    let container = caller.data().process.container().clone();
    let kind = DescriptionKind::ProcessEnd(ProcessEnd::new(container, pid)?);
    insert(caller, FileDescription::new(kind, Access::READ, StatusFlags::empty()), out)
}

fn window_size(caller: &mut Caller<'_, Guest>, fd: u32, (rows, columns): (u32, u32)) -> Result<()> {
    let size = description_of(caller, fd)?.terminal().ok_or(Errno::NoTty)?.size();
    let memory = memory(caller)?;
    put(memory, rows, size.map_or(0, |size| size.rows.into()))?;
    put(memory, columns, size.map_or(0, |size| size.columns.into()))
}

/// The flags of `open`, in bits, to what they ask for.
fn open_options(flags: u32, mode: u32) -> Result<(OpenOptions, StatusFlags)> {
    const NO_FOLLOW: u32 = 1 << 7;
    const SYNC: u32 = 1 << 8;
    const NONBLOCK: u32 = 1 << 9;
    let rest = flags & !(NO_FOLLOW | SYNC | NONBLOCK);
    let flag = |bit, status| if flags & bit == 0 { StatusFlags::empty() } else { status };
    let open = u16::try_from(rest).ok().and_then(OpenFlags::from_bits).ok_or(Errno::Inval)?;
    let append = if open.contains(OpenFlags::APPEND) { StatusFlags::APPEND } else { StatusFlags::empty() };
    let status = append | flag(SYNC, StatusFlags::SYNC) | flag(NONBLOCK, StatusFlags::NONBLOCK);
    let follow = if flags & NO_FOLLOW == 0 { Follow::Yes } else { Follow::No };
    Ok((OpenOptions { flags: open, follow, mode: mode & 0o7777 }, status))
}

async fn open(caller: &mut Caller<'_, Guest>, at: At, (flags, mode): (u32, u32), out: u32) -> Result<()> {
    let directory = description_of(caller, at.fd)?;
    let process = caller.data().process.clone();
    let (options, status) = open_options(flags, mode)?;
    let path = {
        let memory = memory(caller)?;
        bytes(memory, out, 4)?;
        at.path(memory)?.ok_or(Errno::NoEnt)?
    };
    let fd = path::open_as(&process, &directory, &path, options, status).await?;
    put(memory(caller)?, out, fd)
}

async fn mkdir(caller: &mut Caller<'_, Guest>, at: At, mode: u32) -> Result<()> {
    let directory = description_of(caller, at.fd)?;
    let process = caller.data().process.clone();
    let path = at.path(memory(caller)?)?.ok_or(Errno::NoEnt)?;
    process.namespace().mkdir(&process.creator(), directory.as_dir()?, &path, mode & 0o7777).await
}

async fn stat(caller: &mut Caller<'_, Guest>, at: At, flags: u32, out: u32) -> Result<()> {
    let description = description_of(caller, at.fd)?;
    let process = caller.data().process.clone();
    let path = {
        let memory = memory(caller)?;
        bytes(memory, out, STAT_SIZE)?;
        at.path(memory)?
    };
    let metadata = match path {
        Some(path) => {
            process.namespace().stat(process.credentials(), description.as_dir()?, &path, follow(flags)?).await?
        }
        None => match description.kind() {
            DescriptionKind::File(open) => open.file.stat().await?,
            DescriptionKind::Directory(open) => open.dir.stat().await?,
            _ => of_stream(&description, process.credentials()),
        },
    };
    put_bytes(memory(caller)?, out, &stat_record(&metadata))
}

/// What `fstat` tells of what has no name.
fn of_stream(description: &FileDescription, owner: &Credentials) -> Metadata {
    let kind = description.file_type().unwrap_or(FileType::Regular);
    let mode = match kind {
        FileType::Socket => 0o777,
        FileType::CharDevice => 0o620,
        _ => 0o600,
    };
    let zero = Timestamp::default();
    Metadata {
        dev: 0,
        ino: 0,
        kind,
        mode,
        uid: owner.uid,
        gid: owner.gid,
        nlink: 1,
        size: 0,
        rdev: 0,
        blocks: 0,
        atime: zero,
        mtime: zero,
        ctime: zero,
    }
}

/// `S_IFMT`'s bits.
fn kind_bits(kind: FileType) -> u32 {
    match kind {
        FileType::Fifo => 0o010_000,
        FileType::CharDevice => 0o020_000,
        FileType::Directory => 0o040_000,
        FileType::BlockDevice => 0o060_000,
        FileType::Regular => 0o100_000,
        FileType::Symlink => 0o120_000,
        FileType::Socket => 0o140_000,
    }
}

fn stat_record(metadata: &Metadata) -> [u8; STAT_SIZE as usize] {
    let base = convert::filestat(metadata);
    let mut record = [0; STAT_SIZE as usize];
    let mut put = |at: usize, value: u64| record[at..at + 8].copy_from_slice(&value.to_le_bytes());
    put(0, base.dev);
    put(8, base.ino);
    put(16, u8::from(base.filetype).into());
    put(24, base.nlink);
    put(32, base.size);
    put(40, base.atim);
    put(48, base.mtim);
    put(56, base.ctim);
    put(64, u64::from(kind_bits(metadata.kind) | metadata.mode & 0o7777));
    put(72, u64::from(metadata.uid) | u64::from(metadata.gid) << 32);
    put(80, metadata.rdev);
    put(88, metadata.blocks);
    record
}

async fn access(caller: &mut Caller<'_, Guest>, at: At, mode: u32) -> Result<()> {
    let description = description_of(caller, at.fd)?;
    let process = caller.data().process.clone();
    let mode = u8::try_from(mode).ok().and_then(AccessMode::from_bits).ok_or(Errno::Inval)?;
    let path = at.path(memory(caller)?)?.ok_or(Errno::NoEnt)?;
    process.namespace().access(process.credentials(), description.as_dir()?, &path, mode).await
}

async fn chmod(caller: &mut Caller<'_, Guest>, at: At, mode: u32) -> Result<()> {
    let description = description_of(caller, at.fd)?;
    let process = caller.data().process.clone();
    let (credentials, mode) = (process.credentials(), mode & 0o7777);
    match (at.path(memory(caller)?)?, description.kind()) {
        (Some(path), _) => process.namespace().chmod(credentials, description.as_dir()?, &path, mode).await,
        (None, DescriptionKind::File(open)) => open.file.chmod(credentials, mode).await,
        (None, DescriptionKind::Directory(open)) => open.dir.chmod(credentials, mode).await,
        (None, _) => Err(Errno::Inval),
    }
}

async fn chown(caller: &mut Caller<'_, Guest>, at: At, flags: u32, (uid, gid): (u32, u32)) -> Result<()> {
    let description = description_of(caller, at.fd)?;
    let process = caller.data().process.clone();
    let credentials = process.credentials();
    let kept = |id: u32| (id != KEEP).then_some(id);
    let (uid, gid) = (kept(uid), kept(gid));
    match (at.path(memory(caller)?)?, description.kind()) {
        (Some(path), _) => {
            let directory = description.as_dir()?;
            process.namespace().chown(credentials, directory, &path, follow(flags)?, (uid, gid)).await
        }
        (None, DescriptionKind::File(open)) => open.file.chown(credentials, uid, gid).await,
        (None, DescriptionKind::Directory(open)) => open.dir.chown(credentials, uid, gid).await,
        (None, _) => Err(Errno::Inval),
    }
}

async fn statfs(caller: &mut Caller<'_, Guest>, at: At, out: u32) -> Result<()> {
    let description = description_of(caller, at.fd)?;
    let process = caller.data().process.clone();
    let path = {
        let memory = memory(caller)?;
        bytes(memory, out, STATFS_SIZE)?;
        at.path(memory)?
    };
    let namespace = process.namespace();
    let facts = match (path, description.kind()) {
        (Some(path), _) => {
            let directory = directory_of(&process, description.as_dir()?, &path).await?;
            namespace.statfs(&directory).await?
        }
        (None, DescriptionKind::Directory(open)) => namespace.statfs(&open.dir).await?,
        // An open file does not know its mount; the container's root is where most are.
        (None, _) => namespace.statfs(&namespace.root()).await?,
    };
    put_bytes(memory(caller)?, out, &statfs_record(&facts))
}

/// The directory at `path`, or the one that a file there is in.
async fn directory_of(process: &crate::runtime::process::Process, at: &Dir, path: &str) -> Result<Dir> {
    let (namespace, credentials) = (process.namespace(), process.credentials());
    let options = |flags| OpenOptions::new(flags);
    match namespace.open(credentials, at, path, options(OpenFlags::empty())).await? {
        Opened::Dir(dir) => Ok(dir),
        Opened::File(_) | Opened::Device(_) => {
            let parent = match path.trim_end_matches('/').rsplit_once('/') {
                Some(("", _)) => "/",
                Some((parent, _)) => parent,
                None => ".",
            };
            match namespace.open(credentials, at, parent, options(OpenFlags::DIRECTORY)).await? {
                Opened::Dir(dir) => Ok(dir),
                Opened::File(_) | Opened::Device(_) => Err(Errno::NotDir),
            }
        }
    }
}

fn statfs_record(facts: &StatFs) -> [u8; STATFS_SIZE as usize] {
    let read_only = match facts.access {
        crate::pod::run::Access::ReadOnly => READ_ONLY,
        crate::pod::run::Access::ReadWrite => 0,
    };
    let values = [
        u64::from(facts.fs_type),
        facts.block_size,
        facts.blocks,
        facts.blocks_free,
        facts.blocks_available,
        facts.files,
        facts.files_free,
        read_only,
        NAME_MAX as u64,
        facts.block_size,
    ];
    let mut record = [0; STATFS_SIZE as usize];
    for (place, value) in record.chunks_exact_mut(8).zip(values) {
        place.copy_from_slice(&value.to_le_bytes());
    }
    record
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(record: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(record[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn a_stat_record_has_the_kind_in_its_mode_and_the_owner_behind() {
        let at = |seconds| Timestamp { seconds, nanoseconds: 5 };
        let metadata = Metadata {
            dev: 1,
            ino: 2,
            kind: FileType::Directory,
            mode: 0o1777,
            uid: 3,
            gid: 4,
            nlink: 5,
            size: 6,
            rdev: 7,
            blocks: 8,
            atime: at(1),
            mtime: at(2),
            ctime: at(3),
        };
        let record = stat_record(&metadata);
        for (case, at, expected) in [
            ("dev", 0, 1),
            ("ino", 8, 2),
            ("preview 1's kind", 16, 3),
            ("nlink", 24, 5),
            ("size", 32, 6),
            ("mtime", 48, 2_000_000_005),
            ("mode", 64, 0o041_777),
            ("uid and gid", 72, 3 | 4 << 32),
            ("rdev", 80, 7),
            ("blocks", 88, 8),
        ] {
            assert_eq!(number(&record, at), expected, "{case}");
        }
    }

    #[test]
    fn open_flags_are_bits_and_unknown_ones_are_refused() {
        let (options, status) = open_options(0b11_0000_1111, 0o17_7755).unwrap();
        let expected = OpenFlags::READ | OpenFlags::WRITE | OpenFlags::APPEND | OpenFlags::CREATE;
        assert_eq!((options.flags, options.follow, options.mode), (expected, Follow::Yes, 0o7755));
        assert_eq!(status, StatusFlags::APPEND | StatusFlags::SYNC | StatusFlags::NONBLOCK);
        assert_eq!(open_options(1 << 7, 0).unwrap().0.follow, Follow::No);
        for hostile in [1 << 10, 1 << 16, u32::MAX] {
            assert_eq!(open_options(hostile, 0).err(), Some(Errno::Inval), "{hostile:#x}");
        }
    }

    #[test]
    fn what_does_not_fit_the_guests_memory_is_refused() {
        let mut memory = vec![0; 64];
        assert_eq!(put_text(&mut memory, "node", (0, 3), 32), Err(Errno::Range));
        assert_eq!(put_text(&mut memory, "node", (62, 4), 32), Err(Errno::Fault));
        assert_eq!(put_text(&mut memory, "node", (0, 4), 62), Err(Errno::Fault));
        assert_eq!(put_text(&mut memory, "node", (u32::MAX, 4), 32), Err(Errno::Fault));
        assert_eq!(put_text(&mut memory, "node", (0, 4), 32), Ok(()));
        assert_eq!((&memory[..4], memory[32]), (&b"node"[..], 4));
        assert_eq!(put_groups(&mut memory, &[7, 8], (0, 1), 32), Ok(()));
        assert_eq!((memory[0], memory[4], memory[32]), (7, b'\0', 2), "one fits, two there are");
        assert_eq!(put_groups(&mut memory, &[7, 8], (60, 2), 32), Err(Errno::Fault));
        assert_eq!(At { fd: 3, path: 60, length: 5 }.path(&memory), Err(Errno::Fault));
        assert_eq!(At { fd: 3, path: u32::MAX, length: 0 }.path(&memory), Ok(None));
        assert_eq!(At { fd: 3, path: 0, length: 4096 }.path(&memory), Err(Errno::NameTooLong));
        assert_eq!(follow(2), Err(Errno::Inval));
    }
}
