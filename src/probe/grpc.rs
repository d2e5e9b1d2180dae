//! `grpc.health.v1.Health/Check`, in the clear.
//!
//! In: where, and which service. Out: an outcome in the kubelet's words. The two messages of the protocol have one field
//! each; they are written and read by hand.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{MAX_OUTPUT_BYTES, Target, dial};
use crate::image::chain;
use crate::network::TcpStream;
use crate::pod::probe::{Address, Outcome};
use crate::runtime::Runtime;

/// gRPC's first pause between attempts to connect.
const RECONNECT: Duration = Duration::from_secs(1);
const UNIMPLEMENTED: u32 = 12;
const SERVING: u64 = 1;

/// What a server said.
#[derive(Debug, PartialEq, Eq)]
enum Reply {
    /// `HealthCheckResponse.status`.
    Health(u64),
    /// A status other than OK.
    Refused { code: u32, message: String },
    /// Nothing that is gRPC.
    Broken(String),
}

pub(super) async fn check(
    runtime: &Runtime,
    target: &Target,
    address: &Address,
    service: &str,
    timeout: Duration,
) -> Outcome {
    let deadline = Instant::now() + timeout;
    let connecting = async {
        loop {
            match dial(runtime, target, address).await {
                Ok(stream) => return stream,
                // As gRPC's blocking dial: who is not there may come within the time.
                Err(_) => tokio::time::sleep(RECONNECT).await,
            }
        }
    };
    let Ok(stream) = tokio::time::timeout_at(deadline, connecting).await else {
        let seconds = timeout.as_secs();
        return Outcome::Failure(format!(
            "timeout: failed to connect service \"{address}\" within {seconds}s: context deadline exceeded"
        ));
    };
    match tokio::time::timeout_at(deadline, call(stream, address, service, target)).await {
        Ok(reply) => outcome(reply),
        Err(_) => Outcome::Failure(format!("timeout: health rpc did not complete within {}s", timeout.as_secs())),
    }
}

fn outcome(reply: Reply) -> Outcome {
    match reply {
        Reply::Health(SERVING) => Outcome::Success,
        Reply::Health(status) => {
            let name = match status {
                0 => "UNKNOWN".to_owned(),
                2 => "NOT_SERVING".to_owned(),
                3 => "SERVICE_UNKNOWN".to_owned(),
                other => other.to_string(),
            };
            Outcome::Failure(format!("service unhealthy (responded with \"{name}\")"))
        }
        Reply::Refused { code: UNIMPLEMENTED, message } => Outcome::Failure(format!(
            "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {message}"
        )),
        Reply::Refused { code, message } => {
            let code = code_name(code);
            Outcome::Failure(format!("error: health rpc probe failed: rpc error: code = {code} desc = {message}"))
        }
        Reply::Broken(what) => {
            Outcome::Failure(format!("error: health rpc probe failed: rpc error: code = Unavailable desc = {what}"))
        }
    }
}

async fn call(stream: TcpStream, address: &Address, service: &str, target: &Target) -> Reply {
    let broken = |error: &dyn std::error::Error| Reply::Broken(chain(error));
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (mut sender, connection) = match handshake {
        Ok(made) => made,
        Err(error) => return broken(&error),
    };
    // Ends with this function, whichever way.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let request = Request::post(format!("http://{address}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", target.purpose.user_agent())
        .body(Full::new(frame(&request(service))));
    let request = match request {
        Ok(request) => request,
        Err(error) => return broken(&error),
    };
    let response = match sender.send_request(request).await {
        Ok(response) => response,
        Err(error) => return broken(&error),
    };
    let (parts, body) = response.into_parts();
    let collected = match Limited::new(body, MAX_OUTPUT_BYTES).collect().await {
        Ok(collected) => collected,
        Err(error) => return Reply::Broken(error.to_string()),
    };
    // A server that has only a status to tell puts it into the headers.
    let status = collected.trailers().and_then(status).or_else(|| status(&parts.headers));
    match status {
        Some((0, _)) => match read(&collected.to_bytes()) {
            Some(health) => Reply::Health(health),
            None => Reply::Broken("malformed response".to_owned()),
        },
        Some((code, message)) => Reply::Refused { code, message },
        None => Reply::Broken(format!("unexpected HTTP status code {}", parts.status.as_u16())),
    }
}

fn status(headers: &HeaderMap) -> Option<(u32, String)> {
    let code = headers.get("grpc-status")?.to_str().ok()?.parse().ok()?;
    let message = headers.get("grpc-message").map(|message| String::from_utf8_lossy(message.as_bytes()).into_owned());
    Some((code, message.unwrap_or_default()))
}

/// `HealthCheckRequest`: field 1 is the service.
fn request(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.push(length as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(service.as_bytes());
    }
    message
}

/// A message with gRPC's head: not compressed, and its length.
fn frame(message: &[u8]) -> Bytes {
    let mut framed = vec![0];
    framed.extend_from_slice(&(message.len() as u32).to_be_bytes());
    framed.extend_from_slice(message);
    framed.into()
}

/// `HealthCheckResponse`: field 1 is the status, 0 when it is absent. `None` for what is no such message.
fn read(framed: &[u8]) -> Option<u64> {
    let (head, message) = framed.split_at_checked(5)?;
    let length = u32::from_be_bytes(head[1..].try_into().ok()?) as usize;
    let mut rest = message.get(..length).filter(|_| head[0] == 0)?;
    let mut status = 0;
    while !rest.is_empty() {
        let key = varint(&mut rest)?;
        match key & 7 {
            0 => {
                let value = varint(&mut rest)?;
                if key >> 3 == 1 {
                    status = value;
                }
            }
            1 => rest = rest.get(8..)?,
            2 => {
                let length = usize::try_from(varint(&mut rest)?).ok()?;
                rest = rest.get(length..)?;
            }
            5 => rest = rest.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn code_name(code: u32) -> String {
    const NAMES: [&str; 17] = [
        "OK",
        "Canceled",
        "Unknown",
        "InvalidArgument",
        "DeadlineExceeded",
        "NotFound",
        "AlreadyExists",
        "PermissionDenied",
        "ResourceExhausted",
        "FailedPrecondition",
        "Aborted",
        "OutOfRange",
        "Unimplemented",
        "Internal",
        "Unavailable",
        "DataLoss",
        "Unauthenticated",
    ];
    NAMES.get(code as usize).map_or_else(|| format!("Code({code})"), |name| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_the_health_protocol_are_written_and_read() {
        assert_eq!(&frame(&request(""))[..], [0, 0, 0, 0, 0]);
        assert_eq!(&frame(&request("ab"))[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(request(&"x".repeat(200))[..3], [0x0a, 0xc8, 1]);
        for (case, message, expected) in [
            ("serving", &[0, 0, 0, 0, 2, 8, 1][..], Some(1)),
            ("no field is 0", &[0, 0, 0, 0, 0], Some(0)),
            ("unknown fields are passed over", &[0, 0, 0, 0, 6, 0x12, 2, b'a', b'b', 8, 2], Some(2)),
            ("cut short", &[0, 0, 0, 0, 9, 8, 1], None),
            ("compressed", &[1, 0, 0, 0, 2, 8, 1], None),
            ("a varint without end", &[0, 0, 0, 0, 2, 8, 0x80], None),
            ("nothing", &[], None),
        ] {
            assert_eq!(read(message), expected, "{case}");
        }
    }

    #[test]
    fn replies_are_worded_as_the_kubelets() {
        let failure = |text: &str| Outcome::Failure(text.to_owned());
        for (reply, expected) in [
            (Reply::Health(1), Outcome::Success),
            (Reply::Health(2), failure("service unhealthy (responded with \"NOT_SERVING\")")),
            (
                Reply::Refused { code: 5, message: "unknown service".into() },
                failure("error: health rpc probe failed: rpc error: code = NotFound desc = unknown service"),
            ),
            (
                Reply::Refused { code: 12, message: "no".into() },
                failure("error: this server does not implement the grpc health protocol (grpc.health.v1.Health): no"),
            ),
        ] {
            assert_eq!(outcome(reply), expected);
        }
    }
}
