//! The toolbox as an image: what `busybox` means on this node.
//!
//! In: names of repositories that mean it. Out: an image whose root looks like busybox's, with a program of the toolbox
//! under each name in `/bin`. The programs are scripts for the toolbox, whose wasm is the node's and in no layer; so the
//! image is a few kilobytes, the same on every node of one version, and needs no registry.

use std::io::{self, Write};

use crate::pod::toolbox::{TOOLBOX_PATH, applets};

use super::archive::Loaded;
use super::builder::{BuildError, BuildOptions, LayerError, image_of_layer};
use super::reference::ImageRef;
use super::store::Store;

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const DIRECTORIES: [(&str, u32); 15] = [
    ("bin", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("root", 0o700),
    ("sbin", 0o755),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("usr/bin", 0o755),
    ("usr/sbin", 0o755),
    ("var", 0o755),
    ("var/log", 0o755),
    ("var/run", 0o755),
    ("var/spool", 0o755),
    ("var/spool/mail", 0o755),
    ("var/www", 0o755),
];
const PASSWD: &str = "\
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
bin:x:2:2:bin:/bin:/bin/false
sys:x:3:3:sys:/dev:/bin/false
sync:x:4:100:sync:/bin:/bin/sync
mail:x:8:8:mail:/var/spool/mail:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
operator:x:37:37:Operator:/var:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
";
const GROUP: &str = "\
root:x:0:
daemon:x:1:
bin:x:2:
sys:x:3:
adm:x:4:
tty:x:5:
disk:x:6:
mail:x:8:
www-data:x:33:
operator:x:37:
users:x:100:
nobody:x:65534:
";

/// Which image names mean the toolbox.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ToolboxImages {
    repositories: Vec<String>,
}

impl ToolboxImages {
    /// Those of these repositories, such as `docker.io/library/busybox` or `busybox`, with any tag.
    #[must_use]
    pub fn new(repositories: &[String]) -> Self {
        let full = |name: &String| match name.parse::<ImageRef>() {
            Ok(image) => repository(&image),
            // Matches nothing, as a name that no image can have should.
            Err(_) => name.clone(),
        };
        Self { repositories: repositories.iter().map(full).collect() }
    }

    /// Whether `image` is one. A digest is of somebody's very bytes, which these are not.
    #[must_use]
    pub fn contains(&self, image: &ImageRef) -> bool {
        image.digest().is_none() && self.repositories.contains(&repository(image))
    }
}

fn repository(image: &ImageRef) -> String {
    format!("{}/{}", image.registry(), image.repository())
}

/// Writes the image into `store`. Blocking, and quick.
///
/// # Errors
/// [`BuildError`].
pub fn build(store: &Store) -> Result<Loaded, BuildError> {
    let options = BuildOptions {
        cmd: vec!["sh".to_owned()],
        env: vec![PATH.to_owned()],
        labels: vec!["dev.wasilet.toolbox=true".to_owned()],
        ..BuildOptions::default()
    };
    image_of_layer(store, &options, |tar| write_root(tar).map_err(LayerError::Write))
}

fn write_root(tar: &mut tar::Builder<impl Write>) -> io::Result<()> {
    for (path, mode) in DIRECTORIES {
        let mut header = header(tar::EntryType::Directory, mode, 0);
        tar.append_data(&mut header, format!("{path}/"), io::empty())?;
    }
    let script = format!("#!{TOOLBOX_PATH}\n");
    for (path, mode, text) in [
        ("bin/busybox", 0o755, script.as_str()),
        ("etc/group", 0o644, GROUP),
        ("etc/passwd", 0o644, PASSWD),
        ("etc/shadow", 0o640, "root:*:::::::\n"),
    ] {
        let mut header = header(tar::EntryType::Regular, mode, text.len() as u64);
        tar.append_data(&mut header, path, text.as_bytes())?;
    }
    for name in applets().filter(|name| *name != "busybox") {
        let mut header = header(tar::EntryType::Link, 0o755, 0);
        tar.append_link(&mut header, format!("bin/{name}"), "bin/busybox")?;
    }
    let mut header = header(tar::EntryType::Symlink, 0o777, 0);
    tar.append_link(&mut header, "usr/bin/env", "../../bin/env")
}

/// Owned by root, of no particular time: the image must not depend on when and where it is made.
fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_mean_the_toolbox_by_repository_with_any_tag() {
        let default = ToolboxImages::new(&[
            "docker.io/library/busybox".to_owned(),
            "registry.k8s.io/e2e-test-images/busybox".to_owned(),
        ]);
        for (name, expected) in [
            ("busybox", true),
            ("busybox:1.36", true),
            ("docker.io/library/busybox:latest", true),
            ("docker.io/busybox", true),
            ("registry.k8s.io/e2e-test-images/busybox:1.37.0-1", true),
            ("example.com/library/busybox", false),
            ("busybox-extras", false),
            ("busybox@sha256:0000000000000000000000000000000000000000000000000000000000000000", false),
        ] {
            assert_eq!(default.contains(&name.parse().unwrap()), expected, "{name}");
        }
        assert!(!ToolboxImages::new(&[]).contains(&"busybox".parse().unwrap()), "turned off");
    }
}
