//! Container logs: CRI files under `<root>/NS_NAME_UID/CONTAINER/N.log`, written, rotated and read.
//!
//! In: the bytes that containers write. Out: files that any Kubernetes log collector understands, and
//! what `kubectl logs` shows of them. Knows nothing of pods beyond their names, and keeps no log in memory.

mod cursor;
mod format;
mod reader;
mod rotate;
mod store;
mod tail;
mod writer;

pub use format::{Line, Stream, parse_line};
pub use reader::{LogChunk, LogOptions, LogReader, StreamSelection};
pub use store::{LogError, LogStore};
pub use writer::LogWriter;

#[cfg(test)]
mod tests;
