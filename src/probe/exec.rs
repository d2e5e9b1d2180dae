//! A program in the container: its exit code is the answer, what it says the message.
//!
//! In: a command. Out: an outcome. Standard input is closed; what it writes beyond 10 KiB is read and forgotten.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};

use super::{MAX_OUTPUT_BYTES, Purpose, Target};
use crate::image::chain;
use crate::pod::probe::Outcome;
use crate::pod::run::{ExecSpec, Stdin, StdioSpec, Tty};
use crate::runtime::{Runtime, Session, SessionWait};

pub(super) async fn run(runtime: &Runtime, target: &Target, command: &[String], timeout: Option<Duration>) -> Outcome {
    let stdio = StdioSpec { stdin: Stdin::Closed, tty: Tty::None };
    let asked = async {
        let session = runtime.exec(&target.id, ExecSpec { argv: command.to_vec(), stdio }).await;
        let mut program = match session {
            Ok(session) => Program { session, ends: target.purpose == Purpose::Probe },
            Err(error) => return Outcome::Errored(chain(&error)),
        };
        let waiter: SessionWait = program.session.waiter();
        let Session { stdout, stderr, .. } = &mut program.session;
        let errors = async {
            match stderr {
                Some(stderr) => read(stderr).await,
                None => Vec::new(),
            }
        };
        let (code, said, errors) = tokio::join!(waiter.wait(), read(stdout), errors);
        program.ends = false;
        match (code, target.purpose) {
            (0, _) => Outcome::Success,
            (_, Purpose::Probe) => {
                // As the kubelet: one after the other, not as they came.
                let mut output = said;
                output.extend(errors);
                output.truncate(MAX_OUTPUT_BYTES);
                Outcome::Failure(String::from_utf8_lossy(&output).into_owned())
            }
            (code, Purpose::Hook) => {
                let (command, errors) = (command.join(" "), String::from_utf8_lossy(&errors).into_owned());
                Outcome::Failure(format!("command '{command}' exited with {code}: {errors}"))
            }
        }
    };
    let late = || {
        let seconds = timeout.unwrap_or_default().as_secs();
        Outcome::Failure(format!("command timed out: {:?} timed out after {seconds}s", command.join(" ")))
    };
    super::limited(asked, timeout).await.unwrap_or_else(late)
}

/// A program that is not left behind.
struct Program {
    session: Session,
    /// Whether it ends when nobody waits for it any more.
    ends: bool,
}

impl Drop for Program {
    fn drop(&mut self) {
        if self.ends {
            self.session.kill();
        }
    }
}

/// Reads to the end, keeps the beginning.
async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut buffer = [0; 1024];
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return kept,
            Ok(count) => {
                let wanted = count.min(MAX_OUTPUT_BYTES.saturating_sub(kept.len()));
                kept.extend_from_slice(&buffer[..wanted]);
            }
        }
    }
}
