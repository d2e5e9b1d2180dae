//! Between preview 1's numbers and flags and ours.
//!
//! In: either side's values. Out: the other's. Pure.

use super::types;
use crate::errno::Errno;
use crate::runtime::process::StatusFlags;
use crate::vfs::{Advice, FileType, Follow, Metadata, SetTime, SetTimes, Timestamp};

/// Preview 1's number for an error.
pub(super) fn errno(errno: Errno) -> types::Errno {
    match errno {
        Errno::Acces => types::Errno::Acces,
        Errno::AddrInUse => types::Errno::Addrinuse,
        Errno::AddrNotAvail => types::Errno::Addrnotavail,
        Errno::AfNoSupport => types::Errno::Afnosupport,
        Errno::Again => types::Errno::Again,
        Errno::Already => types::Errno::Already,
        Errno::BadF => types::Errno::Badf,
        Errno::Busy => types::Errno::Busy,
        Errno::Canceled => types::Errno::Canceled,
        Errno::Child => types::Errno::Child,
        Errno::ConnAborted => types::Errno::Connaborted,
        Errno::ConnRefused => types::Errno::Connrefused,
        Errno::ConnReset => types::Errno::Connreset,
        Errno::DestAddrReq => types::Errno::Destaddrreq,
        Errno::DQuot => types::Errno::Dquot,
        Errno::Exist => types::Errno::Exist,
        Errno::Fault => types::Errno::Fault,
        Errno::FBig => types::Errno::Fbig,
        Errno::HostUnreach => types::Errno::Hostunreach,
        Errno::IlSeq => types::Errno::Ilseq,
        Errno::InProgress => types::Errno::Inprogress,
        Errno::Intr => types::Errno::Intr,
        Errno::Inval => types::Errno::Inval,
        Errno::Io => types::Errno::Io,
        Errno::IsConn => types::Errno::Isconn,
        Errno::IsDir => types::Errno::Isdir,
        Errno::Loop => types::Errno::Loop,
        Errno::MFile => types::Errno::Mfile,
        Errno::MLink => types::Errno::Mlink,
        Errno::MsgSize => types::Errno::Msgsize,
        Errno::NameTooLong => types::Errno::Nametoolong,
        Errno::NetUnreach => types::Errno::Netunreach,
        Errno::NFile => types::Errno::Nfile,
        Errno::NoBufs => types::Errno::Nobufs,
        Errno::NoDev => types::Errno::Nodev,
        Errno::NoEnt => types::Errno::Noent,
        Errno::NoExec => types::Errno::Noexec,
        Errno::NoMem => types::Errno::Nomem,
        Errno::NoProtoOpt => types::Errno::Noprotoopt,
        Errno::NoSpc => types::Errno::Nospc,
        Errno::NoSys => types::Errno::Nosys,
        Errno::NotConn => types::Errno::Notconn,
        Errno::NotDir => types::Errno::Notdir,
        Errno::NotEmpty => types::Errno::Notempty,
        Errno::NotSock => types::Errno::Notsock,
        Errno::NotSup => types::Errno::Notsup,
        Errno::NoTty => types::Errno::Notty,
        Errno::NxIo => types::Errno::Nxio,
        Errno::Overflow => types::Errno::Overflow,
        Errno::Perm => types::Errno::Perm,
        Errno::Pipe => types::Errno::Pipe,
        Errno::Proto => types::Errno::Proto,
        Errno::ProtoNoSupport => types::Errno::Protonosupport,
        Errno::ProtoType => types::Errno::Prototype,
        Errno::Range => types::Errno::Range,
        Errno::RoFs => types::Errno::Rofs,
        Errno::SPipe => types::Errno::Spipe,
        Errno::Srch => types::Errno::Srch,
        Errno::Stale => types::Errno::Stale,
        Errno::TimedOut => types::Errno::Timedout,
        Errno::TooBig => types::Errno::TooBig,
        Errno::TxtBsy => types::Errno::Txtbsy,
        Errno::XDev => types::Errno::Xdev,
    }
}

/// `fdflags` as status flags.
pub(super) fn status_flags(flags: types::Fdflags) -> StatusFlags {
    let pairs = [
        (types::Fdflags::APPEND, StatusFlags::APPEND),
        (types::Fdflags::NONBLOCK, StatusFlags::NONBLOCK),
        (types::Fdflags::DSYNC, StatusFlags::DSYNC),
        (types::Fdflags::SYNC, StatusFlags::SYNC),
        (types::Fdflags::RSYNC, StatusFlags::RSYNC),
    ];
    pairs.into_iter().filter(|(flag, _)| flags.contains(*flag)).fold(StatusFlags::empty(), |all, (_, flag)| all | flag)
}

/// Status flags as `fdflags`.
pub(super) fn fdflags(status: StatusFlags) -> types::Fdflags {
    let pairs = [
        (types::Fdflags::APPEND, StatusFlags::APPEND),
        (types::Fdflags::NONBLOCK, StatusFlags::NONBLOCK),
        (types::Fdflags::DSYNC, StatusFlags::DSYNC),
        (types::Fdflags::SYNC, StatusFlags::SYNC),
        (types::Fdflags::RSYNC, StatusFlags::RSYNC),
    ];
    pairs
        .into_iter()
        .filter(|(_, flag)| status.contains(*flag))
        .fold(types::Fdflags::empty(), |all, (flag, _)| all | flag)
}

/// What to do with a link at the end of a path.
pub(super) fn follow(flags: types::Lookupflags) -> Follow {
    if flags.contains(types::Lookupflags::SYMLINK_FOLLOW) { Follow::Yes } else { Follow::No }
}

/// A hint.
pub(super) fn advice(advice: types::Advice) -> Advice {
    match advice {
        types::Advice::Normal => Advice::Normal,
        types::Advice::Sequential => Advice::Sequential,
        types::Advice::Random => Advice::Random,
        types::Advice::Willneed => Advice::WillNeed,
        types::Advice::Dontneed => Advice::DontNeed,
        types::Advice::Noreuse => Advice::NoReuse,
    }
}

/// The kind of a file; preview 1 has no word for a FIFO.
pub(super) fn file_type(kind: FileType) -> types::Filetype {
    match kind {
        FileType::Regular => types::Filetype::RegularFile,
        FileType::Directory => types::Filetype::Directory,
        FileType::Symlink => types::Filetype::SymbolicLink,
        FileType::CharDevice => types::Filetype::CharacterDevice,
        FileType::BlockDevice => types::Filetype::BlockDevice,
        FileType::Socket => types::Filetype::SocketStream,
        FileType::Fifo => types::Filetype::Unknown,
    }
}

/// Metadata as `filestat`.
pub(super) fn filestat(metadata: &Metadata) -> types::Filestat {
    types::Filestat {
        dev: metadata.dev,
        ino: metadata.ino,
        filetype: file_type(metadata.kind),
        nlink: metadata.nlink,
        size: metadata.size,
        atim: nanoseconds(metadata.atime),
        mtim: nanoseconds(metadata.mtime),
        ctim: nanoseconds(metadata.ctime),
    }
}

/// Nanoseconds since 1970; what the type cannot hold is the nearest it can.
fn nanoseconds(time: Timestamp) -> u64 {
    u64::try_from(time.seconds)
        .map_or(0, |seconds| seconds.saturating_mul(1_000_000_000).saturating_add(u64::from(time.nanoseconds)))
}

/// The times of `*_filestat_set_times`.
///
/// # Errors
/// `EINVAL` when a time is to be set and to be now.
pub(super) fn set_times(atim: u64, mtim: u64, flags: types::Fstflags) -> Result<SetTimes, Errno> {
    let one = |time: u64, set: types::Fstflags, now: types::Fstflags| match (flags.contains(set), flags.contains(now)) {
        (true, true) => Err(Errno::Inval),
        (true, false) => {
            let (seconds, nanoseconds) = ((time / 1_000_000_000) as i64, (time % 1_000_000_000) as u32);
            Ok(SetTime::At(Timestamp { seconds, nanoseconds }))
        }
        (false, true) => Ok(SetTime::Now),
        (false, false) => Ok(SetTime::Omit),
    };
    Ok(SetTimes {
        accessed: one(atim, types::Fstflags::ATIM, types::Fstflags::ATIM_NOW)?,
        modified: one(mtim, types::Fstflags::MTIM, types::Fstflags::MTIM_NOW)?,
    })
}
