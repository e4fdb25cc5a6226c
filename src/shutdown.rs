//! When to stop: the signals of a terminal and of those who run containers.
//!
//! * A stop by signal first delivers what it can within `delivery.shutdown_grace`, and names in the log what it could not.
//!   Another signal, a second later or more, ends the process at once, after the same names.

use std::{io, time::Duration};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// Signals that come so close together are one: some supervisors send two, and a terminal and a parent one each.
const TOGETHER: Duration = Duration::from_secs(1);

/// What signals ask for.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    /// Cancelled by the first signal: stop in good order.
    pub asked: CancellationToken,
    /// Cancelled by one that comes a second later or more: end at once.
    pub at_once: CancellationToken,
}

/// Listens to SIGTERM, SIGINT and SIGQUIT.
///
/// # Errors
/// When the signals cannot be listened to.
pub fn on_signal() -> io::Result<Stop> {
    let kinds = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::quit()];
    let [terminate, interrupt, quit] = kinds.map(signal);
    let signals = [terminate?, interrupt?, quit?];
    let stop = Stop::default();
    tokio::spawn(stop.clone().listen(signals));
    Ok(stop)
}

impl Stop {
    async fn listen(self, [mut terminate, mut interrupt, mut quit]: [Signal; 3]) {
        let mut first = None;
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                _ = quit.recv() => {}
            }
            self.asked.cancel();
            if first.get_or_insert_with(Instant::now).elapsed() >= TOGETHER {
                self.at_once.cancel();
            }
        }
    }
}
