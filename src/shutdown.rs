//! The signals that stop the process. `docs/delivery.md` says what a stop does.

use std::{io, time::Duration};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// The time within which signals count as one: some supervisors send two, and a terminal and a parent process one each.
const TOGETHER: Duration = Duration::from_secs(1);

/// The requests to stop that signals make.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    /// Cancelled by the first signal, to stop gracefully.
    pub asked: CancellationToken,
    /// Cancelled by a later signal, to end at once.
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
