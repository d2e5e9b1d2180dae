//! SIGTERM and SIGINT: the first asks to stop, the second stops.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Exit code of a process ended by SIGINT, as shells report it.
pub const INTERRUPTED: u8 = 130;

/// Cancels `stop` at the first signal and ends the process at the second.
///
/// # Errors
/// When the kernel refuses the handlers.
pub fn cancel_on_signal(stop: CancellationToken) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                // Cancel-safe: a signal is received or stays pending.
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if stop.is_cancelled() {
                eprintln!("Stopped at once: guests were killed");
                std::process::exit(i32::from(INTERRUPTED));
            }
            stop.cancel();
        }
    });
    Ok(())
}
