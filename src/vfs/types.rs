//! The plain data of the filesystem's border: what callers pass in and get back.
//!
//! In and out: values without behaviour. Does no I/O.

use std::sync::Arc;

use super::{Dir, File};
use crate::descriptors::Slot;

/// Longest name of one directory entry, in bytes (`NAME_MAX`).
pub const NAME_MAX: usize = 255;
/// Longest path of one call, in bytes, its terminator included as Linux counts (`PATH_MAX`).
pub const PATH_MAX: usize = 4096;

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileType {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device: shown, never opened.
    BlockDevice,
    /// A named pipe of the host.
    Fifo,
    /// A Unix socket of the host: shown, never opened.
    Socket,
}

/// A point in time, as `struct timespec` since 1970 UTC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Whole seconds; negative before 1970.
    pub seconds: i64,
    /// 0..1,000,000,000.
    pub nanoseconds: u32,
}

impl Timestamp {
    /// The wall clock now.
    #[must_use]
    pub fn now() -> Self {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        Self { seconds: now.tv_sec, nanoseconds: now.tv_nsec as u32 }
    }
}

/// What `stat` tells about a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metadata {
    /// Which filesystem; with [`Self::ino`] it names the node.
    pub dev: u64,
    /// Stable for the node's life, equal for its hard links.
    pub ino: u64,
    /// What it is.
    pub kind: FileType,
    /// Permission bits with setuid, setgid and sticky: `0o7777`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Hard links; for a directory 2 and its subdirectories.
    pub nlink: u64,
    /// Bytes; for a symbolic link the length of its target.
    pub size: u64,
    /// Device number of a device node, as `makedev`.
    pub rdev: u64,
    /// Bytes stored, in units of 512.
    pub blocks: u64,
    /// Last read (`relatime` or coarser).
    pub atime: Timestamp,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Last change of the content or the metadata.
    pub ctime: Timestamp,
}

/// Who asks. User 0 has what root of a Linux container has by default (`CAP_DAC_OVERRIDE`, `CAP_FOWNER`,
/// `CAP_CHOWN`, `CAP_FSETID`).
#[derive(Debug, Clone)]
pub struct Credentials {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Arc<[u32]>,
    /// Bits taken from the mode of what is created.
    pub umask: u32,
}

impl Credentials {
    /// User and group 0, no other groups, umask 022.
    #[must_use]
    pub fn root() -> Self {
        Self { uid: 0, gid: 0, groups: Arc::from([]), umask: 0o022 }
    }

    /// Whether `gid` is the primary or a supplementary group.
    #[must_use]
    pub fn in_group(&self, gid: u32) -> bool {
        self.gid == gid || self.groups.contains(&gid)
    }
}

/// What to do with a symbolic link at the end of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follow {
    /// Go on to its target.
    Yes,
    /// Take the link itself (`O_NOFOLLOW`, `AT_SYMLINK_NOFOLLOW`).
    No,
}

bitflags::bitflags! {
    /// How to open, as `open(2)`'s flags. Neither `READ` nor `WRITE` gives a file for `stat` alone (`O_PATH`).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct OpenFlags: u16 {
        /// For reading.
        const READ = 1;
        /// For writing.
        const WRITE = 1 << 1;
        /// Every write goes to the end; said to [`File`], whose `append` the caller then uses.
        const APPEND = 1 << 2;
        /// Make a regular file when there is none (`O_CREAT`).
        const CREATE = 1 << 3;
        /// With `CREATE`: fail with EEXIST when there is something (`O_EXCL`).
        const EXCLUSIVE = 1 << 4;
        /// Empty a regular file (`O_TRUNC`).
        const TRUNCATE = 1 << 5;
        /// Fail with ENOTDIR unless it is a directory (`O_DIRECTORY`).
        const DIRECTORY = 1 << 6;
    }
}

bitflags::bitflags! {
    /// What `access(2)` asks for; empty asks for existence.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct AccessMode: u8 {
        /// Execute, or search of a directory.
        const EXECUTE = 1;
        /// Write.
        const WRITE = 2;
        /// Read.
        const READ = 4;
    }
}

/// Everything `open` wants to know besides the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenOptions {
    /// The flags.
    pub flags: OpenFlags,
    /// Whether a link at the end is followed; without it a link is ELOOP.
    pub follow: Follow,
    /// Mode of a file that is made, before the umask; 0o666 by default.
    pub mode: u32,
}

impl OpenOptions {
    /// These flags, following links, mode 0o666.
    #[must_use]
    pub const fn new(flags: OpenFlags) -> Self {
        Self { flags, follow: Follow::Yes, mode: 0o666 }
    }

    /// For reading.
    #[must_use]
    pub const fn read() -> Self {
        Self::new(OpenFlags::READ)
    }
}

/// What opening gave.
#[derive(Debug, Clone)]
pub enum Opened {
    /// A file with bytes (or `/dev/null`, `zero`, `full`, `random`, or a FIFO).
    File(File),
    /// A directory.
    Dir(Dir),
    /// One of the caller's own streams.
    Device(Device),
}

impl Opened {
    /// Counted as open; a stream of the caller's own is counted already.
    pub(crate) fn holding(self, slot: Slot) -> Self {
        match self {
            Self::File(file) => Self::File(file.holding(slot)),
            Self::Dir(dir) => Self::Dir(dir.holding(slot)),
            Self::Device(device) => Self::Device(device),
        }
    }
}

/// A device whose bytes belong to the process, not to the filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Device {
    /// `/dev/stdin`.
    Stdin,
    /// `/dev/stdout`.
    Stdout,
    /// `/dev/stderr`.
    Stderr,
    /// `/dev/tty`.
    Tty,
    /// `/dev/signal`.
    Signal,
    /// An entry of `/proc/self/fd`: the process's own descriptor of this number.
    Descriptor(u32),
    /// An entry of `/proc/PID/fd`: another process's.
    DescriptorOf {
        /// The process.
        pid: u32,
        /// Its number.
        fd: u32,
    },
}

/// One timestamp of a `utimensat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    /// Keep it.
    Omit,
    /// The present time (allowed to whoever may write).
    Now,
    /// This time (allowed to the owner).
    At(Timestamp),
}

/// The timestamps of a `utimensat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SetTimes {
    /// Last read.
    pub accessed: SetTime,
    /// Last change.
    pub modified: SetTime,
}

/// Kinds of filesystems, by their numbers in linux/magic.h.
pub mod fs_type {
    /// Memory: projected volumes, `/dev`, `/tmp` of the node's making.
    pub const TMPFS: u32 = 0x0102_1994;
    /// An image with or without a writable layer.
    pub const OVERLAY: u32 = 0x794c_7630;
    /// `/proc`.
    pub const PROC: u32 = 0x0000_9fa0;
    /// `/sys/fs/cgroup`.
    pub const CGROUP2: u32 = 0x6367_7270;
}

/// What `statfs` tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatFs {
    /// Which filesystem, as Linux's `f_type`: one of [`fs_type`] for ours, the real one for a directory of the host.
    pub fs_type: u32,
    /// Bytes of one block; the unit of the next three.
    pub block_size: u64,
    /// Blocks in all.
    pub blocks: u64,
    /// Blocks not used.
    pub blocks_free: u64,
    /// Blocks a user may still fill.
    pub blocks_available: u64,
    /// Nodes in all.
    pub files: u64,
    /// Nodes not used.
    pub files_free: u64,
    /// Whether the mount refuses writes.
    pub access: crate::pod::run::Access,
}
