//! One attempt per identity; what could not be delivered is held and tried again.

use std::time::Duration;

/// How much is in flight, and how much and how long is held.
#[derive(Clone, Debug)]
pub struct Settings {
    /// POSTs in flight to Variance.
    pub concurrency: usize,
    /// How long an undelivered event is held.
    pub retry_for: Duration,
    /// Bytes of memory for undelivered events, bookkeeping included.
    pub max_held: usize,
}
