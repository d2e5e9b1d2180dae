//! Checks of rename: over something, into another directory, of directories, and what it must refuse.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use guest_support::check::{Checks, Step, equal, fails_with};

use crate::open::contents;
use crate::sys::{self, errno};

pub fn run(checks: &mut Checks, dir: &Path) {
    let name = |name: &str| dir.join(name);
    checks.check("rename gives a file another name", || {
        fs::write(name("a"), "a").step("write")?;
        fs::rename(name("a"), name("b")).step("rename")?;
        fails_with("the old name", sys::stat(&name("a")), errno::ENOENT)?;
        contents(&name("b"), "a")
    });
    checks.check("rename replaces a file; who has the old one open keeps it", || {
        fs::write(name("old"), "old").step("write")?;
        fs::write(name("new"), "new").step("write")?;
        let mut held = File::open(name("old")).step("open")?;
        fs::rename(name("new"), name("old")).step("rename")?;
        contents(&name("old"), "new")?;
        let mut text = String::new();
        held.read_to_string(&mut text).step("read")?;
        equal("the held file", text.as_str(), "old")?;
        equal("its link count", sys::fstat(&held).step("fstat")?.links, 0)
    });
    checks.check("rename moves into another directory and back", || {
        fs::create_dir(name("sub")).step("mkdir")?;
        fs::rename(name("b"), name("sub/b")).step("into")?;
        contents(&name("sub/b"), "a")?;
        fs::rename(name("sub/b"), name("b")).step("out of")
    });
    checks.check("rename to itself changes nothing", || {
        fs::rename(name("b"), name("b")).step("rename")?;
        contents(&name("b"), "a")
    });
    checks.check("rename between two names of one file leaves both", || {
        fs::hard_link(name("b"), name("twin")).step("link")?;
        fs::rename(name("b"), name("twin")).step("rename")?;
        contents(&name("b"), "a")?;
        contents(&name("twin"), "a")
    });
    checks.check("a directory moves with all that is in it, also while it is open", || {
        fs::create_dir_all(name("tree/deep")).step("mkdir")?;
        fs::write(name("tree/deep/leaf"), "leaf").step("write")?;
        let held = File::open(name("tree/deep/leaf")).step("open")?;
        fs::rename(name("tree"), name("moved")).step("rename")?;
        contents(&name("moved/deep/leaf"), "leaf")?;
        equal("the held leaf", sys::fstat(&held).step("fstat")?, sys::stat(&name("moved/deep/leaf")).step("stat")?)?;
        fails_with("the old name", sys::stat(&name("tree/deep/leaf")), errno::ENOENT)
    });
    checks.check("a directory replaces an empty one, a full one is ENOTEMPTY", || {
        fs::create_dir(name("empty")).step("mkdir")?;
        fs::rename(name("moved"), name("empty")).step("over an empty one")?;
        contents(&name("empty/deep/leaf"), "leaf")?;
        fs::create_dir(name("other")).step("mkdir")?;
        match fs::rename(name("other"), name("empty")) {
            // POSIX allows either word.
            Err(error) if [libc::ENOTEMPTY, libc::EEXIST].contains(&error.raw_os_error().unwrap_or(0)) => Ok(()),
            result => Err(format!("over a full one gave {result:?}")),
        }
    });
    checks.check("a file does not replace a directory, nor a directory a file", || {
        fails_with("file over directory", fs::rename(name("b"), name("other")), errno::EISDIR)?;
        fails_with("directory over file", fs::rename(name("other"), name("b")), errno::ENOTDIR)
    });
    checks.check("a directory does not go into itself", || {
        fails_with("rename", fs::rename(name("empty"), name("empty/deep/inside")), errno::EINVAL)
    });
    checks.check("rename of nothing, or into nothing, is ENOENT", || {
        fails_with("of nothing", fs::rename(name("missing"), name("x")), errno::ENOENT)?;
        fails_with("into nothing", fs::rename(name("b"), name("missing/x")), errno::ENOENT)?;
        fails_with("below a file", fs::rename(name("twin"), name("b/x")), errno::ENOTDIR)
    });
    checks.check("rename moves a link, not what it points to", || {
        sys::symlink("b", &name("link")).step("symlink")?;
        fs::rename(name("link"), name("link2")).step("rename")?;
        equal("is_symlink", sys::lstat(&name("link2")).step("lstat")?.is_symlink(), true)?;
        contents(&name("b"), "a")
    });
    checks.check("a file replaced a thousand times is whole every time", || {
        for round in 0..1000 {
            let text = format!("round {round}");
            fs::write(name("fresh"), &text).step("write")?;
            fs::rename(name("fresh"), name("page")).step("rename")?;
            contents(&name("page"), &text)?;
        }
        Ok(())
    });
}
