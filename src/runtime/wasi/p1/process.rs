//! The host module `wasilet`: pipes and processes for preview 1 guests.
//!
//! ```text
//! pipe(read_fd_out, write_fd_out) -> errno
//! spawn(path_ptr, path_len, argv_ptr, argv_len, env_ptr, env_len, cwd_ptr, cwd_len, fds_ptr, fds_count, pid_out) -> errno
//! wait(pid, flags, status_out, pid_out) -> errno
//! kill(pid, signal) -> errno
//! getpid() -> pid        getppid() -> pid
//! ```
//!
//! `argv` and `env` are items that each end with NUL; `env_len` 2^32-1 and `cwd_len` 0 inherit. `fds` are pairs
//! (child's number, own number) of u32; of 0, 1 and 2 the child has the parent's where no pair says otherwise, and "/"
//! as 3. `wait` takes a child's pid or 0 for any; flag 1 returns pid 0 instead of waiting; the status is 0-255, with
//! 128+n for signal n, or with flag 2 as Linux packs it (256 times the
//! code, or the signal). Numbers are little-endian u32, errors preview 1's.

use wasmtime::{Caller, Extern, Linker};

use super::{Result, convert, types};
use crate::errno::Errno;
use crate::runtime::container::Launch;
use crate::runtime::process::{
    Access, DescriptionKind, ExitStatus, FdTable, FileDescription, Pid, Process, Signal, StatusFlags, WaitOutcome,
    WaitTarget, pipe,
};
use crate::runtime::scheduler::Credit;
use crate::runtime::store::Guest;
use crate::vfs::PATH_MAX;

const MODULE: &str = "wasilet";
/// Arguments, or variables, of one process: more than Linux programs are given, far less than would hurt.
const MAX_ITEMS: usize = 32 * 1024;
/// Bytes of arguments and environment together, Linux's usual `ARG_MAX`.
const MAX_STRINGS: usize = 2 << 20;
/// Bytes of one of them, Linux's `MAX_ARG_STRLEN`.
const MAX_STRING: usize = 128 * 1024;
/// Descriptors handed to one child.
const MAX_FDS: u32 = 64;
const INHERIT: u32 = u32::MAX;
const NO_HANG: u32 = 1;
const PACKED: u32 = 2;

/// Arguments of `spawn`, in the order of the ABI.
type SpawnArgs = (u32, u32, u32, u32, u32, u32, u32, u32, u32, u32, u32);

/// Defines the module.
pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.func_wrap(MODULE, "getpid", |caller: Caller<'_, Guest>| caller.data().process.pid())?;
    linker.func_wrap(MODULE, "getppid", |caller: Caller<'_, Guest>| caller.data().process.parent())?;
    linker.func_wrap(MODULE, "pipe", |mut caller: Caller<'_, Guest>, read_out: u32, write_out: u32| {
        code(make_pipe(&mut caller, read_out, write_out))
    })?;
    linker.func_wrap_async(MODULE, "kill", |caller: Caller<'_, Guest>, (pid, signal): (u32, u32)| {
        let process = caller.data().process.clone();
        Box::new(async move { code(kill(&process, pid, signal).await) })
    })?;
    linker.func_wrap_async(MODULE, "spawn", |mut caller: Caller<'_, Guest>, args: SpawnArgs| {
        Box::new(async move { code(spawn(&mut caller, args).await) })
    })?;
    linker.func_wrap_async(
        MODULE,
        "wait",
        |mut caller: Caller<'_, Guest>, (pid, flags, status_out, pid_out): (u32, u32, u32, u32)| {
            Box::new(async move { code(wait(&mut caller, pid, flags, (status_out, pid_out)).await) })
        },
    )?;
    Ok(())
}

pub(super) fn code(result: Result<()>) -> u32 {
    let errno = result.map_or_else(convert::errno, |()| types::Errno::Success);
    u32::from(u16::from(errno))
}

/// The guest's memory as bytes.
pub(super) fn memory<'a>(caller: &'a mut Caller<'_, Guest>) -> Result<&'a mut [u8]> {
    match caller.get_export("memory") {
        Some(Extern::Memory(memory)) => Ok(memory.data_mut(caller)),
        _ => Err(Errno::Fault),
    }
}

pub(super) fn bytes(memory: &[u8], start: u32, length: u32) -> Result<&[u8]> {
    let (start, length) = (start as usize, length as usize);
    memory.get(start..).and_then(|rest| rest.get(..length)).ok_or(Errno::Fault)
}

pub(super) fn put(memory: &mut [u8], at: u32, value: u32) -> Result<()> {
    let slot = memory.get_mut(at as usize..).and_then(|rest| rest.get_mut(..4)).ok_or(Errno::Fault)?;
    slot.copy_from_slice(&value.to_le_bytes());
    Ok(())
}

pub(super) fn text(memory: &[u8], start: u32, length: u32) -> Result<String> {
    if length as usize >= PATH_MAX {
        return Err(Errno::NameTooLong);
    }
    let text = std::str::from_utf8(bytes(memory, start, length)?).map_err(|_| Errno::IlSeq)?;
    if text.contains('\0') { Err(Errno::Inval) } else { Ok(text.to_owned()) }
}

/// Items that each end with NUL.
fn strings(memory: &[u8], start: u32, length: u32) -> Result<Vec<String>> {
    let all = bytes(memory, start, length)?;
    if all.len() > MAX_STRINGS {
        return Err(Errno::TooBig);
    }
    let all = std::str::from_utf8(all).map_err(|_| Errno::IlSeq)?;
    match all.strip_suffix('\0') {
        // An item costs the host more than its bytes: a block of nothing but NULs must not become a million.
        Some(items) if items.bytes().filter(|byte| *byte == 0).count() >= MAX_ITEMS => Err(Errno::TooBig),
        Some(items) if items.split('\0').any(|item| item.len() >= MAX_STRING) => Err(Errno::TooBig),
        Some(items) => Ok(items.split('\0').map(str::to_owned).collect()),
        None if all.is_empty() => Ok(Vec::new()),
        None => Err(Errno::Inval),
    }
}

fn make_pipe(caller: &mut Caller<'_, Guest>, read_out: u32, write_out: u32) -> Result<()> {
    let process = caller.data().process.clone();
    bytes(memory(caller)?, read_out, 4)?;
    bytes(memory(caller)?, write_out, 4)?;
    let (reader, writer) = pipe::pipe(Some(process.container().charge().clone()));
    let empty = StatusFlags::empty();
    let fds = process.fds();
    let read_fd = fds.insert(FileDescription::new(DescriptionKind::PipeReader(reader), Access::READ, empty))?;
    let writer = FileDescription::new(DescriptionKind::PipeWriter(writer), Access::WRITE, empty);
    let write_fd = match fds.insert(writer) {
        Ok(fd) => fd,
        Err(errno) => {
            fds.remove(read_fd)?;
            return Err(errno);
        }
    };
    let memory = memory(caller)?;
    put(memory, read_out, read_fd)?;
    put(memory, write_out, write_fd)
}

async fn spawn(caller: &mut Caller<'_, Guest>, args: SpawnArgs) -> Result<()> {
    let (path_ptr, path_len, argv_ptr, argv_len, env_ptr, env_len, cwd_ptr, cwd_len, fds_ptr, fds_count, pid_out) =
        args;
    let process = caller.data().process.clone();
    let (program, argv, env, cwd, pairs) = {
        let memory = memory(caller)?;
        let inherited = env_len == INHERIT;
        if argv_len as usize + if inherited { 0 } else { env_len as usize } > MAX_STRINGS {
            return Err(Errno::TooBig);
        }
        bytes(memory, pid_out, 4)?;
        let path = text(memory, path_ptr, path_len)?;
        let mut argv = strings(memory, argv_ptr, argv_len)?;
        if argv.is_empty() {
            argv.push(path.clone());
        }
        let env = if inherited {
            process.env().to_vec()
        } else {
            strings(memory, env_ptr, env_len)?.iter().map(|item| split_variable(item)).collect()
        };
        let cwd = if cwd_len == 0 { process.cwd().to_owned() } else { text(memory, cwd_ptr, cwd_len)? };
        (path, argv, env, cwd, fd_pairs(memory, fds_ptr, fds_count)?)
    };
    if !cwd.starts_with('/') {
        return Err(Errno::Inval);
    }
    let fds = child_fds(&process, &pairs)?;
    let launch = Launch { program, parent: process.pid(), argv, env, cwd, fds, credit: Credit::Inherit };
    let container = process.container().clone();
    let pid = container.spawn(launch).await?;
    put(memory(caller)?, pid_out, pid)
}

fn split_variable(item: &str) -> (String, String) {
    let (key, value) = item.split_once('=').unwrap_or((item, ""));
    (key.to_owned(), value.to_owned())
}

fn fd_pairs(memory: &[u8], start: u32, count: u32) -> Result<Vec<(u32, u32)>> {
    if count > MAX_FDS {
        return Err(Errno::Inval);
    }
    let all = bytes(memory, start, count * 8)?;
    let number = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    Ok(all.chunks_exact(8).map(|pair| (number(&pair[..4]), number(&pair[4..]))).collect())
}

/// The child's descriptors: the parent's standard streams and "/", overridden by the pairs.
fn child_fds(process: &Process, pairs: &[(u32, u32)]) -> Result<FdTable> {
    let container = process.container();
    let fds = FdTable::new(container.spec().limits.open_files);
    for fd in 0..3 {
        if let Ok(description) = process.fds().get(fd) {
            fds.set(fd, description.for_child())?;
        }
    }
    fds.set(3, container.root_preopen())?;
    for &(child, parent) in pairs {
        fds.set(child, process.fds().get(parent)?.for_child())?;
    }
    Ok(fds)
}

async fn wait(caller: &mut Caller<'_, Guest>, pid: Pid, flags: u32, out: (u32, u32)) -> Result<()> {
    let process = caller.data().process.clone();
    let (status_out, pid_out) = out;
    // Checked before a child is taken: its status must not be lost to a bad pointer.
    bytes(memory(caller)?, status_out, 4)?;
    bytes(memory(caller)?, pid_out, 4)?;
    if flags & !(NO_HANG | PACKED) != 0 {
        return Err(Errno::Inval);
    }
    let target = if pid == 0 { WaitTarget::Any } else { WaitTarget::Child(pid) };
    let tree = process.container().tree();
    let (pid, status) = if flags & NO_HANG == 0 {
        tree.wait(process.pid(), target).await?
    } else {
        match tree.try_wait(process.pid(), target)? {
            WaitOutcome::Ended(pid, status) => (pid, status),
            WaitOutcome::StillRunning => (0, ExitStatus::Exited(0)),
        }
    };
    let memory = memory(caller)?;
    let status = if flags & PACKED == 0 { status.code().into() } else { packed(&status) };
    put(memory, status_out, status)?;
    put(memory, pid_out, pid)
}

/// A status as wait(2) packs it.
fn packed(status: &ExitStatus) -> u32 {
    match status {
        ExitStatus::Exited(code) => u32::from(*code) << 8,
        ExitStatus::HostFault { .. } => u32::from(status.code()) << 8,
        ExitStatus::Signaled(signal) => signal.number().into(),
        ExitStatus::Trapped { .. } => Signal::ABRT.number().into(),
        ExitStatus::OutOfMemory => Signal::KILL.number().into(),
    }
}

async fn kill(process: &Process, pid: Pid, signal: u32) -> Result<()> {
    let signal = if signal == 0 { None } else { Some(Signal::new(signal)?) };
    let other = process.container().tree().pids().get(pid)?;
    if !process.may_touch(&other) {
        return Err(Errno::Perm);
    }
    if let Some(signal) = signal {
        other.signal(signal);
    }
    if process.is_killed() {
        std::future::pending::<()>().await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_bounded_as_linux_bounds_them() {
        let repeat = |item: &str, count: usize| format!("{item}\0").repeat(count).into_bytes();
        let strings_of = |memory: &[u8]| strings(memory, 0, memory.len() as u32).map(|items| items.len());
        for (case, memory, expected) in [
            ("none", Vec::new(), Ok(0)),
            ("two", repeat("a", 2), Ok(2)),
            ("the last does not end", b"a\0b".to_vec(), Err(Errno::Inval)),
            ("no text", vec![0xff, 0], Err(Errno::IlSeq)),
            ("the longest argument", repeat(&"x".repeat(MAX_STRING - 1), 1), Ok(1)),
            ("one longer", repeat(&"x".repeat(MAX_STRING), 1), Err(Errno::TooBig)),
            ("as many as there may be", repeat("", MAX_ITEMS), Ok(MAX_ITEMS)),
            ("one more", repeat("", MAX_ITEMS + 1), Err(Errno::TooBig)),
            ("as much as there may be", repeat(&"x".repeat(1023), 2048), Ok(2048)),
            ("a byte more", repeat(&"x".repeat(1023), 2048).into_iter().chain([0]).collect(), Err(Errno::TooBig)),
        ] {
            assert_eq!(strings_of(&memory), expected, "{case}");
        }
        assert_eq!(strings(&[0; 8], 4, 8), Err(Errno::Fault));
    }
}
