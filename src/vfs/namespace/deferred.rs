//! Mounts whose content comes when somebody looks at them.

use std::sync::Arc;

use super::*;
use crate::pod::run::{Access, ProjectedFile, Projection};
use crate::vfs::testkit::{bare, root_cred};
use crate::vfs::{FileType, ManagedFile, Volume};

#[tokio::test]
async fn who_comes_to_deferred_content_waits_for_it_and_who_brings_it_hears_of_that() {
    let later = std::time::Duration::from_millis(50);
    let content = || {
        let file = ProjectedFile { data: b"one".to_vec(), mode: 0o644, uid: 0 };
        Projection { files: [("d/token".to_owned(), file.clone()), ("ca".to_owned(), file)].into(), fs_group: None }
    };
    let cred = root_cred();
    let calls = ["stat", "open", "list", "rename", "part"];
    for call in calls {
        let volume = Volume::deferred();
        let above = bare().mount("/var/run/api", Arc::clone(&volume), "", Access::ReadWrite);
        // A mount inside of it neither asks for it nor is lost when it comes.
        let ns = above.tmpfs("/var/run/api/inner", 1 << 20).build().await.unwrap();
        let at = ns.root();
        // Nor does one over a name that the content has, which it hides from its own container alone.
        let own = ManagedFile::new(b"own");
        let other = bare().mount("/var/run/api", Arc::clone(&volume), "", Access::ReadOnly);
        let other = other.managed_file("/var/run/api/ca", &own).build().await.unwrap();
        assert!(ns.stat(&cred, &at, "/var/run", Follow::Yes).await.is_ok());
        assert!(tokio::time::timeout(later, volume.wanted()).await.is_err(), "{call}: nobody came");
        let looks = async {
            match call {
                "stat" => drop(ns.stat(&cred, &at, "/var/run/api/d/token", Follow::Yes).await.unwrap()),
                "open" => assert_eq!(ns.read(&cred, &at, "/var/run/api/d/token", 9).await.unwrap(), b"one"),
                "list" => drop(ns.open(&cred, &at, "/var/run/api", OpenOptions::read()).await.unwrap()),
                "rename" => {
                    let renamed = ns.rename(&cred, &at, "/var/run/api/d", &at, "/var/run/api/e").await;
                    assert_eq!(renamed, Err(Errno::RoFs));
                }
                _ => {
                    let part = bare().mount("/part", Arc::clone(&volume), "d", Access::ReadOnly).build().await.unwrap();
                    assert_eq!(part.read(&cred, &part.root(), "/part/token", 9).await.unwrap(), b"one");
                }
            }
        };
        let brings = async {
            volume.wanted().await;
            tokio::time::sleep(later).await;
            volume.update(&content()).unwrap();
        };
        let ((), ()) = tokio::time::timeout(later * 100, async { tokio::join!(looks, brings) }).await.unwrap();
        volume.wanted().await;
        volume.update(&content()).unwrap();
        assert!(ns.stat(&cred, &at, "/var/run/api/inner", Follow::Yes).await.unwrap().kind == FileType::Directory);
        assert_eq!(ns.read(&cred, &at, "/var/run/api/d/token", 9).await.unwrap(), b"one", "{call}");
        assert_eq!(ns.read(&cred, &at, "/var/run/api/ca", 9).await.unwrap(), b"one", "{call}");
        assert_eq!(other.read(&cred, &other.root(), "/var/run/api/ca", 9).await.unwrap(), b"own", "{call}");
    }
}
