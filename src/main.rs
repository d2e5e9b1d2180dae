//! The `wasilet` command: arguments in, exit code out. Everything else is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    // The compile subprocess is this same binary; it must become that before a thread or a runtime exists.
    if let Some(code) = wasilet::runtime::compile::child_main() {
        return code;
    }
    wasilet::cli::main()
}
