//! Preview 1 over the process tree, `vfs` and `network`.
//!
//! In: calls of core modules to `wasi_snapshot_preview1`, with WasmEdge's sockets, and to `wasilet` for pipes, processes,
//! users and file modes. Out: calls of the process's objects. Only translates: of memory and flags here, of each group of calls in its own file. Every length
//! of a guest is bounded, every long call is cut in pieces, and errors are plain numbers.

mod convert;
mod fd;
mod path;
mod poll;
mod posix;
mod process;
mod sock;
mod system;
mod wasmedge;

use std::borrow::Cow;
use std::sync::Arc;

use wasmtime::Linker;
use wiggle::{GuestMemory, GuestPtr};

use super::super::process::{FileDescription, Process};
use super::super::store::Guest;
use crate::errno::Errno;
use crate::vfs::PATH_MAX;

pub use system::ProcExit;
pub use wasmedge::adapt;

wiggle::from_witx!({
    witx: ["src/runtime/wasi/p1/witx/wasi_snapshot_preview1.witx"],
    async: {
        wasi_snapshot_preview1::{
            fd_allocate, fd_datasync, fd_fdstat_get, fd_filestat_get, fd_filestat_set_size, fd_filestat_set_times,
            fd_pread, fd_pwrite, fd_read, fd_readdir, fd_seek, fd_sync, fd_tell, fd_write,
            path_create_directory, path_filestat_get, path_filestat_set_times, path_link, path_open, path_readlink,
            path_remove_directory, path_rename, path_symlink, path_unlink_file,
            poll_oneoff, proc_raise, random_get, sched_yield, sock_accept, sock_recv, sock_send,
        }
    },
    errors: { errno => Errno },
    tracing: false,
});

/// Defines `wasi_snapshot_preview1` and `wasilet`.
///
/// # Errors
/// When a name is defined twice.
pub fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    wasi_snapshot_preview1::add_to_linker(linker, |guest: &mut Guest| guest)?;
    process::add_to_linker(linker)?;
    posix::add_to_linker(linker)?;
    wasmedge::add_to_linker(linker)
}

impl wiggle::GuestErrorType for types::Errno {
    fn success() -> Self {
        Self::Success
    }
}

impl types::UserErrorConversion for Guest {
    fn errno_from_errno(&mut self, errno: Errno) -> wasmtime::Result<types::Errno> {
        Ok(convert::errno(errno))
    }
}

impl From<wiggle::GuestError> for Errno {
    /// A pointer that is not in the guest's memory is `EFAULT`, as from a kernel.
    fn from(error: wiggle::GuestError) -> Self {
        match error {
            wiggle::GuestError::InvalidUtf8(_) => Self::IlSeq,
            wiggle::GuestError::PtrOverflow
            | wiggle::GuestError::PtrOutOfBounds(_)
            | wiggle::GuestError::PtrNotAligned(..) => Self::Fault,
            wiggle::GuestError::InFunc { err, .. } => Self::from(*err),
            _ => Self::Inval,
        }
    }
}

type Result<T> = std::result::Result<T, Errno>;
type Memory<'a> = GuestMemory<'a>;

impl Guest {
    fn description(&self, fd: types::Fd) -> Result<Arc<FileDescription>> {
        description(&self.process, fd)
    }
}

/// The description behind a descriptor. The calls take the process and not the store's data: futures that hold a
/// reference to the latter could not move between threads.
fn description(process: &Process, fd: types::Fd) -> Result<Arc<FileDescription>> {
    process.fds().get(fd.into())
}

/// The same for calls that are not made by wiggle.
fn description_of(caller: &wasmtime::Caller<'_, Guest>, fd: u32) -> Result<Arc<FileDescription>> {
    caller.data().process.fds().get(fd)
}

/// A path or name of the guest.
fn guest_str<'a>(memory: &'a Memory<'_>, text: GuestPtr<str>) -> Result<Cow<'a, str>> {
    if text.len() as usize >= PATH_MAX {
        return Err(Errno::NameTooLong);
    }
    Ok(memory.as_cow_str(text)?)
}

/// One method per function of the interface, each in one line; the work is in the files around.
impl wasi_snapshot_preview1::WasiSnapshotPreview1 for Guest {
    fn args_get(&mut self, m: &mut Memory<'_>, argv: GuestPtr<GuestPtr<u8>>, buffer: GuestPtr<u8>) -> Result<()> {
        system::args_get(&self.process, m, argv, buffer)
    }

    fn args_sizes_get(&mut self, _m: &mut Memory<'_>) -> Result<(types::Size, types::Size)> {
        system::args_sizes(&self.process)
    }

    fn environ_get(&mut self, m: &mut Memory<'_>, environ: GuestPtr<GuestPtr<u8>>, buffer: GuestPtr<u8>) -> Result<()> {
        system::environ_get(&self.process, m, environ, buffer)
    }

    fn environ_sizes_get(&mut self, _m: &mut Memory<'_>) -> Result<(types::Size, types::Size)> {
        system::environ_sizes(&self.process)
    }

    fn clock_res_get(&mut self, _m: &mut Memory<'_>, id: types::Clockid) -> Result<types::Timestamp> {
        Ok(system::clock_resolution(id))
    }

    fn clock_time_get(
        &mut self,
        _m: &mut Memory<'_>,
        id: types::Clockid,
        _precision: types::Timestamp,
    ) -> Result<types::Timestamp> {
        Ok(system::clock_time(&self.process, id))
    }

    fn proc_exit(&mut self, _m: &mut Memory<'_>, code: types::Exitcode) -> wasmtime::Error {
        // As wait(2) sees it: the low eight bits.
        ProcExit { code: code as u8 }.into()
    }

    async fn proc_raise(&mut self, _m: &mut Memory<'_>, signal: types::Signal) -> Result<()> {
        system::raise(&self.process, signal).await
    }

    async fn sched_yield(&mut self, _m: &mut Memory<'_>) -> Result<()> {
        tokio::task::yield_now().await;
        Ok(())
    }

    async fn random_get(&mut self, m: &mut Memory<'_>, buffer: GuestPtr<u8>, length: types::Size) -> Result<()> {
        system::random(m, buffer.as_array(length)).await
    }

    fn fd_advise(
        &mut self,
        _m: &mut Memory<'_>,
        fd: types::Fd,
        offset: types::Filesize,
        length: types::Filesize,
        advice: types::Advice,
    ) -> Result<()> {
        self.description(fd)?.as_file()?.file.advise(offset, length, convert::advice(advice))
    }

    async fn fd_allocate(
        &mut self,
        _m: &mut Memory<'_>,
        fd: types::Fd,
        offset: types::Filesize,
        length: types::Filesize,
    ) -> Result<()> {
        self.description(fd)?.as_file()?.file.allocate(offset, length).await
    }

    fn fd_close(&mut self, _m: &mut Memory<'_>, fd: types::Fd) -> Result<()> {
        self.process.fds().remove(fd.into()).map(drop)
    }

    async fn fd_datasync(&mut self, _m: &mut Memory<'_>, fd: types::Fd) -> Result<()> {
        fd::sync(&*self.description(fd)?, fd::Sync::Data).await
    }

    async fn fd_sync(&mut self, _m: &mut Memory<'_>, fd: types::Fd) -> Result<()> {
        fd::sync(&*self.description(fd)?, fd::Sync::All).await
    }

    async fn fd_fdstat_get(&mut self, _m: &mut Memory<'_>, fd: types::Fd) -> Result<types::Fdstat> {
        fd::fdstat(&*self.description(fd)?).await
    }

    fn fd_fdstat_set_flags(&mut self, _m: &mut Memory<'_>, fd: types::Fd, flags: types::Fdflags) -> Result<()> {
        self.description(fd)?.set_status(convert::status_flags(flags));
        Ok(())
    }

    fn fd_fdstat_set_rights(
        &mut self,
        _m: &mut Memory<'_>,
        fd: types::Fd,
        _base: types::Rights,
        _inheriting: types::Rights,
    ) -> Result<()> {
        // Rights were given up by WASI; what a description allows was decided when it was opened.
        self.description(fd).map(drop)
    }

    async fn fd_filestat_get(&mut self, _m: &mut Memory<'_>, fd: types::Fd) -> Result<types::Filestat> {
        fd::filestat(&*self.description(fd)?).await
    }

    async fn fd_filestat_set_size(&mut self, _m: &mut Memory<'_>, fd: types::Fd, size: types::Filesize) -> Result<()> {
        self.description(fd)?.as_file()?.file.set_len(size).await
    }

    async fn fd_filestat_set_times(
        &mut self,
        _m: &mut Memory<'_>,
        fd: types::Fd,
        atim: types::Timestamp,
        mtim: types::Timestamp,
        flags: types::Fstflags,
    ) -> Result<()> {
        let times = convert::set_times(atim, mtim, flags)?;
        fd::set_times(&self.process, &*self.description(fd)?, times).await
    }

    async fn fd_pread(
        &mut self,
        m: &mut Memory<'_>,
        fd: types::Fd,
        iovs: types::IovecArray,
        offset: types::Filesize,
    ) -> Result<types::Size> {
        fd::pread(m, &*self.description(fd)?, iovs, offset).await
    }

    async fn fd_pwrite(
        &mut self,
        m: &mut Memory<'_>,
        fd: types::Fd,
        iovs: types::CiovecArray,
        offset: types::Filesize,
    ) -> Result<types::Size> {
        fd::pwrite(m, &*self.description(fd)?, iovs, offset).await
    }

    async fn fd_read(&mut self, m: &mut Memory<'_>, fd: types::Fd, iovs: types::IovecArray) -> Result<types::Size> {
        fd::read(m, &*self.description(fd)?, iovs).await
    }

    async fn fd_write(&mut self, m: &mut Memory<'_>, fd: types::Fd, iovs: types::CiovecArray) -> Result<types::Size> {
        fd::write(m, &*self.description(fd)?, iovs).await
    }

    fn fd_prestat_get(&mut self, _m: &mut Memory<'_>, fd: types::Fd) -> Result<types::Prestat> {
        fd::prestat(&*self.description(fd)?)
    }

    fn fd_prestat_dir_name(
        &mut self,
        m: &mut Memory<'_>,
        fd: types::Fd,
        path: GuestPtr<u8>,
        length: types::Size,
    ) -> Result<()> {
        fd::prestat_name(m, &*self.description(fd)?, path, length)
    }

    async fn fd_readdir(
        &mut self,
        m: &mut Memory<'_>,
        fd: types::Fd,
        buffer: GuestPtr<u8>,
        length: types::Size,
        cookie: types::Dircookie,
    ) -> Result<types::Size> {
        fd::readdir(m, &*self.description(fd)?, buffer.as_array(length), cookie).await
    }

    fn fd_renumber(&mut self, _m: &mut Memory<'_>, from: types::Fd, to: types::Fd) -> Result<()> {
        self.process.fds().renumber(from.into(), to.into())
    }

    async fn fd_seek(
        &mut self,
        _m: &mut Memory<'_>,
        fd: types::Fd,
        offset: types::Filedelta,
        whence: types::Whence,
    ) -> Result<types::Filesize> {
        fd::seek(&*self.description(fd)?, offset, whence).await
    }

    async fn fd_tell(&mut self, _m: &mut Memory<'_>, fd: types::Fd) -> Result<types::Filesize> {
        fd::seek(&*self.description(fd)?, 0, types::Whence::Cur).await
    }

    async fn path_create_directory(&mut self, m: &mut Memory<'_>, fd: types::Fd, path: GuestPtr<str>) -> Result<()> {
        path::create_directory(&self.process, m, fd, path).await
    }

    async fn path_filestat_get(
        &mut self,
        m: &mut Memory<'_>,
        fd: types::Fd,
        flags: types::Lookupflags,
        path: GuestPtr<str>,
    ) -> Result<types::Filestat> {
        path::filestat(&self.process, m, fd, flags, path).await
    }

    async fn path_filestat_set_times(
        &mut self,
        m: &mut Memory<'_>,
        fd: types::Fd,
        flags: types::Lookupflags,
        path: GuestPtr<str>,
        atim: types::Timestamp,
        mtim: types::Timestamp,
        fst_flags: types::Fstflags,
    ) -> Result<()> {
        let times = convert::set_times(atim, mtim, fst_flags)?;
        path::set_times(&self.process, m, fd, flags, path, times).await
    }

    async fn path_link(
        &mut self,
        m: &mut Memory<'_>,
        old_fd: types::Fd,
        old_flags: types::Lookupflags,
        old_path: GuestPtr<str>,
        new_fd: types::Fd,
        new_path: GuestPtr<str>,
    ) -> Result<()> {
        path::link(&self.process, m, (old_fd, old_path, convert::follow(old_flags)), (new_fd, new_path)).await
    }

    async fn path_open(
        &mut self,
        m: &mut Memory<'_>,
        fd: types::Fd,
        dirflags: types::Lookupflags,
        path: GuestPtr<str>,
        oflags: types::Oflags,
        rights: types::Rights,
        _inheriting: types::Rights,
        fdflags: types::Fdflags,
    ) -> Result<types::Fd> {
        path::open(&self.process, m, path::Open { fd, dirflags, path, oflags, rights, fdflags }).await
    }

    async fn path_readlink(
        &mut self,
        m: &mut Memory<'_>,
        fd: types::Fd,
        path: GuestPtr<str>,
        buffer: GuestPtr<u8>,
        length: types::Size,
    ) -> Result<types::Size> {
        path::readlink(&self.process, m, fd, path, buffer.as_array(length)).await
    }

    async fn path_remove_directory(&mut self, m: &mut Memory<'_>, fd: types::Fd, path: GuestPtr<str>) -> Result<()> {
        path::remove_directory(&self.process, m, fd, path).await
    }

    async fn path_rename(
        &mut self,
        m: &mut Memory<'_>,
        fd: types::Fd,
        old_path: GuestPtr<str>,
        new_fd: types::Fd,
        new_path: GuestPtr<str>,
    ) -> Result<()> {
        path::rename(&self.process, m, (fd, old_path), (new_fd, new_path)).await
    }

    async fn path_symlink(
        &mut self,
        m: &mut Memory<'_>,
        target: GuestPtr<str>,
        fd: types::Fd,
        path: GuestPtr<str>,
    ) -> Result<()> {
        path::symlink(&self.process, m, target, fd, path).await
    }

    async fn path_unlink_file(&mut self, m: &mut Memory<'_>, fd: types::Fd, path: GuestPtr<str>) -> Result<()> {
        path::unlink_file(&self.process, m, fd, path).await
    }

    async fn poll_oneoff(
        &mut self,
        m: &mut Memory<'_>,
        subscriptions: GuestPtr<types::Subscription>,
        events: GuestPtr<types::Event>,
        count: types::Size,
    ) -> Result<types::Size> {
        poll::oneoff(&self.process, m, subscriptions.as_array(count), events.as_array(count)).await
    }

    async fn sock_accept(&mut self, _m: &mut Memory<'_>, fd: types::Fd, flags: types::Fdflags) -> Result<types::Fd> {
        sock::accept(&self.process, fd, flags).await
    }

    async fn sock_recv(
        &mut self,
        m: &mut Memory<'_>,
        fd: types::Fd,
        iovs: types::IovecArray,
        flags: types::Riflags,
    ) -> Result<(types::Size, types::Roflags)> {
        sock::receive(m, &*self.description(fd)?, iovs, flags).await
    }

    async fn sock_send(
        &mut self,
        m: &mut Memory<'_>,
        fd: types::Fd,
        iovs: types::CiovecArray,
        _flags: types::Siflags,
    ) -> Result<types::Size> {
        let description = self.description(fd)?;
        if !description.is_socket() {
            return Err(Errno::NotSock);
        }
        fd::write(m, &description, iovs).await
    }

    fn sock_shutdown(&mut self, _m: &mut Memory<'_>, fd: types::Fd, how: types::Sdflags) -> Result<()> {
        sock::shutdown(&*self.description(fd)?, how)
    }
}
