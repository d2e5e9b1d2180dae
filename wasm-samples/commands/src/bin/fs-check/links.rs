//! Checks of hard and symbolic links, and of paths that lead through them.

use std::fs;
use std::path::{Path, PathBuf};

use guest_support::check::{Checks, Step, equal, fails_with};

use crate::open::contents;
use crate::sys::{self, errno};

pub fn run(checks: &mut Checks, dir: &Path) {
    hard(checks, dir);
    symbolic(checks, dir);
    paths(checks, dir);
}

fn hard(checks: &mut Checks, dir: &Path) {
    let (file, twin) = (dir.join("file"), dir.join("twin"));
    checks.check("a hard link is the same file", || {
        fs::write(&file, "one").step("write")?;
        fs::hard_link(&file, &twin).step("link")?;
        let (a, b) = (sys::stat(&file).step("stat")?, sys::stat(&twin).step("stat")?);
        equal("stat", b, a)?;
        equal("the link count", a.links, 2)?;
        fs::write(&twin, "two").step("write")?;
        contents(&file, "two")
    });
    checks.check("removing one name leaves the other", || {
        fs::remove_file(&file).step("unlink")?;
        contents(&twin, "two")?;
        equal("the link count", sys::stat(&twin).step("stat")?.links, 1)
    });
    checks.check("link refuses what it must", || {
        fails_with("to an existing name", fs::hard_link(&twin, dir.join(".")), errno::EEXIST)?;
        fails_with("of nothing", fs::hard_link(dir.join("missing"), dir.join("x")), errno::ENOENT)?;
        fails_with("of a directory", fs::hard_link(dir, dir.join("x")), errno::EPERM)
    });
}

fn symbolic(checks: &mut Checks, dir: &Path) {
    let (target, link) = (dir.join("target"), dir.join("link"));
    checks.check("a symbolic link leads to its target and says which", || {
        fs::write(&target, "text").step("write")?;
        sys::symlink("target", &link).step("symlink")?;
        equal("readlink", fs::read_link(&link).step("readlink")?, PathBuf::from("target"))?;
        contents(&link, "text")?;
        let stat = sys::lstat(&link).step("lstat")?;
        equal("lstat's (is_symlink, size)", (stat.is_symlink(), stat.size), (true, 6))?;
        equal("stat", sys::stat(&link).step("stat")?, sys::stat(&target).step("stat")?)
    });
    checks.check("what is written through a link lands in its target", || {
        fs::write(&link, "through").step("write")?;
        contents(&target, "through")?;
        equal("still a link", sys::lstat(&link).step("lstat")?.is_symlink(), true)
    });
    checks.check("a dangling link is ENOENT to follow, and creating through it makes its target", || {
        let dangling = dir.join("dangling");
        sys::symlink("made-through", &dangling).step("symlink")?;
        fails_with("stat", sys::stat(&dangling), errno::ENOENT)?;
        sys::lstat(&dangling).step("lstat")?;
        fs::write(&dangling, "made").step("create through it")?;
        contents(&dir.join("made-through"), "made")
    });
    checks.check("links in a circle are ELOOP", || {
        sys::symlink("two", &dir.join("one")).step("symlink")?;
        sys::symlink("one", &dir.join("two")).step("symlink")?;
        fails_with("stat", sys::stat(&dir.join("one")), errno::ELOOP)?;
        sys::symlink("itself", &dir.join("itself")).step("symlink")?;
        fails_with("open", sys::open(&dir.join("itself"), libc::O_RDONLY), errno::ELOOP)?;
        fails_with("on the way", sys::stat(&dir.join("one/below")), errno::ELOOP)
    });
    checks.check("O_NOFOLLOW refuses a link", || {
        fails_with("open", sys::open(&link, libc::O_RDONLY | libc::O_NOFOLLOW), errno::ELOOP)?;
        sys::open(&target, libc::O_RDONLY | libc::O_NOFOLLOW).step("open of a file").map(drop)
    });
    checks.check("unlink removes the link, not its target", || {
        fs::remove_file(&link).step("unlink")?;
        contents(&target, "through")
    });
    checks.check("symlink and readlink refuse what they must", || {
        fails_with("symlink over a file", sys::symlink("x", &target), errno::EEXIST)?;
        fails_with("symlink into nothing", sys::symlink("x", &dir.join("missing/x")), errno::ENOENT)?;
        fails_with("readlink of a file", fs::read_link(&target), errno::EINVAL)
    });
}

fn paths(checks: &mut Checks, dir: &Path) {
    checks.check("a link to a directory is a way into it, also by `..`", || {
        fs::create_dir_all(dir.join("real/inner")).step("mkdir")?;
        fs::write(dir.join("real/leaf"), "leaf").step("write")?;
        sys::symlink("real/inner", &dir.join("way")).step("symlink")?;
        fs::write(dir.join("way/new"), "new").step("write")?;
        contents(&dir.join("real/inner/new"), "new")?;
        // `..` is the parent of where the link leads, not of where it stands.
        contents(&dir.join("way/../leaf"), "leaf")
    });
    checks.check("a link up and over works", || {
        sys::symlink("../../real/leaf", &dir.join("real/inner/up")).step("symlink")?;
        contents(&dir.join("real/inner/up"), "leaf")
    });
    checks.check("an absolute link starts at the container's root", || {
        sys::symlink(dir.join("real/leaf"), &dir.join("absolute")).step("symlink")?;
        contents(&dir.join("absolute"), "leaf")
    });
    checks.check("forty links in a row lead on, forty-one are ELOOP", || {
        // 40 is Linux's MAXSYMLINKS.
        fs::write(dir.join("chain0"), "end").step("write")?;
        for number in 1..=41 {
            sys::symlink(format!("chain{}", number - 1), &dir.join(format!("chain{number}"))).step("symlink")?;
        }
        contents(&dir.join("chain40"), "end")?;
        fails_with("forty-one", sys::stat(&dir.join("chain41")), errno::ELOOP)
    });
    checks.check("no number of `..` leads above the root", || {
        let absolute =
            format!("{}{}", "../".repeat(64), dir.join("real/leaf").display().to_string().trim_start_matches('/'));
        sys::symlink(&absolute, &dir.join("escape")).step("symlink")?;
        contents(&dir.join("escape"), "leaf")
    });
    checks.check("slashes and dots in between make no difference", || {
        let odd = format!("{}//real/.//inner/./..//leaf", dir.display());
        contents(Path::new(&odd), "leaf")
    });
}
