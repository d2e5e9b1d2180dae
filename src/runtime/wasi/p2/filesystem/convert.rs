//! Values of `vfs` to those of `wasi:filesystem/types` and back.
//!
//! Pure functions; what the interface cannot express (a time before 1970) is left out, never wrapped.

use wasmtime_wasi::p2::bindings::clocks::wall_clock::Datetime;

use super::super::bindings::filesystem::types::{
    Advice, DescriptorFlags, DescriptorStat, DescriptorType, ErrorCode, MetadataHashValue, NewTimestamp, OpenFlags,
    PathFlags,
};
use super::super::errors::FsResult;
use super::streams::Durability;
use crate::vfs::{self, FileType, Follow, Metadata, SetTime, SetTimes, Timestamp};

/// The interface's name for a kind of file.
pub fn descriptor_type(kind: FileType) -> DescriptorType {
    match kind {
        FileType::Regular => DescriptorType::RegularFile,
        FileType::Directory => DescriptorType::Directory,
        FileType::Symlink => DescriptorType::SymbolicLink,
        FileType::CharDevice => DescriptorType::CharacterDevice,
        FileType::BlockDevice => DescriptorType::BlockDevice,
        FileType::Fifo => DescriptorType::Fifo,
        FileType::Socket => DescriptorType::Socket,
    }
}

/// A time as the interface has it; `None` before 1970, which it cannot express.
fn datetime(time: Timestamp) -> Option<Datetime> {
    Some(Datetime { seconds: u64::try_from(time.seconds).ok()?, nanoseconds: time.nanoseconds })
}

/// The result of `stat`.
pub fn descriptor_stat(metadata: &Metadata) -> DescriptorStat {
    DescriptorStat {
        type_: descriptor_type(metadata.kind),
        link_count: metadata.nlink,
        size: metadata.size,
        data_access_timestamp: datetime(metadata.atime),
        data_modification_timestamp: datetime(metadata.mtime),
        status_change_timestamp: datetime(metadata.ctime),
    }
}

/// SplitMix64's mixing step: every bit of the input moves every bit of the output.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// The identity of a file, from its device and inode number alone.
///
/// The interface would allow times in it, but every libc makes `st_ino` of it, and a number that changes
/// with each write breaks programs that recognise files by it. For one device the lower half is a
/// bijection of the inode number, so two files never share it.
pub fn metadata_hash(metadata: &Metadata) -> MetadataHashValue {
    let lower = metadata.ino ^ mix(metadata.dev);
    MetadataHashValue { lower, upper: mix(lower) }
}

/// Whether the last symlink of a path is followed.
pub fn follow(flags: PathFlags) -> Follow {
    if flags.contains(PathFlags::SYMLINK_FOLLOW) { Follow::Yes } else { Follow::No }
}

/// The flags a file keeps of those it was opened with: all but the one for directories.
pub fn file_flags(flags: DescriptorFlags) -> DescriptorFlags {
    let of_files = DescriptorFlags::READ
        | DescriptorFlags::WRITE
        | DescriptorFlags::FILE_INTEGRITY_SYNC
        | DescriptorFlags::DATA_INTEGRITY_SYNC
        | DescriptorFlags::REQUESTED_WRITE_SYNC;
    flags & of_files
}

/// What each write through a descriptor waits for.
pub fn durability(flags: DescriptorFlags) -> Durability {
    if flags.contains(DescriptorFlags::FILE_INTEGRITY_SYNC) {
        Durability::File
    } else if flags.intersects(DescriptorFlags::DATA_INTEGRITY_SYNC | DescriptorFlags::REQUESTED_WRITE_SYNC) {
        Durability::Data
    } else {
        Durability::Cached
    }
}

/// The two times of `set-times`.
///
/// # Errors
/// `overflow` for a time `vfs` cannot hold, `invalid` for a nanosecond count of a second or more.
pub fn set_times(accessed: NewTimestamp, modified: NewTimestamp) -> FsResult<SetTimes> {
    Ok(SetTimes { accessed: set_time(accessed)?, modified: set_time(modified)? })
}

fn set_time(time: NewTimestamp) -> FsResult<SetTime> {
    match time {
        NewTimestamp::NoChange => Ok(SetTime::Omit),
        NewTimestamp::Now => Ok(SetTime::Now),
        NewTimestamp::Timestamp(Datetime { nanoseconds: 1_000_000_000.., .. }) => Err(ErrorCode::Invalid.into()),
        NewTimestamp::Timestamp(time) => {
            let seconds = i64::try_from(time.seconds).map_err(|_| ErrorCode::Overflow)?;
            Ok(SetTime::At(Timestamp { seconds, nanoseconds: time.nanoseconds }))
        }
    }
}

/// Refuses combinations that the interface has no meaning for, as POSIX's open does.
///
/// # Errors
/// `invalid` for a directory that should be created or truncated.
pub fn check_open_flags(flags: OpenFlags) -> FsResult<()> {
    let writes = OpenFlags::CREATE | OpenFlags::EXCLUSIVE | OpenFlags::TRUNCATE;
    if flags.contains(OpenFlags::DIRECTORY) && flags.intersects(writes) {
        return Err(ErrorCode::Invalid.into());
    }
    Ok(())
}

/// What `vfs` is asked for.
pub fn open_options(path: PathFlags, open: OpenFlags, descriptor: DescriptorFlags) -> vfs::OpenOptions {
    let mut flags = vfs::OpenFlags::empty();
    flags.set(vfs::OpenFlags::READ, descriptor.contains(DescriptorFlags::READ));
    flags.set(vfs::OpenFlags::WRITE, descriptor.contains(DescriptorFlags::WRITE));
    flags.set(vfs::OpenFlags::CREATE, open.contains(OpenFlags::CREATE));
    flags.set(vfs::OpenFlags::EXCLUSIVE, open.contains(OpenFlags::EXCLUSIVE));
    flags.set(vfs::OpenFlags::TRUNCATE, open.contains(OpenFlags::TRUNCATE));
    flags.set(vfs::OpenFlags::DIRECTORY, open.contains(OpenFlags::DIRECTORY));
    vfs::OpenOptions { follow: follow(path), ..vfs::OpenOptions::new(flags) }
}

/// A hint about future reads.
pub fn advice(advice: Advice) -> vfs::Advice {
    match advice {
        Advice::Normal => vfs::Advice::Normal,
        Advice::Sequential => vfs::Advice::Sequential,
        Advice::Random => vfs::Advice::Random,
        Advice::WillNeed => vfs::Advice::WillNeed,
        Advice::DontNeed => vfs::Advice::DontNeed,
        Advice::NoReuse => vfs::Advice::NoReuse,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(dev: u64, ino: u64, seconds: i64) -> Metadata {
        let time = Timestamp { seconds, nanoseconds: 5 };
        Metadata {
            dev,
            ino,
            kind: FileType::Regular,
            mode: 0o644,
            uid: 0,
            gid: 0,
            nlink: 1,
            size: 3,
            rdev: 0,
            blocks: 1,
            atime: time,
            mtime: time,
            ctime: time,
        }
    }

    #[test]
    fn a_file_keeps_its_identity_when_it_is_written() {
        let (before, after) = (metadata_hash(&metadata(1, 7, 10)), metadata_hash(&metadata(1, 7, 99)));
        assert_eq!((before.lower, before.upper), (after.lower, after.upper));
    }

    #[test]
    fn files_of_one_device_never_share_an_identity() {
        let mut seen = std::collections::HashSet::new();
        for ino in 0..10_000 {
            assert!(seen.insert(metadata_hash(&metadata(3, ino, 0)).lower));
        }
        assert_ne!(metadata_hash(&metadata(1, 7, 0)).lower, metadata_hash(&metadata(2, 7, 0)).lower);
    }

    #[test]
    fn a_time_before_1970_is_left_out() {
        assert!(descriptor_stat(&metadata(1, 1, -1)).data_modification_timestamp.is_none());
        assert_eq!(descriptor_stat(&metadata(1, 1, 9)).data_modification_timestamp.unwrap().seconds, 9);
    }

    #[test]
    fn times_that_no_file_can_have_are_refused() {
        let at = |seconds, nanoseconds| set_time(NewTimestamp::Timestamp(Datetime { seconds, nanoseconds }));
        assert!(matches!(at(1, 2).unwrap(), SetTime::At(Timestamp { seconds: 1, nanoseconds: 2 })));
        assert!(matches!(at(u64::MAX, 0).unwrap_err().into_code().unwrap(), ErrorCode::Overflow));
        assert!(matches!(at(0, 1_000_000_000).unwrap_err().into_code().unwrap(), ErrorCode::Invalid));
    }

    #[test]
    fn a_directory_is_neither_created_nor_truncated_by_opening() {
        for flags in [OpenFlags::CREATE, OpenFlags::TRUNCATE, OpenFlags::EXCLUSIVE] {
            assert!(check_open_flags(flags | OpenFlags::DIRECTORY).is_err());
            assert!(check_open_flags(flags).is_ok());
        }
        assert!(check_open_flags(OpenFlags::DIRECTORY).is_ok());
    }

    #[test]
    fn open_flags_are_those_of_open() {
        let options = open_options(
            PathFlags::empty(),
            OpenFlags::CREATE | OpenFlags::EXCLUSIVE,
            DescriptorFlags::WRITE | DescriptorFlags::MUTATE_DIRECTORY,
        );
        assert_eq!(options.flags, vfs::OpenFlags::WRITE | vfs::OpenFlags::CREATE | vfs::OpenFlags::EXCLUSIVE);
        assert_eq!(options.follow, Follow::No);
    }
}
