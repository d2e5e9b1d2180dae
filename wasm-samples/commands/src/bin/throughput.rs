//! Measures its host from inside: the same program under two hosts gives a ratio between them.
//!
//! Usage: `throughput files DIRECTORY [MIB]` or `throughput loopback [MIB]` (WASI 0.2 only: preview 1 has no sockets).
//! Prints `NAME VALUE UNIT` a line. Files: one file written and read in pieces of 64 KiB, then 100 bytes at a time, then
//! `stat`s of it. Loopback: bytes over a TCP connection to itself in pieces of 64 KiB, and round trips of one byte.

use std::fs::{self, File};
use std::hint::black_box;
use std::io::{self, Read, Seek, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use guest_support::args::Args;

const LARGE: usize = 64 * 1024;
const SMALL: usize = 100;
const SMALL_OPERATIONS: usize = 20_000;

fn main() -> ExitCode {
    let mut args = Args::new("throughput files DIRECTORY [MIB] | throughput loopback [MIB]");
    let result = match args.next::<String>("what").as_deref() {
        Some("files") => {
            let directory: String = args.next_or("directory", "/tmp".to_owned());
            files(Path::new(&directory), args.next_or("mib", 64))
        }
        Some("loopback") => loopback(args.next_or("mib", 64)),
        _ => args.fail("say what to measure"),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("throughput: {error}");
            ExitCode::FAILURE
        }
    }
}

fn files(directory: &Path, mebibytes: usize) -> io::Result<()> {
    let path = directory.join("throughput");
    let mut file = File::options().create(true).truncate(true).read(true).write(true).open(&path)?;
    let mut buffer = vec![b'x'; LARGE];
    let pieces = mebibytes * (1 << 20) / LARGE;

    let begin = Instant::now();
    for _ in 0..pieces {
        file.write_all(&buffer)?;
    }
    report("write-64k", mebibytes as f64 / begin.elapsed().as_secs_f64(), "MiB/s");

    file.rewind()?;
    let begin = Instant::now();
    for _ in 0..pieces {
        file.read_exact(&mut buffer)?;
    }
    report("read-64k", mebibytes as f64 / begin.elapsed().as_secs_f64(), "MiB/s");

    file.rewind()?;
    let begin = Instant::now();
    for _ in 0..SMALL_OPERATIONS {
        file.write_all(&buffer[..SMALL])?;
    }
    report("write-100", SMALL_OPERATIONS as f64 / begin.elapsed().as_secs_f64(), "/s");

    file.rewind()?;
    let begin = Instant::now();
    for _ in 0..SMALL_OPERATIONS {
        file.read_exact(&mut buffer[..SMALL])?;
    }
    report("read-100", SMALL_OPERATIONS as f64 / begin.elapsed().as_secs_f64(), "/s");

    let begin = Instant::now();
    for _ in 0..SMALL_OPERATIONS {
        black_box(fs::metadata(&path)?);
    }
    report("stat", SMALL_OPERATIONS as f64 / begin.elapsed().as_secs_f64(), "/s");
    drop(file);
    fs::remove_file(&path)
}

#[cfg(target_env = "p2")]
fn loopback(mebibytes: usize) -> io::Result<()> {
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut sender = TcpStream::connect(listener.local_addr()?)?;
    let (mut receiver, _) = listener.accept()?;

    const ROUND_TRIPS: usize = 5_000;
    let mut byte = [0];
    let begin = Instant::now();
    for _ in 0..ROUND_TRIPS {
        sender.write_all(&byte)?;
        receiver.read_exact(&mut byte)?;
        receiver.write_all(&byte)?;
        sender.read_exact(&mut byte)?;
    }
    report("loopback-round-trip", begin.elapsed().as_secs_f64() * 1e6 / ROUND_TRIPS as f64, "us");

    // One program is both ends: a piece is written, then read. Blocking calls, and a piece that any buffer between the ends
    // holds: a guest that never waits in a poll starves a host which sends in the background, as wasmtime-wasi does.
    let total = mebibytes << 20;
    let mut buffer = vec![b'x'; LARGE];
    let begin = Instant::now();
    for _ in 0..total / LARGE {
        sender.write_all(&buffer)?;
        receiver.read_exact(&mut buffer)?;
    }
    report("loopback", mebibytes as f64 / begin.elapsed().as_secs_f64(), "MiB/s");
    Ok(())
}

#[cfg(not(target_env = "p2"))]
fn loopback(_mebibytes: usize) -> io::Result<()> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "preview 1 has no sockets, use the component"))
}

fn report(name: &str, value: f64, unit: &str) {
    println!("{name} {value:.1} {unit}");
}
