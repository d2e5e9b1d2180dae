//! The `wasilet` command: arguments in, exit code out. Everything else is in the library.

use std::process::ExitCode;

/// Many small objects of many pods, made on one thread and freed on another.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// As many arenas as CPUs, not four times as many: what one pod leaves is there for the next. What nobody needs for a second
/// goes back to the machine, also while the node has nothing to do.
#[allow(unsafe_code, reason = "the allocator looks for its settings under this name")]
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static MALLOC_CONF: &[u8; 76] = b"narenas_ratio:1,background_thread:true,dirty_decay_ms:1000,muzzy_decay_ms:0\0";

fn main() -> ExitCode {
    // The compile subprocess is this same binary; it must become that before a runtime exists.
    if let Some(code) = wasilet::runtime::compile::child_main() {
        return code;
    }
    wasilet::cli::main()
}
