//! Signals from the node. In: `/dev/signal`, from which a guest reads one byte per signal, its number. Out: a future
//! per signal. Opening the device tells the node that this guest ends itself when asked to.

use std::future;
use std::io;

use wasip2::filesystem::preopens;
use wasip2::filesystem::types::{Descriptor, DescriptorFlags, OpenFlags, PathFlags};
use wstd::io::AsyncInputStream;

/// The number of SIGTERM, what a node sends before it kills.
pub const SIGTERM: u8 = 15;

/// The signals of this process.
pub struct Signals {
    // Children before their parent: WASI wants the stream gone when the descriptor is closed.
    stream: Option<AsyncInputStream>,
    _device: Option<Descriptor>,
}

impl Signals {
    /// Opens `/dev/signal`. On a host that has none, no signal ever comes.
    #[must_use]
    pub fn open() -> Self {
        let device = open_device();
        let stream = device.as_ref().and_then(|device| device.read_via_stream(0).ok()).map(AsyncInputStream::new);
        Self { stream, _device: device }
    }

    /// Whether this host delivers signals.
    #[must_use]
    pub fn supported(&self) -> bool {
        self.stream.is_some()
    }

    /// Waits for the next signal's number.
    pub async fn next(&mut self) -> io::Result<u8> {
        let Some(stream) = &self.stream else { return future::pending().await };
        let mut number = [0];
        match stream.read(&mut number).await? {
            0 => future::pending().await,
            _ => Ok(number[0]),
        }
    }
}

fn open_device() -> Option<Descriptor> {
    preopens::get_directories().into_iter().find_map(|(directory, path)| {
        let relative = "/dev/signal".strip_prefix(path.as_str())?.trim_start_matches('/');
        directory.open_at(PathFlags::SYMLINK_FOLLOW, relative, OpenFlags::empty(), DescriptorFlags::READ).ok()
    })
}
