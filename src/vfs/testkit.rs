//! What the tests of this module share: tars, namespaces over every backend, a guest's view of the calls.

use std::path::Path;
use std::sync::Arc;

use super::layer::{Index, LayerStack, build_index};
use super::{
    Credentials, Dir, File, Follow, Metadata, Namespace, NamespaceBuilder, OpenFlags, OpenOptions, Opened, Upper,
    Volume,
};
use crate::errno::Errno;
use crate::pod::run::{Access, Medium};

/// One entry of a test's layer.
pub(crate) enum Item<'a> {
    File(&'a str, &'a str),
    Dir(&'a str),
    Link(&'a str, &'a str),
    Hard(&'a str, &'a str),
}

/// A tar of these entries, by the `tar` crate: not our own reader's idea of one.
pub(crate) fn tar_of(items: &[Item<'_>]) -> std::fs::File {
    let mut builder = tar::Builder::new(tempfile::tempfile().unwrap());
    for item in items {
        let mut header = tar::Header::new_gnu();
        header.set_mtime(1_700_000_000);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mode(0o644);
        let (path, bytes): (&str, &[u8]) = match item {
            Item::File(path, bytes) => (path, bytes.as_bytes()),
            Item::Dir(path) => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_mode(0o755);
                (path, b"")
            }
            Item::Link(path, target) | Item::Hard(path, target) => {
                let hard = matches!(item, Item::Hard(..));
                header.set_entry_type(if hard { tar::EntryType::Link } else { tar::EntryType::Symlink });
                header.set_size(0);
                builder.append_link(&mut header, path, target).unwrap();
                continue;
            }
        };
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, path, bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

/// Opened and indexed, through the form on disk.
pub(crate) fn layer_of(items: &[Item<'_>]) -> (std::fs::File, Index) {
    let tar = tar_of(items);
    let index = build_index(&tar).unwrap();
    let index = Index::from_bytes(&index.to_bytes()).unwrap();
    (tar, index)
}

pub(crate) fn stack_of(layers: &[&[Item<'_>]]) -> Arc<LayerStack> {
    LayerStack::from_parts(layers.iter().map(|items| layer_of(items)).collect()).unwrap()
}

/// A container as a program in it sees it.
pub(crate) struct Guest {
    pub(crate) name: &'static str,
    pub(crate) ns: Namespace,
    pub(crate) cred: Credentials,
    /// Where relative paths begin.
    pub(crate) at: Dir,
    dir: tempfile::TempDir,
}

pub(crate) fn root_cred() -> Credentials {
    Credentials { umask: 0, ..Credentials::root() }
}

pub(crate) fn user(uid: u32) -> Credentials {
    Credentials { uid, gid: uid, groups: Arc::from([]), umask: 0 }
}

impl Guest {
    pub(crate) async fn new(name: &'static str, builder: NamespaceBuilder, at: &str, dir: tempfile::TempDir) -> Self {
        let ns = builder.build().await.unwrap();
        let cred = root_cred();
        let at = match ns.open(&cred, &ns.root(), at, OpenOptions::read()).await.unwrap() {
            Opened::Dir(dir) => dir,
            other => panic!("{other:?}"),
        };
        Self { name, ns, cred, at, dir }
    }

    /// One writable directory on every kind of backend.
    pub(crate) async fn everywhere() -> Vec<Self> {
        let dir = || tempfile::tempdir().unwrap();
        let memory = || Upper::Memory { limit: 1 << 30 };
        let mut guests = Vec::new();
        let empty = NamespaceBuilder::new(LayerStack::empty(), memory(), Access::ReadWrite);
        guests.push(Self::new("memory root", empty, "/", dir()).await);
        let layered = stack_of(&[&[Item::Dir("w"), Item::File("w/.keep", "x")]]);
        for (name, upper_in_memory) in [("memory over layers", Some(())), ("disk over layers", None)] {
            let dir = dir();
            let upper = upper_in_memory.map_or(Upper::Directory(dir.path().join("upper")), |()| memory());
            let builder = NamespaceBuilder::new(Arc::clone(&layered), upper, Access::ReadWrite);
            let guest = Self::new(name, builder, "/w", dir).await;
            guest.unlink(".keep").await.unwrap();
            guests.push(guest);
        }
        for name in ["emptyDir", "memory emptyDir", "hostPath", "hanging hostPath"] {
            let dir = dir();
            let volume = match name {
                "emptyDir" => Volume::node_directory(dir.path(), Medium::Disk, None).await,
                "memory emptyDir" => Volume::node_directory(dir.path(), Medium::Memory, Some(1 << 30)).await,
                "hostPath" => Volume::host_path(dir.path(), &[]).await,
                _ => Ok(Volume::hanging_host_path(dir.path())),
            };
            guests.push(Self::on_volume(name, volume.unwrap(), "", dir).await);
        }
        guests
    }

    pub(crate) async fn on_volume(name: &'static str, volume: Arc<Volume>, sub: &str, dir: tempfile::TempDir) -> Self {
        let builder = bare().mount("/vol", volume, sub, Access::ReadWrite);
        Self::new(name, builder, "/vol", dir).await
    }

    pub(crate) fn host_dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) async fn open(&self, path: &str, flags: OpenFlags) -> Result<Opened, Errno> {
        self.ns.open(&self.cred, &self.at, path, OpenOptions::new(flags)).await
    }

    pub(crate) async fn file(&self, path: &str, flags: OpenFlags) -> Result<File, Errno> {
        match self.open(path, flags).await? {
            Opened::File(file) => Ok(file),
            other => panic!("{}: {path}: {other:?}", self.name),
        }
    }

    pub(crate) async fn write(&self, path: &str, bytes: &[u8]) -> Result<(), Errno> {
        let file = self.file(path, OpenFlags::WRITE | OpenFlags::CREATE | OpenFlags::TRUNCATE).await?;
        let mut done = 0;
        while done < bytes.len() {
            done += file.write_at(&bytes[done..], done as u64).await?;
        }
        Ok(())
    }

    pub(crate) async fn read(&self, path: &str) -> Result<Vec<u8>, Errno> {
        self.ns.read(&self.cred, &self.at, path, 1 << 30).await
    }

    pub(crate) async fn text(&self, path: &str) -> Result<String, Errno> {
        Ok(String::from_utf8(self.read(path).await?).unwrap())
    }

    pub(crate) async fn stat(&self, path: &str) -> Result<Metadata, Errno> {
        self.ns.stat(&self.cred, &self.at, path, Follow::Yes).await
    }

    pub(crate) async fn lstat(&self, path: &str) -> Result<Metadata, Errno> {
        self.ns.stat(&self.cred, &self.at, path, Follow::No).await
    }

    pub(crate) async fn mkdir(&self, path: &str) -> Result<(), Errno> {
        self.ns.mkdir(&self.cred, &self.at, path, 0o755).await
    }

    pub(crate) async fn rmdir(&self, path: &str) -> Result<(), Errno> {
        self.ns.rmdir(&self.cred, &self.at, path).await
    }

    pub(crate) async fn unlink(&self, path: &str) -> Result<(), Errno> {
        self.ns.unlink(&self.cred, &self.at, path).await
    }

    pub(crate) async fn rename(&self, old: &str, new: &str) -> Result<(), Errno> {
        self.ns.rename(&self.cred, &self.at, old, &self.at, new).await
    }

    pub(crate) async fn link(&self, old: &str, new: &str) -> Result<(), Errno> {
        self.ns.link(&self.cred, (&self.at, old, Follow::No), (&self.at, new)).await
    }

    pub(crate) async fn symlink(&self, target: &str, path: &str) -> Result<(), Errno> {
        self.ns.symlink(&self.cred, target, &self.at, path).await
    }

    /// Sorted names of a directory, dots apart.
    pub(crate) async fn names(&self, path: &str) -> Result<Vec<String>, Errno> {
        let Opened::Dir(dir) = self.open(path, OpenFlags::READ | OpenFlags::DIRECTORY).await? else { panic!("{path}") };
        let (mut names, mut cookie) = (Vec::new(), 0);
        loop {
            let entries = dir.read_dir(cookie).await?;
            let Some(last) = entries.last() else { break };
            cookie = last.next;
            names.extend(entries.iter().map(|entry| entry.name.to_string()));
        }
        assert_eq!(names.iter().filter(|name| matches!(&***name, "." | "..")).count(), 2, "{}", self.name);
        names.retain(|name| !matches!(&**name, "." | ".."));
        names.sort();
        Ok(names)
    }
}

/// A root without layers, in memory.
pub(crate) fn bare() -> NamespaceBuilder {
    NamespaceBuilder::new(LayerStack::empty(), Upper::Memory { limit: 1 << 20 }, Access::ReadWrite)
}
