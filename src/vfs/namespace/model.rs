//! The model test: random operations on each backend and, by `std::fs`, on a real directory of this kernel.
//! Every result and, at the end, every node must be the same.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::vfs::testkit::Guest;
use crate::vfs::{FileType, OpenFlags};

#[derive(Debug, Clone)]
enum Op {
    Mkdir(String),
    Rmdir(String),
    Write(String, usize, u8, u16),
    Append(String, u8),
    Exclusive(String),
    Truncate(String, u32),
    Unlink(String),
    Rename(String, String),
    Link(String, String),
    Symlink(&'static str, String),
    Chmod(String, u32),
    Read(String),
    List(String),
    Stat(String),
}

/// Few names, so that operations meet.
fn path() -> impl Strategy<Value = String> {
    let name = prop::sample::select(vec!["a", "b", "c", ".", "a/.."]);
    let path = prop::collection::vec(name, 1..4).prop_map(|names| names.join("/"));
    (path, prop::bool::weighted(0.1)).prop_map(|(path, slash)| if slash { path + "/" } else { path })
}

fn op() -> impl Strategy<Value = Op> {
    let target = prop::sample::select(vec!["a", "b/c", "c", "a/b/", "none", "./b"]);
    prop_oneof![
        3 => path().prop_map(Op::Mkdir),
        1 => path().prop_map(Op::Rmdir),
        3 => (path(), 0..200_000usize, any::<u8>(), any::<u16>()).prop_map(|(p, at, byte, len)| Op::Write(p, at, byte, len)),
        1 => (path(), any::<u8>()).prop_map(|(p, byte)| Op::Append(p, byte)),
        1 => path().prop_map(Op::Exclusive),
        1 => (path(), 0..300_000u32).prop_map(|(p, len)| Op::Truncate(p, len)),
        2 => path().prop_map(Op::Unlink),
        4 => (path(), path()).prop_map(|(a, b)| Op::Rename(a, b)),
        2 => (path(), path()).prop_map(|(a, b)| Op::Link(a, b)),
        2 => (target, path()).prop_map(|(t, p)| Op::Symlink(t, p)),
        1 => (path(), 0..0o1000u32).prop_map(|(p, mode)| Op::Chmod(p, mode | 0o700)),
        2 => path().prop_map(Op::Read),
        1 => path().prop_map(Op::List),
        1 => path().prop_map(Op::Stat),
    ]
}

/// What an operation shows: an error, or something to compare.
type Outcome = Result<Vec<u8>, Errno>;

fn oracle(root: &Path, op: &Op) -> Outcome {
    // A trailing slash must reach the kernel: no `Path` may clean it away.
    let at = |path: &String| format!("{}/{path}", root.display());
    let done = |()| Vec::new();
    Ok(match op {
        Op::Mkdir(p) => {
            fs::create_dir(at(p))?;
            fs::set_permissions(at(p), fs::Permissions::from_mode(0o755)).map(done)?
        }
        Op::Rmdir(p) => done(rustix::fs::unlinkat(rustix::fs::CWD, at(p), rustix::fs::AtFlags::REMOVEDIR)?),
        Op::Write(p, offset, byte, len) => {
            let file = fs::OpenOptions::new().write(true).create(true).truncate(false).open(at(p))?;
            file.write_all_at(&vec![*byte; usize::from(*len)], *offset as u64).map(done)?
        }
        Op::Append(p, byte) => {
            let mut file = fs::OpenOptions::new().append(true).create(true).open(at(p))?;
            file.write_all(&[*byte; 9]).map(done)?
        }
        Op::Exclusive(p) => fs::OpenOptions::new().write(true).create_new(true).open(at(p)).map(|_| Vec::new())?,
        Op::Truncate(p, len) => fs::OpenOptions::new().write(true).open(at(p))?.set_len(u64::from(*len)).map(done)?,
        Op::Unlink(p) => done(rustix::fs::unlink(at(p))?),
        Op::Rename(a, b) => done(rustix::fs::rename(at(a), at(b))?),
        Op::Link(a, b) => done(rustix::fs::link(at(a), at(b))?),
        Op::Symlink(target, p) => done(rustix::fs::symlink(*target, at(p))?),
        Op::Chmod(p, mode) => fs::set_permissions(at(p), fs::Permissions::from_mode(*mode)).map(done)?,
        Op::Read(p) => fs::read(at(p))?,
        Op::List(p) => {
            let names = fs::read_dir(at(p))?.map(|entry| entry.map(|entry| entry.file_name()));
            let mut names = names.collect::<Result<Vec<_>, _>>()?;
            names.sort();
            format!("{names:?}").into_bytes()
        }
        Op::Stat(p) => show(&fs::metadata(at(p))?),
    })
}

fn show(meta: &fs::Metadata) -> Vec<u8> {
    let size = if meta.is_dir() { 0 } else { meta.len() };
    let links = if meta.is_dir() { 0 } else { meta.nlink() };
    format!("{:o} {size} {links}", meta.mode()).into_bytes()
}

fn show_ours(meta: &Metadata) -> Vec<u8> {
    let kind = match meta.kind {
        FileType::Directory => libc::S_IFDIR,
        FileType::Symlink => libc::S_IFLNK,
        _ => libc::S_IFREG,
    };
    let is_dir = meta.kind == FileType::Directory;
    let (size, links) = if is_dir { (0, 0) } else { (meta.size, meta.nlink) };
    format!("{:o} {size} {links}", kind | meta.mode).into_bytes()
}

async fn subject(g: &Guest, op: &Op) -> Outcome {
    let done = |()| Vec::new();
    let new = OpenFlags::WRITE | OpenFlags::CREATE;
    Ok(match op {
        Op::Mkdir(p) => g.mkdir(p).await.map(done)?,
        Op::Rmdir(p) => g.rmdir(p).await.map(done)?,
        Op::Write(p, offset, byte, len) => {
            let file = g.file(p, new).await?;
            let bytes = vec![*byte; usize::from(*len)];
            let mut at = 0;
            while at < bytes.len() {
                at += file.write_at(&bytes[at..], (offset + at) as u64).await?;
            }
            Vec::new()
        }
        Op::Append(p, byte) => g.file(p, new).await?.append(&[*byte; 9]).await.map(|_| Vec::new())?,
        Op::Exclusive(p) => g.open(p, new | OpenFlags::EXCLUSIVE).await.map(|_| Vec::new())?,
        Op::Truncate(p, len) => g.file(p, OpenFlags::WRITE).await?.set_len(u64::from(*len)).await.map(done)?,
        Op::Unlink(p) => g.unlink(p).await.map(done)?,
        Op::Rename(a, b) => g.rename(a, b).await.map(done)?,
        Op::Link(a, b) => g.link(a, b).await.map(done)?,
        Op::Symlink(target, p) => g.symlink(target, p).await.map(done)?,
        Op::Chmod(p, mode) => g.ns.chmod(&g.cred, &g.at, p, *mode).await.map(done)?,
        Op::Read(p) => g.read(p).await?,
        Op::List(p) => match g.open(p, OpenFlags::READ | OpenFlags::DIRECTORY).await? {
            Opened::Dir(_) => format!("{:?}", g.names(p).await?).into_bytes(),
            _ => return Err(Errno::NotDir),
        },
        Op::Stat(p) => show_ours(&g.stat(p).await?),
    })
}

/// Every path of the oracle's tree.
fn paths(root: &Path) -> Vec<String> {
    let (mut out, mut todo) = (Vec::new(), vec![String::new()]);
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(root.join(&dir)).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let path = if dir.is_empty() { name } else { format!("{dir}/{name}") };
            if entry.file_type().unwrap().is_dir() {
                todo.push(path.clone());
            }
            out.push(path);
        }
    }
    out
}

async fn run(ops: &[Op]) {
    for g in Guest::everywhere().await {
        let real = tempfile::tempdir().unwrap();
        fs::set_permissions(real.path(), fs::Permissions::from_mode(0o755)).unwrap();
        g.ns.chmod(&g.cred, &g.at, ".", 0o755).await.unwrap();
        for (step, op) in ops.iter().enumerate() {
            let (expected, got) = (oracle(real.path(), op), subject(&g, op).await);
            assert!(
                expected == got,
                "{}: step {step} {op:?}: kernel {:?}, we {:?}",
                g.name,
                brief(&expected),
                brief(&got)
            );
        }
        for path in paths(real.path()) {
            let meta = fs::symlink_metadata(real.path().join(&path)).unwrap();
            let ours = g.lstat(&path).await.unwrap();
            assert_eq!(show(&meta), show_ours(&ours), "{}: {path}", g.name);
            if meta.is_file() {
                assert!(
                    fs::read(real.path().join(&path)).unwrap() == g.read(&path).await.unwrap(),
                    "{}: {path}",
                    g.name
                );
            }
        }
    }
}

fn brief(outcome: &Outcome) -> Result<String, Errno> {
    outcome.as_ref().map(|bytes| String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned()).map_err(|&e| e)
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_backend_does_what_the_kernel_does(ops in prop::collection::vec(op(), 1..60)) {
        // The oracle's files are made as a container's: by user 0 without a umask.
        rustix::process::umask(rustix::fs::Mode::empty());
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(run(&ops));
    }
}
