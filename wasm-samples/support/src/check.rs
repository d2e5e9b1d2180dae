//! A list of checks that prints one line each and a verdict at the end.
//!
//! In: named closures that return `Ok` or say what went wrong. Out: `ok NAME` / `FAIL NAME: why` lines on
//! stdout, then `PROGRAM: N passed, M failed`, and the process's exit code. A check never panics its way out:
//! on wasm that would be a trap and hide all the checks behind it.

use std::fmt::Debug;
use std::io;
use std::process::ExitCode;

/// What a check returns; the error is the sentence printed behind its name.
pub type Outcome = Result<(), String>;

/// The checks of one program so far.
#[derive(Debug)]
pub struct Checks {
    program: &'static str,
    passed: u32,
    failed: u32,
}

impl Checks {
    /// Starts an empty list.
    #[must_use]
    pub fn new(program: &'static str) -> Self {
        Self { program, passed: 0, failed: 0 }
    }

    /// Runs one check and prints its line.
    pub fn check(&mut self, name: &str, body: impl FnOnce() -> Outcome) {
        match body() {
            Ok(()) => {
                self.passed += 1;
                println!("ok   {name}");
            }
            Err(why) => {
                self.failed += 1;
                println!("FAIL {name}: {why}");
            }
        }
    }

    /// Prints the verdict. Success when nothing failed.
    #[must_use]
    pub fn verdict(self) -> ExitCode {
        println!("{}: {} passed, {} failed", self.program, self.passed, self.failed);
        if self.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// Both sides must be equal.
#[allow(clippy::needless_pass_by_value, reason = "literals and results of calls, none of them looked at again")]
pub fn equal<T: PartialEq + Debug>(what: &str, actual: T, expected: T) -> Outcome {
    if actual == expected { Ok(()) } else { Err(format!("{what} is {actual:?}, expected {expected:?}")) }
}

/// The condition must hold.
pub fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Outcome {
    if holds { Ok(()) } else { Err(otherwise()) }
}

/// The call must fail with this error number, and says so by name when it does not.
pub fn fails_with<T>(what: &str, result: io::Result<T>, expected: (i32, &str)) -> Outcome {
    let (number, name) = expected;
    match result {
        Ok(_) => Err(format!("{what} succeeded, expected {name}")),
        Err(error) if error.raw_os_error() == Some(number) => Ok(()),
        Err(error) => Err(format!("{what} failed with {error}, expected {name} ({number})")),
    }
}

/// Names the step that failed.
pub trait Step<T> {
    /// `Err` becomes "STEP: error".
    fn step(self, what: &str) -> Result<T, String>;
}

impl<T> Step<T> for io::Result<T> {
    fn step(self, what: &str) -> Result<T, String> {
        self.map_err(|error| format!("{what}: {error}"))
    }
}
