//! Serves the listeners it was started with: preview 1 can accept connections and not ask for a listener.
//!
//! Usage: `accept`. `WASILET_LISTEN_FDS` names them, `4:8080,5:9090`. The first one is served: each line that comes is
//! answered by the port and the line.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::FromRawFd;
use std::process::ExitCode;

fn main() -> ExitCode {
    let given = std::env::var("WASILET_LISTEN_FDS").unwrap_or_default();
    let Some((fd, port)) = given.split(',').next().and_then(|first| first.split_once(':')) else {
        eprintln!("accept: WASILET_LISTEN_FDS is {given:?}");
        return ExitCode::FAILURE;
    };
    let Ok(fd) = fd.parse() else { return ExitCode::FAILURE };
    // SAFETY: the node opened it for this program, which uses it once.
    let listener = unsafe { TcpListener::from_raw_fd(fd) };
    println!("accept: listening at fd {fd} for port {port}");
    loop {
        let served = listener.accept().and_then(|(stream, _)| serve(&stream, port));
        if let Err(error) = served {
            eprintln!("accept: {error}");
            return ExitCode::FAILURE;
        }
    }
}

fn serve(stream: &TcpStream, port: &str) -> std::io::Result<()> {
    let mut stream: &TcpStream = stream;
    for line in BufReader::new(stream).lines() {
        writeln!(stream, "{port} {}", line?)?;
    }
    Ok(())
}
