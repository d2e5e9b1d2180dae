//! Ends in a trap, the WebAssembly kind of crash: the node must report its message and backtrace.
//!
//! Usage: `trap [unreachable|bounds|stack|panic]`, default `unreachable`.

use std::hint::black_box;

use guest_support::args::Args;

fn main() {
    let mut args = Args::new("trap [unreachable|bounds|stack|panic]");
    let kind = args.next_or("kind", String::from("unreachable"));
    println!("about to trap: {kind}");
    match kind.as_str() {
        "unreachable" => unreachable(),
        "bounds" => read_out_of_bounds(),
        "stack" => println!("{}", overflow_the_stack(0)),
        "panic" => panic!("this panic was asked for"),
        other => args.fail(format_args!("no trap is called {other:?}")),
    }
}

#[inline(never)]
fn unreachable() {
    #[cfg(target_arch = "wasm32")]
    core::arch::wasm32::unreachable();
}

/// Reads the last bytes of the 4 GiB address space, where no memory is.
#[inline(never)]
fn read_out_of_bounds() {
    let address = black_box(usize::MAX - 15) as *const u64;
    // SAFETY: none, and that is the point: the sandbox, not Rust, stops this read. It is volatile so that it happens.
    let value = unsafe { address.read_volatile() };
    println!("read {value}, which must not happen");
}

#[inline(never)]
#[expect(unconditional_recursion, reason = "the stack must overflow")]
fn overflow_the_stack(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    overflow_the_stack(depth + 1) + frame[63]
}
