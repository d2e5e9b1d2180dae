//! Tests of the one way into another container's tree: a provided link.

use std::sync::Arc;

use super::*;
use crate::vfs::testkit::{Guest, bare, user};
use crate::vfs::{FileType, Volume};

/// `/proc/PID/root` of the other container, and back from there.
#[derive(Debug)]
struct Roots {
    other: Namespace,
    own: Namespace,
}

impl Provider for Roots {
    fn get(&self, path: &str) -> Option<Provided> {
        Some(match path {
            "/proc" | "/proc/8" => Provided::Directory(vec![("root".into(), FileType::Symlink)]),
            "/proc/8/root" => Provided::Into { tree: self.tree(), target: "/".into() },
            "/proc/8/cwd" => Provided::Into { tree: self.tree(), target: "/etc".into() },
            "/proc/8/exe" => Provided::Into { tree: self.tree(), target: "/etc/conf".into() },
            _ => return None,
        })
    }
}

impl Roots {
    fn tree(&self) -> Namespace {
        self.other.for_process(Arc::new(Self { other: self.own.clone(), own: self.other.clone() }))
    }
}

async fn two() -> (Guest, Guest) {
    let dir = tempfile::tempdir().unwrap();
    let volume = Volume::hanging_host_path(dir.path());
    let builder = bare().provided("/proc").mount("/hanging", volume, "", crate::pod::run::Access::ReadWrite);
    let other = Guest::new("other", builder, "/", dir).await;
    other.mkdir("etc").await.unwrap();
    other.write("etc/conf", b"theirs").await.unwrap();
    other.write("hanging/far", b"far").await.unwrap();
    other.symlink("/etc/conf", "absolute").await.unwrap();
    other.symlink("/proc/8/root/back", "forth").await.unwrap();
    let mut own = Guest::new("own", bare().provided("/proc"), "/", tempfile::tempdir().unwrap()).await;
    own.mkdir("etc").await.unwrap();
    own.write("etc/conf", b"own").await.unwrap();
    own.symlink("/proc/8/root/forth", "back").await.unwrap();
    own.symlink("proc/8/root", "there").await.unwrap();
    let roots = Roots { other: other.ns.clone(), own: own.ns.clone() };
    own.ns = own.ns.for_process(Arc::new(roots));
    (own, other)
}

#[tokio::test]
async fn a_link_to_a_root_leads_into_that_containers_tree() {
    let (own, other) = two().await;
    assert_eq!(own.text("proc/8/root/etc/conf").await.unwrap(), "theirs");
    assert_eq!(own.text("there//etc/conf").await.unwrap(), "theirs", "by a link to the link");
    assert_eq!(own.text("proc/8/root/absolute").await.unwrap(), "theirs", "its root is the root there");
    assert_eq!(own.text("proc/8/root/../../etc/conf").await.unwrap(), "theirs", "and the end of `..`");
    assert_eq!(own.text("proc/8/root/proc/8/root/etc/conf").await.unwrap(), "own", "and back");
    assert_eq!(own.text("proc/8/root/hanging/far").await.unwrap(), "far", "on that mount's pool");
    assert_eq!(own.names("proc/8/root/").await.unwrap(), ["absolute", "etc", "forth", "hanging", "proc"]);
    assert_eq!(own.stat("proc/8/root").await.unwrap().ino, other.stat("/").await.unwrap().ino);
    assert_ne!(own.stat("proc/8/root").await.unwrap().dev, own.stat("/").await.unwrap().dev);
    assert_eq!(own.stat("proc/8/root/none").await.unwrap_err(), Errno::NoEnt);
    assert_eq!(own.names("proc/8/cwd").await.unwrap(), ["conf"]);
    assert_eq!(own.text("proc/8/exe").await.unwrap(), "theirs");
    assert_eq!(own.stat("proc/8/exe/").await.unwrap_err(), Errno::NotDir);
    assert_eq!(own.ns.readlink(&own.cred, &own.at, "proc/8/exe").await.unwrap(), "/etc/conf");
    // The link itself is a link.
    assert_eq!(own.lstat("proc/8/root").await.unwrap().kind, FileType::Symlink);
    assert_eq!(own.ns.readlink(&own.cred, &own.at, "proc/8/root").await.unwrap(), "/");
    assert_eq!(own.unlink("proc/8/root").await.unwrap_err(), Errno::RoFs);
    assert_eq!(own.stat("back").await.unwrap_err(), Errno::Loop, "from tree to tree for ever");
}

#[tokio::test]
async fn what_is_done_in_another_containers_tree_is_done_there() {
    let (mut own, other) = two().await;
    own.write("proc/8/root/new", b"from outside").await.unwrap();
    assert_eq!(other.text("new").await.unwrap(), "from outside");
    own.mkdir("proc/8/root/made").await.unwrap();
    own.unlink("proc/8/root/new").await.unwrap();
    assert_eq!(other.names("/").await.unwrap(), ["absolute", "etc", "forth", "hanging", "made", "proc"]);
    // Across the border nothing can be moved or linked.
    assert_eq!(own.rename("proc/8/root/etc/conf", "stolen").await, Err(Errno::XDev));
    assert_eq!(own.link("etc/conf", "proc/8/root/linked").await, Err(Errno::XDev));
    // A handle from there goes on there.
    let there = match own.open("proc/8/root/etc", OpenFlags::READ | OpenFlags::DIRECTORY).await.unwrap() {
        Opened::Dir(dir) => dir,
        other => panic!("{other:?}"),
    };
    let at = std::mem::replace(&mut own.at, there);
    assert_eq!(own.text("conf").await.unwrap(), "theirs");
    own.rename("conf", "moved").await.unwrap();
    assert_eq!(own.text("../etc/moved").await.unwrap(), "theirs");
    assert_eq!(own.ns.rename(&own.cred, &own.at, "moved", &at, "stolen").await, Err(Errno::XDev));
    // Modes hold as anywhere.
    other.ns.chmod(&other.cred, &other.at, "etc/moved", 0o600).await.unwrap();
    own.cred = user(1000);
    assert_eq!(own.text("moved").await.unwrap_err(), Errno::Acces);
}
