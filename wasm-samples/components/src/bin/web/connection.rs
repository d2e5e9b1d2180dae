//! One connection from its first byte to its last. In: a [`Connection`]. Out: responses, and a line of access log
//! for each. Decides keep-alive and timeouts; what a request says is `request`'s and what is served is `files`'.

use std::cell::Cell;
use std::io::{self, Read};
use std::time::Duration;

use components::tcp::Connection;
use wstd::future::FutureExt;

use crate::Server;
use crate::files::{self, Found};
use crate::request::{self, Head, Parsed};
use crate::response::{Persistence, Response};

/// How long a request may take to arrive and a kept connection may be silent (nginx's `keepalive_timeout`).
const IDLE: Duration = Duration::from_secs(75);
/// How long a peer may take to read our answer or to stop sending what we will not read.
const STALLED: Duration = Duration::from_secs(30);
const LINGER: Duration = Duration::from_secs(2);
/// What one write carries, as the node moves 64 KiB at once.
const CHUNK: usize = 64 * 1024;

/// Whether there is room for one more connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// There is.
    Normal,
    /// There is not: answer 503 and close.
    Overloaded,
}

impl From<bool> for Load {
    fn from(overloaded: bool) -> Self {
        if overloaded { Self::Overloaded } else { Self::Normal }
    }
}

/// Serves requests until either side has enough.
pub async fn serve(server: &Server, connection: &Connection, busy: &Cell<bool>, load: Load) -> io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        busy.set(false);
        let parsed = match receive(connection, &mut buffer, busy).timeout(wstd::time::Duration::from(IDLE)).await {
            Ok(parsed) => parsed?,
            // A silent peer is told nothing when it asked nothing.
            Err(_) if buffer.is_empty() => return Ok(()),
            Err(_) => Parsed::Refused(request::Refusal::Timeout),
        };
        busy.set(true);
        let head = match parsed {
            Parsed::Complete(head) => head,
            Parsed::Closed => return Ok(()),
            Parsed::Refused(refusal) => {
                let response = Response::error(refusal.status(), Persistence::Close);
                answer(connection, &Head::unreadable(), response).await?;
                return linger(connection).await;
            }
        };
        let keep = head.keep_alive && load == Load::Normal && !server.stopping.get();
        let persistence = if keep { Persistence::KeepAlive } else { Persistence::Close };
        let response = match load {
            Load::Normal => respond(server, &head, persistence),
            Load::Overloaded => Response::error(503, persistence),
        };
        answer(connection, &head, response).await?;
        if !keep {
            return linger(connection).await;
        }
    }
}

/// Reads until `buffer` holds a whole head, which is taken out of it. What comes behind it (a pipelined request)
/// stays for the next call.
async fn receive(connection: &Connection, buffer: &mut Vec<u8>, busy: &Cell<bool>) -> io::Result<Parsed> {
    loop {
        if !buffer.is_empty() {
            busy.set(true);
            match request::parse(buffer) {
                Some((parsed, used)) => {
                    buffer.drain(..used);
                    return Ok(parsed);
                }
                None if buffer.len() >= request::MAX_HEAD => {
                    return Ok(Parsed::Refused(request::Refusal::TooLarge));
                }
                None => {}
            }
        }
        let mut chunk = [0; 4096];
        match connection.read(&mut chunk).await? {
            0 => return Ok(Parsed::Closed),
            count => buffer.extend_from_slice(&chunk[..count]),
        }
    }
}

fn respond(server: &Server, head: &Head, persistence: Persistence) -> Response {
    if head.method != "GET" && head.method != "HEAD" {
        return Response::error(405, persistence);
    }
    match files::find(&server.root, &head.target) {
        Found::File(file) => Response::file(file, persistence),
        Found::Elsewhere(location) => Response::redirect(&location, persistence),
        Found::Nothing(status) => Response::error(status, persistence),
    }
}

/// Sends a response and logs it, also when the peer went away in the middle.
async fn answer(connection: &Connection, head: &Head, mut response: Response) -> io::Result<()> {
    let mut sent = 0;
    let result = send(connection, head, &mut response, &mut sent).await;
    println!("{}", head.log_line(connection.peer().ip(), response.status, sent));
    result
}

async fn send(connection: &Connection, head: &Head, response: &mut Response, sent: &mut u64) -> io::Result<()> {
    let mut chunk = response.head();
    let mut left = if head.method == "HEAD" { 0 } else { response.length };
    loop {
        let headers = chunk.len();
        let wanted = (CHUNK - headers.min(CHUNK / 2)).min(usize::try_from(left).unwrap_or(usize::MAX));
        chunk.resize(headers + wanted, 0);
        let count = if wanted == 0 { 0 } else { response.body.read(&mut chunk[headers..])? };
        if count == 0 && left > 0 {
            // The file shrank under us: the length we promised cannot be kept, only the connection can end.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        chunk.truncate(headers + count);
        connection.write_all(&chunk).timeout(wstd::time::Duration::from(STALLED)).await??;
        left -= count as u64;
        *sent += count as u64;
        if left == 0 {
            return Ok(());
        }
        chunk.clear();
    }
}

/// Closes in order: a socket closed with unread bytes would reset the connection, and the peer might lose our answer.
async fn linger(connection: &Connection) -> io::Result<()> {
    connection.finish().timeout(wstd::time::Duration::from(STALLED)).await??;
    let discard = async {
        let mut rest = [0; 4096];
        while connection.read(&mut rest).await.is_ok_and(|count| count > 0) {}
    };
    // Whether the peer was done by then makes no difference.
    let _ = discard.timeout(wstd::time::Duration::from(LINGER)).await;
    Ok(())
}
