//! Writes to its log as fast as it can: what log rotation and back-pressure are tested with.
//!
//! Usage: `flood [LINES] [BYTES]`, defaults no end and 100: every line is numbered and filled up to BYTES, its line
//! feed included. Odd lines go to stdout, even ones to stderr.

use std::io::{self, Write};

use guest_support::args::Args;

fn main() -> io::Result<()> {
    let mut args = Args::new("flood [LINES] [BYTES]");
    let lines: u64 = args.next_or("lines", u64::MAX);
    let bytes: usize = args.next_or("bytes", 100);
    let (mut stdout, mut stderr) = (io::stdout().lock(), io::stderr().lock());
    for number in 1..=lines {
        let mut line = format!("{number} ");
        while line.len() + 1 < bytes {
            line.push('.');
        }
        line.push('\n');
        if number % 2 == 1 { stdout.write_all(line.as_bytes())? } else { stderr.write_all(line.as_bytes())? }
    }
    Ok(())
}
