//! Escapes: random paths, links and renames of two containers that share a volume never reach a file outside it.
//!
//! The volume's directory lies beside a canary; whatever the programs do, no `stat` shows the canary's inode, no
//! read gives its content, and nothing outside the volume changes.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use wasilet::errno::Errno;
use wasilet::pod::run::{Access, Medium};
use wasilet::vfs::layer::LayerStack;
use wasilet::vfs::{
    Credentials, Dir, Follow, Namespace, NamespaceBuilder, OpenFlags, OpenOptions, Opened, Upper, Volume,
};

const CANARY: &[u8] = b"the canary's own words";

/// Takes bytes of the input as choices.
struct Choices<'a>(&'a [u8]);

impl Choices<'_> {
    fn next(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    fn path(&mut self, host: &str) -> String {
        let mut path = String::new();
        let parts = self.next() % 6;
        if self.next() % 8 == 0 {
            path.push('/');
        }
        for _ in 0..=parts {
            match self.next() % 10 {
                0 => path.push_str(".."),
                1 => path.push('.'),
                2 => path.push_str("vol"),
                3 => path.push_str(host),
                4 => path.push_str("canary"),
                5 => path.push(char::from(self.next())),
                n => path.push(char::from(b'a' + n - 6)),
            }
            path.push('/');
        }
        if self.next() % 4 != 0 {
            path.pop();
        }
        path
    }
}

struct World {
    outside: tempfile::TempDir,
    containers: Vec<(Namespace, Vec<Dir>)>,
    canary: u64,
}

async fn world() -> World {
    let outside = tempfile::tempdir().expect("a temporary directory");
    let inside = outside.path().join("volume");
    std::fs::create_dir_all(inside.join("sub")).expect("made");
    std::fs::write(outside.path().join("canary"), CANARY).expect("written");
    let canary = std::fs::metadata(outside.path().join("canary")).expect("there").ino();
    let ours = Volume::node_directory(&inside, Medium::Disk, None).await.expect("a volume");
    let foreign = Volume::host_path(&inside, &[]).await.expect("a volume");
    let mut containers = Vec::new();
    for (volume, sub) in [(ours.clone(), ""), (ours, "sub"), (foreign, "sub")] {
        let upper = Upper::Memory { limit: 1 << 20 };
        let builder = NamespaceBuilder::new(LayerStack::empty(), upper, Access::ReadWrite);
        let ns = builder.mount("/vol", volume, sub, Access::ReadWrite).build().await.expect("a namespace");
        let root = ns.root();
        let cred = Credentials::root();
        let Ok(Opened::Dir(top)) = ns.open(&cred, &root, "/vol", OpenOptions::read()).await else {
            panic!("the mount is a directory")
        };
        containers.push((ns, vec![root, top]));
    }
    World { outside, containers, canary }
}

async fn step(world: &mut World, choices: &mut Choices<'_>) {
    let host = world.outside.path().to_str().expect("text").to_owned();
    let which = usize::from(choices.next()) % world.containers.len();
    let (ns, dirs) = &mut world.containers[which];
    let cred = Credentials::root();
    let at = dirs[usize::from(choices.next()) % dirs.len()].clone();
    let to = dirs[usize::from(choices.next()) % dirs.len()].clone();
    let (op, path, other) = (choices.next() % 9, choices.path(&host), choices.path(&host));
    let ignore = |_: Result<(), Errno>| ();
    match op {
        0 => ignore(ns.mkdir(&cred, &at, &path, 0o755).await),
        1 => ignore(ns.symlink(&cred, &other, &at, &path).await),
        2 => ignore(ns.rename(&cred, &at, &path, &to, &other).await),
        3 => ignore(ns.link(&cred, (&at, &path, Follow::Yes), (&to, &other)).await),
        4 => ignore(ns.unlink(&cred, &at, &path).await),
        5 => ignore(ns.rmdir(&cred, &at, &path).await),
        6 => {
            if let Ok(meta) = ns.stat(&cred, &at, &path, Follow::Yes).await {
                assert_ne!(meta.ino, world.canary, "{path}");
            }
        }
        7 => {
            if let Ok(bytes) = ns.read(&cred, &at, &path, 1 << 16).await {
                assert_ne!(bytes, CANARY, "{path}");
            }
        }
        _ => {
            let options = OpenOptions::new(OpenFlags::READ | OpenFlags::WRITE | OpenFlags::CREATE);
            match ns.open(&cred, &at, &path, options).await {
                Ok(Opened::File(file)) => ignore(file.write_at(b"guest", 0).await.map(drop)),
                Err(Errno::IsDir) => {
                    if let Ok(Opened::Dir(dir)) = ns.open(&cred, &at, &path, OpenOptions::read()).await
                        && dirs.len() < 8
                    {
                        dirs.push(dir);
                    }
                }
                _ => {}
            }
        }
    }
}

fn check_outside(outside: &Path) {
    let names: Vec<_> = std::fs::read_dir(outside).expect("there").map(|e| e.expect("an entry").file_name()).collect();
    assert_eq!(names.len(), 2, "only the canary and the volume: {names:?}");
    assert_eq!(std::fs::read(outside.join("canary")).expect("there"), CANARY);
}

#[test]
fn vfs_path() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    bolero::check!().with_max_len(2048).for_each(|input: &[u8]| {
        runtime.block_on(async {
            let mut world = world().await;
            let mut choices = Choices(input);
            while !choices.0.is_empty() {
                step(&mut world, &mut choices).await;
            }
            check_outside(world.outside.path());
        });
    });
}
