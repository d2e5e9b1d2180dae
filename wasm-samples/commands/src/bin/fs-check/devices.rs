//! Checks of the device files every container has.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;

use guest_support::check::{Checks, Step, ensure, equal, fails_with};

use crate::sys::{self, errno};

pub fn run(checks: &mut Checks) {
    for name in ["null", "zero", "full", "random", "urandom"] {
        let path = Path::new("/dev").join(name);
        checks.check(&format!("/dev/{name} is a character device"), || {
            equal("is_char_device", sys::stat(&path).step("stat")?.is_char_device(), true)
        });
    }
    checks.check("/dev/null swallows all and holds nothing", || {
        fs::write("/dev/null", vec![1; 100_000]).step("write")?;
        equal("what it holds", fs::read("/dev/null").step("read")?.len(), 0)
    });
    checks.check("/dev/zero gives zeros and swallows", || {
        let mut buffer = [1; 1000];
        File::open("/dev/zero").and_then(|mut zero| zero.read_exact(&mut buffer)).step("read")?;
        ensure(buffer.iter().all(|&byte| byte == 0), || "not all of it is zero".into())?;
        fs::write("/dev/zero", "x").step("write")
    });
    checks.check("/dev/full is full", || {
        let mut full = OpenOptions::new().write(true).open("/dev/full").step("open")?;
        fails_with("write", full.write_all(b"x"), errno::ENOSPC)
    });
    checks.check("/dev/urandom and /dev/random give something else each time", || {
        let read = |path: &str| {
            let mut buffer = [0_u8; 32];
            File::open(path).and_then(|mut file| file.read_exact(&mut buffer)).step(path).map(|()| buffer)
        };
        let (one, two, three) = (read("/dev/urandom")?, read("/dev/urandom")?, read("/dev/random")?);
        ensure(one != two && two != three, || "the same 32 bytes came twice".into())
    });
}
