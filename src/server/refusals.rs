//! Senders that were refused, in a log that they cannot flood.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::Instant;

use crate::auth::Denied;

/// How far apart two lines are at least.
const INTERVAL: Duration = Duration::from_secs(10);

/// Counts refusals between two lines.
#[derive(Clone, Debug, Default)]
pub(super) struct Refusals(Arc<Mutex<Since>>);

#[derive(Debug, Default)]
struct Since {
    last_line: Option<Instant>,
    unsaid: u64,
}

impl Refusals {
    /// Notes a refusal, and logs it with all that were not logged before if the last line is long enough ago.
    pub(super) fn note(&self, denied: Denied) {
        let mut since = self.0.lock().expect("no panic while it is held");
        since.unsaid += 1;
        if since.last_line.is_some_and(|last| last.elapsed() < INTERVAL) {
            return;
        }
        tracing::warn!(requests = since.unsaid, reason = %denied, "senders were refused");
        *since = Since { last_line: Some(Instant::now()), unsaid: 0 };
    }
}
