//! Computes without ever waiting: what CPU limits, fairness and kill are tested with.
//!
//! Usage: `spin [SECONDS]`. Without seconds it never ends; with them it prints how far it came and exits 0.

use std::hint::black_box;
use std::time::{Duration, Instant};

use guest_support::args::Args;

/// Iterations between two looks at the clock: long enough that the loop, not the clock, is what runs.
const BATCH: u64 = 1_000_000;

fn main() {
    let mut args = Args::new("spin [SECONDS]");
    let seconds: Option<f64> = args.next("seconds");
    println!("spinning");
    let start = Instant::now();
    let mut state = 1_u64;
    let mut iterations = 0_u64;
    loop {
        for _ in 0..BATCH {
            // xorshift: cheap, and the optimizer cannot skip ahead in it.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
        }
        iterations += BATCH;
        black_box(state);
        if seconds.is_some_and(|limit| start.elapsed() >= Duration::from_secs_f64(limit)) {
            break;
        }
    }
    println!("{iterations} iterations in {:.3} s", start.elapsed().as_secs_f64());
}
