//! When to stop: the signals of a terminal and of those who run containers.
//!
//! * A stop by signal first delivers what it can within `delivery.shutdown_grace`, and names in the log what it could
//!   not. A second signal ends the process at once.

use std::{io, process};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A token that the first SIGTERM or SIGINT cancels. The second ends the process at once.
///
/// # Errors
/// When the signals cannot be listened to.
pub fn on_signal() -> io::Result<CancellationToken> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let shutdown = CancellationToken::new();
    let first = shutdown.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if first.is_cancelled() {
                tracing::error!("a second signal: ending at once");
                process::exit(1);
            }
            first.cancel();
        }
    });
    Ok(shutdown)
}
