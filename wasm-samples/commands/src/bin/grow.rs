//! Eats memory step by step: what memory limits and `OOMKilled` are tested with.
//!
//! Usage: `grow [STEP_MIB] [MAX_MIB] [PAUSE_MS]`, defaults 1, no end, 0. Prints the MiB it holds after each step.
//! With a maximum it then holds what it has for good; when memory is refused instead, it says so and exits 1.

use std::{process, thread, time::Duration};

use guest_support::args::Args;

const MIB: usize = 1024 * 1024;
const PAGE: usize = 4096;

fn main() {
    let mut args = Args::new("grow [STEP_MIB] [MAX_MIB] [PAUSE_MS]");
    let step: usize = args.next_or("step", 1);
    let max: Option<usize> = args.next("maximum");
    let pause = Duration::from_millis(args.next_or("pause", 0));
    let mut blocks: Vec<Vec<u8>> = Vec::new();
    let mut held = 0;
    while max.is_none_or(|max| held < max) {
        let mut block = Vec::new();
        if block.try_reserve_exact(step * MIB).is_err() {
            println!("refused at {held} MiB");
            process::exit(1);
        }
        block.resize(step * MIB, 0);
        // One byte in each page, so that the memory is in use and not only promised.
        block.iter_mut().step_by(PAGE).for_each(|byte| *byte = 1);
        blocks.push(block);
        held += step;
        println!("{held} MiB");
        thread::sleep(pause);
    }
    println!("holding {held} MiB");
    loop {
        thread::sleep(Duration::from_hours(1));
    }
}
