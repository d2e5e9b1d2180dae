//! What is said about a container that ended: reason and termination message.
//!
//! In: how it ended, its message file, the tail of its log. Out: the kubelet's words. Reads no file.

use super::run::ExitCause;

/// Bytes read of the message file.
pub const MAX_MESSAGE_BYTES: usize = 4096;
/// Bytes taken of the log when the file is empty (`FallbackToLogsOnError`).
pub const MAX_LOG_BYTES: usize = 2048;
/// Lines taken of the log.
pub const MAX_LOG_LINES: u64 = 80;

/// `terminationMessagePolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessagePolicy {
    /// The file only.
    File,
    /// The file; the end of the log when it is empty and the container failed.
    FallbackToLogsOnError,
}

impl MessagePolicy {
    /// Reads an API value.
    #[must_use]
    pub fn parse(text: Option<&str>) -> Self {
        if text == Some("FallbackToLogsOnError") { Self::FallbackToLogsOnError } else { Self::File }
    }
}

/// `terminated.reason`.
#[must_use]
pub fn reason(exit_code: i32, cause: &ExitCause) -> &'static str {
    match cause {
        ExitCause::OutOfMemory => "OOMKilled",
        ExitCause::HostFault { .. } => "ContainerCannotRun",
        _ if exit_code == 0 => "Completed",
        _ => "Error",
    }
}

/// Whether the end of the log is wanted, given what the file held.
#[must_use]
pub fn wants_log(policy: MessagePolicy, exit_code: i32, cause: &ExitCause, file: &[u8]) -> bool {
    let cannot_run = matches!(cause, ExitCause::HostFault { .. });
    policy == MessagePolicy::FallbackToLogsOnError && exit_code != 0 && !cannot_run && file.is_empty()
}

/// `terminated.message`: what the runtime says, then what the container wrote.
#[must_use]
pub fn message(cause: &ExitCause, file: &[u8], log: Option<&[u8]>) -> Option<String> {
    let runtime = match cause {
        ExitCause::Trapped { message } | ExitCause::HostFault { message } => message.as_str(),
        _ => "",
    };
    let written = match log {
        Some(log) => tail(log, MAX_LOG_BYTES),
        None => tail(file, MAX_MESSAGE_BYTES),
    };
    let message = match (runtime.is_empty(), written.is_empty()) {
        (true, _) => written,
        (false, true) => runtime.to_owned(),
        (false, false) => format!("{runtime}: {written}"),
    };
    (!message.is_empty()).then_some(message)
}

/// The last `most` bytes as text.
fn tail(bytes: &[u8], most: usize) -> String {
    String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(most)..]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_the_kubelets() {
        for (code, cause, expected) in [
            (0, ExitCause::Exited, "Completed"),
            (1, ExitCause::Exited, "Error"),
            (0, ExitCause::Stopped, "Completed"),
            (143, ExitCause::Stopped, "Error"),
            (137, ExitCause::Killed, "Error"),
            (137, ExitCause::OutOfMemory, "OOMKilled"),
            (134, ExitCause::Trapped { message: String::new() }, "Error"),
            (128, ExitCause::HostFault { message: String::new() }, "ContainerCannotRun"),
        ] {
            assert_eq!(reason(code, &cause), expected);
        }
    }

    #[test]
    fn messages_come_from_the_runtime_the_file_or_the_log() {
        let trap = ExitCause::Trapped { message: "unreachable".into() };
        for (case, cause, file, log, expected) in [
            ("nothing", ExitCause::Exited, "", None, None),
            ("the file", ExitCause::Exited, "bye", None, Some("bye")),
            ("the log", ExitCause::Exited, "", Some("last words"), Some("last words")),
            ("the trap", trap.clone(), "", None, Some("unreachable")),
            ("the trap and the file", trap, "bye", None, Some("unreachable: bye")),
        ] {
            let got = message(&cause, file.as_bytes(), log.map(str::as_bytes));
            assert_eq!(got.as_deref(), expected, "{case}");
        }
        assert_eq!(message(&ExitCause::Exited, &[b'x'; 5000], None).unwrap().len(), MAX_MESSAGE_BYTES);
        assert_eq!(message(&ExitCause::Exited, b"", Some(&[b'x'; 5000])).unwrap().len(), MAX_LOG_BYTES);
    }

    #[test]
    fn the_log_is_used_only_for_failures_that_said_nothing() {
        let fallback = MessagePolicy::FallbackToLogsOnError;
        for (case, policy, code, file, expected) in [
            ("a silent failure", fallback, 1, "", true),
            ("a success", fallback, 0, "", false),
            ("a failure that said something", fallback, 1, "x", false),
            ("another policy", MessagePolicy::File, 1, "", false),
        ] {
            assert_eq!(wants_log(policy, code, &ExitCause::Exited, file.as_bytes()), expected, "{case}");
        }
        let fault = ExitCause::HostFault { message: String::new() };
        assert!(!wants_log(fallback, 128, &fault, b""), "what never ran has no log");
    }
}
