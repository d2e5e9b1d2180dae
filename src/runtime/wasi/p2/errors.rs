//! Errors of the 0.2 interfaces: `Errno` to each interface's own codes, in one place.
//!
//! In: [`Errno`] from `vfs` and `network`. Out: error codes for the guest, or a trap. Plain enums: a
//! `wasmtime::Error` would capture a backtrace for every `stat` that finds nothing.

use wasmtime::component::ResourceTableError;

use super::bindings::filesystem::types::ErrorCode as FsCode;
use super::bindings::sockets::network::ErrorCode as NetCode;
use crate::errno::Errno;

/// Outcome of a filesystem function.
pub type FsResult<T> = Result<T, FsError>;
/// Outcome of a socket function.
pub type SocketResult<T> = Result<T, SocketError>;

/// Why a filesystem function failed.
#[derive(Debug)]
pub enum FsError {
    /// The guest gets this code.
    Code(FsCode),
    /// The guest broke the rules of the component model and ends.
    Trap(wasmtime::Error),
}

/// Why a socket function failed.
#[derive(Debug)]
pub enum SocketError {
    /// The guest gets this code.
    Code(NetCode),
    /// The guest broke the rules of the component model and ends.
    Trap(wasmtime::Error),
}

impl FsError {
    /// The code for the guest, or the trap.
    ///
    /// # Errors
    /// The trap.
    pub fn into_code(self) -> wasmtime::Result<FsCode> {
        match self {
            Self::Code(code) => Ok(code),
            Self::Trap(trap) => Err(trap),
        }
    }
}

impl SocketError {
    /// The code for the guest, or the trap.
    ///
    /// # Errors
    /// The trap.
    pub fn into_code(self) -> wasmtime::Result<NetCode> {
        match self {
            Self::Code(code) => Ok(code),
            Self::Trap(trap) => Err(trap),
        }
    }
}

impl From<FsCode> for FsError {
    fn from(code: FsCode) -> Self {
        Self::Code(code)
    }
}

impl From<Errno> for FsError {
    fn from(errno: Errno) -> Self {
        Self::Code(fs_code(errno))
    }
}

impl From<ResourceTableError> for FsError {
    fn from(error: ResourceTableError) -> Self {
        Self::Trap(error.into())
    }
}

impl From<NetCode> for SocketError {
    fn from(code: NetCode) -> Self {
        Self::Code(code)
    }
}

impl From<Errno> for SocketError {
    fn from(errno: Errno) -> Self {
        Self::Code(net_code(errno))
    }
}

impl From<ResourceTableError> for SocketError {
    fn from(error: ResourceTableError) -> Self {
        Self::Trap(error.into())
    }
}

impl From<wasmtime::Error> for SocketError {
    fn from(error: wasmtime::Error) -> Self {
        Self::Trap(error)
    }
}

/// `wasi:filesystem/types.error-code` of an error number. What the interface cannot say becomes `io`.
#[must_use]
pub fn fs_code(errno: Errno) -> FsCode {
    match errno {
        Errno::Acces => FsCode::Access,
        Errno::Again => FsCode::WouldBlock,
        Errno::Already => FsCode::Already,
        Errno::BadF => FsCode::BadDescriptor,
        Errno::Busy => FsCode::Busy,
        Errno::DQuot => FsCode::Quota,
        Errno::Exist => FsCode::Exist,
        Errno::FBig => FsCode::FileTooLarge,
        Errno::IlSeq => FsCode::IllegalByteSequence,
        Errno::InProgress => FsCode::InProgress,
        Errno::Intr => FsCode::Interrupted,
        Errno::Inval => FsCode::Invalid,
        Errno::IsDir => FsCode::IsDirectory,
        Errno::Loop => FsCode::Loop,
        Errno::MLink => FsCode::TooManyLinks,
        Errno::MsgSize => FsCode::MessageSize,
        Errno::NameTooLong => FsCode::NameTooLong,
        Errno::NoDev => FsCode::NoDevice,
        Errno::NoEnt => FsCode::NoEntry,
        Errno::NoMem => FsCode::InsufficientMemory,
        Errno::NoSpc => FsCode::InsufficientSpace,
        Errno::NotDir => FsCode::NotDirectory,
        Errno::NotEmpty => FsCode::NotEmpty,
        Errno::NotSup | Errno::NoSys => FsCode::Unsupported,
        Errno::NoTty => FsCode::NoTty,
        Errno::NxIo => FsCode::NoSuchDevice,
        Errno::Overflow => FsCode::Overflow,
        Errno::Perm => FsCode::NotPermitted,
        Errno::Pipe => FsCode::Pipe,
        Errno::RoFs => FsCode::ReadOnly,
        Errno::SPipe => FsCode::InvalidSeek,
        Errno::TxtBsy => FsCode::TextFileBusy,
        Errno::XDev => FsCode::CrossDevice,
        _ => FsCode::Io,
    }
}

/// `wasi:sockets/network.error-code` of an error number, as the interface's documentation pairs them.
#[must_use]
pub fn net_code(errno: Errno) -> NetCode {
    match errno {
        Errno::Acces | Errno::Perm => NetCode::AccessDenied,
        Errno::NotSup
        | Errno::NoSys
        | Errno::NoProtoOpt
        | Errno::ProtoNoSupport
        | Errno::ProtoType
        | Errno::AfNoSupport => NetCode::NotSupported,
        Errno::Inval | Errno::Range => NetCode::InvalidArgument,
        Errno::NoMem | Errno::NoBufs => NetCode::OutOfMemory,
        Errno::TimedOut => NetCode::Timeout,
        Errno::Already => NetCode::ConcurrencyConflict,
        Errno::Again | Errno::Intr | Errno::InProgress => NetCode::WouldBlock,
        Errno::IsConn | Errno::NotConn | Errno::DestAddrReq => NetCode::InvalidState,
        Errno::MFile | Errno::NFile => NetCode::NewSocketLimit,
        Errno::AddrNotAvail => NetCode::AddressNotBindable,
        Errno::AddrInUse => NetCode::AddressInUse,
        Errno::HostUnreach | Errno::NetUnreach => NetCode::RemoteUnreachable,
        Errno::ConnRefused => NetCode::ConnectionRefused,
        Errno::ConnReset => NetCode::ConnectionReset,
        Errno::ConnAborted | Errno::Canceled => NetCode::ConnectionAborted,
        Errno::MsgSize => NetCode::DatagramTooLarge,
        _ => NetCode::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_a_guest_tests_for_keep_their_meaning() {
        for (errno, code) in [
            (Errno::RoFs, FsCode::ReadOnly),
            (Errno::NoEnt, FsCode::NoEntry),
            (Errno::XDev, FsCode::CrossDevice),
            (Errno::DQuot, FsCode::Quota),
            (Errno::NoSpc, FsCode::InsufficientSpace),
            (Errno::NFile, FsCode::Io),
        ] {
            assert_eq!(fs_code(errno), code, "{errno}");
        }
        for (errno, code) in [
            (Errno::AddrInUse, NetCode::AddressInUse),
            (Errno::ConnRefused, NetCode::ConnectionRefused),
            (Errno::NotConn, NetCode::InvalidState),
            (Errno::MFile, NetCode::NewSocketLimit),
            (Errno::Pipe, NetCode::Unknown),
        ] {
            assert_eq!(net_code(errno), code, "{errno}");
        }
    }
}
