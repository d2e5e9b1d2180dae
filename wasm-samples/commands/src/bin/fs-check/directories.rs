//! Checks of directories: making, removing, listing (also long ones and changing ones), and the working directory.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::{env, fs};

use guest_support::check::{Checks, Step, ensure, equal, fails_with};

use crate::open::contents;
use crate::sys::{self, errno};

/// More than a listing fits into any one buffer.
const MANY: usize = 3_000;

pub fn run(checks: &mut Checks, dir: &Path) {
    checks.check("mkdir makes an empty directory", || {
        fs::create_dir(dir.join("new")).step("mkdir")?;
        equal("is_dir", sys::stat(&dir.join("new")).step("stat")?.is_dir(), true)?;
        equal("entries", names(&dir.join("new"))?.len(), 0)
    });
    checks.check("mkdir refuses what it must", || {
        fails_with("over a directory", fs::create_dir(dir.join("new")), errno::EEXIST)?;
        fs::write(dir.join("file"), "x").step("write")?;
        fails_with("over a file", fs::create_dir(dir.join("file")), errno::EEXIST)?;
        fails_with("in nothing", fs::create_dir(dir.join("missing/x")), errno::ENOENT)?;
        fails_with("below a file", fs::create_dir(dir.join("file/x")), errno::ENOTDIR)
    });
    checks.check("mkdir and rmdir take a slash at the end", || {
        fs::create_dir(dir.join("slash/")).step("mkdir")?;
        fs::remove_dir(dir.join("slash/")).step("rmdir")
    });
    checks.check("rmdir refuses what it must", || {
        fs::write(dir.join("new/child"), "x").step("write")?;
        fails_with("a full one", fs::remove_dir(dir.join("new")), errno::ENOTEMPTY)?;
        fails_with("a file", fs::remove_dir(dir.join("file")), errno::ENOTDIR)?;
        fails_with("nothing", fs::remove_dir(dir.join("missing")), errno::ENOENT)?;
        fs::remove_file(dir.join("new/child")).step("unlink")?;
        fs::remove_dir(dir.join("new")).step("rmdir")
    });
    checks.check("nothing can be made in a removed directory", || {
        let gone = dir.join("gone");
        fs::create_dir(&gone).step("mkdir")?;
        let held = sys::open(&gone, libc::O_RDONLY | libc::O_DIRECTORY).step("open")?;
        fs::remove_dir(&gone).step("rmdir")?;
        fails_with("by its path", fs::write(gone.join("x"), "x"), errno::ENOENT)?;
        equal("the held one is a directory", sys::fstat(&held).step("fstat")?.is_dir(), true)
    });
    listing(checks, dir);
    working_directory(checks, dir);
}

fn listing(checks: &mut Checks, dir: &Path) {
    checks.check("a listing tells every name once, with its kind", || {
        let here = dir.join("kinds");
        fs::create_dir(&here).step("mkdir")?;
        fs::create_dir(here.join("d")).step("mkdir")?;
        fs::write(here.join("f"), "x").step("write")?;
        sys::symlink("f", &here.join("l")).step("symlink")?;
        let mut kinds = BTreeMap::new();
        for entry in fs::read_dir(&here).step("readdir")? {
            let entry = entry.step("entry")?;
            let kind = entry.file_type().step("kind")?;
            let letter = [(kind.is_dir(), 'd'), (kind.is_file(), 'f'), (kind.is_symlink(), 'l')];
            let letter = letter.into_iter().find_map(|(holds, letter)| holds.then_some(letter)).unwrap_or('?');
            kinds.insert(entry.file_name().to_string_lossy().into_owned(), letter);
        }
        equal("kinds", kinds, [("d", 'd'), ("f", 'f'), ("l", 'l')].map(|(name, kind)| (name.to_owned(), kind)).into())
    });
    let large = dir.join("large");
    checks.check("a long listing is complete", || {
        fs::create_dir(&large).step("mkdir")?;
        for number in 0..MANY {
            fs::write(large.join(format!("entry-{number:05}-with-a-name-of-some-length")), "").step("write")?;
        }
        let listed = names(&large)?;
        equal("entries", listed.len(), MANY)?;
        equal("different entries", listed.into_iter().collect::<BTreeSet<_>>().len(), MANY)
    });
    checks.check("removing while listing skips nothing that stays", || {
        let mut seen = BTreeSet::new();
        for (at, entry) in fs::read_dir(&large).step("readdir")?.enumerate() {
            let name = entry.step("entry")?.file_name();
            // Every other one goes as soon as it is seen.
            if at % 2 == 0 {
                fs::remove_file(large.join(&name)).step("unlink")?;
            }
            ensure(seen.insert(name.clone()), || format!("{} came twice", name.display()))?;
        }
        equal("entries seen", seen.len(), MANY)?;
        equal("entries left", names(&large)?.len(), MANY / 2)
    });
    checks.check("adding while listing repeats nothing and ends", || {
        let mut seen = BTreeSet::new();
        for (at, entry) in fs::read_dir(&large).step("readdir")?.enumerate() {
            let name = entry.step("entry")?.file_name();
            if at < 200 {
                fs::write(large.join(format!("added-{at}")), "").step("write")?;
            }
            ensure(seen.insert(name.clone()), || format!("{} came twice", name.display()))?;
        }
        ensure(seen.len() >= MANY / 2, || format!("only {} of {} seen", seen.len(), MANY / 2))
    });
    checks.check("listing a file is ENOTDIR, nothing is ENOENT", || {
        fails_with("a file", fs::read_dir(dir.join("file")), errno::ENOTDIR)?;
        fails_with("nothing", fs::read_dir(dir.join("missing")), errno::ENOENT)
    });
}

fn working_directory(checks: &mut Checks, dir: &Path) {
    checks.check("relative paths start at the working directory", || {
        let before = env::current_dir().step("getcwd")?;
        env::set_current_dir(dir).step("chdir")?;
        let outcome = (|| {
            equal("getcwd", env::current_dir().step("getcwd")?.as_path(), dir)?;
            fs::write("relative", "here").step("write")?;
            contents(&dir.join("relative"), "here")?;
            fs::create_dir("below").step("mkdir")?;
            env::set_current_dir("below").step("chdir below")?;
            contents(Path::new("../relative"), "here")
        })();
        env::set_current_dir(before).step("chdir back")?;
        outcome
    });
}

fn names(dir: &Path) -> Result<Vec<std::ffi::OsString>, String> {
    fs::read_dir(dir).step("readdir")?.map(|entry| entry.map(|entry| entry.file_name()).step("entry")).collect()
}
