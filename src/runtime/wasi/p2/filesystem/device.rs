//! Device files that are the process's own, or another's that it sees: standard streams, its terminal, its signals.
//!
//! In: what `vfs` says was opened. Out: an open file description of the process.

use std::sync::Arc;

use crate::errno::Errno;
use crate::runtime::process::{Access, DescriptionKind, Fd, FileDescription, Process, SignalListener, StatusFlags};
use crate::vfs::Device;

/// Opens `device` for `process`. A standard stream is the same description as its descriptor, as on Linux, where
/// `/dev/stdin` is a link to it.
///
/// # Errors
/// `ENOENT` for a descriptor that is closed, `ENXIO` for a terminal that is not there.
pub fn open(process: &Process, device: Device) -> Result<Arc<FileDescription>, Errno> {
    let descriptor = |fd: Fd| process.fds().get(fd).map_err(|_| Errno::NoEnt);
    match device {
        Device::Stdin => descriptor(0),
        Device::Stdout => descriptor(1),
        Device::Stderr => descriptor(2),
        Device::Descriptor(fd) => descriptor(fd),
        Device::DescriptorOf { pid, fd } => process.descriptor_of(pid, fd),
        Device::Tty => {
            (0..3).filter_map(|fd| process.fds().get(fd).ok()).find(|open| open.is_terminal()).ok_or(Errno::NxIo)
        }
        Device::Signal => {
            let listener = SignalListener::new(process.signals().clone());
            Ok(FileDescription::new(DescriptionKind::Signals(listener), Access::READ, StatusFlags::empty()))
        }
    }
}
