//! Calls on paths.
//!
//! In: a directory descriptor and a path in guest memory. Out: calls of the process's namespace, which resolves links
//! and keeps to the container's tree.

use std::sync::Arc;

use wiggle::GuestPtr;

use super::{Memory, Result, convert, description, guest_str, types};
use crate::errno::Errno;
use crate::runtime::process::{Access, DescriptionKind, FileDescription, Process, SignalListener, StatusFlags};
use crate::vfs::{Device, Follow, OpenFlags, OpenOptions, Opened, SetTimes};

/// Mode of what preview 1 makes, which has no word for modes; the umask is taken off.
const FILE_MODE: u32 = 0o666;
const DIRECTORY_MODE: u32 = 0o777;

/// Arguments of `path_open`.
pub(super) struct Open {
    pub(super) fd: types::Fd,
    pub(super) dirflags: types::Lookupflags,
    pub(super) path: GuestPtr<str>,
    pub(super) oflags: types::Oflags,
    pub(super) rights: types::Rights,
    pub(super) fdflags: types::Fdflags,
}

/// `path_open`.
pub(super) async fn open(process: &Process, memory: &Memory<'_>, open: Open) -> Result<types::Fd> {
    let at = description(process, open.fd)?;
    let path = guest_str(memory, open.path)?;
    let options = OpenOptions {
        flags: open_flags(open.oflags, open.rights, open.fdflags),
        follow: convert::follow(open.dirflags),
        mode: FILE_MODE,
    };
    open_as(process, &at, &path, options, convert::status_flags(open.fdflags)).await.map(types::Fd::from)
}

/// Opens `path` from `at`, at the lowest free number.
pub(super) async fn open_as(
    process: &Process,
    at: &FileDescription,
    path: &str,
    options: OpenOptions,
    status: StatusFlags,
) -> Result<u32> {
    let opened = process.namespace().open(&process.creator(), at.as_dir()?, path, options).await?;
    let description = match opened {
        Opened::File(file) => FileDescription::file(file, access(options.flags), status),
        Opened::Dir(dir) => FileDescription::directory(dir),
        Opened::Device(device) => self::device(process, device, status)?,
    };
    process.fds().insert(description)
}

/// Reading and writing are said by rights; only these two are, whatever others a toolchain adds.
fn open_flags(oflags: types::Oflags, rights: types::Rights, fdflags: types::Fdflags) -> OpenFlags {
    let mut flags = OpenFlags::empty();
    let directory = oflags.contains(types::Oflags::DIRECTORY);
    flags.set(OpenFlags::READ, rights.intersects(types::Rights::FD_READ | types::Rights::FD_READDIR) || directory);
    flags.set(OpenFlags::WRITE, rights.contains(types::Rights::FD_WRITE) && !directory);
    flags.set(OpenFlags::APPEND, fdflags.contains(types::Fdflags::APPEND));
    flags.set(OpenFlags::CREATE, oflags.contains(types::Oflags::CREAT));
    flags.set(OpenFlags::EXCLUSIVE, oflags.contains(types::Oflags::EXCL));
    flags.set(OpenFlags::TRUNCATE, oflags.contains(types::Oflags::TRUNC));
    flags.set(OpenFlags::DIRECTORY, directory);
    flags
}

fn access(flags: OpenFlags) -> Access {
    let mut access = Access::empty();
    access.set(Access::READ, flags.contains(OpenFlags::READ));
    access.set(Access::WRITE, flags.contains(OpenFlags::WRITE));
    access
}

/// The process's own streams behind names of `/dev` and `/proc/self/fd`.
fn device(process: &Process, device: Device, status: StatusFlags) -> Result<Arc<FileDescription>> {
    let fds = process.fds();
    match device {
        Device::Stdin => fds.get(0),
        Device::Stdout => fds.get(1),
        Device::Stderr => fds.get(2),
        Device::Descriptor(fd) => fds.get(fd),
        Device::DescriptorOf { pid, fd } => process.descriptor_of(pid, fd),
        Device::Tty => {
            let terminal = fds.list().into_iter().map(|(_, description)| description).find(|open| open.is_terminal());
            terminal.ok_or(Errno::NxIo)
        }
        Device::Signal => {
            let listener = SignalListener::new(process.signals().clone());
            Ok(FileDescription::new(DescriptionKind::Signals(listener), Access::READ, status))
        }
    }
}

/// `path_create_directory`.
pub(super) async fn create_directory(
    process: &Process,
    memory: &Memory<'_>,
    fd: types::Fd,
    path: GuestPtr<str>,
) -> Result<()> {
    let at = description(process, fd)?;
    process.namespace().mkdir(&process.creator(), at.as_dir()?, &guest_str(memory, path)?, DIRECTORY_MODE).await
}

/// `path_filestat_get`.
pub(super) async fn filestat(
    process: &Process,
    memory: &Memory<'_>,
    fd: types::Fd,
    flags: types::Lookupflags,
    path: GuestPtr<str>,
) -> Result<types::Filestat> {
    let at = description(process, fd)?;
    let path = guest_str(memory, path)?;
    let metadata = process.namespace().stat(process.credentials(), at.as_dir()?, &path, convert::follow(flags)).await?;
    Ok(convert::filestat(&metadata))
}

/// `path_filestat_set_times`.
pub(super) async fn set_times(
    process: &Process,
    memory: &Memory<'_>,
    fd: types::Fd,
    flags: types::Lookupflags,
    path: GuestPtr<str>,
    times: SetTimes,
) -> Result<()> {
    let at = description(process, fd)?;
    let path = guest_str(memory, path)?;
    let follow = convert::follow(flags);
    process.namespace().set_times(process.credentials(), at.as_dir()?, &path, follow, times).await
}

/// `path_link`.
pub(super) async fn link(
    process: &Process,
    memory: &Memory<'_>,
    old: (types::Fd, GuestPtr<str>, Follow),
    new: (types::Fd, GuestPtr<str>),
) -> Result<()> {
    let (old_at, new_at) = (description(process, old.0)?, description(process, new.0)?);
    let (old_path, new_path) = (guest_str(memory, old.1)?, guest_str(memory, new.1)?);
    let old = (old_at.as_dir()?, &*old_path, old.2);
    process.namespace().link(process.credentials(), old, (new_at.as_dir()?, &*new_path)).await
}

/// `path_readlink`. A target longer than the buffer is cut, as by readlink(2).
pub(super) async fn readlink(
    process: &Process,
    memory: &mut Memory<'_>,
    fd: types::Fd,
    path: GuestPtr<str>,
    buffer: GuestPtr<[u8]>,
) -> Result<u32> {
    let at = description(process, fd)?;
    let target = {
        let path = guest_str(memory, path)?;
        process.namespace().readlink(process.credentials(), at.as_dir()?, &path).await?
    };
    let count = (target.len() as u32).min(buffer.len());
    memory.copy_from_slice(&target.as_bytes()[..count as usize], buffer.as_ptr().as_array(count))?;
    Ok(count)
}

/// `path_remove_directory`.
pub(super) async fn remove_directory(
    process: &Process,
    memory: &Memory<'_>,
    fd: types::Fd,
    path: GuestPtr<str>,
) -> Result<()> {
    let at = description(process, fd)?;
    process.namespace().rmdir(process.credentials(), at.as_dir()?, &guest_str(memory, path)?).await
}

/// `path_unlink_file`.
pub(super) async fn unlink_file(
    process: &Process,
    memory: &Memory<'_>,
    fd: types::Fd,
    path: GuestPtr<str>,
) -> Result<()> {
    let at = description(process, fd)?;
    process.namespace().unlink(process.credentials(), at.as_dir()?, &guest_str(memory, path)?).await
}

/// `path_rename`.
pub(super) async fn rename(
    process: &Process,
    memory: &Memory<'_>,
    old: (types::Fd, GuestPtr<str>),
    new: (types::Fd, GuestPtr<str>),
) -> Result<()> {
    let (old_at, new_at) = (description(process, old.0)?, description(process, new.0)?);
    let (old_path, new_path) = (guest_str(memory, old.1)?, guest_str(memory, new.1)?);
    let (old_dir, new_dir) = (old_at.as_dir()?, new_at.as_dir()?);
    process.namespace().rename(process.credentials(), old_dir, &old_path, new_dir, &new_path).await
}

/// `path_symlink`.
pub(super) async fn symlink(
    process: &Process,
    memory: &Memory<'_>,
    target: GuestPtr<str>,
    fd: types::Fd,
    path: GuestPtr<str>,
) -> Result<()> {
    let at = description(process, fd)?;
    let (target, path) = (guest_str(memory, target)?, guest_str(memory, path)?);
    process.namespace().symlink(process.credentials(), &target, at.as_dir()?, &path).await
}
