//! Rotated files: their names, how many stay, and the thread that compresses them.
//!
//! In: the path of a current log. Out: `N.log.YYYYMMDD-HHMMSS` beside it, all but the newest of them
//! gzipped, as the kubelet's container log manager leaves them. Never touches the current file's bytes.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::SystemTime;

use flate2::read::GzDecoder;
use flate2::{Compression, GzBuilder};
use jiff::Timestamp;

use super::LogError;

/// A log's permissions: readable by the group that collectors run in, as containerd makes them.
pub(super) const LOG_MODE: u32 = 0o640;

/// Jobs waiting for the compressor. More than that wait for their log's next rotation, which compresses
/// whatever it finds plain.
const QUEUE: usize = 256;

/// One file of a rotated log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RotatedFile {
    /// Its path as it is now.
    pub(super) path: PathBuf,
    /// What orders it among its siblings: `YYYYMMDD-HHMMSS` and a number for more than one a second.
    pub(super) stamp: String,
    /// Whether it ends in `.gz`.
    pub(super) compressed: bool,
}

/// The name that the current log at `path` gets when it's rotated at `now`.
///
/// The kubelet looks at sizes every ten seconds, we at every write: a flood rotates more than once a second,
/// and the later files of a second get `-NNNN` behind the kubelet's form.
pub(super) fn rotated_path(path: &Path, now: Timestamp, newest: Option<&RotatedFile>) -> PathBuf {
    // UTC, so that names sort through a change of summer time.
    let second = now.strftime("%Y%m%d-%H%M%S").to_string();
    let stamp = match newest {
        // A clock set back must not put new files before old ones.
        Some(newest) if newest.stamp.as_str() >= second.as_str() => {
            let (second, count) = match newest.stamp.get(..15).zip(newest.stamp.get(16..)) {
                Some((second, count)) => (second, count.parse::<u32>().unwrap_or(0)),
                None => (newest.stamp.as_str(), 0),
            };
            format!("{second}-{:04}", count.saturating_add(1))
        }
        _ => second,
    };
    with_suffix(path, &stamp)
}

/// All rotated files of the log at `path`, oldest first. Leftovers of an interrupted compression are not among them.
pub(super) fn list(path: &Path) -> io::Result<Vec<RotatedFile>> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(|n| n.to_str())) else {
        return Ok(Vec::new());
    };
    let mut found: Vec<RotatedFile> = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let file_name = entry.file_name();
        let Some(stamp) = file_name.to_str().and_then(|n| n.strip_prefix(name)?.strip_prefix('.')) else { continue };
        let (stamp, compressed) = match stamp.strip_suffix(".gz") {
            Some(stamp) => (stamp, true),
            None => (stamp, false),
        };
        if is_stamp(stamp) {
            found.push(RotatedFile { path: entry.path(), stamp: stamp.to_owned(), compressed });
        }
    }
    // A plain file that is also there compressed is the leftover of a crash before its removal.
    found.sort_by(|a, b| a.stamp.cmp(&b.stamp).then(b.compressed.cmp(&a.compressed)));
    found.dedup_by(|later, kept| later.stamp == kept.stamp);
    Ok(found)
}

fn is_stamp(text: &str) -> bool {
    let bytes = text.as_bytes();
    let digits = |range: std::ops::Range<usize>| bytes[range].iter().all(u8::is_ascii_digit);
    match bytes.len() {
        15 => digits(0..8) && bytes[8] == b'-' && digits(9..15),
        17..=26 => digits(0..8) && bytes[8] == b'-' && digits(9..15) && bytes[15] == b'-' && digits(16..bytes.len()),
        _ => false,
    }
}

/// Unlinks the oldest rotated files until `keep` are left. Returns what stays.
pub(super) fn remove_excess(mut files: Vec<RotatedFile>, keep: usize) -> io::Result<Vec<RotatedFile>> {
    let excess = files.len().saturating_sub(keep);
    for file in files.drain(..excess) {
        ignore_absent(fs::remove_file(&file.path))?;
    }
    Ok(files)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    PathBuf::from(name)
}

pub(super) fn ignore_absent(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The one thread that compresses rotated logs; it ends when the last handle is gone.
#[derive(Debug, Clone)]
pub(super) struct Compressor {
    queue: SyncSender<PathBuf>,
}

impl Compressor {
    pub(super) fn start() -> io::Result<Self> {
        let (queue, jobs) = sync_channel(QUEUE);
        std::thread::Builder::new().name("log-compressor".to_owned()).spawn(move || compress_all(&jobs))?;
        Ok(Self { queue })
    }

    /// Asks for the older rotated files of `log` to be compressed. Never waits.
    pub(super) fn request(&self, log: &Path) {
        match self.queue.try_send(log.to_owned()) {
            Ok(()) | Err(TrySendError::Full(_)) => {}
            Err(TrySendError::Disconnected(_)) => tracing::warn!(log = %log.display(), "Log compressor is gone"),
        }
    }
}

fn compress_all(jobs: &Receiver<PathBuf>) {
    while let Ok(log) = jobs.recv() {
        if let Err(error) = compress_older(&log) {
            tracing::warn!(log = %log.display(), err = %error, "Failed to compress rotated logs");
        }
    }
}

/// Compresses every rotated file of `log` but the newest.
pub(super) fn compress_older(log: &Path) -> io::Result<()> {
    let mut files = list(log)?;
    files.pop();
    for file in files.iter().filter(|file| !file.compressed) {
        ignore_absent(compress(&file.path))?;
    }
    Ok(())
}

fn compress(plain: &Path) -> io::Result<()> {
    let mut input = File::open(plain)?;
    let metadata = input.metadata()?;
    let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
    let temporary = with_suffix(plain, "tmp");
    let output = File::options().write(true).create(true).truncate(true).mode(LOG_MODE).open(&temporary)?;
    let result = (|| {
        // A reader in the middle of the plain file finds its place again by the inode and the time.
        let header = GzBuilder::new().comment(metadata.ino().to_string());
        let mut encoder = header.write(&output, Compression::fast());
        io::copy(&mut input, &mut encoder)?;
        encoder.finish()?.flush()?;
        output.set_modified(modified)?;
        output.sync_all()?;
        // Gone means the writer removed it as too old: then the copy is too.
        fs::metadata(plain)?;
        fs::rename(&temporary, with_suffix(plain, "gz"))?;
        fs::remove_file(plain)
    })();
    if result.is_err() {
        ignore_absent(fs::remove_file(&temporary))?;
    }
    result
}

/// The inode of the plain file that the compressed one at `path` was made from.
pub(super) fn compressed_inode(path: &Path) -> Option<u64> {
    let decoder = GzDecoder::new(File::open(path).ok()?);
    std::str::from_utf8(decoder.header()?.comment()?).ok()?.parse().ok()
}

/// Removes what an interrupted compression left beside the log at `path`.
pub(super) fn remove_leftovers(path: &Path) -> Result<(), LogError> {
    let io = |source| LogError::Io { step: "clean up after rotation", path: path.to_owned(), source };
    let Some((dir, name)) = path.parent().zip(path.file_name().and_then(|n| n.to_str())) else { return Ok(()) };
    for entry in fs::read_dir(dir).map_err(io)? {
        let entry = entry.map_err(io)?;
        let file_name = entry.file_name();
        let Some(rest) = file_name.to_str().and_then(|n| n.strip_prefix(name)?.strip_prefix('.')) else { continue };
        let half_done = rest.strip_suffix(".tmp").is_some_and(is_stamp);
        let done_twice = is_stamp(rest) && with_suffix(&entry.path(), "gz").exists();
        if half_done || done_twice {
            ignore_absent(fs::remove_file(entry.path())).map_err(io)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn touch(dir: &Path, name: &str, content: &str) {
        fs::write(dir.join(name), content).unwrap();
    }

    fn stamps(path: &Path) -> Vec<(String, bool)> {
        list(path).unwrap().into_iter().map(|f| (f.stamp, f.compressed)).collect()
    }

    #[test]
    fn names_are_the_kubelets_and_keep_their_order_within_a_second_and_when_the_clock_goes_back() {
        let now: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
        let path = Path::new("/l/0.log");
        assert_eq!(rotated_path(path, now, None), Path::new("/l/0.log.20260102-030405"));
        let newest = |stamp: &str| RotatedFile { path: PathBuf::new(), stamp: stamp.to_owned(), compressed: false };
        for (case, newest, expected) in [
            ("same second", newest("20260102-030405"), "/l/0.log.20260102-030405-0001"),
            ("third of a second", newest("20260102-030405-0001"), "/l/0.log.20260102-030405-0002"),
            ("clock set back", newest("20270102-030405"), "/l/0.log.20270102-030405-0001"),
            ("later", newest("20260102-030404-0009"), "/l/0.log.20260102-030405"),
        ] {
            assert_eq!(rotated_path(path, now, Some(&newest)), Path::new(expected), "{case}");
        }
    }

    #[test]
    fn only_rotated_files_of_this_very_log_are_listed() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "0.log",
            "10.log.20260102-030405",
            "0.log.20260102-030405.gz",
            "0.log.20260102-030405",
            "0.log.20260101-000000",
            "0.log.20260102-030405-0002.gz",
            "0.log.20260103-000000.tmp",
            "0.log.old",
            "0.log.20260102-030405.gz.tmp",
        ] {
            touch(dir.path(), name, "");
        }
        assert_eq!(
            stamps(&dir.path().join("0.log")),
            [
                ("20260101-000000".to_owned(), false),
                ("20260102-030405".to_owned(), true),
                ("20260102-030405-0002".to_owned(), true)
            ]
        );
    }

    #[test]
    fn all_but_the_newest_rotated_file_are_compressed_with_their_time_kept() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("0.log");
        touch(dir.path(), "0.log.20260101-000000", "old");
        touch(dir.path(), "0.log.20260102-000000", "new");
        let before = fs::metadata(dir.path().join("0.log.20260101-000000")).unwrap().modified().unwrap();
        compress_older(&log).unwrap();
        assert_eq!(stamps(&log), [("20260101-000000".to_owned(), true), ("20260102-000000".to_owned(), false)]);
        let gz = dir.path().join("0.log.20260101-000000.gz");
        assert_eq!(fs::metadata(&gz).unwrap().modified().unwrap(), before);
        let mut text = String::new();
        flate2::read::GzDecoder::new(File::open(gz).unwrap()).read_to_string(&mut text).unwrap();
        assert_eq!(text, "old");
    }

    #[test]
    fn a_crash_between_compressing_and_removing_leaves_no_line_twice() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("0.log");
        for name in ["0.log.20260101-000000", "0.log.20260101-000000.gz", "0.log.20260102-000000.tmp"] {
            touch(dir.path(), name, "x");
        }
        assert_eq!(stamps(&log), [("20260101-000000".to_owned(), true)]);
        remove_leftovers(&log).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
