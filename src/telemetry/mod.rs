//! The agent's own log: where it goes, in which form, how much of it.
//!
//! In: flags and `WASILET_LOG`. Out: the process-wide `tracing` subscriber, on standard error so that a command's
//! output stays its own. Nothing else: metrics and traces would be other rooms.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

/// The environment variable that overrides the level, such as `info,wasilet::worker=debug`.
pub const FILTER_VARIABLE: &str = "WASILET_LOG";

/// The form of a line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// For people; coloured on a terminal.
    #[default]
    Text,
    /// One JSON object a line, for collectors.
    Json,
}

/// How much is said when [`FILTER_VARIABLE`] is not set; what `-v` counts up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Level {
    /// Only what needs somebody to act.
    Error,
    /// And what may.
    Warn,
    /// And what happened to pods.
    #[default]
    Info,
    /// And why.
    Debug,
    /// Everything.
    Trace,
}

impl Level {
    /// `-v` flags counted from a command's own level.
    #[must_use]
    pub fn raised(self, by: u8) -> Self {
        const ALL: [Level; 5] = [Level::Error, Level::Warn, Level::Info, Level::Debug, Level::Trace];
        ALL[(self as usize + usize::from(by)).min(ALL.len() - 1)]
    }

    /// The filter it stands for. The runtime's dependencies log each instruction they compile: they stay at warnings.
    fn filter(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "warn,wasilet=info",
            Self::Debug => "info,wasilet=debug,cranelift_codegen=warn,wasmtime_internal_cranelift=warn",
            Self::Trace => "debug,wasilet=trace,cranelift_codegen=warn,wasmtime_internal_cranelift=warn",
        }
    }
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// [`FILTER_VARIABLE`] is no filter.
    #[error("{FILTER_VARIABLE}={value:?} is not a log filter: {source}")]
    Filter {
        /// What it is.
        value: String,
        /// Why it is none.
        #[source]
        source: ParseError,
    },
    /// Somebody was first.
    #[error("logging is already set up")]
    AlreadySet,
}

/// Sets up logging for the process. Once.
///
/// # Errors
/// [`TelemetryError`].
pub fn init(format: Format, level: Level) -> Result<(), TelemetryError> {
    let filter = filter(std::env::var(FILTER_VARIABLE).ok().as_deref(), level)?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let result = match format {
        Format::Text => builder.with_ansi(std::io::stderr().is_terminal()).with_target(false).try_init(),
        Format::Json => builder.json().flatten_event(true).try_init(),
    };
    result.map_err(|_| TelemetryError::AlreadySet)
}

fn filter(variable: Option<&str>, level: Level) -> Result<EnvFilter, TelemetryError> {
    match variable.filter(|value| !value.trim().is_empty()) {
        Some(value) => {
            EnvFilter::try_new(value).map_err(|source| TelemetryError::Filter { value: value.to_owned(), source })
        }
        None => Ok(EnvFilter::new(level.filter())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_wins_over_the_flags_and_a_bad_one_is_named() {
        assert_eq!(filter(Some("wasilet=trace"), Level::Error).unwrap().to_string(), "wasilet=trace");
        assert_eq!(filter(Some(" "), Level::Warn).unwrap().to_string(), "warn");
        let error = filter(Some("a=b=c"), Level::Info).unwrap_err().to_string();
        assert!(error.starts_with("WASILET_LOG=\"a=b=c\" is not a log filter"), "{error}");
    }

    #[test]
    fn flags_raise_the_level_up_to_everything() {
        assert_eq!(Level::Warn.raised(1), Level::Info);
        assert_eq!(Level::Info.raised(200), Level::Trace);
    }
}
