//! The error numbers guests see, one enum for files and sockets.
//!
//! In: conditions of `vfs`, `network` and the kernel. Out: one plain value that each WASI front-end
//! maps to its own codes. Carries no text and captures no backtrace: a failing `stat` is a hot path.

/// A POSIX error as a guest's libc names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[error("{}", self.name())]
#[allow(missing_docs, reason = "the variants are POSIX's names, documented in errno(3)")]
pub enum Errno {
    Acces,
    AddrInUse,
    AddrNotAvail,
    AfNoSupport,
    Again,
    Already,
    BadF,
    Busy,
    Canceled,
    Child,
    ConnAborted,
    ConnRefused,
    ConnReset,
    DestAddrReq,
    DQuot,
    Exist,
    Fault,
    FBig,
    HostUnreach,
    IlSeq,
    InProgress,
    Intr,
    Inval,
    Io,
    IsConn,
    IsDir,
    Loop,
    MFile,
    MLink,
    MsgSize,
    NameTooLong,
    NetUnreach,
    NFile,
    NoBufs,
    NoDev,
    NoEnt,
    NoExec,
    NoMem,
    NoProtoOpt,
    NoSpc,
    NoSys,
    NotConn,
    NotDir,
    NotEmpty,
    NotSock,
    NotSup,
    NoTty,
    NxIo,
    Overflow,
    Perm,
    Pipe,
    Proto,
    ProtoNoSupport,
    ProtoType,
    Range,
    RoFs,
    SPipe,
    Srch,
    Stale,
    TimedOut,
    TooBig,
    TxtBsy,
    XDev,
}

macro_rules! kernel_table {
    ($($variant:ident = $code:ident),* $(,)?) => {
        impl Errno {
            /// The conventional upper-case name, such as `ENOENT`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => stringify!($code)),* }
            }

            /// The kernel's number for it on this machine.
            #[must_use]
            pub const fn raw(self) -> i32 {
                match self { $(Self::$variant => libc::$code),* }
            }

            /// From a kernel error number; one the table lacks becomes `EIO`.
            #[must_use]
            #[allow(unreachable_patterns, reason = "EAGAIN and EWOULDBLOCK, ENOTSUP and EOPNOTSUPP share numbers")]
            pub const fn from_raw(code: i32) -> Self {
                match code { $(libc::$code => Self::$variant,)* _ => Self::Io }
            }
        }

        #[cfg(test)]
        const ALL: &[Errno] = &[$(Errno::$variant),*];
    };
}

kernel_table! {
    Acces = EACCES, AddrInUse = EADDRINUSE, AddrNotAvail = EADDRNOTAVAIL, AfNoSupport = EAFNOSUPPORT,
    Again = EAGAIN, Already = EALREADY, BadF = EBADF, Busy = EBUSY, Canceled = ECANCELED, Child = ECHILD,
    ConnAborted = ECONNABORTED, ConnRefused = ECONNREFUSED, ConnReset = ECONNRESET, DestAddrReq = EDESTADDRREQ,
    DQuot = EDQUOT, Exist = EEXIST, Fault = EFAULT, FBig = EFBIG, HostUnreach = EHOSTUNREACH, IlSeq = EILSEQ,
    InProgress = EINPROGRESS, Intr = EINTR, Inval = EINVAL, Io = EIO, IsConn = EISCONN, IsDir = EISDIR,
    Loop = ELOOP, MFile = EMFILE, MLink = EMLINK, MsgSize = EMSGSIZE, NameTooLong = ENAMETOOLONG,
    NetUnreach = ENETUNREACH, NFile = ENFILE, NoBufs = ENOBUFS, NoDev = ENODEV, NoEnt = ENOENT, NoExec = ENOEXEC,
    NoMem = ENOMEM, NoProtoOpt = ENOPROTOOPT, NoSpc = ENOSPC, NoSys = ENOSYS, NotConn = ENOTCONN,
    NotDir = ENOTDIR, NotEmpty = ENOTEMPTY, NotSock = ENOTSOCK, NotSup = EOPNOTSUPP, NoTty = ENOTTY, NxIo = ENXIO,
    Overflow = EOVERFLOW, Perm = EPERM, Pipe = EPIPE, Proto = EPROTO, ProtoNoSupport = EPROTONOSUPPORT,
    ProtoType = EPROTOTYPE, Range = ERANGE, RoFs = EROFS, SPipe = ESPIPE, Srch = ESRCH, Stale = ESTALE,
    TimedOut = ETIMEDOUT, TooBig = E2BIG, TxtBsy = ETXTBSY, XDev = EXDEV,
}

impl From<&std::io::Error> for Errno {
    fn from(error: &std::io::Error) -> Self {
        error.raw_os_error().map_or(Self::Io, Self::from_raw)
    }
}

impl From<std::io::Error> for Errno {
    fn from(error: std::io::Error) -> Self {
        Self::from(&error)
    }
}

impl From<rustix::io::Errno> for Errno {
    fn from(error: rustix::io::Errno) -> Self {
        Self::from_raw(error.raw_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_survives_the_way_through_its_number() {
        for &errno in ALL {
            assert_eq!(Errno::from_raw(errno.raw()), errno);
        }
        assert_eq!(Errno::from_raw(9999), Errno::Io);
    }
}
