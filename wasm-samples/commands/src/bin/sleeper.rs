//! Does nothing, cheaply: a thousand of these show what an idle pod costs.
//!
//! Usage: `sleeper [--file FILE] [--port PORT] [NONCE]` or `sleeper --show FILE`.
//! Prints its nonce (from the argument, else `$NONCE`, else random) and sleeps for good. With `--file` it also writes
//! the nonce there, and `sleeper --show FILE`, run by an exec in the same container, prints it: proof that the
//! container asked is the one that answered. With `--port` (WASI 0.2 only: preview 1 has no sockets) it sends the
//! nonce to whoever connects.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::process::ExitCode;
use std::time::Duration;
use std::{env, fs, io, thread};

use guest_support::args::Args;

fn main() -> ExitCode {
    let mut args = Args::new("sleeper [--file FILE] [--port PORT] [NONCE] | sleeper --show FILE");
    let result = match args.option::<String>("--show") {
        Some(file) => show(&file),
        None => sleep(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sleeper: {error}");
            ExitCode::FAILURE
        }
    }
}

fn show(file: &str) -> io::Result<()> {
    print!("{}", fs::read_to_string(file)?);
    Ok(())
}

fn sleep(mut args: Args) -> io::Result<()> {
    let file: Option<String> = args.option("--file");
    let port: Option<u16> = args.option("--port");
    let nonce = args.next("nonce").or_else(|| env::var("NONCE").ok()).unwrap_or_else(random_nonce);
    if let Some(file) = file {
        fs::write(file, format!("{nonce}\n"))?;
    }
    println!("{nonce}");
    if let Some(port) = port {
        serve(port, &nonce)?;
    }
    loop {
        thread::sleep(Duration::from_hours(24));
    }
}

/// 64 random bits: std seeds its hash maps from the host's random numbers.
fn random_nonce() -> String {
    format!("{:016x}", RandomState::new().hash_one(0))
}

#[cfg(target_env = "p2")]
fn serve(port: u16, nonce: &str) -> io::Result<()> {
    use std::io::Write;
    use std::net::{Ipv4Addr, TcpListener};

    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    for connection in listener.incoming() {
        // A peer that is gone before it is answered is the peer's own affair.
        if let Ok(mut connection) = connection {
            let _ = connection.write_all(format!("{nonce}\n").as_bytes());
        }
    }
    Ok(())
}

#[cfg(not(target_env = "p2"))]
fn serve(_port: u16, _nonce: &str) -> io::Result<()> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "--port: preview 1 has no sockets, use the component"))
}
