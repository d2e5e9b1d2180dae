//! The filesystem as a container sees it, held to the kernel's answers rule by rule.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use super::*;
use crate::pod::run::{Access, Medium, ProjectedFile, Projection, Tty};
use crate::vfs::testkit::{Guest, Item, bare, root_cred, stack_of, user};
use crate::vfs::{
    Charge, Device, FileType, GroupChange, ManagedFile, MountError, OpenFlags, SetTime, Timestamp, Volume,
    layer::LayerStack,
};

const NEW: OpenFlags = OpenFlags::WRITE.union(OpenFlags::CREATE);

#[tokio::test]
async fn every_backend_gives_linux_errors() {
    for g in Guest::everywhere().await {
        let n = g.name;
        g.mkdir("d").await.unwrap();
        g.write("f", b"1").await.unwrap();
        g.write("d/x", b"1").await.unwrap();
        g.symlink("loop", "loop").await.unwrap();
        g.symlink("f", "lf").await.unwrap();
        g.symlink("d", "ld").await.unwrap();
        assert_eq!(g.stat("none").await.unwrap_err(), Errno::NoEnt, "{n}");
        assert_eq!(g.stat("").await.unwrap_err(), Errno::NoEnt, "{n}");
        assert_eq!(g.stat("f/x").await.unwrap_err(), Errno::NotDir, "{n}");
        assert_eq!(g.stat("f/").await.unwrap_err(), Errno::NotDir, "{n}");
        assert_eq!(g.stat("lf/").await.unwrap_err(), Errno::NotDir, "{n}");
        assert_eq!(g.lstat("ld/").await.unwrap().kind, FileType::Directory, "{n}");
        assert_eq!(g.stat("loop").await.unwrap_err(), Errno::Loop, "{n}");
        assert_eq!(g.stat(&"x".repeat(256)).await.unwrap_err(), Errno::NameTooLong, "{n}");
        assert_eq!(g.mkdir("d").await.unwrap_err(), Errno::Exist, "{n}");
        assert_eq!(g.mkdir("loop").await.unwrap_err(), Errno::Exist, "{n}");
        assert_eq!(g.mkdir("none/x").await.unwrap_err(), Errno::NoEnt, "{n}");
        assert_eq!(g.rmdir("d").await.unwrap_err(), Errno::NotEmpty, "{n}");
        assert_eq!(g.rmdir("f").await.unwrap_err(), Errno::NotDir, "{n}");
        assert_eq!(g.rmdir("ld").await.unwrap_err(), Errno::NotDir, "{n}");
        assert_eq!(g.rmdir(".").await.unwrap_err(), Errno::Inval, "{n}");
        assert_eq!(g.unlink("d").await.unwrap_err(), Errno::IsDir, "{n}");
        assert_eq!(g.unlink("f/").await.unwrap_err(), Errno::NotDir, "{n}");
        assert_eq!(g.open("d", OpenFlags::WRITE).await.unwrap_err(), Errno::IsDir, "{n}");
        assert_eq!(g.open("f", OpenFlags::READ | OpenFlags::DIRECTORY).await.unwrap_err(), Errno::NotDir, "{n}");
        assert_eq!(g.open("f", NEW | OpenFlags::EXCLUSIVE).await.unwrap_err(), Errno::Exist, "{n}");
        assert_eq!(g.open("loop", NEW | OpenFlags::EXCLUSIVE).await.unwrap_err(), Errno::Exist, "{n}");
        assert_eq!(g.open("d", NEW | OpenFlags::EXCLUSIVE).await.unwrap_err(), Errno::Exist, "{n}");
        assert_eq!(g.open("new/", NEW).await.unwrap_err(), Errno::IsDir, "{n}");
        let nofollow = OpenOptions { follow: Follow::No, ..OpenOptions::read() };
        assert_eq!(g.ns.open(&g.cred, &g.at, "lf", nofollow).await.unwrap_err(), Errno::Loop, "{n}");
        assert_eq!(g.rename("d", "d/x/y").await.unwrap_err(), Errno::NotDir, "{n}");
        g.mkdir("d/e").await.unwrap();
        assert_eq!(g.rename("d", "d/e/y").await.unwrap_err(), Errno::Inval, "{n}");
        assert_eq!(g.rename("f", "d").await.unwrap_err(), Errno::IsDir, "{n}");
        assert_eq!(g.rename("d", "f").await.unwrap_err(), Errno::NotDir, "{n}");
        assert_eq!(g.rename("f", "g/").await.unwrap_err(), Errno::NotDir, "{n}");
        assert_eq!(g.rename("none", "f").await.unwrap_err(), Errno::NoEnt, "{n}");
        assert_eq!(g.link("d", "hd").await.unwrap_err(), Errno::Perm, "{n}");
        assert_eq!(g.link("f", "d").await.unwrap_err(), Errno::Exist, "{n}");
        assert_eq!(g.symlink("", "e").await.unwrap_err(), Errno::NoEnt, "{n}");
        assert_eq!(g.symlink("x", "f").await.unwrap_err(), Errno::Exist, "{n}");
        assert_eq!(g.ns.readlink(&g.cred, &g.at, "f").await.unwrap_err(), Errno::Inval, "{n}");
        let file = g.file("f", OpenFlags::READ).await.unwrap();
        assert_eq!(file.write_at(b"x", 0).await.unwrap_err(), Errno::BadF, "{n}");
        assert_eq!(file.set_len(0).await.unwrap_err(), Errno::Inval, "{n}");
    }
}

#[tokio::test]
async fn every_backend_keeps_files_as_linux_does() {
    for g in Guest::everywhere().await {
        let n = g.name;
        let big: Vec<u8> = (0..200_000u32).flat_map(u32::to_le_bytes).collect();
        g.write("big", &big).await.unwrap();
        assert!(g.read("big").await.unwrap() == big, "{n}");
        let file = g.file("big", OpenFlags::READ | OpenFlags::WRITE).await.unwrap();
        file.set_len(70_000).await.unwrap();
        file.set_len(140_000).await.unwrap();
        let after = g.read("big").await.unwrap();
        assert!(after[..70_000] == big[..70_000] && after[70_000..].iter().all(|&b| b == 0), "{n}: a hole is zero");
        assert_eq!(file.append(b"end").await.unwrap(), (3, 140_003), "{n}");
        g.unlink("big").await.unwrap();
        let mut end = [0; 8];
        assert_eq!(file.read_at(&mut end, 140_000).await, Ok(3), "{n}: an unlinked open file works");
        assert_eq!(file.stat().await.unwrap().nlink, 0, "{n}");
        g.write("a", b"one").await.unwrap();
        g.link("a", "b").await.unwrap();
        let (a, b) = (g.stat("a").await.unwrap(), g.stat("b").await.unwrap());
        assert!((a.dev, a.ino, a.nlink) == (b.dev, b.ino, 2), "{n}");
        g.rename("a", "b").await.unwrap();
        assert_eq!(g.names(".").await.unwrap(), ["a", "b"], "{n}: rename of two names of a file does nothing");
        g.write("c", b"two").await.unwrap();
        g.rename("c", "b").await.unwrap();
        assert_eq!((g.text("a").await.unwrap(), g.text("b").await.unwrap()), ("one".into(), "two".into()), "{n}");
        g.mkdir("d").await.unwrap();
        g.mkdir("d/e").await.unwrap();
        assert_eq!(g.stat("d").await.unwrap().nlink >= 3, n != "btrfs", "{n}");
        g.write("d/e/f", b"deep").await.unwrap();
        g.rename("d/e", "up").await.unwrap();
        assert_eq!(g.text("up/f").await.unwrap(), "deep", "{n}");
        assert_eq!(g.stat("up/..").await.unwrap().ino, g.stat(".").await.unwrap().ino, "{n}");
        let Opened::Dir(kept) = g.open("d", OpenFlags::READ).await.unwrap() else { panic!() };
        g.rmdir("d").await.unwrap();
        assert_eq!(g.ns.mkdir(&g.cred, &kept, "x", 0o755).await, Err(Errno::NoEnt), "{n}: a removed directory");
        for i in 0..600 {
            g.write(&format!("up/{i}"), b"").await.unwrap();
        }
        assert_eq!(g.names("up").await.unwrap().len(), 601, "{n}");
        let then = Timestamp { seconds: 12, nanoseconds: 5 };
        let times = SetTimes { accessed: SetTime::Omit, modified: SetTime::At(then) };
        g.ns.set_times(&g.cred, &g.at, "a", Follow::Yes, times).await.unwrap();
        assert_eq!(g.stat("a").await.unwrap().mtime, then, "{n}");
    }
}

#[tokio::test]
async fn ownership_and_modes_hold_on_every_backend_of_ours() {
    for mut g in Guest::everywhere().await {
        let n = g.name;
        if n.ends_with("hostPath") && !rustix::process::geteuid().is_root() {
            continue;
        }
        g.mkdir("d").await.unwrap();
        g.ns.chmod(&g.cred, &g.at, "d", 0o1777).await.unwrap();
        g.ns.chmod(&g.cred, &g.at, ".", 0o755).await.unwrap();
        g.cred = user(1000);
        g.write("d/mine", b"m").await.unwrap();
        let meta = g.stat("d/mine").await.unwrap();
        assert_eq!((meta.uid, meta.gid, meta.mode), (1000, 1000, 0o666), "{n}");
        g.ns.chmod(&g.cred, &g.at, "d/mine", 0o000).await.unwrap();
        assert_eq!(g.open("d/mine", OpenFlags::READ).await.unwrap_err(), Errno::Acces, "{n}");
        assert_eq!(g.write("top", b"").await.unwrap_err(), Errno::Acces, "{n}");
        g.cred = root_cred();
        assert_eq!(g.text("d/mine").await.unwrap(), "m", "{n}: root reads what nobody may");
        assert_eq!(g.stat("d/mine").await.unwrap().mode, 0, "{n}");
        g.cred = user(2000);
        assert_eq!(g.unlink("d/mine").await.unwrap_err(), Errno::Perm, "{n}: sticky");
        assert_eq!(g.ns.chmod(&g.cred, &g.at, "d/mine", 0o777).await, Err(Errno::Perm), "{n}");
        assert_eq!(g.stat("d").await.unwrap().mode, 0o1777, "{n}");
        g.cred = root_cred();
        g.ns.chown(&g.cred, &g.at, "d", Follow::Yes, (Some(7), Some(8))).await.unwrap();
        g.ns.chmod(&g.cred, &g.at, "d", 0o700).await.unwrap();
        let meta = g.stat("d").await.unwrap();
        assert_eq!((meta.uid, meta.gid, meta.mode), (7, 8, 0o700), "{n}");
        g.cred = user(1000);
        assert_eq!(g.stat("d/mine").await.unwrap_err(), Errno::Acces, "{n}: no search");
    }
}

#[tokio::test]
async fn guest_ownership_survives_the_agent_on_node_directories() {
    let dir = tempfile::tempdir().unwrap();
    let volume = Volume::node_directory(dir.path(), Medium::Disk, None).await.unwrap();
    let g = Guest::on_volume("first", volume, "", tempfile::tempdir().unwrap()).await;
    g.write("f", b"1").await.unwrap();
    g.ns.chown(&g.cred, &g.at, "f", Follow::Yes, (Some(1000), Some(50))).await.unwrap();
    g.ns.chmod(&g.cred, &g.at, "f", 0o4750).await.unwrap();
    drop(g);
    let volume = Volume::node_directory(dir.path(), Medium::Disk, None).await.unwrap();
    let g = Guest::on_volume("second", volume, "", tempfile::tempdir().unwrap()).await;
    let meta = g.stat("f").await.unwrap();
    assert_eq!((meta.uid, meta.gid, meta.mode), (1000, 50, 0o4750));
    let real = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(dir.path().join("f")).unwrap());
    assert_eq!(real & 0o6000, 0, "no setuid reaches the host");
}

#[tokio::test]
async fn a_read_only_root_refuses_every_change_but_not_reading() {
    let dir = tempfile::tempdir().unwrap();
    let stack = stack_of(&[&[Item::File("f", "1"), Item::Dir("d"), Item::Link("l", "f")]]);
    let upper = Upper::Directory(dir.path().join("never"));
    let volume = Volume::node_directory(dir.path(), Medium::Disk, None).await.unwrap();
    let builder = NamespaceBuilder::new(stack, upper, Access::ReadOnly)
        .mount("/made/for/volume", volume, "", Access::ReadWrite)
        .managed_file("/etc/hosts", &ManagedFile::new(b"h"));
    let g = Guest::new("ro", builder, "/", dir).await;
    assert_eq!(g.text("l").await.unwrap(), "1");
    assert_eq!(g.write("f", b"").await, Err(Errno::RoFs));
    assert_eq!(g.write("new", b"").await, Err(Errno::RoFs));
    assert_eq!(g.open("f", OpenFlags::WRITE).await.unwrap_err(), Errno::RoFs);
    assert_eq!(g.open("f", OpenFlags::READ | OpenFlags::TRUNCATE).await.unwrap_err(), Errno::RoFs);
    assert_eq!(g.open("f", OpenFlags::READ | OpenFlags::CREATE).await.map(drop), Ok(()));
    assert_eq!(g.mkdir("x").await, Err(Errno::RoFs));
    assert_eq!(g.mkdir("d").await, Err(Errno::Exist), "Linux says EEXIST first");
    assert_eq!(g.rmdir("d").await, Err(Errno::RoFs));
    assert_eq!(g.unlink("f").await, Err(Errno::RoFs));
    assert_eq!(g.rename("f", "g").await, Err(Errno::RoFs));
    assert_eq!(g.rename("f", "made/for/volume/f").await, Err(Errno::XDev));
    assert_eq!(g.link("f", "g").await, Err(Errno::RoFs));
    assert_eq!(g.symlink("f", "g").await, Err(Errno::RoFs));
    assert_eq!(g.ns.chmod(&g.cred, &g.at, "f", 0o600).await, Err(Errno::RoFs));
    assert_eq!(g.ns.chown(&g.cred, &g.at, "f", Follow::Yes, (Some(1), None)).await, Err(Errno::RoFs));
    let now = SetTimes { accessed: SetTime::Now, modified: SetTime::Now };
    assert_eq!(g.ns.set_times(&g.cred, &g.at, "f", Follow::Yes, now).await, Err(Errno::RoFs));
    assert_eq!(g.file("f", OpenFlags::READ).await.unwrap().set_times(&g.cred, now).await, Err(Errno::RoFs));
    assert_eq!(g.at.chmod(&g.cred, 0o700).await, Err(Errno::RoFs));
    assert_eq!(g.ns.access(&g.cred, &g.at, "f", AccessMode::WRITE).await, Err(Errno::RoFs));
    assert_eq!(g.write("etc/hosts", b"").await, Err(Errno::RoFs));
    g.write("made/for/volume/f", b"ok").await.unwrap();
    assert!(!g.host_dir().join("never").exists(), "nothing was written, so nothing was made");
}

#[tokio::test]
async fn mounts_are_crossed_kept_and_not_crossed_by_rename() {
    let (outer, inner) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let outer_volume = Volume::node_directory(outer.path(), Medium::Disk, None).await.unwrap();
    let inner_volume = Volume::hanging_host_path(inner.path());
    // In the wrong order: depth decides.
    let builder = bare()
        .mount("/data/sub/x", Arc::clone(&inner_volume), "", Access::ReadWrite)
        .mount("/data", outer_volume, "", Access::ReadWrite)
        .mount("/ro", inner_volume, "", Access::ReadOnly);
    let g = Guest::new("mounts", builder, "/", tempfile::tempdir().unwrap()).await;
    g.write("data/sub/x/f", b"1").await.unwrap();
    assert_eq!(std::fs::read(inner.path().join("f")).unwrap(), b"1");
    assert_eq!(g.text("ro/f").await.unwrap(), "1");
    assert_eq!(g.write("ro/f", b"2").await, Err(Errno::RoFs));
    assert_eq!(g.stat("data/sub/x/..").await.unwrap().ino, g.stat("data/sub").await.unwrap().ino);
    assert_eq!(g.stat("data/sub/x/../../..").await.unwrap().ino, g.stat("/").await.unwrap().ino);
    assert_eq!(g.stat("../../..").await.unwrap().ino, g.stat("/").await.unwrap().ino);
    assert_eq!(g.rmdir("data/sub/x").await, Err(Errno::Busy));
    assert_eq!(g.rename("data/sub/x", "data/y").await, Err(Errno::Busy));
    assert_eq!(g.rename("data/sub/x/f", "data/f").await, Err(Errno::XDev));
    assert_eq!(g.link("data/sub/x/f", "data/f").await, Err(Errno::XDev));
    assert_eq!(g.rmdir("data/sub").await, Err(Errno::NotEmpty));
    g.rename("data/sub", "data/moved").await.unwrap();
    assert_eq!(g.text("data/moved/x/f").await.unwrap(), "1", "a mount moves with the directory above it");
    g.symlink("/data/moved/x", "l").await.unwrap();
    assert_eq!(g.names("l/").await.unwrap(), ["f"]);
    let Opened::Dir(on_foreign) = g.open("data/moved/x", OpenFlags::READ).await.unwrap() else { panic!() };
    assert_eq!(g.ns.stat(&g.cred, &on_foreign, "../../../ro/f", Follow::Yes).await.unwrap().size, 1);
}

#[tokio::test]
async fn links_of_a_volume_lead_nowhere_outside_the_container() {
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), b"s").unwrap();
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(outside.path(), dir.path().join("abs")).unwrap();
    std::os::unix::fs::symlink("../../../../../../../../etc", dir.path().join("rel")).unwrap();
    for volume in [
        Volume::node_directory(dir.path(), Medium::Disk, None).await.unwrap(),
        Volume::host_path(dir.path(), &[]).await.unwrap(),
    ] {
        let g = Guest::on_volume("links", volume, "", tempfile::tempdir().unwrap()).await;
        for path in ["abs/secret", "abs", "rel/passwd", "rel", "abs/../abs/secret"] {
            assert_eq!(g.stat(path).await.unwrap_err(), Errno::NoEnt, "{path}");
        }
    }
}

#[tokio::test]
async fn a_sub_path_shows_its_part_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("a")).unwrap();
    std::fs::write(dir.path().join("top"), b"t").unwrap();
    std::os::unix::fs::symlink("/", dir.path().join("root")).unwrap();
    std::os::unix::fs::symlink("a", dir.path().join("to-a")).unwrap();
    let volume = Volume::node_directory(dir.path(), Medium::Disk, None).await.unwrap();
    let at = |sub: &str| bare().mount("/v", Arc::clone(&volume), sub, Access::ReadWrite).build();
    let cred = root_cred();
    let ns = at("new/deep").await.unwrap();
    ns.mkdir(&cred, &ns.root(), "/v/x", 0o755).await.unwrap();
    assert!(dir.path().join("new/deep/x").is_dir(), "a missing subPath is made");
    let file = at("top").await.unwrap();
    assert_eq!(file.read(&cred, &file.root(), "/v", 10).await.unwrap(), b"t");
    for (sub, expected) in [("../x", Errno::Inval), ("/a", Errno::Inval), ("a/../..", Errno::Inval)] {
        match at(sub).await {
            Err(MountError::SubPath { errno, .. }) => assert_eq!(errno, expected, "{sub}"),
            other => panic!("{sub}: {other:?}"),
        }
    }
    let clamped = at("root/etc").await.unwrap();
    assert_eq!(clamped.stat(&cred, &clamped.root(), "/v/passwd", Follow::Yes).await.unwrap_err(), Errno::NoEnt);
    // Moved out of the subPath by a container that sees the whole volume: `..` does not follow it there.
    let (whole, part) = (at("").await.unwrap(), at("to-a").await.unwrap());
    part.mkdir(&cred, &part.root(), "/v/d", 0o755).await.unwrap();
    let Opened::Dir(held) = part.open(&cred, &part.root(), "/v/d", OpenOptions::read()).await.unwrap() else {
        panic!()
    };
    whole.rename(&cred, &whole.root(), "/v/a/d", &whole.root(), "/v/d").await.unwrap();
    assert_eq!(part.stat(&cred, &held, "../top", Follow::Yes).await.unwrap_err(), Errno::NoEnt);
}

#[tokio::test]
async fn a_projection_swaps_as_a_whole_and_keeps_open_files() {
    let content = |a: &str, extra: Option<&str>| {
        let file = |text: &str| ProjectedFile { data: text.as_bytes().to_vec(), mode: 0o640, uid: 0 };
        let mut files = std::collections::BTreeMap::from([("a".to_owned(), file(a)), ("d/b".to_owned(), file(a))]);
        files.extend(extra.map(|name| (name.to_owned(), file("x"))));
        Projection { files, fs_group: None }
    };
    let volume = Volume::projection(&content("one", Some("gone"))).unwrap();
    let g = Guest::on_volume("projection", Arc::clone(&volume), "", tempfile::tempdir().unwrap()).await;
    assert_eq!(g.text("a").await.unwrap(), "one");
    assert_eq!(g.stat("d/b").await.unwrap().mode, 0o640);
    assert_eq!(g.ns.readlink(&g.cred, &g.at, "a").await.unwrap(), "..data/a");
    let open = g.file("d/b", OpenFlags::READ).await.unwrap();
    let sub = bare().mount("/f", Arc::clone(&volume), "a", Access::ReadWrite).build().await.unwrap();
    volume.update(&content("two", None)).unwrap();
    assert_eq!((g.text("a").await.unwrap(), g.text("d/b").await.unwrap()), ("two".into(), "two".into()));
    let mut old = [0; 3];
    assert_eq!(open.read_at(&mut old, 0).await, Ok(3));
    assert_eq!(&old, b"one");
    assert_eq!(sub.read(&g.cred, &sub.root(), "/f", 10).await.unwrap(), b"one", "a subPath file is never updated");
    let names = g.names(".").await.unwrap();
    assert_eq!(names.len(), 4, "{names:?}");
    assert!(names[0].starts_with("..2") && names[1..] == ["..data", "a", "d"], "{names:?}");
    assert_eq!(g.write("a", b"x").await, Err(Errno::RoFs));
    for bad in ["", "/x", "../x", "a/..", "..data", "a/b"] {
        let mut files = content("three", None).files;
        files.insert(bad.to_owned(), files["a"].clone());
        assert!(volume.update(&Projection { files, fs_group: None }).is_err(), "{bad:?}");
    }
    assert_eq!(g.text("a").await.unwrap(), "two");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn readers_of_a_projection_never_see_it_missing() {
    let content = |n: u32| {
        let file = ProjectedFile { data: n.to_string().into_bytes(), mode: 0o644, uid: 0 };
        Projection { files: [("d/a".to_owned(), file)].into(), fs_group: None }
    };
    let volume = Volume::projection(&content(0)).unwrap();
    let g = Guest::on_volume("swap", Arc::clone(&volume), "", tempfile::tempdir().unwrap()).await;
    let reader = tokio::spawn(async move {
        let mut last = 0;
        for _ in 0..3000 {
            let now: u32 = g.text("d/a").await.unwrap().parse().unwrap();
            assert!(now >= last);
            last = now;
        }
    });
    for n in 1..1000 {
        volume.update(&content(n)).unwrap();
        tokio::task::yield_now().await;
    }
    reader.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_reader_of_a_projections_data_directory_sees_one_content_or_the_other() {
    let content = |n: u32| {
        let file = || ProjectedFile { data: n.to_string().into_bytes(), mode: 0o644, uid: 0 };
        let names = ["a", "d/b", "d/e/c"].map(|name| (name.to_owned(), file()));
        Projection { files: names.into(), fs_group: None }
    };
    let volume = Volume::projection(&content(0)).unwrap();
    let g = Guest::on_volume("atomic", Arc::clone(&volume), "", tempfile::tempdir().unwrap()).await;
    let reader = tokio::spawn(async move {
        let mut whole = 0;
        for _ in 0..20_000 {
            // As a program that opens the directory and reads on from there.
            let data = g.ns.readlink(&g.cred, &g.at, "..data").await.unwrap();
            let mut seen = Vec::new();
            for name in ["a", "d/b", "d/e/c"] {
                match g.text(&format!("{data}/{name}")).await {
                    Ok(text) => seen.push(text),
                    // The directory before the last is gone; it is never half there.
                    Err(Errno::NoEnt) => break,
                    Err(errno) => panic!("{errno}"),
                }
            }
            seen.dedup();
            assert_eq!(seen.len().min(1), seen.len(), "a mix: {seen:?}");
            whole += seen.len();
        }
        assert!(whole > 0, "nothing was read whole");
    });
    let mut n = 0;
    while !reader.is_finished() {
        n += 1;
        volume.update(&content(n)).unwrap();
        tokio::task::yield_now().await;
    }
    reader.await.unwrap();
}

#[tokio::test]
async fn managed_files_are_replaced_live_and_cannot_be_moved() {
    let hosts = ManagedFile::new(b"127.0.0.1 localhost\n");
    let a = Guest::new("a", bare().managed_file("/etc/hosts", &hosts), "/etc", tempfile::tempdir().unwrap()).await;
    let b = Guest::new("b", bare().managed_file("/etc/hosts", &hosts), "/etc", tempfile::tempdir().unwrap()).await;
    let flags = OpenFlags::WRITE | OpenFlags::APPEND;
    a.file("hosts", flags).await.unwrap().append(b"10.0.0.1 x\n").await.unwrap();
    assert!(b.text("hosts").await.unwrap().ends_with("10.0.0.1 x\n"));
    assert_eq!(a.unlink("hosts").await, Err(Errno::Busy));
    assert_eq!(a.rename("hosts", "h").await, Err(Errno::Busy));
    hosts.replace(b"new\n");
    assert_eq!(a.text("hosts").await.unwrap(), "new\n");
    assert_eq!(a.stat("hosts/").await.unwrap_err(), Errno::NotDir);
}

#[tokio::test]
async fn devices_behave_like_linux_ones() {
    let builder = bare().devices(Devices { tty: Tty::None });
    let g = Guest::new("dev", builder, "/dev", tempfile::tempdir().unwrap()).await;
    let mut buffer = [7; 4];
    assert_eq!(g.file("null", OpenFlags::READ).await.unwrap().read_at(&mut buffer, 0).await, Ok(0));
    assert_eq!(g.file("zero", OpenFlags::READ).await.unwrap().read_at(&mut buffer, 0).await, Ok(4));
    assert_eq!(buffer, [0; 4]);
    let full = g.file("full", OpenFlags::READ | OpenFlags::WRITE).await.unwrap();
    assert_eq!(full.write_at(b"x", 0).await, Err(Errno::NoSpc));
    assert!(!full.is_seekable());
    assert_eq!(g.file("urandom", OpenFlags::READ).await.unwrap().read_at(&mut [0; 64], 0).await, Ok(64));
    assert!(matches!(g.open("stderr", OpenFlags::WRITE).await, Ok(Opened::Device(Device::Stderr))));
    assert!(matches!(g.open("signal", OpenFlags::READ).await, Ok(Opened::Device(Device::Signal))));
    assert_eq!(g.stat("tty").await.unwrap_err(), Errno::NoEnt);
    assert_eq!(g.stat("null").await.unwrap().rdev, rustix::fs::makedev(1, 3));
    g.write("null", b"gone").await.unwrap();
    g.mkdir("own").await.unwrap();
    assert_eq!(g.write("own/big", &vec![0; 100_000]).await, Err(Errno::NoSpc));
}

#[derive(Debug)]
struct Pid(u32);

impl Provider for Pid {
    fn get(&self, path: &str) -> Option<Provided> {
        Some(match path {
            "/proc" => Provided::Directory(vec![("self".into(), FileType::Directory)]),
            "/sys/fs/cgroup" => Provided::Directory(vec![]),
            "/proc/self" => Provided::Directory(vec![("stat".into(), FileType::Regular)]),
            "/proc/self/stat" => Provided::File(self.0.to_string().into_bytes()),
            "/proc/self/cwd" => Provided::Symlink("/etc".into()),
            "/proc/self/fd" => Provided::Directory(vec![("0".into(), FileType::CharDevice)]),
            "/proc/self/fd/0" => Provided::Device(Device::Descriptor(0)),
            _ => return None,
        })
    }
}

#[tokio::test]
async fn each_process_sees_its_own_dynamic_files() {
    let builder = bare().devices(Devices { tty: Tty::None }).provided("/proc").provider(Arc::new(Pid(1)));
    let mut g = Guest::new("proc", builder, "/", tempfile::tempdir().unwrap()).await;
    g.mkdir("etc").await.unwrap();
    assert_eq!(g.text("proc/self/stat").await.unwrap(), "1");
    g.ns = g.ns.for_process(Arc::new(Pid(2)));
    assert_eq!(g.text("/proc/self/../self/stat").await.unwrap(), "2");
    assert_eq!(g.names("/proc").await.unwrap(), ["self"]);
    assert_eq!(g.stat("/proc/self/cwd").await.unwrap().ino, g.stat("/etc").await.unwrap().ino);
    assert!(matches!(g.open("/dev/fd/0", OpenFlags::READ).await, Ok(Opened::Device(Device::Descriptor(0)))));
    assert_eq!(g.write("/proc/self/stat", b"x").await, Err(Errno::RoFs));
    assert_eq!(g.write("/proc/new", b"x").await, Err(Errno::RoFs));
}

#[derive(Default)]
struct Account(AtomicU64);

impl Charge for Account {
    fn charge(&self, bytes: u64) -> Result<(), Errno> {
        self.0.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }
    fn release(&self, bytes: u64) {
        self.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn memory_has_its_limit_and_every_byte_is_given_back() {
    let account = Arc::new(Account::default());
    let dir = tempfile::Builder::new().tempdir_in("/dev/shm").unwrap();
    let volume = Volume::node_directory(dir.path(), Medium::Memory, Some(1 << 20)).await.unwrap();
    let builder = bare().charge(Arc::clone(&account) as _).tmpfs("/tmp", 1 << 20).mount(
        "/vol",
        Arc::clone(&volume),
        "",
        Access::ReadWrite,
    );
    let g = Guest::new("limits", builder, "/", tempfile::tempdir().unwrap()).await;
    for dir in ["tmp", "vol"] {
        let base = account.0.load(Ordering::Relaxed);
        let path = format!("{dir}/f");
        assert_eq!(g.write(&path, &vec![1; 2 << 20]).await, Err(Errno::NoSpc), "{dir}");
        let size = g.stat(&path).await.unwrap().size;
        assert!((900_000..=1 << 20).contains(&size), "{dir}: {size}");
        assert!(account.0.load(Ordering::Relaxed) - base >= size, "{dir}");
        let file = g.file(&path, OpenFlags::WRITE).await.unwrap();
        assert_eq!(file.write_at(&[2; 4096], 8192).await, Ok(4096), "{dir}: overwriting needs no room");
        g.unlink(&path).await.unwrap();
        assert!(account.0.load(Ordering::Relaxed) - base >= size, "{dir}: open and unlinked still costs");
        drop(file);
        assert!(account.0.load(Ordering::Relaxed) <= base, "{dir}");
        g.write(&path, &vec![1; 500_000]).await.unwrap();
        g.file(&path, OpenFlags::WRITE).await.unwrap().set_len(0).await.unwrap();
        g.unlink(&path).await.unwrap();
        assert!(account.0.load(Ordering::Relaxed) <= base, "{dir}");
    }
    assert_eq!(volume.used_bytes().await.unwrap(), 0);
    drop(g);
    assert_eq!(account.0.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn copy_up_leaves_the_image_and_other_containers_alone() {
    let stack = stack_of(&[&[Item::File("d/f", "image"), Item::Hard("h", "d/f")]]);
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let mut guests = Vec::new();
    for dir in dirs {
        let upper = Upper::Directory(dir.path().join("upper"));
        let builder = NamespaceBuilder::new(Arc::clone(&stack), upper, Access::ReadWrite);
        guests.push(Guest::new("copy-up", builder, "/", dir).await);
    }
    let [a, b] = &guests[..] else { panic!() };
    let before = a.file("h", OpenFlags::READ).await.unwrap();
    let ino = a.stat("d/f").await.unwrap().ino;
    a.file("d/f", OpenFlags::WRITE).await.unwrap().write_at(b"I", 0).await.unwrap();
    assert_eq!(a.text("h").await.unwrap(), "Image", "hard links are copied up together");
    let mut bytes = [0; 5];
    assert_eq!(before.read_at(&mut bytes, 0).await, Ok(5));
    assert_eq!(&bytes, b"Image", "a file opened before sees the write");
    assert_eq!(a.stat("d/f").await.unwrap().ino, ino, "the inode id is stable");
    assert_eq!(b.text("d/f").await.unwrap(), "image");
    assert!(a.ns.writable_bytes() > 0 && b.ns.writable_bytes() == 0);
    assert!(!b.host_dir().join("upper").exists());
    a.unlink("h").await.unwrap();
    a.unlink("d/f").await.unwrap();
    a.rmdir("d").await.unwrap();
    assert_eq!(a.names("/").await.unwrap(), Vec::<String>::new());
    drop(before);
    assert_eq!(std::fs::read_dir(a.host_dir().join("upper")).unwrap().count(), 0, "its data file went with it");
}

#[tokio::test]
async fn host_paths_give_no_devices_no_setuid_and_no_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
    let null = rustix::fs::makedev(1, 3);
    let device = dir.path().join("null");
    let made = rustix::fs::mknodat(
        rustix::fs::CWD,
        &device,
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::RWXU,
        null,
    );
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("sock")).unwrap();
    let volume = Volume::host_path(dir.path(), &[]).await.unwrap();
    let g = Guest::on_volume("host", volume, "", dir).await;
    if made.is_ok() {
        assert_eq!(g.open("null", OpenFlags::READ).await.unwrap_err(), Errno::Acces);
    }
    assert_eq!(g.open("sock", OpenFlags::READ).await.unwrap_err(), Errno::NxIo);
    assert_eq!(g.open("fifo", OpenFlags::WRITE).await.unwrap_err(), Errno::NxIo, "no reader");
    let file = g.file("fifo", OpenFlags::READ).await.unwrap();
    assert!(!file.is_seekable());
    assert_eq!(file.read_at(&mut [0; 4], 0).await, Ok(0), "no writer: the end");
    g.write("f", b"1").await.unwrap();
    assert_eq!(g.ns.chmod(&g.cred, &g.at, "f", 0o4755).await, Err(Errno::Perm));
    std::fs::write(g.host_dir().join("theirs"), b"by the host").unwrap();
    assert_eq!(g.text("theirs").await.unwrap(), "by the host", "changes of the host are seen");
    let single = Volume::host_path(&g.host_dir().join("theirs"), &[]).await.unwrap();
    let ns = bare().mount("/one", single, "", Access::ReadOnly).build().await.unwrap();
    assert_eq!(ns.read(&g.cred, &ns.root(), "/one", 100).await.unwrap(), b"by the host");
    assert_eq!(
        ns.open(&g.cred, &ns.root(), "/one", OpenOptions::new(OpenFlags::WRITE)).await.unwrap_err(),
        Errno::RoFs
    );
}

#[tokio::test]
async fn what_is_hidden_in_a_host_path_is_found_under_no_name() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("var/secret");
    std::fs::create_dir_all(secret.join("deep")).unwrap();
    std::fs::write(secret.join("key"), b"secret").unwrap();
    std::fs::write(dir.path().join("var/token"), b"secret").unwrap();
    std::fs::write(dir.path().join("var/open"), b"open").unwrap();
    std::os::unix::fs::symlink("var/secret", dir.path().join("link")).unwrap();
    let hidden = [secret, dir.path().join("var/token"), dir.path().join("none")];
    let volume = Volume::host_path(dir.path(), &hidden).await.unwrap();
    let g = Guest::on_volume("host", volume, "", dir).await;
    assert_eq!(g.text("var/open").await.unwrap(), "open");
    for path in ["var/secret", "var/secret/key", "var/secret/deep", "link/key", "var/../var/secret/key", "var/token"] {
        assert_eq!(g.open(path, OpenFlags::READ).await.unwrap_err(), Errno::Acces, "{path}");
    }
    for (from, to) in [("var/secret", "moved"), ("var/token", "moved"), ("var/open", "var/token")] {
        assert_eq!(g.ns.rename(&g.cred, &g.at, from, &g.at, to).await, Err(Errno::Busy), "{from} to {to}");
    }
    assert_eq!(g.ns.unlink(&g.cred, &g.at, "var/token").await, Err(Errno::Busy));
    assert_eq!(g.ns.chmod(&g.cred, &g.at, "var/token", 0o777).await, Err(Errno::Busy));
    assert_eq!(g.ns.link(&g.cred, (&g.at, "var/token", Follow::No), (&g.at, "other")).await, Err(Errno::Busy));
    // Its parent may move; that shows nothing.
    g.ns.rename(&g.cred, &g.at, "var", &g.at, "lib").await.unwrap();
    assert_eq!(g.open("lib/secret/key", OpenFlags::READ).await.unwrap_err(), Errno::Acces);
    assert_eq!(g.text("lib/open").await.unwrap(), "open");
}

#[tokio::test]
async fn node_files_appear_where_they_are_mounted() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    std::fs::write(&log, b"").unwrap();
    let build = |path: &str, source: &std::path::Path| {
        bare().devices(Devices { tty: Tty::None }).node_file(path, source.to_owned(), Access::ReadWrite).build()
    };
    let ns = build("/dev/termination-log", &log).await.unwrap();
    let cred = root_cred();
    let options = OpenOptions::new(OpenFlags::WRITE | OpenFlags::CREATE | OpenFlags::TRUNCATE);
    let Opened::File(file) = ns.open(&cred, &ns.root(), "/dev/termination-log", options).await.unwrap() else {
        panic!()
    };
    file.append(b"bye").await.unwrap();
    assert_eq!(std::fs::read(&log).unwrap(), b"bye");
    let later = dir.path().join("app/0/message");
    let ns = bare().message_file("/dev/message", later.clone()).build().await.unwrap();
    assert!(!dir.path().join("app").exists(), "nobody has looked at it");
    let seen = ns.stat(&user(1000), &ns.root(), "/dev/message", Follow::Yes).await.unwrap();
    assert_eq!((seen.kind, seen.size, seen.mode & 0o777), (FileType::Regular, 0, 0o666));
    let options = OpenOptions::new(OpenFlags::WRITE);
    let Opened::File(file) = ns.open(&user(1000), &ns.root(), "/dev/message", options).await.unwrap() else { panic!() };
    file.append(b"why").await.unwrap();
    assert_eq!(std::fs::read(&later).unwrap(), b"why");
    let missing = build("/app.wasm", &dir.path().join("none")).await.unwrap_err();
    assert!(matches!(missing, MountError::NodeFile { .. }), "{missing}");
    let over = bare().tmpfs("/", 1).build().await.unwrap_err();
    assert_eq!(over.to_string(), "cannot mount at / in the container: EINVAL");
}

#[tokio::test]
async fn usage_and_group_of_a_volume_are_over_everything_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let volume = Volume::node_directory(dir.path(), Medium::Disk, Some(5)).await.unwrap();
    let g = Guest::on_volume("usage", Arc::clone(&volume), "", tempfile::tempdir().unwrap()).await;
    g.mkdir("d").await.unwrap();
    g.write("d/f", &vec![1; 100_000]).await.unwrap();
    g.link("d/f", "again").await.unwrap();
    let used = volume.used_bytes().await.unwrap();
    assert!((100_000..150_000).contains(&used), "{used}");
}

#[tokio::test]
async fn a_volume_of_the_host_is_given_to_a_group_as_the_kubelet_does() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: groups can be given by root only");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let make = |path: &str, mode| {
        let path = dir.path().join(path);
        std::fs::write(&path, "x").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    std::fs::create_dir(dir.path().join("d")).unwrap();
    // Whatever the umask is at the moment: another test of this process sets it.
    std::fs::set_permissions(dir.path().join("d"), std::fs::Permissions::from_mode(0o755)).unwrap();
    make("d/private", 0o600);
    std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link")).unwrap();
    let outside = std::fs::metadata("/etc/passwd").unwrap();
    let shown = |path: &str| {
        let meta = std::fs::symlink_metadata(dir.path().join(path)).unwrap();
        (meta.gid(), meta.mode() & 0o7777)
    };
    crate::vfs::give_to_group(dir.path(), 42, Access::ReadWrite, GroupChange::OnRootMismatch).unwrap();
    assert_eq!((shown("d"), shown("d/private"), shown("link").0), ((42, 0o2775), (42, 0o660), 42));
    assert_eq!(shown("").0, 42);
    let after = std::fs::metadata("/etc/passwd").unwrap();
    assert_eq!((after.gid(), after.mode()), (outside.gid(), outside.mode()), "a link is not followed");
    make("d/later", 0o600);
    crate::vfs::give_to_group(dir.path(), 42, Access::ReadWrite, GroupChange::OnRootMismatch).unwrap();
    assert_eq!(shown("d/later").1, 0o600, "the top says that it is done");
    crate::vfs::give_to_group(dir.path(), 42, Access::ReadOnly, GroupChange::Always).unwrap();
    assert_eq!(shown("d/later"), (42, 0o640), "a read-only volume is read by the group");
}

#[tokio::test]
async fn a_group_of_a_projection_reads_it_and_others_do_not() {
    let file = |uid| ProjectedFile { data: b"x".to_vec(), mode: 0o600, uid };
    let content =
        Projection { files: [("d/key".to_owned(), file(0)), ("token".to_owned(), file(7))].into(), fs_group: Some(42) };
    let volume = Volume::projection(&content).unwrap();
    let mut g = Guest::on_volume("fsGroup", volume, "", tempfile::tempdir().unwrap()).await;
    let seen = |meta: Metadata| (meta.uid, meta.gid, meta.mode);
    assert_eq!(seen(g.stat(".").await.unwrap()), (0, 42, 0o3777));
    assert_eq!(seen(g.stat("d").await.unwrap()), (0, 42, 0o2755));
    assert_eq!(seen(g.stat("d/key").await.unwrap()), (0, 42, 0o640));
    assert_eq!(seen(g.stat("token").await.unwrap()), (7, 42, 0o640));
    g.cred = user(1001);
    assert_eq!(g.text("d/key").await, Err(Errno::Acces));
    g.cred.groups = Arc::from([42]);
    assert_eq!(g.text("d/key").await.unwrap(), "x");
}

#[tokio::test]
async fn statfs_says_what_linux_would_say() {
    use crate::vfs::fs_type::{CGROUP2, OVERLAY, PROC, TMPFS};
    let stack = stack_of(&[&[Item::File("app.wasm", "x")]]);
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    let ns = NamespaceBuilder::new(stack.clone(), Upper::Memory { limit: 1 << 20 }, Access::ReadWrite)
        .devices(Devices { tty: Tty::None })
        .provided("/proc")
        .provided("/sys/fs/cgroup")
        .provider(Arc::new(Pid(1)))
        .mount("/config", Volume::projection(&Projection::default()).unwrap(), "", Access::ReadWrite)
        .mount(
            "/memory",
            Volume::node_directory(memory.path(), Medium::Memory, Some(1 << 20)).await.unwrap(),
            "",
            Access::ReadWrite,
        )
        .mount("/image", Volume::image(&stack), "", Access::ReadWrite)
        .build()
        .await
        .unwrap();
    for (path, expected) in [
        ("/", OVERLAY),
        ("/dev", TMPFS),
        ("/proc", PROC),
        ("/sys/fs/cgroup", CGROUP2),
        ("/config", TMPFS),
        ("/memory", TMPFS),
        ("/image", OVERLAY),
    ] {
        let Opened::Dir(dir) = ns.open(&root_cred(), &ns.root(), path, OpenOptions::read()).await.unwrap() else {
            panic!("{path} is no directory")
        };
        let told = ns.statfs(&dir).await.unwrap();
        assert_eq!(told.fs_type, expected, "{path}");
        if path == "/memory" {
            assert_eq!(told.blocks * told.block_size, 1 << 20, "the volume is as large as its limit");
        }
    }
}

#[tokio::test]
async fn an_idle_container_costs_little() {
    let stack = stack_of(&[&[Item::File("app.wasm", "x"), Item::Dir("etc")]]);
    let hosts = ManagedFile::new(b"h");
    let fds = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = fds();
    let mut all = Vec::new();
    for _ in 0..50 {
        let builder =
            NamespaceBuilder::new(Arc::clone(&stack), Upper::Directory("/nonexistent/x".into()), Access::ReadWrite)
                .devices(Devices { tty: Tty::None })
                .provided("/proc")
                .tmpfs("/tmp", 1 << 20)
                .managed_file("/etc/hosts", &hosts);
        all.push(builder.build().await.unwrap());
    }
    // Other tests run beside this one and open files of their own.
    assert!(fds() < before + 50, "no descriptor per container");
    let empty = NamespaceBuilder::new(LayerStack::empty(), Upper::Memory { limit: 0 }, Access::ReadWrite).build().await;
    assert_eq!(empty.unwrap().writable_bytes(), 0);
}

#[tokio::test]
async fn what_is_open_counts_until_its_last_clone_is_closed() {
    let descriptors = crate::descriptors::NodeDescriptors::of_limit(Some(100)).pod(); // 64 of 75.
    let upper = super::Upper::Memory { limit: 1 << 20 };
    let builder = NamespaceBuilder::new(LayerStack::empty(), upper, Access::ReadWrite).descriptors(descriptors.clone());
    let ns = builder.build().await.unwrap();
    let (cred, at) = (root_cred(), ns.root());
    let open = |path: &'static str, flags| {
        let options = OpenOptions { flags, ..OpenOptions::read() };
        let (ns, cred, at) = (&ns, &cred, &at);
        async move { ns.open(cred, at, path, options).await }
    };
    let mut held = vec![open("f", NEW).await.unwrap(), open(".", OpenFlags::READ).await.unwrap()];
    for _ in 2..64 {
        held.push(open("f", OpenFlags::READ).await.unwrap());
    }
    assert_eq!(open("new", NEW).await.err(), Some(Errno::MFile));
    assert_eq!(ns.stat(&cred, &at, "new", Follow::Yes).await.err(), Some(Errno::NoEnt), "nothing was made");
    assert_eq!(
        open("none", OpenFlags::READ).await.err(),
        Some(Errno::MFile),
        "as the kernel, which looks for room first"
    );
    let clone = held.pop().unwrap();
    let other = clone.clone();
    drop(clone);
    assert_eq!(descriptors.used(), 64, "a clone is the same open file");
    drop(other);
    assert!(open("f", OpenFlags::READ).await.is_ok());
    assert_eq!(open("none", OpenFlags::READ).await.err(), Some(Errno::NoEnt));
    drop(held);
    assert_eq!(descriptors.used(), 0);
}
