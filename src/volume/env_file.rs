//! Reading a file of variables from a volume that guests write.
//!
//! In: the volume's directory on the node, a path in it. Out: the file's text. What a guest put there decides nothing
//! beyond its own volume: links are followed inside it alone, what is no regular file is refused, and so is more than an
//! environment could hold. Does not know what is in the file (`pod::env_file`).

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};

/// More than any environment holds: a kernel takes 2 MiB of arguments and variables together.
const MAX_BYTES: u64 = 2 << 20;

/// The text of a file in the volume at `root`; `None` when it is not there.
///
/// # Errors
/// What the system says of it; a kind of its own for what is no regular file, too large, or no text.
pub fn read_env_file(root: &Path, path: &str) -> io::Result<Option<String>> {
    let dir = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    // A FIFO without a writer must not hold the thread.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    let relative = path.trim_start_matches('/');
    let file = match rustix::fs::openat2(&dir, relative, flags, Mode::empty(), resolve) {
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
        opened => File::from(opened?),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is larger than {MAX_BYTES} bytes")));
    }
    let text = String::from_utf8(bytes);
    text.map(Some).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8 text"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_file_is_read_from_its_volume_and_from_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("volume");
        fs::create_dir_all(root.join("sub")).unwrap();
        fs::write(dir.path().join("outside"), "outside").unwrap();
        fs::write(root.join("outside"), "inside").unwrap();
        fs::write(root.join("sub/vars"), "A='1'").unwrap();
        symlink("/sub/vars", root.join("absolute")).unwrap();
        symlink("../../../outside", root.join("sub/up")).unwrap();
        symlink(dir.path().join("outside"), root.join("there")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        fs::write(root.join("bytes"), [0xff]).unwrap();
        fs::write(root.join("large"), vec![b'#'; MAX_BYTES as usize + 1]).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, root.join("fifo"), rustix::fs::FileType::Fifo, Mode::from(0o600), 0)
            .unwrap();
        for (case, path, expected) in [
            ("a file", "sub/vars", Some("A='1'")),
            ("an absolute path is one in the volume", "/sub/vars", Some("A='1'")),
            ("so is an absolute link", "absolute", Some("A='1'")),
            ("dots end at the volume", "sub/up", Some("inside")),
            ("a link out of it leads nowhere", "there", None),
            ("what is not there", "none/vars", None),
            ("below a file", "outside/vars", None),
        ] {
            assert_eq!(read_env_file(&root, path).unwrap().as_deref(), expected, "{case}");
        }
        for (path, words) in [
            ("sub", "not a regular file"),
            ("fifo", "not a regular file"),
            ("bytes", "not UTF-8"),
            ("large", "larger than"),
            ("loop", "symbolic links"),
        ] {
            let error = read_env_file(&root, path).unwrap_err().to_string();
            assert!(error.contains(words), "{path}: {error}");
        }
    }
}
