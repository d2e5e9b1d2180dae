//! Arguments, environment, clocks, random bytes, and the end of the process.
//!
//! In: calls that touch no descriptor. Out: values of the process and of the machine.

use rand::RngCore as _;
use rustix::time::{ClockId, clock_getres, clock_gettime};
use wiggle::GuestPtr;

use super::{Memory, Result, types};
use crate::errno::Errno;
use crate::runtime::process::{Process, Signal};

/// How much of a guest's buffer is filled before others may run.
const CHUNK: u32 = 64 * 1024;

/// `proc_exit`: unwinds the guest.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("exit with code {code}")]
pub struct ProcExit {
    /// 0-255.
    pub code: u8,
}

/// NUL-terminated strings, one after the other, with a pointer to each.
fn put_strings(
    memory: &mut Memory<'_>,
    mut pointers: GuestPtr<GuestPtr<u8>>,
    mut buffer: GuestPtr<u8>,
    strings: impl Iterator<Item = String>,
) -> Result<()> {
    for string in strings {
        let length = string.len() as u32;
        memory.write(pointers, buffer)?;
        memory.copy_from_slice(string.as_bytes(), buffer.as_array(length))?;
        memory.write(buffer.add(length)?, 0)?;
        buffer = buffer.add(length + 1)?;
        pointers = pointers.add(1)?;
    }
    Ok(())
}

fn sizes(lengths: impl Iterator<Item = usize>) -> Result<(u32, u32)> {
    let (count, bytes) = lengths.fold((0_usize, 0_usize), |(count, bytes), length| (count + 1, bytes + length + 1));
    let narrow = |value: usize| u32::try_from(value).map_err(|_| Errno::Overflow);
    Ok((narrow(count)?, narrow(bytes)?))
}

/// `args_get`.
pub(super) fn args_get(
    process: &Process,
    memory: &mut Memory<'_>,
    argv: GuestPtr<GuestPtr<u8>>,
    buffer: GuestPtr<u8>,
) -> Result<()> {
    put_strings(memory, argv, buffer, process.argv().iter().cloned())
}

/// `args_sizes_get`.
pub(super) fn args_sizes(process: &Process) -> Result<(u32, u32)> {
    sizes(process.argv().iter().map(String::len))
}

/// `environ_get`.
pub(super) fn environ_get(
    process: &Process,
    memory: &mut Memory<'_>,
    environ: GuestPtr<GuestPtr<u8>>,
    buffer: GuestPtr<u8>,
) -> Result<()> {
    let entries = process.env().iter().map(|(key, value)| format!("{key}={value}"));
    put_strings(memory, environ, buffer, entries)
}

/// `environ_sizes_get`.
pub(super) fn environ_sizes(process: &Process) -> Result<(u32, u32)> {
    sizes(process.env().iter().map(|(key, value)| key.len() + 1 + value.len()))
}

fn kernel_clock(id: types::Clockid) -> ClockId {
    match id {
        types::Clockid::Realtime => ClockId::Realtime,
        _ => ClockId::Monotonic,
    }
}

/// `clock_res_get`.
pub(super) fn clock_resolution(id: types::Clockid) -> u64 {
    let resolution = clock_getres(kernel_clock(id));
    (resolution.tv_sec as u64 * 1_000_000_000 + resolution.tv_nsec as u64).max(1)
}

/// `clock_time_get`. The CPU clocks show the time of the container, which is what it pays for.
pub(super) fn clock_time(process: &Process, id: types::Clockid) -> u64 {
    match id {
        types::Clockid::Realtime | types::Clockid::Monotonic => {
            let now = clock_gettime(kernel_clock(id));
            (now.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(now.tv_nsec as u64)
        }
        types::Clockid::ProcessCputimeId | types::Clockid::ThreadCputimeId => {
            process.container().cpu().used().as_nanos() as u64
        }
    }
}

/// `random_get`.
pub(super) async fn random(memory: &mut Memory<'_>, buffer: GuestPtr<[u8]>) -> Result<()> {
    let (start, length) = (buffer.as_ptr(), buffer.len());
    let mut done = 0;
    while done < length {
        let count = CHUNK.min(length - done);
        let chunk = memory.as_slice_mut(start.add(done)?.as_array(count))?.ok_or(Errno::Fault)?;
        rand::rng().fill_bytes(chunk);
        done += count;
        if done < length {
            tokio::task::yield_now().await;
        }
    }
    Ok(())
}

/// `proc_raise`.
pub(super) async fn raise(process: &Process, signal: types::Signal) -> Result<()> {
    let Ok(signal) = Signal::new(u32::from(u8::from(signal))) else { return Ok(()) };
    process.signal(signal);
    if process.is_killed() {
        // The task is dropped while it waits here: not one more instruction of the guest.
        std::future::pending::<()>().await;
    }
    Ok(())
}
